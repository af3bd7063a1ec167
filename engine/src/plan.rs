//! What a run would do, and why.

mod forecast;
mod reason;
mod resolve;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use indexmap::IndexSet;
use serde::Serialize;

use crate::digest::Digest;
use crate::graph::{Pipeline, Place};
use crate::key::NodeKey;
use crate::store::Store;

pub use forecast::{Expected, Forecast, Ground};
pub use reason::{Change, Reason};
pub(crate) use reason::{Earlier, FileList, changes_between};
pub(crate) use resolve::{Mode, NodeResult, Outputs, Resolver, Verdict, blocking};

/// Which nodes a plan or run covers; whatever they need comes with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// The whole pipeline.
    #[default]
    All,
    /// These nodes. Each name is a node (`evaluate[arm=sbp]`) or an entry (`evaluate`, all of its
    /// matrix).
    Named(Vec<String>),
}

/// A target that the pipeline does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("target `{name}` is no node of pipeline `{pipeline}`")]
pub struct UnknownTarget {
    /// The target as given.
    pub name: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline's entries.
    pub known: Vec<String>,
}

impl Targets {
    /// For each node of the pipeline, whether it is covered.
    ///
    /// # Errors
    /// When a name is neither a node nor an entry.
    pub fn closure(&self, pipeline: &Pipeline) -> Result<Vec<bool>, UnknownTarget> {
        let Self::Named(names) = self else { return Ok(vec![true; pipeline.nodes.len()]) };
        let mut covered = vec![false; pipeline.nodes.len()];
        for name in names {
            let mut found = false;
            for (node, covered) in pipeline.nodes.iter().zip(&mut covered) {
                if node.name == *name || node.entry == *name {
                    (*covered, found) = (true, true);
                }
            }
            if !found {
                let entries = pipeline.nodes.iter().map(|node| node.entry.clone());
                // In a set, since the nodes of one matrix need not stand side by side.
                let known = Vec::from_iter(entries.collect::<IndexSet<_>>());
                let (name, pipeline) = (name.clone(), pipeline.name.clone());
                return Err(UnknownTarget { name, pipeline, known });
            }
        }
        for index in (0..covered.len()).rev().collect::<Vec<_>>() {
            if covered[index] {
                for source in pipeline.nodes[index].inputs.values().flatten() {
                    covered[source.node] = true;
                }
            }
        }
        Ok(covered)
    }
}

/// A published artifact in this store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// Its digest.
    pub digest: Digest,
    /// Its folder.
    pub path: PathBuf,
}

/// Artifacts by output port.
pub type Artifacts = BTreeMap<String, Artifact>;

/// What would happen to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedState {
    /// Its result is there.
    Cached,
    /// It runs.
    Run,
    /// It waits for a node that runs; whether it runs too depends on the bytes that come out.
    Blocked,
}

/// What would happen to one node.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedNode {
    /// Index into [`Pipeline::nodes`].
    pub index: usize,
    /// The node's name.
    pub name: String,
    /// The task's kind.
    pub task: &'static str,
    /// What would happen.
    pub state: PlannedState,
    /// Its key; `None` while inputs are unknown.
    pub key: Option<NodeKey>,
    /// Why it runs or waits; `None` for a cached node.
    pub reason: Option<Reason>,
    /// Its artifacts, when cached.
    pub outputs: Artifacts,
    /// What it will probably take, when it may run and the past or the machine's rates tell.
    pub expected: Option<Expected>,
    /// Where its entry stands in the YAML.
    pub place: Place,
}

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The pipeline's name.
    pub pipeline: String,
    /// The covered nodes, in topological order.
    pub nodes: Vec<PlannedNode>,
    /// What all of it will probably take.
    pub forecast: Forecast,
}

impl Plan {
    /// How many nodes are in `state`.
    pub fn count(&self, state: PlannedState) -> usize {
        self.nodes.iter().filter(|node| node.state == state).count()
    }
}

/// Makes the plan of the covered nodes from what `resolver` found out about them.
pub(crate) fn assemble(
    resolver: &Resolver<'_>,
    store: &Store,
    covered: &[bool],
    results: &[Option<NodeResult>],
) -> Plan {
    let pipeline = resolver.pipeline;
    let mut nodes: Vec<PlannedNode> = Vec::new();
    let mut states: Vec<Option<PlannedState>> = vec![None; pipeline.nodes.len()];
    for (index, node) in pipeline.nodes.iter().enumerate().filter(|(index, _)| covered[*index]) {
        let (state, reason, outputs) = match results[index].as_ref().map(|result| &result.verdict) {
            Some(Verdict::Cached(outputs)) => {
                (PlannedState::Cached, None, artifacts(store, outputs))
            }
            Some(Verdict::Missing { reason, .. }) => {
                (PlannedState::Run, Some(reason.clone()), Artifacts::new())
            }
            Some(Verdict::Running { owner, .. }) => {
                let reason = Reason::Elsewhere { owner: owner.clone() };
                (PlannedState::Run, Some(reason), Artifacts::new())
            }
            None if resolver.without_files.contains_key(&index) => {
                let problem = resolver.without_files[&index].clone();
                (PlannedState::Blocked, Some(Reason::NoFiles { problem }), Artifacts::new())
            }
            None => {
                let waits = |index: &usize| states[*index] != Some(PlannedState::Cached);
                let sources = node.inputs.values().flatten().map(|source| source.node);
                let by: BTreeSet<usize> = sources.filter(waits).collect();
                let by = by.into_iter().map(|index| pipeline.nodes[index].name.clone()).collect();
                (PlannedState::Blocked, Some(Reason::Blocked { by }), Artifacts::new())
            }
        };
        states[index] = Some(state);
        nodes.push(PlannedNode {
            index,
            name: node.name.clone(),
            task: node.task.kind(),
            state,
            key: results[index].as_ref().map(|result| result.key),
            reason,
            outputs,
            expected: None,
            place: node.place.clone(),
        });
    }
    Plan { pipeline: pipeline.name.clone(), nodes, forecast: Forecast::default() }
}

/// Where the artifacts with these digests lie.
pub(crate) fn artifacts(store: &Store, outputs: &Outputs) -> Artifacts {
    let artifact = |digest: &Digest| Artifact { digest: *digest, path: store.path(digest) };
    outputs.iter().map(|(port, digest)| (port.clone(), artifact(digest))).collect()
}
