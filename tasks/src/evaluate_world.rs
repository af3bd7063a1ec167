//! Measures what a model knows of a world: its loss on held-out documents, on the facts in them, and
//! cloze questions, by how training documents tell of the concept.
//!
//! Total loss is mostly grammar and hides what a model knows. So a document's tokens are counted in
//! three parts: values where the document first gives them, which need knowledge; values given again,
//! which can be copied and enter the total only; and all other words. A question is answered right
//! when the right value has the highest probability among the attribute's values.
//!
//! `excess` is the loss less that of the world's exact probabilities: 0 is what knowing the world
//! would give, and for documents of kind `any` its expectation is the divergence KL(P(d) | model).

mod probe;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, ParamError, Port, Task};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{read_json, write_json};
use crate::format::Error;
use crate::lm::{hf, snapshots};
use crate::rows;
use crate::world::{Truth, Words};
use probe::Probe;

const SCORES_FILE: &str = "scores.json";
const DOCUMENTS_FILE: &str = "documents.jsonl.zst";
const QUESTIONS_FILE: &str = "questions.jsonl.zst";

/// Measures what a model knows of a world.
pub struct EvaluateWorld;

/// Params of `evaluate_world`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Points of the curve are measured on every so many documents and questions.
    #[serde(default = "default_curve_stride")]
    pub curve_stride: usize,
}

fn default_curve_stride() -> usize {
    3
}

/// One held-out document, in `documents.jsonl.zst`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentScore {
    /// The document's id, 16 hex digits.
    pub item: String,
    /// How training documents tell of its concept.
    pub kind: String,
    /// Sum of the negative log likelihoods, in nats.
    pub nll: f64,
    /// Tokens, the end included.
    pub tokens: u64,
    /// The part of `nll` on values where they are first given.
    pub fact_nll: f64,
    /// How many those are.
    pub facts: u64,
    /// The part of `nll` on words that are no values, the end included.
    pub other_nll: f64,
    /// How many those are.
    pub others: u64,
    /// ln P(d), where the training documents tell of the concept.
    pub ln_p: Option<f64>,
}

/// One question, in `questions.jsonl.zst`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionScore {
    /// The question's number.
    pub item: String,
    /// How training documents tell of its concept.
    pub kind: String,
    /// Whether the right answer is the likeliest option.
    pub correct: bool,
    /// Negative log likelihood of the right answer among the options, in nats.
    pub nll: f64,
}

/// What a model knows of the concepts of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindScore {
    /// Documents.
    pub n_documents: u64,
    /// Loss of a token, in nats.
    pub loss: f64,
    /// Loss of a value where it is first given, in nats.
    pub fact_loss: f64,
    /// Loss of a word that is no value, in nats.
    pub other_loss: f64,
    /// `loss` less that of the exact probabilities; `None` for concepts not told of.
    pub excess: Option<f64>,
    /// Questions.
    pub n_questions: u64,
    /// Share of the questions answered right; `None` without questions.
    pub accuracy: Option<f64>,
}

/// Scores by kind.
pub type Kinds = BTreeMap<String, KindScore>;

/// One point of the curve over training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Share of the budget.
    pub fraction: f64,
    /// Scores on the curve's documents and questions.
    pub kinds: Kinds,
}

/// What `scores.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldScores {
    /// Format version.
    pub version: u32,
    /// The kind that results are read on first.
    pub headline: String,
    /// Right answers by chance.
    pub chance: f64,
    /// Scores by kind.
    pub kinds: Kinds,
    /// Scores over training, the final model last; empty without snapshots.
    pub curve: Vec<Point>,
}

/// A model's scores, with the rows behind them.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldEvaluation {
    /// `scores.json`.
    pub scores: WorldScores,
    /// One a held-out document, in the world's order.
    pub documents: Vec<DocumentScore>,
    /// One a question, in the world's order.
    pub questions: Vec<QuestionScore>,
}

impl WorldEvaluation {
    /// Reads the `world_scores` artifact in `dir`.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let scores = read_json(&dir.join(SCORES_FILE))?;
        let documents = rows::read(&dir.join(DOCUMENTS_FILE))?;
        let questions = rows::read(&dir.join(QUESTIONS_FILE))?;
        Ok(Self { scores, documents, questions })
    }

    /// Writes the `world_scores` artifact into `dir`.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Error> {
        rows::write(&dir.join(DOCUMENTS_FILE), &self.documents)?;
        rows::write(&dir.join(QUESTIONS_FILE), &self.questions)?;
        write_json(&dir.join(SCORES_FILE), &self.scores)
    }
}

impl Task for EvaluateWorld {
    const KIND: &'static str = "evaluate_world";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "measures what a model knows of a world, by kind of concept";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const INPUTS: &'static [Port] = &[
        Port::one("model", "model", "the model to measure"),
        Port::one("world", "world", "the truth, of `generate_world`"),
        Port::one("tokenizer", "tokenizer", "one token a word"),
        Port::optional("snapshots", "models", "the model while it was trained, for the curve"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("scores", "world_scores", "scores by kind, one row a document and question")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.curve_stride == 0 {
            return Err(ParamError::new("curve_stride", "0 is not above 0"));
        }
        Ok(())
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let truth = Truth::open(inputs.one("world"))?;
        let words = Words::open(inputs.one("tokenizer"), &truth.world)?;
        let pool = Pool::new(ctx.n_threads());
        let weights = hf::load(inputs.one("model"))?;
        words.check_model(&weights)?;
        let (documents, questions) =
            Probe::new(&truth, &words, 1)?.measure(ctx, &pool, &weights)?;

        let mut curve = Vec::new();
        if let Some(dir) = inputs.optional("snapshots") {
            let probe = Probe::new(&truth, &words, params.curve_stride)?;
            let fractions = snapshots::fractions(dir)?;
            let n_points = fractions.len() as u64 + 1;
            for fraction in fractions {
                let weights = hf::load(&dir.join(snapshots::folder(fraction)))?;
                words.check_model(&weights)?;
                let (documents, questions) = probe.measure(ctx, &pool, &weights)?;
                curve.push(Point { fraction, kinds: probe::summarize(&documents, &questions) });
                ctx.progress(curve.len() as u64, n_points, "points");
            }
            let (documents, questions) = probe.measure(ctx, &pool, &weights)?;
            curve.push(Point { fraction: 1.0, kinds: probe::summarize(&documents, &questions) });
        }
        let scores = WorldScores {
            version: 1,
            headline: truth.headline().name().to_owned(),
            chance: 1.0 / truth.world.spec.n_values as f64,
            kinds: probe::summarize(&documents, &questions),
            curve,
        };
        let headline = scores.kinds.get(&scores.headline).cloned().unwrap_or_default();
        WorldEvaluation { scores, documents, questions }.save(&ctx.out("scores")?)?;
        Ok(Outputs::default()
            .metric("loss", headline.loss)
            .metric("fact_loss", headline.fact_loss)
            .metric("other_loss", headline.other_loss)
            .metric("accuracy", headline.accuracy.unwrap_or(0.0)))
    }
}
