//! What `sbp bench` measured on this machine, kept for `sbp plan` and `sbp cost`.
//!
//! A file for each host in the user's cache folder, so that a home that machines share holds the rates of
//! each. What another processor measured, or another number of threads, is not used.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fmt, fs, io, thread};

use engine::cost::{Machine, Rates};
use serde::{Deserialize, Serialize};
use tasks::cuda::compile;
use tempfile::NamedTempFile;

use crate::human;
use crate::printer::Printer;

/// The unit under which what a node costs beside its work is kept: nodes a second.
const NODES: &str = "nodes";

/// Work of a unit done in a second, as a bench found it.
#[derive(Clone, Debug)]
pub(crate) struct Rate {
    /// The only kind of task it holds for; `None` for all.
    pub(crate) task: Option<&'static str>,
    /// The unit, as estimates call it.
    pub(crate) unit: &'static str,
    pub(crate) per_second: f64,
}

impl Rate {
    /// The engine's own work for a node, from the CPU time that it takes.
    pub(crate) fn of_nodes(cpu_ms: f64) -> Self {
        Self { task: None, unit: NODES, per_second: 1000.0 / cpu_ms }
    }
}

/// What rates depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hardware {
    /// The processor's name, where it is known.
    pub(crate) cpu: Option<String>,
    /// Threads it runs at once, where that is known.
    pub(crate) threads: Option<usize>,
}

impl Hardware {
    /// That of this machine.
    pub(crate) fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name"));
        let cpu = model.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
        let threads = thread::available_parallelism().ok().map(usize::from);
        Self { cpu: cpu.map(str::to_owned), threads }
    }
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cpu.as_deref().unwrap_or("an unknown processor"))?;
        match self.threads {
            Some(threads) => write!(f, " with {threads} threads"),
            None => Ok(()),
        }
    }
}

/// All that was measured on one machine.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Calibration {
    hardware: Hardware,
    rates: Vec<Kept>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    task: Option<String>,
    unit: String,
    per_second: f64,
    bench: String,
    version: String,
    measured_us: i64,
}

impl Calibration {
    /// What was measured here; nothing where there is no file, or one of other hardware, which is told.
    pub(crate) fn read(printer: Printer) -> Self {
        let path = path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                printer.warn(format!("warning: cannot read `{}`: {error}", path.display()));
                return Self::default();
            }
        };
        let here = Hardware::here();
        match serde_json::from_str::<Self>(&text) {
            Ok(kept) if kept.hardware == here => kept,
            Ok(kept) => {
                let (then, now) = (kept.hardware, here);
                printer.warn(format!(
                    "warning: `{}` holds rates of {then}, and this is {now}: they are not used until \
                     `sbp bench` measures again",
                    path.display()
                ));
                Self::default()
            }
            Err(error) => {
                let path = path.display();
                printer.warn(format!("warning: `{path}` is not used: {error}; remove it"));
                Self::default()
            }
        }
    }

    /// Keeps what a bench found, in place of what it found before.
    pub(crate) fn keep(bench: &str, rates: &[Rate], now_us: i64, printer: Printer) {
        if rates.is_empty() {
            return;
        }
        let mut all = Self::read(printer);
        all.hardware = Hardware::here();
        all.rates.retain(|kept| kept.bench != bench);
        all.rates.extend(rates.iter().map(|rate| Kept {
            task: rate.task.map(str::to_owned),
            unit: rate.unit.to_owned(),
            per_second: rate.per_second,
            bench: bench.to_owned(),
            version: crate::cli::VERSION.to_owned(),
            measured_us: now_us,
        }));
        let path = path();
        match all.write() {
            Ok(()) => printer.talk(format!(
                "`sbp plan` and `sbp cost` count with it from now on ({})",
                path.display()
            )),
            // What was measured is printed all the same.
            Err(error) => {
                let path = path.display();
                printer.warn(format!("warning: the rates are not kept in `{path}`: {error}"));
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let path = path();
        let dir = path.parent().unwrap_or(&path);
        fs::create_dir_all(dir)?;
        let file = NamedTempFile::new_in(dir)?;
        serde_json::to_writer_pretty(&file, self)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// The machine as plans and costs count with it.
    pub(crate) fn machine(&self) -> Machine {
        let mut by_unit = BTreeMap::new();
        let mut by_task = BTreeMap::new();
        let mut node_overhead_us = 0.0;
        for kept in self.rates.iter().filter(|kept| kept.per_second > 0.0) {
            match &kept.task {
                _ if kept.unit == NODES => node_overhead_us = 1e6 / kept.per_second,
                Some(task) => {
                    by_task.insert((task.clone(), kept.unit.clone()), kept.per_second);
                }
                None => {
                    by_unit.insert(kept.unit.clone(), kept.per_second);
                }
            }
        }
        let rates = Rates { name: "bench".to_owned(), by_unit, by_task };
        Machine { rates, node_overhead_us }
    }

    /// Which benches of which program measured, and when.
    pub(crate) fn source(&self) -> String {
        let mut benches: BTreeMap<&str, &Kept> = BTreeMap::new();
        for kept in self.rates.iter().filter(|kept| kept.unit != NODES) {
            benches.insert(&kept.bench, kept);
        }
        let each = benches.into_iter().map(|(bench, Kept { version, measured_us, .. })| {
            let when = human::timestamp(*measured_us);
            format!("`sbp bench {bench}` of {version} on {when}")
        });
        format!("{}, {}", each.collect::<Vec<_>>().join(", "), self.hardware)
    }
}

/// `sbp/rates/HOST.json` in the user's cache folder, beside the compiled kernels.
fn path() -> PathBuf {
    let host = rustix::system::uname().nodename().to_string_lossy().replace('/', "_");
    compile::cache_dir().with_file_name("rates").join(format!("{host}.json"))
}
