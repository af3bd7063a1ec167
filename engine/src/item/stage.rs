//! How a task has the items of a stage done.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::table::{Job, Outcome};
use super::team::{Meter, Plan, Team};
use super::{Item, ItemKey, ItemResult, ItemResults, store};
use crate::store::remove_tree;
use crate::task::{CancelToken, Failure, panic_text};

/// A stage of a node's work: items of one kind, and how they are done.
pub struct Stage<'a> {
    team: Team<'a>,
    is_alone: bool,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(team: Team<'a>) -> Self {
        Self { team, is_alone: false }
    }

    /// Does one item at a time, with all threads of the node: for work that is parallel inside, and
    /// whose memory is to be had once.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.is_alone = true;
        self
    }

    /// Says that the node makes nothing of items after this stage, so that who only helped need not
    /// go on. The stage that completes [`ITEM_STAGES`](crate::task::Task::ITEM_STAGES) is the last
    /// without being told.
    #[must_use]
    pub fn last(mut self) -> Self {
        self.team.is_last_help = self.team.parts.helps.is_some();
        self
    }

    /// Has each item done and gives the results in the list's order. What was finished earlier is
    /// not repeated.
    ///
    /// # Errors
    /// The first item's failure, with the item's name. A transient one is tried again first.
    pub fn each<T: Send + Sync, R: Serialize>(
        self,
        items: Vec<Item<T>>,
        work: impl Fn(&T, &ItemContext<'_>) -> Result<R, Failure> + Sync,
    ) -> Result<ItemResults<R>, Failure> {
        self.each_with(items, |_| Ok(()), |(), part, item| work(part, item))
    }

    /// [`Self::each`] with something that is made once by each worker that finds work, for so many
    /// threads, and passed from item to item, such as buffers. It must not change results.
    ///
    /// # Errors
    /// As [`Self::each`].
    pub fn each_with<T: Send + Sync, S, R: Serialize>(
        self,
        items: Vec<Item<T>>,
        begin: impl Fn(usize) -> Result<S, Failure> + Sync,
        work: impl Fn(&mut S, &T, &ItemContext<'_>) -> Result<R, Failure> + Sync,
    ) -> Result<ItemResults<R>, Failure> {
        let plan = Plan {
            n_workers: self.n_workers(items.len()),
            n_held: 1,
            n_ahead: usize::MAX,
            weight: Some(items.iter().map(|item| item.weight).sum()),
        };
        let body = |feed: &Feed<'_, T>| {
            let mut state = None;
            while let Some(held) = feed.next() {
                let work = AssertUnwindSafe(|| {
                    if state.is_none() {
                        state = Some(begin(feed.n_threads)?);
                    }
                    let state = state.as_mut().expect("it was made above");
                    work(state, held.part(), &held.context())
                });
                let result = catch_unwind(work).unwrap_or_else(|panic| Err(panicked(&*panic)));
                held.end(result);
            }
            Ok(())
        };
        let mut dirs = Vec::with_capacity(items.len());
        let keep = |dir: PathBuf| {
            dirs.push(dir);
            Ok(ControlFlow::Continue(()))
        };
        self.finish(&plan, items.into_iter(), body, keep)?;
        Ok(ItemResults::new(dirs))
    }

    /// Has items done until enough are: `items` may have no end, and `take` gets the results in its
    /// order until it breaks. `work` is one worker's whole work: it takes items from the feed, up to
    /// `n_held` at a time, and finishes each in its own time, so that what one leaves idle another
    /// can use. It must return when the feed is stopped.
    ///
    /// # Errors
    /// As [`Self::each`]; when `work` or `take` fail.
    pub fn stream<T: Send + Sync, R: DeserializeOwned>(
        self,
        items: impl Iterator<Item = Item<T>>,
        n_held: usize,
        work: impl Fn(&Feed<'_, T>) -> Result<(), Failure> + Sync,
        mut take: impl FnMut(ItemResult<R>) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        let n_workers = self.n_workers(usize::MAX);
        // Room for as many others on the same ledger as a person starts.
        let n_ahead = 8 * n_workers * n_held.max(1);
        let plan = Plan { n_workers, n_held: n_held.max(1), n_ahead, weight: None };
        self.finish(&plan, items, work, |dir| take(store::read(dir)?))
    }

    fn n_workers(&self, n_items: usize) -> usize {
        if self.is_alone { 1 } else { self.team.n_threads.min(n_items).max(1) }
    }

    fn finish<T: Send + Sync>(
        self,
        plan: &Plan,
        items: impl Iterator<Item = Item<T>>,
        body: impl Fn(&Feed<'_, T>) -> Result<(), Failure> + Sync,
        take: impl FnMut(PathBuf) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        self.team.run(plan, items, body, take)?;
        // Whoever holds the node merges.
        if self.team.is_last_help { Err(Failure::cancelled()) } else { Ok(()) }
    }
}

/// Failure of work that panicked.
fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    Failure::permanent(format!("the task panicked: {}", panic_text(panic)))
}

/// What a worker gets its items from.
pub struct Feed<'a, T> {
    pub(super) team: &'a Team<'a>,
    pub(super) meter: &'a Meter<'a>,
    pub(super) todo: &'a Receiver<Order<T>>,
    pub(super) done: &'a Sender<Outcome>,
    pub(super) stop: &'a CancelToken,
    pub(super) n_threads: usize,
}

/// A job for a worker, and the item that it is about.
pub(super) struct Order<T> {
    pub(super) job: Job,
    pub(super) item: Arc<Item<T>>,
}

impl<T> Feed<'_, T> {
    /// Threads for this worker; at least 1. Must not change results.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Whether the worker is to return: enough is done, or the attempt ends.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The next item, once there is one; `None` when there is none any more.
    pub fn next(&self) -> Option<Held<'_, T>> {
        loop {
            if let Some(held) = self.accept(self.todo.recv().ok()?) {
                return Some(held);
            }
        }
    }

    /// The next item, if there is one now.
    pub fn try_next(&self) -> Option<Held<'_, T>> {
        loop {
            if let Some(held) = self.accept(self.todo.try_recv().ok()?) {
                return Some(held);
            }
        }
    }

    fn accept(&self, Order { job, item }: Order<T>) -> Option<Held<'_, T>> {
        let (slot, key, epoch, cancel) = match job {
            Job::Work { slot, key, epoch, cancel } => (slot, key, epoch, cancel),
            Job::Check { slot, key, epoch, digest } => {
                let is_whole = self.team.parts.store.is_whole(key, epoch, &digest);
                self.tell(Outcome::Checked { slot, is_whole });
                return None;
            }
        };
        let dir = self.team.scratch.join("items").join(format!("{key}-{epoch}"));
        if let Err(error) = remove_tree(&dir).and_then(|()| std::fs::create_dir_all(&dir)) {
            self.tell(Outcome::Worked { slot, result: Err(error.into()) });
            return None;
        }
        let reported = AtomicU64::new(0);
        Some(Held { feed: self, item, slot, key, epoch, cancel, dir, reported, is_open: true })
    }

    fn tell(&self, outcome: Outcome) {
        // Nobody listens when the stage has ended.
        let _ = self.done.send(outcome);
    }
}

/// An item that a worker works on. One that is dropped goes back to the list.
pub struct Held<'f, T> {
    feed: &'f Feed<'f, T>,
    item: Arc<Item<T>>,
    slot: usize,
    key: ItemKey,
    epoch: i64,
    cancel: CancelToken,
    dir: PathBuf,
    /// Progress on this item so far.
    reported: AtomicU64,
    is_open: bool,
}

impl<T> Held<'_, T> {
    /// What the work gets.
    pub fn part(&self) -> &T {
        &self.item.part
    }

    /// What the work on it sees of the world.
    pub fn context(&self) -> ItemContext<'_> {
        ItemContext {
            dir: &self.dir,
            n_threads: self.feed.n_threads,
            cancel: &self.cancel,
            meter: self.feed.meter,
            weight: self.item.weight,
            reported: &self.reported,
        }
    }

    /// Publishes the item with the files in its folder and `value`.
    pub fn finish(self, value: &impl Serialize) {
        self.end(Ok(value));
    }

    fn end(mut self, result: Result<impl Serialize, Failure>) {
        self.is_open = false;
        let (key, epoch) = (self.key, self.epoch);
        let result = result.and_then(|value| {
            let published = self.feed.team.parts.store.publish(&self.dir, &value, key, epoch);
            published.map_err(|error| Failure::io("cannot keep the item's result", &error))
        });
        self.feed.tell(Outcome::Worked { slot: self.slot, result });
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.feed.meter.withdraw(self.reported.load(Ordering::Relaxed));
        if self.is_open {
            self.feed.tell(Outcome::Dropped { slot: self.slot });
        }
    }
}

/// What the work on one item sees of the world.
pub struct ItemContext<'a> {
    dir: &'a Path,
    n_threads: usize,
    cancel: &'a CancelToken,
    meter: &'a Meter<'a>,
    weight: u64,
    reported: &'a AtomicU64,
}

impl ItemContext<'_> {
    /// The folder for the item's files, empty at first.
    pub fn dir(&self) -> &Path {
        self.dir
    }

    /// Threads for this item; at least 1. Must not change results.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// The token that tells this item to stop.
    pub fn cancel_token(&self) -> &CancelToken {
        self.cancel
    }

    /// Returns early from an item that was told to stop. Call it at least once a second.
    ///
    /// # Errors
    /// [`Failure::cancelled`] when it was.
    pub fn check_cancelled(&self) -> Result<(), Failure> {
        if self.cancel.is_cancelled() { Err(Failure::cancelled()) } else { Ok(()) }
    }

    /// Reports that `done` of the item's weight is finished.
    pub fn progress(&self, done: u64) {
        let done = done.min(self.weight);
        let before = self.reported.swap(done, Ordering::Relaxed);
        self.meter.move_by(before, done);
    }
}

/// Runs one worker: its body, then whatever still comes goes back.
pub(super) fn serve<T>(feed: &Feed<'_, T>, body: &impl Fn(&Feed<'_, T>) -> Result<(), Failure>) {
    let result = catch_unwind(AssertUnwindSafe(|| body(feed)));
    let result = result.unwrap_or_else(|panic| Err(panicked(&*panic)));
    feed.tell(Outcome::Quit { result });
    while let Some(held) = feed.next() {
        drop(held);
    }
}
