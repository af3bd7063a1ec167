//! Matrix products of row-major matrices, in the three forms that a linear layer needs.
//!
//! With weights `W[out, in]` as Hugging Face stores them: forward `y = x W^T` is [`nt`], the
//! gradient of the input `dx = dy W` is [`nn`], and that of the weights `dW += dy^T x` is [`tn`].

mod cpu;
mod microkernel;
pub mod reference;

pub(crate) use cpu::{Packed, View, packed_tiled, product, product_at};

use crate::Pool;

/// What happens to the old content of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// It is replaced.
    Overwrite,
    /// The product is added to it.
    Add,
}

/// Computes `c[m, n] (+)= a[m, k] · b[n, k]^T`.
///
/// # Panics
/// When a slice does not have the length that its shape says.
pub fn nt(
    pool: &Pool,
    c: &mut [f32],
    a: &[f32],
    b: &[f32],
    m: usize,
    n: usize,
    k: usize,
    accumulate: Accumulate,
) {
    assert_eq!(a.len(), m * k, "`a` is [m, k]");
    assert_eq!(b.len(), n * k, "`b` is [n, k]");
    cpu::tiled(pool, c, View::rows(a, k), View::columns(b, k), [m, n, k], accumulate);
}

/// Computes `c[m, n] (+)= a[m, k] · b[k, n]`.
///
/// # Panics
/// When a slice does not have the length that its shape says.
pub fn nn(
    pool: &Pool,
    c: &mut [f32],
    a: &[f32],
    b: &[f32],
    m: usize,
    n: usize,
    k: usize,
    accumulate: Accumulate,
) {
    assert_eq!(a.len(), m * k, "`a` is [m, k]");
    assert_eq!(b.len(), k * n, "`b` is [k, n]");
    cpu::tiled(pool, c, View::rows(a, k), View::rows(b, n), [m, n, k], accumulate);
}

/// Computes `c[m, n] (+)= a[k, m]^T · b[k, n]`.
///
/// # Panics
/// When a slice does not have the length that its shape says.
pub fn tn(
    pool: &Pool,
    c: &mut [f32],
    a: &[f32],
    b: &[f32],
    m: usize,
    n: usize,
    k: usize,
    accumulate: Accumulate,
) {
    assert_eq!(a.len(), k * m, "`a` is [k, m]");
    assert_eq!(b.len(), k * n, "`b` is [k, n]");
    cpu::tiled(pool, c, View::columns(a, m), View::rows(b, n), [m, n, k], accumulate);
}
