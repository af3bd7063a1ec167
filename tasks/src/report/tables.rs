//! The tables below the charts: benchmarks, quality, samples and provenance.

use std::fmt::Write as _;

use super::page::{CLOSE_TABLE, number, open_table, p_value, row};
use super::{Seed, Study, cost, escape};
use crate::compare_benchmarks::{Cell, Line, Table};
use crate::judge::Measure;
use crate::measure_quality::{Quality, Rate};
use crate::stats::Estimate;

/// Table 2 of the paper, in per cent: name, 200B, 1T, real. By a language model's judgement, except
/// duplicates.
const PAPER_TABLE_2: [(&str, f64, f64, Option<f64>); 5] = [
    ("repetition", 4.3, 3.9, Some(1.8)),
    ("duplicate", 0.8, 0.8, Some(0.7)),
    ("errors of fact", 15.1, 8.7, Some(1.8)),
    ("pair copying", 0.1, 0.9, None),
    ("irrelevance", 25.6, 7.8, None),
];

/// Table 1 of the paper at 200B tokens: the benchmark, the baseline, and what SBP and the oracle add.
const PAPER_TABLE_1: [(&str, [f64; 3]); 10] = [
    ("openwebtext2", [5.74, -0.53, -1.02]),
    ("lambada", [6.87, -0.85, -1.86]),
    ("mmlu_text", [3.83, -0.36, -0.51]),
    ("arc_challenge", [35.32, 1.28, 2.82]),
    ("arc_easy", [68.94, 2.65, 4.29]),
    ("sciq", [90.50, 1.00, 2.40]),
    ("winogrande", [60.14, 1.90, 5.53]),
    ("triviaqa", [22.51, 3.36, 7.37]),
    ("webqs", [8.56, 3.74, 10.83]),
    ("average", [47.66, 2.32, 5.54]),
];

/// The arms on benchmarks.
pub(super) fn benchmarks(out: &mut String, study: &Study) {
    let Some(table) = &study.benchmarks else { return };
    let _ = writeln!(
        out,
        "<h2>Benchmarks</h2><p class=\"note\">Accuracies in per cent, more is better; perplexities, less \
         is better. Below each arm\u{2019}s score, what it has more than {} with a 95 % interval by {} \
         paired resamples of the items, and the p-value of McNemar\u{2019}s test, corrected for several \
         tests (Benjamini and Hochberg). The paper\u{2019}s figures are of a 3 B model at 200B \
         tokens.</p>",
        escape(&table.baseline),
        table.n_resamples
    );
    let names: Vec<String> = table.arms.iter().map(|arm| escape(arm)).collect();
    let mut head = vec!["benchmark", "items"];
    head.extend(names.iter().map(String::as_str));
    head.push("paper: baseline, SBP, oracle");
    open_table(out, "Benchmarks", &head);
    for line in table.lines.iter().chain(&table.average) {
        row(out, "", &benchmark_cells(line));
    }
    out.push_str(CLOSE_TABLE);
    if !table.averaged.is_empty() {
        let names = escape(&table.averaged.join(", "));
        let _ = writeln!(out, "<p class=\"note\">The average is over {names}.</p>");
    }
    fractions(out, table);
}

fn benchmark_cells(line: &Line) -> Vec<String> {
    let name = format!("{}<small>{}</small>", escape(&line.name), line.measure.replace('_', " "));
    let mut cells = vec![name, line.n_items.to_string()];
    cells.extend(line.cells.iter().map(benchmark_cell));
    let paper = PAPER_TABLE_1.iter().find(|row| row.0 == line.name);
    cells.push(paper.map_or("\u{2013}".to_owned(), |(_, [baseline, sbp, oracle])| {
        let signed = |x: f64| format!("{}{}", if x > 0.0 { "+" } else { "" }, number(x, 2));
        format!("{}<small>{}, {}</small>", number(*baseline, 2), signed(*sbp), signed(*oracle))
    }));
    cells
}

fn benchmark_cell(cell: &Cell) -> String {
    let mut text = number(cell.value.value, 2);
    if let Some(Estimate { value, low, high }) = cell.difference {
        let sign = if value > 0.0 { "+" } else { "" };
        let _ = write!(
            text,
            "<small>{sign}{} ({} to {})</small>",
            number(value, 2),
            number(low, 2),
            number(high, 2)
        );
    }
    if let Some(p) = cell.p_fdr {
        let _ = write!(text, "<small>p {}</small>", p_value(p));
    }
    if let Some(seeds) = cell.seeds {
        let _ = write!(
            text,
            "<small>{} seeds: {} to {}</small>",
            seeds.n,
            number(seeds.low, 2),
            number(seeds.high, 2)
        );
    }
    text
}

fn fractions(out: &mut String, table: &Table) {
    if table.fraction_of_oracle.is_empty() {
        return;
    }
    let texts = table.fraction_of_oracle.iter().map(|(arm, fraction)| {
        let [value, low, high] =
            [fraction.value, fraction.low, fraction.high].map(|x| number(x * 100.0, 1));
        format!("{} {value} % ({low} to {high})", escape(arm))
    });
    let _ = writeln!(
        out,
        "<p>Share of the oracle\u{2019}s gain in accuracy: {}. The paper: 41.9 % at 200B tokens, 48.6 % at \
         1T.</p>",
        texts.collect::<Vec<_>>().join("; ")
    );
}

fn rate(rate: &Rate) -> String {
    if rate.n == 0 {
        return "\u{2013}".to_owned();
    }
    let [value, low, high] = [rate.rate, rate.low, rate.high].map(|x| number(x * 100.0, 1));
    format!("{value} %<small>{low} to {high}, n = {}</small>", rate.n)
}

/// A row of the quality table: its name, the corpora's cells, and the real documents' rate.
type RuleRow<'a> = (&'static str, &'a dyn Fn(&Quality) -> String, Option<&'a Rate>);

pub(super) fn quality(out: &mut String, study: &Study) {
    if study.quality.is_empty() && study.judgement.is_none() {
        return;
    }
    out.push_str(
        "<h2>Synthetic text</h2><p class=\"note\">Shares of documents by rules or by a judge, with 95 % \
         intervals. The paper\u{2019}s figures are beside them for orientation: a language model judged \
         them, on another scale of model and data.</p>\n",
    );
    let columns: Vec<&str> = if study.quality.is_empty() {
        vec![study.shown_arm.as_deref().unwrap_or("synthetic")]
    } else {
        study.quality.iter().map(|(name, _)| name.as_str()).collect()
    };
    let names: Vec<String> = columns.iter().map(|name| escape(name)).collect();
    let mut head = vec!["measure"];
    head.extend(names.iter().map(String::as_str));
    head.extend(["real", "paper 200B", "paper 1T", "paper real"]);
    open_table(out, "Quality of synthetic text", &head);
    rules(out, study);
    judged(out, study, &columns);
    out.push_str(CLOSE_TABLE);
}

/// Rows of what was measured by rules.
fn rules(out: &mut String, study: &Study) {
    let Some((_, first)) = study.quality.first() else { return };
    let irrelevance = |q: &Quality| {
        let Rate { rate, low, high, k, n } = q.relevance;
        if n == 0 {
            return dash();
        }
        self::rate(&Rate { rate: 1.0 - rate, low: 1.0 - high, high: 1.0 - low, k: n - k, n })
    };
    let wins =
        |q: &Quality| q.win_rate.map_or_else(dash, |w| format!("{} %", number(w * 100.0, 1)));
    let measures: [RuleRow<'_>; 7] = [
        ("repetition", &|q| rate(&q.repetition), Some(&first.repetition_real)),
        ("duplicate", &|q| rate(&q.duplicate), Some(&first.duplicate_real)),
        ("unsupported numbers", &|q| rate(&q.unsupported), Some(&first.unsupported_real)),
        ("pair copying", &|q| rate(&q.pair_copying), None),
        ("regurgitation", &|q| rate(&q.regurgitation), None),
        ("irrelevance", &irrelevance, None),
        ("own seed beats a random one", &wins, None),
    ];
    for (name, of, real) in measures {
        let mut cells = vec![name.to_owned()];
        cells.extend(study.quality.iter().map(|(_, quality)| of(quality)));
        cells.push(real.map_or_else(dash, rate));
        cells.extend(of_paper(name));
        row(out, "", &cells);
    }
}

/// Rows of what a judge said, in the column of the arm whose texts it read.
fn judged(out: &mut String, study: &Study, columns: &[&str]) {
    let Some(judgement) = &study.judgement else { return };
    let names = [
        (Measure::Repetition, "repetition"),
        (Measure::Factuality, "errors of fact"),
        (Measure::Copying, "pair copying"),
        (Measure::Relevance, "irrelevance"),
    ];
    let of_arm = columns.iter().position(|name| Some(*name) == study.shown_arm.as_deref());
    let column = of_arm.unwrap_or(columns.len() - 1);
    for (measure, name) in names {
        let Some(bad) = judgement.bad(measure) else { continue };
        let by = format!("{name}<small>judged by {}</small>", escape(&judgement.model));
        let mut cells = vec![by];
        cells.extend((0..columns.len()).map(|i| if i == column { rate(bad) } else { dash() }));
        cells.push(dash());
        cells.extend(of_paper(name));
        row(out, "", &cells);
    }
}

/// The paper's figures of a measure: 200B, 1T, real.
fn of_paper(name: &str) -> [String; 3] {
    let paper = PAPER_TABLE_2.iter().find(|row| row.0 == name);
    let percent = |x: Option<f64>| x.map_or_else(dash, |x| format!("{} %", number(x, 1)));
    [paper.map(|row| row.1), paper.map(|row| row.2), paper.and_then(|row| row.3)].map(percent)
}

fn dash() -> String {
    "\u{2013}".to_owned()
}

pub(super) fn samples(out: &mut String, study: &Study) {
    if study.samples.is_empty() {
        return;
    }
    out.push_str("<h2>Samples</h2><p class=\"note\">Drawn at random, not picked.</p>\n");
    for sample in &study.samples {
        let seed = match &sample.seed {
            Seed::Absent => "(written without a seed)".to_owned(),
            Seed::NotShown => "(not shown)".to_owned(),
            Seed::Text(text) => escape(text),
        };
        let _ = writeln!(
            out,
            "<div class=\"sample\"><div><h3>Seed document</h3><pre>{seed}</pre></div>\
             <div><h3>Synthesis</h3><pre>{}</pre></div></div>",
            escape(&sample.synthesis)
        );
    }
}

pub(super) fn provenance(out: &mut String, study: &Study) {
    out.push_str("<h2>Provenance</h2>\n");
    cost::makers(out, study);
    open_table(out, "Provenance", &["input", "made by", "digest"]);
    for (port, input) in &study.inputs {
        let made_by = format!("<code>{}</code>", escape(&format!("{}.{}", input.node, input.port)));
        let digest = format!("<code>{}</code>", input.digest.short());
        row(out, "", &[escape(port), made_by, digest]);
    }
    out.push_str(CLOSE_TABLE);
}
