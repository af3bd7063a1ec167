//! Tasks that do nothing, with ports and params like the real ones.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::task::{
    Context, Determinism, Failure, Inputs, Outputs, ParamError, Port, Registry, Task,
};

macro_rules! task {
    ($name:ident, $kind:literal, $params:ty, $inputs:expr, $outputs:expr $(, $item:item)*) => {
        struct $name;

        impl Task for $name {
            const KIND: &'static str = $kind;
            const REVISION: u32 = 1;
            const SUMMARY: &'static str = concat!("Does what `", $kind, "` does");
            const DETERMINISM: Determinism = Determinism::Bitwise;
            const INPUTS: &'static [Port] = &$inputs;
            const OUTPUTS: &'static [Port] = &$outputs;
            type Params = $params;

            fn run(_: &mut Context, _: &$params, _: &Inputs) -> Result<Outputs, Failure> {
                Ok(Outputs::default())
            }

            $($item)*
        }
    };
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReadParams {
    /// Where documents come from.
    sources: Vec<Origin>,
    /// The field of a record that holds the text.
    #[serde(default = "text_key")]
    text_key: String,
    /// Most documents to read.
    #[serde(default)]
    limit: Option<u64>,
}

fn text_key() -> String {
    "text".to_owned()
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Origin {
    /// Files that match a pattern.
    Glob(String),
    /// Made-up documents.
    Generated { n_docs: u32, seed: u64 },
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct CleanParams {
    /// Line breaks in a row that are kept.
    max_newlines: u32,
    /// Whether text is lower-cased.
    lower: bool,
    /// Notes on the choice.
    note: String,
}

impl Default for CleanParams {
    fn default() -> Self {
        Self { max_newlines: 2, lower: false, note: String::new() }
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SplitParams {
    /// Documents kept for evaluation.
    heldout_docs: u64,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TokenizerParams {
    /// Entries of the vocabulary.
    vocab_size: u32,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PretrainParams {
    /// Shape of the model.
    #[serde(default)]
    arch: Arch,
    /// Highest learning rate.
    #[serde(default = "lr_peak")]
    lr_peak: f64,
    /// How the learning rate falls.
    #[serde(default)]
    schedule: Schedule,
    /// Optimizer steps.
    steps: u64,
    /// First and second momentum.
    #[serde(default = "betas")]
    betas: (f64, f64),
}

fn lr_peak() -> f64 {
    1e-2
}

fn betas() -> (f64, f64) {
    (0.9, 0.95)
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Arch {
    n_layers: u32,
    width: u32,
}

impl Default for Arch {
    fn default() -> Self {
        Self { n_layers: 2, width: 64 }
    }
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Schedule {
    /// Half a cosine.
    #[default]
    Cosine,
    /// No change.
    Constant,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EvaluateParams {
    /// The name in tables.
    #[serde(default)]
    name: String,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NoParams {}

task!(
    ReadCorpus,
    "read_corpus",
    ReadParams,
    [],
    [Port::one("docs", "corpus", "documents")],
    fn external(params: &ReadParams) -> Vec<String> {
        params
            .sources
            .iter()
            .filter_map(|origin| match origin {
                Origin::Glob(pattern) => Some(pattern.clone()),
                Origin::Generated { .. } => None,
            })
            .collect()
    }
);
task!(
    Clean,
    "clean",
    CleanParams,
    [Port::one("docs", "corpus", "documents")],
    [Port::one("docs", "corpus", "cleaned documents")]
);
task!(
    Split,
    "split",
    SplitParams,
    [Port::one("docs", "corpus", "documents")],
    [Port::one("train", "corpus", "to train on"), Port::one("heldout", "corpus", "to evaluate on")]
);
task!(
    TrainTokenizer,
    "train_tokenizer",
    TokenizerParams,
    [Port::one("docs", "corpus", "documents")],
    [Port::one("tokenizer", "tokenizer", "the tokenizer")],
    fn check(params: &TokenizerParams) -> Result<(), ParamError> {
        if params.vocab_size < 260 {
            let message = format!("{} is less than 260", params.vocab_size);
            return Err(ParamError::new("vocab_size", message).help("bytes alone take 256"));
        }
        Ok(())
    }
);
task!(
    Pretrain,
    "pretrain",
    PretrainParams,
    [
        Port::one("real", "corpus", "real documents"),
        Port::one("tokenizer", "tokenizer", "the tokenizer"),
        Port::optional("synthetic", "corpus", "synthetic documents"),
    ],
    [
        Port::one("model", "model", "the last weights"),
        Port::one("snapshots", "models", "earlier ones")
    ]
);
task!(
    Evaluate,
    "evaluate",
    EvaluateParams,
    [Port::one("model", "model", "the model"), Port::one("heldout", "corpus", "documents")],
    [Port::one("evaluation", "evaluation", "scores")]
);
task!(
    Compare,
    "compare",
    NoParams,
    [Port::many("evaluations", "evaluation", "what to compare")],
    [Port::one("comparison", "comparison", "the table")]
);

/// Every made-up task.
pub(super) fn registry() -> Registry {
    Registry::default()
        .with::<ReadCorpus>()
        .with::<Clean>()
        .with::<Split>()
        .with::<TrainTokenizer>()
        .with::<Pretrain>()
        .with::<Evaluate>()
        .with::<Compare>()
}
