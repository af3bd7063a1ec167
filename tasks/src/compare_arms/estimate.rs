//! Figures of arms and seeds, differences between them, and their intervals.

use std::collections::BTreeMap;

use engine::task::{Failure, Input};

use super::{
    Cell, Contrast, Crossing, Figure, Mean, OracleShare, Params, SeedDifference, open, place,
};
use crate::evaluate_world::{KindScore, Kinds, WorldEvaluation};
use crate::stats;

/// What a contrast with the best of the controls is called.
const BEST_CONTROL: &str = "best control";

/// The evaluations of every arm and seed.
pub(super) struct Study<'a> {
    params: &'a Params,
    pub(super) headline: String,
    pub(super) chance: f64,
    pub(super) seeds: Vec<String>,
    pub(super) arms: Vec<String>,
    evaluations: BTreeMap<(String, String), WorldEvaluation>,
}

impl<'a> Study<'a> {
    /// Reads evaluations; every seed must have every arm, measured on the same items.
    pub(super) fn open(params: &'a Params, inputs: &[Input]) -> Result<Self, Failure> {
        let (mut seeds, mut arms) = (Vec::new(), Vec::new());
        let mut evaluations = BTreeMap::new();
        for input in inputs {
            let (arm, seed) = place(&input.node);
            if !arms.contains(&arm) {
                arms.push(arm.clone());
            }
            if !seeds.contains(&seed) {
                seeds.push(seed.clone());
            }
            if evaluations.insert((seed.clone(), arm.clone()), open(input)?).is_some() {
                let message = format!("two evaluations are of arm `{arm}` and seed `{seed}`");
                return Err(Failure::permanent(message)
                    .help("the nodes need a matrix with the axes `seed` and `arm`"));
            }
        }
        let named = [&params.baseline, &params.treatment, &params.oracle];
        for name in named.into_iter().chain(&params.controls) {
            if !arms.contains(name) {
                let arms = arms.join(", ");
                return Err(Failure::permanent(format!("no arm is called `{name}`, only {arms}")));
            }
        }
        let first = evaluations.values().next();
        let headline = first.map_or_else(String::new, |first| first.scores.headline.clone());
        let chance = first.map_or(0.0, |first| first.scores.chance);
        let study = Self { params, headline, chance, seeds, arms, evaluations };
        study.check_items()?;
        Ok(study)
    }

    fn check_items(&self) -> Result<(), Failure> {
        for seed in &self.seeds {
            let items = |arm: &String| -> Option<Vec<&str>> {
                let evaluation = self.evaluations.get(&(seed.clone(), arm.clone()))?;
                let documents = evaluation.documents.iter().map(|row| row.item.as_str());
                Some(
                    documents
                        .chain(evaluation.questions.iter().map(|row| row.item.as_str()))
                        .collect(),
                )
            };
            for arm in &self.arms {
                let same = items(arm).is_some_and(|own| Some(own) == items(&self.arms[0]));
                if !same {
                    return Err(Failure::permanent(format!(
                        "arm `{arm}` of seed `{seed}` is missing, or measured on other items than `{}`",
                        self.arms[0]
                    )));
                }
            }
        }
        Ok(())
    }

    fn evaluation(&self, seed: &str, arm: &str) -> &WorldEvaluation {
        &self.evaluations[&(seed.to_owned(), arm.to_owned())]
    }

    pub(super) fn cells(&self) -> Vec<Cell> {
        let cell = |seed: &String, arm: &String| Cell {
            arm: arm.clone(),
            seed: seed.clone(),
            kinds: self.evaluation(seed, arm).scores.kinds.clone(),
        };
        self.arms
            .iter()
            .flat_map(|arm| self.seeds.iter().map(move |seed| cell(seed, arm)))
            .collect()
    }

    /// Every point of every curve: arm, seed, share of the budget, scores.
    pub(super) fn points(&self) -> impl Iterator<Item = (&str, &str, f64, &Kinds)> {
        let cells = self.arms.iter().flat_map(|arm| self.seeds.iter().map(move |seed| (arm, seed)));
        cells.flat_map(|(arm, seed)| {
            let curve = self.evaluation(seed, arm).scores.curve.iter();
            curve.map(move |point| (arm.as_str(), seed.as_str(), point.fraction, &point.kinds))
        })
    }

    fn figure(&self, seed: &str, arm: &str, figure: Figure) -> f64 {
        figure_of(self.evaluation(seed, arm).scores.kinds.get(&self.headline), figure)
    }

    pub(super) fn means(&self) -> BTreeMap<String, BTreeMap<String, Mean>> {
        let figures = |arm: &String| {
            let mean_of = |figure: Figure| {
                let values: Vec<f64> =
                    self.seeds.iter().map(|seed| self.figure(seed, arm, figure)).collect();
                (figure.name().to_owned(), mean(&values))
            };
            (arm.clone(), Figure::ALL.into_iter().map(mean_of).collect())
        };
        self.arms.iter().map(figures).collect()
    }

    pub(super) fn contrasts(&self) -> Vec<Contrast> {
        let others = self.arms.iter().filter(|arm| **arm != self.params.treatment);
        let mut contrasts = Vec::new();
        for figure in Figure::ALL {
            contrasts.push(self.contrast(BEST_CONTROL, figure, |seed| self.best(seed, figure)));
            for other in others.clone() {
                contrasts.push(self.contrast(other, figure, |_| other));
            }
        }
        contrasts
    }

    /// The control with the best figure.
    fn best(&self, seed: &str, figure: Figure) -> &str {
        let value = |arm: &&String| figure.sign() * self.figure(seed, arm, figure);
        let best = self.params.controls.iter().max_by(|a, b| value(a).total_cmp(&value(b)));
        best.expect("`check` wants a control")
    }

    fn contrast<'b>(
        &'b self,
        against: &str,
        figure: Figure,
        other: impl Fn(&str) -> &'b str,
    ) -> Contrast {
        let seeds: Vec<SeedDifference> =
            self.seeds.iter().map(|seed| self.difference(seed, other(seed), figure)).collect();
        let values: Vec<f64> = seeds.iter().map(|seed| seed.value).collect();
        Contrast { against: against.to_owned(), figure, seeds, mean: mean(&values) }
    }

    fn difference(&self, seed: &str, against: &str, figure: Figure) -> SeedDifference {
        let arms = [self.params.treatment.as_str(), against];
        let items = arms.map(|arm| items(self.evaluation(seed, arm), &self.headline, figure));
        let value = self.figure(seed, arms[0], figure) - self.figure(seed, arms[1], figure);
        let rng = stats::resampling(self.params.seed);
        let resampled = stats::paired_bootstrap(&items, self.params.n_resamples, rng);
        let differences = resampled[0].iter().zip(&resampled[1]).map(|(a, b)| a - b).collect();
        let (low, high) = stats::interval_95(differences);
        SeedDifference { seed: seed.to_owned(), against: against.to_owned(), value, low, high }
    }

    pub(super) fn crossings(&self) -> Vec<Crossing> {
        let crossing = |seed: &String, figure: Figure| {
            let curve = |arm: &str| &self.evaluation(seed, arm).scores.curve;
            let (own, base) = (curve(&self.params.treatment), curve(&self.params.baseline));
            let value = |kinds: &Kinds| figure_of(kinds.get(&self.headline), figure);
            let is_better = own.iter().zip(base).map(|(own, base)| {
                let gain = figure.sign() * (value(&own.kinds) - value(&base.kinds));
                (own.fraction, gain > 0.0)
            });
            let is_better: Vec<(f64, bool)> = is_better.collect();
            let n_last = is_better.iter().rev().take_while(|(_, better)| *better).count();
            let first = is_better.len() - n_last;
            let fraction = is_better.get(first).map(|(fraction, _)| *fraction);
            Crossing { seed: seed.clone(), figure, fraction }
        };
        let figures = Figure::ALL.into_iter();
        figures
            .flat_map(|figure| self.seeds.iter().map(move |seed| crossing(seed, figure)))
            .collect()
    }

    pub(super) fn oracle_shares(&self) -> Vec<OracleShare> {
        let Params { baseline, oracle, .. } = self.params;
        let mut shares = Vec::new();
        for arm in self.arms.iter().filter(|arm| !([baseline, oracle].contains(arm))) {
            for figure in Figure::ALL {
                for seed in &self.seeds {
                    let of = |arm: &str, figure| self.figure(seed, arm, figure);
                    let converged = of(oracle, Figure::Accuracy) > of(baseline, Figure::Accuracy);
                    let gap = of(oracle, figure) - of(baseline, figure);
                    let gain = of(arm, figure) - of(baseline, figure);
                    let share = (converged && gap != 0.0).then_some(gain / gap);
                    shares.push(OracleShare {
                        arm: arm.clone(),
                        seed: seed.clone(),
                        figure,
                        share,
                    });
                }
            }
        }
        shares
    }
}

fn figure_of(kind: Option<&KindScore>, figure: Figure) -> f64 {
    kind.map_or(f64::NAN, |kind| match figure {
        Figure::Accuracy => kind.accuracy.unwrap_or(f64::NAN),
        Figure::FactLoss => kind.fact_loss,
        Figure::Loss => kind.loss,
    })
}

/// Numerator and denominator of a figure, one pair an item.
fn items(evaluation: &WorldEvaluation, kind: &str, figure: Figure) -> Vec<(f64, f64)> {
    let documents = evaluation.documents.iter().filter(|row| row.kind == kind);
    let questions = evaluation.questions.iter().filter(|row| row.kind == kind);
    match figure {
        Figure::Accuracy => questions.map(|row| (f64::from(u8::from(row.correct)), 1.0)).collect(),
        Figure::FactLoss => documents.map(|row| (row.fact_nll, row.facts as f64)).collect(),
        Figure::Loss => documents.map(|row| (row.nll, row.tokens as f64)).collect(),
    }
}

/// A mean over seeds and its t interval.
pub(super) fn mean(values: &[f64]) -> Mean {
    let (value, low, high) = stats::t_interval(values);
    let end = |end: f64| end.is_finite().then_some(end);
    Mean { value, low: end(low), high: end(high) }
}
