//! The binary file formats: a container of typed sections, and what is kept in it.
//!
//! Every `*.sbp` file is a [`container`]: little-endian sections that a reader maps into memory and
//! uses in place. A reader accepts exactly what a writer of the same or an older version made;
//! anything else is an [`Error`] that names the file, never a panic.

pub mod container;
#[cfg(test)]
mod fuzz;
pub mod pairs;
pub(crate) mod part;
pub mod schedule;
pub mod tokens;
pub mod vectors;

use std::io;
use std::path::{Path, PathBuf};

use engine::task::Failure;

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: `open`, `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not start like one of ours.
    #[error("`{}` is not an sbp file: it does not start with the sbp mark", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else.
    #[error("`{}` holds `{found}`, not `{expected}`", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it says it holds.
        found: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// A newer program wrote the file.
    #[error(
        "`{}` has {what} version {found}; this program reads up to version {supported}",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Which format: `container`, or the kind of content.
        what: String,
        /// The file's version.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// The file ends early, or has bytes after its end.
    #[error(
        "`{}` has {found} bytes, but its header says {expected}: it was cut off or overwritten",
        path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size in bytes that it should have.
        expected: u64,
    },
    /// The file's bytes contradict its checksums or each other.
    #[error("`{}` is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The contradiction.
        what: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            // Keeps the advice and the retry decision that depend on the system's error.
            Error::Io { action, path, source } => {
                Self::io(format!("cannot {action} `{}`", path.display()), source)
            }
            _ => Self::permanent(error.to_string()),
        }
    }
}
