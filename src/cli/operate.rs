//! Arguments of the commands that change what runs do or what is kept.

use clap::Args;

use super::{Share, WorkArgs};

/// `sbp approve` and `sbp reject`.
#[derive(Args, Debug)]
pub(crate) struct RuleArgs {
    /// The parked node, with its matrix values
    pub(crate) node: String,
    /// Why; kept in the ledger
    #[arg(long, value_name = "WHY")]
    pub(crate) reason: String,
    /// The run in which it parked: its id, or how that begins
    #[arg(long, value_name = "RUN", default_value = "last")]
    pub(crate) run: String,
}

/// `sbp cancel`.
#[derive(Args, Debug)]
pub(crate) struct CancelArgs {
    /// A run (its id, its first 4 or more characters, or `last`), or a node or entry of a run
    #[arg(value_name = "RUN|NODE")]
    pub(crate) what: String,
    /// The run of the node; the last one when not given
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// The run's process is gone where this machine cannot see it: free what it held
    #[arg(long, conflicts_with = "run")]
    pub(crate) dead: bool,
}

/// `sbp retry`.
#[derive(Args, Debug)]
pub(crate) struct RetryArgs {
    /// Only these nodes and what they need; what that run covered when none is given
    pub(crate) nodes: Vec<String>,
    /// The run to repeat: its id, or how that begins
    #[arg(long, value_name = "RUN", default_value = "last")]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) share: Share,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
}

/// `sbp pin`.
#[derive(Args, Debug)]
pub(crate) struct PinArgs {
    /// An artifact's digest, or a node whose artifacts are meant; lists the pins when left out
    pub(crate) what: Option<String>,
    /// The run of the node
    #[arg(long, value_name = "RUN", default_value = "last")]
    pub(crate) run: String,
    /// Only this output port of the node
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<String>,
}

/// `sbp unpin`.
#[derive(Args, Debug)]
pub(crate) struct UnpinArgs {
    /// The pinned digest, or how it begins
    pub(crate) digest: String,
}

/// `sbp tag`.
#[derive(Args, Debug)]
pub(crate) struct TagArgs {
    /// The name; lists the tags when left out
    pub(crate) name: Option<String>,
    /// The run to name: its id, or how that begins
    #[arg(default_value = "last")]
    pub(crate) run: String,
    /// Take the name back instead
    #[arg(long, requires = "name")]
    pub(crate) delete: bool,
}

/// `sbp gc`.
#[derive(Args, Debug)]
pub(crate) struct GcArgs {
    /// Keep what the newest N runs of each node refer to
    #[arg(long, value_name = "N", default_value = "3")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep_runs: u32,
    /// Nodes that no run has covered for so many days protect nothing
    #[arg(long, value_name = "DAYS")]
    pub(crate) forget_after: Option<u32>,
    /// Remove it, instead of only saying what would go
    #[arg(long)]
    pub(crate) delete: bool,
}
