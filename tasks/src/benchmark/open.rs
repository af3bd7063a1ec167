//! Greedy answers to open questions.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use engine::task::{Failure, ItemContext};
use kernels::Pool;
use kernels::cuda::Device;
use kernels::philox::Philox;

use super::form::STOPS;
use crate::device;
use crate::lm::device::decoder::Generator;
use crate::lm::generate::{self, Choice, Completion, Decode, Decoder, Driver, Request, Settings};
use crate::lm::{Config, Weights};
use crate::tokenizer::{EOS, Tokenizer};

/// Texts generated at a time.
const N_SLOTS: usize = 16;
/// One more than slots holds the prompt that texts share.
const N_SEQUENCES: usize = N_SLOTS + 1;

/// Writes the likeliest continuation of prompts.
pub(super) struct Writer<'a> {
    pool: &'a Pool,
    decoder: Box<dyn Decode + 'a>,
    tokenizer: &'a Tokenizer,
    n_tokens_max: usize,
}

impl<'a> Writer<'a> {
    /// A writer on a device that was opened for [`Self::work`], or on the CPU where none was.
    ///
    /// # Errors
    /// When no prompt fits beside `n_tokens_max` new tokens, or the device has not enough memory.
    pub(super) fn new(
        device: Option<Arc<dyn Device>>,
        pool: &'a Pool,
        weights: &'a Weights,
        tokenizer: &'a Tokenizer,
        n_tokens_max: usize,
    ) -> Result<Self, Failure> {
        let context = weights.config().context;
        if n_tokens_max >= context {
            return Err(Failure::permanent(format!(
                "`max_new_tokens: {n_tokens_max}` leaves no room for a question in the model's \
                 context of {context} tokens"
            ))
            .help("lower `max_new_tokens`; answers are short"));
        }
        let decoder: Box<dyn Decode + 'a> = match device {
            Some(device) => Box::new(Generator::new(device, weights, N_SEQUENCES)?),
            None => Box::new(Decoder::new(pool, weights, N_SEQUENCES)),
        };
        Ok(Self { pool, decoder, tokenizer, n_tokens_max })
    }

    /// What writing is to ask of a device.
    pub(super) fn work(config: &Config) -> device::Work {
        device::Work { remedy: "use a smaller model", ..Generator::work(config, N_SEQUENCES) }
    }

    /// What follows each prompt, up to a stop or a limit. A prompt too long loses its beginning.
    pub(super) fn write(
        &mut self,
        ctx: &ItemContext<'_>,
        prompts: Vec<Vec<u32>>,
    ) -> Result<Vec<String>, Failure> {
        let room = self.decoder.config().context - self.n_tokens_max;
        let n_tokens_max = self.n_tokens_max;
        let requests = prompts.into_iter().enumerate().map(|(index, mut prompt)| {
            let n_over = prompt.len().saturating_sub(room);
            Request {
                index: index as u64,
                prompt: Arc::from(prompt.split_off(n_over)),
                rng: Philox::new(0, "greedy"),
                n_tokens_max,
            }
        });
        let requests: VecDeque<Request> = requests.collect();
        let texts = vec![String::new(); requests.len()];
        let mut driver = Answers { ctx, tokenizer: self.tokenizer, requests, texts };
        let settings = Settings {
            choice: Choice::Greedy,
            repetition_penalty: 1.0,
            suppress: Vec::new(),
            stop: vec![EOS],
        };
        generate::generate(self.pool, &mut *self.decoder, &settings, N_SLOTS, &mut driver)?;
        Ok(driver.texts)
    }
}

struct Answers<'a> {
    ctx: &'a ItemContext<'a>,
    tokenizer: &'a Tokenizer,
    requests: VecDeque<Request>,
    texts: Vec<String>,
}

impl Driver for Answers<'_> {
    fn next(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    fn is_complete(&self, ids: &[u32]) -> bool {
        // Every stop is one ASCII character, which no token shares with another.
        let last = ids.last().and_then(|&id| self.tokenizer.decode(&[id]).ok());
        last.is_some_and(|text| text.contains(STOPS))
    }

    fn finished(&mut self, completion: Completion) -> Result<(), Failure> {
        self.texts[completion.index as usize] = self.tokenizer.decode(&completion.ids)?;
        Ok(())
    }

    fn stepped(&mut self, _: usize) -> Result<ControlFlow<()>, Failure> {
        self.ctx.check_cancelled()?;
        Ok(ControlFlow::Continue(()))
    }
}
