use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use engine::task::testbed::Bench;
use serde_json::json;

use super::*;
use crate::corpus::Corpus;
use crate::tokenizer::Tokenizer;
use crate::world::{Kind, Reader};

const PORTS: [&str; 4] = ["train", "validation", "heldout", "pool"];

fn small() -> Value {
    json!({
        "n_concepts": 40, "n_new_concepts": 5, "name_parts": 10, "pool_factor": 6, "n_validation": 30,
        "n_heldout": 25, "n_questions": 50, "n_pairs": 20, "seed": 3,
    })
}

fn run(params: &Value) -> (tempfile::TempDir, Bench) {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path());
    bench.run::<GenerateWorld>(params).unwrap();
    (dir, bench)
}

fn documents(bench: &Bench, port: &str) -> Vec<Document> {
    Corpus::open(&bench.out(port)).unwrap().documents().map(Result::unwrap).collect()
}

#[test]
fn no_text_is_in_two_outputs_nor_twice_in_one() {
    let (_dir, bench) = run(&small());
    let all: Vec<Document> = PORTS.iter().flat_map(|port| documents(&bench, port)).collect();
    let texts: BTreeSet<&str> = all.iter().map(|document| document.text.as_str()).collect();
    let ids: BTreeSet<u64> = all.iter().map(|document| document.id).collect();
    assert_eq!((texts.len(), ids.len()), (all.len(), all.len()));
    let counts = PORTS.map(|port| documents(&bench, port).len());
    // 24 concepts with one document, 16 with three; five kinds of held-out documents.
    assert_eq!(counts, [24 + 48, 30, 125, 6 * 72]);
}

#[test]
fn documents_are_of_their_kind() {
    let (_dir, bench) = run(&small());
    let truth = Truth::open(&bench.out("world")).unwrap();
    let world = &truth.world;
    let reader = Reader::new(world);
    let mut genres: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for row in &truth.documents {
        genres.entry(row.concept).or_default().push(row.genre);
        assert_eq!(reader.read(&row.text).unwrap().name, world.concepts[row.concept].name);
    }
    assert!(
        genres.values().all(|genres| {
            genres.len() == 1 || genres.iter().collect::<BTreeSet<_>>().len() == 3
        })
    );
    let fits = |kind: Kind, concept: usize, genre: usize| {
        let told = genres.get(&concept).map_or(&[][..], Vec::as_slice);
        match kind {
            Kind::SingleCross => told.len() == 1 && told[0] != genre,
            Kind::SingleSame => told == [genre],
            Kind::Multi => told.len() > 1,
            Kind::Any => !told.is_empty(),
            Kind::New => told.is_empty(),
        }
    };
    assert!(truth.heldout.iter().all(|row| fits(row.kind, row.concept, row.genre)));
    assert!(truth.heldout.iter().all(|row| row.ln_p.is_some() == (row.kind != Kind::New)));
    for row in &truth.questions {
        assert!(fits(row.kind, row.concept, row.genre) && row.kind != Kind::New);
        assert_eq!(row.options[row.answer], world.value(row.concept, row.attribute));
    }
    for row in &truth.pairs {
        let [d1, d2, other] =
            [&row.d1, &row.d2, &row.unrelated].map(|text| reader.read(text).unwrap());
        assert!(d1.name == d2.name && d1.name != other.name);
        assert_ne!(d1.draft.genre, d2.draft.genre);
        // d2 follows from d1 but for its wording, and d1 tells its concept.
        assert!(row.ln_p > row.ln_marginal + 1.0);
    }
    assert_eq!(truth.pairs.iter().filter(|row| row.unpaired).count(), 20);
    assert_eq!(truth.headline(), Kind::SingleCross);
}

#[test]
fn the_oracle_sees_each_concept_as_often_as_training_does() {
    let (_dir, bench) = run(&small());
    let count = |port: &str| {
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for document in documents(&bench, port) {
            *counts.entry(document.meta["concept"].as_u64().unwrap()).or_default() += 1;
        }
        counts
    };
    let expected: BTreeMap<u64, usize> = count("train").iter().map(|(&c, n)| (c, 6 * n)).collect();
    assert_eq!(count("pool"), expected);
}

#[test]
fn every_word_is_a_token_and_no_other_is() {
    let (_dir, bench) = run(&small());
    let tokenizer = Tokenizer::open(&bench.out("tokenizer")).unwrap();
    for document in documents(&bench, "heldout") {
        let ids = tokenizer.encode(&document.text).unwrap();
        assert_eq!(ids.len(), document.text.split(' ').count());
        assert!(ids.iter().all(|&id| id > 3));
        assert_eq!(tokenizer.decode(&ids).unwrap(), document.text);
    }
    assert!(tokenizer.encode("something else").is_err());
}

#[test]
fn equal_specs_give_equal_bytes_and_seeds_other_worlds() {
    let files = |bench: &Bench| -> Vec<Vec<u8>> {
        let names = ["world.json", "documents.jsonl.zst", "questions.jsonl.zst", "pairs.jsonl.zst"];
        names.iter().map(|name| fs::read(bench.out("world").join(name)).unwrap()).collect()
    };
    let ((_a, first), (_b, second)) = (run(&small()), run(&small()));
    assert_eq!(files(&first), files(&second));
    let mut other = small();
    other["seed"] = 4.into();
    let (_c, third) = run(&other);
    assert!(files(&first).iter().zip(&files(&third)).all(|(a, b)| a != b));
}

#[test]
fn a_pool_beyond_all_texts_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path());
    let mut params = small();
    (params["n_attributes"], params["pool_factor"]) = (2.into(), 300.into());
    let error = bench.run::<GenerateWorld>(&params).unwrap_err();
    assert!(error.message.contains("of `pool`: none of 1000 texts was new"), "{error}");
}
