//! Launches of `qk_norm_rope.cu`.

use half::bf16;

use super::Table;
use crate::attention::Heads;
use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int, sum_rows};

/// Blocks of the backward pass; see [`crate::rms_norm::cuda`].
const BACKWARD_BLOCKS: usize = 264;

macro_rules! kernels_of {
    ($forward:ident = $f:literal, $backward:ident = $b:literal, $shared:literal) => {
        kernel! {
            $forward = $f in "qk_norm_rope.cu", threads 256, shared 0,
            {
                qkv: In<bf16>, gains: In<bf16>, positions: In<u32>, table: In<f32>, out: Out<bf16>,
                rstd: Out<f32>, t: i32, n_heads: i32, n_kv_heads: i32, eps: f32,
            }
        }

        kernel! {
            $backward = $b in "qk_norm_rope.cu", threads 256, shared $shared,
            {
                d_out: In<bf16>, qkv: In<bf16>, gains: In<bf16>, positions: In<u32>,
                table: In<f32>, rstd: In<f32>, d_qkv: Out<bf16>, d_gains: Out<f32>, t: i32,
                n_heads: i32, n_kv_heads: i32,
            }
        }
    };
}

kernels_of!(Forward64 = "qk_norm_rope_64", Backward64 = "qk_norm_rope_backward_64", 4096);
kernels_of!(Forward128 = "qk_norm_rope_128", Backward128 = "qk_norm_rope_backward_128", 8192);

/// The kernels.
pub static SOURCE: Source = Source::new(
    "qk_norm_rope.cu",
    include_str!("qk_norm_rope.cu"),
    &[Forward64::KERNEL, Backward64::KERNEL, Forward128::KERNEL, Backward128::KERNEL],
);

/// Rotations on a device.
pub struct DeviceTable {
    rows: Buffer<f32>,
    head_dim: usize,
}

impl DeviceTable {
    /// Copies a table.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(device: &dyn Device, table: &Table) -> Result<Self, Error> {
        let rows = (0..table.n_positions()).flat_map(|position| {
            let (cos, sin) = table.row(position);
            cos.iter().chain(sin).copied()
        });
        let rows = Buffer::of(device, &rows.collect::<Vec<_>>())?;
        Ok(Self { rows, head_dim: table.head_dim })
    }
}

/// Positions of tokens on a device, checked against a table.
pub struct Positions {
    positions: Buffer<u32>,
    n_rows: usize,
}

impl Positions {
    /// Copies positions to the front of `scratch`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When a position is beyond the table, there are none, or the scratch is too short.
    pub fn new(
        device: &dyn Device,
        positions: &[u32],
        table: &DeviceTable,
        scratch: &Buffer<u32>,
    ) -> Result<Self, Error> {
        let n_rows = table.rows.len() / table.head_dim;
        let largest = positions.iter().copied().max().expect("there are tokens") as usize;
        assert!(largest < n_rows, "position {largest} is beyond a table of {n_rows}");
        let scratch = scratch.front(positions.len());
        scratch.write(device, positions)?;
        Ok(Self { positions: scratch, n_rows })
    }
}

/// The op with what both its passes need; see [`super::QkNormRope`].
#[derive(Clone, Copy)]
pub struct QkNormRope<'a> {
    /// Shape of a packed row.
    pub heads: Heads,
    /// Gains of query heads, then of key heads: `[2, head_dim]`.
    pub gains: &'a Buffer<bf16>,
    /// Added to the mean square.
    pub eps: f32,
    /// Where tokens are in their documents.
    pub positions: &'a Positions,
    /// Rotations.
    pub table: &'a DeviceTable,
}

impl QkNormRope<'_> {
    /// [`super::QkNormRope::forward`] on a device; `out` may be `qkv`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the lengths do not fit, or there is no kernel for the head size.
    pub fn forward(
        &self,
        device: &dyn Device,
        qkv: &Buffer<bf16>,
        out: &Buffer<bf16>,
        rstd: &Buffer<f32>,
    ) -> Result<(), Error> {
        let (t, n_all) = self.check(qkv.len(), rstd.len());
        assert_eq!(out.len(), qkv.len(), "`out` has the shape of `qkv`");
        let [n_heads, n_kv_heads] = [self.heads.n_heads, self.heads.n_kv_heads].map(int);
        let (gains, positions) = (self.gains.input(), self.positions.positions.input());
        let (qkv, table, out) = (qkv.input(), self.table.rows.input(), out.output());
        let (rstd, eps) = (rstd.output(), self.eps);
        let grid = Grid::row(blocks((t * n_all).div_ceil(8)), 256);
        let t = int(t);
        macro_rules! launch {
            ($kernel:ident) => {
                $kernel { qkv, gains, positions, table, out, rstd, t, n_heads, n_kv_heads, eps }
                    .launch(device, grid)
            };
        }
        // SAFETY: A warp touches one head of a row below `t`; positions are inside the table.
        unsafe { if self.heads.head_dim == 64 { launch!(Forward64) } else { launch!(Forward128) } }
    }

    /// Elements of scratch that [`Self::backward`] needs.
    pub fn backward_scratch_len(heads: Heads) -> usize {
        BACKWARD_BLOCKS * 2 * heads.head_dim
    }

    /// [`super::QkNormRope::backward`] on a device: overwrites `d_qkv`, which may be `d_out`, and
    /// adds `d_gains += ..`, `[2, head_dim]`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// As of [`Self::forward`].
    pub fn backward(
        &self,
        device: &dyn Device,
        d_out: &Buffer<bf16>,
        qkv: &Buffer<bf16>,
        rstd: &Buffer<f32>,
        d_qkv: &Buffer<bf16>,
        d_gains: &Buffer<f32>,
        scratch: &Buffer<f32>,
    ) -> Result<(), Error> {
        let (t, n_all) = self.check(qkv.len(), rstd.len());
        let len = qkv.len();
        assert!(d_out.len() == len && d_qkv.len() == len, "gradients have the shape of `qkv`");
        assert_eq!(d_gains.len(), 2 * self.heads.head_dim, "`d_gains` is [2, head_dim]");
        let n_blocks = (t * n_all).div_ceil(8).min(BACKWARD_BLOCKS);
        let shares = scratch.front(n_blocks * d_gains.len());
        let [n_heads, n_kv_heads] = [self.heads.n_heads, self.heads.n_kv_heads].map(int);
        let (gains, positions) = (self.gains.input(), self.positions.positions.input());
        let (table, rstd, t) = (self.table.rows.input(), rstd.input(), int(t));
        let (d_out, qkv, d_qkv) = (d_out.input(), qkv.input(), d_qkv.output());
        let grid = Grid::row(blocks(n_blocks), 256).shared(64 * self.heads.head_dim as u32);
        macro_rules! launch {
            ($kernel:ident) => {
                $kernel {
                    d_out,
                    qkv,
                    gains,
                    positions,
                    table,
                    rstd,
                    d_qkv,
                    d_gains: shares.output(),
                    t,
                    n_heads,
                    n_kv_heads,
                }
                .launch(device, grid)
            };
        }
        // SAFETY: As of `forward`; a block writes its own row of `shares`.
        unsafe {
            if self.heads.head_dim == 64 { launch!(Backward64) } else { launch!(Backward128) }
        }?;
        sum_rows::add(device, &shares, d_gains.len(), d_gains)
    }

    /// Tokens, and heads of a row.
    fn check(&self, qkv_len: usize, rstd_len: usize) -> (usize, usize) {
        let Heads { n_heads, n_kv_heads, head_dim } = self.heads;
        self.heads.check();
        assert!(matches!(head_dim, 64 | 128), "there is no kernel for heads of {head_dim}");
        let (t, table) = (self.positions.positions.len(), self.table);
        assert_eq!(table.head_dim, head_dim, "the table is for this head size");
        assert_eq!(table.rows.len(), self.positions.n_rows * head_dim, "positions fit the table");
        assert_eq!(self.gains.len(), 2 * head_dim, "`gains` is [2, head_dim]");
        assert_eq!(qkv_len, t * self.heads.qkv_width(), "`qkv` is [t, qkv_width]");
        assert_eq!(rstd_len, t * (n_heads + n_kv_heads), "`rstd` is [t, q and k heads]");
        (t, n_heads + 2 * n_kv_heads)
    }
}
