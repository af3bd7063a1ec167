//! What operators ask about the items of a node: how far its stages are, and who works on them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::database::{Bind, Database};
use super::record::json;
use super::{Error, Ledger, Owner};

/// How far a stage of a node's items is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StageRow {
    /// The stage's name.
    pub stage: String,
    /// Items listed so far.
    pub total: u64,
    /// Items whose results are there. Those of a finished node are given up, and counted too.
    pub done: u64,
    /// Items at work, by the process that holds them, `host:pid`.
    pub running: BTreeMap<String, u64>,
    /// Items that failed at least once and are not done.
    pub failed: u64,
    /// The last failure of one of them, after its name.
    pub failure: Option<String>,
}

/// By node, then stages in the order in which they were begun.
pub(super) type Stages = BTreeMap<String, Vec<StageRow>>;

const STAGES: &str = "
    SELECT n.node_key, n.stage, i.state, w.host || ':' || w.pid, i.owner,
           CASE WHEN i.n_failed > 0 THEN 1 ELSE 0 END, count(*), min(i.created_us),
           min(i.name || ': ' || coalesce(i.failure, 'it failed'))
      FROM {rows: key TEXT} AS r
      JOIN node_item AS n ON n.node_key = r.key
      JOIN item AS i ON i.key = n.item AND i.store = $2
      LEFT JOIN owner AS w ON w.id = i.owner AND i.state = 'running'
     GROUP BY n.node_key, n.stage, i.state, w.host, w.pid, i.owner,
              CASE WHEN i.n_failed > 0 THEN 1 ELSE 0 END
     ORDER BY 1, 2, 3, 4";

impl Ledger {
    /// The stages of the nodes with these keys.
    pub(super) async fn stages(
        &self,
        owner: &Owner,
        store: &str,
        keys: &[&str],
    ) -> Result<Stages, Error> {
        if keys.is_empty() {
            return Ok(Stages::new());
        }
        let mut database = self.database.lock().await;
        let dead = super::owner::dead_owners(&mut database, owner).await?;
        let rows: Vec<[&str; 1]> = keys.iter().map(|key| [*key]).collect();
        read(&mut database, &json(&rows)?, store, &dead).await
    }
}

async fn read(
    database: &mut Database,
    keys: &str,
    store: &str,
    dead: &[String],
) -> Result<Stages, Error> {
    // The time when its first item was listed tells a stage's place.
    let mut found: BTreeMap<(String, String), (i64, StageRow)> = BTreeMap::new();
    for mut row in database.fetch(STAGES, &[Bind::Text(keys), Bind::Text(store)]).await? {
        let (key, stage, state) = (row.text(0), row.text(1), row.text(2));
        let (process, holder) = (row.opt_text(3), row.opt_text(4));
        let (has_failed, n, at_us) = (row.int(5) > 0, row.int(6).unsigned_abs(), row.int(7));
        let first = (at_us, StageRow { stage: stage.clone(), ..StageRow::default() });
        let (first_us, counts) = found.entry((key, stage)).or_insert(first);
        *first_us = at_us.min(*first_us);
        counts.total += n;
        match state.as_str() {
            "done" | "collected" => counts.done += n,
            _ => {
                let lives = holder.is_some_and(|holder| !dead.contains(&holder));
                if let Some(process) = process.filter(|_| state == "running" && lives) {
                    *counts.running.entry(process).or_default() += n;
                }
                if has_failed {
                    counts.failed += n;
                    counts.failure = row.opt_text(8);
                }
            }
        }
    }
    let mut stages: BTreeMap<String, Vec<(i64, StageRow)>> = BTreeMap::new();
    for ((key, _), row) in found {
        stages.entry(key).or_default().push(row);
    }
    let in_order = |(key, mut rows): (String, Vec<(i64, StageRow)>)| {
        rows.sort_by(|a, b| (a.0, &a.1.stage).cmp(&(b.0, &b.1.stage)));
        (key, rows.into_iter().map(|(_, row)| row).collect())
    };
    Ok(stages.into_iter().map(in_order).collect())
}
