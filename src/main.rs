//! The `sbp` command line: parses, calls the engine, and renders; no logic of its own.

mod calibration;
mod cli;
mod commands;
mod error;
mod exit;
mod human;
mod printer;
mod progress;
mod results;
mod settings;
mod table;

use clap::Parser as _;

use exit::ExitStatus;

fn main() -> ExitStatus {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return error::report_usage(&error),
    };
    settings::set_colors(cli.global.color);
    error::install_handler();
    let printer = settings::printer(&cli.global);
    commands::run(cli, printer).unwrap_or_else(|error| error.report(printer))
}
