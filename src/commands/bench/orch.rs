//! `sbp bench orch`: what the engine costs when tasks do nothing.
//!
//! Each figure is of a process of its own that does what `sbp run` does: reads the YAML, opens a
//! real ledger in a fresh folder, plans, runs, and reports. Its CPU time counts from its start.

mod pipeline;
mod process;
mod tasks;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use engine::executor::Launcher;
use engine::task::Registry;
use serde::{Deserialize, Serialize};

use super::usage::Usage;
use super::{Figures, median};
use crate::calibration::Rate;
use crate::cli::{Executor, OrchArgs, OrchRunArgs, PipelineArgs, RunArgs, Share};
use crate::commands;
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::printer::Printer;
use crate::settings::Place;

/// Each measurement is taken so often, and the middle one counts.
const N_REPEATS: usize = 3;
/// The chain is as long as that of the peers' benches, or shorter where there are fewer tasks.
const CHAIN_MAX: u32 = 200;
const KILL_MAX: u32 = 1000;
/// Bytes of a journal line: a number of seven digits and a line break.
const LINE_BYTES: u64 = 8;
/// A run of no-op tasks that shows no life for so long hangs.
const PATIENCE: Duration = Duration::from_mins(10);

/// What one run used and did.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    usage: Usage,
    ran: usize,
    cached: usize,
}

/// The bench's own tasks, for the processes of their attempts.
pub(super) fn registry() -> Registry {
    tasks::registry()
}

/// Does what `sbp run` does, with the bench's own tasks, and prints what that took.
pub(super) fn run(args: OrchRunArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let pipeline = PipelineArgs { pipeline: args.pipeline, set: Vec::new(), to: Vec::new() };
    let share = Share { cpu: Some(args.cpu), ..Share::default() };
    let args = RunArgs { pipeline, keep_going: true, fail_fast: false, share, work: args.work };
    let launcher = Launcher::new(["bench", "orch-fork-server"]);
    commands::wait(async {
        let pipeline = commands::load_with(&args.pipeline, &tasks::registry(), printer)?;
        let ended = commands::run::to_the_end(&pipeline, &args, launcher, place, printer).await?;
        let Some(summary) = ended else { return Ok(ExitStatus::Interrupted) };
        let (ran, cached) = (summary.nodes.ran, summary.nodes.cached);
        printer.json(&Outcome { usage: Usage::now(), ran, cached })?;
        Ok(commands::run::status(summary.state))
    })
}

/// Takes all measurements.
pub(super) fn measure(args: &OrchArgs, printer: Printer) -> Result<Figures> {
    let (n, cpu, executor) = (args.n, args.cpu, args.kind);
    let bench = Bench { exe: std::env::current_exe()?, n, cpu, executor, printer };
    let mut figures = Figures::default();
    figures.set("n", args.n);
    figures.set("kind", bench.executor_word());
    figures.set("jobs", args.cpu);
    let mut peak_mib = 0.0_f64;
    bench.wide(&mut figures, &mut peak_mib)?;
    match args.kind {
        Executor::Inline => {
            bench.files(&mut figures)?;
            bench.chain(&mut figures)?;
        }
        Executor::Process => bench.programs(&mut figures)?,
    }
    bench.kill(&mut figures)?;
    figures.set("peak_rss_mib", rounded(peak_mib));
    Ok(figures)
}

struct Bench {
    exe: PathBuf,
    n: u32,
    cpu: u32,
    executor: Executor,
    printer: Printer,
}

/// A fresh folder with a pipeline and what its runs keep; removed when dropped.
struct Folder(PathBuf);

impl Bench {
    /// Independent tasks without outputs: cold, with nothing to do, and after one change.
    fn wide(&self, figures: &mut Figures, peak_mib: &mut f64) -> Result<()> {
        let (mut cold_ms, mut cold_s, mut noop_ms, mut noop_s) = (vec![], vec![], vec![], vec![]);
        let (mut run_ms, mut changed) = (vec![], None);
        for _ in 0..N_REPEATS {
            let folder = Folder::new()?;
            folder.write(&pipeline::wide(self.n, None))?;
            let (cold, wall) = self.run(&folder, self.n as usize)?;
            cold_ms.push(self.per_task(cold.usage.cpu_ms + cold.usage.children_cpu_ms));
            run_ms.push(self.per_task(cold.usage.cpu_ms));
            cold_s.push(wall.as_secs_f64());
            let (noop, wall) = self.run(&folder, 0)?;
            noop_ms.push(noop.usage.cpu_ms);
            noop_s.push(wall.as_secs_f64());
            folder.write(&pipeline::wide(self.n, Some(self.n / 2)))?;
            let (change, _) = self.run(&folder, 1)?;
            for ran in [&cold, &noop, &change] {
                *peak_mib = peak_mib.max(ran.usage.peak_rss_mib);
            }
            changed = Some(change);
        }
        let changed = changed.expect("there is at least one repeat");
        let cold_ms = median(cold_ms);
        figures.set("cold_cpu_ms_per_task", rounded(cold_ms));
        if self.executor == Executor::Inline {
            figures.keep(Rate::of_nodes(cold_ms));
        } else {
            figures.set("run_cpu_ms_per_task", rounded(median(run_ms)));
        }
        figures.set("cold_wall_s", rounded(median(cold_s)));
        figures.set("noop_cpu_ms", rounded(median(noop_ms)));
        figures.set("noop_wall_s", rounded(median(noop_s)));
        figures.set("one_change_ran", changed.ran);
        figures.set("one_change_cpu_ms", rounded(changed.usage.cpu_ms));
        Ok(())
    }

    /// The same with a small file from each task, hashed, made durable and published.
    fn files(&self, figures: &mut Figures) -> Result<()> {
        let (mut cold_ms, mut noop_ms) = (Vec::new(), Vec::new());
        for _ in 0..N_REPEATS {
            let folder = Folder::new()?;
            folder.write(&pipeline::files(self.n, ""))?;
            let (cold, _) = self.run(&folder, self.n as usize)?;
            cold_ms.push(self.per_task(cold.usage.cpu_ms));
            noop_ms.push(self.run(&folder, 0)?.0.usage.cpu_ms);
        }
        figures.set("cold_files_cpu_ms_per_task", rounded(median(cold_ms)));
        figures.set("noop_files_cpu_ms", rounded(median(noop_ms)));
        Ok(())
    }

    /// A chain whose head is changed in a way that gives the same bytes.
    fn chain(&self, figures: &mut Figures) -> Result<()> {
        let n = self.n.min(CHAIN_MAX);
        let folder = Folder::new()?;
        folder.write(&pipeline::chain(n, 0))?;
        let (cold, _) = self.run(&folder, n as usize)?;
        folder.write(&pipeline::chain(n, 1))?;
        let (changed, _) = self.run(&folder, 1)?;
        figures.set("chain_n", n);
        figures.set("chain_cold_cpu_ms_per_task", rounded(cold.usage.cpu_ms / f64::from(n)));
        figures.set("chain_ran", changed.ran);
        Ok(())
    }

    /// Killed half way and run again: how many tasks that had run ran once more.
    fn kill(&self, figures: &mut Figures) -> Result<()> {
        let n = self.n.min(KILL_MAX);
        let folder = Folder::new()?;
        let journal = folder.0.join("journal");
        folder.write(&pipeline::files(n, &journal.display().to_string()))?;
        let mut child = self.start(&folder)?;
        let since = Instant::now();
        while n_lines(&journal) < u64::from(n) / 2 && child.try_wait()?.is_none() {
            if since.elapsed() > PATIENCE {
                child.kill()?;
                return Err(Error::usage("the run to be killed does not get half way"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill()?;
        child.wait()?;
        let n_before = n_lines(&journal);
        let output = self.start(&folder)?.wait_with_output()?;
        self.parse(&output)?;
        let text = fs::read_to_string(&journal)?;
        let distinct: BTreeSet<&str> = text.lines().collect();
        if distinct.len() != n as usize {
            let n_lost = n as usize - distinct.len();
            return Err(Error::usage(format!("{n_lost} tasks never ran after the kill")));
        }
        figures.set("kill_n", n);
        figures.set("kill_ran_before", n_before);
        figures.set("kill_repeated", text.lines().count() - distinct.len());
        Ok(())
    }

    /// Runs the folder's pipeline; `n_expected` tasks must run, or the figures mean nothing.
    fn run(&self, folder: &Folder, n_expected: usize) -> Result<(Outcome, Duration)> {
        let since = Instant::now();
        let output = self.start(folder)?.wait_with_output()?;
        let wall = since.elapsed();
        let ran = self.parse(&output)?;
        if ran.ran != n_expected {
            let message = format!("{} tasks ran where {n_expected} should have", ran.ran);
            return Err(Error::usage(message));
        }
        Ok((ran, wall))
    }

    /// CPU time in milliseconds, of all tasks together, for one of them.
    fn per_task(&self, cpu_ms: f64) -> f64 {
        cpu_ms / f64::from(self.n)
    }

    fn executor_word(&self) -> &'static str {
        match self.executor {
            Executor::Inline => "inline",
            Executor::Process => "process",
        }
    }

    fn start(&self, folder: &Folder) -> Result<Child> {
        let mut command = Command::new(&self.exe);
        command
            .args(["bench", "orch-run", "pipeline.yaml", "--quiet", "--dir", ".sbp"])
            .args(["-j", &self.cpu.to_string(), "--executor", self.executor_word()])
            .current_dir(&folder.0)
            // The ledger is the one in the folder, whatever this command was told.
            .env_remove("SBP_LEDGER")
            .env_remove("SBP_LEASE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    fn parse(&self, output: &std::process::Output) -> Result<Outcome> {
        let text = String::from_utf8_lossy(&output.stdout);
        match serde_json::from_str(text.trim()) {
            Ok(ran) if output.status.success() => Ok(ran),
            _ => {
                self.printer.warn(String::from_utf8_lossy(&output.stderr));
                Err(Error::usage(format!("a measured run ended with {}", output.status)))
            }
        }
    }
}

impl Folder {
    fn new() -> io::Result<Self> {
        let name = format!("sbp-bench-{}-{}", std::process::id(), next());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn write(&self, text: &str) -> io::Result<()> {
        fs::write(self.0.join("pipeline.yaml"), text)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed only takes space.
        let _ = engine::store::remove_tree(&self.0);
    }
}

/// Tells the folders of one process apart.
fn next() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static N_FOLDERS: AtomicU64 = AtomicU64::new(0);
    N_FOLDERS.fetch_add(1, Ordering::Relaxed)
}

fn n_lines(journal: &Path) -> u64 {
    fs::metadata(journal).map_or(0, |metadata| metadata.len() / LINE_BYTES)
}

fn rounded(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}
