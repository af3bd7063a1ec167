//! `sbp show`: everything known of a node.

use std::fmt::Write as _;

use console::Style;
use engine::ledger::{AttemptRow, NodeDetail, OutputRow, StageRow};
use serde_json::Value;

use crate::cli::NodeArgs;
use crate::commands::status::processes;
use crate::commands::{look, took};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::{Printer, state_style};
use crate::settings::Place;
use crate::table::Table;

pub(crate) async fn run(args: NodeArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = look(place).await?;
    let detail = engine.node_detail(&args.run, &args.node).await?;
    if printer.is_json() {
        printer.json(&detail)?;
        return Ok(ExitStatus::Done);
    }
    printer.data(head(&detail))?;
    let sections = [
        ("Params", params(&detail.params)),
        ("Outputs", outputs(&detail.node.outputs)),
        ("Items", stages(&detail.node.stages)),
        ("Attempts", attempts(&detail.attempts)),
        ("Figures", figures(&detail.attempts)),
    ];
    for (title, table) in sections {
        if !table.is_empty() {
            printer.data(format!("\n{}\n", Style::new().bold().apply_to(title)))?;
            printer.table(&table)?;
        }
    }
    Ok(ExitStatus::Done)
}

fn head(detail: &NodeDetail) -> String {
    let node = &detail.node;
    let state = state_style(node.state.as_str()).apply_to(node.state);
    let revision = detail.revision.map(|n| format!(" revision {n}")).unwrap_or_default();
    let mut text = format!(
        "{}: {state} in run {}\ntask    {}{revision}\nkey     {}\n",
        node.name,
        detail.run,
        node.task,
        node.key.as_deref().unwrap_or("unknown: its inputs were never there"),
    );
    if let Some(reason) = &node.reason {
        let _ = writeln!(text, "reason  {reason}");
    }
    if let Some(failure) = &node.failure {
        let _ = writeln!(text, "failure {failure}");
        if let Some(help) = &failure.help {
            let _ = writeln!(text, "help    {help}");
        }
    }
    text
}

fn params(params: &Value) -> Table {
    fn collect(prefix: &str, value: &Value, table: &mut Table) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, field) in fields {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    collect(&format!("{prefix}{dot}{name}"), field, table);
                }
            }
            value => table.row([prefix.to_owned(), value.to_string()]),
        }
    }
    let mut table = Table::new(&["param", "value"]);
    if params.as_object().is_some_and(|fields| !fields.is_empty()) {
        collect("", params, &mut table);
    }
    table
}

fn outputs(outputs: &[OutputRow]) -> Table {
    let mut table = Table::new(&["port", "digest", ">files", ">size", "path"]);
    for output in outputs {
        table.row([
            output.port.clone(),
            output.digest.chars().take(12).collect(),
            output.n_files.map(|n| n.to_string()).unwrap_or_default(),
            output.size_bytes.map(human::bytes).unwrap_or_default(),
            output.path.clone().unwrap_or_else(|| "not in this store".to_owned()),
        ]);
    }
    table
}

fn stages(stages: &[StageRow]) -> Table {
    let mut table = Table::new(&["stage", ">done", ">of", ">failed", "at work", "last failure"]);
    for stage in stages {
        table.row([
            stage.stage.clone(),
            stage.done.to_string(),
            stage.total.to_string(),
            stage.failed.to_string(),
            processes(stage),
            stage.failure.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn attempts(attempts: &[AttemptRow]) -> Table {
    let mut table =
        Table::new(&[">#", "run", "state", "started (UTC)", ">took", ">peak memory", "about"]);
    for attempt in attempts {
        let peak = attempt.peak_memory_bytes.and_then(|bytes| u64::try_from(bytes).ok());
        table.row([
            attempt.epoch.to_string(),
            attempt.run.clone(),
            state_style(&attempt.state).apply_to(&attempt.state).to_string(),
            human::timestamp(attempt.started_us),
            attempt.ended_us.map(|ended| took(ended - attempt.started_us)).unwrap_or_default(),
            peak.map(human::bytes).unwrap_or_default(),
            attempt.failure.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    table
}

/// The final figures of the last attempt that has any.
fn figures(attempts: &[AttemptRow]) -> Table {
    let mut table = Table::new(&["figure", ">value"]);
    let last = attempts.iter().rev().find(|attempt| !attempt.metrics.is_empty());
    for (name, value) in last.into_iter().flat_map(|attempt| &attempt.metrics) {
        table.row([name.clone(), human::figure(*value)]);
    }
    table
}
