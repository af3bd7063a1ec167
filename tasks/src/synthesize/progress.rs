//! Takes finished texts in the order of their draws, keeps what is to be kept, and saves the work.
//!
//! Texts finish in any order; the *frontier* is the first draw that has not. Only texts before it
//! count, so the corpus does not depend on who finishes when. Kept texts go to segment files, which
//! checkpoints hold by hard link; what is under way when the attempt ends is generated again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::task::{Context, Failure, Outputs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::plan::{Origin, Plan};
use super::{OnTruncate, Params};
use crate::corpus::{CorpusWriter, Document, document_id};
use crate::lm::generate::{Completion, Driver, Request};
use crate::tokenizer::{DOCUMENT_SPECIALS, Tokenizer};

const STATE_FILE: &str = "state.json";
/// Time between checkpoints; results do not depend on it.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);
/// Time between reports of progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// After this many texts, none of them kept, the target is out of reach.
const N_HOPELESS: u64 = 2000;

/// The books: what became of every draw before the frontier.
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
    /// The attempt's final figures.
    pub(super) fn outputs(&self, tokens_per_s: f64) -> Outputs {
        let acceptance = self.n_kept as f64 / self.n_generated.max(1) as f64;
        Outputs::default()
            .metric("documents", self.n_kept as f64)
            .metric("net_tokens", self.net_tokens as f64)
            .metric("gross_tokens", self.gross_tokens as f64)
            .metric("acceptance", acceptance)
            .metric("dropped_truncated", self.n_dropped_truncated as f64)
            .metric("dropped_short", self.n_dropped_short as f64)
            .metric("seeds_skipped", self.n_seeds_skipped as f64)
            .metric("tokens_per_s", tokens_per_s)
    }
}

/// What a checkpoint says beside its segments.
#[derive(Serialize, Deserialize)]
struct State {
    frontier: u64,
    n_segments: usize,
    books: Books,
}

/// The work so far.
pub(super) struct Synthesis<'a> {
    ctx: &'a Context,
    params: &'a Params,
    plan: Plan<'a>,
    tokenizer: &'a Tokenizer,
    id_base: String,
    next: u64,
    frontier: u64,
    waiting: BTreeMap<u64, Completion>,
    books: Books,
    segments: Vec<PathBuf>,
    /// Kept texts since the last segment, as JSON lines.
    unsaved: Vec<u8>,
    saved_frontier: u64,
    started: Instant,
    sampled: u64,
    saved_at: Instant,
    reported_at: Option<Instant>,
}

impl<'a> Synthesis<'a> {
    /// Begins, or goes on from the newest checkpoint.
    ///
    /// # Errors
    /// When the checkpoint or the scratch folder cannot be used.
    pub(super) fn resume(
        ctx: &'a Context,
        params: &'a Params,
        plan: Plan<'a>,
        tokenizer: &'a Tokenizer,
        id_base: String,
    ) -> Result<Self, Failure> {
        let books = Books {
            n_seeds: plan.n_seeds() as u64,
            n_seeds_skipped: plan.n_skipped() as u64,
            ..Books::default()
        };
        let mut state = State { frontier: 0, n_segments: 0, books };
        let mut segments = Vec::new();
        if let Some(checkpoint) = ctx.latest_checkpoint()? {
            state = serde_json::from_slice(&fs::read(checkpoint.dir.join(STATE_FILE))?)
                .map_err(|error| Failure::permanent(format!("checkpoint: {error}")))?;
            for segment in 0..state.n_segments {
                let path = ctx.scratch()?.join(segment_name(segment));
                link(&checkpoint.dir.join(segment_name(segment)), &path)?;
                segments.push(path);
            }
            ctx.info(format!("resuming after {} texts", state.frontier));
        }
        let (frontier, now) = (state.frontier, Instant::now());
        Ok(Self {
            ctx,
            params,
            plan,
            tokenizer,
            id_base,
            next: frontier,
            frontier,
            waiting: BTreeMap::new(),
            books: state.books,
            segments,
            unsaved: Vec::new(),
            saved_frontier: frontier,
            started: now,
            sampled: 0,
            saved_at: now,
            reported_at: None,
        })
    }

    /// Whether the target is reached.
    pub(super) fn is_done(&self) -> bool {
        let (done, total, _) = self.progress();
        done >= total
    }

    /// Writes the kept texts, and gives the books and the tokens sampled per second of this attempt.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub(super) fn finish(mut self, writer: &mut CorpusWriter) -> Result<(Books, f64), Failure> {
        self.close_segment()?;
        for segment in &self.segments {
            for line in BufReader::new(zstd::Decoder::new(File::open(segment)?)?).lines() {
                let document: Document = serde_json::from_str(&line?).map_err(io::Error::from)?;
                writer.push(&document)?;
            }
        }
        let (done, total, unit) = self.progress();
        self.ctx.progress(done.min(total), total, unit);
        Ok((self.books.clone(), self.tokens_per_s()))
    }

    fn progress(&self) -> (u64, u64, &'static str) {
        match (self.params.target_tokens, self.params.n_documents) {
            (Some(target), _) => (self.books.net_tokens, target, "tokens"),
            (None, n_documents) => (self.books.n_kept, n_documents.unwrap_or(0), "documents"),
        }
    }

    fn tokens_per_s(&self) -> f64 {
        self.sampled as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// Takes the text of the draw at the frontier.
    fn take(&mut self, completion: &Completion) -> Result<(), Failure> {
        let origin = self.plan.origin(completion.index);
        let text = self.tokenizer.decode(&completion.ids)?;
        let n_tokens = self.tokenizer.encode(&text)?.len() as u64;
        let n_sampled = completion.ids.len() as u64 + u64::from(!completion.truncated);
        self.books.n_generated += 1;
        self.books.gross_tokens += n_sampled;
        if completion.truncated && self.params.on_truncate == OnTruncate::Drop {
            self.books.n_dropped_truncated += 1;
        } else if n_tokens < u64::from(self.params.min_tokens) {
            self.books.n_dropped_short += 1;
        } else {
            self.books.n_kept += 1;
            self.books.net_tokens += n_tokens + DOCUMENT_SPECIALS;
            let id = document_id(&self.id_base, completion.index);
            let meta = meta(origin, n_tokens, n_sampled, completion.truncated);
            serde_json::to_writer(&mut self.unsaved, &Document { id, text, meta })
                .map_err(io::Error::from)?;
            self.unsaved.push(b'\n');
        }
        if self.books.n_seeds > 0 {
            self.books.draws_per_seed = self.books.n_generated as f64 / self.books.n_seeds as f64;
        }
        if self.books.n_kept == 0 && self.books.n_generated >= N_HOPELESS {
            return Err(Failure::permanent(format!(
                "none of the first {N_HOPELESS} texts was kept: {} reached their limit, {} are shorter \
                 than `min_tokens: {}`",
                self.books.n_dropped_truncated, self.books.n_dropped_short, self.params.min_tokens
            ))
            .help("train the model longer, raise `max_new_tokens`, or set `on_truncate: keep`"));
        }
        Ok(())
    }

    fn close_segment(&mut self) -> io::Result<()> {
        if self.unsaved.is_empty() {
            return Ok(());
        }
        let path = self.ctx.scratch()?.join(segment_name(self.segments.len()));
        // A file left by a killed attempt may share its content with a checkpoint: never write into it.
        if path.exists() {
            fs::remove_file(&path)?;
        }
        let mut encoder = zstd::Encoder::new(File::create(&path)?, 1)?;
        encoder.write_all(&self.unsaved)?;
        encoder.finish()?.sync_all()?;
        self.segments.push(path);
        self.unsaved.clear();
        Ok(())
    }

    fn save(&mut self) -> io::Result<()> {
        self.saved_at = Instant::now();
        if self.frontier == self.saved_frontier {
            return Ok(());
        }
        self.close_segment()?;
        let n_segments = self.segments.len();
        let state = State { frontier: self.frontier, n_segments, books: self.books.clone() };
        self.ctx.save_checkpoint(self.frontier, |dir| {
            for (segment, path) in self.segments.iter().enumerate() {
                link(path, &dir.join(segment_name(segment)))?;
            }
            fs::write(dir.join(STATE_FILE), serde_json::to_vec(&state)?)
        })?;
        self.saved_frontier = self.frontier;
        Ok(())
    }

    fn report(&mut self) {
        if self.reported_at.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
            return;
        }
        self.reported_at = Some(Instant::now());
        let (done, total, unit) = self.progress();
        self.ctx.progress(done.min(total), total, unit);
        let acceptance = self.books.n_kept as f64 / self.books.n_generated.max(1) as f64;
        self.ctx.metric("tokens_per_s", self.books.gross_tokens, self.tokens_per_s());
        self.ctx.metric("acceptance", self.books.gross_tokens, acceptance);
    }
}

impl Driver for Synthesis<'_> {
    fn next(&mut self) -> Option<Request> {
        if self.is_done() {
            return None;
        }
        self.next += 1;
        Some(self.plan.request(self.next - 1))
    }

    fn finished(&mut self, completion: Completion) -> Result<(), Failure> {
        self.waiting.insert(completion.index, completion);
        while !self.is_done()
            && let Some(completion) = self.waiting.remove(&self.frontier)
        {
            self.take(&completion)?;
            self.frontier += 1;
            self.report();
        }
        Ok(())
    }

    fn stepped(&mut self, n_tokens: usize) -> Result<ControlFlow<()>, Failure> {
        self.sampled += n_tokens as u64;
        let cancelled = self.ctx.check_cancelled();
        if cancelled.is_err() || self.saved_at.elapsed() >= CHECKPOINT_INTERVAL {
            self.save()?;
        }
        cancelled?;
        Ok(if self.is_done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

fn meta(origin: Origin, n_tokens: u64, n_sampled: u64, truncated: bool) -> Map<String, Value> {
    let mut meta = Map::new();
    if let Some((_, id)) = origin.seed {
        meta.insert("seed_id".to_owned(), format!("{id:016x}").into());
    }
    meta.insert("draw".to_owned(), origin.draw.into());
    meta.insert("n_tokens".to_owned(), n_tokens.into());
    meta.insert("n_sampled".to_owned(), n_sampled.into());
    meta.insert("truncated".to_owned(), truncated.into());
    meta
}

fn segment_name(segment: usize) -> String {
    format!("segment-{segment:05}.jsonl.zst")
}

/// A hard link, or a copy where the file system has none.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_file(to)?;
    }
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}
