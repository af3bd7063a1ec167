//! `sbp gc`: what nothing refers to any more.

use std::time::{SystemTime, UNIX_EPOCH};

use engine::ledger::{GarbageKind, GarbageList, Keep};
use serde_json::json;

use crate::cli::GcArgs;
use crate::commands::{look, open_existing, took};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::Place;
use crate::table::Table;

/// Rows for people; programs get everything.
const SHOWN_MAX: usize = 40;

pub(crate) async fn run(args: GcArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = if args.delete { open_existing(place).await? } else { look(place).await? };
    let keep = Keep { n_runs: args.keep_runs, since_us: since_us(args.forget_after) };
    let list = if args.delete { engine.collect(keep).await? } else { engine.garbage(keep).await? };
    let removed = args.delete.then_some(list.size_bytes);
    if printer.is_json() {
        printer.json(&json!({"removed_bytes": removed, "list": list}))?;
        return Ok(ExitStatus::Done);
    }
    if list.garbage.is_empty() {
        printer.talk(format!(
            "no garbage; {} artifacts stay, {}",
            list.n_kept,
            human::bytes(list.kept_bytes)
        ));
        return Ok(ExitStatus::Done);
    }
    printer.table(&table(&list))?;
    let (n, size) = (list.garbage.len(), human::bytes(list.size_bytes));
    if list.garbage.len() > SHOWN_MAX {
        printer.talk(format!("… and {} smaller ones", list.garbage.len() - SHOWN_MAX));
    }
    let cost = took(list.cost_us);
    let stay = format!("{} artifacts stay, {}", list.n_kept, human::bytes(list.kept_bytes));
    printer.talk(match removed {
        Some(_) => format!("{n} removed, {size}, which took {cost} to make; {stay}"),
        None => format!(
            "{n} would go, {size}, which took {cost} to make; {stay}\n`sbp gc --delete` removes them"
        ),
    });
    Ok(ExitStatus::Done)
}

fn table(list: &GarbageList) -> Table {
    let mut table = Table::new(&["what", ">size", ">took to make", "node", "name"]);
    for garbage in list.garbage.iter().take(SHOWN_MAX) {
        let short = match garbage.kind {
            GarbageKind::Quarantine => garbage.name.clone(),
            _ => garbage.name.get(..12).unwrap_or(&garbage.name).to_owned(),
        };
        table.row([
            garbage.kind.as_str().to_owned(),
            human::bytes(garbage.size_bytes),
            garbage.cost_us.map(took).unwrap_or_default(),
            garbage.node.clone().unwrap_or_default(),
            short,
        ]);
    }
    table
}

/// The time so many days ago; the beginning of time where there is no limit.
fn since_us(days: Option<u32>) -> i64 {
    let Some(days) = days else { return i64::MIN };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_us = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
    now_us - i64::from(days) * 86_400_000_000
}
