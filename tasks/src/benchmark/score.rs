//! Rows of items, and the scores over them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::form::{self, Form, Name};
use super::likelihood::Scored;
use super::{Benchmark, Params};
use crate::stats::{self, Estimate};

/// One line of `items.jsonl.zst`: what the model made of one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The item's number in its file, from 0.
    pub item: u64,
    /// Log likelihood of each choice, or of the word or text, in nats.
    pub log_likelihoods: Vec<f64>,
    /// Whether each choice, or the word, is the likeliest continuation.
    pub greedy: Vec<bool>,
    /// Tokens scored, all choices together.
    pub tokens: u64,
    /// UTF-8 bytes of the text; 0 where no whole text is scored.
    pub bytes: u64,
    /// Words of the text, as blanks part them; 0 where no whole text is scored.
    pub words: u64,
    /// The likeliest choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<u64>,
    /// The answer written, before it is cut at a stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Whether it is right, by measure: `acc`, `acc_norm`, `acc_bytes`, `exact_match`.
    pub right: BTreeMap<String, bool>,
}

/// `scores.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Format version.
    pub version: u32,
    /// The benchmark.
    pub name: String,
    /// Whose formats and scores, with their version.
    pub scoring: String,
    /// Revision of this program's own task.
    pub revision: u32,
    /// Examples before each question.
    pub shots: u64,
    /// Seed of the examples.
    pub fewshot_seed: u32,
    /// Items scored.
    pub n_items: u64,
    /// The measure that tables show.
    pub headline: String,
    /// Scores by measure: shares for accuracies.
    pub metrics: BTreeMap<String, Estimate>,
}

/// The row of an item.
pub(super) fn row(
    name: Name,
    item: usize,
    form: &Form,
    scored: &[Scored],
    text: Option<String>,
) -> Row {
    let mut row = Row {
        item: item as u64,
        log_likelihoods: scored.iter().map(|scored| scored.log_likelihood).collect(),
        greedy: scored.iter().map(|scored| scored.greedy).collect(),
        tokens: scored.iter().map(|scored| scored.n_tokens as u64).sum(),
        bytes: 0,
        words: 0,
        prediction: None,
        text,
        right: BTreeMap::new(),
    };
    let mut right = |measure: &str, is_right: bool| {
        row.right.insert(measure.to_owned(), is_right);
    };
    match form {
        Form::Choices { choices, gold, .. } => {
            let best = |length: &dyn Fn(&str) -> usize| {
                let values = choices.iter().zip(scored);
                first_max(values.map(|(choice, scored)| {
                    scored.log_likelihood / (length(choice.as_str()) as f64)
                }))
            };
            let plain = best(&|_| 1);
            match name {
                Name::Webqs => right("exact_match", gold.iter().any(|&at| scored[at].greedy)),
                Name::Winogrande => right("acc", gold.contains(&plain)),
                _ => {
                    right("acc", gold.contains(&plain));
                    right("acc_norm", gold.contains(&best(&|choice| choice.chars().count())));
                    right("acc_bytes", gold.contains(&best(&str::len)));
                }
            }
            row.prediction = Some(plain as u64);
        }
        Form::Word { .. } => right("acc", scored[0].greedy),
        Form::Text { text, answer } => {
            (row.bytes, row.words) = (text.len() as u64, n_words(text));
            let n_text = scored.len() - usize::from(answer.is_some());
            let sum = |part: &[Scored]| part.iter().map(|scored| scored.log_likelihood).sum();
            row.tokens = scored[..n_text].iter().map(|scored| scored.n_tokens as u64).sum();
            row.greedy.drain(..n_text);
            row.log_likelihoods = vec![sum(&scored[..n_text])];
            row.log_likelihoods.extend(scored[n_text..].iter().map(|scored| scored.log_likelihood));
        }
        Form::Open { answers, .. } => {
            let given = form::normalized(form::cut_answer(row.text.as_deref().unwrap_or_default()));
            right("exact_match", answers.iter().any(|answer| form::normalized(answer) == given));
        }
    }
    row
}

/// The first of the greatest; a choice without characters is never chosen over one with.
fn first_max(values: impl Iterator<Item = f64>) -> usize {
    let (mut best, mut max) = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > max {
            (best, max) = (i, value);
        }
    }
    best
}

/// Pieces between blanks, the empty ones at both ends included, as `re.split(r"\s+", text)` gives.
fn n_words(text: &str) -> u64 {
    let inner = text.split_whitespace().count() as u64;
    let edge = |blank: bool| u64::from(blank);
    if inner == 0 {
        return if text.is_empty() { 1 } else { 2 };
    }
    let first = text.chars().next().is_some_and(char::is_whitespace);
    let last = text.chars().next_back().is_some_and(char::is_whitespace);
    inner + edge(first) + edge(last)
}

/// The scores over all rows.
pub(super) fn summarize(params: &Params, rows: &[Row]) -> Scores {
    let mut metrics = BTreeMap::new();
    let measures: Vec<String> =
        rows.first().map_or(Vec::new(), |row| row.right.keys().cloned().collect());
    for measure in measures {
        let k = rows.iter().filter(|row| row.right[&measure]).count() as u64;
        let n = rows.len() as u64;
        let (low, high) = stats::wilson(k, n);
        metrics.insert(measure, Estimate { value: k as f64 / n as f64, low, high });
    }
    let mut add = |measure: &str, pairs: Vec<(f64, f64)>, of: fn(f64) -> f64| {
        metrics.insert(measure.to_owned(), ratio(params, pairs, of));
    };
    let nll = |row: &Row, at: usize| -row.log_likelihoods[at];
    let by = |denominator: fn(&Row) -> f64| {
        rows.iter().map(|row| (nll(row, 0), denominator(row))).collect::<Vec<_>>()
    };
    let bits = |nats: f64| nats / std::f64::consts::LN_2;
    match params.name {
        Name::Lambada => add("perplexity", by(|_| 1.0), f64::exp),
        Name::Openwebtext2 | Name::MmluText => {
            add("token_perplexity", by(|row| row.tokens as f64), f64::exp);
            add("byte_perplexity", by(|row| row.bytes as f64), f64::exp);
            add("word_perplexity", by(|row| row.words as f64), f64::exp);
            add("bits_per_byte", by(|row| row.bytes as f64), bits);
        }
        _ => {}
    }
    if params.name == Name::MmluText {
        let pairs = rows.iter().map(|row| (nll(row, 1), 1.0)).collect();
        add("answer_perplexity", pairs, f64::exp);
    }
    let headline = match params.name {
        Name::Openwebtext2 | Name::MmluText => "token_perplexity",
        Name::Lambada => "perplexity",
        Name::Triviaqa | Name::Webqs => "exact_match",
        _ => "acc",
    };
    Scores {
        version: 1,
        name: params.name.text().to_owned(),
        scoring: "lm_eval 0.4.13".to_owned(),
        revision: <Benchmark as engine::task::Task>::REVISION,
        shots: params.shots.unwrap_or(params.name.shots()) as u64,
        fewshot_seed: params.fewshot_seed,
        n_items: rows.len() as u64,
        headline: headline.to_owned(),
        metrics,
    }
}

/// `of(sum x / sum y)` with its interval over items.
fn ratio(params: &Params, pairs: Vec<(f64, f64)>, of: fn(f64) -> f64) -> Estimate {
    let (x, y) = pairs.iter().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
    let rng = stats::resampling(0);
    let resampled = stats::paired_bootstrap(&[pairs], params.n_resamples, rng).swap_remove(0);
    let (low, high) = stats::interval_95(resampled);
    Estimate { value: of(x / y), low: of(low), high: of(high) }
}
