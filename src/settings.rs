//! Flags and environment, resolved before any work.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;

use console::Term;
use engine::plan::Targets;

use crate::cli::{ColorChoice, Global, PipelineArgs};
use crate::printer::{Format, Printer};

/// Where runs are kept.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Folder of the store, the checkpoints and the default ledger.
    pub(crate) dir: PathBuf,
    /// Ledger to use instead of the SQLite file in the folder.
    pub(crate) ledger: Option<String>,
}

impl Place {
    /// From the flags.
    pub(crate) fn new(global: &Global) -> Self {
        Self { dir: global.dir.clone(), ledger: global.ledger.clone() }
    }

    /// Whether a ledger was named or made.
    pub(crate) fn has_ledger(&self) -> bool {
        self.ledger.is_some() || self.dir.is_dir()
    }
}

impl Place {
    /// The flags that name this place in another command, with a blank before each.
    pub(crate) fn flags(&self) -> String {
        let mut flags = String::new();
        if self.dir != Path::new(".sbp") && std::env::var_os("SBP_DIR").is_none() {
            let _ = write!(flags, " --dir '{}'", self.dir.display());
        }
        flags
    }
}

/// Who gives a command: `user@host`.
pub(crate) fn operator() -> String {
    let user =
        ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let user = user.unwrap_or_else(|| rustix::process::getuid().as_raw().to_string());
    let uname = rustix::system::uname();
    format!("{user}@{}", uname.nodename().to_string_lossy())
}

/// Which nodes the flags ask for.
pub(crate) fn targets(args: &PipelineArgs) -> Targets {
    if args.to.is_empty() { Targets::All } else { Targets::Named(args.to.clone()) }
}

/// Threads to share among the running nodes.
pub(crate) fn n_threads(asked: Option<u32>) -> u32 {
    asked.unwrap_or_else(|| {
        thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
    })
}

/// The printer that the flags ask for.
pub(crate) fn printer(global: &Global) -> Printer {
    let format = if global.json { Format::Json } else { Format::Text };
    Printer::new(format, global.quiet)
}

/// Switches colour on or off for stdout and stderr, each by itself.
pub(crate) fn set_colors(choice: ColorChoice) {
    let wanted = |term: &Term| match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            term.is_term() && !refused && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        }
    };
    console::set_colors_enabled(wanted(&Term::stdout()));
    console::set_colors_enabled_stderr(wanted(&Term::stderr()));
}
