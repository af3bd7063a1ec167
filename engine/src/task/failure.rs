//! Why an attempt ended without a result.

use std::any::Any;
use std::io;

use serde::{Deserialize, Serialize};

/// What kind of failure it is; decides whether the engine retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// A retry with the same inputs can help.
    Transient,
    /// A retry cannot help.
    Permanent,
    /// The attempt was told to stop; what it checkpointed stays.
    Cancelled,
    /// The node waits for an operator's decision.
    Parked,
}

/// Why an attempt ended without a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// Decides what happens next.
    pub kind: FailureKind,
    /// What went wrong, naming the value, the limit and the place.
    pub message: String,
    /// What to do, only when it is right.
    pub help: Option<String>,
}

impl Failure {
    fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), help: None }
    }

    /// A failure that a retry cannot mend.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Permanent, message)
    }

    /// A failure that a retry can mend.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Transient, message)
    }

    /// The attempt saw its cancel token.
    pub fn cancelled() -> Self {
        Self::new(FailureKind::Cancelled, "cancelled")
    }

    /// The node waits for `sbp approve` or `sbp reject`.
    pub fn parked(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Parked, message)
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// An input or output error at a named place.
    pub fn io(what: impl AsRef<str>, error: &io::Error) -> Self {
        let failure = Self::from_io(error);
        Self { message: format!("{}: {}", what.as_ref(), failure.message), ..failure }
    }

    fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::permanent(error.to_string())
                    .help("free space on the store's file system and run the same command again")
            }
            io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                Self::transient(error.to_string())
            }
            _ => Self::permanent(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::from_io(&error)
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
