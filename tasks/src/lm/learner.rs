//! One optimizer step: gradients summed over micro-batches, their length, the update.
//!
//! The same on the CPU and on a GPU; what differs is behind `backend::Backend`.

mod backend;

use std::sync::Arc;

use engine::task::Failure;
use kernels::Pool;
use kernels::cross_entropy::{Loss, LossSums};
use kernels::cuda::Device;

use super::backward::Recompute;
use super::batch::{Batch, MicroBatch};
use super::optimizer::{RateScale, Rule};
use super::reader::Losses;
use super::{Config, Weights};
use backend::{Backend, OnCpu, OnDevice};

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

impl Settings {
    fn rule(&self) -> Rule {
        let Self { weight_decay, clip, rate_scale, .. } = *self;
        Rule { weight_decay, clip, rate_scale }
    }
}

/// Numbers of tokens that buffers are made for, beside those of a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Longest row.
    pub row_tokens_max: usize,
    /// Most tokens whose losses are asked for at once; 0 when none are.
    pub scored_tokens_max: usize,
}

impl Sizes {
    /// Most tokens of a pass that trains.
    pub fn capacity(&self, settings: &Settings) -> usize {
        settings.micro_batch_tokens.max(self.row_tokens_max)
    }

    /// Most tokens of any pass, where one set of buffers serves all.
    pub fn capacity_of_all(&self, settings: &Settings) -> usize {
        self.capacity(settings).max(self.scored_tokens_max)
    }
}

/// A model that learns, with every buffer that a step needs.
pub struct Learner<'a> {
    settings: Settings,
    backend: Box<dyn Backend + 'a>,
}

impl<'a> Learner<'a> {
    /// Takes the memory to train `weights` on the CPU.
    pub fn new(
        pool: &'a Pool,
        settings: Settings,
        weights: Weights,
        sizes: Sizes,
        recompute: Recompute,
    ) -> Self {
        let capacity = sizes.capacity(&settings);
        let rule = settings.rule();
        let scored = sizes.scored_tokens_max;
        let backend = OnCpu::new(pool, weights, rule, (capacity, recompute), scored);
        Self { settings, backend: Box::new(backend) }
    }

    /// Takes the memory to train `weights` on a device.
    ///
    /// # Errors
    /// When the device has not enough memory.
    ///
    /// # Panics
    /// When there are no kernels for the model; see [`super::device::DeviceModel::supports`].
    pub fn on_device(
        device: Arc<dyn Device>,
        settings: Settings,
        weights: Weights,
        sizes: Sizes,
    ) -> Result<Self, Failure> {
        let capacity = sizes.capacity_of_all(&settings);
        let backend = OnDevice::new(device, weights, settings.rule(), capacity)?;
        Ok(Self { settings, backend: Box::new(backend) })
    }

    /// The device's name; nothing for the CPU.
    pub fn device(&self) -> Option<String> {
        self.backend.device()
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.backend.config()
    }

    /// The model as it is now.
    ///
    /// # Errors
    /// When the device fails.
    pub fn weights(&mut self) -> Result<&Weights, Failure> {
        self.backend.weights()
    }

    /// The model at the end.
    ///
    /// # Errors
    /// When the device fails.
    pub fn into_weights(self) -> Result<Weights, Failure> {
        self.backend.into_weights()
    }

    /// Hands the weights and both moments to `write`.
    ///
    /// # Errors
    /// When the device fails, or `write` does.
    pub fn save(
        &mut self,
        write: impl FnOnce([&[f32]; 3]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        write(self.backend.state()?.each_ref().map(|vector| &**vector))
    }

    /// Lets `read` fill the weights and both moments.
    ///
    /// # Errors
    /// When the device fails, or `read` does.
    pub fn restore(
        &mut self,
        mut read: impl FnMut([&mut [f32]; 3]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.backend.restore(&mut read)
    }

    /// Replaces the gradients by those of the batch's mean loss. `go_on` is asked before each
    /// micro-batch.
    ///
    /// # Errors
    /// What `go_on` returns, or when the device fails.
    pub fn gradients(
        &mut self,
        batch: &Batch,
        mut go_on: impl FnMut() -> Result<(), Failure>,
    ) -> Result<LossSums, Failure> {
        self.backend.clear_gradients()?;
        let scale = 1.0 / batch.n_targets().max(1) as f32;
        let loss = Loss { z_loss: self.settings.z_loss as f32, scale };
        let mut sums = LossSums::default();
        for micro in batch.micro_batches(self.settings.micro_batch_tokens) {
            go_on()?;
            let part = self.backend.add_gradients(&micro, loss)?;
            sums.nll += part.nll;
            sums.z += part.z;
            sums.n_tokens += part.n_tokens;
        }
        Ok(sums)
    }

    /// The length of the gradients.
    ///
    /// # Errors
    /// When the device fails.
    pub fn grad_norm(&mut self) -> Result<f64, Failure> {
        self.backend.grad_norm()
    }

    /// Where the gradients are worst: the part that holds the first number that is not finite, or else
    /// the largest.
    ///
    /// # Errors
    /// When the device fails.
    pub fn worst_gradient(&mut self) -> Result<String, Failure> {
        let grads = self.backend.gradients()?;
        let data = grads.data();
        let at = data
            .iter()
            .position(|x| !x.is_finite())
            .or_else(|| (0..data.len()).max_by(|&a, &b| data[a].abs().total_cmp(&data[b].abs())));
        let parts = grads.parts();
        let named = at.and_then(|at| {
            let part = parts.iter().find(|part| part.range.contains(&at))?;
            Some(format!("{} at an element of `{}`", data[at], part.name))
        });
        Ok(named.unwrap_or_else(|| "none".to_owned()))
    }

    /// Updates the weights with the gradients, whose length is `grad_norm`. `step` counts from 1.
    ///
    /// # Errors
    /// When the device fails.
    pub fn update(&mut self, grad_norm: f64, lr: f64, step: u64) -> Result<(), Failure> {
        self.backend.update(grad_norm, lr, step)
    }
}

impl Losses for Learner<'_> {
    fn nll(&mut self, micro: &MicroBatch<'_>) -> Result<Vec<f32>, Failure> {
        self.backend.nll(micro)
    }
}

#[cfg(test)]
mod tests;
