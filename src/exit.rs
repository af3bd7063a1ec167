//! What the exit code says.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done: what was asked for is there |
//! | 1 | a node failed, or `verify` or `ledger check` found damage |
//! | 2 | bad usage, or a mistake in the pipeline |
//! | 3 | the store, the ledger or stdout cannot be used |
//! | 4 | nothing failed, but a node is parked at a gate |
//! | 130 | interrupted; the run can be resumed by the same command |

use std::process::{ExitCode, Termination};

/// The table above, for `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
    0  done
    1  a node failed, or `verify` or `ledger check` found damage
    2  bad usage, or a mistake in the pipeline
    3  the store, the ledger or stdout cannot be used
    4  nothing failed, but a node is parked at a gate
  130  interrupted; the same command resumes the run";

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// What was asked for is there.
    Done,
    /// A node failed, or `verify` or `ledger check` found damage.
    NodeFailed,
    /// Bad usage, or a mistake in the pipeline.
    Usage,
    /// The store, the ledger or stdout cannot be used.
    Storage,
    /// Nothing failed, but a node waits for an operator.
    Parked,
    /// A signal stopped the command.
    Interrupted,
}

impl ExitStatus {
    /// The process's exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::NodeFailed => 1,
            Self::Usage => 2,
            Self::Storage => 3,
            Self::Parked => 4,
            Self::Interrupted => 130,
        }
    }
}

impl Termination for ExitStatus {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_code() {
        for status in [
            ExitStatus::Done,
            ExitStatus::NodeFailed,
            ExitStatus::Usage,
            ExitStatus::Storage,
            ExitStatus::Parked,
            ExitStatus::Interrupted,
        ] {
            let code = format!("{:>5}  ", status.code());
            assert!(HELP.lines().any(|line| line.starts_with(&code)), "{status:?} is not in HELP");
        }
    }
}
