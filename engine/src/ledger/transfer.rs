//! The whole ledger as lines of JSON, and back: from `SQLite` to Postgres, or as a backup.
//!
//! The first line names the schema; each further line is a table's name and a row. Rows whose id the
//! database gives itself travel without it, in order.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::database::{Bind, Cell, Database, Row};
use super::{Error, schema};
use crate::open::{self, Engine};

/// Rows in one statement of an import.
const ROWS_MAX: usize = 1_000;

struct Table {
    name: &'static str,
    select: &'static str,
    insert: &'static str,
}

/// Tables in an order in which rows refer only to rows before them.
macro_rules! tables {
    ($($name:literal by $order:literal:
       $first:ident $first_kind:ident $(, $column:ident $kind:ident)*;)+) => {
        &[$(Table {
            name: $name,
            select: concat!(
                "SELECT ", stringify!($first), $(", ", stringify!($column),)*
                " FROM ", $name, " ORDER BY ", $order
            ),
            insert: concat!(
                "INSERT INTO ", $name, " (", stringify!($first), $(", ", stringify!($column),)* ")",
                " SELECT r.", stringify!($first), $(", r.", stringify!($column),)*
                " FROM {rows: ", stringify!($first), " ", stringify!($first_kind),
                $(", ", stringify!($column), " ", stringify!($kind),)* "} AS r"
            ),
        }),+]
    };
}

const TABLES: &[Table] = tables! {
    "owner" by "id": id TEXT, host TEXT, boot TEXT, pid BIGINT, pid_started BIGINT,
        started_us BIGINT, batch BIGINT, build TEXT, machine TEXT;
    "run" by "started_us, id": id TEXT, pipeline TEXT, path TEXT, text TEXT, params TEXT,
        owner TEXT, state TEXT, started_us BIGINT, ended_us BIGINT, nodes_digest TEXT,
        nodes_of TEXT;
    "external_list" by "digest": digest TEXT, files TEXT;
    "node_key" by "key": key TEXT, task TEXT, revision BIGINT, params TEXT, inputs TEXT,
        external TEXT, salt TEXT, state TEXT, epoch BIGINT, owner TEXT, lease_until_us BIGINT,
        created_us BIGINT;
    "own_node" by "run_id, ordinal": run_id TEXT, run_us BIGINT, ordinal BIGINT, name TEXT,
        entry TEXT, task TEXT, key TEXT, state TEXT, reason TEXT;
    "attempt" by "key, epoch": key TEXT, epoch BIGINT, run_id TEXT, node TEXT, owner TEXT,
        state TEXT, started_us BIGINT, ended_us BIGINT, failure_kind TEXT, failure_message TEXT,
        failure_help TEXT, metrics TEXT, peak_memory_bytes BIGINT, progress_done BIGINT,
        progress_total BIGINT, progress_unit TEXT, progress_at_us BIGINT;
    "artifact" by "digest, store": digest TEXT, store TEXT, size_bytes BIGINT, n_files BIGINT,
        manifest TEXT, state TEXT, created_us BIGINT;
    "output" by "key, port": key TEXT, port TEXT, digest TEXT;
    "metric" by "key, name, step, epoch": key TEXT, epoch BIGINT, name TEXT, step BIGINT,
        value FLOAT8, at_us BIGINT;
    "log" by "id": key TEXT, epoch BIGINT, at_us BIGINT, level TEXT, text TEXT;
    "event" by "id": at_us BIGINT, run_id TEXT, node TEXT, key TEXT, epoch BIGINT, kind TEXT,
        detail TEXT;
    "item" by "key, store": key TEXT, store TEXT, name TEXT, state TEXT, epoch BIGINT, owner TEXT,
        holder TEXT, lease_until_us BIGINT, n_failed BIGINT, failure TEXT, digest TEXT,
        size_bytes BIGINT, created_us BIGINT, started_us BIGINT, ended_us BIGINT;
    "node_item" by "node_key, stage, ordinal": node_key TEXT, stage TEXT, ordinal BIGINT, item TEXT;
    "ruling" by "key": key TEXT, verdict TEXT, reason TEXT, by_whom TEXT, at_us BIGINT;
    "cancel_request" by "id": run_id TEXT, node TEXT, by_whom TEXT, at_us BIGINT,
        obeyed_us BIGINT;
    "tag" by "name": name TEXT, run_id TEXT, at_us BIGINT;
    "pin" by "digest": digest TEXT, about TEXT, by_whom TEXT, at_us BIGINT;
};

/// Not exported: the schema's own table, and caches that may be emptied at any time.
#[cfg(test)]
const LEFT_OUT: &[&str] = &["schema_version", "file_stat"];

const COUNT_RUNS: &str = "SELECT count(*) FROM run";

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    sbp_ledger: i64,
}

/// The last line, without which an export is cut.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tail {
    rows: u64,
}

/// What is wrong with a transfer.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The file cannot be read or written.
    #[error("cannot read or write the export: {0}")]
    Io(#[from] io::Error),
    /// A line is not what [`Engine::export_ledger`] writes.
    #[error("line {line} of the export cannot be read: {problem}")]
    Line {
        /// 1-based.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The export does not end as it should.
    #[error("the export is cut: it holds {found} rows, and not the last line that counts them")]
    Cut {
        /// Rows before the cut.
        found: u64,
    },
    /// The export has another schema.
    #[error("the export has schema version {found}; this program reads {known}")]
    Schema {
        /// The export's version.
        found: i64,
        /// This program's version.
        known: i64,
    },
    /// Only an empty ledger takes an import.
    #[error("the ledger already holds {n} runs; only an empty one takes an import")]
    NotEmpty {
        /// How many.
        n: i64,
    },
    /// The engine is in trouble.
    #[error(transparent)]
    Engine(#[from] open::Error),
}

impl From<Error> for TransferError {
    fn from(error: Error) -> Self {
        Self::Engine(error.into())
    }
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Int(value) => Value::from(*value),
        Cell::Real(value) => Value::from(*value),
        Cell::Text(text) => Value::from(text.as_str()),
    }
}

impl Engine {
    /// Writes every row of the ledger to `out`, all of one moment; gives how many.
    ///
    /// # Errors
    /// When `out` cannot be written or the ledger is in trouble.
    pub async fn export_ledger(&self, out: &mut impl Write) -> Result<u64, TransferError> {
        let mut database = self.ledger.database.lock().await;
        // In one transaction, so that rows belong together.
        database.begin_read().await?;
        let done = export(&mut database, out).await;
        database.rollback().await;
        done
    }

    /// Reads what [`Self::export_ledger`] wrote into this ledger, all or nothing; gives how many
    /// rows that were.
    ///
    /// # Errors
    /// When the ledger holds a run, the export has another schema, or a line cannot be read.
    pub async fn import_ledger(&self, from: &mut impl BufRead) -> Result<u64, TransferError> {
        let mut database = self.ledger.database.lock().await;
        database.begin().await?;
        match import(&mut database, from).await {
            Ok(n) => {
                database.commit().await?;
                Ok(n)
            }
            Err(error) => {
                database.rollback().await;
                Err(error)
            }
        }
    }
}

async fn export(database: &mut Database, out: &mut impl Write) -> Result<u64, TransferError> {
    let head = serde_json::to_string(&Head { sbp_ledger: schema::VERSION });
    writeln!(out, "{}", head.map_err(Error::value)?)?;
    let mut n_rows = 0;
    for table in TABLES {
        let write = |row: Row| -> Result<(), TransferError> {
            let cells: Vec<Value> = row.cells().iter().map(value).collect();
            let line = serde_json::to_string(&(table.name, cells)).map_err(Error::value)?;
            writeln!(out, "{line}")?;
            n_rows += 1;
            Ok(())
        };
        database.each(table.select, write).await?;
    }
    let tail = serde_json::to_string(&Tail { rows: n_rows });
    writeln!(out, "{}", tail.map_err(Error::value)?)?;
    out.flush()?;
    Ok(n_rows)
}

async fn import(database: &mut Database, from: &mut impl BufRead) -> Result<u64, TransferError> {
    let n = database.fetch(COUNT_RUNS, &[]).await?.first().map_or(0, |row| row.int(0));
    if n > 0 {
        return Err(TransferError::NotEmpty { n });
    }
    let bad = |line: usize, problem: String| TransferError::Line { line, problem };
    let mut lines = from.lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let head: Head = serde_json::from_str(&first).map_err(|error| bad(1, error.to_string()))?;
    if head.sbp_ledger != schema::VERSION {
        let found = head.sbp_ledger;
        return Err(TransferError::Schema { found, known: schema::VERSION });
    }
    let (mut n_rows, mut tail) = (0, None);
    let mut pending: Option<(&Table, Vec<Vec<Value>>)> = None;
    for (index, line) in lines.enumerate() {
        let (line, line_number) = (line?, index + 2);
        if tail.is_none() && line.starts_with('{') {
            let read: Tail =
                serde_json::from_str(&line).map_err(|error| bad(line_number, error.to_string()))?;
            tail = Some(read.rows);
            continue;
        }
        let (name, row): (String, Vec<Value>) =
            serde_json::from_str(&line).map_err(|error| bad(line_number, error.to_string()))?;
        let table = TABLES.iter().find(|table| table.name == name);
        let table = table.ok_or_else(|| bad(line_number, format!("there is no table `{name}`")))?;
        n_rows += 1;
        match &mut pending {
            Some((same, rows)) if same.name == table.name && rows.len() < ROWS_MAX => {
                rows.push(row);
            }
            _ => {
                if let Some(full) = pending.replace((table, vec![row])) {
                    insert(database, full).await?;
                }
            }
        }
    }
    if tail != Some(n_rows) {
        return Err(TransferError::Cut { found: n_rows });
    }
    if let Some(rest) = pending {
        insert(database, rest).await?;
    }
    Ok(n_rows)
}

async fn insert(
    database: &mut Database,
    (table, rows): (&Table, Vec<Vec<Value>>),
) -> Result<(), Error> {
    let rows = serde_json::to_string(&rows).map_err(Error::value)?;
    database.run(table.insert, &[Bind::Text(&rows)]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::open::Settings;

    const TABLE_NAMES: &str = "
        SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";

    #[tokio::test]
    async fn every_table_is_exported_or_left_out_on_purpose() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(Settings::new(dir.path())).await.unwrap();
        let rows = engine.ledger.database.lock().await.fetch(TABLE_NAMES, &[]).await.unwrap();
        let found: BTreeSet<String> = rows.into_iter().map(|mut row| row.text(0)).collect();
        let known = TABLES.iter().map(|table| table.name).chain(LEFT_OUT.iter().copied());
        assert_eq!(found, known.map(str::to_owned).collect());
    }

    #[tokio::test]
    async fn other_schemas_and_broken_lines_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(Settings::new(dir.path())).await.unwrap();
        for (text, problem) in [
            ("{\"sbp_ledger\":999}\n".to_owned(), "schema version 999"),
            ("hello\n".to_owned(), "line 1"),
            (format!("{{\"sbp_ledger\":{}}}\n[\"nothing\",[]]\n", schema::VERSION), "line 2"),
        ] {
            let error = engine.import_ledger(&mut text.as_bytes()).await.unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
    }
}
