//! Agreement with transformers on a tiny random embedding model in shards, made by
//! `tests/goldens/make_embedding.py`.

use std::path::PathBuf;

use engine::task::testbed::Bench;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::embed::Embed;
use crate::fixture;
use crate::format::vectors::Vectors;
use crate::lm::init::Init;
use crate::lm::{Forward, Preset};

/// Largest difference of a component of a unit vector: `f32` here, `f64` there.
const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    last: Vec<f64>,
    middle_last: Vec<f64>,
    middle_mean: Vec<f64>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/qwen3-embedding")
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(golden().join("golden.json")).unwrap()).unwrap()
}

fn params(value: serde_json::Value) -> Params {
    serde_json::from_value(value).unwrap()
}

fn assert_same_direction(row: &[f32], expected: &[f64], what: &str) {
    let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    assert_eq!(row.len(), expected.len());
    for (x, y) in row.iter().zip(expected) {
        let error = (f64::from(*x) / norm - y).abs();
        assert!(error <= TOLERANCE, "{what}: {error:e}");
    }
}

#[test]
fn vectors_agree_with_transformers() {
    let tokenizer = FolderTokenizer::open(&golden()).unwrap();
    let end = hf::load_generation(&golden()).unwrap().stop.first().copied();
    let weights = hf::load(&golden()).unwrap();
    let cases = cases();
    let documents: Vec<Vec<u32>> =
        cases.iter().map(|case| tokenizer.encode_whole(&case.text, end).unwrap()).collect();
    for (case, ids) in cases.iter().zip(&documents) {
        assert_eq!(*ids, case.ids, "{}", case.text);
    }
    let check = |params: &Params, expected: &dyn Fn(&Case) -> Vec<f64>| {
        let embedder = Embedder::new(&weights, params).unwrap();
        // All documents in one stream, and each alone.
        let pools = [Pool::new(2), Pool::new(1)];
        let [mut all, mut one] =
            pools.each_ref().map(|pool| Reader::on_cpu(pool, &weights, BATCH_TOKENS));
        let together = embedder.batch(&mut all, &documents).unwrap();
        let mut alone = Vec::new();
        for document in &documents {
            alone.extend(embedder.batch(&mut one, std::slice::from_ref(document)).unwrap());
        }
        assert!(together == alone, "a vector does not depend on its batch");
        for (row, case) in together.chunks_exact(embedder.dim).zip(&cases) {
            assert_same_direction(row, &expected(case), &case.text);
        }
    };
    check(&params(json!({"backend": "states"})), &|case| case.last.clone());
    check(&params(json!({"backend": "states", "layer": 2})), &|case| case.middle_last.clone());
    check(&params(json!({"backend": "states", "layer": 2, "pooling": "mean"})), &|case| {
        case.middle_mean.clone()
    });
    // The first components of a vector, brought to unit length again.
    check(&params(json!({"backend": "states", "dim": 5})), &|case| {
        let norm = case.last[..5].iter().map(|x| x * x).sum::<f64>().sqrt();
        case.last[..5].iter().map(|x| x / norm).collect()
    });
}

#[test]
fn long_documents_keep_their_end() {
    let weights = hf::load(&golden()).unwrap();
    let embedder = Embedder::new(&weights, &params(json!({"max_tokens": 4}))).unwrap();
    let mut ids = vec![1, 2, 3, 4, 5, 259];
    assert!(embedder.cut(&mut ids));
    assert_eq!(ids, [1, 2, 3, 259]);
    assert!(!embedder.cut(&mut ids));
    let check = |value, message: &str| {
        let Err(failure) = Embedder::new(&weights, &params(value)) else { panic!("accepted") };
        assert!(failure.message.contains(message), "{}", failure.message);
    };
    check(json!({"layer": 4}), "`layer` is 4, and the model has 3");
    check(json!({"dim": 17}), "`dim` is 17, and the model has 16");
    check(json!({"max_tokens": 257}), "`max_tokens` is 257, and the model has 256");
}

/// Through the task: texts of the pipeline's own tokens, read by a model with another tokenizer.
#[test]
fn a_folder_reads_the_documents_texts() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = fixture::tokenizer(dir.path());
    let cases: Vec<Case> = cases().into_iter().filter(|case| !case.text.is_empty()).collect();
    let texts: Vec<String> = cases.iter().map(|case| case.text.clone()).collect();
    let tokens = fixture::tokens(dir.path(), &texts, &tokenizer);
    let run = |name: &str, value: serde_json::Value| {
        let mut bench = Bench::new(&dir.path().join(name))
            .input("documents", &tokens)
            .input("tokenizer", &tokenizer);
        for entry in std::fs::read_dir(golden()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name != "golden.json" {
                bench = bench.external(&path, &name);
            }
        }
        bench.run::<Embed>(&value)?;
        Ok::<_, Failure>(Vectors::open(&bench.out("vectors")).unwrap())
    };
    let path = golden().display().to_string();
    let vectors = run("whole", json!({"backend": "states", "path": path})).unwrap();
    for (i, case) in cases.iter().enumerate() {
        assert_same_direction(vectors.row(i), &case.last, &case.text);
        let norm = vectors.row(i).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((norm - 1.0).abs() < 1e-6, "{norm}");
    }
    let short = json!({"backend": "states", "path": path, "max_tokens": 8});
    assert_ne!(run("short", short).unwrap().row(3), vectors.row(3));
    let Err(failure) = run("wrong", json!({"path": path})) else { panic!("accepted") };
    assert!(failure.to_string().contains("backend `states` only"), "{failure}");
}

/// The pipeline's own model reads the tokens as they are, between its start and end.
#[test]
fn the_own_model_reads_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = fixture::tokenizer(dir.path());
    let texts = ["river stone", "lamp quiet orange"].map(str::to_owned);
    let tokens = fixture::tokens(dir.path(), &texts, &tokenizer);
    let mut config = Preset::Smoke.config();
    config.vocab_size = 320;
    let weights = Init::default().draw(&Pool::new(1), &config, 3);
    let model = dir.path().join("model");
    hf::save(&model, &weights, None).unwrap();
    let bench =
        |model: &Path| Bench::new(dir.path()).input("documents", &tokens).input("model", model);
    let ran = bench(&model);
    ran.run::<Embed>(&json!({"backend": "states", "layer": 1})).unwrap();
    let vectors = Vectors::open(&ran.out("vectors")).unwrap();
    let opened = Tokens::open(&tokens).unwrap();
    for i in 0..2 {
        let ids = [&[BOS], &*opened.ids(i), &[EOS]].concat();
        let mut forward = Forward::new(&config, ids.len());
        let starts = vec![0; ids.len()];
        let states = forward.residual(&Pool::new(1), &weights, &ids, &starts, 1);
        let last: Vec<f64> = states[states.len() - 64..].iter().map(|x| f64::from(*x)).collect();
        let norm = last.iter().map(|x| x * x).sum::<f64>().sqrt();
        let expected: Vec<f64> = last.iter().map(|x| x / norm).collect();
        assert_same_direction(vectors.row(i), &expected, "own");
    }
    config.vocab_size = 300;
    let small = dir.path().join("small");
    hf::save(&small, &Init::default().draw(&Pool::new(1), &config, 3), None).unwrap();
    let failure = bench(&small).run::<Embed>(&json!({"backend": "states"})).unwrap_err();
    assert!(failure.message.contains("the model has 300 tokens"), "{}", failure.message);
    let nothing = Bench::new(dir.path()).input("documents", &tokens);
    let failure = nothing.run::<Embed>(&json!({"backend": "states"})).unwrap_err();
    assert!(failure.message.contains("needs a model"), "{}", failure.message);
}
