//! How two runs differ: params, keys, outputs and figures.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::Error;
use super::view::{RunDetail, RunNodeRow, RunRow};
use crate::key::NodeKey;
use crate::open::{self, Engine};
use crate::plan::{Change, changes_between};
use crate::run::NodeState;

/// A value of one run beside that of another; `None` where a run has none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair<T> {
    /// What it belongs to.
    pub name: String,
    /// In the first run.
    pub from: Option<T>,
    /// In the second run.
    pub to: Option<T>,
}

/// A node that is not the same in both runs.
#[derive(Clone, Debug, Serialize)]
pub struct NodeDiff {
    /// The node.
    pub node: String,
    /// Its state in the first run; `None` when that has no such node.
    pub from: Option<NodeState>,
    /// Its state in the second run; `None` when that has no such node.
    pub to: Option<NodeState>,
    /// What its key differs in; empty when both have the same key, or one has none.
    pub changes: Vec<Change>,
    /// Digests of artifacts that differ, by port.
    pub outputs: Vec<Pair<String>>,
    /// Final figures that differ.
    pub metrics: Vec<Pair<f64>>,
}

/// How two runs differ.
#[derive(Clone, Debug, Serialize)]
pub struct RunDiff {
    /// The first run.
    pub from: RunRow,
    /// The second run.
    pub to: RunRow,
    /// Pipeline params that differ.
    pub params: Vec<Pair<Value>>,
    /// Nodes that differ, in the order of the second run, then those that only the first has.
    pub nodes: Vec<NodeDiff>,
    /// Nodes with the same key, artifacts and figures in both.
    pub n_same: usize,
}

/// Pairs up two maps; only names whose values differ.
fn pairs<T: Clone + PartialEq>(
    from: &BTreeMap<String, T>,
    to: &BTreeMap<String, T>,
) -> Vec<Pair<T>> {
    let mut names: Vec<&String> = from.keys().chain(to.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .filter(|name| from.get(*name) != to.get(*name))
        .map(|name| Pair {
            name: name.clone(),
            from: from.get(name).cloned(),
            to: to.get(name).cloned(),
        })
        .collect()
}

fn params(detail: &RunDetail) -> BTreeMap<String, Value> {
    let params = detail.params.as_object().into_iter().flatten();
    params.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn outputs(node: Option<&RunNodeRow>) -> BTreeMap<String, String> {
    let outputs = node.into_iter().flat_map(|node| &node.outputs);
    outputs.map(|output| (output.port.clone(), output.digest.clone())).collect()
}

impl Engine {
    /// Compares two runs; each as for [`Self::find_run`].
    ///
    /// # Errors
    /// As [`Self::find_run`].
    pub async fn diff(&self, from: &str, to: &str) -> Result<RunDiff, open::Error> {
        let (from, to) = (self.run_detail(from).await?, self.run_detail(to).await?);
        let by_name = |detail: &RunDetail| -> BTreeMap<String, RunNodeRow> {
            detail.nodes.iter().map(|node| (node.name.clone(), node.clone())).collect()
        };
        let (was, is) = (by_name(&from), by_name(&to));
        let only_before = from.nodes.iter().filter(|node| !is.contains_key(&node.name));
        let mut keys: Vec<NodeKey> = Vec::new();
        for node in from.nodes.iter().chain(&to.nodes) {
            if let Some(key) = &node.key {
                keys.push(key.parse().map_err(Error::value)?);
            }
        }
        let facts = self.ledger.key_facts(&keys).await?;
        let fact = |node: Option<&RunNodeRow>| facts.get(node?.key.as_ref()?);
        let (mut nodes, mut n_same) = (Vec::new(), 0);
        for name in to.nodes.iter().chain(only_before).map(|node| &node.name) {
            let (before, now) = (was.get(name), is.get(name));
            let (earlier, later) = (fact(before), fact(now));
            let changes = match (earlier, later) {
                (Some(earlier), Some(later)) if earlier.key != later.key => {
                    let before = (&earlier.components, &earlier.external);
                    changes_between(before, (&later.components, &later.external))
                }
                _ => Vec::new(),
            };
            let none = BTreeMap::new();
            let diff = NodeDiff {
                node: name.clone(),
                from: before.map(|node| node.state),
                to: now.map(|node| node.state),
                changes,
                outputs: pairs(&outputs(before), &outputs(now)),
                metrics: pairs(
                    earlier.map_or(&none, |fact| &fact.metrics),
                    later.map_or(&none, |fact| &fact.metrics),
                ),
            };
            let same_key = before.map(|node| &node.key) == now.map(|node| &node.key);
            if same_key && diff.outputs.is_empty() && diff.metrics.is_empty() {
                n_same += 1;
            } else {
                nodes.push(diff);
            }
        }
        let params = pairs(&params(&from), &params(&to));
        Ok(RunDiff { from: from.run, to: to.run, params, nodes, n_same })
    }
}
