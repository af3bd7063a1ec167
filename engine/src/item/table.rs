//! What a team knows of its items, and what it wants to tell the ledger next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::{Call, Claim, End, ItemKey, ItemParts, Publish, State, Status};
use crate::digest::Digest;
use crate::task::{CancelToken, Failure, FailureKind};

/// First and longest pause between looks at items that another process works on.
const POLL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How far an item is, as far as this team knows.
enum Phase {
    /// Free to claim.
    Missing,
    /// Free to claim after a pause.
    Paused { until: Instant },
    /// The claim is on its way.
    Claiming,
    /// Another process works on it; its lease has stood still since then.
    Foreign { lease_until_us: i64, since: Instant },
    /// Done earlier or elsewhere, not yet checked.
    Found,
    /// Claimed and given to a worker.
    Running { cancel: CancelToken, is_lost: bool },
    /// The ledger's answer to a publish is on its way.
    Publishing,
    /// Done, and its folder is whole.
    Done,
}

struct Slot {
    key: ItemKey,
    epoch: i64,
    phase: Phase,
    n_failed: u32,
}

/// Work for a worker.
pub(super) enum Job {
    /// Do the item.
    Work { slot: usize, key: ItemKey, epoch: i64, cancel: CancelToken },
    /// Check a result that was there.
    Check { slot: usize, key: ItemKey, epoch: i64, digest: Digest },
}

impl Job {
    pub(super) fn slot(&self) -> usize {
        match self {
            Self::Work { slot, .. } | Self::Check { slot, .. } => *slot,
        }
    }
}

/// What came of a job.
pub(super) enum Outcome {
    Worked {
        slot: usize,
        result: Result<(Digest, u64), Failure>,
    },
    Checked {
        slot: usize,
        is_whole: bool,
    },
    /// The worker gave the item back.
    Dropped {
        slot: usize,
    },
    /// A worker takes no more.
    Quit {
        result: Result<(), Failure>,
    },
}

/// All items of a stage.
pub(super) struct Table {
    slots: Vec<Slot>,
    by_key: BTreeMap<ItemKey, usize>,
    missing: BTreeSet<usize>,
    paused: BTreeSet<usize>,
    foreign: BTreeSet<usize>,
    running: BTreeSet<usize>,
    jobs: VecDeque<Job>,
    n_done: usize,
    /// Jobs given out that have not come back.
    n_busy: usize,
    /// Claims and publishes that have not been answered.
    next: Call,
    last_look: Instant,
    poll: Duration,
    lease: Duration,
    tries_max: u32,
    backoff: Duration,
    cancel: CancelToken,
    helps: bool,
    /// Whether the node is done, which leaves nothing to help with.
    pub(super) is_over: bool,
    /// Results of lost items, to be removed.
    pub(super) discarded: Vec<(ItemKey, i64)>,
    pub(super) newly_done: Vec<usize>,
}

impl Table {
    /// No items yet; `cancel` stops their work.
    pub(super) fn new(parts: &ItemParts, cancel: &CancelToken) -> Self {
        Self {
            slots: Vec::new(),
            by_key: BTreeMap::new(),
            missing: BTreeSet::new(),
            paused: BTreeSet::new(),
            foreign: BTreeSet::new(),
            running: BTreeSet::new(),
            jobs: VecDeque::new(),
            n_done: 0,
            n_busy: 0,
            next: Call::default(),
            last_look: Instant::now(),
            poll: POLL.0,
            lease: parts.lease,
            tries_max: parts.tries_max.max(1),
            backoff: parts.backoff,
            cancel: cancel.clone(),
            helps: parts.helps.is_some(),
            is_over: false,
            discarded: Vec::new(),
            newly_done: Vec::new(),
        }
    }

    /// The slot of an item, which is the next one when it is new.
    pub(super) fn slot(&mut self, key: ItemKey) -> usize {
        let n = self.slots.len();
        let slot = *self.by_key.entry(key).or_insert(n);
        if slot == n {
            self.slots.push(Slot { key, epoch: 0, phase: Phase::Claiming, n_failed: 0 });
        }
        slot
    }

    /// Key and epoch of an item that is done and whole.
    pub(super) fn finished(&self, slot: usize) -> Option<(ItemKey, i64)> {
        matches!(self.slots[slot].phase, Phase::Done).then(|| self.place(slot))
    }

    fn place(&self, slot: usize) -> (ItemKey, i64) {
        (self.slots[slot].key, self.slots[slot].epoch)
    }

    /// Items that are done.
    pub(super) fn n_done(&self) -> usize {
        self.n_done
    }

    /// Whether a worker or the ledger owes an answer.
    pub(super) fn is_busy(&self) -> bool {
        self.n_busy > 0 || !self.next.is_empty()
    }

    /// Whether there is work that nobody has taken.
    pub(super) fn has_free_work(&self) -> bool {
        !self.missing.is_empty() || !self.paused.is_empty()
    }

    /// Whether there is work that no worker has begun.
    pub(super) fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    pub(super) fn n_busy(&self) -> usize {
        self.n_busy
    }

    pub(super) fn next_job(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.n_busy += 1;
        Some(job)
    }

    /// Drops claimed work that no worker has begun, when the team stops.
    pub(super) fn give_back(&mut self, name: impl Fn(usize) -> String) {
        for job in std::mem::take(&mut self.jobs) {
            if let Job::Work { slot, key, epoch, .. } = job {
                self.running.remove(&slot);
                self.slots[slot].phase = Phase::Publishing;
                let (name, failure) = (name(slot), Failure::cancelled());
                self.next.ends.push(End { key, epoch, name, failure });
            }
        }
    }

    /// Adds what the ledger should be told and asked now; claims up to `n_free` items, from the end
    /// of the list when `from_end`.
    pub(super) fn call(&mut self, n_free: usize, from_end: bool) -> Call {
        let now = Instant::now();
        self.wake(now);
        let n_free = n_free.saturating_sub(self.jobs.len());
        let mut chosen: Vec<usize> = if from_end {
            self.missing.iter().rev().take(n_free).copied().collect()
        } else {
            self.missing.iter().take(n_free).copied().collect()
        };
        for slot in &chosen {
            self.missing.remove(slot);
        }
        for slot in chosen.drain(..) {
            let (key, epoch) = self.place(slot);
            self.slots[slot].phase = Phase::Claiming;
            self.next.claims.push(Claim { key, epoch, stale_lease_us: None });
        }
        self.look(now, n_free);
        std::mem::take(&mut self.next)
    }

    fn wake(&mut self, now: Instant) {
        let is_due = |slot: &&usize| matches!(self.slots[**slot].phase, Phase::Paused { until } if until <= now);
        for slot in self.paused.iter().filter(is_due).copied().collect::<Vec<_>>() {
            self.paused.remove(&slot);
            self.set(slot, Phase::Missing);
        }
    }

    /// Looks at the items of others, to see them finish or stand still, and at our own, to see them
    /// lost.
    fn look(&mut self, now: Instant, n_free: usize) {
        let waits = !self.foreign.is_empty() && n_free > 0;
        let pause = if waits { self.poll.min(self.lease / 4) } else { self.lease / 4 };
        if self.last_look.elapsed() < pause {
            return;
        }
        self.last_look = now;
        self.poll = (self.poll * 3 / 2).min(POLL.1);
        self.next.look.extend(self.running.iter().map(|slot| self.slots[*slot].key));
        if !waits {
            return;
        }
        self.next.recover = true;
        let mut n_taken = 0;
        for slot in self.foreign.iter().copied().collect::<Vec<_>>() {
            let key = self.slots[slot].key;
            match self.slots[slot].phase {
                Phase::Foreign { lease_until_us, since }
                    if since.elapsed() > self.lease && n_taken < n_free =>
                {
                    n_taken += 1;
                    let epoch = self.slots[slot].epoch;
                    let stale_lease_us = Some(lease_until_us);
                    self.next.claims.push(Claim { key, epoch, stale_lease_us });
                }
                _ => self.next.look.push(key),
            }
        }
    }

    /// How long nothing has to be done unless a worker comes back.
    pub(super) fn wait(&self) -> Duration {
        let mut wait = self.lease / 4;
        if !self.foreign.is_empty() {
            wait = wait.min(self.poll);
        }
        for slot in &self.paused {
            if let Phase::Paused { until } = self.slots[*slot].phase {
                wait = wait.min(until.saturating_duration_since(Instant::now()));
            }
        }
        // A stop must be seen soon.
        wait.clamp(Duration::from_millis(1), Duration::from_millis(100))
    }

    /// Takes in what the ledger says.
    pub(super) fn learn(&mut self, states: Vec<State>) {
        for State { key, epoch, status } in states {
            let Some(slot) = self.by_key.get(&key).copied() else { continue };
            let known = self.slots[slot].epoch;
            let status = match status {
                Status::Collected => {
                    self.is_over |= self.helps;
                    Status::Missing
                }
                status => status,
            };
            if self.is_known(slot, epoch, status) {
                continue;
            }
            match (status, &mut self.slots[slot].phase) {
                (_, Phase::Running { cancel, is_lost }) => {
                    cancel.cancel();
                    *is_lost = true;
                }
                (Status::Running { is_mine: true, .. }, _) => {
                    let cancel = self.cancel.child();
                    self.jobs.push_back(Job::Work { slot, key, epoch, cancel: cancel.clone() });
                    self.enter(slot, epoch, Phase::Running { cancel, is_lost: false });
                }
                (Status::Running { lease_until_us, .. }, _) => {
                    let since = Instant::now();
                    self.enter(slot, epoch, Phase::Foreign { lease_until_us, since });
                }
                (Status::Done { is_mine: true, .. }, Phase::Publishing) if known == epoch => {
                    self.finish(slot);
                }
                (Status::Done { digest, .. }, phase) => {
                    if matches!(phase, Phase::Publishing) {
                        self.discarded.push((key, known));
                    }
                    self.jobs.push_back(Job::Check { slot, key, epoch, digest });
                    self.enter(slot, epoch, Phase::Found);
                }
                (Status::Missing, Phase::Paused { .. }) => {
                    let phase = std::mem::replace(&mut self.slots[slot].phase, Phase::Missing);
                    self.enter(slot, epoch, phase);
                }
                (Status::Missing | Status::Collected, _) => self.enter(slot, epoch, Phase::Missing),
            }
        }
    }

    /// Whether a state says nothing new.
    fn is_known(&self, slot: usize, epoch: i64, status: Status) -> bool {
        let Slot { phase, epoch: known, .. } = &self.slots[slot];
        let is_same = match (status, phase) {
            (_, Phase::Done) => return true,
            (
                Status::Running { lease_until_us, .. },
                Phase::Foreign { lease_until_us: seen, .. },
            ) => *seen == lease_until_us,
            (status, Phase::Running { .. }) => {
                matches!(status, Status::Running { is_mine: true, .. })
            }
            (Status::Done { .. }, Phase::Found) => true,
            _ => false,
        };
        is_same && *known == epoch
    }

    fn enter(&mut self, slot: usize, epoch: i64, phase: Phase) {
        self.slots[slot].epoch = epoch;
        self.set(slot, phase);
    }

    fn set(&mut self, slot: usize, phase: Phase) {
        for set in [&mut self.missing, &mut self.paused, &mut self.foreign, &mut self.running] {
            set.remove(&slot);
        }
        match phase {
            Phase::Missing => self.missing.insert(slot),
            Phase::Paused { .. } => self.paused.insert(slot),
            Phase::Foreign { .. } => self.foreign.insert(slot),
            Phase::Running { .. } => self.running.insert(slot),
            _ => true,
        };
        self.slots[slot].phase = phase;
    }

    fn finish(&mut self, slot: usize) {
        self.set(slot, Phase::Done);
        self.n_done += 1;
        self.newly_done.push(slot);
        self.poll = POLL.0;
    }

    /// Takes in what a worker did. `Some` when the stage cannot succeed any more.
    pub(super) fn take(
        &mut self,
        outcome: Outcome,
        name: impl Fn(usize) -> String,
    ) -> Option<Failure> {
        self.n_busy -= 1;
        match outcome {
            Outcome::Quit { .. } => unreachable!("the lead hears that a worker quits"),
            Outcome::Dropped { slot } => {
                let (key, epoch) = self.place(slot);
                let is_lost =
                    matches!(self.slots[slot].phase, Phase::Running { is_lost: true, .. });
                self.set(slot, Phase::Publishing);
                if is_lost {
                    self.next.look.push(key);
                } else {
                    let (name, failure) = (name(slot), Failure::cancelled());
                    self.next.ends.push(End { key, epoch, name, failure });
                }
            }
            Outcome::Checked { slot, is_whole: true } => self.finish(slot),
            Outcome::Checked { slot, is_whole: false } => {
                let (key, epoch) = self.place(slot);
                self.set(slot, Phase::Publishing);
                self.next.spoiled.push((key, epoch));
            }
            Outcome::Worked { slot, result } => return self.worked(slot, result, name),
        }
        None
    }

    fn worked(
        &mut self,
        slot: usize,
        result: Result<(Digest, u64), Failure>,
        name: impl Fn(usize) -> String,
    ) -> Option<Failure> {
        let (key, epoch) = self.place(slot);
        let is_lost = matches!(self.slots[slot].phase, Phase::Running { is_lost: true, .. });
        self.set(slot, Phase::Publishing);
        if is_lost {
            self.discarded.push((key, epoch));
            self.next.look.push(key);
            return None;
        }
        match result {
            Ok((digest, size_bytes)) => {
                let name = name(slot);
                self.next.publishes.push(Publish { key, epoch, name, digest, size_bytes });
                None
            }
            Err(failure) => {
                let name = name(slot);
                let ended = failure.clone();
                self.next.ends.push(End { key, epoch, name: name.clone(), failure: ended });
                self.failed(slot, &name, failure)
            }
        }
    }

    fn failed(&mut self, slot: usize, name: &str, failure: Failure) -> Option<Failure> {
        let n_failed = &mut self.slots[slot].n_failed;
        *n_failed += 1;
        let n_tries = *n_failed;
        let named = format!("item `{name}`: {}", failure.message);
        match failure.kind {
            FailureKind::Transient if n_tries < self.tries_max => {
                let pause = self.backoff * 2_u32.saturating_pow(n_tries - 1).min(1 << 10);
                self.set(slot, Phase::Paused { until: Instant::now() + pause });
                None
            }
            // The item was tried as often as the node allows; trying the node again would multiply.
            FailureKind::Transient => {
                let message = format!("{named} (tried {n_tries} times)");
                Some(Failure { kind: FailureKind::Permanent, message, ..failure })
            }
            FailureKind::Cancelled => Some(failure),
            FailureKind::Permanent | FailureKind::Parked => {
                Some(Failure { message: named, ..failure })
            }
        }
    }
}
