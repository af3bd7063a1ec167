mod device;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use engine::checkpoint::CheckpointStore;
use engine::digest::Digest;
use engine::task::testbed::Bench;
use engine::task::{CancelToken, ContextParts, FailureKind, Input, Report, Sink};
use kernels::philox::Philox;
use serde_json::{Value, json};

use super::*;
use crate::format::schedule::{ScheduleWriter, Source};
use crate::format::tokens::TokensWriter;
use crate::lm::batch::Batch;
use crate::tokenizer::{BOS, EOS};

/// A world of made-up documents: inputs of `pretrain` in folders.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// `documents` of ids below `vocab`, and a schedule that shows them `n_times` in turn.
    fn new(documents: &[Vec<u32>], vocab: u32, n_times: usize) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(world.path("tokenizer")).unwrap();
        fs::write(world.path("tokenizer").join(hf::TOKENIZER_FILE), b"{}").unwrap();
        world.tokens("real", documents, vocab);
        let n_tokens: u64 = documents.iter().map(|d| d.len() as u64).sum();
        let n_documents = documents.len() as u64;
        let source = Source { name: "real".to_owned(), n_documents, n_tokens };
        let budget = n_times as u64 * (n_tokens + 2 * n_documents);
        fs::create_dir(world.path("schedule")).unwrap();
        let mut writer =
            ScheduleWriter::create(&world.path("schedule"), vec![source], budget, 0).unwrap();
        for i in 0..n_times * documents.len() {
            let document = i % documents.len();
            writer.push(0, document, documents[document].len() as u64 + 2).unwrap();
        }
        writer.finish().unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tokens(&self, name: &str, documents: &[Vec<u32>], vocab: u32) {
        fs::create_dir(self.path(name)).unwrap();
        let mut writer = TokensWriter::create(&self.path(name), vocab, Digest::of(b"{}")).unwrap();
        for (id, ids) in documents.iter().enumerate() {
            writer.push(id as u64, ids.len() as u32, ids).unwrap();
        }
        writer.finish().unwrap();
    }

    fn bench(&self, name: &str) -> Bench {
        ["schedule", "real", "tokenizer", "heldout"]
            .into_iter()
            .filter(|port| self.path(port).exists())
            .fold(Bench::new(&self.path(name)), |bench, port| bench.input(port, &self.path(port)))
    }

    fn steps(&self, packing: Packing, context: usize, mask: bool) -> ScheduleSteps {
        let schedule = Schedule::open(&self.path("schedule")).unwrap();
        let tokens = Tokens::open(&self.path("real")).unwrap();
        ScheduleSteps::new(schedule, vec![tokens], packing, context, mask)
    }
}

fn small_params() -> Value {
    json!({
        "arch": {"preset": "smoke", "d_model": 16, "n_layers": 1, "head_dim": 8, "d_ffn": 24},
        "context": 8,
        "batch_tokens": 32,
        "micro_batch_tokens": 16,
        "curve_points": 3,
        "snapshots": [0.25, 0.5],
    })
}

fn documents() -> Vec<Vec<u32>> {
    let rng = Philox::new(1, "documents");
    (0..9_u64).map(|d| (0..3 + d).map(|i| 4 + rng.fork(d).below(i, 16) as u32).collect()).collect()
}

#[test]
fn rows_hold_the_stream_once_and_predict_inside_documents() {
    let world = World::new(&documents(), 20, 2);
    let stream: Vec<u32> = documents()
        .iter()
        .flat_map(|d| [&[BOS], d.as_slice(), &[EOS]].concat())
        .collect::<Vec<_>>()
        .repeat(2);
    let mut batch = Batch::default();
    for packing in [Packing::Rows { n_rows: 3 }, Packing::Documents { n_documents: 4 }] {
        let steps = world.steps(packing, 8, true);
        let (mut seen, mut n_targets) = (Vec::new(), 0);
        for step in 0..steps.n_steps() {
            steps.fill(step, &mut batch);
            n_targets += batch.n_targets();
            for micro in batch.micro_batches(1) {
                assert!(micro.ids.len() <= 8);
                for (i, &id) in micro.ids.iter().enumerate() {
                    let at = seen.len();
                    let end = id == EOS;
                    let target = if end { u32::MAX } else { stream[at + 1] };
                    assert_eq!(micro.targets[i], target, "token {at}");
                    assert!(i == 0 || id != BOS || micro.starts[i] as usize == i);
                    seen.push(id);
                }
            }
        }
        assert_eq!(seen, stream, "{packing:?}");
        assert_eq!(n_targets, stream.len() - 18);
        assert_eq!(steps.n_tokens(), stream.len() as u64);
    }
    let steps = world.steps(Packing::Rows { n_rows: 3 }, 8, false);
    steps.fill(0, &mut batch);
    assert!(batch.micro_batches(1).all(|micro| micro.starts.iter().all(|&start| start == 0)));
}

/// Cancels the attempt after the given step's loss is reported.
struct CancelAt {
    step: u64,
    token: CancelToken,
}

impl Sink for CancelAt {
    fn report(&self, report: Report) {
        if matches!(report, Report::Metric { name, step, .. } if name == "loss" && step >= self.step)
        {
            self.token.cancel();
        }
    }
}

fn attempt(world: &World, name: &str, cancel_at: u64, n_threads: usize) -> Result<(), Failure> {
    attempt_with(world, name, cancel_at, &small_params(), (n_threads, "cpu"))
}

fn attempt_with(
    world: &World,
    name: &str,
    cancel_at: u64,
    params: &Value,
    (n_threads, device): (usize, &str),
) -> Result<(), Failure> {
    // Each attempt has an empty output folder; only the checkpoints outlive it.
    let out_dir = world.path(name).join("out");
    if out_dir.exists() {
        fs::remove_dir_all(&out_dir).unwrap();
    }
    let cancel = CancelToken::default();
    let mut ctx = Context::new(ContextParts {
        out_dir,
        scratch_dir: world.path(name).join("scratch"),
        checkpoints: CheckpointStore::new(world.path(name).join("checkpoints")),
        external: Vec::new(),
        n_threads,
        memory_bytes: None,
        is_approved: false,
        device: device.to_owned(),
        upstream: Vec::new(),
        cancel: cancel.clone(),
        sink: Arc::new(CancelAt { step: cancel_at, token: cancel }),
    });
    let input = |port: &str| Input {
        node: port.to_owned(),
        port: port.to_owned(),
        dir: world.path(port),
        digest: Digest::of(port.as_bytes()),
    };
    let ports = ["schedule", "real", "tokenizer", "heldout"];
    let inputs = ports.iter().map(|port| ((*port).to_owned(), vec![input(port)])).collect();
    let params: Params = serde_json::from_value(params.clone()).unwrap();
    Pretrain::run(&mut ctx, &params, &Inputs::new(inputs)).map(|_| ())
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    walkdir::WalkDir::new(dir)
        .sort_by_file_name()
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let name = entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn stopped_anywhere_and_resumed_gives_the_same_bytes() {
    let world = World::new(&documents(), 20, 3);
    world.tokens("heldout", &documents()[2..4], 20);
    attempt(&world, "whole", u64::MAX, 2).unwrap();
    let whole = files(&world.path("whole").join("out"));
    let names: Vec<&str> = whole.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"model/model.safetensors") && names.contains(&"model/curve.csv"));
    assert!(names.contains(&"snapshots/at-0.2500/config.json"), "{names:?}");

    // The last one hits the measurements after the last step.
    for (step, n_threads) in [(1, 1), (2, 3), (3, 2), (5, 1), (6, 2), (8, 3)] {
        let failure = attempt(&world, "broken", step, n_threads).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Cancelled);
    }
    attempt(&world, "broken", u64::MAX, 3).unwrap();
    let resumed = files(&world.path("broken").join("out"));
    assert_eq!(resumed.iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
    for ((name, bytes), (_, expected)) in resumed.iter().zip(&whole) {
        assert!(bytes == expected, "{name} differs");
    }
}

/// Mission row D-5: five tokens drawn uniformly carry nothing to learn but their frequency.
#[test]
fn uniform_world_stays_at_its_entropy() {
    let rng = Philox::new(9, "uniform");
    let draw = |document: u64| -> Vec<u32> {
        (0..62).map(|i| 4 + rng.fork(document).below(i, 5) as u32).collect()
    };
    let world = World::new(&(0..300).map(draw).collect::<Vec<_>>(), 9, 1);
    world.tokens("heldout", &(1000..1040).map(draw).collect::<Vec<_>>(), 9);
    let params = json!({
        "arch": {"preset": "smoke", "d_model": 16, "n_layers": 1, "head_dim": 8, "d_ffn": 24},
        "context": 64,
        "batch_documents": 4,
        "lr_peak": 1e-2,
    });
    let outputs = world.bench("out").run::<Pretrain>(&params).unwrap();
    // The end of a document is predictable from its length; it and the 62 tokens before share the
    // loss, so the bound is their mean with an end between free and impossible to foresee.
    let loss = outputs.metrics["heldout_loss"];
    let ln5 = 5_f64.ln();
    assert!(loss > 62.0 / 63.0 * ln5 - 0.01, "{loss} is below what any model can reach");
    assert!(loss < ln5 + 0.12, "{loss} is far above the entropy");
}

#[test]
fn wrong_inputs_and_params_are_errors_with_advice() {
    let world = World::new(&documents(), 20, 1);
    let check = |change: fn(&mut Value), message: &str| {
        let mut params = small_params();
        change(&mut params);
        let failure = world.bench("wrong").run::<Pretrain>(&params).unwrap_err();
        assert!(failure.message.contains(message), "{}", failure.message);
    };
    check(|p| p["context"] = json!(0), "0 is not within 1..=");
    check(|p| p["context"] = json!(1 << 23), "8388608 is not within 1..=");
    check(|p| p["batch_tokens"] = json!(33), "33 is not a positive multiple of the context, 8");
    check(|p| p["batch_documents"] = json!(2), "exactly one of");
    check(|p| p["lr_peak"] = json!(0.0), "0 is not a number above 0");
    check(|p| p["snapshots"] = json!([1.0]), "1 is not between 0 and 1");
    check(|p| p["init"] = json!({"embedding_std": -1.0}), "-1 is not a number above 0");
    check(|p| p["arch"]["vocab_size"] = json!(19), "19 rows cannot hold the tokenizer's 20 ids");
    check(|p| p["lr"] = json!(1.0), "lr");
    check(|p| p["lr_peak"] = json!(1e6), "gradient norm");
    check(
        |p| (p["lr_peak"], p["loss_rise_max"]) = (json!(1.0), json!(1e-3)),
        "above its running mean",
    );

    fs::write(world.path("tokenizer").join(hf::TOKENIZER_FILE), b"{ }").unwrap();
    let failure = world.bench("wrong").run::<Pretrain>(&small_params()).unwrap_err();
    assert!(failure.message.contains("come from tokenizer"), "{}", failure.message);
    let other = World::new(&documents()[1..], 20, 1);
    let bench = Bench::new(&world.path("wrong"))
        .input("schedule", &other.path("schedule"))
        .input("real", &world.path("real"))
        .input("tokenizer", &other.path("tokenizer"));
    let failure = bench.run::<Pretrain>(&small_params()).unwrap_err();
    assert!(failure.message.contains("port `real` has 9 documents"), "{}", failure.message);
}
