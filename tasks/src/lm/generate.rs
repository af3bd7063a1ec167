//! Generation: many requests through a few slots of one batch.
//!
//! A slot that finishes takes the next request at once. A prompt that equals the one before is not
//! computed again: its requests share the cached keys and values. What a request gets depends on its
//! prompt, its random numbers and the settings alone, not on the batch, the other requests, their
//! order or the number of threads.

mod decoder;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use engine::task::Failure;
use kernels::Pool;
use kernels::decode::Sequence;
use kernels::philox::Philox;
use kernels::sampling::{self, NotFinite, Policy, Sampler};

use super::Config;
pub use decoder::Decoder;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The likeliest token; the first of equals.
    Greedy,
    /// A random token.
    Sample(Policy),
}

/// What all requests of a batch have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How the next token is chosen.
    pub choice: Choice,
    /// Above 1, makes tokens that occurred in prompt or text less likely; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Tokens that are never chosen.
    pub suppress: Vec<u32>,
    /// Tokens that end a text; they are not part of it.
    pub stop: Vec<u32>,
}

/// One text to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// Given back with the text.
    pub index: u64,
    /// What the text continues; not empty.
    pub prompt: Arc<[u32]>,
    /// Gives the random number of each position.
    pub rng: Philox,
    /// Most tokens, the end included; at least 1.
    pub n_tokens_max: usize,
}

/// A finished text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's index.
    pub index: u64,
    /// The text's tokens, without prompt and end.
    pub ids: Vec<u32>,
    /// Whether the request's limit cut the text off before its end.
    pub truncated: bool,
}

/// Gives requests and takes texts.
pub trait Driver {
    /// The next request, if there is one now. Asked again before each step; generation ends when there
    /// is none and no text is under way.
    fn next(&mut self) -> Option<Request>;

    /// Whether a text is complete with these ids, though its end was not generated.
    fn is_complete(&self, ids: &[u32]) -> bool {
        let _ = ids;
        false
    }

    /// Takes a finished text. Texts finish in no particular order.
    ///
    /// # Errors
    /// To stop.
    fn finished(&mut self, completion: Completion) -> Result<(), Failure>;

    /// Called after each step, in which `n_tokens` were generated. `Break` stops; texts under way
    /// are lost.
    ///
    /// # Errors
    /// To stop.
    fn stepped(&mut self, n_tokens: usize) -> Result<ControlFlow<()>, Failure>;
}

/// A model that computes the next tokens of sequences, wherever it is. Its cache was planned for every
/// sequence that [`generate`] holds at once.
pub trait Decode: Send {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// A new sequence that holds `prompt`, and the logits after its last token.
    ///
    /// # Errors
    /// When the device fails.
    fn prefill(&mut self, pool: &Pool, prompt: &[u32]) -> Result<(Sequence, Vec<f32>), Failure>;

    /// A sequence that begins with all positions of `sequence`.
    ///
    /// # Errors
    /// When the device fails.
    fn fork(&mut self, sequence: &Sequence) -> Result<Sequence, Failure>;

    /// Gives up a sequence.
    fn release(&mut self, sequence: Sequence);

    /// Appends one token to each sequence; gives the logits after it, `[n, vocab_size]`, to be changed
    /// at will.
    ///
    /// # Errors
    /// When the device fails.
    fn step(
        &mut self,
        pool: &Pool,
        tokens: &[u32],
        sequences: &mut [&mut Sequence],
    ) -> Result<&mut [f32], Failure>;
}

/// A prompt whose keys and values are in the cache.
struct Prefilled {
    prompt: Arc<[u32]>,
    sequence: Sequence,
    logits: Vec<f32>,
}

/// A request under way.
struct Slot {
    request: Request,
    sequence: Sequence,
    ids: Vec<u32>,
    /// Ids that occurred; only with a repetition penalty.
    seen: Vec<u32>,
    sampler: Sampler,
    chosen: Result<u32, NotFinite>,
}

/// Generates the texts of all requests, `n_slots` at a time.
///
/// # Errors
/// When the driver stops, a request does not fit the model's context, or the model's logits are not
/// finite.
///
/// # Panics
/// When `n_slots` is 0, or the decoder was planned for fewer than `n_slots + 1` sequences.
pub fn generate(
    pool: &Pool,
    decoder: &mut dyn Decode,
    settings: &Settings,
    n_slots: usize,
    driver: &mut (impl Driver + Send),
) -> Result<(), Failure> {
    assert!(n_slots > 0, "a batch has a slot");
    // On a worker thread, the parallel parts of a step start without waking the pool each time.
    pool.enter(|| {
        let mut batch = Batch { settings, slots: Vec::new(), prefilled: None };
        let done = batch.run(pool, decoder, n_slots, driver);
        // The decoder may serve another call.
        let sequences = batch.slots.into_iter().map(|slot| slot.sequence);
        for sequence in sequences.chain(batch.prefilled.map(|prefilled| prefilled.sequence)) {
            decoder.release(sequence);
        }
        done
    })
}

struct Batch<'a> {
    settings: &'a Settings,
    slots: Vec<Slot>,
    prefilled: Option<Prefilled>,
}

impl Batch<'_> {
    fn run(
        &mut self,
        pool: &Pool,
        decoder: &mut dyn Decode,
        n_slots: usize,
        driver: &mut impl Driver,
    ) -> Result<(), Failure> {
        loop {
            let mut n_tokens = 0;
            while self.slots.len() < n_slots
                && let Some(request) = driver.next()
            {
                self.start(pool, decoder, request)?;
                n_tokens += 1;
                self.take_finished(self.slots.len() - 1, decoder, driver)?;
            }
            if self.slots.is_empty() {
                return Ok(());
            }
            self.step(pool, decoder)?;
            n_tokens += self.slots.len();
            for slot in (0..self.slots.len()).rev() {
                self.take_finished(slot, decoder, driver)?;
            }
            if driver.stepped(n_tokens)?.is_break() {
                return Ok(());
            }
        }
    }

    /// Puts a request into a new slot and chooses its first token.
    fn start(
        &mut self,
        pool: &Pool,
        decoder: &mut dyn Decode,
        request: Request,
    ) -> Result<(), Failure> {
        let (n_prompt, context) = (request.prompt.len(), decoder.config().context);
        if n_prompt == 0 || request.n_tokens_max == 0 || n_prompt + request.n_tokens_max > context {
            return Err(Failure::permanent(format!(
                "request {} has a prompt of {n_prompt} tokens and asks for {}, which does not fit \
                 the model's context of {context}",
                request.index, request.n_tokens_max
            )));
        }
        let prefilled = self.prefill(pool, decoder, &request.prompt)?;
        let sequence = decoder.fork(&prefilled.sequence)?;
        let mut logits = prefilled.logits.clone();
        let mut seen = Vec::new();
        if self.settings.repetition_penalty > 1.0 {
            seen.extend_from_slice(&request.prompt);
            seen.sort_unstable();
            seen.dedup();
        }
        let (sampler, chosen) = (Sampler::new(pool.isa()), Err(NotFinite));
        let mut slot = Slot { request, sequence, ids: Vec::new(), seen, sampler, chosen };
        slot.choose(&mut logits, self.settings);
        self.slots.push(slot);
        Ok(())
    }

    /// The cached prompt, computed unless it is the one before.
    fn prefill(
        &mut self,
        pool: &Pool,
        decoder: &mut dyn Decode,
        prompt: &Arc<[u32]>,
    ) -> Result<&Prefilled, Failure> {
        let prefilled = match self.prefilled.take() {
            Some(prefilled) if prefilled.prompt == *prompt => prefilled,
            other => {
                if let Some(other) = other {
                    decoder.release(other.sequence);
                }
                let (sequence, logits) = decoder.prefill(pool, prompt)?;
                Prefilled { prompt: Arc::clone(prompt), sequence, logits }
            }
        };
        Ok(self.prefilled.insert(prefilled))
    }

    /// Computes and chooses the next token of every slot.
    fn step(&mut self, pool: &Pool, decoder: &mut dyn Decode) -> Result<(), Failure> {
        let n_vocab = decoder.config().vocab_size;
        let tokens: Vec<u32> = self.slots.iter().map(|slot| slot.ids[slot.ids.len() - 1]).collect();
        let mut sequences: Vec<&mut Sequence> =
            self.slots.iter_mut().map(|slot| &mut slot.sequence).collect();
        let logits = decoder.step(pool, &tokens, &mut sequences)?;
        let mut work: Vec<(&mut Slot, &mut [f32])> =
            self.slots.iter_mut().zip(logits.chunks_exact_mut(n_vocab)).collect();
        let settings = self.settings;
        pool.for_chunks(&mut work, 1, |_, work| {
            for (slot, logits) in work {
                slot.choose(logits, settings);
            }
        });
        Ok(())
    }

    /// Hands over slot `slot` when its text ended with the token chosen last.
    fn take_finished(
        &mut self,
        slot: usize,
        decoder: &mut dyn Decode,
        driver: &mut impl Driver,
    ) -> Result<(), Failure> {
        let Slot { request, ids, chosen, .. } = &self.slots[slot];
        let chosen = chosen.map_err(|NotFinite| {
            Failure::permanent(format!(
                "the model's logits are not finite after {} tokens of request {}",
                ids.len(),
                request.index
            ))
        })?;
        let ended = self.settings.stop.contains(&chosen);
        let complete = ended || driver.is_complete(ids);
        if complete || ids.len() >= request.n_tokens_max {
            let mut slot = self.slots.swap_remove(slot);
            decoder.release(slot.sequence);
            if ended {
                slot.ids.pop();
            }
            let (index, ids) = (slot.request.index, slot.ids);
            driver.finished(Completion { index, ids, truncated: !complete })?;
        }
        Ok(())
    }
}

impl Slot {
    /// Chooses the next token from its logits, which are changed.
    fn choose(&mut self, logits: &mut [f32], settings: &Settings) {
        for &id in &settings.suppress {
            logits[id as usize] = f32::NEG_INFINITY;
        }
        sampling::penalize(logits, &self.seen, settings.repetition_penalty);
        self.chosen = match &settings.choice {
            Choice::Greedy => sampling::greedy(logits),
            Choice::Sample(policy) => {
                let random = self.request.rng.u64(self.ids.len() as u64);
                self.sampler.draw(logits, policy, random)
            }
        };
        let Ok(chosen) = self.chosen else { return };
        self.ids.push(chosen);
        if settings.repetition_penalty > 1.0
            && let Err(at) = self.seen.binary_search(&chosen)
        {
            self.seen.insert(at, chosen);
        }
    }
}
