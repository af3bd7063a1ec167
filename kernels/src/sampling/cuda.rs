//! Launches of `sampling.cu`.

use super::Policy;
use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int};
use crate::philox::Philox;

/// `Scratch` of `sampling.cu`.
const SHARED_BYTES: u32 = 256 * 8 + 256 * 4 + 512 * 8 + 24;

kernel! {
    Draw = "sampling_draw" in "sampling.cu", threads 512, shared SHARED_BYTES,
    {
        logits: In<f32>, streams: In<u64>, positions: In<u64>, tokens: Out<u32>, vocab: i32,
        stride: i32, temperature: f32, top_k: i32, top_p: f64,
    }
}

/// The kernel.
pub static SOURCE: Source =
    Source { name: "sampling.cu", text: include_str!("sampling.cu"), kernels: &[Draw::KERNEL] };

/// What the kernel is given for a row that gives no distribution.
pub const NO_TOKEN: u32 = u32::MAX;

/// A stream as the kernel takes it.
pub fn stream(rng: Philox) -> [u64; 2] {
    rng.raw()
}

/// Draws a token from each row as [`super::Sampler::draw`] does with `Philox::u64(position)`;
/// [`NO_TOKEN`] where the logits give no distribution.
///
/// # Shapes
/// `logits`: `[rows, stride]`. `streams`: `[rows, 2]`. `positions`, `tokens`: `[rows]`.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths do not fit, `n_vocab` is 0 or above the stride, or the policy is out of its range.
pub fn draw(
    device: &dyn Device,
    logits: &Buffer<f32>,
    n_vocab: usize,
    policy: &Policy,
    [streams, positions]: [&Buffer<u64>; 2],
    tokens: &Buffer<u32>,
) -> Result<(), Error> {
    let rows = tokens.len();
    let stride = logits.len() / rows;
    assert!(rows > 0 && logits.len() == rows * stride, "`logits` is [rows, stride]");
    assert!(n_vocab > 0 && n_vocab <= stride, "{n_vocab} tokens in rows of {stride}");
    assert!(streams.len() == 2 * rows && positions.len() == rows, "each row has a stream");
    assert!(policy.temperature > 0.0, "temperature {} is not above 0", policy.temperature);
    assert!(policy.top_p > 0.0 && policy.top_p <= 1.0, "top_p {}", policy.top_p);
    let kernel = Draw {
        logits: logits.input(),
        streams: streams.input(),
        positions: positions.input(),
        tokens: tokens.output(),
        vocab: int(n_vocab),
        stride: int(stride),
        temperature: policy.temperature,
        top_k: int(policy.top_k.min(n_vocab)),
        top_p: policy.top_p,
    };
    // SAFETY: Block `r` reads row `r` of each and writes `tokens[r]`.
    unsafe { kernel.launch(device, Grid::row(blocks(rows), 512).shared(SHARED_BYTES)) }
}
