//! The language model: a Llama-3 stack with per-head QK-norm (the architecture of Qwen3).
//!
//! One model code serves pretraining, synthesizer-tuning, embedding and generation. The set of
//! operations is fixed and the backward pass is derived by hand; memory is planned before the first
//! step. Weights travel as Hugging Face safetensors of `Qwen3ForCausalLM`.

pub mod arch;
pub mod backward;
pub mod batch;
pub mod bench;
pub mod config;
pub mod device;
pub mod folder;
pub mod forward;
pub mod generate;
pub mod hf;
pub mod init;
pub mod learner;
pub mod memory;
pub mod optimizer;
pub mod reader;
pub mod snapshots;
pub mod trainer;
pub mod weights;

pub use arch::{Arch, Preset};
pub use config::{Config, ConfigError};
pub use forward::Forward;
pub use weights::Weights;

#[cfg(test)]
mod tests;
