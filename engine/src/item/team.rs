//! The workers of a stage: claims items, works on them in parallel, publishes them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam::channel::{Receiver, Sender, unbounded};
use serde::Serialize;

use super::table::{Job, Outcome, Table};
use super::{Call, Item, ItemContext, ItemKey, ItemParts, ItemResults, Listed};
use crate::store::remove_tree;
use crate::task::{CancelToken, Failure, Report, Sink, panic_text};

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

/// Adds up the progress of items.
struct Meter<'a> {
    sink: &'a dyn Sink,
    unit: &'a str,
    total: u64,
    finished: AtomicU64,
    /// Progress of the item that each worker is at.
    under_way: Vec<AtomicU64>,
}

impl Meter<'_> {
    fn report(&self) {
        let under_way: u64 = self.under_way.iter().map(|n| n.load(Ordering::Relaxed)).sum();
        let done = (self.finished.load(Ordering::Relaxed) + under_way).min(self.total);
        let (total, unit) = (self.total, self.unit.to_owned());
        self.sink.report(Report::Progress { done, total, unit });
    }
}

/// A list without repetitions.
struct List<'i, T> {
    items: Vec<&'i Item<T>>,
    keys: Vec<ItemKey>,
    /// For each place in the list as given, the item.
    places: Vec<usize>,
}

impl<'i, T> List<'i, T> {
    fn new(items: &'i [Item<T>], parts: &ItemParts, stage: &str) -> Self {
        let mut list = Self { items: Vec::new(), keys: Vec::new(), places: Vec::new() };
        let mut seen: BTreeMap<ItemKey, usize> = BTreeMap::new();
        for item in items {
            let key = item.key(&parts.scope, stage);
            let slot = *seen.entry(key).or_insert_with(|| {
                list.items.push(item);
                list.keys.push(key);
                list.items.len() - 1
            });
            list.places.push(slot);
        }
        list
    }
}

impl Team<'_> {
    /// Has every item done, here or elsewhere, and gives the results in the list's order.
    pub(crate) fn run<T, R, F>(&self, items: &[Item<T>], work: F) -> Result<ItemResults<R>, Failure>
    where
        T: Sync,
        R: Serialize,
        F: Fn(&T, &ItemContext<'_>) -> Result<R, Failure> + Sync,
    {
        let list = List::new(items, self.parts, self.stage);
        let mut table = Table::new(list.keys.clone(), self.parts, self.cancel);
        self.enter_list(&list, &mut table)?;
        let n_workers = self.n_threads.min(list.items.len()).max(1);
        let meter = Meter {
            sink: self.sink,
            unit: self.unit,
            total: list.items.iter().map(|item| item.weight).sum(),
            finished: AtomicU64::new(0),
            under_way: (0..n_workers).map(|_| AtomicU64::new(0)).collect(),
        };
        let (jobs, todo) = unbounded();
        let (done, outcomes) = unbounded();
        let worker = Worker {
            team: self,
            list: &list,
            work: &work,
            meter: &meter,
            n_threads: (self.n_threads / n_workers).max(1),
        };
        thread::scope(|scope| {
            for place in 0..n_workers {
                let (todo, done, worker) = (todo.clone(), done.clone(), &worker);
                scope.spawn(move || worker.run(place, &todo, &done));
            }
            let led = self.lead(&mut table, &list, &meter, n_workers, &jobs, &outcomes);
            // The workers find their queue closed.
            drop(jobs);
            led
        })?;
        let dir = |slot: &usize| {
            let (key, epoch) = table.place(*slot);
            self.parts.store.path(key, epoch)
        };
        Ok(ItemResults::new(list.places.iter().map(dir).collect()))
    }

    /// Writes the list to the ledger and learns what is there.
    fn enter_list<T>(&self, list: &List<'_, T>, table: &mut Table) -> Result<(), Failure> {
        let listed = |ordinal: usize, key: &ItemKey| Listed {
            stage: self.stage.to_owned(),
            ordinal: ordinal as u64,
            key: *key,
            name: list.items[ordinal].name.clone(),
        };
        for start in (0..list.keys.len()).step_by(LIST_MAX) {
            let keys = &list.keys[start..list.keys.len().min(start + LIST_MAX)];
            let rows = keys.iter().enumerate().map(|(i, key)| listed(start + i, key)).collect();
            let call = Call { list: rows, recover: true, ..Call::default() };
            table.learn(self.parts.board.call(call).ok_or_else(Failure::cancelled)?);
        }
        Ok(())
    }

    /// Gives out work and tells the ledger, until everything is done or nothing more can be.
    fn lead<T>(
        &self,
        table: &mut Table,
        list: &List<'_, T>,
        meter: &Meter<'_>,
        n_workers: usize,
        jobs: &Sender<Job>,
        outcomes: &Receiver<Outcome>,
    ) -> Result<(), Failure> {
        let name = |slot: usize| list.items[slot].name.clone();
        let mut failure: Option<Failure> = None;
        meter.report();
        loop {
            if (self.cancel.is_cancelled() || table.is_over) && failure.is_none() {
                failure = Some(Failure::cancelled());
            }
            if failure.is_some() {
                table.give_back(name);
            }
            while table.n_busy() < n_workers
                && let Some(job) = table.next_job()
            {
                jobs.send(job).expect("the workers wait for work");
            }
            let n_free = if failure.is_some() { 0 } else { n_workers - table.n_busy() };
            let call = table.call(n_free, self.parts.helps.is_some());
            let told = !call.is_empty();
            if told {
                let states = self.parts.board.call(call).ok_or_else(Failure::cancelled)?;
                table.learn(states);
            }
            for (key, epoch) in table.discarded.drain(..) {
                // What stays is removed with the rest of the store's garbage.
                let _ = self.parts.store.remove(key, epoch);
            }
            for slot in table.newly_done.drain(..) {
                meter.finished.fetch_add(list.items[slot].weight, Ordering::Relaxed);
                meter.report();
            }
            if table.is_done() {
                return Ok(());
            }
            if !table.is_busy() {
                if let Some(failure) = failure {
                    return Err(failure);
                }
                if self.is_last_help && !table.has_free_work() && !table.has_jobs() {
                    return Err(Failure::cancelled());
                }
            }
            if told {
                continue;
            }
            if let Ok(outcome) = outcomes.recv_timeout(table.wait()) {
                failure = failure.or(table.take(outcome, name));
                while let Ok(outcome) = outcomes.try_recv() {
                    failure = failure.or(table.take(outcome, name));
                }
            }
        }
    }
}

/// What the threads of a team share.
struct Worker<'a, T, F> {
    team: &'a Team<'a>,
    list: &'a List<'a, T>,
    work: &'a F,
    meter: &'a Meter<'a>,
    n_threads: usize,
}

impl<T, R, F> Worker<'_, T, F>
where
    T: Sync,
    R: Serialize,
    F: Fn(&T, &ItemContext<'_>) -> Result<R, Failure> + Sync,
{
    fn run(&self, place: usize, todo: &Receiver<Job>, done: &Sender<Outcome>) {
        for job in todo {
            let outcome = match job {
                Job::Check { slot, key, epoch, digest } => {
                    let is_whole = self.team.parts.store.is_whole(key, epoch, &digest);
                    Outcome::Checked { slot, is_whole }
                }
                Job::Work { slot, key, epoch, cancel } => {
                    let result = self.work_on(place, slot, key, epoch, &cancel);
                    self.meter.under_way[place].store(0, Ordering::Relaxed);
                    Outcome::Worked { slot, result }
                }
            };
            if done.send(outcome).is_err() {
                return;
            }
        }
    }

    fn work_on(
        &self,
        place: usize,
        slot: usize,
        key: ItemKey,
        epoch: i64,
        cancel: &CancelToken,
    ) -> Result<(crate::digest::Digest, u64), Failure> {
        let item = self.list.items[slot];
        let dir = self.team.scratch.join("items").join(format!("{key}-{epoch}"));
        remove_tree(&dir)?;
        std::fs::create_dir_all(&dir)?;
        let progress = |done: u64| {
            self.meter.under_way[place].store(done.min(item.weight), Ordering::Relaxed);
            self.meter.report();
        };
        let context =
            ItemContext { dir: &dir, n_threads: self.n_threads, cancel, progress: &progress };
        let work = AssertUnwindSafe(|| (self.work)(&item.part, &context));
        let value = match catch_unwind(work) {
            Ok(value) => value?,
            Err(panic) => {
                let text = panic_text(&*panic);
                return Err(Failure::permanent(format!("the task panicked: {text}")));
            }
        };
        let published = self.team.parts.store.publish(&dir, &value, key, epoch);
        published.map_err(|error| Failure::io("cannot keep the item's result", &error))
    }
}
