//! What is exported is read back by the program's own reader.

use std::fs;

use engine::task::testbed::Bench;
use serde_json::{Map, Value, json};

use super::*;
use crate::corpus::CorpusWriter;
use crate::read_corpus::ReadCorpus;

fn bench(dir: &Path, n: u64) -> Bench {
    let corpus = dir.join("corpus");
    let mut writer = CorpusWriter::create(&corpus).unwrap();
    for id in 0..n {
        let mut meta = Map::new();
        if id % 2 == 1 {
            meta.insert("seed_id".to_owned(), format!("{:016x}", id / 2).into());
            meta.insert("draw".to_owned(), (id * 7).into());
            meta.insert("n_sampled".to_owned(), 5.into());
        } else if id == 4 {
            // A real document with names that a model's documents have.
            meta.insert("draw".to_owned(), 3.into());
            meta.insert("seed_id".to_owned(), vec![1].into());
        }
        meta.insert("source".to_owned(), "a.txt".into());
        writer.push(&Document { id, text: format!("document {id}\n日本"), meta }).unwrap();
    }
    writer.finish().unwrap();
    let model = dir.join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("model.safetensors"), "weights").unwrap();
    Bench::new(dir).input("corpus", &corpus).input("model", &model)
}

#[test]
fn both_formats_hold_every_row() {
    let weights = blake3::hash(b"weights").to_hex().to_string();
    for (format, file) in [("parquet", "train-00000.parquet"), ("jsonl", "train-00000.jsonl.zst")] {
        let dir = tempfile::tempdir().unwrap();
        let bench = bench(dir.path(), 9);
        let outputs =
            bench.run::<Export>(&json!({"name": "Nine", "format": format, "tags": ["x"]})).unwrap();
        assert_eq!(outputs.metrics["n_synthetic"] as u64, 4);
        let path = bench.out("dataset").join("data").join(file);
        fs::create_dir(dir.path().join("read")).unwrap();
        let reader = Bench::new(&dir.path().join("read")).external(&path, file);
        let params = json!({
            "paths": ["*"], "id_key": "id", "meta_keys": ["seed_id", "draw", "checkpoint", "meta"],
        });
        reader.run::<ReadCorpus>(&params).unwrap();
        let read = Corpus::open(&reader.out("corpus")).unwrap();
        let read: Vec<Document> = read.documents().map(Result::unwrap).collect();
        assert_eq!(read.len(), 9);
        for (id, document) in read.iter().enumerate() {
            let meta = |key: &str| document.meta.get(key).cloned().unwrap_or(Value::Null);
            assert_eq!(document.text, format!("document {id}\n日本"));
            assert_eq!(meta("id"), format!("{id:016x}"));
            let rest = match id {
                4 => r#"{"draw":3,"seed_id":[1],"source":"a.txt"}"#,
                1 | 3 | 5 | 7 => r#"{"n_sampled":5,"source":"a.txt"}"#,
                _ => r#"{"source":"a.txt"}"#,
            };
            assert_eq!(meta("meta"), rest);
            if id % 2 == 1 {
                assert_eq!(meta("seed_id"), format!("{:016x}", id / 2));
                assert_eq!((meta("draw"), meta("checkpoint")), (json!(id * 7), json!(weights)));
            } else {
                let absent = [meta("seed_id"), meta("draw"), meta("checkpoint")];
                assert_eq!(absent, [Value::Null, Value::Null, Value::Null]);
            }
        }
    }
}

#[test]
fn the_card_says_what_is_synthetic() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(dir.path(), 2);
    let params = json!({
        "name": "A \"name\"", "description": "What it is.", "license": "cc0-1.0", "tags": ["synthetic"],
        "languages": ["no"],
    });
    bench.run::<Export>(&params).unwrap();
    let card = fs::read_to_string(bench.out("dataset").join("README.md")).unwrap();
    let head: Vec<&str> = card.split("---\n").collect();
    assert_eq!(
        head[1],
        "pretty_name: \"A \\\"name\\\"\"\nlicense: \"cc0-1.0\"\nlanguage:\n- \"no\"\ntags:\n\
         - \"synthetic\"\ntask_categories:\n- \"text-generation\"\nsize_categories:\n- \"n<1K\"\nconfigs:\n\
         - config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n"
    );
    assert!(head[2].contains("What it is.") && head[2].contains("1 of the documents are **synth"));
    let wrong = bench.run::<Export>(&json!({"name": "x", "tags": ["a: b"]})).unwrap_err();
    assert!(wrong.message.contains("`a: b` is not made of"), "{wrong}");
}
