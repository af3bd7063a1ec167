use std::path::PathBuf;

use engine::task::testbed::Bench;
use kernels::Pool;
use serde_json::json;

use super::*;
use crate::generate_world::GenerateWorld;
use crate::lm::init::Init;
use crate::lm::{Config, Preset, Weights};

/// A small world in a folder of its own.
pub(crate) fn world(dir: &Path) -> Bench {
    let bench = Bench::new(&dir.join("world"));
    let spec = json!({
        "n_concepts": 30, "n_new_concepts": 4, "name_parts": 8, "pool_factor": 2, "n_validation": 10,
        "n_heldout": 12, "n_questions": 20, "n_pairs": 10,
    });
    bench.run::<GenerateWorld>(&spec).unwrap();
    bench
}

/// A model of the world's vocabulary whose output matrix is multiplied by `scale`.
pub(crate) fn model(dir: &Path, world: &Bench, scale: f32) -> PathBuf {
    let truth = Truth::open(&world.out("world")).unwrap();
    let words = Words::open(&world.out("tokenizer"), &truth.world).unwrap();
    let mut config: Config = Preset::Smoke.config();
    (config.vocab_size, config.tie_embeddings) = (words.vocab_size(), false);
    let mut weights: Weights = Init::default().draw(&Pool::new(1), &config, 7);
    weights.output_mut().iter_mut().for_each(|x| *x *= scale);
    hf::save(dir, &weights, None).unwrap();
    dir.to_owned()
}

fn evaluate(dir: &Path, world: &Bench, model: &Path, snapshots: Option<&Path>) -> WorldEvaluation {
    let bench = Bench::new(&dir.join("run")).input("model", model);
    let bench = bench.input("world", &world.out("world"));
    let mut bench = bench.input("tokenizer", &world.out("tokenizer"));
    if let Some(snapshots) = snapshots {
        bench = bench.input("snapshots", snapshots);
    }
    bench.run::<EvaluateWorld>(&json!({})).unwrap();
    WorldEvaluation::open(&bench.out("scores")).unwrap()
}

/// Without preferences every token costs ln V, and the first option is always given.
#[test]
fn a_uniform_model_knows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let truth = Truth::open(&world.out("world")).unwrap();
    let words = Words::open(&world.out("tokenizer"), &truth.world).unwrap();
    let model = model(&dir.path().join("model"), &world, 0.0);
    let found = evaluate(dir.path(), &world, &model, None);
    let nats = (words.vocab_size() as f64).ln();
    assert_eq!(found.scores.headline, "single_cross");
    assert!((found.scores.chance - 0.1).abs() < 1e-12 && found.scores.curve.is_empty());
    for (kind, score) in &found.scores.kinds {
        for loss in [score.loss, score.fact_loss, score.other_loss] {
            assert!((loss - nats).abs() < 1e-5, "{kind} {loss}");
        }
        let rows = truth.heldout.iter().filter(|row| row.kind.name() == kind);
        let ln_p: Option<f64> = rows.clone().map(|row| row.ln_p).sum();
        let n_tokens: usize = rows.map(|row| row.text.split(' ').count() + 1).sum();
        let expected = ln_p.map(|ln_p| nats + ln_p / n_tokens as f64);
        assert_eq!(score.excess.is_some(), expected.is_some());
        assert!((score.excess.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs() < 1e-5);
        let asked: Vec<_> = truth.questions.iter().filter(|row| row.kind.name() == kind).collect();
        let n_first = asked.iter().filter(|row| row.answer == 0).count() as f64;
        let expected = (!asked.is_empty()).then(|| n_first / asked.len() as f64);
        assert_eq!(score.accuracy, expected, "{kind}");
    }
    assert!(found.questions.iter().all(|row| (row.nll - 10_f64.ln()).abs() < 1e-6));
}

/// Three values are new to a brief document, one is told again, the rest are other words.
#[test]
fn tokens_are_counted_in_their_part() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let model = model(&dir.path().join("model"), &world, 1.0);
    let found = evaluate(dir.path(), &world, &model, None);
    for row in &found.documents {
        assert_eq!((row.facts, row.others), (3, row.tokens - 4));
        assert!(row.fact_nll > 0.0 && row.fact_nll + row.other_nll < row.nll);
    }
}

#[test]
fn questions_are_judged_by_the_likeliest_option() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let truth = Truth::open(&world.out("world")).unwrap();
    let words = Words::open(&world.out("tokenizer"), &truth.world).unwrap();
    let path = model(&dir.path().join("model"), &world, 0.0);
    // The state after the prompt as the answer's row of the output matrix makes its logit the square
    // of that state, and every other 0.
    let mut weights = hf::load(&path).unwrap();
    let question = &truth.questions[0];
    let option = words.ids(&question.options[question.answer]).unwrap()[0] as usize;
    let mut ids = vec![crate::tokenizer::BOS];
    ids.extend(words.ids(&question.prompt).unwrap());
    let mut forward = crate::lm::Forward::new(weights.config(), 64);
    let starts = vec![0; ids.len()];
    let width = weights.config().d_model;
    let hidden = forward.hidden(&Pool::new(1), &weights, &ids, &starts);
    let state = hidden[(ids.len() - 1) * width..].to_vec();
    weights.output_mut()[option * width..][..width].copy_from_slice(&state);
    hf::save(&path, &weights, None).unwrap();
    let found = evaluate(dir.path(), &world, &path, None);
    assert!(found.questions[0].correct, "{:?}", found.questions[0]);
    assert!(found.questions[0].nll < 0.1, "{:?}", found.questions[0]);
}

#[test]
fn snapshots_give_a_curve_that_ends_at_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let snapshots = dir.path().join("snapshots");
    model(&snapshots.join("at-0.5000"), &world, 3.0);
    model(&snapshots.join("at-0.2500"), &world, 0.0);
    let last = model(&dir.path().join("model"), &world, 0.0);
    let found = evaluate(dir.path(), &world, &last, Some(&snapshots));
    let fractions: Vec<f64> = found.scores.curve.iter().map(|point| point.fraction).collect();
    assert_eq!(fractions, [0.25, 0.5, 1.0]);
    let curve = &found.scores.curve;
    assert_eq!(curve[0].kinds, curve[2].kinds);
    assert_ne!(curve[0].kinds, curve[1].kinds);
    // A third of the documents of each kind.
    assert_eq!(curve[0].kinds["multi"].n_documents, 4);
}
