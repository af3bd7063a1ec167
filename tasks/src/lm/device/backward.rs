//! The backward pass on a device, derived by hand as on the CPU.

use half::bf16;
use kernels::attention::cuda::Saved;
use kernels::cross_entropy;
use kernels::cross_entropy::cuda::{DeviceLoss, Gradients as ClassifierGradients};
use kernels::cuda::product::{Layout, Target};
use kernels::cuda::{Buffer, Error};
use kernels::matmul::Accumulate;
use kernels::{attention, embedding, rms_norm, swiglu};

use super::buffers::Training;
use super::forward::{BlockState, DOWN, GATE_UP, INPUT_NORM, O, POST_NORM, QKV};
use super::{DeviceModel, Placed};

impl DeviceModel {
    /// Adds the gradients of a micro-batch whose forward pass was the last, and leaves its sums.
    pub(super) fn backward(&self, placed: &Placed, loss: &DeviceLoss) -> Result<(), Error> {
        let (device, config, t) = (&*self.device, &self.config, placed.n_tokens);
        let d = config.d_model;
        let Training { grads, gradients, scratch: rows, .. } = self.training();
        let normed = self.buffers.normed.front(t * d);
        let (d_normed, d_residual) =
            (gradients.normed.front(t * d), gradients.residual.front(t * d));
        let d_output = grads.slice(self.output_part().range.clone());
        let wanted = ClassifierGradients { d_x: &d_normed, d_w: &d_output };
        let inputs = [&normed, &self.output()];
        let (targets, scratch) = (&placed.targets, &self.buffers.classifier);
        cross_entropy::cuda::linear(device, inputs, targets, loss, wanted, scratch)?;
        d_residual.clear(device)?;
        let range = self.final_part().range.clone();
        rms_norm::cuda::backward(
            device,
            &d_normed,
            &self.residual(config.n_layers).front(t * d),
            &self.buffers.rounded.slice(range.clone()),
            &self.buffers.final_rstd.front(t),
            &d_residual,
            &grads.slice(range),
            rows,
        )?;
        for layer in (0..config.n_layers).rev() {
            let state = self.state(layer).front(config, t);
            self.feed_forward_backward(layer, &state, t)?;
            self.attention_backward(layer, &state, placed)?;
        }
        let d_table = grads.slice(self.parts[0].range.clone());
        embedding::cuda::backward(device, &placed.ids, &d_residual, &d_table)
    }

    /// `d_in (=) d_out · W` and `d_W += d_out^T · in`, for `out = in · W^T` with `sizes` of `out`'s
    /// rows and columns and `in`'s columns.
    fn linear_backward(
        &self,
        (layer, part): (usize, usize),
        [t, n_out, n_in]: [usize; 3],
        d_out: &Buffer<bf16>,
        input: &Buffer<bf16>,
        d_in: &Buffer<bf16>,
    ) -> Result<(), Error> {
        let weights = self.part(layer, part);
        let d_weights = self.training().grads.slice(self.part_range(layer, part));
        let target = Target::F32(&d_weights);
        self.multiply(Layout::Tn, [n_out, n_in, t], [d_out, input], target, Accumulate::Add)?;
        let (operands, target) = ([d_out, &weights], Target::Bf16(d_in));
        self.multiply(Layout::Nn, [t, n_in, n_out], operands, target, Accumulate::Overwrite)
    }

    /// Adds what flows through a norm to the gradient of the residual stream.
    fn norm_backward(
        &self,
        (layer, part): (usize, usize),
        x: &Buffer<bf16>,
        rstd: &Buffer<f32>,
    ) -> Result<(), Error> {
        let Training { grads, gradients, scratch, .. } = self.training();
        rms_norm::cuda::backward(
            &*self.device,
            &gradients.normed.front(x.len()),
            x,
            &self.part(layer, part),
            rstd,
            &gradients.residual.front(x.len()),
            &grads.slice(self.part_range(layer, part)),
            scratch,
        )
    }

    /// From after the feed-forward layer to before it: `out = middle + hidden · down^T`.
    fn feed_forward_backward(
        &self,
        layer: usize,
        state: &BlockState,
        t: usize,
    ) -> Result<(), Error> {
        let (device, d, f) = (&*self.device, self.config.d_model, self.config.d_ffn);
        let gradients = &self.training().gradients;
        let d_residual = gradients.residual.front(t * d);
        let d_hidden = gradients.hidden.front(t * f);
        let sizes = [t, d, f];
        self.linear_backward((layer, DOWN), sizes, &d_residual, &state.hidden, &d_hidden)?;
        let d_gate_up = gradients.gate_up.front(t * 2 * f);
        swiglu::cuda::backward(device, &d_hidden, &state.gate_up, f, &d_gate_up)?;
        let d_normed = gradients.normed.front(t * d);
        let sizes = [t, 2 * f, d];
        self.linear_backward((layer, GATE_UP), sizes, &d_gate_up, &state.ffn_in, &d_normed)?;
        self.norm_backward((layer, POST_NORM), &state.middle, &state.post_rstd)
    }

    /// From after attention to before it: `middle = x + heads_out · o^T`.
    fn attention_backward(
        &self,
        layer: usize,
        state: &BlockState,
        placed: &Placed,
    ) -> Result<(), Error> {
        let (device, config, t) = (&*self.device, &self.config, placed.n_tokens);
        let (d, qkv_width, q_width) = (config.d_model, config.qkv_width(), config.q_width());
        let Training { grads, gradients, scratch, .. } = self.training();
        let d_residual = gradients.residual.front(t * d);
        let d_heads_out = gradients.heads_out.front(t * q_width);
        let sizes = [t, d, q_width];
        self.linear_backward((layer, O), sizes, &d_residual, &state.heads_out, &d_heads_out)?;
        let d_qkv = gradients.qkv.front(t * qkv_width);
        let saved = Saved { qkv: &state.rotated, out: &state.heads_out, lse: &state.lse };
        let (heads, documents) = (self.heads(), &placed.documents);
        attention::cuda::backward(device, &d_heads_out, saved, heads, documents, &d_qkv, scratch)?;
        let range = self.qk_gains(layer);
        let (gains, d_gains) = (self.buffers.rounded.slice(range.clone()), grads.slice(range));
        let op = self.op(&gains, placed);
        op.backward(device, &d_qkv, &state.qkv, &state.qk_rstd, &d_qkv, &d_gains, scratch)?;
        let d_normed = gradients.normed.front(t * d);
        let sizes = [t, qkv_width, d];
        self.linear_backward((layer, QKV), sizes, &d_qkv, &state.attention_in, &d_normed)?;
        self.norm_backward(
            (layer, INPUT_NORM),
            &self.residual(layer).front(t * d),
            &state.input_rstd,
        )
    }
}
