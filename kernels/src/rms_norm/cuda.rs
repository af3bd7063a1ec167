//! Launches of `rms_norm.cu`.

use half::bf16;

use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int, sum_rows, warp_scratch};

/// Most columns of the backward pass: four vectors of eight for each of 256 threads.
const BACKWARD_COLS_MAX: usize = 8192;
/// Blocks of the backward pass. One number for all GPUs, so that sums have one order: two for each
/// multiprocessor of an H100 or H200.
const BACKWARD_BLOCKS: usize = 264;

kernel! {
    Forward = "rms_norm_bf16" in "rms_norm.cu", threads 256, shared 32,
    { x: In<bf16>, gain: In<bf16>, y: Out<bf16>, rstd: Out<f32>, cols: i32, eps: f32 }
}

kernel! {
    AddForward = "rms_norm_add_bf16" in "rms_norm.cu", threads 256, shared 32,
    {
        x: In<bf16>, delta: In<bf16>, sum: Out<bf16>, gain: In<bf16>, y: Out<bf16>, rstd: Out<f32>,
        cols: i32, eps: f32,
    }
}

kernel! {
    Backward = "rms_norm_backward_bf16" in "rms_norm.cu", threads 256, shared 32,
    {
        d_y: In<bf16>, x: In<bf16>, gain: In<bf16>, rstd: In<f32>, d_x: Out<bf16>,
        d_gains: Out<f32>, rows: i32, cols: i32,
    }
}

/// The kernels.
pub static SOURCE: Source = Source::new(
    "rms_norm.cu",
    include_str!("rms_norm.cu"),
    &[Forward::KERNEL, AddForward::KERNEL, Backward::KERNEL],
);

/// [`super::forward`] on a device.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths do not fit, or there are not a multiple of 8 columns.
pub fn forward(
    device: &dyn Device,
    x: &Buffer<bf16>,
    gain: &Buffer<bf16>,
    eps: f32,
    y: &Buffer<bf16>,
    rstd: &Buffer<f32>,
) -> Result<(), Error> {
    let [rows, cols] = shape(x, gain, rstd);
    assert_eq!(y.len(), x.len(), "`y` has the shape of `x`");
    let kernel = Forward {
        x: x.input(),
        gain: gain.input(),
        y: y.output(),
        rstd: rstd.output(),
        cols: int(cols),
        eps,
    };
    // SAFETY: Block `r` touches row `r` of `x` and `y`, `rstd[r]` and `gain`, whose lengths were
    // checked; a multiple of 8 columns keeps rows 16-byte aligned.
    unsafe { kernel.launch(device, grid(rows, cols)) }
}

/// Writes `sum = x + delta` and normalizes it; `sum` may be `x` or `delta`.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// As of [`forward`].
pub fn add_forward(
    device: &dyn Device,
    [x, delta, sum]: [&Buffer<bf16>; 3],
    gain: &Buffer<bf16>,
    eps: f32,
    y: &Buffer<bf16>,
    rstd: &Buffer<f32>,
) -> Result<(), Error> {
    let [rows, cols] = shape(x, gain, rstd);
    let len = x.len();
    assert!(delta.len() == len && sum.len() == len && y.len() == len, "buffers have one shape");
    let kernel = AddForward {
        x: x.input(),
        delta: delta.input(),
        sum: sum.output(),
        gain: gain.input(),
        y: y.output(),
        rstd: rstd.output(),
        cols: int(cols),
        eps,
    };
    // SAFETY: As of `forward`; an element of `sum` is written by the thread that read its terms.
    unsafe { kernel.launch(device, grid(rows, cols)) }
}

/// Elements of scratch that [`backward`] needs.
pub fn backward_scratch_len(n_rows: usize, n_cols: usize) -> usize {
    BACKWARD_BLOCKS.min(n_rows) * n_cols
}

/// [`super::backward`] on a device: `d_x += ..`, `d_gain += ..`.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// As of [`forward`], or when there are more than 8,192 columns or too little scratch.
pub fn backward(
    device: &dyn Device,
    d_y: &Buffer<bf16>,
    x: &Buffer<bf16>,
    gain: &Buffer<bf16>,
    rstd: &Buffer<f32>,
    d_x: &Buffer<bf16>,
    d_gain: &Buffer<f32>,
    scratch: &Buffer<f32>,
) -> Result<(), Error> {
    let [rows, cols] = shape(x, gain, rstd);
    assert!(cols <= BACKWARD_COLS_MAX, "{cols} columns of at most {BACKWARD_COLS_MAX}");
    assert!(d_y.len() == x.len() && d_x.len() == x.len(), "gradients have the shape of `x`");
    assert_eq!(d_gain.len(), cols, "`d_gain` has the shape of `gain`");
    let shares = scratch.front(backward_scratch_len(rows, cols));
    let kernel = Backward {
        d_y: d_y.input(),
        x: x.input(),
        gain: gain.input(),
        rstd: rstd.input(),
        d_x: d_x.output(),
        d_gains: shares.output(),
        rows: int(rows),
        cols: int(cols),
    };
    let n_blocks = shares.len() / cols;
    let grid = Grid::row(blocks(n_blocks), 256).shared(warp_scratch::<f32>(256));
    // SAFETY: A block touches the rows it goes through and its own row of `shares`.
    unsafe { kernel.launch(device, grid) }?;
    sum_rows::add(device, &shares, cols, d_gain)
}

/// One block a row, with threads for four vectors each.
fn grid(rows: usize, cols: usize) -> Grid {
    let threads = [32, 64, 128].into_iter().find(|n| n * 32 >= cols).unwrap_or(256) as u32;
    Grid::row(blocks(rows), threads).shared(warp_scratch::<f32>(threads))
}

fn shape(x: &Buffer<bf16>, gain: &Buffer<bf16>, rstd: &Buffer<f32>) -> [usize; 2] {
    let (rows, cols) = (rstd.len(), gain.len());
    assert!(cols > 0 && cols.is_multiple_of(8), "{cols} columns are not a multiple of 8");
    assert!(rows > 0 && x.len() == rows * cols, "`x` is [rstd.len(), gain.len()]");
    [rows, cols]
}
