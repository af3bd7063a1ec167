//! The loss on held-out documents while a model trains.

use engine::task::{Context, Failure};

use crate::format::tokens::Tokens;
use crate::lm::Config;
use crate::lm::batch::Batch;
use crate::lm::reader::Losses;
use crate::tokenizer::{BOS, EOS};

/// Most tokens of one forward pass.
const FORWARD_TOKENS: usize = 1024;

/// Held-out documents as rows.
pub(crate) struct Heldout {
    batch: Batch,
}

impl Heldout {
    /// The first documents of up to `n_tokens_max` tokens, at least one; a document longer than the
    /// context is cut into rows.
    pub(crate) fn new(
        tokens: &Tokens,
        config: &Config,
        n_tokens_max: u64,
    ) -> Result<Self, Failure> {
        if tokens.vocab_size() as usize > config.vocab_size {
            return Err(Failure::permanent(format!(
                "the held-out tokens have ids below {}, and the model has {}",
                tokens.vocab_size(),
                config.vocab_size
            )));
        }
        let mut batch = Batch::default();
        for document in 0..tokens.n_documents() {
            let mut ids = vec![BOS];
            tokens.view(document).copy_to(&mut ids);
            ids.push(EOS);
            if batch.n_tokens() > 0 && (batch.n_tokens() + ids.len()) as u64 > n_tokens_max {
                break;
            }
            for from in (0..ids.len()).step_by(config.context) {
                let to = ids.len().min(from + config.context);
                batch.push_span((from..to).map(|i| (ids[i], ids.get(i + 1).copied())));
                batch.end_row();
            }
        }
        if batch.n_targets() == 0 {
            return Err(Failure::permanent("port `heldout` has no documents"));
        }
        Ok(Self { batch })
    }

    /// Most tokens that are scored at once.
    pub(crate) fn tokens_max(config: &Config) -> usize {
        FORWARD_TOKENS.max(config.context)
    }

    /// The mean negative log likelihood per predicted token, in nats.
    pub(crate) fn loss(&self, ctx: &Context, losses: &mut dyn Losses) -> Result<f64, Failure> {
        let mut sum = 0.0;
        for micro in self.batch.micro_batches(FORWARD_TOKENS) {
            ctx.check_cancelled()?;
            let nll = losses.nll(&micro)?;
            sum += nll.iter().map(|x| f64::from(*x)).sum::<f64>();
        }
        Ok(sum / self.batch.n_targets() as f64)
    }
}
