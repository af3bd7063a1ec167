//! Removes exact and near duplicates from a corpus, keeping the earliest document of each cluster.
//!
//! Two documents are exact duplicates when their normalised texts (lower-case words) are equal, near
//! duplicates when the Jaccard similarity of their sets of 5-word shingles reaches `min_jaccard`.
//! Candidates come from `MinHash` signatures of `bands` bands of `band_values` values: a pair of
//! similarity J is one with probability 1 - (1 - J^values)^bands. The defaults are those of
//! datatrove's `minhash.py`. Every candidate is verified on the full sets, so that no document is
//! dropped on an estimate. Clusters are the connected components of verified pairs.
//!
//! In memory are some 40 bytes a document, and a signature of each document that shares a band with
//! another; signatures of all and the sets of those lie in scratch files.

mod minhash;
mod near;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use engine::task::{
    Context, Determinism, Estimate, Failure, Inputs, Outputs, ParamError, Port, Predicted, Task,
};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::corpus::{Corpus, CorpusWriter, Document};
use crate::cost::{fact, figure, unit};
use minhash::MinHash;
use near::Near;

/// Text hashed between two looks at the cancel token, in bytes.
const BATCH_BYTES: usize = 4 << 20;
/// Documents that a thread takes at a time.
const CHUNK_DOCUMENTS: usize = 16;

/// Removes exact and near duplicates.
pub struct Dedup;

/// Params of `dedup`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// What counts as a duplicate.
    #[serde(default)]
    pub method: Method,
    /// Jaccard similarity of 5-word shingles from which documents are near duplicates.
    #[serde(default = "default_min_jaccard")]
    pub min_jaccard: f64,
    /// Bands of a signature: with more, fewer similar pairs are missed and more are compared.
    #[serde(default = "default_bands")]
    pub bands: usize,
    /// Values in a band: with more, the chance to be compared rises more steeply with similarity.
    #[serde(default = "default_band_values")]
    pub band_values: usize,
    /// Seed of the hash functions.
    #[serde(default)]
    pub seed: u64,
}

/// What counts as a duplicate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The same words in the same order.
    Exact,
    /// That, or most of the shingles in common.
    #[default]
    Near,
}

fn default_min_jaccard() -> f64 {
    0.75
}

fn default_bands() -> usize {
    14
}

fn default_band_values() -> usize {
    8
}

/// Most bands, and most values in one.
const BANDS_MAX: usize = 256;

impl Task for Dedup {
    const KIND: &'static str = "dedup";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "removes exact and near duplicates";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::one("corpus", "corpus", "documents")];
    const OUTPUTS: &'static [Port] =
        &[Port::one("corpus", "corpus", "the earliest document of each cluster")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if !(params.min_jaccard > 0.0 && params.min_jaccard <= 1.0) {
            let message = format!("{} is not above 0 and at most 1", params.min_jaccard);
            return Err(ParamError::new("min_jaccard", message));
        }
        for (name, value) in [("bands", params.bands), ("band_values", params.band_values)] {
            if value == 0 || value > BANDS_MAX {
                return Err(ParamError::new(name, format!("{value} is not in 1..={BANDS_MAX}")));
            }
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
        if corpus.n_documents() >= u64::from(u32::MAX) {
            let message = format!("{} documents; the index holds 2^32 - 2", corpus.n_documents());
            return Err(Failure::permanent(message).help("split the corpus first"));
        }
        let mut near = match params.method {
            Method::Near => Some(Near::new(params, ctx.scratch()?)?),
            Method::Exact => None,
        };
        let index = Index::build(ctx, &corpus, near.as_mut())?;
        let mut clusters = Clusters::new(index.ids.len());
        let is_exact = join_exact(&index.exact, &mut clusters);
        let ids = index.ids;
        let n_compared = match near {
            Some(near) => near.join(ctx, &corpus, params, &is_exact, &mut clusters)?,
            None => 0,
        };
        let dir = ctx.out("corpus")?;
        let n_documents = write_kept(ctx, &corpus, (&ids, &is_exact), &mut clusters, &dir)?;
        let n_exact = is_exact.iter().filter(|exact| **exact).count() as u64;
        let n_dropped = corpus.n_documents() - n_documents;
        Ok(Outputs::default()
            .metric(unit::TEXT_BYTES, corpus.text_bytes() as f64)
            .metric("n_documents", n_documents as f64)
            .metric("n_exact", n_exact as f64)
            .metric("n_near", (n_dropped - n_exact) as f64)
            .metric("n_candidates", n_compared as f64))
    }
}

/// What is kept in memory of every document.
#[derive(Default)]
struct Index {
    ids: Vec<u64>,
    /// Digest of the normalised text.
    exact: Vec<u128>,
}

impl Index {
    /// Reads the corpus once; `near` takes the signatures.
    fn build(ctx: &Context, corpus: &Corpus, mut near: Option<&mut Near>) -> Result<Self, Failure> {
        let pool = Pool::new(ctx.n_threads());
        let minhash = near.as_ref().map(|near| near.minhash());
        let mut index = Self::default();
        let mut documents = corpus.documents();
        loop {
            ctx.check_cancelled()?;
            let batch = documents.next_batch(BATCH_BYTES)?;
            if batch.is_empty() {
                return Ok(index);
            }
            let mut hashed: Vec<Hashed> = Vec::new();
            hashed.resize_with(batch.len(), Hashed::default);
            pool.for_chunks(&mut hashed, CHUNK_DOCUMENTS, |chunk, slots| {
                let documents = &batch[chunk * CHUNK_DOCUMENTS..];
                for (slot, document) in slots.iter_mut().zip(documents) {
                    *slot = Hashed::of(document, minhash.as_ref());
                }
            });
            for (document, hashed) in batch.iter().zip(hashed) {
                index.ids.push(document.id);
                index.exact.push(hashed.digest);
                if let Some(near) = &mut near {
                    near.push(hashed.bands.as_deref())?;
                }
            }
            ctx.progress(index.ids.len() as u64, corpus.n_documents(), "documents");
        }
    }
}

#[derive(Default)]
struct Hashed {
    digest: u128,
    /// `None` for a text without words, which has no shingles.
    bands: Option<Vec<u64>>,
}

impl Hashed {
    fn of(document: &Document, minhash: Option<&MinHash>) -> Self {
        let words = minhash::Words::of(&document.text);
        let digest = words.text_digest(&document.text);
        let bands = minhash.filter(|_| !words.is_empty());
        Self { digest, bands: bands.map(|minhash| minhash.bands(&words.shingles())) }
    }
}

/// Joins documents of equal text; tells which are not the first of theirs.
fn join_exact(exact: &[u128], clusters: &mut Clusters) -> Vec<bool> {
    let mut order: Vec<u32> = (0..exact.len() as u32).collect();
    order.sort_unstable_by_key(|&i| (exact[i as usize], i));
    let mut is_exact = vec![false; exact.len()];
    for pair in order.windows(2) {
        if exact[pair[0] as usize] == exact[pair[1] as usize] {
            clusters.join(pair[0], pair[1]);
            is_exact[pair[1] as usize] = true;
        }
    }
    is_exact
}

/// Writes the first document of each cluster, and of every other which one stands for it, and
/// whether its words are those of an earlier document.
fn write_kept(
    ctx: &Context,
    corpus: &Corpus,
    (ids, is_exact): (&[u64], &[bool]),
    clusters: &mut Clusters,
    dir: &Path,
) -> Result<u64, Failure> {
    let path = dir.join("duplicates.jsonl.zst");
    let fail = |error| Failure::io(format!("cannot write `{}`", path.display()), &error);
    let mut writer = CorpusWriter::create(dir)?;
    let mut duplicates = zstd::Encoder::new(File::create(&path).map_err(fail)?, 3).map_err(fail)?;
    for (i, document) in corpus.documents().enumerate() {
        let document: Document = document?;
        if i % 1024 == 0 {
            ctx.check_cancelled()?;
            ctx.progress(i as u64, corpus.n_documents(), "documents");
        }
        let root = clusters.root(i as u32) as usize;
        if root == i {
            writer.push(&document)?;
        } else {
            let how = if is_exact[i] { "exact" } else { "near" };
            let (id, kept) = (document.id, ids[root]);
            let line =
                json!({"id": format!("{id:016x}"), "kept": format!("{kept:016x}"), "how": how});
            writeln!(duplicates, "{line}").map_err(fail)?;
        }
    }
    duplicates.finish().and_then(|file| file.sync_all()).map_err(fail)?;
    Ok(writer.finish()?.n_documents)
}

/// Disjoint sets of documents, each known by its earliest member.
struct Clusters(Vec<u32>);

impl Clusters {
    fn new(n: usize) -> Self {
        Self((0..n as u32).collect())
    }

    /// The earliest member of `i`'s set.
    fn root(&mut self, mut i: u32) -> u32 {
        while self.0[i as usize] != i {
            // Halving the path keeps later look-ups short.
            self.0[i as usize] = self.0[self.0[i as usize] as usize];
            i = self.0[i as usize];
        }
        i
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }
}

#[cfg(test)]
mod tests;
