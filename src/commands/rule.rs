//! `sbp approve` and `sbp reject`: an operator's decision on a parked node.

use engine::ledger::{Ruling, Verdict};
use serde_json::json;

use crate::cli::RuleArgs;
use crate::commands::open_existing;
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::printer::Printer;
use crate::settings::{self, Place};

pub(crate) async fn run(
    args: RuleArgs,
    verdict: Verdict,
    place: Place,
    printer: Printer,
) -> Result<ExitStatus> {
    let reason = args.reason.trim().to_owned();
    if reason.is_empty() {
        return Err(Error::usage("the reason is empty")
            .help("say why in a few words: whoever asks `sbp why` later will read it"));
    }
    let flags = place.flags();
    let engine = open_existing(place).await?;
    let ruling = Ruling { verdict, reason, by: settings::operator() };
    let key = engine.rule(&args.run, &args.node, &ruling).await?;
    if printer.is_json() {
        printer.json(&json!({"node": args.node, "key": key, "ruling": ruling}))?;
        return Ok(ExitStatus::Done);
    }
    printer.data(format!("`{}` is {ruling}\n", args.node))?;
    printer.talk(match verdict {
        Verdict::Approved => {
            format!("`sbp retry{flags}` goes on from here, as does the run's own command")
        }
        Verdict::Rejected => "the next run counts it as failed".to_owned(),
    });
    Ok(ExitStatus::Done)
}
