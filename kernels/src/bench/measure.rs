//! The timed calls.

use std::time::Instant;

use super::{Figure, Sizes};
use crate::cross_entropy::{self, Loss};
use crate::matmul::{self, Accumulate};
use crate::philox::Philox;
use crate::qk_norm_rope::{QkNormRope, Table};
use crate::{Pool, adamw, attention, embedding, norm, rms_norm, swiglu};

/// Bytes of an `f32`.
const WORD: f64 = 4.0;

/// Seconds of the fastest of `n_runs` calls, after one to warm up.
pub(super) fn fastest(n_runs: usize, mut call: impl FnMut()) -> f64 {
    call();
    (0..n_runs.max(1))
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn normal(purpose: &str, len: usize) -> Vec<f32> {
    let rng = Philox::new(0, purpose);
    (0..len as u64).map(|i| rng.normal(i) as f32).collect()
}

/// The ops of a step, and what was measured so far.
pub(super) struct Workload<'a> {
    pool: &'a Pool,
    sizes: Sizes,
    n_runs: usize,
    figures: Vec<Figure>,
}

impl<'a> Workload<'a> {
    pub(super) fn new(pool: &'a Pool, sizes: Sizes, n_runs: usize) -> Self {
        Self { pool, sizes, n_runs, figures: Vec::new() }
    }

    pub(super) fn into_figures(self) -> Vec<Figure> {
        self.figures
    }

    fn add(&mut self, op: &str, n_calls: usize, [flop, words]: [f64; 2], call: impl FnMut()) {
        let seconds = fastest(self.n_runs, call);
        let bytes = words * WORD;
        let is_once_a_step = false;
        self.figures.push(Figure {
            op: op.to_owned(),
            seconds,
            flop,
            bytes,
            n_calls,
            is_once_a_step,
        });
    }

    /// The linear layers of a block, forward and backward.
    pub(super) fn products(&mut self) {
        let Sizes { d_model, heads, n_hidden, n_layers, .. } = self.sizes;
        let t = self.sizes.n_tokens();
        for (name, n_in, n_out) in [
            ("qkv", d_model, heads.qkv_width()),
            ("attention output", heads.q_width(), d_model),
            ("gate and up", d_model, 2 * n_hidden),
            ("down", n_hidden, d_model),
        ] {
            let (x, w) = (normal("x", t * n_in), normal("w", n_out * n_in));
            let (mut y, mut d_x) = (normal("y", t * n_out), vec![0.0; t * n_in]);
            let mut d_w = vec![0.0; n_out * n_in];
            let pool = self.pool;
            let cost =
                [2.0 * (t * n_in * n_out) as f64, (t * n_in + t * n_out + n_in * n_out) as f64];
            self.add(&format!("{name}: nt"), n_layers, cost, || {
                matmul::nt(pool, &mut y, &x, &w, t, n_out, n_in, Accumulate::Overwrite);
            });
            self.add(&format!("{name}: nn"), n_layers, cost, || {
                matmul::nn(pool, &mut d_x, &y, &w, t, n_in, n_out, Accumulate::Overwrite);
            });
            self.add(&format!("{name}: tn"), n_layers, cost, || {
                matmul::tn(pool, &mut d_w, &y, &x, n_out, n_in, t, Accumulate::Add);
            });
        }
    }

    /// Attention, and the normalization and rotation before it.
    pub(super) fn attention(&mut self) {
        let Sizes { heads, n_layers, n_context, .. } = self.sizes;
        let t = self.sizes.n_tokens();
        let qkv = normal("qkv", t * heads.qkv_width());
        let d_out = normal("d_out", t * heads.q_width());
        let (mut out, mut d_qkv) = (d_out.clone(), qkv.clone());
        let mut lse = vec![0.0; t * heads.n_heads];
        let starts: Vec<u32> = (0..t).map(|i| (i / n_context * n_context) as u32).collect();
        let pool = self.pool;
        // Half of the scores are masked: each product counts (n_context + 1) / 2 keys a query.
        let product = (t * (n_context + 1) * heads.q_width()) as f64;
        let words = (t * (heads.qkv_width() + heads.q_width())) as f64;
        self.add("attention: forward", n_layers, [2.0 * product, words], || {
            attention::forward(pool, &qkv, heads, &starts, &mut out, &mut lse);
        });
        self.add("attention: backward", n_layers, [5.0 * product, 2.0 * words], || {
            attention::backward(pool, &d_out, &qkv, &out, &lse, heads, &starts, &mut d_qkv);
        });

        let gain = vec![1.0; heads.head_dim];
        let table = Table::new(1e4, heads.head_dim, n_context);
        let op = QkNormRope {
            heads,
            q_gain: &gain,
            k_gain: &gain,
            eps: 1e-6,
            starts: &starts,
            table: &table,
        };
        let mut rstd = vec![0.0; t * (heads.n_heads + heads.n_kv_heads)];
        let words = qkv.len() as f64;
        let mut rotated = qkv.clone();
        self.add("qk norm, rope: forward", n_layers, [0.0, 2.0 * words], || {
            op.forward(pool, &qkv, &mut rotated, &mut rstd);
        });
        let (mut d_q_gain, mut d_k_gain) = (gain.clone(), gain.clone());
        self.add("qk norm, rope: backward", n_layers, [0.0, 3.0 * words], || {
            op.backward(pool, &rotated, &qkv, &rstd, &mut d_qkv, &mut d_q_gain, &mut d_k_gain);
        });
    }

    /// Normalization, activation and embedding.
    pub(super) fn rows(&mut self) {
        let Sizes { d_model, n_hidden, n_layers, n_vocab, .. } = self.sizes;
        let t = self.sizes.n_tokens();
        let pool = self.pool;
        let (x, delta) = (normal("x", t * d_model), normal("delta", t * d_model));
        let mut y = x.clone();
        let (gain, mut rstd) = (vec![1.0; d_model], vec![1.0; t]);
        let mut d_gain = gain.clone();
        let words = x.len() as f64;
        self.add("rms norm: forward", 2 * n_layers + 1, [0.0, 2.0 * words], || {
            rms_norm::forward(pool, &x, &gain, 1e-6, &mut y, &mut rstd);
        });
        self.add("residual stream: copy", 2 * n_layers, [0.0, 2.0 * words], || {
            y.copy_from_slice(&x);
        });
        self.add("rms norm: backward", 2 * n_layers + 1, [0.0, 4.0 * words], || {
            rms_norm::backward(pool, &delta, &x, &gain, &rstd, &mut y, &mut d_gain);
        });

        let gate_up = normal("gate_up", 2 * t * n_hidden);
        let (mut hidden, mut d_gate_up) = (vec![0.0; t * n_hidden], gate_up.clone());
        let words = hidden.len() as f64;
        self.add("swiglu: forward", n_layers, [0.0, 3.0 * words], || {
            swiglu::forward(pool, &gate_up, n_hidden, &mut hidden);
        });
        self.add("swiglu: backward", n_layers, [0.0, 5.0 * words], || {
            swiglu::backward(pool, &hidden, &gate_up, n_hidden, &mut d_gate_up);
        });

        let rng = Philox::new(0, "ids");
        let ids: Vec<u32> = (0..t as u64).map(|i| rng.below(i, n_vocab as u64) as u32).collect();
        let mut table = vec![0.0; n_vocab * d_model];
        let words = (t * d_model) as f64;
        self.add("embedding: forward", 1, [0.0, 2.0 * words], || {
            embedding::forward(pool, &table, &ids, &mut y);
        });
        self.add("embedding: backward", 1, [0.0, 3.0 * words], || {
            embedding::backward(pool, &ids, &delta, &mut table);
        });
    }

    /// The classifier and its loss.
    pub(super) fn head(&mut self) {
        let Sizes { d_model, n_vocab, .. } = self.sizes;
        let t = self.sizes.n_tokens();
        let pool = self.pool;
        let (x, w) = (normal("x", t * d_model), normal("w", n_vocab * d_model));
        let targets: Vec<u32> = (0..t).map(|i| (i * 7 % n_vocab) as u32).collect();
        let (mut d_x, mut d_w, mut nll) = (x.clone(), w.clone(), vec![0.0; t]);
        let mut scratch = vec![0.0; cross_entropy::scratch_len(t, n_vocab)];
        let loss = Loss { z_loss: 0.0, scale: 1e-3 };
        let product = 2.0 * (t * d_model * n_vocab) as f64;
        let words = (2 * t * d_model + 2 * n_vocab * d_model) as f64;
        self.add("cross-entropy: both passes", 1, [3.0 * product, words], || {
            cross_entropy::linear(pool, &x, &w, &targets, loss, &mut d_x, &mut d_w, &mut scratch);
        });
        self.add("cross-entropy: forward only", 0, [product, words / 2.0], || {
            cross_entropy::linear_forward(pool, &x, &w, &targets, &mut nll, &mut scratch);
        });
    }

    /// Clipping and the update.
    pub(super) fn optimizer(&mut self) {
        let n_params = self.sizes.n_params();
        let pool = self.pool;
        let grads = normal("grads", n_params);
        let [mut p, mut m, mut v] = [grads.clone(), grads.clone(), vec![1.0; n_params]];
        let settings =
            adamw::AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        self.add("gradient norm", 1, [0.0, n_params as f64], || {
            std::hint::black_box(norm::sum_of_squares(pool, &grads));
        });
        self.add("adamw", 1, [0.0, 7.0 * n_params as f64], || {
            adamw::step(pool, &mut p, &grads, &mut m, &mut v, settings, 10, 1.0);
        });
        for figure in self.figures.iter_mut().rev().take(2) {
            figure.is_once_a_step = true;
        }
    }
}
