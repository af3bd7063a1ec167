use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::fixture;
use crate::lm::Forward;
use crate::lm::Preset;
use crate::lm::init::Init;

const PLAIN: Writing = Writing {
    n_texts: 1,
    n_tokens_max: Some(6),
    temperature: None,
    top_p: None,
    top_k: None,
    repetition_penalty: None,
    seed: 0,
};

/// A random model of ours with the fixture's tokenizer.
fn ours(dir: &Path, vocab_size: usize) -> PathBuf {
    let mut config = Preset::Smoke.config();
    config.vocab_size = vocab_size;
    let weights = Init::default().draw(&Pool::new(1), &config, 1);
    let tokenizer = fixture::tokenizer(dir).join(tokenizer::FILE);
    let model = dir.join("model");
    hf::save(&model, &weights, Some(&tokenizer)).unwrap();
    model
}

fn theirs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/qwen3-embedding")
}

#[test]
fn texts_are_written_in_order_and_by_seed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(&ours(dir.path(), 320), 2).unwrap();
    let write = |writing: &Writing| folder.write(None, "river stone", writing).unwrap();
    let three = write(&Writing { n_texts: 3, ..PLAIN });
    assert_eq!(three.len(), 3);
    assert_eq!(write(&Writing { n_texts: 2, ..PLAIN }), three[..2]);
    assert_ne!(write(&Writing { n_texts: 3, seed: 1, ..PLAIN }), three);
    // At temperature 0 all texts are the likeliest one.
    let greedy = write(&Writing { n_texts: 2, temperature: Some(0.0), ..PLAIN });
    assert_eq!(greedy[0], greedy[1]);
    assert!(greedy[0].n_tokens <= 6);
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(&ours(dir.path(), 320), 2).unwrap();
    let check = |prompt: &str, writing: Writing, message: &str| {
        let failure = folder.write(None, prompt, &writing).unwrap_err();
        assert!(failure.message.contains(message), "{}", failure.message);
    };
    check(&fixture::words(1, 200), PLAIN, "no room in the model's context of 64");
    check("river", Writing { n_tokens_max: Some(64), ..PLAIN }, "do not fit");
    check("river", Writing { n_tokens_max: Some(0), ..PLAIN }, "do not fit");
    check("river", Writing { temperature: Some(f32::NAN), ..PLAIN }, "temperature NaN");
    check("river", Writing { temperature: Some(1e-39), ..PLAIN }, "temperature 0.000");
    check("river", Writing { top_p: Some(0.0), ..PLAIN }, "top-p 0");
    check("river", Writing { repetition_penalty: Some(0.5), ..PLAIN }, "penalty 0.5");
    // A tokenizer without a start needs a prompt; ours starts every text.
    assert!(folder.write(None, "", &PLAIN).is_ok());
    let foreign = Folder::open(&theirs(), 1).unwrap();
    assert_eq!(foreign.tokenizer().n_ids(), 260);
    assert!(foreign.write(None, "a cat", &PLAIN).is_ok());
}

#[test]
fn a_text_is_scored_in_windows() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(&ours(dir.path(), 320), 2).unwrap();
    let pool = Pool::new(2);
    let text = fixture::words(3, 120);
    let ids = folder.tokenizer().encode(&text).unwrap();
    assert!(ids.len() > 2 * 64 && ids[0] == BOS);
    let mut reader = folder.reader(None).unwrap();
    let scored = folder.score(&mut reader, &text).unwrap();
    assert_eq!((scored.n_tokens, scored.n_bytes), (ids.len() as u64 - 1, text.len() as u64));
    // Each window by itself.
    let mut nll = 0.0;
    for (ids, targets) in ids[..ids.len() - 1].chunks(64).zip(ids[1..].chunks(64)) {
        let mut forward = Forward::new(folder.config(), 64);
        let starts = vec![0; ids.len()];
        let losses = forward.nll(&pool, folder.weights(), ids, &starts, targets);
        nll += losses.iter().map(|x| f64::from(*x)).sum::<f64>();
    }
    let mean = nll / (ids.len() - 1) as f64;
    assert!((scored.mean_nll - mean).abs() < 1e-9, "{} {mean}", scored.mean_nll);
    // A random model knows nothing.
    assert!((mean - 320_f64.ln()).abs() < 0.3, "{mean}");
    assert!(folder.score(&mut reader, "").unwrap_err().message.contains("no token to predict"));
}

/// Losses agree with the CPU's to what bf16 holds; of texts the likeliest tokens are the same where
/// the choice is clear, and the first text does not depend on how many there are.
#[test]
fn a_device_scores_and_writes_as_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = crate::lm::device::tests::config(true);
    config.vocab_size = 320;
    let weights = Init::default().draw(&Pool::new(1), &config, 1);
    let model = dir.path().join("model");
    hf::save(&model, &weights, Some(&fixture::tokenizer(dir.path()).join(tokenizer::FILE)))
        .unwrap();
    let folder = Folder::open(&model, 2).unwrap();
    let emulator = |work| {
        let opened = device::open_named(&device::tests::emulated(), &work).unwrap();
        assert!(opened.device.is_some());
        opened.device
    };

    let text = fixture::words(3, 40);
    let score = |device| folder.score(&mut folder.reader(device).unwrap(), &text).unwrap();
    let (found, expected) = (score(emulator(folder.reading_work())), score(None));
    assert_eq!((found.n_tokens, found.n_bytes), (expected.n_tokens, expected.n_bytes));
    let (found, expected) = (found.mean_nll, expected.mean_nll);
    assert!(
        found.to_bits() != expected.to_bits() && (found - expected).abs() < 1e-2,
        "{found} {expected}"
    );

    let write = |device, n_texts, temperature| {
        let writing = Writing { n_texts, temperature: Some(temperature), ..PLAIN };
        folder.write(device, "river stone", &writing).unwrap()
    };
    let on_device =
        |n_texts, temperature| write(emulator(folder.writing_work(n_texts)), n_texts, temperature);
    assert_eq!(on_device(1, 0.0), write(None, 1, 0.0));
    let two = on_device(2, 1.0);
    assert_ne!(two[0], two[1]);
    assert_eq!(on_device(1, 1.0), two[..1]);
}

#[test]
fn folders_that_do_not_fit_together_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let model = ours(dir.path(), 320);
    let check = |message: &str| {
        let Err(failure) = Folder::open(&model, 1) else { panic!("opened") };
        assert!(failure.message.contains(message), "{}", failure.message);
    };
    let generation = model.join("generation_config.json");
    for (value, message) in [
        (json!({"eos_token_id": [1, 320]}), "`eos_token_id` is 320"),
        (json!({"eos_token_id": "end"}), "not a token id"),
        (json!({"top_p": 1.5}), "out of range"),
        (json!({"temperature": -1}), "`temperature` is `-1`"),
        (json!([]), "not a JSON object"),
    ] {
        std::fs::write(&generation, value.to_string()).unwrap();
        check(message);
    }
    std::fs::remove_file(&generation).unwrap();
    assert!(Folder::open(&model, 1).is_ok(), "`config.json` tells the end too");
    let small = tempfile::tempdir().unwrap();
    let model = ours(small.path(), 300);
    let Err(failure) = Folder::open(&model, 1) else { panic!("opened") };
    assert!(failure.message.contains("and the model 300 tokens"), "{}", failure.message);
    std::fs::write(model.join("tokenizer.json"), "{}").unwrap();
    let Err(failure) = Folder::open(&model, 1) else { panic!("opened") };
    assert!(failure.message.contains("is not a tokenizer"), "{}", failure.message);
}
