//! Backends that count terms: projected TF-IDF, and weighted means of token embeddings.
//!
//! Both take two stages of items, because a term's weight depends on all documents: the first counts
//! the terms of each run of documents, the second weighs them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use engine::digest::Digest;
use engine::task::{Context, Failure, Inputs, Item, ItemContext};
use kernels::Pool;
use kernels::philox::Philox;

use super::rows::{self, Rows, Source, Span};
use super::{Params, Terms, pca};
use crate::decode::Codec;
use crate::format::part::{Part, PartWriter};
use crate::format::tokens::Tokens;
use crate::lm::{Weights, hf};
use crate::tfidf::{self, Counts, Frequencies};

/// Tokens of a run of documents: about the text that `clean` and `tokenize` have in an item.
const SPAN_TOKENS: usize = 1 << 24;
/// Documents between two looks at the cancel token.
const STRIDE: usize = 1024;

/// TF-IDF vectors, projected to `dim` by random signs.
pub(super) fn projected(
    ctx: &Context,
    params: &Params,
    inputs: &Inputs,
    documents: &Tokens,
    dim: usize,
) -> Result<Rows, Failure> {
    let codec = match (params.terms, inputs.optional("tokenizer")) {
        (Terms::Tokens, _) => None,
        (Terms::Words, Some(dir)) => Some(Codec::open_for(dir, documents)?),
        (Terms::Words, None) => {
            return Err(Failure::permanent(
                "terms `words` need the tokenizer to read the documents",
            )
            .help("connect `tokenizer`, or set `terms: tokens`"));
        }
    };
    let counted = Counted::of(ctx, documents, codec.as_ref())?;
    let n = documents.n_documents();
    ctx.info(format!("{} distinct terms in {n} documents", counted.frequencies.n_terms()));
    let rng = Philox::new(params.seed, "embed projection");
    let keep = |term| counted.frequencies.documents(term) >= params.min_documents;
    let made_of = (dim, params.seed, params.min_documents);
    let results =
        ctx.stage("project", "documents").last().each(counted.items(made_of), |dir, item| {
            let counts = read_counts(dir)?;
            let pool = Pool::new(item.n_threads());
            let mut rows = vec![0.0; counts.len() * dim];
            for (counts, rows) in counts.chunks(STRIDE).zip(rows.chunks_mut(STRIDE * dim)) {
                item.check_cancelled()?;
                pool.for_chunks(rows, dim, |i, row| {
                    for (term, weight) in counted.frequencies.weigh(&counts[i], keep) {
                        project(row, rng.fork(term), weight);
                    }
                });
            }
            rows::leave(item.dir(), &rows)
        })?;
    let dirs = results.map(|result| Ok(result?.dir)).collect::<Result<_, Failure>>()?;
    Ok(Rows { source: Source::Parts(dirs), dim, n_cut: 0 })
}

/// Adds `weight` with the term's random signs to a row.
fn project(row: &mut [f32], signs: Philox, weight: f32) {
    for (block, components) in row.chunks_mut(128).enumerate() {
        let words = signs.block(block as u64);
        for (word, components) in words.iter().zip(components.chunks_mut(32)) {
            for (bit, component) in components.iter_mut().enumerate() {
                let sign = (word >> bit) << 31;
                *component += f32::from_bits(weight.to_bits() ^ sign);
            }
        }
    }
}

/// Weighted means of the model's token embeddings, whitened.
pub(super) fn whitened(
    ctx: &Context,
    pool: &Pool,
    params: &Params,
    inputs: &Inputs,
    documents: &Tokens,
) -> Result<Rows, Failure> {
    let Some(model) = inputs.many("model").first() else {
        return Err(Failure::permanent("backend `model` needs a model").help("connect `model`"));
    };
    let weights = hf::load(&model.dir)?;
    let (width, vocab) = (weights.config().d_model, weights.config().vocab_size);
    if (documents.vocab_size() as usize) > vocab {
        let message = format!(
            "the documents have {} token ids, the model {vocab} embeddings",
            documents.vocab_size()
        );
        return Err(Failure::permanent(message));
    }
    let counted = Counted::of(ctx, documents, None)?;
    let items = counted.items(model.digest);
    let results = ctx.stage("mean", "documents").last().each(items, |dir, item| {
        let means = means(&read_counts(dir)?, &counted.frequencies, &weights, item)?;
        Ok(PartWriter::create(item.dir())?.section(MEANS, &means)?.finish()?)
    })?;
    let mut all = Vec::with_capacity(documents.n_documents() * width);
    for result in results {
        all.extend_from_slice(Part::open(&result?.dir)?.section::<f64>(MEANS)?);
    }
    let bad = all.chunks_exact(width).position(|mean| mean.iter().any(|x| !x.is_finite()));
    if let Some(i) = bad {
        let id = documents.document_id(i);
        let message = format!("the vector of document {id:016x} has a component that is no number");
        return Err(Failure::permanent(message).help("the model holds NaN or infinite embeddings"));
    }
    ctx.check_cancelled()?;
    let is_empty = |i: usize| documents.length(i) == 0;
    let (values, dim) = pca::whiten(pool, &all, width, params.dim, is_empty)
        .map_err(|message| Failure::permanent(message).help("lower `dim`"))?;
    Ok(Rows { source: Source::Values(values), dim, n_cut: 0 })
}

const MEANS: &str = "means";

/// The mean embedding of each document, its terms weighted by how rare they are.
fn means(
    counts: &[Counts],
    frequencies: &Frequencies,
    weights: &Weights,
    item: &ItemContext<'_>,
) -> Result<Vec<f64>, Failure> {
    let (width, table) = (weights.config().d_model, weights.embedding());
    let pool = Pool::new(item.n_threads());
    let mut means = vec![0.0_f64; counts.len() * width];
    for (counts, means) in counts.chunks(STRIDE).zip(means.chunks_mut(STRIDE * width)) {
        item.check_cancelled()?;
        pool.for_chunks(means, width, |i, mean| {
            let mut total = 0.0;
            for &(id, n) in &counts[i] {
                let weight = f64::from(n) * frequencies.idf(id);
                total += weight;
                let embedding = &table[id as usize * width..][..width];
                for (mean, &x) in mean.iter_mut().zip(embedding) {
                    *mean += weight * f64::from(x);
                }
            }
            if total > 0.0 {
                for mean in mean {
                    *mean /= total;
                }
            }
        });
    }
    Ok(means)
}

/// The terms of all documents.
struct Counted {
    spans: Vec<Span>,
    /// Where the terms of each run are.
    dirs: Vec<PathBuf>,
    frequencies: Frequencies,
    /// What the frequencies depend on.
    digest: Digest,
}

impl Counted {
    /// Counts the words that `codec` spells, or token ids.
    fn of(ctx: &Context, documents: &Tokens, codec: Option<&Codec>) -> Result<Self, Failure> {
        let spans = rows::spans(documents, SPAN_TOKENS);
        let spelled_by = codec.map(|_| documents.tokenizer());
        let item = |span: &Span| {
            let made_of = (spelled_by, span.digest);
            Item::new(span.name(), &made_of, span.clone()).weight(span.weight())
        };
        let items = spans.iter().map(item).collect();
        let results = ctx.items("count", "documents", items, |span, item| {
            write_counts(item.dir(), &count(documents, span, codec, item)?)
        })?;
        let (mut dirs, mut frequencies) = (Vec::with_capacity(spans.len()), Frequencies::default());
        for (span, result) in spans.iter().zip(results) {
            ctx.check_cancelled()?;
            let dir = result?.dir;
            let part = Part::open(&dir)?;
            let terms = part.section::<u64>("found")?.iter().copied();
            let n = span.documents.len() as u32;
            frequencies.add(n, terms.zip(part.section::<u32>("in_documents")?.iter().copied()));
            dirs.push(dir);
        }
        let all: Vec<Digest> = spans.iter().map(|span| span.digest).collect();
        let text = serde_json::to_vec(&(spelled_by, all)).expect("digests become JSON");
        Ok(Self { spans, dirs, frequencies, digest: Digest::of(&text) })
    }

    /// An item for each run, about the folder that has its terms.
    fn items(&self, made_of: impl serde::Serialize) -> Vec<Item<PathBuf>> {
        let item = |(span, dir): (&Span, &PathBuf)| {
            let made_of = (&made_of, self.digest, span.digest);
            Item::new(span.name(), &made_of, dir.clone()).weight(span.weight())
        };
        self.spans.iter().zip(&self.dirs).map(item).collect()
    }
}

/// The terms of each document of a run.
fn count(
    documents: &Tokens,
    span: &Span,
    codec: Option<&Codec>,
    item: &ItemContext<'_>,
) -> Result<Vec<Counts>, Failure> {
    let pool = Pool::new(item.n_threads());
    let mut counts: Vec<Counts> = vec![Vec::new(); span.documents.len()];
    let failed = Mutex::new(None);
    for (stride, counts) in counts.chunks_mut(STRIDE).enumerate() {
        item.check_cancelled()?;
        pool.for_chunks(counts, 1, |i, counts| {
            let i = span.documents.start + stride * STRIDE + i;
            match codec.map(|codec| codec.text(documents, i)) {
                None => counts[0] = tfidf::tokens(&documents.ids(i)),
                Some(Ok(text)) => counts[0] = tfidf::words(&text),
                Some(Err(failure)) => {
                    let mut first = failed.lock().expect("no thread panics while it holds it");
                    first.get_or_insert(failure);
                }
            }
        });
    }
    match failed.into_inner().expect("no thread panicked") {
        Some(failure) => Err(failure),
        None => Ok(counts),
    }
}

fn write_counts(dir: &Path, counts: &[Counts]) -> Result<(), Failure> {
    let lengths: Vec<u32> = counts.iter().map(|counts| counts.len() as u32).collect();
    let terms: Vec<u64> = counts.iter().flatten().map(|(term, _)| *term).collect();
    let times: Vec<u32> = counts.iter().flatten().map(|(_, n)| *n).collect();
    let found = Frequencies::of(counts).sorted();
    let in_documents: Vec<u32> = found.iter().map(|(_, n)| *n).collect();
    let found: Vec<u64> = found.iter().map(|(term, _)| *term).collect();
    let part = PartWriter::create(dir)?.section("lengths", &lengths)?.section("terms", &terms)?;
    let part = part.section("times", &times)?.section("found", &found)?;
    Ok(part.section("in_documents", &in_documents)?.finish()?)
}

fn read_counts(dir: &Path) -> Result<Vec<Counts>, Failure> {
    let part = Part::open(dir)?;
    let times = part.section::<u32>("times")?;
    let mut rest = part.section::<u64>("terms")?.iter().copied().zip(times.iter().copied());
    let lengths = part.section::<u32>("lengths")?;
    Ok(lengths.iter().map(|n| rest.by_ref().take(*n as usize).collect()).collect())
}
