//! `sbp why`: why a node ran, or why it did not.

use std::fmt::Write as _;

use engine::ledger::NodeDetail;
use engine::plan::Reason;
use engine::run::NodeState;

use crate::cli::NodeArgs;
use crate::commands::look;
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::Place;

pub(crate) async fn run(args: NodeArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = look(place).await?;
    let detail = engine.node_detail(&args.run, &args.node).await?;
    if printer.is_json() {
        printer.json(&serde_json::json!({
            "run": detail.run,
            "node": detail.node.name,
            "state": detail.node.state,
            "key": detail.node.key,
            "reason": detail.node.reason,
        }))?;
    } else {
        printer.data(explain(&detail))?;
    }
    Ok(ExitStatus::Done)
}

fn explain(detail: &NodeDetail) -> String {
    let node = &detail.node;
    let verb = match node.state {
        NodeState::Cached => "was cached",
        NodeState::Done => "ran",
        NodeState::Failed => "ran and failed",
        NodeState::Running => "runs",
        NodeState::Waiting => "waits",
        NodeState::Skipped => "was skipped",
        NodeState::Cancelled => "was stopped",
        NodeState::Parked => "is parked",
    };
    let mut text = format!("`{}` {verb} in run {}", node.name, detail.run);
    match &node.reason {
        Some(Reason::Changed { run, changes, .. }) => {
            let _ = writeln!(text, "; since run {run}:");
            for change in changes {
                let _ = writeln!(text, "  {change}");
            }
        }
        Some(reason) => {
            let _ = writeln!(text, ": {reason}");
        }
        None => {
            text.push_str(": nothing that goes into its key changed\n");
            if let Some(made) = detail.attempts.iter().rev().find(|one| one.state == "done") {
                let when = human::timestamp(made.ended_us.unwrap_or(made.started_us));
                let _ = writeln!(text, "  made by run {} as `{}`, {when} UTC", made.run, made.node);
            }
        }
    }
    text
}
