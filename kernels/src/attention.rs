//! Causal attention over packed documents, with grouped key and value heads.
//!
//! A stream of tokens holds documents one after the other; token `i` attends to `starts[i]..=i`,
//! where `starts[i]` is the first token of its document. Scores are scaled by `1 / sqrt(head_dim)`.
//!
//! # Source
//! Dao, "`FlashAttention`-2", arXiv 2307.08691, for the tiling and the backward pass.

mod cpu;
pub mod cuda;
pub mod reference;

use std::ops::Range;

use crate::Pool;

/// The heads of a packed row `[q heads | k heads | v heads]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key heads, and as many value heads. Query head `h` reads pair `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
}

impl Heads {
    /// Elements of a packed row.
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Elements of the queries, or of the output, of one token.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Elements of the keys, or of the values, of one token.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Query heads that share one key and value head.
    pub fn group_size(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The query heads that share key and value head `kv_head`.
    pub(crate) fn group(&self, kv_head: usize) -> Range<usize> {
        kv_head * self.group_size()..(kv_head + 1) * self.group_size()
    }

    pub(crate) fn check(&self) {
        assert!(
            self.head_dim > 0 && self.n_kv_heads > 0 && self.n_heads > 0,
            "heads are not empty"
        );
        assert!(
            self.n_heads.is_multiple_of(self.n_kv_heads),
            "{} query heads cannot share {} key heads evenly",
            self.n_heads,
            self.n_kv_heads
        );
    }
}

/// Writes `out[i] = sum_j softmax_j(q[i] · k[j] / sqrt(head_dim)) v[j]` for each head, over
/// `j` in `starts[i]..=i`.
///
/// # Shapes
/// `qkv`: `[t, heads.qkv_width()]`. `out`: `[t, heads.q_width()]`. `lse`: `[t, n_heads]`, the
/// logarithm of the softmax's denominator, kept for [`backward`].
///
/// # Panics
/// When the lengths do not fit these shapes, or `starts` does not split the stream into documents.
pub fn forward(
    pool: &Pool,
    qkv: &[f32],
    heads: Heads,
    starts: &[u32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    check(heads, starts, qkv.len(), out.len(), lse.len());
    cpu::forward(pool, qkv, heads, &documents(starts), out, lse);
}

/// Overwrites `d_qkv` with the gradients of queries, keys and values.
///
/// # Shapes
/// `d_out`, `out`: `[t, heads.q_width()]`. `qkv`, `d_qkv`: `[t, heads.qkv_width()]`.
/// `lse`: `[t, n_heads]`. `out` and `lse` are as written by [`forward`].
///
/// # Panics
/// When the lengths do not fit these shapes, or `starts` does not split the stream into documents.
pub fn backward(
    pool: &Pool,
    d_out: &[f32],
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    heads: Heads,
    starts: &[u32],
    d_qkv: &mut [f32],
) {
    check(heads, starts, qkv.len(), out.len(), lse.len());
    assert_eq!(d_out.len(), out.len(), "`d_out` has the shape of `out`");
    assert_eq!(d_qkv.len(), qkv.len(), "`d_qkv` has the shape of `qkv`");
    cpu::backward(pool, [d_out, qkv, out, lse], heads, &documents(starts), d_qkv);
}

fn check(heads: Heads, starts: &[u32], qkv_len: usize, out_len: usize, lse_len: usize) {
    heads.check();
    check_starts(starts);
    let n_tokens = starts.len();
    assert_eq!(qkv_len, n_tokens * heads.qkv_width(), "`qkv` is [t, qkv_width]");
    assert_eq!(out_len, n_tokens * heads.q_width(), "`out` is [t, q_width]");
    assert_eq!(lse_len, n_tokens * heads.n_heads, "`lse` is [t, n_heads]");
}

/// Panics unless each token starts a document or continues the one before it.
pub(crate) fn check_starts(starts: &[u32]) {
    for (t, &start) in starts.iter().enumerate() {
        let continues = t > 0 && start == starts[t - 1];
        assert!(
            start as usize == t || continues,
            "token {t} neither starts a document nor continues the one before it: start {start}"
        );
    }
}

/// The token range of each document.
fn documents(starts: &[u32]) -> Vec<Range<usize>> {
    let mut documents: Vec<Range<usize>> = Vec::new();
    for (t, &start) in starts.iter().enumerate() {
        match documents.last_mut() {
            Some(document) if start as usize != t => document.end = t + 1,
            _ => documents.push(t..t + 1),
        }
    }
    documents
}
