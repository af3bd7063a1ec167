//! `sbp bench`: one sub-command for each bench.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `sbp bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// The engine: what running, re-running and killing a pipeline of tasks that do nothing costs
    Orch(OrchArgs),
    /// Run a pipeline of bench tasks once; what `orch` measures
    #[command(hide = true)]
    OrchRun(OrchRunArgs),
}

/// `sbp bench orch`.
#[derive(Args, Debug)]
pub(crate) struct OrchArgs {
    /// How many tasks stand side by side
    #[arg(long, value_name = "N", default_value = "1000")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=200_000))]
    pub(crate) n: u32,
    /// How attempts run
    #[arg(long, value_name = "KIND", default_value = "inline")]
    pub(crate) kind: Executor,
    /// Attempts at a time
    #[arg(long, short = 'j', value_name = "N", default_value = "2")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpu: u32,
}

/// How attempts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Executor {
    /// On a thread of this process.
    Inline,
    /// In a process of their own.
    Process,
}

/// `sbp bench orch-run`.
#[derive(Args, Debug)]
pub(crate) struct OrchRunArgs {
    /// The pipeline's YAML file
    pub(crate) pipeline: PathBuf,
    /// Attempts at a time
    #[arg(long, short = 'j', value_name = "N", default_value = "2")]
    pub(crate) cpu: u32,
}
