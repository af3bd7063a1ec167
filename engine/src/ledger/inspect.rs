//! Whether the ledger agrees with itself and with the store.

use serde::Serialize;

use super::Error;
use super::database::{Bind, Database};
use crate::digest::Digest;
use crate::open::{self, Engine};
use crate::plan::blocking;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub problem: &'static str,
    /// How often.
    pub n: u64,
    /// One of them.
    pub example: String,
    /// What to do, or what happens by itself.
    pub help: &'static str,
    /// Whether results are in danger; otherwise it only takes space or is mended by the next run.
    pub is_damage: bool,
}

struct Rule {
    problem: &'static str,
    /// Gives one text for each offender.
    sql: &'static str,
    help: &'static str,
    is_damage: bool,
}

const RULES: &[Rule] = &[
    Rule {
        problem: "a finished key has no finished attempt",
        sql: "SELECT k.key FROM node_key AS k WHERE k.state = 'done' AND NOT EXISTS
                (SELECT 1 FROM attempt AS a WHERE a.key = k.key AND a.state = 'done')",
        help: "restore the ledger from an export, or let the node run again by changing its salt",
        is_damage: true,
    },
    Rule {
        problem: "a running attempt does not hold its key",
        sql: "SELECT a.key FROM attempt AS a JOIN node_key AS k ON k.key = a.key
               WHERE a.state = 'running' AND (k.state <> 'running' OR k.epoch <> a.epoch)",
        help: "its result will be refused; nothing needs to be done",
        is_damage: false,
    },
    Rule {
        problem: "a running key has no running attempt",
        sql: "SELECT k.key FROM node_key AS k WHERE k.state = 'running' AND NOT EXISTS
                (SELECT 1 FROM attempt AS a
                  WHERE a.key = k.key AND a.epoch = k.epoch AND a.state = 'running')",
        help: "the next run takes it over when its lease stands still",
        is_damage: true,
    },
    Rule {
        problem: "a finished node of a run has no key",
        sql: "SELECT n.run_id || ' ' || n.name FROM own_node AS n
               WHERE n.state IN ('done', 'cached') AND NOT EXISTS
                (SELECT 1 FROM node_key AS k WHERE k.key = n.key)",
        help: "restore the ledger from an export",
        is_damage: true,
    },
    Rule {
        problem: "a run shares the nodes of a run that shares others or is not there",
        sql: "SELECT r.id FROM run AS r WHERE NOT EXISTS
                (SELECT 1 FROM run AS o WHERE o.id = r.nodes_of AND o.nodes_of = o.id)",
        help: "restore the ledger from an export",
        is_damage: true,
    },
    Rule {
        problem: "an output belongs to no key",
        sql: "SELECT o.key FROM output AS o WHERE NOT EXISTS
                (SELECT 1 FROM node_key AS k WHERE k.key = o.key)",
        help: "restore the ledger from an export",
        is_damage: true,
    },
    Rule {
        problem: "an attempt's number is above its key's",
        sql: "SELECT a.key FROM attempt AS a JOIN node_key AS k ON k.key = a.key
               WHERE a.epoch > k.epoch",
        help: "restore the ledger from an export",
        is_damage: true,
    },
];

const INTEGRITY: &str = "PRAGMA integrity_check(20)";
const PRESENT: &str = "SELECT digest FROM artifact WHERE store = $1 AND state = 'present'";

/// Collects offenders of one kind.
fn finding(rule: &Rule, offenders: &[String]) -> Option<Finding> {
    let example = offenders.first()?.clone();
    let Rule { problem, help, is_damage, .. } = *rule;
    Some(Finding { problem, n: offenders.len() as u64, example, help, is_damage })
}

async fn texts(database: &mut Database, sql: &'static str) -> Result<Vec<String>, Error> {
    let rows = database.fetch(sql, &[]).await?;
    Ok(rows.into_iter().map(|mut row| row.text(0)).collect())
}

impl Engine {
    /// Checks the ledger's database, its promises to itself, and that the store has what it says.
    /// Reads no artifact: [`crate::store::Store::verify`] does.
    ///
    /// # Errors
    /// When store or ledger are in trouble.
    pub async fn check_ledger(&self) -> Result<Vec<Finding>, open::Error> {
        let mut findings = Vec::new();
        let mut database = self.ledger.database.lock().await;
        if !database.is_postgres() {
            let mut problems = texts(&mut database, INTEGRITY).await?;
            problems.retain(|text| text != "ok");
            let rule = Rule {
                problem: "the database file is damaged",
                sql: INTEGRITY,
                help: "restore the ledger from an export",
                is_damage: true,
            };
            findings.extend(finding(&rule, &problems));
        }
        for rule in RULES {
            let offenders = texts(&mut database, rule.sql).await?;
            findings.extend(finding(rule, &offenders));
        }
        let rows = database.fetch(PRESENT, &[Bind::Text(self.store.id())]).await?;
        drop(database);
        let mut present = std::collections::BTreeSet::new();
        for mut row in rows {
            present.insert(row.text(0).parse::<Digest>().map_err(Error::value)?);
        }
        let found = blocking(|| self.store.artifacts())?;
        let missing: Vec<String> = present
            .iter()
            .filter(|digest| found.binary_search(digest).is_err())
            .map(ToString::to_string)
            .collect();
        let rule = Rule {
            problem: "an artifact is not in the store",
            sql: PRESENT,
            help: "the next run that needs it makes it again",
            is_damage: true,
        };
        findings.extend(finding(&rule, &missing));
        let orphans: Vec<String> = found
            .iter()
            .filter(|digest| !present.contains(digest))
            .map(ToString::to_string)
            .collect();
        let rule = if present.is_empty() {
            Rule {
                problem: "no artifact in the store is known",
                sql: PRESENT,
                help: "name the ledger of the runs that made them with `--ledger`",
                is_damage: true,
            }
        } else {
            Rule {
                problem: "an artifact in the store is unknown",
                sql: PRESENT,
                help: "a crash left it; `sbp gc` removes it",
                is_damage: false,
            }
        };
        findings.extend(finding(&rule, &orphans));
        Ok(findings)
    }
}
