//! Drops pairs of near-duplicates: a synthesizer tuned on them would learn to copy.
//!
//! A pair is dropped when its documents share a window of 13 tokens after normalization, see
//! [`crate::shingle`]. The test is symmetric and exact.
//!
//! Difference from the paper: windows are of our own tokenizer's tokens, where the paper takes
//! `SentencePiece`; a document of fewer than 13 tokens counts as one window, so that equal short
//! documents are dropped too.

use std::sync::Mutex;

use engine::task::{
    Context, Determinism, Estimate, Failure, Inputs, Outputs, ParamError, Port, Predicted, Task,
};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::{fact, figure};
use crate::decode::Codec;
use crate::format::pairs::{self, Pair, Pairs};
use crate::format::tokens::Tokens;
use crate::shingle::{self, Shingles, WINDOW_TOKENS};

/// Items between two looks at the cancel token.
const STRIDE: usize = 512;

/// See the module.
pub struct DropNearDups;

/// Params of `drop_near_dups`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Tokens of a window.
    #[serde(default = "default_window")]
    pub window_tokens: usize,
}

fn default_window() -> usize {
    WINDOW_TOKENS
}

impl Task for DropNearDups {
    const KIND: &'static str = "drop_near_dups";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "drops pairs whose documents share 13 tokens in a row";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::one("pairs", "pairs", "the pairs"),
        Port::one("documents", "tokens", "the documents that they refer to"),
        Port::one("tokenizer", "tokenizer", "the tokenizer of the documents"),
    ];
    const OUTPUTS: &'static [Port] = &[Port::one("pairs", "pairs", "the pairs that are left")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.window_tokens == 0 {
            return Err(ParamError::new(
                "window_tokens",
                "window_tokens is 0; it must be at least 1",
            ));
        }
        Ok(())
    }

    fn cost(_: &Params, inputs: &Predicted) -> Estimate {
        // Which pairs go is not known beforehand: there are this many at most.
        Estimate::unknown()
            .figure(figure::DOCUMENTS, inputs.fact("documents", fact::DOCUMENTS))
            .output("pairs", inputs.one("pairs"))
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let documents = Tokens::open(inputs.one("documents"))?;
        let found = Pairs::open_for(inputs.one("pairs"), &documents)?;
        let codec = Codec::open_for(inputs.one("tokenizer"), &documents)?;
        let pool = Pool::new(ctx.n_threads());
        let shingles = cut(ctx, &pool, &codec, &documents, &found, params.window_tokens)?;
        let mut kept: Vec<Pair> = Vec::new();
        let mut keep = Vec::new();
        let (n_pairs, n_documents) = (found.n_pairs(), documents.n_documents());
        for from in (0..n_pairs).step_by(STRIDE * 8) {
            ctx.check_cancelled()?;
            let to = (from + STRIDE * 8).min(n_pairs);
            keep.clear();
            keep.resize(to - from, false);
            pool.for_chunks(&mut keep, STRIDE, |chunk, keep| {
                for (i, keep) in keep.iter_mut().enumerate() {
                    let pair = found.get(from + chunk * STRIDE + i);
                    let [a, b] = [pair.seed, pair.target].map(|i| shingles[i as usize].as_ref());
                    *keep = a.zip(b).is_some_and(|(a, b)| !a.shares_a_window(b));
                }
            });
            kept.extend((from..to).filter(|i| keep[i - from]).map(|i| found.get(i)));
            ctx.progress((n_documents + to) as u64, (n_documents + n_pairs) as u64, "items");
        }
        if kept.is_empty() {
            let message = format!(
                "each of the {n_pairs} pairs shares {} tokens in a row: all are near-duplicates",
                params.window_tokens
            );
            return Err(Failure::permanent(message).help("remove duplicates from the corpus first"));
        }
        let n_kept = kept.len();
        pairs::write(&ctx.out("pairs")?, found.documents(), kept, &found.method()?)?;
        let dropped = (n_pairs - n_kept) as f64 / n_pairs as f64;
        ctx.info(format!("{n_kept} of {n_pairs} pairs are left"));
        Ok(Outputs::default()
            .metric("n_pairs_in", n_pairs as f64)
            .metric("n_pairs", n_kept as f64)
            .metric("dropped_share", dropped))
    }
}

/// The windows of every document that is in a pair.
fn cut(
    ctx: &Context,
    pool: &Pool,
    codec: &Codec,
    documents: &Tokens,
    pairs: &Pairs,
    window_tokens: usize,
) -> Result<Vec<Option<Shingles>>, Failure> {
    let mut wanted = vec![false; documents.n_documents()];
    for &i in pairs.seeds().iter().chain(pairs.targets()) {
        wanted[i as usize] = true;
    }
    let mut shingles: Vec<Option<Shingles>> = vec![None; wanted.len()];
    let failed = Mutex::new(None);
    for (stride, shingles) in shingles.chunks_mut(STRIDE).enumerate() {
        ctx.check_cancelled()?;
        let from = stride * STRIDE;
        pool.for_chunks(shingles, 1, |i, shingles| {
            if !wanted[from + i] {
                return;
            }
            let ids = codec
                .text(documents, from + i)
                .and_then(|text| codec.encode(&shingle::normalize(&text)));
            match ids {
                Ok(ids) => shingles[0] = Some(Shingles::new(ids, window_tokens)),
                Err(failure) => {
                    let mut first = failed.lock().expect("no thread panics while it holds it");
                    first.get_or_insert(failure);
                }
            }
        });
        let total = wanted.len() + pairs.n_pairs();
        ctx.progress((from + shingles.len()) as u64, total as u64, "items");
    }
    match failed.into_inner().expect("no thread panicked") {
        Some(failure) => Err(failure),
        None => Ok(shingles),
    }
}

#[cfg(test)]
mod tests;
