//! Matrix products on a device: bf16 in, f32 sums, bf16 or f32 out.

use half::bf16;

use super::{Buffer, Device, Error};
use crate::matmul::Accumulate;

/// Which operand is transposed; all matrices are row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// `c[m, n] = a[m, k] · b[n, k]^T`.
    Nt,
    /// `c[m, n] = a[m, k] · b[k, n]`.
    Nn,
    /// `c[m, n] = a[k, m]^T · b[k, n]`.
    Tn,
}

/// Where a product goes.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// Rounded once.
    Bf16(&'a Buffer<bf16>),
    /// As it is.
    F32(&'a Buffer<f32>),
}

/// A product to compute.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Which operand is transposed.
    pub layout: Layout,
    /// Rows and columns of the result, and the length of its sums.
    pub sizes: [usize; 3],
    /// First operand.
    pub a: &'a Buffer<bf16>,
    /// Second operand.
    pub b: &'a Buffer<bf16>,
    /// The result.
    pub c: Target<'a>,
    /// Whether the result replaces what is there.
    pub accumulate: Accumulate,
}

impl Product<'_> {
    /// Panics when a buffer is shorter than its matrix; devices call it first.
    pub fn check(&self) {
        let [m, n, k] = self.sizes;
        assert!(m > 0 && n > 0 && k > 0, "a product of {:?}", self.sizes);
        assert!(self.a.len() >= m * k, "`a` has {} elements of {:?}", self.a.len(), self.sizes);
        assert!(self.b.len() >= n * k, "`b` has {} elements of {:?}", self.b.len(), self.sizes);
        let len = match self.c {
            Target::Bf16(c) => c.len(),
            Target::F32(c) => c.len(),
        };
        assert!(len >= m * n, "`c` has {len} elements of {:?}", self.sizes);
    }

    /// Computes it on `device`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When a buffer is shorter than its matrix.
    pub fn run(&self, device: &dyn Device) -> Result<(), Error> {
        self.check();
        device.multiply(self)
    }
}
