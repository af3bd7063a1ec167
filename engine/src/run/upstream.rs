//! What a node that reports on others is told of them: what they were to take, and what they took.

use crate::cost;
use crate::graph::Pipeline;
use crate::key::NodeKey;
use crate::ledger::{Error, Ledger};
use crate::plan::Targets;
use crate::task::Upstream;

/// The nodes `above` with their keys, in the order of the pipeline.
pub(super) async fn look(
    ledger: &Ledger,
    pipeline: &Pipeline,
    above: &[(usize, NodeKey)],
) -> Result<Vec<Upstream>, Error> {
    let keys: Vec<NodeKey> = above.iter().map(|(_, key)| *key).collect();
    let took = ledger.took(&keys).await?;
    let history = ledger.history(&pipeline.name).await?;
    let costs = cost::estimate(pipeline, &Targets::All).expect("no target is named");
    let told = above.iter().map(|(index, key)| {
        let node = &pipeline.nodes[*index];
        let (name, task) = (node.name.clone(), node.task.kind());
        // Every node is covered, so that its cost stands at its own index.
        let work = costs[*index].estimate.work.iter();
        let mut told = Upstream {
            work: work.map(|(unit, amount)| (unit.to_owned(), amount)).collect(),
            task: task.to_owned(),
            ..Upstream::default()
        };
        if let Some(took) = took.get(key) {
            let expected = history.expected_at(took.started_us, &name, task);
            let seconds = |us: i64| us as f64 / 1e6;
            told.expected_s = expected.map(|past| seconds(past.duration_us));
            told.took_s = Some(seconds(took.duration_us));
            told.n_attempts = took.n_attempts;
            told.peak_memory_bytes = took.memory_bytes;
            told.build.clone_from(&took.build);
            told.machine.clone_from(&took.machine);
        }
        told.node = name;
        told
    });
    Ok(told.collect())
}
