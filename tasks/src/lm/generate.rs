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

/// A model that computes and chooses the next tokens of sequences, wherever it is. Its cache was
/// planned for every sequence that [`generate`] holds at once. Logits stay where they are computed.
pub trait Decode: Send {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// A new sequence that holds `prompt`.
    ///
    /// # Errors
    /// When the device fails.
    fn prefill(&mut self, pool: &Pool, prompt: &[u32]) -> Result<Sequence, Failure>;

    /// Chooses a token that follows the prompt of the last [`Self::prefill`].
    ///
    /// # Errors
    /// When the device fails.
    fn first(
        &mut self,
        pool: &Pool,
        settings: &Settings,
        chance: Chance<'_>,
    ) -> Result<Chosen, Failure>;

    /// A sequence that begins with all positions of `sequence`.
    ///
    /// # Errors
    /// When the device fails.
    fn fork(&mut self, sequence: &Sequence) -> Result<Sequence, Failure>;

    /// Gives up a sequence.
    fn release(&mut self, sequence: Sequence);

    /// Appends a token to the sequence of each row and chooses the one after it.
    ///
    /// # Errors
    /// When the device fails.
    fn step(
        &mut self,
        pool: &Pool,
        settings: &Settings,
        rows: &mut [Row<'_>],
    ) -> Result<Vec<Chosen>, Failure>;
}

/// A token that was chosen; none where the logits are not finite.
pub type Chosen = Result<u32, NotFinite>;

/// What a token is chosen with, beside logits and settings.
#[derive(Clone, Copy, Debug)]
pub struct Chance<'a> {
    /// The stream that the random number comes from.
    pub rng: Philox,
    /// The number's place in it.
    pub position: u64,
    /// Ids to penalize, ascending, each once.
    pub seen: &'a [u32],
}

/// A row of a step.
pub struct Row<'a> {
    /// What is appended first.
    pub token: u32,
    /// What it is appended to.
    pub sequence: &'a mut Sequence,
    /// What the next token is chosen with.
    pub chance: Chance<'a>,
}

impl Settings {
    /// Chooses a token from its logits, which are changed: what every [`Decode`] does.
    pub fn choose(&self, sampler: &mut Sampler, logits: &mut [f32], chance: Chance<'_>) -> Chosen {
        for &id in &self.suppress {
            logits[id as usize] = f32::NEG_INFINITY;
        }
        sampling::penalize(logits, chance.seen, self.repetition_penalty);
        match &self.choice {
            Choice::Greedy => sampling::greedy(logits),
            Choice::Sample(policy) => sampler.draw(logits, policy, chance.rng.u64(chance.position)),
        }
    }
}

/// A prompt whose keys and values are in the cache.
struct Prefilled {
    prompt: Arc<[u32]>,
    sequence: Sequence,
}

/// A request under way.
struct Slot {
    request: Request,
    sequence: Sequence,
    ids: Vec<u32>,
    /// Ids that occurred; only with a repetition penalty.
    seen: Vec<u32>,
    chosen: Chosen,
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
        let mut seen = Vec::new();
        if self.settings.repetition_penalty > 1.0 {
            seen.extend_from_slice(&request.prompt);
            seen.sort_unstable();
            seen.dedup();
        }
        let mut slot = Slot { request, sequence, ids: Vec::new(), seen, chosen: Err(NotFinite) };
        let chance = Chance { rng: slot.request.rng, position: 0, seen: &slot.seen };
        let chosen = decoder.first(pool, self.settings, chance)?;
        slot.take(chosen, self.settings);
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
                let sequence = decoder.prefill(pool, prompt)?;
                Prefilled { prompt: Arc::clone(prompt), sequence }
            }
        };
        Ok(self.prefilled.insert(prefilled))
    }

    /// Computes and chooses the next token of every slot.
    fn step(&mut self, pool: &Pool, decoder: &mut dyn Decode) -> Result<(), Failure> {
        let mut rows: Vec<Row<'_>> = self.slots.iter_mut().map(Slot::row).collect();
        let chosen = decoder.step(pool, self.settings, &mut rows)?;
        for (slot, chosen) in self.slots.iter_mut().zip(chosen) {
            slot.take(chosen, self.settings);
        }
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
    /// What computes and chooses the next token.
    fn row(&mut self) -> Row<'_> {
        let position = self.ids.len() as u64;
        Row {
            token: self.ids[self.ids.len() - 1],
            sequence: &mut self.sequence,
            chance: Chance { rng: self.request.rng, position, seen: &self.seen },
        }
    }

    /// Takes the token that was chosen.
    fn take(&mut self, chosen: Chosen, settings: &Settings) {
        self.chosen = chosen;
        let Ok(chosen) = chosen else { return };
        self.ids.push(chosen);
        if settings.repetition_penalty > 1.0
            && let Err(at) = self.seen.binary_search(&chosen)
        {
            self.seen.insert(at, chosen);
        }
    }
}
