//! `sbp watch`: a run as it goes on, seen from another terminal.
//!
//! On a terminal the view is drawn again each second; elsewhere a line is printed whenever the counts
//! change. It ends with the run, and its exit code is the run's.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use console::{Term, truncate_str};
use engine::ledger::RunDetail;
use engine::run::{NodeState, RunState};

use crate::cli::WatchArgs;
use crate::commands::{look, run as run_command, status, took};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::{self, Printer, state_style};
use crate::settings::Place;

const EVERY: Duration = Duration::from_secs(1);
/// Lines of running nodes.
const RUNNING_MAX: usize = 20;

pub(crate) async fn run(args: WatchArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = look(place).await?;
    let id = engine.find_run(&args.run).await?;
    let is_live = io::stdout().is_terminal() && !printer.is_json();
    let term = Term::stdout();
    let (mut n_lines, mut last) = (0, String::new());
    loop {
        let detail = engine.run_detail(&id).await?;
        let is_over = detail.run.state != RunState::Running;
        if printer.is_json() {
            // One line, also of a run that goes on: `status --json` again and again is for programs.
            printer.json(&detail)?;
            return Ok(run_command::status(detail.run.state));
        }
        if is_live {
            let text = fitted(&view(&detail, now_us()), printer::width(&term));
            term.clear_last_lines(n_lines)?;
            printer.data(&text)?;
            n_lines = text.lines().count();
        } else {
            let text = summary(&detail, now_us());
            let counts = status::counts(&detail.run);
            if counts != last || is_over {
                printer.data(format!("{text}\n"))?;
                last = counts;
            }
        }
        if is_over {
            return Ok(run_command::status(detail.run.state));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The view, each line cut to the terminal: a line that wraps would break the count of lines.
fn fitted(text: &str, width: usize) -> String {
    let lines = text.lines().map(|line| truncate_str(line, width.saturating_sub(1), "…"));
    lines.flat_map(|line| [line.into_owned(), "\n".to_owned()]).collect()
}

fn summary(detail: &RunDetail, now_us: i64) -> String {
    let run = &detail.run;
    let us = run.ended_us.unwrap_or(now_us) - run.started_us;
    let mut text = format!("run {} of {}: {} for {}", run.id, run.pipeline, run.state, took(us));
    let _ = write!(text, ", {}", status::counts(run));
    if let Some(left_us) = status::left_us(detail, now_us) {
        let _ = write!(text, ", about {} left", took(left_us));
    }
    text
}

fn view(detail: &RunDetail, now_us: i64) -> String {
    let mut text = summary(detail, now_us);
    text.push('\n');
    let of = |state: NodeState| detail.nodes.iter().filter(move |node| node.state == state);
    for state in [NodeState::Failed, NodeState::Parked] {
        for node in of(state) {
            let word = state_style(state.as_str()).apply_to(state);
            let about = node.failure.as_ref().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {word}  {}  {about}", node.name);
        }
    }
    for node in of(NodeState::Running).take(RUNNING_MAX) {
        let word = state_style("running").apply_to("running");
        let since = node.started_us.map(|started_us| took(now_us - started_us)).unwrap_or_default();
        let _ = writeln!(text, "  {word}  {}  {since}  {}", node.name, status::rate(node, now_us));
    }
    let n_more = of(NodeState::Running).count().saturating_sub(RUNNING_MAX);
    if n_more > 0 {
        let _ = writeln!(text, "  … and {} more", human::count(n_more as f64));
    }
    text
}

/// Microseconds since 1970.
pub(super) fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}
