//! Measures a synthetic corpus against the truth of a world, without a judge.
//!
//! - *wrong name*: the document names another concept than its seed, or none. Its complement is
//!   relevance.
//! - *unknown name*: no concept that training documents tell of has that name.
//! - *fact error*: a value that is not the concept's; over mentions, for documents that name their
//!   seed's concept, and apart for attributes that the seed states and does not state. *Named fact
//!   error* is that against whatever concept the document names.
//! - *new genre*: another genre than the seed's.
//! - *copied*, *regurgitated*: Jaccard similarity of at least 0.8 over 5-word windows with the seed,
//!   with any training document.
//! - *possible*: the world could have written the document, word for word.
//!
//! Documents are split by whether their seed is the only document of its concept (`unpaired`), so that
//! no true pair has it. Intervals of mentions take mentions of one document as independent, which they
//! are not quite.

mod copies;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::Path;

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, Port, Task};
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, Document, read_json, write_json};
use crate::format::Error;
use crate::measure_quality::Rate;
use crate::rows;
use crate::world::{DocumentRow, Posterior, Reader, Truth};
use copies::{Copies, is_copy};

const FILE: &str = "facts.json";
const ITEMS_FILE: &str = "items.jsonl.zst";

/// Measures a synthetic corpus against the truth.
pub struct MeasureFacts;

/// Params of `measure_facts`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Documents measured in each group, drawn at random.
    #[serde(default = "default_n_items")]
    pub n_items: NonZeroU64,
    /// Seed of the sample.
    #[serde(default)]
    pub seed: u64,
}

fn default_n_items() -> NonZeroU64 {
    const { NonZeroU64::new(1500).expect("it is not 0") }
}

/// The figures of one group of documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Documents measured.
    pub n_documents: u64,
    /// Names its seed's concept; `None` without seeds, as the others are.
    pub relevant: Option<Rate>,
    /// Names another concept than its seed's, or none.
    pub wrong_name: Option<Rate>,
    /// Names no concept of the world.
    pub unknown_name: Rate,
    /// Values that are wrong for the seed's concept, in documents that name it.
    pub fact_error: Option<Rate>,
    /// Those of attributes that the seed states.
    pub fact_error_in_seed: Option<Rate>,
    /// Those of attributes that the seed does not state.
    pub fact_error_not_in_seed: Option<Rate>,
    /// Values that are wrong for the concept that the document names.
    pub named_fact_error: Rate,
    /// Documents with a value that is wrong for the concept that they name.
    pub documents_with_error: Rate,
    /// In another genre than the seed.
    pub new_genre: Option<Rate>,
    /// Nearly the seed's text.
    pub copied: Option<Rate>,
    /// Nearly the text of a training document.
    pub regurgitated: Rate,
    /// A text that the world can give.
    pub possible: Rate,
    /// Mean number of attributes with a value.
    pub facts_per_document: f64,
}

/// What `facts.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FactsReport {
    /// Format version.
    pub version: u32,
    /// By group: `unpaired`, `paired`, or `unseeded`.
    pub groups: BTreeMap<String, Facts>,
}

impl FactsReport {
    /// Reads the `facts` artifact in `dir`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        read_json(&dir.join(FILE))
    }
}

/// What was found in one document, a line of `items.jsonl.zst`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    id: String,
    group: String,
    relevant: Option<bool>,
    known: bool,
    /// Values mentioned and wrong ones, against the seed's concept: in the seed, not in it.
    in_seed: [u64; 2],
    not_in_seed: [u64; 2],
    /// Values mentioned and wrong ones, against the concept named.
    named: [u64; 2],
    new_genre: Option<bool>,
    copied: Option<bool>,
    regurgitated: bool,
    possible: bool,
    n_facts: u64,
}

impl Task for MeasureFacts {
    const KIND: &'static str = "measure_facts";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str =
        "measures names, facts and copying of synthetic documents exactly";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::one("synthetic", "corpus", "the documents to measure"),
        Port::one("world", "world", "the truth, of `generate_world`"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("facts", "facts", "rates by group, and one row a document")];
    type Params = Params;

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let truth = Truth::open(inputs.one("world"))?;
        let corpus = Corpus::open(inputs.one("synthetic"))?;
        let documents = corpus.documents().collect::<Result<Vec<Document>, _>>()?;
        let judge = Judge::new(&truth);
        let order = Philox::new(params.seed, "measure facts").permutation(documents.len());
        let mut items: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        for (n_seen, i) in order.into_iter().enumerate() {
            if n_seen % 256 == 0 {
                ctx.check_cancelled()?;
                ctx.progress(n_seen as u64, documents.len() as u64, "documents");
            }
            let seed = judge.seed(&documents[i])?;
            let group = items.entry(judge.group(seed).to_owned()).or_default();
            if (group.len() as u64) < params.n_items.get() {
                group.push(judge.item(&documents[i], seed));
            }
        }
        let dir = ctx.out("facts")?;
        let groups: BTreeMap<String, Facts> =
            items.iter().map(|(group, items)| (group.clone(), summarize(items))).collect();
        let all: Vec<Item> = items.into_values().flatten().collect();
        rows::write(&dir.join(ITEMS_FILE), &all)?;
        let mut outputs = Outputs::default();
        for (group, facts) in &groups {
            outputs =
                outputs.metric(format!("named_fact_error.{group}"), facts.named_fact_error.rate);
            outputs = outputs.metric(format!("regurgitated.{group}"), facts.regurgitated.rate);
            if let Some(wrong_name) = &facts.wrong_name {
                outputs = outputs.metric(format!("wrong_name.{group}"), wrong_name.rate);
            }
        }
        write_json(&dir.join(FILE), &FactsReport { version: 1, groups })?;
        Ok(outputs)
    }
}

/// Compares documents with the truth.
struct Judge<'a> {
    truth: &'a Truth,
    reader: Reader<'a>,
    posterior: Posterior<'a>,
    seeds: BTreeMap<u64, &'a DocumentRow>,
    copies: Copies,
}

impl<'a> Judge<'a> {
    fn new(truth: &'a Truth) -> Self {
        Self {
            truth,
            reader: Reader::new(&truth.world),
            posterior: Posterior::new(&truth.world),
            seeds: truth.documents.iter().map(|row| (row.id, row)).collect(),
            copies: Copies::new(truth.documents.iter().map(|row| row.text.as_str())),
        }
    }

    /// The training document that a synthetic one starts from.
    fn seed(&self, document: &Document) -> Result<Option<&'a DocumentRow>, Failure> {
        document
            .seed_among("the training documents of the world", |id| self.seeds.get(&id).copied())
            .map_err(|failure| failure.help("connect the world whose `train` the seeds are"))
    }

    fn group(&self, seed: Option<&DocumentRow>) -> &'static str {
        match seed {
            None => "unseeded",
            Some(row) if self.truth.world.is_single(row.concept) => "unpaired",
            Some(_) => "paired",
        }
    }

    fn item(&self, document: &Document, seed: Option<&DocumentRow>) -> Item {
        let world = &self.truth.world;
        let facts = self.reader.facts(&document.text);
        let named = facts.name.map_or(&[][..], |name| self.posterior.named(name));
        let wrong = |concept: usize, (attribute, value): (usize, usize)| {
            world.concepts[concept].values[attribute] != value
        };
        let mut item = Item {
            id: format!("{:016x}", document.id),
            group: self.group(seed).to_owned(),
            relevant: seed.map(|row| named.contains(&row.concept)),
            known: !named.is_empty(),
            in_seed: [0; 2],
            not_in_seed: [0; 2],
            named: [0; 2],
            new_genre: seed.map(|row| facts.genre != Some(row.genre)),
            copied: seed.map(|row| is_copy(&document.text, &row.text)),
            regurgitated: self.copies.is_known(&document.text),
            possible: self.reader.read(&document.text).is_some(),
            n_facts: facts.values.iter().map(|fact| fact.0).collect::<BTreeSet<_>>().len() as u64,
        };
        // Of concepts that share a name, the one with the fewest errors is meant.
        let errors = |&concept: &usize| facts.values.iter().filter(|&&f| wrong(concept, f)).count();
        if let Some(least) = named.iter().map(errors).min() {
            item.named = [facts.values.len() as u64, least as u64];
        }
        if let (Some(row), Some(true)) = (seed, item.relevant) {
            let stated = self.reader.facts(&row.text).values;
            for &fact in &facts.values {
                let in_seed = stated.iter().any(|(attribute, _)| *attribute == fact.0);
                let counts = if in_seed { &mut item.in_seed } else { &mut item.not_in_seed };
                counts[0] += 1;
                counts[1] += u64::from(wrong(row.concept, fact));
            }
        }
        item
    }
}

fn summarize(items: &[Item]) -> Facts {
    let seeded = |flag: &dyn Fn(&Item) -> Option<bool>| -> Option<Rate> {
        let flags: Option<Vec<bool>> = items.iter().map(flag).collect();
        flags.map(Rate::of)
    };
    let mentions = |counts: &dyn Fn(&Item) -> [u64; 2]| -> Rate {
        let sums = items.iter().map(counts).fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]]);
        Rate::of_counts(sums[1], sums[0])
    };
    let has_seed = items.iter().all(|item| item.relevant.is_some());
    let both = |item: &Item| [0, 1].map(|i| item.in_seed[i] + item.not_in_seed[i]);
    let n_facts: u64 = items.iter().map(|item| item.n_facts).sum();
    Facts {
        n_documents: items.len() as u64,
        relevant: seeded(&|item| item.relevant),
        wrong_name: seeded(&|item| item.relevant.map(|relevant| !relevant)),
        unknown_name: Rate::of(items.iter().map(|item| !item.known)),
        fact_error: has_seed.then(|| mentions(&both)),
        fact_error_in_seed: has_seed.then(|| mentions(&|item| item.in_seed)),
        fact_error_not_in_seed: has_seed.then(|| mentions(&|item| item.not_in_seed)),
        named_fact_error: mentions(&|item| item.named),
        documents_with_error: Rate::of(items.iter().map(|item| item.named[1] > 0)),
        new_genre: seeded(&|item| item.new_genre),
        copied: seeded(&|item| item.copied),
        regurgitated: Rate::of(items.iter().map(|item| item.regurgitated)),
        possible: Rate::of(items.iter().map(|item| item.possible)),
        facts_per_document: n_facts as f64 / (items.len() as f64).max(1.0),
    }
}
