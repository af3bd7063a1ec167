//! `sbp cancel`: stops a run that is under way, or a node of it.

use engine::ledger::{self, RunNodeRow};

use crate::cli::CancelArgs;
use crate::commands::open;
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::printer::Printer;
use crate::settings::{self, Place};

pub(crate) async fn run(args: CancelArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = open(place).await?;
    let by = settings::operator();
    let detail = engine.run_detail(&args.run).await;
    let named = |row: &RunNodeRow| row.name == args.what || row.entry == args.what;
    let is_node = detail.is_ok_and(|detail| detail.nodes.iter().any(named));
    let cancelled = if is_node {
        engine.cancel(&args.run, Some(&args.what), &by).await?
    } else {
        match engine.cancel(&args.what, None, &by).await {
            // Neither: the nodes have the better suggestions.
            Err(engine::Error::Ledger(ledger::Error::NoSuchRun(_))) => {
                engine.cancel(&args.run, Some(&args.what), &by).await?
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
