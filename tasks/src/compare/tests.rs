//! Tests of `compare` on planted differences.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use engine::task::testbed::Bench;
use kernels::philox::Philox;
use serde_json::json;

use super::*;

/// A bench with an evaluation and a schedule for each arm: 200 documents of 50 tokens whose loss is
/// `offset` nats a token above a common one.
pub(crate) fn bench(dir: &Path, arms: &[(&str, f64)]) -> Bench {
    let rng = Philox::new(5, "items");
    let mut bench = Bench::new(&dir.join("bench"));
    for (a, (name, offset)) in arms.iter().enumerate() {
        let [evaluation, schedule]: [PathBuf; 2] =
            ["eval", "mix"].map(|kind| dir.join(format!("{kind}_{a}")));
        std::fs::create_dir_all(&evaluation).unwrap();
        std::fs::create_dir_all(&schedule).unwrap();
        let file = File::create(evaluation.join("items.jsonl.zst")).unwrap();
        let mut encoder = zstd::Encoder::new(file, 1).unwrap();
        for i in 0..200_u64 {
            let shared = 3.0 + 0.5 * rng.normal(i);
            let noise = 0.05 * rng.normal((a as u64 + 1) * 1000 + i);
            let nll = 50.0 * (shared + offset + noise);
            let line = json!({ "task": "heldout", "item": format!("{i:016x}"), "nll": nll,
                               "tokens": 50, "bytes": 200 });
            writeln!(encoder, "{line}").unwrap();
        }
        encoder.finish().unwrap();
        let books = json!({ "budget_tokens": 1000, "synthetic_share": 0.0, "sources": [] });
        write_json(&schedule.join("books.json"), &books).unwrap();
        bench = bench.input("evaluations", &evaluation).input("schedules", &schedule);
        let inputs = bench.inputs.get_mut("evaluations").unwrap();
        inputs.last_mut().unwrap().node = format!("eval[seed=1, arm={name}]");
    }
    bench
}

fn run(arms: &[(&str, f64)], params: &Value) -> Result<Comparison, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(dir.path(), arms);
    bench.run::<Compare>(params)?;
    Ok(Comparison::read(&bench.out("comparison")).unwrap())
}

const ARMS: [(&str, f64); 4] = [("base", 0.0), ("sbp", -0.1), ("random", -0.04), ("oracle", -0.2)];

#[test]
fn planted_differences_are_found() {
    let comparison = run(&ARMS, &json!({})).unwrap();
    let holds = |estimate: Estimate, truth: f64| {
        assert!(estimate.low < truth && truth < estimate.high, "{estimate:?} {truth}");
        assert!(estimate.low <= estimate.value && estimate.value <= estimate.high);
    };
    let [base, sbp, random, oracle] = &comparison.arms[..] else { panic!("four arms") };
    assert_eq!((base.role, sbp.role), (Role::Baseline, Role::Treatment));
    assert_eq!((random.role, oracle.role), (Role::Control, Role::Oracle));
    assert!(base.difference.is_none() && base.gap_closed.is_none());
    holds(sbp.difference.unwrap(), -0.1);
    holds(random.difference.unwrap(), -0.04);
    holds(sbp.gap_closed.unwrap(), 0.5);
    assert!(oracle.gap_closed.is_none());
    assert_eq!(comparison.contrasts.len(), 1);
    assert_eq!(comparison.contrasts[0].role, Role::Control);
    holds(comparison.contrasts[0].difference, -0.06);
    assert!(sbp.n_better > 150 && sbp.sign_p < 1e-9 && base.n_better == 0);
    // Paired: far narrower than the spread of documents.
    let width = |e: Estimate| e.high - e.low;
    assert!(width(sbp.difference.unwrap()) < 0.25 * width(sbp.mean_nll));
    let bits = sbp.mean_nll.value * 50.0 / 200.0 / std::f64::consts::LN_2;
    assert!((sbp.bits_per_byte.value - bits).abs() < 1e-12);
    assert!((comparison.n_items, comparison.n_tokens) == (200, 10_000) && comparison.budgets_match);
}

/// A study without controls has none, however many arms it compares.
#[test]
fn only_named_controls_are_controls() {
    let comparison = run(&ARMS, &json!({ "controls": [] })).unwrap();
    assert_eq!(comparison.arms[2].role, Role::Other);
    assert_eq!(comparison.contrasts[0].role, Role::Other);
    let comparison = run(&ARMS, &json!({ "controls": ["random"] })).unwrap();
    assert_eq!(comparison.arms[2].role, Role::Control);
    for wrong in ["sbp", "none"] {
        let message = run(&ARMS, &json!({ "controls": [wrong] })).unwrap_err().message;
        assert!(message.contains(&format!("`controls` names `{wrong}`")), "{message}");
    }
}

#[test]
fn schedules_in_another_order_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path(), &ARMS);
    let schedules = bench.inputs.get_mut("schedules").unwrap();
    for (input, arm) in schedules.iter_mut().zip(["base", "random", "sbp", "oracle"]) {
        input.node = format!("mix[arm={arm}]");
    }
    let failure = bench.run::<Compare>(&json!({})).unwrap_err();
    let expected = "`mix[arm=random]` is of arm `random`, but its place among the evaluations is \
                    that of `sbp`";
    assert!(failure.message.contains(expected), "{failure}");
    bench.inputs.get_mut("schedules").unwrap().swap(1, 2);
    bench.run::<Compare>(&json!({})).unwrap();
}

#[test]
fn no_gap_is_closed_without_an_oracle_that_wins() {
    let arms = [("base", 0.0), ("sbp", -0.1), ("oracle", 0.0)];
    let comparison = run(&arms, &json!({})).unwrap();
    assert_eq!(comparison.oracle_beats_baseline, Some(false));
    assert!(comparison.arms[1].gap_closed.is_none());
    let comparison = run(&arms[..2], &json!({})).unwrap();
    assert_eq!(comparison.oracle_beats_baseline, None);
}

#[test]
fn mistakes_are_named() {
    let check = |params, expected: &str| {
        let message = run(&ARMS, &params).unwrap_err().message;
        assert!(message.contains(expected), "{message}");
    };
    check(json!({ "baseline": "none" }), "the arms are base, sbp, random, oracle");
    check(json!({ "arms": ["a"] }), "`arms` names 1");
    check(json!({ "arms": ["base", "sbp", "sbp", "x"] }), "two evaluations are of arm `sbp`");
    check(json!({ "n_resamples": 10 }), "below 100");
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path(), &ARMS);
    bench.inputs.get_mut("schedules").unwrap().pop();
    let failure = bench.run::<Compare>(&json!({})).unwrap_err();
    assert!(failure.message.contains("3 schedules are connected, for 4 arms"), "{failure}");
}

#[test]
fn arms_are_read_from_nodes() {
    assert_eq!(arm_of("eval[seed=1, arm=sbp]"), "sbp");
    assert_eq!(arm_of("base"), "base");
    assert_eq!(arm_of("joint[S=3]"), "joint[S=3]");
    assert_eq!(axis("eval[seed=1, arm=sbp]", "seed"), Some("1"));
    assert_eq!(axis("eval[farm=1]", "arm"), None);
}
