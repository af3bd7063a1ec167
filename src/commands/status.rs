//! `sbp status`: recent runs, or the nodes of one.

use std::fmt::Write as _;

use engine::Engine;
use engine::ledger::{RunDetail, RunNodeRow, RunRow, StageRow};
use engine::run::{NodeState, RunState};

use crate::cli::StatusArgs;
use crate::commands::{look, took};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::{Printer, state_style};
use crate::settings::Place;
use crate::table::Table;

/// Runs in the list.
const RUNS_MAX: usize = 20;
/// A running node that has reported progress and then shows none for so long is called stuck.
const STUCK_US: i64 = 300_000_000;

pub(crate) async fn run(args: StatusArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = look(place).await?;
    match args.run {
        Some(run) => one(&engine, &run, printer).await,
        None => list(&engine, printer).await,
    }
}

async fn list(engine: &Engine, printer: Printer) -> Result<ExitStatus> {
    let runs = engine.runs(RUNS_MAX).await?;
    if printer.is_json() {
        printer.json(&runs)?;
        return Ok(ExitStatus::Done);
    }
    if runs.is_empty() {
        printer.talk("no run yet");
        return Ok(ExitStatus::Done);
    }
    let mut table = Table::new(&["run", "pipeline", "state", "started (UTC)", ">took", "nodes"]);
    for run in &runs {
        let state = run.state.as_str();
        table.row([
            run.id.clone(),
            run.pipeline.clone(),
            state_style(state).apply_to(state).to_string(),
            human::timestamp(run.started_us),
            run.ended_us.map(|ended_us| took(ended_us - run.started_us)).unwrap_or_default(),
            counts(run),
        ]);
    }
    printer.table(&table)?;
    Ok(ExitStatus::Done)
}

async fn one(engine: &Engine, id: &str, printer: Printer) -> Result<ExitStatus> {
    let detail = engine.run_detail(id).await?;
    if printer.is_json() {
        printer.json(&detail)?;
        return Ok(ExitStatus::Done);
    }
    let run = &detail.run;
    let state = state_style(run.state.as_str()).apply_to(run.state);
    let span = run.ended_us.map(|ended_us| format!(" in {}", took(ended_us - run.started_us)));
    printer.data(format!(
        "run {} of {} ({}), started {} UTC by {}: {state}{}\n\n",
        run.id,
        run.pipeline,
        run.path,
        human::timestamp(run.started_us),
        run.owner,
        span.unwrap_or_default()
    ))?;
    let now_us = super::watch::now_us();
    printer.table(&nodes(&detail, now_us))?;
    if run.state == RunState::Running {
        let left = left_us(&detail, now_us).map(|us| format!(", about {} left", took(us)));
        printer.talk(format!("{}{}", counts(run), left.unwrap_or_default()));
    }
    Ok(ExitStatus::Done)
}

/// Nodes with trouble first, then those at work, then the others in pipeline order.
fn nodes(detail: &RunDetail, now_us: i64) -> Table {
    let mut rows: Vec<&RunNodeRow> = detail.nodes.iter().collect();
    rows.sort_by_key(|node| match node.state {
        NodeState::Failed => 0,
        NodeState::Parked => 1,
        NodeState::Running => 2,
        _ => 3,
    });
    let mut table = Table::new(&["node", "task", "state", ">took", "about"]);
    for node in rows {
        let state = node.state.as_str();
        table.row([
            node.name.clone(),
            node.task.clone(),
            state_style(state).apply_to(state).to_string(),
            node.duration_us.map(took).unwrap_or_default(),
            about(node, now_us),
        ]);
    }
    table
}

fn about(node: &RunNodeRow, now_us: i64) -> String {
    if let Some(failure) = &node.failure {
        return failure.to_string();
    }
    if node.state == NodeState::Running {
        let how_far = [rate(node, now_us), items(node)];
        let text = how_far.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
        if !text.is_empty() {
            return text.join("; ");
        }
    }
    node.reason.as_ref().map(ToString::to_string).unwrap_or_default()
}

/// How far a running node is, how fast, for how long still, and whether it stands still.
pub(super) fn rate(node: &RunNodeRow, now_us: i64) -> String {
    let Some((done, total, unit)) = &node.progress else { return String::new() };
    let mut text = human::count(*done as f64);
    if *total > 0 {
        let _ = write!(text, " of {}", human::count(*total as f64));
    }
    let _ = write!(text, " {unit}");
    let moved_us = node.progress_at_us.unwrap_or(now_us);
    let worked_us = moved_us - node.started_us.unwrap_or(moved_us);
    if worked_us > 0 && *done > 0 {
        let per_second = *done as f64 / (worked_us as f64 / 1e6);
        let _ = write!(text, ", {}/s", human::count(per_second));
        if total > done {
            let left_us = (total - done) as f64 / per_second * 1e6;
            let _ = write!(text, ", {} left", took(left_us as i64));
        }
    }
    let still_us = now_us - moved_us;
    if still_us > STUCK_US {
        let word = state_style("failed").apply_to("stuck");
        let _ = write!(text, "; {word}: no progress for {}", took(still_us));
    }
    text
}

/// How far the stage of items that a node is at is, what failed there, and who works on it.
fn items(node: &RunNodeRow) -> String {
    let Some(stage) = node.stages.iter().find(|stage| stage.done < stage.total) else {
        return String::new();
    };
    let mut text = format!("{}: {} of {} items", stage.stage, stage.done, stage.total);
    if stage.failed > 0 {
        let word = state_style("failed").apply_to("failed");
        let _ = write!(text, ", {} {word}", stage.failed);
    }
    // One process is the run itself.
    if stage.running.len() > 1 {
        let _ = write!(text, ", by {}", processes(stage));
    }
    text
}

/// The processes at work on a stage, and how many items each of them holds.
pub(super) fn processes(stage: &StageRow) -> String {
    let process = |(process, n): (&String, &u64)| format!("{process} ({n})");
    stage.running.iter().map(process).collect::<Vec<_>>().join(", ")
}

/// How long the run will still take: what its unfinished nodes are expected to take, shared among
/// those that run now, but no less than the longest of these; `None` when nothing is known.
pub(super) fn left_us(detail: &RunDetail, now_us: i64) -> Option<i64> {
    let (mut sum_us, mut longest_us, mut n_running, mut is_known) = (0, 0, 0_i64, false);
    for node in &detail.nodes {
        let left_us = match (node.state, node.expected_us) {
            (NodeState::Waiting, Some(expected_us)) => expected_us,
            (NodeState::Running, expected_us) => {
                n_running += 1;
                let ran_us = now_us - node.started_us.unwrap_or(now_us);
                let by_progress = node.progress.as_ref().and_then(|(done, total, _)| {
                    let left = total.checked_sub(*done).filter(|_| *done > 0)?;
                    Some((ran_us as f64 * left as f64 / *done as f64) as i64)
                });
                let Some(left_us) = by_progress.or(expected_us.map(|us| (us - ran_us).max(0)))
                else {
                    continue;
                };
                left_us
            }
            _ => continue,
        };
        is_known = true;
        sum_us += left_us;
        longest_us = longest_us.max(left_us);
    }
    is_known.then(|| longest_us.max(sum_us / n_running.max(1)))
}

/// Nodes by state.
pub(super) fn counts(run: &RunRow) -> String {
    let parts = run.nodes.iter().filter(|(_, n)| **n > 0).map(|(state, n)| format!("{n} {state}"));
    parts.collect::<Vec<_>>().join(", ")
}
