//! The same work on each of many things, on all threads of the machine.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};

/// What `f` gives for each of `all`, in their order.
pub(crate) fn map<T: Sync, R: Send>(all: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let n_threads = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut part = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = all.get(i) else { return part };
            part.push((i, f(one)));
        }
    };
    let mut results = thread::scope(|scope| {
        let n_helpers = n_threads.min(all.len()).saturating_sub(1);
        let helpers: Vec<_> = (0..n_helpers).map(|_| scope.spawn(work)).collect();
        let mut results = work();
        let join = |helper: ScopedJoinHandle<'_, _>| {
            helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        results.extend(helpers.into_iter().flat_map(join));
        results
    });
    results.sort_unstable_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}
