//! Pairs every document with its nearest neighbours, or, as a control, with random ones.
//!
//! Nearest neighbours come from a search over int8 rows, exact or through lists, whose candidates are
//! scored again in `f32`. The candidates are wider than what is kept: their floor lies below the
//! threshold by what quantization can change, measured on the rows, so the exact method loses no pair
//! above the threshold to int8. Where a document has more than `k` neighbours there, candidates are an
//! eighth more than `k`: those that int8 cannot tell apart share the last places. The search through
//! lists is calibrated on sampled documents to find the asked share of the neighbours, and what it
//! found is audited on others against the exact search; `audit.json` says how it did.
//!
//! Differences from the paper: the exact search is the default (the paper's is approximate), and
//! besides a fixed threshold the best pairs can be chosen by number, since scores depend on the
//! embedding.

mod choose;
mod parts;
mod rows;
mod search;
mod shelf;

use std::collections::HashSet;

use engine::task::{
    Context, Determinism, Estimate, FILE_BYTES, Facts, Failure, Inputs, Outputs, ParamError, Port,
    Predicted, Task,
};
use kernels::int8_search;
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::{fact, figure, unit};
use crate::device;
use crate::format::pairs::{self, Documents, Pair as DocumentPair, Pairs};
use crate::format::vectors::Vectors;
pub(crate) use search::{N_FIRST, RECALL_SLACK};

/// See the module.
pub struct Pair;

/// Params of `pair`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// How pairs are chosen: `exact` or `ivf` neighbours, or `random` as a control.
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
    /// Share of the `k` nearest neighbours that method `ivf` is calibrated to find. What it did find is
    /// measured and written to `audit.json`.
    #[serde(default = "default_recall")]
    pub recall: f64,
    /// Documents whose neighbours calibrate method `ivf`, and as many others that audit it.
    #[serde(default = "default_audited_documents")]
    pub audited_documents: usize,
    /// Documents whose packed vectors are in memory at a time. Each such shard is searched for the
    /// neighbours of all documents, run by run; for method `ivf` it has its own lists. Shards of
    /// another size are other tiles, so everything is searched again; method `exact` finds the same.
    #[serde(default = "default_shard_documents")]
    pub shard_documents: usize,
    /// Number of pairs of method `random`, unless `like` is connected.
    #[serde(default)]
    pub n_pairs: Option<u64>,
    /// Seed of method `random`, and of the lists and samples of method `ivf`.
    #[serde(default)]
    pub seed: u64,
}

/// How pairs are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Nearest neighbours by inner product, all of them.
    #[default]
    Exact,
    /// Nearest neighbours by inner product, looked for in the lists of an inverted file where they
    /// can be expected: faster, the more so the more documents there are.
    Ivf,
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

fn default_recall() -> f64 {
    0.97
}

fn default_audited_documents() -> usize {
    1000
}

fn default_shard_documents() -> usize {
    1 << 20
}

impl Task for Pair {
    const KIND: &'static str = "pair";
    const REVISION: u32 = 2;
    const ITEM_STAGES: u32 = 4;
    const SUMMARY: &'static str = "pairs documents with their nearest neighbours, or at random";
    // Integer sums, then single correctly rounded operations in a fixed order.
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const USES_DEVICE: bool = true;
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
        if !(params.recall > 0.0 && params.recall < 1.0) {
            let message = format!("recall {} is not between 0 and 1", params.recall);
            return Err(ParamError::new("recall", message).help("method `exact` finds all"));
        }
        for (name, value) in [
            ("audited_documents", Some(params.audited_documents)),
            ("shard_documents", Some(params.shard_documents)),
            ("n_pairs", params.n_pairs.map(|n| usize::try_from(n).unwrap_or(usize::MAX))),
        ] {
            if value == Some(0) {
                return Err(ParamError::new(name, "it is 0; it must be at least 1"));
            }
        }
        let chosen = params.threshold.is_some() || params.pairs_per_document.is_some();
        if params.method != Method::Random && !chosen {
            let error = ParamError::new("", "no rule ends the list of nearest neighbours");
            return Err(error.help("set `threshold`, `pairs_per_document`, or both"));
        }
        Ok(())
    }

    fn has_items(params: &Params) -> bool {
        params.method != Method::Random
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let vectors = inputs.one("vectors");
        let documents = vectors.get(fact::DOCUMENTS);
        let share = scanned_share(params.method);
        let all = || Some(2.0 * documents?.powi(2) * vectors.get(fact::DIMENSIONS)?);
        let operations = all().map(|all| all * share).filter(|_| share > 0.0);
        let pairs = match params.method {
            Method::Exact | Method::Ivf => {
                params.pairs_per_document.zip(documents).map(|(k, n)| k * n)
            }
            Method::Random => {
                inputs.fact("like", fact::PAIRS).or_else(|| params.n_pairs.map(|n| n as f64))
            }
        };
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
        let (mut audit, mut is_on_gpu) = (None, false);
        if params.method != Method::Exact {
            device::require_cpu(ctx, "methods other than `exact`")?;
        }
        let (pairs, method) = match params.method {
            Method::Exact | Method::Ivf => {
                let digest = inputs.many("vectors")[0].digest;
                let found = search::nearest(ctx, params, (&vectors, digest))?;
                (audit, is_on_gpu) = (found.audit, found.is_on_gpu);
                (found.pairs, if params.method == Method::Exact { "exact" } else { "ivf" })
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
        let dir = ctx.out("pairs")?;
        let summary = pairs::write(&dir, documents, pairs, method)?;
        ctx.info(format!(
            "{} pairs; {} of {n} documents are a seed, {} are in a pair",
            summary.n_pairs, summary.n_seeds, summary.n_covered
        ));
        let mut outputs = device::note(Outputs::default(), is_on_gpu);
        if params.method == Method::Exact {
            let operations = 2.0 * (n as f64).powi(2) * vectors.dim() as f64;
            outputs = outputs.metric(unit::INT8_OP, operations);
        }
        if let Some(audit) = audit {
            crate::corpus::write_json(&dir.join(search::AUDIT_FILE), &audit)?;
            outputs = outputs.metric("recall", audit.recall);
        }
        let outputs = outputs
            .metric("n_pairs", summary.n_pairs as f64)
            .metric("n_seeds", summary.n_seeds as f64)
            .metric("seed_coverage", summary.n_seeds as f64 / n as f64)
            .metric("score_min", f64::from(summary.score_min_median_max[0]))
            .metric("score_median", f64::from(summary.score_min_median_max[1]));
        Ok(outputs)
    }
}

/// The share of all products that a method computes. Through lists it depends on the embeddings and
/// the recall asked; a tenth was seen on 200,000 documents at 0.97.
fn scanned_share(method: Method) -> f64 {
    match method {
        Method::Exact => 1.0,
        Method::Ivf => 0.1,
        Method::Random => 0.0,
    }
}

fn rule(params: &Params) -> String {
    match (params.threshold, params.pairs_per_document) {
        (Some(threshold), _) => format!("threshold {threshold}"),
        (None, Some(n)) => format!("the best {n} pairs a document"),
        (None, None) => format!("{} pairs asked for", params.n_pairs.unwrap_or(0)),
    }
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
