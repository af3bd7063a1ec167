//! Folders of finished items: durable before they are named in the ledger, checked before use.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ItemKey, ItemResult};
use crate::digest::Digest;
use crate::store::{Manifest, remove_tree};
use crate::task::Failure;

/// The value that an item returned.
const VALUE: &str = "item.json";

/// The folder of item results below a store: `items/ab/KEY-EPOCH/`.
#[derive(Clone, Debug)]
pub(crate) struct ItemStore {
    dir: PathBuf,
}

impl ItemStore {
    /// Items in `dir`, which need not exist yet.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the result of an epoch lies. Each epoch has its own place, so that somebody who lost
    /// his lease never touches what another one published.
    pub(crate) fn path(&self, key: ItemKey, epoch: i64) -> PathBuf {
        self.folder(&Self::name(key, epoch))
    }

    /// The name of the folder of a result.
    pub(crate) fn name(key: ItemKey, epoch: i64) -> String {
        format!("{key}-{epoch}")
    }

    /// Where the folder of this name lies.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name.get(..2).unwrap_or(name)).join(name)
    }

    /// Adds `value` to the folder `from`, makes it durable and moves it to its place; gives its
    /// digest and size.
    pub(crate) fn publish(
        &self,
        from: &Path,
        value: &impl Serialize,
        key: ItemKey,
        epoch: i64,
    ) -> io::Result<(Digest, u64)> {
        fs::write(from.join(VALUE), serde_json::to_vec(value)?)?;
        let manifest = Manifest::of_dir(from)?;
        for entry in walkdir::WalkDir::new(from).contents_first(true) {
            File::open(entry.map_err(io::Error::from)?.path())?.sync_all()?;
        }
        let to = self.path(key, epoch);
        let parent = to.parent().expect("an item lies in a folder");
        fs::create_dir_all(parent)?;
        // Only an earlier try with this very epoch can lie there.
        remove_tree(&to)?;
        fs::rename(from, &to)?;
        File::open(parent)?.sync_all()?;
        File::open(&self.dir)?.sync_all()?;
        Ok((manifest.digest(), manifest.size_bytes()))
    }

    /// Whether the result is there and whole.
    pub(crate) fn is_whole(&self, key: ItemKey, epoch: i64, digest: &Digest) -> bool {
        Manifest::of_dir(&self.path(key, epoch)).is_ok_and(|found| found.digest() == *digest)
    }

    /// Removes a result that nobody needs.
    pub(crate) fn remove(&self, key: ItemKey, epoch: i64) -> io::Result<()> {
        remove_tree(&self.path(key, epoch))
    }
}

/// The result of the item in `dir`.
pub(super) fn read<R: DeserializeOwned>(dir: PathBuf) -> Result<ItemResult<R>, Failure> {
    let read = || -> io::Result<R> { Ok(serde_json::from_slice(&fs::read(dir.join(VALUE))?)?) };
    match read() {
        Ok(value) => Ok(ItemResult { dir, value }),
        Err(error) => Err(Failure::io("cannot read an item's result", &error)),
    }
}
