//! Writes a synthetic corpus: texts drawn from a model, each after a real document (arXiv 2509.15248,
//! section 2.2, step 3), or after nothing (the control arm).
//!
//! Draw `k = 0, 1, 2, ..` names a seed document and one of its draws; see `plan`. The corpus is the
//! kept texts of the first draws that reach the target. Tokens are counted as training will count
//! them: ids of the text encoded again, with `<|bos|>` and `<|eos|>`, because sampled ids can spell a
//! text in another way than the tokenizer does. `synthesis.json` beside the corpus has the books.

mod books;
mod plan;
#[cfg(test)]
mod tests;
mod writing;

use std::path::Path;
use std::sync::Arc;

use engine::task::{
    Context, Determinism, Estimate, Facts, Failure, Inputs, Item, ItemResult, Outputs, ParamError,
    Port, Predicted, Task,
};
use kernels::sampling::Policy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{CorpusWriter, write_json};
use crate::cost::{self, fact, figure, forward_flop, unit};
use crate::device;
use crate::format::tokens::Tokens;
use crate::lm::device::decoder::Generator;
use crate::lm::generate::{Choice, Decoder, Settings};
use crate::lm::{Config, Weights, hf};
use crate::tokenizer::{BOS, EOS, PAD, SEP, Tokenizer};

use books::{Synthesis, Tally};
use plan::Plan;
use writing::Desk;

/// Writes a synthetic corpus.
pub struct Synthesize;

/// What a text continues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `<|bos|> seed <|sep|>`, the prompt that `tune_synthesizer` trains for.
    #[default]
    Conditional,
    /// `<|bos|>`: samples of the model itself, without seeds.
    Unconditional,
}

/// What becomes of a text that reached its limit before its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTruncate {
    /// It is left out, and counted.
    #[default]
    Drop,
    /// It stays, and says so.
    Keep,
}

/// Params of `synthesize`. One of `target_tokens` and `n_documents` is needed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// What a text continues.
    #[serde(default)]
    pub mode: Mode,
    /// Stop after the text that brings the corpus to this many tokens, `<|bos|>` and `<|eos|>` of
    /// every text included.
    #[serde(default)]
    pub target_tokens: Option<u64>,
    /// Stop after this many texts.
    #[serde(default)]
    pub n_documents: Option<u64>,
    /// Divides the logits.
    #[serde(default = "default_temperature")]
    pub temperature: f32,
    /// Share of the probability that the likeliest tokens must reach; less likely ones are never
    /// drawn. 1 keeps all.
    #[serde(default = "default_top_p")]
    pub top_p: f64,
    /// How many of the likeliest tokens can be drawn; 0 for all.
    #[serde(default)]
    pub top_k: u32,
    /// Above 1, makes tokens that occurred in prompt or text less likely.
    #[serde(default = "default_repetition_penalty")]
    pub repetition_penalty: f32,
    /// Most tokens of a text, its end included; by default, whatever the context leaves.
    #[serde(default)]
    pub max_new_tokens: Option<u32>,
    /// Shorter texts are left out, and counted. In tokens of the text encoded again.
    #[serde(default = "default_min_tokens")]
    pub min_tokens: u32,
    /// What becomes of a text that reached its limit before its end.
    #[serde(default)]
    pub on_truncate: OnTruncate,
    /// Draws in a row from a seed each time it is visited. They share the work on the prompt; the
    /// last visits may be left out, so a large number spreads draws less evenly over seeds.
    #[serde(default = "default_draws_per_visit")]
    pub draws_per_visit: u32,
    /// Seed of the order of seeds and of every draw.
    #[serde(default)]
    pub seed: u64,
    /// Texts generated at a time. Changes speed and memory only.
    #[serde(default = "default_batch")]
    pub batch: u32,
}

/// Bootstrapped pretraining, arXiv 2509.15248, section A.2: temperature 1, top-p 0.9.
fn default_temperature() -> f32 {
    1.0
}

fn default_top_p() -> f64 {
    0.9
}

fn default_repetition_penalty() -> f32 {
    1.0
}

fn default_min_tokens() -> u32 {
    1
}

fn default_draws_per_visit() -> u32 {
    1
}

fn default_batch() -> u32 {
    64
}

impl Task for Synthesize {
    const KIND: &'static str = "synthesize";
    const REVISION: u32 = 1;
    const ITEM_STAGES: u32 = 1;
    const SUMMARY: &'static str = "writes a synthetic corpus with a tuned model";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const USES_DEVICE: bool = true;
    const INPUTS: &'static [Port] = &[
        Port::one("model", "model", "the model that writes"),
        Port::one("tokenizer", "tokenizer", "the model's vocabulary"),
        Port::optional("seeds", "tokens", "documents to start from; not in mode `unconditional`"),
        Port::optional("gate", "decision", "nothing is written unless it lets the run go on"),
    ];
    const OUTPUTS: &'static [Port] = &[Port::one("corpus", "corpus", "the synthetic texts")];
    const UNKEYED: &'static [&'static str] = &["batch"];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        let wrong = |path: &str, message: String| Err(ParamError::new(path, message));
        match (params.target_tokens, params.n_documents) {
            (Some(0), _) => return wrong("target_tokens", "0 is not above 0".to_owned()),
            (_, Some(0)) => return wrong("n_documents", "0 is not above 0".to_owned()),
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) | (Some(_), Some(_)) => {
                let message = "one of `target_tokens` and `n_documents` is needed, not both";
                return wrong("target_tokens", message.to_owned());
            }
        }
        if !kernels::sampling::is_temperature(params.temperature) {
            return wrong("temperature", format!("{} is not at least 3e-39", params.temperature));
        }
        if !(params.top_p > 0.0 && params.top_p <= 1.0) {
            return wrong("top_p", format!("{} is not within (0, 1]", params.top_p));
        }
        if !(params.repetition_penalty.is_finite() && params.repetition_penalty >= 1.0) {
            let message = format!("{} is not at least 1", params.repetition_penalty);
            return wrong("repetition_penalty", message);
        }
        if params.max_new_tokens.is_some_and(|n| n <= params.min_tokens) {
            let message =
                format!("no room for `min_tokens: {}` and the text's end", params.min_tokens);
            return wrong("max_new_tokens", message);
        }
        for (path, value) in [("draws_per_visit", params.draws_per_visit), ("batch", params.batch)]
        {
            if value == 0 {
                return wrong(path, "0 is not above 0".to_owned());
            }
        }
        Ok(())
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let (model, seeds) = (inputs.one("model"), inputs.one("seeds"));
        // A text is taken to be as long as a seed.
        let mean = seeds.get(fact::TOKENS).zip(seeds.get(fact::DOCUMENTS)).map(|(t, d)| t / d);
        let target = params.target_tokens.map(|n| n as f64);
        let tokens = target.or_else(|| Some(params.n_documents? as f64 * mean?));
        let documents = params.n_documents.map(|n| n as f64).or_else(|| Some(target? / mean?));
        let prompts = match params.mode {
            Mode::Conditional => documents.zip(mean).map(|(n, mean)| n * mean),
            Mode::Unconditional => Some(0.0),
        };
        let flop = || {
            let all = tokens? + prompts?;
            forward_flop(&model, all, all / documents?)
        };
        let decode = model.get(fact::TOKEN_FLOP).zip(tokens).map(|(flop, tokens)| flop * tokens);
        Estimate::unknown()
            .figure(figure::TOKENS, tokens)
            .figure(figure::DOCUMENTS, documents)
            .figure(figure::FLOP, flop())
            .work(unit::DECODE_FLOP, decode)
            .output(
                "corpus",
                Facts::default().with(fact::DOCUMENTS, documents).with(fact::TOKENS, tokens),
            )
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        if let Some(dir) = inputs.optional("gate") {
            require_pass(dir)?;
        }
        let tokenizer = Tokenizer::open(inputs.one("tokenizer"))?;
        let seeds = open_seeds(params, inputs, &tokenizer)?;
        let weights = hf::load(inputs.one("model"))?;
        check_vocabulary(&weights, &tokenizer)?;
        let plan = Plan::new(params, seeds.as_ref(), weights.config())?;
        if plan.n_skipped() > 0 {
            ctx.warn(format!(
                "{} of {} seeds do not fit the model's context of {} and are skipped",
                plan.n_skipped(),
                plan.n_skipped() + plan.n_seeds(),
                weights.config().context
            ));
        }
        let n_slots = params.batch as usize;
        // One sequence more than slots holds the prompt that draws share.
        let device = device::open(ctx, &Generator::work(weights.config(), n_slots + 1))?;
        let is_on_gpu = device.is_some();
        let n_slots =
            if is_on_gpu { n_slots } else { slots_within_memory(ctx, params, weights.config())? };
        let stage = device::stage("draw", device.as_deref());
        let desk = Desk {
            params,
            weights: &weights,
            tokenizer: &tokenizer,
            settings: settings(params, weights.config(), &tokenizer),
            n_slots,
            device,
            id_base: inputs.many("model")[0].digest.to_string(),
        };
        let tally = Tally::new(ctx, params);
        let dir = ctx.out("corpus")?;
        let mut synthesis = Synthesis::new(params, &plan, &tally, CorpusWriter::create(&dir)?);
        let made_of = made_of(params, inputs);
        let items = books::items().map(|draws| {
            let name = format!("draws {} to {}", draws.start, draws.end - 1);
            Item::new(name, &(&made_of, draws.clone()), draws)
        });
        ctx.stage(&stage, "texts").alone().stream(
            items,
            books::n_held(n_slots),
            |feed| desk.work(feed, plan.clone(), &tally),
            |item: ItemResult<()>| synthesis.take(&item.dir),
        )?;
        let books = synthesis.finish()?;
        write_json(&dir.join("synthesis.json"), &books)?;
        let token_flop = cost::model(weights.config()).get(fact::TOKEN_FLOP).unwrap_or(0.0);
        let outputs = device::note(books.outputs(tally.tokens_per_s()), is_on_gpu);
        Ok(outputs.metric(unit::DECODE_FLOP, token_flop * books.gross_tokens as f64))
    }
}

/// What every draw depends on: all but the target, and what is outside the key anyway.
fn made_of(params: &Params, inputs: &Inputs) -> impl Serialize {
    let params = Params { target_tokens: None, n_documents: None, batch: 0, ..params.clone() };
    let digest = |port| inputs.many(port).first().map(|input| input.digest);
    (params, ["model", "tokenizer", "seeds"].map(digest))
}

/// Fails unless the decision in `dir` lets the run go on.
fn require_pass(dir: &Path) -> Result<(), Failure> {
    /// The part of `decision.json` that matters here.
    #[derive(Deserialize)]
    struct Decision {
        proceed: bool,
    }
    let path = dir.join("decision.json");
    let bytes = std::fs::read(&path)
        .map_err(|error| Failure::io(format!("cannot read `{}`", path.display()), &error))?;
    let decision: Decision = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::permanent(format!("`{}`: {error}", path.display())))?;
    if decision.proceed {
        return Ok(());
    }
    Err(Failure::permanent("the gate did not pass, so nothing is synthesized")
        .help("see the gate's decision.json for the figure that failed"))
}

fn open_seeds(
    params: &Params,
    inputs: &Inputs,
    tokenizer: &Tokenizer,
) -> Result<Option<Tokens>, Failure> {
    let seeds = match (params.mode, inputs.optional("seeds")) {
        (Mode::Unconditional, _) => return Ok(None),
        (Mode::Conditional, Some(dir)) => Tokens::open(dir)?,
        (Mode::Conditional, None) => {
            return Err(Failure::permanent("mode `conditional` needs the input `seeds`")
                .help("connect `seeds`, or set `mode: unconditional`"));
        }
    };
    if seeds.tokenizer() != tokenizer.digest() {
        return Err(Failure::permanent(format!(
            "the seeds were tokenized with {}, but the input `tokenizer` is {}",
            seeds.tokenizer(),
            tokenizer.digest()
        )));
    }
    Ok(Some(seeds))
}

fn check_vocabulary(weights: &Weights, tokenizer: &Tokenizer) -> Result<(), Failure> {
    let (model, vocabulary) = (weights.config().vocab_size, tokenizer.vocab_size() as usize);
    if model >= vocabulary {
        return Ok(());
    }
    Err(Failure::permanent(format!(
        "the model has {model} tokens, fewer than the tokenizer's {vocabulary}"
    )))
}

fn settings(params: &Params, config: &Config, tokenizer: &Tokenizer) -> Settings {
    // Training never asks for these, and rows past the tokenizer's ids spell nothing.
    let padding = tokenizer.vocab_size()..config.vocab_size as u32;
    let policy = Policy {
        temperature: params.temperature,
        top_k: params.top_k as usize,
        top_p: params.top_p,
    };
    Settings {
        choice: Choice::Sample(policy),
        repetition_penalty: params.repetition_penalty,
        suppress: [BOS, SEP, PAD].into_iter().chain(padding).collect(),
        stop: vec![EOS],
    }
}

/// The batch asked for, or as much of it as the granted memory holds.
fn slots_within_memory(ctx: &Context, params: &Params, config: &Config) -> Result<usize, Failure> {
    let Some(memory) = ctx.memory_bytes() else { return Ok(params.batch as usize) };
    let bytes = |n_slots: usize| 4 * config.n_parameters() + Decoder::bytes(config, n_slots + 1);
    let fits = (1..=params.batch as usize).rev().find(|&n_slots| bytes(n_slots) <= memory);
    fits.ok_or_else(|| {
        Failure::permanent(format!(
            "one text at a time takes {} bytes, more than the {memory} granted",
            bytes(1)
        ))
        .help("raise the node's `mem` resource")
    })
}

/// Shares one allocation among the requests of a prompt.
type Prompt = Arc<[u32]>;
