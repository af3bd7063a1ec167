//! Tests of `drop_repeats`.

use engine::task::testbed::Bench;
use serde_json::{Map, json};

use super::*;
use crate::fixture;

fn texts() -> Vec<String> {
    let once = fixture::words(1, 40);
    let again = fixture::words(2, 40);
    vec![
        once,
        format!("{again} 7 {}", again.to_uppercase()),
        "stone stone stone".to_owned(),
        String::new(),
        "stone ".repeat(60),
    ]
}

#[test]
fn repeating_documents_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = fixture::tokenizer(dir.path());
    let corpus = dir.path().join("corpus");
    fixture::corpus(&corpus, &texts(), |_| Map::new());
    let real = fixture::tokens(dir.path(), &texts(), &tokenizer);
    let bench = Bench::new(&dir.path().join("bench"))
        .input("corpus", &corpus)
        .input("tokenizer", &tokenizer)
        .input("real", &real);
    let outputs = bench.run::<DropRepeats>(&json!({})).unwrap();
    let kept = Corpus::open(&bench.out("corpus")).unwrap();
    let ids: Vec<u64> = kept.documents().map(|document| document.unwrap().id).collect();
    assert_eq!(ids, [1, 3, 4]);
    assert!((outputs.metrics["dropped_share"] - 0.4).abs() < 1e-9);
    // Tokenizing dropped the empty document.
    assert!(outputs.metrics["real_dropped_share"] >= 0.4);

    let rarely = bench.run::<DropRepeats>(&json!({ "min_count": 3 })).unwrap();
    assert!((rarely.metrics["n_documents"] - 4.0).abs() < 1e-9);
    let failure = bench.run::<DropRepeats>(&json!({ "min_count": 1 })).unwrap_err();
    assert!(failure.message.contains("min_count is 1"), "{failure}");
}
