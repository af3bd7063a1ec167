use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::table::{average, fraction_of_oracle};
use super::*;
use crate::benchmark::{Row, Scores};
use crate::stats::Estimate;

/// Tables 1, 10 and 12 of arXiv 2509.15248: averages and shares recomputed from their parts, as this
/// task computes them.
#[test]
fn the_papers_tables_follow_from_their_parts() {
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/goldens/paper_tables.json")).unwrap();
    let column = |table: &str, name: &str| -> Vec<f64> {
        let values = golden[table][name].as_array().unwrap();
        values.iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let two_decimals = |value: f64| (value * 100.0).round() / 100.0;
    let mean = |table: &str, name: &str| two_decimals(average(&column(table, name)));
    for table in ["table_1_200b", "table_1_1t", "table_10", "table_12"] {
        for (name, stated) in golden[table]["average"].as_object().unwrap() {
            let found = mean(table, name);
            assert!((found - stated.as_f64().unwrap()).abs() < 1e-9, "{table} {name} {found}");
        }
    }
    let percent = |fraction: f64| format!("{:.1}", 100.0 * fraction);
    let share =
        |table: &str| percent(fraction_of_oracle(&column(table, "sbp"), &column(table, "oracle")));
    assert_eq!([share("table_1_200b"), share("table_1_1t")], ["41.9", "48.6"]);
    let pooled = |name: &str| [column("table_1_200b", name), column("table_1_1t", name)].concat();
    assert_eq!(percent(fraction_of_oracle(&pooled("sbp"), &pooled("oracle"))), "43.5");
}

/// Every accuracy of the tables is a whole number of right answers to the splits that
/// lm-evaluation-harness uses, which is why this program takes its formats.
#[test]
fn the_papers_accuracies_are_counts() {
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/goldens/paper_tables.json")).unwrap();
    let sizes = [1172, 2376, 1000, 1267, 17_944, 2032];
    let mut n_checked = 0;
    for (table, names) in [
        ("table_1_200b", &["baseline", "sbp", "oracle"][..]),
        ("table_1_1t", &["baseline", "sbp", "oracle"]),
        ("table_10", &["two_epochs", "one_epoch"]),
        ("table_12", &["baseline", "large"]),
    ] {
        for name in names {
            for (i, n) in sizes.into_iter().enumerate() {
                let own = golden[table][*name][i].as_f64().unwrap();
                let is_gain = !matches!(*name, "baseline" | "two_epochs" | "one_epoch");
                let base =
                    if is_gain { golden[table]["baseline"][i].as_f64().unwrap() } else { 0.0 };
                let accuracy = own + base;
                let k = (accuracy / 100.0 * f64::from(n)).round();
                let nearest = (k / f64::from(n) * 1e4).round() / 100.0;
                // Half of the last digit printed.
                assert!((nearest - accuracy).abs() < 0.0051, "{table} {name} {i}: {accuracy}");
                n_checked += 1;
            }
        }
    }
    assert_eq!(n_checked, 60);
}

fn measured(arm: &str, name: &str, right: &[bool]) -> Measured {
    let metric = Estimate { value: 0.0, low: 0.0, high: 0.0 };
    let scores = Scores {
        version: 1,
        name: name.to_owned(),
        scoring: String::new(),
        revision: 1,
        shots: 0,
        fewshot_seed: 0,
        n_items: right.len() as u64,
        headline: "acc".to_owned(),
        metrics: BTreeMap::from([("acc".to_owned(), metric)]),
    };
    let row = |(i, &right): (usize, &bool)| Row {
        item: i as u64,
        log_likelihoods: vec![],
        greedy: vec![],
        tokens: 0,
        bytes: 0,
        words: 0,
        prediction: None,
        text: None,
        right: BTreeMap::from([("acc".to_owned(), right)]),
    };
    let rows: Vec<Row> = right.iter().enumerate().map(row).collect();
    Measured::new(arm.to_owned(), format!("eval[arm={arm}]"), &scores, &rows).unwrap()
}

fn params() -> Params {
    serde_json::from_value(json!({"n_resamples": 500})).unwrap()
}

/// `n` answers of which about `share` are right, differing with `salt`.
fn answers(n: usize, share: f64, salt: u64) -> Vec<bool> {
    let rng = kernels::philox::Philox::new(salt, "answers");
    (0..n as u64).map(|i| rng.uniform(i) < share).collect()
}

#[test]
fn arms_are_compared_item_by_item() {
    let base = answers(400, 0.4, 1);
    // The treatment mends ten answers and spoils two.
    let mut sbp = base.clone();
    let wrong: Vec<usize> = (0..400).filter(|&i| !base[i]).take(10).collect();
    let right: Vec<usize> = (0..400).filter(|&i| base[i]).take(2).collect();
    for (flips, is_right) in [(wrong, true), (right, false)] {
        for i in flips {
            sbp[i] = is_right;
        }
    }
    let oracle: Vec<bool> = (0..400).map(|i| base[i] || i % 2 == 0).collect();
    let runs = [("base", &base), ("sbp", &sbp), ("oracle", &oracle)];
    let all: Vec<Measured> = ["easy", "hard"]
        .into_iter()
        .flat_map(|name| runs.map(|(arm, right)| measured(arm, name, right)))
        .collect();
    let table = compare(&params(), &all).unwrap();
    let cell = &table.lines[0].cells[1];
    assert_eq!((cell.discordant, cell.p), (Some((10, 2)), Some(stats::mcnemar(10, 2))));
    let difference = cell.difference.unwrap();
    assert!((difference.value - 2.0).abs() < 1e-9 && difference.low < 2.0 && 2.0 < difference.high);
    assert_eq!(cell.p_holm, cell.p.map(|p| 2.0 * p));
    assert!(table.lines[0].cells[0].difference.is_none());
    let average = table.average.as_ref().unwrap();
    assert!((average.cells[1].difference.unwrap().value - 2.0).abs() < 1e-9);
    // Pairing pays: an unpaired interval of two shares of 400 would be 13 points wide.
    assert!(difference.high - difference.low < 5.0);
    let fraction = table.fraction_of_oracle["sbp"];
    let gain = oracle.iter().filter(|&&right| right).count() as f64
        - base.iter().filter(|&&right| right).count() as f64;
    assert!((fraction.value - 8.0 / gain).abs() < 1e-9 && fraction.low < fraction.value);
    assert!(csv(&table).lines().count() == 1 + 3 * 3);
}

/// The paper's average is over six accuracies, and MMLU's is none of them.
#[test]
fn mmlu_is_in_no_average() {
    let (base, sbp) = (answers(400, 0.4, 1), answers(400, 0.5, 1));
    let oracle = answers(400, 0.6, 1);
    // On MMLU all arms are equal, which would shrink every gain.
    let all = |names: &[&str]| -> Vec<Measured> {
        let of = |name: &&str| {
            let mmlu = *name == "mmlu";
            [("base", &base), ("sbp", if mmlu { &base } else { &sbp }), ("oracle", &oracle)]
                .map(|(arm, right)| measured(arm, name, right))
        };
        names.iter().flat_map(of).collect()
    };
    let without = compare(&params(), &all(&["sciq", "webqs"])).unwrap();
    let with = compare(&params(), &all(&["sciq", "webqs", "mmlu"])).unwrap();
    assert_eq!(
        (with.lines.len(), &with.averaged[..]),
        (3, &["sciq".to_owned(), "webqs".to_owned()][..])
    );
    assert_eq!(
        (&with.average, &with.fraction_of_oracle),
        (&without.average, &without.fraction_of_oracle)
    );
    let everything: Params =
        serde_json::from_value(json!({"n_resamples": 500, "not_averaged": []})).unwrap();
    let seven = compare(&everything, &all(&["sciq", "webqs", "mmlu"])).unwrap();
    assert_eq!(seven.averaged.len(), 3);
    assert!(seven.fraction_of_oracle["sbp"].value < with.fraction_of_oracle["sbp"].value);
}

/// Benchmarks are resampled apart: one that is there twice under two names would else have the same
/// interval as by itself, and two of them together no narrower one.
#[test]
fn benchmarks_are_resampled_apart() {
    let (base, sbp) = (answers(400, 0.4, 1), answers(400, 0.5, 2));
    let of = |name| [measured("base", name, &base), measured("sbp", name, &sbp)];
    let all: Vec<Measured> = ["sciq", "webqs"].into_iter().flat_map(of).collect();
    let table = compare(&params(), &all).unwrap();
    let width = |line: &Line| {
        let difference = line.cells[1].difference.unwrap();
        difference.high - difference.low
    };
    let narrowed = width(table.average.as_ref().unwrap()) / width(&table.lines[0]);
    assert!((0.6..0.82).contains(&narrowed), "{narrowed} is not near the root of a half");
}

#[test]
fn seeds_are_replicates() {
    let runs = |arm: &str, shares: [f64; 3]| -> Vec<Measured> {
        shares
            .iter()
            .enumerate()
            .map(|(seed, &share)| measured(arm, "easy", &answers(1000, share, seed as u64)))
            .collect()
    };
    let mut all = runs("base", [0.4, 0.42, 0.41]);
    all.extend(runs("sbp", [0.5, 0.53, 0.51]));
    let table = compare(&params(), &all).unwrap();
    let cell = &table.lines[0].cells[1];
    let seeds = cell.seeds.unwrap();
    assert_eq!((seeds.n, cell.p), (3, None));
    assert!((seeds.mean - cell.difference.unwrap().value).abs() < 1e-9);
    assert!(seeds.low < seeds.mean && (seeds.mean - 10.0).abs() < 3.0, "{seeds:?}");
    assert_eq!(table.average.unwrap().cells[1].seeds, Some(seeds));
}

#[test]
fn an_oracle_without_gain_gives_no_share() {
    let base = answers(200, 0.5, 3);
    let all = vec![
        measured("base", "easy", &base),
        measured("sbp", "easy", &base),
        measured("oracle", "easy", &base),
    ];
    let table = compare(&params(), &all).unwrap();
    assert!(table.fraction_of_oracle.is_empty());
}

#[test]
fn incomplete_tables_are_refused() {
    let base = answers(50, 0.5, 3);
    let message = |all: &[Measured]| compare(&params(), all).unwrap_err().message;
    let missing = vec![
        measured("base", "easy", &base),
        measured("base", "hard", &base),
        measured("sbp", "easy", &base),
    ];
    assert!(message(&missing).contains("arm `sbp` was not scored on `hard`"));
    let fewer = vec![measured("base", "easy", &base), measured("sbp", "easy", &base[1..])];
    assert!(message(&fewer).contains("different items"));
    assert!(message(&[measured("sbp", "easy", &base)]).contains("`baseline` is `base`"));
}
