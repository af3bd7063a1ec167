//! Vector code over tiles of rows. The gradient of the gain is summed per tile, then over tiles in
//! order.

use crate::Pool;
use crate::disjoint::Disjoint;
use crate::isa::per_isa;
use crate::lanes::{dot, dot3};

/// Rows that one task computes. It fixes the order of sums in the gradient of the gain.
const TILE_ROWS: usize = 64;

pub(super) fn forward(
    pool: &Pool,
    x: &[f32],
    gain: &[f32],
    eps: f32,
    y: &mut [f32],
    rstd: &mut [f32],
) {
    let n_cols = gain.len();
    let y = Disjoint::new(y);
    pool.for_chunks(rstd, TILE_ROWS, |tile, rstd| {
        let start = tile * TILE_ROWS * n_cols;
        let range = start..start + rstd.len() * n_cols;
        // SAFETY: Each tile has its own rows.
        let y = unsafe { y.slice(range.clone()) };
        forward_rows(pool.isa(), &x[range], gain, eps, y, rstd);
    });
}

pub(super) fn backward(
    pool: &Pool,
    d_y: &[f32],
    x: &[f32],
    gain: &[f32],
    rstd: &[f32],
    d_x: &mut [f32],
    d_gain: &mut [f32],
) {
    let n_cols = gain.len();
    let mut partial = vec![0.0; rstd.len().div_ceil(TILE_ROWS) * n_cols];
    let d_x = Disjoint::new(d_x);
    pool.for_chunks(&mut partial, n_cols, |tile, d_gain| {
        let rows = tile * TILE_ROWS..rstd.len().min((tile + 1) * TILE_ROWS);
        let range = rows.start * n_cols..rows.end * n_cols;
        // SAFETY: Each tile has its own rows.
        let d_x = unsafe { d_x.slice(range.clone()) };
        backward_rows(pool.isa(), &d_y[range.clone()], &x[range], gain, &rstd[rows], d_x, d_gain);
    });
    for part in partial.chunks_exact(n_cols) {
        add(pool.isa(), d_gain, part);
    }
}

per_isa! {
    /// `target += delta`.
    pub(crate) fn add<M>(target: &mut [f32], delta: &[f32]) {
        for (target, &delta) in target.iter_mut().zip(delta) {
            *target += delta;
        }
    }
}

per_isa! {
    fn forward_rows<M>(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let n_cols = gain.len();
        for (r, rstd) in rstd.iter_mut().enumerate() {
            let x = &x[r * n_cols..(r + 1) * n_cols];
            let y = &mut y[r * n_cols..(r + 1) * n_cols];
            *rstd = 1.0 / (dot::<M>(x, x) / n_cols as f32 + eps).sqrt();
            for c in 0..n_cols {
                y[c] = x[c] * *rstd * gain[c];
            }
        }
    }
}

per_isa! {
    fn backward_rows<M>(
        d_y: &[f32],
        x: &[f32],
        gain: &[f32],
        rstd: &[f32],
        d_x: &mut [f32],
        d_gain: &mut [f32],
    ) {
        let n_cols = gain.len();
        for (r, &rstd) in rstd.iter().enumerate() {
            let x = &x[r * n_cols..(r + 1) * n_cols];
            let d_y = &d_y[r * n_cols..(r + 1) * n_cols];
            let d_x = &mut d_x[r * n_cols..(r + 1) * n_cols];
            let d_gain = &mut d_gain[..n_cols];
            let mean = dot3::<M>(d_y, gain, x) / n_cols as f32;
            let pull = rstd * rstd * rstd * mean;
            for c in 0..n_cols {
                d_x[c] += M::mul_add(rstd, d_y[c] * gain[c], -(x[c] * pull));
                d_gain[c] = M::mul_add(d_y[c], x[c] * rstd, d_gain[c]);
            }
        }
    }
}
