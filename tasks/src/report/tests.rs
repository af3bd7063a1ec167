//! The page is whole, safe and says what the numbers say.

use std::fmt::Write as _;
use std::path::PathBuf;

use engine::task::testbed::Bench;
use serde_json::{Map, Value, json};

use super::*;
use crate::compare::{Compare, tests as compared};
use crate::fixture;
use crate::format::pairs::{Documents, Pair};
use crate::measure_quality::MeasureQuality;

const ARMS: [(&str, f64); 5] = [
    ("base", 0.0),
    ("sbp", -0.1),
    ("random_pairs", -0.04),
    ("unconditional", 0.02),
    ("oracle", -0.2),
];

fn write_curve(dir: &Path, offset: f64, arm: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let mut csv = "step,tokens,lr,loss,heldout_loss\n".to_owned();
    for i in 1..=20_u32 {
        let x = f64::from(i) / 20.0;
        let up = if arm == 0 { 0.5 * (x - 0.5).max(0.0) } else { offset * x + 0.08 * (1.0 - x) };
        let heldout = 3.0 + 2.0 * (-4.0 * x).exp() + up;
        writeln!(csv, "{i},{},0.001,{},{heldout}", i * 60_000, heldout - 0.2).unwrap();
    }
    std::fs::write(dir.join("curve.csv"), csv).unwrap();
}

/// A full set of inputs of made-up data.
fn bench(dir: &Path) -> Bench {
    let arms = compared::bench(dir, &ARMS);
    arms.run::<Compare>(&json!({})).unwrap();
    let tokenizer = fixture::tokenizer(dir);
    let real: Vec<String> = (0..60).map(|i| fixture::words(i, 60)).collect();
    let tokens = fixture::tokens(dir, &real, &tokenizer);
    let corpus = dir.join("synthetic");
    let texts: Vec<String> = (0..30)
        .map(|i| format!("<script>alert({i})</script> & {}", fixture::words(i, 40)))
        .collect();
    fixture::corpus(&corpus, &texts, |i| {
        Map::from_iter([("seed_id".to_owned(), Value::from(format!("{:016x}", i + 1)))])
    });
    let quality = Bench::new(&dir.join("quality"))
        .input("synthetic", &corpus)
        .input("real", &tokens)
        .input("tokenizer", &tokenizer);
    quality.run::<MeasureQuality>(&json!({})).unwrap();
    let found = dir.join("pairs");
    std::fs::create_dir_all(&found).unwrap();
    let documents = Documents::of_tokens(&Tokens::open(&tokens).unwrap());
    let pairs = (0..59_u32)
        .flat_map(|i| (1..=i % 3 + 1).map(move |d| (i, (i + d) % 60)))
        .map(|(seed, target)| Pair {
            seed,
            target,
            score: 0.3 + 0.6 * (f64::from(seed * 7 % 40) / 40.0).sqrt() as f32,
        })
        .collect();
    pairs::write(&found, documents, pairs, "nearest").unwrap();
    let mut bench = Bench::new(&dir.join("report"))
        .input("comparison", &arms.out("comparison"))
        .input("quality", &quality.out("quality"))
        .input("pairs", &found)
        .input("synthetic", &corpus)
        .input("real", &tokens)
        .input("tokenizer", &tokenizer);
    bench.upstream = vec![Upstream {
        node: "joint[arm=sbp]".to_owned(),
        took_s: Some(12.0),
        n_attempts: 1,
        build: Some("sbp 1.2.3 (abc)".to_owned()),
        machine: Some("a <fast> machine".to_owned()),
        ..Upstream::default()
    }];
    for (i, (name, offset)) in ARMS.iter().enumerate() {
        let curve: PathBuf = dir.join(format!("curve_{i}"));
        write_curve(&curve, *offset, i);
        bench = bench.input("curves", &curve);
        let inputs = bench.inputs.get_mut("curves").unwrap();
        inputs.last_mut().unwrap().node = format!("joint[arm={name}]");
    }
    bench
}

#[test]
fn the_page_is_whole_and_loads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(dir.path());
    bench.run::<Report>(&json!({ "title": "A <study>" })).unwrap();
    let out = bench.out("report");
    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    for expected in [
        "<h1>A &lt;study&gt;</h1>",
        "<h2>Arms",
        "<h2>What each arm saw",
        "<h2>Training",
        "<h2>Pairs",
        "<h2>Synthetic text",
        "<h2>Samples",
        "<h2>Cost",
        "<p class=\"note\">Computed by sbp 1.2.3 (abc) on a &lt;fast&gt; machine.</p>",
        "<h2>Provenance",
    ] {
        assert!(html.contains(expected), "{expected}");
    }
    for forbidden in ["<script", "src=", "href=", "url(", "@import", "NaN"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert!(html.contains("&lt;script&gt;alert("));
    for tag in ["div", "table", "tr", "td", "figure", "svg", "small", "pre", "main"] {
        let opened =
            html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    for file in [
        "arms.svg",
        "curves.svg",
        "pairs.svg",
        "curves.csv",
        "pairs.csv",
        "quality.csv",
        "costs.csv",
        "figures.json",
    ] {
        assert!(std::fs::metadata(out.join(file)).unwrap().len() > 100, "{file}");
    }
    if let Some(copy) = std::env::var_os("SBP_REPORT_COPY") {
        std::fs::copy(out.join("report.html"), copy).unwrap();
    }
}

#[test]
fn the_verdict_follows_the_numbers() {
    let verdict = |arms: &[(&str, f64)]| {
        let dir = tempfile::tempdir().unwrap();
        let bench = compared::bench(dir.path(), arms);
        bench.run::<Compare>(&json!({})).unwrap();
        page::verdict(&Comparison::read(&bench.out("comparison")).unwrap())
    };
    let clear = verdict(&ARMS);
    for expected in [
        "sbp has a loss 0.",
        "lower than base",
        "best control, it has a loss",
        "than random_pairs",
        "% (",
        "oracle's gain.",
    ] {
        assert!(clear.contains(expected), "{expected}: {clear}");
    }
    let nothing = verdict(&[("base", 0.0), ("sbp", 0.0), ("oracle", 0.1)]);
    assert!(nothing.contains("sbp cannot be told from base"), "{nothing}");
    assert!(nothing.contains("the oracle does not beat the baseline"), "{nothing}");
    let worse = verdict(&[("base", 0.0), ("sbp", 0.1)]);
    assert!(worse.contains("higher than base"), "{worse}");
}

#[test]
fn crossing_is_interpolated() {
    let curve = |losses: [f64; 4]| Curve {
        arm: String::new(),
        points: losses
            .iter()
            .enumerate()
            .map(|(i, loss)| (10.0 * i as f64, 0.0, Some(*loss)))
            .collect(),
    };
    let baseline = curve([4.0, 3.0, 2.0, 2.0]);
    let found = crossing(&baseline, &curve([5.0, 3.5, 1.5, 1.0]));
    let Some(Crossing::At(tokens, loss)) = found else { panic!("{found:?}") };
    assert!((tokens - 15.0).abs() < 1e-9 && (loss - 2.5).abs() < 1e-9);
    let below_for_a_while = crossing(&baseline, &curve([5.0, 3.5, 1.5, 2.5]));
    assert_eq!(below_for_a_while, Some(Crossing::NotForGood));
    assert_eq!(crossing(&baseline, &curve([3.0, 2.0, 1.0, 1.0])), Some(Crossing::Always));
    assert_eq!(crossing(&baseline, &curve([5.0, 4.0, 3.0, 3.0])), Some(Crossing::Never));
    let elsewhere = Curve { arm: String::new(), points: vec![(7.0, 0.0, Some(1.0))] };
    assert_eq!(crossing(&baseline, &elsewhere), None);
}

#[test]
fn p_values_bring_their_sign() {
    assert_eq!([0.0004, 0.001, 0.012].map(page::p_value), ["&lt; 0.001", "= 0.001", "= 0.012"]);
}

/// The study of made-up data, to change before it is shown.
fn study(dir: &Path) -> Study {
    let bench = bench(dir);
    let params: Params = serde_json::from_value(json!({})).unwrap();
    read(&params, &Inputs::new(bench.inputs.clone()), &[]).unwrap()
}

fn shown(study: &Study) -> String {
    page::html(study, &page::Charts::of(study))
}

/// Arms that are nodes of their own, not values of a matrix, still have their curves.
#[test]
fn curves_of_plain_nodes_are_those_of_the_arms() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path());
    for (i, input) in bench.inputs.get_mut("curves").unwrap().iter_mut().enumerate() {
        input.node = format!("train_{i}");
    }
    let params: Params = serde_json::from_value(json!({})).unwrap();
    let mut study = read(&params, &Inputs::new(bench.inputs.clone()), &[]).unwrap();
    let names: Vec<&str> = study.curves.iter().map(|curve| curve.arm.as_str()).collect();
    assert_eq!(names, ARMS.map(|arm| arm.0));
    assert!(shown(&study).contains("The treatment stays below the baseline from "));
    study.curves.truncate(1);
    let html = shown(&study);
    assert!(html.contains("Held-out loss while training.</figcaption>"), "nothing to say");
}

/// A judge's answers stand in the column of the arm whose texts it read.
#[test]
fn a_judges_answers_stand_under_their_arm() {
    let dir = tempfile::tempdir().unwrap();
    let mut study = study(dir.path());
    let rate = crate::measure_quality::Rate::of_counts(7, 9);
    let rates = json!({"prompt": "p", "bad": rate, "undefined": null, "unparsed": rate});
    let judgement = json!({
        "version": 1, "model": "judge", "measures": {"factuality": rates}, "domains": [],
        "categories": [], "relations": [], "spent": {"answers": 9, "tokens": 5},
    });
    study.judgement = Some(serde_json::from_value(judgement).unwrap());
    let quality = study.quality[0].1.clone();
    study.quality = ["sbp", "random_pairs", "unconditional"]
        .map(|arm| (arm.to_owned(), quality.clone()))
        .into();
    study.shown_arm = Some("random_pairs".to_owned());
    let cells = |study: &Study| -> Vec<String> {
        let html = shown(study);
        let row = html.lines().find(|line| line.contains("errors of fact")).unwrap();
        row.split("<td>").skip(2).map(|cell| cell.replace("</td>", "")).collect()
    };
    let found: Vec<bool> = cells(&study).iter().take(3).map(|cell| cell.contains("77.8")).collect();
    assert_eq!(found, [false, true, false]);
    study.shown_arm = None;
    assert!(cells(&study)[2].contains("77.8"));
    // Without rules, the judge's answers are still shown.
    study.quality.clear();
    assert!(cells(&study)[0].contains("77.8"));
}

#[test]
fn seeds_that_are_not_connected_are_not_denied() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path());
    bench.inputs.remove("real");
    let params: Params = serde_json::from_value(json!({})).unwrap();
    let study = read(&params, &Inputs::new(bench.inputs.clone()), &[]).unwrap();
    assert!(study.samples.iter().all(|sample| sample.seed == Seed::NotShown));
    let html = shown(&study);
    assert!(html.contains("(not shown)") && !html.contains("(written without a seed)"));
}

#[test]
fn arms_that_are_no_controls_are_not_called_so() {
    let dir = tempfile::tempdir().unwrap();
    let arms = compared::bench(dir.path(), &ARMS);
    arms.run::<Compare>(&json!({"controls": []})).unwrap();
    let comparison = Comparison::read(&arms.out("comparison")).unwrap();
    let verdict = page::verdict(&comparison);
    assert!(verdict.contains("against the best of the other arms, it has a loss"), "{verdict}");
    assert!(!verdict.contains("control"), "{verdict}");
}

#[test]
fn benchmarks_and_a_judges_answers_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let estimate = |value: f64| json!({"value": value, "low": value - 1.0, "high": value + 1.0});
    let cell = |value: f64, difference: Option<f64>| {
        json!({
            "value": estimate(value), "difference": difference.map(estimate),
            "discordant": difference.map(|_| [9, 3]), "p": difference.map(|_| 0.146),
            "p_holm": null, "p_fdr": difference.map(|_| 0.146), "seeds": null,
        })
    };
    let line = |name: &str| {
        json!({
            "name": name, "measure": "acc", "higher_is_better": true, "n_items": 200,
            "cells": [cell(40.0, None), cell(42.5, Some(2.5))],
        })
    };
    let table = json!({
        "version": 1, "baseline": "base", "n_resamples": 100, "arms": ["base", "<sbp>"],
        "lines": [line("sciq")], "averaged": ["sciq"], "average": line("average"),
        "fraction_of_oracle": {"<sbp>": estimate(0.5)},
    });
    let rate = json!({"rate": 0.123, "low": 0.1, "high": 0.15, "k": 123, "n": 1000});
    let rates = json!({"prompt": "p", "bad": rate, "undefined": null, "unparsed": rate});
    let judgement = json!({
        "version": 1, "model": "a <judge>", "measures": {"factuality": rates}, "domains": [],
        "categories": [], "relations": [], "spent": {"answers": 1000, "tokens": 5},
    });
    let write = |name: &str, file: &str, value: &Value| {
        let folder = dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(file), value.to_string()).unwrap();
        folder
    };
    let bench = bench(dir.path())
        .input("benchmarks", &write("table", "benchmarks.json", &table))
        .input("judgement", &write("judgement", "judgement.json", &judgement));
    bench.run::<Report>(&json!({})).unwrap();
    let html = std::fs::read_to_string(bench.out("report").join("report.html")).unwrap();
    for expected in [
        "<h2>Benchmarks",
        "+2.50 (1.50 to 3.50)",
        "p = 0.146",
        // The paper's SciQ and average.
        "90.50<small>+1.00, +2.40",
        "47.66<small>+2.32, +5.54",
        "&lt;sbp&gt; 50.0 %",
        "errors of fact<small>judged by a &lt;judge&gt;",
        "12.3 %<small>10.0 to 15.0, n = 1000",
    ] {
        assert!(html.contains(expected), "{expected}");
    }
    let figures = std::fs::read(bench.out("report").join("figures.json")).unwrap();
    let figures: Value = serde_json::from_slice(&figures).unwrap();
    assert_eq!(figures["benchmarks"]["lines"][0]["name"], "sciq");
    assert_eq!(figures["judgement"]["model"], "a <judge>");
    if let Some(copy) = std::env::var_os("SBP_REPORT_COPY_BENCHMARKS") {
        std::fs::copy(bench.out("report").join("report.html"), copy).unwrap();
    }
}

/// Arms of different shares over the same documents are a sweep; arms of one share are not.
#[test]
fn sweeps_are_told_from_other_studies() {
    let dir = tempfile::tempdir().unwrap();
    let mut study = study(dir.path());
    assert!(figures::mixture(&study).is_empty());
    for (i, arm) in study.comparison.arms.iter_mut().enumerate() {
        arm.books =
            json!({"synthetic_share": 0.5 - 0.1 * i as f64, "sources": [{"available_tokens": 9}]});
    }
    let points = figures::mixture(&study);
    assert_eq!(points.len(), ARMS.len());
    assert!(points[0].share < points[4].share && points[4].arm == "base");
    let html = shown(&study);
    assert!(html.contains("<h2>Share of synthetic text"));
}
