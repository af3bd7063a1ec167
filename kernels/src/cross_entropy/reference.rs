//! The definitions, in `f64`.

use super::IGNORE;
use crate::matmul;

/// (`nll`, `lse`) of each token, both 0 where the target is [`IGNORE`]; see
/// [`super::linear_forward`].
pub fn forward(x: &[f64], w: &[f64], targets: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let n_tokens = targets.len();
    let d = x.len() / n_tokens;
    let v = w.len() / d;
    let logits = matmul::reference::nt(x, w, n_tokens, v, d);
    let (mut nll, mut lse) = (vec![0.0; n_tokens], vec![0.0; n_tokens]);
    for (t, row) in logits.chunks_exact(v).enumerate() {
        if targets[t] != IGNORE {
            lse[t] = log_sum_exp(row);
            nll[t] = lse[t] - row[targets[t] as usize];
        }
    }
    (nll, lse)
}

/// (`d_x`, `d_w`) of `scale * sum_t (nll[t] + z_loss * lse[t]^2)`; see [`super::linear`].
pub fn backward(
    x: &[f64],
    w: &[f64],
    targets: &[u32],
    z_loss: f64,
    scale: f64,
) -> (Vec<f64>, Vec<f64>) {
    let n_tokens = targets.len();
    let d = x.len() / n_tokens;
    let v = w.len() / d;
    let mut d_logits = matmul::reference::nt(x, w, n_tokens, v, d);
    for (row, &target) in d_logits.chunks_exact_mut(v).zip(targets) {
        if target == IGNORE {
            row.fill(0.0);
            continue;
        }
        let lse = log_sum_exp(row);
        for logit in row.iter_mut() {
            *logit = scale * (1.0 + 2.0 * z_loss * lse) * (*logit - lse).exp();
        }
        row[target as usize] -= scale;
    }
    let d_x = matmul::reference::nn(&d_logits, w, n_tokens, d, v);
    let d_w = matmul::reference::tn(&d_logits, x, v, d, n_tokens);
    (d_x, d_w)
}

fn log_sum_exp(row: &[f64]) -> f64 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}
