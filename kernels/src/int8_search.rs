//! Exact top-k inner-product search over int8 rows.
//!
//! `dot[q, v] = sum_c query[q, c] * value[v, c]` in exact 32-bit integers, so every instruction set
//! and any number of threads give the same bits; `score[q, v] = (dot[q, v] * scale[v]) * scale[q]`
//! in `f32`, two roundings in this order. For each query the `k` values with the highest score are
//! kept, ordered by score (descending), then by id (ascending).
//!
//! # How
//! Values are packed once into panels of 48 rows, four columns of one row side by side. A register
//! tile of 8 queries x 48 values keeps 384 sums in registers. Each finished tile is compared with
//! the queries' current k-th best score while it is still in cache; only what passes is appended to a
//! small bucket, which is cut back to the best `k` when it is full. At most one value in thousands
//! passes once a query has seen a few panels, so selection costs almost nothing.

mod cpu;
pub mod cuda;

use std::cmp::Ordering;

use crate::Pool;
pub use cpu::Isa;

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

/// What to do with the value whose id is the query's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// It is a value as any other.
    Keep,
    /// It is left out: a document is no neighbour of itself.
    Exclude,
}

/// Values packed for [`search`].
pub struct Values {
    /// `[n_panels, n_groups, 3]` lanes; lane `j` of group `g` holds columns `4g..4g + 4` of values
    /// `16j..16j + 16` of the panel, offset by 128 into `u8`.
    lanes: Vec<cpu::Lane>,
    /// Padded to whole panels with NaN, which is above no threshold.
    scales: Vec<f32>,
    n_groups: usize,
    columns: usize,
    first_id: u32,
}

impl Values {
    /// Packs rows.
    ///
    /// # Panics
    /// When a length, a value or a scale is out of its range.
    pub fn pack(pool: &Pool, rows: Rows<'_>) -> Self {
        rows.check();
        let n_groups = rows.columns.div_ceil(4);
        let n_panels = rows.n().div_ceil(PANEL_VALUES);
        let mut scales = rows.scales.to_vec();
        scales.resize(n_panels * PANEL_VALUES, f32::NAN);
        let mut lanes = vec![cpu::Lane([128; 64]); n_panels * n_groups * 3];
        pool.for_chunks(&mut lanes, n_groups * 3, |panel, lanes| {
            let first = panel * PANEL_VALUES;
            for i in 0..PANEL_VALUES.min(rows.n() - first) {
                for (column, &value) in rows.row(first + i).iter().enumerate() {
                    let lane = &mut lanes[column / 4 * 3 + i / 16];
                    // Offset binary: -127..=127 becomes 1..=255.
                    lane.0[i % 16 * 4 + column % 4] = (value as u8) ^ 0x80;
                }
            }
        });
        Self { lanes, scales, n_groups, columns: rows.columns, first_id: rows.first_id }
    }
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
    queries.check();
    assert!(isa.is_available(), "this machine has no {isa:?}");
    assert_eq!(queries.columns, values.columns, "queries and values differ in columns");
    assert!(search.k > 0, "k is 0");
    assert!(!search.min_score.is_nan(), "the lowest score is NaN");
    let mut found = vec![Vec::new(); queries.n()];
    pool.for_chunks(&mut found, WORK_QUERIES, |work, found| {
        search_work(isa, queries, work * WORK_QUERIES, values, search, found);
    });
    found
}

/// Takes up to [`WORK_QUERIES`] queries from `first` through all values.
fn search_work(
    isa: Isa,
    queries: Rows<'_>,
    first: usize,
    values: &Values,
    search: Search,
    found: &mut [Vec<Hit>],
) {
    let n_groups = values.n_groups;
    let n_tiles = found.len().div_ceil(TILE_QUERIES);
    // Columns and queries are padded with zeros, which add nothing to a sum.
    let mut words = vec![[0_i8; 4]; n_tiles * TILE_QUERIES * n_groups];
    let mut start = vec![0_i32; n_tiles * TILE_QUERIES];
    for i in 0..found.len() {
        let row = queries.row(first + i);
        for (column, &value) in row.iter().enumerate() {
            words[i * n_groups + column / 4][column % 4] = value;
        }
        // Values are offset by 128: sum q * (v + 128) exceeds the inner product by 128 * sum q.
        start[i] = -128 * row.iter().map(|&q| i32::from(q)).sum::<i32>();
    }
    let mut selectors: Vec<Selector> =
        (0..found.len()).map(|_| Selector::new(search.k, search.min_score)).collect();
    let mut dots = [[0_i32; PANEL_VALUES]; TILE_QUERIES];
    for (panel, lanes) in values.lanes.chunks_exact(n_groups * 3).enumerate() {
        let first_value = panel * PANEL_VALUES;
        let scales: &[f32; PANEL_VALUES] =
            values.scales[first_value..].first_chunk().expect("scales are padded to whole panels");
        for tile in 0..n_tiles {
            let from = tile * TILE_QUERIES;
            let start = start[from..].first_chunk().expect("queries are padded to whole tiles");
            cpu::dots(
                isa,
                &words[from * n_groups..][..TILE_QUERIES * n_groups],
                lanes,
                start,
                &mut dots,
            );
            let selectors = selectors[from..].iter_mut().take(TILE_QUERIES);
            for ((i, selector), dots) in selectors.enumerate().zip(&dots) {
                let query = first + from + i;
                let scale = queries.scales[query];
                let own = queries.first_id + query as u32;
                let mut passing = cpu::above(isa, dots, scales, scale, selector.threshold);
                while passing != 0 {
                    let c = passing.trailing_zeros() as usize;
                    passing &= passing - 1;
                    let id = values.first_id + (first_value + c) as u32;
                    if search.own == Own::Keep || id != own {
                        selector.push(Hit { id, score: score(dots[c], scales[c], scale) });
                    }
                }
            }
        }
    }
    for (found, selector) in found.iter_mut().zip(selectors) {
        *found = selector.finish();
    }
}

/// The score of the module's definition.
#[inline]
fn score(dot: i32, value_scale: f32, query_scale: f32) -> f32 {
    (dot as f32 * value_scale) * query_scale
}

/// The inner product of two `f32` rows, summed in sixteen lanes in a fixed order, so that it has the
/// same bits everywhere; for rescoring what [`search`] found.
///
/// # Panics
/// When the rows differ in length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "rows differ in length");
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0_f32; 16];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += a * b;
    }
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

/// The best hits of one query so far.
struct Selector {
    bucket: Vec<Hit>,
    k: usize,
    /// Only what is above can still enter.
    threshold: f32,
}

impl Selector {
    fn new(k: usize, min_score: f32) -> Self {
        Self { bucket: Vec::new(), k, threshold: min_score.next_down() }
    }

    /// Adds a hit above the threshold. Ids arrive in ascending order, so a later hit whose score
    /// equals the k-th best would rank behind it: a strict threshold loses nothing.
    fn push(&mut self, hit: Hit) {
        // A selection costs about one pass, so twice `k` makes it cheap for each entry.
        if self.bucket.len() >= 2 * self.k + PANEL_VALUES {
            self.shrink();
            if hit.score <= self.threshold {
                return;
            }
        }
        self.bucket.push(hit);
    }

    fn shrink(&mut self) {
        if self.bucket.len() > self.k {
            let (_, last, _) = self.bucket.select_nth_unstable_by(self.k - 1, best_first);
            self.threshold = last.score;
            self.bucket.truncate(self.k);
        }
    }

    fn finish(mut self) -> Vec<Hit> {
        self.shrink();
        self.bucket.sort_unstable_by(best_first);
        self.bucket.shrink_to_fit();
        self.bucket
    }
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
