//! Files outside the store that a node reads: found by pattern, hashed, and watched for changes.
//!
//! `relative` is the path below the fixed part of a pattern, the folders before its first
//! wildcard; so a corpus may move without new keys. Digests are kept by size, times and inode, so
//! unchanged files are not read again. A pattern may also mean standard input (`-`) or objects in a
//! bucket (`s3://…`), for tasks that read streams.

mod content;
mod hashing;
mod input;
mod objects;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::plan::FileList;
pub use content::{Content, ExternalFile, Reader};
pub(crate) use hashing::Hashing;

/// A pattern that gives no files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pattern is malformed.
    #[error("pattern `{pattern}` is malformed: {message}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        message: String,
    },
    /// Nothing matches.
    #[error("pattern `{pattern}` matches no file{}", missing.as_ref().map_or_else(String::new, |dir| format!(": `{}` does not exist", dir.display())))]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Its fixed folder, when that does not exist.
        missing: Option<PathBuf>,
    },
    /// It names a folder.
    #[error("pattern `{pattern}` names a folder; write `{pattern}/**/*` for the files in it")]
    Folder {
        /// The pattern.
        pattern: String,
    },
    /// A file or folder cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing is piped in.
    #[error("`-` means standard input, which is a terminal")]
    NoInput,
    /// A bucket's server refuses.
    #[error("cannot use `{url}`: {message}")]
    Object {
        /// The pattern or the object.
        url: String,
        /// Why.
        message: String,
        /// What to do about it, when that is known.
        help: Option<&'static str>,
    },
}

impl Error {
    /// What to do about it, when that is known.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NoInput => Some("pipe the documents in, such as `zcat docs.gz | sbp run …`"),
            Self::Object { help, .. } => *help,
            _ => None,
        }
    }

    /// Whether the files are not here, so that a plan can still be made without them.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::NoMatch { .. } | Self::NoInput)
    }
}

/// Whether a pattern means files that have a path.
pub(crate) fn has_path(pattern: &str) -> bool {
    pattern != input::PATTERN && !objects::is_url(pattern)
}

/// What a file's inode says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stat {
    size_bytes: u64,
    mtime_ns: i64,
    /// Changes even when somebody sets the modification time back.
    ctime_ns: i64,
    inode: u64,
}

impl Stat {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Ok(Self {
            size_bytes: metadata.len(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        })
    }
}

/// Known digests of the files below one folder, by relative path.
pub(crate) type StatCache = BTreeMap<String, (Stat, Digest)>;

/// The files of a node.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    /// Sorted by relative path.
    pub(crate) files: Vec<ExternalFile>,
    /// Of the files that have a path; objects are asked for in one version.
    stats: Vec<Option<Stat>>,
    /// Digest of the list of relative paths and contents.
    pub(crate) digest: Digest,
}

impl Resolved {
    /// The list as the ledger keeps it.
    pub(crate) fn list(&self) -> FileList {
        let pairs = self.files.iter().map(|file| (file.relative.clone(), file.digest.to_string()));
        pairs.collect()
    }

    /// The first file that is not what it was.
    pub(crate) fn changed(&self) -> Option<&ExternalFile> {
        let pairs = self.files.iter().zip(&self.stats);
        for (file, stat) in pairs {
            let Some(stat) = stat else {
                if file.is_replaced() {
                    return Some(file);
                }
                continue;
            };
            if Stat::of(&file.path).is_ok_and(|now| now == *stat) {
                continue;
            }
            // A touched file with the same content is no change.
            if Digest::of_file(&file.path).ok() != Some((file.digest, file.size_bytes)) {
                return Some(file);
            }
        }
        None
    }
}

/// A pattern, split at its first wildcard.
struct Pattern {
    base: PathBuf,
    rest: String,
}

fn split(pattern: &str) -> Pattern {
    let expanded = match pattern.strip_prefix("~/") {
        Some(rest) => match std::env::var("HOME") {
            Ok(home) => format!("{home}/{rest}"),
            Err(_) => pattern.to_owned(),
        },
        None => pattern.to_owned(),
    };
    let cut = wildcard(&expanded).unwrap_or(expanded.len());
    let (base, rest) = match expanded[..cut].rfind('/') {
        Some(slash) => (&expanded[..=slash], &expanded[slash + 1..]),
        None => ("./", &expanded[..]),
    };
    Pattern { base: PathBuf::from(base), rest: rest.to_owned() }
}

/// Where the first wildcard is.
fn wildcard(pattern: &str) -> Option<usize> {
    pattern.find(['*', '?', '[', '{'])
}

/// What tells whether a relative path matches `rest`, the end of `pattern`.
fn matcher(pattern: &str, rest: &str) -> Result<globset::GlobMatcher, Error> {
    let malformed = |error: globset::Error| Error::Pattern {
        pattern: pattern.to_owned(),
        message: error.kind().to_string(),
    };
    let glob = globset::GlobBuilder::new(rest).literal_separator(true).build();
    Ok(glob.map_err(malformed)?.compile_matcher())
}

/// The folder that `pattern` searches, under which the ledger caches digests.
pub(crate) fn base(pattern: &str) -> String {
    split(pattern).base.to_string_lossy().into_owned()
}

/// Finds and hashes the files of `patterns`. `caches` holds what is known by [`base`] and is
/// brought up to date; the folders whose entries changed go to `dirty`. What standard input holds is
/// kept in the folder `keep`, and only hashed without one. `told` hears how far the hashing is.
///
/// # Errors
/// When a pattern is malformed or gives no file, or a file cannot be read.
pub(crate) fn resolve(
    patterns: &[String],
    caches: &mut BTreeMap<String, StatCache>,
    dirty: &mut Vec<String>,
    keep: Option<&Path>,
    now_us: i64,
    told: &(dyn Fn(Hashing) + Sync),
) -> Result<Resolved, Error> {
    let mut found: Vec<(ExternalFile, Option<Stat>)> = Vec::new();
    for pattern in patterns {
        if pattern == input::PATTERN {
            found.push((input::file(keep, told)?, None));
            continue;
        }
        if objects::is_url(pattern) {
            found.extend(objects::list(pattern)?.into_iter().map(|file| (file, None)));
            continue;
        }
        let key = base(pattern);
        let matched = list(pattern)?;
        let cache = caches.entry(key.clone()).or_default();
        let (files, changed) = hashing::hash(matched, cache, now_us, told)?;
        if changed {
            dirty.push(key);
        }
        found.extend(files.into_iter().map(|(file, stat)| (file, Some(stat))));
    }
    found.sort_by(|(a, _), (b, _)| a.relative.cmp(&b.relative));
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"sbp external 1\n");
    for (file, _) in &found {
        hasher.update(&(file.relative.len() as u64).to_le_bytes());
        hasher.update(file.relative.as_bytes());
        hasher.update(file.digest.as_bytes());
    }
    let (files, stats) = found.into_iter().unzip();
    Ok(Resolved { files, stats, digest: hasher.finalize().into() })
}

/// Paths that match, with their relative paths.
fn list(pattern: &str) -> Result<Vec<(PathBuf, String)>, Error> {
    let Pattern { base, rest } = split(pattern);
    if wildcard(&rest).is_none() {
        let path = base.join(&rest);
        return match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                Err(Error::Folder { pattern: pattern.trim_end_matches('/').to_owned() })
            }
            Ok(_) => Ok(vec![(path, rest)]),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoMatch { pattern: pattern.to_owned(), missing: None })
            }
            Err(source) => Err(Error::Io { path, source }),
        };
    }
    let matcher = matcher(pattern, &rest)?;
    if !base.is_dir() {
        return Err(Error::NoMatch { pattern: pattern.to_owned(), missing: Some(base) });
    }
    // Without `**` nothing below the pattern's own depth can match.
    let depth_max = if rest.contains("**") { usize::MAX } else { rest.split('/').count() };
    let mut matched = Vec::new();
    for entry in walkdir::WalkDir::new(&base).follow_links(true).max_depth(depth_max) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(&base).to_owned();
            Error::Io { path, source: error.into() }
        })?;
        if !entry.file_type().is_file() {
            continue;
        }
        let relative = entry.path().strip_prefix(&base).unwrap_or(entry.path());
        if matcher.is_match(relative) {
            let text = relative.to_str().ok_or_else(|| Error::Io {
                path: entry.path().to_owned(),
                source: io::Error::other("its name is not UTF-8"),
            })?;
            matched.push((entry.path().to_owned(), text.to_owned()));
        }
    }
    if matched.is_empty() {
        return Err(Error::NoMatch { pattern: pattern.to_owned(), missing: None });
    }
    Ok(matched)
}

/// Bytes of the files that match now; `None` when nothing matches, they cannot be read, or they are
/// piped in.
pub(crate) fn size_bytes(patterns: &[String]) -> Option<u64> {
    let mut sum = None;
    for pattern in patterns {
        if pattern == input::PATTERN {
            return None;
        }
        if objects::is_url(pattern) {
            let listed: u64 = objects::list(pattern).ok()?.iter().map(|file| file.size_bytes).sum();
            sum = Some(sum.unwrap_or(0) + listed);
            continue;
        }
        for (path, _) in list(pattern).ok()? {
            sum = Some(sum.unwrap_or(0) + std::fs::metadata(path).ok()?.len());
        }
    }
    sum
}
