use std::collections::BTreeSet;

use kernels::philox::Philox;
use serde::Deserialize;
use serde_json::json;

use super::text::{Draft, Reader};
use super::*;
use crate::generate_corpus::Draw;

fn world(spec: serde_json::Value) -> World {
    let spec: Spec = serde_json::from_value(spec).unwrap();
    spec.check().unwrap();
    World::new(&spec)
}

fn rich() -> World {
    world(json!({
        "style": "rich", "n_concepts": 60, "single_share": 0.0, "documents_per_concept": 4,
        "n_attributes": 6, "n_values": 8, "name_parts": 12, "n_new_concepts": 5,
    }))
}

#[test]
fn worlds_read_what_they_write() {
    for world in [world(json!({"n_concepts": 60, "name_parts": 12})), rich()] {
        let reader = Reader::new(&world);
        let rng = Philox::new(1, "test");
        for i in 0..400 {
            let mut draw = Draw::new(rng.fork(i));
            let concept = draw.below(world.concepts.len() as u64) as usize;
            let genre = draw.below(3) as usize;
            let draft = world.draft(concept, genre, &mut draw);
            let text = world.write(concept, &draft);
            let reading = reader.read(&text).unwrap_or_else(|| panic!("cannot read: {text}"));
            assert_eq!(reading.draft, draft, "{text}");
            assert_eq!(reading.name, world.concepts[concept].name);
            let facts = reader.facts(&text);
            assert_eq!((facts.name, facts.genre), (Some(reading.name), Some(genre)), "{text}");
            for (attribute, value) in facts.values {
                assert_eq!(world.concepts[concept].values[attribute], value, "{text}");
            }
            // Any word changed for another makes a text that the world gives in another way or not.
            let other = text.replacen(' ', " . ", 1);
            assert!(reader.read(&other).is_none(), "{other}");
        }
    }
}

#[test]
fn words_have_one_meaning() {
    let world = rich();
    let plain: BTreeSet<&str> = world
        .genres
        .iter()
        .flat_map(Genre::templates)
        .flat_map(|text| text.split(' '))
        .filter(|word| !is_slot(word))
        .collect();
    let lists = [&world.first_names, &world.last_names, &world.attributes, &world.topics];
    let n_listed: usize = lists.iter().map(|list| list.len()).sum();
    let n_values: usize = world.values.iter().map(Vec::len).sum();
    let n_words = plain.len() + n_listed + n_values + world.fillers.len();
    assert_eq!(world.lexicon().len(), n_words);
}

#[test]
fn questions_end_before_a_value_that_could_follow() {
    let world = rich();
    let rng = Philox::new(2, "test");
    let lexicon = world.lexicon();
    for i in 0..200 {
        let cloze = world.cloze(3, (i % 3) as usize, &mut Draw::new(rng.fork(i)));
        let words: Vec<Meaning> = cloze.prompt.split(' ').map(|word| lexicon[word]).collect();
        assert!(words.contains(&Meaning::Attribute(cloze.attribute)), "{}", cloze.prompt);
        assert!(!words.iter().any(|meaning| matches!(meaning, Meaning::Value(..))));
    }
}

/// Every draft of a concept in a world without asides.
fn drafts(world: &World) -> Vec<Draft> {
    let n_attributes = world.attributes.len();
    let orders: Vec<[usize; 2]> =
        (0..n_attributes).flat_map(|a| (0..n_attributes).map(move |b| [a, b])).collect();
    let mut drafts = Vec::new();
    for (genre, kind) in world.genres.iter().enumerate() {
        for opening in 0..kind.openings.len() {
            for &[a, b] in orders.iter().filter(|[a, b]| a != b) {
                for templates in 0..kind.facts.len() * kind.facts.len() {
                    let [s, t] = [templates / kind.facts.len(), templates % kind.facts.len()];
                    drafts.extend([a, b].map(|recap| Draft {
                        genre,
                        opening,
                        facts: vec![(a, s), (b, t)],
                        asides: vec![vec![], vec![]],
                        recap: vec![recap],
                        closing: None,
                    }));
                }
            }
        }
    }
    drafts
}

#[test]
fn probabilities_of_all_texts_sum_to_one() {
    let world = world(json!({
        "n_concepts": 8, "n_attributes": 2, "n_values": 2, "name_parts": 2, "concepts_per_name": 4,
        "n_new_concepts": 0, "single_share": 0.5,
    }));
    let (reader, posterior) = (Reader::new(&world), Posterior::new(&world));
    let mut texts = BTreeSet::new();
    for concept in 0..8 {
        texts.extend(drafts(&world).iter().map(|draft| world.write(concept, draft)));
    }
    let readings: Vec<_> = texts.iter().map(|text| reader.read(text).unwrap()).collect();
    let check = |sum: f64| assert!((sum - 1.0).abs() < 1e-12, "{sum}");
    check(readings.iter().map(|text| posterior.ln_marginal(text).exp()).sum());
    for concept in 0..8 {
        for law in [GenreLaw::Any, GenreLaw::Not(1)] {
            let terms = readings.iter().map(|text| posterior.ln_likelihood(text, concept, law));
            check(terms.map(f64::exp).sum());
        }
    }
    for d1 in readings.iter().step_by(17) {
        check(posterior.of(d1).iter().map(|(_, p)| p).sum());
        check(readings.iter().map(|d2| posterior.ln_conditional(d1, d2).exp()).sum());
    }
}

#[derive(Deserialize)]
struct Golden {
    world: World,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    d1: String,
    d2: String,
    posterior: Vec<f64>,
    marginal: f64,
    conditional: f64,
}

/// Made by `tests/goldens/make_world.py`, which fills in templates until a text comes out.
#[test]
fn bayes_agrees_with_enumeration() {
    let mut n_open = 0;
    for golden in [
        include_str!("../../tests/goldens/world_brief.json"),
        include_str!("../../tests/goldens/world_rich.json"),
    ] {
        let Golden { world, cases } = serde_json::from_str(golden).unwrap();
        assert!(cases.len() >= 16);
        let (reader, posterior) = (Reader::new(&world), Posterior::new(&world));
        for case in cases {
            let [d1, d2] = [&case.d1, &case.d2].map(|text| reader.read(text).unwrap());
            let mut found = vec![0.0; world.concepts.len()];
            for (concept, p) in posterior.of(&d1) {
                found[concept] = p;
            }
            for (found, expected) in found.iter().zip(&case.posterior) {
                assert!((found - expected).abs() < 1e-12, "{} {found} {expected}", case.d1);
            }
            n_open += usize::from(case.posterior.iter().all(|&p| p < 0.999));
            let close = |ln: f64, p: f64| assert!((ln.exp() / p - 1.0).abs() < 1e-9, "{ln} {p}");
            close(posterior.ln_marginal(&d2), case.marginal);
            close(posterior.ln_conditional(&d1, &d2), case.conditional);
        }
    }
    assert!(n_open >= 8, "only {n_open} documents leave their concept open");
}

#[test]
fn specs_out_of_range_are_refused() {
    let check = |spec: serde_json::Value, path: &str, message: &str| {
        let error = serde_json::from_value::<Spec>(spec).unwrap().check().unwrap_err();
        assert_eq!(error.path, path);
        assert!(error.message.contains(message), "{error}");
    };
    check(json!({"n_concepts": 1601}), "n_concepts", "1601 is not in 2..=1600");
    check(json!({"n_concepts": 1590}), "n_new_concepts", "40 is not in 0..=10");
    check(json!({"documents_per_concept": 4}), "documents_per_concept", "is not in 1..=3");
    check(json!({"single_share": 1.5}), "single_share", "1.5 is not between 0 and 1");
    check(json!({"n_attributes": 9}), "n_attributes", "9 is not in 2..=8");
}
