//! `sbp tag`: names of runs.

use serde_json::json;

use crate::cli::TagArgs;
use crate::commands::{look, open_existing};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::Place;
use crate::table::Table;

pub(crate) async fn run(args: TagArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let Some(name) = args.name else {
        let tags = look(place).await?.tags().await?;
        if printer.is_json() {
            printer.json(&tags)?;
        } else if tags.is_empty() {
            printer.talk("no run has a tag");
        } else {
            let mut table = Table::new(&["tag", "run", "given (UTC)"]);
            for tag in tags {
                table.row([tag.name, tag.run, human::timestamp(tag.at_us)]);
            }
            printer.table(&table)?;
        }
        return Ok(ExitStatus::Done);
    };
    let engine = open_existing(place).await?;
    if args.delete {
        if !engine.untag(&name).await? {
            return Err(Error::usage(format!("no run has the tag `{name}`"))
                .help("`sbp tag` lists the tags"));
        }
        if printer.is_json() {
            printer.json(&json!({"name": name, "run": null}))?;
        } else {
            printer.data(format!("tag `{name}` is gone\n"))?;
        }
        return Ok(ExitStatus::Done);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        return Err(Error::usage(format!("`{name}` is no name for a tag"))
            .help("up to 64 letters, digits, `-`, `_` and `.`"));
    }
    let run = engine.tag(&name, &args.run).await?;
    if printer.is_json() {
        printer.json(&json!({"name": name, "run": run}))?;
    } else {
        printer.data(format!("run {run} is `{name}`\n"))?;
    }
    Ok(ExitStatus::Done)
}
