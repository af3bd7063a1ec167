//! The search through lists against the exact search.

use super::*;
use crate::int8_search::{Own, dot, search_rescored};
use crate::quantize;

const COLUMNS: usize = 40;

/// Unit rows around 30 directions, some of them of zeros.
fn rows(n: usize) -> Vec<f32> {
    let rng = Philox::new(8, "clustered");
    let mut rows: Vec<f32> = (0..n * COLUMNS)
        .map(|i| {
            let cluster = rng.below((i / COLUMNS) as u64, 30) as usize;
            let shared = rng.normal((1 << 40) + (cluster * COLUMNS + i % COLUMNS) as u64);
            (shared + 0.8 * rng.normal((1 << 41) + i as u64)) as f32
        })
        .collect();
    for (i, row) in rows.chunks_exact_mut(COLUMNS).enumerate() {
        let inverse = if i % 100 == 99 { 0.0 } else { 1.0 / dot(row, row).sqrt() };
        for x in row {
            *x *= inverse;
        }
    }
    rows
}

struct Quantized {
    q: Vec<i8>,
    scales: Vec<f32>,
}

impl Quantized {
    fn of(rows: &[f32]) -> Self {
        let (mut q, mut scales) = (vec![0; rows.len()], vec![0.0; rows.len() / COLUMNS]);
        quantize::rows(&Pool::new(1), rows, COLUMNS, &mut q, &mut scales);
        Self { q, scales }
    }

    fn rows(&self, first_id: u32) -> Rows<'_> {
        Rows { q: &self.q, scales: &self.scales, columns: COLUMNS, first_id }
    }
}

fn options(n: usize) -> ListsOptions {
    ListsOptions { n_lists: 40, n_rounds: 4, ..ListsOptions::for_values(n) }
}

const SEARCH: Search = Search { k: 10, min_score: 0.1, own: Own::Exclude };

/// With no limit to the reach, every list is scanned: hits, order and scores are those of the exact
/// search, in the values' own order too.
#[test]
fn unlimited_reach_is_exact() {
    let rows = rows(3000);
    let quantized = Quantized::of(&rows);
    let (values, pool) = (quantized.rows(5), Pool::new(2));
    let lists = Lists::build(&pool, values, options(3000));
    assert_eq!(lists.n_lists(), 40);
    assert_eq!(lists.nearest(&pool, values), lists.assigned());
    let exact = super::super::search(&pool, values, &Values::pack(&pool, values), SEARCH);
    assert_eq!(lists.search_exact(&pool, values, SEARCH, None), exact);
    let all = Reach { n_first: 3, reach: f32::INFINITY };
    let queries = (values, lists.assigned());
    assert_eq!(lists.search(&pool, queries, all, (SEARCH, None), &|| true), exact);
    let rescore = Rescore {
        queries: &rows,
        values: &rows,
        first_value_id: 5,
        columns: COLUMNS,
        k: 7,
        min_score: 0.2,
    };
    let search = rescore.candidates(SEARCH, 0.01);
    let expected = search_rescored(&pool, values, &Values::pack(&pool, values), search, rescore);
    let found = lists.search(&pool, queries, all, (search, Some(rescore)), &|| true);
    assert_eq!(found, expected);
    for (query, hits) in found.iter().enumerate() {
        let row = |i: usize| &rows[i * COLUMNS..][..COLUMNS];
        for hit in hits {
            let score = dot(row(query), row(hit.id as usize - 5));
            assert_eq!(hit.score.to_bits(), score.to_bits());
        }
        assert!(hits.len() <= 7 && hits.iter().all(|hit| hit.score >= 0.2));
    }
}

/// What is found does not depend on threads, instruction set, or which queries go together.
#[test]
fn results_depend_on_the_query_only() {
    let rows = rows(2500);
    let quantized = Quantized::of(&rows);
    let values = quantized.rows(0);
    let reach = Reach { n_first: 2, reach: 0.5 };
    let lists = Lists::build(&Pool::new(1), values, options(2500));
    let whole =
        lists.search(&Pool::new(1), (values, lists.assigned()), reach, (SEARCH, None), &|| true);
    for threads in [2, 3] {
        let pool = Pool::new(threads);
        let again = Lists::build(&pool, values, options(2500));
        assert_eq!(again.assigned(), lists.assigned());
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let queries = (values, again.assigned());
            let found = again.search_on(isa, &pool, queries, reach, (SEARCH, None), &|| true);
            assert_eq!(found, whole, "{isa:?}");
        }
    }
    let part = Rows {
        q: &quantized.q[700 * COLUMNS..900 * COLUMNS],
        scales: &quantized.scales[700..900],
        columns: COLUMNS,
        first_id: 700,
    };
    let pool = Pool::new(2);
    let nearest = lists.nearest(&pool, part);
    let found = lists.search(&pool, (part, &nearest), reach, (SEARCH, None), &|| true);
    assert_eq!(found, whole[700..900]);
}

/// Calibrated on some queries, the share asked is found for these exactly, and about for others.
#[test]
fn calibration_finds_the_share_asked() {
    let rows = rows(6000);
    let quantized = Quantized::of(&rows);
    let (values, pool) = (quantized.rows(0), Pool::new(2));
    let lists = Lists::build(&pool, values, options(6000));
    let exact = lists.search_exact(&pool, values, SEARCH, None);
    let half = Rows {
        q: &quantized.q[..3000 * COLUMNS],
        scales: &quantized.scales[..3000],
        columns: COLUMNS,
        first_id: 0,
    };
    let mut before = f32::NEG_INFINITY;
    for asked in [0.7, 0.95, 0.98] {
        let reach = lists.calibrate(&pool, half, &exact[..3000], SEARCH, (1, asked));
        assert!(reach.reach >= before);
        before = reach.reach;
        let queries = (values, lists.assigned());
        let found = lists.search(&pool, queries, reach, (SEARCH, None), &|| true);
        let recall = |range: Range<usize>| {
            let (found, exact) = (&found[range.clone()], &exact[range]);
            let both = found
                .iter()
                .zip(exact)
                .map(|(found, exact)| exact.iter().filter(|hit| found.contains(hit)).count());
            both.sum::<usize>() as f64 / exact.iter().map(Vec::len).sum::<usize>() as f64
        };
        assert!(recall(0..3000) >= asked, "{} {asked}", recall(0..3000));
        assert!(recall(3000..6000) > asked - 0.05, "{} {asked}", recall(3000..6000));
        // Where the first lists alone give more than was asked, there is nothing to leave out.
        if reach.reach.is_finite() {
            assert!(recall(3000..6000) < asked + 0.05, "{} {asked}", recall(3000..6000));
        }
    }
}

#[test]
fn one_value_is_one_list() {
    let quantized = Quantized::of(&rows(1));
    let (values, pool) = (quantized.rows(0), Pool::new(1));
    let lists = Lists::build(&pool, values, ListsOptions::for_values(1));
    let keep = Search { own: Own::Keep, ..SEARCH };
    let reach = Reach { n_first: 4, reach: 0.0 };
    let found = lists.search(&pool, (values, lists.assigned()), reach, (keep, None), &|| true);
    assert_eq!(found[0].len(), 1);
    let stopped = lists.search(&pool, (values, lists.assigned()), reach, (keep, None), &|| false);
    assert!(stopped[0].is_empty());
}
