//! Agreement with transformers' `generate`, and independence of the batch.

use kernels::decode::Row;
use serde::Deserialize;

use super::*;
use crate::lm::forward::Forward;
use crate::lm::{Config, Weights};

#[derive(Deserialize)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    tied: bool,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    prompt: Vec<u32>,
    #[serde(rename = "text")]
    ids: Vec<u32>,
    logits: Vec<f32>,
}

/// The weights of `tests/goldens/make_generate.py`: a hash of their place; gains near 1.
fn noise_weights(config: &Config) -> Weights {
    let mut weights = Weights::zeros(config);
    for part in weights.parts() {
        let base = if part.name.ends_with("norm") { 1.0 } else { 0.0 };
        for (place, value) in (part.range.start as u32..).zip(&mut weights.data_mut()[part.range]) {
            let mut h = place.wrapping_mul(2_654_435_761);
            h ^= h >> 16;
            h = h.wrapping_mul(0x85EB_CA6B);
            h ^= h >> 13;
            h = h.wrapping_mul(0xC2B2_AE35);
            *value = base + ((h >> 8) as f32 / (1 << 24) as f32 - 0.5);
        }
    }
    weights
}

fn config(case: &Case) -> Config {
    Config {
        d_model: 24,
        n_layers: 3,
        n_heads: case.heads,
        n_kv_heads: case.kv_heads,
        head_dim: case.head_dim,
        d_ffn: 40,
        vocab_size: 61,
        context: 128,
        rope_theta: 5e5,
        norm_eps: 1e-6,
        tie_embeddings: case.tied,
    }
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../../tests/goldens/generate.json")).unwrap()
}

fn settings(choice: Choice) -> Settings {
    Settings { choice, repetition_penalty: 1.0, suppress: Vec::new(), stop: vec![1000] }
}

/// Keeps the texts by index.
struct Collect {
    requests: std::vec::IntoIter<Request>,
    texts: Vec<Completion>,
}

impl Driver for Collect {
    fn next(&mut self) -> Option<Request> {
        self.requests.next()
    }

    fn finished(&mut self, completion: Completion) -> Result<(), Failure> {
        self.texts.push(completion);
        Ok(())
    }

    fn stepped(&mut self, _n_tokens: usize) -> Result<ControlFlow<()>, Failure> {
        Ok(ControlFlow::Continue(()))
    }
}

/// Stops in the middle of the texts.
struct StopAfter {
    requests: std::vec::IntoIter<Request>,
    n_steps: usize,
}

impl Driver for StopAfter {
    fn next(&mut self) -> Option<Request> {
        self.requests.next()
    }

    fn finished(&mut self, _completion: Completion) -> Result<(), Failure> {
        Ok(())
    }

    fn stepped(&mut self, _n_tokens: usize) -> Result<ControlFlow<()>, Failure> {
        self.n_steps -= 1;
        Ok(if self.n_steps == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

fn run(
    weights: &Weights,
    settings: &Settings,
    n_threads: usize,
    n_slots: usize,
    requests: Vec<Request>,
) -> Vec<Completion> {
    let pool = Pool::new(n_threads);
    let mut decoder = Decoder::new(&pool, weights, n_slots + 1);
    let mut collect = Collect { requests: requests.into_iter(), texts: Vec::new() };
    generate(&pool, &mut decoder, settings, n_slots, &mut collect).unwrap();
    collect.texts.sort_by_key(|text| text.index);
    collect.texts
}

fn request(index: u64, prompt: &[u32], n_tokens_max: usize) -> Request {
    Request { index, prompt: prompt.into(), rng: Philox::new(3, "test").fork(index), n_tokens_max }
}

#[test]
fn greedy_texts_equal_those_of_transformers() {
    for case in cases() {
        let weights = noise_weights(&config(&case));
        let requests =
            (0..).zip(&case.texts).map(|(i, text)| request(i, &text.prompt, text.ids.len()));
        let texts = run(&weights, &settings(Choice::Greedy), 2, 2, requests.collect());
        for (text, expected) in texts.iter().zip(&case.texts) {
            assert_eq!(text.ids, expected.ids, "{} heads", case.heads);
            assert!(text.truncated);
        }
        let pool = Pool::new(1);
        let mut decoder = Decoder::new(&pool, &weights, 1);
        for text in &case.texts {
            let (sequence, last) = decoder.prefill(&pool, &text.prompt);
            let logits = decoder.logits(&pool, last, 1).to_vec();
            decoder.cache().release(sequence);
            for (logit, expected) in logits.iter().zip(&text.logits) {
                assert!((logit - expected).abs() < 1e-4 * expected.abs().max(1.0), "{logit}");
            }
        }
    }
}

/// Every position's logits, computed one token at a time, equal those of a whole prefill.
#[test]
fn cached_logits_equal_those_of_a_full_pass() {
    let case = &cases()[0];
    let weights = noise_weights(&config(case));
    let pool = Pool::new(2);
    let tokens: Vec<u32> = (0..80).map(|i| (i * i * 5 + i) % 61).collect();
    let mut decoder = Decoder::new(&pool, &weights, 2);
    let mut sequence = decoder.cache().start();
    for (position, &token) in tokens.iter().enumerate() {
        decoder.cache().extend(&mut sequence, 1).unwrap();
        decoder.step(&pool, &[token], &[Row { sequence: &sequence, position }]);
        let single = decoder.logits(&pool, 0, 1).to_vec();
        let (whole, last) = decoder.prefill(&pool, &tokens[..=position]);
        let logits = decoder.logits(&pool, last, 1);
        assert!(single == logits, "position {position}");
        decoder.cache().release(whole);
    }
}

/// The decoder and the training forward pass are two programs of one model.
#[test]
fn logits_agree_with_the_training_pass() {
    for case in cases() {
        let weights = noise_weights(&config(&case));
        let pool = Pool::new(2);
        let tokens: Vec<u32> = (0..100).map(|i| (i * i * 5 + i) % 61).collect();
        let targets: Vec<u32> = tokens.iter().map(|token| (token * 7 + 3) % 61).collect();
        let mut forward = Forward::new(weights.config(), tokens.len());
        let nll = forward.nll(&pool, &weights, &tokens, &[0; 100], &targets);
        let mut decoder = Decoder::new(&pool, &weights, 1);
        for n in [1, 2, 17, 64, 65, 100] {
            let (sequence, last) = decoder.prefill(&pool, &tokens[..n]);
            let logits = decoder.logits(&pool, last, 1).to_vec();
            decoder.cache().release(sequence);
            let lse = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            let expected = lse - f64::from(logits[targets[n - 1] as usize]);
            let error = (f64::from(nll[n - 1]) - expected).abs();
            assert!(error < 1e-4 * expected.max(1.0), "{n} tokens: error {error}");
        }
    }
}

#[test]
fn texts_do_not_depend_on_the_batch() {
    let case = &cases()[0];
    let weights = noise_weights(&config(case));
    let policy = Policy { temperature: 1.0, top_k: 0, top_p: 0.9 };
    let sampled = Settings {
        repetition_penalty: 1.1,
        suppress: vec![0, 2],
        stop: vec![1],
        ..settings(Choice::Sample(policy))
    };
    let requests = |order: &dyn Fn(u64) -> u64| -> Vec<Request> {
        (0..70)
            .map(|i| {
                let i = order(i);
                // Draws 3n, 3n + 1 and 3n + 2 share a prompt.
                let prompt: Vec<u32> =
                    (0..=i / 3 % 40).map(|j| (j * 3 + i / 3) as u32 % 61).collect();
                request(i, &prompt, 20 + i as usize % 7)
            })
            .collect()
    };
    let expected = run(&weights, &sampled, 1, 1, requests(&|i| i));
    assert_eq!(expected.len(), 70);
    assert!(expected.iter().any(|text| !text.truncated) && expected.iter().any(|t| t.truncated));
    assert!(expected[0].ids != expected[1].ids, "draws of one prompt differ");
    assert!(expected.iter().all(|text| !text.ids.iter().any(|id| [0, 1, 2].contains(id))));
    for (n_threads, n_slots) in [(1, 7), (2, 7), (3, 64)] {
        assert_eq!(run(&weights, &sampled, n_threads, n_slots, requests(&|i| i)), expected);
        assert_eq!(run(&weights, &sampled, n_threads, n_slots, requests(&|i| 69 - i)), expected);
        let shuffled = requests(&|i| i * 37 % 70);
        assert_eq!(run(&weights, &sampled, n_threads, n_slots, shuffled), expected);
    }
}

/// A decoder that generated before, with other texts in its cache, gives what a fresh one gives; also
/// when it was stopped in the middle.
#[test]
fn a_decoder_is_used_again() {
    let case = &cases()[0];
    let weights = noise_weights(&config(case));
    let sampled = settings(Choice::Sample(Policy { temperature: 1.0, top_k: 0, top_p: 0.9 }));
    let requests = |round: u64| -> Vec<Request> {
        let token = |i: u64, j: u64| ((i + round) * 7 + j) as u32 % 61;
        let prompt = |i: u64| (0..=i % 23).map(|j| token(i, j)).collect::<Vec<_>>();
        (0..9).map(|i| request(10 * round + i, &prompt(i), 30)).collect()
    };
    let pool = Pool::new(2);
    let mut decoder = Decoder::new(&pool, &weights, 5);
    for round in 0..3 {
        let mut collect = Collect { requests: requests(round).into_iter(), texts: Vec::new() };
        generate(&pool, &mut decoder, &sampled, 4, &mut collect).unwrap();
        collect.texts.sort_by_key(|text| text.index);
        assert!(collect.texts == run(&weights, &sampled, 1, 1, requests(round)), "round {round}");
        let mut stopped = StopAfter { requests: requests(100 + round).into_iter(), n_steps: 11 };
        generate(&pool, &mut decoder, &sampled, 4, &mut stopped).unwrap();
        assert_eq!(stopped.n_steps, 0);
    }
}

#[test]
fn what_does_not_fit_or_is_not_finite_is_refused() {
    let case = &cases()[0];
    let mut weights = noise_weights(&config(case));
    let pool = Pool::new(1);
    let error_of = |weights: &Weights, n_prompt: usize, n_max: usize| {
        let mut decoder = Decoder::new(&pool, weights, 2);
        let requests = vec![request(5, &vec![1; n_prompt], n_max)].into_iter();
        let mut collect = Collect { requests, texts: Vec::new() };
        generate(&pool, &mut decoder, &settings(Choice::Greedy), 1, &mut collect)
            .unwrap_err()
            .message
    };
    assert!(error_of(&weights, 100, 29).contains("the model's context of 128"));
    assert!(error_of(&weights, 0, 1).contains("a prompt of 0 tokens"));
    weights.final_norm_mut()[3] = f32::NAN;
    assert!(error_of(&weights, 4, 4).contains("not finite after 0 tokens of request 5"));
}
