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
