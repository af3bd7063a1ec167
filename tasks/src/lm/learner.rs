//! One optimizer step: gradients summed over micro-batches, their length, the update.

use engine::task::Failure;
use kernels::Pool;
use kernels::cross_entropy::{Loss, LossSums};

use super::backward::{Activations, Recompute};
use super::batch::Batch;
use super::optimizer::{Optimizer, RateScale};
use super::{Config, Weights};

/// How a step turns a batch into an update.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Decay of matrices per unit of learning rate.
    pub weight_decay: f64,
    /// Longest gradient that is taken whole; infinite for no clipping.
    pub clip: f64,
    /// Weight of the squared logarithm of the softmax's denominator.
    pub z_loss: f64,
    /// Most tokens of a micro-batch; a longer row is one of its own.
    pub micro_batch_tokens: usize,
    /// How learning rates depend on width.
    pub rate_scale: RateScale,
}

/// A model that learns, with every buffer that a step needs.
pub struct Learner<'a> {
    pool: &'a Pool,
    settings: Settings,
    pub(super) weights: Weights,
    grads: Weights,
    pub(super) optimizer: Optimizer,
    activations: Activations,
}

impl<'a> Learner<'a> {
    /// Takes the memory to train `weights` on rows of at most `row_tokens_max` tokens.
    pub fn new(
        pool: &'a Pool,
        settings: Settings,
        weights: Weights,
        row_tokens_max: usize,
        recompute: Recompute,
    ) -> Self {
        let capacity = settings.micro_batch_tokens.max(row_tokens_max);
        Self {
            pool,
            settings,
            grads: Weights::zeros(weights.config()),
            optimizer: Optimizer::new(&weights, settings.weight_decay, settings.clip)
                .with_rate_scale(settings.rate_scale),
            activations: Activations::with_recompute(weights.config(), capacity, recompute),
            weights,
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.weights.config()
    }

    /// The model as it is now.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The model at the end.
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// Replaces the gradients by those of the batch's mean loss. `go_on` is asked before each
    /// micro-batch.
    ///
    /// # Errors
    /// What `go_on` returns.
    pub fn gradients(
        &mut self,
        batch: &Batch,
        mut go_on: impl FnMut() -> Result<(), Failure>,
    ) -> Result<LossSums, Failure> {
        self.grads.data_mut().fill(0.0);
        let scale = 1.0 / batch.n_targets().max(1) as f32;
        let loss = Loss { z_loss: self.settings.z_loss as f32, scale };
        let mut sums = LossSums::default();
        for micro in batch.micro_batches(self.settings.micro_batch_tokens) {
            go_on()?;
            let (pool, weights, grads) = (self.pool, &self.weights, &mut self.grads);
            let part = self.activations.loss_and_gradients(pool, weights, &micro, loss, grads);
            sums.nll += part.nll;
            sums.z += part.z;
            sums.n_tokens += part.n_tokens;
        }
        Ok(sums)
    }

    /// The length of the gradients.
    pub fn grad_norm(&self) -> f64 {
        Optimizer::norm(self.pool, &self.grads)
    }

    /// Where the gradients are worst: the part that holds the first number that is not finite, or else
    /// the largest.
    pub fn worst_gradient(&self) -> String {
        let data = self.grads.data();
        let at = data
            .iter()
            .position(|x| !x.is_finite())
            .or_else(|| (0..data.len()).max_by(|&a, &b| data[a].abs().total_cmp(&data[b].abs())));
        let parts = self.grads.parts();
        let named = at.and_then(|at| {
            let part = parts.iter().find(|part| part.range.contains(&at))?;
            Some(format!("{} at an element of `{}`", data[at], part.name))
        });
        named.unwrap_or_else(|| "none".to_owned())
    }

    /// Updates the weights with the gradients, whose length is `grad_norm`. `step` counts from 1.
    pub fn update(&mut self, grad_norm: f64, lr: f64, step: u64) {
        let (pool, grads) = (self.pool, &self.grads);
        self.optimizer.step(pool, &mut self.weights, grads, grad_norm, lr, step);
    }
}
