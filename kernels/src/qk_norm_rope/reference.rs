//! The definitions, in `f64`.

use crate::attention::Heads;
use crate::rms_norm;

/// Sizes and settings of the reference.
pub struct Settings<'a> {
    /// Shape of a packed row.
    pub heads: Heads,
    /// Base of the frequencies.
    pub theta: f64,
    /// Added to the mean square.
    pub eps: f64,
    /// First token of each token's document.
    pub starts: &'a [u32],
}

/// `out`; see [`super::QkNormRope::forward`].
pub fn forward(settings: &Settings<'_>, qkv: &[f64], q_gain: &[f64], k_gain: &[f64]) -> Vec<f64> {
    let Heads { n_heads, n_kv_heads, head_dim } = settings.heads;
    let mut out = qkv.to_vec();
    for (t, row) in out.chunks_exact_mut(settings.heads.qkv_width()).enumerate() {
        let position = t - settings.starts[t] as usize;
        for (h, head) in row.chunks_exact_mut(head_dim).take(n_heads + n_kv_heads).enumerate() {
            let gain = if h < n_heads { q_gain } else { k_gain };
            let normed = rms_norm::reference::forward(head, gain, settings.eps);
            head.copy_from_slice(&rotate(&normed, position, settings.theta, 1.0));
        }
    }
    out
}

/// (`d_qkv`, `d_q_gain`, `d_k_gain`); see [`super::QkNormRope::backward`].
pub fn backward(
    settings: &Settings<'_>,
    d_out: &[f64],
    qkv: &[f64],
    q_gain: &[f64],
    k_gain: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let Heads { n_heads, n_kv_heads, head_dim } = settings.heads;
    let width = settings.heads.qkv_width();
    let mut d_qkv = d_out.to_vec();
    let mut d_gains = [vec![0.0; head_dim], vec![0.0; head_dim]];
    for (t, d_row) in d_qkv.chunks_exact_mut(width).enumerate() {
        let position = t - settings.starts[t] as usize;
        for h in 0..n_heads + n_kv_heads {
            let is_key = usize::from(h >= n_heads);
            let x = &qkv[t * width + h * head_dim..][..head_dim];
            let d_head = &mut d_row[h * head_dim..(h + 1) * head_dim];
            let d_normed = rotate(d_head, position, settings.theta, -1.0);
            let gain = [q_gain, k_gain][is_key];
            let (d_x, d_gain) = rms_norm::reference::backward(&d_normed, x, gain, settings.eps);
            d_head.copy_from_slice(&d_x);
            for (sum, d) in d_gains[is_key].iter_mut().zip(d_gain) {
                *sum += d;
            }
        }
    }
    let [d_q_gain, d_k_gain] = d_gains;
    (d_qkv, d_q_gain, d_k_gain)
}

fn rotate(head: &[f64], position: usize, theta: f64, direction: f64) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for i in 0..half {
        let angle = direction * position as f64 * theta.powf(-(i as f64) / half as f64);
        let (sin, cos) = angle.sin_cos();
        out[i] = head[i] * cos - head[i + half] * sin;
        out[i + half] = head[i + half] * cos + head[i] * sin;
    }
    out
}
