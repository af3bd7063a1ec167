//! A study as tables: Markdown to read, CSV to plot.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::estimate::{Study as Evaluations, mean};
use super::{Contrast, Facts, Figure, Mean, Study};
use crate::compare::csv_field;
use crate::measure_quality::Rate;

/// `table.md`.
pub(super) fn markdown(study: &Study) -> String {
    let mut out = String::new();
    let parts =
        [arms(study), contrasts(study), oracle_shares(study), crossings(study), pairs(study)];
    for part in parts.into_iter().chain([synthesizers(study), synthetic(study)]) {
        out.push_str(&part);
        out.push('\n');
    }
    out
}

/// A Markdown table.
fn table(title: &str, head: &[String], rows: &[Vec<String>]) -> String {
    let mut out = format!("{title}\n\n");
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    out.push_str(&line(head));
    out.push_str(&line(&vec!["---".to_owned(); head.len()]));
    for row in rows {
        out.push_str(&line(row));
    }
    out
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn number(value: f64) -> String {
    format!("{value:.3}")
}

fn interval(mean: Mean) -> String {
    match (mean.low, mean.high) {
        (Some(low), Some(high)) => format!("{:.3} [{low:.3}, {high:.3}]", mean.value),
        _ => number(mean.value),
    }
}

fn arms(study: &Study) -> String {
    let mut head = strings(&["arm"]);
    head.extend(study.seeds.iter().map(|seed| format!("QA, seed {seed}")));
    head.extend(strings(&["QA", "fact loss", "loss", "other words", "QA by kind", "excess, any"]));
    let row = |arm: &String| {
        let cells: Vec<_> = study.cells.iter().filter(|cell| cell.arm == *arm).collect();
        let of = |kind: &str, figure: &dyn Fn(&crate::evaluate_world::KindScore) -> Option<f64>| {
            let values: Option<Vec<f64>> =
                cells.iter().map(|cell| cell.kinds.get(kind).and_then(figure)).collect();
            values.filter(|values| !values.is_empty()).map(|values| mean(&values).value)
        };
        let headline = study.headline.as_str();
        let mut row = vec![arm.clone()];
        row.extend(cells.iter().map(|cell| {
            cell.kinds.get(headline).and_then(|kind| kind.accuracy).map_or_else(String::new, number)
        }));
        let kinds = ["single_same", "multi"]
            .map(|kind| of(kind, &|kind| kind.accuracy).map(|value| format!("{kind} {value:.3}")));
        row.extend([
            of(headline, &|kind| kind.accuracy).map_or_else(String::new, number),
            of(headline, &|kind| Some(kind.fact_loss)).map_or_else(String::new, number),
            of(headline, &|kind| Some(kind.loss)).map_or_else(String::new, number),
            of(headline, &|kind| Some(kind.other_loss)).map_or_else(String::new, number),
            kinds.into_iter().flatten().collect::<Vec<_>>().join(", "),
            of("any", &|kind| kind.excess).map_or_else(String::new, number),
        ]);
        row
    };
    let title = format!(
        "Arms on documents and questions of kind `{}`; by chance {:.3} of the questions are right",
        study.headline, study.chance
    );
    table(&title, &head, &study.arms.iter().map(row).collect::<Vec<_>>())
}

fn contrasts(study: &Study) -> String {
    let mut head = strings(&["treatment minus", "figure", "mean over seeds"]);
    head.extend(study.seeds.iter().map(|seed| format!("seed {seed}")));
    let row = |contrast: &Contrast| {
        let mut row = vec![
            contrast.against.clone(),
            contrast.figure.name().to_owned(),
            interval(contrast.mean),
        ];
        row.extend(contrast.seeds.iter().map(|s| {
            let against = if s.against == contrast.against {
                String::new()
            } else {
                format!(" {}", s.against)
            };
            format!("{:+.3} [{:+.3}, {:+.3}]{against}", s.value, s.low, s.high)
        }));
        row
    };
    table(
        "Differences; intervals over seeds from Student's t, of one seed from a paired bootstrap",
        &head,
        &study.contrasts.iter().map(row).collect::<Vec<_>>(),
    )
}

fn oracle_shares(study: &Study) -> String {
    let mut head = strings(&["arm", "figure"]);
    head.extend(study.seeds.iter().map(|seed| format!("seed {seed}")));
    let mut rows: BTreeMap<(usize, Figure), Vec<String>> = BTreeMap::new();
    for share in &study.oracle_shares {
        let place = study.arms.iter().position(|arm| *arm == share.arm).unwrap_or(0);
        let text = share.share.map_or_else(|| "oracle not ahead".to_owned(), number);
        rows.entry((place, share.figure)).or_default().push(text);
    }
    let rows = rows.into_iter().map(|((place, figure), values)| {
        [vec![study.arms[place].clone(), figure.name().to_owned()], values].concat()
    });
    table("Share of the oracle's gain over the baseline", &head, &rows.collect::<Vec<_>>())
}

fn crossings(study: &Study) -> String {
    let rows: Vec<Vec<String>> = study
        .crossings
        .iter()
        .map(|crossing| {
            let at = crossing.fraction.map_or_else(|| "never".to_owned(), number);
            vec![crossing.figure.name().to_owned(), crossing.seed.clone(), at]
        })
        .collect();
    let head = strings(&["figure", "seed", "share of the budget"]);
    table("Where the treatment's curve stays better than the baseline's", &head, &rows)
}

fn pairs(study: &Study) -> String {
    let rows: Vec<Vec<String>> = study
        .pairs
        .iter()
        .map(|of| {
            let found = &of.found;
            vec![
                of.seed.clone(),
                found.n_found.to_string(),
                found.n_true.to_string(),
                number(found.precision),
                number(found.recall),
            ]
        })
        .collect();
    let head = strings(&["seed", "pairs found", "true pairs", "precision", "recall"]);
    table("Pairs", &head, &rows)
}

/// What seeds found, by place and name of the arm, and by kind or group.
type Rows<'a, T> = BTreeMap<(usize, &'a str, &'a str), Vec<T>>;

fn synthesizers(study: &Study) -> String {
    let mut rows: Rows<'_, [Option<f64>; 6]> = BTreeMap::new();
    for of in &study.synthesizers {
        for (kind, scores) in &of.found {
            let after = &scores.after;
            rows.entry((place(study, &of.arm), &of.arm, kind)).or_default().push([
                Some(scores.exact),
                Some(after.related),
                Some(after.unrelated),
                Some(scores.kl_marginal),
                scores.before.as_ref().map(|before| before.kl_alone),
                Some(after.kl),
            ]);
        }
    }
    let head = strings(&[
        "tuning",
        "d1",
        "exact loss",
        "d2 after d1",
        "after another d1",
        "KL of the marginal",
        "KL before tuning",
        "KL after",
    ]);
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|((_, arm, kind), values)| {
            let column =
                |i: usize| over_seeds(&values.iter().filter_map(|row| row[i]).collect::<Vec<_>>());
            [strings(&[arm, kind]), (0..6).map(column).collect()].concat()
        })
        .collect();
    let title = "Synthesizers, means over seeds: loss in nats a token, divergence from the exact P(d2 | d1) \
                 in nats a document";
    table(title, &head, &rows)
}

/// The rates of a group of synthetic documents that tables show, in order.
fn rates(facts: &Facts) -> [(&'static str, Option<&Rate>); 9] {
    [
        ("wrong name", facts.wrong_name.as_ref()),
        ("fact error", facts.fact_error.as_ref()),
        ("in seed", facts.fact_error_in_seed.as_ref()),
        ("not in seed", facts.fact_error_not_in_seed.as_ref()),
        ("error, as named", Some(&facts.named_fact_error)),
        ("new genre", facts.new_genre.as_ref()),
        ("copied", facts.copied.as_ref()),
        ("regurgitated", Some(&facts.regurgitated)),
        ("possible", Some(&facts.possible)),
    ]
}

/// The place of an arm's row: that of the arm, or behind all for what was measured of no arm.
fn place(study: &Study, arm: &str) -> usize {
    study.arms.iter().position(|known| known == arm).unwrap_or(study.arms.len())
}

/// The mean over the seeds that have a value.
fn over_seeds(values: &[f64]) -> String {
    if values.is_empty() { "–".to_owned() } else { number(mean(values).value) }
}

fn synthetic(study: &Study) -> String {
    let mut rows: Rows<'_, &Facts> = BTreeMap::new();
    for of in &study.synthetic {
        for (group, facts) in &of.found {
            rows.entry((place(study, &of.arm), &of.arm, group)).or_default().push(facts);
        }
    }
    let mut head = strings(&["arm", "seeds"]);
    let first = study.synthetic.first().and_then(|of| of.found.values().next());
    head.extend(first.into_iter().flat_map(rates).map(|(name, _)| name.to_owned()));
    let rows = rows.into_iter().map(|((_, arm, group), facts)| {
        let mut row = strings(&[arm, group]);
        for i in 0..head.len() - 2 {
            let known = facts.iter().filter_map(|facts| rates(facts)[i].1);
            let values: Vec<f64> = known.filter(|rate| rate.n > 0).map(|rate| rate.rate).collect();
            row.push(over_seeds(&values));
        }
        row
    });
    table("Synthetic documents, means over seeds", &head, &rows.collect::<Vec<_>>())
}

/// `arms.csv`: one line an arm, seed and kind.
pub(super) fn arms_csv(study: &Study) -> String {
    let mut out =
        "arm,seed,kind,n_documents,loss,fact_loss,other_loss,excess,n_questions,accuracy\n"
            .to_owned();
    let maybe = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for cell in &study.cells {
        for (kind, score) in &cell.kinds {
            line(
                &mut out,
                &[
                    csv_field(&cell.arm),
                    csv_field(&cell.seed),
                    kind.clone(),
                    score.n_documents.to_string(),
                    score.loss.to_string(),
                    score.fact_loss.to_string(),
                    score.other_loss.to_string(),
                    maybe(score.excess),
                    score.n_questions.to_string(),
                    maybe(score.accuracy),
                ],
            );
        }
    }
    out
}

/// `contrasts.csv`: one line a contrast and seed, and one for its mean.
pub(super) fn contrasts_csv(study: &Study) -> String {
    let mut out = "against,figure,seed,arm,value,low,high\n".to_owned();
    let maybe = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for contrast in &study.contrasts {
        let (against, figure) = (csv_field(&contrast.against), contrast.figure.name().to_owned());
        for seed in &contrast.seeds {
            line(
                &mut out,
                &[
                    against.clone(),
                    figure.clone(),
                    csv_field(&seed.seed),
                    csv_field(&seed.against),
                    seed.value.to_string(),
                    seed.low.to_string(),
                    seed.high.to_string(),
                ],
            );
        }
        let Mean { value, low, high } = contrast.mean;
        let mean = "mean".to_owned();
        line(
            &mut out,
            &[against, figure, mean, String::new(), value.to_string(), maybe(low), maybe(high)],
        );
    }
    out
}

/// `curves.csv`: one line an arm, seed, point and kind.
pub(super) fn curves_csv(evaluations: &Evaluations<'_>) -> String {
    let mut out = "arm,seed,fraction,kind,loss,fact_loss,other_loss,accuracy\n".to_owned();
    for (arm, seed, fraction, kinds) in evaluations.points() {
        for (kind, score) in kinds {
            line(
                &mut out,
                &[
                    csv_field(arm),
                    csv_field(seed),
                    fraction.to_string(),
                    kind.clone(),
                    score.loss.to_string(),
                    score.fact_loss.to_string(),
                    score.other_loss.to_string(),
                    score.accuracy.map_or_else(String::new, |value| value.to_string()),
                ],
            );
        }
    }
    out
}

/// `synthetic.csv`: one line an arm, seed, group and rate.
pub(super) fn synthetic_csv(study: &Study) -> String {
    let mut out = "arm,seed,group,measure,rate,low,high,k,n\n".to_owned();
    for of in &study.synthetic {
        for (group, facts) in &of.found {
            for (name, rate) in rates(facts) {
                let Some(rate) = rate else { continue };
                line(
                    &mut out,
                    &[
                        csv_field(&of.arm),
                        csv_field(&of.seed),
                        group.clone(),
                        csv_field(name),
                        rate.rate.to_string(),
                        rate.low.to_string(),
                        rate.high.to_string(),
                        rate.k.to_string(),
                        rate.n.to_string(),
                    ],
                );
            }
        }
    }
    out
}

fn line(out: &mut String, fields: &[String]) {
    writeln!(out, "{}", fields.join(",")).expect("strings take text");
}
