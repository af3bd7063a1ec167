//! Launches of `attention_hopper.cu`: the forward pass on `sm_90a`.

use half::bf16;

use super::{Documents, Saved, counts, grid, scale};
use crate::attention::Heads;
use crate::cuda::launch::{In, Out, kernel};
use crate::cuda::{Device, Error, HOPPER_HEADER, Matrix, Source, TensorMap, int};

/// Rows of every tile: queries of a block, or keys.
const TILE: usize = 128;
/// A warpgroup that copies, and two that multiply.
const THREADS: u32 = 384;
/// Two stages each of keys and values.
const TILES: u32 = 5;
/// Room for the barriers.
const BARRIER_BYTES: u32 = 80;

macro_rules! forward_of {
    ($dim:literal, $name:ident = $function:literal) => {
        kernel! {
            $name = $function in "attention_hopper.cu", threads THREADS, shared shared_bytes($dim),
            {
                qkv: TensorMap, starts: In<u32>, out: Out<bf16>, lse: Out<f32>, t: i32,
                n_heads: i32, n_kv_heads: i32, scale: f32,
            }
        }
    };
}

forward_of!(64, Forward64 = "attention_hopper_64");
forward_of!(128, Forward128 = "attention_hopper_128");

/// The kernels.
pub static SOURCE: Source = Source::new(
    "attention_hopper.cu",
    include_str!("../attention_hopper.cu"),
    &[Forward64::KERNEL, Forward128::KERNEL],
)
.including(&[super::SOFTMAX, HOPPER_HEADER])
.only("sm_90a");

/// Queries, and two stages each of keys and values; and the barriers.
const fn shared_bytes(head_dim: u32) -> u32 {
    TILES * TILE as u32 * head_dim * 2 + BARRIER_BYTES
}

/// [`super::forward`], whose checks were made.
pub(super) fn forward(
    device: &dyn Device,
    to: Saved<'_>,
    heads: Heads,
    documents: &Documents,
) -> Result<(), Error> {
    let (t, [n_heads, n_kv_heads]) = (documents.n_tokens(), counts(heads));
    let matrix = Matrix { elements: to.qkv, n_columns: heads.qkv_width(), box_rows: TILE };
    let qkv = device.tensor_map(&matrix)?;
    let mut grid = grid([t, TILE], heads.n_heads, shared_bytes(heads.head_dim as u32));
    grid.threads = THREADS;
    let (starts, out, lse) = (documents.starts.input(), to.out.output(), to.lse.output());
    let (t, scale) = (int(t), scale(heads));
    // SAFETY: Lengths were checked; the copy engine keeps to the matrix, a block touches the rows of
    // its tile, and rows from `t` on are not stored.
    unsafe {
        if heads.head_dim == 64 {
            Forward64 { qkv, starts, out, lse, t, n_heads, n_kv_heads, scale }.launch(device, grid)
        } else {
            Forward128 { qkv, starts, out, lse, t, n_heads, n_kv_heads, scale }.launch(device, grid)
        }
    }
}
