//! How a run goes on, told on stderr: bars on a terminal, lines elsewhere.

mod bars;
mod state;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::measure_text_width;
use engine::graph::Pipeline;
use engine::plan::Reason;
use engine::run::{Observer, RunEvent};
use engine::task::{Failure, FailureKind, LogLevel, Report};

use crate::human;
use crate::printer::{self, Printer};
use bars::Bars;
use state::{Running, State};

/// Pause between two plain lines about the same node.
const LINE_EVERY: Duration = Duration::from_secs(5);
const NAME_MAX: usize = 32;
/// Where nobody reads what is told, reports beyond so many events are left out.
const HEARD_MAX: usize = 100_000;

/// Tells how a run goes on. The run's loop only hands its events in, since what is on the other side
/// of stderr may not be read for hours.
pub(crate) struct Progress {
    began: Instant,
    /// Events that are still to be shown, and when they came.
    heard: Mutex<Vec<(Duration, RunEvent)>>,
    screen: Mutex<Screen>,
}

impl Progress {
    /// Bars when stderr is a terminal, lines otherwise, only warnings when quiet.
    pub(crate) fn new(printer: Printer, pipeline: &Pipeline) -> Self {
        let face = if printer.is_quiet() {
            Face::Off(printer)
        } else if std::io::stderr().is_terminal() {
            Face::Bars(Bars::new())
        } else {
            Face::Lines(printer)
        };
        let name_width = pipeline.nodes.iter().map(|node| measure_text_width(&node.name)).max();
        Self::with_face(face, name_width.unwrap_or(0).min(NAME_MAX))
    }

    fn with_face(face: Face, name_width: usize) -> Self {
        let screen = Mutex::new(Screen { state: State::default(), face, name_width });
        Self { began: Instant::now(), heard: Mutex::default(), screen }
    }

    /// Time passed: what came in is shown, bars are drawn again, and lines are due.
    pub(crate) fn tick(&self) {
        let now = self.began.elapsed();
        self.with_screen(|screen| screen.tick(now));
    }

    /// Takes the bars away; the run is over.
    pub(crate) fn clear(&self) {
        self.with_screen(|screen| {
            if let Face::Bars(bars) = &mut screen.face {
                bars.clear();
            }
        });
    }

    /// Since the command began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Shows what came in and then acts.
    fn with_screen(&self, act: impl FnOnce(&mut Screen)) {
        // What is shown may be stale after a panic elsewhere, and nothing depends on it.
        let mut screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lines = String::new();
        for (now, event) in heard {
            screen.observe(&event, now, &mut lines);
        }
        screen.say(&lines);
        act(&mut screen);
    }
}

impl Observer for Progress {
    fn observe(&self, event: &RunEvent) {
        let now = self.began.elapsed();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() < HEARD_MAX || !matches!(event, RunEvent::Reported { .. }) {
            heard.push((now, event.clone()));
        }
    }
}

struct Screen {
    state: State,
    face: Face,
    name_width: usize,
}

enum Face {
    Bars(Bars),
    Lines(Printer),
    Off(Printer),
}

/// Whether a line matters enough to appear when quiet, or only in a log without bars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// Bars show it already.
    Detail,
    /// What happened.
    News,
    /// What went wrong.
    Trouble,
}

impl Screen {
    /// Adds what is to be said of an event to `lines`.
    fn observe(&mut self, event: &RunEvent, now: Duration, lines: &mut String) {
        let took = self.state.observe(event, now);
        if let Some((weight, line)) = line_of(event, took, self.name_width, now)
            && self.shows(weight)
        {
            lines.push_str(&line);
            lines.push('\n');
        }
    }

    fn tick(&mut self, now: Duration) {
        match &mut self.face {
            Face::Bars(bars) => bars.draw(&self.state, now),
            Face::Lines(printer) => {
                for line in due_lines(&mut self.state.running, self.name_width, now) {
                    printer.talk(line);
                }
            }
            Face::Off(_) => {}
        }
    }

    fn shows(&self, weight: Weight) -> bool {
        match self.face {
            Face::Bars(_) => weight != Weight::Detail,
            Face::Lines(_) => true,
            Face::Off(_) => weight == Weight::Trouble,
        }
    }

    /// Says lines, in one piece: short nodes end by the thousand.
    fn say(&self, lines: &str) {
        let Some(lines) = lines.strip_suffix('\n') else { return };
        match &self.face {
            Face::Bars(bars) => bars.print(lines),
            Face::Lines(printer) | Face::Off(printer) => printer.warn(lines),
        }
    }
}

/// So much is read before anybody asks what takes so long.
const READ_AT_ONCE: u64 = 1 << 30;

/// What an event is worth saying. Cached nodes are a count in the summary, not a line: there may be
/// thousands.
fn line_of(
    event: &RunEvent,
    took: Option<Duration>,
    name_width: usize,
    now: Duration,
) -> Option<(Weight, String)> {
    let node_line = |node: &str, text: &str| stamped(node, text, name_width, now);
    let word = |word: &'static str| printer::state_style(word).for_stderr().apply_to(word);
    Some(match event {
        RunEvent::RunStarted { run, n_total, n_cached } => {
            let n_left = n_total - n_cached;
            let text = format!("run {run}: {n_total} nodes, {n_cached} cached, {n_left} to go");
            (Weight::News, format!("{:>7}  {text}", human::clock(now)))
        }
        RunEvent::ReadsInputs { size_bytes, .. } if *size_bytes < READ_AT_ONCE => return None,
        RunEvent::ReadsInputs { n_artifacts, size_bytes } => {
            let size = human::bytes(*size_bytes);
            let text =
                format!("reading {n_artifacts} cached artifacts, {size}, against their digests");
            (Weight::News, format!("{:>7}  {text}", human::clock(now)))
        }
        RunEvent::Cached { node, reason: Some(reason @ Reason::CutOff { .. }) } => {
            (Weight::News, node_line(node, &format!("{}: {reason}", word("cached"))))
        }
        RunEvent::Started { node, attempt, reason } => {
            let mut text = match attempt {
                0 | 1 => "started".to_owned(),
                attempt => format!("started, attempt {attempt}"),
            };
            if let Some(reason) = reason.as_ref().filter(|reason| **reason != Reason::NeverRan) {
                let _ = write!(text, " ({reason})");
            }
            (Weight::Detail, node_line(node, &text))
        }
        RunEvent::Waiting { node, owner } => {
            (Weight::News, node_line(node, &format!("another process computes it: {owner}")))
        }
        RunEvent::Reported { node, report: Report::Log { level: LogLevel::Warn, text } } => {
            (Weight::Trouble, node_line(node, &format!("warning: {text}")))
        }
        // Other log lines are where `sbp logs` finds them.
        RunEvent::Cached { .. } | RunEvent::Reported { .. } | RunEvent::HashesFiles { .. } => {
            return None;
        }
        RunEvent::Retrying { node, failure, pause_us } => {
            let pause = Duration::from_micros(u64::try_from(*pause_us).unwrap_or(0));
            let text = format!("warning: {failure}; tries again in {}", human::span(pause));
            (Weight::Trouble, node_line(node, &text))
        }
        RunEvent::Finished { node, duration_us, .. } => {
            let took = Duration::from_micros(u64::try_from(*duration_us).unwrap_or(0));
            let text = format!("{} in {}", word("done"), human::span(took));
            (Weight::News, node_line(node, &text))
        }
        RunEvent::Failed { node, failure } => {
            let (weight, text) = failure_text(failure, took);
            (weight, node_line(node, &text))
        }
        RunEvent::Skipped { node, because } if because.is_empty() => {
            (Weight::Detail, node_line(node, "skipped: nothing starts after a failure"))
        }
        RunEvent::Skipped { node, because } => {
            (Weight::Detail, node_line(node, &format!("skipped: needs `{because}`")))
        }
        RunEvent::Stopping { n_running } => {
            let text = format!(
                "stopping: {n_running} running nodes save what they have; \
                 once more stops at once"
            );
            (Weight::Trouble, format!("{:>7}  {text}", human::clock(now)))
        }
        RunEvent::LedgerTrouble { message } => {
            let text = format!("warning: cannot reach the ledger, tries again: {message}");
            (Weight::Trouble, format!("{:>7}  {text}", human::clock(now)))
        }
    })
}

fn failure_text(failure: &Failure, took: Option<Duration>) -> (Weight, String) {
    let (weight, word) = match failure.kind {
        FailureKind::Cancelled => (Weight::News, "stopped"),
        FailureKind::Parked => (Weight::Trouble, "parked"),
        FailureKind::Permanent | FailureKind::Transient => (Weight::Trouble, "failed"),
    };
    let mut text = printer::state_style(word).for_stderr().apply_to(word).to_string();
    if let Some(took) = took {
        let _ = write!(text, " after {}", human::span(took));
    }
    if failure.kind != FailureKind::Cancelled {
        let _ = write!(text, ": {failure}");
    }
    (weight, text)
}

fn stamped(node: &str, text: &str, name_width: usize, now: Duration) -> String {
    let pad = " ".repeat(name_width.saturating_sub(measure_text_width(node)));
    format!("{:>7}  {node}{pad}  {text}", human::clock(now))
}

/// A line for each running node that was quiet for [`LINE_EVERY`].
fn due_lines(
    running: &mut BTreeMap<String, Running>,
    name_width: usize,
    now: Duration,
) -> Vec<String> {
    let due = running.iter_mut().filter(|(_, node)| now.saturating_sub(node.told) >= LINE_EVERY);
    due.map(|(name, node)| {
        node.told = now;
        stamped(name, &progress_text(node, now), name_width, now)
    })
    .collect()
}

/// `34%  1.20M of 3.50M tokens  23.4k tokens/s  eta 1:30  loss 3.42`
fn progress_text(node: &Running, now: Duration) -> String {
    let done = human::count(node.done as f64);
    let amount = match (node.total, node.done) {
        (0, 0) => format!("running for {}", human::clock(now.saturating_sub(node.since))),
        (0, _) => format!("{done} {}", node.unit),
        (total, _) => format!("{done} of {} {}", human::count(total as f64), node.unit),
    };
    let parts = [node.percent(), Some(amount), node.speed(), node.eta(), node.figure()];
    parts.into_iter().flatten().collect::<Vec<String>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_a_line_every_five_seconds() {
        let mut state = State::default();
        state.running.insert("tune".to_owned(), Running::new(Duration::ZERO));
        let mut lines = Vec::new();
        for tenth in 0..=120_u64 {
            let now = Duration::from_millis(tenth * 100);
            let report =
                Report::Progress { done: tenth * 1000, total: 600_000, unit: "tokens".to_owned() };
            state.report("tune", &report, now);
            lines.extend(due_lines(&mut state.running, 9, now));
        }
        insta::assert_snapshot!(lines.join("\n"), @r"
           0:05  tune         8%  50.0k of 600k tokens  10.0k tokens/s  eta 0:55
           0:10  tune        16%  100k of 600k tokens  10.0k tokens/s  eta 0:50
        ");
    }

    #[test]
    fn files_that_are_hashed_get_lines_until_the_run_starts() {
        let mut state = State::default();
        let mut lines = Vec::new();
        let hashes = |read_bytes| RunEvent::HashesFiles {
            node: "corpus".to_owned(),
            n_files: 9,
            size_bytes: Some(9_000_000),
            read_bytes,
        };
        for second in 0..=9 {
            let now = Duration::from_secs(second);
            state.observe(&hashes(second * 1_000_000), now);
            lines.extend(due_lines(&mut state.running, 6, now));
        }
        assert_eq!(lines, ["   0:05  corpus   55%  5.00M of 9.00M bytes  1.00M bytes/s  eta 0:04"]);
        assert!(state.running.is_empty());
        let streams = |size_bytes, read_bytes| RunEvent::HashesFiles {
            node: "corpus".to_owned(),
            n_files: 1,
            size_bytes,
            read_bytes,
        };
        state.observe(&streams(None, 5_000_000), Duration::from_secs(9));
        assert_eq!(progress_text(&state.running["corpus"], Duration::from_secs(9)), "5.00M bytes");
        state.observe(&streams(Some(6_000_000), 6_000_000), Duration::from_secs(9));
        assert!(state.running.is_empty());
        let started = RunEvent::RunStarted { run: "7".to_owned(), n_total: 2, n_cached: 0 };
        state.observe(&started, Duration::from_secs(10));
        state.observe(&hashes(1), Duration::from_secs(11));
        assert!(state.running.is_empty());
    }

    #[test]
    fn a_screen_that_stands_still_holds_nothing_up() {
        let face = Face::Off(Printer::new(printer::Format::Text, true));
        let progress = Progress::with_face(face, 4);
        let screen = progress.screen.lock().unwrap();
        let report = Report::Progress { done: 1, total: 2, unit: "steps".to_owned() };
        for _ in 0..HEARD_MAX + 10 {
            let node = "tune".to_owned();
            progress.observe(&RunEvent::Reported { node, report: report.clone() });
        }
        progress.observe(&RunEvent::Started { node: "tune".to_owned(), attempt: 1, reason: None });
        drop(screen);
        assert_eq!(progress.heard.lock().unwrap().len(), HEARD_MAX + 1);
        progress.tick();
        assert!(progress.heard.lock().unwrap().is_empty());
        assert!(progress.screen.lock().unwrap().state.running.contains_key("tune"));
    }

    #[test]
    fn events_make_lines() {
        let node = || "tune".to_owned();
        let changed = Reason::Unfinished { last: "lost".to_owned(), message: None };
        let events = [
            RunEvent::RunStarted { run: "7".to_owned(), n_total: 24, n_cached: 3 },
            RunEvent::Cached { node: node(), reason: None },
            RunEvent::Started { node: node(), attempt: 1, reason: Some(Reason::NeverRan) },
            RunEvent::Started { node: node(), attempt: 2, reason: Some(changed) },
            RunEvent::Retrying {
                node: node(),
                failure: Failure::transient("connection reset"),
                pause_us: 1_500_000,
            },
            RunEvent::Failed { node: node(), failure: Failure::permanent("no pairs") },
            RunEvent::Failed { node: node(), failure: Failure::cancelled() },
            RunEvent::Failed { node: node(), failure: Failure::parked("copying is 0.4") },
            RunEvent::Stopping { n_running: 2 },
        ];
        let took = Some(Duration::from_millis(2300));
        let lines: Vec<String> = events
            .iter()
            .filter_map(|event| line_of(event, took, 6, Duration::from_secs(72)))
            .map(|(weight, line)| format!("{weight:?} {line}"))
            .collect();
        insta::assert_snapshot!(console::strip_ansi_codes(&lines.join("\n")));
    }

    #[test]
    fn unknown_total_says_how_long_and_how_much() {
        let mut node = Running::new(Duration::from_secs(2));
        assert_eq!(progress_text(&node, Duration::from_secs(9)), "running for 0:07");
        node.done = 1500;
        node.unit = "documents".to_owned();
        assert_eq!(progress_text(&node, Duration::from_secs(9)), "1.50k documents");
    }
}
