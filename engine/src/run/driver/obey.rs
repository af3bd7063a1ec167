//! What the scheduler's commands do.

use std::sync::Arc;
use std::time::Instant;

use super::super::attempt::{Buffer, Desk, Done, Given, Job, failure};
use super::super::heart::Heart;
use super::super::key_row;
use super::super::report::{NodeState, RunEvent};
use super::{Attempt, Driver};
use crate::exec::Exec;
use crate::executor::{Executor, ForkServer};
use crate::graph::Node;
use crate::item::{self, ItemParts};
use crate::key::NodeKey;
use crate::ledger::{AttemptEnd, Claim, EventRow, NodeChange, Publish, Verdict as Ruled};
use crate::plan::{Outputs, Reason, Verdict, artifacts};
use crate::schedule::{Command, Event, Why};
use crate::task::{CancelToken, ContextParts, Failure, FailureKind, Input, Inputs, Sink, Task};

impl Driver<'_> {
    pub(super) fn published(&mut self, node: usize) {
        let Some(made) = self.made.remove(&node) else { return };
        let attempt = self.attempts.remove(&node);
        for made in made.outputs.values() {
            self.manifests.entry(made.digest).or_insert_with(|| Arc::new(made.manifest.clone()));
        }
        let outputs: Outputs =
            made.outputs.into_iter().map(|(port, made)| (port, made.digest)).collect();
        let duration_us =
            attempt.as_ref().map_or(0, |attempt| attempt.started.elapsed().as_micros() as i64);
        let places = artifacts(&self.engine.store, &outputs);
        self.outputs[node] = Some(outputs);
        self.ran.insert(node);
        if let Some(attempt) = attempt.filter(|_| made.has_checkpoints) {
            // Only now is the work of the checkpoints safe elsewhere.
            let checkpoints = self.engine.store.checkpoints(attempt.key);
            self.tidy(move || {
                // What stays only takes space until the garbage is collected.
                let _ = checkpoints.clear();
            });
        }
        let name = self.name(node);
        let metrics = made.metrics;
        self.observe(&RunEvent::Finished { node: name, duration_us, outputs: places, metrics });
        self.step(Event::Published { node });
    }

    /// Feeds an event and obeys, until nothing more follows from it.
    pub(super) fn step(&mut self, event: Event) {
        self.events.push_back(event);
        if self.is_pumping {
            return;
        }
        self.pump();
    }

    /// Feeds the events that wait, and those that their commands cause.
    pub(super) fn pump(&mut self) {
        self.is_pumping = true;
        while !self.events.is_empty() {
            let events = std::mem::take(&mut self.events);
            for command in self.state.step(events, self.steady_us()) {
                self.obey(command);
            }
        }
        self.is_pumping = false;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Resolve { node } => self.resolve(node),
            Command::Claim { node } => self.claim(node),
            Command::Release { node } => {
                if let Some(epoch) = self.claimed.remove(&node) {
                    self.end(node, epoch, Failure::cancelled(), None);
                }
            }
            Command::Start { node, cpu } => {
                let epoch = self.claimed.remove(&node);
                self.start(node, cpu, epoch.expect("a node starts after its claim is granted"));
            }
            Command::Help { node, cpu } => self.help(node, cpu),
            Command::Cancel { node, why } => {
                if let Some(attempt) = self.attempts.get(&node) {
                    attempt.cancel.cancel();
                }
                if let Why::Timeout(_) | Why::Stall(_) = why {
                    self.event(node, None, "attempt_stopping", Some(why_text(why)));
                }
            }
            Command::Abandon { node } => self.abandon(node),
            Command::Retry { node, pause_us } => {
                let failure = self.failures.get(&node).cloned();
                let failure = failure.unwrap_or_else(Failure::cancelled);
                let detail = format!("{} ms pause", pause_us / 1000);
                self.event(node, None, "retry_scheduled", Some(detail));
                let name = self.name(node);
                self.observe(&RunEvent::Retrying { node: name, failure, pause_us });
                self.change(node, NodeState::Waiting);
            }
            Command::Finish { node, state, because } => self.finish_node(node, state, because),
        }
    }

    /// Uses what the plan found out, once; asks the ledger after that.
    fn resolve(&mut self, node: usize) {
        if self.sequence == 0
            && let Some(result) = self.results[node].take()
        {
            self.take_result(node, result);
            return;
        }
        self.release_key(node);
        let external = self.moved.remove(&node);
        self.asks.push((node, external));
    }

    fn claim(&mut self, node: usize) {
        let result = self.results[node].as_ref().expect("a claimed node was resolved");
        let epoch = match result.verdict {
            Verdict::Missing { epoch, .. } | Verdict::Running { epoch, .. } => epoch,
            Verdict::Cached(_) => unreachable!("a cached node is never claimed"),
        };
        let stale_lease_us = match result.verdict {
            Verdict::Running { lease_until_us, .. } => Some(lease_until_us),
            _ => None,
        };
        let key = result.key;
        if self.written.insert(key) {
            self.batch.keys.insert(key, key_row(result));
        }
        let reason = match &result.verdict {
            Verdict::Missing { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        let claim = Claim { key, epoch, stale_lease_us, node: self.name(node) };
        self.batch.claims.insert(key, claim);
        if self.node(node).task.reads_upstream() {
            self.curious.push(node);
        }
        let change = NodeChange { state: NodeState::Running, key: Some(key), reason };
        self.batch.nodes.insert(node, change);
    }

    /// Starts an attempt that works on items until there are none left, and makes no outputs.
    fn help(&mut self, node: usize, cpu: u32) {
        let Some(epoch) = self.watched.get(&node).map(|watched| watched.epoch) else {
            self.step(Event::Helped { node });
            return;
        };
        self.helped.insert((node, epoch));
        self.start(node, cpu, -epoch);
    }

    /// Starts an attempt with the epoch of its claim, or with a negative one when it only helps.
    fn start(&mut self, node: usize, cpu: u32, epoch: i64) {
        let helps = epoch < 0;
        let (engine, spec) = (self.engine, self.node(node));
        let result = self.results[node].as_ref().expect("a claimed node was resolved");
        let key = result.key;
        let reason = match &result.verdict {
            Verdict::Missing { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        let external = result.external.clone();
        let work_dir = if helps {
            engine.store.help_dir(key, &engine.owner.id)
        } else {
            engine.store.work_dir(key, epoch)
        };
        let cancel = CancelToken::default();
        let buffer = Arc::new(Buffer::new(engine.clock.clone()));
        let sink: Arc<dyn Sink> = Arc::<Buffer>::clone(&buffer);
        let job = Job {
            node,
            name: spec.name.clone(),
            epoch,
            task: Arc::clone(&spec.task),
            forks: self.forks(spec),
            params: spec.params.clone(),
            context: ContextParts {
                out_dir: work_dir.join("out"),
                scratch_dir: work_dir.join("scratch"),
                checkpoints: engine.store.checkpoints(key).for_attempt(epoch),
                external: external.as_ref().map_or_else(Vec::new, |found| found.files.clone()),
                n_threads: cpu as usize,
                memory_bytes: spec.execution.resources.memory_bytes,
                is_approved: result
                    .ruling
                    .as_ref()
                    .is_some_and(|ruling| ruling.verdict == Ruled::Approved),
                device: spec.execution.resources.device.clone(),
                upstream: self.upstream.remove(&node).unwrap_or_default(),
                cancel: cancel.clone(),
                sink,
            },
            inputs: self.inputs(node),
            given: self.given(node),
            external,
            work_dir,
            store: engine.store.clone(),
            clock: engine.clock.clone(),
            done: self.done.0.clone(),
            items: self.item_parts(node, key, epoch),
        };
        if self.heart.is_none() {
            self.heart = Some(Heart::start(engine, self.heartbeat_every()));
        }
        let started = Instant::now();
        self.attempts.insert(node, Attempt { key, epoch, started, cancel, buffer, helps });
        let attempt = self.state.n_failed(node) + 1;
        if !helps {
            self.observe(&RunEvent::Started { node: spec.name.clone(), attempt, reason });
        }
        if let Err(error) = self.crew.run(Box::new(move || job.run())) {
            let failure = Failure::transient(format!("cannot start a thread: {error}"));
            self.ended(Done::failed(node, epoch, failure));
        }
    }

    /// What makes a process for an attempt at the node; `None` when it runs in this one. A node
    /// that runs a program has a process as it is.
    fn forks(&self, node: &Node) -> Option<Arc<ForkServer>> {
        let executor = node.execution.executor.unwrap_or(self.options.executor);
        let wanted = executor == Executor::Process && node.task.kind() != Exec::KIND;
        wanted.then(|| Arc::clone(&self.forks))
    }

    fn item_parts(&self, node: usize, key: NodeKey, epoch: i64) -> ItemParts {
        let (engine, spec) = (self.engine, self.node(node));
        let desk = Desk {
            node: spec.name.clone(),
            node_key: key,
            holder: self.holder(node, epoch),
            posts: self.posts.0.clone(),
        };
        ItemParts {
            board: Arc::new(desk),
            store: engine.store.items(),
            scope: item::scope(spec.task.kind(), spec.task.revision(), &spec.salt),
            lease: engine.lease,
            tries_max: spec.execution.retry.attempts_max,
            backoff: spec.execution.retry.backoff,
            helps: (epoch < 0).then(|| spec.task.item_stages()),
        }
    }

    /// The artifacts on a node's input ports. Producers are named only where the key has their
    /// names too.
    fn inputs(&self, node: usize) -> Inputs {
        let spec = self.node(node);
        let input = |port: &str, source: &crate::graph::Source| {
            let outputs = self.outputs[source.node].as_ref().expect("inputs are finished");
            let digest = outputs[&source.port];
            let labelled = crate::key::is_labelled(spec, port);
            Input {
                node: if labelled { self.name(source.node) } else { String::new() },
                port: source.port.clone(),
                dir: self.engine.store.path(&digest),
                digest,
            }
        };
        let ports = spec.inputs.iter().map(|(port, sources)| {
            (port.clone(), sources.iter().map(|source| input(port, source)).collect())
        });
        Inputs::new(ports.collect())
    }

    /// The files that a node is given.
    fn given(&self, node: usize) -> Vec<Given> {
        let given = |source: &crate::graph::Source| {
            let digest = self.outputs[source.node].as_ref()?.get(&source.port)?;
            let manifest = Arc::clone(self.manifests.get(digest)?);
            Some(Given {
                node: self.name(source.node),
                dir: self.engine.store.path(digest),
                manifest,
            })
        };
        self.node(node).inputs.values().flatten().filter_map(given).collect()
    }

    /// Takes in how an attempt ended.
    pub(super) fn ended(&mut self, done: Done) {
        let Done { node, epoch, result, external_changed, peak_memory_bytes } = done;
        self.drain(node);
        // An attempt that lost its lease or was given up may still come back.
        let Some(attempt) = self.attempts.get(&node).filter(|attempt| attempt.epoch == epoch)
        else {
            return;
        };
        let key = attempt.key;
        if attempt.helps {
            self.attempts.remove(&node);
            self.free_items(node, epoch);
            self.step(Event::Helped { node });
            return;
        }
        match result {
            Ok(made) => {
                let task = &self.node(node).task;
                let drops_items = task.item_stages() > 0 && !task.keeps_items();
                let (outputs, metrics) = (made.outputs.clone(), made.metrics.clone());
                let publish =
                    Publish { key, epoch, outputs, metrics, peak_memory_bytes, drops_items };
                self.batch.publishes.insert(key, publish);
                self.made.insert(node, made);
                self.step(Event::Made { node });
            }
            Err(failure) => {
                if external_changed {
                    self.moved.insert(node);
                }
                self.attempts.remove(&node);
                let failure = match (failure.kind, self.state.why(node)) {
                    (FailureKind::Cancelled, Some(why @ (Why::Timeout(_) | Why::Stall(_)))) => {
                        Failure::transient(why_text(why))
                    }
                    _ => failure,
                };
                self.end(node, epoch, failure.clone(), peak_memory_bytes);
                self.ending.insert(node, failure);
                self.step(Event::Ended { node });
            }
        }
    }

    /// Gives up an attempt that does not stop: its process is killed, its thread left to itself.
    fn abandon(&mut self, node: usize) {
        let Some(attempt) = self.attempts.remove(&node) else { return };
        attempt.cancel.abandon();
        let deaf = "it did not stop when told to";
        let failure = match self.state.why(node) {
            Some(why @ (Why::Timeout(_) | Why::Stall(_))) => {
                Failure::transient(format!("{}, and {deaf}", why_text(why)))
            }
            _ => failure(FailureKind::Cancelled, deaf.to_owned()),
        };
        if attempt.helps {
            // It held nothing that the ledger would have to be asked about.
            self.free_items(node, attempt.epoch);
            self.step(Event::Failed { node, kind: failure.kind });
            return;
        }
        self.end(node, attempt.epoch, failure.clone(), None);
        self.ending.insert(node, failure);
    }

    /// The operator does not want to wait.
    pub(super) fn abandon_all(&mut self) {
        let running: Vec<(usize, i64)> = self
            .attempts
            .iter()
            .filter(|(node, _)| !self.made.contains_key(node))
            .map(|(node, attempt)| (*node, attempt.epoch))
            .collect();
        for (node, epoch) in running {
            self.attempts[&node].cancel.abandon();
            self.ended(Done::failed(node, epoch, Failure::cancelled()));
        }
    }

    pub(super) fn stop(&mut self) {
        self.step(Event::Stop);
        self.observe(&RunEvent::Stopping { n_running: self.state.n_running() });
    }

    /// Stops what an operator wants stopped: the run, or a node and what needs it.
    pub(super) fn obey_operator(&mut self, wanted: Option<String>) {
        let Some(name) = wanted else {
            self.stop();
            return;
        };
        let node = self.nodes.iter().position(|node| node.name == name);
        if let Some(node) = node.filter(|node| self.covered[*node]) {
            self.event(node, None, "cancel_obeyed", None);
            self.step(Event::Cancel { node });
        }
    }

    /// Tells the ledger that an attempt, or a claim that came to none, is over without a result.
    fn end(&mut self, node: usize, epoch: i64, failure: Failure, peak_memory_bytes: Option<i64>) {
        self.free_items(node, epoch);
        let key = self.results[node].as_ref().expect("a claimed node was resolved").key;
        let name = self.name(node);
        let end = AttemptEnd { key, epoch, node: name, failure, peak_memory_bytes };
        self.batch.ends.insert(key, end);
    }

    fn finish_node(&mut self, node: usize, state: NodeState, because: Option<usize>) {
        self.finished[node] = Some(state);
        let name = self.name(node);
        match state {
            NodeState::Cached => {
                let reason = self.cut_off(node);
                let key = self.results[node].as_ref().map(|result| result.key);
                let change = NodeChange { state, key, reason: reason.clone() };
                self.batch.nodes.insert(node, change);
                self.event(node, key.map(|key| (key, 0)), "node_cached", None);
                self.observe(&RunEvent::Cached { node: name, reason });
                return;
            }
            NodeState::Done => {
                let key = self.results[node].as_ref().map(|result| result.key);
                self.event(node, key.map(|key| (key, 0)), "node_done", None);
            }
            NodeState::Failed | NodeState::Parked | NodeState::Cancelled => {
                let failure = match (self.failures.get(&node), because) {
                    (Some(failure), _) => failure.clone(),
                    (None, Some(other)) => match self.failures.get(&other) {
                        Some(failure) => failure.clone(),
                        None => Failure::cancelled(),
                    },
                    (None, None) => Failure::cancelled(),
                };
                let failure = match state {
                    // A transient failure of earlier is not why it was stopped now.
                    NodeState::Cancelled => Failure::cancelled(),
                    _ => failure,
                };
                self.failures.insert(node, failure.clone());
                let detail = Some(failure.message.clone());
                self.event(node, None, event_of(state), detail);
                self.observe(&RunEvent::Failed { node: name, failure });
            }
            NodeState::Skipped => {
                let because = because.map_or_else(String::new, |other| self.name(other));
                self.event(node, None, "node_skipped", Some(because.clone()));
                self.observe(&RunEvent::Skipped { node: name, because });
            }
            NodeState::Waiting | NodeState::Running => {}
        }
        self.change(node, state);
    }

    /// The nodes before a cached one that ran again in this run, as the reason why it did not.
    fn cut_off(&self, node: usize) -> Option<Reason> {
        let sources = self.node(node).inputs.values().flatten();
        let mut reran: Vec<String> = sources
            .filter(|source| self.ran.contains(&source.node))
            .map(|source| self.name(source.node))
            .collect();
        reran.dedup();
        (!reran.is_empty()).then_some(Reason::CutOff { reran })
    }

    pub(super) fn change(&mut self, node: usize, state: NodeState) {
        let key = self.results[node].as_ref().map(|result| result.key);
        let earlier = self.batch.nodes.remove(&node).and_then(|change| change.reason);
        self.batch.nodes.insert(node, NodeChange { state, key, reason: earlier });
    }

    pub(super) fn event(
        &mut self,
        node: usize,
        attempt: Option<(NodeKey, i64)>,
        kind: &'static str,
        detail: Option<String>,
    ) {
        self.batch.events.push(EventRow {
            at_us: self.now_us(),
            node: Some(self.name(node)),
            key: attempt.map(|(key, _)| key),
            epoch: attempt.map(|(_, epoch)| epoch).filter(|epoch| *epoch > 0),
            kind,
            detail,
        });
    }
}

fn event_of(state: NodeState) -> &'static str {
    match state {
        NodeState::Failed => "node_failed",
        NodeState::Parked => "node_parked",
        _ => "node_cancelled",
    }
}

fn why_text(why: Why) -> String {
    match why {
        Why::Stop => "the run was stopped".to_owned(),
        Why::Operator => "an operator stopped it".to_owned(),
        Why::Timeout(limit) => format!("took longer than its timeout of {limit:?}"),
        Why::Stall(limit) => format!("made no progress for {limit:?}"),
    }
}
