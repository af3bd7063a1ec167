//! Checks that the arms of a study can be compared, and fails when they cannot.
//!
//! - every arm is trained on the same number of tokens;
//! - no synthetic document is shown twice;
//! - the oracle never repeats a document, and its pool has at least as many tokens as the budget;
//! - no document of the pool is there twice, and none is among the real documents or those that
//!   checkpoints are chosen by or results measured on; nor is one of those among the real ones.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use engine::task::{Context, Determinism, Failure, Input, Inputs, Outputs, Port, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compare::arm_of;
use crate::corpus::{read_json, write_json};
use crate::format::Error;
use crate::format::tokens::Tokens;
use crate::sample::stream_tokens;

/// Checks that arms can be compared.
pub struct CheckArms;

/// Params of `check_arms`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The arm that never repeats a document; it must be among the schedules.
    #[serde(default = "crate::compare::default_oracle")]
    pub oracle: String,
}

/// What is read of a schedule's `books.json`.
#[derive(Deserialize)]
struct Books {
    budget_tokens: u64,
    sources: Vec<Book>,
}

#[derive(Deserialize)]
struct Book {
    name: String,
    available_tokens: u64,
    /// How many documents are shown how often.
    histogram: BTreeMap<u64, u64>,
}

impl Book {
    fn most_shown(&self) -> u64 {
        self.histogram.iter().filter(|(_, n)| **n > 0).map(|(times, _)| *times).max().unwrap_or(0)
    }
}

/// One check in `checks.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What is checked.
    pub name: String,
    /// The figures behind it.
    pub found: String,
    /// Whether it holds.
    pub holds: bool,
}

impl Task for CheckArms {
    const KIND: &'static str = "check_arms";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "fails unless the arms of a study can be compared";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::many("schedules", "schedule", "what each arm is trained on"),
        Port::one("real", "tokens", "the real documents of the arms"),
        Port::one("pool", "tokens", "the oracle's documents"),
        Port::many("unseen", "tokens", "documents that no arm may be trained on"),
    ];
    const OUTPUTS: &'static [Port] = &[Port::one("checks", "checks", "what was checked")];
    type Params = Params;

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let schedules = inputs.many("schedules");
        let books = schedules.iter().map(read_books).collect::<Result<Vec<_>, _>>()?;
        let arms: Vec<String> = schedules.iter().map(|input| arm_of(&input.node)).collect();
        let Some(oracle) = arms.iter().position(|arm| *arm == params.oracle) else {
            let oracle = &params.oracle;
            return Err(Failure::permanent(format!("no schedule is of the arm `{oracle}`")));
        };
        let pool = Tokens::open(inputs.one("pool"))?;
        let mut checks = vec![
            same_budget(&arms, &books),
            shown_once("synthetic documents are shown at most once", &arms, &books, "synthetic"),
            shown_once(
                "the oracle repeats no document",
                &arms[oracle..=oracle],
                &books[oracle..=oracle],
                "real",
            ),
            large_enough(&books[oracle], &pool),
        ];
        checks.extend(disjoint(ctx, inputs, &pool)?);
        let broken: Vec<String> = checks
            .iter()
            .filter(|check| !check.holds)
            .map(|check| format!("not so: {}: {}", check.name, check.found))
            .collect();
        if !broken.is_empty() {
            return Err(Failure::permanent(broken.join("; ")));
        }
        write_json(&ctx.out("checks")?.join("checks.json"), &checks)?;
        Ok(Outputs::default()
            .metric("n_checks", checks.len() as f64)
            .metric("budget_tokens", books[oracle].budget_tokens as f64))
    }
}

fn read_books(input: &Input) -> Result<Books, Error> {
    read_json(&input.dir.join("books.json"))
}

fn same_budget(arms: &[String], books: &[Books]) -> Check {
    let budgets: Vec<String> = arms
        .iter()
        .zip(books)
        .map(|(arm, books)| format!("{arm} {}", books.budget_tokens))
        .collect();
    Check {
        name: "every arm is trained on as many tokens".to_owned(),
        found: budgets.join(", "),
        holds: books.iter().all(|other| other.budget_tokens == books[0].budget_tokens),
    }
}

fn shown_once(name: &str, arms: &[String], books: &[Books], source: &str) -> Check {
    let shown: Vec<(&str, u64)> = arms
        .iter()
        .zip(books)
        .flat_map(|(arm, books)| books.sources.iter().map(move |book| (arm.as_str(), book)))
        .filter(|(_, book)| book.name == source)
        .map(|(arm, book)| (arm, book.most_shown()))
        .collect();
    let found: Vec<String> =
        shown.iter().map(|(arm, times)| format!("{arm} at most {times} times")).collect();
    let holds = shown.iter().all(|(_, times)| *times <= 1);
    Check { name: name.to_owned(), found: found.join(", "), holds }
}

/// The pool must cover the budget, and the oracle must draw from it.
fn large_enough(oracle: &Books, pool: &Tokens) -> Check {
    let n_tokens = stream_tokens(pool);
    let drawn = oracle.sources.iter().map(|book| book.available_tokens).sum::<u64>();
    Check {
        name: "the oracle draws from the pool, which covers the budget".to_owned(),
        found: format!(
            "the pool has {n_tokens} tokens, the oracle's schedule {drawn}, the budget {}",
            oracle.budget_tokens
        ),
        holds: n_tokens >= oracle.budget_tokens && drawn == n_tokens,
    }
}

/// Compares documents token by token.
fn disjoint(ctx: &Context, inputs: &Inputs, pool: &Tokens) -> Result<Vec<Check>, Failure> {
    let real = Tokens::open(inputs.one("real"))?;
    let mut owners: BTreeMap<Vec<u32>, &str> = BTreeMap::new();
    let mut twice = [0_u64; 2];
    for i in 0..real.n_documents() {
        owners.insert(real.ids(i), "real");
    }
    for i in 0..pool.n_documents() {
        match owners.insert(pool.ids(i), "pool") {
            Some("pool") => twice[0] += 1,
            Some(_) => twice[1] += 1,
            None => {}
        }
    }
    ctx.check_cancelled()?;
    let mut seen = 0_u64;
    for input in inputs.many("unseen") {
        let tokens = Tokens::open(&input.dir)?;
        seen += (0..tokens.n_documents()).filter(|&i| owners.contains_key(&tokens.ids(i))).count()
            as u64;
    }
    let check = |name: &str, n: u64| Check {
        name: name.to_owned(),
        found: format!("{n} documents of {}", pool.n_documents()),
        holds: n == 0,
    };
    Ok(vec![
        check("no document is in the pool twice", twice[0]),
        check("no real document is in the pool", twice[1]),
        Check {
            name: "no document to choose or measure by is real or in the pool".to_owned(),
            found: format!("{seen} documents"),
            holds: seen == 0,
        },
    ])
}
