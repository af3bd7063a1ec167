//! The forward pass on a device.

use half::bf16;
use kernels::cuda::product::{Layout, Target};
use kernels::cuda::{Buffer, Error, Product};
use kernels::matmul::Accumulate;
use kernels::{attention, embedding, rms_norm, swiglu};

use super::buffers::Planner;
use super::{DeviceModel, Placed};
use crate::lm::Config;

/// Indices of a block's parts in the arena.
pub(super) const INPUT_NORM: usize = 0;
pub(super) const QKV: usize = 1;
pub(super) const O: usize = 4;
pub(super) const POST_NORM: usize = 5;
pub(super) const GATE_UP: usize = 6;
pub(super) const DOWN: usize = 7;

/// What a block computes on the way, kept for the backward pass; as on the CPU, but for bf16.
pub(super) struct BlockState {
    pub(super) attention_in: Buffer<bf16>,
    pub(super) input_rstd: Buffer<f32>,
    pub(super) qkv: Buffer<bf16>,
    pub(super) rotated: Buffer<bf16>,
    pub(super) qk_rstd: Buffer<f32>,
    pub(super) heads_out: Buffer<bf16>,
    pub(super) lse: Buffer<f32>,
    pub(super) middle: Buffer<bf16>,
    pub(super) post_rstd: Buffer<f32>,
    pub(super) ffn_in: Buffer<bf16>,
    pub(super) gate_up: Buffer<bf16>,
    pub(super) hidden: Buffer<bf16>,
}

impl BlockState {
    pub(super) fn new(config: &Config, capacity: usize, planner: &mut Planner<'_>) -> Option<Self> {
        let (d, f, qkv) = (config.d_model, config.d_ffn, config.qkv_width());
        let low = [d, qkv, qkv, config.q_width(), d, d, 2 * f, f]
            .map(|width| planner.take(capacity * width));
        let high = [1, config.n_heads + config.n_kv_heads, config.n_heads, 1]
            .map(|width| planner.take(capacity * width));
        let [attention_in, qkv, rotated, heads_out, middle, ffn_in, gate_up, hidden] = low;
        let [input_rstd, qk_rstd, lse, post_rstd] = high;
        Some(Self {
            attention_in: attention_in?,
            input_rstd: input_rstd?,
            qkv: qkv?,
            rotated: rotated?,
            qk_rstd: qk_rstd?,
            heads_out: heads_out?,
            lse: lse?,
            middle: middle?,
            post_rstd: post_rstd?,
            ffn_in: ffn_in?,
            gate_up: gate_up?,
            hidden: hidden?,
        })
    }

    /// The fronts of all buffers for `t` tokens.
    pub(super) fn front(&self, config: &Config, t: usize) -> Self {
        let (d, f, qkv) = (config.d_model, config.d_ffn, config.qkv_width());
        Self {
            attention_in: self.attention_in.front(t * d),
            input_rstd: self.input_rstd.front(t),
            qkv: self.qkv.front(t * qkv),
            rotated: self.rotated.front(t * qkv),
            qk_rstd: self.qk_rstd.front(t * (config.n_heads + config.n_kv_heads)),
            heads_out: self.heads_out.front(t * config.q_width()),
            lse: self.lse.front(t * config.n_heads),
            middle: self.middle.front(t * d),
            post_rstd: self.post_rstd.front(t),
            ffn_in: self.ffn_in.front(t * d),
            gate_up: self.gate_up.front(t * 2 * f),
            hidden: self.hidden.front(t * f),
        }
    }
}

impl DeviceModel {
    /// `c (+)= a · b` in the given layout.
    pub(super) fn multiply(
        &self,
        layout: Layout,
        sizes: [usize; 3],
        [a, b]: [&Buffer<bf16>; 2],
        c: Target<'_>,
        accumulate: Accumulate,
    ) -> Result<(), Error> {
        Product { layout, sizes, a, b, c, accumulate }.run(&*self.device)
    }

    /// Runs the first `n_blocks` blocks: fills their states, the residual stream, and, after the last
    /// block of all, the normalized states.
    pub(super) fn forward(&self, placed: &Placed, n_blocks: usize) -> Result<(), Error> {
        assert!(n_blocks <= self.config.n_layers, "{n_blocks} of {}", self.config.n_layers);
        let (device, config, t) = (&*self.device, &self.config, placed.n_tokens);
        let (d, eps) = (config.d_model, config.norm_eps);
        let table = self.buffers.rounded.slice(self.parts[0].range.clone());
        let x = self.residual(0).front(t * d);
        embedding::cuda::forward(device, &table, &placed.ids, &x)?;
        let state = self.state(0).front(config, t);
        let gain = self.part(0, INPUT_NORM);
        let (to, rstd) = (&state.attention_in, &state.input_rstd);
        rms_norm::cuda::forward(device, &x, &gain, eps, to, rstd)?;
        let delta = self.buffers.delta.front(t * d);
        for layer in 0..n_blocks {
            let state = self.state(layer).front(config, t);
            self.block(layer, placed, &state, &delta)?;
            let next = self.residual(layer + 1).front(t * d);
            let (gain, normed, rstd) = if layer + 1 < config.n_layers {
                let following = self.state(layer + 1).front(config, t);
                (self.part(layer + 1, INPUT_NORM), following.attention_in, following.input_rstd)
            } else {
                let gain = self.buffers.rounded.slice(self.final_part().range.clone());
                (gain, self.buffers.normed.front(t * d), self.buffers.final_rstd.front(t))
            };
            let sum = [&state.middle, &delta, &next];
            rms_norm::cuda::add_forward(device, sum, &gain, eps, &normed, &rstd)?;
        }
        Ok(())
    }

    /// The state of block `layer`. Where one serves all, a block's normalized input is written by the
    /// block before it, when nothing of that one is read any more but `middle` and `delta`.
    pub(super) fn state(&self, layer: usize) -> &BlockState {
        let all = &self.buffers.blocks;
        &all[layer % all.len()]
    }

    /// Runs a block from its normalized input to what it adds at its end, left in `delta`.
    fn block(
        &self,
        layer: usize,
        placed: &Placed,
        state: &BlockState,
        delta: &Buffer<bf16>,
    ) -> Result<(), Error> {
        let (device, config, t) = (&*self.device, &self.config, placed.n_tokens);
        let (d, f, eps) = (config.d_model, config.d_ffn, config.norm_eps);
        let (qkv_width, q_width) = (config.qkv_width(), config.q_width());
        let product = |sizes, x: &Buffer<bf16>, part, to: &Buffer<bf16>| {
            let weights = self.part(layer, part);
            let target = Target::Bf16(to);
            self.multiply(Layout::Nt, sizes, [x, &weights], target, Accumulate::Overwrite)
        };
        product([t, qkv_width, d], &state.attention_in, QKV, &state.qkv)?;
        let gains = self.buffers.rounded.slice(self.qk_gains(layer));
        self.op(&gains, placed).forward(device, &state.qkv, &state.rotated, &state.qk_rstd)?;
        let (heads, documents) = (self.heads(), &placed.documents);
        let (out, lse) = (&state.heads_out, &state.lse);
        attention::cuda::forward(device, &state.rotated, heads, documents, out, lse)?;
        product([t, d, q_width], &state.heads_out, O, delta)?;
        let x = self.residual(layer).front(t * d);
        let gain = self.part(layer, POST_NORM);
        let sum = [&x, delta, &state.middle];
        rms_norm::cuda::add_forward(device, sum, &gain, eps, &state.ffn_in, &state.post_rstd)?;
        product([t, 2 * f, d], &state.ffn_in, GATE_UP, &state.gate_up)?;
        swiglu::cuda::forward(device, &state.gate_up, f, &state.hidden)?;
        product([t, d, f], &state.hidden, DOWN, delta)
    }
}
