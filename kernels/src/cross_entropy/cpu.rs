//! Chunks of rows: logits by one product, softmax and gradient in place, then the two products of
//! the gradient while the chunk is in cache.

use super::{IGNORE, Loss, LossSums};
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::isa::per_isa;
use crate::lanes::{exp, max, sum_by};
use crate::matmul::{self, Accumulate, Packed, View, packed_tiled};

/// Logits in a chunk, at most: 8 MB, so that a chunk stays in the last-level cache.
const CHUNK_LOGITS: usize = 1 << 21;
/// Rows of a chunk, at least and at most: few rows make the products slow, many gain nothing.
const CHUNK_ROWS: [usize; 2] = [64, 1024];
/// Rows of a chunk that one task turns into gradients.
const TILE_ROWS: usize = 8;

/// Rows whose logits exist at once, for a vocabulary of `n_vocab`.
pub(super) fn chunk_rows(n_vocab: usize) -> usize {
    (CHUNK_LOGITS / n_vocab).clamp(CHUNK_ROWS[0], CHUNK_ROWS[1])
}

pub(super) fn linear(
    pool: &Pool,
    [x, w]: [&[f32]; 2],
    [d, v]: [usize; 2],
    targets: &[u32],
    loss: Loss,
    [d_x, d_w]: [&mut [f32]; 2],
    scratch: &mut [f32],
) -> LossSums {
    let n_rows_max = chunk_rows(v);
    let mut stats = vec![Row::default(); targets.len().min(n_rows_max)];
    let mut sums = LossSums::default();
    // Packed once for all chunks: for the logits and for the gradient of `x`.
    let w_columns = Packed::in_parallel(pool, View::columns(w, d), d, v);
    let w_rows = Packed::in_parallel(pool, View::rows(w, d), v, d);
    for (chunk, targets) in targets.chunks(n_rows_max).enumerate() {
        let n_rows = targets.len();
        let range = chunk * n_rows_max * d..(chunk * n_rows_max + n_rows) * d;
        let x = &x[range.clone()];
        let logits = &mut scratch[..n_rows * v];
        packed_tiled(pool, logits, View::rows(x, d), &w_columns, n_rows, Accumulate::Overwrite);
        each_tile(pool, logits, v, targets, &mut stats, |logits, targets, stats| {
            gradient_rows(pool.isa(), logits, v, targets, loss, stats);
        });
        let d_logits = View::rows(logits, v);
        packed_tiled(pool, &mut d_x[range], d_logits, &w_rows, n_rows, Accumulate::Overwrite);
        matmul::tn(pool, d_w, logits, x, v, d, n_rows, Accumulate::Add);
        for (row, &target) in stats.iter().zip(targets) {
            if target != IGNORE {
                sums.nll += f64::from(row.nll);
                sums.z += f64::from(row.lse) * f64::from(row.lse);
                sums.n_tokens += 1;
            }
        }
    }
    sums
}

pub(super) fn linear_forward(
    pool: &Pool,
    [x, w]: [&[f32]; 2],
    [d, v]: [usize; 2],
    targets: &[u32],
    nll: &mut [f32],
    scratch: &mut [f32],
) {
    let n_rows_max = chunk_rows(v);
    let mut stats = vec![Row::default(); targets.len().min(n_rows_max)];
    let w_columns = Packed::in_parallel(pool, View::columns(w, d), d, v);
    for (chunk, targets) in targets.chunks(n_rows_max).enumerate() {
        let n_rows = targets.len();
        let x = &x[chunk * n_rows_max * d..][..n_rows * d];
        let logits = &mut scratch[..n_rows * v];
        packed_tiled(pool, logits, View::rows(x, d), &w_columns, n_rows, Accumulate::Overwrite);
        each_tile(pool, logits, v, targets, &mut stats, |logits, targets, stats| {
            nll_rows(pool.isa(), logits, v, targets, stats);
        });
        for (nll, row) in nll[chunk * n_rows_max..].iter_mut().zip(&stats[..n_rows]) {
            *nll = row.nll;
        }
    }
}

/// What the softmax of one row leaves.
#[derive(Clone, Copy, Default)]
struct Row {
    nll: f32,
    lse: f32,
}

/// Runs `work(logits, targets, stats)` on tiles of rows, in parallel.
fn each_tile(
    pool: &Pool,
    logits: &mut [f32],
    v: usize,
    targets: &[u32],
    stats: &mut [Row],
    work: impl Fn(&mut [f32], &[u32], &mut [Row]) + Sync + Send,
) {
    let stats = Disjoint::new(stats);
    pool.for_chunks(logits, TILE_ROWS * v, |tile, logits| {
        let rows = tile * TILE_ROWS..tile * TILE_ROWS + logits.len() / v;
        // SAFETY: Each tile has its own rows.
        let stats = unsafe { stats.slice(rows.clone()) };
        work(logits, &targets[rows], stats);
    });
}

per_isa! {
    fn gradient_rows<M>(
        logits: &mut [f32],
        v: usize,
        targets: &[u32],
        loss: Loss,
        stats: &mut [Row],
    ) {
        for ((row, &target), stats) in logits.chunks_exact_mut(v).zip(targets).zip(stats) {
            if target == IGNORE {
                row.fill(0.0);
                *stats = Row::default();
                continue;
            }
            let target = target as usize;
            let (largest, at_target) = (max(row), row[target]);
            for x in row.iter_mut() {
                *x = exp::<M>(*x - largest);
            }
            let total = sum_by(v, |i| row[i]);
            let lse = largest + total.ln();
            // Both differences are small; their sum keeps digits that `lse - logit` would lose.
            *stats = Row { nll: (largest - at_target) + total.ln(), lse };
            let factor = loss.scale * M::mul_add(2.0 * loss.z_loss, lse, 1.0) / total;
            for x in row.iter_mut() {
                *x *= factor;
            }
            row[target] -= loss.scale;
        }
    }
}

per_isa! {
    fn nll_rows<M>(logits: &[f32], v: usize, targets: &[u32], stats: &mut [Row]) {
        for ((row, &target), stats) in logits.chunks_exact(v).zip(targets).zip(stats) {
            if target == IGNORE {
                *stats = Row::default();
                continue;
            }
            let (largest, at_target) = (max(row), row[target as usize]);
            let log_total = sum_by(v, |i| exp::<M>(row[i] - largest)).ln();
            *stats =
                Row { nll: (largest - at_target) + log_total, lse: largest + log_total };
        }
    }
}
