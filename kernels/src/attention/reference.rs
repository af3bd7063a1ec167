//! The definitions, in `f64`.

use super::Heads;

/// (`out`, `lse`); see [`super::forward`].
pub fn forward(qkv: &[f64], heads: Heads, starts: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let mut out = vec![0.0; starts.len() * heads.q_width()];
    let mut lse = vec![0.0; starts.len() * heads.n_heads];
    for i in 0..starts.len() {
        for h in 0..heads.n_heads {
            let (weights, row_lse) = softmax(qkv, heads, starts, i, h);
            lse[i * heads.n_heads + h] = row_lse;
            let target = &mut out[i * heads.q_width() + h * heads.head_dim..][..heads.head_dim];
            for (j, weight) in (starts[i] as usize..).zip(&weights) {
                for (target, v) in target.iter_mut().zip(value(qkv, heads, j, h)) {
                    *target += weight * v;
                }
            }
        }
    }
    (out, lse)
}

/// `d_qkv`; see [`super::backward`].
pub fn backward(d_out: &[f64], qkv: &[f64], heads: Heads, starts: &[u32]) -> Vec<f64> {
    let (width, head_dim) = (heads.qkv_width(), heads.head_dim);
    let scale = 1.0 / (head_dim as f64).sqrt();
    let mut d_qkv = vec![0.0; qkv.len()];
    for i in 0..starts.len() {
        for h in 0..heads.n_heads {
            let (weights, _) = softmax(qkv, heads, starts, i, h);
            let d_row = &d_out[i * heads.q_width() + h * head_dim..][..head_dim];
            let first = starts[i] as usize;
            let d_weights: Vec<f64> =
                (first..=i).map(|j| dot(d_row, value(qkv, heads, j, h))).collect();
            let mean = dot(&weights, &d_weights);
            let kv_head = h / heads.group_size();
            let q_at = i * width + h * head_dim;
            for (n, j) in (first..=i).enumerate() {
                let k_at = j * width + heads.q_width() + kv_head * head_dim;
                let v_at = k_at + heads.kv_width();
                let d_score = weights[n] * (d_weights[n] - mean) * scale;
                for c in 0..head_dim {
                    d_qkv[q_at + c] += d_score * qkv[k_at + c];
                    d_qkv[k_at + c] += d_score * qkv[q_at + c];
                    d_qkv[v_at + c] += weights[n] * d_row[c];
                }
            }
        }
    }
    d_qkv
}

/// The weights of token `i` in head `h` over its document, and the logarithm of their denominator.
fn softmax(qkv: &[f64], heads: Heads, starts: &[u32], i: usize, h: usize) -> (Vec<f64>, f64) {
    let head_dim = heads.head_dim;
    let q = &qkv[i * heads.qkv_width() + h * head_dim..][..head_dim];
    let key = |j: usize| {
        let at = heads.q_width() + h / heads.group_size() * head_dim;
        &qkv[j * heads.qkv_width() + at..][..head_dim]
    };
    let scores: Vec<f64> =
        (starts[i] as usize..=i).map(|j| dot(q, key(j)) / (head_dim as f64).sqrt()).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
    (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
}

fn value(qkv: &[f64], heads: Heads, j: usize, h: usize) -> &[f64] {
    let at = heads.q_width() + heads.kv_width() + h / heads.group_size() * heads.head_dim;
    &qkv[j * heads.qkv_width() + at..][..heads.head_dim]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
