//! Makes a corpus of a closed world: concepts with attributes, told in several genres.
//!
//! Every concept has a name and a value for each attribute; a document names one concept and states
//! facts of it in the manner of one genre, restates two of them, and adds some noise. Documents of
//! one concept are therefore related, and which ones are is known (`meta.concept`, `meta.genre`).
//! Words are pseudo-words made of syllables. Nothing in it is about the real world: it shows that a
//! pipeline works, not that a method does.

pub(crate) mod words;

use engine::task::{
    Context, Determinism, Estimate, Facts, Failure, Inputs, Outputs, ParamError, Port, Predicted,
    Task,
};
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::corpus::{CorpusWriter, Document, document_id};
use crate::cost::{fact, figure};
use words::{GENRES, Genre, World};

/// Makes a corpus of a closed world.
pub struct GenerateCorpus;

/// Params of `generate_corpus`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Concepts in the world.
    #[serde(default = "default_n_concepts")]
    pub n_concepts: u64,
    /// Documents of each concept that has several.
    #[serde(default = "default_documents_per_concept")]
    pub documents_per_concept: u64,
    /// Share of the concepts that have one document only, between 0 and 1.
    #[serde(default)]
    pub single_share: f64,
    /// Genres in use, 1 to 3: profile, news, letter.
    #[serde(default = "default_n_genres")]
    pub n_genres: u64,
    /// Attributes of each concept, 2 to 6.
    #[serde(default = "default_n_attributes")]
    pub n_attributes: u64,
    /// Values that each attribute can have.
    #[serde(default = "default_n_values")]
    pub n_values: u64,
    /// Chance of a sentence without facts after each fact, between 0 and 1.
    #[serde(default = "default_noise")]
    pub noise: f64,
    /// Seed of the world: names and facts.
    #[serde(default)]
    pub seed: u64,
    /// Seed of the documents: two streams of one world tell the same facts in other words.
    #[serde(default)]
    pub stream: u64,
}

fn default_n_concepts() -> u64 {
    100
}
fn default_documents_per_concept() -> u64 {
    4
}
fn default_n_genres() -> u64 {
    3
}
fn default_n_attributes() -> u64 {
    6
}
fn default_n_values() -> u64 {
    8
}
fn default_noise() -> f64 {
    0.2
}

impl Task for GenerateCorpus {
    const KIND: &'static str = "generate_corpus";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "makes text of a closed world of concepts, for tests and demos";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[];
    const OUTPUTS: &'static [Port] =
        &[Port::one("corpus", "corpus", "documents with `concept` and `genre` in their meta")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        let in_range = |path: &str, value: u64, min: u64, max: u64| {
            let message = format!("{value} is not in {min}..={max}");
            if (min..=max).contains(&value) { Ok(()) } else { Err(ParamError::new(path, message)) }
        };
        in_range("n_concepts", params.n_concepts, 1, World::MAX_CONCEPTS)?;
        in_range("documents_per_concept", params.documents_per_concept, 1, 1 << 32)?;
        in_range("n_genres", params.n_genres, 1, GENRES.len() as u64)?;
        in_range("n_attributes", params.n_attributes, 2, World::ATTRIBUTES.len() as u64)?;
        in_range("n_values", params.n_values, 2, 100)?;
        for (path, share) in [("single_share", params.single_share), ("noise", params.noise)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(ParamError::new(path, format!("{share} is not between 0 and 1")));
            }
        }
        Ok(())
    }

    fn cost(params: &Params, _: &Predicted) -> Estimate {
        let n_single = (params.single_share * params.n_concepts as f64).round();
        let n_several = params.n_concepts as f64 - n_single;
        let documents = n_single + n_several * params.documents_per_concept as f64;
        Estimate::unknown()
            .figure(figure::DOCUMENTS, documents)
            .output("corpus", Facts::default().with(fact::DOCUMENTS, documents))
    }

    fn run(ctx: &mut Context, params: &Params, _: &Inputs) -> Result<Outputs, Failure> {
        let world = World::new(params.seed, params.n_attributes, params.n_values);
        let n_single = (params.single_share * params.n_concepts as f64).round() as u64;
        let is_single = single_concepts(params, n_single);
        let mut writer = CorpusWriter::create(&ctx.out("corpus")?)?;
        let stream = Philox::new(params.seed, "documents").fork(params.stream);
        // Rounds over the concepts keep documents of one concept apart.
        for round in 0..params.documents_per_concept {
            for concept in 0..params.n_concepts {
                if concept % 1024 == 0 {
                    ctx.check_cancelled()?;
                }
                let single = is_single[concept as usize];
                if single && round > 0 {
                    continue;
                }
                let mut draw = Draw::new(stream.fork(concept).fork(round));
                let genre = if single {
                    draw.below(params.n_genres)
                } else {
                    (concept + round) % params.n_genres
                };
                let genre = &GENRES[genre as usize];
                let text = render(&world, concept, genre, params.noise, &mut draw);
                writer.push(&document(params, concept, round, genre, text))?;
            }
        }
        let summary = writer.finish()?;
        Ok(Outputs::default()
            .metric("n_documents", summary.n_documents as f64)
            .metric("text_bytes", summary.text_bytes as f64))
    }
}

fn single_concepts(params: &Params, n_single: u64) -> Vec<bool> {
    let n_concepts = params.n_concepts as usize;
    let mut is_single = vec![false; n_concepts];
    let order = Philox::new(params.seed, "single").permutation(n_concepts);
    for &concept in &order[..n_single as usize] {
        is_single[concept] = true;
    }
    is_single
}

fn document(params: &Params, concept: u64, round: u64, genre: &Genre, text: String) -> Document {
    let place = format!("generated/{}/{}/{concept}", params.seed, params.stream);
    let mut meta = Map::new();
    meta.insert("concept".to_owned(), concept.into());
    meta.insert("genre".to_owned(), genre.name.into());
    Document { id: document_id(&place, round), text, meta }
}

/// Random numbers of one document, taken in order.
pub(crate) struct Draw {
    rng: Philox,
    next: u64,
}

impl Draw {
    /// The numbers of `rng` from the first.
    pub(crate) fn new(rng: Philox) -> Self {
        Self { rng, next: 0 }
    }

    /// An integer below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next += 1;
        self.rng.below(self.next, n)
    }

    /// A number in `[0, 1)`.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.next += 1;
        self.rng.uniform(self.next)
    }

    /// True with this chance.
    pub(crate) fn chance(&mut self, chance: f64) -> bool {
        self.uniform() < chance
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

fn render(world: &World, concept: u64, genre: &Genre, noise: f64, draw: &mut Draw) -> String {
    let name = world.name(concept);
    let mut sentences = vec![draw.pick(genre.openings).replace("{name}", &name)];
    // At least half of the attributes, in random order.
    let n_attributes = world.n_attributes();
    let mut order: Vec<u64> = (0..n_attributes).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, draw.below(i as u64 + 1) as usize);
    }
    let n_min = n_attributes.div_ceil(2).max(2);
    order.truncate((n_min + draw.below(n_attributes - n_min + 1)) as usize);
    let facts: Vec<(&str, &str)> = order
        .iter()
        .map(|&attribute| (World::attribute(attribute), world.value(concept, attribute)))
        .collect();
    for (attribute, value) in &facts {
        let fact = draw.pick(genre.facts);
        let fact = fact.replace("{name}", &name).replace("{attribute}", attribute);
        sentences.push(fact.replace("{value}", value));
        if draw.chance(noise) {
            let n_words = 2 + draw.below(3);
            let words: Vec<&str> = (0..n_words)
                .map(|_| {
                    let (topic, filler) = (draw.chance(0.7), draw.below(World::N_FILLERS));
                    let n = draw.below(World::N_TOPICS);
                    if topic { world.topic(concept, n) } else { world.filler(filler) }
                })
                .collect();
            sentences.push(genre.noise.replace("{words}", &words.join(" ")));
        }
    }
    // Restating facts within a document is what teaches a small model to copy a value from context,
    // which is what a synthesizer does across documents.
    let ((a, b), (c, d)) = (facts[0], facts[facts.len() - 1]);
    let recap = genre.recap.replace("{name}", &name);
    let recap = recap.replace("{a}", a).replace("{b}", b).replace("{c}", c).replace("{d}", d);
    sentences.push(recap);
    sentences.push(draw.pick(genre.closings).replace("{name}", &name));
    sentences.join(genre.separator)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use engine::task::testbed::Bench;
    use serde_json::json;

    use super::*;
    use crate::corpus::Corpus;

    fn generate(params: &serde_json::Value) -> Vec<Document> {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench::new(dir.path());
        bench.run::<GenerateCorpus>(params).unwrap();
        Corpus::open(&bench.out("corpus")).unwrap().documents().map(Result::unwrap).collect()
    }

    #[test]
    fn documents_of_a_concept_agree() {
        let documents = generate(&json!({"n_concepts": 30, "documents_per_concept": 5}));
        assert_eq!(documents.len(), 150);
        let ids: BTreeSet<u64> = documents.iter().map(|document| document.id).collect();
        assert_eq!(ids.len(), 150);
        let world = World::new(0, 6, 8);
        for document in &documents {
            let concept = document.meta["concept"].as_u64().unwrap();
            assert!(document.text.contains(&world.name(concept)), "{}", document.text);
            // A value that occurs is the concept's own.
            for attribute in 0..6 {
                for value in (0..8).map(|v| world.any_value(attribute, v)) {
                    let told =
                        document.text.split(|c: char| !c.is_alphabetic()).any(|w| w == value);
                    assert!(!told || value == world.value(concept, attribute));
                }
            }
        }
        let genres: BTreeSet<&str> =
            documents.iter().map(|document| document.meta["genre"].as_str().unwrap()).collect();
        assert_eq!(genres.len(), 3);
    }

    #[test]
    fn streams_tell_one_world_in_other_words() {
        let first = generate(&json!({"n_concepts": 20}));
        let second = generate(&json!({"n_concepts": 20, "stream": 1}));
        assert!(first.iter().zip(&second).all(|(a, b)| a.text != b.text && a.id != b.id));
        assert!(first.iter().zip(&second).all(|(a, b)| a.meta["concept"] == b.meta["concept"]));
        assert_eq!(first, generate(&json!({"n_concepts": 20})));
    }

    #[test]
    fn some_concepts_have_one_document() {
        let documents = generate(&json!({
            "n_concepts": 50, "documents_per_concept": 3, "single_share": 0.6,
        }));
        let mut counts = BTreeMap::new();
        for document in &documents {
            *counts.entry(document.meta["concept"].as_u64().unwrap()).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 50);
        assert_eq!(counts.values().filter(|&&n| n == 1).count(), 30);
        assert!(counts.values().all(|&n| n == 1 || n == 3));
    }

    #[test]
    fn params_out_of_range_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let run = |params| Bench::new(dir.path()).run::<GenerateCorpus>(&params).unwrap_err();
        assert!(run(json!({"n_concepts": 0})).message.contains("0 is not in 1..="));
        assert!(run(json!({"noise": 2.0})).message.contains("not between 0 and 1"));
        assert!(run(json!({"n_genres": 4})).message.contains("4 is not in 1..=3"));
    }
}
