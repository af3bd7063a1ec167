//! A model folder with its own tokenizer: any Qwen3-type model, ours or not.
//!
//! Pipelines insist on the special tokens of [`crate::tokenizer`]; here the folder says which tokens
//! begin and end a text.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine::task::Failure;
use kernels::Pool;
use kernels::cross_entropy::IGNORE;
use kernels::cuda::Device;
use kernels::philox::Philox;
use serde::Serialize;
use tokenizers::Tokenizer as HfTokenizer;

use super::batch::MicroBatch;
use super::device::decoder::Generator;
use super::generate::{self, Choice, Completion, Decode, Decoder, Driver, Request, Settings};
use super::hf::{self, Generation};
use super::reader::{Losses as _, Reader};
use super::{Config, Weights};
use crate::device;
use crate::tokenizer::{self, BOS, EOS, SPECIALS};

/// Tokens computed together when a text is scored.
const SCORE_TOKENS: usize = 2048;

/// A model with what the folder says about its use.
pub struct Folder {
    pool: Pool,
    weights: Weights,
    tokenizer: FolderTokenizer,
    generation: Generation,
}

/// The `tokenizer.json` of a model folder.
pub struct FolderTokenizer {
    inner: HfTokenizer,
    specials: BTreeSet<u32>,
    n_ids: usize,
    /// The token that starts every text, when it is one of ours.
    bos: Option<u32>,
}

impl FolderTokenizer {
    /// Opens the tokenizer in `dir`.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing or is not a tokenizer.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(tokenizer::FILE);
        let bytes = std::fs::read(&path)
            .map_err(|error| Failure::io(format!("cannot read `{}`", path.display()), &error))?;
        let mut inner = tokenizer::parse(&bytes).map_err(|message| {
            Failure::permanent(format!("`{}` is not a tokenizer: {message}", path.display()))
        })?;
        inner.with_truncation(None).map_err(|error| {
            Failure::permanent(format!(
                "`{}`: cannot switch truncation off: {error}",
                path.display()
            ))
        })?;
        inner.with_padding(None);
        let is_ours = (0..).zip(SPECIALS).all(|(id, s)| inner.token_to_id(s) == Some(id));
        // Added tokens may leave holes, so the highest id decides and not their number.
        let highest = inner.get_vocab(true).into_values().max();
        let n_ids = highest.map_or(0, |id| id as usize + 1);
        let added = inner.get_added_tokens_decoder();
        let specials = added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id);
        Ok(Self { specials: specials.collect(), n_ids, bos: is_ours.then_some(BOS), inner })
    }

    /// Ids of the tokenizer; every id is below it.
    pub fn n_ids(&self) -> usize {
        self.n_ids
    }

    /// The ids of a text as the folder's author meant them: with the tokens that its template adds,
    /// or with `<|bos|>` in front where the tokenizer is one of ours.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Failure> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|error| Failure::permanent(format!("cannot tokenize: {error}")))?;
        let ids = encoding.get_ids();
        self.check(ids)?;
        Ok(match self.bos {
            Some(bos) if ids.first() != Some(&bos) => [&[bos], ids].concat(),
            _ => ids.to_vec(),
        })
    }

    /// Refuses ids that no token has: a damaged template can add one.
    fn check(&self, ids: &[u32]) -> Result<(), Failure> {
        match ids.iter().find(|id| **id as usize >= self.n_ids) {
            None => Ok(()),
            Some(id) => Err(Failure::permanent(format!(
                "the tokenizer adds id {id} to a text, and its tokens have ids below {}",
                self.n_ids
            ))),
        }
    }

    /// The text of ids, special tokens left out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Failure> {
        let text = self.inner.decode(ids, true);
        text.map_err(|error| Failure::permanent(format!("cannot decode: {error}")))
    }

    /// As [`Self::encode`], with a token at the end that closes the text: the one that the template
    /// adds, or else `end`.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_whole(&self, text: &str, end: Option<u32>) -> Result<Vec<u32>, Failure> {
        let mut ids = self.encode(text)?;
        // A template that adds nothing leaves a text without a special token at its end.
        let is_closed =
            ids.last().is_some_and(|id| self.specials.contains(id) && Some(*id) != self.bos);
        if !is_closed {
            ids.extend(end);
        }
        self.check(&ids)?;
        if ids.is_empty() {
            return Err(Failure::permanent("an empty text has no tokens")
                .help("drop empty documents; this tokenizer has no token that ends a text"));
        }
        Ok(ids)
    }
}

/// How to write texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Writing {
    /// Texts to write.
    pub n_texts: usize,
    /// Most tokens of a text; by default the rest of the context.
    pub n_tokens_max: Option<usize>,
    /// Overrides the folder's choice: 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Overrides the folder's choice.
    pub top_p: Option<f64>,
    /// Overrides the folder's choice.
    pub top_k: Option<usize>,
    /// Overrides the folder's choice.
    pub repetition_penalty: Option<f32>,
    /// Seed of the draws.
    pub seed: u64,
}

/// A text that was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Written {
    /// The text after the prompt.
    pub text: String,
    /// Its tokens, the end not counted.
    pub n_tokens: usize,
    /// Whether the limit cut it off.
    pub truncated: bool,
}

/// The score of a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scored {
    /// Tokens predicted.
    pub n_tokens: u64,
    /// UTF-8 bytes.
    pub n_bytes: u64,
    /// Mean negative log likelihood of a token, in nats.
    pub mean_nll: f64,
    /// `e^mean_nll`; comparable within one tokenizer only.
    pub token_perplexity: f64,
    /// Bits to encode a byte of the text.
    pub bits_per_byte: f64,
    /// Tokens scored in a second.
    pub tokens_per_s: f64,
}

impl Folder {
    /// Loads a model folder with its tokenizer, to run on `n_threads` threads.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the tokenizer has ids that the model lacks.
    pub fn open(dir: &Path, n_threads: usize) -> Result<Self, Failure> {
        let config = hf::load_config(dir)?;
        let tokenizer = FolderTokenizer::open(dir)?;
        check_vocabulary(&config, &tokenizer)?;
        let mut generation = hf::load_generation(dir)?;
        if let Some(id) = generation.stop.iter().find(|id| **id as usize >= config.vocab_size) {
            return Err(Failure::permanent(format!(
                "`{}`: `eos_token_id` is {id}, and the model has {} tokens",
                dir.display(),
                config.vocab_size
            )));
        }
        if generation.stop.is_empty() && tokenizer.bos.is_some() {
            generation.stop.push(EOS);
        }
        Ok(Self { pool: Pool::new(n_threads), weights: hf::load(dir)?, tokenizer, generation })
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.weights.config()
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &FolderTokenizer {
        &self.tokenizer
    }

    /// What writing `n_texts` is to ask of a device.
    pub fn writing_work(&self, n_texts: usize) -> device::Work {
        let n_sequences = n_slots(n_texts) + 1;
        device::Work {
            remedy: "ask for fewer texts, or use a smaller model",
            ..Generator::work(self.config(), n_sequences)
        }
    }

    /// The texts that the model writes after `prompt`, in order, on a device that was opened for
    /// [`Self::writing_work`] or on the CPU.
    ///
    /// # Errors
    /// When the prompt is empty or leaves no room in the context, a setting is out of range, the
    /// device fails, or the model's logits are not finite.
    pub fn write(
        &self,
        device: Option<Arc<dyn Device>>,
        prompt: &str,
        writing: &Writing,
    ) -> Result<Vec<Written>, Failure> {
        let mut ids = self.tokenizer.encode(prompt)?;
        // A template may close the text, which is to go on.
        while ids.len() > 1 && ids.last().is_some_and(|id| self.generation.stop.contains(id)) {
            ids.pop();
        }
        let context = self.config().context;
        if ids.is_empty() {
            return Err(Failure::permanent("the prompt has no tokens")
                .help("give a prompt; this tokenizer has no token that starts a text"));
        }
        if ids.len() >= context {
            return Err(Failure::permanent(format!(
                "the prompt has {} tokens, which leaves no room in the model's context of {context}",
                ids.len()
            )));
        }
        let room = context - ids.len();
        let n_tokens_max = writing.n_tokens_max.unwrap_or(room);
        if n_tokens_max == 0 || n_tokens_max > room {
            return Err(Failure::permanent(format!(
                "{n_tokens_max} new tokens after a prompt of {} do not fit the model's context of \
                 {context}",
                ids.len()
            )));
        }
        let n_slots = n_slots(writing.n_texts);
        let pool = &self.pool;
        let mut decoder: Box<dyn Decode + '_> = match device {
            Some(device) => Box::new(Generator::new(device, &self.weights, n_slots + 1)?),
            None => Box::new(Decoder::new(pool, &self.weights, n_slots + 1)),
        };
        let rng = Philox::new(writing.seed, "lm write");
        let request = |index: usize| Request {
            index: index as u64,
            prompt: ids.as_slice().into(),
            rng: rng.fork(index as u64),
            n_tokens_max,
        };
        let mut texts = Texts {
            waiting: (0..writing.n_texts).rev().map(request).collect(),
            finished: vec![None; writing.n_texts],
        };
        generate::generate(pool, &mut *decoder, &self.settings(writing)?, n_slots, &mut texts)?;
        texts
            .finished
            .into_iter()
            .map(|completion| {
                let completion = completion.expect("every request finishes");
                Ok(Written {
                    text: self.tokenizer.decode(&completion.ids)?,
                    n_tokens: completion.ids.len(),
                    truncated: completion.truncated,
                })
            })
            .collect()
    }

    fn settings(&self, writing: &Writing) -> Result<Settings, Failure> {
        let folder = &self.generation;
        let temperature =
            writing.temperature.unwrap_or(if folder.do_sample { folder.temperature } else { 0.0 });
        let policy = kernels::sampling::Policy {
            temperature,
            top_k: writing.top_k.unwrap_or(folder.top_k),
            top_p: writing.top_p.unwrap_or(folder.top_p),
        };
        let penalty = writing.repetition_penalty.unwrap_or(folder.repetition_penalty);
        let wrong = |what: String| Err(Failure::permanent(what));
        if !(temperature == 0.0 || kernels::sampling::is_temperature(temperature)) {
            return wrong(format!("temperature {temperature} is neither 0 nor at least 3e-39"));
        }
        if !(policy.top_p > 0.0 && policy.top_p <= 1.0) {
            return wrong(format!("top-p {} is not within (0, 1]", policy.top_p));
        }
        if !(penalty.is_finite() && penalty >= 1.0) {
            return wrong(format!("repetition penalty {penalty} is not at least 1"));
        }
        let n_ids = self.tokenizer.n_ids();
        Ok(Settings {
            choice: if temperature == 0.0 { Choice::Greedy } else { Choice::Sample(policy) },
            repetition_penalty: penalty,
            // Rows of the table beyond the tokenizer's ids spell nothing.
            suppress: (n_ids as u32..self.config().vocab_size as u32).collect(),
            stop: folder.stop.clone(),
        })
    }

    /// What [`Self::reader`] is to ask of a device.
    pub fn reading_work(&self) -> device::Work {
        Reader::work(self.config(), self.tokens_of_a_pass())
    }

    /// What [`Self::score`] reads with, on a device that was opened for [`Self::reading_work`] or on
    /// the CPU.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn reader(&self, device: Option<Arc<dyn Device>>) -> Result<Reader<'_>, Failure> {
        Reader::new(device, &self.pool, &self.weights, self.tokens_of_a_pass())
    }

    /// Whole windows of the context.
    fn tokens_of_a_pass(&self) -> usize {
        let context = self.config().context;
        (SCORE_TOKENS / context).max(1) * context
    }

    /// Scores a text as one document, in windows of the model's context that do not overlap.
    ///
    /// # Errors
    /// When the text has fewer than two tokens, the device fails, or the loss is not finite.
    pub fn score(&self, reader: &mut Reader<'_>, text: &str) -> Result<Scored, Failure> {
        let started = Instant::now();
        let ids = self.tokenizer.encode(text)?;
        if ids.len() < 2 {
            return Err(Failure::permanent("the text has no token to predict"));
        }
        let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
        let context = self.config().context;
        let per_pass = self.tokens_of_a_pass();
        let mut nll = 0.0;
        for (inputs, targets) in inputs.chunks(per_pass).zip(targets.chunks(per_pass)) {
            let starts: Vec<u32> =
                (0..inputs.len()).map(|i| (i / context * context) as u32).collect();
            debug_assert!(!targets.contains(&IGNORE));
            let losses = reader.nll(&MicroBatch { ids: inputs, starts, targets })?;
            nll += losses.iter().copied().map(f64::from).sum::<f64>();
        }
        if !nll.is_finite() {
            return Err(Failure::permanent("the loss of the text is not finite"));
        }
        let (n_tokens, n_bytes) = (targets.len() as u64, text.len() as u64);
        let mean_nll = nll / n_tokens as f64;
        Ok(Scored {
            n_tokens,
            n_bytes,
            mean_nll,
            token_perplexity: mean_nll.exp(),
            bits_per_byte: nll / std::f64::consts::LN_2 / n_bytes.max(1) as f64,
            tokens_per_s: n_tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
        })
    }
}

/// Texts that are written at a time.
fn n_slots(n_texts: usize) -> usize {
    n_texts.clamp(1, 64)
}

/// Checks that the model has a row for every id of the tokenizer.
///
/// # Errors
/// When it has fewer.
pub fn check_vocabulary(config: &Config, tokenizer: &FolderTokenizer) -> Result<(), Failure> {
    let (rows, n_ids) = (config.vocab_size, tokenizer.n_ids());
    if n_ids <= rows {
        return Ok(());
    }
    Err(Failure::permanent(format!(
        "the tokenizer has ids up to {}, and the model {rows} tokens",
        n_ids - 1
    ))
    .help("the folder's `tokenizer.json` belongs to another model"))
}

/// Requests of one prompt, and their texts in order.
struct Texts {
    waiting: Vec<Request>,
    finished: Vec<Option<Completion>>,
}

impl Driver for Texts {
    fn next(&mut self) -> Option<Request> {
        self.waiting.pop()
    }

    fn finished(&mut self, completion: Completion) -> Result<(), Failure> {
        let index = completion.index as usize;
        self.finished[index] = Some(completion);
        Ok(())
    }

    fn stepped(&mut self, _: usize) -> Result<ControlFlow<()>, Failure> {
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests;
