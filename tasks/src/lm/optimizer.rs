//! AdamW over the arena, and learning rates by step.

use kernels::adamw::{self, AdamW};
use kernels::{Pool, norm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Weights;
use super::weights::Part;

/// Decay of the moments and the floor of the denominator, the usual ones for language models.
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.95;
const EPS: f64 = 1e-8;

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Half a cosine from the peak to the end of the run.
    Cosine,
    /// The peak until the end.
    Constant,
}

/// Learning rates of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// The highest rate.
    pub peak: f64,
    /// The rate of the last step of [`Shape::Cosine`].
    pub end: f64,
    /// Steps of the linear rise; the last of them has the peak.
    pub n_warmup: u64,
    /// Steps in all.
    pub n_steps: u64,
    /// What follows the rise.
    pub shape: Shape,
}

impl LearningRate {
    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.n_warmup {
            return self.peak * (step + 1) as f64 / self.n_warmup as f64;
        }
        match self.shape {
            Shape::Constant => self.peak,
            Shape::Cosine => {
                // Counted from the step that has the peak, so that the last has exactly the end.
                let start = self.n_warmup.saturating_sub(1);
                let length = self.n_steps.saturating_sub(1).saturating_sub(start).max(1);
                let progress = (step.saturating_sub(start) as f64 / length as f64).min(1.0);
                let fall = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
                self.end + (self.peak - self.end) * fall
            }
        }
    }
}

/// How learning rates depend on a model's width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Parametrization {
    /// They do not: a wider model wants a lower rate.
    #[default]
    Standard,
    /// The rate of a matrix is divided by its number of inputs over the base width, so that one rate
    /// suits every width. Embedding tables and gains keep the rate as it is.
    ///
    /// # Source
    /// Wortsman et al., arXiv 2309.14322, where it is called µParam (simple).
    MupSimple,
}

/// A [`Parametrization`] and the width that its rates are stated for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateScale {
    /// How rates depend on width.
    pub parametrization: Parametrization,
    /// The number of inputs at which a matrix learns with the rate as stated.
    pub base_width: f64,
}

impl RateScale {
    /// Rates as stated, for every part.
    pub const STANDARD: Self = Self { parametrization: Parametrization::Standard, base_width: 1.0 };

    /// The factor on the rate of a part.
    fn of(self, part: &Part) -> f64 {
        match self.parametrization {
            Parametrization::MupSimple if part.kind.decays() => self.base_width / part.cols as f64,
            Parametrization::MupSimple | Parametrization::Standard => 1.0,
        }
    }
}

/// How parts are updated, on any device.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Decay of matrices per unit of learning rate; gains and the embedding table do not decay.
    pub weight_decay: f64,
    /// Longest gradient that is taken whole; infinite for none.
    pub clip: f64,
    /// How rates depend on width.
    pub rate_scale: RateScale,
}

impl Rule {
    /// What gradients of length `grad_norm` are multiplied by.
    pub fn grad_scale(&self, grad_norm: f64) -> f32 {
        (if grad_norm > self.clip { self.clip / grad_norm } else { 1.0 }) as f32
    }

    /// The step of a part at the learning rate `lr`.
    pub fn settings(&self, part: &Part, lr: f64) -> AdamW {
        let scale = self.rate_scale.of(part);
        let lr = lr * scale;
        // The decay of a step is that of the rate as stated, whatever the width.
        let weight_decay = if part.kind.decays() { self.weight_decay / scale } else { 0.0 };
        AdamW { lr, beta1: BETA1, beta2: BETA2, eps: EPS, weight_decay }
    }
}

/// AdamW's moments.
pub struct Optimizer {
    /// First moment, in arena order.
    pub first: Vec<f32>,
    /// Second moment, in arena order.
    pub second: Vec<f32>,
    rule: Rule,
}

impl Optimizer {
    /// Moments of zero for `weights`. `clip` is infinite for none.
    pub fn new(weights: &Weights, weight_decay: f64, clip: f64) -> Self {
        Self::with_rule(weights, Rule { weight_decay, clip, rate_scale: RateScale::STANDARD })
    }

    /// Moments of zero for `weights`, updated by `rule`.
    pub fn with_rule(weights: &Weights, rule: Rule) -> Self {
        let zeros = || vec![0.0; weights.data().len()];
        Self { first: zeros(), second: zeros(), rule }
    }

    /// The length of the whole gradient.
    pub fn norm(pool: &Pool, grads: &Weights) -> f64 {
        norm::sum_of_squares(pool, grads.data()).sqrt()
    }

    /// Updates the weights with gradients of length `grad_norm`, shortened to the clip when longer.
    /// `step` counts updates from 1.
    pub fn step(
        &mut self,
        pool: &Pool,
        weights: &mut Weights,
        grads: &Weights,
        grad_norm: f64,
        lr: f64,
        step: u64,
    ) {
        let grad_scale = self.rule.grad_scale(grad_norm);
        for part in weights.parts() {
            let settings = self.rule.settings(&part, lr);
            let range = part.range;
            adamw::step(
                pool,
                &mut weights.data_mut()[range.clone()],
                &grads.data()[range.clone()],
                &mut self.first[range.clone()],
                &mut self.second[range],
                settings,
                step,
                grad_scale,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rate: LearningRate, step: u64, expected: f64) {
        let at = rate.at(step);
        assert!((at - expected).abs() < 1e-12, "step {step}: {at} is not {expected}");
    }

    /// The paper's 200 B run: 23,842 steps, 5 % of them warm-up, 1e-2 to 5e-5.
    #[test]
    fn papers_schedule_has_its_golden_points() {
        let n_steps = 200_000_000_000_u64.div_ceil(2048 * 4096);
        let n_warmup = (0.05 * n_steps as f64) as u64;
        assert_eq!((n_steps, n_warmup), (23_842, 1_192));
        let rate = LearningRate { peak: 1e-2, end: 5e-5, n_warmup, n_steps, shape: Shape::Cosine };
        check(rate, 0, 1e-2 / 1192.0);
        check(rate, 1191, 1e-2);
        check(rate, 1191 + 22_650 / 2, f64::midpoint(1e-2, 5e-5));
        check(rate, 23_841, 5e-5);
    }

    /// A matrix of 64 inputs at base width 32 moves half as far and decays as far; others as before.
    #[test]
    fn mup_scales_matrices_by_their_inputs() {
        use crate::lm::Preset;
        use crate::lm::weights::PartKind;

        let pool = Pool::new(1);
        let step = |rate_scale, weight_decay| {
            let mut weights = Weights::zeros(&Preset::Smoke.config());
            weights.data_mut().fill(1.0);
            let mut grads = Weights::zeros(weights.config());
            grads.data_mut().fill(if weight_decay > 0.0 { 0.0 } else { 1.0 });
            let rule = Rule { weight_decay, clip: f64::INFINITY, rate_scale };
            let mut optimizer = Optimizer::with_rule(&weights, rule);
            optimizer.step(&pool, &mut weights, &grads, 1.0, 1e-2, 1);
            weights
        };
        let mup = RateScale { parametrization: Parametrization::MupSimple, base_width: 32.0 };
        let (moved, plain) = (step(mup, 0.0), step(RateScale::STANDARD, 0.0));
        let (decayed, plain_decayed) = (step(mup, 0.5), step(RateScale::STANDARD, 0.5));
        for part in moved.parts() {
            let at = part.range.start;
            let way = |weights: &Weights| f64::from(1.0 - weights.data()[at]);
            let is_matrix = matches!(part.kind, PartKind::Matrix | PartKind::Residual);
            let expected = if is_matrix { 32.0 / part.cols as f64 } else { 1.0 };
            let ratio = way(&moved) / way(&plain);
            assert!((ratio - expected).abs() < 1e-4, "{}: {ratio} {expected}", part.name);
            assert!((way(&decayed) - way(&plain_decayed)).abs() < 1e-6, "{}", part.name);
        }
    }

    #[test]
    fn short_and_constant_schedules_hold_their_ends() {
        let rate = |n_warmup, n_steps, shape| LearningRate {
            peak: 1.0,
            end: 0.25,
            n_warmup,
            n_steps,
            shape,
        };
        check(rate(0, 1, Shape::Cosine), 0, 1.0);
        check(rate(0, 2, Shape::Cosine), 1, 0.25);
        check(rate(1, 2, Shape::Cosine), 0, 1.0);
        check(rate(4, 10, Shape::Constant), 1, 0.5);
        check(rate(4, 10, Shape::Constant), 9, 1.0);
    }
}
