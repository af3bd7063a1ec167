//! Pairs every document with its nearest neighbours, or, as a control, with random ones.
//!
//! Nearest neighbours come from an exact search over int8 rows, whose candidates are scored again in
//! `f32`. The candidates are wider than what is kept: their floor lies below the threshold by what
//! quantization can change, measured on the rows, so no pair above the threshold is lost to int8 unless
//! a document has more than `k` neighbours.
//!
//! Differences from the paper: the search is exact (the paper's is approximate), and besides a
//! fixed threshold the best pairs can be chosen by number, since scores depend on the embedding.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use engine::task::{
    Context, Determinism, Estimate, FILE_BYTES, Facts, Failure, Inputs, Outputs, ParamError, Port,
    Predicted, Task,
};
use kernels::Pool;
use kernels::int8_search::{self, Own, Rows, Search, Values};
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::{fact, figure, unit};
use crate::format::pairs::{self, Documents, Pair as DocumentPair, Pairs};
use crate::format::vectors::Vectors;

/// Multiply-adds of the search between two looks at the cancel token: below a second on one thread
/// of any path.
const STRIDE_MACS: usize = 8 << 30;
/// Queries of a search call, a multiple of the kernel's work item.
const STRIDE_QUERIES: usize = 256;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(15);

/// See the module.
pub struct Pair;

/// Params of `pair`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// How pairs are chosen: `nearest`, or `random` as a control.
    #[serde(default)]
    pub method: Method,
    /// Neighbours looked for, for each document. The paper takes 200.
    #[serde(default = "default_k")]
    pub k: usize,
    /// Lowest inner product of a pair, the paper's α (there 0.75). Scores depend on the embedding, so
    /// `pairs_per_document` travels better.
    #[serde(default)]
    pub threshold: Option<f32>,
    /// Keeps the best pairs, this many times the number of documents, such as `2.0`.
    #[serde(default)]
    pub pairs_per_document: Option<f64>,
    /// At most this many pairs with the same d1, the best ones.
    #[serde(default)]
    pub max_pairs_per_seed: Option<usize>,
    /// Whether a found pair (d1, d2) also enters as (d2, d1).
    #[serde(default)]
    pub directions: Directions,
    /// Number of pairs of method `random`, unless `like` is connected.
    #[serde(default)]
    pub n_pairs: Option<u64>,
    /// Seed of method `random`.
    #[serde(default)]
    pub seed: u64,
}

/// How pairs are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Nearest neighbours by inner product.
    #[default]
    Nearest,
    /// Distinct pairs drawn uniformly from all ordered pairs of different documents: the control
    /// that tells what tuning alone does.
    Random,
}

/// Whether a found pair also enters reversed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Directions {
    /// d1 is the document whose neighbour d2 was found; mutual neighbours enter both ways.
    #[default]
    AsFound,
    /// Every pair enters both ways.
    Both,
    /// Every pair enters once, the earlier document as d1.
    Once,
}

fn default_k() -> usize {
    200
}

impl Task for Pair {
    const KIND: &'static str = "pair";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "pairs documents with their nearest neighbours, or at random";
    // Integer sums, then single correctly rounded operations in a fixed order.
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::one("vectors", "vectors", "embeddings of the documents"),
        Port::optional("like", "pairs", "pairs whose number method `random` copies"),
    ];
    const OUTPUTS: &'static [Port] = &[Port::one("pairs", "pairs", "directed pairs with scores")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.k == 0 {
            return Err(ParamError::new("k", "k is 0; it must be at least 1"));
        }
        if params.max_pairs_per_seed == Some(0) {
            return Err(ParamError::new("max_pairs_per_seed", "it is 0; it must be at least 1"));
        }
        if let Some(threshold) = params.threshold.filter(|t| !(-1.0..=1.0).contains(t)) {
            let message = format!("threshold {threshold} is no inner product: -1 to 1");
            return Err(ParamError::new("threshold", message));
        }
        if let Some(n) = params.pairs_per_document.filter(|n| !(n.is_finite() && *n > 0.0)) {
            let message = format!("pairs_per_document {n} is not above 0");
            return Err(ParamError::new("pairs_per_document", message));
        }
        let chosen = params.threshold.is_some() || params.pairs_per_document.is_some();
        if params.method == Method::Nearest && !chosen {
            let error =
                ParamError::new("", "method `nearest` has no rule that ends the list of pairs");
            return Err(error.help("set `threshold`, `pairs_per_document`, or both"));
        }
        Ok(())
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let vectors = inputs.one("vectors");
        let documents = vectors.get(fact::DOCUMENTS);
        let operations = || Some(2.0 * documents?.powi(2) * vectors.get(fact::DIMENSIONS)?);
        let pairs = match params.method {
            Method::Nearest => params.pairs_per_document.zip(documents).map(|(k, n)| k * n),
            Method::Random => {
                inputs.fact("like", fact::PAIRS).or_else(|| params.n_pairs.map(|n| n as f64))
            }
        };
        let operations = if params.method == Method::Nearest { operations() } else { None };
        Estimate::unknown()
            .figure(figure::DOCUMENTS, documents)
            .work(unit::INT8_OP, operations)
            .output(
                "pairs",
                Facts::default()
                    .with(fact::PAIRS, pairs)
                    .with(FILE_BYTES, pairs.map(|n| n * pairs::PAIR_BYTES)),
            )
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let vectors = Vectors::open(inputs.one("vectors"))?;
        let n = vectors.n_documents();
        if n < 2 {
            return Err(Failure::permanent(format!(
                "{n} documents cannot be paired; 2 are needed"
            )));
        }
        if u32::try_from(n).is_err() {
            let limit = u32::MAX;
            return Err(Failure::permanent(format!("{n} documents; pairs index up to {limit}")));
        }
        let documents = Documents::of(vectors.document_ids().iter().copied());
        let (pairs, method) = match params.method {
            Method::Nearest => {
                let found = find(ctx, params, &vectors, documents)?;
                (choose(params, found, n), "nearest")
            }
            Method::Random => {
                let like = inputs.optional("like").map(Pairs::open).transpose()?;
                if like.as_ref().is_some_and(|like| like.documents() != documents) {
                    let message = "the pairs in `like` refer to other documents than `vectors`";
                    return Err(Failure::permanent(message));
                }
                let n_pairs = like.map(|like| like.n_pairs() as u64).or(params.n_pairs);
                (draw(ctx, &vectors, n_pairs, params.seed)?, "random")
            }
        };
        if pairs.is_empty() {
            let message = format!("no pair of {n} documents passes: {}", rule(params));
            return Err(
                Failure::permanent(message).help("lower `threshold` or set `pairs_per_document`")
            );
        }
        let summary = pairs::write(&ctx.out("pairs")?, documents, pairs, method)?;
        ctx.info(format!(
            "{} pairs; {} of {n} documents are a seed, {} are in a pair",
            summary.n_pairs, summary.n_seeds, summary.n_covered
        ));
        let operations = match params.method {
            Method::Nearest => 2.0 * (n as f64).powi(2) * vectors.dim() as f64,
            Method::Random => 0.0,
        };
        let outputs = Outputs::default()
            .metric(unit::INT8_OP, operations)
            .metric("n_pairs", summary.n_pairs as f64)
            .metric("n_seeds", summary.n_seeds as f64)
            .metric("seed_coverage", summary.n_seeds as f64 / n as f64)
            .metric("score_min", f64::from(summary.score_min_median_max[0]))
            .metric("score_median", f64::from(summary.score_min_median_max[1]));
        Ok(outputs)
    }
}

fn rule(params: &Params) -> String {
    match (params.threshold, params.pairs_per_document) {
        (Some(threshold), _) => format!("threshold {threshold}"),
        (None, Some(n)) => format!("the best {n} pairs a document"),
        (None, None) => format!("{} pairs asked for", params.n_pairs.unwrap_or(0)),
    }
}

/// For each document the `k` best others at or above the threshold, scored in `f32`.
fn find(
    ctx: &Context,
    params: &Params,
    vectors: &Vectors,
    documents: Documents,
) -> Result<Vec<DocumentPair>, Failure> {
    let (n, dim) = (vectors.n_documents(), vectors.dim());
    let pool = Pool::new(ctx.n_threads());
    let rows = |from: usize, to: usize| Rows {
        q: &vectors.quantized()[from * dim..to * dim],
        scales: &vectors.scales()[from..to],
        columns: dim,
        first_id: from as u32,
    };
    let values = Values::pack(&pool, rows(0, n));
    let floor = params.threshold.unwrap_or(-1.0);
    // Int8 order differs from f32 order only between close scores; a quarter more covers them.
    let search = Search {
        k: params.k + params.k / 4 + 8,
        min_score: floor - quantization_margin(vectors),
        own: Own::Exclude,
    };
    let stride = (STRIDE_MACS / (n * dim)).max(1).next_multiple_of(STRIDE_QUERIES);
    let (mut found, mut next) = (Vec::new(), 0);
    if let Some(checkpoint) = ctx.latest_checkpoint()? {
        let saved = Pairs::open(&checkpoint.dir)?;
        if saved.documents() == documents {
            found = saved.iter().collect();
            next = checkpoint.step as usize;
        }
    }
    let mut saved_at = Instant::now();
    while next < n {
        ctx.check_cancelled()?;
        let end = (next + stride).min(n);
        let hits = int8_search::search(&pool, rows(next, end), &values, search);
        let mut scored = vec![Vec::new(); hits.len()];
        pool.for_chunks(&mut scored, 1, |i, scored| {
            scored[0] = rescore(vectors, next + i, &hits[i], floor, params.k);
        });
        found.extend(scored.into_iter().flatten());
        next = end;
        ctx.progress(next as u64, n as u64, "documents");
        if next < n && saved_at.elapsed() >= CHECKPOINT_EVERY {
            let so_far = found.clone();
            ctx.save_checkpoint(next as u64, |dir| {
                let written = pairs::write(dir, documents, so_far, "nearest");
                written.map(|_| ()).map_err(std::io::Error::other)
            })?;
            saved_at = Instant::now();
        }
    }
    Ok(found)
}

/// The best `k` of a document's candidates by `f32` score.
fn rescore(
    vectors: &Vectors,
    seed: usize,
    hits: &[int8_search::Hit],
    floor: f32,
    k: usize,
) -> Vec<DocumentPair> {
    let row = vectors.row(seed);
    let mut scored: Vec<DocumentPair> = hits
        .iter()
        .map(|hit| {
            let score = int8_search::dot(row, vectors.row(hit.id as usize));
            DocumentPair { seed: seed as u32, target: hit.id, score }
        })
        .filter(|pair| pair.score >= floor)
        .collect();
    scored.sort_unstable_by(DocumentPair::best_first);
    scored.truncate(k);
    scored
}

/// An upper bound of what quantization changes in an inner product of two of the rows.
///
/// For unit rows u, v and their int8 forms u', v': |uv - u'v'| <= |u - u'| + |v - v'| + |u - u'||v - v'|.
fn quantization_margin(vectors: &Vectors) -> f32 {
    let dim = vectors.dim();
    let worst = (0..vectors.n_documents())
        .map(|i| {
            let scale = vectors.scales()[i];
            let quantized = &vectors.quantized()[i * dim..][..dim];
            let square = |(&x, &q): (&f32, &i8)| (x - f32::from(q) * scale).powi(2);
            vectors.row(i).iter().zip(quantized).map(square).sum::<f32>().sqrt()
        })
        .fold(0.0_f32, f32::max);
    2.0 * worst + worst * worst + 1e-6
}

/// Applies directions, the limit for each seed, and the limit in all.
fn choose(params: &Params, mut pairs: Vec<DocumentPair>, n_documents: usize) -> Vec<DocumentPair> {
    let reversed = |pair: &DocumentPair| DocumentPair {
        seed: pair.target,
        target: pair.seed,
        score: pair.score,
    };
    match params.directions {
        Directions::AsFound => {}
        Directions::Both => {
            let back: Vec<_> = pairs.iter().map(reversed).collect();
            pairs.extend(back);
        }
        Directions::Once => {
            for pair in pairs.iter_mut().filter(|pair| pair.seed > pair.target) {
                *pair = reversed(pair);
            }
        }
    }
    pairs.sort_unstable_by(DocumentPair::by_seed);
    // Scores are symmetric to the bit, so equal pairs are neighbours.
    pairs.dedup_by_key(|pair| (pair.seed, pair.target));
    if let Some(most) = params.max_pairs_per_seed {
        let (mut seed, mut n) = (u32::MAX, 0);
        pairs.retain(|pair| {
            n = if pair.seed == seed { n + 1 } else { 1 };
            seed = pair.seed;
            n <= most
        });
    }
    if let Some(per_document) = params.pairs_per_document {
        let most = (per_document * n_documents as f64).round() as usize;
        pairs.sort_unstable_by(DocumentPair::best_first);
        pairs.truncate(most);
    }
    pairs
}

/// Distinct ordered pairs of different documents, uniformly, with their scores.
fn draw(
    ctx: &Context,
    vectors: &Vectors,
    n_pairs: Option<u64>,
    seed: u64,
) -> Result<Vec<DocumentPair>, Failure> {
    let n = vectors.n_documents() as u64;
    let n_pairs = n_pairs.ok_or_else(|| {
        Failure::permanent("method `random` does not know how many pairs to draw")
            .help("set `n_pairs`, or connect `like`")
    })?;
    let all = n * (n - 1);
    if n_pairs > all {
        let message = format!("{n_pairs} pairs asked for; {n} documents have {all} ordered pairs");
        return Err(Failure::permanent(message));
    }
    let rng = Philox::new(seed, "pair random");
    let (mut codes, mut drawn) = (HashSet::new(), Vec::new());
    // Floyd's method: exactly `n_pairs` draws, each subset of that size equally likely.
    for code in all - n_pairs..all {
        if code % (1 << 16) == 0 {
            ctx.check_cancelled()?;
        }
        let pick = rng.below(code, code + 1);
        let pick = if codes.insert(pick) { pick } else { code };
        codes.insert(pick);
        let (first, other) = (pick / (n - 1), pick % (n - 1));
        // `other` counts the documents without the first.
        let second = other + u64::from(other >= first);
        let score = int8_search::dot(vectors.row(first as usize), vectors.row(second as usize));
        drawn.push(DocumentPair { seed: first as u32, target: second as u32, score });
    }
    Ok(drawn)
}

#[cfg(test)]
mod tests;
