//! Small artifacts of made-up text for tests of several tasks.

use std::path::{Path, PathBuf};

use engine::task::testbed::Bench;
use kernels::philox::Philox;
use serde_json::{Map, Value, json};

use crate::corpus::{CorpusWriter, Document};
use crate::tokenize::Tokenize;
use crate::train_tokenizer::TrainTokenizer;

const WORDS: [&str; 24] = [
    "river", "stone", "lamp", "quiet", "orange", "window", "seven", "paper", "cloud", "engine",
    "salt", "thread", "market", "violet", "ladder", "copper", "winter", "harbor", "pencil",
    "garden", "mirror", "basket", "signal", "meadow",
];

/// `n` words drawn by `seed`.
pub(crate) fn words(seed: u64, n: u64) -> String {
    let rng = Philox::new(seed, "fixture");
    let words: Vec<&str> =
        (0..n).map(|i| WORDS[rng.below(i, WORDS.len() as u64) as usize]).collect();
    words.join(" ")
}

/// `n` different words, at most 24, in an order drawn by `seed`: no part of it occurs twice.
pub(crate) fn distinct_words(seed: u64, n: usize) -> String {
    let order = Philox::new(seed, "fixture").permutation(WORDS.len());
    let words: Vec<&str> = order.into_iter().take(n).map(|i| WORDS[i]).collect();
    words.join(" ")
}

/// Writes a corpus whose document `i` has id `i + 1`.
pub(crate) fn corpus(dir: &Path, texts: &[String], meta: impl Fn(usize) -> Map<String, Value>) {
    let mut writer = CorpusWriter::create(dir).unwrap();
    for (i, text) in texts.iter().enumerate() {
        writer.push(&Document { id: i as u64 + 1, text: text.clone(), meta: meta(i) }).unwrap();
    }
    writer.finish().unwrap();
}

/// A tokenizer trained on the fixture's words, in a folder below `dir`.
pub(crate) fn tokenizer(dir: &Path) -> PathBuf {
    let (bench_dir, corpus_dir) = (dir.join("train"), dir.join("train_corpus"));
    let texts: Vec<String> = (0..40).map(|i| words(500 + i, 60)).collect();
    corpus(&corpus_dir, &texts, |_| Map::new());
    let bench = Bench::new(&bench_dir).input("corpus", &corpus_dir);
    bench.run::<TrainTokenizer>(&json!({ "vocab_size": 320 })).unwrap();
    bench.out("tokenizer")
}

/// Tokenizes `texts`; document `i` has id `i + 1`.
pub(crate) fn tokens(dir: &Path, texts: &[String], tokenizer: &Path) -> PathBuf {
    let (bench_dir, corpus_dir) = (dir.join("tokenize"), dir.join("tokens_corpus"));
    corpus(&corpus_dir, texts, |_| Map::new());
    let bench = Bench::new(&bench_dir).input("corpus", &corpus_dir).input("tokenizer", tokenizer);
    bench.run::<Tokenize>(&json!({})).unwrap();
    bench.out("tokens")
}
