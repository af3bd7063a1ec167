//! `sbp logs`: what a node logged.

use std::fmt::Write as _;

use engine::ledger::Lines;
use engine::task::LogLevel;

use crate::cli::LogsArgs;
use crate::commands::look;
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::Place;

pub(crate) async fn run(args: LogsArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = look(place).await?;
    let rows = engine.logs(&args.run, &args.node, Lines::Last(args.lines)).await?;
    if printer.is_json() {
        printer.json(&rows)?;
        return Ok(ExitStatus::Done);
    }
    if rows.is_empty() {
        printer.talk(format!("`{}` logged nothing", args.node));
    }
    let mut text = String::new();
    for row in rows {
        let level = match row.level {
            LogLevel::Info => "",
            LogLevel::Warn => "warning: ",
        };
        let _ = writeln!(text, "{}  {level}{}", human::timestamp(row.at_us), row.text);
    }
    printer.data(text)?;
    Ok(ExitStatus::Done)
}
