//! Flags and environment, resolved before any work.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use console::Term;
use engine::plan::Targets;
use engine::run::Options;

use crate::cli::{ColorChoice, Executor, Global, PipelineArgs, Share};
use crate::error::{Error, Result};
use crate::printer::{Format, Printer};

/// Kinds of ledgers that have a URL.
const LEDGER_SCHEMES: [&str; 3] = ["sqlite", "postgres", "postgresql"];

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
    ///
    /// # Errors
    /// When the ledger is of a kind that is not known; its URL, which may hold a password, is not told.
    pub(crate) fn new(global: &Global) -> Result<Self> {
        let ledger = global.ledger.clone();
        let scheme = ledger.as_deref().and_then(|text| Some(text.split_once("://")?.0));
        if let Some(scheme) = scheme
            && !LEDGER_SCHEMES.contains(&scheme)
        {
            let message = format!("a ledger at `{scheme}://…` is of no known kind");
            return Err(Error::usage(message)
                .help("it is a path, `sqlite:PATH`, or `postgres://USER:PASSWORD@HOST/DATABASE`"));
        }
        Ok(Self { dir: global.dir.clone(), ledger })
    }

    /// Whether there is a ledger, as far as this machine can tell.
    pub(crate) fn has_ledger(&self) -> bool {
        match self.ledger.as_deref() {
            Some(url) if url.starts_with("postgres") => true,
            Some(text) => {
                let path = text.strip_prefix("sqlite:").unwrap_or(text);
                Path::new(path.strip_prefix("//").unwrap_or(path)).exists()
            }
            None => self.dir.join("ledger.db").exists(),
        }
    }
}

impl Place {
    /// The flags that name this place in another command, with a blank before each.
    pub(crate) fn flags(&self) -> String {
        let mut flags = String::new();
        let usual = std::env::var_os("SBP_DIR").unwrap_or_else(|| ".sbp".into());
        if self.dir != Path::new(&usual) {
            let _ = write!(flags, " --dir '{}'", self.dir.display());
        }
        match &self.ledger {
            Some(ledger) if std::env::var("SBP_LEDGER").as_ref() != Ok(ledger) => {
                // A URL may hold a password, and what is printed ends up in logs.
                let shown = if ledger.contains('@') { "postgres://…" } else { ledger };
                let _ = write!(flags, " --ledger '{shown}'");
            }
            _ => {}
        }
        flags
    }
}

impl From<Executor> for engine::executor::Executor {
    fn from(executor: Executor) -> Self {
        match executor {
            Executor::Inline => Self::Inline,
            Executor::Process => Self::Process,
        }
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

/// The threads asked for, and else those of the machine.
pub(crate) fn n_threads(asked: Option<u32>) -> u32 {
    asked.unwrap_or_else(|| {
        thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
    })
}

/// What the flags let the running nodes share, and else what the machine has.
pub(crate) fn share(asked: &Share) -> Options {
    Options {
        n_cpu: n_threads(asked.cpu),
        memory_bytes: asked.mem.or_else(memory_bytes),
        n_gpu: asked.gpu.unwrap_or_else(n_gpu),
        pools: asked.pool.iter().cloned().collect(),
        ..Options::default()
    }
}

/// Memory of the machine, or what its control group leaves of it.
fn memory_bytes() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|limit| limit.trim().parse::<u64>().ok());
    Some(limit.map_or(total, |limit| limit.min(total)))
}

/// GPUs that the driver knows.
fn n_gpu() -> u32 {
    let known = fs::read_dir("/proc/driver/nvidia/gpus");
    known.map_or(0, |gpus| u32::try_from(gpus.count()).unwrap_or(u32::MAX))
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
