//! The gated unit of the feed-forward block: `silu(gate) * up`.
//!
//! # Source
//! Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.

pub mod cuda;

use crate::Pool;
use crate::isa::per_isa;
use crate::lanes::exp;

/// Rows that one task computes.
const TILE_ROWS: usize = 32;

/// Writes `out[t, i] = silu(gate[t, i]) * up[t, i]`, with `silu(x) = x / (1 + e^-x)`.
///
/// # Shapes
/// `gate_up`: `[t, 2 * n_hidden]`, gate first. `out`: `[t, n_hidden]`.
///
/// # Panics
/// When the lengths do not fit these shapes.
pub fn forward(pool: &Pool, gate_up: &[f32], n_hidden: usize, out: &mut [f32]) {
    check(gate_up.len(), n_hidden, out.len());
    pool.for_chunks(out, TILE_ROWS * n_hidden, |tile, out| {
        let gate_up = &gate_up[tile * TILE_ROWS * 2 * n_hidden..];
        forward_rows(pool.isa(), gate_up, n_hidden, out);
    });
}

/// Overwrites `d_gate_up` with the gradient of [`forward`]'s input.
///
/// # Shapes
/// `d_out`: `[t, n_hidden]`. `gate_up`, `d_gate_up`: `[t, 2 * n_hidden]`.
///
/// # Panics
/// When the lengths do not fit these shapes.
pub fn backward(
    pool: &Pool,
    d_out: &[f32],
    gate_up: &[f32],
    n_hidden: usize,
    d_gate_up: &mut [f32],
) {
    check(gate_up.len(), n_hidden, d_out.len());
    assert_eq!(gate_up.len(), d_gate_up.len(), "a gradient has the shape of its value");
    pool.for_chunks(d_gate_up, TILE_ROWS * 2 * n_hidden, |tile, d_gate_up| {
        let gate_up = &gate_up[tile * TILE_ROWS * 2 * n_hidden..];
        let d_out = &d_out[tile * TILE_ROWS * n_hidden..];
        backward_rows(pool.isa(), d_out, gate_up, n_hidden, d_gate_up);
    });
}

fn check(gate_up_len: usize, n_hidden: usize, out_len: usize) {
    assert!(n_hidden > 0 && out_len.is_multiple_of(n_hidden), "`out` is [t, n_hidden]");
    assert_eq!(gate_up_len, 2 * out_len, "`gate_up` is [t, 2 * n_hidden]");
}

per_isa! {
    fn forward_rows<M>(gate_up: &[f32], n_hidden: usize, out: &mut [f32]) {
        for (out, row) in out.chunks_exact_mut(n_hidden).zip(gate_up.chunks_exact(2 * n_hidden)) {
            // Lengths that the compiler can see are equal spare a check for each element.
            let (gate, up) = row.split_at(n_hidden);
            let (up, out) = (&up[..n_hidden], &mut out[..n_hidden]);
            for i in 0..n_hidden {
                out[i] = gate[i] * up[i] / (1.0 + exp::<M>(-gate[i]));
            }
        }
    }
}

per_isa! {
    fn backward_rows<M>(d_out: &[f32], gate_up: &[f32], n_hidden: usize, d_gate_up: &mut [f32]) {
        for ((d_row, row), d_out) in d_gate_up
            .chunks_exact_mut(2 * n_hidden)
            .zip(gate_up.chunks_exact(2 * n_hidden))
            .zip(d_out.chunks_exact(n_hidden))
        {
            let (gate, up) = row.split_at(n_hidden);
            let (d_gate, d_up) = d_row.split_at_mut(n_hidden);
            let (up, d_up, d_out) = (&up[..n_hidden], &mut d_up[..n_hidden], &d_out[..n_hidden]);
            for i in 0..n_hidden {
                let sigmoid = 1.0 / (1.0 + exp::<M>(-gate[i]));
                let silu = gate[i] * sigmoid;
                // silu' = sigmoid * (1 + x * (1 - sigmoid))
                let slope = M::mul_add(silu, 1.0 - sigmoid, sigmoid);
                d_gate[i] = d_out[i] * up[i] * slope;
                d_up[i] = d_out[i] * silu;
            }
        }
    }
}

/// The definitions, in `f64`.
pub mod reference {
    /// See [`super::forward`].
    pub fn forward(gate_up: &[f64], n_hidden: usize) -> Vec<f64> {
        let mut out = Vec::with_capacity(gate_up.len() / 2);
        for row in gate_up.chunks_exact(2 * n_hidden) {
            for i in 0..n_hidden {
                out.push(row[i] / (1.0 + (-row[i]).exp()) * row[n_hidden + i]);
            }
        }
        out
    }

    /// See [`super::backward`].
    pub fn backward(d_out: &[f64], gate_up: &[f64], n_hidden: usize) -> Vec<f64> {
        let mut d_gate_up = vec![0.0; gate_up.len()];
        for (t, row) in gate_up.chunks_exact(2 * n_hidden).enumerate() {
            for i in 0..n_hidden {
                let (gate, up) = (row[i], row[n_hidden + i]);
                let sigmoid = 1.0 / (1.0 + (-gate).exp());
                let d = d_out[t * n_hidden + i];
                d_gate_up[t * 2 * n_hidden + i] = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
                d_gate_up[t * 2 * n_hidden + n_hidden + i] = d * gate * sigmoid;
            }
        }
        d_gate_up
    }
}
