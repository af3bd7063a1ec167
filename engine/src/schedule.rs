//! Decides what happens next: a pure state machine without time, files or database of its own.
//!
//! [`State::step`] takes an event and the time and gives commands. The loop in [`crate::run`] obeys
//! them and reports what came of it as further events. A node goes
//!
//! ```text
//! waiting -> resolving -> finished (its result is there)
//!                      -> foreign  (another process computes it) -> resolving
//!                      -> twin     (a node of this run has the same key) -> resolving
//!                      -> ready -> claiming -> claimed -> running -> publishing -> finished
//!                                                                 -> ending -> backoff -> resolving
//!                                                                           -> finished
//! ```
//!
//! **Invariant:** the amounts held by running nodes never exceed what the run has, and no node
//! starts before all it needs is finished (`simulated_runs_keep_every_promise`).

mod resource;
mod retry;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::graph::{Pipeline, Retry};
use crate::run::NodeState;
use crate::task::FailureKind;

pub(crate) use resource::Amounts;

/// A task that was told to stop has this long before it is given up.
const GRACE_US: i64 = 30_000_000;
/// First and longest pause between looks at a node that another process computes.
const POLL_US: (i64, i64) = (50_000, 1_000_000);
/// Nodes are claimed ahead only so far that the work claimed takes about this long.
const AHEAD_US: i64 = 20_000;
const AHEAD_MAX: usize = 256;
/// Results on their way to the ledger: so many at most may have to be made again after a crash. They
/// share a transaction, which is what makes small tasks cheap.
const PUBLISHING_MAX: usize = 64;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The run starts.
    Start,
    /// A node's result is there.
    Cached { node: usize },
    /// A node's result is missing and free to claim.
    Missing { node: usize },
    /// Another process computes the node, and perhaps can use help with its items.
    Foreign { node: usize, can_help: bool },
    /// Another node of this run has the same key and is under way.
    Twin { node: usize, of: usize },
    /// The claim was granted.
    Claimed { node: usize },
    /// The claim came too late, or the lease was lost.
    Lost { node: usize },
    /// The work is done and its result on its way to the ledger: what the attempt held is free.
    Made { node: usize },
    /// The result is published.
    Published { node: usize },
    /// The attempt ended without a result; the ledger is asked whether that counts.
    Ended { node: usize },
    /// The node has no result: its attempt ended without one and still held the lease, or it cannot
    /// be tried.
    Failed { node: usize, kind: FailureKind },
    /// The attempt that helped another process has nothing more to do.
    Helped { node: usize },
    /// The attempt showed that it moves on.
    Progress { node: usize },
    /// Time has passed.
    Tick,
    /// The operator wants a resumable stop.
    Stop,
    /// The operator wants one node stopped, and with it what needs it.
    Cancel { node: usize },
}

/// Why an attempt is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Stop,
    Operator,
    Timeout(Duration),
    Stall(Duration),
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Find the node's key and whether its result is there.
    Resolve { node: usize },
    /// Ask the ledger for the node.
    Claim { node: usize },
    /// Give a claimed node back.
    Release { node: usize },
    /// Start the attempt.
    Start { node: usize, cpu: u32 },
    /// Start an attempt that only helps the process that computes the node.
    Help { node: usize, cpu: u32 },
    /// Tell the attempt to stop.
    Cancel { node: usize, why: Why },
    /// Stop waiting for an attempt that does not stop, and ask the ledger whether that counts.
    Abandon { node: usize },
    /// Say that the node is tried again after a pause.
    Retry { node: usize, pause_us: i64 },
    /// The node is finished.
    Finish { node: usize, state: NodeState, because: Option<usize> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Resolving,
    Foreign {
        poll_at_us: i64,
    },
    Twin,
    Backoff {
        until_us: i64,
    },
    Ready,
    Claiming,
    Claimed,
    Running {
        started_us: i64,
        moved_us: i64,
        stopping: Option<(Why, i64)>,
        helps: bool,
    },
    Publishing,
    /// Over without a result: until the ledger says whether that counts, it holds what it held.
    Ending {
        why: Option<Why>,
    },
    Finished(NodeState),
}

impl Phase {
    fn started(now_us: i64, helps: bool) -> Self {
        Self::Running { started_us: now_us, moved_us: now_us, stopping: None, helps }
    }
}

/// Priority, then the longest way to the end, then the place in the file.
type Order = (Reverse<i32>, Reverse<u64>, usize);

struct Slot {
    phase: Phase,
    /// Needed nodes that are not finished.
    n_unmet: usize,
    consumers: Vec<usize>,
    amounts: Amounts,
    retry: Retry,
    timeout: Option<Duration>,
    stall_timeout: Option<Duration>,
    order: Order,
    n_failed: u32,
    poll_pause_us: i64,
    /// Whether an operator wants it stopped.
    is_unwanted: bool,
}

/// What a run has and how it goes on after a failure.
pub(crate) struct Policy {
    pub(crate) total: Amounts,
    pub(crate) keep_going: bool,
    /// Makes the jitter of pauses differ between runs, and a simulation repeatable.
    pub(crate) seed: u64,
}

/// Everything the scheduler knows.
pub(crate) struct State {
    /// Of the open nodes.
    slots: Vec<Option<Box<Slot>>>,
    policy: Policy,
    free: Amounts,
    ready: BTreeSet<Order>,
    claiming: BTreeSet<Order>,
    claimed: BTreeSet<Order>,
    /// Nodes of other processes that can use help.
    helpable: BTreeSet<Order>,
    /// Nodes that a tick may concern.
    timed: BTreeSet<usize>,
    twins: BTreeMap<usize, Vec<usize>>,
    n_unfinished: usize,
    n_running: usize,
    n_publishing: usize,
    n_ending: usize,
    stopping: bool,
    halted: bool,
    /// Moving average of attempts' durations, once there is one.
    attempt_us: Option<i64>,
}

impl State {
    /// The nodes of `pipeline` that are `open`: what others would give them is there. `weights` are
    /// expected durations in any one unit; they order nodes by the longest way to the end of the graph.
    pub(crate) fn new(pipeline: &Pipeline, open: &[bool], weights: &[u64], policy: Policy) -> Self {
        let n_nodes = pipeline.nodes.len();
        let mut consumers: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); n_nodes];
        for (index, node) in pipeline.nodes.iter().enumerate().filter(|(index, _)| open[*index]) {
            for source in node.inputs.values().flatten() {
                consumers[source.node].insert(index);
            }
        }
        let mut way = vec![0_u64; n_nodes];
        for index in (0..n_nodes).rev() {
            let longest = consumers[index].iter().map(|next| way[*next]).max().unwrap_or(0);
            way[index] = longest.saturating_add(weights[index].max(1));
        }
        let slot = |index: usize| {
            let node = &pipeline.nodes[index];
            let sources: BTreeSet<usize> = node
                .inputs
                .values()
                .flatten()
                .map(|source| source.node)
                .filter(|source| open[*source])
                .collect();
            Box::new(Slot {
                phase: Phase::Waiting,
                n_unmet: sources.len(),
                consumers: consumers[index].iter().copied().collect(),
                amounts: Amounts::of(&node.execution.resources).within(&policy.total),
                retry: node.execution.retry.clone(),
                timeout: node.execution.timeout,
                stall_timeout: node.execution.stall_timeout,
                order: (Reverse(node.execution.priority), Reverse(way[index]), index),
                n_failed: 0,
                poll_pause_us: POLL_US.0,
                is_unwanted: false,
            })
        };
        let slots: Vec<Option<Box<Slot>>> =
            (0..n_nodes).map(|index| open[index].then(|| slot(index))).collect();
        Self {
            n_unfinished: slots.iter().flatten().count(),
            slots,
            free: policy.total.clone(),
            policy,
            ready: BTreeSet::new(),
            claiming: BTreeSet::new(),
            claimed: BTreeSet::new(),
            helpable: BTreeSet::new(),
            timed: BTreeSet::new(),
            twins: BTreeMap::new(),
            n_running: 0,
            n_publishing: 0,
            n_ending: 0,
            stopping: false,
            halted: false,
            attempt_us: None,
        }
    }

    /// Whether every node is finished.
    pub(crate) fn is_finished(&self) -> bool {
        self.n_unfinished == 0
    }

    /// Whether claimed work is at hand that will soon fill the transaction that results share.
    pub(crate) fn fills_transaction(&self) -> bool {
        !self.stopping
            && !self.halted
            && self.n_publishing < PUBLISHING_MAX
            && self.n_running > 0
            && self.claimed.len() + self.n_publishing >= PUBLISHING_MAX
    }

    /// Attempts under way.
    pub(crate) fn n_running(&self) -> usize {
        self.n_running
    }

    /// How often the node has failed so far.
    pub(crate) fn n_failed(&self, node: usize) -> u32 {
        self.slots[node].as_ref().map_or(0, |slot| slot.n_failed)
    }

    /// Why the attempt was told to stop.
    pub(crate) fn why(&self, node: usize) -> Option<Why> {
        match self.slots[node].as_ref()?.phase {
            Phase::Running { stopping, .. } => stopping.map(|(why, _)| why),
            Phase::Ending { why } => why,
            _ => None,
        }
    }

    /// When the next [`Event::Tick`] has something to do.
    pub(crate) fn wake_us(&self) -> Option<i64> {
        self.timed.iter().filter_map(|node| self.slots[*node].as_ref()?.wake_us()).min()
    }

    /// Takes events of one moment and says what to do. Who gets what is free is decided once all of
    /// them are known, so that it does not depend on which came first.
    pub(crate) fn step(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        now_us: i64,
    ) -> Vec<Command> {
        let mut commands = Vec::new();
        for event in events {
            self.take_in(event, now_us, &mut commands);
        }
        self.dispatch(now_us, &mut commands);
        commands
    }

    fn take_in(&mut self, event: Event, now_us: i64, commands: &mut Vec<Command>) {
        match event {
            Event::Start => self.start(commands),
            Event::Cached { node } => self.finish(node, NodeState::Cached, None, commands),
            Event::Missing { node } => self.make_ready(node),
            Event::Foreign { node, can_help } => self.wait_for_other(node, can_help, now_us),
            Event::Twin { node, of } => self.wait_for_twin(node, of, commands),
            Event::Claimed { node } => self.take(node, commands),
            Event::Lost { node } => {
                self.leave(node, now_us);
                if self.stopping || self.slot(node).is_unwanted {
                    self.finish(node, NodeState::Cancelled, None, commands);
                } else if !matches!(self.slot(node).phase, Phase::Finished(_)) {
                    self.set(node, Phase::Resolving);
                    commands.push(Command::Resolve { node });
                }
            }
            Event::Made { node } => {
                if matches!(self.slot(node).phase, Phase::Running { .. }) {
                    self.leave(node, now_us);
                    self.set(node, Phase::Publishing);
                    self.n_publishing += 1;
                }
            }
            Event::Published { node } => {
                self.leave(node, now_us);
                self.finish(node, NodeState::Done, None, commands);
            }
            Event::Helped { node } => {
                self.leave(node, now_us);
                if self.stopping || self.slot(node).is_unwanted {
                    self.finish(node, NodeState::Cancelled, None, commands);
                } else if !matches!(self.slot(node).phase, Phase::Finished(_)) {
                    self.set(node, Phase::Foreign { poll_at_us: now_us + POLL_US.0 });
                }
            }
            Event::Ended { node } => self.end(node, now_us),
            Event::Failed { node, kind } => self.fail(node, kind, now_us, commands),
            Event::Progress { node } => {
                if let Some(Phase::Running { moved_us, .. }) = self.phase_mut(node) {
                    *moved_us = now_us;
                }
            }
            Event::Tick => self.tick(now_us, commands),
            Event::Stop => self.stop(now_us, commands),
            Event::Cancel { node } => self.stop_node(node, Why::Operator, now_us, commands),
        }
    }

    fn phase_mut(&mut self, node: usize) -> Option<&mut Phase> {
        self.slots[node].as_mut().map(|slot| &mut slot.phase)
    }

    fn slot(&mut self, node: usize) -> &mut Slot {
        self.slots[node].as_mut().expect("commands and events are about covered nodes only")
    }

    fn set(&mut self, node: usize, phase: Phase) {
        let timed =
            matches!(phase, Phase::Foreign { .. } | Phase::Backoff { .. } | Phase::Running { .. });
        if timed {
            self.timed.insert(node);
        } else {
            self.timed.remove(&node);
        }
        if !matches!(phase, Phase::Foreign { .. }) {
            let order = self.slot(node).order;
            self.helpable.remove(&order);
        }
        self.slot(node).phase = phase;
    }

    fn start(&mut self, commands: &mut Vec<Command>) {
        for node in 0..self.slots.len() {
            let Some(slot) = &self.slots[node] else { continue };
            if slot.n_unmet == 0 && slot.phase == Phase::Waiting {
                self.set(node, Phase::Resolving);
                commands.push(Command::Resolve { node });
            }
        }
    }

    fn make_ready(&mut self, node: usize) {
        if self.slot(node).phase == Phase::Resolving {
            self.set(node, Phase::Ready);
            let order = self.slot(node).order;
            self.ready.insert(order);
        }
    }

    fn wait_for_other(&mut self, node: usize, can_help: bool, now_us: i64) {
        let slot = self.slot(node);
        if slot.phase != Phase::Resolving {
            return;
        }
        let pause_us = slot.poll_pause_us;
        slot.poll_pause_us = (pause_us * 3 / 2).min(POLL_US.1);
        let order = slot.order;
        self.set(node, Phase::Foreign { poll_at_us: now_us + pause_us });
        if can_help {
            self.helpable.insert(order);
        }
    }

    fn wait_for_twin(&mut self, node: usize, of: usize, commands: &mut Vec<Command>) {
        if self.slot(node).phase != Phase::Resolving {
            return;
        }
        match self.slot(of).phase {
            Phase::Finished(NodeState::Done | NodeState::Cached) => {
                self.set(node, Phase::Resolving);
                commands.push(Command::Resolve { node });
            }
            Phase::Finished(state) => self.finish(node, state, Some(of), commands),
            _ => {
                self.set(node, Phase::Twin);
                self.twins.entry(of).or_default().push(node);
            }
        }
    }

    fn take(&mut self, node: usize, commands: &mut Vec<Command>) {
        let slot = self.slot(node);
        let (order, is_unwanted) = (slot.order, slot.is_unwanted);
        self.claiming.remove(&order);
        if is_unwanted {
            commands.push(Command::Release { node });
            self.finish(node, NodeState::Cancelled, None, commands);
        } else {
            self.set(node, Phase::Claimed);
            self.claimed.insert(order);
        }
    }

    /// Takes the node out of whatever holds something for it.
    fn leave(&mut self, node: usize, now_us: i64) {
        let slot = self.slot(node);
        let order = slot.order;
        match slot.phase {
            Phase::Running { started_us, helps, .. } => {
                let amounts = slot.amounts.clone();
                self.free.add(&amounts);
                self.n_running -= 1;
                self.took(now_us - started_us, helps);
            }
            Phase::Ending { .. } => {
                let amounts = slot.amounts.clone();
                self.free.add(&amounts);
                self.n_running -= 1;
                self.n_ending -= 1;
            }
            Phase::Publishing => self.n_publishing -= 1,
            Phase::Claiming => {
                self.claiming.remove(&order);
            }
            Phase::Claimed => {
                self.claimed.remove(&order);
            }
            Phase::Ready => {
                self.ready.remove(&order);
            }
            _ => {}
        }
    }

    fn took(&mut self, took_us: i64, helps: bool) {
        // That says nothing of how long a whole attempt takes.
        if helps {
            return;
        }
        let took_us = took_us.max(0);
        let mean_us = self.attempt_us.map_or(took_us, |mean| (mean * 7 + took_us) / 8);
        self.attempt_us = Some(mean_us);
    }

    fn end(&mut self, node: usize, now_us: i64) {
        if let Phase::Running { started_us, helps, stopping, .. } = self.slot(node).phase {
            self.took(now_us - started_us, helps);
            self.n_ending += 1;
            self.set(node, Phase::Ending { why: stopping.map(|(why, _)| why) });
        }
    }

    fn fail(&mut self, node: usize, kind: FailureKind, now_us: i64, commands: &mut Vec<Command>) {
        let why = self.why(node);
        self.leave(node, now_us);
        let seed = self.policy.seed;
        let stopping = self.stopping || self.slot(node).is_unwanted;
        let slot = self.slot(node);
        let kind = match (kind, why) {
            // The task stopped because it was told to; the reason decides.
            (FailureKind::Cancelled, Some(Why::Timeout(_) | Why::Stall(_))) => {
                FailureKind::Transient
            }
            (kind, _) => kind,
        };
        let state = match kind {
            FailureKind::Transient => {
                slot.n_failed += 1;
                if slot.n_failed < slot.retry.attempts_max && !stopping {
                    let pause_us = retry::pause_us(&slot.retry, slot.n_failed, node, seed);
                    self.set(node, Phase::Backoff { until_us: now_us + pause_us });
                    commands.push(Command::Retry { node, pause_us });
                    return;
                }
                NodeState::Failed
            }
            FailureKind::Permanent => {
                slot.n_failed += 1;
                NodeState::Failed
            }
            FailureKind::Cancelled => NodeState::Cancelled,
            FailureKind::Parked => NodeState::Parked,
        };
        if state == NodeState::Failed && !self.policy.keep_going {
            self.halted = true;
        }
        self.finish(node, state, None, commands);
    }

    fn finish(
        &mut self,
        node: usize,
        state: NodeState,
        because: Option<usize>,
        commands: &mut Vec<Command>,
    ) {
        // A stack of its own: graphs may be deeper than the thread's.
        let mut todo = vec![(node, state, because)];
        while let Some((node, state, because)) = todo.pop() {
            if matches!(self.slot(node).phase, Phase::Finished(_)) {
                continue;
            }
            self.set(node, Phase::Finished(state));
            self.n_unfinished -= 1;
            commands.push(Command::Finish { node, state, because });
            let is_good = matches!(state, NodeState::Done | NodeState::Cached);
            for consumer in self.slot(node).consumers.clone() {
                if !is_good {
                    let state = match state {
                        NodeState::Cancelled => NodeState::Cancelled,
                        _ => NodeState::Skipped,
                    };
                    todo.push((consumer, state, Some(because.unwrap_or(node))));
                    continue;
                }
                let slot = self.slot(consumer);
                slot.n_unmet -= 1;
                if slot.n_unmet == 0 && slot.phase == Phase::Waiting {
                    self.set(consumer, Phase::Resolving);
                    commands.push(Command::Resolve { node: consumer });
                }
            }
            for twin in self.twins.remove(&node).unwrap_or_default() {
                if matches!(self.slot(twin).phase, Phase::Finished(_)) {
                    // It was stopped while it waited.
                } else if is_good {
                    self.set(twin, Phase::Resolving);
                    commands.push(Command::Resolve { node: twin });
                } else {
                    todo.push((twin, state, Some(node)));
                }
            }
        }
    }

    fn tick(&mut self, now_us: i64, commands: &mut Vec<Command>) {
        let due: Vec<usize> = self.timed.iter().copied().collect();
        for node in due {
            let slot = self.slot(node);
            if slot.wake_us().is_none_or(|wake_us| wake_us > now_us) {
                continue;
            }
            match slot.phase {
                Phase::Foreign { .. } | Phase::Backoff { .. } => {
                    self.set(node, Phase::Resolving);
                    commands.push(Command::Resolve { node });
                }
                Phase::Running { stopping: Some(_), .. } => {
                    commands.push(Command::Abandon { node });
                    self.end(node, now_us);
                }
                Phase::Running { started_us, .. } => {
                    let over = |limit: Duration| now_us - started_us >= limit.as_micros() as i64;
                    let why = match (slot.timeout, slot.stall_timeout) {
                        (Some(limit), _) if over(limit) => Why::Timeout(limit),
                        (_, Some(limit)) => Why::Stall(limit),
                        _ => continue,
                    };
                    self.cancel(node, why, now_us, commands);
                }
                _ => {}
            }
        }
    }

    fn cancel(&mut self, node: usize, why: Why, now_us: i64, commands: &mut Vec<Command>) {
        if let Some(Phase::Running { stopping, .. }) = self.phase_mut(node)
            && stopping.is_none()
        {
            *stopping = Some((why, now_us));
            commands.push(Command::Cancel { node, why });
        }
    }

    fn stop(&mut self, now_us: i64, commands: &mut Vec<Command>) {
        self.stopping = true;
        for node in 0..self.slots.len() {
            if self.slots[node].is_some() {
                self.stop_node(node, Why::Stop, now_us, commands);
            }
        }
    }

    fn stop_node(&mut self, node: usize, why: Why, now_us: i64, commands: &mut Vec<Command>) {
        let slot = self.slot(node);
        slot.is_unwanted = true;
        match slot.phase {
            Phase::Running { .. } => self.cancel(node, why, now_us, commands),
            // The ledger's answer is on its way.
            Phase::Claiming | Phase::Publishing | Phase::Ending { .. } | Phase::Finished(_) => {}
            Phase::Claimed => {
                self.leave(node, now_us);
                commands.push(Command::Release { node });
                self.finish(node, NodeState::Cancelled, None, commands);
            }
            _ => {
                self.leave(node, now_us);
                self.finish(node, NodeState::Cancelled, None, commands);
            }
        }
    }

    /// Starts what is claimed, then claims what fits and a little more.
    fn dispatch(&mut self, now_us: i64, commands: &mut Vec<Command>) {
        // A failure on its way to the ledger may be the end of the run.
        if self.stopping || (self.n_ending > 0 && !self.policy.keep_going) {
            return;
        }
        let mut budget = self.free.clone();
        let mut starting = Vec::new();
        for order in &self.claimed {
            if budget.is_empty() || self.n_publishing >= PUBLISHING_MAX {
                break;
            }
            let amounts = self.amounts(order.2);
            if budget.covers(amounts) {
                starting.push(*order);
            }
            // What does not fit keeps its place: smaller ones must not starve it.
            budget.take(amounts);
        }
        for order in starting {
            let node = order.2;
            self.claimed.remove(&order);
            let amounts = self.amounts(node).clone();
            self.free.take(&amounts);
            self.n_running += 1;
            self.set(node, Phase::started(now_us, false));
            commands.push(Command::Start { node, cpu: amounts.cpu });
        }
        if self.halted {
            self.halt(commands);
            return;
        }
        for order in &self.claiming {
            budget.take(self.amounts(order.2));
        }
        let ahead = self.attempt_us.map_or(0, |mean_us| {
            let n = AHEAD_US / mean_us.max(1) * i64::from(self.policy.total.cpu);
            usize::try_from(n).unwrap_or(0).min(AHEAD_MAX)
        });
        let mut n_ahead = self.claimed.len() + self.claiming.len();
        let mut claims = Vec::new();
        for order in &self.ready {
            if budget.is_empty() && n_ahead >= ahead {
                break;
            }
            let amounts = self.amounts(order.2);
            let fits = budget.covers(amounts);
            budget.take(amounts);
            if fits || n_ahead < ahead {
                n_ahead += usize::from(!fits);
                claims.push(*order);
            }
        }
        for order in claims {
            self.ready.remove(&order);
            self.claiming.insert(order);
            self.set(order.2, Phase::Claiming);
            commands.push(Command::Claim { node: order.2 });
        }
        self.help(budget, now_us, commands);
    }

    /// Helps other processes with what own work leaves free.
    fn help(&mut self, mut budget: Amounts, now_us: i64, commands: &mut Vec<Command>) {
        for order in self.helpable.iter().copied().collect::<Vec<_>>() {
            let node = order.2;
            let amounts = self.amounts(node).clone();
            if !budget.covers(&amounts) {
                continue;
            }
            budget.take(&amounts);
            self.free.take(&amounts);
            self.n_running += 1;
            self.set(node, Phase::started(now_us, true));
            commands.push(Command::Help { node, cpu: amounts.cpu });
        }
    }

    fn amounts(&self, node: usize) -> &Amounts {
        let slot = self.slots[node].as_ref().expect("only covered nodes are queued");
        &slot.amounts
    }

    /// After a failure without `keep_going`: nothing new starts.
    fn halt(&mut self, commands: &mut Vec<Command>) {
        if self.n_running + self.n_publishing > 0
            || !self.claiming.is_empty()
            || !self.claimed.is_empty()
        {
            return;
        }
        for node in 0..self.slots.len() {
            let Some(slot) = &self.slots[node] else { continue };
            if !matches!(slot.phase, Phase::Finished(_) | Phase::Resolving) {
                let order = slot.order;
                self.ready.remove(&order);
                self.finish(node, NodeState::Skipped, None, commands);
            }
        }
    }
}

impl Slot {
    fn wake_us(&self) -> Option<i64> {
        match self.phase {
            Phase::Foreign { poll_at_us } => Some(poll_at_us),
            Phase::Backoff { until_us } => Some(until_us),
            Phase::Running { stopping: Some((_, since_us)), .. } => Some(since_us + GRACE_US),
            // Limits are for the process that computes the node.
            Phase::Running { helps: true, .. } => None,
            Phase::Running { started_us, moved_us, stopping: None, .. } => {
                let limit = |since_us: i64, limit: Option<Duration>| {
                    limit.map(|limit| since_us.saturating_add(limit.as_micros() as i64))
                };
                let (end, stall) =
                    (limit(started_us, self.timeout), limit(moved_us, self.stall_timeout));
                end.into_iter().chain(stall).min()
            }
            _ => None,
        }
    }
}
