//! Nearest neighbours of all documents, one shard of values after the other.

use std::ops::Range;
use std::time::{Duration, Instant};

use engine::task::{Context, Failure};
use kernels::Pool;
use kernels::int8_search::{
    self, Hit, Lists, ListsOptions, Own, Reach, Rescore, Rows, Search, Values, best_first,
};
use kernels::philox::Philox;
use serde::Serialize;

use super::Params;
use crate::format::pairs::{self, Documents, Pair, Pairs};
use crate::format::vectors::Vectors;

/// Beside the pairs: how the search through lists did.
pub(super) const AUDIT_FILE: &str = "audit.json";

/// Multiply-adds of the exact search between two looks at the cancel token: below a second on one
/// thread of any path.
const STRIDE_MACS: usize = 8 << 30;
/// Queries of a search call, a multiple of the kernel's work item.
const STRIDE_QUERIES: usize = 256;
/// Queries that go through lists together: enough that those of a block have lists in common.
const LISTS_QUERIES: usize = 1 << 17;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(15);
/// Lists that every query scans.
const N_FIRST: usize = 8;
/// The calibration aims higher than asked by what a sample of a thousand documents may be off: two
/// standard errors of a recall that varies by 0.05 from document to document.
const RECALL_SLACK: f64 = 0.003;

/// How the search through lists did.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Audit {
    /// Share of the exact neighbours that it found, over the audited documents.
    pub(super) recall: f64,
    /// Share that it was calibrated for.
    pub(super) recall_asked: f64,
    pub(super) audited_documents: usize,
    pub(super) neighbours: usize,
    /// Of each shard of values.
    pub(super) shards: Vec<Shard>,
}

/// The lists of a shard of values.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shard {
    pub(super) documents: usize,
    pub(super) lists: usize,
    pub(super) lists_always_scanned: usize,
    /// How far below a document's threshold a list's mean score may lie, in spreads of the list, for
    /// the list to be scanned too.
    pub(super) reach: f32,
}

/// For each document the `k` best others at or above the threshold.
pub(super) fn exact(
    ctx: &Context,
    params: &Params,
    vectors: &Vectors,
    documents: Documents,
) -> Result<Vec<Pair>, Failure> {
    let mut job = Job::new(ctx, params, vectors, documents)?;
    for shard in job.shards() {
        let Some(mut next) = job.start_of(&shard) else { continue };
        let values = Values::pack(&job.pool, job.rows(shard.clone()));
        let stride = STRIDE_MACS / (shard.len() * vectors.dim());
        let stride = stride.max(1).next_multiple_of(STRIDE_QUERIES);
        while next < job.n {
            ctx.check_cancelled()?;
            let end = (next + stride).min(job.n);
            let queries = job.rows(next..end);
            let rescore = job.rescore(next..end, &shard);
            let hits =
                int8_search::search_rescored(&job.pool, queries, &values, job.search, rescore);
            next = job.merge(next, hits, &shard)?;
        }
    }
    Ok(job.finish())
}

/// [`exact`], but through lists, and what an audit found.
pub(super) fn through_lists(
    ctx: &Context,
    params: &Params,
    vectors: &Vectors,
    documents: Documents,
) -> Result<(Vec<Pair>, Audit), Failure> {
    let mut job = Job::new(ctx, params, vectors, documents)?;
    let mut shards = Vec::new();
    for shard in job.shards() {
        let start = job.start_of(&shard);
        let rows = job.rows(shard.clone());
        let options = ListsOptions { seed: params.seed, ..ListsOptions::for_values(shard.len()) };
        let lists = Lists::build(&job.pool, rows, options);
        ctx.check_cancelled()?;
        let reach = job.calibrate(&lists);
        shards.push(Shard {
            documents: shard.len(),
            lists: lists.n_lists(),
            lists_always_scanned: reach.n_first,
            reach: reach.reach,
        });
        let mut next = start.unwrap_or(job.n);
        while next < job.n {
            ctx.check_cancelled()?;
            let end = (next + LISTS_QUERIES).min(job.n);
            let queries = job.rows(next..end);
            let rescore = job.rescore(next..end, &shard);
            let nearest = lists.nearest(&job.pool, queries);
            let cancel = ctx.cancel_token();
            let hits = lists.search(
                &job.pool,
                (queries, &nearest),
                reach,
                (job.search, Some(rescore)),
                &|| !cancel.is_cancelled(),
            );
            ctx.check_cancelled()?;
            next = job.merge(next, hits, &shard)?;
        }
    }
    let audit = job.audit(shards)?;
    if audit.recall < params.recall {
        ctx.info(format!(
            "the audit found {:.4} of the neighbours, less than `recall: {}`",
            audit.recall, params.recall
        ));
    }
    Ok((job.finish(), audit))
}

/// The search of all shards, and what it has found.
struct Job<'a> {
    ctx: &'a Context,
    params: &'a Params,
    vectors: &'a Vectors,
    documents: Documents,
    pool: Pool,
    n: usize,
    floor: f32,
    search: Search,
    /// Of each document the best hits in the shards so far.
    best: Vec<Vec<Hit>>,
    /// Queries times shards that are done.
    n_done: u64,
    saved_at: Instant,
}

impl<'a> Job<'a> {
    /// A job that goes on where the latest checkpoint was taken.
    fn new(
        ctx: &'a Context,
        params: &'a Params,
        vectors: &'a Vectors,
        documents: Documents,
    ) -> Result<Self, Failure> {
        let n = vectors.n_documents();
        let floor = params.threshold.unwrap_or(-1.0);
        let all = Search { k: params.k, min_score: floor, own: Own::Exclude };
        let mut job = Self {
            ctx,
            params,
            vectors,
            documents,
            pool: Pool::new(ctx.n_threads()),
            n,
            floor,
            search: all,
            best: vec![Vec::new(); n],
            n_done: 0,
            saved_at: Instant::now(),
        };
        let margin = quantization_margin(&job.pool, vectors);
        job.search = job.rescore(0..n, &(0..n)).candidates(all, margin);
        if let Some(checkpoint) = ctx.latest_checkpoint()? {
            let saved = Pairs::open(&checkpoint.dir)?;
            if saved.documents() == documents {
                for pair in saved.iter() {
                    let hit = Hit { id: pair.target, score: pair.score };
                    job.best[pair.seed as usize].push(hit);
                }
                job.n_done = checkpoint.step;
            }
        }
        Ok(job)
    }

    fn shards(&self) -> Vec<Range<usize>> {
        let size = self.params.shard_documents.min(self.n);
        (0..self.n).step_by(size).map(|from| from..(from + size).min(self.n)).collect()
    }

    /// The first query that has not met a shard; `None` when all have.
    fn start_of(&self, shard: &Range<usize>) -> Option<usize> {
        let index = shard.start / self.params.shard_documents.min(self.n);
        let done = self.n_done.saturating_sub((index * self.n) as u64) as usize;
        (done < self.n).then_some(done)
    }

    fn rows(&self, range: Range<usize>) -> Rows<'a> {
        let dim = self.vectors.dim();
        Rows {
            q: &self.vectors.quantized()[range.start * dim..range.end * dim],
            scales: &self.vectors.scales()[range.clone()],
            columns: dim,
            first_id: range.start as u32,
        }
    }

    fn rescore(&self, queries: Range<usize>, values: &Range<usize>) -> Rescore<'a> {
        let dim = self.vectors.dim();
        let rows = |range: &Range<usize>| &self.vectors.rows()[range.start * dim..range.end * dim];
        Rescore {
            queries: rows(&queries),
            values: rows(values),
            first_value_id: values.start as u32,
            columns: dim,
            k: self.params.k,
            min_score: self.floor,
        }
    }

    /// Adds hits of the queries from `first`; returns the next query.
    fn merge(
        &mut self,
        first: usize,
        hits: Vec<Vec<Hit>>,
        shard: &Range<usize>,
    ) -> Result<usize, Failure> {
        let next = first + hits.len();
        for (best, hits) in self.best[first..next].iter_mut().zip(hits) {
            if best.is_empty() {
                *best = hits;
            } else {
                best.extend(hits);
                best.sort_unstable_by(best_first);
                best.truncate(self.params.k);
            }
        }
        let index = shard.start / self.params.shard_documents.min(self.n);
        self.n_done = (index * self.n + next) as u64;
        let n_all = (self.shards().len() * self.n) as u64;
        self.ctx.progress(self.n_done, n_all, "documents times shards");
        if self.n_done < n_all && self.saved_at.elapsed() >= CHECKPOINT_EVERY {
            let so_far = self.pairs();
            self.ctx.save_checkpoint(self.n_done, |dir| {
                let written = pairs::write(dir, self.documents, so_far, "unfinished");
                written.map(|_| ()).map_err(std::io::Error::other)
            })?;
            self.saved_at = Instant::now();
        }
        Ok(next)
    }

    fn pairs(&self) -> Vec<Pair> {
        let of_seed = |(seed, hits): (usize, &Vec<Hit>)| {
            let pair =
                move |hit: &Hit| Pair { seed: seed as u32, target: hit.id, score: hit.score };
            hits.iter().map(pair).collect::<Vec<_>>()
        };
        self.best.iter().enumerate().flat_map(of_seed).collect()
    }

    /// All pairs. A row of zeros is no embedding, and its scores say nothing.
    fn finish(self) -> Vec<Pair> {
        let mut pairs = self.pairs();
        let is_embedded = |i: u32| self.vectors.scales()[i as usize] > 0.0;
        pairs.retain(|pair| is_embedded(pair.seed) && is_embedded(pair.target));
        pairs
    }

    /// Sampled documents: the first half calibrates, the second audits.
    fn sample(&self) -> (Vec<usize>, Vec<usize>) {
        let mut calibrates = Philox::new(self.params.seed, "pair audit").permutation(self.n);
        let wanted = self.params.audited_documents.min(self.n);
        let audits = calibrates.split_off(self.n - wanted);
        calibrates.truncate(wanted);
        // So few documents that one half takes all: they serve both ends.
        if calibrates.is_empty() {
            calibrates.clone_from(&audits);
        }
        (calibrates, audits)
    }

    fn calibrate(&self, lists: &Lists) -> Reach {
        let gathered = Gathered::of(self.vectors, &self.sample().0);
        // Sampled rows have lost their ids, so their own rows are kept, and one more hit.
        let keep = |k: usize| Search { k: k + 1, own: Own::Keep, ..self.search };
        let queries = gathered.rows(self.vectors.dim());
        let exact = lists.search_exact(&self.pool, queries, keep(self.params.k), None);
        let recall = (self.params.recall + RECALL_SLACK).min(1.0);
        lists.calibrate(&self.pool, queries, &exact, keep(self.search.k), (N_FIRST, recall))
    }

    /// Compares with the exact neighbours of sampled documents.
    fn audit(&self, shards: Vec<Shard>) -> Result<Audit, Failure> {
        let audited = self.sample().1;
        let gathered = Gathered::of(self.vectors, &audited);
        let dim = self.vectors.dim();
        let mut exact: Vec<Vec<Hit>> = vec![Vec::new(); audited.len()];
        for shard in self.shards() {
            self.ctx.check_cancelled()?;
            let values = Values::pack(&self.pool, self.rows(shard.clone()));
            let rescore = Rescore {
                queries: &gathered.rows_f32,
                k: self.params.k + 1,
                ..self.rescore(0..0, &shard)
            };
            let search = Search { k: self.search.k + 1, own: Own::Keep, ..self.search };
            let hits = int8_search::search_rescored(
                &self.pool,
                gathered.rows(dim),
                &values,
                search,
                rescore,
            );
            exact.iter_mut().zip(hits).for_each(|(exact, hits)| exact.extend(hits));
        }
        let (mut n, mut n_found) = (0, 0);
        for (&document, exact) in audited.iter().zip(&mut exact) {
            exact.retain(|hit| hit.id as usize != document);
            exact.sort_unstable_by(best_first);
            exact.truncate(self.params.k);
            let found = &self.best[document];
            n += exact.len();
            n_found += exact.iter().filter(|hit| found.iter().any(|f| f.id == hit.id)).count();
        }
        Ok(Audit {
            recall: if n == 0 { 1.0 } else { n_found as f64 / n as f64 },
            recall_asked: self.params.recall,
            audited_documents: audited.len(),
            neighbours: n,
            shards,
        })
    }
}

/// Rows of sampled documents.
struct Gathered {
    q: Vec<i8>,
    scales: Vec<f32>,
    rows_f32: Vec<f32>,
}

impl Gathered {
    fn of(vectors: &Vectors, documents: &[usize]) -> Self {
        let dim = vectors.dim();
        let q = |&i: &usize| vectors.quantized()[i * dim..][..dim].iter().copied();
        Self {
            q: documents.iter().flat_map(q).collect(),
            scales: documents.iter().map(|&i| vectors.scales()[i]).collect(),
            rows_f32: documents.iter().flat_map(|&i| vectors.row(i).iter().copied()).collect(),
        }
    }

    fn rows(&self, dim: usize) -> Rows<'_> {
        Rows { q: &self.q, scales: &self.scales, columns: dim, first_id: 0 }
    }
}

/// An upper bound of what quantization changes in an inner product of two of the rows.
///
/// For unit rows u, v and their int8 forms u', v': |uv - u'v'| <= |u - u'| + |v - v'| + |u - u'||v - v'|.
fn quantization_margin(pool: &Pool, vectors: &Vectors) -> f32 {
    const CHUNK: usize = 256;
    let dim = vectors.dim();
    let mut worst = vec![0.0_f32; vectors.n_documents()];
    pool.for_chunks(&mut worst, CHUNK, |chunk, worst| {
        for (i, worst) in worst.iter_mut().enumerate() {
            let i = chunk * CHUNK + i;
            let scale = vectors.scales()[i];
            let quantized = &vectors.quantized()[i * dim..][..dim];
            let square = |(&x, &q): (&f32, &i8)| (x - f32::from(q) * scale).powi(2);
            *worst = vectors.row(i).iter().zip(quantized).map(square).sum::<f32>().sqrt();
        }
    });
    let worst = worst.into_iter().fold(0.0_f32, f32::max);
    2.0 * worst + worst * worst + 1e-6
}
