//! Tests of `drop_near_dups` against sets of windows.

use std::collections::BTreeSet;
use std::path::Path;

use engine::task::testbed::Bench;
use serde_json::json;

use super::*;
use crate::fixture;
use crate::format::pairs::Documents;

/// Texts of 0 to 40 words; every third repeats a stretch of the one before, spelled otherwise.
fn texts() -> Vec<String> {
    (0..45_u64)
        .map(|i| {
            let own = fixture::words(i, i % 12 + 1);
            if i % 3 == 2 {
                let shared = fixture::words(i - 1, (i - 1) % 12 + 1).to_uppercase();
                format!("{own}, 42 {shared}!")
            } else {
                own
            }
        })
        .collect()
}

/// The definition: sets of windows of normalized, tokenized text.
fn windows(text: &str, tokenizer: &Path, n: usize) -> BTreeSet<Vec<u32>> {
    let codec = Codec::open(tokenizer).unwrap();
    let kept: String =
        text.to_lowercase().chars().filter(|c| c.is_alphabetic() || c.is_whitespace()).collect();
    let normalized = kept.split_whitespace().collect::<Vec<_>>().join(" ");
    let ids = codec.encode(&normalized).unwrap();
    if ids.len() < n {
        BTreeSet::from([ids])
    } else {
        ids.windows(n).map(<[u32]>::to_vec).collect()
    }
}

#[test]
fn pairs_that_share_a_window_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let texts = texts();
    let tokenizer = fixture::tokenizer(dir.path());
    let documents = fixture::tokens(dir.path(), &texts, &tokenizer);
    let found = dir.path().join("pairs");
    std::fs::create_dir(&found).unwrap();
    let tokens = Tokens::open(&documents).unwrap();
    let n = tokens.n_documents() as u32;
    let all = (0..n).flat_map(|a| (0..n).filter(move |b| *b != a).map(move |b| (a, b)));
    let all: Vec<Pair> = all.map(|(seed, target)| Pair { seed, target, score: 0.5 }).collect();
    pairs::write(&found, Documents::of_tokens(&tokens), all.clone(), "nearest").unwrap();
    let bench = Bench::new(&dir.path().join("bench"))
        .input("pairs", &found)
        .input("documents", &documents)
        .input("tokenizer", &tokenizer);
    bench.run::<DropNearDups>(&json!({})).unwrap();
    let kept: Vec<Pair> = Pairs::open(&bench.out("pairs")).unwrap().iter().collect();

    let codec = Codec::open(&tokenizer).unwrap();
    let windows: Vec<_> = (0..n as usize)
        .map(|i| windows(&codec.text(&tokens, i).unwrap(), &tokenizer, WINDOW_TOKENS))
        .collect();
    let shares = |pair: &Pair| {
        let [a, b] = [pair.seed, pair.target].map(|i| &windows[i as usize]);
        a.intersection(b).next().is_some()
    };
    let expected: Vec<Pair> = all.iter().copied().filter(|pair| !shares(pair)).collect();
    assert_eq!(kept, expected);
    assert!(all.len() - kept.len() >= 8, "{} of {}", kept.len(), all.len());
    assert_eq!(Pairs::open(&bench.out("pairs")).unwrap().method().unwrap(), "nearest");
}

#[test]
fn nothing_left_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = fixture::tokenizer(dir.path());
    let texts = vec!["river stone 1".to_owned(), "River, stone 2".to_owned()];
    let documents = fixture::tokens(dir.path(), &texts, &tokenizer);
    let found = dir.path().join("pairs");
    std::fs::create_dir(&found).unwrap();
    let pair = Pair { seed: 0, target: 1, score: 0.5 };
    let write = |documents| pairs::write(&found, documents, vec![pair], "nearest").unwrap();
    write(Documents::of_tokens(&Tokens::open(&documents).unwrap()));
    let bench = Bench::new(&dir.path().join("bench"))
        .input("pairs", &found)
        .input("documents", &documents)
        .input("tokenizer", &tokenizer);
    let failure = bench.run::<DropNearDups>(&json!({})).unwrap_err();
    assert!(failure.message.contains("each of the 1 pairs shares 13 tokens"), "{failure}");
    write(Documents::of([7, 8]));
    let failure = bench.run::<DropNearDups>(&json!({})).unwrap_err();
    assert!(failure.message.contains("other documents"), "{failure}");
}
