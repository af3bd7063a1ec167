//! Digests of many files at once: known ones by size, times and inode, the others by reading them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Error, ExternalFile, Stat, StatCache};
use crate::digest::Digest;
use crate::parallel;

/// A file changed this recently may change again without its times telling.
const SETTLED_NS: i64 = 2_000_000_000;
/// Pause between two words about the same files.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// So few files are not worth threads.
const FEW: usize = 64;

/// How far the reading of files whose digests are not known is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hashing {
    pub(crate) n_files: usize,
    /// `None` while a stream has not ended.
    pub(crate) size_bytes: Option<u64>,
    pub(crate) read_bytes: u64,
}

type Hashed = (ExternalFile, Stat);

/// The files with their digests, and whether `cache` changed. `told` hears of files that must be
/// read: at first, every second, and when all are.
pub(super) fn hash(
    matched: Vec<(PathBuf, String)>,
    cache: &mut StatCache,
    now_us: i64,
    told: &(dyn Fn(Hashing) + Sync),
) -> Result<(Vec<Hashed>, bool), Error> {
    let stat = |(path, _): &(PathBuf, String)| Stat::of(path).map_err(unreadable(path));
    // Asking for a few is faster than starting threads for it.
    let stats: Vec<Stat> = if matched.len() < FEW {
        matched.iter().map(stat).collect::<Result<_, _>>()?
    } else {
        parallel::map(&matched, stat).into_iter().collect::<Result<_, _>>()?
    };
    let known = |i: usize| {
        let (before, digest) = cache.get(&matched[i].1)?;
        (*before == stats[i]).then_some(*digest)
    };
    let mut digests: Vec<Option<Digest>> = (0..matched.len()).map(known).collect();
    let fresh: Vec<usize> = (0..matched.len()).filter(|&i| digests[i].is_none()).collect();
    let size_bytes = fresh.iter().map(|&i| stats[i].size_bytes).sum();
    let teller = Teller::new(fresh.len(), Some(size_bytes), told);
    let read = parallel::map(&fresh, |&i| {
        let path = &matched[i].0;
        let read = Digest::of_file_told(path, |n_bytes| teller.read(n_bytes));
        read.map(|(digest, _)| digest).map_err(unreadable(path))
    });
    teller.end();
    let mut changed = false;
    for (i, digest) in fresh.into_iter().zip(read) {
        let digest = digest?;
        digests[i] = Some(digest);
        let newest_ns = stats[i].mtime_ns.max(stats[i].ctime_ns);
        if newest_ns < now_us.saturating_mul(1000).saturating_sub(SETTLED_NS) {
            changed = true;
            cache.insert(matched[i].1.clone(), (stats[i], digest));
        }
    }
    let files =
        matched.into_iter().zip(stats).zip(digests).map(|(((path, relative), stat), digest)| {
            let digest = digest.expect("every file is known or was read");
            (ExternalFile::at(path, relative, digest, stat.size_bytes), stat)
        });
    Ok((files.collect(), changed))
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    |source| Error::Io { path: path.to_owned(), source }
}

/// Counts what was read, and tells of it now and then.
pub(super) struct Teller<'a> {
    told: &'a (dyn Fn(Hashing) + Sync),
    all: Hashing,
    read_bytes: AtomicU64,
    told_at: Mutex<Instant>,
}

impl<'a> Teller<'a> {
    pub(super) fn new(
        n_files: usize,
        size_bytes: Option<u64>,
        told: &'a (dyn Fn(Hashing) + Sync),
    ) -> Self {
        let all = Hashing { n_files, size_bytes, read_bytes: 0 };
        if all.n_files > 0 {
            told(all);
        }
        Self { told, all, read_bytes: AtomicU64::new(0), told_at: Mutex::new(Instant::now()) }
    }

    pub(super) fn end(&self) {
        if self.all.n_files > 0 {
            let read_bytes = self.read_bytes.load(Ordering::Relaxed);
            let size_bytes = self.all.size_bytes.unwrap_or(read_bytes);
            // A file may have changed its size meanwhile.
            let (size_bytes, read_bytes) = (Some(size_bytes), size_bytes);
            (self.told)(Hashing { size_bytes, read_bytes, ..self.all });
        }
    }

    pub(super) fn read(&self, n_bytes: u64) {
        let read_bytes = self.read_bytes.fetch_add(n_bytes, Ordering::Relaxed) + n_bytes;
        // Whoever finds it taken leaves the telling to who has it.
        let Ok(mut told_at) = self.told_at.try_lock() else { return };
        if told_at.elapsed() >= TELL_EVERY {
            *told_at = Instant::now();
            (self.told)(Hashing { read_bytes, ..self.all });
        }
    }
}
