//! `sbp ledger`: the ledger itself: exported, imported, checked.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::Path;

use engine::Engine;
use engine::ledger::TransferError;
use serde_json::json;

use crate::cli::{LedgerArgs, LedgerCommand};
use crate::commands::{look, open};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::printer::{Printer, state_style};
use crate::settings::Place;
use crate::table::Table;

pub(crate) async fn run(args: LedgerArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    match args.command {
        LedgerCommand::Export { file } => export(&file, place, printer).await,
        LedgerCommand::Import { file } => import(&file, place, printer).await,
        LedgerCommand::Check => check(place, printer).await,
    }
}

/// A ledger with runs. One without is probably another folder's.
async fn with_runs(place: Place) -> Result<Engine> {
    let engine = look(place).await?;
    engine.find_run("last").await?;
    Ok(engine)
}

async fn export(file: &Path, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = with_runs(place).await?;
    let cannot =
        |error: io::Error| Error::usage(format!("cannot write `{}`: {error}", file.display()));
    if file.exists() {
        let message = format!("`{}` is there already", file.display());
        return Err(Error::usage(message).help("name another file, or remove it first"));
    }
    // Whole or not at all: a half export looks like a small ledger.
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = file.file_name().ok_or_else(|| Error::usage("the export needs a file name"))?;
    let partial = dir.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let mut out = BufWriter::new(File::create(&partial).map_err(cannot)?);
    let written = engine.export_ledger(&mut out).await.map_err(transfer);
    let kept = written.and_then(|n_rows| {
        out.get_ref().sync_all().and_then(|()| std::fs::rename(&partial, file)).map_err(cannot)?;
        Ok(n_rows)
    });
    if kept.is_err() {
        // The failure itself is what counts.
        let _ = std::fs::remove_file(&partial);
    }
    let n_rows = kept?;
    if printer.is_json() {
        printer.json(&json!({"file": file, "rows": n_rows}))?;
    } else {
        printer.data(format!("{n_rows} rows in {}\n", file.display()))?;
    }
    Ok(ExitStatus::Done)
}

async fn import(file: &Path, place: Place, printer: Printer) -> Result<ExitStatus> {
    let opened = File::open(file);
    let source = opened
        .map_err(|error| Error::usage(format!("cannot read `{}`: {error}", file.display())))?;
    let engine = open(place).await?;
    let n_rows = engine.import_ledger(&mut BufReader::new(source)).await.map_err(transfer)?;
    if printer.is_json() {
        printer.json(&json!({"file": file, "rows": n_rows}))?;
    } else {
        printer.data(format!("{n_rows} rows from {}\n", file.display()))?;
    }
    Ok(ExitStatus::Done)
}

async fn check(place: Place, printer: Printer) -> Result<ExitStatus> {
    let findings = with_runs(place).await?.check_ledger().await?;
    let is_damaged = findings.iter().any(|finding| finding.is_damage);
    if printer.is_json() {
        printer.json(&findings)?;
    } else if findings.is_empty() {
        printer.talk("the ledger agrees with itself and with the store");
    } else {
        let mut table = Table::new(&["state", "problem", ">times", "such as", "what to do"]);
        for finding in &findings {
            let word = if finding.is_damage { "damaged" } else { "harmless" };
            table.row([
                state_style(word).apply_to(word).to_string(),
                finding.problem.to_owned(),
                finding.n.to_string(),
                finding.example.clone(),
                finding.help.to_owned(),
            ]);
        }
        printer.table(&table)?;
    }
    Ok(if is_damaged { ExitStatus::NodeFailed } else { ExitStatus::Done })
}

fn transfer(error: TransferError) -> Error {
    match error {
        TransferError::Engine(error) => error.into(),
        TransferError::NotEmpty { .. } => {
            Error::usage(error).help("name an empty one with `--ledger`")
        }
        TransferError::Cut { .. } => Error::usage(error).help("export it again"),
        TransferError::Io(_) | TransferError::Line { .. } | TransferError::Schema { .. } => {
            Error::usage(error)
        }
    }
}
