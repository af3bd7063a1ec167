//! Cross-entropy of a linear classifier, fused so that logits never exist as a whole: a chunk of
//! rows at a time, whose gradient replaces its logits in place.

mod cpu;
pub mod cuda;
pub mod reference;

use crate::Pool;

/// The target of a token that carries no loss.
pub const IGNORE: u32 = u32::MAX;

/// What is differentiated: `scale * sum_t (nll[t] + z_loss * lse[t]^2)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Weight of the squared logarithm of the softmax's denominator; 0 for none.
    pub z_loss: f32,
    /// Factor on the whole, such as 1 / (tokens with a target in the step).
    pub scale: f32,
}

/// Sums over the tokens that have a target; `scale` and `z_loss` are not applied.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Sum of the negative log likelihoods, in nats.
    pub nll: f64,
    /// Sum of `lse^2`.
    pub z: f64,
    /// Tokens with a target.
    pub n_tokens: usize,
}

/// Elements that `scratch` of [`linear`] and [`linear_forward`] must have for these sizes.
pub fn scratch_len(n_tokens: usize, n_vocab: usize) -> usize {
    cpu::chunk_rows(n_vocab).min(n_tokens) * cpu::logits_stride(n_vocab)
}

/// Elements that the pool keeps for [`linear`]: the table twice and a chunk of rows, packed.
pub fn packed_len(n_tokens: usize, [d, n_vocab]: [usize; 2]) -> usize {
    (2 * n_vocab + cpu::chunk_rows(n_vocab).min(n_tokens)) * d
}

/// Computes the loss of logits `x · w^T` and its gradients: overwrites `d_x`, adds `d_w += ..`.
///
/// # Shapes
/// `x`, `d_x`: `[t, d]`. `w`, `d_w`: `[v, d]`. `targets`: `[t]`, each below `v` or [`IGNORE`];
/// the rows of `d_x` for the latter are 0. `scratch`: at least [`scratch_len`]; holds one chunk of
/// logits.
///
/// # Panics
/// When the lengths do not fit these shapes, or a target is not below `v`.
pub fn linear(
    pool: &Pool,
    x: &[f32],
    w: &[f32],
    targets: &[u32],
    loss: Loss,
    d_x: &mut [f32],
    d_w: &mut [f32],
    scratch: &mut [f32],
) -> LossSums {
    let Some([d, v]) = sizes(x, w, targets) else { return LossSums::default() };
    assert_eq!(d_x.len(), x.len(), "`d_x` has the shape of `x`");
    assert_eq!(d_w.len(), w.len(), "`d_w` has the shape of `w`");
    check_scratch(scratch, targets.len(), v);
    cpu::linear(pool, [x, w], [d, v], targets, loss, [d_x, d_w], scratch)
}

/// Writes the negative log likelihood of each token, in nats; 0 where the target is [`IGNORE`].
///
/// # Shapes
/// As of [`linear`]; `nll`: `[t]`.
///
/// # Panics
/// When the lengths do not fit these shapes, or a target is not below `v`.
pub fn linear_forward(
    pool: &Pool,
    x: &[f32],
    w: &[f32],
    targets: &[u32],
    nll: &mut [f32],
    scratch: &mut [f32],
) {
    assert_eq!(nll.len(), targets.len(), "`nll` has the shape of `targets`");
    let Some([d, v]) = sizes(x, w, targets) else { return };
    check_scratch(scratch, targets.len(), v);
    cpu::linear_forward(pool, [x, w], [d, v], targets, nll, scratch);
}

/// `[d, v]`, or nothing when there are no tokens.
fn sizes(x: &[f32], w: &[f32], targets: &[u32]) -> Option<[usize; 2]> {
    if targets.is_empty() {
        assert!(x.is_empty(), "no targets, no rows");
        return None;
    }
    let d = x.len() / targets.len();
    assert!(d > 0 && d * targets.len() == x.len(), "`x` is [t, d]");
    assert!(!w.is_empty() && w.len().is_multiple_of(d), "`w` is [v, d]");
    let v = w.len() / d;
    for (t, &target) in targets.iter().enumerate() {
        let known = target == IGNORE || (target as usize) < v;
        assert!(known, "target {target} of token {t} is not below {v}");
    }
    Some([d, v])
}

fn check_scratch(scratch: &[f32], n_tokens: usize, n_vocab: usize) {
    let needed = scratch_len(n_tokens, n_vocab);
    assert!(scratch.len() >= needed, "scratch has {} elements of {needed}", scratch.len());
}
