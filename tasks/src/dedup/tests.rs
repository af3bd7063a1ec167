use std::collections::BTreeSet;

use engine::store::Manifest;
use engine::task::testbed::Bench;
use serde_json::Value;

use super::*;
use crate::corpus::tests::{write_files, write_texts};

fn kept(texts: &[&str], params: &Value, n_threads: usize) -> Vec<u64> {
    let dir = tempfile::tempdir().unwrap();
    let corpus = dir.path().join("corpus");
    write_texts(&corpus, texts.iter().copied());
    let mut bench = Bench::new(dir.path()).input("corpus", &corpus);
    bench.n_threads = n_threads;
    bench.run::<Dedup>(params).unwrap();
    let kept = Corpus::open(&bench.out("corpus")).unwrap();
    kept.documents().map(|document| document.unwrap().id).collect()
}

#[test]
fn the_earliest_is_kept() {
    let long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen \
                fifteen sixteen seventeen eighteen nineteen twenty";
    let near = long.to_owned() + " twenty-one";
    let texts = [long, "other words here", "Other  words, HERE!", &near, "", "short", "SHORT"];
    assert_eq!(kept(&texts, &json!({}), 2), [0, 1, 4, 5]);
    assert_eq!(kept(&texts, &json!({"method": "exact"}), 1), [0, 1, 3, 4, 5]);
    assert_eq!(kept(&texts, &json!({"min_jaccard": 1.0}), 1), [0, 1, 3, 4, 5]);
}

/// Decisions on planted near duplicates are those of `datasketch`'s LSH with exact Jaccard.
#[test]
fn equals_datasketch() {
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/goldens/dedup.json")).unwrap();
    let texts: Vec<&str> =
        golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let expected: Vec<u64> = serde_json::from_value(golden["kept"].clone()).unwrap();
    assert!(expected.len() < texts.len());
    for n_threads in [1, 3] {
        assert_eq!(kept(&texts, &json!({"min_jaccard": 0.7}), n_threads), expected);
    }
    for seed in 1..4 {
        assert_eq!(kept(&texts, &json!({"min_jaccard": 0.7, "seed": seed}), 2), expected);
    }
}

#[test]
fn wrong_thresholds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let failure = Bench::new(dir.path()).run::<Dedup>(&json!({"min_jaccard": 0.0}));
    assert!(failure.unwrap_err().message.contains("0 is not above 0 and at most 1"));
}

/// As `random` of the golden's script: splitmix64 over the parts of a key.
fn random(key: &[u64]) -> u64 {
    key.iter().fold(0, |state, part| {
        let mut state = (state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    })
}

/// As `document` of the golden's script.
fn words_of(i: u64) -> Vec<u64> {
    if i % 4 != 3 {
        return (0..200).map(|j| random(&[0, i, j]) % 3000).collect();
    }
    let mut words = words_of(random(&[1, i]) % i);
    for change in 0..random(&[2, i]) % 25 {
        words[random(&[3, i, change]) as usize % 200] = random(&[4, i, change]) % 3000;
    }
    words
}

/// Clusters of 5,000 documents with planted near duplicates of every similarity are those of
/// `datasketch`, which the script beside the golden checks against all pairs.
#[test]
fn clusters_equal_datasketch() {
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/goldens/clusters.json")).unwrap();
    let texts: Vec<String> = (0..5000)
        .map(|i| words_of(i).iter().map(|word| format!("w{word}")).collect::<Vec<_>>().join(" "))
        .collect();
    let checksum =
        texts.iter().flat_map(|text| text.bytes()).fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
    assert_eq!(golden["texts"], format!("{checksum:016x}"));
    let dropped: Vec<(u64, u64)> = serde_json::from_value(golden["dropped"].clone()).unwrap();
    assert!(dropped.len() > 300);

    let dir = tempfile::tempdir().unwrap();
    let corpus = dir.path().join("corpus");
    write_texts(&corpus, texts.iter().map(String::as_str));
    let bench = Bench::new(dir.path()).input("corpus", &corpus);
    let outputs = bench.run::<Dedup>(&json!({"bands": 32, "band_values": 4})).unwrap();
    let path = bench.out("corpus").join("duplicates.jsonl.zst");
    let lines = zstd::decode_all(File::open(path).unwrap()).unwrap();
    let id =
        |line: &Value, name: &str| u64::from_str_radix(line[name].as_str().unwrap(), 16).unwrap();
    let found: Vec<(u64, u64)> = String::from_utf8(lines)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| (id(&line, "id"), id(&line, "kept")))
        .collect();
    assert_eq!(found, dropped);
    assert_eq!(outputs.metrics["n_documents"] as usize, 5000 - dropped.len());
}

/// However the corpus is cut into files, and with any number of threads, the bytes are the same.
#[test]
fn files_and_threads_change_nothing() {
    let texts: Vec<String> = (0..600)
        .map(|i| words_of(i).iter().map(|word| format!("w{word}")).collect::<Vec<_>>().join(" "))
        .collect();
    let n_bytes = texts.iter().map(|text| text.len() as u64).sum::<u64>();
    let (mut digests, mut cuts) = (BTreeSet::new(), BTreeSet::new());
    for limit in [u64::MAX, n_bytes / 2, n_bytes / 7] {
        for n_threads in [1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let corpus = dir.path().join("corpus");
            cuts.insert(write_files(&corpus, texts.iter().map(String::as_str), limit));
            let mut bench = Bench::new(dir.path()).input("corpus", &corpus);
            bench.n_threads = n_threads;
            let outputs = bench.run::<Dedup>(&json!({})).unwrap();
            assert!(outputs.metrics["n_near"] > 10.0);
            digests.insert(Manifest::of_dir(&bench.out("corpus")).unwrap().digest().to_string());
        }
    }
    assert_eq!((digests.len(), cuts.first()), (1, Some(&1)));
    assert!(cuts.len() == 3 && cuts.iter().any(|n_files| *n_files >= 7), "{cuts:?}");
}

/// What the file says of each document adds up to the figures.
#[test]
fn figures_and_file_agree() {
    let base = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen \
                fifteen sixteen seventeen eighteen nineteen twenty";
    let near = format!("{base} twenty-one");
    let texts = [base, &near, &near.to_uppercase(), "!!", "!!", "??"];
    let dir = tempfile::tempdir().unwrap();
    write_texts(&dir.path().join("corpus"), texts);
    let bench = Bench::new(dir.path()).input("corpus", &dir.path().join("corpus"));
    let metrics = bench.run::<Dedup>(&json!({})).unwrap().metrics;
    let n = |name: &str| metrics[name] as u64;
    assert_eq!((n("n_documents"), n("n_exact"), n("n_near"), n("n_candidates")), (3, 2, 1, 1));
    let path = bench.out("corpus").join("duplicates.jsonl.zst");
    let lines = String::from_utf8(zstd::decode_all(File::open(path).unwrap()).unwrap()).unwrap();
    assert_eq!(lines.matches("\"exact\"").count(), 2);
    assert_eq!(lines.matches("\"near\"").count(), 1);
}
