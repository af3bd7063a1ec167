use engine::task::testbed::Bench;
use serde_json::{Value, json};

use super::estimate::mean;
use super::*;
use crate::evaluate_world::{DocumentScore, KindScore, Point, QuestionScore, WorldScores};
use crate::rows;

const KIND: &str = "single_cross";

/// An evaluation of 100 questions of which the first `n_right` are right, and 50 documents whose loss
/// is `loss` a token.
fn evaluation(n_right: u64, loss: f64, curve: &[(f64, f64, f64)]) -> WorldEvaluation {
    let questions = (0..100).map(|i| QuestionScore {
        item: i.to_string(),
        kind: KIND.to_owned(),
        correct: i < n_right,
        nll: 1.0,
    });
    let documents = (0..50).map(|i| {
        let loss = loss + 0.01 * f64::from(i % 2);
        DocumentScore {
            item: format!("{i:016x}"),
            kind: KIND.to_owned(),
            nll: 20.0 * loss,
            tokens: 20,
            fact_nll: 6.0 * loss,
            facts: 3,
            other_nll: 8.0 * loss,
            others: 16,
            ln_p: Some(-5.0),
        }
    });
    let score = |accuracy: f64, loss: f64| KindScore {
        n_documents: 50,
        loss,
        fact_loss: 2.0 * loss,
        other_loss: 0.5 * loss,
        excess: Some(loss - 0.25),
        n_questions: 100,
        accuracy: Some(accuracy),
    };
    let kinds = |accuracy, loss| BTreeMap::from([(KIND.to_owned(), score(accuracy, loss))]);
    let point = |&(fraction, accuracy, loss): &(f64, f64, f64)| Point {
        fraction,
        kinds: kinds(accuracy, loss),
    };
    let scores = WorldScores {
        version: 1,
        headline: KIND.to_owned(),
        chance: 0.1,
        kinds: kinds(n_right as f64 / 100.0, loss + 0.005),
        curve: curve.iter().map(point).collect(),
    };
    WorldEvaluation { scores, documents: documents.collect(), questions: questions.collect() }
}

struct Place(tempfile::TempDir);

impl Place {
    /// Writes what a node `NODE[seed=…,arm=…]` gives.
    fn input(&self, node: &str, write: impl FnOnce(&std::path::Path)) -> Input {
        let dir = self.0.path().join(node);
        std::fs::create_dir_all(&dir).unwrap();
        write(&dir);
        let bench = Bench::new(self.0.path()).input("port", &dir);
        Input { node: node.to_owned(), ..bench.inputs["port"][0].clone() }
    }

    fn scores(&self, seed: u64, arm: &str, found: &WorldEvaluation) -> Input {
        self.input(&format!("eval[seed={seed},arm={arm}]"), |dir| found.save(dir).unwrap())
    }

    fn run(&self, scores: Vec<Input>, params: &Value) -> Result<Study, Failure> {
        self.run_with(scores, params, &json!({}))
    }

    /// The same with what `synthesizer`, a node without the axis `arm`, found.
    fn run_with(
        &self,
        scores: Vec<Input>,
        params: &Value,
        kinds: &Value,
    ) -> Result<Study, Failure> {
        let mut bench = Bench::new(&self.0.path().join("run"));
        let checks = self.input("checks[seed=0]", |dir| {
            write_json(&dir.join("checks.json"), &json!([])).unwrap();
        });
        let synthesizers = self.input("synthesizer[seed=0]", |dir| {
            write_json(&dir.join("synthesizer.json"), &json!({"version": 1, "kinds": kinds}))
                .unwrap();
        });
        let facts = self.input("facts[seed=0,arm=sbp]", |dir| {
            write_json(&dir.join("facts.json"), &json!({"version": 1, "groups": {}})).unwrap();
        });
        let pairs = self.input("pairs_true[seed=0]", |dir| {
            let found = json!({"n_true": 4, "n_found": 5, "precision": 0.8, "recall": 1.0});
            write_json(&dir.join("agreement.json"), &found).unwrap();
        });
        for (port, inputs) in [
            ("scores", scores),
            ("checks", vec![checks]),
            ("synthesizers", vec![synthesizers]),
            ("facts", vec![facts]),
            ("pairs", vec![pairs]),
        ] {
            bench.inputs.insert(port.to_owned(), inputs);
        }
        bench.run::<CompareArms>(params)?;
        let bytes = std::fs::read(bench.out("study").join("study.json")).unwrap();
        Ok(serde_json::from_slice(&bytes).unwrap())
    }
}

fn params() -> Value {
    json!({"controls": ["random", "unconditional"], "n_resamples": 400})
}

/// Two seeds of five arms, with figures that can be checked by hand.
fn study(place: &Place) -> Vec<Input> {
    let mut inputs = Vec::new();
    for (seed, right) in [(0, [30, 35, 90, 40, 95]), (1, [30, 45, 70, 40, 20])] {
        let arms = ["base", "random", "sbp", "unconditional", "oracle"];
        for (arm, n_right) in arms.into_iter().zip(right) {
            let loss = 2.0 - n_right as f64 / 100.0;
            let curve = match arm {
                "base" => vec![(0.25, 0.2, 2.0), (0.5, 0.2, 1.8), (1.0, 0.3, 1.7)],
                _ => vec![(0.25, 0.3, 2.1), (0.5, 0.1, 1.7), (1.0, 0.9, 1.1)],
            };
            inputs.push(place.scores(seed, arm, &evaluation(n_right, loss, &curve)));
        }
    }
    inputs
}

#[test]
fn differences_are_those_of_the_figures() {
    let place = Place(tempfile::tempdir().unwrap());
    let found = place.run(study(&place), &params()).unwrap();
    assert_eq!(found.seeds, ["0", "1"]);
    assert_eq!(found.arms, ["base", "random", "sbp", "unconditional", "oracle"]);
    let contrast = |against: &str, figure: Figure| {
        let mut all = found.contrasts.iter();
        all.find(|c| c.against == against && c.figure == figure).unwrap()
    };
    let values = |c: &Contrast| c.seeds.iter().map(|seed| seed.value).collect::<Vec<_>>();
    let close = |a: &[f64], b: &[f64]| {
        assert!(
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9),
            "{a:?} {b:?}"
        );
    };
    close(&values(contrast("base", Figure::Accuracy)), &[0.6, 0.4]);
    close(&values(contrast("base", Figure::Loss)), &[-0.6, -0.4]);
    close(&values(contrast("base", Figure::FactLoss)), &[-1.2, -0.8]);
    // The best control is another one in each seed.
    let best = contrast("best control", Figure::Accuracy);
    close(&values(best), &[0.5, 0.25]);
    let against: Vec<&str> = best.seeds.iter().map(|seed| seed.against.as_str()).collect();
    assert_eq!(against, ["unconditional", "random"]);
    for seed in &best.seeds {
        assert!(seed.low < seed.value && seed.value < seed.high);
    }
    // 60 of 100 questions differ, all one way: the standard error is 0.049.
    let seed = &contrast("base", Figure::Accuracy).seeds[0];
    assert!((seed.high - seed.low - 2.0 * 1.96 * 0.049).abs() < 0.04, "{seed:?}");
    // Differences of the loss do not vary over documents.
    let seed = &contrast("base", Figure::Loss).seeds[0];
    assert!((seed.high - seed.low).abs() < 1e-9, "{seed:?}");
}

/// Values of `scipy.stats.t.interval(0.95, n - 1, mean, sem)`.
#[test]
fn intervals_over_seeds_are_students() {
    let check = |values: &[f64], expected: [f64; 3]| {
        let Mean { value, low, high } = mean(values);
        let found = [value, low.unwrap(), high.unwrap()];
        let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-4);
        assert!(close, "{found:?} {expected:?}");
    };
    check(&[0.6, 0.4], [0.5, -0.770_620, 1.770_620]);
    check(&[0.5, 0.6, 0.9], [0.666_667, 0.149_561, 1.183_772]);
    assert_eq!(mean(&[0.5]), Mean { value: 0.5, low: None, high: None });
}

#[test]
fn curves_cross_where_they_stay_better() {
    let place = Place(tempfile::tempdir().unwrap());
    let found = place.run(study(&place), &params()).unwrap();
    let at = |figure: Figure| {
        let crossing = found.crossings.iter().find(|c| c.figure == figure && c.seed == "0");
        crossing.unwrap().fraction
    };
    // Better, then worse, then better for good; the loss is lower from the middle on.
    assert_eq!(at(Figure::Accuracy), Some(1.0));
    assert_eq!(at(Figure::Loss), Some(0.5));
}

#[test]
fn the_oracles_share_needs_an_oracle_that_learned() {
    let place = Place(tempfile::tempdir().unwrap());
    let found = place.run(study(&place), &params()).unwrap();
    let share = |arm: &str, seed: &str, figure: Figure| {
        let mut all = found.oracle_shares.iter();
        all.find(|s| s.arm == arm && s.seed == seed && s.figure == figure).unwrap().share
    };
    assert!((share("sbp", "0", Figure::Accuracy).unwrap() - 0.6 / 0.65).abs() < 1e-9);
    assert!((share("random", "0", Figure::Loss).unwrap() - 0.05 / 0.65).abs() < 1e-9);
    // In seed 1 the oracle answers fewer questions than the baseline.
    assert_eq!(share("sbp", "1", Figure::Accuracy), None);
    assert_eq!(share("sbp", "1", Figure::Loss), None);
}

#[test]
fn tables_hold_every_arm_and_seed() {
    let place = Place(tempfile::tempdir().unwrap());
    place.run(study(&place), &params()).unwrap();
    let read = |name: &str| {
        std::fs::read_to_string(place.0.path().join("run/out/study").join(name)).unwrap()
    };
    assert_eq!(read("arms.csv").lines().count(), 1 + 10);
    assert_eq!(read("curves.csv").lines().count(), 1 + 30);
    assert_eq!(read("contrasts.csv").lines().count(), 1 + 3 * 5 * 3);
    let table = read("table.md");
    for line in [
        "| sbp | 0.900 | 0.700 | 0.800 |",
        "| best control | accuracy | 0.375 [",
        "| sbp | accuracy | 0.923 | oracle not ahead |",
        "| loss | 0 | 0.500 |",
        "| 0 | 5 | 4 | 0.800 | 1.000 |",
    ] {
        assert!(table.contains(line), "{line} is not in\n{table}");
    }
}

/// What was measured of no arm is not printed as an arm's, nor what was not measured as a number.
#[test]
fn synthesizers_of_no_arm_keep_their_name() {
    let place = Place(tempfile::tempdir().unwrap());
    let losses =
        json!({"related": 1.0, "unrelated": 2.0, "alone": 1.5, "kl": 3.0, "kl_alone": 4.0});
    let scores = json!({
        "n_pairs": 5, "exact": 0.5, "kl_marginal": 6.0, "before": null, "after": losses,
    });
    let study = study(&place);
    place.run_with(study, &params(), &json!({"unpaired": scores})).unwrap();
    let table = std::fs::read_to_string(place.0.path().join("run/out/study/table.md")).unwrap();
    let line = "| synthesizer | unpaired | 0.500 | 1.000 | 2.000 | 6.000 | – | 3.000 |";
    assert!(table.contains(line), "{table}");
}

#[test]
fn incomplete_studies_are_refused() {
    let place = Place(tempfile::tempdir().unwrap());
    let fails = |inputs: Vec<Input>, params: &Value, message: &str| {
        let error = place.run(inputs, params).unwrap_err();
        assert!(error.message.contains(message), "{error}");
    };
    let mut inputs = study(&place);
    inputs.truncate(9);
    fails(inputs, &params(), "arm `oracle` of seed `1` is missing");
    let mut inputs = study(&place);
    inputs.push(inputs[0].clone());
    fails(inputs, &params(), "two evaluations are of arm `base` and seed `0`");
    fails(study(&place), &json!({"controls": ["shuffled"]}), "no arm is called `shuffled`");
    fails(study(&place), &json!({"controls": []}), "no control is named");
    let mut inputs = study(&place);
    let mut other = evaluation(50, 1.0, &[]);
    other.questions.pop();
    rows::write(&inputs[1].dir.join("questions.jsonl.zst"), &other.questions).unwrap();
    inputs.truncate(10);
    fails(inputs, &params(), "arm `random` of seed `0` is missing, or measured on other items");
}
