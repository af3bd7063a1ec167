//! Documents of a world as token ids: every word is one token.

use std::path::Path;

use engine::task::{Context, Failure};
use kernels::Pool;

use super::{Meaning, World};
use crate::lm::batch::Batch;
use crate::lm::{Forward, Weights};
use crate::tokenizer::Tokenizer;

/// Most tokens of one forward pass.
const FORWARD_TOKENS: usize = 2048;

/// Turns words into ids.
pub(crate) struct Words {
    tokenizer: Tokenizer,
    /// The attribute of each id that is a value.
    attributes: Vec<Option<usize>>,
}

impl Words {
    /// Opens the `tokenizer` artifact in `dir` for `world`.
    ///
    /// # Errors
    /// When a word of the world is not one token.
    pub(crate) fn open(dir: &Path, world: &World) -> Result<Self, Failure> {
        let tokenizer = Tokenizer::open(dir)?;
        let mut attributes = vec![None; tokenizer.vocab_size() as usize];
        for (word, meaning) in world.lexicon() {
            let [id] = tokenizer.encode(word)?[..] else {
                return Err(Failure::permanent(format!("the word `{word}` is not one token"))
                    .help("connect the output `tokenizer` of `generate_world`"));
            };
            if let Meaning::Value(attribute, _) = meaning {
                attributes[id as usize] = Some(attribute);
            }
        }
        Ok(Self { tokenizer, attributes })
    }

    /// Size of the vocabulary.
    pub(crate) fn vocab_size(&self) -> usize {
        self.attributes.len()
    }

    /// The ids of a text.
    pub(crate) fn ids(&self, text: &str) -> Result<Vec<u32>, Failure> {
        self.tokenizer.encode(text)
    }

    /// The attribute whose value a token is.
    pub(crate) fn attribute(&self, id: u32) -> Option<usize> {
        self.attributes[id as usize]
    }

    /// Checks that a model has the vocabulary.
    pub(crate) fn check_model(&self, weights: &Weights) -> Result<(), Failure> {
        let (rows, needed) = (weights.config().vocab_size, self.vocab_size());
        if rows >= needed {
            return Ok(());
        }
        Err(Failure::permanent(format!("the model has {rows} tokens, the world needs {needed}")))
    }
}

/// The negative log likelihood of every token of a batch in nats, in its order; 0 without a target.
pub(crate) fn token_nll(
    ctx: &Context,
    pool: &Pool,
    weights: &Weights,
    batch: &Batch,
) -> Result<Vec<f32>, Failure> {
    let mut forward = Forward::new(weights.config(), FORWARD_TOKENS.max(weights.config().context));
    let mut nll = Vec::with_capacity(batch.n_tokens());
    for micro in batch.micro_batches(FORWARD_TOKENS) {
        ctx.check_cancelled()?;
        nll.extend(forward.nll(pool, weights, micro.ids, &micro.starts, micro.targets));
    }
    if nll.iter().all(|nll| nll.is_finite()) {
        Ok(nll)
    } else {
        Err(Failure::permanent("a token's loss is not finite"))
    }
}
