//! One attempt, on a thread of its own: the task, then its artifacts into the store.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use crate::clock::Clock;
use crate::executor::{self, Assignment, ForkServer, Ran};
use crate::external::Resolved;
use crate::item::{self, ItemParts};
use crate::key::NodeKey;
use crate::ledger::ItemCall;
use crate::store::{Damage, Manifest, Published, Store, remove_tree};
use crate::task::{
    AnyTask, Context, ContextParts, Failure, FailureKind, Inputs, Outputs, Report, Sink, panic_text,
};

/// Everything that an attempt needs.
pub(super) struct Job {
    pub(super) node: usize,
    pub(super) name: String,
    pub(super) epoch: i64,
    pub(super) task: Arc<dyn AnyTask>,
    /// Makes a process for the task, unless it runs on this thread.
    pub(super) forks: Option<Arc<ForkServer>>,
    pub(super) params: Value,
    pub(super) context: ContextParts,
    pub(super) inputs: Inputs,
    pub(super) given: Vec<Given>,
    pub(super) external: Option<Arc<Resolved>>,
    pub(super) work_dir: PathBuf,
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) done: UnboundedSender<Done>,
    pub(super) items: ItemParts,
}

/// An artifact that an attempt is given.
pub(super) struct Given {
    /// The node that made it.
    pub(super) node: String,
    pub(super) dir: PathBuf,
    pub(super) manifest: Arc<Manifest>,
}

impl Given {
    /// What is wrong with it now, as far as sizes and times tell; what they make suspicious is read.
    fn damage(&self) -> Option<Damage> {
        self.manifest.check_quick(&self.dir).err()?;
        self.manifest.verify(&self.dir).err()
    }
}

/// How an attempt ended.
pub(super) struct Done {
    pub(super) node: usize,
    pub(super) epoch: i64,
    pub(super) result: Result<Made, Failure>,
    /// Whether external files changed meanwhile, so that the key is no longer right.
    pub(super) external_changed: bool,
    /// Of the attempt's own process or program; `None` when it ran in this one.
    pub(super) peak_memory_bytes: Option<i64>,
}

impl Done {
    /// An attempt that ended without having run to its end.
    pub(super) fn failed(node: usize, epoch: i64, failure: Failure) -> Self {
        let result = Err(failure);
        Self { node, epoch, result, external_changed: false, peak_memory_bytes: None }
    }
}

/// What an attempt made.
pub(super) struct Made {
    pub(super) outputs: BTreeMap<String, Published>,
    pub(super) metrics: BTreeMap<String, f64>,
    pub(super) peak_memory_bytes: Option<i64>,
    /// Whether checkpoints are left, of this attempt or an earlier one.
    pub(super) has_checkpoints: bool,
}

impl Job {
    /// Runs to the end and reports how it was.
    pub(super) fn run(mut self) {
        let helps = self.items.helps.is_some();
        let (Ran { mut result, peak_memory_bytes, replaced }, has_places) = self.run_task();
        if let Some(external) = &self.external {
            for file in replaced.iter().filter_map(|place| external.files.get(*place)) {
                file.note_replaced();
            }
        }
        let mut external_changed = false;
        // What a task made of changed files is wrong, and so may be its complaint about them.
        let is_over = !matches!(&result, Err(failure) if failure.kind == FailureKind::Cancelled);
        if is_over && let Some(file) = self.external.as_deref().and_then(Resolved::changed) {
            external_changed = true;
            let path = file.path.display();
            result = Err(Failure::transient(format!("`{path}` changed while the task ran")));
        }
        if is_over
            && let Some((given, damage)) =
                self.given.iter().find_map(|given| Some((given, given.damage()?)))
        {
            let message = format!("what `{}` gave it was damaged meanwhile: {damage}", given.node);
            result = Err(Failure::permanent(message)
                .help("run the same command again: what is damaged is found and made anew"));
        }
        let mut result = result.and_then(|outputs| {
            if helps {
                // The process that holds the node makes its outputs.
                return Err(Failure::cancelled());
            }
            publish(&*self.task, outputs, &self.work_dir, &self.store, &self.clock)
        });
        if let Ok(made) = &mut result {
            made.has_checkpoints = has_places && self.context.checkpoints.exists();
            made.peak_memory_bytes = peak_memory_bytes;
        }
        if has_places {
            // What stays is removed when the next run starts.
            let _ = remove_tree(&self.work_dir);
        }
        let Self { node, epoch, .. } = self;
        // The run may have ended without waiting for this attempt.
        let _ = self.done.send(Done { node, epoch, result, external_changed, peak_memory_bytes });
    }

    /// Calls the task, here or in a process of its own; says too whether it may have written anything.
    fn run_task(&mut self) -> (Ran, bool) {
        let context = self.context.clone();
        if let Some(forks) = &self.forks {
            let (cancel, sink) = (&context.cancel, &*context.sink);
            let (name, board) = (&self.name, &*self.items.board);
            let assignment = self.assignment();
            let ran = executor::run(forks, name, assignment, &self.work_dir, cancel, sink, board);
            return (ran, true);
        }
        let mut context = Context::with_items(context, self.items.clone());
        let run = AssertUnwindSafe(|| self.task.run(&mut context, &self.params, &self.inputs));
        let result = catch_unwind(run).unwrap_or_else(|panic| {
            Err(Failure::permanent(format!("the task panicked: {}", panic_text(&*panic))))
        });
        let peak_memory_bytes = context.programs_peak_bytes();
        (Ran { result, peak_memory_bytes, replaced: Vec::new() }, context.has_places())
    }

    fn assignment(&self) -> Assignment {
        let (context, items) = (&self.context, &self.items);
        Assignment {
            kind: self.task.kind().to_owned(),
            params: (&self.params).into(),
            inputs: self.inputs.clone(),
            out_dir: context.out_dir.clone(),
            scratch_dir: context.scratch_dir.clone(),
            checkpoints: context.checkpoints.dir().to_owned(),
            epoch: self.epoch,
            external: context.external.clone(),
            n_threads: context.n_threads,
            memory_bytes: context.memory_bytes,
            is_approved: context.is_approved,
            device: context.device.clone(),
            upstream: context.upstream.clone(),
            items: executor::Items {
                store: items.store.dir().to_owned(),
                scope: items.scope,
                lease: items.lease,
                tries_max: items.tries_max,
                backoff: items.backoff,
                helps: items.helps,
            },
        }
    }
}

fn publish(
    task: &dyn AnyTask,
    outputs: Outputs,
    work_dir: &std::path::Path,
    store: &Store,
    clock: &Clock,
) -> Result<Made, Failure> {
    let mut made = BTreeMap::new();
    for port in task.outputs() {
        let dir = work_dir.join("out").join(port.name);
        let published = store.publish(&dir, clock).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound && !dir.exists() {
                return Failure::permanent(format!(
                    "task `{}` did not write its output `{}`",
                    task.kind(),
                    port.name
                ));
            }
            Failure::io(format!("cannot publish output `{}`", port.name), &error)
        })?;
        made.insert(port.name.to_owned(), published);
    }
    let metrics = outputs.metrics;
    Ok(Made { outputs: made, metrics, peak_memory_bytes: None, has_checkpoints: false })
}

/// A call about items on its way to the event loop.
pub(super) struct Post {
    pub(super) call: ItemCall,
    pub(super) answer: Sender<Vec<item::State>>,
}

/// Where an attempt hands in its calls about items.
pub(super) struct Desk {
    pub(super) node: String,
    pub(super) node_key: NodeKey,
    pub(super) holder: String,
    pub(super) posts: UnboundedSender<Post>,
}

impl item::Board for Desk {
    fn call(&self, call: item::Call) -> Option<Vec<item::State>> {
        let (answer, answered) = channel();
        let (node, node_key, holder) = (self.node.clone(), self.node_key, self.holder.clone());
        let call = ItemCall { node, node_key, holder, call };
        self.posts.send(Post { call, answer }).ok()?;
        answered.recv().ok()
    }
}

/// Keeps the reports of an attempt until the event loop takes them.
pub(super) struct Buffer {
    clock: Clock,
    kept: Mutex<Kept>,
}

/// Reports since they were last taken.
#[derive(Default)]
pub(super) struct Kept {
    /// Only the newest counts.
    pub(super) progress: Option<Report>,
    /// Metrics and log lines with their times.
    pub(super) others: Vec<(i64, Report)>,
    /// Bytes of those lines.
    n_bytes: usize,
}

/// Beyond this many reports, or bytes in them, the task waits for the event loop.
const KEPT_MAX: usize = 100_000;
const KEPT_BYTES_MAX: usize = 8 << 20;

impl Buffer {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, kept: Mutex::default() }
    }

    pub(super) fn take(&self) -> Kept {
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for Buffer {
    fn report(&self, report: Report) {
        loop {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(report, Report::Progress { .. }) {
                kept.progress = Some(report);
                return;
            }
            if kept.others.len() < KEPT_MAX && kept.n_bytes < KEPT_BYTES_MAX {
                if let Report::Log { text, .. } = &report {
                    kept.n_bytes += text.len();
                }
                kept.others.push((self.clock.now_us(), report));
                return;
            }
            drop(kept);
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// Threads that are used again: starting one costs more than a small attempt.
#[derive(Default)]
pub(super) struct Crew(Arc<Mutex<Vec<Sender<Work>>>>);

impl Crew {
    /// Runs `work` on a thread that does nothing else.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn run(&self, work: Work) -> io::Result<()> {
        let mut work = work;
        loop {
            let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(thread) => match thread.send(work) {
                    Ok(()) => return Ok(()),
                    Err(back) => work = back.0,
                },
                None => break,
            }
        }
        let idle = Arc::downgrade(&self.0);
        let body = move || {
            let mut work = work;
            loop {
                work();
                let (sender, receiver) = channel();
                match idle.upgrade() {
                    Some(idle) => idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender),
                    None => return,
                }
                match receiver.recv() {
                    Ok(next) => work = next,
                    Err(_) => return,
                }
            }
        };
        thread::Builder::new().name("sbp-task".to_owned()).spawn(body).map(|_| ())
    }
}

/// The failure of an attempt that could not start or did not come back.
pub(super) fn failure(kind: FailureKind, message: String) -> Failure {
    match kind {
        FailureKind::Transient => Failure::transient(message),
        FailureKind::Permanent => Failure::permanent(message),
        FailureKind::Cancelled => Failure { message, ..Failure::cancelled() },
        FailureKind::Parked => Failure::parked(message),
    }
}
