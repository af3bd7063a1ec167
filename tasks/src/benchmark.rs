//! Scores a model on one benchmark, item for item as lm-evaluation-harness 0.4.13 does.
//!
//! Prompts, examples, token splits and scores are that program's, so that a log likelihood of ours and
//! one of its own differ by rounding only; `tasks/tests/peers/compare_lm_eval.py` compares them. Every item
//! leaves a row, which is what paired statistics need.
//!
//! `mmlu_text` is the paper's own measure (arXiv 2509.15248, section A.1): the perplexity of the
//! examples, the question and its answer as one text.

mod form;
mod likelihood;
mod open;
mod python_random;
mod score;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use engine::task::{
    self, Context, Determinism, Estimate, Failure, Inputs, ItemContext, ItemResult, Outputs,
    ParamError, Port, Predicted, Task,
};
use kernels::Pool;
use kernels::cuda::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::corpus::{read_json, write_json};
use crate::cost::{fact, figure};
use crate::device;
use crate::lm::{Config, Weights, hf};
use crate::read_items;
use crate::tokenizer::Tokenizer;
use crate::{rows, stats};

pub use form::Name;
use form::{Form, Item};
use likelihood::{Cutter, Scored, Scorer};
use open::Writer;
use python_random::PythonRandom;
pub use score::{Row, Scores};

const SCORES_FILE: &str = "scores.json";
const ROWS_FILE: &str = "items.jsonl.zst";
/// Items worked on together. Part of the results: what is computed together may round differently.
const CHUNK: usize = 32;
/// Items that are scored, or lost by a kill, together: whole chunks.
const ITEM_ROWS: usize = 4 * CHUNK;

/// See the module.
pub struct Benchmark;

/// Whose formats and scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compat {
    /// lm-evaluation-harness 0.4.13, bug for bug.
    #[default]
    LmEval,
}

/// Params of `benchmark`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The benchmark; the items have its dataset's own schema.
    pub name: Name,
    /// Whose formats and scores.
    #[serde(default)]
    pub compat: Compat,
    /// Examples before each question; by default as in the paper: 5 for MMLU, 1 for
    /// `TriviaQA` and `WebQS`.
    #[serde(default)]
    pub shots: Option<usize>,
    /// Seed of the examples drawn from the input `examples`.
    #[serde(default = "default_fewshot_seed")]
    pub fewshot_seed: u32,
    /// Scores the first items only.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Whether contexts begin with `<|bos|>`, as documents do in training.
    #[serde(default)]
    pub bos: bool,
    /// Most tokens of an open answer; the prompt keeps what the context leaves.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// Resamples behind the intervals of perplexities.
    #[serde(default = "default_n_resamples")]
    pub n_resamples: usize,
}

fn default_fewshot_seed() -> u32 {
    1234
}
fn default_max_new_tokens() -> usize {
    256
}
fn default_n_resamples() -> usize {
    1000
}

impl Task for Benchmark {
    const KIND: &'static str = "benchmark";
    const REVISION: u32 = 3;
    const ITEM_STAGES: u32 = 1;
    const SUMMARY: &'static str = "scores a model on a benchmark as lm-evaluation-harness does";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const USES_DEVICE: bool = true;
    const INPUTS: &'static [Port] = &[
        Port::one("model", "model", "the model, with its tokenizer"),
        Port::one("items", "items", "the benchmark's items"),
        Port::optional("examples", "items", "where examples come from; by default the items"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("benchmark", "benchmark", "scores, and one row per item")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        let shots = params.shots.unwrap_or(0);
        let none = matches!(params.name, Name::Openwebtext2 | Name::Lambada | Name::Winogrande);
        if none && shots > 0 {
            let message = format!("`{}` has no examples", params.name.text());
            return Err(ParamError::new("shots", message));
        }
        if params.limit == Some(0) {
            return Err(ParamError::new("limit", "0 items give no score"));
        }
        if params.max_new_tokens == 0 {
            return Err(ParamError::new("max_new_tokens", "0 tokens are no answer"));
        }
        stats::check_resamples(params.n_resamples)
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let items = inputs.fact("items", fact::DOCUMENTS);
        let limit = params.limit.map(|n| n as f64);
        let items = match (items, limit) {
            (Some(items), Some(limit)) => Some(items.min(limit)),
            (items, limit) => items.or(limit),
        };
        Estimate::unknown().figure(figure::DOCUMENTS, items)
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let model = inputs.one("model");
        let tokenizer = Tokenizer::open(model)?;
        let weights = hf::load(model)?;
        let known = weights.config().vocab_size;
        if tokenizer.vocab_size() as usize > known {
            return Err(Failure::permanent(format!(
                "the model's tokenizer has {} ids, the model {known}",
                tokenizer.vocab_size()
            )));
        }
        let mut items = read_items::open(inputs.one("items"))?;
        items.truncate(params.limit.unwrap_or(usize::MAX));
        let examples = inputs.optional("examples").map(read_items::open).transpose()?;
        let forms = forms(params, &items, examples.as_deref())?;

        let asks = Asks::of(&forms);
        let device = device::open(ctx, &asks.work(weights.config()))?;
        let is_on_gpu = device.is_some();
        let desk =
            Desk { params, tokenizer: &tokenizer, weights: &weights, forms: &forms, asks, device };
        let rows = desk.ask_all(ctx, inputs)?;
        let scores = score::summarize(params, &rows);
        let dir = ctx.out("benchmark")?;
        rows::write(&dir.join(ROWS_FILE), &rows)?;
        write_json(&dir.join(SCORES_FILE), &scores)?;
        let outputs = device::note(Outputs::default(), is_on_gpu);
        let mut outputs = outputs.metric("n_items", rows.len() as f64);
        for (name, metric) in &scores.metrics {
            outputs = outputs.metric(name.clone(), metric.value);
        }
        Ok(outputs)
    }
}

/// What is asked about each item.
fn forms(
    params: &Params,
    items: &[Value],
    examples: Option<&[Value]>,
) -> Result<Vec<Form>, Failure> {
    let name = params.name;
    let shots = params.shots.unwrap_or(name.shots());
    let wrong = |what: &str, i: usize, problem: String| {
        let message = format!("{what} {i} is no item of `{}`: {problem}", name.text());
        Failure::permanent(message).help("items have the schema of the benchmark's own dataset")
    };
    let mut random = PythonRandom::new(params.fewshot_seed);
    let pool = examples.unwrap_or(items);
    let mut forms = Vec::with_capacity(items.len());
    for (i, value) in items.iter().enumerate() {
        let item = Item(value);
        let mut prefix = String::new();
        let chosen: Vec<usize> = if shots == 0 {
            Vec::new()
        } else if name.has_fixed_examples() {
            let subject = item.subject().map_err(|problem| wrong("item", i, problem))?;
            // Items that are examples too never stand before themselves.
            let of_subject = pool
                .iter()
                .enumerate()
                .filter(|(_, example)| Item(example).subject() == Ok(subject) && *example != value);
            of_subject.map(|(at, _)| at).take(shots).collect()
        } else if examples.is_some() {
            if pool.len() < shots { Vec::new() } else { random.sample(pool.len(), shots) }
        } else {
            // One more than needed, in case the item itself is drawn.
            let n = (shots + 1).min(pool.len());
            let drawn = random.sample(pool.len(), n);
            drawn.into_iter().filter(|&at| pool[at] != *value).take(shots).collect()
        };
        if chosen.len() < shots {
            let (found, what) = (chosen.len(), name.text());
            let message = format!("item {i} of `{what}` has {found} examples, not {shots}");
            return Err(Failure::permanent(message)
                .help("connect `examples` with enough items of each subject, or lower `shots`"));
        }
        if name.has_fixed_examples() {
            let subject = item.subject().map_err(|problem| wrong("item", i, problem))?;
            prefix.push_str(&form::mmlu_description(subject));
        }
        for at in chosen {
            let example = Item(&pool[at]).example(name);
            prefix.push_str(&example.map_err(|problem| wrong("example", at, problem))?);
        }
        forms.push(item.form(name, &prefix).map_err(|problem| wrong("item", i, problem))?);
    }
    Ok(forms)
}

/// What items ask of a model: to score texts, to write answers, or both.
#[derive(Clone, Copy)]
struct Asks {
    scores: bool,
    answers: bool,
}

impl Asks {
    fn of(forms: &[Form]) -> Self {
        let is_open = |form: &Form| matches!(form, Form::Open { .. });
        Self { scores: !forms.iter().all(is_open), answers: forms.iter().any(is_open) }
    }

    /// What all of it is to ask of a device.
    fn work(self, config: &Config) -> device::Work {
        match (self.scores, self.answers) {
            (true, true) => Scorer::work(config).and(Writer::work(config)),
            (false, true) => Writer::work(config),
            (_, false) => Scorer::work(config),
        }
    }
}

/// Asks a model.
struct Asker<'a> {
    cutter: Cutter<'a>,
    /// Where texts are scored.
    scorer: Option<Scorer<'a>>,
    /// Only for open questions.
    writer: Option<Writer<'a>>,
}

impl Asker<'_> {
    /// The rows of some neighbouring items, the first of which has the number `first`.
    fn ask(
        &mut self,
        ctx: &ItemContext<'_>,
        name: Name,
        first: usize,
        forms: &[Form],
    ) -> Result<Vec<Row>, Failure> {
        let (mut spans, mut counts, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
        for form in forms {
            let before = spans.len();
            match form {
                Form::Choices { pairs, .. } => {
                    for (context, continuation) in pairs {
                        spans.push(self.cutter.pair(context, continuation)?);
                    }
                }
                Form::Word { context, continuation } => {
                    spans.push(self.cutter.pair(context, continuation)?);
                }
                Form::Text { text, answer } => {
                    spans.extend(self.cutter.rolling(text)?);
                    if let Some((context, continuation)) = answer {
                        spans.push(self.cutter.pair(context, continuation)?);
                    }
                }
                Form::Open { prompt, .. } => prompts.push(self.cutter.context_ids(prompt)?),
            }
            counts.push(spans.len() - before);
        }
        let scored = match &mut self.scorer {
            Some(scorer) => scorer.score(&spans)?,
            None => Vec::new(),
        };
        let texts = match &mut self.writer {
            Some(writer) => writer.write(ctx, prompts)?,
            None => Vec::new(),
        };
        let (mut scored, mut texts) = (scored.into_iter(), texts.into_iter());
        let mut rows = Vec::with_capacity(forms.len());
        for ((i, form), n_spans) in forms.iter().enumerate().zip(counts) {
            let own: Vec<Scored> = scored.by_ref().take(n_spans).collect();
            let text = if matches!(form, Form::Open { .. }) { texts.next() } else { None };
            let row = score::row(name, first + i, form, &own, text);
            if row.log_likelihoods.iter().any(|value| !value.is_finite()) {
                let message = format!("item {} has a likelihood that is no number", first + i);
                return Err(Failure::permanent(message));
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

/// What every item is asked with.
struct Desk<'a> {
    params: &'a Params,
    tokenizer: &'a Tokenizer,
    weights: &'a Weights,
    forms: &'a [Form],
    asks: Asks,
    /// The GPU that computes; the CPU where there is none.
    device: Option<Arc<dyn Device>>,
}

impl<'a> Desk<'a> {
    fn asker(&self, pool: &'a Pool) -> Result<Asker<'a>, Failure> {
        let Self { params, tokenizer, weights, asks, .. } = *self;
        let cutter = Cutter { tokenizer, context: weights.config().context, bos: params.bos };
        let scorer = || Scorer::new(self.device.clone(), pool, weights);
        let n_tokens_max = params.max_new_tokens;
        let writer = || Writer::new(self.device.clone(), pool, weights, tokenizer, n_tokens_max);
        Ok(Asker {
            cutter,
            scorer: asks.scores.then(scorer).transpose()?,
            writer: asks.answers.then(writer).transpose()?,
        })
    }

    /// The rows of all items.
    fn ask_all(&self, ctx: &Context, inputs: &Inputs) -> Result<Vec<Row>, Failure> {
        let digest = |port| inputs.many(port).first().map(|input| input.digest);
        // Resamples are drawn from rows, and a limit leaves the rows before it as they are.
        let params = Params { n_resamples: 0, limit: None, ..self.params.clone() };
        let made_of = (params, ["model", "items", "examples"].map(digest));
        let items = (0..self.forms.len()).step_by(ITEM_ROWS).map(|first| {
            let range = first..self.forms.len().min(first + ITEM_ROWS);
            let name = format!("items {first} to {}", range.end - 1);
            let weight = range.len() as u64;
            task::Item::new(name, &(&made_of, range.clone()), range).weight(weight)
        });
        let pool = Pool::new(ctx.n_threads());
        let begin = |_| self.asker(&pool);
        let stage = device::stage("ask", self.device.as_deref());
        let results = ctx.stage(&stage, "items").alone().each_with(
            items.collect(),
            begin,
            |asker, range, item| {
                let mut rows = Vec::with_capacity(range.len());
                for forms in self.forms[range.clone()].chunks(CHUNK) {
                    item.check_cancelled()?;
                    let first = range.start + rows.len();
                    rows.extend(asker.ask(item, self.params.name, first, forms)?);
                    item.progress(rows.len() as u64);
                }
                Ok(rows::write(&item.dir().join(ROWS_FILE), &rows)?)
            },
        )?;
        let mut rows = Vec::with_capacity(self.forms.len());
        for result in results {
            let result: ItemResult<()> = result?;
            let part: Vec<Row> = rows::read(&result.dir.join(ROWS_FILE))?;
            rows.extend(part);
        }
        Ok(rows)
    }
}

/// Reads the `benchmark` artifact in `dir`: what it says of the whole, and its rows.
///
/// # Errors
/// When a file cannot be read or is not what this task writes.
pub fn read(dir: &Path) -> Result<(Scores, Vec<Row>), Failure> {
    Ok((read_json(&dir.join(SCORES_FILE))?, rows::read(&dir.join(ROWS_FILE))?))
}
