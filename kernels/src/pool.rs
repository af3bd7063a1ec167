//! A fixed set of worker threads for the parallel ops.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::isa::Isa;

/// A fixed set of worker threads. Ops cut their work into tiles whose size does not depend on the
/// number of threads, so that results do not either.
pub struct Pool {
    workers: Option<rayon::ThreadPool>,
    n_threads: usize,
    isa: Isa,
    /// Buffers of finished ops, for later ones: fresh memory costs a page fault for each 4 KB.
    spare: Mutex<Vec<Vec<f32>>>,
}

impl Pool {
    /// A pool of `n_threads` (at least 1); one thread means the caller's own.
    ///
    /// # Panics
    /// When the system refuses to start a thread.
    pub fn new(n_threads: usize) -> Self {
        Self::with_isa(n_threads, Isa::best())
    }

    /// A pool whose ops use the paths for `isa`, to compare them.
    ///
    /// # Panics
    /// When the system refuses to start a thread.
    pub fn with_isa(n_threads: usize, isa: Isa) -> Self {
        let n_threads = n_threads.max(1);
        let workers = (n_threads > 1).then(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(n_threads)
                .thread_name(|i| format!("kernel-{i}"))
                .build()
                .expect("the system starts worker threads")
        });
        Self { workers, n_threads, isa, spare: Mutex::new(Vec::new()) }
    }

    /// Threads in the pool.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// The instruction set that ops on this pool use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Runs `work` on a worker thread, where the parallel parts of ops start without waking the
    /// pool each time: for long chains of small ops.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.workers {
            Some(workers) => workers.install(work),
            None => work(),
        }
    }

    /// A buffer of at least `len` elements of any value.
    pub(crate) fn take_buffer(&self, len: usize) -> Vec<f32> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = spare.iter().position(|buffer| buffer.len() >= len);
        let mut buffer = match fitting {
            Some(i) => spare.swap_remove(i),
            None => spare.pop().unwrap_or_default(),
        };
        drop(spare);
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        buffer
    }

    /// Keeps a buffer for a later op.
    pub(crate) fn give_buffer(&self, buffer: Vec<f32>) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    /// Runs `work(tile)` for every tile in `0..n_tiles`, in any order.
    pub fn for_each(&self, n_tiles: usize, work: impl Fn(usize) + Sync + Send) {
        match &self.workers {
            Some(workers) if n_tiles > 1 => {
                workers.install(|| (0..n_tiles).into_par_iter().with_max_len(1).for_each(work));
            }
            _ => (0..n_tiles).for_each(work),
        }
    }

    /// Runs `work(i, chunk)` for every chunk of `chunk_len` elements of `data` (the last may be
    /// shorter).
    pub fn for_chunks<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        work: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        match &self.workers {
            Some(workers) if data.len() > chunk_len => workers.install(|| {
                data.par_chunks_mut(chunk_len)
                    .with_max_len(1)
                    .enumerate()
                    .for_each(|(i, chunk)| work(i, chunk));
            }),
            _ => data.chunks_mut(chunk_len).enumerate().for_each(|(i, chunk)| work(i, chunk)),
        }
    }
}
