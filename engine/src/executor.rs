//! How attempts run: on a thread of this process, or in a process of their own.
//!
//! Such a process is a copy of one that the run started for this, which is this very program
//! (`fork`). Whatever becomes of it, a segfault in native code, an abort, the system killing it
//! because memory ran out, is the end of that attempt with its cause, and not of the run. It learns
//! over a socket what to do, and says over the same how it goes; what it prints goes to the node's
//! log. The run keeps the lease, hashes and publishes what the task wrote, and writes the ledger:
//! the task's process needs none of them.
//!
//! `remote` is the run's side, `serve` that of the process, `wire` what goes between them.

mod fork;
mod remote;
mod serve;
mod wire;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use serde::Serialize;

pub(crate) use fork::ForkServer;
pub(crate) use remote::{Ran, run};
pub use serve::serve;
pub(crate) use wire::{Assignment, Items};

/// How an attempt runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Executor {
    /// On a thread of the run's process.
    #[default]
    Inline,
    /// In a process of its own.
    Process,
}

impl Executor {
    /// Every word for one.
    pub const WORDS: [&'static str; 2] = ["inline", "process"];
}

impl FromStr for Executor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "inline" => Ok(Self::Inline),
            "process" => Ok(Self::Process),
            _ => Err(format!("expected `inline` or `process`, found `{text}`")),
        }
    }
}

/// How this program is started again to serve the attempts of a run.
#[derive(Clone, Debug)]
pub struct Launcher {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Launcher {
    /// Started with these arguments, this program calls [`serve`] and ends.
    pub fn new<T: Into<OsString>>(args: impl IntoIterator<Item = T>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), env: Vec::new() }
    }

    /// Adds a variable to the environment, which is otherwise that of the run.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn command(&self) -> std::io::Result<Command> {
        // The link leads to the file that runs, also after it was replaced or removed: a run of
        // weeks must not change its program half way.
        let link = Path::new("/proc/self/exe");
        let mut command =
            if link.exists() { Command::new(link) } else { Command::new(std::env::current_exe()?) };
        command.arg0("sbp").args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}
