//! The run's side of an attempt in a process of its own.

use std::collections::BTreeMap;
use std::io::{self, BufReader};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::Launcher;
use super::wire::{Assignment, LastWord, Order, Word, receive, send};
use crate::exec::ATTEMPT;
use crate::item::Board;
use crate::process::{Ended, LastLines, Limits, Program};
use crate::task::{CancelToken, Failure, LogLevel, Outputs, Report, Sink};

/// From the request to stop to the kill; the scheduler gives an attempt up after as long.
const GRACE: Duration = Duration::from_secs(30);

/// How an attempt in a process of its own went.
pub(crate) struct Ran {
    pub(crate) result: Result<Outputs, Failure>,
    pub(crate) peak_memory_bytes: Option<i64>,
    /// Places of the external files of which the process found another version.
    pub(crate) replaced: Vec<usize>,
}

impl Ran {
    /// Ended without a last word.
    fn lost(failure: Failure, peak_memory_bytes: Option<i64>) -> Self {
        Self { result: Err(failure), peak_memory_bytes, replaced: Vec::new() }
    }
}

/// Runs the assignment in a process of its own, and gives what calling its task would have given.
/// `work_dir` marks the process and its children, so that none outlives the run for long.
pub(crate) fn run(
    launcher: &Launcher,
    node: &str,
    assignment: Assignment,
    work_dir: &Path,
    cancel: &CancelToken,
    sink: &dyn Sink,
    board: &dyn Board,
) -> Ran {
    let limit = assignment.memory_bytes;
    let start = || -> io::Result<(UnixStream, Program)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = launcher.command(node)?;
        command.env(ATTEMPT, work_dir).stdin(Stdio::from(OwnedFd::from(theirs)));
        Ok((ours, Program::start_tied(command)?))
    };
    let (stream, program) = match start() {
        Ok(started) => started,
        Err(error) => {
            let failure = Failure::transient(format!("cannot start a process: {error}"));
            return Ran::lost(failure, None);
        }
    };
    let ear = Ear {
        stream: &stream,
        voice: Mutex::new(()),
        sink,
        board,
        last: Mutex::default(),
        is_done: AtomicBool::new(false),
    };
    let limits = Limits { cancel, grace: GRACE, is_done: &ear.is_done };
    let (heard, ended) = thread::scope(|scope| {
        let hearing = scope.spawn(|| ear.hear(assignment));
        let ask = |_: &Program| ear.say(&Order::Cancel);
        let ended = program.wait(&limits, ask, |_, line| ear.log(LogLevel::Info, line));
        // What it said before its end is still read; a process that it left behind is not waited
        // for.
        let _ = stream.shutdown(Shutdown::Read);
        (hearing.join(), ended)
    });
    let heard = heard.expect("hearing does not panic");
    let last = ear.last.into_inner().unwrap_or_else(PoisonError::into_inner);
    conclude(heard, ended, cancel, &last, limit)
}

fn conclude(
    heard: io::Result<Option<LastWord>>,
    ended: io::Result<Ended>,
    cancel: &CancelToken,
    last: &LastLines,
    limit: Option<u64>,
) -> Ran {
    let lost = |failure| Ran::lost(failure, None);
    match (heard, ended) {
        (Ok(Some(LastWord { result, peak_memory_bytes, replaced })), _) => {
            let metrics = |bits: BTreeMap<String, u64>| {
                bits.into_iter().map(|(name, bits)| (name, f64::from_bits(bits))).collect()
            };
            let result = result.map(|bits| Outputs { metrics: metrics(bits) });
            Ran { result, peak_memory_bytes: Some(peak_memory_bytes), replaced }
        }
        _ if cancel.is_cancelled() => lost(Failure::cancelled()),
        (_, Err(error)) => lost(Failure::io("cannot wait for the attempt's process", &error)),
        (Err(error), Ok(_)) => {
            let message = format!("cannot understand the attempt's process: {error}");
            lost(Failure::permanent(last.after(message)))
        }
        (Ok(None), Ok(ended)) => {
            let peak = ended.peak_memory_bytes;
            let message = last.after(format!(
                "the attempt's process {ended} before it was done; it used up to {} MiB",
                peak >> 20
            ));
            let failure = if ended.is_from_outside() {
                Failure::transient(message)
            } else {
                Failure::permanent(message)
            };
            Ran::lost(ended.advise(failure, limit), Some(peak))
        }
    }
}

/// What a run hears from an attempt's process and says to it.
struct Ear<'a> {
    stream: &'a UnixStream,
    /// Held while something is said.
    voice: Mutex<()>,
    sink: &'a dyn Sink,
    board: &'a dyn Board,
    last: Mutex<LastLines>,
    /// Whether the last word was heard.
    is_done: AtomicBool,
}

impl Ear<'_> {
    /// Says what to do, and hears the process to its end; gives its last word, if there was one.
    fn hear(&self, assignment: Assignment) -> io::Result<Option<LastWord>> {
        self.stream.set_write_timeout(Some(GRACE))?;
        self.say(&Order::Start(Box::new(assignment)));
        let mut reader = BufReader::new(self.stream);
        let mut line = Vec::new();
        while let Some(word) = receive(&mut reader, &mut line)? {
            match word {
                Word::Progress { done, total, unit } => {
                    self.sink.report(Report::Progress { done, total, unit });
                }
                Word::Metric { name, step, bits } => {
                    let value = f64::from_bits(bits);
                    self.sink.report(Report::Metric { name, step, value });
                }
                Word::Log { level, text } => self.log(level, &text),
                Word::Items { id, call } => {
                    let states = self.board.call(call);
                    self.say(&Order::Answer { id, states });
                }
                Word::Ended(last) => {
                    self.is_done.store(true, Ordering::Release);
                    return Ok(Some(last));
                }
            }
        }
        Ok(None)
    }

    fn say(&self, order: &Order) {
        let _turn = self.voice.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stream = self.stream;
        // A process that cannot be told anything any more is at its end, which is seen elsewhere.
        let _ = send(&mut stream, order);
    }

    fn log(&self, level: LogLevel, text: &str) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        self.sink.report(Report::Log { level, text: text.to_owned() });
    }
}
