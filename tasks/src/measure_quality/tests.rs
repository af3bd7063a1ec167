//! Planted rates are recovered, and `gate` obeys them.

use engine::task::FailureKind;
use engine::task::testbed::Bench;
use serde_json::{Map, Value, json};

use super::*;
use crate::fixture;
use crate::gate::{Decision, Gate};

/// Of 100 documents: 10 copy their seed, 5 repeat a sentence, 5 are duplicates, the rest share half
/// their words with their seed.
fn synthetic(real: &[String]) -> Vec<String> {
    (0..100_usize)
        .map(|i| {
            let seed = &real[i % real.len()];
            let own = fixture::distinct_words(9000 + i as u64, 20);
            match i {
                0..10 => seed.to_uppercase(),
                10..15 => format!("topic{} {own}. {}", i % 40, "We said so again. ".repeat(4)),
                95..100 => {
                    format!(
                        "{} {}",
                        topic(50 + i - 95),
                        fixture::distinct_words(9050 + i as u64 - 95, 20)
                    )
                }
                _ => format!("{} {own}", topic(i)),
            }
        })
        .collect()
}

fn topic(i: usize) -> String {
    let letter = |n: usize| char::from(b'a' + n as u8);
    let name = format!("zq{}{}x", letter(i % 40 % 26), letter(i % 40 / 26));
    format!("{name} {name} about {name}")
}

fn measured(dir: &Path) -> Bench {
    let real: Vec<String> = (0..40)
        .map(|i| format!("{} {}", topic(i), fixture::distinct_words(i as u64, 20)))
        .collect();
    let tokenizer = fixture::tokenizer(dir);
    let tokens = fixture::tokens(dir, &real, &tokenizer);
    let corpus = dir.join("synthetic");
    fixture::corpus(&corpus, &synthetic(&real), |i| {
        let seed = if i >= 95 { 50 + i - 95 } else { i };
        Map::from_iter([("seed_id".to_owned(), Value::from(format!("{:016x}", seed % 40 + 1)))])
    });
    Bench::new(&dir.join("bench"))
        .input("synthetic", &corpus)
        .input("real", &tokens)
        .input("tokenizer", &tokenizer)
}

#[test]
fn planted_rates_are_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let bench = measured(dir.path());
    bench.run::<MeasureQuality>(&json!({})).unwrap();
    let quality = Quality::read(&bench.out("quality")).unwrap();
    assert_eq!((quality.pair_copying.k, quality.pair_copying.n), (10, 100));
    assert_eq!((quality.repetition.k, quality.repetition_real.k), (5, 0));
    assert_eq!((quality.duplicate.k, quality.duplicate.n), (5, 100));
    assert_eq!(quality.regurgitation.k, 10);
    assert!(quality.relevance.rate > 0.85, "{:?}", quality.relevance);
    assert!(quality.win_rate.unwrap() > 0.9);
    assert!(quality.pair_copying.low < 0.1 && quality.pair_copying.high > 0.1);

    let gate = Bench::new(&dir.path().join("gate")).input("quality", &bench.out("quality"));
    let failure = gate.run::<Gate>(&json!({ "relevance_min": 0.5 })).unwrap_err();
    assert!(failure.message.contains("novelty 0.900"), "{failure}");
    assert_eq!(failure.kind, FailureKind::Permanent);
    let parked = gate.run::<Gate>(&json!({ "on_fail": "park" })).unwrap_err();
    assert_eq!(parked.kind, FailureKind::Parked);
    gate.run::<Gate>(&json!({ "on_fail": "warn" })).unwrap();
    gate.run::<Gate>(&json!({ "relevance_min": 0.5, "novelty_min": 0.9 })).unwrap();
    let bytes = std::fs::read(gate.out("decision").join("decision.json")).unwrap();
    let decision: Decision = serde_json::from_slice(&bytes).unwrap();
    assert!(decision.pass && decision.figures.len() == 3);
    let none = json!({ "relevance_min": null, "novelty_min": null, "non_repetition_min": null });
    let failure = gate.run::<Gate>(&none).unwrap_err();
    assert!(failure.message.contains("no figure has a limit"), "{failure}");
}

/// 15 of 100 documents state a year that no real document has; every fifth states none.
#[test]
fn invented_numbers_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let real: Vec<String> =
        (0..40).map(|i| format!("{} since {}", fixture::words(i, 20), 1900 + i / 2 * 2)).collect();
    let tokenizer = fixture::tokenizer(dir.path());
    let tokens =
        fixture::tokens(dir.path(), &[&real[..], &["in 1955".to_owned()][..]].concat(), &tokenizer);
    let text = |i: usize| match i {
        0..15 => format!("{} since {} and 1902", fixture::words(i as u64, 20), 1950 + 2 * i),
        _ if i.is_multiple_of(5) => fixture::words(i as u64, 20),
        _ => format!("{} since {}, 7 times", fixture::words(i as u64, 20), 1900 + i % 20 * 2),
    };
    let corpus = dir.path().join("synthetic");
    fixture::corpus(&corpus, &(0..100).map(text).collect::<Vec<_>>(), |_| Map::new());
    let bench = Bench::new(&dir.path().join("bench"))
        .input("synthetic", &corpus)
        .input("real", &tokens)
        .input("tokenizer", &tokenizer);
    bench.run::<MeasureQuality>(&json!({})).unwrap();
    let Quality { unsupported, unsupported_real, .. } =
        Quality::read(&bench.out("quality")).unwrap();
    assert_eq!((unsupported.k, unsupported.n), (15, 83));
    // Two real documents share a year, but one has its own.
    assert_eq!((unsupported_real.k, unsupported_real.n), (1, 41));
}

#[test]
fn documents_without_letters_are_empty() {
    let dir = tempfile::tempdir().unwrap();
    let bench = measured(dir.path());
    let texts = vec!["12 34, 5!".to_owned(), String::new(), fixture::words(2, 20)];
    fixture::corpus(&dir.path().join("synthetic"), &texts, |_| Map::new());
    bench.run::<MeasureQuality>(&json!({})).unwrap();
    assert_eq!(Quality::read(&bench.out("quality")).unwrap().empty, 2);
}

#[test]
fn unknown_seeds_and_missing_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let bench = measured(dir.path());
    let corpus = dir.path().join("synthetic");
    let texts = vec![fixture::words(1, 20), fixture::words(2, 20)];
    fixture::corpus(&corpus, &texts, |_| Map::new());
    bench.run::<MeasureQuality>(&json!({})).unwrap();
    let quality = Quality::read(&bench.out("quality")).unwrap();
    assert_eq!((quality.relevance.n, quality.win_rate), (0, None));
    let gate = Bench::new(&dir.path().join("gate")).input("quality", &bench.out("quality"));
    let failure = gate.run::<Gate>(&json!({})).unwrap_err();
    assert!(failure.message.contains("measured on no document"), "{failure}");
    fixture::corpus(&corpus, &texts, |_| {
        Map::from_iter([("seed_id".to_owned(), Value::from("00000000000000ff"))])
    });
    let failure = bench.run::<MeasureQuality>(&json!({})).unwrap_err();
    assert!(failure.message.contains("not among the real documents"), "{failure}");
}
