//! The page: what is said and shown, in order.

use std::fmt::Write as _;

use serde_json::Value;

use super::chart::{self, Row, Series};
use super::{Crossing, Study, cost, crossing, escape, figures, look, tables};
use crate::compare::{Arm, Comparison, Role};
use crate::stats::Estimate;

/// The charts of a study; empty where there is nothing to draw.
pub(super) struct Charts {
    arms: String,
    curves: String,
    pairs: String,
    mixture: String,
    crossing: Option<Crossing>,
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
        let mark = match crossing {
            Some(Crossing::At(tokens, loss)) => {
                Some((tokens, loss, format!("below from {} tokens on", chart::short(tokens))))
            }
            _ => None,
        };
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
            mixture: mixture(study),
            crossing,
        }
    }

    /// File names with their content.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let files = [
            ("arms.svg", &self.arms),
            ("curves.svg", &self.curves),
            ("pairs.svg", &self.pairs),
            ("mixture.svg", &self.mixture),
        ];
        files.into_iter().filter(|(_, svg)| !svg.is_empty()).map(|(name, svg)| (name, svg.as_str()))
    }
}

/// Loss over the share of synthetic text; empty unless the arms are a sweep of it.
fn mixture(study: &Study) -> String {
    let points = figures::mixture(study);
    if points.is_empty() {
        return String::new();
    }
    let series = |name: &str, color: &str, dash, at: usize| Series {
        name: name.to_owned(),
        color: color.to_owned(),
        dash,
        points: points.iter().map(|point| (100.0 * point.share, point.loss[at])).collect(),
    };
    let all = [
        series("loss", "--treatment", "", 0),
        series("95 % interval", "--soft", "2 3", 1),
        series("", "--soft", "2 3", 2),
    ];
    chart::lines(&all, ("per cent of the tokens synthetic", "held-out loss, nats per token"), None)
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
    // Controls say what the treatment adds; without any, the other arms are at least other choices.
    let has_controls = comparison.contrasts.iter().any(|contrast| contrast.role == Role::Control);
    let (role, best_of) = if has_controls {
        (Role::Control, "the best control")
    } else {
        (Role::Other, "the best of the other arms")
    };
    let compared: Vec<_> =
        comparison.contrasts.iter().filter(|contrast| contrast.role == role).collect();
    let best = compared.iter().max_by(|a, b| {
        a.difference.value.total_cmp(&b.difference.value).then(b.against.cmp(&a.against))
    });
    if let Some(best) = best {
        text.push_str("; ");
        if compared.len() > 1 {
            let _ = write!(text, "against {best_of}, ");
        }
        text.push_str(&against("it", best.difference, &best.against));
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
pub(super) fn number(x: f64, decimals: usize) -> String {
    let text = format!("{x:.decimals$}");
    let negative_zero = text.starts_with('-') && text.chars().all(|c| "-0.".contains(c));
    if negative_zero { text[1..].to_owned() } else { text.replace('-', "\u{2212}") }
}

pub(super) fn with_interval(estimate: Estimate, decimals: usize) -> String {
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
    mixture_figure(&mut out, charts);
    tables::benchmarks(&mut out, study);
    pairs(&mut out, study, charts);
    tables::quality(&mut out, study);
    tables::samples(&mut out, study);
    cost::table(&mut out, study);
    tables::provenance(&mut out, study);
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

pub(super) fn open_table(out: &mut String, label: &str, head: &[&str]) {
    let _ = write!(
        out,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\"><table><thead><tr>"
    );
    for cell in head {
        let _ = write!(out, "<th scope=\"col\">{cell}</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
}

pub(super) fn row(out: &mut String, class: &str, cells: &[String]) {
    let _ = write!(out, "<tr class=\"{class}\">");
    for cell in cells {
        let _ = write!(out, "<td>{cell}</td>");
    }
    out.push_str("</tr>\n");
}

pub(super) const CLOSE_TABLE: &str = "</tbody></table></div>\n";

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
    diets(out, comparison);
    if !comparison.contrasts.is_empty() {
        out.push_str("<h2>Against the other arms</h2>\n");
        let head =
            ["arm", "role", "treatment\u{2019}s loss minus the arm\u{2019}s, nats per token"];
        open_table(out, "Against the other arms", &head);
        for contrast in &comparison.contrasts {
            let role = contrast.role.name().to_owned();
            let difference = with_interval(contrast.difference, 4);
            row(out, "", &[escape(&contrast.against), role, difference]);
        }
        out.push_str(CLOSE_TABLE);
    }
}

fn arm_row(out: &mut String, comparison: &Comparison, arm: &Arm) {
    let dash = || "\u{2013}".to_owned();
    let percent = |estimate: Estimate| {
        let scaled = Estimate {
            value: estimate.value * 100.0,
            low: estimate.low * 100.0,
            high: estimate.high * 100.0,
        };
        with_interval(scaled, 0).replace("<small>", " %<small>")
    };
    let class = if arm.role == Role::Treatment { "treatment" } else { "" };
    row(
        out,
        class,
        &[
            arm_name(comparison, arm),
            with_interval(arm.mean_nll, 4),
            with_interval(arm.perplexity, 2),
            with_interval(arm.bits_per_byte, 4),
            arm.difference.map_or_else(dash, |difference| with_interval(difference, 4)),
            if arm.role == Role::Baseline {
                dash()
            } else {
                let p = p_value(arm.sign_p);
                format!("{} : {}<small>p {p}</small>", arm.n_better, arm.n_worse)
            },
            arm.gap_closed.map_or_else(dash, percent),
        ],
    );
}

/// An arm's name behind a dot of its colour.
fn arm_name(comparison: &Comparison, arm: &Arm) -> String {
    let key = look(comparison, &arm.name).0;
    format!("<span class=\"key\" style=\"background:var({key})\"></span>{}", escape(&arm.name))
}

/// What each arm was trained on.
fn diets(out: &mut String, comparison: &Comparison) {
    out.push_str("<h2>What each arm saw</h2>\n");
    let head = ["arm", "tokens", "unique real", "real repeats", "synthetic"];
    open_table(out, "What each arm saw", &head);
    let dash = || "\u{2013}".to_owned();
    for arm in &comparison.arms {
        let (books, real) = (&arm.books, &arm.books["sources"][0]);
        let count = |value: &Value| value.as_f64().map_or_else(dash, chart::short);
        let repeats = real["repetitions"].as_f64();
        let share = books["synthetic_share"].as_f64();
        let cells = [
            arm_name(comparison, arm),
            count(&books["budget_tokens"]),
            count(&real["available_tokens"]),
            repeats.map_or_else(dash, |n| format!("{}\u{d7}", number(n, 2))),
            share.map_or_else(dash, |share| format!("{} %", number(share * 100.0, 1))),
        ];
        row(out, "", &cells);
    }
    out.push_str(CLOSE_TABLE);
}

/// What stands behind a `p`: `= 0.012`, or `< 0.001` as HTML.
pub(super) fn p_value(p: f64) -> String {
    if p < 0.001 { "&lt; 0.001".to_owned() } else { format!("= {}", number(p, 3)) }
}

fn curves(out: &mut String, charts: &Charts) {
    if charts.curves.is_empty() {
        return;
    }
    out.push_str("<h2>Training</h2>\n");
    let crossing = match charts.crossing {
        Some(Crossing::Always) => " The treatment is below the baseline at every point.".to_owned(),
        Some(Crossing::At(tokens, _)) => {
            let tokens = chart::short(tokens);
            format!(" The treatment stays below the baseline from {tokens} tokens on.")
        }
        Some(Crossing::NotForGood) => " The treatment does not stay below the baseline.".to_owned(),
        Some(Crossing::Never) => " The treatment is below the baseline at no point.".to_owned(),
        None => String::new(),
    };
    let caption = format!("Held-out loss while training.{crossing}");
    figure(out, "Loss while training", &charts.curves, &caption);
}

fn mixture_figure(out: &mut String, charts: &Charts) {
    if charts.mixture.is_empty() {
        return;
    }
    out.push_str("<h2>Share of synthetic text</h2>\n");
    let caption =
        "The same budget and real documents in every arm; the rest is real text, repeated.";
    figure(out, "Loss by share of synthetic text", &charts.mixture, caption);
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
