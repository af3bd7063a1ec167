//! One connection to either database, behind one face.
//!
//! Statements are written once. `{rows: a TEXT, b BIGINT}` stands for the rows of the JSON array of
//! arrays bound as `$1`, which is how thousands of rows travel in one statement on both databases.
//! The other way `{list: a, b}` stands for one row with the JSON array of arrays of these columns:
//! with a row at a time, the thread of the database would wake this one for each.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde::{Deserialize, de::DeserializeOwned};
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, PgConnection, Row as _, SqliteConnection, TypeInfo,
    ValueRef,
};
use tempfile::TempDir;

use super::Error;
use crate::plan::blocking;

/// A writer waits this long for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_mins(1);

/// Where the ledger is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    Sqlite(PathBuf),
    Postgres(String),
}

impl Location {
    /// Reads a URL: `postgres://…`, `sqlite:PATH`, or a plain path.
    pub(crate) fn parse(text: &str) -> Self {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Self::Postgres(text.to_owned());
        }
        let path = text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:"));
        Self::Sqlite(PathBuf::from(path.unwrap_or(text)))
    }

    /// The location without a password, for messages.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(url) => match PgConnectOptions::from_str(url) {
                Ok(options) => format!(
                    "postgres://{}:{}/{}",
                    options.get_host(),
                    options.get_port(),
                    options.get_database().unwrap_or_default()
                ),
                Err(_) => "postgres://…".to_owned(),
            },
        }
    }
}

/// A bound value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bind<'a> {
    Text(&'a str),
    Int(i64),
}

/// A value of a result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
}

/// A row of a result, read by position.
pub(crate) struct Row(Vec<Cell>);

impl Row {
    /// Every value, in order.
    pub(crate) fn cells(&self) -> &[Cell] {
        &self.0
    }

    /// Takes the text of column `i`, empty when null.
    pub(crate) fn text(&mut self, i: usize) -> String {
        self.opt_text(i).unwrap_or_default()
    }

    /// Takes the text of column `i`.
    pub(crate) fn opt_text(&mut self, i: usize) -> Option<String> {
        match std::mem::replace(&mut self.0[i], Cell::Null) {
            Cell::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer in column `i`, 0 when null.
    pub(crate) fn int(&self, i: usize) -> i64 {
        self.opt_int(i).unwrap_or_default()
    }

    /// The integer in column `i`.
    pub(crate) fn opt_int(&self, i: usize) -> Option<i64> {
        match self.0[i] {
            Cell::Int(value) => Some(value),
            _ => None,
        }
    }

    /// The number in column `i`.
    pub(crate) fn opt_real(&self, i: usize) -> Option<f64> {
        match self.0[i] {
            Cell::Real(value) => Some(value),
            Cell::Int(value) => Some(value as f64),
            _ => None,
        }
    }
}

enum Inner {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// An open connection.
pub(crate) struct Database {
    location: Location,
    inner: Inner,
    statements: BTreeMap<&'static str, Arc<str>>,
}

impl Database {
    /// Connects; creates a `SQLite` file when missing.
    pub(crate) async fn connect(location: &Location) -> Result<Self, Error> {
        let inner = match location {
            Location::Sqlite(path) => Inner::Sqlite(connect_sqlite(path, location).await?),
            Location::Postgres(url) => {
                let options = PgConnectOptions::from_str(url)
                    .map_err(|error| Error::cannot_open(location, &error))?
                    .application_name("sbp");
                let connected = options.connect().await;
                Inner::Postgres(connected.map_err(|error| Error::cannot_open(location, &error))?)
            }
        };
        Ok(Self { location: location.clone(), inner, statements: BTreeMap::new() })
    }

    /// Connects to a `SQLite` file that cannot be written. Changes that are still in its
    /// write-ahead log are read from a copy, which lives as long as what is given back.
    pub(crate) async fn connect_read_only(
        path: &Path,
        location: &Location,
    ) -> Result<(Self, Option<TempDir>), Error> {
        let copy = blocking(|| copy_with_log(path)).map_err(|error| Error::CannotOpen {
            location: location.shown(),
            message: format!("it is read-only and cannot be copied: {error}"),
        })?;
        let options = match &copy {
            Some(dir) => SqliteConnectOptions::new().filename(dir.path().join("ledger.db")),
            None => SqliteConnectOptions::new().filename(path).read_only(true).immutable(true),
        };
        let connected = options.row_buffer_size(1024).connect().await;
        let inner = Inner::Sqlite(connected.map_err(|error| Error::cannot_open(location, &error))?);
        Ok((Self { location: location.clone(), inner, statements: BTreeMap::new() }, copy))
    }

    /// Replaces a lost connection.
    pub(crate) async fn reconnect(&mut self) -> Result<(), Error> {
        self.inner = Self::connect(&self.location).await?.inner;
        Ok(())
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.inner, Inner::Postgres(_))
    }

    /// Starts a transaction that may write.
    pub(crate) async fn begin(&mut self) -> Result<(), Error> {
        // A deferred transaction that later writes fails at once when another process wrote in
        // between, whatever the busy timeout.
        self.script(if self.is_postgres() { "BEGIN" } else { "BEGIN IMMEDIATE" }).await
    }

    /// Starts a transaction that sees one state of the database and holds nobody up.
    pub(crate) async fn begin_read(&mut self) -> Result<(), Error> {
        let is_postgres = self.is_postgres();
        let postgres = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        self.script(if is_postgres { postgres } else { "BEGIN" }).await
    }

    pub(crate) async fn commit(&mut self) -> Result<(), Error> {
        self.script("COMMIT").await
    }

    pub(crate) async fn rollback(&mut self) {
        // It fails only when the connection is gone, and then the server rolls back.
        let _ = self.script("ROLLBACK").await;
    }

    /// Moves what is in `SQLite`'s write-ahead log into the database and empties the log, which the next
    /// program would have to read in full. Where another process is at it, that one will.
    pub(crate) async fn empty_log(&mut self) {
        if !self.is_postgres() {
            // Nothing is lost when it fails: the log is part of the database.
            let _ = self.script("PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE)").await;
        }
    }

    /// Runs statements without binds.
    pub(crate) async fn script(&mut self, sql: &'static str) -> Result<(), Error> {
        let done = match &mut self.inner {
            Inner::Sqlite(connection) => sqlx::raw_sql(sql).execute(connection).await.map(|_| ()),
            Inner::Postgres(connection) => sqlx::raw_sql(sql).execute(connection).await.map(|_| ()),
        };
        done.map_err(|error| Error::from_sqlx(&self.location, &error))
    }

    /// Runs a statement and gives the number of rows it changed.
    pub(crate) async fn run(
        &mut self,
        sql: &'static str,
        binds: &[Bind<'_>],
    ) -> Result<u64, Error> {
        let text = AssertSqlSafe(self.statement(sql));
        let done = match &mut self.inner {
            Inner::Sqlite(connection) => {
                let mut query = sqlx::query(text);
                for bind in binds {
                    query = match *bind {
                        Bind::Text(text) => query.bind(text.to_owned()),
                        Bind::Int(value) => query.bind(value),
                    };
                }
                query.execute(connection).await.map(|done| done.rows_affected())
            }
            Inner::Postgres(connection) => {
                let mut query = sqlx::query(text);
                for bind in binds {
                    query = match *bind {
                        Bind::Text(text) => query.bind(text.to_owned()),
                        Bind::Int(value) => query.bind(value),
                    };
                }
                query.execute(connection).await.map(|done| done.rows_affected())
            }
        };
        done.map_err(|error| Error::from_sqlx(&self.location, &error))
    }

    /// Runs a query and gives its rows.
    pub(crate) async fn fetch(
        &mut self,
        sql: &'static str,
        binds: &[Bind<'_>],
    ) -> Result<Vec<Row>, Error> {
        let text = AssertSqlSafe(self.statement(sql));
        let rows = match &mut self.inner {
            Inner::Sqlite(connection) => {
                let mut query = sqlx::query(text);
                for bind in binds {
                    query = match *bind {
                        Bind::Text(text) => query.bind(text.to_owned()),
                        Bind::Int(value) => query.bind(value),
                    };
                }
                let rows = query.fetch_all(connection).await;
                rows.and_then(|rows| rows.iter().map(sqlite_row).collect::<Result<Vec<_>, _>>())
            }
            Inner::Postgres(connection) => {
                let mut query = sqlx::query(text);
                for bind in binds {
                    query = match *bind {
                        Bind::Text(text) => query.bind(text.to_owned()),
                        Bind::Int(value) => query.bind(value),
                    };
                }
                let rows = query.fetch_all(connection).await;
                rows.and_then(|rows| rows.iter().map(postgres_row).collect::<Result<Vec<_>, _>>())
            }
        };
        rows.map_err(|error| Error::from_sqlx(&self.location, &error))
    }

    /// Runs a query that selects a `{list: …}` and gives the rows in it to `take`, one after another.
    pub(crate) async fn each_of_list<T: DeserializeOwned>(
        &mut self,
        sql: &'static str,
        binds: &[Bind<'_>],
        take: impl FnMut(T),
    ) -> Result<(), Error> {
        let rows = self.fetch(sql, binds).await?;
        let text = rows.into_iter().next().map(|mut row| row.text(0)).unwrap_or_default();
        if text.is_empty() {
            return Ok(());
        }
        let mut list = serde_json::Deserializer::from_str(&text);
        list.deserialize_seq(Each { take, row: PhantomData }).map_err(Error::value)
    }

    /// Runs a query and gives its rows one at a time.
    pub(crate) async fn each<E: From<Error>>(
        &mut self,
        sql: &'static str,
        mut take: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let text = AssertSqlSafe(self.statement(sql));
        let (inner, location) = (&mut self.inner, &self.location);
        let wrong = |error| Error::from_sqlx(location, &error);
        match inner {
            Inner::Sqlite(connection) => {
                let mut rows = sqlx::query(text).fetch(connection);
                while let Some(row) = rows.try_next().await.map_err(wrong)? {
                    take(sqlite_row(&row).map_err(wrong)?)?;
                }
            }
            Inner::Postgres(connection) => {
                let mut rows = sqlx::query(text).fetch(connection);
                while let Some(row) = rows.try_next().await.map_err(wrong)? {
                    take(postgres_row(&row).map_err(wrong)?)?;
                }
            }
        }
        Ok(())
    }

    fn statement(&mut self, sql: &'static str) -> Arc<str> {
        let is_postgres = self.is_postgres();
        let text = self.statements.entry(sql).or_insert_with(|| expand(sql, is_postgres).into());
        Arc::clone(text)
    }
}

/// Takes the elements of a JSON array as they are read.
struct Each<T, F> {
    take: F,
    row: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Each<T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element()? {
            (self.take)(row);
        }
        Ok(())
    }
}

async fn connect_sqlite(path: &Path, location: &Location) -> Result<SqliteConnection, Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A published result must survive a power loss.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(1024)
        .pragma("temp_store", "memory");
    options.connect().await.map_err(|error| Error::cannot_open(location, &error))
}

/// Copies a database with its write-ahead log into a temporary folder; `None` when its log is
/// empty, since the main file is then all there is.
fn copy_with_log(path: &Path) -> io::Result<Option<TempDir>> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    match fs::metadata(&log) {
        Ok(meta) if meta.len() > 0 => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let dir = tempfile::tempdir()?;
    fs::copy(path, dir.path().join("ledger.db"))?;
    fs::copy(&log, dir.path().join("ledger.db-wal"))?;
    for name in ["ledger.db", "ledger.db-wal"] {
        let mut mode = fs::metadata(dir.path().join(name))?.permissions();
        mode.set_mode(0o600);
        fs::set_permissions(dir.path().join(name), mode)?;
    }
    Ok(Some(dir))
}

/// Replaces each `{rows: name TYPE, …}` by a sub-select over the JSON in `$1`, and `{list: …}` by JSON
/// of those columns.
fn expand(sql: &str, is_postgres: bool) -> String {
    let mut text = String::with_capacity(sql.len() + 128);
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once("{rows:") {
        let (columns, after) = after.split_once('}').expect("a statement closes its rows");
        text.push_str(before);
        let columns: Vec<String> = columns
            .split(',')
            .enumerate()
            .map(|(i, column)| {
                let (name, kind) =
                    column.trim().split_once(' ').expect("a column has a name and a type");
                match (is_postgres, kind) {
                    (false, _) | (true, "TEXT") => format!("j.value->>{i} AS {name}"),
                    (true, kind) => format!("(j.value->>{i})::{kind} AS {name}"),
                }
            })
            .collect();
        let source = if is_postgres { "jsonb_array_elements($1::jsonb)" } else { "jsonb_each($1)" };
        let columns = columns.join(", ");
        text.push_str("(SELECT ");
        text.push_str(&columns);
        text.push_str(" FROM ");
        text.push_str(source);
        text.push_str(" AS j)");
        rest = after;
    }
    text.push_str(rest);
    let Some((before, after)) = text.split_once("{list:") else { return text };
    let (columns, after) = after.split_once('}').expect("a statement closes its list");
    let list = if is_postgres {
        format!("coalesce(json_agg(json_build_array({columns}))::text, '')")
    } else {
        format!("json_group_array(json_array({columns}))")
    };
    [before, &list, after].concat()
}

fn sqlite_row(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    let mut cells = Vec::with_capacity(row.len());
    for i in 0..row.len() {
        let value = row.try_get_raw(i)?;
        let cell = if value.is_null() {
            Cell::Null
        } else {
            match value.type_info().name() {
                "INTEGER" => Cell::Int(row.try_get_unchecked(i)?),
                "REAL" => Cell::Real(row.try_get_unchecked(i)?),
                _ => Cell::Text(row.try_get_unchecked(i)?),
            }
        };
        cells.push(cell);
    }
    Ok(Row(cells))
}

fn postgres_row(row: &PgRow) -> Result<Row, sqlx::Error> {
    let mut cells = Vec::with_capacity(row.len());
    for (i, column) in row.columns().iter().enumerate() {
        let cell = if row.try_get_raw(i)?.is_null() {
            Cell::Null
        } else {
            match column.type_info().name() {
                "INT8" => Cell::Int(row.try_get(i)?),
                "INT4" => Cell::Int(i64::from(row.try_get::<i32, _>(i)?)),
                "FLOAT8" => Cell::Real(row.try_get(i)?),
                _ => Cell::Text(row.try_get(i)?),
            }
        };
        cells.push(cell);
    }
    Ok(Row(cells))
}
