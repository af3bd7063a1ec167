//! RMS normalization of each query and key head, then rotary position embedding, as in Qwen3.
//!
//! # Source
//! Su et al., "`RoFormer`", arXiv 2104.09864, with the halves of a head as the rotated pairs (element
//! `i` with `i + head_dim / 2`), as Hugging Face lays weights out.

mod cpu;
pub mod cuda;
pub mod reference;

use crate::Pool;
use crate::attention::{Heads, check_starts};

/// Cosines and sines of every position and frequency.
pub struct Table {
    head_dim: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Table {
    /// The table for positions `0..n_positions`: angle `position * theta^(-2 i / head_dim)`,
    /// computed in `f64`.
    ///
    /// # Panics
    /// When `head_dim` is odd or 0.
    pub fn new(theta: f64, head_dim: usize, n_positions: usize) -> Self {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2), "heads are rotated in pairs");
        let half = head_dim / 2;
        let angle = |i: usize| (i / half) as f64 * theta.powf(-((i % half) as f64) / half as f64);
        let (sin, cos) = (0..n_positions * half)
            .map(|i| {
                let (sin, cos) = angle(i).sin_cos();
                (sin as f32, cos as f32)
            })
            .unzip();
        Self { head_dim, cos, sin }
    }

    /// Positions in the table.
    pub fn n_positions(&self) -> usize {
        self.cos.len() / (self.head_dim / 2)
    }

    /// (cos, sin) of each frequency at `position`.
    pub(crate) fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.head_dim / 2;
        let range = position * half..(position + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// The op with what both its passes need. Token `t` is at position `t - starts[t]`.
#[derive(Clone, Copy)]
pub struct QkNormRope<'a> {
    /// Shape of a packed row `[q heads | k heads | v heads]`.
    pub heads: Heads,
    /// Gain of each query head: `[head_dim]`.
    pub q_gain: &'a [f32],
    /// Gain of each key head: `[head_dim]`.
    pub k_gain: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
    /// First token of each token's document: `[t]`; see [`crate::attention`].
    pub starts: &'a [u32],
    /// Rotations.
    pub table: &'a Table,
}

impl QkNormRope<'_> {
    /// Writes normalized, rotated queries and keys to `out`, and copies the values.
    ///
    /// # Shapes
    /// `qkv`, `out`: `[t, heads.qkv_width()]`. `rstd`: `[t, n_heads + n_kv_heads]`, kept for
    /// [`Self::backward`].
    ///
    /// # Panics
    /// When the lengths do not fit these shapes, or a position is beyond the table.
    pub fn forward(&self, pool: &Pool, qkv: &[f32], out: &mut [f32], rstd: &mut [f32]) {
        self.check(qkv.len(), rstd.len());
        assert_eq!(out.len(), qkv.len(), "`out` has the shape of `qkv`");
        cpu::forward(pool, self, qkv, out, rstd);
    }

    /// Overwrites `d_qkv` with the gradient of the input (in the value part a copy of `d_out`), and
    /// adds those of the gains: `d_q_gain += ..`, `d_k_gain += ..`.
    ///
    /// # Shapes
    /// `d_out`, `qkv`, `d_qkv`: `[t, heads.qkv_width()]`, where `qkv` is the input of the forward
    /// pass. `rstd`: as written there. `d_q_gain`, `d_k_gain`: `[head_dim]`.
    ///
    /// # Panics
    /// When the lengths do not fit these shapes, or a position is beyond the table.
    pub fn backward(
        &self,
        pool: &Pool,
        d_out: &[f32],
        qkv: &[f32],
        rstd: &[f32],
        d_qkv: &mut [f32],
        d_q_gain: &mut [f32],
        d_k_gain: &mut [f32],
    ) {
        self.check(qkv.len(), rstd.len());
        let len = qkv.len();
        assert!(d_out.len() == len && d_qkv.len() == len, "gradients have the shape of `qkv`");
        assert_eq!(d_q_gain.len(), self.heads.head_dim, "`d_q_gain` is [head_dim]");
        assert_eq!(d_k_gain.len(), self.heads.head_dim, "`d_k_gain` is [head_dim]");
        cpu::backward(pool, self, d_out, qkv, rstd, d_qkv, [d_q_gain, d_k_gain]);
    }

    fn check(&self, qkv_len: usize, rstd_len: usize) {
        let Heads { n_heads, n_kv_heads, head_dim } = self.heads;
        let n_tokens = self.starts.len();
        self.heads.check();
        check_starts(self.starts);
        assert_eq!(self.table.head_dim, head_dim, "the table is for this head size");
        assert_eq!(self.q_gain.len(), head_dim, "`q_gain` is [head_dim]");
        assert_eq!(self.k_gain.len(), head_dim, "`k_gain` is [head_dim]");
        assert_eq!(qkv_len, n_tokens * self.heads.qkv_width(), "`qkv` is [t, qkv_width]");
        assert_eq!(rstd_len, n_tokens * (n_heads + n_kv_heads), "`rstd` is [t, q and k heads]");
        let last = self.starts.iter().enumerate().map(|(t, &s)| t - s as usize).max();
        assert!(
            last.is_none_or(|last| last < self.table.n_positions()),
            "position {last:?} is beyond a table of {}",
            self.table.n_positions()
        );
    }
}
