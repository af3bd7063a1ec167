//! The list of an artifact's files: what its digest covers and what checks compare with.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

const DOMAIN: &[u8] = b"sbp artifact 1\n";

/// A file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Relative path, `/`-separated.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Digest of the content.
    pub digest: Digest,
    /// Modification time when published, in nanoseconds since 1970; no part of the artifact's
    /// digest.
    pub mtime_ns: i64,
}

/// An artifact's files, sorted by path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Manifest {
    /// The files.
    pub files: Vec<ManifestFile>,
}

/// What is wrong with an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Its folder is not there.
    Missing,
    /// A file is missing, extra, or other than it was.
    File {
        /// The relative path.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("its folder is missing"),
            Self::File { path, problem } => write!(f, "`{path}` {problem}"),
        }
    }
}

pub(crate) fn mtime_ns(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

impl Manifest {
    /// Lists and hashes the files under `dir`.
    ///
    /// # Errors
    /// When a file cannot be read, is no plain file, or has a name that is not UTF-8.
    pub fn of_dir(dir: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for entry in walkdir::WalkDir::new(dir) {
            let entry = entry.map_err(io::Error::from)?;
            if entry.file_type().is_dir() {
                continue;
            }
            let relative = entry.path().strip_prefix(dir).map_err(io::Error::other)?;
            let named = |problem: &str| {
                io::Error::other(format!("`{}` in an output {problem}", relative.display()))
            };
            if !entry.file_type().is_file() {
                return Err(named("is no plain file"));
            }
            let path = relative.to_str().ok_or_else(|| named("has a name that is not UTF-8"))?;
            let (digest, size_bytes) = Digest::of_file(entry.path())?;
            let mtime_ns = mtime_ns(&fs::symlink_metadata(entry.path())?);
            files.push(ManifestFile { path: path.to_owned(), size_bytes, digest, mtime_ns });
        }
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// The artifact's digest: over the sorted paths, sizes and contents.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        for file in &self.files {
            hasher.update(&(file.path.len() as u64).to_le_bytes());
            hasher.update(file.path.as_bytes());
            hasher.update(&file.size_bytes.to_le_bytes());
            hasher.update(file.digest.as_bytes());
        }
        hasher.finalize().into()
    }

    /// Size of the files in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// Compares sizes and times of the files in `dir`, without reading them.
    ///
    /// # Errors
    /// The first difference. A changed time alone may be harmless: [`Self::verify`] decides.
    pub fn check_quick(&self, dir: &Path) -> Result<(), Damage> {
        for file in &self.files {
            let metadata = stat(dir, file)?;
            if metadata.len() != file.size_bytes {
                let problem =
                    format!("has {} bytes instead of {}", metadata.len(), file.size_bytes);
                return Err(Damage::File { path: file.path.clone(), problem });
            }
            if mtime_ns(&metadata) != file.mtime_ns {
                let problem = "was touched after it was published".to_owned();
                return Err(Damage::File { path: file.path.clone(), problem });
            }
        }
        if self.files.is_empty() && !dir.is_dir() {
            return Err(Damage::Missing);
        }
        Ok(())
    }

    /// Reads every file in `dir` and compares; gives the manifest with the times found.
    ///
    /// # Errors
    /// The first difference.
    pub fn verify(&self, dir: &Path) -> Result<Self, Damage> {
        let found = match Self::of_dir(dir) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Damage::Missing),
            Err(error) => {
                return Err(Damage::File { path: ".".to_owned(), problem: error.to_string() });
            }
        };
        let same = |a: &ManifestFile, b: &ManifestFile| {
            a.path == b.path && a.size_bytes == b.size_bytes && a.digest == b.digest
        };
        for file in &self.files {
            match found.files.binary_search_by(|other| other.path.cmp(&file.path)) {
                Err(_) => return Err(Damage::file(file, "is missing")),
                Ok(i) if !same(file, &found.files[i]) => {
                    return Err(Damage::file(file, "has other content than when published"));
                }
                Ok(_) => {}
            }
        }
        if found.files.len() != self.files.len() {
            let extra = found.files.iter().find(|file| {
                self.files.binary_search_by(|other| other.path.cmp(&file.path)).is_err()
            });
            return Err(
                extra.map_or(Damage::Missing, |file| Damage::file(file, "is no part of it"))
            );
        }
        Ok(found)
    }
}

fn stat(dir: &Path, file: &ManifestFile) -> Result<Metadata, Damage> {
    match fs::symlink_metadata(dir.join(&file.path)) {
        Ok(metadata) => Ok(metadata),
        Err(_) if !dir.is_dir() => Err(Damage::Missing),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Damage::file(file, "is missing"))
        }
        Err(error) => Err(Damage::file(file, &format!("cannot be read: {error}"))),
    }
}

impl Damage {
    fn file(file: &ManifestFile, problem: &str) -> Self {
        Self::File { path: file.path.clone(), problem: problem.to_owned() }
    }
}
