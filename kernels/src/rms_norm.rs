//! Root-mean-square normalization.
//!
//! # Source
//! Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467, equation 4.

mod cpu;
pub mod cuda;
pub mod reference;

pub(crate) use cpu::add;

use crate::Pool;

/// Writes `y[r, c] = x[r, c] * rstd[r] * gain[c]` with `rstd[r] = 1 / sqrt(mean_c(x[r, c]^2) + eps)`.
///
/// # Shapes
/// `x`, `y`: `[rows, cols]`. `gain`: `[cols]`. `rstd`: `[rows]`, kept for [`backward`].
///
/// # Panics
/// When the lengths do not fit these shapes.
pub fn forward(pool: &Pool, x: &[f32], gain: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    check(x.len(), gain.len(), rstd.len());
    assert_eq!(x.len(), y.len(), "`y` has the shape of `x`");
    cpu::forward(pool, x, gain, eps, y, rstd);
}

/// Adds the gradients of [`forward`]'s input and gain: `d_x += ..`, `d_gain += ..`.
///
/// # Shapes
/// `d_y`, `x`, `d_x`: `[rows, cols]`. `gain`, `d_gain`: `[cols]`. `rstd`: `[rows]`, as written by
/// the forward pass.
///
/// # Panics
/// When the lengths do not fit these shapes.
pub fn backward(
    pool: &Pool,
    d_y: &[f32],
    x: &[f32],
    gain: &[f32],
    rstd: &[f32],
    d_x: &mut [f32],
    d_gain: &mut [f32],
) {
    check(x.len(), gain.len(), rstd.len());
    assert!(d_y.len() == x.len() && d_x.len() == x.len(), "gradients have the shape of `x`");
    assert_eq!(d_gain.len(), gain.len(), "`d_gain` has the shape of `gain`");
    cpu::backward(pool, d_y, x, gain, rstd, d_x, d_gain);
}

fn check(len: usize, n_cols: usize, n_rows: usize) {
    assert!(n_cols > 0, "a row has columns");
    assert_eq!(len, n_rows * n_cols, "`x` is [rstd.len(), gain.len()]");
}
