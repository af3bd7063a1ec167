use std::path::{Path, PathBuf};

use engine::digest::Digest;
use engine::task::FailureKind;
use engine::task::testbed::Bench;
use serde_json::json;

use super::*;
use crate::format::tokens::TokensWriter;
use crate::lm::Config;
use crate::lm::Forward;
use crate::lm::init::Init;

const VOCAB: usize = 50;
const CONTEXT: usize = 16;

fn config() -> Config {
    Config {
        d_model: 16,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 8,
        d_ffn: 24,
        vocab_size: VOCAB,
        context: CONTEXT,
        rope_theta: 1e4,
        norm_eps: 1e-6,
        tie_embeddings: false,
    }
}

fn model(dir: &Path, change: impl Fn(&mut Weights)) -> PathBuf {
    let mut weights = Init::default().draw(&Pool::new(1), &config(), 7);
    change(&mut weights);
    hf::save(dir, &weights, None).unwrap();
    dir.to_owned()
}

/// Documents of these many tokens; text bytes are three a token.
fn heldout(dir: &Path, lengths: &[usize], vocab_size: u32) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let mut writer = TokensWriter::create(dir, vocab_size, Digest::of(b"tokenizer")).unwrap();
    for (document, &len) in lengths.iter().enumerate() {
        let ids: Vec<u32> = (0..len).map(|i| 4 + ((i * i + document) % 40) as u32).collect();
        writer.push(document as u64 + 100, 3 * len as u32, &ids).unwrap();
    }
    writer.finish().unwrap();
    dir.to_owned()
}

fn read(dir: &Path) -> (Scores, Vec<Item>) {
    let scores = serde_json::from_slice(&fs::read(dir.join(SCORES_FILE)).unwrap()).unwrap();
    (scores, rows::read(&dir.join(ITEMS_FILE)).unwrap())
}

/// A model whose output matrix is zero gives every token the same probability.
#[test]
fn a_uniform_model_scores_ln_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir.path().join("model"), |weights| weights.output_mut().fill(0.0));
    let heldout = heldout(&dir.path().join("heldout"), &[5, 0, 40, 16, 15], VOCAB as u32);
    let bench = Bench::new(dir.path()).input("model", &model).input("heldout", &heldout);
    let outputs = bench.run::<Evaluate>(&json!({"name": "web"})).unwrap();
    let (scores, items) = read(&bench.out("evaluation"));
    let score = &scores.tasks["web"];
    assert_eq!((score.n_items, score.tokens, score.bytes), (5, 81, 228));
    let nats = (VOCAB as f64).ln();
    assert!((score.mean_nll - nats).abs() < 1e-6 && (score.mean_nll_high - nats).abs() < 1e-6);
    assert!((score.token_perplexity - 50.0).abs() < 1e-4);
    assert!((score.bits_per_byte - 81.0 * nats / 2.0_f64.ln() / 228.0).abs() < 1e-6);
    assert!((outputs.metrics["mean_nll"] - score.mean_nll).abs() < 1e-12);
    assert_eq!(items.iter().map(|item| item.tokens).collect::<Vec<_>>(), [6, 1, 41, 17, 16]);
    assert_eq!((items[0].task.as_str(), items[0].item.as_str()), ("web", "0000000000000064"));
}

/// Windows and batches give what the model gives each window alone.
#[test]
fn documents_are_scored_window_by_window() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir.path().join("model"), |_| ());
    let lengths: Vec<usize> = (0..300).map(|i| i * 7 % 45).collect();
    let heldout = heldout(&dir.path().join("heldout"), &lengths, VOCAB as u32);
    let bench = Bench::new(dir.path()).input("model", &model).input("heldout", &heldout);
    bench.run::<Evaluate>(&json!({})).unwrap();
    let (_, items) = read(&bench.out("evaluation"));

    let (pool, weights) = (Pool::new(1), hf::load(&model).unwrap());
    let documents = Tokens::open(&heldout).unwrap();
    let mut forward = Forward::new(weights.config(), CONTEXT);
    for document in [0, 1, 13, 44, 150, 299] {
        let mut ids = vec![crate::tokenizer::BOS];
        documents.view(document).copy_to(&mut ids);
        ids.push(crate::tokenizer::EOS);
        let mut expected = 0.0;
        for first in (0..ids.len() - 1).step_by(CONTEXT) {
            let end = (first + CONTEXT).min(ids.len() - 1);
            let (input, targets) = (&ids[first..end], &ids[first + 1..=end]);
            let starts = vec![0; input.len()];
            let nll = forward.nll(&pool, &weights, input, &starts, targets);
            expected += nll.iter().copied().map(f64::from).sum::<f64>();
        }
        assert!((items[document].nll - expected).abs() < 1e-4, "{document}");
    }
}

/// Whatever was finished when an attempt stopped is not scored again, and threads change nothing.
#[test]
fn a_stopped_evaluation_goes_on_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir.path().join("model"), |_| ());
    // Some documents are cut by the end of an item.
    let heldout = heldout(&dir.path().join("heldout"), &[701; 400], VOCAB as u32);
    let bench = |name: &str, n_threads: usize| {
        let bench =
            Bench::new(&dir.path().join(name)).input("model", &model).input("heldout", &heldout);
        Bench { n_threads, ..bench }
    };
    let bytes = |bench: &Bench| {
        [SCORES_FILE, ITEMS_FILE].map(|file| fs::read(bench.out("evaluation").join(file)).unwrap())
    };
    let whole = bench("whole", 1);
    whole.run::<Evaluate>(&json!({})).unwrap();
    let n_items = whole.items.n_done();
    assert!(n_items > 3, "{n_items}");
    let other = bench("other", 3);
    other.run::<Evaluate>(&json!({})).unwrap();
    assert!(bytes(&other) == bytes(&whole));

    for n_before in 1..n_items {
        let stopped = bench(&format!("stopped {n_before}"), 2);
        stopped.stop_after(n_before);
        let failure = stopped.run::<Evaluate>(&json!({})).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Cancelled, "{failure}");
        let again = Bench { cancel: task::CancelToken::default(), ..stopped };
        again.run::<Evaluate>(&json!({})).unwrap();
        assert!(bytes(&again) == bytes(&whole));
        let n_tries = again.items.n_tries();
        assert!(n_tries <= n_items as u64 + 1, "{n_tries} tries for {n_items} items");
    }
}

/// Items of another device are no part of a result; those of the same are.
#[test]
fn devices_do_not_share_items() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { head_dim: 64, d_model: 32, d_ffn: 32, vocab_size: 56, ..config() };
    let weights = Init::default().draw(&Pool::new(1), &config, 7);
    let model = dir.path().join("model");
    hf::save(&model, &weights, None).unwrap();
    let heldout = heldout(&dir.path().join("heldout"), &[9, 30, 2], VOCAB as u32);
    let mut bench = Bench::new(dir.path()).input("model", &model).input("heldout", &heldout);
    let mut score = |device: &str| {
        device.clone_into(&mut bench.device);
        let outputs = bench.run::<Evaluate>(&json!({})).unwrap();
        let is_on_gpu = outputs.metrics.contains_key("on_gpu");
        (outputs.metrics["mean_nll"], is_on_gpu, bench.items.n_done())
    };
    let (on_cpu, is_on_gpu, n_done) = score("cpu");
    assert_eq!((is_on_gpu, n_done), (false, 1));
    let emulated = device::tests::emulated();
    let (found, is_on_gpu, n_done) = score(&emulated);
    assert_eq!((is_on_gpu, n_done), (true, 2));
    assert!(
        found.to_bits() != on_cpu.to_bits() && (found - on_cpu).abs() < 1e-2,
        "{found} {on_cpu}"
    );
    assert_eq!(score(&emulated).2, 2);
    assert_eq!(score("cpu"), (on_cpu, false, 2));
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = model(&dir.path().join("model"), |_| ());
    let check = |model: &Path, heldout: &Path, message: &str| {
        let bench = Bench::new(dir.path()).input("model", model).input("heldout", heldout);
        let failure = bench.run::<Evaluate>(&json!({})).unwrap_err();
        assert!(failure.message.contains(message), "{failure}");
    };
    check(&good, &heldout(&dir.path().join("empty"), &[], VOCAB as u32), "no documents");
    check(&good, &heldout(&dir.path().join("wide"), &[3], 51), "the model has 50 tokens");
    let params = Params { n_resamples: 3, ..serde_json::from_value(json!({})).unwrap() };
    assert_eq!(Evaluate::check(&params).unwrap_err().path, "n_resamples");
}
