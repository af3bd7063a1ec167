//! What becomes of the draws: the books, and the corpus as draws are taken in their order.
//!
//! Draws are written in items, by whoever has time; here they pass by in order until the target is
//! reached. Only they count, so that the corpus does not depend on who wrote what when.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::task::{Context, Failure, Outputs};
use serde::{Deserialize, Serialize};

use super::Params;
use super::plan::Plan;
use crate::corpus::{CorpusWriter, Document};
use crate::tokenizer::DOCUMENT_SPECIALS;

/// Of an item: a line for each of its draws.
const DRAWS_FILE: &str = "draws.jsonl.zst";
/// Time between reports of progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// After this many texts, none of them kept, the target is out of reach.
const N_HOPELESS: u64 = 2000;
/// Draws of an item: at least so many, ..
const ITEM_DRAWS_MIN: u64 = 32;
/// .. at most so many, ..
const ITEM_DRAWS_MAX: u64 = 2048;
/// .. and between them this part of the draws before it. So what the last item writes past the
/// target is little beside the corpus, and a large corpus has no more items than a ledger likes.
const ITEM_DRAWS_PART: u64 = 64;

/// The draws of each item, without end.
pub(super) fn items() -> impl Iterator<Item = Range<u64>> {
    let item = |first: u64| {
        let n = (first / ITEM_DRAWS_PART).clamp(ITEM_DRAWS_MIN, ITEM_DRAWS_MAX);
        first..first + n
    };
    std::iter::successors(Some(item(0)), move |before| Some(item(before.end)))
}

/// Items that a worker with `n_slots` holds at a time, so that no slot is idle.
pub(super) fn n_held(n_slots: usize) -> usize {
    n_slots.div_ceil(ITEM_DRAWS_MIN as usize) + 1
}

/// The books: what became of every draw that counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Books {
    /// Texts generated.
    pub(super) n_generated: u64,
    /// Texts in the corpus.
    pub(super) n_kept: u64,
    /// Texts left out because they reached their limit.
    pub(super) n_dropped_truncated: u64,
    /// Texts left out because they are shorter than `min_tokens`.
    pub(super) n_dropped_short: u64,
    /// Tokens sampled, ends included.
    pub(super) gross_tokens: u64,
    /// Tokens of the corpus as training counts them.
    pub(super) net_tokens: u64,
    /// Seeds that draws start from.
    pub(super) n_seeds: u64,
    /// Seeds that did not fit the context.
    pub(super) n_seeds_skipped: u64,
    /// Texts generated per seed.
    pub(super) draws_per_seed: f64,
}

impl Books {
    fn enter(&mut self, draw: &Draw) {
        self.n_generated += 1;
        self.gross_tokens += draw.n_sampled;
        match &draw.fate {
            Fate::Truncated => self.n_dropped_truncated += 1,
            Fate::Short => self.n_dropped_short += 1,
            Fate::Kept(_) => {
                self.n_kept += 1;
                self.net_tokens += draw.n_tokens + DOCUMENT_SPECIALS;
            }
        }
        if self.n_seeds > 0 {
            self.draws_per_seed = self.n_generated as f64 / self.n_seeds as f64;
        }
    }

    fn acceptance(&self) -> f64 {
        self.n_kept as f64 / self.n_generated.max(1) as f64
    }

    /// The attempt's final figures.
    pub(super) fn outputs(&self, tokens_per_s: f64) -> Outputs {
        Outputs::default()
            .metric("documents", self.n_kept as f64)
            .metric("net_tokens", self.net_tokens as f64)
            .metric("gross_tokens", self.gross_tokens as f64)
            .metric("acceptance", self.acceptance())
            .metric("dropped_truncated", self.n_dropped_truncated as f64)
            .metric("dropped_short", self.n_dropped_short as f64)
            .metric("seeds_skipped", self.n_seeds_skipped as f64)
            .metric("tokens_per_s", tokens_per_s)
    }
}

/// A text as an item keeps it.
#[derive(Serialize, Deserialize)]
pub(super) struct Draw {
    /// Tokens sampled, the end included.
    pub(super) n_sampled: u64,
    /// Tokens of the text encoded again.
    pub(super) n_tokens: u64,
    pub(super) fate: Fate,
}

/// What becomes of a text.
#[derive(Serialize, Deserialize)]
pub(super) enum Fate {
    Kept(Document),
    Truncated,
    Short,
}

/// Leaves the draws of an item in its folder.
pub(super) fn leave(dir: &Path, draws: &[Draw]) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(File::create(dir.join(DRAWS_FILE))?, 1)?;
    for draw in draws {
        serde_json::to_writer(&mut encoder, draw)?;
        encoder.write_all(b"\n")?;
    }
    encoder.finish()?.sync_all()
}

/// The corpus, as items of draws are taken in their order.
pub(super) struct Synthesis<'a> {
    params: &'a Params,
    tally: &'a Tally<'a>,
    writer: CorpusWriter,
    books: Books,
}

impl<'a> Synthesis<'a> {
    pub(super) fn new(
        params: &'a Params,
        plan: &Plan<'_>,
        tally: &'a Tally<'a>,
        writer: CorpusWriter,
    ) -> Self {
        let books = Books {
            n_seeds: plan.n_seeds() as u64,
            n_seeds_skipped: plan.n_skipped() as u64,
            ..Books::default()
        };
        Self { params, tally, writer, books }
    }

    /// Takes the draws of the next item, until the target is reached.
    ///
    /// # Errors
    /// When a file cannot be read or written, or the target is out of reach.
    pub(super) fn take(&mut self, dir: &Path) -> Result<ControlFlow<()>, Failure> {
        let first = self.books.n_generated;
        let file = File::open(dir.join(DRAWS_FILE))?;
        for line in BufReader::new(zstd::Decoder::new(file)?).lines() {
            let draw: Draw = serde_json::from_str(&line?).map_err(io::Error::from)?;
            self.books.enter(&draw);
            if let Fate::Kept(document) = &draw.fate {
                self.writer.push(document)?;
            }
            if self.tally.is_reached(&self.books) {
                self.tally.counted(first, &self.books);
                return Ok(ControlFlow::Break(()));
            }
        }
        self.tally.counted(first, &self.books);
        if self.books.n_kept == 0 && self.books.n_generated >= N_HOPELESS {
            return Err(Failure::permanent(format!(
                "none of the first {} texts was kept: {} reached their limit, {} are shorter than \
                 `min_tokens: {}`",
                self.books.n_generated,
                self.books.n_dropped_truncated,
                self.books.n_dropped_short,
                self.params.min_tokens
            ))
            .help("train the model longer, raise `max_new_tokens`, or set `on_truncate: keep`"));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Completes the corpus.
    ///
    /// # Errors
    /// When writing fails.
    pub(super) fn finish(self) -> Result<Books, Failure> {
        self.writer.finish()?;
        Ok(self.books)
    }
}

/// How far the work is, for those who watch it. Reaches no result.
pub(super) struct Tally<'a> {
    ctx: &'a Context,
    params: &'a Params,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What counts so far.
    counted: Books,
    /// What was written here and does not count yet, by the first draw of its item.
    ahead: BTreeMap<u64, Books>,
    n_sampled: u64,
    reported_at: Option<Instant>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(ctx: &'a Context, params: &'a Params) -> Self {
        Self { ctx, params, started: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Done, of how much, of what.
    fn progress(&self, books: &Books) -> (u64, u64, &'static str) {
        match (self.params.target_tokens, self.params.n_documents) {
            (Some(target), _) => (books.net_tokens, target, "tokens"),
            (None, n_documents) => (books.n_kept, n_documents.unwrap_or(0), "documents"),
        }
    }

    fn is_reached(&self, books: &Books) -> bool {
        let (done, total, _) = self.progress(books);
        done >= total
    }

    /// Enters a text of the item that begins with draw `first`.
    pub(super) fn written(&self, first: u64, draw: &Draw) {
        let mut state = self.state();
        state.ahead.entry(first).or_default().enter(draw);
        self.report(&mut state);
    }

    /// Enters that so many tokens were sampled.
    pub(super) fn sampled(&self, n_tokens: usize) {
        self.state().n_sampled += n_tokens as u64;
    }

    fn counted(&self, first: u64, books: &Books) {
        let mut state = self.state();
        state.ahead.remove(&first);
        state.counted = books.clone();
        if self.is_reached(books) {
            state.ahead.clear();
            state.reported_at = None;
        }
        self.report(&mut state);
    }

    /// Tokens sampled per second of this attempt.
    pub(super) fn tokens_per_s(&self) -> f64 {
        self.state().n_sampled as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn report(&self, state: &mut State) {
        if state.reported_at.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
            return;
        }
        state.reported_at = Some(Instant::now());
        let mut all = state.counted.clone();
        for books in state.ahead.values() {
            all.n_generated += books.n_generated;
            all.n_kept += books.n_kept;
            all.gross_tokens += books.gross_tokens;
            all.net_tokens += books.net_tokens;
        }
        let (done, total, unit) = self.progress(&all);
        self.ctx.progress(done.min(total), total, unit);
        let tokens_per_s = state.n_sampled as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        self.ctx.metric("tokens_per_s", all.gross_tokens, tokens_per_s);
        self.ctx.metric("acceptance", all.gross_tokens, all.acceptance());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_follow_each_other_and_waste_little() {
        let mut end = 0;
        for draws in items().take(5000) {
            assert_eq!(draws.start, end);
            end = draws.end;
            let n = draws.end - draws.start;
            assert!((ITEM_DRAWS_MIN..=ITEM_DRAWS_MAX).contains(&n));
            assert!(n == ITEM_DRAWS_MIN || n <= draws.start / ITEM_DRAWS_PART);
        }
        assert!(end > 8_000_000, "{end}");
    }
}
