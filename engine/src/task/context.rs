//! What a running task sees of the world.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::checkpoint::CheckpointStore;
pub use crate::checkpoint::{Checkpoint, Journal};
use crate::digest::Digest;
pub use crate::external::ExternalFile;
use crate::item::{Item, ItemContext, ItemParts, ItemResults, Stage, Team};

/// Tells an attempt to stop at its next safe point.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Flags>);

/// The flags of one token in a chain: whoever sets one stops everything that descends from it.
#[derive(Debug, Default)]
struct Flags {
    is_cancelled: AtomicBool,
    is_abandoned: AtomicBool,
    parent: Option<CancelToken>,
}

impl CancelToken {
    /// Asks the attempt to stop.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::Release);
    }

    /// Whether [`Self::cancel`] was called, on this token or on one it descends from.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Acquire)
            || self.0.parent.as_ref().is_some_and(Self::is_cancelled)
    }

    /// Says that nobody waits for the attempt any more: what it does from here on must not count.
    pub(crate) fn abandon(&self) {
        self.cancel();
        self.0.is_abandoned.store(true, Ordering::Release);
    }

    /// Whether [`Self::abandon`] was called, on this token or on one it descends from.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.is_abandoned.load(Ordering::Acquire)
            || self.0.parent.as_ref().is_some_and(Self::is_abandoned)
    }

    /// A token that is cancelled with this one, or alone.
    pub(crate) fn child(&self) -> Self {
        Self(Arc::new(Flags { parent: Some(self.clone()), ..Flags::default() }))
    }
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// For people who follow the work.
    Info,
    /// Something a person should know; the work goes on.
    Warn,
}

/// What a task reports while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// `done` of `total` units of work are finished.
    Progress {
        /// Units finished so far.
        done: u64,
        /// Units in all; 0 when unknown.
        total: u64,
        /// What one unit is, in the plural: `tokens`, `documents`.
        unit: String,
    },
    /// A point of a time series.
    Metric {
        /// The series, such as `loss`.
        name: String,
        /// Position on the series' axis: a step or a count of tokens.
        step: u64,
        /// The value.
        value: f64,
    },
    /// A line for the node's log.
    Log {
        /// How much it matters.
        level: LogLevel,
        /// The line, without line break.
        text: String,
    },
}

/// Where reports go. Must not block for long.
pub trait Sink: Send + Sync {
    /// Takes one report.
    fn report(&self, report: Report);
}

/// An artifact connected to an input port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// The node that made it, with its matrix values, such as `evaluate[arm=sbp]`.
    pub node: String,
    /// The output port it came from.
    pub port: String,
    /// The artifact's folder. Read-only.
    pub dir: PathBuf,
    /// The artifact's digest.
    pub digest: Digest,
}

/// The artifacts connected to a node's input ports.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(BTreeMap<String, Vec<Input>>);

impl Inputs {
    /// Collects inputs by port, in the order written in the pipeline.
    pub fn new(ports: BTreeMap<String, Vec<Input>>) -> Self {
        Self(ports)
    }

    /// The folder of a required port.
    ///
    /// # Panics
    /// When the port is not connected: the plan checks that before any task runs.
    pub fn one(&self, port: &str) -> &Path {
        self.optional(port).unwrap_or_else(|| panic!("port `{port}` is not connected"))
    }

    /// The folder of an optional port.
    pub fn optional(&self, port: &str) -> Option<&Path> {
        self.0.get(port).and_then(|inputs| inputs.first()).map(|input| input.dir.as_path())
    }

    /// Every artifact of a port, with the node that made it.
    pub fn many(&self, port: &str) -> &[Input] {
        self.0.get(port).map_or(&[], Vec::as_slice)
    }
}

/// What a node upstream was to take, and what it took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Upstream {
    /// The node's name.
    pub node: String,
    /// Its task's kind.
    pub task: String,
    /// Work by unit as its task predicts it ([`super::Task::cost`]).
    pub work: BTreeMap<String, f64>,
    /// Seconds that it was to take, by the attempts at the node before this key was first tried;
    /// `None` when there were none.
    pub expected_s: Option<f64>,
    /// Seconds of all attempts at its key together; `None` when the ledger knows of none.
    pub took_s: Option<f64>,
    /// Attempts at its key.
    pub n_attempts: u64,
    /// Highest resident memory of the process of an attempt, in bytes; 0 where the system did not
    /// say.
    pub peak_memory_bytes: u64,
    /// The program that made it: version and commit.
    pub build: Option<String>,
    /// Processor, threads and memory of the machine that made it.
    pub machine: Option<String>,
}

/// What a finished task says of its result, besides the files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    /// Final figures by name, kept in the ledger with the attempt.
    pub metrics: BTreeMap<String, f64>,
}

impl Outputs {
    /// Adds a final figure.
    #[must_use]
    pub fn metric(mut self, name: impl Into<String>, value: f64) -> Self {
        self.metrics.insert(name.into(), value);
        self
    }
}

/// Everything that makes a [`Context`].
#[derive(Clone)]
pub struct ContextParts {
    /// Folder for outputs, one sub-folder a port; published by the engine after success.
    pub out_dir: PathBuf,
    /// Folder for files that live no longer than the attempt.
    pub scratch_dir: PathBuf,
    /// Checkpoints of the node's key.
    pub checkpoints: CheckpointStore,
    /// Files resolved from [`super::Task::external`].
    pub external: Vec<ExternalFile>,
    /// Threads granted.
    pub n_threads: usize,
    /// Memory granted, in bytes; `None` when the node asks for no limit.
    pub memory_bytes: Option<u64>,
    /// Whether an operator approved what parked an earlier attempt.
    pub is_approved: bool,
    /// What is to compute: `cpu`, `auto`, or a GPU such as `cuda:0`.
    pub device: String,
    /// Every node upstream, in topological order; empty unless the task reads it
    /// ([`super::Task::READS_UPSTREAM`]).
    pub upstream: Vec<Upstream>,
    /// Tells the task to stop.
    pub cancel: CancelToken,
    /// Takes the task's reports.
    pub sink: Arc<dyn Sink>,
}

/// What a running task sees of the world.
pub struct Context {
    parts: ContextParts,
    items: ItemParts,
    /// Stages of items begun.
    n_stages: AtomicU32,
    /// Whether the task may have written anything.
    has_places: AtomicBool,
    /// Highest resident memory of programs that it started, in bytes.
    programs_peak_bytes: AtomicI64,
}

impl Context {
    /// A context without an engine behind it: items are kept in the scratch folder.
    pub fn new(parts: ContextParts) -> Self {
        let items = ItemParts::alone(&parts.scratch_dir.join("kept"), "");
        Self::with_items(parts, items)
    }

    pub(crate) fn with_items(parts: ContextParts, items: ItemParts) -> Self {
        Self {
            parts,
            items,
            n_stages: AtomicU32::new(0),
            has_places: AtomicBool::new(false),
            programs_peak_bytes: AtomicI64::new(0),
        }
    }

    /// Whether the task asked for any folder: of outputs, temporary files, items or checkpoints.
    pub(crate) fn has_places(&self) -> bool {
        self.has_places.load(Ordering::Relaxed)
    }

    /// Notes that a program of the task used up to so many bytes of memory.
    pub(crate) fn note_program(&self, peak_bytes: i64) {
        self.programs_peak_bytes.fetch_max(peak_bytes, Ordering::Relaxed);
    }

    /// Highest resident memory of the task's programs, in bytes; `None` when it ran none.
    pub(crate) fn programs_peak_bytes(&self) -> Option<i64> {
        Some(self.programs_peak_bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    fn places(&self) -> &ContextParts {
        self.has_places.store(true, Ordering::Relaxed);
        &self.parts
    }

    /// The folder of an output port, created when missing.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn out(&self, port: &str) -> io::Result<PathBuf> {
        let dir = self.places().out_dir.join(port);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// A folder for temporary files, on the store's file system; gone after the attempt.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn scratch(&self) -> io::Result<&Path> {
        fs::create_dir_all(&self.places().scratch_dir)?;
        Ok(&self.parts.scratch_dir)
    }

    /// Files resolved from [`super::Task::external`], sorted by `relative`.
    pub fn external(&self) -> &[ExternalFile] {
        &self.parts.external
    }

    /// Threads granted by the node's `cpu` resource; at least 1. Must not change results.
    pub fn n_threads(&self) -> usize {
        self.parts.n_threads.max(1)
    }

    /// Memory granted by the node's `mem` resource, in bytes.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.parts.memory_bytes
    }

    /// Whether an earlier attempt parked and an operator approved it since: a task that would park
    /// goes on.
    pub fn is_approved(&self) -> bool {
        self.parts.is_approved
    }

    /// The node's `device` resource: `cpu`, `auto`, or a GPU such as `cuda:0`.
    pub fn device(&self) -> &str {
        &self.parts.device
    }

    /// What every node upstream was to take and took, in topological order. Only for tasks that say
    /// that they read it ([`super::Task::READS_UPSTREAM`]); for others it is empty.
    pub fn upstream(&self) -> &[Upstream] {
        &self.parts.upstream
    }

    /// The newest valid checkpoint of this node's key, whichever run wrote it.
    ///
    /// # Errors
    /// When the checkpoint folder cannot be read. A damaged checkpoint is skipped, not an error.
    pub fn latest_checkpoint(&self) -> io::Result<Option<Checkpoint>> {
        self.places().checkpoints.latest()
    }

    /// Saves a checkpoint: `write` fills an empty folder, which then appears whole or not at all.
    /// `step` must grow from one checkpoint to the next; older ones are removed once it is durable.
    ///
    /// # Errors
    /// When writing fails; the previous checkpoint then still stands. When the attempt was given
    /// up: another one may be at work on the same checkpoints.
    pub fn save_checkpoint(
        &self,
        step: u64,
        write: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.parts.cancel.is_abandoned() {
            return Err(io::Error::other("the attempt was given up and saves nothing any more"));
        }
        self.places().checkpoints.save(step, write)
    }

    /// A stage of the node's work that is made of items; see [`Item`](super::Item) for what an item
    /// is known by. `name` tells the kinds of work of a task apart; `unit` is what weights count.
    ///
    /// A task that calls this says so in [`super::Task::ITEM_STAGES`].
    pub fn stage<'a>(&'a self, name: &'a str, unit: &'a str) -> Stage<'a> {
        let n_stages = self.n_stages.fetch_add(1, Ordering::Relaxed) + 1;
        let is_last_help = self.items.helps.is_some_and(|n| n_stages >= n);
        Stage::new(Team {
            parts: &self.items,
            n_threads: self.n_threads(),
            scratch: &self.places().scratch_dir,
            cancel: &self.parts.cancel,
            sink: &*self.parts.sink,
            stage: name,
            unit,
            is_last_help,
        })
    }

    /// [`Stage::each`] of a stage whose items run in parallel.
    ///
    /// # Errors
    /// As [`Stage::each`].
    pub fn items<T: Send + Sync, R: Serialize>(
        &self,
        stage: &str,
        unit: &str,
        items: Vec<Item<T>>,
        work: impl Fn(&T, &ItemContext<'_>) -> Result<R, Failure> + Sync,
    ) -> Result<ItemResults<R>, Failure> {
        self.stage(stage, unit).each(items, work)
    }

    /// A folder of this node's key that outlives attempts, for programs that look after their own
    /// checkpoints. What is in it may have been cut off anywhere.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn checkpoint_dir(&self) -> io::Result<PathBuf> {
        self.places().checkpoints.own_dir()
    }

    /// The lines that this node's key has in its journal, and the journal to add to.
    ///
    /// # Errors
    /// When it cannot be read or opened.
    pub fn open_journal(&self) -> io::Result<(Vec<String>, Journal)> {
        self.places().checkpoints.journal()
    }

    /// Reports that `done` of `total` units are finished (`total` 0 when unknown).
    pub fn progress(&self, done: u64, total: u64, unit: &str) {
        self.parts.sink.report(Report::Progress { done, total, unit: unit.to_owned() });
    }

    /// Adds a point to a time series in the ledger.
    pub fn metric(&self, name: &str, step: u64, value: f64) {
        self.parts.sink.report(Report::Metric { name: name.to_owned(), step, value });
    }

    /// Writes a line to the node's log.
    pub fn info(&self, text: impl Into<String>) {
        self.parts.sink.report(Report::Log { level: LogLevel::Info, text: text.into() });
    }

    /// Writes a warning to the node's log and to the terminal.
    pub fn warn(&self, text: impl Into<String>) {
        self.parts.sink.report(Report::Log { level: LogLevel::Warn, text: text.into() });
    }

    /// The token that tells the task to stop, for worker threads.
    pub fn cancel_token(&self) -> &CancelToken {
        &self.parts.cancel
    }

    /// Returns early from a task that was told to stop. Call it at least once a second.
    ///
    /// # Errors
    /// [`Failure::cancelled`] when it was.
    pub fn check_cancelled(&self) -> Result<(), Failure> {
        if self.parts.cancel.is_cancelled() { Err(Failure::cancelled()) } else { Ok(()) }
    }
}
