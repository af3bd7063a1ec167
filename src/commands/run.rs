//! `sbp run`: runs what is missing.

use std::fmt::Write as _;
use std::fs;
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use engine::Engine;
use engine::executor::Launcher;
use engine::graph::Pipeline;
use engine::run::{Options, RunState, RunSummary, Stop};
use engine::task::{Failure, FailureKind};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::RunArgs;
use crate::commands::{load, settings as settings_of};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::{Printer, state_style};
use crate::progress::Progress;
use crate::results;
use crate::settings::{self, Place};

/// Nodes that are named of those that failed alike; `sbp status` lists all.
const NAMES_MAX: usize = 10;

pub(crate) async fn run(args: RunArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let pipeline = load(&args.pipeline, printer)?;
    let launcher = Launcher::new(["fork-server"]);
    let Some(summary) = to_the_end(&pipeline, &args, launcher, place, printer).await? else {
        return Ok(ExitStatus::Interrupted);
    };
    if printer.is_json() {
        printer.json(&summary)?;
    } else {
        results::print(&pipeline, &summary, printer)?;
    }
    Ok(status(summary.state))
}

/// Runs a pipeline and says how it ended; `None` when it had to be given up. `launcher` starts the
/// attempts that get a process.
pub(super) async fn to_the_end(
    pipeline: &Pipeline,
    args: &RunArgs,
    launcher: Launcher,
    place: Place,
    printer: Printer,
) -> Result<Option<RunSummary>> {
    let flags = place.flags();
    let lease = Duration::from_secs(args.work.lease.into());
    let engine = Engine::open(engine::Settings { lease, ..settings_of(place) }).await?;
    let progress = Arc::new(Progress::new(printer, pipeline));
    let options = Options {
        targets: settings::targets(&args.pipeline),
        keep_going: args.keep_going || !args.fail_fast,
        executor: args.work.executor.unwrap_or_default().into(),
        launcher,
        observer: Arc::<Progress>::clone(&progress),
        ..settings::share(&args.share)
    };
    let stop = Stop::default();
    let ticker = Ticker::start(Arc::clone(&progress));
    let ended = until_stopped(Box::pin(engine.run(pipeline, options, &stop)), &stop).await;
    drop(ticker);
    progress.clear();
    let summary = ended?;
    if let Some(summary) = &summary {
        engine.close().await;
        tell(summary, progress.elapsed(), &flags, printer);
    }
    Ok(summary)
}

pub(super) fn status(state: RunState) -> ExitStatus {
    match state {
        RunState::Done => ExitStatus::Done,
        RunState::Parked => ExitStatus::Parked,
        RunState::Cancelled | RunState::Abandoned | RunState::Running => ExitStatus::Interrupted,
        RunState::Failed => ExitStatus::NodeFailed,
    }
}

/// Each different failure with the nodes that met it; arms of a study often fail alike.
fn failures(summary: &RunSummary) -> Vec<(&Failure, Vec<&str>)> {
    let mut distinct: Vec<(&Failure, Vec<&str>)> = Vec::new();
    for failed in &summary.failures {
        let (failure, node) = (&failed.failure, failed.node.as_str());
        let same = |known: &Failure| {
            known.kind == failure.kind && known.to_string() == failure.to_string()
        };
        match distinct.iter_mut().find(|(known, _)| same(known)) {
            Some((_, nodes)) => nodes.push(node),
            None => distinct.push((failure, vec![node])),
        }
    }
    distinct
}

/// Says how the run ended, and for each failure what to do; `flags` belong into the commands.
fn tell(summary: &RunSummary, elapsed: Duration, flags: &str, printer: Printer) {
    for (failure, nodes) in failures(summary) {
        let word = match failure.kind {
            FailureKind::Parked => "parked",
            _ => "failed",
        };
        let styled = state_style(word).for_stderr().apply_to(word);
        let shown = nodes.iter().take(NAMES_MAX).map(|name| format!("`{name}`"));
        let mut names = shown.collect::<Vec<String>>().join(", ");
        if nodes.len() > NAMES_MAX {
            let _ = write!(names, " and {} more", nodes.len() - NAMES_MAX);
        }
        let noun = if nodes.len() == 1 { "node" } else { "nodes" };
        printer.warn(format!("\n{noun} {names} {styled}: {failure}"));
        if let Some(help) = &failure.help {
            printer.warn(format!("  help: {help}"));
        }
        let place = format!("'{}' --run {}{flags}", nodes[0], summary.run);
        printer.warn(format!("  log:  sbp logs {place}"));
        if failure.kind == FailureKind::Parked {
            for node in nodes.iter().take(NAMES_MAX) {
                let place = format!("'{node}' --run {}{flags}", summary.run);
                printer.warn(format!("  go on:  sbp approve {place} --reason WHY"));
                printer.warn(format!("  or not: sbp reject {place} --reason WHY"));
            }
        }
    }
    let nodes = &summary.nodes;
    let mut parts = vec![format!("{} ran", nodes.ran), format!("{} cached", nodes.cached)];
    let others = [
        (nodes.failed, "failed"),
        (nodes.parked, "parked"),
        (nodes.cancelled, "stopped"),
        (nodes.skipped, "skipped"),
    ];
    parts.extend(others.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")));
    let state = summary.state.as_str();
    let styled = state_style(state).for_stderr().apply_to(state);
    printer.talk(format!(
        "run {} {styled} in {}: {}",
        summary.run,
        human::span(elapsed),
        parts.join(", ")
    ));
    if matches!(summary.state, RunState::Cancelled) {
        printer.talk("the same command goes on where it stopped");
    }
}

/// Waits for a run while signals stop it: the first lets attempts save what they have, the second
/// abandons them, and a third, which the run should not need, gives up on the run: `None`.
async fn until_stopped<T, E>(
    mut run: impl Future<Output = Result<T, E>> + Unpin,
    stop: &Stop,
) -> Result<Option<T>>
where
    crate::error::Error: From<E>,
{
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // The terminal is gone, and what the run has done must not go with it; under `nohup` the run
    // goes on.
    let mut hang_up = if ignores_hang_up() { None } else { Some(signal(SignalKind::hangup())?) };
    loop {
        tokio::select! {
            ended = &mut run => return Ok(Some(ended?)),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            Some(()) = async { hang_up.as_mut()?.recv().await } => {}
        }
        if stop.count() >= 2 {
            return Ok(None);
        }
        stop.request();
    }
}

/// Whether this process was started to outlive its terminal.
fn ignores_hang_up() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Signal 1 is the lowest bit.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

/// Draws the progress again and again, on a thread of its own so that a busy run cannot hold it up.
struct Ticker {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    const EVERY: Duration = Duration::from_millis(100);

    fn start(progress: Arc<Progress>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(Self::EVERY) == Err(RecvTimeoutError::Timeout) {
                progress.tick();
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic in drawing has been printed; the run's result stands.
            let _ = thread.join();
        }
    }
}
