//! The side of the process: one attempt, told what to do and heard by the run that started it.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::Value;

use super::fork::{self, Role};
use super::wire::{Assignment, LastWord, Order, Word, receive, send};
use crate::checkpoint::CheckpointStore;
use crate::item::{Board, Call, ItemParts, ItemStore, State};
use crate::run::peak_memory_bytes;
use crate::task::{
    CancelToken, Context, ContextParts, Failure, Outputs, Registry, Report, Sink, panic_text,
};

/// How often progress is passed on.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Serves the attempts of the run at the other end of standard input until that is gone. Each gets a
/// copy of this process, which ends in here. Nothing else may go on in this process meanwhile.
///
/// # Errors
/// When standard input is no connection to a run.
pub fn serve(registry: &Registry) -> io::Result<()> {
    match fork::serve()? {
        Role::Server => Ok(()),
        Role::Copy(stream) => {
            let attempted = attempt(registry, stream);
            if let Err(error) = &attempted {
                // Nobody may listen any more.
                let _ = writeln!(io::stderr(), "{error}");
            }
            let _ = io::stdout().flush();
            // SAFETY: It ends this process, which owns nothing that must be given back: what the
            // server has is the server's to clean up.
            unsafe { libc::_exit(i32::from(attempted.is_err())) }
        }
    }
}

/// Runs the attempt that the run assigns, and says how it ended.
fn attempt(registry: &Registry, stream: UnixStream) -> io::Result<()> {
    let mut orders = BufReader::new(stream.try_clone()?);
    let Some(Order::Start(assignment)) = receive(&mut orders, &mut Vec::new())? else {
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
    let (listener, stop) = (Arc::clone(&mouth), cancel.clone());
    thread::Builder::new().name("sbp-orders".to_owned()).spawn(move || {
        listener.listen(&mut orders, &stop);
        // SAFETY: It ends this process, of which nobody waits for anything: the run is gone.
        unsafe { libc::_exit(1) }
    })?;
    let external = assignment.external.clone();
    let result = work(registry, *assignment, &mouth, &cancel);
    mouth.pass_on_progress();
    let bits = |outputs: Outputs| -> BTreeMap<String, u64> {
        outputs.metrics.into_iter().map(|(name, x)| (name, x.to_bits())).collect()
    };
    let replaced = external.iter().enumerate().filter(|(_, file)| file.is_replaced());
    mouth.say(&Word::Ended(LastWord {
        result: result.map(bits),
        peak_memory_bytes: peak_memory_bytes(),
        replaced: replaced.map(|(place, _)| place).collect(),
    }))
}

/// Limits what the process may allocate; files that it maps do not count.
fn limit_memory(bytes: u64, mouth: &Mouth) {
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    if let Err(error) = setrlimit(Resource::Data, limit) {
        let text = format!("the memory of the attempt's process is not limited: {error}");
        mouth.report(Report::Log { level: crate::task::LogLevel::Warn, text });
    }
}

/// Calls the task.
fn work(
    registry: &Registry,
    assignment: Assignment,
    mouth: &Arc<Mouth>,
    cancel: &CancelToken,
) -> Result<Outputs, Failure> {
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
    let Some(task) = task else {
        return Err(Failure::permanent(format!("this program has no task `{kind}`")));
    };
    let mut context = Context::with_items(parts, items);
    let run = AssertUnwindSafe(|| task.run(&mut context, &params, &inputs));
    catch_unwind(run).unwrap_or_else(|panic| {
        Err(Failure::permanent(format!("the task panicked: {}", panic_text(&*panic))))
    })
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

    /// Takes orders until the run is gone, and passes on progress meanwhile.
    fn listen(&self, orders: &mut BufReader<UnixStream>, cancel: &CancelToken) {
        let mut line = Vec::new();
        while let Ok(Some(order)) = self.next_order(orders, &mut line) {
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

    fn next_order(
        &self,
        orders: &mut BufReader<UnixStream>,
        line: &mut Vec<u8>,
    ) -> io::Result<Option<Order>> {
        while orders.buffer().is_empty() {
            let mut fds = [PollFd::new(orders.get_ref(), PollFlags::IN)];
            let timeout = Timespec::try_from(PROGRESS_EVERY).map_err(io::Error::other)?;
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => self.pass_on_progress(),
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        }
        receive(orders, line)
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
