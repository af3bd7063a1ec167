//! What a pipeline would take, before anything runs.
//!
//! Estimates flow through the graph as artifacts will: each task says from its params and the facts
//! predicted for its inputs what it would do and what its outputs would hold
//! ([`crate::task::Task::cost`]). What no task can know, such as the size of a corpus that is not
//! here, a pipeline states in a node's `expect:`. Work becomes time by [`Rates`], stated or measured.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::external;
use crate::graph::{Node, Pipeline};
use crate::ledger::Measured;
use crate::open::{Engine, Error};
use crate::plan::Targets;
use crate::task::{Estimate, FILE_BYTES, Facts, Predicted};

/// Seconds of an hour.
const HOUR_S: f64 = 3600.0;

/// What one node would take and make.
#[derive(Clone, Debug, Serialize)]
pub struct NodeCost {
    /// Index into [`Pipeline::nodes`].
    #[serde(skip)]
    pub index: usize,
    /// The node's name.
    pub name: String,
    /// The task's kind.
    pub task: &'static str,
    /// What the task says.
    pub estimate: Estimate,
    /// Size of its outputs in bytes, as far as known.
    pub output_bytes: Option<f64>,
}

/// How fast work is done: units a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// What they are called: `h200`, `measured`.
    pub name: String,
    /// Units a second, by unit.
    pub by_unit: BTreeMap<String, f64>,
    /// Units a second of one kind of task, which come before those of all.
    pub by_task: BTreeMap<(String, String), f64>,
}

impl Rates {
    /// Hours that a node would take; `None` when it has work of a unit without a rate, or none that
    /// is known.
    pub fn hours(&self, node: &NodeCost) -> Option<f64> {
        let mut seconds = None;
        for (unit, amount) in node.estimate.work.iter() {
            let own = self.by_task.get(&(node.task.to_owned(), unit.to_owned()));
            let rate = own.or_else(|| self.by_unit.get(unit)).filter(|rate| **rate > 0.0)?;
            seconds = Some(seconds.unwrap_or(0.0) + amount / rate);
        }
        seconds.map(|seconds| seconds / HOUR_S)
    }
}

/// How fast a machine is, for nodes without a past.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// How fast it works.
    pub rates: Rates,
    /// What the engine itself takes for a node, in microseconds.
    pub node_overhead_us: f64,
}

/// What each covered node would take, in topological order. Reads no artifact and no ledger.
///
/// # Errors
/// When a target is unknown.
pub fn estimate(pipeline: &Pipeline, targets: &Targets) -> Result<Vec<NodeCost>, Error> {
    let covered = targets.closure(pipeline)?;
    let mut made: Vec<BTreeMap<String, Facts>> = vec![BTreeMap::new(); pipeline.nodes.len()];
    let mut costs = Vec::new();
    for (index, node) in pipeline.nodes.iter().enumerate().filter(|(index, _)| covered[*index]) {
        let estimate = one(node, &made);
        made[index].clone_from(&estimate.outputs);
        let sizes = estimate.outputs.values().filter_map(|facts| facts.get(FILE_BYTES));
        let output_bytes =
            sizes.fold(None, |sum: Option<f64>, bytes| Some(sum.unwrap_or(0.0) + bytes));
        let (name, task) = (node.name.clone(), node.task.kind());
        costs.push(NodeCost { index, name, task, estimate, output_bytes });
    }
    Ok(costs)
}

fn one(node: &Node, made: &[BTreeMap<String, Facts>]) -> Estimate {
    let facts = |source: &crate::graph::Source| {
        made[source.node].get(&source.port).cloned().unwrap_or_default()
    };
    let ports = node
        .inputs
        .iter()
        .map(|(port, sources)| (port.clone(), sources.iter().map(facts).collect()));
    let external = external::size_bytes(&node.external).map(|bytes| bytes as f64);
    let predicted = Predicted::new(ports.collect(), external);
    // Params were checked when the pipeline was read.
    let mut estimate = node.task.cost(&node.params, &predicted).unwrap_or_default();
    for (port, stated) in &node.expect {
        let facts = estimate.outputs.remove(port).unwrap_or_default();
        let facts = stated.iter().fold(facts, |facts, (name, value)| facts.with(name, value));
        estimate.outputs.insert(port.clone(), facts);
    }
    estimate
}

impl Engine {
    /// Rates that this ledger has seen: for each kind of task, what finished attempts report of a
    /// unit among their figures, over the time of all attempts at their keys.
    ///
    /// # Errors
    /// When the ledger is in trouble.
    pub async fn measured_rates(&self) -> Result<Rates, Error> {
        let mut sums: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
        for Measured { task, metrics, seconds } in self.ledger.measured().await? {
            for (unit, amount) in metrics.into_iter().filter(|(_, amount)| *amount > 0.0) {
                let sum = sums.entry((task.clone(), unit)).or_default();
                *sum = (sum.0 + amount, sum.1 + seconds);
            }
        }
        let timed = sums.into_iter().filter(|(_, (_, seconds))| *seconds > 0.0);
        let by_task = timed.map(|(at, (amount, seconds))| (at, amount / seconds)).collect();
        Ok(Rates { name: "measured".to_owned(), by_unit: BTreeMap::new(), by_task })
    }
}
