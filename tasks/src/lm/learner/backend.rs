//! What a step asks of the machine that holds the model, and the two kinds of machine.

use std::borrow::Cow;
use std::sync::Arc;

use engine::task::Failure;
use kernels::Pool;
use kernels::cross_entropy::{Loss, LossSums};
use kernels::cuda::Device;

use crate::device::failure;
use crate::lm::backward::{Activations, Recompute};
use crate::lm::batch::MicroBatch;
use crate::lm::device::{DeviceModel, Purpose};
use crate::lm::optimizer::{Optimizer, Rule};
use crate::lm::{Config, Forward, Weights};

/// Fills weights and both moments.
pub(super) type Read<'r> = dyn FnMut([&mut [f32]; 3]) -> Result<(), Failure> + 'r;

/// A model in training, wherever its numbers are. Everything but `device` and `config` fails when the
/// machine does.
pub(super) trait Backend {
    /// The device's name; nothing for the CPU.
    fn device(&self) -> Option<String>;

    /// The model's shape.
    fn config(&self) -> &Config;

    /// Sets all gradients to 0.
    fn clear_gradients(&mut self) -> Result<(), Failure>;

    /// Adds the gradients of a micro-batch.
    fn add_gradients(&mut self, micro: &MicroBatch<'_>, loss: Loss) -> Result<LossSums, Failure>;

    /// The gradients as they are now.
    fn gradients(&mut self) -> Result<Cow<'_, Weights>, Failure>;

    /// The length of the whole gradient.
    fn grad_norm(&mut self) -> Result<f64, Failure>;

    /// Updates the weights with gradients of length `grad_norm`; `step` counts from 1.
    fn update(&mut self, grad_norm: f64, lr: f64, step: u64) -> Result<(), Failure>;

    /// The negative log likelihood of each target in nats; 0 where there is none.
    fn nll(&mut self, micro: &MicroBatch<'_>) -> Result<Vec<f32>, Failure>;

    /// The weights as they are now.
    fn weights(&mut self) -> Result<&Weights, Failure>;

    /// The weights at the end.
    fn into_weights(self: Box<Self>) -> Result<Weights, Failure>;

    /// Weights and both moments.
    fn state(&mut self) -> Result<[Cow<'_, [f32]>; 3], Failure>;

    /// Lets `read` fill weights and both moments.
    fn restore(&mut self, read: &mut Read<'_>) -> Result<(), Failure>;
}

/// A model in this machine's memory, in f32.
pub(super) struct OnCpu<'a> {
    pool: &'a Pool,
    weights: Weights,
    grads: Weights,
    optimizer: Optimizer,
    activations: Activations,
    /// To score tokens without gradients, when that was planned.
    forward: Option<Forward>,
}

impl<'a> OnCpu<'a> {
    pub(super) fn new(
        pool: &'a Pool,
        weights: Weights,
        rule: Rule,
        (capacity, recompute): (usize, Recompute),
        scored_tokens_max: usize,
    ) -> Self {
        let config = weights.config();
        Self {
            pool,
            grads: Weights::zeros(config),
            optimizer: Optimizer::with_rule(&weights, rule),
            activations: Activations::with_recompute(config, capacity, recompute),
            forward: (scored_tokens_max > 0).then(|| Forward::new(config, scored_tokens_max)),
            weights,
        }
    }
}

impl Backend for OnCpu<'_> {
    fn device(&self) -> Option<String> {
        None
    }

    fn config(&self) -> &Config {
        self.weights.config()
    }

    fn clear_gradients(&mut self) -> Result<(), Failure> {
        self.grads.data_mut().fill(0.0);
        Ok(())
    }

    fn add_gradients(&mut self, micro: &MicroBatch<'_>, loss: Loss) -> Result<LossSums, Failure> {
        let (pool, weights, grads) = (self.pool, &self.weights, &mut self.grads);
        Ok(self.activations.loss_and_gradients(pool, weights, micro, loss, grads))
    }

    fn gradients(&mut self) -> Result<Cow<'_, Weights>, Failure> {
        Ok(Cow::Borrowed(&self.grads))
    }

    fn grad_norm(&mut self) -> Result<f64, Failure> {
        Ok(Optimizer::norm(self.pool, &self.grads))
    }

    fn update(&mut self, grad_norm: f64, lr: f64, step: u64) -> Result<(), Failure> {
        let (pool, grads) = (self.pool, &self.grads);
        self.optimizer.step(pool, &mut self.weights, grads, grad_norm, lr, step);
        Ok(())
    }

    fn nll(&mut self, micro: &MicroBatch<'_>) -> Result<Vec<f32>, Failure> {
        let forward = self.forward.as_mut().expect("memory to score was planned");
        Ok(forward.nll(self.pool, &self.weights, micro.ids, &micro.starts, micro.targets))
    }

    fn weights(&mut self) -> Result<&Weights, Failure> {
        Ok(&self.weights)
    }

    fn into_weights(self: Box<Self>) -> Result<Weights, Failure> {
        Ok(self.weights)
    }

    fn state(&mut self) -> Result<[Cow<'_, [f32]>; 3], Failure> {
        let Optimizer { first, second, .. } = &self.optimizer;
        Ok([self.weights.data(), first, second].map(Cow::Borrowed))
    }

    fn restore(&mut self, read: &mut Read<'_>) -> Result<(), Failure> {
        let Optimizer { first, second, .. } = &mut self.optimizer;
        read([self.weights.data_mut(), first, second])
    }
}

/// A model in a device's memory, and the weights as they last were here.
pub(super) struct OnDevice {
    model: DeviceModel,
    rule: Rule,
    weights: Weights,
    /// Whether `weights` are those of the device.
    is_fresh: bool,
}

impl OnDevice {
    pub(super) fn new(
        device: Arc<dyn Device>,
        weights: Weights,
        rule: Rule,
        capacity: usize,
    ) -> Result<Self, Failure> {
        let model =
            DeviceModel::new(device, &weights, capacity, Purpose::Train).map_err(failure)?;
        Ok(Self { model, rule, weights, is_fresh: true })
    }
}

impl Backend for OnDevice {
    fn device(&self) -> Option<String> {
        Some(self.model.device().name())
    }

    fn config(&self) -> &Config {
        self.model.config()
    }

    fn clear_gradients(&mut self) -> Result<(), Failure> {
        self.model.clear_gradients().map_err(failure)
    }

    fn add_gradients(&mut self, micro: &MicroBatch<'_>, loss: Loss) -> Result<LossSums, Failure> {
        self.model.loss_and_gradients(micro, loss).map_err(failure)
    }

    fn gradients(&mut self) -> Result<Cow<'_, Weights>, Failure> {
        let mut grads = Weights::zeros(self.model.config());
        self.model.gradients(&mut grads).map_err(failure)?;
        Ok(Cow::Owned(grads))
    }

    fn grad_norm(&mut self) -> Result<f64, Failure> {
        self.model.gradient_norm().map_err(failure)
    }

    fn update(&mut self, grad_norm: f64, lr: f64, step: u64) -> Result<(), Failure> {
        self.is_fresh = false;
        let (rule, scale) = (self.rule, self.rule.grad_scale(grad_norm));
        self.model.update(|part| rule.settings(part, lr), step, scale).map_err(failure)
    }

    fn nll(&mut self, micro: &MicroBatch<'_>) -> Result<Vec<f32>, Failure> {
        self.model.nll(micro).map_err(failure)
    }

    fn weights(&mut self) -> Result<&Weights, Failure> {
        if !self.is_fresh {
            self.model.weights(&mut self.weights).map_err(failure)?;
            self.is_fresh = true;
        }
        Ok(&self.weights)
    }

    fn into_weights(mut self: Box<Self>) -> Result<Weights, Failure> {
        self.weights()?;
        Ok(self.weights)
    }

    fn state(&mut self) -> Result<[Cow<'_, [f32]>; 3], Failure> {
        let [first, second] = self.model.moments().map_err(failure)?;
        Ok([Cow::Borrowed(self.weights()?.data()), Cow::Owned(first), Cow::Owned(second)])
    }

    fn restore(&mut self, read: &mut Read<'_>) -> Result<(), Failure> {
        let zeros = || vec![0.0; self.weights.data().len()];
        let (mut first, mut second) = (zeros(), zeros());
        read([self.weights.data_mut(), &mut first, &mut second])?;
        self.is_fresh = true;
        self.model.set_weights(&self.weights).map_err(failure)?;
        self.model.set_moments(&first, &second).map_err(failure)
    }
}
