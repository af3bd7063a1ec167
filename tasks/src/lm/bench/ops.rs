//! Every op of a training step by itself.

use kernels::Pool;
use kernels::attention::Heads;
use kernels::bench::{Figure, Sizes, training_ops};
use serde::Serialize;

use super::Workload;
use crate::lm::Config;

/// Timed calls of each op.
pub(super) const N_RUNS: usize = 20;

/// The speed of one op in a training step.
#[derive(Clone, Debug, Serialize)]
pub struct Op {
    /// Op, pass and operand.
    pub op: String,
    /// Calls in a step.
    pub calls: usize,
    /// Milliseconds of a call.
    pub ms: f64,
    /// Share of the step, all of its ops being 1.
    pub share: f64,
    /// GFLOP/s; nothing where memory is the limit.
    pub gflops: Option<f64>,
    /// Share of the peak of the matrix product.
    pub utilisation: Option<f64>,
    /// GB/s, of the bytes that must move.
    pub gigabytes_per_s: f64,
}

/// Times the ops of a step of `workload`, whose peak is `peak_gflops`.
pub(super) fn measure(
    pool: &Pool,
    workload: &Workload,
    config: &Config,
    peak_gflops: f64,
) -> Vec<Op> {
    let rows_micro = (workload.micro_batch_tokens / config.context).clamp(1, workload.rows);
    let n_micro = workload.rows.div_ceil(rows_micro);
    let sizes = Sizes {
        d_model: config.d_model,
        n_layers: config.n_layers,
        heads: Heads {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        },
        n_hidden: config.d_ffn,
        n_vocab: config.vocab_size,
        n_context: config.context,
        n_rows: rows_micro,
    };
    let figures = training_ops(pool, sizes, N_RUNS);
    // The update happens once a step, everything else once a micro-batch.
    let calls = |figure: &Figure| figure.n_calls * if figure.is_once_a_step { 1 } else { n_micro };
    let total: f64 = figures.iter().map(|figure| figure.seconds * calls(figure) as f64).sum();
    figures
        .iter()
        .filter(|figure| figure.n_calls > 0)
        .map(|figure| {
            let is_compute = figure.flop > 0.0;
            Op {
                op: figure.op.clone(),
                calls: calls(figure),
                ms: figure.seconds * 1e3,
                share: figure.seconds * calls(figure) as f64 / total,
                gflops: is_compute.then(|| figure.gflops()),
                utilisation: is_compute.then(|| figure.gflops() / peak_gflops),
                gigabytes_per_s: figure.gigabytes_per_s(),
            }
        })
        .collect()
}
