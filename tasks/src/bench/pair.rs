//! `sbp bench pair`: all neighbours of generated embeddings, through lists and exactly.

use kernels::int8_search::{
    self, Hit, Lists, ListsOptions, Own, Rescore, Rows, Search, Values, best_first,
};
use kernels::matmul::{self, Accumulate};
use kernels::philox::Philox;
use kernels::{Pool, quantize};

use super::{Figures, rounded, timed, vectors};
use crate::pair::{N_FIRST, RECALL_SLACK};

/// Values that the audit multiplies at once.
const AUDIT_VALUES: usize = 4096;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rows, each a query and a value.
    pub n: usize,
    /// Components of a row.
    pub dim: usize,
    /// Neighbours of a row.
    pub k: usize,
    /// Share of the neighbours that the search through lists is asked to find.
    pub recall: f64,
    /// Queries that calibrate the search, and as many others that audit it.
    pub n_sample: usize,
    /// Threads.
    pub n_threads: usize,
    /// Seed of the rows.
    pub seed: u64,
    /// Whether the exact search of all rows is measured too.
    pub exact: bool,
}

/// Runs the bench.
pub fn measure(options: Options) -> Figures {
    let Options { n, dim, k, .. } = options;
    let pool = Pool::new(options.n_threads);
    let rows = vectors::generate(&pool, n, dim, options.seed);
    let picks = Philox::new(options.seed, "sample").permutation(n);
    let audited: Vec<u32> =
        picks.iter().rev().take(options.n_sample.min(n)).map(|&i| i as u32).collect();
    let truth = Truth::of(&pool, &rows, dim, k, &audited);

    let (found, cpu_s, wall_s) = timed(|| through_lists(&pool, &rows, &picks, options));
    let speed = int8_search::speed(5);
    let mut figures = vec![
        ("n", n as f64),
        ("dim", dim as f64),
        ("k", k as f64),
        ("threads", options.n_threads as f64),
        ("recall", truth.recall(&found.hits)),
        ("audited_queries", audited.len() as f64),
        ("cpu_s", rounded(cpu_s)),
        ("wall_s", rounded(wall_s)),
        ("kmeans_s", rounded(found.lists_s)),
        ("calibrate_s", rounded(found.calibrate_s)),
        ("search_s", rounded(found.search_s)),
        ("n_lists", found.n_lists as f64),
        ("tile_gops", rounded(speed.tile)),
    ];
    if let Some(peak) = speed.peak {
        figures.push(("peak_gops", rounded(peak)));
        figures.push(("tile_of_peak", rounded(speed.tile / peak)));
    }
    if options.exact {
        drop(found);
        let (hits, cpu_s, wall_s) = timed(|| exactly(&pool, &rows, options));
        figures.push(("exact_recall", truth.recall(&hits)));
        figures.push(("exact_cpu_s", rounded(cpu_s)));
        figures.push(("exact_wall_s", rounded(wall_s)));
        figures.push(("exact_gops", rounded(2e-9 * (n * n * dim) as f64 / cpu_s)));
    }
    figures
}

struct Found {
    hits: Vec<Vec<Hit>>,
    n_lists: usize,
    lists_s: f64,
    calibrate_s: f64,
    search_s: f64,
}

fn search_of(rows: &[f32], options: Options) -> (Search, Rescore<'_>) {
    let rescore = Rescore {
        queries: rows,
        values: rows,
        first_value_id: 0,
        columns: options.dim,
        k: options.k,
        min_score: -1.0,
    };
    let search = Search { k: options.k, min_score: f32::NEG_INFINITY, own: Own::Exclude };
    (rescore.candidates(search, 1.0), rescore)
}

fn quantized(pool: &Pool, rows: &[f32], dim: usize) -> (Vec<i8>, Vec<f32>) {
    let (mut q, mut scales) = (vec![0; rows.len()], vec![0.0; rows.len() / dim]);
    quantize::rows(pool, rows, dim, &mut q, &mut scales);
    (q, scales)
}

/// Everything that a search through lists takes, from `f32` rows to `f32` scores.
fn through_lists(pool: &Pool, rows: &[f32], picks: &[usize], options: Options) -> Found {
    let dim = options.dim;
    let (q, scales) = quantized(pool, rows, dim);
    let all = Rows { q: &q, scales: &scales, columns: dim, first_id: 0 };
    let (search, rescore) = search_of(rows, options);
    let cut = ListsOptions { seed: options.seed, ..ListsOptions::for_values(options.n) };
    let (lists, lists_s, _) = timed(|| Lists::build(pool, all, cut));
    let aim = (options.recall + RECALL_SLACK).min(1.0);
    let sample = &picks[..options.n_sample.min(options.n)];
    let (reach, calibrate_s, _) = timed(|| {
        let gathered: Vec<i8> =
            sample.iter().flat_map(|&i| q[i * dim..][..dim].iter().copied()).collect();
        let scales: Vec<f32> = sample.iter().map(|&i| scales[i]).collect();
        // Their own rows are found too, first of all, and in the first list.
        let queries = Rows { q: &gathered, scales: &scales, columns: dim, first_id: 0 };
        let keep = |k: usize| Search { k: k + 1, own: Own::Keep, ..search };
        let exact = lists.search_exact(pool, queries, keep(options.k), None);
        lists.calibrate(pool, queries, &exact, keep(search.k), (N_FIRST, aim))
    });
    let (hits, search_s, _) = timed(|| {
        lists.search(pool, (all, lists.assigned()), reach, (search, Some(rescore)), &|| true)
    });
    Found { hits, n_lists: lists.n_lists(), lists_s, calibrate_s, search_s }
}

fn exactly(pool: &Pool, rows: &[f32], options: Options) -> Vec<Vec<Hit>> {
    let (q, scales) = quantized(pool, rows, options.dim);
    let all = Rows { q: &q, scales: &scales, columns: options.dim, first_id: 0 };
    let (search, rescore) = search_of(rows, options);
    int8_search::search_rescored(pool, all, &Values::pack(pool, all), search, rescore)
}

/// The neighbours of some rows by matrix products in `f32`, which share nothing with the search.
struct Truth {
    queries: Vec<u32>,
    /// Sorted ids of each query's neighbours.
    neighbours: Vec<Vec<u32>>,
}

impl Truth {
    fn of(pool: &Pool, rows: &[f32], dim: usize, k: usize, queries: &[u32]) -> Self {
        let m = queries.len();
        let gathered: Vec<f32> = queries
            .iter()
            .flat_map(|&query| rows[query as usize * dim..][..dim].iter().copied())
            .collect();
        let mut best: Vec<Vec<Hit>> = vec![Vec::new(); m];
        for (chunk, values) in rows.chunks(AUDIT_VALUES * dim).enumerate() {
            let n = values.len() / dim;
            let mut products = vec![0.0; m * n];
            matmul::nt(pool, &mut products, &gathered, values, m, n, dim, Accumulate::Overwrite);
            pool.for_chunks(&mut best, 1, |query, best| {
                let own = queries[query];
                let scored = products[query * n..][..n].iter().enumerate();
                let hits =
                    scored.map(|(i, &score)| Hit { id: (chunk * AUDIT_VALUES + i) as u32, score });
                best[0].extend(hits.filter(|hit| hit.id != own));
                if best[0].len() > k {
                    best[0].select_nth_unstable_by(k - 1, best_first);
                    best[0].truncate(k);
                }
            });
        }
        let sorted = |hits: Vec<Hit>| {
            let mut ids: Vec<u32> = hits.into_iter().map(|hit| hit.id).collect();
            ids.sort_unstable();
            ids
        };
        Self { queries: queries.to_vec(), neighbours: best.into_iter().map(sorted).collect() }
    }

    /// Share of the neighbours that `hits`, by row, holds.
    fn recall(&self, hits: &[Vec<Hit>]) -> f64 {
        let (mut n_found, mut n) = (0, 0);
        for (&query, neighbours) in self.queries.iter().zip(&self.neighbours) {
            let found = &hits[query as usize];
            n_found += found.iter().filter(|hit| neighbours.binary_search(&hit.id).is_ok()).count();
            n += neighbours.len();
        }
        n_found as f64 / n.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use kernels::int8_search::dot;

    use super::*;

    /// The audit agrees with scores summed in another order, and both searches meet their bars.
    #[test]
    fn small_sets_meet_the_bars() {
        let options = Options {
            n: 6000,
            dim: 64,
            k: 20,
            recall: 0.95,
            n_sample: 500,
            n_threads: 2,
            seed: 3,
            exact: true,
        };
        let figures = measure(options);
        let figure = |name: &str| figures.iter().find(|f| f.0 == name).unwrap().1;
        assert!(figure("recall") > 0.94, "{figures:?}");
        assert!(figure("exact_recall") > 0.9999, "{figures:?}");
        let rows = vectors::generate(&Pool::new(1), 500, 64, 3);
        let truth = Truth::of(&Pool::new(2), &rows, 64, 5, &[7, 499]);
        let row = |i: usize| &rows[i * 64..][..64];
        let mut expected: Vec<(f32, u32)> =
            (0..500).filter(|&i| i != 7).map(|i| (dot(row(7), row(i)), i as u32)).collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut expected: Vec<u32> = expected[..5].iter().map(|e| e.1).collect();
        expected.sort_unstable();
        assert_eq!(truth.neighbours[0], expected);
    }
}
