//! Tests of `pair` against brute force in `f64`.

use std::path::Path;

use engine::task::testbed::Bench;
use engine::task::{CancelToken, FailureKind};
use kernels::Pool;
use serde_json::json;

use super::*;
use crate::format::vectors;

const DIM: usize = 24;

fn unit_rows(n: usize) -> Vec<f32> {
    let rng = Philox::new(11, "rows");
    let mut rows: Vec<f32> = (0..n * DIM)
        .map(|i| {
            // Groups of four documents share a direction.
            let shared = rng.normal((i / DIM / 4 * DIM + i % DIM) as u64);
            (shared + 0.6 * rng.normal((1 << 32) + i as u64)) as f32
        })
        .collect();
    for row in rows.chunks_exact_mut(DIM) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in row {
            *x /= norm;
        }
    }
    rows
}

fn write_vectors(dir: &Path, n: usize) -> Vec<f32> {
    let rows = unit_rows(n);
    let ids: Vec<u64> = (0..n as u64).map(|i| 1000 + i).collect();
    vectors::write(&Pool::new(1), dir, &ids, &rows, DIM, "tfidf").unwrap();
    rows
}

fn run(n: usize, params: &serde_json::Value) -> Result<Vec<DocumentPair>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    std::fs::create_dir(&input).unwrap();
    write_vectors(&input, n);
    let bench = Bench::new(dir.path()).input("vectors", &input);
    bench.run::<Pair>(params)?;
    Ok(Pairs::open(&bench.out("pairs")).unwrap().iter().collect())
}

/// Neighbours by inner product in `f64`, `k` of each document.
fn oracle(n: usize, k: usize, threshold: f64) -> Vec<(u32, u32)> {
    let rows = unit_rows(n);
    let product = |a: usize, b: usize| -> f64 {
        (0..DIM).map(|c| f64::from(rows[a * DIM + c]) * f64::from(rows[b * DIM + c])).sum()
    };
    let mut pairs = Vec::new();
    for a in 0..n {
        let mut others: Vec<(f64, u32)> =
            (0..n).filter(|&b| b != a).map(|b| (product(a, b), b as u32)).collect();
        others.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
        others.truncate(k);
        pairs.extend(others.iter().filter(|o| o.0 >= threshold).map(|o| (a as u32, o.1)));
    }
    pairs
}

#[test]
fn nearest_equals_brute_force() {
    for (n, k, threshold) in [(60, 3, -1.0), (60, 100, 0.5), (300, 10, 0.2), (2, 1, -1.0)] {
        let found = run(n, &json!({ "k": k, "threshold": threshold })).unwrap();
        let found: Vec<_> = found.iter().map(|pair| (pair.seed, pair.target)).collect();
        assert_eq!(found, oracle(n, k, threshold), "{n} documents, k {k}, threshold {threshold}");
    }
}

/// A device searches the same integers, and the final scores are computed here.
#[test]
fn a_device_changes_no_bit() {
    let bytes = |device: &str| {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        std::fs::create_dir(&input).unwrap();
        write_vectors(&input, 131);
        let mut bench = Bench::new(dir.path()).input("vectors", &input);
        bench.device = device.to_owned();
        let params = json!({ "k": 7, "threshold": 0.1, "shard_documents": 70 });
        let outputs = bench.run::<Pair>(&params).unwrap();
        let bytes = std::fs::read(bench.out("pairs").join("pairs.sbp")).unwrap();
        (bytes, outputs.metrics.get("on_gpu").copied())
    };
    let (found, expected) = (bytes(&device::tests::emulated()), bytes("cpu"));
    assert!(found.0 == expected.0);
    assert_eq!((found.1, expected.1), (Some(1.0), None));
    let lists = |device: &str| {
        let dir = tempfile::tempdir().unwrap();
        write_vectors(dir.path(), 40);
        let mut bench = Bench::new(dir.path()).input("vectors", dir.path());
        bench.device = device.to_owned();
        let params = json!({ "method": "ivf", "k": 3, "threshold": -1.0 });
        bench.run::<Pair>(&params).map(|_| format!("{:?}", bench.sink.reports()))
    };
    let failure = lists("cuda:0").unwrap_err();
    assert!(failure.message.contains("methods other than `exact`"), "{}", failure.message);
    let told = "`device: auto` takes the CPU";
    assert!(lists("auto").unwrap().contains(told));
    assert!(!lists("cpu").unwrap().contains(told));
}

/// Shards of values change nothing, and neither do threads, nor where the search was stopped.
#[test]
fn shards_threads_and_stops_change_nothing() {
    let n = 211;
    let bytes = |shard_documents: usize, n_threads: usize, method: &str, stops: bool| {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        std::fs::create_dir(&input).unwrap();
        write_vectors(&input, n);
        let mut bench = Bench::new(dir.path()).input("vectors", &input);
        bench.n_threads = n_threads;
        let params = json!({
            "method": method, "k": 6, "threshold": 0.1, "shard_documents": shard_documents,
            "audited_documents": 100,
        });
        if stops {
            for n_before in 1.. {
                bench.stop_after(n_before);
                let result = bench.run::<Pair>(&params);
                bench.cancel = CancelToken::default();
                match result {
                    Ok(_) => break,
                    Err(failure) => assert_eq!(failure.kind, FailureKind::Cancelled, "{failure}"),
                }
            }
            let (n_items, n_tries) = (bench.items.n_done() as u64, bench.items.n_tries());
            // Besides each item, what was claimed when a stop came.
            assert!(n_items >= 7 && n_tries < 3 * n_items, "{n_tries} tries, {n_items} items");
        } else {
            bench.run::<Pair>(&params).unwrap();
        }
        let pairs = bench.out("pairs");
        (
            std::fs::read(pairs.join(pairs::FILE)).unwrap(),
            std::fs::read(pairs.join("audit.json")).ok(),
        )
    };
    let whole = bytes(n, 1, "exact", false);
    for n_shards in [2_usize, 7] {
        for n_threads in [1, 2] {
            let cut = bytes(n.div_ceil(n_shards), n_threads, "exact", n_threads == 2);
            assert!(cut == whole, "{n_shards} shards");
        }
    }
    // Through lists, what a shard has in its lists is another matter for every size of shards.
    for shard_documents in [n, 106, 31] {
        let whole = bytes(shard_documents, 1, "ivf", false);
        assert!(bytes(shard_documents, 3, "ivf", false) == whole, "{shard_documents} documents");
        assert!(bytes(shard_documents, 2, "ivf", true) == whole, "{shard_documents} documents");
    }
}

/// Of vectors that grow, what was searched among the documents that were there stays right.
#[test]
fn more_documents_leave_finished_tiles_right() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    std::fs::create_dir(&input).unwrap();
    let params = json!({ "k": 5, "threshold": 0.1, "shard_documents": 128 });
    write_vectors(&input, 256);
    let mut bench = Bench::new(dir.path()).input("vectors", &input);
    bench.run::<Pair>(&params).unwrap();
    // Four stretches are looked at, and each is searched among two shards.
    assert_eq!(bench.items.n_tries(), 4 + 8);
    write_vectors(&input, 320);
    bench.inputs.get_mut("vectors").unwrap()[0].digest = engine::digest::Digest::of(b"more");
    std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    bench.run::<Pair>(&params).unwrap();
    // All five are looked at; the fifth is searched among three shards, the others among the third.
    assert_eq!(bench.items.n_tries(), 4 + 8 + 5 + 3 + 4);
    let found: Vec<_> = Pairs::open(&bench.out("pairs")).unwrap().iter().collect();
    let found: Vec<_> = found.iter().map(|pair| (pair.seed, pair.target)).collect();
    assert_eq!(found, oracle(320, 5, 0.1));
}

/// Through lists, pairs are a subset of the exact ones with the same scores, and the audit counts
/// what is missing.
#[test]
fn lists_find_what_the_audit_says() {
    let n = 4000;
    let exact = run(n, &json!({ "k": 8, "threshold": 0.2 })).unwrap();
    let check = |recall: f64, shard_documents: usize| {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        std::fs::create_dir(&input).unwrap();
        write_vectors(&input, n);
        let bench = Bench::new(dir.path()).input("vectors", &input);
        let params = json!({
            "method": "ivf", "k": 8, "threshold": 0.2, "recall": recall,
            "shard_documents": shard_documents,
        });
        let outputs = bench.run::<Pair>(&params).unwrap();
        let found: Vec<_> = Pairs::open(&bench.out("pairs")).unwrap().iter().collect();
        let n_common = found.iter().filter(|pair| exact.contains(pair)).count();
        let share = n_common as f64 / exact.len() as f64;
        let audit = std::fs::read(bench.out("pairs").join("audit.json")).unwrap();
        let audit: serde_json::Value = serde_json::from_slice(&audit).unwrap();
        let audited = audit["recall"].as_f64().unwrap();
        assert!((outputs.metrics["recall"] - audited).abs() < 1e-12);
        assert_eq!(audit["audited_documents"], 1000);
        assert_eq!(audit["shards"].as_array().unwrap().len(), n.div_ceil(shard_documents));
        assert!((audited - share).abs() < 0.03, "{audited} {share}");
        assert!(share > recall - 0.03 && share < 1.0, "{share} for {recall}");
    };
    check(0.8, n);
    check(0.95, n);
    check(0.9, 1500);
}

/// A row of zeros is no embedding, so its document is in no pair.
#[test]
fn documents_without_embedding_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    std::fs::create_dir(&input).unwrap();
    let mut rows = unit_rows(8);
    rows[3 * DIM..4 * DIM].fill(0.0);
    let ids: Vec<u64> = (0..8).collect();
    vectors::write(&Pool::new(1), &input, &ids, &rows, DIM, "tfidf").unwrap();
    let bench = Bench::new(dir.path()).input("vectors", &input);
    bench.run::<Pair>(&json!({ "k": 7, "threshold": -1.0 })).unwrap();
    let pairs: Vec<_> = Pairs::open(&bench.out("pairs")).unwrap().iter().collect();
    assert_eq!(pairs.len(), 7 * 6);
    assert!(pairs.iter().all(|pair| pair.seed != 3 && pair.target != 3));
}

#[test]
fn rules_limit_the_pairs() {
    let n = 80;
    let all = run(n, &json!({ "k": 6, "threshold": 0.0 })).unwrap();
    let best = run(n, &json!({ "k": 6, "pairs_per_document": 1.5 })).unwrap();
    assert_eq!(best.len(), 120);
    let worst_kept = best.iter().map(|pair| pair.score).fold(f32::INFINITY, f32::min);
    // Mutual pairs have equal scores, so the last place may be shared.
    assert!(all.iter().filter(|pair| pair.score > worst_kept).count() < 120);
    assert!(all.iter().filter(|pair| pair.score >= worst_kept).count() >= 120);

    let limited = run(n, &json!({ "k": 6, "threshold": 0.0, "max_pairs_per_seed": 2 })).unwrap();
    assert!(limited.chunk_by(|a, b| a.seed == b.seed).all(|seed| seed.len() <= 2));

    let both = run(n, &json!({ "k": 2, "threshold": 0.0, "directions": "both" })).unwrap();
    let has = |a, b| both.iter().any(|pair| (pair.seed, pair.target) == (a, b));
    assert!(both.iter().all(|pair| has(pair.target, pair.seed)));

    let once = run(n, &json!({ "k": 2, "threshold": 0.0, "directions": "once" })).unwrap();
    assert!(once.iter().all(|pair| pair.seed < pair.target));
    assert_eq!(both.len(), 2 * once.len());
}

#[test]
fn random_pairs_are_distinct_and_uniform() {
    let n = 12;
    let drawn = run(n, &json!({ "method": "random", "n_pairs": 132 })).unwrap();
    let mut codes: Vec<_> = drawn.iter().map(|pair| (pair.seed, pair.target)).collect();
    codes.dedup();
    assert_eq!(codes.len(), 132, "all ordered pairs, each once");
    let n_seed_zero: usize = (0..40)
        .map(|seed| {
            let params = json!({ "method": "random", "n_pairs": 33, "seed": seed });
            run(n, &params).unwrap().iter().filter(|pair| pair.seed == 0).count()
        })
        .sum();
    // 110 expected; the standard deviation of a sum of 40 hypergeometric draws is below 9.
    assert!((80..=140).contains(&n_seed_zero), "{n_seed_zero}");
}

#[test]
fn random_copies_the_number_of_like() {
    let dir = tempfile::tempdir().unwrap();
    let [input, like] = ["in", "like"].map(|name| dir.path().join(name));
    std::fs::create_dir_all(&input).unwrap();
    std::fs::create_dir_all(&like).unwrap();
    write_vectors(&input, 20);
    let pair = DocumentPair { seed: 1, target: 2, score: 0.5 };
    pairs::write(&like, Documents::of(1000..1020), vec![pair; 7], "nearest").unwrap();
    let bench = Bench::new(dir.path()).input("vectors", &input).input("like", &like);
    let outputs = bench.run::<Pair>(&json!({ "method": "random" })).unwrap();
    assert!((outputs.metrics["n_pairs"] - 7.0).abs() < 1e-9);
    pairs::write(&like, Documents::of(0..20), vec![pair], "nearest").unwrap();
    let error = bench.run::<Pair>(&json!({ "method": "random" })).unwrap_err();
    assert!(error.message.contains("other documents"), "{error}");
}

#[test]
fn wrong_params_are_named() {
    let check = |params, expected: &str| {
        let message = run(6, &params).unwrap_err().message;
        assert!(message.contains(expected), "{message}");
    };
    check(json!({}), "no rule");
    check(json!({ "threshold": 0.5, "recall": 1.0 }), "recall 1 is not between");
    check(json!({ "threshold": 0.5, "shard_documents": 0 }), "at least 1");
    check(json!({ "k": 0, "threshold": 0.5 }), "k is 0");
    check(json!({ "threshold": 1.5 }), "threshold 1.5");
    check(json!({ "pairs_per_document": 0.0 }), "not above 0");
    check(json!({ "method": "random" }), "how many");
    check(json!({ "method": "random", "n_pairs": 0 }), "at least 1");
    check(json!({ "method": "random", "n_pairs": 31 }), "30 ordered pairs");
    check(json!({ "threshold": 1.0 }), "no pair of 6 documents passes: threshold 1");
}

/// The pinned result: changed pairs need a new revision.
#[test]
fn output_is_pinned_and_independent_of_threads() {
    let digest = |n_threads| {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        std::fs::create_dir(&input).unwrap();
        // Integers over 5 and 13 keep the fixture free of library math.
        let rows: Vec<f32> = (0..600)
            .flat_map(|i| {
                let (a, b) = [(0.6, 0.8), (5.0 / 13.0, 12.0 / 13.0), (0.0, 1.0)][i % 3];
                let mut row = [0.0_f32; DIM];
                row[i % 7] = a;
                row[7 + i % 11] = b;
                row
            })
            .collect();
        let ids: Vec<u64> = (0..600).collect();
        vectors::write(&Pool::new(1), &input, &ids, &rows, DIM, "tfidf").unwrap();
        let mut bench = Bench::new(dir.path()).input("vectors", &input);
        bench.n_threads = n_threads;
        bench.run::<Pair>(&json!({ "k": 5, "threshold": 0.3 })).unwrap();
        let bytes = std::fs::read(bench.out("pairs").join(pairs::FILE)).unwrap();
        engine::digest::Digest::of(&bytes).short()
    };
    assert_eq!(digest(1), "9b6f0f2b60d1");
    assert_eq!(digest(3), "9b6f0f2b60d1");
}
