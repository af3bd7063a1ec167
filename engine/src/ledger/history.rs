//! What past attempts took: the ground of every forecast.

use std::collections::BTreeMap;

use super::database::Bind;
use super::{Error, Ledger};

/// What an attempt took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
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
                      WHERE o.key = a.key), 0)
      FROM attempt AS a
      JOIN node_key AS k ON k.key = a.key
      JOIN run AS r ON r.id = a.run_id
     WHERE r.pipeline = $1 AND a.state = 'done' AND a.ended_us IS NOT NULL
     ORDER BY a.started_us DESC LIMIT $2";

impl Ledger {
    /// What finished attempts of the pipeline's nodes took.
    pub(crate) async fn history(&self, pipeline: &str) -> Result<History, Error> {
        let binds = [Bind::Text(pipeline), Bind::Int(ROWS_MAX)];
        let rows = self.database.lock().await.fetch(FINISHED, &binds).await?;
        let mut history = History::default();
        for mut row in rows {
            let past = Past {
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
        let past = self.by_node.get(node).or_else(|| self.by_task.get(task))?;
        let newest = &past[..past.len().min(N_NEWEST)];
        Some(Past {
            duration_us: median(newest, |past| past.duration_us),
            memory_bytes: median(newest, |past| past.memory_bytes),
            disk_bytes: median(newest, |past| past.disk_bytes),
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
