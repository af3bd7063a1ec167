//! Memory of a training run, known before the first step.

use std::fmt;

use engine::task::Failure;

use super::Config;
use super::backward::{Activations, Recompute};

/// Bytes of a training run by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights.
    pub weights_bytes: u64,
    /// Gradients.
    pub gradients_bytes: u64,
    /// Both moments of the optimizer.
    pub moments_bytes: u64,
    /// What a micro-batch keeps for its backward pass, and buffers that every block shares.
    pub activations_bytes: u64,
    /// Operands that matrix products keep packed; the largest are those of the loss.
    pub packed_bytes: u64,
    /// Buffers to measure the held-out loss.
    pub heldout_bytes: u64,
    /// What the activations leave out.
    pub recompute: Recompute,
}

impl MemoryPlan {
    /// The plan to train a model in micro-batches of at most `micro_tokens` tokens, beside buffers of
    /// `heldout_bytes`: the fastest that `granted_bytes` hold, else the smallest.
    pub fn training(
        config: &Config,
        micro_tokens: usize,
        heldout_bytes: u64,
        granted_bytes: Option<u64>,
    ) -> Self {
        let plan = |recompute| Self::with(config, micro_tokens, heldout_bytes, recompute);
        let fastest = plan(Recompute::Nothing);
        match granted_bytes {
            Some(granted) if fastest.total_bytes() > granted => plan(Recompute::Blocks),
            _ => fastest,
        }
    }

    fn with(
        config: &Config,
        micro_tokens: usize,
        heldout_bytes: u64,
        recompute: Recompute,
    ) -> Self {
        let weights_bytes = 4 * config.n_parameters();
        let packed =
            kernels::cross_entropy::packed_len(micro_tokens, [config.d_model, config.vocab_size]);
        Self {
            weights_bytes,
            gradients_bytes: weights_bytes,
            moments_bytes: 2 * weights_bytes,
            activations_bytes: Activations::bytes(config, micro_tokens, recompute),
            packed_bytes: 4 * packed as u64,
            heldout_bytes,
            recompute,
        }
    }

    /// All bytes.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes
            + self.gradients_bytes
            + self.moments_bytes
            + self.activations_bytes
            + self.packed_bytes
            + self.heldout_bytes
    }

    /// Checks the plan against the memory granted.
    ///
    /// # Errors
    /// When the run needs more than `granted_bytes`.
    pub fn check(&self, granted_bytes: Option<u64>) -> Result<(), Failure> {
        let needed = self.total_bytes();
        match granted_bytes {
            Some(granted) if needed > granted => Err(Failure::permanent(format!(
                "training needs {} MiB ({self}), and the node was granted {} MiB",
                mib(needed),
                granted >> 20
            ))
            .help(format!(
                "raise the node's `mem` to {} MiB, lower `micro_batch_tokens`, or choose a smaller `arch`",
                mib(needed)
            ))),
            _ => Ok(()),
        }
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "weights {} MiB, gradients {} MiB, moments {} MiB, activations {} MiB, packed operands {} MiB, held-out {} MiB",
            mib(self.weights_bytes),
            mib(self.gradients_bytes),
            mib(self.moments_bytes),
            mib(self.activations_bytes),
            mib(self.packed_bytes),
            mib(self.heldout_bytes)
        )?;
        match self.recompute {
            Recompute::Nothing => Ok(()),
            Recompute::Blocks => f.write_str("; blocks are computed again to save memory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::Preset;

    #[test]
    fn too_little_memory_is_an_error_with_the_remedy() {
        let plan = MemoryPlan::training(&Preset::Toy.config(), 1024, 0, None);
        assert_eq!(plan.weights_bytes, 4 * 976_256);
        assert!(plan.check(None).is_ok() && plan.check(Some(plan.total_bytes())).is_ok());
        let failure = plan.check(Some(10 << 20)).unwrap_err();
        assert!(failure.message.contains("granted 10 MiB"), "{}", failure.message);
        assert!(failure.help.unwrap().contains("micro_batch_tokens"));
    }

    #[test]
    fn short_memory_is_met_by_computing_blocks_again() {
        let config = Preset::Small.config();
        let plan = |granted| MemoryPlan::training(&config, 2048, 0, granted);
        let (fast, small) = (plan(None), plan(Some(0)));
        assert_eq!((fast.recompute, small.recompute), (Recompute::Nothing, Recompute::Blocks));
        // Eight blocks' states against one, and the residual stream in both.
        assert!(small.activations_bytes * 3 < fast.activations_bytes, "{fast} {small}");
        assert_eq!(plan(Some(fast.total_bytes())), fast);
        assert_eq!(plan(Some(fast.total_bytes() - 1)), small);
        assert!(small.to_string().ends_with("computed again to save memory"));
        assert!(small.check(Some(small.total_bytes() - 1)).is_err());
    }

    /// Adam's state of the paper's 3 B model: parameters and two moments are 32.9 GB.
    #[test]
    fn papers_model_needs_its_known_memory() {
        let plan = MemoryPlan::training(&Preset::B3.config(), 4096, 0, None);
        let state = plan.weights_bytes + plan.moments_bytes;
        assert!((state as f64 / 32.9e9 - 1.0).abs() < 0.005, "{state}");
    }
}
