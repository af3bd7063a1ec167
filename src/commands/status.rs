//! `sbp status`: recent runs, or the nodes of one.

use engine::Engine;
use engine::ledger::{RunDetail, RunNodeRow, RunRow};
use engine::run::NodeState;

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
    printer.table(&nodes(&detail))?;
    Ok(ExitStatus::Done)
}

/// Nodes with trouble first, then those at work, then the others in pipeline order.
fn nodes(detail: &RunDetail) -> Table {
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
            about(node),
        ]);
    }
    table
}

fn about(node: &RunNodeRow) -> String {
    if let Some(failure) = &node.failure {
        return failure.to_string();
    }
    match (&node.progress, &node.reason) {
        (Some((done, total, unit)), _) if node.state == NodeState::Running => {
            let done = human::count(*done as f64);
            match total {
                0 => format!("{done} {unit}"),
                total => format!("{done} of {} {unit}", human::count(*total as f64)),
            }
        }
        (_, Some(reason)) => reason.to_string(),
        _ => String::new(),
    }
}

fn counts(run: &RunRow) -> String {
    let parts = run.nodes.iter().filter(|(_, n)| **n > 0).map(|(state, n)| format!("{n} {state}"));
    parts.collect::<Vec<_>>().join(", ")
}
