//! The page: what is said and shown, in order.

use std::fmt::Write as _;

use serde_json::Value;

use super::chart::{self, Row, Series};
use super::{Study, crossing, escape, look};
use crate::compare::{Arm, Comparison, Estimate, Role};
use crate::measure_quality::{Quality, Rate};

/// Table 2 of the paper, in per cent: name, 200B, 1T, real. By a language model's judgement, except
/// duplicates.
const PAPER_TABLE_2: [(&str, f64, f64, Option<f64>); 4] = [
    ("repetition", 4.3, 3.9, Some(1.8)),
    ("duplicate", 0.8, 0.8, Some(0.7)),
    ("pair copying", 0.1, 0.9, None),
    ("irrelevance", 25.6, 7.8, None),
];

/// The charts of a study; empty where there is nothing to draw.
pub(super) struct Charts {
    arms: String,
    curves: String,
    pairs: String,
    crossing: Option<(f64, f64)>,
}

impl Charts {
    pub(super) fn of(study: &Study) -> Self {
        let comparison = &study.comparison;
        let rows: Vec<Row> = comparison
            .arms
            .iter()
            .filter_map(|arm| {
                let Estimate { value, low, high } = arm.difference?;
                let color = look(comparison, &arm.name).0;
                Some(Row { name: arm.name.clone(), color, value, low, high })
            })
            .collect();
        let series: Vec<Series> = study
            .curves
            .iter()
            .map(|curve| {
                let (color, dash) = look(comparison, &curve.arm);
                let points = curve.points.iter().filter_map(|p| Some((p.0, p.2?))).collect();
                Series { name: curve.arm.clone(), color, dash, points }
            })
            .filter(|series| series.points.len() > 1)
            .collect();
        let of_role = |role| {
            let name = &comparison.arm(role)?.name;
            study.curves.iter().find(|curve| curve.arm == *name)
        };
        let crossing = of_role(Role::Baseline)
            .zip(of_role(Role::Treatment))
            .and_then(|(baseline, treatment)| crossing(baseline, treatment));
        let mark = crossing.map(|(tokens, loss)| {
            (tokens, loss, format!("below from {} tokens on", chart::short(tokens)))
        });
        let bins = study.pairs.as_ref().map(|pairs| {
            pairs.scores.iter().map(|bin| (bin.from, bin.to, bin.n)).collect::<Vec<_>>()
        });
        let axes = ("tokens trained on", "held-out loss, nats per token");
        Self {
            arms: chart::intervals(&rows, "loss minus the baseline's, nats per token"),
            curves: if series.is_empty() {
                String::new()
            } else {
                chart::lines(&series, axes, mark)
            },
            pairs: bins.map(|bins| chart::bars(&bins, "similarity")).unwrap_or_default(),
            crossing,
        }
    }

    /// File names with their content.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [("arms.svg", &self.arms), ("curves.svg", &self.curves), ("pairs.svg", &self.pairs)]
            .into_iter()
            .filter(|(_, svg)| !svg.is_empty())
            .map(|(name, svg)| (name, svg.as_str()))
    }
}

/// What the numbers say, in one sentence.
pub(super) fn verdict(comparison: &Comparison) -> String {
    let (Some(treatment), Some(baseline)) =
        (comparison.arm(Role::Treatment), comparison.arm(Role::Baseline))
    else {
        return "The comparison lacks a baseline or a treatment.".to_owned();
    };
    let mut text = format!("On {} held-out documents, ", comparison.n_items);
    if let Some(difference) = treatment.difference {
        text.push_str(&against(&treatment.name, difference, &baseline.name));
    }
    let best = comparison.contrasts.iter().max_by(|a, b| {
        a.difference.value.total_cmp(&b.difference.value).then(b.control.cmp(&a.control))
    });
    if let Some(best) = best {
        let link =
            if comparison.contrasts.len() > 1 { "; against the best control, " } else { "; " };
        text.push_str(link);
        text.push_str(&against("it", best.difference, &best.control));
    }
    match (comparison.oracle_beats_baseline, treatment.gap_closed) {
        (Some(true), Some(gap)) => {
            let (value, low, high) = (gap.value * 100.0, gap.low * 100.0, gap.high * 100.0);
            let _ = write!(
                text,
                "; it closes {} % ({} to {}) of the oracle's gain",
                number(value, 0),
                number(low, 0),
                number(high, 0)
            );
        }
        (Some(false), _) => {
            text.push_str(
                "; the oracle does not beat the baseline, so no share of its gain is given",
            );
        }
        _ => {}
    }
    text.push('.');
    text
}

fn against(subject: &str, difference: Estimate, other: &str) -> String {
    let Estimate { value, low, high } = difference;
    if low <= 0.0 && high >= 0.0 {
        return format!(
            "{subject} cannot be told from {other} ({} nats per token, 95 % interval {} to {})",
            number(value, 3),
            number(low, 3),
            number(high, 3)
        );
    }
    let (word, low, high) =
        if value < 0.0 { ("lower", -high, -low) } else { ("higher", low, high) };
    format!(
        "{subject} has a loss {} nats per token {word} than {other} ({} to {})",
        number(value.abs(), 3),
        number(low, 3),
        number(high, 3)
    )
}

/// Fixed decimals with a true minus sign.
fn number(x: f64, decimals: usize) -> String {
    let text = format!("{x:.decimals$}");
    let negative_zero = text.starts_with('-') && text.chars().all(|c| "-0.".contains(c));
    if negative_zero { text[1..].to_owned() } else { text.replace('-', "\u{2212}") }
}

fn with_interval(estimate: Estimate, decimals: usize) -> String {
    let [value, low, high] =
        [estimate.value, estimate.low, estimate.high].map(|x| number(x, decimals));
    format!("{value}<small>{low} to {high}</small>")
}

pub(super) fn html(study: &Study, charts: &Charts) -> String {
    let mut out = String::new();
    let title = escape(&study.title);
    let _ = writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{}{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n\
         <p class=\"verdict\">{}</p>",
        super::STYLE,
        include_str!("page.css"),
        escape(&verdict(&study.comparison))
    );
    arms(&mut out, study, charts);
    curves(&mut out, charts);
    pairs(&mut out, study, charts);
    quality(&mut out, study);
    samples(&mut out, study);
    provenance(&mut out, study);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn figure(out: &mut String, label: &str, svg: &str, caption: &str) {
    let _ = writeln!(
        out,
        "<figure><div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">{svg}</div>\
         <figcaption>{caption}</figcaption></figure>"
    );
}

fn open_table(out: &mut String, label: &str, head: &[&str]) {
    let _ = write!(
        out,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\"><table><thead><tr>"
    );
    for cell in head {
        let _ = write!(out, "<th scope=\"col\">{cell}</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
}

fn row(out: &mut String, class: &str, cells: &[String]) {
    let _ = write!(out, "<tr class=\"{class}\">");
    for cell in cells {
        let _ = write!(out, "<td>{cell}</td>");
    }
    out.push_str("</tr>\n");
}

const CLOSE_TABLE: &str = "</tbody></table></div>\n";

fn arms(out: &mut String, study: &Study, charts: &Charts) {
    let comparison = &study.comparison;
    let _ = writeln!(
        out,
        "<h2>Arms</h2><p class=\"note\">{} held-out documents, {} tokens. Intervals are 95 %, by {} \
         paired resamples of the documents; they do not hold what another seed would change.</p>",
        comparison.n_items, comparison.n_tokens, comparison.n_resamples
    );
    if !comparison.budgets_match {
        out.push_str("<p><strong>The arms were not trained on equally many tokens.</strong></p>\n");
    }
    let head = [
        "arm",
        "loss, nats per token",
        "perplexity",
        "bits per byte",
        "minus baseline",
        "documents better : worse",
        "oracle\u{2019}s gain closed",
        "tokens",
        "unique real",
        "real repeats",
        "synthetic",
    ];
    open_table(out, "Arms", &head);
    for arm in &comparison.arms {
        arm_row(out, comparison, arm);
    }
    out.push_str(CLOSE_TABLE);
    figure(
        out,
        "Differences to the baseline",
        &charts.arms,
        "Left of the line is better than the baseline.",
    );
    if !comparison.contrasts.is_empty() {
        out.push_str("<h2>Against the controls</h2>\n");
        open_table(
            out,
            "Against the controls",
            &["control", "treatment\u{2019}s loss minus the control\u{2019}s, nats per token"],
        );
        for contrast in &comparison.contrasts {
            row(out, "", &[escape(&contrast.control), with_interval(contrast.difference, 4)]);
        }
        out.push_str(CLOSE_TABLE);
    }
}

fn arm_row(out: &mut String, comparison: &Comparison, arm: &Arm) {
    let dash = || "\u{2013}".to_owned();
    let books = &arm.books;
    let count = |value: &Value| value.as_f64().map_or_else(dash, chart::short);
    let real = &books["sources"][0];
    let percent = |estimate: Estimate| {
        let scaled = Estimate {
            value: estimate.value * 100.0,
            low: estimate.low * 100.0,
            high: estimate.high * 100.0,
        };
        with_interval(scaled, 0).replace("<small>", " %<small>")
    };
    let class = if arm.role == Role::Treatment { "treatment" } else { "" };
    let key = look(comparison, &arm.name).0;
    row(
        out,
        class,
        &[
            format!(
                "<span class=\"key\" style=\"background:var({key})\"></span>{}",
                escape(&arm.name)
            ),
            with_interval(arm.mean_nll, 4),
            with_interval(arm.perplexity, 2),
            with_interval(arm.bits_per_byte, 4),
            arm.difference.map_or_else(dash, |difference| with_interval(difference, 4)),
            if arm.role == Role::Baseline {
                dash()
            } else {
                format!(
                    "{} : {}<small>p = {}</small>",
                    arm.n_better,
                    arm.n_worse,
                    p_value(arm.sign_p)
                )
            },
            arm.gap_closed.map_or_else(dash, percent),
            count(&books["budget_tokens"]),
            count(&real["available_tokens"]),
            real["repetitions"].as_f64().map_or_else(dash, |n| format!("{}\u{d7}", number(n, 2))),
            books["synthetic_share"]
                .as_f64()
                .map_or_else(dash, |s| format!("{} %", number(s * 100.0, 1))),
        ],
    );
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "&lt; 0.001".to_owned() } else { number(p, 3) }
}

fn curves(out: &mut String, charts: &Charts) {
    if charts.curves.is_empty() {
        return;
    }
    out.push_str("<h2>Training</h2>\n");
    let caption = match charts.crossing {
        Some((tokens, _)) => format!(
            "Held-out loss while training. The treatment stays below the baseline from {} tokens on.",
            chart::short(tokens)
        ),
        None => "Held-out loss while training. The curves of treatment and baseline do not cross."
            .to_owned(),
    };
    figure(out, "Loss while training", &charts.curves, &caption);
}

fn pairs(out: &mut String, study: &Study, charts: &Charts) {
    let Some(pairs) = &study.pairs else { return };
    let _ = writeln!(
        out,
        "<h2>Pairs</h2><p>{} pairs ({}); {} of {} documents are a seed, {} are in a pair.</p>",
        pairs.n_pairs,
        escape(&pairs.method),
        pairs.n_seeds,
        pairs.n_documents,
        pairs.n_covered
    );
    let several: u64 = pairs.multiplicity.iter().skip(2).sum();
    let caption = format!("{several} documents are the seed of more than one pair.");
    figure(out, "Pairs by similarity", &charts.pairs, &caption);
}

fn rate(rate: &Rate) -> String {
    if rate.n == 0 {
        return "\u{2013}".to_owned();
    }
    let [value, low, high] = [rate.rate, rate.low, rate.high].map(|x| number(x * 100.0, 1));
    format!("{value} %<small>{low} to {high}, n = {}</small>", rate.n)
}

/// A row of the quality table: name, how a corpus' cell is made, the real documents' cell.
type Measure = (&'static str, Box<dyn Fn(&Quality) -> String>, String);

fn quality(out: &mut String, study: &Study) {
    if study.quality.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Synthetic text</h2><p class=\"note\">Shares of documents by rules, with 95 % intervals. The \
         paper\u{2019}s figures are beside them for orientation: a language model judged them, on another \
         scale of model and data.</p>\n",
    );
    let names: Vec<String> = study.quality.iter().map(|(name, _)| escape(name)).collect();
    let mut head = vec!["measure"];
    head.extend(names.iter().map(String::as_str));
    head.extend(["real", "paper 200B", "paper 1T", "paper real"]);
    open_table(out, "Quality of synthetic text", &head);
    let first = &study.quality[0].1;
    let complement = |r: &Rate| Rate {
        rate: 1.0 - r.rate,
        low: 1.0 - r.high,
        high: 1.0 - r.low,
        k: r.n - r.k,
        n: r.n,
    };
    let dash = "\u{2013}".to_owned();
    let measures: [Measure; 6] = [
        ("repetition", Box::new(|q| rate(&q.repetition)), rate(&first.repetition_real)),
        ("duplicate", Box::new(|q| rate(&q.duplicate)), rate(&first.duplicate_real)),
        ("pair copying", Box::new(|q| rate(&q.pair_copying)), dash.clone()),
        ("regurgitation", Box::new(|q| rate(&q.regurgitation)), dash.clone()),
        (
            "irrelevance",
            Box::new(move |q| {
                if q.relevance.n == 0 {
                    rate(&q.relevance)
                } else {
                    rate(&complement(&q.relevance))
                }
            }),
            dash.clone(),
        ),
        (
            "own seed beats a random one",
            Box::new(|q| {
                q.win_rate.map_or("\u{2013}".to_owned(), |w| format!("{} %", number(w * 100.0, 1)))
            }),
            dash.clone(),
        ),
    ];
    for (name, of, real) in measures {
        let mut cells = vec![name.to_owned()];
        cells.extend(study.quality.iter().map(|(_, quality)| of(quality)));
        cells.push(real);
        let paper = PAPER_TABLE_2.iter().find(|row| row.0 == name);
        let percent = |x: Option<f64>| x.map_or(dash.clone(), |x| format!("{} %", number(x, 1)));
        cells.extend([
            percent(paper.map(|row| row.1)),
            percent(paper.map(|row| row.2)),
            percent(paper.and_then(|row| row.3)),
        ]);
        row(out, "", &cells);
    }
    out.push_str(CLOSE_TABLE);
}

fn samples(out: &mut String, study: &Study) {
    if study.samples.is_empty() {
        return;
    }
    out.push_str("<h2>Samples</h2><p class=\"note\">Drawn at random, not picked.</p>\n");
    for sample in &study.samples {
        let seed = sample.seed.as_deref().map_or("(written without a seed)".to_owned(), escape);
        let _ = writeln!(
            out,
            "<div class=\"sample\"><div><h3>Seed document</h3><pre>{seed}</pre></div>\
             <div><h3>Synthesis</h3><pre>{}</pre></div></div>",
            escape(&sample.synthesis)
        );
    }
}

fn provenance(out: &mut String, study: &Study) {
    out.push_str("<h2>Provenance</h2>\n");
    open_table(out, "Provenance", &["input", "made by", "digest"]);
    for (port, input) in &study.inputs {
        let made_by = format!("<code>{}</code>", escape(&format!("{}.{}", input.node, input.port)));
        let digest = format!("<code>{}</code>", input.digest.short());
        row(out, "", &[escape(port), made_by, digest]);
    }
    out.push_str(CLOSE_TABLE);
}
