//! Launches of `sampling.cu`.

use super::{NotFinite, Policy};
use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int};
use crate::philox::Philox;

/// `Scratch` of `sampling.cu`.
const DRAW_BYTES: u32 = 256 * 8 + 256 * 4 + 512 * 8 + 24;
/// A rank a warp.
const GREEDY_BYTES: u32 = 512 / 32 * 8;

kernel! {
    Adjust = "sampling_adjust" in "sampling.cu", threads 256, shared 0,
    {
        logits: Out<f32>, suppressed: In<u32>, seen: In<u32>, ends: In<u32>, n_suppressed: i32,
        stride: i32, penalty: f32,
    }
}

kernel! {
    Greedy = "sampling_greedy" in "sampling.cu", threads 512, shared GREEDY_BYTES,
    { logits: In<f32>, tokens: Out<u32>, vocab: i32, stride: i32 }
}

kernel! {
    Draw = "sampling_draw" in "sampling.cu", threads 512, shared DRAW_BYTES,
    {
        logits: In<f32>, streams: In<u64>, positions: In<u64>, tokens: Out<u32>, vocab: i32,
        stride: i32, temperature: f32, top_k: i32, top_p: f64,
    }
}

/// The kernels.
pub static SOURCE: Source = Source::new(
    "sampling.cu",
    include_str!("sampling.cu"),
    &[Adjust::KERNEL, Greedy::KERNEL, Draw::KERNEL],
);

/// What the kernels give for a row that gives no distribution.
pub const NO_TOKEN: u32 = u32::MAX;

/// A stream as the kernel takes it.
pub fn stream(rng: Philox) -> [u64; 2] {
    rng.raw()
}

/// What a kernel gave for a row.
///
/// # Errors
/// [`NotFinite`] for [`NO_TOKEN`].
pub fn chosen(token: u32) -> Result<u32, NotFinite> {
    if token == NO_TOKEN { Err(NotFinite) } else { Ok(token) }
}

/// Ids whose logits are changed before a token is chosen: some in every row, others in their row.
pub struct Adjustment {
    suppressed: Buffer<u32>,
    seen: Buffer<u32>,
    ends: Buffer<u32>,
    n_vocab: usize,
    penalty: f32,
}

impl Adjustment {
    /// Copies the ids that are never chosen, and those of each row that `penalty` makes less likely
    /// as [`super::penalize`] does, to the front of `scratch`: at least as many as there are, and an
    /// element more than rows.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When an id is not below `n_vocab`, a row's ids are not ascending, the penalty is not above 0,
    /// or a buffer is too short.
    pub fn new(
        device: &dyn Device,
        suppressed: &[u32],
        seen: &[&[u32]],
        (n_vocab, penalty): (usize, f32),
        scratch: [&Buffer<u32>; 3],
    ) -> Result<Self, Error> {
        assert!(penalty > 0.0 && penalty.is_finite(), "a penalty of {penalty}");
        let mut ids = Vec::new();
        let mut ends = vec![0];
        for row in seen {
            assert!(row.windows(2).all(|two| two[0] < two[1]), "each id occurs once");
            ids.extend_from_slice(row);
            ends.push(int(ids.len()) as u32);
        }
        let largest = suppressed.iter().chain(&ids).max().copied().unwrap_or(0) as usize;
        assert!(largest < n_vocab, "id {largest} of {n_vocab}");
        let put = |buffer: &Buffer<u32>, values: &[u32]| {
            let buffer = buffer.front(values.len());
            buffer.write(device, values).map(|()| buffer)
        };
        let suppressed = put(scratch[0], suppressed)?;
        let (seen, ends) = (put(scratch[1], &ids)?, put(scratch[2], &ends)?);
        Ok(Self { suppressed, seen, ends, n_vocab, penalty })
    }

    /// Changes the logits, `[rows, stride]`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the length does not fit.
    pub fn apply(&self, device: &dyn Device, logits: &Buffer<f32>) -> Result<(), Error> {
        let rows = self.ends.len() - 1;
        let stride = check(logits, rows, self.n_vocab);
        // What is launched depends on the settings and not on what a row has seen, so that a graph of
        // one step is right for the next.
        if self.suppressed.is_empty() && self.penalty.to_bits() == 1.0_f32.to_bits() {
            return Ok(());
        }
        let kernel = Adjust {
            logits: logits.output(),
            suppressed: self.suppressed.input(),
            seen: self.seen.input(),
            ends: self.ends.input(),
            n_suppressed: int(self.suppressed.len()),
            stride: int(stride),
            penalty: self.penalty,
        };
        // SAFETY: Ids are below the vocabulary, and so in block `r`'s row `r`.
        unsafe { kernel.launch(device, Grid::row(blocks(rows), 256)) }
    }
}

/// Writes the likeliest token of each row, as [`super::greedy`] does; [`NO_TOKEN`] where the logits
/// give no distribution.
///
/// # Shapes
/// `logits`: `[rows, stride]`. `tokens`: `[rows]`.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths do not fit, or `n_vocab` is 0 or above the stride.
pub fn greedy(
    device: &dyn Device,
    logits: &Buffer<f32>,
    n_vocab: usize,
    tokens: &Buffer<u32>,
) -> Result<(), Error> {
    let rows = tokens.len();
    let stride = check(logits, rows, n_vocab);
    let (logits, tokens) = (logits.input(), tokens.output());
    let kernel = Greedy { logits, tokens, vocab: int(n_vocab), stride: int(stride) };
    // SAFETY: Block `r` reads row `r` and writes `tokens[r]`.
    unsafe { kernel.launch(device, Grid::row(blocks(rows), 512).shared(GREEDY_BYTES)) }
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
    let stride = check(logits, rows, n_vocab);
    assert!(streams.len() == 2 * rows && positions.len() == rows, "each row has a stream");
    assert!(super::is_temperature(policy.temperature), "temperature {}", policy.temperature);
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
    unsafe { kernel.launch(device, Grid::row(blocks(rows), 512).shared(DRAW_BYTES)) }
}

/// Elements of a row of logits.
fn check(logits: &Buffer<f32>, rows: usize, n_vocab: usize) -> usize {
    assert!(rows > 0 && logits.len().is_multiple_of(rows), "`logits` is [rows, stride]");
    let stride = logits.len() / rows;
    assert!(n_vocab > 0 && n_vocab <= stride, "{n_vocab} tokens in rows of {stride}");
    stride
}
