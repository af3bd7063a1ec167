//! The forward pass: blocks, hidden states, and the loss of single tokens.

use kernels::attention::{self, Heads};
use kernels::cross_entropy;
use kernels::matmul::{self, Accumulate};
use kernels::qk_norm_rope::{QkNormRope, Table};
use kernels::{Pool, embedding, rms_norm, swiglu};

use super::weights::Block;
use super::{Config, Weights};

/// What a block computes on the way, kept for the backward pass. Each buffer holds `capacity`
/// tokens; a pass over `t` tokens uses the front of it.
pub(super) struct BlockState {
    /// Normalized input, `[t, d_model]`.
    pub(super) attention_in: Vec<f32>,
    pub(super) input_rstd: Vec<f32>,
    /// Packed projections, `[t, qkv_width]`.
    pub(super) qkv: Vec<f32>,
    /// The same with queries and keys normalized and rotated.
    pub(super) rotated: Vec<f32>,
    pub(super) qk_rstd: Vec<f32>,
    /// Outputs of the heads, `[t, q_width]`.
    pub(super) heads_out: Vec<f32>,
    pub(super) lse: Vec<f32>,
    /// The residual stream between attention and feed-forward, `[t, d_model]`.
    pub(super) middle: Vec<f32>,
    pub(super) post_rstd: Vec<f32>,
    /// Normalized input of the feed-forward layer, `[t, d_model]`.
    pub(super) ffn_in: Vec<f32>,
    /// Gate and up projections, `[t, 2 * d_ffn]`.
    pub(super) gate_up: Vec<f32>,
    /// `silu(gate) * up`, `[t, d_ffn]`.
    pub(super) hidden: Vec<f32>,
}

impl BlockState {
    /// Elements per token, all buffers together.
    pub(super) fn floats_per_token(config: &Config) -> usize {
        3 * config.d_model
            + 2
            + 2 * config.qkv_width()
            + config.n_heads
            + config.n_kv_heads
            + config.q_width()
            + config.n_heads
            + 3 * config.d_ffn
    }

    pub(super) fn new(config: &Config, capacity: usize) -> Self {
        let buffer = |width: usize| vec![0.0; capacity * width];
        Self {
            attention_in: buffer(config.d_model),
            input_rstd: buffer(1),
            qkv: buffer(config.qkv_width()),
            rotated: buffer(config.qkv_width()),
            qk_rstd: buffer(config.n_heads + config.n_kv_heads),
            heads_out: buffer(config.q_width()),
            lse: buffer(config.n_heads),
            middle: buffer(config.d_model),
            post_rstd: buffer(1),
            ffn_in: buffer(config.d_model),
            gate_up: buffer(2 * config.d_ffn),
            hidden: buffer(config.d_ffn),
        }
    }
}

/// What every block of a pass shares.
pub(super) struct Pass<'a> {
    pub(super) pool: &'a Pool,
    pub(super) config: &'a Config,
    pub(super) table: &'a Table,
    pub(super) starts: &'a [u32],
}

impl<'a> Pass<'a> {
    pub(super) fn heads(&self) -> Heads {
        let Config { n_heads, n_kv_heads, head_dim, .. } = *self.config;
        Heads { n_heads, n_kv_heads, head_dim }
    }

    pub(super) fn qk_norm_rope<'b>(&self, block: &Block<'b>) -> QkNormRope<'b>
    where
        'a: 'b,
    {
        QkNormRope {
            heads: self.heads(),
            q_gain: block.q_norm,
            k_gain: block.k_norm,
            eps: self.config.norm_eps,
            starts: self.starts,
            table: self.table,
        }
    }

    /// Runs one block: `x` and `out` are the residual stream before and after, `[t, d_model]`.
    pub(super) fn block(
        &self,
        block: &Block<'_>,
        x: &[f32],
        state: &mut BlockState,
        out: &mut [f32],
    ) {
        let (pool, config, t) = (self.pool, self.config, self.starts.len());
        let (d, f, eps) = (config.d_model, config.d_ffn, config.norm_eps);
        let (qkv_width, q_width) = (config.qkv_width(), config.q_width());

        let attention_in = &mut state.attention_in[..t * d];
        let input_rstd = &mut state.input_rstd[..t];
        rms_norm::forward(pool, x, block.input_norm, eps, attention_in, input_rstd);
        let qkv = &mut state.qkv[..t * qkv_width];
        matmul::nt(pool, qkv, attention_in, block.qkv, t, qkv_width, d, Accumulate::Overwrite);
        let rotated = &mut state.rotated[..t * qkv_width];
        let qk_rstd = &mut state.qk_rstd[..t * (config.n_heads + config.n_kv_heads)];
        self.qk_norm_rope(block).forward(pool, qkv, rotated, qk_rstd);
        let heads_out = &mut state.heads_out[..t * q_width];
        let lse = &mut state.lse[..t * config.n_heads];
        attention::forward(pool, rotated, self.heads(), self.starts, heads_out, lse);

        // The products add to a copy of the residual stream, which saves a pass over memory.
        let middle = &mut state.middle[..t * d];
        middle.copy_from_slice(x);
        matmul::nt(pool, middle, heads_out, block.o, t, d, q_width, Accumulate::Add);
        let ffn_in = &mut state.ffn_in[..t * d];
        let post_rstd = &mut state.post_rstd[..t];
        rms_norm::forward(pool, middle, block.post_norm, eps, ffn_in, post_rstd);
        let gate_up = &mut state.gate_up[..t * 2 * f];
        matmul::nt(pool, gate_up, ffn_in, block.gate_up, t, 2 * f, d, Accumulate::Overwrite);
        let hidden = &mut state.hidden[..t * f];
        swiglu::forward(pool, gate_up, f, hidden);
        out.copy_from_slice(middle);
        matmul::nt(pool, out, hidden, block.down, t, d, f, Accumulate::Add);
    }
}

/// Buffers to run a model forward without gradients, reused from call to call.
pub struct Forward {
    config: Config,
    capacity: usize,
    table: Table,
    state: BlockState,
    x: Vec<f32>,
    out: Vec<f32>,
    rstd: Vec<f32>,
    scratch: Vec<f32>,
}

impl Forward {
    /// Buffers for streams of at most `capacity` tokens, whose documents have at most `capacity`
    /// or `config.context` tokens, whichever is less.
    pub fn new(config: &Config, capacity: usize) -> Self {
        let n_positions = capacity.min(config.context);
        Self {
            config: config.clone(),
            capacity,
            table: Table::new(config.rope_theta, config.head_dim, n_positions),
            state: BlockState::new(config, capacity),
            x: vec![0.0; capacity * config.d_model],
            out: vec![0.0; capacity * config.d_model],
            rstd: vec![0.0; capacity],
            scratch: vec![0.0; cross_entropy::scratch_len(capacity, config.vocab_size)],
        }
    }

    /// Bytes that [`Self::new`] takes.
    pub fn bytes(config: &Config, capacity: usize) -> u64 {
        let per_token = BlockState::floats_per_token(config) + 2 * config.d_model + 1;
        let table = capacity.min(config.context) * config.head_dim;
        let scratch = cross_entropy::scratch_len(capacity, config.vocab_size);
        4 * (capacity * per_token + table + scratch) as u64
    }

    /// Most tokens of one call.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The residual stream after the first `n_blocks` blocks, `[t, d_model]`, before any final norm.
    ///
    /// `starts[i]` is the index of the first token that token `i` attends to.
    ///
    /// # Panics
    /// When `ids` and `starts` differ in length, exceed the capacity, a document is longer than the
    /// context, an id is not in the vocabulary, or the model has another shape or fewer blocks.
    pub fn residual(
        &mut self,
        pool: &Pool,
        weights: &Weights,
        ids: &[u32],
        starts: &[u32],
        n_blocks: usize,
    ) -> &[f32] {
        let config = weights.config();
        assert_eq!(*config, self.config, "buffers belong to models of one shape");
        assert_eq!(ids.len(), starts.len(), "one start a token");
        assert!(ids.len() <= self.capacity, "{} tokens of {}", ids.len(), self.capacity);
        let len = ids.len() * config.d_model;
        embedding::forward(pool, weights.embedding(), ids, &mut self.x[..len]);
        let pass = Pass { pool, config, table: &self.table, starts };
        for layer in 0..n_blocks {
            let (x, out) = (&self.x[..len], &mut self.out[..len]);
            pass.block(&weights.block(layer), x, &mut self.state, out);
            std::mem::swap(&mut self.x, &mut self.out);
        }
        &self.x[..len]
    }

    /// The normalized states that the output matrix multiplies, `[t, d_model]`.
    ///
    /// # Panics
    /// As [`Self::residual`].
    pub fn hidden(
        &mut self,
        pool: &Pool,
        weights: &Weights,
        ids: &[u32],
        starts: &[u32],
    ) -> &[f32] {
        self.residual(pool, weights, ids, starts, weights.config().n_layers);
        let (len, eps) = (ids.len() * self.config.d_model, self.config.norm_eps);
        let (x, out) = (&self.x[..len], &mut self.out[..len]);
        rms_norm::forward(pool, x, weights.final_norm(), eps, out, &mut self.rstd[..ids.len()]);
        &self.out[..len]
    }

    /// The negative log likelihood of each target in nats, `[t]`; 0 where the target is
    /// [`cross_entropy::IGNORE`].
    ///
    /// # Panics
    /// As [`Self::residual`], and when a target is neither an id nor [`cross_entropy::IGNORE`].
    pub fn nll(
        &mut self,
        pool: &Pool,
        weights: &Weights,
        ids: &[u32],
        starts: &[u32],
        targets: &[u32],
    ) -> Vec<f32> {
        self.hidden(pool, weights, ids, starts);
        let hidden = &self.out[..ids.len() * self.config.d_model];
        let mut nll = vec![0.0; ids.len()];
        let scratch = &mut self.scratch;
        cross_entropy::linear_forward(pool, hidden, weights.output(), targets, &mut nll, scratch);
        nll
    }
}
