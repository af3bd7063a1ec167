//! Asks a language model about synthetic documents, over any server with the interface of
//! `OpenAI`.
//!
//! Measures are the paper's (arXiv 2509.15248, tables 2 to 7): repetition, errors of fact, relevance to
//! the seed, copying of the seed, and the concept between the two. Each answer is written to the node's
//! journal before the next step, so a resumed run puts no question twice that was answered. Figures of
//! two judges, or of two wordings of a question, do not compare: the artifact names both.

mod ask;
mod client;
mod prompts;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use engine::digest::Digest;
use engine::task::{
    Context, Determinism, Estimate, Failure, Inputs, Outputs, ParamError, Port, Predicted, Task,
};
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, Document, read_json, write_json};
use crate::cost::{fact, figure};
use crate::decode::Codec;
use crate::format::Error;
use crate::format::tokens::Tokens;
use crate::measure_quality::Rate;
use crate::rows;

use ask::{Judged, Question, Spent};
use client::Client;
pub use prompts::{Concept, Finding, Measure, Verdict};

const FILE: &str = "judgement.json";

/// See the module.
pub struct Judge;

/// Params of `judge`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Where the server is, such as `http://localhost:8000/v1`.
    pub base_url: String,
    /// The model that judges, as the server calls it.
    pub model: String,
    /// What is asked.
    #[serde(default = "default_measures")]
    pub measures: Vec<Measure>,
    /// Documents asked about, drawn at random.
    #[serde(default = "default_n_items")]
    pub n_items: u64,
    /// Documents whose facts are asked about; by default `n_items`. The paper takes 10,000.
    #[serde(default)]
    pub n_factuality: Option<u64>,
    /// Questions to ask instead of the built-in ones, by measure, with `{document}` and `{seed}`. Answers
    /// keep their format.
    #[serde(default)]
    pub prompts: BTreeMap<Measure, String>,
    /// Randomness of the answers; 0 for none.
    #[serde(default)]
    pub temperature: f64,
    /// Most tokens of an answer.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
    /// Characters of a document that the judge sees; the rest is cut.
    #[serde(default = "default_document_chars")]
    pub document_chars: usize,
    /// Highest share of answers that cannot be read; more fail the node.
    #[serde(default = "default_unparsed_max")]
    pub unparsed_max: f64,
    /// Other names for domains, categories and relations, such as `{medicine: health}`.
    #[serde(default)]
    pub merge: BTreeMap<String, String>,
    /// Seed of the sample, and of the answers.
    #[serde(default)]
    pub seed: u64,
    /// Questions under way at a time.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// Attempts at a question that the server refuses for now: status 408, 409, 429, 5xx, no answer.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
    /// Seconds before the second attempt; doubled each time, unless the server names a time.
    #[serde(default = "default_backoff_s")]
    pub backoff_s: f64,
    /// Seconds to wait for an answer.
    #[serde(default = "default_timeout_s")]
    pub timeout_s: f64,
    /// Most answers to pay for, all attempts together.
    #[serde(default)]
    pub answers_max: Option<u64>,
    /// Most tokens of questions and answers to pay for, as the server counts them; may be passed by the
    /// answers under way.
    #[serde(default)]
    pub tokens_max: Option<u64>,
    /// Environment variable with the key to the server. The key itself is kept nowhere.
    #[serde(default)]
    pub api_key_env: Option<String>,
}

fn default_measures() -> Vec<Measure> {
    vec![Measure::Repetition, Measure::Factuality, Measure::Relevance, Measure::Copying]
}
fn default_n_items() -> u64 {
    1000
}
fn default_max_tokens() -> u32 {
    1024
}
fn default_document_chars() -> usize {
    24_000
}
fn default_unparsed_max() -> f64 {
    0.05
}
fn default_concurrency() -> u32 {
    8
}
fn default_attempts() -> u32 {
    6
}
fn default_backoff_s() -> f64 {
    1.0
}
fn default_timeout_s() -> f64 {
    120.0
}

/// The rates of one measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Digest of the question's wording.
    pub prompt: String,
    /// Share of documents that are bad: that repeat, have errors, are irrelevant, or copies. Nothing for
    /// concepts.
    pub bad: Option<Rate>,
    /// Share of documents whose facts cannot be judged; of factuality only.
    pub undefined: Option<Rate>,
    /// Share of answers that could not be read; they count in no other rate.
    pub unparsed: Rate,
}

/// What `judgement.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Format version.
    pub version: u32,
    /// The model that judged.
    pub model: String,
    /// Rates by measure.
    pub measures: BTreeMap<Measure, Rates>,
    /// How many documents are of each domain.
    pub domains: Vec<(String, u64)>,
    /// How many concepts are of each category.
    pub categories: Vec<(String, u64)>,
    /// How many documents stand in each relation to their seed.
    pub relations: Vec<(String, u64)>,
    /// Answers and tokens, all attempts together.
    pub spent: Spent,
}

impl Judgement {
    /// Reads the `judgement` artifact in `dir`.
    ///
    /// # Errors
    /// When `judgement.json` cannot be read.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        read_json(&dir.join(FILE))
    }

    /// The share of bad documents by a measure that was asked for.
    pub fn bad(&self, measure: Measure) -> Option<&Rate> {
        self.measures.get(&measure)?.bad.as_ref()
    }
}

/// One line of `items.jsonl.zst`.
#[derive(Serialize)]
struct Item<'a> {
    measure: Measure,
    document: String,
    seed: Option<&'a str>,
    verdict: &'a Option<Verdict>,
    answer: &'a str,
}

impl Task for Judge {
    const KIND: &'static str = "judge";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "asks a language model about synthetic documents";
    const DETERMINISM: Determinism = Determinism::Measured;
    const INPUTS: &'static [Port] = &[
        Port::one("synthetic", "corpus", "the documents"),
        Port::optional("real", "tokens", "the real documents, the seeds among them"),
        Port::optional("tokenizer", "tokenizer", "the tokenizer of the real documents"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("judgement", "judgement", "rates with intervals, and one row per answer")];
    const UNKEYED: &'static [&'static str] = &[
        "base_url",
        "concurrency",
        "attempts",
        "backoff_s",
        "timeout_s",
        "answers_max",
        "tokens_max",
        "api_key_env",
        // It decides whether the node succeeds, and is in no byte of the artifact: who raises it keeps
        // the answers that were paid for.
        "unparsed_max",
    ];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        let wrong = |path: &str, message: String| Err(ParamError::new(path, message));
        if !params.base_url.starts_with("http://") && !params.base_url.starts_with("https://") {
            let message = format!("`{}` is no http or https address", params.base_url);
            return wrong("base_url", message);
        }
        if params.measures.is_empty() {
            return wrong("measures", "it is empty".to_owned());
        }
        let mut measures = params.measures.iter().enumerate();
        if let Some((_, twice)) = measures.find(|(i, m)| params.measures[..*i].contains(m)) {
            return wrong("measures", format!("`{}` is there twice", twice.name()));
        }
        for (path, value) in [
            ("n_items", params.n_items),
            ("n_factuality", params.n_factuality.unwrap_or(1)),
            ("concurrency", params.concurrency.into()),
            ("attempts", params.attempts.into()),
            ("max_tokens", params.max_tokens.into()),
            ("document_chars", params.document_chars as u64),
        ] {
            if value == 0 {
                return wrong(path, "0 is not above 0".to_owned());
            }
        }
        for (path, value) in [("backoff_s", params.backoff_s), ("temperature", params.temperature)]
        {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(path, format!("{value} is not a number of at least 0"));
            }
        }
        if !(params.timeout_s.is_finite() && params.timeout_s > 0.0) {
            return wrong("timeout_s", format!("{} is not above 0", params.timeout_s));
        }
        if !(0.0..=1.0).contains(&params.unparsed_max) {
            return wrong(
                "unparsed_max",
                format!("{} is not between 0 and 1", params.unparsed_max),
            );
        }
        for (measure, prompt) in &params.prompts {
            let needs = [("{document}", true), ("{seed}", measure.needs_seed())];
            if let Some((place, _)) =
                needs.iter().find(|(place, needed)| *needed && !prompt.contains(place))
            {
                let name = measure.name();
                return wrong(&format!("prompts.{name}"), format!("it has no place `{place}`"));
            }
        }
        Ok(())
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let available = inputs.fact("synthetic", fact::DOCUMENTS).unwrap_or(f64::INFINITY);
        let asked = |measure: &Measure| available.min(params.n(*measure) as f64);
        let answers: f64 = params.measures.iter().map(asked).sum();
        Estimate::unknown().figure("answers", answers).figure(figure::DOCUMENTS, answers)
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let key = match &params.api_key_env {
            Some(name) => Some(std::env::var(name).map_err(|_| {
                Failure::permanent(format!("the environment has no variable `{name}`"))
                    .help("`api_key_env` names the variable that holds the server's key")
            })?),
            None => None,
        };
        let subjects = subjects(ctx, params, inputs)?;
        let (mut questions, mut about) = (Vec::new(), Vec::new());
        for &measure in &params.measures {
            let n = params.n(measure) as usize;
            for subject in subjects.iter().take(n) {
                questions.push(Question { measure, text: params.question(measure, subject) });
                about.push(subject);
            }
        }
        let client = Client::new(
            &params.base_url,
            key,
            Duration::from_secs_f64(params.timeout_s),
            params.attempts,
            Duration::from_secs_f64(params.backoff_s),
            ctx.cancel_token().clone(),
        );
        let (judged, spent) = ask::ask_all(ctx, params, &client, &questions)?;
        let judgement = summarize(params, &questions, &judged, spent);
        let dir = ctx.out("judgement")?;
        rows::write(&dir.join("items.jsonl.zst"), &items(&questions, &about, &judged))?;
        write_json(&dir.join(FILE), &judgement)?;
        check_readable(params, &judgement)?;
        let mut outputs = Outputs::default().metric("answers", spent.answers as f64);
        for (measure, rates) in &judgement.measures {
            if let Some(bad) = &rates.bad {
                outputs = outputs.metric(measure.name(), bad.rate);
            }
            outputs = outputs.metric(format!("unparsed.{}", measure.name()), rates.unparsed.rate);
        }
        Ok(outputs)
    }
}

impl Params {
    /// Documents that a measure is asked about.
    fn n(&self, measure: Measure) -> u64 {
        match measure {
            Measure::Factuality => self.n_factuality.unwrap_or(self.n_items),
            _ => self.n_items,
        }
    }

    fn prompt(&self, measure: Measure) -> &str {
        self.prompts.get(&measure).map_or(measure.prompt(), String::as_str)
    }

    fn question(&self, measure: Measure, subject: &Subject) -> String {
        let cut = |text: &str| text.chars().take(self.document_chars).collect::<String>();
        let (document, seed) = (cut(&subject.document.text), cut(&subject.seed));
        // One pass, so that a document which contains `{seed}` changes nothing.
        let mut question = String::new();
        let mut rest = self.prompt(measure);
        while let Some(at) = rest.find('{') {
            question.push_str(&rest[..at]);
            let (text, after) = match &rest[at..] {
                place if place.starts_with("{document}") => (&*document, "{document}".len()),
                place if place.starts_with("{seed}") => (&*seed, "{seed}".len()),
                _ => ("{", 1),
            };
            question.push_str(text);
            rest = &rest[at + after..];
        }
        question.push_str(rest);
        question
    }
}

/// A document with its seed's text.
struct Subject {
    document: Document,
    seed: String,
}

impl Subject {
    fn seed_id(&self) -> Option<&str> {
        self.document.meta.get("seed_id").and_then(|value| value.as_str())
    }
}

/// The documents that are asked about, in the order drawn, so that fewer are the first ones of more.
fn subjects(ctx: &Context, params: &Params, inputs: &Inputs) -> Result<Vec<Subject>, Failure> {
    let corpus = Corpus::open(inputs.one("synthetic"))?;
    let n = corpus.n_documents() as usize;
    if n == 0 {
        return Err(Failure::permanent("there are no documents to judge"));
    }
    let n_asked = params.measures.iter().map(|measure| params.n(*measure)).max().unwrap_or(0);
    let mut chosen = Philox::new(params.seed, "judge sample").permutation(n);
    chosen.truncate(n_asked as usize);
    let places: BTreeMap<usize, usize> =
        chosen.iter().enumerate().map(|(place, &i)| (i, place)).collect();
    let seeds = Seeds::open(params, inputs)?;
    let mut subjects: Vec<Option<Subject>> = Vec::new();
    subjects.resize_with(places.len(), || None);
    for (i, document) in corpus.documents().enumerate() {
        if i % 1024 == 0 {
            ctx.check_cancelled()?;
        }
        let document = document?;
        let Some(&place) = places.get(&i) else { continue };
        let seed = match &seeds {
            Some(seeds) => seeds.text(&document)?,
            None => String::new(),
        };
        subjects[place] = Some(Subject { document, seed });
    }
    Ok(subjects.into_iter().flatten().collect())
}

/// Texts of the real documents, by id.
struct Seeds {
    tokens: Tokens,
    codec: Codec,
    index: BTreeMap<u64, usize>,
}

impl Seeds {
    /// Nothing when no measure takes seeds.
    fn open(params: &Params, inputs: &Inputs) -> Result<Option<Self>, Failure> {
        let Some(measure) = params.measures.iter().find(|measure| measure.needs_seed()) else {
            return Ok(None);
        };
        let (Some(real), Some(tokenizer)) = (inputs.optional("real"), inputs.optional("tokenizer"))
        else {
            let message = format!("measure `{}` needs the documents' seeds", measure.name());
            return Err(Failure::permanent(message).help("connect `real` and `tokenizer`"));
        };
        let tokens = Tokens::open(real)?;
        let codec = Codec::open_for(tokenizer, &tokens)?;
        let index = (0..tokens.n_documents()).map(|i| (tokens.document_id(i), i)).collect();
        Ok(Some(Self { tokens, codec, index }))
    }

    fn text(&self, document: &Document) -> Result<String, Failure> {
        let id = document.seed_id().and_then(Result::ok);
        let Some(&i) = id.and_then(|id| self.index.get(&id)) else {
            let message =
                format!("document {:016x} has no seed among the real documents", document.id);
            return Err(Failure::permanent(message)
                .help("connect to `real` the documents that were the seeds"));
        };
        self.codec.text(&self.tokens, i)
    }
}

fn summarize(
    params: &Params,
    questions: &[Question],
    judged: &[Judged],
    spent: Spent,
) -> Judgement {
    let of = |measure: Measure| {
        let pairs = questions.iter().zip(judged).filter(move |(q, _)| q.measure == measure);
        pairs.map(|(_, judged)| judged)
    };
    let rates = |&measure: &Measure| {
        let read: Vec<&Verdict> = of(measure).filter_map(|one| one.verdict.as_ref()).collect();
        let is_bad = |verdict: &&Verdict| match verdict {
            // `Yes, they belong together` is the one good `Yes`.
            Verdict::Answer { yes } => *yes != (measure == Measure::Relevance),
            Verdict::Facts { finding } => *finding == Finding::Error,
            Verdict::Concept(_) => false,
        };
        let is_undefined =
            |verdict: &&Verdict| matches!(verdict, Verdict::Facts { finding: Finding::Undefined });
        let rates = Rates {
            prompt: Digest::of(params.prompt(measure).as_bytes()).to_string(),
            bad: (measure != Measure::Concepts).then(|| Rate::of(read.iter().map(is_bad))),
            undefined: (measure == Measure::Factuality)
                .then(|| Rate::of(read.iter().map(is_undefined))),
            unparsed: Rate::of(of(measure).map(|one| one.verdict.is_none())),
        };
        (measure, rates)
    };
    let concepts: Vec<&Concept> = judged
        .iter()
        .filter_map(|one| match &one.verdict {
            Some(Verdict::Concept(concept)) => Some(concept),
            _ => None,
        })
        .collect();
    let count = |of: fn(&Concept) -> &String| {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for concept in &concepts {
            let name = of(concept);
            *counts.entry(params.merge.get(name).unwrap_or(name)).or_default() += 1;
        }
        let mut counts: Vec<(String, u64)> =
            counts.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        counts
    };
    Judgement {
        version: 1,
        model: params.model.clone(),
        measures: params.measures.iter().map(rates).collect(),
        domains: count(|concept| &concept.domain),
        categories: count(|concept| &concept.category),
        relations: count(|concept| &concept.relation),
        spent,
    }
}

/// Fails when too many answers could not be read: rates over the rest would mislead.
fn check_readable(params: &Params, judgement: &Judgement) -> Result<(), Failure> {
    for (measure, Rates { unparsed, .. }) in &judgement.measures {
        if unparsed.rate > params.unparsed_max {
            let message = format!(
                "{} of {} answers on `{}` cannot be read, more than `unparsed_max: {}`",
                unparsed.k,
                unparsed.n,
                measure.name(),
                params.unparsed_max
            );
            return Err(Failure::permanent(message)
                .help("take a judge that keeps to the format, or raise `unparsed_max`"));
        }
    }
    Ok(())
}

fn items<'a>(questions: &[Question], about: &[&'a Subject], judged: &'a [Judged]) -> Vec<Item<'a>> {
    let all = questions.iter().zip(about).zip(judged);
    all.map(|((question, subject), judged)| Item {
        measure: question.measure,
        document: format!("{:016x}", subject.document.id),
        seed: subject.seed_id(),
        verdict: &judged.verdict,
        answer: &judged.answer,
    })
    .collect()
}
