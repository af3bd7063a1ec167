//! What goes into a run and what comes out of it.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::executor::{Executor, Launcher};
use crate::plan::{Artifacts, Reason, Targets};
use crate::task::{Failure, Report};

/// How to run.
#[derive(Clone)]
pub struct Options {
    /// Which nodes.
    pub targets: Targets,
    /// Whether independent branches go on after a node failed. What is running always finishes.
    pub keep_going: bool,
    /// Threads for all attempts together.
    pub n_cpu: u32,
    /// Memory for all attempts together, in bytes; `None` for no limit.
    pub memory_bytes: Option<u64>,
    /// GPUs for all attempts together.
    pub n_gpu: u32,
    /// Units of named pools.
    pub pools: BTreeMap<String, u32>,
    /// How attempts run at nodes that do not say it.
    pub executor: Executor,
    /// Starts the processes of attempts.
    pub launcher: Launcher,
    /// Sees everything as it happens.
    pub observer: Arc<dyn Observer>,
}

impl Default for Options {
    /// Everything, on every core and in this process, in silence.
    fn default() -> Self {
        let n_cpu = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self {
            targets: Targets::All,
            keep_going: true,
            n_cpu,
            memory_bytes: None,
            n_gpu: 0,
            pools: BTreeMap::new(),
            executor: Executor::Inline,
            launcher: Launcher::new(["fork-server"]),
            observer: Arc::new(Silent),
        }
    }
}

/// Stops a run from outside: once for a resumable stop, twice for an immediate one.
#[derive(Clone, Debug)]
pub struct Stop(watch::Sender<u8>);

impl Default for Stop {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Stop {
    /// The first call asks attempts to save and stop, the second abandons them.
    pub fn request(&self) {
        self.0.send_modify(|count| *count = count.saturating_add(1));
    }

    /// How often [`Self::request`] was called.
    pub fn count(&self) -> u8 {
        *self.0.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u8> {
        self.0.subscribe()
    }
}

macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// The word in the ledger and in JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownState;

            fn from_str(text: &str) -> Result<Self, UnknownState> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(UnknownState(text.to_owned())),
                }
            }
        }
    };
}

/// A word that is no state.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no state")]
pub struct UnknownState(String);

states! {
    /// How far a run is.
    RunState {
        /// It goes on.
        Running = "running",
        /// Every covered node is done.
        Done = "done",
        /// A node failed.
        Failed = "failed",
        /// It was stopped; the same command resumes it.
        Cancelled = "cancelled",
        /// Nothing failed, and a node waits for an operator.
        Parked = "parked",
        /// Its process died; the same command resumes it.
        Abandoned = "abandoned",
    }
}

states! {
    /// How far a node is in a run.
    NodeState {
        /// It waits for other nodes or for resources.
        Waiting = "waiting",
        /// An attempt of this run is under way.
        Running = "running",
        /// Its result was there.
        Cached = "cached",
        /// It ran in this run, or another run made it meanwhile.
        Done = "done",
        /// Its last attempt failed.
        Failed = "failed",
        /// A node it needs failed, was stopped or waits for an operator.
        Skipped = "skipped",
        /// It was stopped.
        Cancelled = "cancelled",
        /// It waits for an operator.
        Parked = "parked",
    }
}

/// How many nodes ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Covered nodes.
    pub total: usize,
    /// Nodes that ran in this run.
    pub ran: usize,
    /// Nodes whose results were there, or were made meanwhile by another run or node.
    pub cached: usize,
    /// Nodes that failed.
    pub failed: usize,
    /// Nodes left out because of others.
    pub skipped: usize,
    /// Nodes that were stopped.
    pub cancelled: usize,
    /// Nodes that wait for an operator.
    pub parked: usize,
}

/// A node that failed or parked.
#[derive(Clone, Debug, Serialize)]
pub struct NodeFailure {
    /// The node.
    pub node: String,
    /// Its last failure.
    pub failure: Failure,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    /// The run's id.
    pub run: String,
    /// Never [`RunState::Running`].
    pub state: RunState,
    /// Nodes by outcome.
    pub nodes: Counts,
    /// Artifacts of every finished node, by node and port.
    pub outputs: BTreeMap<String, Artifacts>,
    /// Nodes that failed or parked, in topological order.
    pub failures: Vec<NodeFailure>,
}

/// Something that happened in a run.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// The run is in the ledger and starts.
    RunStarted {
        /// Its id.
        run: String,
        /// Covered nodes.
        n_total: usize,
        /// Nodes whose results are there; nothing more is told of these.
        n_cached: usize,
    },
    /// Files that a node reads from outside the store, and whose digests are not known, are read:
    /// told at first, every second, and when all are.
    HashesFiles {
        /// The node.
        node: String,
        /// How many files.
        n_files: usize,
        /// Their size in bytes; `None` while a stream has not ended.
        size_bytes: Option<u64>,
        /// So much of it was read.
        read_bytes: u64,
    },
    /// What nodes that may run are given is read in full, before anything runs.
    ReadsInputs {
        /// Artifacts.
        n_artifacts: usize,
        /// Their size in bytes.
        size_bytes: u64,
    },
    /// A node's result was there when its inputs became known.
    Cached {
        /// The node.
        node: String,
        /// Set when nodes before it ran again and gave the same bytes.
        reason: Option<Reason>,
    },
    /// An attempt starts.
    Started {
        /// The node.
        node: String,
        /// 1 for the first attempt of this run.
        attempt: u32,
        /// Why it runs.
        reason: Option<Reason>,
    },
    /// Another process computes the node; this run waits for it.
    Waiting {
        /// The node.
        node: String,
        /// Who: `host:pid`.
        owner: String,
    },
    /// A task reported something.
    Reported {
        /// The node.
        node: String,
        /// What.
        report: Report,
    },
    /// An attempt failed and is tried again.
    Retrying {
        /// The node.
        node: String,
        /// Why it failed.
        failure: Failure,
        /// The pause before the next attempt, in microseconds.
        pause_us: i64,
    },
    /// A node's result is published.
    Finished {
        /// The node.
        node: String,
        /// From the attempt's start, in microseconds.
        duration_us: i64,
        /// Its artifacts.
        outputs: Artifacts,
        /// The task's final figures.
        metrics: BTreeMap<String, f64>,
    },
    /// A node failed for good, was stopped, or parked; the failure's kind says which.
    Failed {
        /// The node.
        node: String,
        /// Why.
        failure: Failure,
    },
    /// A node is left out because of another.
    Skipped {
        /// The node.
        node: String,
        /// The node it needs.
        because: String,
    },
    /// The run was asked to stop and waits for attempts to save.
    Stopping {
        /// Attempts under way.
        n_running: usize,
    },
    /// The ledger cannot be reached; the run goes on trying.
    LedgerTrouble {
        /// What the database says.
        message: String,
    },
}

/// Sees everything that happens in a run, in order, on the event loop: must return at once.
pub trait Observer: Send + Sync {
    /// Takes one event.
    fn observe(&self, event: &RunEvent);
}

/// Ignores everything.
pub struct Silent;

impl Observer for Silent {
    fn observe(&self, _event: &RunEvent) {}
}
