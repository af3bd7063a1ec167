//! Rows of a table by token id, and the gradient of the table.

pub mod cuda;

use crate::Pool;
use crate::disjoint::Disjoint;

/// Output rows that one task copies.
const TILE_ROWS: usize = 128;
/// Columns that one task of the backward pass owns.
const TILE_COLS: usize = 64;

/// Copies `out[t] = table[ids[t]]`.
///
/// # Shapes
/// `table`: `[v, d]`, `out`: `[t, d]`, with `t = ids.len()` and `d = out.len() / t`.
///
/// # Panics
/// When an id has no row, or a length is not a whole number of rows.
pub fn forward(pool: &Pool, table: &[f32], ids: &[u32], out: &mut [f32]) {
    let Some(width) = width(ids, out.len()) else { return };
    check_ids(ids, table.len(), width);
    pool.for_chunks(out, TILE_ROWS * width, |tile, rows| {
        for (row, &id) in rows.chunks_exact_mut(width).zip(&ids[tile * TILE_ROWS..]) {
            row.copy_from_slice(&table[id as usize * width..][..width]);
        }
    });
}

/// Adds `d_table[ids[t]] += d_out[t]`, for each row in the order of `t`.
///
/// Tasks own columns, not rows: so equal ids need no atomic operation and sums have one order.
///
/// # Shapes
/// As of [`forward`].
///
/// # Panics
/// When an id has no row, or a length is not a whole number of rows.
pub fn backward(pool: &Pool, ids: &[u32], d_out: &[f32], d_table: &mut [f32]) {
    let Some(width) = width(ids, d_out.len()) else { return };
    check_ids(ids, d_table.len(), width);
    let d_table = Disjoint::new(d_table);
    pool.for_each(width.div_ceil(TILE_COLS), |tile| {
        let cols = tile * TILE_COLS..width.min((tile + 1) * TILE_COLS);
        for (&id, d_row) in ids.iter().zip(d_out.chunks_exact(width)) {
            let start = id as usize * width;
            // SAFETY: Each tile touches its own columns only.
            let target = unsafe { d_table.slice(start + cols.start..start + cols.end) };
            for (target, &d) in target.iter_mut().zip(&d_row[cols.clone()]) {
                *target += d;
            }
        }
    });
}

fn width(ids: &[u32], out_len: usize) -> Option<usize> {
    if ids.is_empty() {
        assert_eq!(out_len, 0, "no ids, no rows");
        return None;
    }
    assert!(out_len.is_multiple_of(ids.len()) && out_len > 0, "each id has one row");
    Some(out_len / ids.len())
}

fn check_ids(ids: &[u32], table_len: usize, width: usize) {
    assert!(table_len.is_multiple_of(width), "the table is a whole number of rows");
    let n_rows = table_len / width;
    let largest = ids.iter().copied().max().unwrap_or(0) as usize;
    assert!(largest < n_rows, "id {largest} has no row in a table of {n_rows}");
}
