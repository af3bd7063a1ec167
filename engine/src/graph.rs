//! The expanded pipeline: one [`Node`] for each matrix combination, wired by index.
//!
//! [`crate::spec`] makes a [`Pipeline`] from YAML; [`crate::plan`] walks it. Every reference in it is
//! checked: ports exist, kinds agree, there is no cycle, and `nodes` is in topological order (every
//! source index is smaller than its consumer's index).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value;

use crate::executor::Executor;
use crate::task::{AnyTask, Facts};

/// A checked and expanded pipeline.
#[derive(Clone)]
pub struct Pipeline {
    /// `name:` of the file, or the file's stem.
    pub name: String,
    /// The file it was read from.
    pub path: PathBuf,
    /// The file's text, kept in the ledger with each run.
    pub text: Arc<str>,
    /// Pipeline params after `--set`, in file order.
    pub params: IndexMap<String, Value>,
    /// Nodes in topological order.
    pub nodes: Vec<Node>,
}

/// One node of the graph.
#[derive(Clone)]
pub struct Node {
    /// Its unique name, with matrix values: `evaluate[arm=sbp,seed=1]`.
    pub name: String,
    /// The entry of `nodes:` it was expanded from.
    pub entry: String,
    /// Matrix values, in the order of the axes.
    pub matrix: IndexMap<String, Value>,
    /// The code it runs.
    pub task: Arc<dyn AnyTask>,
    /// Canonical params: checked, defaults filled in.
    pub params: Value,
    /// Connected inputs by port. Order within a port is the order written.
    pub inputs: BTreeMap<String, Vec<Source>>,
    /// Patterns of external files, relative to the working directory.
    pub external: Vec<String>,
    /// How its attempts are run, shared among the nodes that say the same.
    pub execution: Arc<Execution>,
    /// Free text that becomes part of the key, to force a rerun.
    pub salt: String,
    /// Facts of its outputs that only its author knows, by port: for [`crate::cost`] alone.
    pub expect: BTreeMap<String, Facts>,
    /// Where the entry stands in the YAML.
    pub place: Place,
    /// Where each explicitly set param stands, by dotted path: a list, since most nodes set few.
    pub param_places: Vec<(String, Place)>,
}

/// How a node's attempts are run: no part of its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Execution {
    /// What it needs to run.
    pub resources: Resources,
    /// How its attempts run; `None` leaves that to the run.
    pub executor: Option<Executor>,
    /// When and how often to try again.
    pub retry: Retry,
    /// Longest time an attempt may take.
    pub timeout: Option<Duration>,
    /// Longest time an attempt may go without reporting progress.
    pub stall_timeout: Option<Duration>,
    /// Higher runs first among ready nodes.
    pub priority: i32,
}

impl Node {
    /// [`Self::execution`], to be changed for this node alone.
    pub fn execution_mut(&mut self) -> &mut Execution {
        Arc::make_mut(&mut self.execution)
    }

    /// Where the param at a dotted path is set, if it is.
    pub fn param_place(&self, path: &str) -> Option<&Place> {
        self.param_places.iter().find(|(known, _)| known == path).map(|(_, place)| place)
    }
}

/// An output of an earlier node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Index into [`Pipeline::nodes`].
    pub node: usize,
    /// The output port.
    pub port: String,
}

/// The device of a node that names none.
pub(crate) const DEVICE_DEFAULT: &str = "cpu";

/// Amounts of what an attempt holds while it runs, and where it computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Threads.
    pub cpu: u32,
    /// Memory in bytes, when stated.
    pub memory_bytes: Option<u64>,
    /// GPUs.
    pub gpu: u32,
    /// What computes: `cpu`, `auto`, or a GPU such as `cuda:0`. The engine only passes it on.
    pub device: String,
    /// Units of named pools.
    pub pools: BTreeMap<String, u32>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: 1,
            memory_bytes: None,
            gpu: 0,
            device: DEVICE_DEFAULT.to_owned(),
            pools: BTreeMap::new(),
        }
    }
}

/// When and how often a transient failure is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// Attempts in all, the first included.
    pub attempts_max: u32,
    /// Pause before the second attempt; doubles each time, with jitter.
    pub backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: 3, backoff: Duration::from_secs(1) }
    }
}

/// A position in a YAML file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// 1-based.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}
