//! A world's documents and questions as batches, and their scores.

use std::collections::BTreeMap;

use engine::task::{Context, Failure};
use kernels::Pool;

use super::{DocumentScore, KindScore, Kinds, QuestionScore};
use crate::lm::batch::Batch;
use crate::lm::{Forward, Weights};
use crate::tokenizer::{BOS, EOS};
use crate::world::{HeldoutRow, QuestionRow, Truth, Words, token_nll};

/// Most tokens of one forward pass over questions.
const FORWARD_TOKENS: usize = 2048;

/// What a target token asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A value where the document first gives it.
    Fact,
    /// A value given again.
    Again,
    /// Any other word, and the end.
    Other,
}

struct Document<'a> {
    row: &'a HeldoutRow,
    parts: Vec<Part>,
}

struct Question<'a> {
    row: &'a QuestionRow,
    options: Vec<u32>,
    n_tokens: usize,
}

/// Everything that a model is asked.
pub(super) struct Probe<'a> {
    documents: Vec<Document<'a>>,
    texts: Batch,
    questions: Vec<Question<'a>>,
    prompts: Batch,
}

impl<'a> Probe<'a> {
    /// Every `stride`th document and question of `truth`.
    pub(super) fn new(truth: &'a Truth, words: &Words, stride: usize) -> Result<Self, Failure> {
        let (mut documents, mut texts) = (Vec::new(), Batch::default());
        for row in truth.heldout.iter().step_by(stride) {
            let mut ids = vec![BOS];
            ids.extend(words.ids(&row.text)?);
            ids.push(EOS);
            texts.push_span((0..ids.len() - 1).map(|i| (ids[i], Some(ids[i + 1]))));
            texts.end_row();
            let mut given = Vec::new();
            let parts = ids[1..].iter().map(|&id| match words.attribute(id) {
                None => Part::Other,
                Some(attribute) if given.contains(&attribute) => Part::Again,
                Some(attribute) => {
                    given.push(attribute);
                    Part::Fact
                }
            });
            documents.push(Document { row, parts: parts.collect() });
        }
        let (mut questions, mut prompts) = (Vec::new(), Batch::default());
        for row in truth.questions.iter().step_by(stride) {
            let mut ids = vec![BOS];
            ids.extend(words.ids(&row.prompt)?);
            prompts.push_span(ids.iter().map(|&id| (id, None)));
            prompts.end_row();
            let options = row.options.iter().map(|option| Ok(words.ids(option)?[0]));
            let options = options.collect::<Result<_, Failure>>()?;
            questions.push(Question { row, options, n_tokens: ids.len() });
        }
        Ok(Self { documents, texts, questions, prompts })
    }

    /// One row a document and question.
    pub(super) fn measure(
        &self,
        ctx: &Context,
        pool: &Pool,
        weights: &Weights,
    ) -> Result<(Vec<DocumentScore>, Vec<QuestionScore>), Failure> {
        let nll = token_nll(ctx, pool, weights, &self.texts)?;
        let mut rest = &nll[..];
        let documents = self.documents.iter().map(|document| {
            let (own, others) = rest.split_at(document.parts.len());
            rest = others;
            score(document, own)
        });
        let documents = documents.collect();
        Ok((documents, self.answer(ctx, pool, weights)?))
    }

    /// Compares the options' logits after each prompt.
    fn answer(
        &self,
        ctx: &Context,
        pool: &Pool,
        weights: &Weights,
    ) -> Result<Vec<QuestionScore>, Failure> {
        let width = weights.config().d_model;
        let capacity = FORWARD_TOKENS.max(weights.config().context);
        let mut forward = Forward::new(weights.config(), capacity);
        let mut scores = Vec::new();
        let mut questions = self.questions.iter();
        for micro in self.prompts.micro_batches(FORWARD_TOKENS) {
            ctx.check_cancelled()?;
            let hidden = forward.hidden(pool, weights, micro.ids, &micro.starts);
            let mut end = 0;
            while end < micro.ids.len() {
                let question = questions.next().expect("a row is a question");
                end += question.n_tokens;
                let state = &hidden[(end - 1) * width..end * width];
                let logit =
                    |&id: &u32| dot(state, &weights.output()[id as usize * width..][..width]);
                let logits: Vec<f64> = question.options.iter().map(logit).collect();
                scores.push(judge(question, &logits));
            }
        }
        Ok(scores)
    }
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

/// Of equal options the first is the answer given.
fn judge(question: &Question<'_>, logits: &[f64]) -> QuestionScore {
    let answer = question.row.answer;
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - highest).exp()).sum();
    let given = logits.iter().position(|&logit| logit >= highest);
    QuestionScore {
        item: question.row.id.to_string(),
        kind: question.row.kind.name().to_owned(),
        correct: given == Some(answer),
        nll: highest + sum.ln() - logits[answer],
    }
}

fn score(document: &Document<'_>, nll: &[f32]) -> DocumentScore {
    let part = |part: Part| {
        let own = document.parts.iter().zip(nll).filter(|(other, _)| **other == part);
        own.fold((0.0, 0), |(sum, n), (_, nll)| (sum + f64::from(*nll), n + 1))
    };
    let ((fact_nll, facts), (other_nll, others)) = (part(Part::Fact), part(Part::Other));
    DocumentScore {
        item: format!("{:016x}", document.row.id),
        kind: document.row.kind.name().to_owned(),
        nll: nll.iter().copied().map(f64::from).sum(),
        tokens: nll.len() as u64,
        fact_nll,
        facts,
        other_nll,
        others,
        ln_p: document.row.ln_p,
    }
}

/// Scores by kind.
pub(super) fn summarize(documents: &[DocumentScore], questions: &[QuestionScore]) -> Kinds {
    let mut kinds: BTreeMap<String, (Vec<&DocumentScore>, Vec<&QuestionScore>)> = BTreeMap::new();
    for document in documents {
        kinds.entry(document.kind.clone()).or_default().0.push(document);
    }
    for question in questions {
        kinds.entry(question.kind.clone()).or_default().1.push(question);
    }
    kinds
        .into_iter()
        .map(|(kind, (documents, questions))| (kind, of_kind(&documents, &questions)))
        .collect()
}

fn of_kind(documents: &[&DocumentScore], questions: &[&QuestionScore]) -> KindScore {
    let ratio = |x: &dyn Fn(&DocumentScore) -> f64, y: &dyn Fn(&DocumentScore) -> u64| {
        let sums = documents.iter().fold((0.0, 0), |sum, d| (sum.0 + x(d), sum.1 + y(d)));
        sums.0 / (sums.1 as f64).max(1.0)
    };
    let loss = ratio(&|d| d.nll, &|d| d.tokens);
    let exact: Option<f64> = documents.iter().map(|document| document.ln_p).sum();
    let tokens: u64 = documents.iter().map(|document| document.tokens).sum();
    let n_correct = questions.iter().filter(|question| question.correct).count();
    KindScore {
        n_documents: documents.len() as u64,
        loss,
        fact_loss: ratio(&|d| d.fact_nll, &|d| d.facts),
        other_loss: ratio(&|d| d.other_nll, &|d| d.others),
        excess: exact.filter(|_| tokens > 0).map(|ln_p| loss + ln_p / tokens as f64),
        n_questions: questions.len() as u64,
        accuracy: (!questions.is_empty()).then(|| n_correct as f64 / questions.len() as f64),
    }
}
