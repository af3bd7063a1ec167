//! Nearest neighbours of all documents, tile by tile.
//!
//! The paper shards keys and values apart from each other, and gives every key shard a copy of each
//! value shard's searcher (its Figure 4, the "salted" copies). So here: a tile is a run of documents
//! whose neighbours are looked for, the keys, times a shard of documents that can be neighbours, the
//! values. It is an item. For method `ivf` the lists of each shard of values are an item too; they
//! are kept in files, and whoever takes a tile makes a copy of its own of them. What tiles found is
//! merged by a total order, so that neither their number nor who did which changes anything.

use std::ops::Range;
use std::path::PathBuf;

use engine::digest::Digest;
use engine::task::{Context, Failure, Item};
use kernels::Pool;
use kernels::int8_search::{
    self, Cut, Hit, Lists, ListsOptions, Own, Reach, Rescore, Rows, Search, Values, best_first,
};
use kernels::philox::Philox;
use serde::{Deserialize, Serialize};

use super::choose::Chooser;
use super::parts::{leave_hits, leave_lists, read_cut, read_hits, read_reach};
use super::rows::{Gathered, digest_of_rows, quantization_error};
use super::shelf::{self, Shelf};
use super::{Method, Params};
use crate::device;
use crate::format::pairs::Pair;
use crate::format::vectors::Vectors;

/// Documents that are looked at, and known by a digest, together. Few where tests cut.
const STRETCH: usize = if cfg!(test) { 64 } else { 1 << 14 };
/// Keys of a tile of the exact search: a minute's work against a million values on two cores.
const KEYS_EXACT: usize = STRETCH;
/// Keys that go through lists together: enough that those of a block have lists in common.
const KEYS_LISTS: usize = 8 * STRETCH;
/// Lists that every query scans.
pub(crate) const N_FIRST: usize = 8;
/// The calibration aims higher than asked by what a sample of a thousand documents may be off: two
/// standard errors of a recall that varies by 0.05 from document to document.
pub(crate) const RECALL_SLACK: f64 = 0.003;

/// Beside the pairs: how the search through lists did.
pub(super) const AUDIT_FILE: &str = "audit.json";

/// What a search found.
pub(super) struct Found {
    pub(super) pairs: Vec<Pair>,
    /// Of the search through lists.
    pub(super) audit: Option<Audit>,
    pub(super) is_on_gpu: bool,
}

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

/// What the pairs are made of: for each document the `k` best others at or above the threshold, as
/// far as the method finds them.
pub(super) fn nearest(
    ctx: &Context,
    params: &Params,
    (vectors, digest): (&Vectors, Digest),
) -> Result<Found, Failure> {
    let job = Job::new(ctx, params, vectors, digest)?;
    if params.method != Method::Ivf {
        let (tiles, is_on_gpu) = job.exact(ctx)?;
        let (pairs, _) = job.merge(ctx, KEYS_EXACT, &tiles, &[])?;
        return Ok(Found { pairs, audit: None, is_on_gpu });
    }
    let (calibrates, audits) = job.sample();
    let lists = job.lists(ctx, &calibrates)?;
    let tiles = job.through_lists(ctx, &lists)?;
    let exact = job.exact_of(ctx, &audits)?;
    let (pairs, found) = job.merge(ctx, KEYS_LISTS, &tiles, &audits)?;
    let audit = job.audit(&lists, &audits, exact, &found);
    if audit.recall < params.recall {
        ctx.warn(format!(
            "the audit found {:.4} of the neighbours, less than `recall: {}`; a higher `recall` or \
             `method: exact` finds more",
            audit.recall, params.recall
        ));
    }
    Ok(Found { pairs, audit: Some(audit), is_on_gpu: false })
}

/// A key run times a shard of values.
#[derive(Clone)]
struct Tile {
    keys: Range<usize>,
    values: Range<usize>,
}

/// The lists of a shard as an item left them.
struct ShardLists {
    values: Range<usize>,
    dir: PathBuf,
    n_lists: usize,
    reach: Reach,
}

/// The search, before any tile.
struct Job<'a> {
    params: &'a Params,
    vectors: &'a Vectors,
    n: usize,
    floor: f32,
    stretches: Vec<Stretch>,
}

/// What is known of a stretch of documents.
#[derive(Serialize, Deserialize)]
struct Stretch {
    /// Of their rows.
    digest: Digest,
    /// The largest distance of a row from its int8 form, as bits.
    worst: u32,
}

impl<'a> Job<'a> {
    /// Looks at all rows.
    fn new(
        ctx: &Context,
        params: &'a Params,
        vectors: &'a Vectors,
        digest: Digest,
    ) -> Result<Self, Failure> {
        let n = vectors.n_documents();
        let item = |documents: Range<usize>| {
            let weight = documents.len() as u64;
            Item::new(name(&documents), &(digest, documents.clone()), documents).weight(weight)
        };
        let items = cut(n, STRETCH).map(item).collect();
        let stretches = ctx
            .items("measure", "documents", items, |documents, _| {
                let worst = quantization_error(vectors, documents).to_bits();
                Ok(Stretch { digest: digest_of_rows(vectors, documents), worst })
            })?
            .map(|result| Ok(result?.value))
            .collect::<Result<_, Failure>>()?;
        let floor = params.threshold.unwrap_or(-1.0);
        Ok(Self { params, vectors, n, floor, stretches })
    }

    fn shards(&self) -> impl Iterator<Item = Range<usize>> {
        cut(self.n, self.params.shard_documents)
    }

    fn stretches(&self, documents: &Range<usize>) -> &[Stretch] {
        &self.stretches[documents.start / STRETCH..documents.end.div_ceil(STRETCH)]
    }

    /// What hits depend on besides params, for rows of some documents.
    fn made_of(&self, documents: &Range<usize>) -> (Range<usize>, Vec<Digest>) {
        let digests = self.stretches(documents).iter().map(|stretch| stretch.digest).collect();
        (documents.clone(), digests)
    }

    /// An upper bound of what quantization changes in an inner product of a key and a value.
    ///
    /// For unit rows u, v and their int8 forms u', v': |uv - u'v'| <= |u - u'| + |v - v'| + |u - u'||v - v'|.
    fn margin(&self, tile: &Tile) -> f32 {
        let worst = |documents: &Range<usize>| {
            let worst = self.stretches(documents).iter().map(|s| f32::from_bits(s.worst));
            worst.fold(0.0_f32, f32::max)
        };
        let (keys, values) = (worst(&tile.keys), worst(&tile.values));
        keys + values + keys * values + 1e-6
    }

    /// The search for candidates of a tile.
    fn search(&self, tile: &Tile) -> Search {
        let all = Search { k: self.params.k, min_score: self.floor, own: Own::Exclude };
        self.rescore(tile).candidates(all, self.margin(tile))
    }

    /// That of every tile of the search through lists, where it decides how far queries look.
    fn search_everywhere(&self) -> Search {
        self.search(&Tile { keys: 0..self.n, values: 0..self.n })
    }

    fn rows(&self, range: &Range<usize>) -> Rows<'a> {
        let dim = self.vectors.dim();
        Rows {
            q: &self.vectors.quantized()[range.start * dim..range.end * dim],
            scales: &self.vectors.scales()[range.clone()],
            columns: dim,
            first_id: range.start as u32,
        }
    }

    fn rescore(&self, tile: &Tile) -> Rescore<'a> {
        let dim = self.vectors.dim();
        let rows = |range: &Range<usize>| &self.vectors.rows()[range.start * dim..range.end * dim];
        Rescore {
            queries: rows(&tile.keys),
            values: rows(&tile.values),
            first_value_id: tile.values.start as u32,
            columns: dim,
            k: self.params.k,
            min_score: self.floor,
        }
    }

    /// Tiles with the same values follow each other, so that a worker packs these once.
    fn tiles<'s>(&self, n_keys: usize, made_of: impl Fn(&Tile) -> Digest + 's) -> Vec<Item<Tile>> {
        let tiles = self.shards().flat_map(|values| {
            cut(self.n, n_keys).map(move |keys| Tile { keys, values: values.clone() })
        });
        let item = |tile: Tile| {
            let name = format!(
                "{} among {} to {}",
                name(&tile.keys),
                tile.values.start,
                tile.values.end - 1
            );
            let weight = tile.keys.len() as u64;
            Item::new(name, &made_of(&tile), tile).weight(weight)
        };
        tiles.map(item).collect()
    }

    /// Has every tile searched without leaving anything out; whether a GPU does. Its hits are the
    /// CPU's bit for bit, so items are the same wherever they are made.
    fn exact(&self, ctx: &Context) -> Result<(Vec<PathBuf>, bool), Failure> {
        let n_values = self.params.shard_documents.min(self.n);
        let sizes = [KEYS_EXACT.min(self.n), n_values, self.vectors.dim()];
        let device = device::open(ctx, &shelf::work(sizes, self.search_everywhere().k))?;
        let items = self.tiles(KEYS_EXACT, |tile| {
            let (keys, values) = (self.made_of(&tile.keys), self.made_of(&tile.values));
            digest_of(&(self.params.k, self.floor.to_bits(), keys, values))
        });
        let begin = |n_threads| Ok((Pool::new(n_threads), None));
        let stage = ctx.stage("search", "documents times shards").alone().last();
        let results = stage.each_with(items, begin, |(pool, shelf), tile, item| {
            let values = keep(shelf, &tile.values, || {
                Shelf::new(device.as_deref(), pool, self.rows(&tile.values))
            })?;
            let stride = values.stride(tile.keys.len());
            let mut hits = Vec::with_capacity(tile.keys.len());
            for first in tile.keys.clone().step_by(stride) {
                item.check_cancelled()?;
                let keys = first..tile.keys.end.min(first + stride);
                let part = Tile { keys, values: tile.values.clone() };
                let (rows, rescore) = (self.rows(&part.keys), self.rescore(&part));
                let search = self.search(tile);
                hits.extend(values.search(pool, rows, search, rescore)?);
                item.progress(hits.len() as u64);
            }
            leave_hits(item.dir(), &hits)
        })?;
        let tiles = results.map(|result: Result<_, Failure>| Ok(result?.dir));
        Ok((tiles.collect::<Result<_, Failure>>()?, device.is_some()))
    }

    /// Has the lists of each shard of values found, and calibrated on sampled documents.
    fn lists(&self, ctx: &Context, calibrates: &[usize]) -> Result<Vec<ShardLists>, Failure> {
        let sampled = Gathered::of(self.vectors, calibrates);
        let params = self.params;
        let made_of = (params.k, self.floor.to_bits(), params.seed, params.recall);
        let made_of = (made_of, self.search_everywhere().min_score.to_bits(), sampled.digest());
        let item = |values: Range<usize>| {
            let weight = values.len() as u64;
            let made_of = (&made_of, self.made_of(&values));
            Item::new(format!("lists of {}", name(&values)), &made_of, values).weight(weight)
        };
        let items = self.shards().map(item).collect();
        let begin = |n_threads| Ok(Pool::new(n_threads));
        let stage = ctx.stage("lists", "documents").alone();
        let results = stage.each_with(items, begin, |pool, values, item| {
            let rows = self.rows(values);
            let options =
                ListsOptions { seed: params.seed, ..ListsOptions::for_values(values.len()) };
            let cut = Cut::find(pool, rows, options);
            item.check_cancelled()?;
            let reach = self.calibrate(pool, &Lists::new(pool, rows, &cut), &sampled);
            leave_lists(item.dir(), &cut, reach)
        })?;
        let results = results.zip(self.shards()).map(|(result, values)| {
            let dir = result?.dir;
            let (n_lists, reach) = read_reach(&dir)?;
            Ok(ShardLists { values, dir, n_lists, reach })
        });
        results.collect()
    }

    fn calibrate(&self, pool: &Pool, lists: &Lists, sampled: &Gathered) -> Reach {
        let all = self.search_everywhere();
        // Sampled rows have lost their ids, so their own rows are kept, and one more hit.
        let keep = |k: usize| Search { k: k + 1, own: Own::Keep, ..all };
        let queries = sampled.rows(self.vectors.dim());
        let exact = lists.search_exact(pool, queries, keep(self.params.k), None);
        let recall = (self.params.recall + RECALL_SLACK).min(1.0);
        lists.calibrate(pool, queries, &exact, keep(all.k), (N_FIRST, recall))
    }

    /// Has every tile searched through its lists.
    fn through_lists(&self, ctx: &Context, lists: &[ShardLists]) -> Result<Vec<PathBuf>, Failure> {
        let of_shard = |tile: &Tile| {
            let found = lists.iter().find(|lists| lists.values == tile.values);
            found.expect("every shard has lists")
        };
        let search = self.search_everywhere();
        let made_of = (self.params.k, self.floor.to_bits(), search.min_score.to_bits());
        let items = self.tiles(KEYS_LISTS, |tile| {
            let reach = of_shard(tile).reach;
            let reach = (reach.n_first, reach.reach.to_bits(), self.params.seed);
            let (keys, values) = (self.made_of(&tile.keys), self.made_of(&tile.values));
            digest_of(&(made_of, reach, keys, values))
        });
        let begin = |n_threads| Ok((Pool::new(n_threads), None));
        let stage = ctx.stage("search", "documents times shards").alone();
        let results = stage.each_with(items, begin, |(pool, opened), tile, item| {
            let (shard, queries) = (of_shard(tile), self.rows(&tile.keys));
            let lists = keep(opened, &tile.values, || {
                Ok(Lists::new(pool, self.rows(&tile.values), &read_cut(&shard.dir)?))
            })?;
            let nearest = lists.nearest(pool, queries);
            let cancel = item.cancel_token();
            let hits = lists.search(
                pool,
                (queries, &nearest),
                shard.reach,
                (search, Some(self.rescore(tile))),
                &|| !cancel.is_cancelled(),
            );
            item.check_cancelled()?;
            leave_hits(item.dir(), &hits)
        })?;
        results.map(|result: Result<_, Failure>| Ok(result?.dir)).collect()
    }

    /// Merges what the tiles found, keys by keys, into the pairs that are chosen; gives what was found
    /// for the documents `of` as well.
    fn merge(
        &self,
        ctx: &Context,
        n_keys: usize,
        tiles: &[PathBuf],
        of: &[usize],
    ) -> Result<(Vec<Pair>, Vec<Vec<Hit>>), Failure> {
        let n_runs = self.n.div_ceil(n_keys);
        let mut chooser = Chooser::new(self.params, self.n);
        let mut found = vec![Vec::new(); of.len()];
        for (run, keys) in cut(self.n, n_keys).enumerate() {
            ctx.check_cancelled()?;
            let mut best: Vec<Vec<Hit>> = vec![Vec::new(); keys.len()];
            for dir in tiles[run..].iter().step_by(n_runs) {
                read_hits(dir, &mut best)?;
                for hits in &mut best {
                    hits.sort_unstable_by(best_first);
                    hits.truncate(self.params.k);
                }
            }
            for (found, &document) in found.iter_mut().zip(of) {
                if keys.contains(&document) {
                    found.clone_from(&best[document - keys.start]);
                }
            }
            // A row of zeros is no embedding, and its scores say nothing.
            let is_embedded = |i: u32| self.vectors.scales()[i as usize] > 0.0;
            let pairs = keys.zip(best).flat_map(|(seed, hits)| {
                let pair =
                    move |hit: Hit| Pair { seed: seed as u32, target: hit.id, score: hit.score };
                hits.into_iter().map(pair)
            });
            chooser.add(pairs.filter(|pair| is_embedded(pair.seed) && is_embedded(pair.target)));
        }
        Ok((chooser.finish(), found))
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

    /// The exact neighbours of some documents.
    fn exact_of(&self, ctx: &Context, documents: &[usize]) -> Result<Vec<Vec<Hit>>, Failure> {
        let gathered = Gathered::of(self.vectors, documents);
        let search = self.search_everywhere();
        let made_of = (self.params.k, self.floor.to_bits(), search.min_score.to_bits());
        let made_of = (made_of, gathered.digest());
        let item = |values: Range<usize>| {
            let weight = values.len() as u64;
            let made_of = (&made_of, self.made_of(&values));
            Item::new(format!("audit of {}", name(&values)), &made_of, values).weight(weight)
        };
        let items = self.shards().map(item).collect();
        let begin = |n_threads| Ok(Pool::new(n_threads));
        let stage = ctx.stage("audit", "documents").alone().last();
        let results = stage.each_with(items, begin, |pool, values, item| {
            let packed = Values::pack(pool, self.rows(values));
            item.check_cancelled()?;
            let tile = Tile { keys: 0..0, values: values.clone() };
            let rescore = Rescore {
                queries: &gathered.rows_f32,
                k: self.params.k + 1,
                ..self.rescore(&tile)
            };
            let search = Search { k: search.k + 1, own: Own::Keep, ..search };
            let queries = gathered.rows(self.vectors.dim());
            let hits = int8_search::search_rescored(pool, queries, &packed, search, rescore);
            leave_hits(item.dir(), &hits)
        })?;
        let mut exact: Vec<Vec<Hit>> = vec![Vec::new(); documents.len()];
        for result in results {
            let result: engine::task::ItemResult<()> = result?;
            read_hits(&result.dir, &mut exact)?;
        }
        for (&document, exact) in documents.iter().zip(&mut exact) {
            exact.retain(|hit| hit.id as usize != document);
            exact.sort_unstable_by(best_first);
            exact.truncate(self.params.k);
        }
        Ok(exact)
    }

    /// Compares what was found with the exact neighbours of the same documents.
    fn audit(
        &self,
        lists: &[ShardLists],
        audits: &[usize],
        exact: Vec<Vec<Hit>>,
        found: &[Vec<Hit>],
    ) -> Audit {
        let (mut n, mut n_found) = (0, 0);
        for (exact, found) in exact.into_iter().zip(found) {
            n += exact.len();
            n_found += exact.iter().filter(|hit| found.iter().any(|f| f.id == hit.id)).count();
        }
        let shard = |lists: &ShardLists| Shard {
            documents: lists.values.len(),
            lists: lists.n_lists,
            lists_always_scanned: lists.reach.n_first,
            reach: lists.reach.reach,
        };
        Audit {
            recall: if n == 0 { 1.0 } else { n_found as f64 / n as f64 },
            recall_asked: self.params.recall,
            audited_documents: audits.len(),
            neighbours: n,
            shards: lists.iter().map(shard).collect(),
        }
    }
}

/// Runs of `size`, the last one shorter.
fn cut(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.min(n);
    (0..n).step_by(size.max(1)).map(move |first| first..n.min(first + size))
}

fn name(documents: &Range<usize>) -> String {
    format!("documents {} to {}", documents.start, documents.end - 1)
}

/// What `kept` holds for these values, made when it holds that of others.
fn keep<'k, T>(
    kept: &'k mut Option<(Range<usize>, T)>,
    values: &Range<usize>,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<&'k T, Failure> {
    if kept.as_ref().is_none_or(|(of, _)| of != values) {
        // The old one goes first: one at a time is in memory.
        *kept = None;
        *kept = Some((values.clone(), make()?));
    }
    let (_, made) = kept.as_ref().expect("it was made above");
    Ok(made)
}

fn digest_of(made_of: &impl Serialize) -> Digest {
    Digest::of(&serde_json::to_vec(made_of).expect("plain values become JSON"))
}
