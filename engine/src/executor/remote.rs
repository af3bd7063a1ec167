//! The run's side of an attempt in a process of its own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::fork::{Farewell, Fork, ForkServer};
use super::wire::{Assignment, LastWord, Order, Word, send};
use crate::exec::ATTEMPT;
use crate::item::Board;
use crate::process::{
    Ended, LINE_MAX, LastLines, Limits, Lines, Stream, Watched, drain, kill_leftovers, watch,
};
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
/// `work_dir` marks what the process starts, so that none of it outlives the run for long.
pub(crate) fn run(
    server: &ForkServer,
    node: &str,
    assignment: Assignment,
    work_dir: &Path,
    cancel: &CancelToken,
    sink: &dyn Sink,
    board: &dyn Board,
) -> Ran {
    let limit = assignment.memory_bytes;
    let not_started = |error: &dyn std::fmt::Display| {
        Ran::lost(Failure::transient(format!("cannot start a process: {error}")), None)
    };
    let fork = match server.fork(node, work_dir) {
        Ok(fork) => fork,
        Err(error) => return not_started(&error),
    };
    let ear = Ear {
        stream: &fork.conversation,
        sink,
        board,
        last_lines: RefCell::default(),
        heard: RefCell::default(),
        is_done: Cell::new(false),
    };
    let ended = ear.hear(&fork, assignment, cancel);
    let Ear { last_lines, heard, .. } = ear;
    match ended {
        Ok(Some(Ok(ended))) => {
            conclude(heard.into_inner(), ended, cancel, &last_lines.into_inner(), limit)
        }
        Ok(Some(Err(why))) => not_started(&why),
        Ok(None) => {
            // They end with it, but what they started may take its time.
            kill_leftovers(ATTEMPT, &[work_dir.to_owned()]);
            if cancel.is_cancelled() {
                return Ran::lost(Failure::cancelled(), None);
            }
            let message =
                "the process that starts the attempts' processes is gone, and they with it";
            Ran::lost(Failure::transient(message), None)
        }
        Err(error) => Ran::lost(Failure::io("cannot hear the attempt's process", &error), None),
    }
}

fn conclude(
    heard: Heard,
    ended: Ended,
    cancel: &CancelToken,
    last_lines: &LastLines,
    limit: Option<u64>,
) -> Ran {
    let peak = Some(ended.peak_memory_bytes);
    match heard {
        Heard { garbled: None, last_word: Some(last) } => {
            let LastWord { result, peak_memory_bytes, replaced } = last;
            let metrics = |bits: BTreeMap<String, u64>| {
                bits.into_iter().map(|(name, bits)| (name, f64::from_bits(bits))).collect()
            };
            let result = result.map(|bits| Outputs { metrics: metrics(bits) });
            Ran { result, peak_memory_bytes: Some(peak_memory_bytes), replaced }
        }
        _ if cancel.is_cancelled() => Ran::lost(Failure::cancelled(), None),
        // What a process says last before it is killed may be half a word.
        Heard { garbled: Some(error), last_word } if last_word.is_some() || ended.is_success() => {
            let message = format!("cannot understand the attempt's process: {error}");
            Ran::lost(Failure::permanent(last_lines.after(message)), peak)
        }
        _ => {
            let message = last_lines.after(format!(
                "the attempt's process {ended} before it was done; it used up to {} MiB",
                ended.peak_memory_bytes >> 20
            ));
            let failure = if ended.is_from_outside() {
                Failure::transient(message)
            } else {
                Failure::permanent(message)
            };
            Ran::lost(ended.advise(failure, limit), peak)
        }
    }
}

impl Watched for Fork<'_> {
    fn kill(&self) {
        Fork::kill(self);
    }
}

/// What a run hears from an attempt's process and says to it.
struct Ear<'a> {
    stream: &'a UnixStream,
    sink: &'a dyn Sink,
    board: &'a dyn Board,
    last_lines: RefCell<LastLines>,
    heard: RefCell<Heard>,
    /// Whether nothing more is expected of it than to end.
    is_done: Cell<bool>,
}

/// What counts at the end.
#[derive(Default)]
struct Heard {
    last_word: Option<LastWord>,
    /// Why a word made no sense.
    garbled: Option<serde_json::Error>,
}

impl Ear<'_> {
    /// Says what to do, and hears the process to its end; gives how it ended, as far as anybody knows.
    fn hear(
        &self,
        fork: &Fork<'_>,
        assignment: Assignment,
        cancel: &CancelToken,
    ) -> io::Result<Option<Farewell>> {
        self.stream.set_write_timeout(Some(GRACE))?;
        self.say(&Order::Start(Box::new(assignment)));
        let mut printed = Lines::new(Some(&fork.printed), LINE_MAX);
        let mut words = Lines::new(Some(self.stream), usize::MAX);
        let limits = Limits { cancel, grace: GRACE, is_done: &self.is_done };
        let mut line = |stream: Stream, line: &str| match stream {
            Stream::Out => self.log(LogLevel::Info, line),
            Stream::Err => self.word(line),
        };
        let ask = || self.say(&Order::Cancel);
        watch(fork, &fork.farewell, &mut printed, &mut words, &limits, ask, &mut line)?;
        drain(&mut printed, &mut words, &mut line)?;
        let mut farewell = Vec::new();
        (&fork.farewell).read_to_end(&mut farewell)?;
        if farewell.is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&farewell)?))
    }

    fn word(&self, line: &str) {
        let word = match serde_json::from_str(line) {
            Ok(word) => word,
            Err(error) => {
                self.heard.borrow_mut().garbled.get_or_insert(error);
                return;
            }
        };
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
                self.heard.borrow_mut().last_word = Some(last);
                self.is_done.set(true);
            }
        }
    }

    fn say(&self, order: &Order) {
        let mut stream = self.stream;
        if send(&mut stream, order).is_err() {
            // A process that cannot be told anything any more is at its end.
            self.is_done.set(true);
        }
    }

    fn log(&self, level: LogLevel, text: &str) {
        self.last_lines.borrow_mut().push(text);
        self.sink.report(Report::Log { level, text: text.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::FailureKind;
    use crate::task::testbed::{MemoryBoard, MemorySink};

    fn concluded(said: &str, code: Option<i32>, signal: Option<i32>) -> Result<Outputs, Failure> {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (sink, board) = (MemorySink::default(), MemoryBoard::default());
        let (last_lines, heard, is_done) = Default::default();
        let ear = Ear { stream: &ours, sink: &sink, board: &board, last_lines, heard, is_done };
        said.lines().for_each(|line| ear.word(line));
        let ended = Ended { code, signal, peak_memory_bytes: 7 << 20 };
        let heard = ear.heard.into_inner();
        conclude(heard, ended, &CancelToken::default(), &LastLines::default(), None).result
    }

    #[test]
    fn only_what_was_understood_counts() {
        let last = r#"{"Ended":{"result":{"Ok":{"n":0}},"peak_memory_bytes":1,"replaced":[]}}"#;
        let failed = |said: &str, code, signal| {
            let failure = concluded(said, code, signal).unwrap_err();
            (failure.kind, failure.message)
        };
        assert_eq!(concluded(last, Some(0), None).unwrap().metrics["n"].to_bits(), 0);
        // It may be killed once it has said its last word.
        assert!(concluded(last, None, Some(libc::SIGKILL)).is_ok());
        let (kind, message) = failed(&format!("{{\"Log\n{last}"), Some(0), None);
        assert_eq!(kind, FailureKind::Permanent);
        assert!(message.starts_with("cannot understand the attempt's process"), "{message}");
        // Half a word is what a kill leaves.
        let (kind, message) = failed("{\"Log", None, Some(libc::SIGKILL));
        assert_eq!(kind, FailureKind::Transient);
        assert!(message.contains("(SIGKILL) before it was done; it used up to 7 MiB"), "{message}");
        let (kind, message) = failed("", Some(0), None);
        assert_eq!(kind, FailureKind::Permanent);
        assert!(message.contains("ended with exit code 0 before it was done"), "{message}");
    }
}
