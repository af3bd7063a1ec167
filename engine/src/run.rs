//! Runs a pipeline: the only event loop, which feeds `schedule` and obeys its commands.
//!
//! Tasks run on threads of their own; the loop never blocks. One ledger transaction is in flight
//! at a time, and whatever happens meanwhile goes into the next one, so that a busy run commits in
//! groups without waiting.

mod attempt;
mod driver;
mod flight;
mod heart;
mod report;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::digest::Digest;
use crate::graph::Pipeline;
use crate::ledger::{KeyRow, NewRun};
use crate::open::{Engine, Error};
use crate::plan::{Mode, NodeResult, Reason, Resolver, Verdict, blocking};
use crate::schedule::Amounts;
use driver::Driver;

pub(crate) use driver::peak_memory_bytes;
pub use report::{
    Counts, NodeFailure, NodeState, Observer, Options, RunEvent, RunState, RunSummary, Silent, Stop,
};

impl Engine {
    /// Runs what is missing and gives the results of everything covered.
    ///
    /// What died processes of this host left behind is taken over at once. Several runs on one
    /// ledger share the work. `stop` ends the run early.
    ///
    /// # Errors
    /// When a target is unknown, external files cannot be read, a node can never get its
    /// resources, or store or ledger are in trouble. A failed node is no error: see
    /// [`RunSummary::state`].
    pub async fn run(
        &self,
        pipeline: &Pipeline,
        options: Options,
        stop: &Stop,
    ) -> Result<RunSummary, Error> {
        let covered = options.targets.closure(pipeline)?;
        let total = Amounts {
            cpu: options.n_cpu.max(1),
            memory_bytes: options.memory_bytes.unwrap_or(u64::MAX),
            gpu: options.n_gpu,
            pools: options.pools.clone(),
        };
        check_resources(pipeline, &covered, &total)?;
        self.ledger.register(&self.owner, &self.build).await?;
        self.ledger.recover(&self.owner).await?;
        self.clean().await?;
        let mut resolver = self.resolver(pipeline, Mode::Act, Arc::clone(&options.observer));
        let (results, run) = loop {
            let results = resolver.all(&covered).await?;
            if !resolver.inputs_are_whole(&covered, &results).await? {
                continue;
            }
            let run = self.write_run(&resolver, &covered, &results).await?;
            // Nothing is collected from now on. What was collected since the ledger was asked:
            if blocking(|| self.holds_cached(&results)) {
                break (results, run);
            }
            self.ledger.abandon(&run).await?;
        };
        let weights = self.weights(pipeline, &covered, &results).await?;
        let driver = Driver::new(self, resolver, options, total, &covered, results, run, &weights);
        driver.drive(stop).await
    }

    /// Whether the store still holds what every cached node promises.
    fn holds_cached(&self, results: &[Option<NodeResult>]) -> bool {
        results.iter().flatten().all(|result| match &result.verdict {
            Verdict::Cached(outputs) => {
                outputs.values().all(|digest| self.store.path(digest).is_dir())
            }
            Verdict::Missing { .. } | Verdict::Running { .. } => true,
        })
    }

    /// How long each node will probably take, in milliseconds: what makes the critical path. A node
    /// without a past counts like the average of the others.
    async fn weights(
        &self,
        pipeline: &Pipeline,
        covered: &[bool],
        results: &[Option<NodeResult>],
    ) -> Result<Vec<u64>, Error> {
        let n_nodes = pipeline.nodes.len();
        let is_cached = |index: usize| {
            let result = results[index].as_ref().map(|result| &result.verdict);
            matches!(result, Some(Verdict::Cached(_)))
        };
        if (0..n_nodes).all(|index| !covered[index] || is_cached(index)) {
            return Ok(vec![1; n_nodes]);
        }
        let history = self.ledger.history(&pipeline.name).await?;
        let expect = |node: &crate::graph::Node| {
            let past = history.expect(&node.name, node.task.kind())?;
            Some(past.duration_us.unsigned_abs() / 1000 + 1)
        };
        let known: Vec<Option<u64>> = pipeline.nodes.iter().map(expect).collect();
        let n_known = known.iter().flatten().count() as u64;
        let mean = known.iter().flatten().sum::<u64>().checked_div(n_known).unwrap_or(1);
        Ok(known.into_iter().map(|weight| weight.unwrap_or(mean)).collect())
    }

    /// Removes what dead attempts left.
    async fn clean(&self) -> Result<(), Error> {
        let leftovers = blocking(|| self.store.leftovers())?;
        if leftovers.is_empty() {
            return Ok(());
        }
        // Listed first, asked second: an attempt that starts in between is not in the list.
        let live: BTreeSet<String> = self.ledger.live_attempts().await?;
        let owners = self.ledger.running_owners().await?;
        blocking(|| self.store.clean(&leftovers, &live, &owners));
        Ok(())
    }

    /// Writes the run with what is known of its nodes; gives its id.
    async fn write_run(
        &self,
        resolver: &Resolver<'_>,
        covered: &[bool],
        results: &[Option<NodeResult>],
    ) -> Result<String, Error> {
        let pipeline = resolver.pipeline;
        let run = run_id(&format!("{} {}", self.owner.id, self.clock.now_us()));
        let mut nodes = Vec::new();
        let mut keys = std::collections::BTreeMap::new();
        for (index, node) in pipeline.nodes.iter().enumerate() {
            if !covered[index] {
                continue;
            }
            let result = results[index].as_ref();
            let mut reason = None;
            let mut state = NodeState::Waiting;
            match result.map(|result| &result.verdict) {
                Some(Verdict::Cached(_)) => state = NodeState::Cached,
                Some(Verdict::Missing { reason: because, .. }) => reason = Some(because.clone()),
                Some(Verdict::Running { owner, .. }) => {
                    reason = Some(Reason::Elsewhere { owner: owner.clone() });
                }
                None => {}
            }
            if let Some(result) = result
                && !matches!(result.verdict, Verdict::Cached(_))
            {
                keys.insert(result.key, key_row(result));
            }
            let reason = reason.map(|reason| {
                serde_json::to_string(&reason).expect("a reason holds nothing that JSON does not")
            });
            let key = result.map(|result| result.key);
            let (name, entry) = (node.name.as_str(), node.entry.as_str());
            nodes.push((index, name, entry, node.task.kind(), key, state, reason));
        }
        let params = serde_json::to_string(&pipeline.params)
            .expect("pipeline params hold nothing that JSON does not");
        // It is read again from another folder.
        let path = std::path::absolute(&pipeline.path).unwrap_or_else(|_| pipeline.path.clone());
        let path = path.to_string_lossy();
        let new = NewRun {
            id: &run,
            pipeline: &pipeline.name,
            path: &path,
            text: &pipeline.text,
            params,
            nodes,
        };
        self.ledger.start_run(&self.owner, new, &keys).await?;
        Ok(run)
    }
}

fn key_row(result: &NodeResult) -> KeyRow {
    KeyRow {
        key: result.key,
        components: result.components.as_deref().expect("what is missing was looked up").clone(),
        external: result.external.as_ref().map(|found| found.list()),
    }
}

/// A short id that starts with a letter, so that it is no number anywhere.
fn run_id(text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let digest = Digest::of(text.as_bytes());
    let letters = digest.as_bytes().iter().take(10).enumerate();
    let letter = |(i, byte): (usize, &u8)| {
        let n = if i == 0 { 24 } else { 32 };
        char::from(ALPHABET[usize::from(*byte) % n])
    };
    letters.map(letter).collect()
}

fn check_resources(pipeline: &Pipeline, covered: &[bool], total: &Amounts) -> Result<(), Error> {
    for (node, _) in pipeline.nodes.iter().zip(covered).filter(|(_, covered)| **covered) {
        let lacks = |resource: &str, needs: u64, has: u64| {
            let (name, place) = (node.name.clone(), node.place.clone());
            Err(Error::Resource { node: name, place, resource: resource.to_owned(), needs, has })
        };
        let wanted = &node.execution.resources;
        if wanted.gpu > total.gpu {
            return lacks("gpu", u64::from(wanted.gpu), u64::from(total.gpu));
        }
        if let Some(memory) = wanted.memory_bytes
            && memory > total.memory_bytes
        {
            return lacks("memory (bytes)", memory, total.memory_bytes);
        }
        for (pool, n) in &wanted.pools {
            let has = total.pools.get(pool).copied().unwrap_or(0);
            if *n > has {
                return lacks(pool, u64::from(*n), u64::from(has));
            }
        }
    }
    Ok(())
}
