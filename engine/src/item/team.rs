//! The workers of a stage, and who leads them: lists items, claims them, gives them out, tells the
//! ledger, and passes results on in order.

use std::iter::Fuse;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::stage::{Feed, Order, serve};
use super::table::{Outcome, Table};
use super::{Call, Item, ItemParts, Listed};
use crate::task::{CancelToken, Failure, Report, Sink};

/// Items listed in one transaction.
const LIST_MAX: usize = 10_000;

/// What a stage needs of its attempt.
pub(crate) struct Team<'a> {
    pub(crate) parts: &'a ItemParts,
    /// Threads of the node.
    pub(crate) n_threads: usize,
    /// Where items are written before they are moved to the store.
    pub(crate) scratch: &'a Path,
    pub(crate) cancel: &'a CancelToken,
    pub(crate) sink: &'a dyn Sink,
    pub(crate) stage: &'a str,
    pub(crate) unit: &'a str,
    /// Whether nothing of the attempt is needed after this stage: it only helps another process.
    pub(crate) is_last_help: bool,
}

/// How a team works.
pub(super) struct Plan {
    /// Workers; the node's threads are shared out evenly.
    pub(super) n_workers: usize,
    /// Items that a worker holds at a time, at most.
    pub(super) n_held: usize,
    /// Items listed past the first that is not finished. Whoever comes to help finds work there.
    pub(super) n_ahead: usize,
    /// Weight of all items; `None` when there may be no end, and the task reports progress itself.
    pub(super) weight: Option<u64>,
}

impl Plan {
    fn is_open_ended(&self) -> bool {
        self.weight.is_none()
    }
}

/// Adds up the progress of items.
pub(super) struct Meter<'a> {
    sink: &'a dyn Sink,
    unit: &'a str,
    total: Option<u64>,
    finished: AtomicU64,
    /// Progress on items that are not finished.
    under_way: AtomicU64,
}

impl Meter<'_> {
    fn report(&self) {
        let Some(total) = self.total else { return };
        let sum = self.finished.load(Ordering::Relaxed) + self.under_way.load(Ordering::Relaxed);
        let (done, unit) = (sum.min(total), self.unit.to_owned());
        self.sink.report(Report::Progress { done, total, unit });
    }

    pub(super) fn move_by(&self, before: u64, now: u64) {
        self.under_way.fetch_add(now, Ordering::Relaxed);
        self.withdraw(before);
        self.report();
    }

    pub(super) fn withdraw(&self, done: u64) {
        self.under_way.fetch_sub(done, Ordering::Relaxed);
    }
}

impl Team<'_> {
    /// Has items done, here or elsewhere, and passes the folders of their results to `take` in the
    /// list's order, until there are none or it breaks.
    pub(super) fn run<T, B>(
        &self,
        plan: &Plan,
        items: impl Iterator<Item = Item<T>>,
        body: B,
        take: impl FnMut(PathBuf) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure>
    where
        T: Send + Sync,
        B: Fn(&Feed<'_, T>) -> Result<(), Failure> + Sync,
    {
        let stop = self.cancel.child();
        let meter = Meter {
            sink: self.sink,
            unit: self.unit,
            total: plan.weight,
            finished: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
        };
        let (jobs, todo) = unbounded();
        let (done, outcomes) = unbounded();
        let (todo, done) = (&todo, &done);
        let lead = Lead {
            team: self,
            plan,
            stop: &stop,
            meter: &meter,
            table: Table::new(self.parts, &stop),
            source: items.fuse(),
            has_more: true,
            items: Vec::new(),
            places: Vec::new(),
            n_taken: 0,
            failure: None,
            is_enough: false,
            take,
        };
        thread::scope(|scope| {
            let (meter, stop, body) = (&meter, &stop, &body);
            let n_threads = (self.n_threads / plan.n_workers).max(1);
            for _ in 0..plan.n_workers {
                scope.spawn(move || {
                    serve(&Feed { team: self, meter, todo, done, stop, n_threads }, body);
                });
            }
            let led = lead.run(&jobs, &outcomes);
            stop.cancel();
            // The workers find their queue closed.
            drop(jobs);
            led
        })
    }
}

struct Lead<'t, T, N: Iterator, F> {
    team: &'t Team<'t>,
    plan: &'t Plan,
    /// Stops this stage, not the attempt.
    stop: &'t CancelToken,
    meter: &'t Meter<'t>,
    table: Table,
    source: Fuse<N>,
    has_more: bool,
    /// Distinct items, by their slots in the table.
    items: Vec<Arc<Item<T>>>,
    /// For each place in the list as given, the slot.
    places: Vec<usize>,
    /// Places whose results were passed on.
    n_taken: usize,
    failure: Option<Failure>,
    /// Whether the task wants no more.
    is_enough: bool,
    take: F,
}

impl<T, N, F> Lead<'_, T, N, F>
where
    N: Iterator<Item = Item<T>>,
    F: FnMut(PathBuf) -> Result<ControlFlow<()>, Failure>,
{
    /// Gives out work and tells the ledger, until everything is done or nothing more can be.
    fn run(mut self, jobs: &Sender<Order<T>>, outcomes: &Receiver<Outcome>) -> Result<(), Failure> {
        let n_held = self.plan.n_workers * self.plan.n_held;
        self.enter_list()?;
        self.meter.report();
        loop {
            self.pass_on();
            let is_stopped = self.team.cancel.is_cancelled() || self.table.is_over;
            if is_stopped && !self.ends() {
                self.failure = Some(Failure::cancelled());
            }
            if self.ends() {
                if self.is_enough || self.plan.is_open_ended() {
                    self.stop.cancel();
                }
                let items = &self.items;
                self.table.give_back(|slot| items[slot].name.clone());
            } else {
                self.enter_list()?;
            }
            while self.table.n_busy() < n_held
                && let Some(job) = self.table.next_job()
            {
                let item = Arc::clone(&self.items[job.slot()]);
                jobs.send(Order { job, item }).expect("the workers wait for work");
            }
            let n_free = if self.ends() { 0 } else { n_held - self.table.n_busy() };
            let told = self.tell_ledger(n_free)?;
            if let Some(result) = self.result() {
                return result;
            }
            if !told && let Ok(outcome) = outcomes.recv_timeout(self.table.wait()) {
                self.heed(outcome);
                while let Ok(outcome) = outcomes.try_recv() {
                    self.heed(outcome);
                }
            }
        }
    }

    /// Whether no more work is to begin.
    fn ends(&self) -> bool {
        self.failure.is_some() || self.is_enough
    }

    /// How the stage ended, once it did.
    fn result(&mut self) -> Option<Result<(), Failure>> {
        let is_done = !self.has_more
            && self.n_taken == self.places.len()
            && self.table.n_done() == self.items.len();
        if is_done && self.failure.is_none() {
            return Some(Ok(()));
        }
        if self.table.is_busy() {
            return None;
        }
        if self.is_enough {
            return Some(Ok(()));
        }
        if let Some(failure) = self.failure.take() {
            return Some(Err(failure));
        }
        let has_work = self.has_more || self.table.has_free_work() || self.table.has_jobs();
        (self.team.is_last_help && !has_work).then(|| Err(Failure::cancelled()))
    }

    /// Passes on the results that are next in order.
    fn pass_on(&mut self) {
        while !self.ends()
            && let Some(&slot) = self.places.get(self.n_taken)
            && let Some((key, epoch)) = self.table.finished(slot)
        {
            self.n_taken += 1;
            match (self.take)(self.team.parts.store.path(key, epoch)) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => self.is_enough = true,
                Err(failure) => self.failure = Some(failure),
            }
        }
    }

    /// Lists items as far ahead as planned, and learns what the ledger has of them.
    fn enter_list(&mut self) -> Result<(), Failure> {
        let end = self.n_taken.saturating_add(self.plan.n_ahead);
        // Not one row at a time.
        let is_low = self.places.len() < self.n_taken + self.plan.n_ahead.div_ceil(2);
        while self.has_more && is_low && self.places.len() < end {
            let room = LIST_MAX.min(end - self.places.len());
            let n_before = self.places.len();
            let mut rows = Vec::new();
            for item in self.source.by_ref().take(room) {
                let key = item.key(&self.team.parts.scope, self.team.stage);
                let slot = self.table.slot(key);
                if slot == self.items.len() {
                    let (stage, name) = (self.team.stage.to_owned(), item.name.clone());
                    rows.push(Listed { stage, ordinal: slot as u64, key, name });
                    self.items.push(Arc::new(item));
                }
                self.places.push(slot);
            }
            self.has_more = self.places.len() == n_before + room;
            if rows.is_empty() {
                continue;
            }
            let call = Call { list: rows, recover: true, ..Call::default() };
            let states = self.team.parts.board.call(call).ok_or_else(Failure::cancelled)?;
            self.table.learn(states);
        }
        Ok(())
    }

    /// Sends what there is to say; gives whether there was anything.
    fn tell_ledger(&mut self, n_free: usize) -> Result<bool, Failure> {
        // Where the end is open, what is far ahead may not be wanted.
        let from_end = self.team.parts.helps.is_some() && !self.plan.is_open_ended();
        let call = self.table.call(n_free, from_end);
        let told = !call.is_empty();
        if told {
            let states = self.team.parts.board.call(call).ok_or_else(Failure::cancelled)?;
            self.table.learn(states);
        }
        for (key, epoch) in self.table.discarded.drain(..) {
            // What stays is removed with the rest of the store's garbage.
            let _ = self.team.parts.store.remove(key, epoch);
        }
        for slot in self.table.newly_done.drain(..) {
            self.meter.finished.fetch_add(self.items[slot].weight, Ordering::Relaxed);
            self.meter.report();
        }
        Ok(told)
    }

    fn heed(&mut self, outcome: Outcome) {
        let items = &self.items;
        let failure = match outcome {
            Outcome::Quit { result } => Some(result.err().unwrap_or_else(Failure::cancelled)),
            outcome => self.table.take(outcome, |slot| items[slot].name.clone()),
        };
        if !self.ends() {
            self.failure = failure;
        }
    }
}
