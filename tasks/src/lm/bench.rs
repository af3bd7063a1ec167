//! What a machine makes of the language model: a real training run, real generation, and every op
//! of a training step beside the peak of the matrix product.
//!
//! Rates are medians over steps and runs; figures of single ops are the fastest of several calls. The
//! defaults are the reference model that the speed figures of BENCHMARKS.md are about.

mod generate;
mod ops;
mod train;

use std::collections::BTreeMap;

use engine::task::{Failure, ParamError};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Config;
use super::arch::{self, Arch, Preset};
use super::init::Init;
use crate::cost::{self, fact, unit};
pub use ops::Op;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// The model: the name of a preset, or an object with `preset` and the values that differ.
    #[serde(deserialize_with = "arch::deserialize")]
    #[schemars(schema_with = "arch::schema")]
    pub arch: Arch,
    /// Rows of a training step, each as long as the model's context.
    pub rows: usize,
    /// Most tokens computed at once in training.
    pub micro_batch_tokens: usize,
    /// Training steps that are timed, after two that are not.
    pub steps: usize,
    /// Texts generated at a time, each a measurement of its own.
    pub batches: Vec<usize>,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub new_tokens: usize,
    /// Timed runs of each batch, after one that is not.
    pub runs: usize,
}

impl Default for Workload {
    /// The reference model: 5.5 M parameters, 4,096 tokens a step.
    fn default() -> Self {
        let arch = Arch {
            d_model: Some(256),
            n_layers: Some(6),
            n_heads: Some(4),
            n_kv_heads: Some(2),
            head_dim: Some(64),
            d_ffn: Some(704),
            vocab_size: Some(4096),
            context: Some(256),
            rope_theta: Some(1e4),
            ..Preset::Toy.into()
        };
        Self {
            arch,
            rows: 16,
            micro_batch_tokens: 2048,
            steps: 12,
            batches: vec![1, 16, 64],
            prompt_tokens: 128,
            new_tokens: 128,
            runs: 3,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The instruction set that the kernels chose.
    pub isa: &'static str,
    /// Threads.
    pub threads: usize,
    /// Trained numbers of the model.
    pub n_parameters: u64,
    /// Floating-point operations to train on one token, attention counted over half of each row.
    pub train_flop_per_token: f64,
    /// Floating-point operations to generate one token, attention left out.
    pub decode_flop_per_token: f64,
    /// Tokens trained on in a second: the median of the steps.
    pub train_tokens_per_s: f64,
    /// The same of the fastest step.
    pub train_tokens_per_s_best: f64,
    /// Share of `gemm_peak_gflops` that training reaches.
    pub train_utilisation: f64,
    /// Loss of the first and the last step: the same batch, so it falls.
    pub train_loss: [f64; 2],
    /// Tokens generated in a second by batch size, prompts included in the time.
    pub generate_tokens_per_s: BTreeMap<String, f64>,
    /// GFLOP/s of a product of two large square matrices.
    pub gemm_peak_gflops: f64,
    /// Highest resident memory after training, in MiB.
    pub train_peak_rss_mib: f64,
    /// Highest resident memory after training and generation, in MiB.
    pub peak_rss_mib: f64,
    /// Every op of a training step.
    pub ops: Vec<Op>,
}

impl Workload {
    /// The model's shape.
    ///
    /// # Errors
    /// When the architecture is wrong, a count is 0, or prompt and text exceed the context.
    pub fn config(&self) -> Result<Config, ParamError> {
        let vocab = self.arch.vocab_size.unwrap_or(self.arch.preset.config().vocab_size);
        let config = self.arch.config(vocab)?;
        for (name, value) in [
            ("rows", self.rows),
            ("micro_batch_tokens", self.micro_batch_tokens),
            ("steps", self.steps),
            ("prompt_tokens", self.prompt_tokens),
            ("new_tokens", self.new_tokens),
            ("runs", self.runs),
            ("batches", self.batches.iter().copied().min().unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(ParamError::new(name, "0 is not above 0"));
            }
        }
        let (asked, context) = (self.prompt_tokens + self.new_tokens, config.context);
        if asked > context {
            return Err(ParamError::new(
                "new_tokens",
                format!("prompt and text have {asked} tokens, the context {context}"),
            ));
        }
        Ok(config)
    }
}

impl Report {
    /// Operations a second by unit, as estimates count them; generation is that of the largest batch.
    pub fn rates(&self) -> Vec<(&'static str, f64)> {
        let trained = self.train_tokens_per_s * self.train_flop_per_token;
        let of_batch = |(n, rate): (&String, &f64)| Some((n.parse::<usize>().ok()?, *rate));
        let largest = self.generate_tokens_per_s.iter().filter_map(of_batch).max_by_key(|at| at.0);
        let generated = largest.map(|(_, rate)| rate * self.decode_flop_per_token);
        let mut rates = vec![(unit::TRAIN_FLOP, trained)];
        rates.extend(generated.map(|rate| (unit::DECODE_FLOP, rate)));
        rates
    }
}

/// Measures `workload` on `n_threads` threads; `talk` is told what comes next.
///
/// # Errors
/// When the workload is wrong, or the model's numbers stop being finite.
pub fn run(
    workload: &Workload,
    n_threads: usize,
    talk: &mut dyn FnMut(&str),
) -> Result<Report, Failure> {
    let config = workload.config().map_err(|error| {
        Failure::permanent(format!("the workload's `{}`: {}", error.path, error.message))
    })?;
    let pool = Pool::new(n_threads);
    talk("training");
    let weights = Init::default().draw(&pool, &config, 0);
    let trained = train::run(&pool, workload, weights)?;
    let train_peak_rss_mib = engine::usage::peak_resident_mib();
    let mut generate_tokens_per_s = BTreeMap::new();
    for &n in &workload.batches {
        talk(&format!("generating {n} at a time"));
        let rate = generate::run(&pool, workload, &trained.weights, n)?;
        generate_tokens_per_s.insert(n.to_string(), rate);
    }
    let peak_rss_mib = engine::usage::peak_resident_mib();
    talk("single ops");
    let gemm_peak_gflops = kernels::bench::peak_gflops(&pool, ops::N_RUNS);
    let train_flop_per_token = config.train_flop_per_token(config.context);
    let flops = trained.tokens_per_s * train_flop_per_token;
    Ok(Report {
        isa: pool.isa().name(),
        threads: n_threads,
        n_parameters: config.n_parameters(),
        train_flop_per_token,
        decode_flop_per_token: cost::model(&config)
            .get(fact::TOKEN_FLOP)
            .expect("a model says what a token costs"),
        train_tokens_per_s: trained.tokens_per_s,
        train_tokens_per_s_best: trained.tokens_per_s_best,
        train_utilisation: flops / (gemm_peak_gflops * 1e9),
        train_loss: trained.loss,
        generate_tokens_per_s,
        gemm_peak_gflops,
        train_peak_rss_mib,
        peak_rss_mib,
        ops: ops::measure(&pool, workload, &config, gemm_peak_gflops),
    })
}

/// The middle one of measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { f64::midpoint(values[(n - 1) / 2], values[n / 2]) }
}

#[cfg(test)]
mod tests;
