//! Compares arms on the same held-out documents.
//!
//! Every interval comes from one bootstrap over documents in which all arms see the same resample, so
//! differences are paired. Numbers are of this run: one seed, one training order; an interval over
//! documents does not hold what another seed would change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use engine::task::{Context, Determinism, Failure, Input, Inputs, Outputs, ParamError, Port, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::corpus::{read_json, write_json};
use crate::format::Error;
use crate::stats::Estimate;
use crate::{rows, stats};

/// See the module.
pub struct Compare;

/// Params of `compare`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Names of the arms, in the order of `evaluations`. Default: the value of `arm` in each node's
    /// matrix, or else the node's name.
    #[serde(default)]
    pub arms: Vec<String>,
    /// The arm that the others are compared with.
    #[serde(default = "default_baseline")]
    pub baseline: String,
    /// The arm under test.
    #[serde(default = "default_treatment")]
    pub treatment: String,
    /// The arm with more unique data, if there is one of this name.
    #[serde(default = "default_oracle")]
    pub oracle: String,
    /// Arms that lack what the treatment claims to add; `[]` for none. Default: every arm but the
    /// baseline, the treatment and the oracle.
    #[serde(default)]
    pub controls: Option<Vec<String>>,
    /// Resamples of the documents.
    #[serde(default = "default_n_resamples")]
    pub n_resamples: usize,
    /// Seed of the resamples.
    #[serde(default)]
    pub seed: u64,
}

/// The arm's name in every task that compares arms.
pub(crate) fn default_baseline() -> String {
    "base".to_owned()
}
/// The arm's name in every task that compares arms.
pub(crate) fn default_treatment() -> String {
    "sbp".to_owned()
}
/// The arm's name in every task that compares arms.
pub(crate) fn default_oracle() -> String {
    "oracle".to_owned()
}
fn default_n_resamples() -> usize {
    2000
}

/// What an arm is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Repeats the real documents.
    Baseline,
    /// The arm under test.
    Treatment,
    /// Same budget, without what the treatment claims to add.
    Control,
    /// More unique real documents.
    Oracle,
    /// Something else to compare with, such as another share of synthetic text.
    Other,
}

impl Role {
    /// As written in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Treatment => "treatment",
            Self::Control => "control",
            Self::Oracle => "oracle",
            Self::Other => "other",
        }
    }
}

/// One arm's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The node that evaluated it.
    pub node: String,
    /// Negative log likelihood of a token, in nats.
    pub mean_nll: Estimate,
    /// `e^mean_nll`.
    pub perplexity: Estimate,
    /// Bits for a byte of text.
    pub bits_per_byte: Estimate,
    /// `mean_nll` minus the baseline's; below 0 is better. `None` for the baseline.
    pub difference: Option<Estimate>,
    /// Documents on which it beats the baseline.
    pub n_better: u64,
    /// Documents on which the baseline beats it.
    pub n_worse: u64,
    /// Two-sided sign test over documents.
    pub sign_p: f64,
    /// Share of the oracle's gain that it reaches; `None` unless the oracle beats the baseline.
    pub gap_closed: Option<Estimate>,
    /// What the arm was trained on: `books.json` of its schedule.
    pub books: Value,
}

/// The treatment against a control or another arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contrast {
    /// The arm.
    pub against: String,
    /// What it is for: [`Role::Control`] or [`Role::Other`].
    pub role: Role,
    /// Treatment's `mean_nll` minus the arm's; below 0 is better.
    pub difference: Estimate,
}

/// What `comparison.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Held-out documents that every arm was scored on.
    pub n_items: u64,
    /// Tokens scored in each arm.
    pub n_tokens: u64,
    /// Resamples behind the intervals.
    pub n_resamples: u64,
    /// Whether the oracle's interval against the baseline lies below 0; `None` without an oracle.
    pub oracle_beats_baseline: Option<bool>,
    /// Whether every arm was trained on equally many tokens.
    pub budgets_match: bool,
    /// The arms, in the order given.
    pub arms: Vec<Arm>,
    /// The treatment against each control and other arm.
    pub contrasts: Vec<Contrast>,
}

impl Comparison {
    /// Reads the `comparison` artifact in `dir`.
    ///
    /// # Errors
    /// When `comparison.json` cannot be read.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        read_json(&dir.join("comparison.json"))
    }

    /// The first arm of a role.
    pub fn arm(&self, role: Role) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.role == role)
    }
}

/// The value of a matrix axis in a node's name, such as `sbp` of `arm` in `eval[seed=1, arm=sbp]`.
pub(crate) fn axis<'n>(node: &'n str, name: &str) -> Option<&'n str> {
    let values = node.split_once('[')?.1.trim_end_matches(']').split(',');
    let mut values = values.filter_map(|pair| pair.trim().split_once('='));
    values.find(|(axis, _)| *axis == name).map(|(_, value)| value)
}

/// The arm's name in a node: its matrix value `arm`, or else the node's name.
pub(crate) fn arm_of(node: &str) -> String {
    axis(node, "arm").unwrap_or(node).to_owned()
}

impl Task for Compare {
    const KIND: &'static str = "compare";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "compares arms on the same documents, with paired intervals";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const INPUTS: &'static [Port] = &[
        Port::many("evaluations", "evaluation", "one of each arm, on the same held-out documents"),
        Port::many("schedules", "schedule", "what each arm was trained on, in the same order"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("comparison", "comparison", "comparison.json, and arms.csv")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        stats::check_resamples(params.n_resamples)
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let evaluations = inputs.many("evaluations");
        let names = names(params, evaluations)?;
        let items = read_all(&names, evaluations)?;
        let books = read_books(params, &names, inputs.many("schedules"))?;
        ctx.check_cancelled()?;
        let comparison = compare(params, &names, evaluations, &items, books);
        let dir = ctx.out("comparison")?;
        write_json(&dir.join("comparison.json"), &comparison)?;
        std::fs::write(dir.join("arms.csv"), csv(&comparison))?;
        let mut outputs = Outputs::default().metric("n_items", comparison.n_items as f64);
        for arm in &comparison.arms {
            outputs = outputs.metric(format!("mean_nll.{}", arm.name), arm.mean_nll.value);
        }
        for contrast in &comparison.contrasts {
            let name = format!("treatment_minus.{}", contrast.against);
            outputs = outputs.metric(name, contrast.difference.value);
        }
        Ok(outputs)
    }
}

fn names(params: &Params, evaluations: &[Input]) -> Result<Vec<String>, Failure> {
    let mut names = params.arms.clone();
    if names.is_empty() {
        names = evaluations.iter().map(|input| arm_of(&input.node)).collect();
    }
    if names.len() != evaluations.len() {
        let message = format!(
            "`arms` names {}, but {} evaluations are connected",
            names.len(),
            evaluations.len()
        );
        return Err(Failure::permanent(message));
    }
    let twice = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name));
    if let Some((_, name)) = twice {
        let message = format!("two evaluations are of arm `{name}`");
        return Err(Failure::permanent(message).help("name them in `arms`"));
    }
    for (param, name) in [("baseline", &params.baseline), ("treatment", &params.treatment)] {
        if !names.contains(name) {
            let message = format!("`{param}` is `{name}`, but the arms are {}", names.join(", "));
            return Err(Failure::permanent(message));
        }
    }
    for control in params.controls.iter().flatten() {
        let named = [&params.baseline, &params.treatment, &params.oracle];
        if named.contains(&control) || !names.contains(control) {
            let message =
                format!("`controls` names `{control}`, which is no arm beside the others");
            return Err(
                Failure::permanent(message).help(format!("the arms are {}", names.join(", ")))
            );
        }
    }
    Ok(names)
}

/// What is read of a line of an evaluation's `items.jsonl.zst`.
#[derive(Deserialize)]
struct Line {
    task: String,
    item: String,
    nll: f64,
    tokens: u64,
    bytes: u64,
}

type Items = BTreeMap<(String, String), (f64, u64, u64)>;

fn read_items(dir: &Path) -> Result<Items, Error> {
    let path = dir.join("items.jsonl.zst");
    let mut items = Items::new();
    for (i, line) in rows::read::<Line>(&path)?.into_iter().enumerate() {
        let place = |what: String| Error::damaged(&path, format!("line {}: {what}", i + 1));
        if !line.nll.is_finite() || line.tokens == 0 {
            return Err(place(format!("item `{}` has no finite loss per token", line.item)));
        }
        let value = (line.nll, line.tokens, line.bytes);
        if items.insert((line.task, line.item), value).is_some() {
            return Err(place("the item was there before".to_owned()));
        }
    }
    Ok(items)
}

/// Items of each arm; all have the same items with the same tokens.
fn read_all(names: &[String], evaluations: &[Input]) -> Result<Vec<Items>, Failure> {
    let mut all: Vec<Items> = Vec::new();
    for (name, input) in names.iter().zip(evaluations) {
        let items = read_items(&input.dir)?;
        if items.is_empty() {
            return Err(Failure::permanent(format!("arm `{name}` was scored on no item")));
        }
        if let Some(first) = all.first() {
            let shape = |items: &Items| -> Vec<_> {
                items.iter().map(|(item, value)| (item.clone(), value.1, value.2)).collect()
            };
            if shape(first) != shape(&items) {
                let message =
                    format!("arms `{}` and `{name}` were scored on different items", names[0]);
                return Err(Failure::permanent(message)
                    .help("evaluate every arm on the same documents with the same tokenizer"));
            }
        }
        all.push(items);
    }
    Ok(all)
}

fn read_books(
    params: &Params,
    names: &[String],
    schedules: &[Input],
) -> Result<Vec<Value>, Failure> {
    if schedules.len() != names.len() {
        let message =
            format!("{} schedules are connected, for {} arms", schedules.len(), names.len());
        return Err(
            Failure::permanent(message).help("connect one for each evaluation, in its order")
        );
    }
    for (name, input) in names.iter().zip(schedules) {
        // Names given in `arms` need not be those of the matrix.
        let arm =
            axis(&input.node, "arm").filter(|arm| params.arms.is_empty() && *arm != name.as_str());
        if let Some(arm) = arm {
            let message = format!(
                "`{}` is of arm `{arm}`, but its place among the evaluations is that of `{name}`",
                input.node
            );
            return Err(
                Failure::permanent(message).help("connect evaluations and schedules in one order")
            );
        }
    }
    Ok(schedules
        .iter()
        .map(|input| read_json(&input.dir.join("books.json")))
        .collect::<Result<_, Error>>()?)
}

/// Bootstrap values of every arm.
struct Resampled {
    value: Vec<f64>,
    resamples: Vec<Vec<f64>>,
}

impl Resampled {
    fn of(items: &[Items], params: &Params, denominator: impl Fn(&(f64, u64, u64)) -> f64) -> Self {
        let arms: Vec<Vec<(f64, f64)>> = items
            .iter()
            .map(|items| items.values().map(|value| (value.0, denominator(value))).collect())
            .collect();
        let sum = |arm: &Vec<(f64, f64)>| {
            let (x, y) = arm.iter().fold((0.0, 0.0), |sum, item| (sum.0 + item.0, sum.1 + item.1));
            x / y
        };
        let value = arms.iter().map(sum).collect();
        let rng = stats::resampling(params.seed);
        Self { value, resamples: stats::paired_bootstrap(&arms, params.n_resamples, rng) }
    }

    /// `f` of the arms' values, with its interval.
    fn estimate(&self, f: impl Fn(&dyn Fn(usize) -> f64) -> f64) -> Estimate {
        let value = f(&|arm| self.value[arm]);
        let n = self.resamples.first().map_or(0, Vec::len);
        Estimate::of(value, (0..n).map(|r| f(&|arm| self.resamples[arm][r])).collect())
    }
}

fn compare(
    params: &Params,
    names: &[String],
    evaluations: &[Input],
    items: &[Items],
    books: Vec<Value>,
) -> Comparison {
    let find = |name: &String| names.iter().position(|other| other == name);
    let base = find(&params.baseline).expect("`names` checked the baseline");
    let treatment = find(&params.treatment).expect("`names` checked the treatment");
    let oracle = find(&params.oracle);
    let tokens = Resampled::of(items, params, |value| value.1 as f64);
    let bits = Resampled::of(items, params, |value| value.2 as f64 * std::f64::consts::LN_2);
    let minus = |a: usize, b: usize| tokens.estimate(|mean| mean(a) - mean(b));
    let oracle_beats_baseline = oracle.map(|oracle| minus(oracle, base).high < 0.0);
    let budgets: Vec<_> = books.iter().map(|books| books["budget_tokens"].as_u64()).collect();
    let arm = |(i, books): (usize, Value)| {
        let pairs = items[i].values().zip(items[base].values());
        let wins = pairs.clone().filter(|(own, base)| own.0 < base.0).count() as u64;
        let losses = pairs.filter(|(own, base)| own.0 > base.0).count() as u64;
        let gap = oracle
            .filter(|&oracle| oracle_beats_baseline == Some(true) && i != base && i != oracle);
        Arm {
            name: names[i].clone(),
            role: match &params.controls {
                _ if i == base => Role::Baseline,
                _ if i == treatment => Role::Treatment,
                _ if Some(i) == oracle => Role::Oracle,
                Some(controls) if !controls.contains(&names[i]) => Role::Other,
                _ => Role::Control,
            },
            node: evaluations[i].node.clone(),
            mean_nll: tokens.estimate(|mean| mean(i)),
            perplexity: tokens.estimate(|mean| mean(i).exp()),
            bits_per_byte: bits.estimate(|mean| mean(i)),
            difference: (i != base).then(|| minus(i, base)),
            n_better: wins,
            n_worse: losses,
            sign_p: stats::mcnemar(wins, losses),
            gap_closed: gap.map(|oracle| {
                tokens.estimate(|mean| (mean(base) - mean(i)) / (mean(base) - mean(oracle)))
            }),
            books,
        }
    };
    let arms: Vec<Arm> = books.into_iter().enumerate().map(arm).collect();
    let contrasts = arms
        .iter()
        .enumerate()
        .filter(|(_, arm)| matches!(arm.role, Role::Control | Role::Other))
        .map(|(i, arm)| Contrast {
            against: arm.name.clone(),
            role: arm.role,
            difference: minus(treatment, i),
        })
        .collect();
    Comparison {
        n_items: items[base].len() as u64,
        n_tokens: items[base].values().map(|value| value.1).sum(),
        n_resamples: params.n_resamples as u64,
        oracle_beats_baseline,
        budgets_match: budgets.iter().all(|budget| budget.is_some() && *budget == budgets[0]),
        arms,
        contrasts,
    }
}

/// `text` as a field of a CSV file.
pub(crate) fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn csv(comparison: &Comparison) -> String {
    let mut out = "arm,role,mean_nll,mean_nll_low,mean_nll_high,perplexity,perplexity_low,\
                   perplexity_high,bits_per_byte,bits_per_byte_low,bits_per_byte_high,difference,\
                   difference_low,difference_high,n_better,n_worse,sign_p,gap_closed,gap_closed_low,\
                   gap_closed_high\n"
        .to_owned();
    let triple = |estimate: Option<Estimate>| match estimate {
        Some(Estimate { value, low, high }) => format!("{value},{low},{high}"),
        None => ",,".to_owned(),
    };
    for arm in &comparison.arms {
        let fields = [
            csv_field(&arm.name),
            arm.role.name().to_owned(),
            triple(Some(arm.mean_nll)),
            triple(Some(arm.perplexity)),
            triple(Some(arm.bits_per_byte)),
            triple(arm.difference),
            format!("{},{},{}", arm.n_better, arm.n_worse, arm.sign_p),
            triple(arm.gap_closed),
        ];
        writeln!(out, "{}", fields.join(",")).expect("strings take text");
    }
    out
}

#[cfg(test)]
pub(crate) mod tests;
