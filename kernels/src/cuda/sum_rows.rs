//! Sums over the rows of a small matrix: the end of gradients that blocks add up apart.

use super::launch::{Grid, In, Out, kernel};
use super::{Buffer, Device, Error, Source, blocks, int};

kernel! {
    SumRows = "sum_rows_f32" in "sum_rows.cu", threads 256, shared 1024,
    { x: In<f32>, out: Out<f32>, rows: i32, cols: i32, stride: i32 }
}

/// The kernel.
pub static SOURCE: Source =
    Source::new("sum_rows.cu", include_str!("sum_rows.cu"), &[SumRows::KERNEL]);

/// Adds `out[c] += sum_r x[r * stride + c]` for each `c` of `out`.
///
/// # Panics
/// When `x` is not whole rows of `stride`, or `out` is longer than a row.
pub(crate) fn add(
    device: &dyn Device,
    x: &Buffer<f32>,
    stride: usize,
    out: &Buffer<f32>,
) -> Result<(), Error> {
    let (rows, cols) = (x.len() / stride, out.len());
    assert!(rows > 0 && x.len() == rows * stride, "`x` is [rows, {stride}]");
    assert!(cols > 0 && cols <= stride, "{cols} columns of {stride}");
    let sum = SumRows {
        x: x.input(),
        out: out.output(),
        rows: int(rows),
        cols: int(cols),
        stride: int(stride),
    };
    let grid = Grid::row(blocks(cols.div_ceil(32)), 256).shared(1024);
    // SAFETY: Row `r < rows` of `x` and column `c < cols` of `out` are all that is touched.
    unsafe { sum.launch(device, grid) }
}
