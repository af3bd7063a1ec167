//! Launches of `swiglu.cu`.

use half::bf16;

use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int};

/// Rows of one launch: a grid has at most 65,535 blocks in its second direction.
const ROWS_MAX: usize = 65_535;

kernel! {
    Forward = "swiglu_bf16" in "swiglu.cu", threads 256, shared 0,
    { gate_up: In<bf16>, out: Out<bf16>, n_hidden: i32 }
}

kernel! {
    Backward = "swiglu_backward_bf16" in "swiglu.cu", threads 256, shared 0,
    { d_out: In<bf16>, gate_up: In<bf16>, d_gate_up: Out<bf16>, n_hidden: i32 }
}

/// The kernels.
pub static SOURCE: Source =
    Source::new("swiglu.cu", include_str!("swiglu.cu"), &[Forward::KERNEL, Backward::KERNEL]);

/// [`super::forward`] on a device.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths do not fit, or `n_hidden` is not a multiple of 8.
pub fn forward(
    device: &dyn Device,
    gate_up: &Buffer<bf16>,
    n_hidden: usize,
    out: &Buffer<bf16>,
) -> Result<(), Error> {
    for (rows, grid) in launches(gate_up.len(), n_hidden, out.len()) {
        let hidden = rows.start * n_hidden..rows.end * n_hidden;
        let kernel = Forward {
            gate_up: gate_up.slice(2 * hidden.start..2 * hidden.end).input(),
            out: out.slice(hidden).output(),
            n_hidden: int(n_hidden),
        };
        // SAFETY: Row `blockIdx.y` of each buffer, whose lengths were checked.
        unsafe { kernel.launch(device, grid) }?;
    }
    Ok(())
}

/// [`super::backward`] on a device; `d_gate_up` may be `gate_up`.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// As of [`forward`].
pub fn backward(
    device: &dyn Device,
    d_out: &Buffer<bf16>,
    gate_up: &Buffer<bf16>,
    n_hidden: usize,
    d_gate_up: &Buffer<bf16>,
) -> Result<(), Error> {
    assert_eq!(gate_up.len(), d_gate_up.len(), "a gradient has the shape of its value");
    for (rows, grid) in launches(gate_up.len(), n_hidden, d_out.len()) {
        let hidden = rows.start * n_hidden..rows.end * n_hidden;
        let both = 2 * hidden.start..2 * hidden.end;
        let kernel = Backward {
            d_out: d_out.slice(hidden).input(),
            gate_up: gate_up.slice(both.clone()).input(),
            d_gate_up: d_gate_up.slice(both).output(),
            n_hidden: int(n_hidden),
        };
        // SAFETY: As of `forward`; a thread reads its elements of `gate_up` before it writes the
        // same of `d_gate_up`.
        unsafe { kernel.launch(device, grid) }?;
    }
    Ok(())
}

/// Ranges of rows with their grids.
fn launches(
    gate_up_len: usize,
    n_hidden: usize,
    out_len: usize,
) -> impl Iterator<Item = (std::ops::Range<usize>, Grid)> {
    assert!(n_hidden > 0 && n_hidden.is_multiple_of(8), "{n_hidden} is not a multiple of 8");
    assert_eq!(gate_up_len, 2 * out_len, "`gate_up` is [t, 2 * n_hidden]");
    assert!(out_len > 0 && out_len.is_multiple_of(n_hidden), "`out` is [t, n_hidden]");
    let (n_rows, width) = (out_len / n_hidden, blocks((n_hidden / 8).div_ceil(256)));
    (0..n_rows).step_by(ROWS_MAX).map(move |first| {
        let rows = first..n_rows.min(first + ROWS_MAX);
        let height = blocks(rows.len());
        (rows, Grid { blocks: [width, height, 1], threads: 256, shared_bytes: 0 })
    })
}
