//! Shape and constants of a model.

use thiserror::Error;

/// Highest value of any dimension; keeps every product of two within `u64` and every file readable.
const DIMENSION_MAX: usize = 1 << 24;
/// Highest number of parameters: 2^40, far above any model that one machine holds.
const PARAMETERS_MAX: u128 = 1 << 40;
/// Highest context; positions are `u32` and rotary tables hold one row a position.
const CONTEXT_MAX: usize = 1 << 22;

/// Shape and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Blocks of attention and feed-forward.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; `n_heads` is a multiple.
    pub n_kv_heads: usize,
    /// Width of one head; even, because rotary positions turn pairs.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub d_ffn: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Longest sequence that the model is trained for, in tokens.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in every RMSNorm.
    pub norm_eps: f32,
    /// Whether the output matrix is the embedding table.
    pub tie_embeddings: bool,
}

/// A config that describes no model.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {message}")]
pub struct ConfigError {
    /// The field that is wrong.
    pub field: &'static str,
    /// What is wrong with it, with value and limit.
    pub message: String,
}

impl Config {
    /// Checks that the config describes a model.
    ///
    /// # Errors
    /// The first field that is zero, too large, or does not fit the others.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, message| Err(ConfigError { field, message });
        for (field, value) in [
            ("d_model", self.d_model),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("d_ffn", self.d_ffn),
            ("vocab_size", self.vocab_size),
        ] {
            if value == 0 || value > DIMENSION_MAX {
                return wrong(field, format!("{value} is not within 1..={DIMENSION_MAX}"));
            }
        }
        if self.context == 0 || self.context > CONTEXT_MAX {
            return wrong("context", format!("{} is not within 1..={CONTEXT_MAX}", self.context));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let (q, kv) = (self.n_heads, self.n_kv_heads);
            return wrong("n_kv_heads", format!("{q} query heads do not divide among {kv}"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("head_dim", format!("{} is odd, rotary pairs need even", self.head_dim));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return wrong("rope_theta", format!("{} is not a positive number", self.rope_theta));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return wrong("norm_eps", format!("{} is not a positive number", self.norm_eps));
        }
        let n_parameters = self.n_parameters_wide();
        if n_parameters > PARAMETERS_MAX {
            return wrong("n_layers", format!("{n_parameters} parameters, at most 2^40 are meant"));
        }
        Ok(())
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Width of a packed row `[q heads | k heads | v heads]`.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// Trained numbers; the shared table of a tied model counts once.
    pub fn n_parameters(&self) -> u64 {
        self.n_parameters_wide() as u64
    }

    fn n_parameters_wide(&self) -> u128 {
        let [d, f, v, hd] =
            [self.d_model, self.d_ffn, self.vocab_size, self.head_dim].map(|n| n as u128);
        let attention = d * self.qkv_width() as u128 + self.q_width() as u128 * d + 2 * hd;
        let block = attention + 3 * d * f + 2 * d;
        let tables = if self.tie_embeddings { 1 } else { 2 };
        self.n_layers as u128 * block + tables * v * d + d
    }

    /// Floating-point operations to train on `n_tokens` tokens that attend to `n_attended` tokens
    /// together, themselves included: three times the forward pass.
    pub fn train_flop(&self, n_tokens: u64, n_attended: u64) -> f64 {
        let attention = 12.0 * (self.n_layers * self.q_width()) as f64;
        self.train_flop_per_token(0) * n_tokens as f64 + attention * n_attended as f64
    }

    /// Floating-point operations to train on one token in rows of `context` tokens: three times the
    /// forward pass, attention counted causally.
    pub fn train_flop_per_token(&self, context: usize) -> f64 {
        let [d, f, v] = [self.d_model, self.d_ffn, self.vocab_size].map(|n| n as f64);
        let block = d * self.qkv_width() as f64 + self.q_width() as f64 * d + 3.0 * d * f;
        let multiplied = self.n_layers as f64 * block + d * v;
        6.0 * multiplied + 6.0 * self.n_layers as f64 * self.q_width() as f64 * context as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::Preset;

    #[test]
    fn wrong_configs_name_the_field() {
        let check = |change: fn(&mut Config), field: &str| {
            let mut config = Preset::Smoke.config();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().field, field);
        };
        assert_eq!(Preset::Smoke.config().check(), Ok(()));
        check(|c| c.n_layers = 0, "n_layers");
        check(|c| c.d_ffn = usize::MAX, "d_ffn");
        check(|c| (c.n_heads, c.n_kv_heads) = (3, 2), "n_kv_heads");
        check(|c| c.head_dim = 7, "head_dim");
        check(|c| c.context = 0, "context");
        check(|c| c.rope_theta = f64::NAN, "rope_theta");
        check(|c| c.norm_eps = 0.0, "norm_eps");
        check(|c| (c.d_model, c.vocab_size) = (1 << 24, 1 << 24), "n_layers");
    }

    /// FLOPs per token of the paper's models, `6 N + 6 L H h T` over the multiplied parameters.
    #[test]
    fn flops_match_the_closed_form() {
        let check = |preset: Preset, context, expected: f64| {
            let flop = preset.config().train_flop_per_token(context);
            assert!((flop / expected - 1.0).abs() < 1e-4, "{flop:e}");
        };
        check(Preset::B3, 4096, 1.8388e10);
        check(Preset::B3, 8192, 2.0351e10);
        check(Preset::B6, 4096, 4.3285e10);
        // A row attends to half of its square, and a token on the diagonal to the whole of itself.
        let config = Preset::Toy.config();
        let (row, per_token) =
            (config.train_flop(128, 128 * 129 / 2), config.train_flop_per_token(129));
        assert!((row / (128.0 * per_token) - 1.0).abs() < 1e-12);
    }
}
