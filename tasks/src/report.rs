//! Writes one self-contained HTML page of a study, with its charts as SVG and its curves as CSV.
//!
//! The page loads nothing: styles and charts are inline, there is no script, and every text from data
//! is escaped. What it says in words follows from the numbers by fixed rules.

mod chart;
mod cost;
mod figures;
mod page;
mod tables;

use std::path::Path;

use engine::task::{
    Context, Determinism, Failure, Input, Inputs, Outputs, ParamError, Port, Task, Upstream,
};
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compare::{Comparison, Role, arm_of, axis};
use crate::compare_benchmarks::Table;
use crate::corpus::{Corpus, read_json};
use crate::decode::Codec;
use crate::format::Error;
use crate::format::pairs::{self, PairsSummary};
use crate::format::tokens::Tokens;
use crate::judge::Judgement;
use crate::measure_quality::Quality;

const STYLE: &str = include_str!("report/style.css");

/// See the module.
pub struct Report;

/// Params of `report`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Title of the page.
    #[serde(default = "default_title")]
    pub title: String,
    /// Synthetic documents shown beside their seeds.
    #[serde(default = "default_n_samples")]
    pub n_samples: usize,
    /// Characters shown of a document.
    #[serde(default = "default_sample_chars")]
    pub sample_chars: usize,
    /// Seed of the choice of samples.
    #[serde(default)]
    pub seed: u64,
}

fn default_title() -> String {
    "Synthetic bootstrapped pretraining".to_owned()
}
fn default_n_samples() -> usize {
    4
}
fn default_sample_chars() -> usize {
    900
}

/// A training curve.
struct Curve {
    arm: String,
    /// Tokens seen, training loss, held-out loss where it was measured.
    points: Vec<(f64, f64, Option<f64>)>,
}

/// A synthetic document beside its seed.
struct Sample {
    seed: Seed,
    synthesis: String,
}

/// What is known of a synthetic document's seed.
#[derive(Debug, PartialEq)]
enum Seed {
    /// It was written without one.
    Absent,
    /// Its text is not among what is connected.
    NotShown,
    /// Its text.
    Text(String),
}

/// Everything that the page shows.
struct Study {
    title: String,
    comparison: Comparison,
    curves: Vec<Curve>,
    quality: Vec<(String, Quality)>,
    pairs: Option<PairsSummary>,
    benchmarks: Option<Table>,
    judgement: Option<Judgement>,
    /// The arm whose texts were judged and are shown.
    shown_arm: Option<String>,
    samples: Vec<Sample>,
    inputs: Vec<(String, Input)>,
    upstream: Vec<Upstream>,
}

impl Task for Report {
    const KIND: &'static str = "report";
    const REVISION: u32 = 4;
    const SUMMARY: &'static str = "writes one self-contained HTML page, with CSV and SVG files";
    const DETERMINISM: Determinism = Determinism::Measured;
    const READS_UPSTREAM: bool = true;
    const INPUTS: &'static [Port] = &[
        Port::one("comparison", "comparison", "the arms' figures"),
        Port::many("curves", "model", "the trained model of each arm, for its curve"),
        Port::many("quality", "quality", "quality of synthetic corpora"),
        Port::optional("pairs", "pairs", "the pairs that tuned the synthesizer"),
        Port::optional("synthetic", "corpus", "synthetic documents to show"),
        Port::optional("real", "tokens", "their seeds"),
        Port::optional("tokenizer", "tokenizer", "the tokenizer of the seeds"),
        Port::optional("benchmarks", "table", "the arms on benchmarks"),
        Port::optional("judgement", "judgement", "what a judge said of the synthetic documents"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("report", "report", "report.html, and every figure as SVG, CSV and JSON")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.title.trim().is_empty() {
            return Err(ParamError::new("title", "it is empty"));
        }
        Ok(())
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let study = read(params, inputs, ctx.upstream())?;
        ctx.check_cancelled()?;
        let dir = ctx.out("report")?;
        let charts = page::Charts::of(&study);
        for (name, svg) in charts.files() {
            let style = format!("<style>{STYLE}svg {{ background: var(--bg); }}</style></svg>");
            std::fs::write(dir.join(name), svg.replace("</svg>", &style))?;
        }
        for (name, text) in figures::files(&study) {
            std::fs::write(dir.join(name), text)?;
        }
        let html = page::html(&study, &charts);
        std::fs::write(dir.join("report.html"), &html)?;
        ctx.info(page::verdict(&study.comparison));
        Ok(Outputs::default().metric("html_bytes", html.len() as f64))
    }
}

/// `text` for use in HTML and SVG, inside and outside quotes. Control characters, which XML forbids,
/// become U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn read(params: &Params, inputs: &Inputs, upstream: &[Upstream]) -> Result<Study, Failure> {
    let mut provenance = Vec::new();
    for port in Report::INPUTS {
        for input in inputs.many(port.name) {
            provenance.push((port.name.to_owned(), input.clone()));
        }
    }
    let curve = |input: &Input| -> Result<Curve, Error> {
        Ok(Curve { arm: arm_of(&input.node), points: read_curve(&input.dir)? })
    };
    let quality = |input: &Input| -> Result<(String, Quality), Error> {
        Ok((arm_of(&input.node), Quality::read(&input.dir)?))
    };
    let comparison = Comparison::read(inputs.one("comparison"))?;
    let mut curves: Vec<Curve> =
        inputs.many("curves").iter().map(curve).collect::<Result<_, _>>()?;
    name_curves(&comparison, &mut curves);
    let shown = ["judgement", "synthetic"].map(|port| inputs.many(port).first());
    Ok(Study {
        title: params.title.clone(),
        comparison,
        curves,
        shown_arm: shown
            .into_iter()
            .flatten()
            .find_map(|input| axis(&input.node, "arm"))
            .map(str::to_owned),
        quality: inputs.many("quality").iter().map(quality).collect::<Result<_, _>>()?,
        pairs: inputs.optional("pairs").map(read_pairs).transpose()?,
        benchmarks: inputs.optional("benchmarks").map(Table::read).transpose()?,
        judgement: inputs.optional("judgement").map(Judgement::read).transpose()?,
        samples: samples(params, inputs)?,
        inputs: provenance,
        upstream: upstream.to_vec(),
    })
}

/// Gives curves the names of the arms, in their order, where the nodes' own names say no arm.
fn name_curves(comparison: &Comparison, curves: &mut [Curve]) {
    let is_known = |curve: &Curve| comparison.arms.iter().any(|arm| arm.name == curve.arm);
    if curves.len() == comparison.arms.len() && !curves.iter().any(is_known) {
        for (curve, arm) in curves.iter_mut().zip(&comparison.arms) {
            curve.arm.clone_from(&arm.name);
        }
    }
}

fn read_pairs(dir: &Path) -> Result<PairsSummary, Error> {
    read_json(&dir.join(pairs::SUMMARY_FILE))
}

/// Columns `tokens`, `loss` and `heldout_loss` of a model's `curve.csv`.
fn read_curve(dir: &Path) -> Result<Vec<(f64, f64, Option<f64>)>, Error> {
    let path = dir.join("curve.csv");
    let text = std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &str| {
        let found = header.iter().position(|column| *column == name);
        found.ok_or_else(|| Error::damaged(&path, format!("it has no column `{name}`")))
    };
    let columns = [column("tokens")?, column("loss")?, column("heldout_loss")?];
    let mut points = Vec::new();
    for (i, line) in lines.enumerate() {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |column: usize| fields.get(column).and_then(|field| field.parse::<f64>().ok());
        let (Some(tokens), Some(loss)) = (number(columns[0]), number(columns[1])) else {
            return Err(Error::damaged(&path, format!("line {} is no point of a curve", i + 2)));
        };
        points.push((tokens, loss, number(columns[2])));
    }
    Ok(points)
}

fn samples(params: &Params, inputs: &Inputs) -> Result<Vec<Sample>, Failure> {
    let Some(synthetic) = inputs.optional("synthetic") else { return Ok(Vec::new()) };
    let real = match (inputs.optional("real"), inputs.optional("tokenizer")) {
        (Some(real), Some(tokenizer)) => {
            let tokens = Tokens::open(real)?;
            let codec = Codec::open_for(tokenizer, &tokens)?;
            Some((tokens, codec))
        }
        _ => None,
    };
    let corpus = Corpus::open(synthetic)?;
    let rng = Philox::new(params.seed, "report samples");
    let mut chosen = rng.permutation(corpus.n_documents() as usize);
    chosen.truncate(params.n_samples);
    let cut = |text: &str| match text.char_indices().nth(params.sample_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    };
    let mut samples = Vec::new();
    for (i, document) in corpus.documents().enumerate() {
        let document = document?;
        if !chosen.contains(&i) {
            continue;
        }
        let id = document.seed_id().transpose().map_err(|value| {
            let id = document.id;
            Failure::permanent(format!("document {id:016x} has seed {value}, which is no id"))
        })?;
        let mut seed = if id.is_some() { Seed::NotShown } else { Seed::Absent };
        if let (Some(id), Some((tokens, codec))) = (id, &real) {
            let found = (0..tokens.n_documents()).find(|&i| tokens.document_id(i) == id);
            if let Some(i) = found {
                seed = Seed::Text(cut(&codec.text(tokens, i)?));
            }
        }
        samples.push(Sample { seed, synthesis: cut(&document.text) });
    }
    Ok(samples)
}

/// How the treatment's held-out loss stands to the baseline's while training.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Crossing {
    /// Below at every point.
    Always,
    /// Below for good from here on: tokens, and the loss there by linear interpolation.
    At(f64, f64),
    /// Below at some point, and not at the end.
    NotForGood,
    /// Below at no point.
    Never,
}

/// Compares two curves where both have points; nothing where they have none in common.
fn crossing(baseline: &Curve, treatment: &Curve) -> Option<Crossing> {
    let at = |curve: &Curve, tokens: f64| {
        let found = curve.points.iter().find(|point| (point.0 - tokens).abs() < 0.5);
        found.and_then(|point| point.2)
    };
    let both: Vec<(f64, f64, f64)> = treatment
        .points
        .iter()
        .filter_map(|point| Some((point.0, point.2?, at(baseline, point.0)?)))
        .collect();
    if both.is_empty() {
        return None;
    }
    let is_above = |(_, own, base): &(f64, f64, f64)| own >= base;
    let Some(last_above) = both.iter().rposition(is_above) else { return Some(Crossing::Always) };
    let Some(&b) = both.get(last_above + 1) else {
        let never = both.iter().all(is_above);
        return Some(if never { Crossing::Never } else { Crossing::NotForGood });
    };
    let a = both[last_above];
    let (gap_a, gap_b) = (a.1 - a.2, b.1 - b.2);
    let share = gap_a / (gap_a - gap_b);
    Some(Crossing::At(a.0 + share * (b.0 - a.0), a.1 + share * (b.1 - a.1)))
}

/// CSS variable of an arm's colour, and its dash pattern.
fn look(comparison: &Comparison, arm: &str) -> (String, &'static str) {
    let controls =
        comparison.arms.iter().filter(|arm| matches!(arm.role, Role::Control | Role::Other));
    let known = comparison.arms.iter().find(|known| known.name == arm);
    match known.map(|arm| arm.role) {
        Some(Role::Baseline) => ("--baseline".to_owned(), "7 3"),
        Some(Role::Treatment) => ("--treatment".to_owned(), ""),
        Some(Role::Oracle) => ("--oracle".to_owned(), "2 3"),
        Some(Role::Control | Role::Other) | None => {
            let index = controls.map(|arm| &arm.name).position(|name| name == arm).unwrap_or(2);
            (format!("--control-{}", index % 3), ["9 3 2 3", "5 2", "12 4"][index % 3])
        }
    }
}

#[cfg(test)]
mod tests;
