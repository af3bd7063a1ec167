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
