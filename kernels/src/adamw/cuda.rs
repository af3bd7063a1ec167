//! Launches of `adamw.cu`.

use half::bf16;

use super::{AdamW, Factors};
use crate::cuda::launch::{Argument, Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source};

/// Most blocks; the elements go round them.
const BLOCKS_MAX: usize = 132 * 16;

kernel! {
    Step = "adamw_f32" in "adamw.cu", threads 256, shared 0,
    {
        params: Out<f32>, rounded: Out<bf16>, grads: In<f32>, m: Out<f32>, v: Out<f32>, len: u64,
        by: Factors,
    }
}

impl Argument for Factors {
    fn c_type() -> String {
        "Factors".to_owned()
    }
}

/// The kernel.
pub static SOURCE: Source = Source::new("adamw.cu", include_str!("adamw.cu"), &[Step::KERNEL]);

/// Weights on a device with what updates them.
#[derive(Clone, Copy)]
pub struct State<'a> {
    /// The weights.
    pub params: &'a Buffer<f32>,
    /// The weights rounded, for products.
    pub rounded: &'a Buffer<bf16>,
    /// First moment.
    pub m: &'a Buffer<f32>,
    /// Second moment.
    pub v: &'a Buffer<f32>,
}

/// [`super::step`] on a device, which also writes the rounded weights.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths differ or are not a multiple of 4, or `step` is 0.
pub fn step(
    device: &dyn Device,
    state: State<'_>,
    grads: &Buffer<f32>,
    settings: AdamW,
    step: u64,
    grad_scale: f32,
) -> Result<(), Error> {
    let State { params, rounded, m, v } = state;
    let len = params.len();
    assert!(
        rounded.len() == len && grads.len() == len && m.len() == len && v.len() == len,
        "buffers have equal lengths"
    );
    assert!(len > 0 && len.is_multiple_of(4), "{len} weights are not a multiple of 4");
    assert!(step >= 1, "steps count from 1");
    let kernel = Step {
        params: params.output(),
        rounded: rounded.output(),
        grads: grads.input(),
        m: m.output(),
        v: v.output(),
        len: len as u64,
        by: Factors::of(settings, step, grad_scale),
    };
    let n_blocks = (len / 4).div_ceil(256).min(BLOCKS_MAX);
    // SAFETY: Elements below `len` of each buffer; parts of an arena are multiples of 16 bytes.
    unsafe { kernel.launch(device, Grid::row(n_blocks as u32, 256)) }
}
