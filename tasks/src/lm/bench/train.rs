//! Training steps on one batch of random tokens.

use std::time::Instant;

use engine::task::Failure;
use kernels::Pool;
use kernels::philox::Philox;

use super::{Workload, median};
use crate::lm::Weights;
use crate::lm::backward::Recompute;
use crate::lm::batch::Batch;
use crate::lm::learner::{Learner, Settings, Sizes};
use crate::lm::optimizer::RateScale;

const LEARNING_RATE: f64 = 3e-4;
/// Steps before the timed ones: the first ones wait for fresh memory.
const N_WARMUP: u64 = 2;

pub(super) struct Trained {
    pub(super) tokens_per_s: f64,
    pub(super) tokens_per_s_best: f64,
    pub(super) loss: [f64; 2],
    pub(super) weights: Weights,
}

/// Trains, with clipping and weight decay as a real run.
pub(super) fn run(pool: &Pool, workload: &Workload, weights: Weights) -> Result<Trained, Failure> {
    let (context, n_vocab) = (weights.config().context, weights.config().vocab_size);
    let batch = batch(workload.rows, context, n_vocab);
    let settings = Settings {
        weight_decay: 0.1,
        clip: 1.0,
        z_loss: 0.0,
        micro_batch_tokens: workload.micro_batch_tokens,
        rate_scale: RateScale::STANDARD,
    };
    let sizes = Sizes { row_tokens_max: context, scored_tokens_max: 0 };
    let mut learner = Learner::new(pool, settings, weights, sizes, Recompute::Nothing);
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for step in 1..=N_WARMUP + workload.steps as u64 {
        let start = Instant::now();
        let sums = learner.gradients(&batch, || Ok(()))?;
        let grad_norm = learner.grad_norm()?;
        learner.update(grad_norm, LEARNING_RATE, step)?;
        seconds.push(start.elapsed().as_secs_f64());
        losses.push(sums.nll / sums.n_tokens as f64);
    }
    let seconds = seconds.split_off(N_WARMUP as usize);
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let rate = |seconds: f64| batch.n_tokens() as f64 / seconds;
    Ok(Trained {
        tokens_per_s: rate(median(seconds)),
        tokens_per_s_best: rate(best),
        loss: [losses[0], losses[losses.len() - 1]],
        weights: learner.into_weights()?,
    })
}

/// Rows of random tokens, each predicted from those before it.
fn batch(rows: usize, context: usize, n_vocab: usize) -> Batch {
    let rng = Philox::new(0, "bench tokens");
    let mut batch = Batch::default();
    for row in 0..rows {
        let id = |i: usize| rng.below((row * (context + 1) + i) as u64, n_vocab as u64) as u32;
        batch.push_span((0..context).map(|i| (id(i), Some(id(i + 1)))));
        batch.end_row();
    }
    batch
}
