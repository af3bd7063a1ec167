//! Launches of `norm.cu`.

use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int, warp_scratch};

/// Elements that a block sums.
const TILE: usize = 32_768;

kernel! {
    Tiles = "norm_tiles_f32" in "norm.cu", threads 256, shared 64,
    { x: In<f32>, partial: Out<f64>, len: u64 }
}

kernel! {
    Finish = "norm_total_f64" in "norm.cu", threads 1024, shared 256,
    { partial: In<f64>, total: Out<f64>, tiles: i32 }
}

/// The kernels.
pub static SOURCE: Source =
    Source::new("norm.cu", include_str!("norm.cu"), &[Tiles::KERNEL, Finish::KERNEL]);

/// Elements of scratch that [`sum_of_squares`] needs for `len`.
pub fn scratch_len(len: usize) -> usize {
    len.div_ceil(TILE) + 1
}

/// [`super::sum_of_squares`] on a device; waits for it.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When `x` is empty or the scratch too short.
pub fn sum_of_squares(
    device: &dyn Device,
    x: &Buffer<f32>,
    scratch: &Buffer<f64>,
) -> Result<f64, Error> {
    assert!(!x.is_empty(), "there is something to sum");
    let n_tiles = x.len().div_ceil(TILE);
    let (partial, total) = (scratch.slice(1..n_tiles + 1), scratch.front(1));
    let tiles = Tiles { x: x.input(), partial: partial.output(), len: x.len() as u64 };
    let grid = Grid::row(blocks(n_tiles), 256).shared(warp_scratch::<f64>(256));
    // SAFETY: Block `i` reads tile `i` of `x` and writes element `i` of `partial`.
    unsafe { tiles.launch(device, grid) }?;
    let sum = Finish { partial: partial.input(), total: total.output(), tiles: int(n_tiles) };
    let grid = Grid::row(1, 1024).shared(warp_scratch::<f64>(1024));
    // SAFETY: All of `partial` and one element of `total`.
    unsafe { sum.launch(device, grid) }?;
    Ok(total.read(device)?[0])
}
