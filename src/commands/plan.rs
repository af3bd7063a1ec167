//! `sbp plan`: which nodes are cached, which would run, and why.

use std::fmt::Write as _;

use engine::plan::{Plan, PlannedState};

use crate::cli::PipelineArgs;
use crate::commands::{load, open};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::printer::{Printer, state_style};
use crate::settings::{self, Place};
use crate::table::Table;

pub(crate) async fn run(args: PipelineArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let pipeline = load(&args, printer)?;
    let engine = open(place).await?;
    let plan = engine.plan(&pipeline, &settings::targets(&args)).await?;
    if printer.is_json() {
        printer.json(&plan)?;
        return Ok(ExitStatus::Done);
    }
    printer.table(&table(&plan))?;
    let [n_cached, n_run, n_blocked] =
        [PlannedState::Cached, PlannedState::Run, PlannedState::Blocked].map(|s| plan.count(s));
    let n_total = plan.nodes.len();
    let mut counts = format!("{n_total} nodes: {n_cached} cached, {n_run} to run");
    if n_blocked > 0 {
        let _ =
            write!(counts, ", {n_blocked} after them, where what comes out differs from before");
    }
    printer.talk(counts);
    Ok(ExitStatus::Done)
}

fn table(plan: &Plan) -> Table {
    let mut table = Table::new(&["node", "state", "why"]);
    for node in &plan.nodes {
        let state = match node.state {
            PlannedState::Cached => "cached",
            PlannedState::Run => "run",
            PlannedState::Blocked => "blocked",
        };
        let why = node.reason.as_ref().map(ToString::to_string).unwrap_or_default();
        table.row([node.name.clone(), state_style(state).apply_to(state).to_string(), why]);
    }
    table
}
