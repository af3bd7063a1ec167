//! What starting processes costs by itself, and programs as nodes beside it.

use std::process::{Command, Stdio};

use super::{Bench, Folder, N_REPEATS, pipeline, rounded};
use crate::commands::bench::usage::Usage;
use crate::commands::bench::{Figures, median};
use crate::error::{Error, Result};

/// Adds a byte to a file and writes another one, with nothing but what the shell has built in.
const SCRIPT: &str = "printf . >> count; : > out";

impl Bench {
    /// The floors under attempts in processes and under programs, and what programs cost above
    /// theirs. Every program's file is hashed, made durable and published.
    pub(super) fn programs(&self, figures: &mut Figures) -> Result<()> {
        let this_program = || {
            let mut command = Command::new(&self.exe);
            command.arg("--version");
            command
        };
        let shell = || {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", SCRIPT]);
            command
        };
        figures.set("spawn_cpu_ms_per_task", rounded(self.spawn(this_program)?));
        figures.set("program_spawn_cpu_ms_per_task", rounded(self.spawn(shell)?));
        let mut programs_ms = Vec::new();
        for _ in 0..N_REPEATS {
            let folder = Folder::new()?;
            folder.write(&pipeline::programs(self.n))?;
            let (ran, _) = self.run(&folder, self.n as usize)?;
            programs_ms.push(self.per_task(ran.usage.cpu_ms + ran.usage.children_cpu_ms));
        }
        figures.set("program_cpu_ms_per_task", rounded(median(programs_ms)));
        Ok(())
    }

    /// CPU time in milliseconds of starting a program `n` times in a loop and waiting for it.
    fn spawn(&self, command: impl Fn() -> Command) -> Result<f64> {
        let mut spawned_ms = Vec::new();
        for _ in 0..N_REPEATS {
            let folder = Folder::new()?;
            let before = Usage::now();
            for _ in 0..self.n {
                let mut command = command();
                command.current_dir(&folder.0).stdin(Stdio::null());
                let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
                if !status.success() {
                    return Err(Error::usage(format!("a program that does nothing: {status}")));
                }
            }
            let used = Usage::now();
            let own_ms = used.cpu_ms - before.cpu_ms;
            spawned_ms.push(self.per_task(own_ms + used.children_cpu_ms - before.children_cpu_ms));
        }
        Ok(median(spawned_ms))
    }
}
