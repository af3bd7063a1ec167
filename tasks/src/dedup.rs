//! Removes exact and near duplicates from a corpus, keeping the earliest document of each cluster.
//!
//! Two documents are exact duplicates when their normalised texts (lower-case words) are equal, near
//! duplicates when the Jaccard similarity of their sets of 5-word shingles reaches `min_jaccard`.
//! Candidates come from `MinHash` signatures of 14 bands of 8 values, the defaults of datatrove's
//! `minhash.py`: a pair of similarity J is one with probability 1 - (1 - J^8)^14. Every candidate is
//! verified on the full sets, so that no document is dropped on an estimate. Clusters are the
//! connected components of verified pairs.

mod minhash;

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
use crate::format::container::{Column, Container, Writer};
use minhash::{Bands, MinHash, N_BANDS, Shingles};

/// Text hashed between two looks at the cancel token, in bytes.
const BATCH_BYTES: usize = 4 << 20;

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

impl Task for Dedup {
    const KIND: &'static str = "dedup";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "removes exact and near duplicates";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::one("corpus", "corpus", "documents")];
    const OUTPUTS: &'static [Port] =
        &[Port::one("corpus", "corpus", "the earliest document of each cluster")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.min_jaccard > 0.0 && params.min_jaccard <= 1.0 {
            return Ok(());
        }
        let message = format!("{} is not above 0 and at most 1", params.min_jaccard);
        Err(ParamError::new("min_jaccard", message))
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
        let scratch = ctx.scratch()?.join("shingles.sbp");
        let index = Index::build(ctx, &corpus, params, &scratch)?;
        let mut clusters = Clusters::new(index.exact.len());
        let n_exact = index.join_exact(&mut clusters);
        let mut n_candidates = 0;
        if params.method == Method::Near {
            let shingles = Container::open(&scratch, SCRATCH_KIND, SCRATCH_VERSION)?;
            n_candidates = join_near(ctx, &index, &shingles, params, &mut clusters)?;
        }
        let dir = ctx.out("corpus")?;
        let n_documents = write_kept(ctx, &corpus, &index, &mut clusters, &dir)?;
        let n_dropped = corpus.n_documents() - n_documents;
        Ok(Outputs::default()
            .metric("n_documents", n_documents as f64)
            .metric("n_exact", n_exact as f64)
            .metric("n_near", (n_dropped - n_exact) as f64)
            .metric("n_candidates", n_candidates as f64))
    }
}

const SCRATCH_KIND: &str = "shingles";
const SCRATCH_VERSION: u32 = 1;

/// What is kept in memory of every document; shingle sets lie in the scratch file.
struct Index {
    ids: Vec<u64>,
    /// Digest of the normalised text.
    exact: Vec<u128>,
    bands: Vec<Bands>,
}

impl Index {
    fn build(
        ctx: &Context,
        corpus: &Corpus,
        params: &Params,
        scratch: &Path,
    ) -> Result<Self, Failure> {
        let minhash = MinHash::new(params.seed);
        let pool = Pool::new(ctx.n_threads());
        let mut writer = Writer::create(scratch, SCRATCH_KIND, SCRATCH_VERSION)?;
        writer.begin::<u64>("shingles")?;
        let mut offsets = Column::new(ctx.scratch()?)?;
        let mut offset = 0_u64;
        offsets.push(0)?;
        let mut index = Self { ids: Vec::new(), exact: Vec::new(), bands: Vec::new() };
        let mut documents = corpus.documents();
        loop {
            ctx.check_cancelled()?;
            let batch = documents.next_batch(BATCH_BYTES)?;
            if batch.is_empty() {
                break;
            }
            let mut hashed: Vec<(Shingles, Bands)> =
                batch.iter().map(|_| (Shingles::default(), [0; N_BANDS])).collect();
            pool.for_chunks(&mut hashed, 16, |chunk, slots| {
                for (slot, document) in slots.iter_mut().zip(&batch[chunk * 16..]) {
                    let shingles = Shingles::of(&document.text);
                    let bands = minhash.bands(&shingles);
                    *slot = (shingles, bands);
                }
            });
            for (document, (shingles, bands)) in batch.iter().zip(hashed) {
                writer.extend(shingles.as_slice())?;
                offset += shingles.as_slice().len() as u64;
                offsets.push(offset)?;
                index.ids.push(document.id);
                index.exact.push(shingles.text_digest());
                index.bands.push(bands);
            }
            ctx.progress(index.ids.len() as u64, corpus.n_documents(), "documents");
        }
        writer.column("offsets", offsets)?;
        writer.finish(&0_u64)?;
        Ok(index)
    }

    /// Joins documents of equal text; returns how many are not the first of theirs.
    fn join_exact(&self, clusters: &mut Clusters) -> u64 {
        let mut order: Vec<usize> = (0..self.exact.len()).collect();
        order.sort_unstable_by_key(|&i| (self.exact[i], i));
        let mut n_exact = 0;
        for pair in order.windows(2).filter(|pair| self.exact[pair[0]] == self.exact[pair[1]]) {
            clusters.join(pair[0], pair[1]);
            n_exact += 1;
        }
        n_exact
    }
}

/// Joins documents that share a band and are similar enough; returns how many pairs were compared.
fn join_near(
    ctx: &Context,
    index: &Index,
    shingles: &Container,
    params: &Params,
    clusters: &mut Clusters,
) -> Result<u64, Failure> {
    let offsets: &[u64] = shingles.section("offsets")?;
    let all: &[u64] = shingles.section("shingles")?;
    let set = |i: usize| &all[offsets[i] as usize..offsets[i + 1] as usize];
    // Exact duplicates have equal bands; the first of each stands for all.
    let first: Vec<usize> = (0..index.ids.len()).filter(|&i| clusters.root(i) == i).collect();
    let mut n_compared = 0_u64;
    for band in 0..N_BANDS {
        let mut order = first.clone();
        order.sort_unstable_by_key(|&i| (index.bands[i][band], i));
        let same = |a: &usize, b: &usize| index.bands[*a][band] == index.bands[*b][band];
        for bucket in order.chunk_by(same).filter(|bucket| bucket.len() > 1) {
            for (j, &b) in bucket.iter().enumerate() {
                ctx.check_cancelled()?;
                for &a in &bucket[..j] {
                    if clusters.root(a) == clusters.root(b) {
                        continue;
                    }
                    n_compared += 1;
                    if minhash::jaccard(set(a), set(b)) >= params.min_jaccard {
                        clusters.join(a, b);
                    }
                }
            }
        }
        ctx.progress(band as u64 + 1, N_BANDS as u64, "bands");
    }
    Ok(n_compared)
}

/// Writes the first document of each cluster, and of every other which one it repeats.
fn write_kept(
    ctx: &Context,
    corpus: &Corpus,
    index: &Index,
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
        }
        let root = clusters.root(i);
        if root == i {
            writer.push(&document)?;
        } else {
            let how = if index.exact[root] == index.exact[i] { "exact" } else { "near" };
            let (id, kept) = (document.id, index.ids[root]);
            let line =
                json!({"id": format!("{id:016x}"), "kept": format!("{kept:016x}"), "how": how});
            writeln!(duplicates, "{line}").map_err(fail)?;
        }
    }
    duplicates.finish().and_then(|file| file.sync_all()).map_err(fail)?;
    Ok(writer.finish()?.n_documents)
}

/// Disjoint sets of documents, each known by its earliest member.
struct Clusters(Vec<usize>);

impl Clusters {
    fn new(n: usize) -> Self {
        Self((0..n).collect())
    }

    /// The earliest member of `i`'s set.
    fn root(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            // Halving the path keeps later look-ups short.
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use engine::task::testbed::Bench;
    use serde_json::Value;

    use super::*;
    use crate::corpus::tests::write_texts;

    fn kept(texts: &[&str], params: &Value, n_threads: usize) -> Vec<u64> {
        let dir = tempfile::tempdir().unwrap();
        let corpus = dir.path().join("corpus");
        write_texts(&corpus, texts.iter().copied());
        let mut bench = Bench::new(dir.path()).input("corpus", &corpus);
        bench.n_threads = n_threads;
        bench.run::<Dedup>(params).unwrap();
        let kept = Corpus::open(&bench.out("corpus")).unwrap();
        kept.documents().map(|document| document.unwrap().id).collect()
    }

    #[test]
    fn the_earliest_is_kept() {
        let long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen \
                    fifteen sixteen seventeen eighteen nineteen twenty";
        let near = long.to_owned() + " twenty-one";
        let texts = [long, "other words here", "Other  words, HERE!", &near, "", "short", "SHORT"];
        assert_eq!(kept(&texts, &json!({}), 2), [0, 1, 4, 5]);
        assert_eq!(kept(&texts, &json!({"method": "exact"}), 1), [0, 1, 3, 4, 5]);
        assert_eq!(kept(&texts, &json!({"min_jaccard": 1.0}), 1), [0, 1, 3, 4, 5]);
    }

    /// Decisions on planted near duplicates are those of `datasketch`'s LSH with exact Jaccard.
    #[test]
    fn equals_datasketch() {
        let golden: Value =
            serde_json::from_str(include_str!("../tests/goldens/dedup.json")).unwrap();
        let texts: Vec<&str> =
            golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        let expected: Vec<u64> = serde_json::from_value(golden["kept"].clone()).unwrap();
        assert!(expected.len() < texts.len());
        for n_threads in [1, 3] {
            assert_eq!(kept(&texts, &json!({"min_jaccard": 0.7}), n_threads), expected);
        }
        for seed in 1..4 {
            assert_eq!(kept(&texts, &json!({"min_jaccard": 0.7, "seed": seed}), 2), expected);
        }
    }

    #[test]
    fn wrong_thresholds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Bench::new(dir.path()).run::<Dedup>(&json!({"min_jaccard": 0.0}));
        assert!(failure.unwrap_err().message.contains("0 is not above 0 and at most 1"));
    }
}
