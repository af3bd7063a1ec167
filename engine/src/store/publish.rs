//! From an attempt's folder to an immutable artifact.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::{Manifest, Store, remove_tree, set_mode};
use crate::clock::Clock;
use crate::digest::Digest;

/// A published artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its digest.
    pub digest: Digest,
    /// Its files.
    pub manifest: Manifest,
}

impl Store {
    /// Moves the folder `from` into the store and gives its digest; when the same artifact is
    /// there already, drops the copy. Durable when it returns.
    ///
    /// # Errors
    /// When files cannot be read, written or moved; nothing is published then.
    pub fn publish(&self, from: &Path, clock: &Clock) -> io::Result<Published> {
        let manifest = Manifest::of_dir(from)?;
        let digest = manifest.digest();
        let to = self.path(&digest);
        if to.exists() {
            match manifest.verify(&to) {
                Ok(manifest) => {
                    remove_tree(from)?;
                    return Ok(Published { digest, manifest });
                }
                Err(_) => self
                    .quarantine(&digest, clock.now_us())
                    .map_err(|error| io::Error::other(error.to_string()))?,
            }
        }
        seal(from)?;
        let parent = to.parent().expect("an artifact lies in a folder");
        match fs::create_dir(parent) {
            Ok(()) => File::open(self.dir.join("store"))?.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        match fs::rename(from, &to) {
            Ok(()) => {}
            // Another attempt published the same bytes a moment ago.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                let manifest =
                    manifest.verify(&to).map_err(|damage| io::Error::other(damage.to_string()))?;
                remove_tree(from)?;
                return Ok(Published { digest, manifest });
            }
            Err(error) => return Err(error),
        }
        // A folder must be writable to be moved, so its mode changes last.
        set_mode(&to, 0o555)?;
        File::open(parent)?.sync_all()?;
        Ok(Published { digest, manifest })
    }
}

/// Makes every file and folder below `dir` read-only and durable.
fn seal(dir: &Path) -> io::Result<()> {
    for entry in walkdir::WalkDir::new(dir).contents_first(true) {
        let entry = entry.map_err(io::Error::from)?;
        let path = entry.path();
        if entry.file_type().is_file() {
            set_mode(path, 0o444)?;
        } else if path != dir {
            set_mode(path, 0o555)?;
        }
        File::open(path)?.sync_all()?;
    }
    Ok(())
}
