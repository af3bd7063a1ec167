//! Top-k inner-product search over int8 rows: exact, or through lists.
//!
//! `dot[q, v] = sum_c query[q, c] * value[v, c]` in exact 32-bit integers, so every instruction set
//! and any number of threads give the same bits; `score[q, v] = (dot[q, v] * scale[v]) * scale[q]`
//! in `f32`, two roundings in this order. For each query the `k` values with the highest score are
//! kept, ordered by score (descending), then by id (ascending). [`Lists`] looks at a part of the
//! values only: those in the lists where hits can be expected.
//!
//! # How
//! Values are packed once into panels of 48 rows, four columns of one row side by side. A register
//! tile of 8 queries x 48 values keeps 384 sums in registers and compares them with the queries'
//! current k-th best score; only what passes leaves the tile, into a small bucket that is cut back
//! to the best `k` when it is full. At most one value in thousands passes once a query has seen a few
//! panels, so selection costs almost nothing.

mod block;
mod cpu;
pub mod cuda;
mod kmeans;
mod lists;
mod rescore;
mod select;
mod speed;
mod values;

use std::cmp::Ordering;

use crate::Pool;
use block::Block;
pub use cpu::Isa;
pub use lists::{Cut, Lists, ListsOptions, Reach};
pub use rescore::{Rescore, dot};
pub use speed::{Speed, speed};
pub use values::Values;

/// Queries of a register tile.
const TILE_QUERIES: usize = 8;
/// Values of a panel.
const PANEL_VALUES: usize = 48;
/// Queries that one work item takes through all values. 256 rows of 1,024 columns fill a quarter of
/// a 1 MiB second-level cache, and the values are read from memory once for all of them.
const WORK_QUERIES: usize = 256;
/// Rows may have at most this many columns, so that `255 * 127 * columns` fits in an `i32`.
pub const COLUMNS_MAX: usize = 65_536;

/// A value found for a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The value's id.
    pub id: u32,
    /// Its score, see the module.
    pub score: f32,
}

/// Best first: score descending, then id ascending.
///
/// Lists of hits over disjoint sets of values can be merged in any order by this relation.
pub fn best_first(a: &Hit, b: &Hit) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

/// Int8 rows with their scales.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `[n, columns]`, each in `-127..=127`.
    pub q: &'a [i8],
    /// `[n]`, not negative.
    pub scales: &'a [f32],
    /// Columns of a row.
    pub columns: usize,
    /// Id of the first row; the others follow.
    pub first_id: u32,
}

impl<'a> Rows<'a> {
    fn n(self) -> usize {
        self.scales.len()
    }

    fn row(self, i: usize) -> &'a [i8] {
        &self.q[i * self.columns..][..self.columns]
    }

    fn check(self) {
        assert!(self.columns > 0 && self.columns <= COLUMNS_MAX, "{} columns", self.columns);
        assert_eq!(self.q.len(), self.n() * self.columns, "one scale a row");
        assert!(u32::try_from(self.n() + self.first_id as usize).is_ok(), "ids are u32");
        assert!(!self.q.contains(&i8::MIN), "-128 is no quantized value");
        assert!(self.scales.iter().all(|s| s.is_finite() && *s >= 0.0), "a scale is not positive");
    }
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// Hits kept for each query, at most.
    pub k: usize,
    /// Hits below this score are left out; `f32::NEG_INFINITY` keeps all.
    pub min_score: f32,
    /// What to do with the value whose id is the query's own.
    pub own: Own,
}

impl Search {
    fn check(self) {
        assert!(self.k > 0, "k is 0");
        assert!(!self.min_score.is_nan(), "the lowest score is NaN");
    }
}

/// What to do with the value whose id is the query's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// It is a value as any other.
    Keep,
    /// It is left out: a document is no neighbour of itself.
    Exclude,
}

/// Finds for each query its best values, best first, on the fastest path of this machine.
///
/// # Panics
/// When a length, a value or a scale is out of its range, the numbers of columns differ, or `k` is 0.
pub fn search(pool: &Pool, queries: Rows<'_>, values: &Values, search: Search) -> Vec<Vec<Hit>> {
    search_on(Isa::detect(), pool, queries, values, search)
}

/// [`search`] on a chosen path.
///
/// # Panics
/// As [`search`], or when this machine lacks `isa`.
pub fn search_on(
    isa: Isa,
    pool: &Pool,
    queries: Rows<'_>,
    values: &Values,
    search: Search,
) -> Vec<Vec<Hit>> {
    search_all(isa, pool, queries, values, search, None)
}

/// [`search`], each query's hits then scored again in `f32`.
///
/// # Panics
/// As [`search`], or when the rows of `rescore` have other shapes.
pub fn search_rescored(
    pool: &Pool,
    queries: Rows<'_>,
    values: &Values,
    search: Search,
    rescore: Rescore<'_>,
) -> Vec<Vec<Hit>> {
    search_all(Isa::detect(), pool, queries, values, search, Some(rescore))
}

fn search_all(
    isa: Isa,
    pool: &Pool,
    queries: Rows<'_>,
    values: &Values,
    search: Search,
    rescore: Option<Rescore<'_>>,
) -> Vec<Vec<Hit>> {
    queries.check();
    search.check();
    assert!(isa.is_available(), "this machine has no {isa:?}");
    assert_eq!(queries.columns, values.columns(), "queries and values differ in columns");
    let mut found = vec![Vec::new(); queries.n()];
    pool.for_chunks(&mut found, WORK_QUERIES, |work, found| {
        let first = work * WORK_QUERIES;
        let members: Vec<u32> = (0..found.len()).map(|i| (first + i) as u32).collect();
        let mut block = Block::new(isa, queries, &members, search);
        let all: Vec<u32> = (0..found.len() as u32).collect();
        for panel in 0..values.n_panels() {
            block.scan(values.panel(panel), &all);
        }
        found.clone_from_slice(&finish(pool, block, &members, rescore));
    });
    found
}

/// The final hits of a block's queries.
fn finish(
    pool: &Pool,
    block: Block,
    members: &[u32],
    rescore: Option<Rescore<'_>>,
) -> Vec<Vec<Hit>> {
    let mut hits = block.finish();
    if let Some(rescore) = rescore {
        let parts = members.chunks(rescore::BLOCK_QUERIES);
        for (members, hits) in parts.zip(hits.chunks_mut(rescore::BLOCK_QUERIES)) {
            rescore.apply(pool.isa(), members, hits);
        }
    }
    hits
}

/// Scores the hits of all queries again, as [`search_rescored`] does; for hits that a device found.
///
/// # Panics
/// When the rows of `rescore` have other shapes.
pub fn rescore_all(pool: &Pool, hits: &mut [Vec<Hit>], rescore: Rescore<'_>) {
    pool.for_chunks(hits, rescore::BLOCK_QUERIES, |block, hits| {
        let first = block * rescore::BLOCK_QUERIES;
        let members: Vec<u32> = (first..first + hits.len()).map(|i| i as u32).collect();
        rescore.apply(pool.isa(), &members, hits);
    });
}

/// The score of the module's definition.
#[inline]
fn score(dot: i32, value_scale: f32, query_scale: f32) -> f32 {
    (dot as f32 * value_scale) * query_scale
}

/// The definition of [`search`]: every inner product, sorted.
///
/// # Panics
/// As [`search`].
pub fn reference(queries: Rows<'_>, values: Rows<'_>, search: Search) -> Vec<Vec<Hit>> {
    queries.check();
    values.check();
    let of_query = |i: usize| {
        let own = queries.first_id + i as u32;
        let mut hits: Vec<Hit> = (0..values.n())
            .map(|j| {
                let dot = queries
                    .row(i)
                    .iter()
                    .zip(values.row(j))
                    .map(|(&a, &b)| i32::from(a) * i32::from(b))
                    .sum();
                let id = values.first_id + j as u32;
                Hit { id, score: score(dot, values.scales[j], queries.scales[i]) }
            })
            .filter(|hit| hit.score >= search.min_score)
            .filter(|hit| search.own == Own::Keep || hit.id != own)
            .collect();
        hits.sort_by(best_first);
        hits.truncate(search.k);
        hits
    };
    (0..queries.n()).map(of_query).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Philox;

    fn rows(seed: u64, n: usize, columns: usize, q_max: u64) -> (Vec<i8>, Vec<f32>) {
        let rng = Philox::new(seed, "int8 rows");
        let q = (0..(n * columns) as u64)
            .map(|i| (rng.below(i, 2 * q_max + 1) as i64 - q_max as i64) as i8)
            .collect();
        let scales = (0..n as u64).map(|i| [0.01, 0.02, 0.0, 0.015][rng.below(i, 4) as usize]);
        (q, scales.collect())
    }

    /// Small magnitudes and few scales make many equal scores, so ties are decided by id.
    #[test]
    fn every_path_equals_the_reference() {
        for (n_queries, n_values, columns, q_max, k) in [
            (1, 1, 1, 127, 1),
            (9, 47, 3, 1, 5),
            (8, 48, 64, 127, 200),
            (17, 49, 65, 2, 7),
            (300, 500, 33, 1, 3),
            (5, 1000, 130, 127, 10),
        ] {
            let (q, q_scales) = rows(1, n_queries, columns, q_max);
            let (v, v_scales) = rows(2, n_values, columns, q_max);
            let queries = Rows { q: &q, scales: &q_scales, columns, first_id: 7 };
            let values = Rows { q: &v, scales: &v_scales, columns, first_id: 3 };
            for min_score in [f32::NEG_INFINITY, 0.0, 0.01] {
                for own in [Own::Keep, Own::Exclude] {
                    let search = Search { k, min_score, own };
                    let expected = reference(queries, values, search);
                    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                        for threads in [1, 2, 3] {
                            let pool = Pool::new(threads);
                            let packed = Values::pack(&pool, values);
                            let found = search_on(isa, &pool, queries, &packed, search);
                            assert_eq!(found, expected, "{isa:?}, {columns} columns, {search:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn extreme_values_do_not_overflow() {
        let columns = 4096;
        let (ones, minus) = (vec![127_i8; columns], vec![-127_i8; columns]);
        let rows = |q| Rows { q, scales: &[1.0], columns, first_id: 0 };
        let expected = (127 * 127 * columns) as f32;
        let search = Search { k: 1, min_score: f32::NEG_INFINITY, own: Own::Keep };
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let pool = Pool::new(1);
            for (query, value, score) in [(&ones, &minus, -expected), (&minus, &minus, expected)] {
                let packed = Values::pack(&pool, rows(value));
                let found = search_on(isa, &pool, rows(query), &packed, search);
                assert_eq!(found, [[Hit { id: 0, score }]], "{isa:?}");
            }
        }
    }

    /// Shards of values, searched apart and merged in any order, give what one search gives.
    #[test]
    fn merging_shards_gives_the_whole() {
        let (q, scales) = rows(4, 150, 16, 3);
        let all = Rows { q: &q, scales: &scales, columns: 16, first_id: 0 };
        let search = Search { k: 9, min_score: f32::NEG_INFINITY, own: Own::Exclude };
        let whole = reference(all, all, search);
        let pool = Pool::new(2);
        let mut merged: Vec<Vec<Hit>> = vec![Vec::new(); 150];
        for (from, to) in [(100, 150), (0, 37), (37, 100)] {
            let shard = Rows {
                q: &q[from * 16..to * 16],
                scales: &scales[from..to],
                columns: 16,
                first_id: from as u32,
            };
            let found = super::search(&pool, all, &Values::pack(&pool, shard), search);
            merged.iter_mut().zip(found).for_each(|(merged, found)| merged.extend(found));
        }
        for merged in &mut merged {
            merged.sort_by(best_first);
            merged.truncate(9);
        }
        assert_eq!(merged, whole);
    }
}
