//! Measures whether a synthesizer is the posterior predictive of a world: how far p(d2 | d1) is from
//! the exact P(d2 | d1), before and after tuning (arXiv 2509.15248, section 5).
//!
//! The d2 of `generate_world`'s pairs are drawn from the exact P(d2 | d1), so the mean of
//! `ln P(d2 | d1) - ln p(d2 | d1)` estimates the divergence KL(P | p) without bias. Beside it stand the
//! same d2 after a d1 about another concept, which tells whether the model reads d1 at all, and without
//! a d1. *Unpaired* d1 are the only documents of their concepts, so tuning on true pairs never saw
//! them; of the others it saw every pair.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, Port, Task};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{read_json, write_json};
use crate::format::Error;
use crate::lm::batch::Batch;
use crate::lm::{Weights, hf};
use crate::tokenizer::{BOS, EOS, SEP};
use crate::world::{PairRow, Truth, Words, token_nll};

const FILE: &str = "synthesizer.json";

/// Measures a synthesizer against the exact posterior.
pub struct EvaluateSynthesizer;

/// Params of `evaluate_synthesizer`: none.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {}

/// Losses of the d2, in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairLosses {
    /// Loss of a token of d2 after its own d1.
    pub related: f64,
    /// After a d1 about another concept.
    pub unrelated: f64,
    /// Without a d1, as the model writes by itself.
    pub alone: f64,
    /// KL(P(d2 | d1) | p(d2 | d1)), nats a document.
    pub kl: f64,
    /// KL(P(d2 | d1) | p(d2)), nats a document.
    pub kl_alone: f64,
}

/// Pairs of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairScores {
    /// Pairs.
    pub n_pairs: u64,
    /// Loss of a token under the exact P(d2 | d1): the least that a model can have.
    pub exact: f64,
    /// KL(P(d2 | d1) | P(d2)), nats a document: what the best writer that does not read d1 has.
    pub kl_marginal: f64,
    /// The model that tuning started from; `None` when it is not connected.
    pub before: Option<PairLosses>,
    /// The model itself.
    pub after: PairLosses,
}

/// What `synthesizer.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SynthesizerScores {
    /// Format version.
    pub version: u32,
    /// `unpaired` and `paired` d1.
    pub kinds: BTreeMap<String, PairScores>,
}

impl SynthesizerScores {
    /// Reads the `synthesizer_scores` artifact in `dir`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        read_json(&dir.join(FILE))
    }
}

impl Task for EvaluateSynthesizer {
    const KIND: &'static str = "evaluate_synthesizer";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "measures a synthesizer against a world's exact P(d2 | d1)";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const INPUTS: &'static [Port] = &[
        Port::one("model", "model", "the synthesizer"),
        Port::optional("before", "model", "the model that its tuning started from"),
        Port::one("world", "world", "the truth, of `generate_world`"),
        Port::one("tokenizer", "tokenizer", "one token a word"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("scores", "synthesizer_scores", "losses and divergences")];
    type Params = Params;

    fn run(ctx: &mut Context, _: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let truth = Truth::open(inputs.one("world"))?;
        let words = Words::open(inputs.one("tokenizer"), &truth.world)?;
        let pool = Pool::new(ctx.n_threads());
        let longest = Rows::longest(&truth.pairs);
        let load = |dir: &Path| -> Result<Weights, Failure> {
            let mut weights = hf::load(dir)?;
            words.check_model(&weights)?;
            // A model that was not tuned has seen single documents only; rotary positions go on.
            weights.set_context(weights.config().context.max(longest));
            Ok(weights)
        };
        let after = load(inputs.one("model"))?;
        let before = inputs.optional("before").map(load).transpose()?;
        let mut kinds = BTreeMap::new();
        let mut outputs = Outputs::default();
        for (name, unpaired) in [("unpaired", true), ("paired", false)] {
            let pairs: Vec<&PairRow> =
                truth.pairs.iter().filter(|pair| pair.unpaired == unpaired).collect();
            if pairs.is_empty() {
                continue;
            }
            let rows = Rows::new(&pairs, &words)?;
            let after = rows.losses(ctx, &pool, &after)?;
            let before = before.as_ref().map(|b| rows.losses(ctx, &pool, b)).transpose()?;
            outputs = outputs
                .metric(format!("kl.{name}"), after.kl)
                .metric(format!("related.{name}"), after.related)
                .metric(format!("unrelated.{name}"), after.unrelated);
            let (n_pairs, exact) = (pairs.len() as u64, -rows.ln_p / rows.n_tokens);
            let kl_marginal = (rows.ln_p - rows.ln_marginal) / n_pairs as f64;
            kinds
                .insert(name.to_owned(), PairScores { n_pairs, exact, kl_marginal, before, after });
        }
        let scores = SynthesizerScores { version: 1, kinds };
        write_json(&ctx.out("scores")?.join(FILE), &scores)?;
        Ok(outputs)
    }
}

/// The same d2 after different beginnings.
struct Rows {
    related: Batch,
    unrelated: Batch,
    alone: Batch,
    n_pairs: f64,
    n_tokens: f64,
    ln_p: f64,
    ln_marginal: f64,
}

impl Rows {
    fn new(pairs: &[&PairRow], words: &Words) -> Result<Self, Failure> {
        let mut rows = Self {
            related: Batch::default(),
            unrelated: Batch::default(),
            alone: Batch::default(),
            n_pairs: pairs.len() as f64,
            n_tokens: 0.0,
            ln_p: pairs.iter().map(|pair| pair.ln_p).sum(),
            ln_marginal: pairs.iter().map(|pair| pair.ln_marginal).sum(),
        };
        for pair in pairs {
            let d2 = words.ids(&pair.d2)?;
            rows.n_tokens += (d2.len() + 1) as f64;
            push(&mut rows.related, &prompt(&words.ids(&pair.d1)?), &d2);
            push(&mut rows.unrelated, &prompt(&words.ids(&pair.unrelated)?), &d2);
            push(&mut rows.alone, &[BOS], &d2);
        }
        Ok(rows)
    }

    /// Tokens of the longest pair with its special tokens; a word is a token.
    fn longest(pairs: &[PairRow]) -> usize {
        let words = |text: &str| text.split(' ').count();
        let pair =
            |pair: &PairRow| words(&pair.d1).max(words(&pair.unrelated)) + words(&pair.d2) + 3;
        pairs.iter().map(pair).max().unwrap_or(0)
    }

    fn losses(&self, ctx: &Context, pool: &Pool, weights: &Weights) -> Result<PairLosses, Failure> {
        let sum = |batch: &Batch| -> Result<f64, Failure> {
            let nll = token_nll(ctx, pool, weights, batch)?;
            Ok(nll.into_iter().map(f64::from).sum())
        };
        let (related, alone) = (sum(&self.related)?, sum(&self.alone)?);
        Ok(PairLosses {
            related: related / self.n_tokens,
            unrelated: sum(&self.unrelated)? / self.n_tokens,
            alone: alone / self.n_tokens,
            kl: (self.ln_p + related) / self.n_pairs,
            kl_alone: (self.ln_p + alone) / self.n_pairs,
        })
    }
}

/// What a synthesizer writes after: `<|bos|> d1 <|sep|>`.
fn prompt(d1: &[u32]) -> Vec<u32> {
    [&[BOS], d1, &[SEP]].concat()
}

/// Adds a row whose targets are `d2 <|eos|>`.
fn push(batch: &mut Batch, prompt: &[u32], d2: &[u32]) {
    let ids = [prompt, d2, &[EOS]].concat();
    let target = |i: usize| (i + 1 >= prompt.len()).then(|| ids[i + 1]);
    batch.push_span((0..ids.len() - 1).map(|i| (ids[i], target(i))));
    batch.end_row();
}
