use std::fs;
use std::path::PathBuf;

use engine::digest::Digest;
use engine::task::testbed::Bench;
use kernels::philox::Philox;
use serde_json::{Value, json};

use super::*;
use crate::format::pairs::{self, Documents, Pair};
use crate::format::tokens::{Tokens, TokensWriter};
use crate::lm::init::Init;
use crate::lm::{Config, Preset};

const VOCAB: u32 = 20;

/// Documents of 1 to 9 ids that stand for nothing.
pub(super) fn documents(n: u64) -> Vec<Vec<u32>> {
    let rng = Philox::new(4, "documents");
    let document = |d: u64| (0..=d % 9).map(|i| 4 + rng.fork(d).below(i, 16) as u32).collect();
    (0..n).map(document).collect()
}

/// Documents and pairs in folders.
pub(super) struct PairWorld {
    dir: tempfile::TempDir,
}

impl PairWorld {
    pub(super) fn new(documents: &[Vec<u32>], pairs: &[Pair]) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        for port in ["tokenizer", "real", "pairs"] {
            fs::create_dir(world.path(port)).unwrap();
        }
        fs::write(world.path("tokenizer").join(hf::TOKENIZER_FILE), b"{}").unwrap();
        let digest = Digest::of(b"{}");
        let mut writer = TokensWriter::create(&world.path("real"), VOCAB, digest).unwrap();
        for (id, ids) in documents.iter().enumerate() {
            writer.push(id as u64, ids.len() as u32, ids).unwrap();
        }
        writer.finish().unwrap();
        let tokens = Tokens::open(&world.path("real")).unwrap();
        let documents = Documents::of_tokens(&tokens);
        pairs::write(&world.path("pairs"), documents, pairs.to_vec(), "nearest").unwrap();
        world
    }

    pub(super) fn open(&self) -> (Pairs, Tokens) {
        let tokens = Tokens::open(&self.path("real")).unwrap();
        (Pairs::open_for(&self.path("pairs"), &tokens).unwrap(), tokens)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn save_model(&self, name: &str, vocab_size: usize) {
        let config = Config {
            d_model: 32,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
            d_ffn: 48,
            vocab_size,
            context: 16,
            tie_embeddings: false,
            ..Preset::Smoke.config()
        };
        let weights = Init::default().draw(&Pool::new(1), &config, 8);
        let tokenizer = self.path("tokenizer").join(hf::TOKENIZER_FILE);
        hf::save(&self.path(name), &weights, Some(&tokenizer)).unwrap();
    }

    fn bench(&self) -> Bench {
        ["model", "real", "pairs", "tokenizer"]
            .into_iter()
            .fold(Bench::new(&self.path("bench")), |bench, port| {
                bench.input(port, &self.path(port))
            })
    }
}

/// Documents that repeat one of 8 topics' ids in any order; documents of a topic are pairs.
fn topics() -> PairWorld {
    let rng = Philox::new(2, "topics");
    let document = |d: u64| -> Vec<u32> {
        (0..5).map(|i| 4 + 2 * (d % 8) as u32 + rng.fork(d).below(i, 2) as u32).collect()
    };
    let n = 80_u32;
    let pairs: Vec<Pair> = (0..n)
        .flat_map(|d1| (0..n).map(move |d2| (d1, d2)))
        .filter(|(d1, d2)| d1 != d2 && d1 % 8 == d2 % 8)
        .map(|(seed, target)| Pair { seed, target, score: 0.9 })
        .collect();
    let world = PairWorld::new(&(0..u64::from(n)).map(document).collect::<Vec<_>>(), &pairs);
    world.save_model("model", VOCAB as usize);
    world
}

fn params() -> Value {
    json!({ "lr": 1e-2, "steps": 60, "batch_pairs": 8, "warmup_steps": 5, "curve_points": 2 })
}

#[test]
fn a_tuned_model_reads_the_first_document() {
    let world = topics();
    let outputs = world.bench().run::<TuneSynthesizer>(&params()).unwrap();
    let metric = |name: &str| outputs.metrics[name];
    assert!(metric("reads_d1") > 1.5, "{:?}", outputs.metrics);
    assert!(metric("heldout_loss") < 0.8 * metric("heldout_loss_before"), "{:?}", outputs.metrics);
    assert_eq!(metric("n_steps") as u64, 60);
    assert_eq!(metric("n_tokens") as u64, 60 * 8 * 13);
    let model = world.bench().out("model");
    let tuned = hf::load_config(&model).unwrap();
    assert_eq!(tuned.context, 32, "twice the context of the pretrained model");
    let curve = fs::read_to_string(model.join("curve.csv")).unwrap();
    assert_eq!(curve.lines().count(), 3, "{curve}");
}

#[test]
fn snapshots_are_found_by_their_fraction() {
    let world = topics();
    world.save_model("snapshots/at-0.3800", VOCAB as usize);
    let mut params = params();
    (params["steps"], params["snapshot"]) = (json!(1), json!(0.38));
    let failure = world.bench().run::<TuneSynthesizer>(&params).unwrap_err();
    assert!(failure.message.contains("nothing is connected"), "{}", failure.message);
    let bench = world.bench().input("snapshots", &world.path("snapshots"));
    bench.run::<TuneSynthesizer>(&params).unwrap();
    params["snapshot"] = json!(0.5);
    let failure = bench.run::<TuneSynthesizer>(&params).unwrap_err();
    assert!(failure.message.contains("there are: at-0.3800"), "{}", failure.message);
}

/// Snapshots are on the way to the end: that of a run half as long under a constant rate.
#[test]
fn snapshots_are_the_models_on_the_way() {
    let world = topics();
    let mut params = params();
    (params["steps"], params["snapshots"]) = (json!(8), json!([0.25, 0.5]));
    world.bench().run::<TuneSynthesizer>(&params).unwrap();
    let read = |folder: &str, port: &str| {
        fs::read(world.bench().out(port).join(folder).join("model.safetensors")).unwrap()
    };
    let (early, half) = (read("at-0.2500", "snapshots"), read("at-0.5000", "snapshots"));
    assert!(early != half && half != read("", "model"));
    // What is published anew replaces what was there.
    (params["steps"], params["snapshots"]) = (json!(4), json!([]));
    world.bench().run::<TuneSynthesizer>(&params).unwrap();
    assert!(read("", "model") == half, "the same steps give the same model");
}

#[test]
fn wrong_inputs_and_params_are_errors_with_advice() {
    let world = topics();
    let check = |change: fn(&mut Value), message: &str| {
        let mut params = params();
        change(&mut params);
        let failure = world.bench().run::<TuneSynthesizer>(&params).unwrap_err();
        assert!(failure.message.contains(message), "{}", failure.message);
    };
    check(|p| p["epochs"] = json!(1.0), "exactly one of `steps` and `epochs`");
    check(|p| p["batch_tokens"] = json!(64), "exactly one of `batch_pairs` and `batch_tokens`");
    check(|p| p["lr"] = json!(-1.0), "-1 is not a number above 0");
    check(|p| p["snapshot"] = json!(2.0), "2 is not between 0 and 1");
    check(|p| p["snapshots"] = json!([0.5, 0.0]), "0 is not between 0 and 1");
    check(|p| p["snapshots"] = json!([0.5, 0.50001]), "0.50001 is given twice");
    check(|p| p["mup_base_width"] = json!(0), "0 is not a number above 0");
    check(|p| p["context"] = json!(12), "do not fit a context of 12 tokens");
    check(|p| p["context"] = json!(0), "context: 0 is not within");

    world.save_model("model", VOCAB as usize - 1);
    let failure = world.bench().run::<TuneSynthesizer>(&params()).unwrap_err();
    assert!(failure.message.contains("the model has 19"), "{}", failure.message);
    fs::write(world.path("model").join(hf::TOKENIZER_FILE), b"[]").unwrap();
    let failure = world.bench().run::<TuneSynthesizer>(&params()).unwrap_err();
    assert!(failure.message.contains("another tokenizer"), "{}", failure.message);
}
