//! `sbp diff`: how two runs differ.

use std::fmt::Write as _;

use engine::ledger::{NodeDiff, Pair, RunDiff};
use serde_json::Value;

use crate::cli::DiffArgs;
use crate::commands::look;
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::Place;

pub(crate) async fn run(args: DiffArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = look(place).await?;
    let diff = engine.diff(&args.from, &args.to).await?;
    if printer.is_json() {
        printer.json(&diff)?;
    } else {
        printer.data(text(&diff))?;
    }
    Ok(ExitStatus::Done)
}

fn text(diff: &RunDiff) -> String {
    let (from, to) = (&diff.from, &diff.to);
    let mut text = format!("run {} ({}) -> run {} ({})\n", from.id, from.state, to.id, to.state);
    if from.pipeline != to.pipeline {
        let _ = writeln!(text, "pipeline `{}` -> `{}`", from.pipeline, to.pipeline);
    }
    for Pair { name, from, to } in &diff.params {
        let shown =
            |value: &Option<Value>| value.as_ref().map_or("none".to_owned(), Value::to_string);
        let _ = writeln!(text, "param `{name}`: {} -> {}", shown(from), shown(to));
    }
    for node in &diff.nodes {
        write_node(&mut text, node);
    }
    let _ = writeln!(text, "{} nodes differ, {} are the same", diff.nodes.len(), diff.n_same);
    text
}

fn write_node(text: &mut String, node: &NodeDiff) {
    let name = &node.node;
    let _ = match (node.from, node.to) {
        (Some(from), None) => writeln!(text, "- {name} ({from})"),
        (None, Some(to)) => writeln!(text, "+ {name} ({to})"),
        (Some(from), Some(to)) if from != to => writeln!(text, "~ {name} ({from} -> {to})"),
        _ => writeln!(text, "~ {name}"),
    };
    for change in &node.changes {
        let _ = writeln!(text, "    {change}");
    }
    for Pair { name, from, to } in &node.outputs {
        let short = |digest: &Option<String>| match digest {
            Some(digest) => digest.get(..12).unwrap_or(digest).to_owned(),
            None => "none".to_owned(),
        };
        let _ = writeln!(text, "    artifact `{name}`: {} -> {}", short(from), short(to));
    }
    for Pair { name, from, to } in &node.metrics {
        let shown = |value: &Option<f64>| value.map_or("none".to_owned(), human::figure);
        let by = match (from, to) {
            (Some(from), Some(to)) => {
                format!(" ({}{})", sign(to - from), human::figure((to - from).abs()))
            }
            _ => String::new(),
        };
        let _ = writeln!(text, "    {name}: {} -> {}{by}", shown(from), shown(to));
    }
}

fn sign(x: f64) -> char {
    if x < 0.0 { '−' } else { '+' }
}
