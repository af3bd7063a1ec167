use engine::task::testbed::Bench;
use serde_json::json;

use super::*;
use crate::evaluate_world::tests::{model, world};

/// A model without preferences gives every token ln V, whatever stands before it.
#[test]
fn a_uniform_model_is_as_far_as_arithmetic_says() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let truth = Truth::open(&world.out("world")).unwrap();
    let words = Words::open(&world.out("tokenizer"), &truth.world).unwrap();
    let bench = Bench::new(&dir.path().join("run"))
        .input("model", &model(&dir.path().join("after"), &world, 0.0))
        .input("before", &model(&dir.path().join("before"), &world, 2.0))
        .input("world", &world.out("world"))
        .input("tokenizer", &world.out("tokenizer"));
    bench.run::<EvaluateSynthesizer>(&json!({})).unwrap();
    let scores = SynthesizerScores::open(&bench.out("scores")).unwrap();
    assert_eq!(scores.kinds.keys().collect::<Vec<_>>(), ["paired", "unpaired"]);
    let nats = (words.vocab_size() as f64).ln();
    for (kind, found) in &scores.kinds {
        let pairs: Vec<&PairRow> =
            truth.pairs.iter().filter(|pair| pair.unpaired == (kind == "unpaired")).collect();
        let n_pairs = pairs.len() as f64;
        let mean = |of: &dyn Fn(&PairRow) -> f64| {
            pairs.iter().map(|&pair| of(pair)).sum::<f64>() / n_pairs
        };
        let n_tokens = mean(&|pair| (pair.d2.split(' ').count() + 1) as f64);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-4, "{kind} {a} {b}");
        for loss in [found.after.related, found.after.unrelated, found.after.alone] {
            close(loss, nats);
        }
        close(found.after.kl, mean(&|pair| pair.ln_p) + nats * n_tokens);
        close(found.after.kl_alone, found.after.kl);
        close(found.exact, -mean(&|pair| pair.ln_p) / n_tokens);
        close(found.kl_marginal, mean(&|pair| pair.ln_p - pair.ln_marginal));
        // d1 tells its concept: without it a document costs the choice among concepts, less what the
        // genre of another document tells.
        assert!(found.kl_marginal > 2.0, "{}", found.kl_marginal);
        let before = found.before.as_ref().unwrap();
        assert!((before.related - before.alone).abs() > 1e-6);
        assert!((before.related - before.unrelated).abs() > 1e-6);
    }
}
