//! Runs one task without a pipeline, for tests of tasks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::{
    CancelToken, Context, ContextParts, ExternalFile, Failure, Input, Inputs, Outputs, Registry,
    Report, Sink, Task, Upstream,
};
use crate::checkpoint::CheckpointStore;
use crate::digest::Digest;
use crate::item::ItemParts;
pub use crate::item::memory::MemoryBoard;

/// Keeps every report in memory.
#[derive(Default)]
pub struct MemorySink(Mutex<Vec<Report>>);

impl MemorySink {
    /// Everything reported so far.
    pub fn reports(&self) -> Vec<Report> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Sink for MemorySink {
    fn report(&self, report: Report) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(report);
    }
}

/// One task, ready to run in a folder of its own.
pub struct Bench {
    /// Parent of the outputs (`out/PORT`), scratch and checkpoint folders.
    pub dir: PathBuf,
    /// Connected inputs.
    pub inputs: BTreeMap<String, Vec<Input>>,
    /// Resolved external files.
    pub external: Vec<ExternalFile>,
    /// Threads granted.
    pub n_threads: usize,
    /// Whether the task may go on where it would park.
    pub is_approved: bool,
    /// The node's `device` resource.
    pub device: String,
    /// What the task is told of the nodes upstream.
    pub upstream: Vec<Upstream>,
    /// Stops the task.
    pub cancel: CancelToken,
    /// What the task reported.
    pub sink: Arc<MemorySink>,
    /// The items of every run on this bench.
    pub items: Arc<MemoryBoard>,
}

impl Bench {
    /// A bench in `dir`, with no inputs and two threads.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            inputs: BTreeMap::new(),
            external: Vec::new(),
            n_threads: 2,
            is_approved: false,
            device: "cpu".to_owned(),
            upstream: Vec::new(),
            cancel: CancelToken::default(),
            sink: Arc::default(),
            items: Arc::default(),
        }
    }

    /// Connects the folder `dir` to `port`, after those already there.
    #[must_use]
    pub fn input(mut self, port: &str, dir: &Path) -> Self {
        let inputs = self.inputs.entry(port.to_owned()).or_default();
        let node = format!("{port}_{}", inputs.len());
        inputs.push(Input {
            node,
            port: port.to_owned(),
            dir: dir.to_owned(),
            digest: Digest::of(dir.as_os_str().as_encoded_bytes()),
        });
        self
    }

    /// Adds an external file.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn external(mut self, path: &Path, relative: &str) -> Self {
        let (digest, size_bytes) = Digest::of_file(path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        let (path, relative) = (path.to_owned(), relative.to_owned());
        self.external.push(ExternalFile::at(path, relative, digest, size_bytes));
        self
    }

    /// Has the next run told to stop once so many items are done, those of earlier runs included.
    pub fn stop_after(&self, n_items: usize) {
        self.items.stop_after(n_items, self.cancel.clone());
    }

    /// The folder of an output port after [`Self::run`].
    pub fn out(&self, port: &str) -> PathBuf {
        self.dir.join("out").join(port)
    }

    /// Runs the task with params as JSON, defaults filled in.
    ///
    /// # Errors
    /// As the task; a wrong param is a permanent failure.
    pub fn run<T: Task>(&self, params: &Value) -> Result<Outputs, Failure> {
        let registry = Registry::default().with::<T>();
        let task = registry.get(T::KIND).ok_or_else(|| Failure::permanent("no such task"))?;
        let params =
            task.checked(params).map_err(|error| Failure::permanent(error.to_string()))?.params;
        let parts = ContextParts {
            out_dir: self.dir.join("out"),
            scratch_dir: self.dir.join("scratch"),
            checkpoints: CheckpointStore::new(self.dir.join("checkpoints")),
            external: self.external.clone(),
            n_threads: self.n_threads,
            memory_bytes: None,
            is_approved: self.is_approved,
            device: self.device.clone(),
            upstream: self.upstream.clone(),
            cancel: self.cancel.clone(),
            sink: Arc::<MemorySink>::clone(&self.sink),
        };
        let board = Arc::<MemoryBoard>::clone(&self.items);
        let items = ItemParts { board, ..ItemParts::alone(&self.dir.join("items"), T::KIND) };
        let mut ctx = Context::with_items(parts, items);
        task.run(&mut ctx, &params, &Inputs::new(self.inputs.clone()))
    }
}
