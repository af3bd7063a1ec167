//! `sbp bench`: one sub-command for each bench.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Executor, WorkArgs};

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
    /// Nearest neighbours: all pairs of generated embeddings, through lists and exactly
    Pair(PairArgs),
    /// The tokenizer: training and encoding, on mixed text
    Bpe(BpeArgs),
    /// Near-duplicates: windows of tokens, min-hash signatures, duplicates among a million documents
    Dedup(DedupArgs),
    /// Cleaning: mixed text, of which a tenth is broken, on one thread
    Clean(CleanArgs),
    /// The language model: training, generation, and every op beside the peak of the matrix product
    Lm(LmBenchArgs),
    /// Run a pipeline of bench tasks once; what `orch` measures
    #[command(hide = true)]
    OrchRun(OrchRunArgs),
    /// Serve such a run whose attempts are processes
    #[command(hide = true)]
    OrchForkServer,
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

/// `sbp bench lm`.
#[derive(Args, Debug)]
pub(crate) struct LmBenchArgs {
    /// What to measure, in YAML or JSON; the reference model of BENCHMARKS.md when not given
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Threads; every one that the machine has when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
}

/// `sbp bench orch-run`.
#[derive(Args, Debug)]
pub(crate) struct OrchRunArgs {
    /// The pipeline's YAML file
    pub(crate) pipeline: PathBuf,
    /// Attempts at a time
    #[arg(long, short = 'j', value_name = "N", default_value = "2")]
    pub(crate) cpu: u32,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
}

/// `sbp bench pair`.
#[derive(Args, Debug)]
pub(crate) struct PairArgs {
    /// Documents, each a query and a value
    #[arg(long, value_name = "N", default_value = "200000", value_parser = at_least_two)]
    pub(crate) n: usize,
    /// Components of an embedding
    #[arg(long, value_name = "N", default_value = "1024", value_parser = at_least_two)]
    pub(crate) dim: usize,
    /// Neighbours of a document
    #[arg(long, value_name = "N", default_value = "200", value_parser = at_least_two)]
    pub(crate) k: usize,
    /// Share of the neighbours that the search through lists is asked to find
    #[arg(long, value_name = "SHARE", default_value = "0.97")]
    pub(crate) recall: f64,
    /// Documents that audit the search, and as many others that calibrate it
    #[arg(long, value_name = "N", default_value = "1000", value_parser = at_least_two)]
    pub(crate) queries: usize,
    /// Measure the exact search of all documents too
    #[arg(long)]
    pub(crate) exact: bool,
    /// Threads; all processors unless given
    #[arg(long, short = 'j', value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Seed of the embeddings
    #[arg(long, value_name = "N", default_value = "1234")]
    pub(crate) seed: u64,
}

/// `sbp bench bpe`.
#[derive(Args, Debug)]
pub(crate) struct BpeArgs {
    /// Tokens in the vocabulary
    #[arg(long, value_name = "N", default_value = "16384")]
    #[arg(value_parser = clap::value_parser!(u32).range(300..=1_000_000))]
    pub(crate) vocab_size: u32,
    /// Text that is trained on, in 10^6 bytes
    #[arg(long, value_name = "MB", default_value = "50", value_parser = megabytes)]
    pub(crate) train_mb: f64,
    /// Text that is encoded, in 10^6 bytes
    #[arg(long, value_name = "MB", default_value = "100", value_parser = megabytes)]
    pub(crate) encode_mb: f64,
    /// Text whose ids are compared with those of the `tokenizers` crate, in 10^6 bytes
    #[arg(long, value_name = "MB", default_value = "5", value_parser = megabytes)]
    pub(crate) check_mb: f64,
    /// A `corpus` artifact to take the text from, instead of generated text
    #[arg(long, value_name = "DIR")]
    pub(crate) corpus: Option<PathBuf>,
    /// Threads of the training; all processors unless given
    #[arg(long, short = 'j', value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Seed of the generated text
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,
}

/// `sbp bench dedup`.
#[derive(Args, Debug)]
pub(crate) struct DedupArgs {
    /// Text of the signatures, in 10^6 bytes
    #[arg(long, value_name = "MB", default_value = "50", value_parser = megabytes)]
    pub(crate) mb: f64,
    /// Documents among which duplicates are looked for; 0 for none
    #[arg(long, value_name = "N", default_value = "1000000")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=1_000_000_000))]
    pub(crate) documents: u32,
    /// Threads that look for duplicates; all processors unless given
    #[arg(long, short = 'j', value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Seed of the generated text
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,
}

/// `sbp bench clean`.
#[derive(Args, Debug)]
pub(crate) struct CleanArgs {
    /// Text to clean, in 10^6 bytes
    #[arg(long, value_name = "MB", default_value = "100", value_parser = megabytes)]
    pub(crate) mb: f64,
    /// Seed of the generated text
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,
}

/// What is made in memory.
fn megabytes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(mb) if mb > 0.0 && mb <= 1e5 => Ok(mb),
        _ => Err("a number above 0 and up to 100000 is needed".to_owned()),
    }
}

fn at_least_two(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n >= 2 => Ok(n),
        _ => Err("a whole number of at least 2 is needed".to_owned()),
    }
}
