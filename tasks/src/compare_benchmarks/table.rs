//! The table of arms and benchmarks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use engine::task::Failure;
use serde::{Deserialize, Serialize};

use super::Params;
use crate::benchmark::{Row, Scores};
use crate::compare::csv_field;
use crate::corpus::read_json;
use crate::format::Error;
use crate::stats::{self, Estimate};

/// One arm's scores on one benchmark, under one seed.
pub(super) struct Measured {
    arm: String,
    node: String,
    name: String,
    headline: String,
    /// `x` and `y` of each item, whose sums make the score.
    items: Vec<(f64, f64)>,
}

impl Measured {
    /// # Errors
    /// When rows have no value of the headline measure.
    pub(super) fn new(
        arm: String,
        node: String,
        scores: &Scores,
        rows: &[Row],
    ) -> Result<Self, Failure> {
        let headline = scores.headline.clone();
        let value = |row: &Row| match headline.as_str() {
            "perplexity" => row.log_likelihoods.first().map(|nll| (-nll, 1.0)),
            "token_perplexity" => row.log_likelihoods.first().map(|nll| (-nll, row.tokens as f64)),
            measure => row.right.get(measure).map(|&right| (f64::from(u8::from(right)), 1.0)),
        };
        let items: Option<Vec<(f64, f64)>> = rows.iter().map(value).collect();
        let items = items.filter(|items| !items.is_empty()).ok_or_else(|| {
            Failure::permanent(format!("`{node}` has no item, or an item without `{headline}`"))
        })?;
        Ok(Self { arm, node, name: scores.name.clone(), headline, items })
    }
}

/// Spread over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seeds {
    /// How many.
    pub n: u64,
    /// Mean of the differences from the baseline, paired by the order of seeds.
    pub mean: f64,
    /// Lower end of the 95 % t interval.
    pub low: f64,
    /// Upper end of the 95 % t interval.
    pub high: f64,
}

/// One arm in one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The score: percent for accuracies, perplexity otherwise.
    pub value: Estimate,
    /// Minus the baseline's; `None` for the baseline.
    pub difference: Option<Estimate>,
    /// Items that it has right and the baseline wrong, and the reverse; of one seed only.
    pub discordant: Option<(u64, u64)>,
    /// Exact two-sided `McNemar` test; of one seed and accuracies only.
    pub p: Option<f64>,
    /// The same, corrected for all accuracies of the arm by Holm's method.
    pub p_holm: Option<f64>,
    /// The same, corrected by Benjamini and Hochberg's method.
    pub p_fdr: Option<f64>,
    /// Spread over seeds, with at least two.
    pub seeds: Option<Seeds>,
}

/// One benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The benchmark.
    pub name: String,
    /// The measure.
    pub measure: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Items.
    pub n_items: u64,
    /// A cell for each arm, in the table's order.
    pub cells: Vec<Cell>,
}

/// What `benchmarks.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Format version.
    pub version: u32,
    /// The arm that the others are compared with.
    pub baseline: String,
    /// Resamples behind the intervals.
    pub n_resamples: u64,
    /// The arms, in the order met.
    pub arms: Vec<String>,
    /// Benchmarks, in the order met.
    pub lines: Vec<Line>,
    /// Benchmarks in the average: accuracies that `not_averaged` does not name.
    pub averaged: Vec<String>,
    /// Mean over them.
    pub average: Option<Line>,
    /// Share of the oracle's gain in the average that each arm reaches; empty unless the oracle's gain
    /// lies above 0 with its whole interval.
    pub fraction_of_oracle: BTreeMap<String, Estimate>,
}

impl Table {
    /// Reads the `table` artifact in `dir`.
    ///
    /// # Errors
    /// When `benchmarks.json` cannot be read.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        read_json(&dir.join("benchmarks.json"))
    }
}

/// Share of the oracle's gain: `sum gains / sum oracle's gains` over benchmarks.
pub(super) fn fraction_of_oracle(gains: &[f64], oracle: &[f64]) -> f64 {
    gains.iter().sum::<f64>() / oracle.iter().sum::<f64>()
}

/// The mean of some scores.
pub(super) fn average(scores: &[f64]) -> f64 {
    scores.iter().sum::<f64>() / scores.len() as f64
}

/// Percent for accuracies, `e^x` for perplexities.
fn shown(headline: &str, ratio: f64) -> f64 {
    if is_accuracy(headline) { 100.0 * ratio } else { ratio.exp() }
}

fn is_accuracy(headline: &str) -> bool {
    !headline.contains("perplexity")
}

/// A benchmark with the values of every arm, resampled together.
struct Sampled {
    name: String,
    headline: String,
    /// Runs of each arm, in the order of seeds.
    runs: Vec<Vec<Vec<(f64, f64)>>>,
    /// Score of each arm.
    values: Vec<f64>,
    /// Score of each arm in each resample.
    resamples: Vec<Vec<f64>>,
}

impl Sampled {
    fn new(
        params: &Params,
        (index, name): (usize, &str),
        arms: &[String],
        measured: &[Measured],
    ) -> Result<Self, Failure> {
        let of_name: Vec<&Measured> = measured.iter().filter(|run| run.name == name).collect();
        let first = of_name[0];
        let mut runs: Vec<Vec<Vec<(f64, f64)>>> = Vec::new();
        for arm in arms {
            let own: Vec<_> = of_name.iter().filter(|run| run.arm == *arm).collect();
            if own.is_empty() {
                let message = format!("arm `{arm}` was not scored on `{name}`");
                return Err(Failure::permanent(message).help("score every arm on every benchmark"));
            }
            for run in &own {
                let weights =
                    |run: &Measured| run.items.iter().map(|item| item.1).collect::<Vec<_>>();
                if run.headline != first.headline || weights(run) != weights(first) {
                    let (a, b) = (&first.node, &run.node);
                    let message = format!("`{a}` and `{b}` were scored on different items");
                    return Err(Failure::permanent(message)
                        .help("score every arm on the same items with the same tokenizer"));
                }
            }
            runs.push(own.iter().map(|run| run.items.clone()).collect());
        }
        let means: Vec<Vec<(f64, f64)>> = runs.iter().map(|runs| mean_of(runs)).collect();
        let headline = first.headline.clone();
        let values = means.iter().map(|items| shown(&headline, ratio(items))).collect();
        let rng = stats::resampling(params.seed).fork(index as u64);
        let mut resamples = stats::paired_bootstrap(&means, params.n_resamples, rng);
        for value in resamples.iter_mut().flatten() {
            *value = shown(&headline, *value);
        }
        Ok(Self { name: name.to_owned(), headline, runs, values, resamples })
    }

    fn line(&self, base: usize) -> Line {
        let cells = (0..self.values.len()).map(|arm| {
            let discordant = self.discordant(arm, base);
            Cell {
                value: Estimate::of(self.values[arm], self.resamples[arm].clone()),
                difference: (arm != base).then(|| self.difference(arm, base)),
                p: discordant.map(|(wins, losses)| stats::mcnemar(wins, losses)),
                discordant,
                p_holm: None,
                p_fdr: None,
                seeds: self.seeds(arm, base),
            }
        });
        Line {
            name: self.name.clone(),
            measure: self.headline.clone(),
            higher_is_better: is_accuracy(&self.headline),
            n_items: self.runs[base][0].len() as u64,
            cells: cells.collect(),
        }
    }

    fn difference(&self, arm: usize, base: usize) -> Estimate {
        let pairs = self.resamples[arm].iter().zip(&self.resamples[base]);
        let value = self.values[arm] - self.values[base];
        Estimate::of(value, pairs.map(|(a, b)| a - b).collect())
    }

    /// Items on which one is right and the other wrong.
    fn discordant(&self, arm: usize, base: usize) -> Option<(u64, u64)> {
        let ([own], [other]) = (&self.runs[arm][..], &self.runs[base][..]) else { return None };
        if arm == base || !is_accuracy(&self.headline) {
            return None;
        }
        let count = |better: &[(f64, f64)], worse: &[(f64, f64)]| {
            better.iter().zip(worse).filter(|(a, b)| a.0 > b.0).count() as u64
        };
        Some((count(own, other), count(other, own)))
    }

    fn seeds(&self, arm: usize, base: usize) -> Option<Seeds> {
        let (own, other) = (&self.runs[arm], &self.runs[base]);
        if arm == base || own.len() != other.len() || own.len() < 2 {
            return None;
        }
        let score = |items: &Vec<(f64, f64)>| shown(&self.headline, ratio(items));
        let gains: Vec<f64> = own.iter().zip(other).map(|(a, b)| score(a) - score(b)).collect();
        let (mean, low, high) = stats::t_interval(&gains);
        Some(Seeds { n: gains.len() as u64, mean, low, high })
    }
}

fn ratio(items: &[(f64, f64)]) -> f64 {
    let (x, y) = items.iter().fold((0.0, 0.0), |sum, item| (sum.0 + item.0, sum.1 + item.1));
    x / y
}

/// Item by item, the mean over runs.
fn mean_of(runs: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let n = runs.len() as f64;
    (0..runs[0].len())
        .map(|i| (runs.iter().map(|run| run[i].0).sum::<f64>() / n, runs[0][i].1))
        .collect()
}

/// Names in the order met, each once.
fn distinct<'m>(names: impl Iterator<Item = &'m String>) -> Vec<String> {
    names.fold(Vec::new(), |mut found: Vec<String>, name| {
        if !found.contains(name) {
            found.push(name.clone());
        }
        found
    })
}

/// Puts every arm beside the others.
pub(super) fn compare(params: &Params, measured: &[Measured]) -> Result<Table, Failure> {
    let arms = distinct(measured.iter().map(|run| &run.arm));
    let Some(base) = arms.iter().position(|arm| *arm == params.baseline) else {
        let (baseline, arms) = (&params.baseline, arms.join("`, `"));
        let message = format!("`baseline` is `{baseline}`, but the arms are `{arms}`");
        return Err(Failure::permanent(message));
    };
    let names = distinct(measured.iter().map(|run| &run.name));
    let sampled: Vec<Sampled> = names
        .iter()
        .enumerate()
        .map(|(index, name)| Sampled::new(params, (index, name), &arms, measured))
        .collect::<Result<_, _>>()?;
    let mut lines: Vec<Line> = sampled.iter().map(|sampled| sampled.line(base)).collect();
    for arm in 0..arms.len() {
        correct(&mut lines, arm);
    }
    let averaged: Vec<&Sampled> = sampled
        .iter()
        .filter(|sampled| is_accuracy(&sampled.headline))
        .filter(|sampled| !params.not_averaged.contains(&sampled.name))
        .collect();
    let average = (!averaged.is_empty()).then(|| average_line(&averaged, base, arms.len()));
    let oracle = arms.iter().position(|arm| *arm == params.oracle);
    let fractions = match oracle {
        Some(oracle) if !averaged.is_empty() => fractions(&averaged, &arms, base, oracle),
        _ => BTreeMap::new(),
    };
    Ok(Table {
        version: 1,
        baseline: params.baseline.clone(),
        n_resamples: params.n_resamples as u64,
        arms,
        lines,
        averaged: averaged.iter().map(|sampled| sampled.name.clone()).collect(),
        average,
        fraction_of_oracle: fractions,
    })
}

/// Corrects an arm's p-values for being several.
fn correct(lines: &mut [Line], arm: usize) {
    let p: Vec<f64> = lines.iter().filter_map(|line| line.cells[arm].p).collect();
    let (holm, fdr) = (stats::holm(&p), stats::benjamini_hochberg(&p));
    let cells = lines.iter_mut().map(|line| &mut line.cells[arm]).filter(|cell| cell.p.is_some());
    for ((cell, holm), fdr) in cells.zip(holm).zip(fdr) {
        (cell.p_holm, cell.p_fdr) = (Some(holm), Some(fdr));
    }
}

/// Gains of an arm over the baseline on each benchmark, in a resample or, with `None`, on all items.
fn gains(sampled: &[&Sampled], arm: usize, base: usize, resample: Option<usize>) -> Vec<f64> {
    let value = |sampled: &Sampled, arm: usize| match resample {
        Some(r) => sampled.resamples[arm][r],
        None => sampled.values[arm],
    };
    sampled.iter().map(|sampled| value(sampled, arm) - value(sampled, base)).collect()
}

fn average_line(sampled: &[&Sampled], base: usize, n_arms: usize) -> Line {
    let n_resamples = sampled[0].resamples[0].len();
    let cell = |arm: usize| {
        let values: Vec<f64> = sampled.iter().map(|sampled| sampled.values[arm]).collect();
        let in_resample = |r: usize| {
            average(&sampled.iter().map(|sampled| sampled.resamples[arm][r]).collect::<Vec<_>>())
        };
        let difference = |resample| average(&gains(sampled, arm, base, resample));
        let resamples = || 0..n_resamples;
        Cell {
            value: Estimate::of(average(&values), resamples().map(in_resample).collect()),
            difference: (arm != base).then(|| {
                Estimate::of(difference(None), resamples().map(|r| difference(Some(r))).collect())
            }),
            discordant: None,
            p: None,
            p_holm: None,
            p_fdr: None,
            seeds: seeds_of_average(sampled, arm, base),
        }
    };
    Line {
        name: "average".to_owned(),
        measure: "accuracy".to_owned(),
        higher_is_better: true,
        n_items: sampled.iter().map(|sampled| sampled.runs[base][0].len() as u64).sum(),
        cells: (0..n_arms).map(cell).collect(),
    }
}

/// The spread of the average's gain over seeds, where every benchmark has the same number of them.
fn seeds_of_average(sampled: &[&Sampled], arm: usize, base: usize) -> Option<Seeds> {
    let n = sampled[0].runs[arm].len();
    let complete = sampled.iter().all(|s| s.runs[arm].len() == n && s.runs[base].len() == n);
    if arm == base || n < 2 || !complete {
        return None;
    }
    let score = |sampled: &Sampled, arm: usize, seed: usize| {
        shown(&sampled.headline, ratio(&sampled.runs[arm][seed]))
    };
    let gain = |seed: usize| {
        let gains = sampled.iter().map(|s| score(s, arm, seed) - score(s, base, seed));
        average(&gains.collect::<Vec<_>>())
    };
    let gains: Vec<f64> = (0..n).map(gain).collect();
    let (mean, low, high) = stats::t_interval(&gains);
    Some(Seeds { n: n as u64, mean, low, high })
}

fn fractions(
    sampled: &[&Sampled],
    arms: &[String],
    base: usize,
    oracle: usize,
) -> BTreeMap<String, Estimate> {
    let n_resamples = sampled[0].resamples[0].len();
    let oracle_gain = |resample| average(&gains(sampled, oracle, base, resample));
    let resampled = (0..n_resamples).map(|r| oracle_gain(Some(r))).collect();
    if Estimate::of(oracle_gain(None), resampled).low <= 0.0 {
        return BTreeMap::new();
    }
    let fraction = |arm: usize| {
        let of = |resample| {
            let oracle = gains(sampled, oracle, base, resample);
            fraction_of_oracle(&gains(sampled, arm, base, resample), &oracle)
        };
        Estimate::of(of(None), (0..n_resamples).map(|r| of(Some(r))).collect())
    };
    let others = (0..arms.len()).filter(|&arm| arm != base && arm != oracle);
    others.map(|arm| (arms[arm].clone(), fraction(arm))).collect()
}

/// One row for each benchmark and arm.
pub(super) fn csv(table: &Table) -> String {
    let mut out = "benchmark,measure,n_items,arm,value,value_low,value_high,difference,difference_low,\
                   difference_high,better,worse,p,p_holm,p_fdr,seeds,seeds_mean,seeds_low,seeds_high\n"
        .to_owned();
    let triple = |estimate: Option<Estimate>| match estimate {
        Some(Estimate { value, low, high }) => format!("{value},{low},{high}"),
        None => ",,".to_owned(),
    };
    let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    for line in table.lines.iter().chain(&table.average) {
        for (arm, cell) in table.arms.iter().zip(&line.cells) {
            let seeds = cell.seeds.map_or(",,,".to_owned(), |seeds| {
                format!("{},{},{},{}", seeds.n, seeds.mean, seeds.low, seeds.high)
            });
            let discordant =
                cell.discordant.map_or(",".to_owned(), |(wins, losses)| format!("{wins},{losses}"));
            let fields = [
                csv_field(&line.name),
                line.measure.clone(),
                line.n_items.to_string(),
                csv_field(arm),
                triple(Some(cell.value)),
                triple(cell.difference),
                discordant,
                number(cell.p),
                number(cell.p_holm),
                number(cell.p_fdr),
                seeds,
            ];
            writeln!(out, "{}", fields.join(",")).expect("strings take text");
        }
    }
    out
}
