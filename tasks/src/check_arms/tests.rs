use std::path::{Path, PathBuf};

use engine::task::testbed::Bench;
use serde_json::{Value, json};

use super::*;
use crate::fixture;
use crate::mix::Mix;

/// Tokens of made-up texts numbered `from..to`.
fn tokens(dir: &Path, name: &str, numbers: std::ops::Range<u64>) -> PathBuf {
    let shared = dir.join("tokenizer");
    let tokenizer = shared.join("train/out/tokenizer");
    if !tokenizer.exists() {
        fixture::tokenizer(&shared);
    }
    let texts: Vec<String> = numbers.map(|i| fixture::words(i, 12)).collect();
    fixture::tokens(&dir.join(name), &texts, &tokenizer)
}

struct Study {
    dir: tempfile::TempDir,
    real: PathBuf,
    pool: PathBuf,
    synthetic: PathBuf,
    unseen: PathBuf,
}

impl Study {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name, numbers| tokens(dir.path(), name, numbers);
        let (real, pool) = (at("real", 0..6), at("pool", 100..160));
        let (synthetic, unseen) = (at("synthetic", 200..230), at("unseen", 300..310));
        Self { dir, real, pool, synthetic, unseen }
    }

    fn mix(&self, arm: &str, real: &Path, params: &Value) -> Input {
        let mut bench = Bench::new(&self.dir.path().join(arm)).input("real", real);
        if params.get("synthetic_share").is_some() {
            bench = bench.input("synthetic", &self.synthetic);
        }
        bench.run::<Mix>(params).unwrap();
        let node = format!("mix[seed=0,arm={arm}]");
        Input {
            node,
            ..bench.input("schedule", &bench_out(self.dir.path(), arm)).inputs["schedule"][0]
                .clone()
        }
    }

    fn check(&self, schedules: Vec<Input>) -> Result<Outputs, Failure> {
        let mut bench = Bench::new(&self.dir.path().join("check"))
            .input("real", &self.real)
            .input("pool", &self.pool)
            .input("unseen", &self.unseen);
        bench.inputs.insert("schedules".to_owned(), schedules);
        bench.run::<CheckArms>(&json!({}))
    }
}

fn bench_out(dir: &Path, arm: &str) -> PathBuf {
    dir.join(arm).join("out/schedule")
}

#[test]
fn comparable_arms_pass_and_each_fault_is_named() {
    let mut study = Study::new();
    let budget = json!({"budget_tokens": 600});
    let base = study.mix("base", &study.real, &budget);
    let oracle = study.mix("oracle", &study.pool, &budget);
    let params = json!({"budget_tokens": 600, "synthetic_share": 0.5});
    let sbp = study.mix("sbp", &study.real, &params);
    let outputs = study.check(vec![base.clone(), oracle.clone(), sbp.clone()]).unwrap();
    assert!((outputs.metrics["n_checks"] - 7.0).abs() < 1e-12);

    let fails = |study: &Study, schedules: Vec<Input>, message: &str| {
        let error = study.check(schedules).unwrap_err();
        assert!(error.message.contains(message), "{error}");
    };
    let short = study.mix("short", &study.real, &json!({"budget_tokens": 500}));
    fails(&study, vec![oracle.clone(), short], "trained on as many tokens: oracle 600, short 500");
    let repeats = study.mix("oracle", &study.real, &budget);
    fails(&study, vec![base.clone(), repeats], "the oracle repeats no document: oracle at most");
    fails(&study, vec![base.clone()], "no schedule is of the arm `oracle`");

    let oracle = study.mix("oracle", &study.pool, &budget);
    let unseen = study.unseen.clone();
    study.unseen = tokens(study.dir.path(), "leak", 158..170);
    fails(
        &study,
        vec![base.clone(), oracle.clone()],
        "to choose or measure by is real or in the pool: 2",
    );
    study.unseen = unseen;
    study.real = tokens(study.dir.path(), "overlap", 97..103);
    fails(
        &study,
        vec![base.clone(), oracle],
        "not so: no real document is in the pool: 3 documents",
    );
    study.pool = tokens(study.dir.path(), "small", 400..405);
    let small = study.mix("oracle", &study.pool, &json!({"budget_tokens": 60}));
    let base = study.mix("base", &study.real, &json!({"budget_tokens": 60}));
    study.pool = tokens(study.dir.path(), "smaller", 400..402);
    fails(&study, vec![base, small], "which covers the budget: the pool has");
}

#[test]
fn a_synthetic_document_shown_twice_is_found() {
    let study = Study::new();
    let budget = json!({"budget_tokens": 600});
    let oracle = study.mix("oracle", &study.pool, &budget);
    let sbp = study.mix("sbp", &study.real, &json!({"budget_tokens": 600, "synthetic_share": 0.5}));
    let path = sbp.dir.join("books.json");
    let mut books: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    books["sources"][1]["histogram"] = json!({"1": 5, "2": 1});
    std::fs::write(&path, books.to_string()).unwrap();
    let error = study.check(vec![oracle, sbp]).unwrap_err();
    assert!(error.message.contains("shown at most once: sbp at most 2 times"), "{error}");
}
