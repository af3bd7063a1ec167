//! Drops documents that repeat themselves.
//!
//! A document is dropped when a window of 13 tokens, after normalization, occurs in it at least
//! `min_count` times; see [`crate::shingle`]. Tables and boilerplate of real text are hit too: with
//! `real` connected, the share of real documents that the same rule would drop is reported beside.

use engine::task::{
    Context, Determinism, Estimate, Failure, Inputs, Outputs, ParamError, Port, Predicted, Task,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, CorpusWriter};
use crate::cost::{fact, figure, unit};
use crate::decode::Codec;
use crate::format::tokens::Tokens;
use crate::shingle::{self, Shingles, WINDOW_TOKENS};

/// See the module.
pub struct DropRepeats;

/// Params of `drop_repeats`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Tokens of a window.
    #[serde(default = "default_window")]
    pub window_tokens: usize,
    /// Occurrences of one window, overlapping ones included, that condemn a document.
    #[serde(default = "default_min_count")]
    pub min_count: usize,
    /// Real documents looked at for comparison, the first ones.
    #[serde(default = "default_real_documents_max")]
    pub real_documents_max: u64,
}

fn default_window() -> usize {
    WINDOW_TOKENS
}
fn default_min_count() -> usize {
    2
}
fn default_real_documents_max() -> u64 {
    10_000
}

impl Task for DropRepeats {
    const KIND: &'static str = "drop_repeats";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "drops documents in which 13 tokens in a row occur again";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::one("corpus", "corpus", "the documents"),
        Port::one("tokenizer", "tokenizer", "cuts texts into tokens"),
        Port::optional("real", "tokens", "real documents, to tell how many the rule would drop"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("corpus", "corpus", "the documents that are left")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.window_tokens == 0 {
            return Err(ParamError::new(
                "window_tokens",
                "window_tokens is 0; it must be at least 1",
            ));
        }
        if params.min_count < 2 {
            let message =
                format!("min_count is {}; every document has a window once", params.min_count);
            return Err(ParamError::new("min_count", message).help("set it to 2 or more"));
        }
        Ok(())
    }

    fn cost(_: &Params, inputs: &Predicted) -> Estimate {
        // What is dropped is not known beforehand: the output holds this much at most.
        let corpus = inputs.one("corpus");
        Estimate::unknown()
            .figure(figure::DOCUMENTS, corpus.get(fact::DOCUMENTS))
            .work(unit::TEXT_BYTES, corpus.get(fact::TEXT_BYTES))
            .output("corpus", corpus)
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let corpus = Corpus::open(inputs.one("corpus"))?;
        let codec = Codec::open(inputs.one("tokenizer"))?;
        let mut writer = CorpusWriter::create(&ctx.out("corpus")?)?;
        let n_documents = corpus.n_documents();
        for (i, document) in corpus.documents().enumerate() {
            let document = document?;
            if !repeats(&codec, &document.text, params)? {
                writer.push(&document)?;
            }
            if i % 64 == 0 {
                ctx.check_cancelled()?;
                ctx.progress(i as u64, n_documents, "documents");
            }
        }
        let n_kept = writer.finish()?.n_documents;
        ctx.progress(n_documents, n_documents, "documents");
        let share = |dropped: u64, of: u64| if of == 0 { 0.0 } else { dropped as f64 / of as f64 };
        let dropped_share = share(n_documents - n_kept, n_documents);
        let mut outputs = Outputs::default()
            .metric(unit::TEXT_BYTES, corpus.text_bytes() as f64)
            .metric("n_documents_in", n_documents as f64)
            .metric("n_documents", n_kept as f64)
            .metric("dropped_share", dropped_share);
        let mut compared = String::new();
        if let Some(real) = inputs.optional("real") {
            let (dropped, looked_at) = real_drops(ctx, &codec, &Tokens::open(real)?, params)?;
            compared = format!("; of {looked_at} real documents it would drop {dropped}");
            outputs = outputs.metric("real_dropped_share", share(dropped, looked_at));
        }
        ctx.info(format!("{n_kept} of {n_documents} documents are left{compared}"));
        Ok(outputs)
    }
}

fn repeats(codec: &Codec, text: &str, params: &Params) -> Result<bool, Failure> {
    let ids = codec.encode(&shingle::normalize(text))?;
    Ok(Shingles::new(ids, params.window_tokens).repeats_max() >= params.min_count)
}

/// Real documents that the rule would drop, and how many were looked at.
fn real_drops(
    ctx: &Context,
    codec: &Codec,
    real: &Tokens,
    params: &Params,
) -> Result<(u64, u64), Failure> {
    let n = (real.n_documents() as u64).min(params.real_documents_max);
    let mut dropped = 0;
    for i in 0..n {
        if i % 64 == 0 {
            ctx.check_cancelled()?;
        }
        dropped += u64::from(repeats(codec, &codec.text(real, i as usize)?, params)?);
    }
    Ok((dropped, n))
}

#[cfg(test)]
mod tests;
