//! Benches give their figures in one line, and the figures are of runs that really happened.

use crate::harness::Place;

#[test]
fn orch_counts_what_ran() {
    let figures = Place::new().sbp(&["bench", "orch", "--n", "30", "--json"]).expect(0).json();
    assert_eq!(figures["bench"], "orch");
    for (name, expected) in
        [("n", 30), ("one_change_ran", 1), ("chain_n", 30), ("chain_ran", 1), ("kill_n", 30)]
    {
        assert_eq!(figures[name], expected, "{name} in {figures}");
    }
    for name in ["cold_cpu_ms_per_task", "noop_cpu_ms", "peak_rss_mib"] {
        assert!(figures[name].as_f64().unwrap() > 0.0, "{name} in {figures}");
    }
}

#[test]
fn bench_tasks_are_not_for_pipelines() {
    let place = Place::new();
    place.write("p.yaml", "version: 1\nnodes:\n  a: {task: bench_noop, params: {i: 1}}\n");
    assert!(place.sbp(&["plan", "p.yaml"]).expect(2).stderr.contains("bench_noop"));
}

#[test]
fn pair_finds_what_it_is_asked_for() {
    let args = ["--n", "3000", "--dim", "64", "--k", "20", "--queries", "300", "--exact", "--json"];
    let args: Vec<&str> = ["bench", "pair"].into_iter().chain(args).collect();
    let figures = Place::new().sbp(&args).expect(0).json();
    let figure = |name: &str| figures[name].as_f64().unwrap();
    assert!(figure("recall") > 0.95 && figure("exact_recall") > 0.9999, "{figures}");
    assert!(figure("cpu_s") > 0.0 && figure("tile_gops") > 0.0, "{figures}");
}

#[test]
fn bpe_and_dedup_give_their_figures() {
    let small =
        ["--vocab-size", "600", "--train-mb", "0.2", "--encode-mb", "0.2", "--check-mb", "0.1"];
    let args: Vec<&str> = ["bench", "bpe", "--json"].into_iter().chain(small).collect();
    let bpe = Place::new().sbp(&args).expect(0).json();
    for name in ["train_mb_per_s", "encode_mb_per_s_core", "peak_rss_mib", "checked_mb"] {
        assert!(bpe[name].as_f64().unwrap() > 0.0, "{name} in {bpe}");
    }
    let dedup = Place::new().sbp(&["bench", "dedup", "--mb", "0.5", "--json"]).expect(0).json();
    for name in ["minhash_mb_per_s_core", "shingle_mb_per_s_core"] {
        assert!(dedup[name].as_f64().unwrap() > 0.0, "{name} in {dedup}");
    }
    let none = Place::new().sbp(&["bench", "bpe", "--corpus", "nowhere"]).expect(2);
    assert!(none.stderr.contains("nowhere"), "{}", none.stderr);
}
