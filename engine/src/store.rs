//! The artifact folder: content-addressed, immutable, published whole or not at all.
//!
//! ```text
//! .sbp/
//!   version                 layout version of this folder
//!   id                      names this store in the ledger
//!   ledger.db               the ledger, unless it is elsewhere
//!   store/ab/DIGEST/        a published artifact, read-only
//!   work/KEY-EPOCH/         what an attempt writes: out/PORT and scratch
//!   checkpoints/KEY/        what long attempts of a key saved
//!   items/ab/ITEM-EPOCH/    a finished part of an unfinished node
//!   quarantine/DIGEST-TIME/ a damaged artifact
//! ```
//!
//! **Publish** hashes the files, makes them and their folders durable, and renames the folder into
//! place; only then does the ledger say that the artifact exists. A crash in between leaves a
//! folder that nothing refers to.

mod collect;
mod manifest;
mod publish;
mod verify;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointStore;
use crate::digest::Digest;
use crate::item::ItemStore;
use crate::key::NodeKey;
use crate::{exec, process};

pub use collect::{Leftover, LeftoverKind, Trash};
pub use manifest::{Damage, Manifest, ManifestFile};
pub use publish::Published;

/// The layout that this program reads and writes.
const VERSION: &str = "1";

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder or file of the store cannot be made, read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The store was made by a newer program.
    #[error("store `{}` has layout version {found}; this program knows up to {VERSION}", path.display())]
    NewerLayout {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: String,
    },
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// What to do about it, when that is known.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NewerLayout { .. } => Some("use the newer program, or another `--dir`"),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                    Some("make the folder writable, or choose another one")
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("free space on the store's file system and run the same command again")
                }
                _ => None,
            },
        }
    }
}

/// An open artifact folder.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    id: String,
}

impl Store {
    /// Opens the store in `dir`, and makes it when missing. `fresh_id` names it then.
    ///
    /// # Errors
    /// When it cannot be written, or was made by a newer program.
    pub fn open(dir: &Path, fresh_id: &str) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::io("create folder", dir))?;
        let dir = dir.canonicalize().map_err(Error::io("find folder", dir))?;
        let version_path = dir.join("version");
        let version = read_or_write(&dir, &version_path, VERSION)?;
        if version != VERSION {
            return Err(Error::NewerLayout { path: dir, found: version });
        }
        let id = read_or_write(&dir, &dir.join("id"), fresh_id)?;
        for name in ["store", "work", "checkpoints"] {
            let path = dir.join(name);
            fs::create_dir_all(&path).map_err(Error::io("create folder", &path))?;
        }
        // A run that cannot write should say so before it computes for hours. A file without a name
        // leaves none behind, whatever happens next.
        let probe = tempfile::tempfile_in(dir.join("work"));
        probe.map_err(Error::io("write to", &dir.join("work")))?;
        Ok(Self { dir, id })
    }

    /// The store in `dir` as it is, for reading: nothing is made, a missing one is empty.
    ///
    /// # Errors
    /// When it cannot be read, or was made by a newer program.
    pub fn look(dir: &Path) -> Result<Self, Error> {
        let dir = std::path::absolute(dir).map_err(Error::io("find folder", dir))?;
        let read = |name: &str| {
            let path = dir.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text.trim().to_owned())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Error::io("read", &path)(error)),
            }
        };
        match read("version")? {
            Some(found) if found != VERSION => Err(Error::NewerLayout { path: dir, found }),
            _ => {
                let id = read("id")?.unwrap_or_default();
                Ok(Self { dir, id })
            }
        }
    }

    /// Names this store in the ledger.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The folder, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the artifact lies, when it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        self.dir.join("store").join(&hex[..2]).join(hex)
    }

    /// The folder of an attempt, made by whoever first writes to it.
    pub fn work_dir(&self, key: NodeKey, epoch: i64) -> PathBuf {
        self.dir.join("work").join(format!("{key}-{epoch}"))
    }

    /// The checkpoints of a key.
    pub fn checkpoints(&self, key: NodeKey) -> CheckpointStore {
        CheckpointStore::new(self.dir.join("checkpoints").join(key.to_string()))
    }

    /// The folder of an attempt by `owner` that helps another process with the items of a key.
    pub(crate) fn help_dir(&self, key: NodeKey, owner: &str) -> PathBuf {
        self.dir.join("work").join(format!("{key}-help-{owner}"))
    }

    /// The finished items of nodes that are not finished.
    pub(crate) fn items(&self) -> ItemStore {
        ItemStore::new(self.dir.join("items"))
    }

    /// Names of work folders that attempts and collections left.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn leftovers(&self) -> Result<Vec<String>, Error> {
        let work = self.dir.join("work");
        let entries = fs::read_dir(&work).map_err(Error::io("list", &work))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let is_attempt = |name: &str| name.len() > 65 && name.as_bytes()[64] == b'-';
        // Whatever else lies here is not ours.
        Ok(names.filter(|name| is_attempt(name) || name.starts_with(collect::TRASH)).collect())
    }

    /// Removes the work folders `names`, except those of `live` attempts and of helping `owners`.
    pub fn clean(&self, names: &[String], live: &BTreeSet<String>, owners: &BTreeSet<String>) {
        let helps =
            |name: &str| name.split_once("-help-").is_some_and(|(_, owner)| owners.contains(owner));
        let dead: Vec<PathBuf> = names
            .iter()
            .filter(|name| !live.contains(*name) && !helps(name))
            .map(|name| self.dir.join("work").join(name))
            .collect();
        if !dead.is_empty() {
            process::kill_leftovers(exec::ATTEMPT, &dead);
        }
        for dir in dead {
            // What cannot be removed now is tried again at the next start.
            let _ = remove_tree(&dir);
        }
    }

    /// Moves a damaged artifact out of the way, for inspection.
    ///
    /// # Errors
    /// When it is there and cannot be moved.
    pub fn quarantine(&self, digest: &Digest, now_us: i64) -> Result<(), Error> {
        let from = self.path(digest);
        let dir = self.dir.join("quarantine");
        fs::create_dir_all(&dir).map_err(Error::io("create folder", &dir))?;
        let to = dir.join(format!("{digest}-{now_us}"));
        if let Err(error) = set_writable(&from)
            && error.kind() == io::ErrorKind::NotFound
        {
            return Ok(());
        }
        fs::rename(&from, &to).map_err(Error::io("move to quarantine", &from))
    }
}

/// Reads a one-line file, or writes `fresh` into it.
fn read_or_write(dir: &Path, path: &Path, fresh: &str) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", path)(error)),
    }
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        writeln!(file, "{fresh}")?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            // Another process was first; its text counts.
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
            _ => File::open(dir)?.sync_all(),
        }
    };
    write().map_err(Error::io("write", path))?;
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.trim().to_owned())
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn set_writable(path: &Path) -> io::Result<()> {
    set_mode(path, 0o755)
}

/// Removes a folder whose sub-folders may be read-only; one that is not there is fine.
///
/// # Errors
/// When something in it cannot be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            for entry in walkdir::WalkDir::new(path) {
                let entry = entry.map_err(io::Error::other)?;
                if entry.file_type().is_dir() {
                    set_writable(entry.path())?;
                }
            }
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
