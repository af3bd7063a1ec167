use std::path::Path;

use engine::task::testbed::Bench;
use serde_json::{Map, json};

use super::*;
use crate::corpus::CorpusWriter;
use crate::evaluate_world::tests::world;

/// Measures these texts, each with the training document that it starts from.
fn measure(dir: &Path, world: &Bench, texts: &[(String, Option<u64>)]) -> FactsReport {
    let corpus = dir.join("synthetic");
    let mut writer = CorpusWriter::create(&corpus).unwrap();
    for (id, (text, seed)) in (0..).zip(texts) {
        let mut meta = Map::new();
        if let Some(seed) = seed {
            meta.insert("seed_id".to_owned(), format!("{seed:016x}").into());
        }
        writer.push(&Document { id, text: text.clone(), meta }).unwrap();
    }
    writer.finish().unwrap();
    let bench = Bench::new(&dir.join("run")).input("synthetic", &corpus);
    let bench = bench.input("world", &world.out("world"));
    bench.run::<MeasureFacts>(&json!({})).unwrap();
    FactsReport::open(&bench.out("facts")).unwrap()
}

fn rate(rate: Option<&Rate>) -> (u64, u64) {
    rate.map_or((0, 0), |rate| (rate.k, rate.n))
}

/// Documents whose faults are known one by one come back in every figure.
#[test]
fn planted_faults_are_counted_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let world_bench = world(dir.path());
    let truth = Truth::open(&world_bench.out("world")).unwrap();
    let world = &truth.world;
    let single: Vec<&DocumentRow> =
        truth.documents.iter().filter(|row| world.is_single(row.concept)).collect();
    // Right, in another genre: the first unpaired pair's d2 for its own d1.
    let pair = &truth.pairs[0];
    let of_pair = truth.documents.iter().find(|row| row.text == pair.d1).unwrap();
    let attribute = 0;
    let right = world.value(of_pair.concept, attribute).to_owned();
    let wrong = world.values[attribute].iter().find(|value| **value != right).unwrap();
    let swap = |word| if word == right { wrong.as_str() } else { word };
    let wrong_value = pair.d2.split(' ').map(swap).collect::<Vec<_>>().join(" ");
    let n_wrong = pair.d2.split(' ').filter(|word| *word == right).count() as u64;
    let other = single.iter().find(|row| row.concept != of_pair.concept).unwrap();
    let nobody = pair.d2.replace(&world.name(of_pair.concept), "nobody here");
    let id = Some(of_pair.id);
    let texts = [
        (pair.d2.clone(), id),
        (wrong_value, id),
        (other.text.clone(), id),
        (pair.d1.clone(), id),
        (nobody, id),
        (pair.d2.clone(), None),
    ];
    let found = measure(dir.path(), &world_bench, &texts);
    let facts = &found.groups["unpaired"];
    assert_eq!(facts.n_documents, 5);
    assert_eq!(rate(facts.wrong_name.as_ref()), (2, 5));
    assert_eq!(rate(facts.relevant.as_ref()), (3, 5));
    assert_eq!(rate(Some(&facts.unknown_name)), (1, 5));
    // Each of three documents that name the concept has four values.
    assert_eq!(rate(facts.fact_error.as_ref()), (n_wrong, 12));
    assert_eq!(rate(facts.fact_error_in_seed.as_ref()), (n_wrong, 12));
    assert_eq!(rate(facts.fact_error_not_in_seed.as_ref()), (0, 0));
    assert_eq!(rate(Some(&facts.named_fact_error)), (n_wrong, 16));
    assert_eq!(rate(Some(&facts.documents_with_error)), (1, 5));
    assert_eq!(rate(facts.copied.as_ref()), (1, 5));
    assert_eq!(rate(Some(&facts.regurgitated)), (2, 5));
    assert_eq!(rate(Some(&facts.possible)), (4, 5));
    let n_new = 3 + u64::from(other.genre != of_pair.genre);
    assert_eq!(rate(facts.new_genre.as_ref()), (n_new, 5));
    assert!((facts.facts_per_document - 3.0).abs() < 1e-12);
    let unseeded = &found.groups["unseeded"];
    assert!(unseeded.wrong_name.is_none() && unseeded.copied.is_none());
    assert_eq!(rate(Some(&unseeded.named_fact_error)), (0, 4));
}

#[test]
fn facts_beyond_the_seed_are_counted_apart() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(&dir.path().join("world"));
    let spec = json!({
        "style": "rich", "n_concepts": 10, "n_new_concepts": 0, "single_share": 0.0,
        "n_attributes": 6, "name_parts": 6, "pool_factor": 1, "n_validation": 2, "n_heldout": 2,
        "n_questions": 2, "n_pairs": 12,
    });
    bench.run::<crate::generate_world::GenerateWorld>(&spec).unwrap();
    let truth = Truth::open(&bench.out("world")).unwrap();
    let texts: Vec<(String, Option<u64>)> = truth
        .pairs
        .iter()
        .map(|pair| {
            let seed = truth.documents.iter().find(|row| row.text == pair.d1).unwrap();
            (pair.d2.clone(), Some(seed.id))
        })
        .collect();
    let facts = &measure(dir.path(), &bench, &texts).groups["paired"];
    let (_, n_in_seed) = rate(facts.fact_error_in_seed.as_ref());
    let (_, n_beyond) = rate(facts.fact_error_not_in_seed.as_ref());
    assert!(n_in_seed > 0 && n_beyond > 0);
    assert_eq!(rate(facts.fact_error.as_ref()), (0, n_in_seed + n_beyond));
    assert_eq!(rate(Some(&facts.possible)), (12, 12));
}

#[test]
fn seeds_of_another_world_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let corpus = dir.path().join("synthetic");
    let mut writer = CorpusWriter::create(&corpus).unwrap();
    let mut meta = Map::new();
    meta.insert("seed_id".to_owned(), "00000000000000ff".into());
    writer.push(&Document { id: 1, text: "a".to_owned(), meta }).unwrap();
    writer.finish().unwrap();
    let bench = Bench::new(&dir.path().join("run")).input("synthetic", &corpus);
    let error =
        bench.input("world", &world.out("world")).run::<MeasureFacts>(&json!({})).unwrap_err();
    assert!(error.message.contains("not among the training documents of the world"), "{error}");
}
