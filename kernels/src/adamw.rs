//! The `AdamW` update, one pass over memory.
//!
//! # Source
//! Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101, algorithm 2,
//! with the learning rate on the decay as in `torch.optim.AdamW`.

pub mod cuda;

use crate::Pool;
use crate::disjoint::Disjoint;
use crate::isa::per_isa;

/// Elements that one task updates.
const TILE: usize = 1 << 14;

/// Settings of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of the parameters per unit of learning rate; 0 for gains and biases.
    pub weight_decay: f64,
}

/// Updates `params`, and the moments `m` and `v`, from `grad_scale * grads`.
///
/// `grad_scale` carries the clipping factor, so that gradients are not written once more. `step`
/// counts from 1; it corrects the moments' start at 0. The factors are computed in `f64`, the
/// elements in `f32`.
///
/// # Panics
/// When the slices differ in length, or `step` is 0.
pub fn step(
    pool: &Pool,
    params: &mut [f32],
    grads: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    settings: AdamW,
    step: u64,
    grad_scale: f32,
) {
    let len = params.len();
    assert!(grads.len() == len && m.len() == len && v.len() == len, "buffers have equal lengths");
    let factors = Factors::of(settings, step, grad_scale);
    let (params, m, v) = (Disjoint::new(params), Disjoint::new(m), Disjoint::new(v));
    pool.for_each(len.div_ceil(TILE), |tile| {
        let range = tile * TILE..len.min((tile + 1) * TILE);
        // SAFETY: Tiles are disjoint ranges.
        let (p, m, v) = unsafe {
            (params.slice(range.clone()), m.slice(range.clone()), v.slice(range.clone()))
        };
        update(pool.isa(), p, &grads[range], m, v, factors);
    });
}

/// What a step multiplies by; as in `adamw.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Factors {
    grad_scale: f32,
    keep: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    eps: f32,
    step_size: f32,
    root_correction: f32,
}

impl Factors {
    /// Those of a step, as of [`step`].
    ///
    /// # Panics
    /// When `step` is 0.
    pub fn of(settings: AdamW, step: u64, grad_scale: f32) -> Self {
        assert!(step >= 1, "steps count from 1");
        let AdamW { lr, beta1, beta2, eps, weight_decay } = settings;
        Self {
            grad_scale,
            keep: (1.0 - lr * weight_decay) as f32,
            beta1: beta1 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            eps: eps as f32,
            step_size: (lr / (1.0 - beta1.powf(step as f64))) as f32,
            root_correction: (1.0 / (1.0 - beta2.powf(step as f64)).sqrt()) as f32,
        }
    }
}

per_isa! {
    fn update<M>(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], by: Factors) {
        let n = p.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let grad = g[i] * by.grad_scale;
            let m_new = M::mul_add(by.beta1, m[i], by.one_minus_beta1 * grad);
            let v_new = M::mul_add(by.beta2, v[i], by.one_minus_beta2 * grad * grad);
            let root = M::mul_add(v_new.sqrt(), by.root_correction, by.eps);
            m[i] = m_new;
            v[i] = v_new;
            p[i] = M::mul_add(-by.step_size, m_new / root, by.keep * p[i]);
        }
    }
}

/// The definition, in `f64`; arguments as of [`step`].
pub fn reference(
    params: &mut [f64],
    grads: &[f64],
    m: &mut [f64],
    v: &mut [f64],
    settings: AdamW,
    step: u64,
) {
    let AdamW { lr, beta1, beta2, eps, weight_decay } = settings;
    for i in 0..params.len() {
        params[i] *= 1.0 - lr * weight_decay;
        m[i] = beta1 * m[i] + (1.0 - beta1) * grads[i];
        v[i] = beta2 * v[i] + (1.0 - beta2) * grads[i] * grads[i];
        let m_hat = m[i] / (1.0 - beta1.powf(step as f64));
        let v_hat = v[i] / (1.0 - beta2.powf(step as f64));
        params[i] -= lr * m_hat / (v_hat.sqrt() + eps);
    }
}
