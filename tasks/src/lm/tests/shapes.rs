//! Agreement with transformers over heads, widths, lengths from 1 to 513 and document masks, and over
//! 100 steps of AdamW; the golden comes from `tests/goldens/make_shapes.py`.

use kernels::Pool;
use kernels::cross_entropy::Loss;
use serde::Deserialize;

use super::{assert_close, whole};
use crate::lm::backward::{Activations, Recompute};
use crate::lm::batch::Batch;
use crate::lm::forward::Forward;
use crate::lm::optimizer::Optimizer;
use crate::lm::{Config, Weights};

/// Where the golden draws the vectors that gradients are multiplied with.
const PROBE: u32 = 1 << 24;
/// Error of a gradient relative to its length.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    shapes: Vec<Shape>,
    history: History,
}

#[derive(Deserialize)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    tied: bool,
    lengths: Vec<usize>,
    nll: Vec<f64>,
    /// Length, and product with noise, of the gradient of each part.
    gradients: Vec<[f64; 2]>,
}

#[derive(Deserialize)]
struct History {
    case: usize,
    rate: f64,
    decay: f64,
    clip: f64,
    losses: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../tests/goldens/shapes.json")).unwrap()
}

/// A number in [-0.5, 0.5), a hash of its place.
fn noise(place: u32) -> f32 {
    let mut h = place.wrapping_mul(2_654_435_761);
    h ^= h >> 16;
    h = h.wrapping_mul(0x85EB_CA6B);
    h ^= h >> 13;
    h = h.wrapping_mul(0xC2B2_AE35);
    (h >> 8) as f32 / (1 << 24) as f32 - 0.5
}

impl Shape {
    fn weights(&self) -> Weights {
        let mut weights = Weights::zeros(&Config {
            d_model: 24,
            n_layers: 2,
            n_heads: self.heads,
            n_kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            d_ffn: 40,
            vocab_size: 61,
            context: 1024,
            rope_theta: 5e5,
            norm_eps: 1e-6,
            tie_embeddings: self.tied,
        });
        for part in weights.parts() {
            let base = if part.name.ends_with("norm") { 1.0 } else { 0.0 };
            for (i, x) in (0..).zip(&mut weights.data_mut()[part.range.clone()]) {
                *x = base + noise(part.range.start as u32 + i);
            }
        }
        weights
    }

    /// The documents in one row, each attended alone.
    fn batch(&self) -> Batch {
        let id = |i: usize| ((f64::from(noise(PROBE / 2 + i as u32)) + 0.5) * 61.0) as u32;
        let (mut batch, mut at) = (Batch::default(), 0);
        for &length in &self.lengths {
            let target = |i: usize| (i + 1 < at + length).then(|| id(i + 1));
            batch.push_span((at..at + length).map(|i| (id(i), target(i))));
            at += length;
        }
        batch.end_row();
        batch
    }
}

#[test]
fn losses_and_gradients_agree_over_shapes() {
    for shape in golden().shapes {
        let what = format!("{} of {} heads, {:?}", shape.kv_heads, shape.heads, shape.lengths);
        let (weights, batch, pool) = (shape.weights(), shape.batch(), Pool::new(2));
        let micro = whole(&batch);
        let mut forward = Forward::new(weights.config(), batch.n_tokens());
        let nll = forward.nll(&pool, &weights, micro.ids, &micro.starts, micro.targets);
        let last: Vec<bool> =
            micro.targets.iter().map(|t| *t == kernels::cross_entropy::IGNORE).collect();
        let nll: Vec<f32> =
            nll.iter().zip(&last).filter(|(_, last)| !**last).map(|(x, _)| *x).collect();
        assert_close(&nll, &shape.nll, &what);

        let loss = Loss { z_loss: 0.0, scale: 1.0 / batch.n_targets() as f32 };
        let mut grads = Weights::zeros(weights.config());
        let mut activations = Activations::new(weights.config(), batch.n_tokens());
        activations.loss_and_gradients(&pool, &weights, &micro, loss, &mut grads);
        let parts = grads.parts();
        assert_eq!(parts.len(), shape.gradients.len());
        for (part, [length, product]) in parts.iter().zip(&shape.gradients) {
            let data = &grads.data()[part.range.clone()];
            let found = data.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let error = (found - length).abs() / length;
            assert!(error <= TOLERANCE, "{what} {}: length {error:e}", part.name);
            let probe = (0..).map(|i| f64::from(noise(PROBE + part.range.start as u32 + i)));
            let found: f64 = data.iter().zip(probe).map(|(x, p)| f64::from(*x) * p).sum();
            let error = (found - product).abs() / length;
            assert!(error <= TOLERANCE, "{what} {}: product {error:e}", part.name);
        }
    }
}

#[test]
fn a_hundred_steps_agree() {
    let Golden { shapes, history } = golden();
    let shape = &shapes[history.case];
    let (mut weights, batch, pool) = (shape.weights(), shape.batch(), Pool::new(2));
    let micro = whole(&batch);
    let loss = Loss { z_loss: 0.0, scale: 1.0 / batch.n_targets() as f32 };
    let mut optimizer = Optimizer::new(&weights, history.decay, history.clip);
    let mut activations =
        Activations::with_recompute(weights.config(), batch.n_tokens(), Recompute::Blocks);
    let mut losses = Vec::new();
    for step in 1..=history.losses.len() as u64 {
        let mut grads = Weights::zeros(weights.config());
        let sums = activations.loss_and_gradients(&pool, &weights, &micro, loss, &mut grads);
        losses.push((sums.nll / sums.n_tokens as f64) as f32);
        let norm = Optimizer::norm(&pool, &grads);
        optimizer.step(&pool, &mut weights, &grads, norm, history.rate, step);
    }
    assert_eq!(losses.len(), 100);
    assert_close(&losses, &history.losses, "100 steps");
}
