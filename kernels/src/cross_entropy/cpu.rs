//! Chunks of rows, cut into tiles of a few rows. A tile computes its logits, turns them into their
//! gradient and that into the gradient of `x` while they are in its core's cache; the gradient of
//! `w` is a product over the whole chunk.

use super::{IGNORE, Loss, LossSums};
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::isa::per_isa;
use crate::lanes::{exp, max, sum};
use crate::matmul::{Accumulate, Packed, View, packed_tiled, product_at};

/// Logits in a chunk, at most: 8 MB, so that a chunk stays in the last-level cache.
const CHUNK_LOGITS: usize = 1 << 21;
/// Rows of a chunk, at least and at most: few rows make the products slow, many gain nothing.
const CHUNK_ROWS: [usize; 2] = [64, 1024];
/// Rows of a tile.
const TILE_ROWS: usize = 32;

/// Rows whose logits exist at once, for a vocabulary of `n_vocab`.
pub(super) fn chunk_rows(n_vocab: usize) -> usize {
    (CHUNK_LOGITS / n_vocab).clamp(CHUNK_ROWS[0], CHUNK_ROWS[1]) / TILE_ROWS * TILE_ROWS
}

/// Elements from one row of logits to the next. Vocabularies are often powers of two; one cache
/// line more keeps their rows from falling into the same places of the cache.
pub(super) fn logits_stride(n_vocab: usize) -> usize {
    n_vocab.next_multiple_of(16) + 16
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
    let stride = logits_stride(v);
    let mut stats = vec![Row::default(); targets.len().min(n_rows_max)];
    let mut sums = LossSums::default();
    // Packed once for all chunks: for the logits and for the gradient of `x`.
    let w_columns = Packed::in_parallel(pool, View::columns(w, d), d, v);
    let w_rows = Packed::in_parallel(pool, View::rows(w, d), v, d);
    let d_x = Disjoint::new(d_x);
    for (chunk, targets) in targets.chunks(n_rows_max).enumerate() {
        let first = chunk * n_rows_max;
        let n_rows = targets.len();
        let logits = &mut scratch[..n_rows * stride];
        each_tile(pool, logits, v, targets, &mut stats, |row, logits, targets, stats| {
            tile_logits(pool, logits, [d, v], &x[(first + row) * d..], &w_columns);
            gradient_rows(pool.isa(), logits, v, targets, loss, stats);
            let a = View::rows(logits, stride);
            // SAFETY: Each tile writes the gradients of its own rows.
            unsafe {
                let place = [(first + row) * d, d];
                let n_rows = targets.len();
                product_at(pool.isa(), &d_x, place, a, &w_rows, n_rows, Accumulate::Overwrite);
            }
        });
        let x = Packed::in_parallel(pool, View::rows(&x[first * d..], d), n_rows, d);
        packed_tiled(pool, d_w, View::columns(logits, stride), &x, v, Accumulate::Add);
        x.give_back(pool);
        for (row, &target) in stats.iter().zip(targets) {
            if target != IGNORE {
                sums.nll += f64::from(row.nll);
                sums.z += f64::from(row.lse) * f64::from(row.lse);
                sums.n_tokens += 1;
            }
        }
    }
    w_columns.give_back(pool);
    w_rows.give_back(pool);
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
        let first = chunk * n_rows_max;
        let logits = &mut scratch[..targets.len() * logits_stride(v)];
        each_tile(pool, logits, v, targets, &mut stats, |row, logits, targets, stats| {
            tile_logits(pool, logits, [d, v], &x[(first + row) * d..], &w_columns);
            nll_rows(pool.isa(), logits, v, targets, stats);
        });
        for (nll, row) in nll[first..].iter_mut().zip(&stats[..targets.len()]) {
            *nll = row.nll;
        }
    }
    w_columns.give_back(pool);
}

/// Computes the logits of a tile whose first row of `x` is given.
fn tile_logits(pool: &Pool, logits: &mut [f32], [d, v]: [usize; 2], x: &[f32], w: &Packed) {
    let stride = logits_stride(v);
    let n_rows = logits.len() / stride;
    let place = [0, stride];
    // SAFETY: `logits` is borrowed mutably.
    unsafe {
        let logits = Disjoint::new(logits);
        let x = View::rows(x, d);
        product_at(pool.isa(), &logits, place, x, w, n_rows, Accumulate::Overwrite);
    }
}

/// What the softmax of one row leaves.
#[derive(Clone, Copy, Default)]
struct Row {
    nll: f32,
    lse: f32,
}

/// Runs `work(first row, logits, targets, stats)` on tiles of rows, in parallel.
fn each_tile(
    pool: &Pool,
    logits: &mut [f32],
    v: usize,
    targets: &[u32],
    stats: &mut [Row],
    work: impl Fn(usize, &mut [f32], &[u32], &mut [Row]) + Sync + Send,
) {
    let stride = logits_stride(v);
    let stats = Disjoint::new(stats);
    pool.for_chunks(logits, TILE_ROWS * stride, |tile, logits| {
        let first = tile * TILE_ROWS;
        let rows = first..first + logits.len() / stride;
        // SAFETY: Each tile has its own rows.
        let stats = unsafe { stats.slice(rows.clone()) };
        work(first, logits, &targets[rows], stats);
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
        let rows = logits.chunks_exact_mut(logits_stride(v));
        for ((row, &target), stats) in rows.zip(targets).zip(stats) {
            let row = &mut row[..v];
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
            let total = sum(row);
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
    fn nll_rows<M>(logits: &mut [f32], v: usize, targets: &[u32], stats: &mut [Row]) {
        let rows = logits.chunks_exact_mut(logits_stride(v));
        for ((row, &target), stats) in rows.zip(targets).zip(stats) {
            if target == IGNORE {
                *stats = Row::default();
                continue;
            }
            let row = &mut row[..v];
            let (largest, at_target) = (max(row), row[target as usize]);
            for x in row.iter_mut() {
                *x = exp::<M>(*x - largest);
            }
            let log_total = sum(row).ln();
            *stats =
                Row { nll: (largest - at_target) + log_total, lse: largest + log_total };
        }
    }
}
