use kernels::rms_norm::{self, reference};

use crate::common::{assert_close, assert_gradient, dot, f64s, normal, on_each_path};

const EPS: f32 = 1e-6;

fn check(n_rows: usize, n_cols: usize, magnitude: f32) {
    let len = n_rows * n_cols;
    let x: Vec<f32> = normal("x", len).iter().map(|x| x * magnitude).collect();
    let (gain, d_y) = (normal("gain", n_cols), normal("d_y", len));
    let (d_x0, d_gain0) = (normal("d_x", len), normal("d_gain", n_cols));
    let eps = f64::from(EPS);
    let exact = reference::forward(&f64s(&x), &f64s(&gain), eps);
    let (d_x, d_gain) = reference::backward(&f64s(&d_y), &f64s(&x), &f64s(&gain), eps);
    let plus = |a: &[f64], b: &[f32]| -> Vec<f64> {
        a.iter().zip(b).map(|(a, &b)| a + f64::from(b)).collect()
    };
    on_each_path(
        |pool| {
            let (mut y, mut rstd) = (vec![f32::NAN; len], vec![f32::NAN; n_rows]);
            rms_norm::forward(pool, &x, &gain, EPS, &mut y, &mut rstd);
            let (mut d_x, mut d_gain) = (d_x0.clone(), d_gain0.clone());
            rms_norm::backward(pool, &d_y, &x, &gain, &rstd, &mut d_x, &mut d_gain);
            vec![y, d_x, d_gain]
        },
        |result| {
            let what = |name| format!("{name} of [{n_rows}, {n_cols}] times {magnitude}");
            assert_close(&what("y"), &result[0], &exact, 4.0);
            assert_close(&what("d_x"), &result[1], &plus(&d_x, &d_x0), 16.0);
            let terms = (n_rows as f64).sqrt();
            assert_close(&what("d_gain"), &result[2], &plus(&d_gain, &d_gain0), 8.0 + terms);
        },
    );
}

#[test]
fn shapes_match() {
    for (n_rows, n_cols) in [(1, 1), (1, 256), (5, 17), (64, 64), (65, 100), (200, 257)] {
        check(n_rows, n_cols, 1.0);
    }
}

#[test]
fn extreme_magnitudes_match() {
    check(3, 50, 1e15);
    check(3, 50, 1e-3);
    check(3, 50, 0.0);
}

#[test]
fn reference_gradients_are_derivatives() {
    let (x, gain) = (f64s(&normal("x", 30)), f64s(&normal("gain", 10)));
    let d_y = f64s(&normal("d_y", 30));
    let (d_x, d_gain) = reference::backward(&d_y, &x, &gain, 1e-6);
    assert_gradient("x", &x, &d_x, |x| dot(&d_y, &reference::forward(x, &gain, 1e-6)));
    assert_gradient("gain", &gain, &d_gain, |g| dot(&d_y, &reference::forward(&x, g, 1e-6)));
}
