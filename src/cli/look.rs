//! Arguments of the commands that look at pipelines and runs.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::PipelineArgs;

/// `sbp watch`.
#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// The run to follow: its id, or how that begins
    #[arg(default_value = "last")]
    pub(crate) run: String,
}

/// `sbp metrics`.
#[derive(Args, Debug)]
pub(crate) struct MetricsArgs {
    /// The node, or an entry of the pipeline with all of its matrix
    pub(crate) node: String,
    /// The run to look at: its id, or how that begins
    #[arg(long, value_name = "RUN", default_value = "last")]
    pub(crate) run: String,
    /// Only this series
    #[arg(long, value_name = "NAME")]
    pub(crate) series: Option<String>,
    /// Print every point as CSV instead of a summary
    #[arg(long)]
    pub(crate) csv: bool,
}

/// `sbp diff`.
#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// The first run: its id, or how that begins
    #[arg(value_name = "RUN1")]
    pub(crate) from: String,
    /// The second run
    #[arg(value_name = "RUN2", default_value = "last")]
    pub(crate) to: String,
}

/// `sbp graph`.
#[derive(Args, Debug)]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// What to print
    #[arg(long, value_name = "FORMAT", default_value = "dot")]
    pub(crate) format: GraphFormat,
    /// Draw each node of a matrix, instead of one box for all of them
    #[arg(long)]
    pub(crate) all: bool,
}

/// How a graph is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphFormat {
    /// For Graphviz.
    Dot,
    /// For Markdown that knows Mermaid.
    Mermaid,
    /// A picture.
    Svg,
}

/// `sbp verify`.
#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// Set damaged artifacts aside, so that the next run makes them again
    #[arg(long)]
    pub(crate) mend: bool,
    /// Check only N artifacts, other ones each time
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) sample: Option<u32>,
}

/// `sbp ledger`.
#[derive(Args, Debug)]
pub(crate) struct LedgerArgs {
    #[command(subcommand)]
    pub(crate) command: LedgerCommand,
}

/// What to do with the ledger.
#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Write every row to a file, one line of JSON each
    Export {
        /// The file
        file: PathBuf,
    },
    /// Read an export into an empty ledger
    Import {
        /// The file
        file: PathBuf,
    },
    /// Check that the ledger agrees with itself and with the store
    Check,
}
