//! Whether a synthesizer reads d1: the loss of held-out d2 after their own d1 and after another.

use engine::task::{Context, Failure};

use super::data::{HeldoutPair, push_pair};
use crate::format::tokens::Tokens;
use crate::lm::Config;
use crate::lm::batch::Batch;
use crate::lm::reader::Losses as ModelLosses;

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

/// The held-out pairs as rows.
pub(super) struct Heldout {
    right: Batch,
    unrelated: Batch,
}

impl Heldout {
    pub(super) fn new(pairs: &[HeldoutPair], tokens: &Tokens) -> Self {
        let (mut right, mut unrelated) = (Batch::default(), Batch::default());
        for pair in pairs {
            push_pair(&mut right, tokens, pair.d1, pair.d2);
            push_pair(&mut unrelated, tokens, pair.unrelated, pair.d2);
        }
        Self { right, unrelated }
    }

    /// Most tokens that are scored at once.
    pub(super) fn tokens_max(config: &Config) -> usize {
        FORWARD_TOKENS.max(config.context)
    }

    /// Both losses; nothing when no pairs are held out.
    pub(super) fn measure(
        &self,
        ctx: &Context,
        model: &mut dyn ModelLosses,
    ) -> Result<Option<Losses>, Failure> {
        if self.right.n_targets() == 0 {
            return Ok(None);
        }
        let mut loss = |batch: &Batch| -> Result<f64, Failure> {
            let mut sum = 0.0;
            for micro in batch.micro_batches(FORWARD_TOKENS) {
                ctx.check_cancelled()?;
                let nll = model.nll(&micro)?;
                sum += nll.iter().map(|x| f64::from(*x)).sum::<f64>();
            }
            Ok(sum / batch.n_targets() as f64)
        };
        Ok(Some(Losses { right: loss(&self.right)?, unrelated: loss(&self.unrelated)? }))
    }
}
