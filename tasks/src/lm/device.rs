//! The model on a device of CUDA's kind: forward, backward and update over `kernels::cuda`.
//!
//! The same blocks as on the CPU, in bf16 with f32 sums: products read a rounded copy of the weights,
//! whose masters, gradients and moments are f32. All memory is one arena, planned before; a step
//! allocates nothing. Forward and backward pass of a micro-batch are one graph, and the update is
//! another: between them the CPU learns the gradient's length, and decides. What changes from step to
//! step is written to the device before. What runs here runs on a GPU and on the emulator alike.

mod backward;
pub mod bench;
mod buffers;
pub mod decoder;
mod forward;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use kernels::adamw::{self, AdamW, Factors};
use kernels::attention::{self, Heads};
use kernels::cross_entropy::cuda::{DeviceLoss, Targets};
use kernels::cross_entropy::{self, IGNORE, Loss, LossSums};
use kernels::cuda::graph::Graphs;
use kernels::cuda::memory::Arena;
use kernels::cuda::{Buffer, Device, Error};
use kernels::embedding;
use kernels::embedding::cuda::Ids;
use kernels::norm;
use kernels::qk_norm_rope::Table;
use kernels::qk_norm_rope::cuda::{DeviceTable, Positions, QkNormRope};

use super::batch::MicroBatch;
use super::weights::Part;
use super::{Config, Weights};
use crate::device;
pub use buffers::Purpose;
use buffers::{Buffers, Planner, Training};

/// Parts of a block in the arena.
const BLOCK_PARTS: usize = 8;

/// A model in a device's memory, with every buffer that its purpose needs.
pub struct DeviceModel {
    device: Arc<dyn Device>,
    config: Config,
    parts: Vec<Part>,
    capacity: usize,
    table: DeviceTable,
    buffers: Buffers,
    /// Forward and backward passes, by their tokens.
    passes: Graphs<usize>,
    updates: Graphs<()>,
}

/// Micro-batches of other numbers of tokens whose graphs are kept.
const N_PASSES: usize = 16;

/// A micro-batch on the device.
struct Placed {
    n_tokens: usize,
    ids: Ids,
    documents: attention::cuda::Documents,
    positions: Positions,
    targets: Targets,
}

impl DeviceModel {
    /// Whether there are kernels for a config, and why not.
    ///
    /// # Errors
    /// What stands in the way, with value and limit.
    pub fn supports(config: &Config) -> Result<(), String> {
        if !matches!(config.head_dim, 64 | 128) {
            return Err(format!("a `head_dim` of {} is neither 64 nor 128", config.head_dim));
        }
        for (name, value) in [
            ("d_model", config.d_model),
            ("d_ffn", config.d_ffn),
            ("vocab_size", config.vocab_size),
        ] {
            if !value.is_multiple_of(8) {
                return Err(format!("a `{name}` of {value} is not a multiple of 8"));
            }
        }
        if config.d_model > 8192 {
            return Err(format!("a `d_model` of {} is above 8192", config.d_model));
        }
        Ok(())
    }

    /// Bytes of device memory for passes over at most `capacity` tokens.
    pub fn bytes(config: &Config, capacity: usize, purpose: Purpose) -> u64 {
        let mut planner = Planner::Count(0);
        Buffers::new(config, capacity, purpose, &mut planner);
        planner.bytes()
    }

    /// What a node with such a model is to ask of a device.
    pub fn work(config: &Config, capacity: usize, purpose: Purpose) -> device::Work {
        device::Work {
            supported: Self::supports(config),
            planned_bytes: Self::bytes(config, capacity, purpose),
            remedy: match purpose {
                Purpose::Train => "lower `micro_batch_tokens`, choose a smaller `arch`",
                Purpose::Read => "use a smaller model",
            },
        }
    }

    /// Takes the memory and copies weights there; moments are 0.
    ///
    /// # Errors
    /// When the device has not enough memory.
    ///
    /// # Panics
    /// When [`Self::supports`] says no.
    pub fn new(
        device: Arc<dyn Device>,
        weights: &Weights,
        capacity: usize,
        purpose: Purpose,
    ) -> Result<Self, Error> {
        let config = weights.config().clone();
        Self::supports(&config).unwrap_or_else(|reason| panic!("checked before: {reason}"));
        let mut arena = Arena::new(&*device, Self::bytes(&config, capacity, purpose) as usize)?;
        let buffers = Buffers::new(&config, capacity, purpose, &mut Planner::Take(&mut arena))
            .expect("an arena gives buffers");
        let n_positions = capacity.min(config.context);
        let table = Table::new(config.rope_theta, config.head_dim, n_positions);
        let table = DeviceTable::new(&*device, &table)?;
        let parts = weights.parts();
        let (passes, updates) = (Graphs::new(N_PASSES), Graphs::new(1));
        let model = Self { device, config, parts, capacity, table, buffers, passes, updates };
        if let Some(training) = &model.buffers.training {
            for zero in [&training.first, &training.second, &training.grads] {
                zero.clear(&*model.device)?;
            }
        }
        model.set_weights(weights)?;
        Ok(model)
    }

    /// The same without graphs: each kernel is launched by itself.
    #[must_use]
    pub fn without_graphs(self) -> Self {
        Self { passes: Graphs::new(0), updates: Graphs::new(0), ..self }
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What only training has.
    ///
    /// # Panics
    /// When the model is for reading.
    fn training(&self) -> &Training {
        self.buffers.training.as_ref().expect("the model is made for training")
    }

    /// Replaces the weights.
    ///
    /// # Errors
    /// When the device fails.
    pub fn set_weights(&self, weights: &Weights) -> Result<(), Error> {
        let rounded: Vec<bf16> = weights.data().iter().map(|&x| bf16::from_f32(x)).collect();
        self.buffers.rounded.write(&*self.device, &rounded)?;
        match &self.buffers.training {
            Some(training) => training.params.write(&*self.device, weights.data()),
            None => Ok(()),
        }
    }

    /// Replaces the moments.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the model is for reading; so do all methods below that have to do with training.
    pub fn set_moments(&self, first: &[f32], second: &[f32]) -> Result<(), Error> {
        self.training().first.write(&*self.device, first)?;
        self.training().second.write(&*self.device, second)
    }

    /// Copies the weights back.
    ///
    /// # Errors
    /// When the device fails.
    pub fn weights(&self, weights: &mut Weights) -> Result<(), Error> {
        weights.data_mut().copy_from_slice(&self.training().params.read(&*self.device)?);
        Ok(())
    }

    /// Copies the gradients back.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradients(&self, grads: &mut Weights) -> Result<(), Error> {
        grads.data_mut().copy_from_slice(&self.training().grads.read(&*self.device)?);
        Ok(())
    }

    /// Copies both moments back.
    ///
    /// # Errors
    /// When the device fails.
    pub fn moments(&self) -> Result<[Vec<f32>; 2], Error> {
        let Training { first, second, .. } = self.training();
        Ok([first.read(&*self.device)?, second.read(&*self.device)?])
    }

    /// Sets all gradients to 0.
    ///
    /// # Errors
    /// When the device fails.
    pub fn clear_gradients(&self) -> Result<(), Error> {
        self.training().grads.clear(&*self.device)
    }

    /// The length of the whole gradient.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradient_norm(&self) -> Result<f64, Error> {
        let Training { grads, norm_scratch, .. } = self.training();
        let sum = norm::cuda::sum_of_squares(&*self.device, grads, norm_scratch)?;
        Ok(sum.sqrt())
    }

    /// Runs a micro-batch forward and backward and adds to the gradients, as
    /// [`super::backward::Activations::loss_and_gradients`] does.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the micro-batch exceeds the capacity, a row exceeds the context, or an id is not in the
    /// vocabulary.
    pub fn loss_and_gradients(
        &self,
        batch: &MicroBatch<'_>,
        loss: Loss,
    ) -> Result<LossSums, Error> {
        let (device, placed) = (&*self.device, self.place(batch)?);
        let loss = DeviceLoss::new(device, loss, &self.training().loss)?;
        self.passes.run(device, placed.n_tokens, || {
            self.forward(&placed, self.config.n_layers)?;
            self.backward(&placed, &loss)
        })?;
        cross_entropy::cuda::sums(device, &placed.targets, &self.buffers.classifier)
    }

    /// The negative log likelihood of each target in nats; 0 where there is none.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// As of [`Self::loss_and_gradients`].
    pub fn nll(&self, batch: &MicroBatch<'_>) -> Result<Vec<f32>, Error> {
        let placed = self.place(batch)?;
        self.forward(&placed, self.config.n_layers)?;
        let normed = self.buffers.normed.front(placed.n_tokens * self.config.d_model);
        cross_entropy::cuda::linear_forward(
            &*self.device,
            [&normed, &self.output()],
            &placed.targets,
            &self.buffers.classifier,
        )
    }

    /// What each target gets: its negative log likelihood in nats, and the likeliest token in its
    /// place, [`kernels::sampling::cuda::NO_TOKEN`] where the logits give no distribution. A target
    /// is a row of the stream and a token; a row may have several, and one without costs no logits.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// As of [`Self::loss_and_gradients`], and when there is no such row.
    pub fn likelihoods(
        &self,
        [ids, starts]: [&[u32]; 2],
        targets: &[(usize, u32)],
    ) -> Result<(Vec<f32>, Vec<u32>), Error> {
        let (device, d, vocab) = (&*self.device, self.config.d_model, self.config.vocab_size);
        let none = vec![IGNORE; ids.len()];
        let placed = self.place(&MicroBatch { ids, starts: starts.to_vec(), targets: &none })?;
        self.forward(&placed, self.config.n_layers)?;
        let states = self.buffers.normed.front(placed.n_tokens * d);
        let (mut nll, mut likeliest) = (Vec::new(), Vec::new());
        for targets in targets.chunks(self.capacity) {
            let rows: Vec<u32> = targets.iter().map(|(row, _)| *row as u32).collect();
            let tokens: Vec<u32> = targets.iter().map(|(_, token)| *token).collect();
            // The pass is over, so what it was told of its tokens makes room, as does the stream.
            let room = &self.buffers.tokens;
            let rows = Ids::new(device, &rows, ids.len(), [&room.ids, &room.order, &room.groups])?;
            let wanted = self.residual(0).front(targets.len() * d);
            embedding::cuda::forward(device, &states, &rows, &wanted)?;
            let tokens = Targets::new(device, &tokens, vocab, &room.targets)?;
            let (losses, chosen) = cross_entropy::cuda::linear_likeliest(
                device,
                [&wanted, &self.output()],
                &tokens,
                &room.positions.front(targets.len()),
                &self.buffers.classifier,
            )?;
            nll.extend(losses);
            likeliest.extend(chosen);
        }
        Ok((nll, likeliest))
    }

    /// The residual stream after the first `n_blocks` blocks, or the normalized states after all of
    /// them when `n_blocks` is none: `[t, d_model]`, as bf16 holds it.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// As of [`Self::loss_and_gradients`], and when there are fewer blocks.
    pub fn states(
        &self,
        batch: &MicroBatch<'_>,
        n_blocks: Option<usize>,
    ) -> Result<Vec<f32>, Error> {
        let placed = self.place(batch)?;
        self.forward(&placed, n_blocks.unwrap_or(self.config.n_layers))?;
        let len = placed.n_tokens * self.config.d_model;
        let states = match n_blocks {
            Some(n) => self.residual(n).front(len),
            None => self.buffers.normed.front(len),
        };
        Ok(states.read(&*self.device)?.into_iter().map(bf16::to_f32).collect())
    }

    /// Updates the weights with `settings_of(part)`, gradients times `grad_scale`; `step` counts
    /// from 1.
    ///
    /// # Errors
    /// When the device fails.
    pub fn update(
        &self,
        settings_of: impl Fn(&Part) -> AdamW,
        step: u64,
        grad_scale: f32,
    ) -> Result<(), Error> {
        let (device, training) = (&*self.device, self.training());
        let factors: Vec<Factors> = (self.parts.iter())
            .map(|part| Factors::of(settings_of(part), step, grad_scale))
            .collect();
        training.factors.write(device, &factors)?;
        self.updates.run(device, (), || self.launch_update())
    }

    /// The launches of an update.
    fn launch_update(&self) -> Result<(), Error> {
        let training = self.training();
        for (i, part) in self.parts.iter().enumerate() {
            let range = part.range.clone();
            let state = adamw::cuda::State {
                params: &training.params.slice(range.clone()),
                rounded: &self.buffers.rounded.slice(range.clone()),
                m: &training.first.slice(range.clone()),
                v: &training.second.slice(range.clone()),
            };
            let grads = training.grads.slice(range);
            adamw::cuda::step(&*self.device, state, &grads, &training.factors.slice(i..i + 1))?;
        }
        Ok(())
    }

    fn place(&self, batch: &MicroBatch<'_>) -> Result<Placed, Error> {
        let (device, tokens) = (&*self.device, &self.buffers.tokens);
        let n_tokens = batch.ids.len();
        assert!(n_tokens <= self.capacity, "{n_tokens} tokens of {}", self.capacity);
        let positions: Vec<u32> = (0..).zip(&batch.starts).map(|(t, start)| t - start).collect();
        let vocab = self.config.vocab_size;
        Ok(Placed {
            n_tokens,
            ids: Ids::new(device, batch.ids, vocab, [&tokens.ids, &tokens.order, &tokens.groups])?,
            documents: attention::cuda::Documents::new(
                device,
                &batch.starts,
                [&tokens.starts, &tokens.ends],
            )?,
            positions: Positions::new(device, &positions, &self.table, &tokens.positions)?,
            targets: Targets::new(device, batch.targets, vocab, &tokens.targets)?,
        })
    }

    fn heads(&self) -> Heads {
        let Config { n_heads, n_kv_heads, head_dim, .. } = self.config;
        Heads { n_heads, n_kv_heads, head_dim }
    }

    /// Rounded weights of part `part` of block `layer`.
    fn part(&self, layer: usize, part: usize) -> Buffer<bf16> {
        self.buffers.rounded.slice(self.part_range(layer, part))
    }

    fn part_range(&self, layer: usize, part: usize) -> Range<usize> {
        self.parts[1 + layer * BLOCK_PARTS + part].range.clone()
    }

    /// Where the gains of a block's query and key heads lie, which are neighbours.
    fn qk_gains(&self, layer: usize) -> Range<usize> {
        let at = 1 + layer * BLOCK_PARTS;
        self.parts[at + 2].range.start..self.parts[at + 3].range.end
    }

    /// The residual stream before block `layer`.
    fn residual(&self, layer: usize) -> &Buffer<bf16> {
        let all = &self.buffers.residual;
        &all[layer % all.len()]
    }

    fn final_part(&self) -> &Part {
        &self.parts[1 + self.config.n_layers * BLOCK_PARTS]
    }

    fn output_part(&self) -> &Part {
        let i = if self.config.tie_embeddings { 0 } else { self.parts.len() - 1 };
        &self.parts[i]
    }

    fn output(&self) -> Buffer<bf16> {
        self.buffers.rounded.slice(self.output_part().range.clone())
    }

    fn op<'a>(&'a self, gains: &'a Buffer<bf16>, placed: &'a Placed) -> QkNormRope<'a> {
        QkNormRope {
            heads: self.heads(),
            gains,
            eps: self.config.norm_eps,
            positions: &placed.positions,
            table: &self.table,
        }
    }
}
