//! What operators ask of the ledger.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::plan::Reason;
use crate::run::{NodeState, RunState};
use crate::task::{Failure, LogLevel};

/// A run in a list.
#[derive(Clone, Debug, Serialize)]
pub struct RunRow {
    /// Its id.
    pub id: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline's file.
    pub path: String,
    /// How far it is. A run whose process died counts as abandoned.
    pub state: RunState,
    /// Microseconds since 1970.
    pub started_us: i64,
    /// Microseconds since 1970; `None` while it runs.
    pub ended_us: Option<i64>,
    /// Nodes by state.
    pub nodes: BTreeMap<NodeState, usize>,
    /// `host:pid` of the process that runs it.
    pub owner: String,
}

/// A run with its nodes.
#[derive(Clone, Debug, Serialize)]
pub struct RunDetail {
    /// The run.
    pub run: RunRow,
    /// The pipeline's text as it was.
    pub text: String,
    /// Pipeline params as they were, a JSON object.
    pub params: Value,
    /// Its nodes in topological order.
    pub nodes: Vec<RunNodeRow>,
}

/// A node of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RunNodeRow {
    /// The node's name.
    pub name: String,
    /// Its entry in the YAML.
    pub entry: String,
    /// The task's kind.
    pub task: String,
    /// How far it is.
    pub state: NodeState,
    /// Its key; `None` when it was never known.
    pub key: Option<String>,
    /// Why it ran, waited or was cut off.
    pub reason: Option<Reason>,
    /// Attempts of this run.
    pub n_attempts: u32,
    /// Start of the last attempt of this run, in microseconds since 1970.
    pub started_us: Option<i64>,
    /// Duration of the last attempt of this run, in microseconds.
    pub duration_us: Option<i64>,
    /// Last progress of the last attempt: done, total (0 when unknown), unit.
    pub progress: Option<(u64, u64, String)>,
    /// The last attempt's failure.
    pub failure: Option<Failure>,
    /// Its artifacts.
    pub outputs: Vec<OutputRow>,
}

/// An artifact of a node.
#[derive(Clone, Debug, Serialize)]
pub struct OutputRow {
    /// The output port.
    pub port: String,
    /// The artifact's digest.
    pub digest: String,
    /// Size of its files in bytes; `None` when it is not in this store.
    pub size_bytes: Option<u64>,
    /// How many files; `None` when it is not in this store.
    pub n_files: Option<u64>,
    /// Its folder; `None` when it is not in this store.
    pub path: Option<String>,
}

/// A node with everything known of its key.
#[derive(Clone, Debug, Serialize)]
pub struct NodeDetail {
    /// The run's id.
    pub run: String,
    /// The node in that run.
    pub node: RunNodeRow,
    /// Keyed params.
    pub params: Value,
    /// The task's revision; `None` when the key was never known.
    pub revision: Option<u32>,
    /// Every attempt at the key, of this run and others, oldest first.
    pub attempts: Vec<AttemptRow>,
}

/// An attempt.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptRow {
    /// The key.
    pub key: String,
    /// Grows by one with each attempt at the key.
    pub epoch: i64,
    /// The run.
    pub run: String,
    /// The node's name in that run.
    pub node: String,
    /// `running`, `done`, `failed`, `cancelled`, `parked`, or `lost`.
    pub state: String,
    /// `host:pid` of the process.
    pub owner: String,
    /// Microseconds since 1970.
    pub started_us: i64,
    /// Microseconds since 1970; `None` while it runs.
    pub ended_us: Option<i64>,
    /// Highest resident memory of the process up to the attempt's end, in bytes.
    pub peak_memory_bytes: Option<i64>,
    /// Why it ended without a result.
    pub failure: Option<Failure>,
    /// The task's final figures.
    pub metrics: BTreeMap<String, f64>,
}

/// A line of a node's log.
#[derive(Clone, Debug, Serialize)]
pub struct LogRow {
    /// Position in the ledger: ask for lines after it to follow a log.
    pub id: i64,
    /// The node's name.
    pub node: String,
    /// The attempt.
    pub epoch: i64,
    /// Microseconds since 1970.
    pub at_us: i64,
    /// How much it matters.
    pub level: LogLevel,
    /// The line.
    pub text: String,
}

/// A point of a node's time series.
#[derive(Clone, Debug, Serialize)]
pub struct MetricPoint {
    /// The node's name.
    pub node: String,
    /// The series.
    pub name: String,
    /// The position.
    pub step: i64,
    /// The value; `None` when it was not a number.
    pub value: Option<f64>,
    /// Microseconds since 1970.
    pub at_us: i64,
}
