//! `sbp logs`: what a node logged, and what it goes on to log.

use std::fmt::Write as _;
use std::time::Duration;

use engine::Engine;
use engine::ledger::{Lines, LogRow};
use engine::run::RunState;
use engine::task::LogLevel;

use crate::cli::LogsArgs;
use crate::commands::{expect_node, look};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::Place;

/// How often the ledger is asked for more.
const POLL_EVERY: Duration = Duration::from_millis(500);
const LINES_MAX: usize = 10_000;

pub(crate) async fn run(args: LogsArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = look(place).await?;
    expect_node(&engine, &args.run, &args.node).await?;
    let rows = engine.logs(&args.run, &args.node, Lines::Last(args.lines)).await?;
    if args.follow {
        return follow(&engine, &args, rows, printer).await;
    }
    if printer.is_json() {
        printer.json(&rows)?;
        return Ok(ExitStatus::Done);
    }
    if rows.is_empty() {
        printer.talk(format!("`{}` logged nothing", args.node));
    }
    printer.data(text(&rows))?;
    Ok(ExitStatus::Done)
}

/// Prints what comes until the run is over.
async fn follow(
    engine: &Engine,
    args: &LogsArgs,
    mut rows: Vec<LogRow>,
    printer: Printer,
) -> Result<ExitStatus> {
    // `last` must stay the run that it was.
    let run = engine.find_run(&args.run).await?;
    let mut id = 0;
    loop {
        if let Some(last) = rows.last() {
            id = last.id;
        }
        if printer.is_json() {
            for row in &rows {
                printer.json(row)?;
            }
        } else {
            printer.data(text(&rows))?;
        }
        // Asked first, so that lines written before the end are still read.
        let is_over = engine.run_detail(&run).await?.run.state != RunState::Running;
        rows = engine.logs(&run, &args.node, Lines::After { id, n_max: LINES_MAX }).await?;
        if rows.is_empty() {
            if is_over {
                return Ok(ExitStatus::Done);
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
}

fn text(rows: &[LogRow]) -> String {
    let mut text = String::new();
    for row in rows {
        let level = match row.level {
            LogLevel::Info => "",
            LogLevel::Warn => "warning: ",
        };
        let _ = writeln!(text, "{}  {level}{}", human::timestamp(row.at_us), row.text);
    }
    text
}
