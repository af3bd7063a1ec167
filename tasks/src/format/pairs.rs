//! Document pairs: `pairs.sbp` of a `pairs` artifact, and `pairs.json` beside it.
//!
//! Sections: `seeds` and `targets` (u32, indices into the `tokens` artifact that was embedded) and
//! `scores` (f32), sorted by seed, then by score (descending), then by target. The metadata carries a
//! digest of the documents' ids, so that pairs are never applied to other documents.

use std::path::Path;

use engine::digest::Digest;
use engine::task::Failure;
use serde::{Deserialize, Serialize};

use super::Error;
use super::container::{Container, Writer};
use super::tokens::Tokens;
use crate::corpus::read_json;

/// The file in the artifact's folder.
pub const FILE: &str = "pairs.sbp";
/// The summary beside it.
pub const SUMMARY_FILE: &str = "pairs.json";
const KIND: &str = "pairs";
const VERSION: u32 = 1;

/// Bytes of a pair: two indices and a score.
pub(crate) const PAIR_BYTES: f64 = (2 * size_of::<u32>() + size_of::<f32>()) as f64;

/// Bins of a score histogram: `[-1, 1]` in steps of 0.02.
const N_BINS: usize = 100;

#[derive(Clone, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Metadata {
    n_documents: u64,
    document_ids: [u8; 32],
}

/// A directed pair: the synthesizer learns to write `target` given `seed`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Index of d1.
    pub seed: u32,
    /// Index of d2.
    pub target: u32,
    /// Inner product of their unit embeddings.
    pub score: f32,
}

impl Pair {
    /// Order in the file: seed, then score (descending), then target.
    pub fn by_seed(a: &Self, b: &Self) -> std::cmp::Ordering {
        (a.seed.cmp(&b.seed)).then(b.score.total_cmp(&a.score)).then(a.target.cmp(&b.target))
    }

    /// Best first: score (descending), then seed, then target.
    pub fn best_first(a: &Self, b: &Self) -> std::cmp::Ordering {
        b.score.total_cmp(&a.score).then((a.seed, a.target).cmp(&(b.seed, b.target)))
    }
}

/// The documents that pairs refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Documents {
    /// How many.
    pub n: u64,
    /// BLAKE3 of their ids in order, 8 bytes each, little-endian.
    pub ids: Digest,
}

impl Documents {
    /// Describes documents by their ids in order.
    pub fn of(ids: impl IntoIterator<Item = u64>) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut n = 0;
        for id in ids {
            hasher.update(&id.to_le_bytes());
            n += 1;
        }
        Self { n, ids: Digest::from(hasher.finalize()) }
    }

    /// Describes the documents of a `tokens` artifact.
    pub fn of_tokens(tokens: &Tokens) -> Self {
        Self::of((0..tokens.n_documents()).map(|i| tokens.document_id(i)))
    }
}

/// Pairs, mapped into memory.
pub struct Pairs {
    container: Container,
    documents: Documents,
}

impl Pairs {
    /// Opens the `pairs` artifact in `dir` and verifies it.
    ///
    /// # Errors
    /// When the file cannot be read or is not as [`write()`] leaves it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let container = Container::open(&dir.join(FILE), KIND, VERSION)?;
        let metadata: Metadata = container.metadata()?;
        let damaged = |what: &str| Error::damaged(container.path(), what);
        let seeds = container.section::<u32>("seeds")?;
        let targets = container.section::<u32>("targets")?;
        let scores = container.section::<f32>("scores")?;
        if seeds.len() != targets.len() || seeds.len() != scores.len() {
            return Err(damaged("its sections differ in length"));
        }
        let known = |&i: &u32| u64::from(i) < metadata.n_documents;
        if !seeds.iter().all(known) || !targets.iter().all(known) {
            return Err(damaged("it names documents past its number of documents"));
        }
        if !scores.iter().all(|score| score.is_finite()) {
            return Err(damaged("it has scores that are not numbers"));
        }
        let documents = Documents {
            n: metadata.n_documents,
            ids: Digest::from(blake3::Hash::from_bytes(metadata.document_ids)),
        };
        let pairs = Self { container, documents };
        let sorted = pairs.iter().is_sorted_by(|a, b| Pair::by_seed(a, b).is_le());
        if !sorted {
            return Err(Error::damaged(pairs.container.path(), "its pairs are out of order"));
        }
        Ok(pairs)
    }

    /// As [`Self::open`], for pairs that must refer to the documents of `tokens`.
    ///
    /// # Errors
    /// As [`Self::open`], and when they refer to other documents.
    pub fn open_for(dir: &Path, tokens: &Tokens) -> Result<Self, Failure> {
        let pairs = Self::open(dir)?;
        let documents = Documents::of_tokens(tokens);
        if pairs.documents != documents {
            return Err(Failure::permanent(format!(
                "the pairs are of {} documents, and other documents ({}) are connected",
                pairs.documents.n, documents.n
            ))
            .help("connect the `tokens` that were embedded for these pairs"));
        }
        Ok(pairs)
    }

    fn checked<T: super::container::Element>(&self, section: &str) -> &[T] {
        self.container.section(section).expect("`open` checked the sections")
    }

    /// How the pairs were chosen, as `pairs.json` says.
    ///
    /// # Errors
    /// When `pairs.json` cannot be read.
    pub fn method(&self) -> Result<String, Error> {
        let path = self.container.path().with_file_name(SUMMARY_FILE);
        let summary: PairsSummary = read_json(&path)?;
        Ok(summary.method)
    }

    /// Pairs.
    pub fn n_pairs(&self) -> usize {
        self.seeds().len()
    }

    /// The documents that they refer to.
    pub fn documents(&self) -> Documents {
        self.documents
    }

    /// Index of d1 of each pair; sorted.
    pub fn seeds(&self) -> &[u32] {
        self.checked("seeds")
    }

    /// Index of d2 of each pair.
    pub fn targets(&self) -> &[u32] {
        self.checked("targets")
    }

    /// Score of each pair.
    pub fn scores(&self) -> &[f32] {
        self.checked("scores")
    }

    /// The pair at `i`.
    ///
    /// # Panics
    /// When `i` is not below [`Self::n_pairs`].
    pub fn get(&self, i: usize) -> Pair {
        Pair { seed: self.seeds()[i], target: self.targets()[i], score: self.scores()[i] }
    }

    /// Every pair in order.
    pub fn iter(&self) -> impl Iterator<Item = Pair> {
        let rest = self.targets().iter().zip(self.scores());
        self.seeds().iter().zip(rest).map(|(&seed, (&target, &score))| Pair { seed, target, score })
    }
}

/// Sorts `pairs` and writes them with `pairs.json` into `dir`.
///
/// # Errors
/// When writing fails.
///
/// # Panics
/// When a pair names a document past `documents.n` or has a score that is not finite.
pub fn write(
    dir: &Path,
    documents: Documents,
    mut pairs: Vec<Pair>,
    method: &str,
) -> Result<PairsSummary, Error> {
    let good = |p: &Pair| u64::from(p.seed.max(p.target)) < documents.n && p.score.is_finite();
    assert!(pairs.iter().all(good), "pairs name documents and have scores");
    pairs.sort_unstable_by(Pair::by_seed);
    let mut writer = Writer::create(&dir.join(FILE), KIND, VERSION)?;
    writer.section("seeds", &pairs.iter().map(|p| p.seed).collect::<Vec<_>>())?;
    writer.section("targets", &pairs.iter().map(|p| p.target).collect::<Vec<_>>())?;
    writer.section("scores", &pairs.iter().map(|p| p.score).collect::<Vec<_>>())?;
    writer
        .finish(&Metadata { n_documents: documents.n, document_ids: *documents.ids.as_bytes() })?;
    let summary = PairsSummary::of(documents.n, &pairs, method);
    crate::corpus::write_json(&dir.join(SUMMARY_FILE), &summary)?;
    Ok(summary)
}

/// What `pairs.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairsSummary {
    /// How the pairs were chosen: `exact`, `ivf` or `random`.
    pub method: String,
    /// Documents that could be paired.
    pub n_documents: u64,
    /// Directed pairs.
    pub n_pairs: u64,
    /// Documents that are d1 of a pair.
    pub n_seeds: u64,
    /// Documents that are d1 or d2 of a pair.
    pub n_covered: u64,
    /// Lowest, median and highest score; empty when there are no pairs.
    pub score_min_median_max: Vec<f32>,
    /// Pairs by score.
    pub scores: Vec<Bin>,
    /// `multiplicity[m]` documents are d1 of exactly `m` pairs.
    pub multiplicity: Vec<u64>,
}

/// A bin of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Lower end, included.
    pub from: f64,
    /// Upper end, excluded except in the last bin.
    pub to: f64,
    /// Pairs in it.
    pub n: u64,
}

impl PairsSummary {
    fn of(n_documents: u64, pairs: &[Pair], method: &str) -> Self {
        let mut per_seed = vec![0_u64; n_documents as usize];
        let mut covered = vec![false; n_documents as usize];
        for pair in pairs {
            per_seed[pair.seed as usize] += 1;
            covered[pair.seed as usize] = true;
            covered[pair.target as usize] = true;
        }
        let most = per_seed.iter().copied().max().unwrap_or(0);
        let mut multiplicity = vec![0; most as usize + 1];
        for &n in &per_seed {
            multiplicity[n as usize] += 1;
        }
        let mut scores: Vec<f32> = pairs.iter().map(|pair| pair.score).collect();
        scores.sort_unstable_by(f32::total_cmp);
        let ends = match scores.as_slice() {
            [] => Vec::new(),
            [first, ..] => vec![*first, scores[scores.len() / 2], scores[scores.len() - 1]],
        };
        Self {
            method: method.to_owned(),
            n_documents,
            n_pairs: pairs.len() as u64,
            n_seeds: per_seed.iter().filter(|&&n| n > 0).count() as u64,
            n_covered: covered.iter().filter(|&&is| is).count() as u64,
            score_min_median_max: ends,
            scores: histogram(&scores),
            multiplicity,
        }
    }
}

/// Counts scores in `[-1, 1]` by bins of 0.02, without the empty bins at both ends.
fn histogram(scores: &[f32]) -> Vec<Bin> {
    let mut bins = [0_u64; N_BINS];
    for &score in scores {
        let bin = ((f64::from(score) + 1.0) * (N_BINS as f64 / 2.0)) as usize;
        bins[bin.min(N_BINS - 1)] += 1;
    }
    let edge = |i: usize| (2 * i) as f64 / N_BINS as f64 - 1.0;
    let first = bins.iter().position(|&n| n > 0).unwrap_or(0);
    let end = bins.iter().rposition(|&n| n > 0).map_or(0, |last| last + 1);
    (first..end).map(|i| Bin { from: edge(i), to: edge(i + 1), n: bins[i] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(seed: u32, target: u32, score: f32) -> Pair {
        Pair { seed, target, score }
    }

    #[test]
    fn pairs_come_back_sorted_with_their_counts() {
        let dir = tempfile::tempdir().unwrap();
        let documents = Documents::of([10, 11, 12, 13]);
        let pairs = vec![pair(2, 0, 0.5), pair(0, 3, 0.75), pair(0, 1, 1.0), pair(0, 2, 0.75)];
        let summary = write(dir.path(), documents, pairs, "nearest").unwrap();
        let read = Pairs::open(dir.path()).unwrap();
        let expected = [pair(0, 1, 1.0), pair(0, 2, 0.75), pair(0, 3, 0.75), pair(2, 0, 0.5)];
        assert_eq!(read.iter().collect::<Vec<_>>(), expected);
        assert_eq!((read.get(3), read.documents()), (expected[3], documents));
        assert_eq!((summary.n_seeds, summary.n_covered), (2, 4));
        assert_eq!(summary.multiplicity, [2, 1, 0, 1]);
        assert_eq!(summary.score_min_median_max, [0.5, 0.75, 1.0]);
        assert_eq!(summary.scores.iter().map(|bin| bin.n).sum::<u64>(), 4);
        assert!((summary.scores.last().unwrap().to - 1.0).abs() < 1e-12);
        assert_ne!(Documents::of([10, 11, 13, 12]), documents);
    }

    #[test]
    fn contradictions_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let write = |seeds: &[u32], targets: &[u32], scores: &[f32]| {
            let mut writer = Writer::create(&dir.path().join(FILE), KIND, VERSION).unwrap();
            writer.section("seeds", seeds).unwrap();
            writer.section("targets", targets).unwrap();
            writer.section("scores", scores).unwrap();
            writer.finish(&Metadata { n_documents: 3, document_ids: [0; 32] }).unwrap();
            Pairs::open(dir.path()).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(write(&[0, 1], &[1, 0], &[1.0, 1.0]), "");
        assert!(write(&[0, 1], &[1], &[1.0, 1.0]).contains("differ in length"));
        assert!(write(&[0, 3], &[1, 0], &[1.0, 1.0]).contains("names documents"));
        assert!(write(&[0, 1], &[1, 0], &[1.0, f32::NAN]).contains("not numbers"));
        assert!(write(&[1, 0], &[1, 0], &[1.0, 1.0]).contains("out of order"));
    }
}
