//! `sbp bench pair`, `bpe`, `dedup`, `clean`: the inner loops of the data tasks.

use std::thread;

use engine::task::Failure;
use serde_json::Value;
use tasks::bench;
use tasks::cost::unit;

use super::Figures;
use crate::cli::{BpeArgs, CleanArgs, DedupArgs, PairArgs};
use crate::error::{Error, Result};

fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Whole numbers are written as such.
fn figures(measured: bench::Figures) -> Figures {
    let mut figures = Figures::default();
    for (name, value) in measured {
        if value.fract() == 0.0 && value.abs() < 1e15 {
            figures.set(name, value as i64);
        } else {
            figures.set(name, Value::from(value));
        }
    }
    figures
}

fn failed(failure: Failure) -> Error {
    let error = Error::usage(failure.message);
    match failure.help {
        Some(help) => error.help(help),
        None => error,
    }
}

/// All neighbours of generated embeddings.
pub(super) fn pair(args: &PairArgs) -> Figures {
    let mut figures = figures(bench::pair::measure(bench::pair::Options {
        n: args.n,
        dim: args.dim,
        k: args.k,
        recall: args.recall,
        n_sample: args.queries,
        n_threads: threads(args.threads),
        seed: args.seed,
        exact: args.exact,
    }));
    if let Some(wall_s) = figures.number("exact_wall_s") {
        let operations = 2.0 * (args.n as f64).powi(2) * args.dim as f64;
        figures.rate(None, unit::INT8_OP, operations / wall_s);
    }
    figures
}

/// Training and encoding.
pub(super) fn bpe(args: &BpeArgs) -> Result<Figures> {
    let dir = tempfile::tempdir()?;
    let measured = bench::bpe::measure(&bench::bpe::Options {
        vocab_size: args.vocab_size,
        train_mb: args.train_mb,
        encode_mb: args.encode_mb,
        check_mb: args.check_mb,
        n_threads: threads(args.threads),
        seed: args.seed,
        corpus: args.corpus.clone(),
        dir: dir.path().to_owned(),
    });
    let mut figures = measured.map(figures).map_err(failed)?;
    if let Some(rate) = figures.number("train_mb_per_s") {
        figures.rate(Some("train_tokenizer"), unit::TEXT_BYTES, 1e6 * rate);
    }
    Ok(figures)
}

/// Windows, minima, and duplicates among many documents.
pub(super) fn dedup(args: &DedupArgs) -> Result<Figures> {
    let options = bench::dedup::Options {
        mb: args.mb,
        n_documents: args.documents as usize,
        n_threads: threads(args.threads),
        seed: args.seed,
    };
    bench::dedup::measure(options).map(figures).map_err(failed)
}

/// Repairing text.
pub(super) fn clean(args: &CleanArgs) -> Result<Figures> {
    let options = bench::clean::Options { mb: args.mb, seed: args.seed };
    bench::clean::measure(options).map(figures).map_err(failed)
}
