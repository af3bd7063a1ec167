//! What past attempts took: the ground of every forecast.

use std::collections::BTreeMap;

use super::database::Bind;
use super::lookup::column;
use super::{Error, Ledger};
use crate::key::NodeKey;

/// What an attempt took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) started_us: i64,
    pub(crate) duration_us: i64,
    /// Highest resident memory of its process; 0 where the system did not say.
    pub(crate) memory_bytes: u64,
    /// Size of its artifacts.
    pub(crate) disk_bytes: u64,
}

/// What attempts of a pipeline's nodes took, newest first in each list.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    by_node: BTreeMap<String, Vec<Past>>,
    by_task: BTreeMap<String, Vec<Past>>,
}

/// Attempts that count for a node, and rows read in all.
const N_NEWEST: usize = 5;
const ROWS_MAX: i64 = 20_000;

const FINISHED: &str = "
    SELECT a.node, k.task, a.ended_us - a.started_us, coalesce(a.peak_memory_bytes, 0),
           coalesce((SELECT CAST(sum(f.size_bytes) AS BIGINT) FROM output AS o
                       JOIN artifact AS f ON f.digest = o.digest
                      WHERE o.key = a.key), 0),
           a.started_us
      FROM attempt AS a
      JOIN node_key AS k ON k.key = a.key
      JOIN run AS r ON r.id = a.run_id
     WHERE r.pipeline = $1 AND a.state = 'done' AND a.ended_us IS NOT NULL
     ORDER BY a.started_us DESC LIMIT $2";

const TOOK: &str = "
    SELECT a.key, a.state, a.started_us, a.ended_us, coalesce(a.peak_memory_bytes, 0),
           w.build, w.machine
      FROM {rows: key TEXT} AS r
      JOIN attempt AS a ON a.key = r.key
      LEFT JOIN owner AS w ON w.id = a.owner
     ORDER BY a.key, a.epoch";

/// What all attempts at a key took together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Took {
    /// When the first began.
    pub(crate) started_us: i64,
    pub(crate) duration_us: i64,
    pub(crate) n_attempts: u64,
    pub(crate) memory_bytes: u64,
    /// Program and machine of the one that finished.
    pub(crate) build: Option<String>,
    pub(crate) machine: Option<String>,
}

impl Ledger {
    /// What the attempts at these keys took; nothing for a key without any.
    pub(crate) async fn took(&self, keys: &[NodeKey]) -> Result<BTreeMap<NodeKey, Took>, Error> {
        let rows = column(keys.iter().copied())?;
        let rows = self.database.lock().await.fetch(TOOK, &[Bind::Text(&rows)]).await?;
        let mut found = BTreeMap::<NodeKey, Took>::new();
        for mut row in rows {
            let key = row.text(0).parse().map_err(Error::value)?;
            let started_us = row.int(2);
            let took = found.entry(key).or_insert_with(|| Took { started_us, ..Took::default() });
            took.n_attempts += 1;
            took.duration_us += row.opt_int(3).map_or(0, |ended_us| (ended_us - started_us).max(0));
            took.memory_bytes = took.memory_bytes.max(row.int(4).unsigned_abs());
            if row.text(1) == "done" {
                (took.build, took.machine) = (row.opt_text(5), row.opt_text(6));
            }
        }
        Ok(found)
    }

    /// What finished attempts of the pipeline's nodes took.
    pub(crate) async fn history(&self, pipeline: &str) -> Result<History, Error> {
        let binds = [Bind::Text(pipeline), Bind::Int(ROWS_MAX)];
        let rows = self.database.lock().await.fetch(FINISHED, &binds).await?;
        let mut history = History::default();
        for mut row in rows {
            let past = Past {
                started_us: row.int(5),
                duration_us: row.int(2).max(0),
                memory_bytes: row.int(3).unsigned_abs(),
                disk_bytes: row.int(4).unsigned_abs(),
            };
            history.by_node.entry(row.text(0)).or_default().push(past);
            history.by_task.entry(row.text(1)).or_default().push(past);
        }
        Ok(history)
    }
}

impl History {
    /// What an attempt at this node will probably take: the median of its newest attempts, or of
    /// those of all nodes of its task; `None` when there was none.
    pub(crate) fn expect(&self, node: &str, task: &str) -> Option<Past> {
        self.expected_at(i64::MAX, node, task)
    }

    /// What [`Self::expect`] would have said at this time.
    pub(crate) fn expected_at(&self, at_us: i64, node: &str, task: &str) -> Option<Past> {
        let before = |list: &Vec<Past>| -> Vec<Past> {
            // Newest first.
            let past = list.iter().filter(|past| past.started_us < at_us);
            past.take(N_NEWEST).copied().collect()
        };
        let lists = [self.by_node.get(node), self.by_task.get(task)];
        let newest = lists.into_iter().flatten().map(before).find(|past| !past.is_empty())?;
        Some(Past {
            started_us: newest[0].started_us,
            duration_us: median(&newest, |past| past.duration_us),
            memory_bytes: median(&newest, |past| past.memory_bytes),
            disk_bytes: median(&newest, |past| past.disk_bytes),
        })
    }
}

/// The middle value; of an even number, the higher of the two, since a forecast should rather be
/// too long.
fn median<T: Ord>(past: &[Past], of: impl Fn(&Past) -> T) -> T {
    let mut values: Vec<T> = past.iter().map(of).collect();
    values.sort_unstable();
    let middle = values.len() / 2;
    values.swap_remove(middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_expected_knows_nothing_of_later_attempts() {
        let past = |at: i64| Past { started_us: at, duration_us: 10 * at, ..Past::default() };
        let mut history = History::default();
        history.by_node.insert("a".to_owned(), [5, 4, 3].map(past).to_vec());
        history.by_task.insert("t".to_owned(), [5, 4, 3, 1].map(past).to_vec());
        let expected = |at| history.expected_at(at, "a", "t").map(|p| p.duration_us);
        assert_eq!(expected(4), Some(30), "not of this one and the later one");
        assert_eq!(expected(3), Some(10), "the node had none, its task had");
        assert_eq!(expected(1), None);
    }

    #[test]
    fn a_node_without_a_past_is_judged_by_its_task() {
        let past = |duration_us| Past { duration_us, ..Past::default() };
        let mut history = History::default();
        history.by_node.insert("a".to_owned(), [9, 1, 8, 2, 7, 100].map(past).to_vec());
        history.by_task.insert("t".to_owned(), [3, 5].map(past).to_vec());
        let expected = |node: &str, task: &str| history.expect(node, task).map(|p| p.duration_us);
        assert_eq!(expected("a", "t"), Some(7), "the newest five, not the oldest");
        assert_eq!(expected("b", "t"), Some(5));
        assert_eq!(expected("b", "u"), None);
    }
}
