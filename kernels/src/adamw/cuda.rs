//! Launches of `adamw.cu`.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::Factors;
use crate::cuda::launch::{Element, Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source};

/// Most blocks; the elements go round them.
const BLOCKS_MAX: usize = 132 * 16;

kernel! {
    Step = "adamw_f32" in "adamw.cu", threads 256, shared 0,
    {
        params: Out<f32>, rounded: Out<bf16>, grads: In<f32>, m: Out<f32>, v: Out<f32>, len: u64,
        factors: In<Factors>,
    }
}

// SAFETY: Nine floats, any bits of which are numbers.
unsafe impl Zeroable for Factors {}
// SAFETY: As above, without bytes between them.
unsafe impl Pod for Factors {}

impl Element for Factors {
    const C_NAME: &'static str = "Factors";
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

/// [`super::step`] on a device, which also writes the rounded weights. The factors are in device
/// memory, because they change with each step and its launches do not.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths differ or are not a multiple of 4, or there is not one element of factors.
pub fn step(
    device: &dyn Device,
    state: State<'_>,
    grads: &Buffer<f32>,
    factors: &Buffer<Factors>,
) -> Result<(), Error> {
    let State { params, rounded, m, v } = state;
    let len = params.len();
    assert!(
        rounded.len() == len && grads.len() == len && m.len() == len && v.len() == len,
        "buffers have equal lengths"
    );
    assert!(len > 0 && len.is_multiple_of(4), "{len} weights are not a multiple of 4");
    assert_eq!(factors.len(), 1, "a step has its factors");
    let kernel = Step {
        params: params.output(),
        rounded: rounded.output(),
        grads: grads.input(),
        m: m.output(),
        v: v.output(),
        len: len as u64,
        factors: factors.input(),
    };
    let n_blocks = (len / 4).div_ceil(256).min(BLOCKS_MAX);
    // SAFETY: Elements below `len` of each buffer; parts of an arena are multiples of 16 bytes.
    unsafe { kernel.launch(device, Grid::row(n_blocks as u32, 256)) }
}
