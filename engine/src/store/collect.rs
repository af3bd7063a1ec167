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
    /// Whether it holds checkpoints; otherwise it is a damaged artifact.
    pub is_checkpoint: bool,
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

    /// Checkpoints and damaged artifacts, sorted by name.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn set_aside(&self) -> Result<Vec<Leftover>, Error> {
        let mut found = Vec::new();
        for (folder, is_checkpoint) in [("checkpoints", true), ("quarantine", false)] {
            let root = self.dir.join(folder);
            let entries = match fs::read_dir(&root) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("list", &root)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(Error::io("list", &root))?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let size_bytes = size(&entry.path()).map_err(Error::io("list", &root))?;
                found.push(Leftover { name, size_bytes, is_checkpoint });
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
