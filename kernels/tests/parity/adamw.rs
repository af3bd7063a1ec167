use kernels::adamw::{self, AdamW};

use crate::common::{assert_close, f64s, normal, on_each_path};

const SETTINGS: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

#[test]
fn steps_match() {
    for len in [1, 17, 40_000] {
        let start = normal("params", len);
        let grads = normal("grads", len);
        let [mut p64, mut m64, mut v64] = [f64s(&start), vec![0.0; len], vec![0.0; len]];
        let g64: Vec<f64> = grads.iter().map(|&g| 0.5 * f64::from(g)).collect();
        for step in 1..=5 {
            adamw::reference(&mut p64, &g64, &mut m64, &mut v64, SETTINGS, step);
        }
        on_each_path(
            |pool| {
                let [mut p, mut m, mut v] = [start.clone(), vec![0.0; len], vec![0.0; len]];
                for step in 1..=5 {
                    adamw::step(pool, &mut p, &grads, &mut m, &mut v, SETTINGS, step, 0.5);
                }
                vec![p, m, v]
            },
            |result| {
                assert_close("params", &result[0], &p64, 8.0);
                assert_close("m", &result[1], &m64, 8.0);
                assert_close("v", &result[2], &v64, 8.0);
            },
        );
    }
}

/// `tests/goldens/make_adamw.py` tells what the numbers are.
#[test]
fn a_hundred_steps_equal_torch() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../goldens/adamw.json")).unwrap();
    let start: Vec<f32> = (0..24).map(|i| ((i * 67) % 129 - 64) as f32 / 32.0).collect();
    on_each_path(
        |pool| {
            let [mut p, mut m, mut v] = [start.clone(), vec![0.0; 24], vec![0.0; 24]];
            let mut snapshots = Vec::new();
            for step in 1..=100_i32 {
                let grad = |i: i32| {
                    ((step * 37 + i * 101) % 257 - 128) as f32 / 64.0 * 0.5_f32.powi(i % 12)
                };
                let grads: Vec<f32> = (0..24).map(grad).collect();
                adamw::step(pool, &mut p, &grads, &mut m, &mut v, SETTINGS, step as u64, 1.0);
                if [1, 10, 100].contains(&step) {
                    snapshots.push(p.clone());
                }
            }
            snapshots
        },
        |snapshots| {
            for (params, step) in snapshots.iter().zip(["1", "10", "100"]) {
                let exact = golden["params"][step].as_array().unwrap();
                for (&ours, theirs) in params.iter().zip(exact) {
                    let theirs = theirs.as_f64().unwrap();
                    // Relative 1e-5, with a floor for parameters that pass near 0.
                    let limit = 1e-5 * theirs.abs().max(0.02);
                    assert!((f64::from(ours) - theirs).abs() <= limit, "{step}: {ours} {theirs}");
                }
            }
        },
    );
}
