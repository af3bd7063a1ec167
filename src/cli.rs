//! The command line as types. No logic.

mod bench;
mod lm;
mod look;
mod operate;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use bench::{
    BenchArgs, BenchCommand, BpeArgs, CleanArgs, DedupArgs, GpuArgs, GpuPart, LmBenchArgs,
    OrchArgs, OrchRunArgs, PairArgs,
};
pub(crate) use lm::{
    ConvertArgs, GenerateArgs, InspectArgs, LmArgs, LmCommand, PerplexityArgs, PrecisionChoice,
};
pub(crate) use look::{
    DiffArgs, GraphArgs, GraphFormat, LedgerArgs, LedgerCommand, MetricsArgs, VerifyArgs, WatchArgs,
};
pub(crate) use operate::{CancelArgs, GcArgs, PinArgs, RetryArgs, RuleArgs, TagArgs, UnpinArgs};

use crate::exit;

/// The version, with the commit where the binary was built in a checkout.
pub(crate) const VERSION: &str = env!("SBP_VERSION");

/// Runs pipelines of content-addressed tasks; its tasks are the whole of Synthetic Bootstrapped
/// Pretraining.
#[derive(Debug, Parser)]
#[command(name = "sbp", version = VERSION, max_term_width = 100, after_help = exit::HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print data as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print only data, warnings and errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Folder of the store, the checkpoints and the default ledger
    #[arg(long, global = true, env = "SBP_DIR", default_value = ".sbp", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Ledger to use instead of the SQLite file in the folder
    #[arg(long, global = true, env = "SBP_LEDGER", value_name = "URL", hide_env_values = true)]
    pub(crate) ledger: Option<String>,
    /// When to use colour; `auto` also obeys `NO_COLOR`
    #[arg(long, global = true, default_value = "auto", value_name = "WHEN")]
    pub(crate) color: ColorChoice,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a pipeline: what is cached stays, what is missing runs
    Run(RunArgs),
    /// Show which nodes are cached, which would run, and why
    Plan(PipelineArgs),
    /// Say what a pipeline would take: tokens, steps, operations, bytes, hours
    Cost(PipelineArgs),
    /// List recent runs, or the nodes of one run
    Status(StatusArgs),
    /// Show one node of a run: its key, params, inputs, outputs, attempts and figures
    Show(NodeArgs),
    /// Say why a node ran, or why it did not
    Why(NodeArgs),
    /// Print what a node logged
    Logs(LogsArgs),
    /// Let a parked node go on
    Approve(RuleArgs),
    /// Say that a parked node shall not go on
    Reject(RuleArgs),
    /// Stop a run that is under way, or one node of it; it can be resumed
    Cancel(CancelArgs),
    /// Run an earlier run's pipeline again, with the same params
    Retry(RetryArgs),
    /// Keep an artifact whatever happens, or list what is kept
    Pin(PinArgs),
    /// Take a pin back
    Unpin(UnpinArgs),
    /// Name a run and keep what it refers to, or list the names
    Tag(TagArgs),
    /// Show what nothing refers to any more and what it cost, or remove it
    Gc(GcArgs),
    /// Follow a run as it goes on
    Watch(WatchArgs),
    /// Show the figures that a node reported over time
    Metrics(MetricsArgs),
    /// Compare two runs: params, keys, artifacts and figures
    Diff(DiffArgs),
    /// Draw a pipeline's nodes and what they read from one another
    Graph(GraphArgs),
    /// List the task kinds, or document one of them
    Tasks(TasksArgs),
    /// Print the JSON schema of pipeline files, for editors
    Schema,
    /// Print the reference of pipeline files in Markdown
    Reference,
    /// Check the artifacts in the store against their digests
    Verify(VerifyArgs),
    /// Export, import or check the ledger itself
    Ledger(LedgerArgs),
    /// Check that this machine and folder can run pipelines
    Doctor,
    /// Look into a language model's folder, or run the model
    Lm(LmArgs),
    /// Measure this machine; one line of JSON with `--json`
    Bench(BenchArgs),
    /// Serve a run whose attempts are processes: make each of them
    #[command(hide = true)]
    ForkServer,
    /// Print a completion script
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
}

/// Which pipeline, and what of it.
#[derive(Args, Debug)]
pub(crate) struct PipelineArgs {
    /// The pipeline's YAML file
    pub(crate) pipeline: PathBuf,
    /// Give a pipeline param another value
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub(crate) set: Vec<(String, String)>,
    /// Only this node and what it needs; may be given again
    #[arg(long, value_name = "NODE")]
    pub(crate) to: Vec<String>,
}

/// `sbp run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// After a failure, still run the nodes that do not need the failed one (the default)
    #[arg(long, overrides_with = "fail_fast")]
    pub(crate) keep_going: bool,
    /// After a failure, start nothing more
    #[arg(long, overrides_with = "keep_going")]
    pub(crate) fail_fast: bool,
    #[command(flatten)]
    pub(crate) share: Share,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
}

/// What the running nodes may share; nodes ask for parts of it under `resources`.
#[derive(Args, Debug, Default)]
pub(crate) struct Share {
    /// Threads to share among the running nodes; every one that the machine has when not given
    #[arg(long, visible_alias = "jobs", short = 'j', value_name = "N", env = "SBP_CPU")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpu: Option<u32>,
    /// Memory to share among the running nodes, such as 16GiB; all of the machine's when not given
    #[arg(long, value_name = "SIZE", value_parser = engine::spec::size_bytes)]
    pub(crate) mem: Option<u64>,
    /// GPUs to share among the running nodes; every one that the machine has when not given
    #[arg(long, value_name = "N")]
    pub(crate) gpu: Option<u32>,
    /// Units of a pool of the pipeline's own, such as disk=2; may be given again
    #[arg(long, value_name = "NAME=N", value_parser = pool)]
    pub(crate) pool: Vec<(String, u32)>,
}

/// How attempts run.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct WorkArgs {
    /// How attempts run at nodes that do not say it
    #[arg(long, value_name = "KIND", env = "SBP_EXECUTOR")]
    pub(crate) executor: Option<Executor>,
    /// How long this process may stand still before other runs on the ledger take its nodes over
    #[arg(long, value_name = "SECONDS", env = "SBP_LEASE", default_value = "60")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) lease: u32,
}

/// How attempts run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Executor {
    /// On a thread of the run's process.
    #[default]
    Inline,
    /// In a process of their own, whose crash is not that of the run.
    Process,
}

/// `sbp status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// The run to show in full: its id, how that begins, or `last`
    pub(crate) run: Option<String>,
}

/// A node of a run.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// The node, with its matrix values: `pretrain[arm=sbp]`
    pub(crate) node: String,
    /// The run to look at: its id, or how that begins
    #[arg(long, value_name = "RUN", default_value = "last")]
    pub(crate) run: String,
}

/// `sbp logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// The node, or an entry of the pipeline with all of its matrix
    pub(crate) node: String,
    /// The run to look at: its id, or how that begins
    #[arg(long, value_name = "RUN", default_value = "last")]
    pub(crate) run: String,
    /// How many lines, the last ones
    #[arg(long, short = 'n', value_name = "N", default_value = "1000")]
    pub(crate) lines: usize,
    /// Go on printing what is logged until the run is over; with `--json` one line of JSON for each
    #[arg(long, short)]
    pub(crate) follow: bool,
}

/// `sbp tasks`.
#[derive(Args, Debug)]
pub(crate) struct TasksArgs {
    #[command(subcommand)]
    pub(crate) command: Option<TasksCommand>,
}

/// What to tell of tasks.
#[derive(Debug, Subcommand)]
pub(crate) enum TasksCommand {
    /// Print ports and params of one task kind
    Show {
        /// The kind, as in `task:`
        kind: String,
    },
}

fn pool(text: &str) -> Result<(String, u32), String> {
    let (name, n) = text.split_once('=').ok_or("a pool is given as NAME=N")?;
    let n = n.parse().map_err(|_| format!("`{n}` is not a number of units"))?;
    Ok((name.to_owned(), n))
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_split_at_the_first_equals_sign() {
        assert_eq!(setting("query=a=b"), Ok(("query".to_owned(), "a=b".to_owned())));
        assert!(setting("=b").is_err() && setting("b").is_err());
    }
}
