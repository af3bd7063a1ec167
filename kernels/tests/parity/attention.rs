use kernels::attention::{self, Heads, reference};

use crate::common::{assert_close, assert_gradient, dot, f64s, normal, on_each_path, starts};

fn check(heads: Heads, lengths: &[usize], magnitude: f32) {
    let starts = starts(lengths);
    let n_tokens = starts.len();
    let qkv: Vec<f32> =
        normal("qkv", n_tokens * heads.qkv_width()).iter().map(|x| x * magnitude).collect();
    let d_out = normal("d_out", n_tokens * heads.q_width());
    let (exact, exact_lse) = reference::forward(&f64s(&qkv), heads, &starts);
    let d_exact = reference::backward(&f64s(&d_out), &f64s(&qkv), heads, &starts);
    // Scores carry an error of some epsilons of their size, which the exponential makes a relative
    // error of the weights.
    let score = f64::from(magnitude).powi(2) * (heads.head_dim as f64).sqrt();
    on_each_path(
        |pool| {
            let mut out = vec![f32::NAN; n_tokens * heads.q_width()];
            let mut lse = vec![f32::NAN; n_tokens * heads.n_heads];
            attention::forward(pool, &qkv, heads, &starts, &mut out, &mut lse);
            let mut d_qkv = vec![f32::NAN; qkv.len()];
            attention::backward(pool, &d_out, &qkv, &out, &lse, heads, &starts, &mut d_qkv);
            vec![out, lse, d_qkv]
        },
        |result| {
            let what = |name| format!("{name} of {heads:?} over {lengths:?} times {magnitude}");
            assert_close(&what("out"), &result[0], &exact, 16.0 + 2.0 * score);
            assert_close(&what("lse"), &result[1], &exact_lse, 16.0);
            assert_close(&what("d_qkv"), &result[2], &d_exact, 32.0 + 4.0 * score);
        },
    );
}

#[test]
fn groups_and_head_sizes_match() {
    for (n_heads, n_kv_heads, head_dim) in
        [(1, 1, 32), (2, 2, 8), (4, 2, 64), (3, 1, 64), (4, 1, 128), (6, 2, 18)]
    {
        check(Heads { n_heads, n_kv_heads, head_dim }, &[70, 1, 5], 1.0);
    }
}

#[test]
fn lengths_match() {
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 32 };
    for length in [1, 2, 63, 64, 65, 127, 129, 255, 257] {
        check(heads, &[length], 1.0);
    }
    check(Heads { n_heads: 1, n_kv_heads: 1, head_dim: 64 }, &[513], 1.0);
}

#[test]
fn documents_match() {
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 16 };
    check(heads, &[1, 1, 1], 1.0);
    check(heads, &[100, 28, 128, 3, 1, 60], 1.0);
}

#[test]
fn extreme_scores_match() {
    // Scores up to about 3,000: one weight is 1 and the rest vanish, or nearly so.
    check(Heads { n_heads: 2, n_kv_heads: 1, head_dim: 64 }, &[150], 20.0);
    check(Heads { n_heads: 2, n_kv_heads: 1, head_dim: 64 }, &[80], 0.0);
}

#[test]
fn reference_gradient_is_the_derivative() {
    let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 4 };
    let starts = starts(&[1, 4, 2]);
    let qkv = f64s(&normal("qkv", starts.len() * heads.qkv_width()));
    let d_out = f64s(&normal("d_out", starts.len() * heads.q_width()));
    let gradient = reference::backward(&d_out, &qkv, heads, &starts);
    assert_gradient("qkv", &qkv, &gradient, |x| {
        dot(&d_out, &reference::forward(x, heads, &starts).0)
    });
}
