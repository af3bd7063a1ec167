//! Holds a pipeline until the quality of a sample of synthetic documents is good enough.
//!
//! The figures are those of `measure_quality`. The default limits are ours, just worse than what the
//! paper's Table 2 reports for its first corpus.

use std::path::Path;

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, ParamError, Port, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{read_json, write_json};
use crate::format::Error;
use crate::judge::{Judgement, Measure};
use crate::measure_quality::{Quality, Rate};

/// See the module.
pub struct Gate;

/// Params of `gate`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Lowest share of documents that are about what their seed is about; `null` for no limit.
    #[serde(default = "default_relevance_min")]
    pub relevance_min: Option<f64>,
    /// Lowest share of documents that are no copy of their seed; `null` for no limit.
    #[serde(default = "default_novelty_min")]
    pub novelty_min: Option<f64>,
    /// Lowest share of documents that do not repeat themselves; `null` for no limit.
    #[serde(default = "default_non_repetition_min")]
    pub non_repetition_min: Option<f64>,
    /// What to do below a limit: `fail`, `park` to wait for an operator, or `warn` and go on.
    #[serde(default)]
    pub on_fail: OnFail,
}

/// What to do when a figure is below its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFail {
    /// End the node as failed.
    #[default]
    Fail,
    /// Wait for an operator's decision.
    Park,
    /// Say so and go on.
    Warn,
}

#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn default_relevance_min() -> Option<f64> {
    Some(0.70)
}
#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn default_novelty_min() -> Option<f64> {
    Some(0.98)
}
#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn default_non_repetition_min() -> Option<f64> {
    Some(0.93)
}

/// What `decision.json` says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether every figure reaches its limit.
    pub pass: bool,
    /// Whether the run goes on: it passed, `on_fail` is `warn`, or an operator approved it.
    pub proceed: bool,
    /// The figures that have a limit.
    pub figures: Vec<Figure>,
}

/// The file in the artifact's folder.
pub(crate) const DECISION_FILE: &str = "decision.json";

impl Decision {
    /// Reads the `decision` artifact in `dir`.
    ///
    /// # Errors
    /// When `decision.json` cannot be read.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        read_json(&dir.join(DECISION_FILE))
    }
}

/// A figure beside its limit.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// The share measured.
    pub value: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end of its 95 % interval.
    pub high: f64,
    /// Documents measured.
    pub n: u64,
    /// The lowest value that passes.
    pub min: f64,
    /// Whether it passes.
    pub pass: bool,
}

impl Task for Gate {
    const KIND: &'static str = "gate";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "compares quality figures with limits, and stops or goes on";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::one("quality", "quality", "what was measured by rules"),
        Port::optional("judgement", "judgement", "what a judge said; counts instead, where it did"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("decision", "decision", "the figures beside their limits")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        let limits = [
            ("relevance_min", params.relevance_min),
            ("novelty_min", params.novelty_min),
            ("non_repetition_min", params.non_repetition_min),
        ];
        if limits.iter().all(|(_, limit)| limit.is_none()) {
            return Err(ParamError::new("relevance_min", "no figure has a limit").help(
                "give at least one of relevance_min, novelty_min, non_repetition_min a number",
            ));
        }
        for (name, limit) in limits {
            if let Some(limit) = limit.filter(|limit| !(0.0..=1.0).contains(limit)) {
                let message = format!("{name} is {limit}; a share lies in 0 to 1");
                return Err(ParamError::new(name, message));
            }
        }
        Ok(())
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let quality = Quality::read(inputs.one("quality"))?;
        let judgement = inputs.optional("judgement").map(Judgement::read).transpose()?;
        let judged = |measure| judgement.as_ref()?.bad(measure);
        // A judge's rates are those of bad documents.
        let relevance = judged(Measure::Relevance);
        let copying = judged(Measure::Copying).unwrap_or(&quality.pair_copying);
        let repetition = judged(Measure::Repetition).unwrap_or(&quality.repetition);
        let limits = [
            ("relevance", relevance.unwrap_or(&quality.relevance), params.relevance_min),
            ("novelty", copying, params.novelty_min),
            ("non_repetition", repetition, params.non_repetition_min),
        ];
        let mut figures = Vec::new();
        for (name, rate, min) in limits {
            if let Some(min) = min {
                let complement = name != "relevance" || relevance.is_some();
                figures.push(figure(name, rate, min, complement)?);
            }
        }
        let pass = figures.iter().all(|figure| figure.pass);
        let is_approved = params.on_fail == OnFail::Park && ctx.is_approved();
        let proceed = pass || params.on_fail == OnFail::Warn || is_approved;
        let decision = Decision { pass, proceed, figures };
        decide(ctx, params.on_fail, &decision, &ctx.out("decision")?)
    }
}

fn figure(name: &str, rate: &Rate, min: f64, complement: bool) -> Result<Figure, Failure> {
    if rate.n == 0 {
        let message = format!("`{name}` was measured on no document");
        return Err(Failure::permanent(message).help(
            "documents without seeds have no relevance and novelty: set those limits to `null`",
        ));
    }
    let (value, low, high) = if complement {
        (1.0 - rate.rate, 1.0 - rate.high, 1.0 - rate.low)
    } else {
        (rate.rate, rate.low, rate.high)
    };
    let pass = value >= min;
    Ok(Figure { name: name.to_owned(), value, low, high, n: rate.n, min, pass })
}

fn decide(
    ctx: &Context,
    on_fail: OnFail,
    decision: &Decision,
    dir: &Path,
) -> Result<Outputs, Failure> {
    write_json(&dir.join(DECISION_FILE), decision)?;
    let below: Vec<String> = decision
        .figures
        .iter()
        .filter(|figure| !figure.pass)
        .map(|f| {
            format!("{} {:.3} ({:.3} to {:.3}) is below {}", f.name, f.value, f.low, f.high, f.min)
        })
        .collect();
    let mut outputs = Outputs::default().metric("pass", f64::from(u8::from(decision.pass)));
    for figure in &decision.figures {
        outputs = outputs.metric(figure.name.clone(), figure.value);
    }
    let message = below.join("; ");
    match on_fail {
        _ if decision.pass => Ok(outputs),
        _ if decision.proceed => {
            ctx.warn(message);
            Ok(outputs)
        }
        OnFail::Park => Err(Failure::parked(message)),
        _ => Err(Failure::permanent(message)),
    }
}
