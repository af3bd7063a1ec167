//! `sbp bench`: one sub-command for each bench.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `sbp bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// The engine: what running, re-running and killing a pipeline of tasks that do nothing costs
    Orch(OrchArgs),
    /// The CUDA kernels: parity with the references, speed beside ceilings and PyTorch, training
    Gpu(GpuArgs),
    /// Run a pipeline of bench tasks once; what `orch` measures
    #[command(hide = true)]
    OrchRun(OrchRunArgs),
}

/// `sbp bench gpu`.
#[derive(Args, Debug)]
pub(crate) struct GpuArgs {
    /// Which GPU
    #[arg(long, value_name = "cuda:N", default_value = "cuda:0")]
    pub(crate) device: String,
    /// Only this part; may be given again
    #[arg(long, value_name = "PART")]
    pub(crate) only: Vec<GpuPart>,
    /// Also write `gpu.json` and `gpu.md` into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// A part of `sbp bench gpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GpuPart {
    /// Every kernel against its reference, over many shapes.
    Parity,
    /// Every kernel's speed beside the GPU's ceilings.
    Speed,
    /// The same shapes in PyTorch, where `python3` has it.
    Torch,
    /// Training a model of 3 B parameters.
    Training,
    /// Generating with a model of 3 B parameters.
    Generation,
    /// 200 steps of a small model, beside the CPU's.
    Curve,
    /// The kernels under compute-sanitizer, where it is installed.
    Sanitizer,
    /// Small shapes only; what the sanitizer runs.
    #[value(hide = true)]
    Small,
}

/// `sbp bench orch`.
#[derive(Args, Debug)]
pub(crate) struct OrchArgs {
    /// How many tasks stand side by side
    #[arg(long, value_name = "N", default_value = "1000")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=200_000))]
    pub(crate) n: u32,
    /// How attempts run
    #[arg(long, value_name = "KIND", default_value = "inline")]
    pub(crate) kind: Executor,
    /// Attempts at a time
    #[arg(long, short = 'j', value_name = "N", default_value = "2")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpu: u32,
}

/// How attempts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Executor {
    /// On a thread of this process.
    Inline,
    /// In a process of their own.
    Process,
}

/// `sbp bench orch-run`.
#[derive(Args, Debug)]
pub(crate) struct OrchRunArgs {
    /// The pipeline's YAML file
    pub(crate) pipeline: PathBuf,
    /// Attempts at a time
    #[arg(long, short = 'j', value_name = "N", default_value = "2")]
    pub(crate) cpu: u32,
}
