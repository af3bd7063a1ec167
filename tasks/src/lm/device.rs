//! The model on a device of CUDA's kind: forward, backward and update over `kernels::cuda`.
//!
//! The same blocks as on the CPU, in bf16 with f32 sums: products read a rounded copy of the weights,
//! whose masters, gradients and moments are f32. All memory is one arena, planned before; a step
//! allocates nothing. What runs here runs on a GPU and on the emulator alike.

mod backward;
pub mod bench;
pub mod decoder;
mod forward;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use half::bf16;
use kernels::adamw::{self, AdamW};
use kernels::attention::{self, Heads};
use kernels::cross_entropy::cuda::{Scratch, Targets};
use kernels::cross_entropy::{Loss, LossSums};
use kernels::cuda::memory::Arena;
use kernels::cuda::{Buffer, Device, Error};
use kernels::embedding::cuda::Ids;
use kernels::qk_norm_rope::Table;
use kernels::qk_norm_rope::cuda::{DeviceTable, Positions, QkNormRope};
use kernels::{norm, rms_norm};

use super::batch::MicroBatch;
use super::weights::Part;
use super::{Config, Weights};
use forward::BlockState;

/// Parts of a block in the arena.
const BLOCK_PARTS: usize = 8;

/// A model in a device's memory, with everything that training needs.
pub struct DeviceModel {
    device: Arc<dyn Device>,
    config: Config,
    parts: Vec<Part>,
    capacity: usize,
    table: DeviceTable,
    params: Buffer<f32>,
    rounded: Buffer<bf16>,
    grads: Buffer<f32>,
    first: Buffer<f32>,
    second: Buffer<f32>,
    blocks: Vec<BlockState>,
    /// The residual stream before each block, and after the last.
    residual: Vec<Buffer<bf16>>,
    normed: Buffer<bf16>,
    final_rstd: Buffer<f32>,
    gradients: Gradients,
    tokens: Tokens,
    classifier: Scratch,
    scratch: Buffer<f32>,
    norm_scratch: Buffer<f64>,
}

/// Gradients of activations; each buffer serves every block.
struct Gradients {
    residual: Buffer<bf16>,
    normed: Buffer<bf16>,
    hidden: Buffer<bf16>,
    gate_up: Buffer<bf16>,
    heads_out: Buffer<bf16>,
    qkv: Buffer<bf16>,
}

/// What a micro-batch brings, one number a token.
struct Tokens {
    ids: Buffer<u32>,
    order: Buffer<u32>,
    groups: Buffer<u32>,
    starts: Buffer<u32>,
    ends: Buffer<u32>,
    positions: Buffer<u32>,
    targets: Buffer<u32>,
}

/// A micro-batch on the device.
struct Placed {
    n_tokens: usize,
    ids: Ids,
    documents: attention::cuda::Documents,
    positions: Positions,
    targets: Targets,
}

/// Counts bytes as [`Arena`] hands them out, or takes them.
enum Planner<'a> {
    Count(usize),
    Take(&'a mut Arena),
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

    /// Bytes of device memory to train on micro-batches of at most `capacity` tokens.
    pub fn bytes(config: &Config, capacity: usize) -> u64 {
        let mut planner = Planner::Count(0);
        Buffers::new(config, capacity, &mut planner);
        planner.bytes()
    }

    /// Takes the memory and copies weights there; moments are 0.
    ///
    /// # Errors
    /// When the device has not enough memory.
    ///
    /// # Panics
    /// When [`Self::supports`] says no.
    pub fn new(device: Arc<dyn Device>, weights: &Weights, capacity: usize) -> Result<Self, Error> {
        let config = weights.config();
        Self::supports(config).unwrap_or_else(|reason| panic!("checked before: {reason}"));
        let mut arena = Arena::new(&*device, Self::bytes(config, capacity) as usize)?;
        let buffers = Buffers::new(config, capacity, &mut Planner::Take(&mut arena));
        let buffers = buffers.expect("an arena gives buffers");
        let n_positions = capacity.min(config.context);
        let table = Table::new(config.rope_theta, config.head_dim, n_positions);
        let table = DeviceTable::new(&*device, &table)?;
        let model = buffers.model(device, weights, capacity, table);
        model.first.clear(&*model.device)?;
        model.second.clear(&*model.device)?;
        model.grads.clear(&*model.device)?;
        model.set_weights(weights)?;
        Ok(model)
    }

    /// Replaces the weights.
    ///
    /// # Errors
    /// When the device fails.
    pub fn set_weights(&self, weights: &Weights) -> Result<(), Error> {
        let rounded: Vec<bf16> = weights.data().iter().map(|&x| bf16::from_f32(x)).collect();
        self.rounded.write(&*self.device, &rounded)?;
        self.params.write(&*self.device, weights.data())
    }

    /// Replaces the moments.
    ///
    /// # Errors
    /// When the device fails.
    pub fn set_moments(&self, first: &[f32], second: &[f32]) -> Result<(), Error> {
        self.first.write(&*self.device, first)?;
        self.second.write(&*self.device, second)
    }

    /// Copies the weights back.
    ///
    /// # Errors
    /// When the device fails.
    pub fn weights(&self, weights: &mut Weights) -> Result<(), Error> {
        weights.data_mut().copy_from_slice(&self.params.read(&*self.device)?);
        Ok(())
    }

    /// Copies the gradients back.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradients(&self, grads: &mut Weights) -> Result<(), Error> {
        grads.data_mut().copy_from_slice(&self.grads.read(&*self.device)?);
        Ok(())
    }

    /// Copies both moments back.
    ///
    /// # Errors
    /// When the device fails.
    pub fn moments(&self) -> Result<[Vec<f32>; 2], Error> {
        Ok([self.first.read(&*self.device)?, self.second.read(&*self.device)?])
    }

    /// Sets all gradients to 0.
    ///
    /// # Errors
    /// When the device fails.
    pub fn clear_gradients(&self) -> Result<(), Error> {
        self.grads.clear(&*self.device)
    }

    /// The length of the whole gradient.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradient_norm(&self) -> Result<f64, Error> {
        let sum = norm::cuda::sum_of_squares(&*self.device, &self.grads, &self.norm_scratch)?;
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
        let placed = self.place(batch)?;
        self.forward(&placed)?;
        self.backward(&placed, loss)
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
        self.forward(&placed)?;
        let normed = self.normed.front(placed.n_tokens * self.config.d_model);
        kernels::cross_entropy::cuda::linear_forward(
            &*self.device,
            [&normed, &self.output()],
            &placed.targets,
            &self.classifier,
        )
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
        for part in &self.parts {
            let range = part.range.clone();
            let state = adamw::cuda::State {
                params: &self.params.slice(range.clone()),
                rounded: &self.rounded.slice(range.clone()),
                m: &self.first.slice(range.clone()),
                v: &self.second.slice(range.clone()),
            };
            let grads = self.grads.slice(range);
            adamw::cuda::step(&*self.device, state, &grads, settings_of(part), step, grad_scale)?;
        }
        Ok(())
    }

    /// Waits for the device.
    ///
    /// # Errors
    /// When anything given to it failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.device.synchronize()
    }

    fn place(&self, batch: &MicroBatch<'_>) -> Result<Placed, Error> {
        let (device, tokens, n_tokens) = (&*self.device, &self.tokens, batch.ids.len());
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

    /// Part `part` of block `layer`: its rounded weights and its gradient.
    fn part(&self, layer: usize, part: usize) -> (Buffer<bf16>, Buffer<f32>) {
        let range = self.parts[1 + layer * BLOCK_PARTS + part].range.clone();
        (self.rounded.slice(range.clone()), self.grads.slice(range))
    }

    /// Gains of a block's query and key heads, and their gradients.
    fn qk_gains(&self, layer: usize) -> (Buffer<bf16>, Buffer<f32>) {
        let at = 1 + layer * BLOCK_PARTS;
        // The two lie side by side.
        let range = self.parts[at + 2].range.start..self.parts[at + 3].range.end;
        (self.rounded.slice(range.clone()), self.grads.slice(range))
    }

    fn final_part(&self) -> &Part {
        &self.parts[1 + self.config.n_layers * BLOCK_PARTS]
    }

    fn output_part(&self) -> &Part {
        let i = if self.config.tie_embeddings { 0 } else { self.parts.len() - 1 };
        &self.parts[i]
    }

    fn output(&self) -> Buffer<bf16> {
        self.rounded.slice(self.output_part().range.clone())
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

/// Every buffer of a model, counted or taken.
struct Buffers {
    weights: [Buffer<f32>; 4],
    rounded: Buffer<bf16>,
    blocks: Vec<BlockState>,
    residual: Vec<Buffer<bf16>>,
    normed: Buffer<bf16>,
    final_rstd: Buffer<f32>,
    gradients: Gradients,
    tokens: Tokens,
    classifier: Scratch,
    scratch: Buffer<f32>,
    norm_scratch: Buffer<f64>,
}

impl Planner<'_> {
    /// Bytes counted so far.
    fn bytes(&self) -> u64 {
        match self {
            Self::Count(bytes) => *bytes as u64,
            Self::Take(_) => unreachable!("an arena is not counted"),
        }
    }

    fn take<T>(&mut self, len: usize) -> Option<Buffer<T>> {
        match self {
            Self::Count(bytes) => {
                *bytes += Arena::size_of::<T>(len);
                None
            }
            Self::Take(arena) => Some(arena.take(len)),
        }
    }
}

impl Buffers {
    /// The buffers, or nothing when they are counted only. One list for both, so that they agree.
    fn new(config: &Config, capacity: usize, planner: &mut Planner<'_>) -> Option<Self> {
        let (n, d) = (config.n_parameters() as usize, config.d_model);
        let heads = Heads {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        };
        let weights = [(); 4].map(|()| planner.take(n));
        let rounded = planner.take(n);
        let blocks: Vec<Option<BlockState>> =
            (0..config.n_layers).map(|_| BlockState::new(config, capacity, planner)).collect();
        let residual: Vec<Option<Buffer<bf16>>> =
            (0..=config.n_layers).map(|_| planner.take(capacity * d)).collect();
        let normed = planner.take(capacity * d);
        let final_rstd = planner.take(capacity);
        let wide = [d, d, config.d_ffn, 2 * config.d_ffn, config.q_width(), config.qkv_width()]
            .map(|width| planner.take(capacity * width));
        let tokens = [1, 1, 3, 1, 1, 1, 1].map(|n| planner.take(n * capacity));
        let logits_len = Scratch::logits_len(capacity, config.vocab_size);
        let (logits, d_logits) = (planner.take(logits_len), planner.take(logits_len));
        let (nll, lse, sums) = (planner.take(capacity), planner.take(capacity), planner.take(2));
        let scratch_len = rms_norm::cuda::backward_scratch_len(capacity, d)
            .max(QkNormRope::backward_scratch_len(heads))
            .max(capacity * config.n_heads);
        let scratch = planner.take(scratch_len);
        let norm_scratch = planner.take(norm::cuda::scratch_len(n));
        let [a, b, c, e] = weights;
        let [g0, g1, g2, g3, g4, g5] = wide;
        let [ids, order, groups, starts, ends, positions, targets] = tokens;
        Some(Self {
            weights: [a?, b?, c?, e?],
            rounded: rounded?,
            blocks: blocks.into_iter().collect::<Option<_>>()?,
            residual: residual.into_iter().collect::<Option<_>>()?,
            normed: normed?,
            final_rstd: final_rstd?,
            gradients: Gradients {
                residual: g0?,
                normed: g1?,
                hidden: g2?,
                gate_up: g3?,
                heads_out: g4?,
                qkv: g5?,
            },
            tokens: Tokens {
                ids: ids?,
                order: order?,
                groups: groups?,
                starts: starts?,
                ends: ends?,
                positions: positions?,
                targets: targets?,
            },
            classifier: Scratch {
                logits: logits?,
                d_logits: d_logits?,
                nll: nll?,
                lse: lse?,
                sums: sums?,
            },
            scratch: scratch?,
            norm_scratch: norm_scratch?,
        })
    }

    fn model(
        self,
        device: Arc<dyn Device>,
        weights: &Weights,
        capacity: usize,
        table: DeviceTable,
    ) -> DeviceModel {
        let [params, grads, first, second] = self.weights;
        DeviceModel {
            device,
            config: weights.config().clone(),
            parts: weights.parts(),
            capacity,
            table,
            params,
            rounded: self.rounded,
            grads,
            first,
            second,
            blocks: self.blocks,
            residual: self.residual,
            normed: self.normed,
            final_rstd: self.final_rstd,
            gradients: self.gradients,
            tokens: self.tokens,
            classifier: self.classifier,
            scratch: self.scratch,
            norm_scratch: self.norm_scratch,
        }
    }
}
