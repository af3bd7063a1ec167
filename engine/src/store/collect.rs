//! What lies in the store's folders, and the removal of what is garbage.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Error, Store, remove_tree, set_writable};
use crate::digest::Digest;

/// A folder beside the artifacts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The folder's name.
    pub name: String,
    /// Size of its files in bytes.
    pub size_bytes: u64,
    /// What it holds.
    pub kind: LeftoverKind,
}

/// What a folder beside the artifacts holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftoverKind {
    /// What attempts at a key saved.
    Checkpoint,
    /// The result of an item.
    Item,
    /// A damaged artifact.
    Damaged,
}

impl Store {
    /// Every artifact with the size of its files in bytes, sorted.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn sizes(&self) -> Result<Vec<(Digest, u64)>, Error> {
        let artifacts = self.artifacts()?;
        artifacts
            .into_iter()
            .map(|digest| {
                let path = self.path(&digest);
                Ok((digest, size(&path).map_err(Error::io("list", &path))?))
            })
            .collect()
    }

    /// Checkpoints, items and damaged artifacts, sorted by name.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn set_aside(&self) -> Result<Vec<Leftover>, Error> {
        let mut found = Vec::new();
        let mut folders = vec![
            (self.dir.join("checkpoints"), LeftoverKind::Checkpoint),
            (self.dir.join("quarantine"), LeftoverKind::Damaged),
        ];
        // Items lie one level deeper, by the first letters of their names.
        for (folder, _) in list(&self.dir.join("items"))? {
            folders.push((folder, LeftoverKind::Item));
        }
        for (root, kind) in folders {
            for (folder, name) in list(&root)? {
                let size_bytes = size(&folder).map_err(Error::io("list", &root))?;
                found.push(Leftover { name, size_bytes, kind });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Moves a folder out of the store, at once, so that nobody sees half of it; `None` when it is
    /// not there.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn throw_away(&self, folder: &Path) -> Result<Option<Trash>, Error> {
        // A folder must be writable to be moved.
        if let Err(error) = set_writable(folder) {
            if error.kind() == io::ErrorKind::NotFound {
                return Ok(None);
            }
            return Err(Error::io("remove", folder)(error));
        }
        let trash = tempfile::Builder::new().prefix(TRASH).tempdir_in(self.dir.join("work"));
        let trash = trash.map_err(Error::io("remove", folder))?.keep();
        fs::rename(folder, trash.join("folder")).map_err(Error::io("remove", folder))?;
        Ok(Some(Trash(trash)))
    }
}

/// Begins the names of folders in `work` that hold what was thrown away.
pub(super) const TRASH: &str = "trash-";

/// A folder that is no longer part of the store.
#[must_use = "it takes space until it is emptied"]
#[derive(Debug)]
pub struct Trash(PathBuf);

impl Trash {
    /// Removes it.
    ///
    /// # Errors
    /// When that cannot be done; the next run tries again.
    pub fn empty(self) -> Result<(), Error> {
        remove_tree(&self.0).map_err(Error::io("remove", &self.0))
    }
}

/// Path and name of everything in `dir`, which need not exist.
fn list(dir: &Path) -> Result<Vec<(PathBuf, String)>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", dir))?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((entry.path(), name));
        }
    }
    Ok(found)
}

/// Size of all files below `dir` in bytes.
fn size(dir: &Path) -> io::Result<u64> {
    let mut n_bytes = 0;
    for entry in walkdir::WalkDir::new(dir) {
        let entry = entry.map_err(io::Error::from)?;
        if entry.file_type().is_file() {
            n_bytes += entry.metadata().map_err(io::Error::from)?.len();
        }
    }
    Ok(n_bytes)
}
