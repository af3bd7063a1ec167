//! Speed of each training op at the sizes of one model, beside the peak of the matrix product.
//!
//! Figures are the fastest of several runs, because other work on the machine only ever slows one.

mod measure;

use crate::Pool;
use crate::attention::Heads;
use measure::Workload;

/// Sizes of a training step.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Heads of the attention.
    pub heads: Heads,
    /// Width of the feed-forward block.
    pub n_hidden: usize,
    /// Rows of the (tied) embedding.
    pub n_vocab: usize,
    /// Tokens in a row.
    pub n_context: usize,
    /// Rows in a step.
    pub n_rows: usize,
}

impl Sizes {
    /// The reference model of the speed figures: 5.5 M parameters, 4,096 tokens a step.
    pub const REFERENCE: Self = Self {
        d_model: 256,
        n_layers: 6,
        heads: Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 },
        n_hidden: 704,
        n_vocab: 4096,
        n_context: 256,
        n_rows: 16,
    };

    /// Tokens in a step.
    pub fn n_tokens(&self) -> usize {
        self.n_context * self.n_rows
    }

    /// Parameters of the model, its embedding counted once.
    pub fn n_params(&self) -> usize {
        let attention = self.d_model * (self.heads.qkv_width() + self.heads.q_width());
        let block = attention + 3 * self.d_model * self.n_hidden + 2 * self.d_model;
        let gains = 2 * self.heads.head_dim;
        self.n_layers * (block + gains) + self.d_model * (self.n_vocab + 1)
    }
}

/// The speed of one op.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Op, pass and operand.
    pub op: String,
    /// Time of one call, in seconds: the fastest of the runs.
    pub seconds: f64,
    /// Floating-point operations of one call that a perfect implementation needs; 0 where memory is
    /// the limit.
    pub flop: f64,
    /// Bytes that one call must read and write at least.
    pub bytes: f64,
    /// Calls in a training step.
    pub n_calls: usize,
    /// Whether a step of several micro-batches makes these calls once, not once for each.
    pub is_once_a_step: bool,
}

impl Figure {
    /// GFLOP/s.
    pub fn gflops(&self) -> f64 {
        self.flop / self.seconds / 1e9
    }

    /// GB/s, of the bytes that must move.
    pub fn gigabytes_per_s(&self) -> f64 {
        self.bytes / self.seconds / 1e9
    }
}

/// Rows of the matrices whose product gives the peak: rows of 1,024 elements would evict each other
/// from the cache, and give less.
pub const PEAK_SIZE: usize = 960;

/// GFLOP/s of a product of two square matrices of [`PEAK_SIZE`] rows on the threads of `pool`: the
/// peak that ops are compared with.
pub fn peak_gflops(pool: &Pool, n_runs: usize) -> f64 {
    const SIZE: usize = PEAK_SIZE;
    let (a, b) = (vec![0.5; SIZE * SIZE], vec![0.25; SIZE * SIZE]);
    let mut c = vec![0.0; SIZE * SIZE];
    let seconds = measure::fastest(n_runs, || {
        crate::matmul::nn(
            pool,
            &mut c,
            &a,
            &b,
            SIZE,
            SIZE,
            SIZE,
            crate::matmul::Accumulate::Overwrite,
        );
    });
    2.0 * (SIZE as f64).powi(3) / seconds / 1e9
}

/// Times every op of a training step, each `n_runs` times.
pub fn training_ops(pool: &Pool, sizes: Sizes, n_runs: usize) -> Vec<Figure> {
    let mut workload = Workload::new(pool, sizes, n_runs);
    workload.products();
    workload.attention();
    workload.rows();
    workload.head();
    workload.optimizer();
    workload.into_figures()
}
