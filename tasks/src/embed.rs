//! Embeds documents as unit vectors.
//!
//! Three backends; the first two were seen to group documents by what they are about even where the
//! model is tiny:
//! - `tfidf`: TF-IDF over words, projected to `dim` by random signs. A random projection needs no
//!   fit, one pass and no memory for a basis, and its inner products are unbiased with a standard
//!   error of about `1 / sqrt(dim)`; a truncated SVD would cost a fit and drop rare terms, which are
//!   the ones that tell documents apart.
//! - `model`: the IDF-weighted mean of the model's own token embeddings, centred and PCA-whitened.
//!   Both steps are needed: plain means of hidden states group documents by genre.
//! - `states`: hidden states of a transformer: the paper's Qwen3-Embedding-0.6B or another model of
//!   that type in a folder, or the pipeline's own model, which its section 6 calls the ideal.

mod pca;
mod rows;
mod states;
mod terms;

use engine::task::{
    Context, Determinism, Estimate, FILE_BYTES, Facts, Failure, Inputs, Outputs, ParamError, Port,
    Predicted, Task,
};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::{fact, figure};
use crate::device;
use crate::format::tokens::Tokens;
use crate::format::vectors::{self, VectorsWriter};
pub use states::Pooling;

/// Components of `tfidf` vectors unless `dim` is given; the paper's embeddings have as many.
const TFIDF_DIM: usize = 1024;

/// See the module.
pub struct Embed;

/// Params of `embed`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// What makes the vectors: `tfidf`, `model` for the model's own token embeddings, or `states` for
    /// hidden states of a transformer.
    #[serde(default)]
    pub backend: Backend,
    /// Components of a vector. Default: 1024 for `tfidf`; for `model` every direction in which the
    /// documents vary, at most the model's width; for `states` the width, of which the first `dim` are
    /// taken.
    #[serde(default)]
    pub dim: Option<usize>,
    /// For `states`: the folder of a Qwen3-type embedding model in Hugging Face's form, which reads
    /// the documents' text (so `tokenizer` is needed); else the input `model` reads their tokens.
    #[serde(default)]
    pub path: Option<String>,
    /// Which of a document's states `states` takes: the `last` token's, or their `mean`.
    #[serde(default)]
    pub pooling: Pooling,
    /// After how many blocks `states` takes them; all by default, and normalized then.
    #[serde(default)]
    pub layer: Option<usize>,
    /// Most tokens of a document that `states` reads, its end included; by default the model's
    /// context. Longer ones lose what is before their end, and are counted.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// What `tfidf` counts: `words` (needs the tokenizer) or `tokens`.
    #[serde(default)]
    pub terms: Terms,
    /// `tfidf` leaves out terms that fewer documents have.
    #[serde(default = "default_min_documents")]
    pub min_documents: u32,
    /// Seed of `tfidf`'s projection.
    #[serde(default)]
    pub seed: u64,
    /// What to do with a document without terms or tokens: `fail`, or `keep` it with a zero vector,
    /// whose inner product with every document is 0.
    #[serde(default)]
    pub on_empty: OnEmpty,
}

/// What makes the vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Projected TF-IDF.
    #[default]
    Tfidf,
    /// The model's own token embeddings.
    Model,
    /// Hidden states of a transformer.
    States,
}

/// What TF-IDF counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Terms {
    /// Runs of letters and digits, in lower case.
    #[default]
    Words,
    /// Token ids.
    Tokens,
}

/// What to do with a document that has no vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnEmpty {
    /// End with an error that names it.
    #[default]
    Fail,
    /// Give it a zero vector.
    Keep,
}

fn default_min_documents() -> u32 {
    1
}

impl Task for Embed {
    const KIND: &'static str = "embed";
    const REVISION: u32 = 1;
    const ITEM_STAGES: u32 = 2;
    const SUMMARY: &'static str =
        "embeds documents as unit vectors, by TF-IDF, a model's token embeddings or its states";
    // Logarithms come from the platform's math library.
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const USES_DEVICE: bool = true;
    const INPUTS: &'static [Port] = &[
        Port::one("documents", "tokens", "the documents"),
        Port::optional("model", "model", "the model, for backends `model` and `states`"),
        Port::optional("tokenizer", "tokenizer", "the tokenizer, for terms `words` and `path`"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("vectors", "vectors", "one unit vector a document, in f32 and int8")];
    // The content of the folder is in the key, its place is not.
    const UNKEYED: &'static [&'static str] = &["path"];
    type Params = Params;

    fn external(params: &Params) -> Vec<String> {
        params.path.as_deref().map(states::external).unwrap_or_default()
    }

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.path.is_some() && params.backend != Backend::States {
            return Err(ParamError::new(
                "path",
                "a model's folder is read by backend `states` only",
            )
            .help("set `backend: states`"));
        }
        if params.max_tokens.is_some_and(|n| n < 2) {
            let message = "a document and its end have at least 2 tokens";
            return Err(ParamError::new("max_tokens", message));
        }
        match params.dim {
            Some(dim) if dim == 0 || dim > kernels::int8_search::COLUMNS_MAX => {
                let limit = kernels::int8_search::COLUMNS_MAX;
                Err(ParamError::new("dim", format!("dim is {dim}; it must be 1 to {limit}")))
            }
            _ => Ok(()),
        }
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let documents = inputs.fact("documents", fact::DOCUMENTS);
        let own = (params.backend == Backend::Tfidf).then_some(TFIDF_DIM);
        let dim = params.dim.or(own).map(|dim| dim as f64);
        let bytes = documents.zip(dim).map(|(documents, dim)| documents * vectors::row_bytes(dim));
        Estimate::unknown().figure(figure::DOCUMENTS, documents).output(
            "vectors",
            Facts::default()
                .with(fact::DOCUMENTS, documents)
                .with(fact::DIMENSIONS, dim)
                .with(FILE_BYTES, bytes),
        )
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let documents = Tokens::open(inputs.one("documents"))?;
        if documents.n_documents() == 0 {
            return Err(Failure::permanent("there are no documents to embed"));
        }
        let pool = Pool::new(ctx.n_threads());
        if params.backend != Backend::States {
            device::require_cpu(ctx, "backends other than `states`")?;
        }
        let mut is_on_gpu = false;
        let (rows, name) = match params.backend {
            Backend::Tfidf => {
                let dim = params.dim.unwrap_or(TFIDF_DIM);
                (terms::projected(ctx, params, inputs, &documents, dim)?, "tfidf")
            }
            Backend::Model => (terms::whitened(ctx, &pool, params, inputs, &documents)?, "model"),
            Backend::States => {
                let rows;
                (rows, is_on_gpu) = states::rows(ctx, &pool, params, inputs, &documents)?;
                (rows, "states")
            }
        };
        let ids: Vec<u64> =
            (0..documents.n_documents()).map(|i| documents.document_id(i)).collect();
        let writer = VectorsWriter::create(&ctx.out("vectors")?, &ids, rows.dim, name)?;
        let n_zero = rows.write(ctx, &pool, params, &documents, writer)?;
        if n_zero > 0 {
            ctx.warn(format!("{n_zero} of {} documents have a zero vector", ids.len()));
        }
        let n_cut = rows.n_cut;
        if n_cut > 0 {
            ctx.warn(format!("{n_cut} of {} documents were longer than the limit", ids.len()));
        }
        let outputs = Outputs::default()
            .metric("n_documents", ids.len() as f64)
            .metric("dim", rows.dim as f64)
            .metric("n_zero", n_zero as f64);
        let outputs = device::note(outputs, is_on_gpu);
        Ok(if params.backend == Backend::States {
            outputs.metric("n_cut", n_cut as f64)
        } else {
            outputs
        })
    }
}

#[cfg(test)]
mod tests;
