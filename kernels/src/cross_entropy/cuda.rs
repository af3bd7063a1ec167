//! Launches of `cross_entropy.cu`, between the products that it is fused with.

use half::bf16;

use super::{IGNORE, Loss, LossSums};
use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::product::{Layout, Product, Target};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int, warp_scratch};
use crate::matmul::Accumulate;
use crate::sampling;

/// Bytes of logits of a chunk, about: rows enough to fill a GPU, few enough for the memory.
const CHUNK_BYTES: usize = 256 << 20;

kernel! {
    RowsOf = "cross_entropy_rows" in "cross_entropy.cu", threads 512, shared 128,
    {
        logits: In<f32>, targets: In<u32>, nll: Out<f32>, lse: Out<f32>, d_logits: Out<bf16>,
        vocab: i32, stride: i32, loss: In<f32>,
    }
}

kernel! {
    AddUp = "cross_entropy_sums" in "cross_entropy.cu", threads 1024, shared 256,
    { nll: In<f32>, lse: In<f32>, sums: Out<f64>, rows: i32 }
}

/// The kernels.
pub static SOURCE: Source = Source::new(
    "cross_entropy.cu",
    include_str!("cross_entropy.cu"),
    &[RowsOf::KERNEL, AddUp::KERNEL],
);

/// Targets on a device, checked against a vocabulary.
pub struct Targets {
    ids: Buffer<u32>,
    n_real: usize,
    n_vocab: usize,
}

impl Targets {
    /// Copies targets to the front of `scratch`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are none, one is neither below `n_vocab` nor [`IGNORE`], or the scratch is too
    /// short.
    pub fn new(
        device: &dyn Device,
        targets: &[u32],
        n_vocab: usize,
        scratch: &Buffer<u32>,
    ) -> Result<Self, Error> {
        assert!(!targets.is_empty(), "there are tokens");
        for (t, &target) in targets.iter().enumerate() {
            let known = target == IGNORE || (target as usize) < n_vocab;
            assert!(known, "target {target} of token {t} is not below {n_vocab}");
        }
        let n_real = targets.iter().filter(|&&target| target != IGNORE).count();
        let scratch = scratch.front(targets.len());
        scratch.write(device, targets)?;
        Ok(Self { ids: scratch, n_real, n_vocab })
    }
}

/// A loss on a device: its scale changes with each step, and the launches do not.
pub struct DeviceLoss {
    scale_and_z: Buffer<f32>,
}

impl DeviceLoss {
    /// Copies a loss to `scratch`, which has two elements.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the scratch has another length.
    pub fn new(device: &dyn Device, loss: Loss, scratch: &Buffer<f32>) -> Result<Self, Error> {
        scratch.write(device, &[loss.scale, loss.z_loss])?;
        Ok(Self { scale_and_z: scratch.clone() })
    }
}

/// Buffers of a chunk; see [`Scratch::logits_len`].
#[derive(Clone)]
pub struct Scratch {
    /// Logits.
    pub logits: Buffer<f32>,
    /// Their gradient.
    pub d_logits: Buffer<bf16>,
    /// Negative log likelihood of every token.
    pub nll: Buffer<f32>,
    /// Logarithm of the denominator of every token.
    pub lse: Buffer<f32>,
    /// Two sums.
    pub sums: Buffer<f64>,
}

impl Scratch {
    /// Elements of logits, and as many of their gradient, for streams of at most `n_tokens`: rows
    /// enough to fill a GPU, few enough for its memory. Fewer give more chunks.
    pub fn logits_len(n_tokens: usize, n_vocab: usize) -> usize {
        (CHUNK_BYTES / 4 / n_vocab).clamp(1, n_tokens) * n_vocab
    }
}

/// Where gradients go.
#[derive(Clone, Copy)]
pub struct Gradients<'a> {
    /// Of the states, `[t, d]`: overwritten.
    pub d_x: &'a Buffer<bf16>,
    /// Of the matrix, `[v, d]`: added to.
    pub d_w: &'a Buffer<f32>,
}

/// [`super::linear`] on a device, whose sums [`sums`] gives.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths do not fit, the vocabulary is not a multiple of 8, or the scratch is too short.
pub fn linear(
    device: &dyn Device,
    [x, w]: [&Buffer<bf16>; 2],
    targets: &Targets,
    loss: &DeviceLoss,
    gradients: Gradients<'_>,
    scratch: &Scratch,
) -> Result<(), Error> {
    let d = width([x, w], targets);
    assert_eq!(gradients.d_x.len(), x.len(), "`d_x` has the shape of `x`");
    assert_eq!(gradients.d_w.len(), w.len(), "`d_w` has the shape of `w`");
    let v = targets.n_vocab;
    for (rows, chunk) in chunks(targets, d, scratch) {
        let x_rows = x.slice(chunk);
        logits(device, [&x_rows, w], targets, rows.clone(), scratch, Some(loss))?;
        let (m, d_logits) = (rows.len(), &scratch.d_logits);
        let d_x = gradients.d_x.slice(rows.start * d..rows.end * d);
        let product = |layout, sizes, a, b, c, accumulate| {
            Product { layout, sizes, a, b, c, accumulate }.run(device)
        };
        let overwrite = Accumulate::Overwrite;
        product(Layout::Nn, [m, d, v], d_logits, w, Target::Bf16(&d_x), overwrite)?;
        let d_w = Target::F32(gradients.d_w);
        product(Layout::Tn, [v, d, m], d_logits, &x_rows, d_w, Accumulate::Add)?;
    }
    let n = targets.ids.len();
    let kernel = AddUp {
        nll: scratch.nll.front(n).input(),
        lse: scratch.lse.front(n).input(),
        sums: scratch.sums.front(2).output(),
        rows: int(n),
    };
    let grid = Grid::row(1, 1024).shared(warp_scratch::<f64>(1024));
    // SAFETY: `n` elements of each, and two sums.
    unsafe { kernel.launch(device, grid) }
}

/// The sums of the last [`linear`]; waits for it.
///
/// # Errors
/// When the device fails.
pub fn sums(device: &dyn Device, targets: &Targets, scratch: &Scratch) -> Result<LossSums, Error> {
    let sums = scratch.sums.front(2).read(device)?;
    Ok(LossSums { nll: sums[0], z: sums[1], n_tokens: targets.n_real })
}

/// [`super::linear_forward`] on a device; waits for it.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// As of [`linear`].
pub fn linear_forward(
    device: &dyn Device,
    [x, w]: [&Buffer<bf16>; 2],
    targets: &Targets,
    scratch: &Scratch,
) -> Result<Vec<f32>, Error> {
    let d = width([x, w], targets);
    for (rows, chunk) in chunks(targets, d, scratch) {
        logits(device, [&x.slice(chunk), w], targets, rows, scratch, None)?;
    }
    scratch.nll.front(targets.ids.len()).read(device)
}

/// As [`linear_forward`], with the likeliest token of each row, which goes through `likeliest`:
/// [`sampling::cuda::NO_TOKEN`] where the logits give no distribution.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// As of [`linear`], and when `likeliest` has not one element a row.
pub fn linear_likeliest(
    device: &dyn Device,
    [x, w]: [&Buffer<bf16>; 2],
    targets: &Targets,
    likeliest: &Buffer<u32>,
    scratch: &Scratch,
) -> Result<(Vec<f32>, Vec<u32>), Error> {
    let (d, v) = (width([x, w], targets), targets.n_vocab);
    assert_eq!(likeliest.len(), targets.ids.len(), "a token a row");
    for (rows, chunk) in chunks(targets, d, scratch) {
        logits(device, [&x.slice(chunk), w], targets, rows.clone(), scratch, None)?;
        let row_logits = scratch.logits.front(rows.len() * v);
        sampling::cuda::greedy(device, &row_logits, v, &likeliest.slice(rows))?;
    }
    let nll = scratch.nll.front(targets.ids.len()).read(device)?;
    Ok((nll, likeliest.read(device)?))
}

/// Ranges of rows, and of the elements of `x` in them.
fn chunks(
    targets: &Targets,
    d: usize,
    scratch: &Scratch,
) -> impl Iterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)> {
    let len = scratch.logits.len().min(scratch.d_logits.len());
    let (n, rows) = (targets.ids.len(), len / targets.n_vocab);
    assert!(rows > 0, "the scratch holds a row of {}", targets.n_vocab);
    (0..n).step_by(rows).map(move |first| {
        let end = n.min(first + rows);
        (first..end, first * d..end * d)
    })
}

/// Logits of a chunk, their losses, and their gradient when there is a loss to differentiate.
fn logits(
    device: &dyn Device,
    [x, w]: [&Buffer<bf16>; 2],
    targets: &Targets,
    rows: std::ops::Range<usize>,
    scratch: &Scratch,
    loss: Option<&DeviceLoss>,
) -> Result<(), Error> {
    let (m, v) = (rows.len(), targets.n_vocab);
    let c = Target::F32(&scratch.logits);
    let sizes = [m, v, x.len() / m];
    Product { layout: Layout::Nt, sizes, a: x, b: w, c, accumulate: Accumulate::Overwrite }
        .run(device)?;
    let kernel = RowsOf {
        logits: scratch.logits.input(),
        targets: targets.ids.slice(rows.clone()).input(),
        nll: scratch.nll.slice(rows.clone()).output(),
        lse: scratch.lse.slice(rows).output(),
        d_logits: loss.map_or(Out::new(0), |_| scratch.d_logits.output()),
        vocab: int(v),
        stride: int(v),
        loss: loss.map_or(In::new(0), |loss| loss.scale_and_z.input()),
    };
    let grid = Grid::row(blocks(m), 512).shared(2 * warp_scratch::<f32>(512));
    // SAFETY: Block `r` touches row `r < m` of each; targets are below `v`.
    unsafe { kernel.launch(device, grid) }
}

fn width([x, w]: [&Buffer<bf16>; 2], targets: &Targets) -> usize {
    let (n, v) = (targets.ids.len(), targets.n_vocab);
    let d = x.len() / n;
    assert!(d > 0 && d * n == x.len(), "`x` is [t, d]");
    assert_eq!(w.len(), v * d, "`w` is [v, d]");
    assert!(v.is_multiple_of(8), "a vocabulary of {v} is not a multiple of 8");
    d
}
