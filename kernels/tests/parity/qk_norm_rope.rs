use kernels::attention::Heads;
use kernels::qk_norm_rope::reference::{Settings, backward, forward};
use kernels::qk_norm_rope::{QkNormRope, Table};

use crate::common::{assert_close, assert_gradient, dot, f64s, normal, on_each_path, starts};

const THETA: f64 = 10_000.0;

fn check(heads: Heads, lengths: &[usize]) {
    let starts = starts(lengths);
    let n_tokens = starts.len();
    let n_normed = heads.n_heads + heads.n_kv_heads;
    let len = n_tokens * heads.qkv_width();
    let (qkv, d_out) = (normal("qkv", len), normal("d_out", len));
    let (q_gain, k_gain) = (normal("q", heads.head_dim), normal("k", heads.head_dim));
    let settings = Settings { heads, theta: THETA, eps: f64::from(1e-6_f32), starts: &starts };
    let (q64, k64) = (f64s(&q_gain), f64s(&k_gain));
    let exact = forward(&settings, &f64s(&qkv), &q64, &k64);
    let (d_qkv, d_q, d_k) = backward(&settings, &f64s(&d_out), &f64s(&qkv), &q64, &k64);
    let table = Table::new(THETA, heads.head_dim, n_tokens);
    on_each_path(
        |pool| {
            let op = QkNormRope {
                heads,
                q_gain: &q_gain,
                k_gain: &k_gain,
                eps: 1e-6,
                starts: &starts,
                table: &table,
            };
            let (mut out, mut rstd) = (vec![f32::NAN; len], vec![f32::NAN; n_tokens * n_normed]);
            op.forward(pool, &qkv, &mut out, &mut rstd);
            let mut d_qkv = vec![f32::NAN; len];
            let (mut d_q, mut d_k) = (vec![0.0; heads.head_dim], vec![0.0; heads.head_dim]);
            op.backward(pool, &d_out, &qkv, &rstd, &mut d_qkv, &mut d_q, &mut d_k);
            vec![out, d_qkv, d_q, d_k]
        },
        |result| {
            assert_close("out", &result[0], &exact, 8.0);
            assert_close("d_qkv", &result[1], &d_qkv, 16.0);
            let terms = ((n_tokens * heads.n_heads) as f64).sqrt();
            assert_close("d_q_gain", &result[2], &d_q, 8.0 + terms);
            assert_close("d_k_gain", &result[3], &d_k, 8.0 + terms);
        },
    );
}

#[test]
fn shapes_match() {
    for (n_heads, n_kv_heads, head_dim) in [(1, 1, 2), (4, 2, 32), (3, 1, 64), (4, 1, 128)] {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        check(heads, &[1]);
        check(heads, &[3, 70, 1, 9]);
    }
}

#[test]
fn reference_gradients_are_derivatives() {
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 4 };
    let starts = starts(&[2, 3]);
    let settings = Settings { heads, theta: 100.0, eps: 1e-6, starts: &starts };
    let len = starts.len() * heads.qkv_width();
    let (qkv, d_out) = (f64s(&normal("qkv", len)), f64s(&normal("d_out", len)));
    let (q, k) = (f64s(&normal("q", 4)), f64s(&normal("k", 4)));
    let (d_qkv, d_q, d_k) = backward(&settings, &d_out, &qkv, &q, &k);
    assert_gradient("qkv", &qkv, &d_qkv, |x| dot(&d_out, &forward(&settings, x, &q, &k)));
    assert_gradient("q_gain", &q, &d_q, |q| dot(&d_out, &forward(&settings, &qkv, q, &k)));
    assert_gradient("k_gain", &k, &d_k, |k| dot(&d_out, &forward(&settings, &qkv, &q, k)));
}
