//! `sbp lm`: model folders in Hugging Face's form.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `sbp lm`.
#[derive(Args, Debug)]
pub(crate) struct LmArgs {
    #[command(subcommand)]
    pub(crate) command: LmCommand,
}

/// What to do with a model.
#[derive(Debug, Subcommand)]
pub(crate) enum LmCommand {
    /// Say what a folder holds: architecture, sizes, tokenizer, and every tensor
    Inspect(InspectArgs),
    /// Write texts that continue a prompt
    Generate(GenerateArgs),
    /// Score text files
    Perplexity(PerplexityArgs),
    /// Write a copy of a model in another precision
    Convert(ConvertArgs),
}

/// `sbp lm inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// The model's folder
    pub(crate) model: PathBuf,
    /// List every tensor, not only those that look wrong
    #[arg(long)]
    pub(crate) tensors: bool,
}

/// `sbp lm generate`.
#[derive(Args, Debug)]
pub(crate) struct GenerateArgs {
    /// The model's folder
    pub(crate) model: PathBuf,
    /// What the texts continue; read from stdin when it is `-`
    #[arg(default_value = "")]
    pub(crate) prompt: String,
    /// How many texts
    #[arg(long, short = 'n', value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) texts: u32,
    /// Most tokens of a text; the rest of the context when not given
    #[arg(long, value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    /// Divides the logits; 0 takes the likeliest token; the folder's own when not given
    #[arg(long, value_name = "X")]
    pub(crate) temperature: Option<f32>,
    /// Share of the probability that tokens are drawn from
    #[arg(long, value_name = "X")]
    pub(crate) top_p: Option<f64>,
    /// How many of the likeliest tokens are drawn from; 0 for all
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<usize>,
    /// Above 1, makes tokens that occurred less likely
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// Threads; every one that the machine has when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
    /// What computes: `cpu`, `cuda:N`, or `auto` for a GPU where one can be used
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
}

/// `sbp lm perplexity`.
#[derive(Args, Debug)]
pub(crate) struct PerplexityArgs {
    /// The model's folder
    pub(crate) model: PathBuf,
    /// Text files, each one document
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Threads; every one that the machine has when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
    /// What computes: `cpu`, `cuda:N`, or `auto` for a GPU where one can be used
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
}

/// `sbp lm convert`.
#[derive(Args, Debug)]
pub(crate) struct ConvertArgs {
    /// The model's folder
    pub(crate) model: PathBuf,
    /// The folder to write; it must not hold a model
    pub(crate) out: PathBuf,
    /// The type of the numbers
    #[arg(long, value_name = "TYPE")]
    pub(crate) precision: PrecisionChoice,
}

/// The type of the numbers in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionChoice {
    /// 32 bits.
    F32,
    /// 16 bits with the range of `f32`.
    Bf16,
    /// 16 bits, up to 65,504.
    F16,
}
