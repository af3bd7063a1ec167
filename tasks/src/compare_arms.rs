//! Compares the arms of a study on a world, with seeds as replicates.
//!
//! Effects are reported, never judged: the treatment minus every other arm, for each seed with a paired
//! bootstrap interval over documents or questions, and over seeds with a t interval. The former holds
//! what other questions would change, the latter what other worlds and training runs would.
//!
//! The share of the oracle's gain is given only where the oracle answers more questions than the
//! baseline: an oracle that has not learned the facts within the budget bounds nothing.

mod estimate;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use engine::task::{Context, Determinism, Failure, Input, Inputs, Outputs, ParamError, Port, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check_arms::Check;
use crate::compare::axis;
use crate::corpus::{read_json, write_json};
use crate::evaluate_synthesizer::{PairScores, SynthesizerScores};
use crate::evaluate_world::{Kinds, WorldEvaluation};
use crate::format::Error;
use crate::measure_facts::{Facts, FactsReport};
use crate::pair_true::{AGREEMENT_FILE, Agreement};
use crate::stats;
use estimate::Study as Evaluations;

/// Compares arms over seeds.
pub struct CompareArms;

/// Params of `compare_arms`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The arm that repeats the documents.
    #[serde(default = "crate::compare::default_baseline")]
    pub baseline: String,
    /// The arm under test.
    #[serde(default = "crate::compare::default_treatment")]
    pub treatment: String,
    /// The arm that never repeats a document.
    #[serde(default = "crate::compare::default_oracle")]
    pub oracle: String,
    /// Arms that lack what the treatment claims to add. The best of them, for each seed and figure, is
    /// what the treatment has to beat.
    pub controls: Vec<String>,
    /// Resamples of documents and questions.
    #[serde(default = "default_n_resamples")]
    pub n_resamples: usize,
    /// Seed of the resamples.
    #[serde(default)]
    pub seed: u64,
}

fn default_n_resamples() -> usize {
    2000
}

/// A figure that arms are compared by, of the headline kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Share of questions answered right; higher is better.
    Accuracy,
    /// Loss of values where they are first given; lower is better.
    FactLoss,
    /// Loss of all tokens; lower is better.
    Loss,
}

impl Figure {
    /// Every figure.
    pub const ALL: [Self; 3] = [Self::Accuracy, Self::FactLoss, Self::Loss];

    /// As written in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::FactLoss => "fact_loss",
            Self::Loss => "loss",
        }
    }

    /// 1 when higher is better, else -1.
    fn sign(self) -> f64 {
        if self == Self::Accuracy { 1.0 } else { -1.0 }
    }
}

/// A mean over seeds with its 95 % t interval, which needs two seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Lower end.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
}

/// One arm of one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The arm.
    pub arm: String,
    /// The seed.
    pub seed: String,
    /// Its scores by kind.
    pub kinds: Kinds,
}

/// A difference of one seed, with its bootstrap interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedDifference {
    /// The seed.
    pub seed: String,
    /// What is subtracted: the arm, of several the best in this seed.
    pub against: String,
    /// The difference.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The treatment minus another arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// The other arm, or `best control`.
    pub against: String,
    /// The figure.
    pub figure: Figure,
    /// For each seed.
    pub seeds: Vec<SeedDifference>,
    /// Over seeds.
    pub mean: Mean,
}

/// Where the treatment's curve falls for good on the better side of the baseline's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crossing {
    /// The seed.
    pub seed: String,
    /// The figure.
    pub figure: Figure,
    /// The first such point, as a share of the budget; `None` when it never does.
    pub fraction: Option<f64>,
}

/// The share of the oracle's gain over the baseline that an arm reaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OracleShare {
    /// The arm.
    pub arm: String,
    /// The seed.
    pub seed: String,
    /// The figure.
    pub figure: Figure,
    /// The share; `None` where the oracle answers no more questions than the baseline.
    pub share: Option<f64>,
}

/// What a node of a matrix measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Of<T> {
    /// The arm, or the node's name when it has none.
    pub arm: String,
    /// The seed.
    pub seed: String,
    /// What was measured.
    pub found: T,
}

/// What `study.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Format version.
    pub version: u32,
    /// The kind of documents and questions that contrasts are of.
    pub headline: String,
    /// Right answers by chance.
    pub chance: f64,
    /// The seeds, in order.
    pub seeds: Vec<String>,
    /// The arms, in order.
    pub arms: Vec<String>,
    /// Each arm of each seed.
    pub cells: Vec<Cell>,
    /// Means over seeds of the headline figures, by arm.
    pub means: BTreeMap<String, BTreeMap<String, Mean>>,
    /// The treatment minus every other arm.
    pub contrasts: Vec<Contrast>,
    /// Where curves cross.
    pub crossings: Vec<Crossing>,
    /// Shares of the oracle's gain.
    pub oracle_shares: Vec<OracleShare>,
    /// Synthesizers against the exact posterior.
    pub synthesizers: Vec<Of<BTreeMap<String, PairScores>>>,
    /// Synthetic documents against the truth.
    pub synthetic: Vec<Of<BTreeMap<String, Facts>>>,
    /// Found pairs against the true ones.
    pub pairs: Vec<Of<Agreement>>,
    /// What was checked before, for each seed.
    pub checks: Vec<Of<Vec<Check>>>,
}

impl Task for CompareArms {
    const KIND: &'static str = "compare_arms";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "compares the arms of a study on a world, over seeds";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const INPUTS: &'static [Port] = &[
        Port::many("scores", "world_scores", "one of each arm and seed, of `evaluate_world`"),
        Port::many("checks", "checks", "one of each seed, of `check_arms`"),
        Port::many("synthesizers", "synthesizer_scores", "those of `evaluate_synthesizer`"),
        Port::many("facts", "facts", "those of `measure_facts`"),
        Port::many("pairs", "pairs", "those of `pair_true` that compared found pairs"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("study", "study", "study.json, table.md, and a CSV file of every figure")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        stats::check_resamples(params.n_resamples)?;
        if params.controls.is_empty() {
            return Err(ParamError::new("controls", "no control is named")
                .help("name the arms that lack what the treatment claims to add"));
        }
        Ok(())
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let evaluations = Evaluations::open(params, inputs.many("scores"))?;
        ctx.check_cancelled()?;
        let agreement = |input: &Input| -> Result<Agreement, Error> {
            let path = input.dir.join(AGREEMENT_FILE);
            read_json(&path)
        };
        let study = Study {
            version: 1,
            headline: evaluations.headline.clone(),
            chance: evaluations.chance,
            seeds: evaluations.seeds.clone(),
            arms: evaluations.arms.clone(),
            cells: evaluations.cells(),
            means: evaluations.means(),
            contrasts: evaluations.contrasts(),
            crossings: evaluations.crossings(),
            oracle_shares: evaluations.oracle_shares(),
            synthesizers: each(inputs.many("synthesizers"), |input| {
                Ok(SynthesizerScores::open(&input.dir)?.kinds)
            })?,
            synthetic: each(inputs.many("facts"), |input| {
                Ok(FactsReport::open(&input.dir)?.groups)
            })?,
            pairs: each(inputs.many("pairs"), agreement)?,
            checks: each(inputs.many("checks"), |input| read_json(&input.dir.join("checks.json")))?,
        };
        let dir = ctx.out("study")?;
        write_json(&dir.join("study.json"), &study)?;
        std::fs::write(dir.join("table.md"), table::markdown(&study))?;
        std::fs::write(dir.join("arms.csv"), table::arms_csv(&study))?;
        std::fs::write(dir.join("contrasts.csv"), table::contrasts_csv(&study))?;
        std::fs::write(dir.join("curves.csv"), table::curves_csv(&evaluations))?;
        std::fs::write(dir.join("synthetic.csv"), table::synthetic_csv(&study))?;
        Ok(metrics(&study))
    }
}

fn metrics(study: &Study) -> Outputs {
    let mut outputs = Outputs::default().metric("n_seeds", study.seeds.len() as f64);
    for (arm, figures) in &study.means {
        if let Some(accuracy) = figures.get(Figure::Accuracy.name()) {
            outputs = outputs.metric(format!("accuracy.{arm}"), accuracy.value);
        }
    }
    for contrast in study.contrasts.iter().filter(|c| c.figure == Figure::Accuracy) {
        let name = contrast.against.replace(' ', "_");
        let least = contrast.seeds.iter().map(|seed| seed.value).fold(f64::INFINITY, f64::min);
        outputs = outputs.metric(format!("accuracy_minus.{name}"), contrast.mean.value);
        outputs = outputs.metric(format!("accuracy_minus_least.{name}"), least);
    }
    outputs
}

fn each<T>(
    inputs: &[Input],
    read: impl Fn(&Input) -> Result<T, Error>,
) -> Result<Vec<Of<T>>, Failure> {
    let of = |input: &Input| {
        let (arm, seed) = place(&input.node);
        Ok(Of { arm, seed, found: read(input)? })
    };
    inputs.iter().map(of).collect()
}

/// The values of the axes `arm` and `seed` in a node's name; the node's name, and nothing, without.
fn place(node: &str) -> (String, String) {
    let own_name = node.split('[').next().unwrap_or(node);
    let arm = axis(node, "arm").unwrap_or(own_name);
    (arm.to_owned(), axis(node, "seed").unwrap_or_default().to_owned())
}

/// Reads one evaluation.
fn open(input: &Input) -> Result<WorldEvaluation, Error> {
    WorldEvaluation::open(&input.dir)
}
