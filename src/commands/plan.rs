//! `sbp plan`: which nodes are cached, which would run, and why.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use engine::cost::{self, NodeCost};
use engine::plan::{Plan, PlannedNode, PlannedState, Reason, Targets};

use crate::calibration::Calibration;
use crate::cli::PipelineArgs;
use crate::commands::{load, look, took};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::{Printer, state_style};
use crate::settings::{self, Place};
use crate::table::{Align, Table};

pub(crate) async fn run(args: PipelineArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let pipeline = load(&args, printer)?;
    let engine = look(place).await?;
    let costs = cost::estimate(&pipeline, &Targets::All)?;
    let machine = Calibration::read(printer).machine();
    let plan = engine.plan(&pipeline, &settings::targets(&args), &costs, &machine).await?;
    if printer.is_json() {
        printer.json(&plan)?;
        return Ok(ExitStatus::Done);
    }
    printer.table(&table(&plan, &costs))?;
    for node in &plan.nodes {
        if let Some(reason @ Reason::NoFiles { .. }) = &node.reason {
            printer.warn(format!("a run would not start: node `{}`: {reason}", node.name));
        }
    }
    let [n_cached, n_run, n_blocked] =
        [PlannedState::Cached, PlannedState::Run, PlannedState::Blocked].map(|s| plan.count(s));
    let n_total = plan.nodes.len();
    let mut counts = format!("{n_total} nodes: {n_cached} cached, {n_run} to run");
    if n_blocked > 0 {
        let _ = write!(counts, ", {n_blocked} after them");
        let is_rerun = |node: &PlannedNode| {
            node.reason.as_ref().is_some_and(|reason| matches!(reason, Reason::Changed { .. }))
        };
        if plan.nodes.iter().any(is_rerun) {
            counts.push_str(" unless those give the same bytes as before");
        }
    }
    printer.talk(counts);
    if let Some(forecast) = forecast(&plan) {
        printer.talk(forecast);
    }
    Ok(ExitStatus::Done)
}

/// What the past and the machine's rates say of the run; nothing when they say nothing.
fn forecast(plan: &Plan) -> Option<String> {
    let forecast = &plan.forecast;
    if forecast.n_known + forecast.n_rated == 0 {
        return None;
    }
    let mut text = format!(
        "about {} on this machine, critical path {}, disk {}",
        took(forecast.wall_us(settings::n_threads(None))),
        took(forecast.critical_path_us),
        human::bytes(forecast.disk_bytes)
    );
    if forecast.memory_bytes > 0 {
        let _ = write!(text, ", memory up to {}", human::bytes(forecast.memory_bytes));
    }
    let n_new = forecast.n_nodes - forecast.n_known;
    if n_new > 0 {
        let _ = write!(text, "; {n_new} of {} nodes never ran", forecast.n_nodes);
    }
    if forecast.n_rated > 0 {
        let _ = write!(text, ", {} of these are counted as `sbp bench` measured", forecast.n_rated);
    }
    Some(text)
}

fn table(plan: &Plan, costs: &[NodeCost]) -> Table {
    let takes: BTreeMap<usize, String> =
        costs.iter().map(|node| (node.index, takes(node))).collect();
    let is_known = takes.values().any(|text| !text.is_empty());
    let mut table = Table::new(&["node", "state"]);
    if is_known {
        table.column("takes", Align::Left);
    }
    table.column("why", Align::Left);
    for node in &plan.nodes {
        let state = match node.state {
            PlannedState::Cached => "cached",
            PlannedState::Run => "run",
            PlannedState::Blocked => "blocked",
        };
        let why = node.reason.as_ref().map(ToString::to_string).unwrap_or_default();
        let mut row = vec![node.name.clone(), state_style(state).apply_to(state).to_string()];
        if is_known {
            let takes = takes.get(&node.index).filter(|_| node.state != PlannedState::Cached);
            row.push(takes.cloned().unwrap_or_default());
        }
        row.push(why);
        table.row(row);
    }
    table
}

/// What a node would take, in short; `sbp cost` says more.
fn takes(node: &NodeCost) -> String {
    let figure = |name: &str| node.estimate.figures.get(name);
    let parts = [
        figure("steps").map(|n| format!("{} steps", human::grouped(n))),
        figure("tokens").map(|n| format!("{} tokens", human::count(n))),
        figure("flop").map(|n| format!("{n:.2e} FLOP")),
        node.output_bytes.map(|n| human::bytes(n as u64)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
