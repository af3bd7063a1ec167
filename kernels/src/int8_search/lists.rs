//! Values in lists, of which a query looks at those where hits can be expected.
//!
//! Spherical k-means cuts the values into lists; lists are numbered so that similar ones follow each
//! other, and stored one after the other. A block of queries with similar nearest lists takes three
//! steps. It scores every list's direction. It scans the nearest lists of each query, its own first,
//! which gives the query a threshold: the score of its k-th best hit so far. Then it scans the lists
//! where a hit above the threshold can be expected:
//!
//! `mean score of the list + reach * spread of the list >= threshold`
//!
//! so a query amid many neighbours looks at few lists and a query at the rim of several at many.
//! `reach` is read off exact results of sampled queries ([`Lists::calibrate`]): it is the smallest
//! with which the asked share of their neighbours lies in scanned lists. What a query finds depends
//! on that query and the lists only, never on the block, the order or the number of threads.
//!
//! # Source
//! The inverted file is that of Jégou, Douze and Schmid, "Product quantization for nearest neighbor
//! search", 2011; the rule for stopping is our own.

use std::ops::Range;

use super::block::Block;
use super::cpu::Isa;
use super::kmeans::{self, Centroids};
use super::values::{NO_ROW, Values};
use super::{Hit, PANEL_VALUES, Rescore, Rows, Search, finish, search_all};
use crate::Pool;
use crate::philox::Philox;

/// Queries that take the steps together. Their panels come from memory once for all of them.
const BLOCK_QUERIES: usize = 1024;

/// How values are cut into lists.
#[derive(Clone, Copy, Debug)]
pub struct ListsOptions {
    /// Lists; at most one a value.
    pub n_lists: usize,
    /// Values a list that k-means looks at.
    pub sample_per_list: usize,
    /// Rounds of k-means.
    pub n_rounds: usize,
    /// Seed of the sample.
    pub seed: u64,
}

impl ListsOptions {
    /// Three times the square root of the number of values, as lists: more than the customary square
    /// root cost little here, where scoring all directions is a product of matrices, and save scans.
    pub fn for_values(n_values: usize) -> Self {
        let n_lists = (3.0 * (n_values as f64).sqrt()).ceil() as usize;
        Self {
            n_lists: n_lists.clamp(1, n_values.max(1)),
            sample_per_list: 32,
            n_rounds: 4,
            seed: 0,
        }
    }
}

/// How far queries look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Lists that every query scans: the nearest ones.
    pub n_first: usize,
    /// See the module.
    pub reach: f32,
}

/// Values in lists.
pub struct Lists {
    values: Values,
    /// Panels of each list.
    panels: Vec<Range<usize>>,
    /// Directions of the lists.
    directions: Values,
    /// Length of the mean of each list's values.
    mean_norms: Vec<f32>,
    /// Root mean square distance of each list's values from their mean.
    spreads: Vec<f32>,
    /// List of each value.
    assigned: Vec<u32>,
    first_id: u32,
}

/// How values are cut into lists: what takes long to find, and little room to keep.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// Directions of the lists in int8, `[lists, columns]`.
    pub directions: Vec<i8>,
    /// The scale of each direction.
    pub scales: Vec<f32>,
    /// Numbers of the directions, so that similar ones follow each other.
    pub order: Vec<u32>,
    /// The place in `order` of the list of each value.
    pub assigned: Vec<u32>,
}

impl Cut {
    /// Cuts rows, of length one or zero, into lists.
    ///
    /// # Panics
    /// When there are no rows, or a length, a value or a scale is out of its range.
    pub fn find(pool: &Pool, rows: Rows<'_>, options: ListsOptions) -> Self {
        assert!(rows.n() > 0, "no values to cut into lists");
        let n = options.n_lists.clamp(1, rows.n());
        let n_sample = (n * options.sample_per_list.max(1)).min(rows.n());
        let sample = sample(rows.n(), n_sample, options.seed);
        let centroids = Centroids::find(pool, rows, &sample, n, options.n_rounds, options.seed);
        let order = chain(pool, centroids.rows());
        let directions = Values::pack_slots(pool, centroids.rows(), order.clone());
        // `directions` carries the centroids' numbers as ids; places in the chain are wanted.
        let place = places(&order);
        let nearest = kmeans::nearest(pool, rows, &directions);
        let assigned = nearest.into_iter().map(|c| place[c as usize]).collect();
        let (directions, scales) = centroids.into_parts();
        Self { directions, scales, order, assigned }
    }
}

/// The place of each number in an order of all of them.
fn places(order: &[u32]) -> Vec<u32> {
    let mut places = vec![0_u32; order.len()];
    order.iter().enumerate().for_each(|(at, &number)| places[number as usize] = at as u32);
    places
}

impl Lists {
    /// Cuts rows, of length one or zero, into lists.
    ///
    /// # Panics
    /// As [`Cut::find`].
    pub fn build(pool: &Pool, rows: Rows<'_>, options: ListsOptions) -> Self {
        Self::new(pool, rows, &Cut::find(pool, rows, options))
    }

    /// Puts the rows that were cut into their lists.
    ///
    /// # Panics
    /// When the cut is not of these rows, or a length, a value or a scale is out of its range.
    pub fn new(pool: &Pool, rows: Rows<'_>, cut: &Cut) -> Self {
        let n = cut.order.len();
        assert_eq!(cut.assigned.len(), rows.n(), "a list for each row");
        assert!(cut.assigned.iter().all(|&list| (list as usize) < n), "lists are numbered");
        let centroids =
            Rows { q: &cut.directions, scales: &cut.scales, columns: rows.columns, first_id: 0 };
        let directions = Values::pack_slots(pool, centroids, cut.order.clone());
        let assigned = cut.assigned.clone();
        let (mean_norms, spreads) = moments(pool, rows, &assigned, n);
        let (mut panels, mut slots) = (Vec::with_capacity(n), Vec::new());
        for members in kmeans::members(&assigned, n) {
            let from = slots.len() / PANEL_VALUES;
            slots.extend(members);
            slots.resize(slots.len().next_multiple_of(PANEL_VALUES), NO_ROW);
            panels.push(from..slots.len() / PANEL_VALUES);
        }
        let values = Values::pack_slots(pool, rows, slots);
        Self { values, panels, directions, mean_norms, spreads, assigned, first_id: rows.first_id }
    }

    /// Lists.
    pub fn n_lists(&self) -> usize {
        self.panels.len()
    }

    /// The list of each value: what [`Self::nearest`] gives for the values as queries.
    pub fn assigned(&self) -> &[u32] {
        &self.assigned
    }

    /// The nearest list of each query.
    ///
    /// # Panics
    /// When a length, a value or a scale is out of its range, or the numbers of columns differ.
    pub fn nearest(&self, pool: &Pool, queries: Rows<'_>) -> Vec<u32> {
        let place = places(&self.direction_ids().collect::<Vec<_>>());
        let nearest = kmeans::nearest(pool, queries, &self.directions);
        nearest.into_iter().map(|c| place[c as usize]).collect()
    }

    fn direction_ids(&self) -> impl Iterator<Item = u32> {
        let panels = (0..self.directions.n_panels()).map(|p| self.directions.panel(p));
        panels.flat_map(|panel| panel.ids.iter().copied()).take(self.n_lists())
    }

    /// Searches all values.
    ///
    /// # Panics
    /// As [`super::search`].
    pub fn search_exact(
        &self,
        pool: &Pool,
        queries: Rows<'_>,
        search: Search,
        rescore: Option<Rescore<'_>>,
    ) -> Vec<Vec<Hit>> {
        search_all(Isa::detect(), pool, queries, &self.values, search, rescore)
    }

    /// Searches the lists within reach. `nearest` is what [`Self::nearest`] gives. `goes_on` is asked
    /// now and then; once it says no, what is left of the result is empty.
    ///
    /// # Panics
    /// As [`super::search`], or when `nearest` has another length than `queries`.
    pub fn search(
        &self,
        pool: &Pool,
        (queries, nearest): (Rows<'_>, &[u32]),
        reach: Reach,
        (search, rescore): (Search, Option<Rescore<'_>>),
        goes_on: &(dyn Fn() -> bool + Sync),
    ) -> Vec<Vec<Hit>> {
        let queries = (queries, nearest);
        self.search_on(Isa::detect(), pool, queries, reach, (search, rescore), goes_on)
    }

    /// [`Self::search`] on a chosen path.
    ///
    /// # Panics
    /// As [`Self::search`], or when this machine lacks `isa`.
    pub fn search_on(
        &self,
        isa: Isa,
        pool: &Pool,
        (queries, nearest): (Rows<'_>, &[u32]),
        reach: Reach,
        (search, rescore): (Search, Option<Rescore<'_>>),
        goes_on: &(dyn Fn() -> bool + Sync),
    ) -> Vec<Vec<Hit>> {
        assert!(isa.is_available(), "this machine has no {isa:?}");
        assert_eq!(nearest.len(), queries.n(), "one nearest list a query");
        queries.check();
        search.check();
        let mut order: Vec<u32> = (0..queries.n() as u32).collect();
        order.sort_unstable_by_key(|&query| (nearest[query as usize], query));
        let n_blocks = order.len().div_ceil(BLOCK_QUERIES);
        let mut blocks: Vec<Vec<Vec<Hit>>> = vec![Vec::new(); n_blocks];
        pool.for_chunks(&mut blocks, 1, |b, found| {
            let members = &order[b * BLOCK_QUERIES..];
            let members = &members[..members.len().min(BLOCK_QUERIES)];
            if !goes_on() {
                found[0] = vec![Vec::new(); members.len()];
                return;
            }
            let mut walk = Walk::start(self, isa, queries, members, search, reach.n_first);
            walk.reach(reach.reach);
            found[0] = finish(pool, walk.block, members, rescore);
        });
        let mut found = vec![Vec::new(); queries.n()];
        for (query, hits) in order.into_iter().zip(blocks.into_iter().flatten()) {
            found[query as usize] = hits;
        }
        found
    }

    /// The smallest reach with which a share `recall` of the hits in `exact`, results of
    /// [`Self::search_exact`] for the same queries, lies in lists that a query scans.
    ///
    /// # Panics
    /// As [`Self::search`].
    pub fn calibrate(
        &self,
        pool: &Pool,
        queries: Rows<'_>,
        exact: &[Vec<Hit>],
        search: Search,
        (n_first, recall): (usize, f64),
    ) -> Reach {
        assert_eq!(exact.len(), queries.n(), "one list of hits a query");
        let mut needs: Vec<Vec<f32>> = vec![Vec::new(); queries.n().div_ceil(BLOCK_QUERIES)];
        pool.for_chunks(&mut needs, 1, |b, needs| {
            let first = b * BLOCK_QUERIES;
            let end = (first + BLOCK_QUERIES).min(queries.n());
            let members: Vec<u32> = (first as u32..end as u32).collect();
            let walk = Walk::start(self, Isa::detect(), queries, &members, search, n_first);
            for (query, exact) in exact[first..end].iter().enumerate() {
                let lists =
                    exact.iter().map(|hit| self.assigned[(hit.id - self.first_id) as usize]);
                needs[0].extend(lists.map(|list| walk.need(query, list as usize)));
            }
        });
        let mut needs: Vec<f32> = needs.into_iter().flatten().collect();
        needs.sort_unstable_by(f32::total_cmp);
        let place = (recall * needs.len() as f64).ceil() as usize;
        let reach = match place.clamp(1, needs.len().max(1)) {
            _ if needs.is_empty() => f32::INFINITY,
            place => needs[place - 1],
        };
        // The rule compares rounded sums; a hair more keeps the list that decided. Without end there
        // is nothing to add to: the first lists are enough, or no list may be left out.
        let hair = if reach.is_finite() { reach.abs() * 1e-5 + 1e-6 } else { 0.0 };
        Reach { n_first, reach: reach + hair }
    }
}

/// A block of queries on its way through the lists.
struct Walk<'a> {
    lists: &'a Lists,
    block: Block,
    /// Scores of the directions, `[query, list]`, padded to whole panels.
    scores: Vec<f32>,
    stride: usize,
    /// The lists that each query has scanned, `[query, n_first]`.
    first: Vec<u32>,
    n_first: usize,
    thresholds: Vec<f32>,
}

impl<'a> Walk<'a> {
    /// Scores the directions and scans each query's nearest lists.
    fn start(
        lists: &'a Lists,
        isa: Isa,
        queries: Rows<'_>,
        members: &[u32],
        search: Search,
        n_first: usize,
    ) -> Self {
        let block = Block::new(isa, queries, members, search);
        let n_first = n_first.clamp(1, lists.n_lists());
        let stride = lists.directions.n_panels() * PANEL_VALUES;
        let mut scores = vec![0.0; members.len() * stride];
        for panel in 0..lists.directions.n_panels() {
            let first = panel * PANEL_VALUES;
            block.score(lists.directions.panel(panel), &mut scores, stride, first);
        }
        let mut first = Vec::with_capacity(members.len() * n_first);
        for scores in scores.chunks_exact(stride) {
            nearest_lists(&scores[..lists.n_lists()], n_first, &mut first);
        }
        let mut walk = Self {
            lists,
            block,
            scores,
            stride,
            first,
            n_first,
            thresholds: vec![search.min_score; members.len()],
        };
        // A query's own list first: it raises the threshold for all others.
        for ranks in [0..1, 1..n_first] {
            let mut wanted = vec![Vec::new(); lists.n_lists()];
            for (query, first) in walk.first.chunks_exact(n_first).enumerate() {
                for &list in &first[ranks.clone()] {
                    wanted[list as usize].push(query as u32);
                }
            }
            walk.scan(&wanted);
        }
        for (query, threshold) in walk.thresholds.iter_mut().enumerate() {
            *threshold = walk.block.selector(query).kth_score().unwrap_or(*threshold);
        }
        walk
    }

    /// Scans what else lies within reach.
    fn reach(&mut self, reach: f32) {
        let lists = self.lists;
        let margins: Vec<f32> = lists.spreads.iter().map(|spread| reach * spread).collect();
        let mut wanted = vec![Vec::new(); lists.n_lists()];
        for (query, &threshold) in self.thresholds.iter().enumerate() {
            let scores = &self.scores[query * self.stride..];
            let means = scores.iter().zip(&lists.mean_norms).map(|(score, norm)| score * norm);
            for ((wanted, mean), &margin) in wanted.iter_mut().zip(means).zip(&margins) {
                // As `need`, without its division.
                if threshold - mean <= margin {
                    wanted.push(query as u32);
                }
            }
            // What has been scanned is not scanned again.
            for &list in &self.first[query * self.n_first..][..self.n_first] {
                wanted[list as usize].pop_if(|last| *last == query as u32);
            }
        }
        self.scan(&wanted);
    }

    /// The reach with which a query scans a list; that of a list it has scanned is the lowest.
    #[inline]
    fn need(&self, query: usize, list: usize) -> f32 {
        if self.first[query * self.n_first..][..self.n_first].contains(&(list as u32)) {
            return f32::NEG_INFINITY;
        }
        let mean = self.scores[query * self.stride + list] * self.lists.mean_norms[list];
        (self.thresholds[query] - mean) / self.lists.spreads[list]
    }

    fn scan(&mut self, wanted: &[Vec<u32>]) {
        for (panels, wanted) in self.lists.panels.iter().zip(wanted) {
            if !wanted.is_empty() {
                for panel in panels.clone() {
                    self.block.scan(self.lists.values.panel(panel), wanted);
                }
            }
        }
    }
}

/// Appends the `n` lists with the highest scores, best first; of equal scores the lower number.
fn nearest_lists(scores: &[f32], n: usize, nearest: &mut Vec<u32>) {
    let from = nearest.len();
    let mut worst = f32::NEG_INFINITY;
    for (list, &score) in scores.iter().enumerate() {
        let found = nearest.len() - from;
        if found == n && score <= worst {
            continue;
        }
        let at = nearest[from..].partition_point(|&other| scores[other as usize] >= score);
        nearest.insert(from + at, list as u32);
        nearest.truncate(from + n);
        worst = scores[nearest[nearest.len() - 1] as usize];
    }
}

/// `n_sample` distinct numbers below `n`, in random order.
fn sample(n: usize, n_sample: usize, seed: u64) -> Vec<u32> {
    let rng = Philox::new(seed, "k-means sample");
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in 0..n_sample {
        let j = i as u64 + rng.below(i as u64, (n - i) as u64);
        order.swap(i, j as usize);
    }
    order.truncate(n_sample);
    order
}

/// An order in which each direction is followed by the most similar one that is left.
fn chain(pool: &Pool, rows: Rows<'_>) -> Vec<u32> {
    let n = rows.n();
    let packed = Values::pack(pool, rows);
    let all: Vec<u32> = (0..n as u32).collect();
    let stride = packed.n_panels() * PANEL_VALUES;
    let keep = Search { k: 1, min_score: f32::NEG_INFINITY, own: super::Own::Keep };
    let mut scores = vec![0.0; n * stride];
    pool.for_chunks(&mut scores, stride * BLOCK_QUERIES, |b, scores| {
        let members = &all[b * BLOCK_QUERIES..][..scores.len() / stride];
        let block = Block::new(Isa::detect(), rows, members, keep);
        for panel in 0..packed.n_panels() {
            block.score(packed.panel(panel), scores, stride, panel * PANEL_VALUES);
        }
    });
    let mut left: Vec<u32> = all;
    let mut order = vec![left.remove(0)];
    while !left.is_empty() {
        let last = order[order.len() - 1] as usize;
        let row = &scores[last * stride..][..n];
        let mut best = 0;
        for (at, &c) in left.iter().enumerate() {
            // Lower numbers come first in `left` only until the first removal, so ties are decided
            // by number.
            let (score, best_score) = (row[c as usize], row[left[best] as usize]);
            if score > best_score || (score >= best_score && c < left[best]) {
                best = at;
            }
        }
        order.push(left.swap_remove(best));
    }
    order
}

/// Length of the mean, and root mean square distance from it, of each list's rows.
fn moments(pool: &Pool, rows: Rows<'_>, assigned: &[u32], n: usize) -> (Vec<f32>, Vec<f32>) {
    let sums = kmeans::sums(pool, rows, assigned, n);
    let mut counts = vec![0_u32; n];
    for &list in assigned {
        counts[list as usize] += 1;
    }
    let norm = |(sum, &count): (&[f32], &u32)| {
        let square: f64 = sum.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        (square.sqrt() / f64::from(count.max(1))).min(1.0)
    };
    let norms: Vec<f64> = sums.chunks_exact(rows.columns).zip(&counts).map(norm).collect();
    // Rows have length one; a list of equal rows still has the spread of rounding.
    let spreads = norms.iter().map(|norm| (1.0 - norm * norm).max(1e-6).sqrt() as f32).collect();
    (norms.iter().map(|&norm| norm as f32).collect(), spreads)
}

#[cfg(test)]
mod tests;
