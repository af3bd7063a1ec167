//! A closed world of concepts, with exact probabilities: what the text of `generate_world` is about.
//!
//! A concept has a name of two words and a value for each attribute. A document names one concept and
//! states facts of it in the manner of one genre; given the concept, documents are independent. So
//! P(c), P(d | c), the posterior P(c | d) and P(d2 | d1) are known exactly (arXiv 2509.15248, section
//! 5, takes this as the model of text), and so is whether a generated document is right.
//!
//! Two styles. *Brief*: a document states every fact, and several documents of a concept are in
//! different genres. *Rich*: a document states half of the facts or more, with asides; genres are
//! independent.

mod grammar;
mod probability;
#[cfg(test)]
mod tests;
mod text;
mod truth;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

use engine::task::ParamError;
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::write_json;
use crate::format::Error;
use crate::generate_corpus::words::Words as PseudoWords;

pub use grammar::Genre;
pub(crate) use probability::{GenreLaw, Posterior};
pub(crate) use text::Reader;
pub use truth::{DocumentRow, HeldoutRow, Kind, PairRow, QuestionRow, Truth};
pub(crate) use words::{Words, token_nll};

/// The file in the artifact's folder.
const FILE: &str = "world.json";
const VERSION: u32 = 1;
const ATTRIBUTES: [&str; 8] =
    ["color", "metal", "animal", "fruit", "river", "tool", "stone", "dance"];
const N_TOPIC_WORDS: u64 = 60;
const N_FILLER_WORDS: u64 = 20;
/// Topic words of a concept.
pub(crate) const N_TOPICS: usize = 3;

/// How documents are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// Every fact once and one of them again; several documents of a concept are in different genres.
    #[default]
    Brief,
    /// Half of the facts or more, two of them again, and asides; genres are independent.
    Rich,
}

/// What a world is made of. The defaults are a world in which most concepts are told in one document
/// only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// How documents are written: `brief` or `rich`.
    #[serde(default)]
    pub style: Style,
    /// Concepts that are told of.
    #[serde(default = "default_n_concepts")]
    pub n_concepts: u64,
    /// Concepts beyond those that only held-out documents tell of.
    #[serde(default = "default_n_new_concepts")]
    pub n_new_concepts: u64,
    /// Share of the concepts that are told of in one document only, between 0 and 1.
    #[serde(default = "default_single_share")]
    pub single_share: f64,
    /// Documents of every other concept; in style `brief` at most one of each of the three genres.
    #[serde(default = "default_documents_per_concept")]
    pub documents_per_concept: u64,
    /// Attributes of each concept, 2 to 8.
    #[serde(default = "default_n_attributes")]
    pub n_attributes: u64,
    /// Values that each attribute can have.
    #[serde(default = "default_n_values")]
    pub n_values: u64,
    /// First names, and as many last names.
    #[serde(default = "default_name_parts")]
    pub name_parts: u64,
    /// Concepts that share a name. Above 1 a document's facts tell which one it is about.
    #[serde(default = "default_one")]
    pub concepts_per_name: u64,
    /// Documents of the oracle's pool, in multiples of the training documents; no text of it is in
    /// any other output, and none is there twice.
    #[serde(default = "default_pool_factor")]
    pub pool_factor: u64,
    /// Documents to choose checkpoints by.
    #[serde(default = "default_n_items")]
    pub n_validation: u64,
    /// Held-out documents of each kind.
    #[serde(default = "default_n_items")]
    pub n_heldout: u64,
    /// Questions of each kind.
    #[serde(default = "default_n_questions")]
    pub n_questions: u64,
    /// Pairs of a training document and a new one about the same concept, of each kind.
    #[serde(default = "default_n_items")]
    pub n_pairs: u64,
    /// Seed of everything.
    #[serde(default)]
    pub seed: u64,
}

fn default_n_concepts() -> u64 {
    600
}
fn default_n_new_concepts() -> u64 {
    40
}
fn default_single_share() -> f64 {
    0.6
}
fn default_documents_per_concept() -> u64 {
    3
}
fn default_n_attributes() -> u64 {
    3
}
fn default_n_values() -> u64 {
    10
}
fn default_name_parts() -> u64 {
    40
}
fn default_one() -> u64 {
    1
}
fn default_pool_factor() -> u64 {
    26
}
fn default_n_items() -> u64 {
    300
}
fn default_n_questions() -> u64 {
    600
}

impl Spec {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first value out of range, with the range.
    pub fn check(&self) -> Result<(), ParamError> {
        let n_genres = 3;
        let names = self.name_parts.saturating_mul(self.name_parts);
        let concepts_max = names.saturating_mul(self.concepts_per_name).min(1 << 20);
        let documents_max = if self.style == Style::Brief { n_genres } else { 1 << 16 };
        for (path, value, min, max) in [
            ("name_parts", self.name_parts, 2, 1000),
            ("concepts_per_name", self.concepts_per_name, 1, 1000),
            ("n_concepts", self.n_concepts, 2, concepts_max),
            (
                "n_new_concepts",
                self.n_new_concepts,
                0,
                concepts_max.saturating_sub(self.n_concepts),
            ),
            ("documents_per_concept", self.documents_per_concept, 1, documents_max),
            ("n_attributes", self.n_attributes, 2, ATTRIBUTES.len() as u64),
            ("n_values", self.n_values, 2, 100),
            ("pool_factor", self.pool_factor, 0, 1 << 20),
            ("n_validation", self.n_validation, 1, 1 << 24),
            ("n_heldout", self.n_heldout, 1, 1 << 24),
            ("n_questions", self.n_questions, 1, 1 << 24),
            ("n_pairs", self.n_pairs, 1, 1 << 24),
        ] {
            if !(min..=max).contains(&value) {
                return Err(ParamError::new(path, format!("{value} is not in {min}..={max}")));
            }
        }
        if !(0.0..=1.0).contains(&self.single_share) {
            let share = self.single_share;
            return Err(ParamError::new("single_share", format!("{share} is not between 0 and 1")));
        }
        Ok(())
    }
}

/// One concept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concept {
    /// Its first and last name, as places in the lists.
    pub name: [usize; 2],
    /// Its value of each attribute, as places in the lists.
    pub values: Vec<usize>,
    /// Its topic words, as places in the list; none in style `brief`.
    pub topics: Vec<usize>,
    /// The genre of each training document; none for a concept that only held-out documents tell of.
    pub genres: Vec<usize>,
}

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A first name.
    First(usize),
    /// A last name.
    Last(usize),
    /// An attribute.
    Attribute(usize),
    /// A value, after the attribute that it belongs to.
    Value(usize, usize),
    /// A topic word.
    Topic(usize),
    /// A word without meaning.
    Filler(usize),
    /// A word of templates.
    Plain,
}

/// A world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct World {
    /// Format version.
    pub version: u32,
    /// What it was made of.
    pub spec: Spec,
    /// The genres.
    pub genres: Vec<Genre>,
    /// First names.
    pub first_names: Vec<String>,
    /// Last names.
    pub last_names: Vec<String>,
    /// Attributes.
    pub attributes: Vec<String>,
    /// Values of each attribute.
    pub values: Vec<Vec<String>>,
    /// Words that a concept's asides prefer.
    pub topics: Vec<String>,
    /// Words of any aside.
    pub fillers: Vec<String>,
    /// The concepts; those without training documents come last.
    pub concepts: Vec<Concept>,
}

impl World {
    /// Makes the world of a spec that was checked.
    pub(crate) fn new(spec: &Spec) -> Self {
        let genres = grammar::genres(spec.style);
        let attributes =
            ATTRIBUTES[..spec.n_attributes as usize].iter().map(|&word| word.to_owned());
        let attributes = attributes.collect();
        let plain = genres.iter().flat_map(Genre::templates).flat_map(|text| text.split(' '));
        let taken = plain.chain(ATTRIBUTES).map(str::to_owned);
        let mut words = PseudoWords::without(spec.seed, taken);
        let values = (0..spec.n_attributes).map(|_| words.take(spec.n_values, 2)).collect();
        let (topics, fillers) = match spec.style {
            Style::Brief => (Vec::new(), Vec::new()),
            Style::Rich => (words.take(N_TOPIC_WORDS, 2), words.take(N_FILLER_WORDS, 1)),
        };
        let [first_names, last_names] = [(); 2].map(|()| words.take(spec.name_parts, 3));
        Self {
            version: VERSION,
            spec: spec.clone(),
            concepts: concepts(spec, genres.len(), topics.len()),
            genres,
            first_names,
            last_names,
            attributes,
            values,
            topics,
            fillers,
        }
    }

    /// Reads the `world` artifact in `dir`.
    ///
    /// # Errors
    /// When `world.json` cannot be read or is of a newer version.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let damaged = |error: serde_json::Error| Error::damaged(&path, error.to_string());
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
        let found = value["version"].as_u64().unwrap_or(0);
        if found > u64::from(VERSION) {
            let (what, found) = ("world".to_owned(), u32::try_from(found).unwrap_or(u32::MAX));
            return Err(Error::Newer { path, what, found, supported: VERSION });
        }
        serde_json::from_value(value).map_err(damaged)
    }

    /// Writes `world.json` into `dir`.
    ///
    /// # Errors
    /// When writing fails.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        write_json(&dir.join(FILE), self)
    }

    /// Every word that a document can have, with what it says.
    pub(crate) fn lexicon(&self) -> BTreeMap<&str, Meaning> {
        fn add<'a>(
            words: &mut BTreeMap<&'a str, Meaning>,
            list: &'a [String],
            meaning: impl Fn(usize) -> Meaning,
        ) {
            words.extend(list.iter().enumerate().map(|(i, word)| (word.as_str(), meaning(i))));
        }
        let templates = self.genres.iter().flat_map(Genre::templates);
        let plain = templates.flat_map(|text| text.split(' ')).filter(|word| !is_slot(word));
        let mut words: BTreeMap<&str, Meaning> = plain.map(|word| (word, Meaning::Plain)).collect();
        add(&mut words, &self.first_names, Meaning::First);
        add(&mut words, &self.last_names, Meaning::Last);
        add(&mut words, &self.attributes, Meaning::Attribute);
        for (attribute, values) in self.values.iter().enumerate() {
            add(&mut words, values, |value| Meaning::Value(attribute, value));
        }
        add(&mut words, &self.topics, Meaning::Topic);
        add(&mut words, &self.fillers, Meaning::Filler);
        words
    }

    /// The two words of a concept's name.
    pub(crate) fn name(&self, concept: usize) -> String {
        let [first, last] = self.concepts[concept].name;
        format!("{} {}", self.first_names[first], self.last_names[last])
    }

    /// The word of a concept's value.
    pub(crate) fn value(&self, concept: usize, attribute: usize) -> &str {
        &self.values[attribute][self.concepts[concept].values[attribute]]
    }

    /// Concepts with training documents.
    pub(crate) fn told(&self) -> &[Concept] {
        &self.concepts[..self.spec.n_concepts as usize]
    }

    /// Whether the concept has exactly one training document.
    pub(crate) fn is_single(&self, concept: usize) -> bool {
        self.concepts[concept].genres.len() == 1
    }

    /// How many facts a document states, at least and at most.
    pub(crate) fn n_facts(&self) -> (usize, usize) {
        let n_attributes = self.attributes.len();
        match self.spec.style {
            Style::Brief => (n_attributes, n_attributes),
            Style::Rich => (n_attributes.div_ceil(2).max(2), (n_attributes - 1).max(2)),
        }
    }

    /// The genre of a document about the concept of another in `genre`.
    pub(crate) fn genre_of_pair(&self, genre: usize) -> GenreLaw {
        match self.spec.style {
            Style::Brief => GenreLaw::Not(genre),
            Style::Rich => GenreLaw::Any,
        }
    }
}

/// Whether a template's word stands for others.
fn is_slot(word: &str) -> bool {
    word.starts_with('{')
}

/// Draws the concepts.
fn concepts(spec: &Spec, n_genres: usize, n_topic_words: usize) -> Vec<Concept> {
    let n_concepts = (spec.n_concepts + spec.n_new_concepts) as usize;
    let parts = spec.name_parts as usize;
    let names = Philox::new(spec.seed, "world names").permutation(parts * parts);
    let n_single = (spec.single_share * spec.n_concepts as f64).round() as usize;
    let order = Philox::new(spec.seed, "world single").permutation(spec.n_concepts as usize);
    let mut n_documents = vec![spec.documents_per_concept as usize; spec.n_concepts as usize];
    for &concept in &order[..n_single] {
        n_documents[concept] = 1;
    }
    n_documents.resize(n_concepts, 0);
    let rng = Philox::new(spec.seed, "world concepts");
    let draw = |(concept, &n_documents): (usize, &usize)| {
        let rng = rng.fork(concept as u64);
        let name = names[concept / spec.concepts_per_name as usize];
        let value = |i| rng.fork(0).below(i, spec.n_values) as usize;
        let topics = rng.fork(1).permutation(n_topic_words);
        let genres = match spec.style {
            Style::Brief => {
                let mut genres = rng.fork(2).permutation(n_genres);
                genres.truncate(n_documents);
                genres
            }
            Style::Rich => (0..n_documents as u64)
                .map(|i| rng.fork(2).below(i, n_genres as u64) as usize)
                .collect(),
        };
        Concept {
            name: [name / parts, name % parts],
            values: (0..spec.n_attributes).map(value).collect(),
            topics: topics.into_iter().take(N_TOPICS).collect(),
            genres,
        }
    };
    n_documents.iter().enumerate().map(draw).collect()
}
