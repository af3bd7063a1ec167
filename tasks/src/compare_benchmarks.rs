//! Compares arms on benchmarks: scores beside each other, paired tests, and the share of the oracle's
//! gain.
//!
//! In a resample every arm sees the same items of a benchmark, so differences are paired; benchmarks
//! are resampled apart. With several seeds of an arm, an item counts with its mean over seeds, and the
//! seeds' own spread stands beside: an interval over items does not hold what another seed would change.

mod table;
#[cfg(test)]
mod tests;

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, ParamError, Port, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::benchmark;
use crate::compare::arm_of;
use crate::corpus::write_json;
use crate::stats;

pub use table::{Cell, Line, Seeds, Table};
use table::{Measured, compare, csv};

/// See the module.
pub struct CompareBenchmarks;

/// Params of `compare_benchmarks`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The arm that the others are compared with.
    #[serde(default = "crate::compare::default_baseline")]
    pub baseline: String,
    /// The arm with more unique data, if there is one of this name.
    #[serde(default = "crate::compare::default_oracle")]
    pub oracle: String,
    /// Benchmarks with an accuracy that are no part of the average, nor of the share of the oracle's
    /// gain. The paper's average is over six; of MMLU it takes the perplexity.
    #[serde(default = "default_not_averaged")]
    pub not_averaged: Vec<String>,
    /// Resamples of the items.
    #[serde(default = "default_n_resamples")]
    pub n_resamples: usize,
    /// Seed of the resamples.
    #[serde(default)]
    pub seed: u64,
}

fn default_not_averaged() -> Vec<String> {
    vec!["mmlu".to_owned()]
}
fn default_n_resamples() -> usize {
    10_000
}

impl Task for CompareBenchmarks {
    const KIND: &'static str = "compare_benchmarks";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "compares arms on benchmarks, with paired tests and intervals";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const INPUTS: &'static [Port] = &[Port::many(
        "benchmarks",
        "benchmark",
        "one of each arm, benchmark and seed; arms are told by the matrix value `arm`",
    )];
    const OUTPUTS: &'static [Port] =
        &[Port::one("table", "table", "benchmarks.json, and benchmarks.csv")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        stats::check_resamples(params.n_resamples)
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let mut measured = Vec::new();
        for input in inputs.many("benchmarks") {
            ctx.check_cancelled()?;
            let (scores, rows) = benchmark::read(&input.dir)?;
            measured.push(Measured::new(arm_of(&input.node), input.node.clone(), &scores, &rows)?);
        }
        let table = compare(params, &measured)?;
        let dir = ctx.out("table")?;
        write_json(&dir.join("benchmarks.json"), &table)?;
        std::fs::write(dir.join("benchmarks.csv"), csv(&table))?;
        let mut outputs = Outputs::default();
        if let Some(average) = &table.average {
            for (arm, cell) in table.arms.iter().zip(&average.cells) {
                outputs = outputs.metric(format!("average.{arm}"), cell.value.value);
            }
        }
        for (arm, fraction) in &table.fraction_of_oracle {
            outputs = outputs.metric(format!("fraction_of_oracle.{arm}"), fraction.value);
        }
        Ok(outputs)
    }
}
