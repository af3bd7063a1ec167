//! Every figure of the page as CSV, and all of them as one JSON file.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Study;
use crate::compare::csv_field;

/// File names with their content.
pub(super) fn files(study: &Study) -> Vec<(&'static str, String)> {
    let mut files = vec![("curves.csv", curves(study)), ("quality.csv", quality(study))];
    if study.pairs.is_some() {
        files.push(("pairs.csv", pairs(study)));
    }
    if !study.upstream.is_empty() {
        files.push(("costs.csv", super::cost::csv(study)));
    }
    let points = mixture(study);
    if !points.is_empty() {
        files.push(("mixture.csv", mixture_csv(&points)));
    }
    files.push(("figures.json", format!("{:#}\n", all(study))));
    files
}

fn curves(study: &Study) -> String {
    let mut out = "arm,tokens,loss,heldout_loss\n".to_owned();
    for curve in &study.curves {
        for (tokens, loss, heldout) in &curve.points {
            let heldout = heldout.map(|loss| loss.to_string()).unwrap_or_default();
            writeln!(out, "{},{tokens},{loss},{heldout}", csv_field(&curve.arm))
                .expect("strings take text");
        }
    }
    out
}

fn quality(study: &Study) -> String {
    let mut out = "corpus,measure,by,rate,low,high,k,n\n".to_owned();
    let mut line = |corpus: &str, measure: &str, by: &str, rate: &crate::measure_quality::Rate| {
        writeln!(
            out,
            "{},{measure},{by},{},{},{},{},{}",
            csv_field(corpus),
            rate.rate,
            rate.low,
            rate.high,
            rate.k,
            rate.n
        )
        .expect("strings take text");
    };
    for (name, quality) in &study.quality {
        line(name, "repetition", "rules", &quality.repetition);
        line(name, "duplicate", "rules", &quality.duplicate);
        line(name, "pair_copying", "rules", &quality.pair_copying);
        line(name, "unsupported", "rules", &quality.unsupported);
        line(name, "regurgitation", "rules", &quality.regurgitation);
        line(name, "relevance", "rules", &quality.relevance);
    }
    for (measure, rates) in study.judgement.iter().flat_map(|judgement| &judgement.measures) {
        if let Some(bad) = &rates.bad {
            let name = json!(measure);
            line("judged", name.as_str().unwrap_or_default(), "judge", bad);
        }
    }
    out
}

fn pairs(study: &Study) -> String {
    let mut out = "from,to,pairs\n".to_owned();
    for bin in study.pairs.iter().flat_map(|pairs| &pairs.scores) {
        writeln!(out, "{},{},{}", bin.from, bin.to, bin.n).expect("strings take text");
    }
    out
}

/// An arm's share of synthetic tokens, and its loss with the interval.
pub(super) struct Point {
    pub(super) arm: String,
    pub(super) share: f64,
    pub(super) loss: [f64; 3],
}

/// Arms by their share of synthetic tokens, ascending; nothing unless they are a sweep: three arms or
/// more of different shares that show the same real documents.
pub(super) fn mixture(study: &Study) -> Vec<Point> {
    let real = |books: &Value| books["sources"][0]["available_tokens"].as_u64();
    let arms = &study.comparison.arms;
    let mut points: Vec<Point> = arms
        .iter()
        .filter(|arm| real(&arm.books) == arms.first().and_then(|first| real(&first.books)))
        .filter_map(|arm| {
            let loss = [arm.mean_nll.value, arm.mean_nll.low, arm.mean_nll.high];
            let share = arm.books["synthetic_share"].as_f64()?;
            Some(Point { arm: arm.name.clone(), share, loss })
        })
        .collect();
    points.sort_by(|a, b| a.share.total_cmp(&b.share));
    let is_sweep = points.windows(2).all(|pair| pair[1].share - pair[0].share > 0.01);
    if is_sweep && points.len() >= 3 { points } else { Vec::new() }
}

fn mixture_csv(points: &[Point]) -> String {
    let mut out = "arm,synthetic_share,loss,loss_low,loss_high\n".to_owned();
    for Point { arm, share, loss: [value, low, high] } in points {
        writeln!(out, "{},{share},{value},{low},{high}", csv_field(arm))
            .expect("strings take text");
    }
    out
}

fn all(study: &Study) -> Value {
    let curves = study.curves.iter().map(|curve| {
        let points =
            curve.points.iter().map(|(tokens, loss, heldout)| json!([tokens, loss, heldout]));
        json!({"arm": curve.arm, "points": points.collect::<Vec<_>>()})
    });
    let quality =
        study.quality.iter().map(|(name, quality)| json!({"corpus": name, "rates": quality}));
    json!({
        "version": 1,
        "title": study.title,
        "comparison": study.comparison,
        "curves": curves.collect::<Vec<_>>(),
        "quality": quality.collect::<Vec<_>>(),
        "judgement": study.judgement,
        "benchmarks": study.benchmarks,
        "pairs": study.pairs,
        "costs": study.upstream,
    })
}
