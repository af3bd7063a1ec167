//! The side of the process: one attempt, told what to do and heard by the run that started it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::Value;

use super::wire::{Assignment, LastWord, Order, Word, receive, send};
use crate::checkpoint::CheckpointStore;
use crate::item::{Board, Call, ItemParts, ItemStore, State};
use crate::process::die_with_parent;
use crate::run::peak_memory_bytes;
use crate::task::{
    CancelToken, Context, ContextParts, Failure, Outputs, Registry, Report, Sink, panic_text,
};

/// How often progress is passed on.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Runs the attempt that the run at the other end of standard input assigns, and says how it ended.
///
/// # Errors
/// When standard input is no connection to a run, or the run is gone.
pub fn serve(registry: &Registry) -> io::Result<()> {
    let stream = take_stdin()?;
    // Where the run was gone before that, its end of the connection is closed.
    die_with_parent()?;
    let mut orders = BufReader::new(stream.try_clone()?);
    let mut line = Vec::new();
    let Some(Order::Start(assignment)) = receive(&mut orders, &mut line)? else {
        return Err(io::Error::other("the run says nothing of what to do"));
    };
    let mouth = Arc::new(Mouth {
        stream: Mutex::new(stream),
        progress: Mutex::default(),
        asked: Mutex::default(),
    });
    if let Some(bytes) = assignment.memory_bytes {
        limit_memory(bytes, &mouth);
    }
    let cancel = CancelToken::default();
    let external = assignment.external.clone();
    let (ended, end) = channel();
    let (work, task_ended) = (work(registry, *assignment, &mouth, &cancel), ended.clone());
    thread::Builder::new().name("sbp-task".to_owned()).spawn(move || {
        // Nobody listens any more when the run is gone.
        let _ = task_ended.send(Some(work()));
    })?;
    let listener = Arc::clone(&mouth);
    thread::Builder::new().name("sbp-orders".to_owned()).spawn(move || {
        listener.listen(&mut orders, &cancel);
        let _ = ended.send(None);
    })?;
    loop {
        match end.recv_timeout(PROGRESS_EVERY) {
            Ok(Some(result)) => {
                mouth.pass_on_progress();
                let bits = |outputs: Outputs| -> BTreeMap<String, u64> {
                    outputs.metrics.into_iter().map(|(name, x)| (name, x.to_bits())).collect()
                };
                let replaced = external.iter().enumerate().filter(|(_, file)| file.is_replaced());
                return mouth.say(&Word::Ended(LastWord {
                    result: result.map(bits),
                    peak_memory_bytes: peak_memory_bytes(),
                    replaced: replaced.map(|(place, _)| place).collect(),
                }));
            }
            Ok(None) | Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("the run is gone"));
            }
            Err(RecvTimeoutError::Timeout) => mouth.pass_on_progress(),
        }
    }
}

/// The connection on standard input, which then is empty: neither the task nor a program that it
/// starts shall read it.
fn take_stdin() -> io::Result<UnixStream> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    if stream.peer_addr().is_err() {
        let message = "`sbp run` starts this command for an attempt; it has no use by hand";
        return Err(io::Error::new(io::ErrorKind::NotConnected, message));
    }
    let empty = File::open("/dev/null")?;
    // SAFETY: Both numbers are of open files; the old one on 0 is owned by nobody but the table.
    if unsafe { libc::dup2(empty.as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stream)
}

/// Limits what the process may allocate; files that it maps do not count.
fn limit_memory(bytes: u64, mouth: &Mouth) {
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    if let Err(error) = setrlimit(Resource::Data, limit) {
        let text = format!("the memory of the attempt's process is not limited: {error}");
        mouth.report(Report::Log { level: crate::task::LogLevel::Warn, text });
    }
}

/// The attempt, ready to be run on a thread of its own.
fn work(
    registry: &Registry,
    assignment: Assignment,
    mouth: &Arc<Mouth>,
    cancel: &CancelToken,
) -> impl FnOnce() -> Result<Outputs, Failure> + Send + use<> {
    let task = registry.get(&assignment.kind).map(Arc::clone);
    let sink: Arc<dyn Sink> = Arc::<Mouth>::clone(mouth);
    let board: Arc<dyn Board> = Arc::<Mouth>::clone(mouth);
    let items = assignment.items;
    let items = ItemParts {
        board,
        store: ItemStore::new(items.store),
        scope: items.scope,
        lease: items.lease,
        tries_max: items.tries_max,
        backoff: items.backoff,
        helps: items.helps,
    };
    let parts = ContextParts {
        out_dir: assignment.out_dir,
        scratch_dir: assignment.scratch_dir,
        checkpoints: CheckpointStore::new(assignment.checkpoints).for_attempt(assignment.epoch),
        external: assignment.external,
        n_threads: assignment.n_threads,
        memory_bytes: assignment.memory_bytes,
        is_approved: assignment.is_approved,
        device: assignment.device,
        upstream: assignment.upstream,
        cancel: cancel.clone(),
        sink,
    };
    let (kind, inputs) = (assignment.kind, assignment.inputs);
    let params = Value::from(assignment.params);
    move || {
        let Some(task) = task else {
            return Err(Failure::permanent(format!("this program has no task `{kind}`")));
        };
        let mut context = Context::with_items(parts, items);
        let run = AssertUnwindSafe(|| task.run(&mut context, &params, &inputs));
        catch_unwind(run).unwrap_or_else(|panic| {
            Err(Failure::permanent(format!("the task panicked: {}", panic_text(&*panic))))
        })
    }
}

/// Says things to the run.
struct Mouth {
    stream: Mutex<UnixStream>,
    /// The newest progress that was not passed on.
    progress: Mutex<Option<Report>>,
    asked: Mutex<Asked>,
}

/// Calls about items that wait for their answers.
#[derive(Default)]
struct Asked {
    n_calls: u64,
    waiting: BTreeMap<u64, Sender<Option<Vec<State>>>>,
    /// Whether no answer can come any more.
    is_over: bool,
}

impl Mouth {
    fn say(&self, word: &Word) -> io::Result<()> {
        send(&mut *self.stream.lock().unwrap_or_else(PoisonError::into_inner), word)
    }

    fn pass_on_progress(&self) {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(progress) = progress {
            // A run that is gone is noticed where its orders are awaited.
            let _ = self.say(&progress.into());
        }
    }

    /// Takes orders until the run is gone.
    fn listen(&self, orders: &mut BufReader<UnixStream>, cancel: &CancelToken) {
        let mut line = Vec::new();
        while let Ok(Some(order)) = receive(orders, &mut line) {
            match order {
                Order::Cancel => cancel.cancel(),
                Order::Answer { id, states } => {
                    if let Some(waiting) = self.asked().waiting.remove(&id) {
                        let _ = waiting.send(states);
                    }
                }
                Order::Start(_) => {}
            }
        }
        let mut asked = self.asked();
        asked.is_over = true;
        asked.waiting.clear();
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Mouth {
    fn report(&self, report: Report) {
        if matches!(report, Report::Progress { .. }) {
            // Only the newest counts, and a task may report after each document.
            *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        } else {
            let _ = self.say(&report.into());
        }
    }
}

impl Board for Mouth {
    fn call(&self, call: Call) -> Option<Vec<State>> {
        let (answer, answered) = channel();
        let id = {
            let mut asked = self.asked();
            if asked.is_over {
                return None;
            }
            asked.n_calls += 1;
            let id = asked.n_calls;
            asked.waiting.insert(id, answer);
            id
        };
        self.say(&Word::Items { id, call }).ok()?;
        answered.recv().ok()?
    }
}
