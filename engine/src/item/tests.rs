//! Stages on a board in memory: endless lists, workers that hold several items, and how they end.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::memory::MemoryBoard;
use super::*;
use crate::checkpoint::CheckpointStore;
use crate::task::testbed::MemorySink;
use crate::task::{CancelToken, Context, ContextParts, FailureKind, Feed, Held, ItemResult};

fn context(dir: &Path, board: &Arc<MemoryBoard>, n_threads: usize) -> Context {
    let parts = ContextParts {
        out_dir: dir.join("out"),
        scratch_dir: dir.join("scratch"),
        checkpoints: CheckpointStore::new(dir.join("checkpoints")),
        external: Vec::new(),
        n_threads,
        memory_bytes: None,
        is_approved: false,
        device: "cpu".to_owned(),
        upstream: Vec::new(),
        cancel: CancelToken::default(),
        sink: Arc::new(MemorySink::default()),
    };
    let board = Arc::<MemoryBoard>::clone(board);
    Context::with_items(parts, ItemParts { board, ..ItemParts::alone(&dir.join("items"), "t") })
}

fn numbers() -> impl Iterator<Item = Item<u64>> {
    (0..).map(|i| Item::new(format!("{i}"), &i, i))
}

/// Finishes items when it holds `n` of them, from the end if told to.
fn hold(feed: &Feed<'_, u64>, n: usize, from_end: bool) {
    let mut held: Vec<Held<'_, u64>> = Vec::new();
    while !feed.is_stopped() {
        match feed.try_next() {
            Some(next) => held.push(next),
            None if held.is_empty() => match feed.next() {
                Some(next) => held.push(next),
                None => return,
            },
            None => std::thread::yield_now(),
        }
        if held.len() == n {
            if from_end {
                held.reverse();
            }
            for done in held.drain(..) {
                let square = *done.part() * *done.part();
                done.finish(&square);
            }
        }
    }
}

/// [`hold`] as a worker.
fn holder(n: usize, from_end: bool) -> impl Fn(&Feed<'_, u64>) -> Result<(), Failure> + Sync {
    move |feed| {
        hold(feed, n, from_end);
        Ok(())
    }
}

/// Sums squares until the sum is at least `enough`.
fn sum(
    ctx: &Context,
    enough: u64,
    work: impl Fn(&Feed<'_, u64>) -> Result<(), Failure> + Sync,
) -> Result<u64, Failure> {
    let mut total = 0;
    ctx.stage("square", "numbers").stream(numbers(), 3, work, |item: ItemResult<u64>| {
        total += item.value;
        Ok(if total >= enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(total)
}

#[test]
fn an_endless_list_is_taken_in_order_until_it_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    // 0 + 1 + 4 + .. + 400 is the first sum above 2,800.
    let mut n_tries = BTreeMap::new();
    for (n_threads, n_held, from_end) in [(1, 1, false), (1, 3, true), (2, 2, false), (3, 3, true)]
    {
        let place = dir.path().join(format!("{n_threads} {n_held}"));
        let board = Arc::default();
        let ctx = context(&place, &board, n_threads);
        // From the end, so that results wait for their turn.
        let total = sum(&ctx, 2_800, holder(n_held, from_end)).unwrap();
        assert_eq!(total, 2_870, "{n_threads} threads");
        n_tries.insert((n_threads, n_held), board.n_tries());
        // Enough is less now, and nothing of it is done again.
        let done = Mutex::new(Vec::new());
        let total = sum(&ctx, 2_000, |feed| {
            while let Some(held) = feed.next() {
                done.lock().unwrap().push(*held.part());
            }
            Ok(())
        });
        assert_eq!(total.unwrap(), 2_109);
        assert!(done.lock().unwrap().iter().all(|&i| i > 20), "{done:?}");
    }
    // What was begun past the end is little: what the workers hold.
    assert!(n_tries.values().all(|n| (21..=21 + 9 * 4).contains(n)), "{n_tries:?}");
}

#[test]
fn a_stream_ends_with_its_failures() {
    let dir = tempfile::tempdir().unwrap();
    let board = Arc::default();
    let ctx = context(dir.path(), &board, 2);
    let failed = |failure: Result<u64, Failure>| failure.unwrap_err().message;
    let message = failed(sum(&ctx, 50, |feed| {
        let _held = feed.next();
        Err(Failure::permanent("the model is gone"))
    }));
    assert_eq!(message, "the model is gone");
    let message = failed(sum(&ctx, 50, |feed| {
        let _held = feed.next();
        panic!("told to panic")
    }));
    assert_eq!(message, "the task panicked: told to panic");
    let taken = ctx.stage("square", "numbers").stream(
        numbers(),
        1,
        holder(1, false),
        |item: ItemResult<u64>| match item.value {
            9 => Err(Failure::permanent("nine")),
            _ => Ok(ControlFlow::Continue(())),
        },
    );
    assert_eq!(taken.unwrap_err().message, "nine");
    ctx.cancel_token().cancel();
    let cancelled = sum(&ctx, 1_000, holder(1, false)).unwrap_err();
    assert_eq!(cancelled.kind, FailureKind::Cancelled);
}

/// A list with an end that is not enough is no failure: the task says what to do.
#[test]
fn a_stream_may_run_dry() {
    let dir = tempfile::tempdir().unwrap();
    let ctx = context(dir.path(), &Arc::default(), 2);
    let mut values = Vec::new();
    let work = |feed: &Feed<'_, u64>| {
        while let Some(held) = feed.next() {
            let value = *held.part();
            held.finish(&value);
        }
        Ok(())
    };
    let take = |item: ItemResult<u64>| {
        values.push(item.value);
        Ok(ControlFlow::Continue(()))
    };
    ctx.stage("square", "numbers").stream(numbers().take(30), 2, work, take).unwrap();
    assert_eq!(values, (0..30).collect::<Vec<_>>());
}

/// A worker's state is made once, by workers that find work only; alone there is one.
#[test]
fn workers_begin_when_there_is_work() {
    let dir = tempfile::tempdir().unwrap();
    let ctx = context(dir.path(), &Arc::default(), 4);
    let (begun, seen) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let run = |n: usize| {
        let begin = |n_threads| {
            begun.fetch_add(1, Ordering::Relaxed);
            Ok(n_threads)
        };
        let work = |n_threads: &mut usize, i: &u64, item: &ItemContext<'_>| {
            seen.lock().unwrap().push((*n_threads, item.n_threads()));
            Ok(*i)
        };
        let items = numbers().take(n).collect();
        let results = ctx.stage("count", "numbers").alone().each_with(items, begin, work).unwrap();
        results.map(|result| result.unwrap().value).sum::<u64>()
    };
    assert_eq!((run(0), begun.load(Ordering::Relaxed)), (0, 0));
    assert_eq!((run(5), begun.load(Ordering::Relaxed)), (10, 1));
    assert_eq!((run(5), begun.load(Ordering::Relaxed)), (10, 1), "all were done");
    assert_eq!((run(6), begun.load(Ordering::Relaxed)), (15, 2));
    assert_eq!(*seen.lock().unwrap(), [(4, 4); 6]);
}
