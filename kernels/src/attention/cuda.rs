//! Launches of `attention.cu`, and of `attention_hopper.cu` where the device offers it.

pub mod hopper;

use half::bf16;

use super::{Heads, check_starts};
use crate::cuda::launch::{Grid, Header, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int};

/// Keys of a tile, and queries of a block of the backward pass.
const TILE: usize = 64;
/// Queries of a block of the forward pass.
const QUERIES: usize = 128;
const THREADS: u32 = 128;
/// What both tiers include.
const SOFTMAX: Header = Header { name: "softmax.cuh", text: include_str!("softmax.cuh") };

macro_rules! kernels_of {
    ($dim:literal, $forward:ident = $f:literal, $q:ident = $fq:literal, $kv:ident = $fkv:literal) => {
        kernel! {
            $forward = $f in "attention.cu", threads 128, shared forward_bytes($dim),
            {
                qkv: In<bf16>, starts: In<u32>, out: Out<bf16>, lse: Out<f32>, t: i32,
                n_heads: i32, n_kv_heads: i32, scale: f32,
            }
        }

        kernel! {
            $q = $fq in "attention.cu", threads 128, shared q_bytes($dim),
            {
                d_out: In<bf16>, qkv: In<bf16>, lse: In<f32>, delta: In<f32>, starts: In<u32>,
                d_qkv: Out<bf16>, t: i32, n_heads: i32, n_kv_heads: i32, scale: f32,
            }
        }

        kernel! {
            $kv = $fkv in "attention.cu", threads 128, shared kv_bytes($dim),
            {
                d_out: In<bf16>, qkv: In<bf16>, lse: In<f32>, delta: In<f32>, starts: In<u32>,
                ends: In<u32>, d_qkv: Out<bf16>, t: i32, n_heads: i32, n_kv_heads: i32, scale: f32,
            }
        }
    };
}

kernels_of!(
    64,
    Forward64 = "attention_64",
    BackwardQ64 = "attention_backward_q_64",
    BackwardKv64 = "attention_backward_kv_64"
);
kernels_of!(
    128,
    Forward128 = "attention_128",
    BackwardQ128 = "attention_backward_q_128",
    BackwardKv128 = "attention_backward_kv_128"
);

kernel! {
    Dots = "attention_delta" in "attention.cu", threads 128, shared 0,
    { out: In<bf16>, d_out: In<bf16>, delta: Out<f32>, n_heads: i32, head_dim: i32 }
}

/// The kernels.
pub static SOURCE: Source = Source::new(
    "attention.cu",
    include_str!("attention.cu"),
    &[
        Forward64::KERNEL,
        BackwardQ64::KERNEL,
        BackwardKv64::KERNEL,
        Forward128::KERNEL,
        BackwardQ128::KERNEL,
        BackwardKv128::KERNEL,
        Dots::KERNEL,
    ],
)
.including(&[SOFTMAX]);

/// Queries, and two stages each of keys and values.
const fn forward_bytes(head_dim: u32) -> u32 {
    (QUERIES + 4 * TILE) as u32 * head_dim * 2
}

/// Queries, the output's gradient, two stages of keys, and values.
const fn q_bytes(head_dim: u32) -> u32 {
    5 * TILE as u32 * head_dim * 2
}

/// Tiles of keys and values, two stages of queries and of the output's gradient, and three numbers
/// for each query.
const fn kv_bytes(head_dim: u32) -> u32 {
    let queries = if head_dim == 64 { 64 } else { 32 };
    2 * TILE as u32 * head_dim * 2 + 4 * queries * head_dim * 2 + 6 * queries * 4
}

/// Documents on a device: where the document of each token starts and ends.
pub struct Documents {
    starts: Buffer<u32>,
    ends: Buffer<u32>,
}

impl Documents {
    /// Copies `starts` and what follows from it to the front of two buffers.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When `starts` does not split the stream into documents, or a buffer is too short.
    pub fn new(
        device: &dyn Device,
        starts: &[u32],
        scratch: [&Buffer<u32>; 2],
    ) -> Result<Self, Error> {
        check_starts(starts);
        let mut ends = vec![starts.len() as u32; starts.len()];
        for t in (1..starts.len()).rev() {
            ends[t - 1] = if starts[t] as usize == t { t as u32 } else { ends[t] };
        }
        let [to_starts, to_ends] = scratch.map(|buffer| buffer.front(starts.len()));
        to_starts.write(device, starts)?;
        to_ends.write(device, &ends)?;
        Ok(Self { starts: to_starts, ends: to_ends })
    }

    /// Tokens of the stream.
    pub fn n_tokens(&self) -> usize {
        self.starts.len()
    }
}

/// Whether there are kernels for such heads.
pub fn supports(heads: Heads) -> bool {
    matches!(heads.head_dim, 64 | 128)
}

/// Which kernels compute the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// `attention.cu`: products of warps, from `sm_80` on.
    Warp,
    /// `attention_hopper.cu`: products of warpgroups and the tensor copy engine, on `sm_90a`.
    Warpgroup,
}

impl Tier {
    /// The fastest that a device offers; both take what [`supports`] says.
    pub fn of(device: &dyn Device) -> Self {
        if device.offers(&hopper::SOURCE) { Self::Warpgroup } else { Self::Warp }
    }
}

/// [`super::forward`] on a device.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths do not fit, or [`supports`] says no.
pub fn forward(
    device: &dyn Device,
    qkv: &Buffer<bf16>,
    heads: Heads,
    documents: &Documents,
    out: &Buffer<bf16>,
    lse: &Buffer<f32>,
) -> Result<(), Error> {
    forward_by(Tier::of(device), device, Saved { qkv, out, lse }, heads, documents)
}

/// [`forward`] by the kernels of one tier.
///
/// # Errors
/// When the device fails, or is none of the tier's.
///
/// # Panics
/// As of [`forward`].
pub fn forward_by(
    tier: Tier,
    device: &dyn Device,
    to: Saved<'_>,
    heads: Heads,
    documents: &Documents,
) -> Result<(), Error> {
    let Saved { qkv, out, lse } = to;
    check(heads, documents, qkv.len(), out.len(), lse.len());
    if tier == Tier::Warpgroup {
        return hopper::forward(device, to, heads, documents);
    }
    let (t, [n_heads, n_kv_heads]) = (documents.n_tokens(), counts(heads));
    let grid = grid([t, QUERIES], heads.n_heads, forward_bytes(heads.head_dim as u32));
    let (qkv, starts) = (qkv.input(), documents.starts.input());
    let (out, lse, scale) = (out.output(), lse.output(), scale(heads));
    let t = int(t);
    // SAFETY: Lengths were checked; a block touches the rows of its tile and the tokens before them
    // down to their document's start, and rows from `t` on are not loaded or stored.
    unsafe {
        if heads.head_dim == 64 {
            Forward64 { qkv, starts, out, lse, t, n_heads, n_kv_heads, scale }.launch(device, grid)
        } else {
            Forward128 { qkv, starts, out, lse, t, n_heads, n_kv_heads, scale }.launch(device, grid)
        }
    }
}

/// What the forward pass read and wrote.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Its input.
    pub qkv: &'a Buffer<bf16>,
    /// Its output.
    pub out: &'a Buffer<bf16>,
    /// Its logarithms.
    pub lse: &'a Buffer<f32>,
}

/// [`super::backward`] on a device; `scratch` has the length of `lse` at least.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// As of [`forward`], or when the scratch is too short.
pub fn backward(
    device: &dyn Device,
    d_out: &Buffer<bf16>,
    saved: Saved<'_>,
    heads: Heads,
    documents: &Documents,
    d_qkv: &Buffer<bf16>,
    scratch: &Buffer<f32>,
) -> Result<(), Error> {
    let Saved { qkv, out, lse } = saved;
    check(heads, documents, qkv.len(), out.len(), lse.len());
    assert_eq!(d_out.len(), out.len(), "`d_out` has the shape of `out`");
    assert_eq!(d_qkv.len(), qkv.len(), "`d_qkv` has the shape of `qkv`");
    let (t, [n_heads, n_kv_heads]) = (documents.n_tokens(), counts(heads));
    let delta = scratch.front(lse.len());
    let dots = Dots {
        out: out.input(),
        d_out: d_out.input(),
        delta: delta.output(),
        n_heads,
        head_dim: int(heads.head_dim),
    };
    // SAFETY: Block `i` reads row `i` of both and writes row `i` of `delta`.
    unsafe { dots.launch(device, Grid::row(blocks(t), THREADS)) }?;

    let q_grid = grid([t, TILE], heads.n_heads, q_bytes(heads.head_dim as u32));
    let kv_grid = grid([t, TILE], heads.n_kv_heads, kv_bytes(heads.head_dim as u32));
    let (starts, ends) = (documents.starts.input(), documents.ends.input());
    let (d_out, qkv, lse) = (d_out.input(), qkv.input(), lse.input());
    let (delta, d_qkv, scale, t) = (delta.input(), d_qkv.output(), scale(heads), int(t));
    macro_rules! both {
        ($q:ident, $kv:ident) => {
            // SAFETY: As of `forward`; the two kernels write different columns of `d_qkv`.
            unsafe {
                $q { d_out, qkv, lse, delta, starts, d_qkv, t, n_heads, n_kv_heads, scale }
                    .launch(device, q_grid)?;
                $kv { d_out, qkv, lse, delta, starts, ends, d_qkv, t, n_heads, n_kv_heads, scale }
                    .launch(device, kv_grid)
            }
        };
    }
    if heads.head_dim == 64 {
        both!(BackwardQ64, BackwardKv64)
    } else {
        both!(BackwardQ128, BackwardKv128)
    }
}

fn grid([n_tokens, rows]: [usize; 2], n_heads: usize, shared_bytes: u32) -> Grid {
    let blocks = [blocks(n_tokens.div_ceil(rows)), blocks(n_heads), 1];
    Grid { blocks, threads: THREADS, shared_bytes }
}

fn counts(heads: Heads) -> [i32; 2] {
    [int(heads.n_heads), int(heads.n_kv_heads)]
}

fn scale(heads: Heads) -> f32 {
    1.0 / (heads.head_dim as f32).sqrt()
}

fn check(heads: Heads, documents: &Documents, qkv_len: usize, out_len: usize, lse_len: usize) {
    heads.check();
    assert!(supports(heads), "there is no kernel for heads of {}", heads.head_dim);
    let n_tokens = documents.n_tokens();
    assert!(n_tokens > 0, "there are tokens");
    assert_eq!(qkv_len, n_tokens * heads.qkv_width(), "`qkv` is [t, qkv_width]");
    assert_eq!(out_len, n_tokens * heads.q_width(), "`out` is [t, q_width]");
    assert_eq!(lse_len, n_tokens * heads.n_heads, "`lse` is [t, n_heads]");
}
