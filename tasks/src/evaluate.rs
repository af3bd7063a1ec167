//! Scores a model on held-out text: perplexity and bits per byte, with an interval over documents.
//!
//! A document is scored as training sees it, `<|bos|> text <|eos|>`: every token of the text and the
//! end, each once. One longer than the model's context is cut into windows that do not overlap; a
//! window begins with the token before its first target, and attends to nothing earlier. Perplexity
//! is that of the pooled tokens; it compares models of one tokenizer only, bits per byte any.

#[cfg(test)]
mod tests;
mod windows;

use std::fs;

use engine::digest::Digest;
use engine::task::{
    self, Context, Determinism, Estimate, Failure, Inputs, ItemResult, Outputs, ParamError, Port,
    Predicted, Task,
};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::write_json;
use crate::cost::{self, fact, figure, forward_flop, unit};
use crate::device;
use crate::format::tokens::Tokens;
use crate::lm::batch::MicroBatch;
use crate::lm::reader::{Losses as _, Reader};
use crate::lm::{Weights, hf};
use crate::tokenizer::Tokenizer;
use crate::{rows, stats};

use windows::Batches;

const SCORES_FILE: &str = "scores.json";
const ITEMS_FILE: &str = "items.jsonl.zst";
/// Of an item: one sum for each window.
const SUMS_FILE: &str = "nll";
/// Tokens computed together; fixed, so that results do not depend on anything but the documents.
const BATCH_TOKENS: usize = 2048;
/// Batches that are scored, or lost by a kill, together.
const ITEM_BATCHES: usize = 32;

/// Scores a model on held-out text.
pub struct Evaluate;

/// Params of `evaluate`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// What the text is called in tables: the `task` of every item.
    #[serde(default = "default_name")]
    pub name: String,
    /// Resamples of the documents for the 95 % interval.
    #[serde(default = "default_n_resamples")]
    pub n_resamples: usize,
    /// Seed of the resamples.
    #[serde(default)]
    pub seed: u64,
}

fn default_name() -> String {
    "heldout".to_owned()
}

fn default_n_resamples() -> usize {
    1000
}

/// One line of `items.jsonl.zst`: one document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The benchmark that the item belongs to.
    pub task: String,
    /// The item: the document's id, 16 hex digits.
    pub item: String,
    /// Sum of the negative log likelihoods, in nats.
    pub nll: f64,
    /// Tokens scored, the end included.
    pub tokens: u64,
    /// UTF-8 bytes of the text.
    pub bytes: u64,
}

/// The scores of one benchmark, in `scores.json` under its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Documents.
    pub n_items: u64,
    /// Tokens scored, the end of each document included.
    pub tokens: u64,
    /// UTF-8 bytes of all texts.
    pub bytes: u64,
    /// Negative log likelihood of a token in nats, over all tokens.
    pub mean_nll: f64,
    /// Lower end of the 95 % interval of `mean_nll` over documents.
    pub mean_nll_low: f64,
    /// Upper end of the 95 % interval of `mean_nll` over documents.
    pub mean_nll_high: f64,
    /// `e^mean_nll`.
    pub token_perplexity: f64,
    /// Bits to encode a byte of text, the documents' ends included.
    pub bits_per_byte: f64,
}

/// `scores.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Format version.
    pub version: u32,
    /// Scores by benchmark.
    pub tasks: std::collections::BTreeMap<String, Score>,
}

impl Task for Evaluate {
    const KIND: &'static str = "evaluate";
    const REVISION: u32 = 2;
    const ITEM_STAGES: u32 = 1;
    const SUMMARY: &'static str = "scores a model on held-out text";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const USES_DEVICE: bool = true;
    const INPUTS: &'static [Port] = &[
        Port::one("model", "model", "the model to score"),
        Port::one("heldout", "tokens", "documents that the model was not trained on"),
        Port::optional("tokenizer", "tokenizer", "checked to be the one that made `heldout`"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("evaluation", "evaluation", "scores, and one row per document")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.name.is_empty() {
            return Err(ParamError::new("name", "it is empty"));
        }
        stats::check_resamples(params.n_resamples)
    }

    fn cost(_: &Params, inputs: &Predicted) -> Estimate {
        let (model, heldout) = (inputs.one("model"), inputs.one("heldout"));
        let tokens = heldout.get(fact::TOKENS);
        let flop = || {
            let mean = tokens? / heldout.get(fact::DOCUMENTS)?;
            forward_flop(&model, tokens?, mean.min(model.get(fact::CONTEXT)?))
        };
        let flop = flop();
        Estimate::unknown()
            .figure(figure::TOKENS, tokens)
            .figure(figure::FLOP, flop)
            .work(unit::FORWARD_FLOP, flop)
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let heldout = Tokens::open(inputs.one("heldout"))?;
        if let Some(dir) = inputs.optional("tokenizer") {
            check_tokenizer(&heldout, &Tokenizer::open(dir)?)?;
        }
        let weights = hf::load(inputs.one("model"))?;
        if heldout.n_documents() == 0 {
            return Err(Failure::permanent("the input `heldout` has no documents"));
        }
        if heldout.vocab_size() as usize > weights.config().vocab_size {
            return Err(Failure::permanent(format!(
                "the input `heldout` has ids below {}, but the model has {} tokens",
                heldout.vocab_size(),
                weights.config().vocab_size
            )));
        }
        let model = inputs.many("model")[0].digest;
        let (nll, is_on_gpu) = score(ctx, model, &weights, &heldout)?;
        let items: Vec<Item> = (0..heldout.n_documents())
            .map(|document| Item {
                task: params.name.clone(),
                item: format!("{:016x}", heldout.document_id(document)),
                nll: nll[document],
                tokens: heldout.length(document) as u64 + 1,
                bytes: u64::from(heldout.text_bytes(document)),
            })
            .collect();
        let score = summarize(params, &items);
        let dir = ctx.out("evaluation")?;
        rows::write(&dir.join(ITEMS_FILE), &items)?;
        let tasks = std::iter::once((params.name.clone(), score.clone())).collect();
        write_json(&dir.join(SCORES_FILE), &Scores { version: 1, tasks })?;
        let mean = score.tokens as f64 / score.n_items as f64;
        let row = mean.min(weights.config().context as f64);
        let flop = forward_flop(&cost::model(weights.config()), score.tokens as f64, row);
        Ok(device::note(Outputs::default(), is_on_gpu)
            .metric(unit::FORWARD_FLOP, flop.unwrap_or(0.0))
            .metric("mean_nll", score.mean_nll)
            .metric("token_perplexity", score.token_perplexity)
            .metric("bits_per_byte", score.bits_per_byte))
    }
}

fn check_tokenizer(heldout: &Tokens, tokenizer: &Tokenizer) -> Result<(), Failure> {
    if heldout.tokenizer() == tokenizer.digest() {
        return Ok(());
    }
    Err(Failure::permanent(format!(
        "`heldout` was tokenized with {}, but the input `tokenizer` is {}",
        heldout.tokenizer(),
        tokenizer.digest()
    )))
}

/// The summed negative log likelihood of each document, and whether a GPU computed it.
fn score(
    ctx: &Context,
    model: Digest,
    weights: &Weights,
    heldout: &Tokens,
) -> Result<(Vec<f64>, bool), Failure> {
    let context = weights.config().context;
    let capacity = BATCH_TOKENS.max(context);
    let device = device::open(ctx, &Reader::work(weights.config(), capacity))?;
    let batches = Batches::new(heldout, context, capacity);
    let mut items = Vec::new();
    for first in (0..batches.len()).step_by(ITEM_BATCHES) {
        let end = batches.len().min(first + ITEM_BATCHES);
        let weight = batches.tokens_before(end) - batches.tokens_before(first);
        let made_of = (model, batches.digest(heldout, first..end));
        let name = format!("batches {first} to {}", end - 1);
        items.push(task::Item::new(name, &made_of, first..end).weight(weight));
    }
    // One worker has all threads, and so the pool.
    let pool = Pool::new(ctx.n_threads());
    let begin = |_| {
        let reader = Reader::new(device.clone(), &pool, weights, capacity)?;
        Ok((reader, windows::Buffers::default()))
    };
    let stage = device::stage("score", device.as_deref());
    let results = ctx.stage(&stage, "tokens").alone().each_with(
        items.clone(),
        begin,
        |(reader, buffers), range, item| {
            let mut sums: Vec<u8> = Vec::new();
            for batch in range.clone() {
                item.check_cancelled()?;
                let windows = batches.get(batch);
                buffers.fill(heldout, windows);
                let (ids, targets) = (&buffers.ids[..], &buffers.targets[..]);
                let starts = buffers.starts.clone();
                let losses = reader.nll(&MicroBatch { ids, starts, targets })?;
                let mut losses = losses.iter();
                for window in windows {
                    let losses = losses.by_ref().take(window.len()).copied();
                    sums.extend(losses.map(f64::from).sum::<f64>().to_le_bytes());
                }
                item.progress(
                    batches.tokens_before(batch + 1) - batches.tokens_before(range.start),
                );
            }
            Ok(fs::write(item.dir().join(SUMS_FILE), sums)?)
        },
    )?;
    let mut nll = vec![0.0; heldout.n_documents()];
    for (item, result) in items.iter().zip(results) {
        let result: ItemResult<()> = result?;
        let bytes = fs::read(result.dir.join(SUMS_FILE))?;
        let windows = item.part.clone().flat_map(|batch| batches.get(batch));
        // A long document's windows add up in their order, whatever item they are in.
        for (window, sum) in windows.zip(bytes.as_chunks::<8>().0) {
            nll[window.document] += f64::from_le_bytes(*sum);
        }
    }
    match nll.iter().position(|nll| !nll.is_finite()) {
        None => Ok((nll, device.is_some())),
        Some(document) => Err(Failure::permanent(format!(
            "the loss of document {:016x} is not finite",
            heldout.document_id(document)
        ))),
    }
}

fn summarize(params: &Params, items: &[Item]) -> Score {
    let nll: f64 = items.iter().map(|item| item.nll).sum();
    let tokens: u64 = items.iter().map(|item| item.tokens).sum();
    let bytes: u64 = items.iter().map(|item| item.bytes).sum();
    let pairs: Vec<(f64, f64)> = items.iter().map(|item| (item.nll, item.tokens as f64)).collect();
    let rng = stats::resampling(params.seed);
    let resampled = stats::paired_bootstrap(&[pairs], params.n_resamples, rng).swap_remove(0);
    let mean_nll = stats::Estimate::of(nll / tokens as f64, resampled);
    Score {
        n_items: items.len() as u64,
        tokens,
        bytes,
        mean_nll: mean_nll.value,
        mean_nll_low: mean_nll.low,
        mean_nll_high: mean_nll.high,
        token_perplexity: mean_nll.value.exp(),
        bits_per_byte: nll / std::f64::consts::LN_2 / bytes.max(1) as f64,
    }
}
