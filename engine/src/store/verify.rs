//! Reads the whole store again.

use std::collections::BTreeMap;
use std::fs;

use crate::digest::Digest;
use crate::parallel;

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
        let problems = parallel::map(digests, |digest| self.verify(digest).err());
        let found = digests.iter().zip(problems);
        found.filter_map(|(digest, problem)| Some((*digest, problem?))).collect()
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
