//! A model that reads: states and losses of tokens, without gradients, on the CPU or on a GPU.

use std::borrow::Cow;
use std::sync::Arc;

use engine::task::{Context, Failure};
use kernels::Pool;
use kernels::cross_entropy::IGNORE;
use kernels::cuda;

use super::batch::MicroBatch;
use super::device::{DeviceModel, Purpose};
use super::{Config, Forward, Weights};
use crate::device;

/// Gives losses of single tokens, wherever the model is.
pub trait Losses {
    /// The negative log likelihood of each target in nats; 0 where there is none.
    ///
    /// # Errors
    /// When the device fails.
    fn nll(&mut self, micro: &MicroBatch<'_>) -> Result<Vec<f32>, Failure>;
}

/// A model that reads, with its buffers.
pub struct Reader<'a> {
    pool: &'a Pool,
    weights: &'a Weights,
    place: Place,
}

enum Place {
    Cpu(Box<Forward>),
    Device(Box<DeviceModel>),
}

impl<'a> Reader<'a> {
    /// A reader of streams of at most `capacity` tokens, where the node's `device` says.
    ///
    /// # Errors
    /// When the node names a GPU that cannot be used.
    pub fn open(
        ctx: &Context,
        pool: &'a Pool,
        weights: &'a Weights,
        capacity: usize,
    ) -> Result<Self, Failure> {
        let device = device::open(ctx, &Self::work(weights.config(), capacity))?;
        Self::new(device, pool, weights, capacity)
    }

    /// What reading streams of at most `capacity` tokens is to ask of a device.
    pub fn work(config: &Config, capacity: usize) -> device::Work {
        DeviceModel::work(config, capacity, Purpose::Read)
    }

    /// A reader on a device that was opened for [`Self::work`], or on the CPU where none was.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(
        device: Option<Arc<dyn cuda::Device>>,
        pool: &'a Pool,
        weights: &'a Weights,
        capacity: usize,
    ) -> Result<Self, Failure> {
        match device {
            None => Ok(Self::on_cpu(pool, weights, capacity)),
            Some(device) => Self::on_device(device, pool, weights, capacity),
        }
    }

    /// A reader on the CPU.
    pub fn on_cpu(pool: &'a Pool, weights: &'a Weights, capacity: usize) -> Self {
        let forward = Forward::new(weights.config(), capacity);
        Self { pool, weights, place: Place::Cpu(Box::new(forward)) }
    }

    pub(super) fn on_device(
        device: Arc<dyn cuda::Device>,
        pool: &'a Pool,
        weights: &'a Weights,
        capacity: usize,
    ) -> Result<Self, Failure> {
        let model =
            DeviceModel::new(device, weights, capacity, Purpose::Read).map_err(device::failure)?;
        Ok(Self { pool, weights, place: Place::Device(Box::new(model)) })
    }

    /// The residual stream after the first `n_blocks` blocks, or the normalized states after all of
    /// them when `n_blocks` is none, `[t, d_model]`. `starts[i]` is the index of the first token that
    /// token `i` attends to.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// As [`Forward::residual`].
    pub fn states(
        &mut self,
        ids: &[u32],
        starts: &[u32],
        n_blocks: Option<usize>,
    ) -> Result<Cow<'_, [f32]>, Failure> {
        match (&mut self.place, n_blocks) {
            (Place::Cpu(forward), None) => {
                Ok(Cow::Borrowed(forward.hidden(self.pool, self.weights, ids, starts)))
            }
            (Place::Cpu(forward), Some(n)) => {
                Ok(Cow::Borrowed(forward.residual(self.pool, self.weights, ids, starts, n)))
            }
            (Place::Device(model), n) => {
                let targets = vec![IGNORE; ids.len()];
                let micro = MicroBatch { ids, starts: starts.to_vec(), targets: &targets };
                model.states(&micro, n).map(Cow::Owned).map_err(device::failure)
            }
        }
    }
}

impl Losses for Reader<'_> {
    fn nll(&mut self, micro: &MicroBatch<'_>) -> Result<Vec<f32>, Failure> {
        match &mut self.place {
            Place::Cpu(forward) => {
                let (pool, weights) = (self.pool, self.weights);
                Ok(forward.nll(pool, weights, micro.ids, &micro.starts, micro.targets))
            }
            Place::Device(model) => model.nll(micro).map_err(device::failure),
        }
    }
}
