//! The event loop of one run.

mod obey;
mod reports;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::future;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub(crate) use reports::peak_memory_bytes;

use super::attempt::{Buffer, Crew, Done, Made, Post};
use super::flight::{Ask, Cargo, Flight, Landing, fly};
use super::heart::Heart;
use super::report::{NodeState, Options, RunEvent, RunSummary, Stop};
use crate::digest::Digest;
use crate::executor::ForkServer;
use crate::graph::Node;
use crate::item::{self, ItemKey};
use crate::key::NodeKey;
use crate::ledger::{Batch, Verdict as Ruled};
use crate::open::{Engine, Error};
use crate::plan::{NodeResult, Outputs, Resolver, Verdict};
use crate::schedule::{Amounts, Event, Policy, State};
use crate::store::Manifest;
use crate::task::{CancelToken, Failure, FailureKind, Upstream};

/// How often reports reach the observer.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// How often the ledger is asked whether an operator wants something stopped.
const LISTEN_EVERY: Duration = Duration::from_secs(1);
/// How often reports alone cause a transaction.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// How long results of short attempts wait for others to share their transaction with.
const GATHER: Duration = Duration::from_millis(2);

/// An attempt under way.
struct Attempt {
    key: NodeKey,
    epoch: i64,
    started: Instant,
    cancel: CancelToken,
    buffer: Arc<Buffer>,
    /// Whether it only helps another process with the node's items; its epoch is then negative.
    helps: bool,
}

/// A lease of another process, and since when it has stood still.
struct Watched {
    epoch: i64,
    lease_until_us: i64,
    since: Instant,
}

/// Everything about a run under way.
pub(super) struct Driver<'a> {
    engine: &'a Engine,
    options: Options,
    nodes: &'a [Node],
    run: String,
    state: State,
    /// Events that were caused by commands, still to be fed.
    events: VecDeque<Event>,
    is_pumping: bool,
    covered: Vec<bool>,
    /// `None` while it flies.
    resolver: Option<Resolver<'a>>,
    results: Vec<Option<NodeResult>>,
    outputs: Vec<Option<Outputs>>,
    /// The files of artifacts that nodes of this run may be given.
    manifests: BTreeMap<Digest, Arc<Manifest>>,
    finished: Vec<Option<NodeState>>,
    failures: BTreeMap<usize, Failure>,
    /// The node of this run that stands for a key.
    by_key: BTreeMap<NodeKey, usize>,
    /// Granted claims that have not started.
    claimed: BTreeMap<usize, i64>,
    attempts: BTreeMap<usize, Attempt>,
    made: BTreeMap<usize, Made>,
    /// How attempts failed that the ledger was told of: it counts when they still held the lease.
    ending: BTreeMap<usize, Failure>,
    watched: BTreeMap<usize, Watched>,
    /// Nodes and epochs of other processes that were helped.
    helped: BTreeSet<(usize, i64)>,
    ran: BTreeSet<usize>,
    /// Keys without a result whose components are in the ledger.
    written: BTreeSet<NodeKey>,
    /// Nodes whose external files changed under a task.
    moved: BTreeSet<usize>,
    batch: Batch,
    /// Metrics, logs and progress that can wait a little.
    reports: Batch,
    asks: Vec<(usize, bool)>,
    /// Nodes being claimed that are to be told of those upstream.
    curious: Vec<usize>,
    /// What they are told when they start.
    upstream: BTreeMap<usize, Vec<Upstream>>,
    /// Who waits for an answer about items, in the order of the batch.
    desks: Vec<Sender<Vec<item::State>>>,
    crew: Crew,
    forks: Arc<ForkServer>,
    posts: (UnboundedSender<Post>, UnboundedReceiver<Post>),
    done: (UnboundedSender<Done>, UnboundedReceiver<Done>),
    trouble: (UnboundedSender<String>, UnboundedReceiver<String>),
    /// The receiver sees the end when nothing is tidied up any more.
    tidying: (UnboundedSender<Infallible>, UnboundedReceiver<Infallible>),
    sequence: i64,
    began: Instant,
    /// Beats once something is claimed.
    heart: Option<Heart>,
    last_report: Instant,
    last_flush: Instant,
    /// Since when what is to be written waits for more.
    gathers_since: Option<Instant>,
    last_heartbeat: Instant,
    last_listen: Instant,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        resolver: Resolver<'a>,
        options: Options,
        total: Amounts,
        covered: &[bool],
        results: Vec<Option<NodeResult>>,
        run: String,
        weights: &[u64],
    ) -> Self {
        let pipeline = resolver.pipeline;
        let seed = u64::from_le_bytes(
            *blake3::hash(run.as_bytes()).as_bytes().first_chunk().expect("a hash has 32 bytes"),
        );
        // What is there is over before anything is scheduled.
        let there = |result: &Option<NodeResult>| match result.as_ref().map(|it| &it.verdict) {
            Some(Verdict::Cached(outputs)) => Some(outputs.clone()),
            _ => None,
        };
        let outputs: Vec<Option<Outputs>> = results.iter().map(there).collect();
        let open: Vec<bool> =
            (0..results.len()).map(|node| covered[node] && outputs[node].is_none()).collect();
        let finished =
            outputs.iter().map(|made| made.as_ref().map(|_| NodeState::Cached)).collect();
        let resolved = (0..results.len()).filter(|node| open[*node]);
        let resolved = resolved.filter_map(|node| results[node].as_ref());
        let forks = Arc::new(ForkServer::new(options.launcher.clone()));
        let policy = Policy { total, keep_going: options.keep_going, seed };
        let now = Instant::now();
        let mut driver = Self {
            engine,
            options,
            nodes: &pipeline.nodes,
            run,
            events: VecDeque::new(),
            is_pumping: false,
            state: State::new(pipeline, &open, weights, policy),
            covered: covered.to_vec(),
            resolver: Some(resolver),
            outputs,
            manifests: BTreeMap::new(),
            finished,
            failures: BTreeMap::new(),
            by_key: BTreeMap::new(),
            claimed: BTreeMap::new(),
            attempts: BTreeMap::new(),
            made: BTreeMap::new(),
            ending: BTreeMap::new(),
            watched: BTreeMap::new(),
            helped: BTreeSet::new(),
            ran: BTreeSet::new(),
            written: resolved.map(|result| result.key).collect(),
            moved: BTreeSet::new(),
            results,
            batch: Batch::default(),
            reports: Batch::default(),
            asks: Vec::new(),
            curious: Vec::new(),
            upstream: BTreeMap::new(),
            desks: Vec::new(),
            crew: Crew::default(),
            forks,
            posts: unbounded_channel(),
            done: unbounded_channel(),
            trouble: unbounded_channel(),
            tidying: unbounded_channel(),
            sequence: 0,
            began: now,
            heart: None,
            last_report: now,
            last_flush: now,
            gathers_since: None,
            last_heartbeat: now,
            last_listen: now,
        };
        for node in (0..open.len()).filter(|node| open[*node]) {
            for source in pipeline.nodes[node].inputs.values().flatten() {
                driver.keep_manifests(source.node);
            }
        }
        driver
    }

    /// Keeps what is known of a cached node's files, for those who are given them.
    fn keep_manifests(&mut self, node: usize) {
        let (Some(resolver), Some(outputs)) = (&self.resolver, &self.outputs[node]) else { return };
        for digest in outputs.values() {
            if let (None, Some(found)) = (self.manifests.get(digest), resolver.manifest(digest)) {
                self.manifests.insert(*digest, Arc::new(found.clone()));
            }
        }
    }

    /// Runs to the end.
    pub(super) async fn drive(mut self, stop: &Stop) -> Result<RunSummary, Error> {
        let cached = |result: &&NodeResult| matches!(result.verdict, Verdict::Cached(_));
        let n_cached = self.results.iter().flatten().filter(cached).count();
        let n_total = self.covered.iter().filter(|covered| **covered).count();
        self.observe(&RunEvent::RunStarted { run: self.run.clone(), n_total, n_cached });
        let mut stops = stop.watch();
        let mut n_stops = 0;
        let mut flight: Option<Flight<'a>> = None;
        self.step(Event::Start);
        loop {
            if flight.is_none() && !self.gathers() {
                flight = self.take_off();
            }
            if flight.is_none() && self.state.is_finished() {
                break;
            }
            // A steady stream of events must not keep the heartbeat from going out.
            if self.is_tick_due() {
                self.tick();
            }
            let wake = self.wake_after();
            tokio::select! {
                biased;
                changed = stops.changed(), if n_stops < 2 => {
                    n_stops = if changed.is_ok() { *stops.borrow_and_update() } else { 2 };
                    if changed.is_ok() && n_stops >= 1 {
                        self.stop();
                    }
                    if changed.is_ok() && n_stops >= 2 {
                        self.abandon_all();
                    }
                }
                landing = async {
                    match flight.as_mut() {
                        Some(flight) => flight.await,
                        None => future::pending().await,
                    }
                } => {
                    flight = None;
                    self.land(landing?);
                }
                Some(done) = self.done.1.recv() => {
                    self.ended(done);
                    while let Ok(done) = self.done.1.try_recv() {
                        self.ended(done);
                    }
                }
                Some(post) = self.posts.1.recv() => {
                    self.take_post(post);
                    while let Ok(post) = self.posts.1.try_recv() {
                        self.take_post(post);
                    }
                }
                Some(message) = self.trouble.1.recv() => {
                    self.observe(&RunEvent::LedgerTrouble { message });
                }
                () = tokio::time::sleep(wake) => self.tick(),
            }
        }
        self.finish(n_stops).await
    }

    fn observe(&self, event: &RunEvent) {
        self.options.observer.observe(event);
    }

    /// What pauses and limits are measured by: the clock may be set while the run goes on.
    fn steady_us(&self) -> i64 {
        self.began.elapsed().as_micros() as i64
    }

    /// What the ledger is told.
    fn now_us(&self) -> i64 {
        self.engine.clock.now_us()
    }

    /// How long nothing has to be done unless something happens.
    fn wake_after(&self) -> Duration {
        let mut wake = self.heartbeat_every().saturating_sub(self.last_heartbeat.elapsed());
        wake = wake.min(LISTEN_EVERY.saturating_sub(self.last_listen.elapsed()));
        if !self.attempts.is_empty() {
            wake = wake.min(REPORT_EVERY.saturating_sub(self.last_report.elapsed()));
        }
        if let Some(at_us) = self.state.wake_us() {
            let us = u64::try_from(at_us - self.steady_us()).unwrap_or(0);
            wake = wake.min(Duration::from_micros(us));
        }
        if self.gathers_since.is_some() {
            wake = wake.min(GATHER);
        }
        // A clock that stands still must not make the loop spin.
        wake.max(Duration::from_millis(1))
    }

    fn is_tick_due(&self) -> bool {
        self.last_heartbeat.elapsed() >= self.heartbeat_every()
            || (!self.attempts.is_empty() && self.last_report.elapsed() >= REPORT_EVERY)
            || self.state.wake_us().is_some_and(|at_us| at_us <= self.steady_us())
    }

    fn heartbeat_every(&self) -> Duration {
        self.engine.lease / 4
    }

    fn lease_until_us(&self) -> i64 {
        self.now_us().saturating_add(self.engine.lease.as_micros() as i64)
    }

    /// Whether what is to be written waits a little: only results and claims ahead of need do, and only
    /// while attempts are so short that they fill a transaction soon.
    fn gathers(&mut self) -> bool {
        let waits = self.batch.can_wait() && self.asks.is_empty() && self.state.fills_transaction();
        let since = waits.then(|| self.gathers_since.unwrap_or_else(Instant::now));
        self.gathers_since = since;
        since.is_some_and(|since| since.elapsed() < GATHER)
    }

    /// Sends off what has gathered; `None` when there is nothing.
    fn take_off(&mut self) -> Option<Flight<'a>> {
        self.gathers_since = None;
        let flush = self.last_flush.elapsed() >= FLUSH_EVERY || self.state.is_finished();
        if !self.batch.is_empty() || (flush && !self.reports.is_empty()) {
            self.batch.metrics.append(&mut self.reports.metrics);
            self.batch.logs.append(&mut self.reports.logs);
            self.batch.progress.append(&mut self.reports.progress);
            self.last_flush = Instant::now();
        }
        let listen = self.last_listen.elapsed() >= LISTEN_EVERY;
        if self.batch.is_empty() && self.asks.is_empty() && !listen {
            return None;
        }
        if listen {
            self.last_listen = Instant::now();
        }
        let resolver = self.resolver.take()?;
        let mut asks = Vec::new();
        for (node, external) in std::mem::take(&mut self.asks) {
            let components = resolver
                .components(node, &self.outputs)
                .expect("a node is resolved after everything it needs");
            asks.push(Ask { node, components, external });
        }
        let recover = asks.iter().any(|ask| self.watched.contains_key(&ask.node))
            || self.batch.items.iter().any(|call| call.call.recover);
        self.sequence += 1;
        let ends_attempts = !self.batch.publishes.is_empty() || !self.batch.ends.is_empty();
        let cargo = Cargo {
            resolver,
            batch: std::mem::take(&mut self.batch),
            asks,
            about: std::mem::take(&mut self.curious)
                .into_iter()
                .map(|node| (node, self.above(node)))
                .collect(),
            recover,
            listen,
            run: self.run.clone(),
            lease_until_us: self.lease_until_us(),
            sequence: self.sequence,
            peak_memory_bytes: if ends_attempts { peak_memory_bytes() } else { 0 },
            trouble: self.trouble.0.clone(),
            desks: std::mem::take(&mut self.desks),
        };
        Some(Box::pin(fly(self.engine, cargo)))
    }

    /// Takes in what came back.
    fn land(&mut self, landing: Landing<'a>) {
        let Landing { resolver, batch, reply, resolved, unreadable, desks, cancels, upstream } =
            landing;
        // All of it is known before any of it has consequences: the most urgent node is not always
        // the first.
        self.is_pumping = true;
        self.resolver = Some(resolver);
        for (desk, states) in desks.into_iter().zip(reply.items) {
            // The attempt may have been given up meanwhile.
            let _ = desk.send(states);
        }
        self.remove_items(reply.collected);
        self.upstream.extend(upstream);
        for wanted in cancels {
            self.obey_operator(wanted);
        }
        for key in batch.publishes.keys() {
            let Some(node) = self.by_key.get(key).copied() else { continue };
            if reply.published.contains(key) {
                self.published(node);
            } else {
                self.lost(node);
            }
        }
        for key in batch.ends.keys() {
            let Some(node) = self.by_key.get(key).copied() else { continue };
            // A claim that was given back is over already.
            let Some(failure) = self.ending.remove(&node) else { continue };
            if reply.ended.contains(key) {
                let kind = failure.kind;
                self.failures.insert(node, failure);
                self.step(Event::Failed { node, kind });
            } else {
                self.lost(node);
            }
        }
        for key in batch.claims.keys() {
            let Some(node) = self.by_key.get(key).copied() else { continue };
            if let Some(epoch) = reply.claimed.get(key) {
                self.claimed.insert(node, *epoch);
                self.watched.remove(&node);
                self.step(Event::Claimed { node });
            } else {
                self.lost(node);
            }
        }
        if let Some(held) = reply.held {
            let ours = |attempt: &Attempt| held.get(&attempt.key) == Some(&attempt.epoch);
            let gone: Vec<usize> = self
                .attempts
                .iter()
                .filter(|(_, attempt)| !attempt.helps)
                .filter(|(node, attempt)| !self.made.contains_key(node) && !ours(attempt))
                .map(|(node, _)| *node)
                .collect();
            for node in gone {
                self.lost(node);
            }
        }
        for (node, message) in unreadable {
            self.failures.insert(node, Failure::permanent(message));
            self.step(Event::Failed { node, kind: FailureKind::Permanent });
        }
        for (node, result) in resolved {
            self.take_result(node, result);
        }
        self.pump();
    }

    /// Every node upstream of one that is being claimed, with its key.
    fn above(&self, node: usize) -> Vec<(usize, NodeKey)> {
        let mut above = BTreeSet::new();
        let mut todo = vec![node];
        while let Some(node) = todo.pop() {
            let sources = self.node(node).inputs.values().flatten();
            todo.extend(sources.map(|source| source.node).filter(|node| above.insert(*node)));
        }
        let with_key = |node: usize| Some((node, self.results[node].as_ref()?.key));
        above.into_iter().filter_map(with_key).collect()
    }

    /// The lease is gone: whatever the attempt does, its result does not count.
    fn lost(&mut self, node: usize) {
        if let Some(attempt) = self.attempts.remove(&node) {
            attempt.cancel.abandon();
            self.free_items(node, attempt.epoch);
            self.event(node, Some((attempt.key, attempt.epoch)), "lease_lost", None);
        }
        self.made.remove(&node);
        self.claimed.remove(&node);
        self.release_key(node);
        self.step(Event::Lost { node });
    }

    fn release_key(&mut self, node: usize) {
        if let Some(result) = &self.results[node]
            && self.by_key.get(&result.key) == Some(&node)
        {
            self.by_key.remove(&result.key);
        }
    }

    fn take_result(&mut self, node: usize, mut result: NodeResult) {
        let key = result.key;
        let twin = self.by_key.get(&key).copied();
        let twin = twin.filter(|of| *of != node && self.finished[*of].is_none());
        if let (Some(of), false) = (twin, matches!(result.verdict, Verdict::Cached(_))) {
            self.results[node] = Some(result);
            self.step(Event::Twin { node, of });
            return;
        }
        match &mut result.verdict {
            Verdict::Cached(outputs) => {
                self.outputs[node] = Some(outputs.clone());
                self.keep_manifests(node);
                self.results[node] = Some(result);
                self.step(Event::Cached { node });
            }
            Verdict::Missing { .. }
                if let Some(ruling) = &result.ruling
                    && ruling.verdict == Ruled::Rejected =>
            {
                self.failures.insert(node, Failure::permanent(ruling.to_string()));
                self.results[node] = Some(result);
                self.step(Event::Failed { node, kind: FailureKind::Permanent });
            }
            Verdict::Missing { .. } => {
                self.by_key.insert(key, node);
                self.watched.remove(&node);
                self.results[node] = Some(result);
                self.step(Event::Missing { node });
            }
            Verdict::Running { epoch, owner, lease_until_us } => {
                let (epoch, lease_until_us) = (*epoch, *lease_until_us);
                let owner = owner.clone();
                self.results[node] = Some(result);
                self.watch(node, epoch, lease_until_us, owner);
            }
        }
    }

    /// Waits for another process; takes over when its lease stands still for a whole lease.
    fn watch(&mut self, node: usize, epoch: i64, lease_until_us: i64, owner: String) {
        let since = Instant::now();
        match self.watched.get(&node) {
            Some(seen) if seen.epoch == epoch && seen.lease_until_us == lease_until_us => {
                if seen.since.elapsed() > self.engine.lease {
                    let key = self.results[node].as_ref().expect("it was just resolved").key;
                    self.by_key.insert(key, node);
                    self.step(Event::Missing { node });
                    return;
                }
            }
            Some(_) => {
                self.watched.insert(node, Watched { epoch, lease_until_us, since });
            }
            None => {
                self.watched.insert(node, Watched { epoch, lease_until_us, since });
                let name = self.name(node);
                self.observe(&RunEvent::Waiting { node: name, owner });
            }
        }
        let spec = self.node(node);
        let can_help = !self.helped.contains(&(node, epoch)) && spec.task.has_items(&spec.params);
        self.step(Event::Foreign { node, can_help });
    }

    fn take_post(&mut self, post: Post) {
        let mut live = self.attempts.iter();
        let is_live = |(node, attempt): (&usize, &Attempt)| {
            self.holder(*node, attempt.epoch) == post.call.holder
        };
        if !live.any(is_live) {
            // It was given up, and what it held is free: it finds its connection cut off.
            return;
        }
        self.batch.items.push(post.call);
        self.desks.push(post.answer);
    }

    fn remove_items(&self, items: Vec<(ItemKey, i64)>) {
        if items.is_empty() {
            return;
        }
        let store = self.engine.store.items();
        self.tidy(move || {
            for (key, epoch) in items {
                // What stays only takes space until the garbage is collected.
                let _ = store.remove(key, epoch);
            }
        });
    }

    /// Removes something beside the run, which does not end before.
    fn tidy(&self, work: impl FnOnce() + Send + 'static) {
        let tidying = self.tidying.0.clone();
        let work = move || {
            work();
            drop(tidying);
        };
        // Without a thread it stays until the garbage is collected.
        let _ = self.crew.run(Box::new(work));
    }

    /// Who the items of an attempt belong to.
    fn holder(&self, node: usize, epoch: i64) -> String {
        format!("{} {node} {epoch}", self.engine.owner.id)
    }

    /// Frees the items that an attempt which is over may hold.
    fn free_items(&mut self, node: usize, epoch: i64) {
        if self.node(node).task.item_stages() > 0 {
            let holder = self.holder(node, epoch);
            self.batch.gone_holders.push(holder);
        }
    }

    fn node(&self, node: usize) -> &'a Node {
        &self.nodes[node]
    }

    fn name(&self, node: usize) -> String {
        self.nodes[node].name.clone()
    }
}
