use serde_json::json;

use super::*;

/// The sizes that the peers' scripts are written for.
#[test]
fn the_default_is_the_reference_model() {
    let config = Workload::default().config().unwrap();
    assert_eq!(config.n_parameters(), 5_476_352);
    assert!((config.train_flop_per_token(256) - 35.19e6).abs() < 0.01e6);
}

#[test]
fn a_small_workload_is_measured_for_real() {
    let workload: Workload = serde_json::from_value(json!({
        "arch": "smoke", "rows": 2, "micro_batch_tokens": 64, "steps": 6, "batches": [1, 3],
        "prompt_tokens": 5, "new_tokens": 7, "runs": 1,
    }))
    .unwrap();
    let mut said = Vec::new();
    let report = run(&workload, 2, &mut |what| said.push(what.to_owned())).unwrap();
    assert!(report.train_loss[1] < report.train_loss[0], "{:?}", report.train_loss);
    assert!((report.train_loss[0] - 512_f64.ln()).abs() < 0.5, "{:?}", report.train_loss);
    assert_eq!(report.generate_tokens_per_s.keys().collect::<Vec<_>>(), ["1", "3"]);
    let rates = report.generate_tokens_per_s.values().chain([&report.train_tokens_per_s]);
    assert!(rates.copied().all(|rate| rate.is_finite() && rate > 0.0));
    let counted = BTreeMap::from_iter(report.rates());
    let trained = report.train_tokens_per_s * report.train_flop_per_token;
    let generated = report.generate_tokens_per_s["3"] * report.decode_flop_per_token;
    assert_eq!(
        counted,
        BTreeMap::from([(unit::TRAIN_FLOP, trained), (unit::DECODE_FLOP, generated),])
    );
    // A token costs a third of its training, attention left out of the first.
    assert!(3.0 * report.decode_flop_per_token < report.train_flop_per_token);
    let share: f64 = report.ops.iter().map(|op| op.share).sum();
    assert!((share - 1.0).abs() < 1e-9, "{share}");
    let calls = |name: &str| report.ops.iter().find(|op| op.op == name).unwrap().calls;
    // Two micro-batches of two blocks; one update.
    assert_eq!((calls("qkv: nt"), calls("adamw")), (4, 1));
    assert_eq!(
        said,
        ["training", "generating 1 at a time", "generating 3 at a time", "single ops"]
    );
}

#[test]
fn wrong_workloads_say_what_is_wrong() {
    let check = |value: serde_json::Value, path: &str| {
        let workload: Workload = serde_json::from_value(value).unwrap();
        assert_eq!(workload.config().unwrap_err().path, path);
    };
    check(json!({"rows": 0}), "rows");
    check(json!({"batches": [4, 0]}), "batches");
    check(json!({"new_tokens": 129}), "new_tokens");
    check(json!({"arch": {"preset": "toy", "head_dim": 3}}), "arch.head_dim");
    assert!(serde_json::from_value::<Workload>(json!({"row": 1})).is_err());
}
