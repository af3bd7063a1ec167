//! Params that both training tasks have under the same names, and what follows from them.
//!
//! Their `Params` stay flat, each field with its own words, since users write them and `training.json`
//! holds them in their order.

use engine::task::ParamError;

use super::Recipe;
use crate::lm::learner;
use crate::lm::optimizer::{LearningRate, Parametrization, RateScale};

/// The values of those params; 0 stands for no limit where a limit is meant.
pub(crate) struct Choices {
    pub(crate) micro_batch_tokens: usize,
    pub(crate) weight_decay: f64,
    pub(crate) clip: f64,
    pub(crate) z_loss: f64,
    pub(crate) parametrization: Parametrization,
    pub(crate) mup_base_width: f64,
    pub(crate) curve_points: u64,
    pub(crate) loss_rise_max: f64,
    pub(crate) checkpoint_every_s: f64,
}

impl Choices {
    /// Checks them.
    ///
    /// # Errors
    /// The first that is no number in its range.
    pub(crate) fn check(&self) -> Result<(), ParamError> {
        check_numbers(&[
            ("micro_batch_tokens", self.micro_batch_tokens as f64, false),
            ("weight_decay", self.weight_decay, true),
            ("clip", self.clip, true),
            ("z_loss", self.z_loss, true),
            ("mup_base_width", self.mup_base_width, false),
            ("curve_points", self.curve_points as f64, false),
            ("loss_rise_max", self.loss_rise_max, true),
            ("checkpoint_every_s", self.checkpoint_every_s, true),
        ])
    }

    /// What the trainer does with them.
    pub(crate) fn recipe(&self, rate: LearningRate) -> Recipe {
        let unlimited = |limit: f64| if limit > 0.0 { limit } else { f64::INFINITY };
        Recipe {
            rate,
            step: learner::Settings {
                weight_decay: self.weight_decay,
                clip: unlimited(self.clip),
                z_loss: self.z_loss,
                micro_batch_tokens: self.micro_batch_tokens,
                rate_scale: RateScale {
                    parametrization: self.parametrization,
                    base_width: self.mup_base_width,
                },
            },
            loss_rise_max: unlimited(self.loss_rise_max),
            n_points: self.curve_points,
            checkpoint_every_s: self.checkpoint_every_s,
        }
    }
}

/// Checks numbers: name, value, and whether 0 is allowed.
///
/// # Errors
/// The first that is out of range.
pub(crate) fn check_numbers(numbers: &[(&str, f64, bool)]) -> Result<(), ParamError> {
    for &(name, value, zero_is_fine) in numbers {
        if !(value.is_finite() && (value > 0.0 || (zero_is_fine && value == 0.0))) {
            let limit = if zero_is_fine { "at least 0" } else { "above 0" };
            return Err(ParamError::new(name, format!("{value} is not a number {limit}")));
        }
    }
    Ok(())
}

/// Their defaults, where both tasks have the same.
pub(crate) mod default {
    pub(crate) fn micro_batch_tokens() -> usize {
        2048
    }
    pub(crate) fn clip() -> f64 {
        1.0
    }
    pub(crate) fn mup_base_width() -> f64 {
        256.0
    }
    pub(crate) fn loss_rise_max() -> f64 {
        4.0
    }
    pub(crate) fn checkpoint_every_s() -> f64 {
        20.0
    }
}
