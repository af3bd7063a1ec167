//! `sbp completions`: a completion script.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::printer::Printer;

pub(crate) fn run(shell: Shell, printer: Printer) -> Result<ExitStatus> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sbp", &mut script);
    let script = String::from_utf8_lossy(&script);
    if printer.is_json() {
        printer.json(&script)?;
    } else {
        printer.data(script)?;
    }
    Ok(ExitStatus::Done)
}
