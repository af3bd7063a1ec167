//! The loss of a micro-batch and the gradients of every weight, derived by hand.

use kernels::cross_entropy::{self, Loss, LossSums};
use kernels::matmul::{self, Accumulate};
use kernels::qk_norm_rope::Table;
use kernels::{Pool, attention, embedding, rms_norm, swiglu};

use super::batch::MicroBatch;
use super::forward::{BlockState, Pass};
use super::weights::{Block, BlockMut};
use super::{Config, Weights};

/// What of the forward pass is kept for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Everything.
    #[default]
    Nothing,
    /// The residual stream before each block; the rest of a block is computed again when its turn
    /// comes. A third more work, and the same bits.
    Blocks,
}

/// Every buffer of a training pass, taken once, for micro-batches of at most `capacity` tokens.
pub struct Activations {
    capacity: usize,
    table: Table,
    recompute: Recompute,
    /// One for each block, or one for all that is filled again.
    blocks: Vec<BlockState>,
    /// The residual stream before each block, and after the last.
    residual: Vec<Vec<f32>>,
    normed: Vec<f32>,
    final_rstd: Vec<f32>,
    scratch: Vec<f32>,
    gradients: Gradients,
}

/// Gradients of activations; each buffer serves every block.
struct Gradients {
    /// Of the residual stream, `[t, d_model]`.
    residual: Vec<f32>,
    /// Of a norm's output, `[t, d_model]`.
    normed: Vec<f32>,
    /// Of the feed-forward layer's hidden state, `[t, d_ffn]`.
    hidden: Vec<f32>,
    /// Of gate and up, `[t, 2 * d_ffn]`.
    gate_up: Vec<f32>,
    /// Of the heads' outputs, `[t, q_width]`.
    heads_out: Vec<f32>,
    /// Of the rotated projections, `[t, qkv_width]`.
    rotated: Vec<f32>,
    /// Of the projections, `[t, qkv_width]`.
    qkv: Vec<f32>,
}

impl Gradients {
    fn floats_per_token(config: &Config) -> usize {
        2 * config.d_model + 3 * config.d_ffn + config.q_width() + 2 * config.qkv_width()
    }

    fn new(config: &Config, capacity: usize) -> Self {
        let buffer = |width: usize| vec![0.0; capacity * width];
        Self {
            residual: buffer(config.d_model),
            normed: buffer(config.d_model),
            hidden: buffer(config.d_ffn),
            gate_up: buffer(2 * config.d_ffn),
            heads_out: buffer(config.q_width()),
            rotated: buffer(config.qkv_width()),
            qkv: buffer(config.qkv_width()),
        }
    }
}

impl Recompute {
    /// Blocks whose states are kept.
    fn n_kept(self, config: &Config) -> usize {
        match self {
            Self::Nothing => config.n_layers,
            Self::Blocks => 1,
        }
    }
}

impl Activations {
    /// Buffers for micro-batches of at most `capacity` tokens, in rows of at most `config.context`.
    pub fn new(config: &Config, capacity: usize) -> Self {
        Self::with_recompute(config, capacity, Recompute::Nothing)
    }

    /// As [`Self::new`], keeping less of the forward pass.
    pub fn with_recompute(config: &Config, capacity: usize, recompute: Recompute) -> Self {
        let stream = || vec![0.0; capacity * config.d_model];
        Self {
            capacity,
            table: Table::new(config.rope_theta, config.head_dim, capacity.min(config.context)),
            recompute,
            blocks: (0..recompute.n_kept(config))
                .map(|_| BlockState::new(config, capacity))
                .collect(),
            residual: (0..=config.n_layers).map(|_| stream()).collect(),
            normed: stream(),
            final_rstd: vec![0.0; capacity],
            scratch: vec![0.0; cross_entropy::scratch_len(capacity, config.vocab_size)],
            gradients: Gradients::new(config, capacity),
        }
    }

    /// Bytes that [`Self::with_recompute`] takes.
    pub fn bytes(config: &Config, capacity: usize, recompute: Recompute) -> u64 {
        let per_token = recompute.n_kept(config) * BlockState::floats_per_token(config)
            + (config.n_layers + 2) * config.d_model
            + 1
            + Gradients::floats_per_token(config);
        let table = capacity.min(config.context) * config.head_dim;
        let scratch = cross_entropy::scratch_len(capacity, config.vocab_size);
        4 * (capacity as u64 * per_token as u64 + (table + scratch) as u64)
    }

    /// Runs a micro-batch forward and backward: `grads += d loss`, where the loss is
    /// `scale * sum (nll + z_loss * lse^2)` over the tokens that have a target.
    ///
    /// # Panics
    /// When the micro-batch exceeds the capacity, a row exceeds the context, or an id is not in the
    /// vocabulary.
    pub fn loss_and_gradients(
        &mut self,
        pool: &Pool,
        weights: &Weights,
        batch: &MicroBatch<'_>,
        loss: Loss,
        grads: &mut Weights,
    ) -> LossSums {
        let config = weights.config();
        let n_tokens = batch.ids.len();
        assert!(n_tokens <= self.capacity, "{n_tokens} tokens of {}", self.capacity);
        let len = n_tokens * config.d_model;
        let pass = Pass { pool, config, table: &self.table, starts: &batch.starts };

        embedding::forward(pool, weights.embedding(), batch.ids, &mut self.residual[0][..len]);
        for layer in 0..config.n_layers {
            let (before, after) = self.residual.split_at_mut(layer + 1);
            let (x, out) = (&before[layer][..len], &mut after[0][..len]);
            let kept = layer.min(self.blocks.len() - 1);
            pass.block(&weights.block(layer), x, &mut self.blocks[kept], out);
        }
        let last = &self.residual[config.n_layers][..len];
        let (normed, rstd) = (&mut self.normed[..len], &mut self.final_rstd[..n_tokens]);
        rms_norm::forward(pool, last, weights.final_norm(), config.norm_eps, normed, rstd);

        let d = &mut self.gradients;
        let sums = cross_entropy::linear(
            pool,
            normed,
            weights.output(),
            batch.targets,
            loss,
            &mut d.normed[..len],
            grads.output_mut(),
            &mut self.scratch,
        );
        d.residual[..len].fill(0.0);
        let (d_normed, d_residual) = (&d.normed[..len], &mut d.residual[..len]);
        let gain = weights.final_norm();
        rms_norm::backward(pool, d_normed, last, gain, rstd, d_residual, grads.final_norm_mut());
        for layer in (0..config.n_layers).rev() {
            let x = &self.residual[layer][..len];
            let (block, mut grads) = (weights.block(layer), grads.block_mut(layer));
            let kept = layer.min(self.blocks.len() - 1);
            if self.recompute == Recompute::Blocks && layer + 1 < config.n_layers {
                // Its output was seen by the block after it; the buffer is free until then.
                pass.block(&block, x, &mut self.blocks[kept], &mut d.normed[..len]);
            }
            d.block(&pass, &block, x, &self.blocks[kept], &mut grads);
        }
        embedding::backward(pool, batch.ids, &d.residual[..len], grads.embedding_mut());
        sums
    }
}

impl Gradients {
    /// Takes `self.residual` from after a block to before it, and adds to the block's gradients.
    fn block(
        &mut self,
        pass: &Pass<'_>,
        block: &Block<'_>,
        x: &[f32],
        state: &BlockState,
        grads: &mut BlockMut<'_>,
    ) {
        let (pool, config, t) = (pass.pool, pass.config, pass.starts.len());
        let (d, f) = (config.d_model, config.d_ffn);
        let (qkv_width, q_width) = (config.qkv_width(), config.q_width());
        let (add, overwrite) = (Accumulate::Add, Accumulate::Overwrite);
        let d_residual = &mut self.residual[..t * d];
        let d_normed = &mut self.normed[..t * d];

        // out = middle + hidden · down^T
        let d_hidden = &mut self.hidden[..t * f];
        matmul::nn(pool, d_hidden, d_residual, block.down, t, f, d, overwrite);
        matmul::tn(pool, grads.down, d_residual, &state.hidden[..t * f], d, f, t, add);
        let d_gate_up = &mut self.gate_up[..t * 2 * f];
        swiglu::backward(pool, d_hidden, &state.gate_up[..t * 2 * f], f, d_gate_up);
        let ffn_in = &state.ffn_in[..t * d];
        matmul::tn(pool, grads.gate_up, d_gate_up, ffn_in, 2 * f, d, t, add);
        matmul::nn(pool, d_normed, d_gate_up, block.gate_up, t, d, 2 * f, overwrite);
        let (middle, rstd) = (&state.middle[..t * d], &state.post_rstd[..t]);
        rms_norm::backward(
            pool,
            d_normed,
            middle,
            block.post_norm,
            rstd,
            d_residual,
            grads.post_norm,
        );

        // middle = x + heads_out · o^T
        let d_heads_out = &mut self.heads_out[..t * q_width];
        matmul::nn(pool, d_heads_out, d_residual, block.o, t, q_width, d, overwrite);
        let heads_out = &state.heads_out[..t * q_width];
        matmul::tn(pool, grads.o, d_residual, heads_out, d, q_width, t, add);
        let d_rotated = &mut self.rotated[..t * qkv_width];
        attention::backward(
            pool,
            d_heads_out,
            &state.rotated[..t * qkv_width],
            heads_out,
            &state.lse[..t * config.n_heads],
            pass.heads(),
            pass.starts,
            d_rotated,
        );
        let d_qkv = &mut self.qkv[..t * qkv_width];
        pass.qk_norm_rope(block).backward(
            pool,
            d_rotated,
            &state.qkv[..t * qkv_width],
            &state.qk_rstd[..t * (config.n_heads + config.n_kv_heads)],
            d_qkv,
            grads.q_norm,
            grads.k_norm,
        );
        let attention_in = &state.attention_in[..t * d];
        matmul::tn(pool, grads.qkv, d_qkv, attention_in, qkv_width, d, t, add);
        matmul::nn(pool, d_normed, d_qkv, block.qkv, t, d, qkv_width, overwrite);
        let rstd = &state.input_rstd[..t];
        rms_norm::backward(pool, d_normed, x, block.input_norm, rstd, d_residual, grads.input_norm);
    }
}
