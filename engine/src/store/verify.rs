//! Reads the whole store again.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::digest::Digest;

use super::{Error, Manifest, Store};

impl Store {
    /// Digests of the artifacts in this store, sorted.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn artifacts(&self) -> Result<Vec<Digest>, Error> {
        let root = self.dir.join("store");
        let mut digests = Vec::new();
        if !root.exists() {
            return Ok(digests);
        }
        for shard in fs::read_dir(&root).map_err(Error::io("list", &root))? {
            let shard = shard.map_err(Error::io("list", &root))?.path();
            if !shard.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&shard).map_err(Error::io("list", &shard))? {
                let entry = entry.map_err(Error::io("list", &shard))?;
                // Whatever else lies here was not published.
                digests.extend(
                    entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()),
                );
            }
        }
        digests.sort_unstable();
        Ok(digests)
    }

    /// Reads artifacts in full on all threads of the machine; gives those that are not whole, with what
    /// is wrong, as [`Self::verify`] says it.
    pub fn verify_all(&self, digests: &[Digest]) -> BTreeMap<Digest, String> {
        let n_threads = thread::available_parallelism().map_or(1, NonZero::get);
        let next = AtomicUsize::new(0);
        let read = || {
            let mut problems = BTreeMap::new();
            while let Some(digest) = digests.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(problem) = self.verify(digest) {
                    problems.insert(*digest, problem);
                }
            }
            problems
        };
        thread::scope(|scope| {
            let n_helpers = n_threads.min(digests.len()).saturating_sub(1);
            let helpers: Vec<_> = (0..n_helpers).map(|_| scope.spawn(read)).collect();
            let mut problems = read();
            for helper in helpers {
                problems.extend(helper.join().expect("reading files does not panic"));
            }
            problems
        })
    }

    /// Reads every file of an artifact, and gives their size in bytes.
    ///
    /// # Errors
    /// What is wrong: a file cannot be read, or the content is not what the digest says.
    pub fn verify(&self, digest: &Digest) -> Result<u64, String> {
        let found = Manifest::of_dir(&self.path(digest)).map_err(|error| error.to_string())?;
        if found.digest() == *digest {
            Ok(found.size_bytes())
        } else {
            Err(format!("its content has the digest {}", found.digest()))
        }
    }
}
