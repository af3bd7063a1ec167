//! Whether a synthesizer reads d1: the loss of held-out d2 after their own d1 and after another.

use engine::task::{Context, Failure};
use kernels::Pool;

use super::data::{HeldoutPair, push_pair};
use crate::format::tokens::Tokens;
use crate::lm::batch::Batch;
use crate::lm::{Config, Forward, Weights};

/// Most tokens of one forward pass.
const FORWARD_TOKENS: usize = 1024;

/// Mean losses of the held-out d2, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Losses {
    /// After the d1 of the pair.
    pub(super) right: f64,
    /// After a d1 that d2 is not paired with.
    pub(super) unrelated: f64,
}

/// The held-out pairs as rows, and the buffers to measure them.
pub(super) struct Heldout {
    right: Batch,
    unrelated: Batch,
    forward: Forward,
}

impl Heldout {
    pub(super) fn new(pairs: &[HeldoutPair], tokens: &Tokens, config: &Config) -> Self {
        let (mut right, mut unrelated) = (Batch::default(), Batch::default());
        for pair in pairs {
            push_pair(&mut right, tokens, pair.d1, pair.d2);
            push_pair(&mut unrelated, tokens, pair.unrelated, pair.d2);
        }
        let forward = Forward::new(config, FORWARD_TOKENS.max(config.context));
        Self { right, unrelated, forward }
    }

    /// Bytes of the buffers.
    pub(super) fn bytes(config: &Config) -> u64 {
        Forward::bytes(config, FORWARD_TOKENS.max(config.context))
    }

    /// Both losses; nothing when no pairs are held out.
    pub(super) fn measure(
        &mut self,
        ctx: &Context,
        pool: &Pool,
        weights: &Weights,
    ) -> Result<Option<Losses>, Failure> {
        if self.right.n_targets() == 0 {
            return Ok(None);
        }
        let forward = &mut self.forward;
        let mut loss = |batch: &Batch| -> Result<f64, Failure> {
            let mut sum = 0.0;
            for micro in batch.micro_batches(FORWARD_TOKENS) {
                ctx.check_cancelled()?;
                let nll = forward.nll(pool, weights, micro.ids, &micro.starts, micro.targets);
                sum += nll.iter().map(|x| f64::from(*x)).sum::<f64>();
            }
            Ok(sum / batch.n_targets() as f64)
        };
        Ok(Some(Losses { right: loss(&self.right)?, unrelated: loss(&self.unrelated)? }))
    }
}
