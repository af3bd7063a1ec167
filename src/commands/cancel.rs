//! `sbp cancel`: stops a run that is under way, or a node of it.

use engine::ledger::{self, RunNodeRow};

use crate::cli::CancelArgs;
use crate::commands::open_existing;
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::printer::Printer;
use crate::settings::{self, Place};

/// Characters of a run's id that name it here; the whole of it has 10.
const RUN_MIN: usize = 4;

pub(crate) async fn run(args: CancelArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = open_existing(place).await?;
    let by = settings::operator();
    if args.dead {
        let buried = engine.bury(&args.what, &by).await?;
        if printer.is_json() {
            printer.json(&buried)?;
        } else {
            printer
                .data(format!("run {} is written off; {} held it\n", buried.run, buried.owner))?;
        }
        return Ok(ExitStatus::Done);
    }
    let run = args.run.as_deref().unwrap_or("last");
    let detail = engine.run_detail(run).await?;
    let named = |row: &RunNodeRow| row.name == args.what || row.entry == args.what;
    let is_node = detail.nodes.iter().any(named);
    // A stray letter must not stop the one run whose id begins with it.
    let may_be_run = args.run.is_none() && (args.what == "last" || args.what.len() >= RUN_MIN);
    let cancelled = if is_node || !may_be_run {
        engine.cancel(run, Some(&args.what), &by).await?
    } else {
        match engine.cancel(&args.what, None, &by).await {
            // Neither: the nodes have the better suggestions.
            Err(engine::Error::Ledger(ledger::Error::NoSuchRun(_))) => {
                engine.cancel(run, Some(&args.what), &by).await?
            }
            done => done?,
        }
    };
    if printer.is_json() {
        printer.json(&cancelled)?;
        return Ok(ExitStatus::Done);
    }
    let what = match cancelled.nodes.as_slice() {
        [] => format!("run {}", cancelled.run),
        nodes => format!("{} of run {}", nodes.join(", "), cancelled.run),
    };
    printer.data(format!("{} was asked to stop {what}\n", cancelled.owner))?;
    printer.talk("attempts save what they have first; `sbp status` shows when it is done");
    Ok(ExitStatus::Done)
}
