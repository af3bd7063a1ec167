//! Which seed document each draw starts from.
//!
//! Rounds visit all seeds, each in an order of its own; a visit makes `draws_per_visit` draws in a
//! row. So seeds are chosen uniformly, and after any number of visits their draws differ by one visit
//! at most.

use std::sync::Arc;

use engine::task::Failure;
use kernels::philox::Philox;

use super::{Mode, Params, Prompt};
use crate::format::tokens::Tokens;
use crate::lm::Config;
use crate::lm::generate::Request;
use crate::tokenizer::{BOS, SEP};

/// The draws in their order.
#[derive(Clone)]
pub(super) struct Plan<'a> {
    seeds: Option<&'a Tokens>,
    /// Seeds whose prompts fit the context, by their place in `seeds`.
    fitting: Vec<usize>,
    n_skipped: usize,
    draws_per_visit: u64,
    context: usize,
    n_tokens_max: usize,
    order: Philox,
    draws: Philox,
    /// The round whose order `visits` is.
    round: Option<u64>,
    visits: Vec<usize>,
    prompt: Option<(usize, Prompt)>,
}

/// Where a text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The seed's place and id; nothing in mode `unconditional`.
    pub(super) seed: Option<(usize, u64)>,
    /// How many draws of the same seed come before.
    pub(super) draw: u64,
}

impl<'a> Plan<'a> {
    /// Plans the draws of `params`.
    ///
    /// # Errors
    /// When no seed fits the model's context.
    pub(super) fn new(
        params: &Params,
        seeds: Option<&'a Tokens>,
        config: &Config,
    ) -> Result<Self, Failure> {
        // Room for the shortest text that is kept, and its end.
        let room = params.min_tokens as usize + 1;
        let n_seeds = seeds.map_or(0, Tokens::n_documents);
        let prompt_max = config.context.saturating_sub(room);
        let fitting: Vec<usize> = (0..n_seeds)
            .filter(|&seed| seeds.is_some_and(|seeds| seeds.length(seed) + 2 <= prompt_max))
            .collect();
        if prompt_max == 0 || (params.mode == Mode::Conditional && fitting.is_empty()) {
            return Err(Failure::permanent(format!(
                "none of the {n_seeds} seeds leaves room for a text in the model's context of {}",
                config.context
            ))
            .help("use shorter seeds, or a model with a longer context"));
        }
        Ok(Self {
            seeds,
            n_skipped: n_seeds - fitting.len(),
            fitting,
            draws_per_visit: u64::from(params.draws_per_visit),
            context: config.context,
            n_tokens_max: params.max_new_tokens.map_or(usize::MAX, |n| n as usize),
            order: Philox::new(params.seed, "synthesize order"),
            draws: Philox::new(params.seed, "synthesize draw"),
            round: None,
            visits: Vec::new(),
            prompt: None,
        })
    }

    /// Seeds that draws start from.
    pub(super) fn n_seeds(&self) -> usize {
        self.fitting.len()
    }

    /// Seeds whose prompts do not fit the context.
    pub(super) fn n_skipped(&self) -> usize {
        self.n_skipped
    }

    /// Where draw `k` comes from.
    fn origin(&mut self, k: u64) -> Origin {
        let Some(seeds) = self.seeds else { return Origin { seed: None, draw: k } };
        let n_seeds = self.fitting.len() as u64;
        let visit = k / self.draws_per_visit;
        let (round, place) = (visit / n_seeds, visit % n_seeds);
        if self.round != Some(round) {
            self.visits = self.order.fork(round).permutation(self.fitting.len());
            self.round = Some(round);
        }
        let seed = self.fitting[self.visits[place as usize]];
        let draw = round * self.draws_per_visit + k % self.draws_per_visit;
        Origin { seed: Some((seed, seeds.document_id(seed))), draw }
    }

    /// Where draw `k` comes from, and what it asks of the model. Its random numbers are those of the seed's id and the draw,
    /// whatever the other seeds are.
    pub(super) fn request(&mut self, k: u64) -> (Origin, Request) {
        let origin = self.origin(k);
        let (prompt, rng) = match (self.seeds, origin.seed) {
            (Some(seeds), Some((seed, id))) => {
                (self.prompt(seeds, seed), self.draws.fork(id).fork(origin.draw))
            }
            _ => (Arc::from([BOS]), self.draws.fork(origin.draw)),
        };
        let n_tokens_max = self.n_tokens_max.min(self.context - prompt.len());
        (origin, Request { index: k, prompt, rng, n_tokens_max })
    }

    /// `<|bos|> seed <|sep|>`, one allocation for the draws of a visit.
    fn prompt(&mut self, seeds: &Tokens, seed: usize) -> Prompt {
        match &self.prompt {
            Some((last, prompt)) if *last == seed => Arc::clone(prompt),
            _ => {
                let mut ids = vec![BOS];
                seeds.view(seed).copy_to(&mut ids);
                ids.push(SEP);
                let prompt: Prompt = ids.into();
                self.prompt = Some((seed, Arc::clone(&prompt)));
                prompt
            }
        }
    }
}
