//! What is true of a world's documents: the rows beside `world.json`.

use std::path::Path;

use engine::task::Failure;
use serde::{Deserialize, Serialize};

use super::World;
use crate::corpus::hex_id;
use crate::rows;

const DOCUMENTS: &str = "documents.jsonl.zst";
const HELDOUT: &str = "heldout.jsonl.zst";
const QUESTIONS: &str = "questions.jsonl.zst";
const PAIRS: &str = "pairs.jsonl.zst";

/// How the concept of a held-out document or question is told of in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// In one document, of another genre.
    SingleCross,
    /// In one document, of the same genre.
    SingleSame,
    /// In several documents.
    Multi,
    /// Drawn as the training documents are.
    Any,
    /// Not at all.
    New,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::SingleCross, Self::SingleSame, Self::Multi, Self::Any, Self::New];

    /// As written in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleCross => "single_cross",
            Self::SingleSame => "single_same",
            Self::Multi => "multi",
            Self::Any => "any",
            Self::New => "new",
        }
    }
}

/// A training document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentRow {
    /// Its id in the output `train`.
    #[serde(with = "hex_id")]
    pub id: u64,
    /// The concept it is about.
    pub concept: usize,
    /// Its genre.
    pub genre: usize,
    /// Its text.
    pub text: String,
}

/// A held-out document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldoutRow {
    /// Its id in the output `heldout`.
    #[serde(with = "hex_id")]
    pub id: u64,
    /// How its concept is told of in training.
    pub kind: Kind,
    /// The concept it is about.
    pub concept: usize,
    /// Its genre.
    pub genre: usize,
    /// Its text.
    pub text: String,
    /// ln P(d) under the law of the training documents; nothing for a concept they never tell of.
    pub ln_p: Option<f64>,
}

/// A cloze question: which of the options comes next?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionRow {
    /// Its number among the questions.
    pub id: u64,
    /// How its concept is told of in training.
    pub kind: Kind,
    /// The concept it is about.
    pub concept: usize,
    /// The attribute asked for.
    pub attribute: usize,
    /// The genre it is put in.
    pub genre: usize,
    /// The text up to the answer.
    pub prompt: String,
    /// The answers, one word each.
    pub options: Vec<String>,
    /// The place of the right one.
    pub answer: usize,
}

/// A training document d1 and a new document d2, drawn exactly from P(d2 | d1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairRow {
    /// Its number among the pairs.
    pub id: u64,
    /// Whether d1 is the only training document of its concept, so that no tuning pair has it.
    pub unpaired: bool,
    /// The training document.
    pub d1: String,
    /// The new document.
    pub d2: String,
    /// A training document about another concept.
    pub unrelated: String,
    /// ln P(d2 | d1).
    pub ln_p: f64,
    /// ln P(d2), what a writer that does not read d1 can know.
    pub ln_marginal: f64,
}

/// A world with its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// The world.
    pub world: World,
    /// Every training document, in order.
    pub documents: Vec<DocumentRow>,
    /// Every held-out document, in order.
    pub heldout: Vec<HeldoutRow>,
    /// Every question, in order.
    pub questions: Vec<QuestionRow>,
    /// Every pair, in order.
    pub pairs: Vec<PairRow>,
}

impl Truth {
    /// Writes the `world` artifact into `dir`.
    ///
    /// # Errors
    /// When writing fails.
    pub fn save(&self, dir: &Path) -> Result<(), Failure> {
        self.world.save(dir)?;
        rows::write(&dir.join(DOCUMENTS), &self.documents)?;
        rows::write(&dir.join(HELDOUT), &self.heldout)?;
        rows::write(&dir.join(QUESTIONS), &self.questions)?;
        Ok(rows::write(&dir.join(PAIRS), &self.pairs)?)
    }

    /// Reads the `world` artifact in `dir`.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        Ok(Self {
            world: World::open(dir)?,
            documents: rows::read(&dir.join(DOCUMENTS))?,
            heldout: rows::read(&dir.join(HELDOUT))?,
            questions: rows::read(&dir.join(QUESTIONS))?,
            pairs: rows::read(&dir.join(PAIRS))?,
        })
    }

    /// The kind that results are read on first: documents about concepts told of once, in another
    /// genre, when there are such concepts.
    pub fn headline(&self) -> Kind {
        let single = self.heldout.iter().any(|row| row.kind == Kind::SingleCross);
        if single { Kind::SingleCross } else { Kind::Multi }
    }
}
