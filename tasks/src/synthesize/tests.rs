use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use engine::task::testbed::Bench;
use engine::task::{CancelToken, FailureKind};
use kernels::Pool;
use serde_json::{Value, json};

use super::*;
use crate::corpus::{Corpus, Document, document_id};
use crate::format::tokens::TokensWriter;
use crate::lm::init::Init;
use crate::train_tokenizer::TrainTokenizer;

const CONTEXT: usize = 48;
const N_SEEDS: usize = 9;

/// A model, a tokenizer and seeds, the last of which is too long.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self::with_head_dim(8)
    }

    fn with_head_dim(head_dim: usize) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        let corpus = world.path("source");
        let mut writer = CorpusWriter::create(&corpus).unwrap();
        let texts: Vec<String> = (0..40)
            .map(|i| format!("the {i}th cat saw {} blue dogs near the sea", i * 7))
            .collect();
        for (i, text) in (0..).zip(&texts) {
            let id = document_id("source", i);
            writer
                .push(&Document { id, text: text.clone(), meta: serde_json::Map::new() })
                .unwrap();
        }
        writer.finish().unwrap();
        let bench = Bench::new(&world.path("train")).input("corpus", &corpus);
        bench.run::<TrainTokenizer>(&json!({"vocab_size": 280})).unwrap();
        fs::rename(bench.out("tokenizer"), world.path("tokenizer")).unwrap();
        let tokenizer = Tokenizer::open(&world.path("tokenizer")).unwrap();
        fs::create_dir_all(world.path("seeds")).unwrap();
        let (n_ids, digest) = (tokenizer.vocab_size(), tokenizer.digest());
        let mut writer = TokensWriter::create(&world.path("seeds"), n_ids, digest).unwrap();
        for (i, text) in (0..).zip(&texts[..N_SEEDS]) {
            let ids = tokenizer.encode(text).unwrap();
            let ids = &ids[..ids.len().min(12)];
            writer.push(i, text.len() as u32, ids).unwrap();
        }
        writer.push(99, 300, &[40; CONTEXT]).unwrap();
        writer.finish().unwrap();
        let config = Config {
            d_model: 16,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim,
            d_ffn: 24,
            vocab_size: tokenizer.vocab_size() as usize + 8,
            context: CONTEXT,
            rope_theta: 1e4,
            norm_eps: 1e-6,
            tie_embeddings: false,
        };
        let mut weights = Init::default().draw(&Pool::new(1), &config, 3);
        // Ends come often, so that both kinds of texts occur.
        let d = config.d_model;
        weights.output_mut()[EOS as usize * d..][..d].fill(0.2);
        hf::save(&world.path("model"), &weights, None).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bench(&self, name: &str, n_threads: usize) -> Bench {
        let bench = Bench::new(&self.path(name))
            .input("model", &self.path("model"))
            .input("tokenizer", &self.path("tokenizer"))
            .input("seeds", &self.path("seeds"));
        Bench { n_threads, ..bench }
    }
}

fn files(bench: &Bench) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(bench.out("corpus")).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        })
        .collect()
}

fn documents(bench: &Bench) -> Vec<Document> {
    Corpus::open(&bench.out("corpus")).unwrap().documents().collect::<Result<_, _>>().unwrap()
}

fn books(bench: &Bench) -> Value {
    serde_json::from_slice(&files(bench)["synthesis.json"]).unwrap()
}

#[test]
fn the_corpus_does_not_depend_on_batch_or_threads() {
    let world = World::new();
    let params = |batch: u32| json!({"target_tokens": 900, "draws_per_visit": 2, "batch": batch});
    let one = world.bench("one", 1);
    one.run::<Synthesize>(&params(1)).unwrap();
    for (name, n_threads, batch) in [("seven", 2, 7), ("all", 3, 64)] {
        let bench = world.bench(name, n_threads);
        bench.run::<Synthesize>(&params(batch)).unwrap();
        assert!(files(&bench) == files(&one), "batch {batch}");
    }
    let other = world.bench("other", 1);
    other.run::<Synthesize>(&json!({"target_tokens": 900, "seed": 1})).unwrap();
    assert!(files(&other) != files(&one));
}

/// On a device too, and its items are no part of what the CPU writes.
#[test]
fn a_device_writes_a_corpus_of_its_own_in_any_batch() {
    let world = World::with_head_dim(64);
    let run = |bench: &mut Bench, device: &str, batch: u32| {
        device.clone_into(&mut bench.device);
        let params = json!({
            "n_documents": 5, "max_new_tokens": 3, "on_truncate": "keep", "draws_per_visit": 2,
            "batch": batch,
        });
        let outputs = bench.run::<Synthesize>(&params).unwrap();
        let files = files(bench);
        fs::remove_dir_all(bench.out("corpus")).unwrap();
        (files, outputs.metrics.contains_key("on_gpu"), bench.items.n_done())
    };
    let emulated = device::tests::emulated();
    let mut bench = world.bench("one", 1);
    let on_cpu = run(&mut bench, "cpu", 4);
    let few = run(&mut bench, &emulated, 4);
    assert_eq!(([on_cpu.1, few.1], few.2 > on_cpu.2), ([false, true], true));
    assert_eq!(run(&mut bench, &emulated, 4), few);
    assert_eq!(run(&mut bench, "cpu", 4).0, on_cpu.0);
    let many = run(&mut world.bench("other", 2), &emulated, 19);
    assert!(many.0 == few.0 && many.1);
}

#[test]
fn the_books_balance_and_the_target_is_met_by_the_last_text() {
    let world = World::new();
    let bench = world.bench("run", 2);
    let outputs = bench
        .run::<Synthesize>(&json!({"target_tokens": 1500, "max_new_tokens": 20, "batch": 5}))
        .unwrap();
    let (documents, books) = (documents(&bench), books(&bench));
    let tokens = |document: &Document| document.meta["n_tokens"].as_u64().unwrap() + 2;
    let total: u64 = documents.iter().map(tokens).sum();
    assert!(total >= 1500 && total - tokens(documents.last().unwrap()) < 1500);
    let count = |name: &str| books[name].as_u64().unwrap();
    assert_eq!((count("n_kept"), count("net_tokens")), (documents.len() as u64, total));
    let n_dropped = count("n_dropped_truncated") + count("n_dropped_short");
    assert_eq!(count("n_generated"), count("n_kept") + n_dropped);
    assert!(count("n_dropped_truncated") > 0 && count("n_kept") > 0);
    assert_eq!((count("n_seeds"), count("n_seeds_skipped")), (N_SEEDS as u64, 1));
    assert!((outputs.metrics["net_tokens"] - total as f64).abs() < 0.5);
    let tokenizer = Tokenizer::open(&world.path("tokenizer")).unwrap();
    for document in &documents {
        assert_eq!(document.meta["truncated"], json!(false));
        assert_eq!(tokenizer.encode(&document.text).unwrap().len() as u64 + 2, tokens(document));
    }
}

#[test]
fn every_seed_is_drawn_equally_often() {
    let world = World::new();
    let bench = world.bench("run", 1);
    let n_documents = 6 * N_SEEDS;
    bench
        .run::<Synthesize>(&json!({
            "n_documents": n_documents, "draws_per_visit": 2, "on_truncate": "keep",
            "min_tokens": 0, "max_new_tokens": 4,
        }))
        .unwrap();
    let mut draws: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for document in documents(&bench) {
        let seed = document.meta["seed_id"].as_str().unwrap().to_owned();
        draws.entry(seed).or_default().push(document.meta["draw"].as_u64().unwrap());
    }
    assert_eq!(draws.len(), N_SEEDS);
    assert!(draws.values().all(|draws| *draws == [0, 1, 2, 3, 4, 5]));
}

/// Stopped after any number of items; what was finished is not written again.
#[test]
fn a_stopped_synthesis_goes_on_with_the_same_bytes() {
    let world = World::new();
    let params = json!({"n_documents": 150, "batch": 2});
    let whole = world.bench("whole", 1);
    whole.run::<Synthesize>(&params).unwrap();
    let n_items = whole.items.n_done();
    assert!(n_items > 4, "{n_items}");
    let mut stopped = world.bench("stopped", 2);
    for n_before in 1..n_items {
        stopped.cancel = CancelToken::default();
        stopped.stop_after(n_before);
        let failure = stopped.run::<Synthesize>(&params).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Cancelled, "{failure}");
        assert!(stopped.items.n_done() >= n_before);
    }
    let last = Bench { cancel: CancelToken::default(), ..stopped };
    last.run::<Synthesize>(&params).unwrap();
    assert!(files(&last) == files(&whole));

    // More texts than before: those that were written are not written again.
    let before = last.items.done();
    let more = json!({"n_documents": 160, "batch": 2});
    fs::remove_dir_all(last.out("corpus")).unwrap();
    last.run::<Synthesize>(&more).unwrap();
    let after = last.items.done();
    assert!(before.len() > 4 && before.iter().all(|(key, by)| after.get(key) == Some(by)));
    assert_eq!(documents(&last)[..150], documents(&whole)[..]);
}

#[test]
fn unconditional_texts_need_no_seeds() {
    let world = World::new();
    let bench = Bench::new(&world.path("run"))
        .input("model", &world.path("model"))
        .input("tokenizer", &world.path("tokenizer"));
    let failure = bench.run::<Synthesize>(&json!({"n_documents": 5})).unwrap_err();
    assert!(failure.message.contains("needs the input `seeds`"));
    bench.run::<Synthesize>(&json!({"n_documents": 5, "mode": "unconditional"})).unwrap();
    let documents = documents(&bench);
    assert_eq!(documents.len(), 5);
    assert!(documents[0].text != documents[1].text);
    assert!(!documents[0].meta.contains_key("seed_id"));
}

#[test]
fn a_failed_gate_stops_it() {
    let world = World::new();
    fs::create_dir_all(world.path("gate")).unwrap();
    for (decision, passes) in
        [(r#"{"proceed": false, "why": 1}"#, false), (r#"{"proceed": true}"#, true)]
    {
        fs::write(world.path("gate").join("decision.json"), decision).unwrap();
        let bench = world.bench("run", 1).input("gate", &world.path("gate"));
        let result = bench.run::<Synthesize>(&json!({"n_documents": 2}));
        assert_eq!(result.is_ok(), passes);
        assert!(passes || result.unwrap_err().message.contains("the gate did not pass"));
    }
}

#[test]
fn wrong_params_are_named() {
    let check = |params: Value, path: &str| {
        let params: Params = serde_json::from_value(params).unwrap();
        assert_eq!(Synthesize::check(&params).unwrap_err().path, path);
    };
    check(json!({}), "target_tokens");
    check(json!({"target_tokens": 5, "n_documents": 5}), "target_tokens");
    check(json!({"n_documents": 0}), "n_documents");
    check(json!({"n_documents": 1, "temperature": 0.0}), "temperature");
    check(json!({"n_documents": 1, "top_p": 1.5}), "top_p");
    check(json!({"n_documents": 1, "max_new_tokens": 1}), "max_new_tokens");
    check(json!({"n_documents": 1, "batch": 0}), "batch");
    check(json!({"n_documents": 1, "repetition_penalty": 0.5}), "repetition_penalty");
}
