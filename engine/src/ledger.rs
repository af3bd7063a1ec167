//! The SQL ledger: every run, attempt, metric, log line and artifact.
//!
//! Changes of state go through `record`: one transaction for everything that happened since the
//! last one, with the events that describe it. Questions of the planner are in `lookup`, those of
//! operators in `view`. The statements are the same on `SQLite` and Postgres.
//!
//! **Invariant:** a result is published only by the attempt that holds the key's newest epoch
//! (`stale_publish_is_refused`).

mod compare;
mod database;
mod history;
mod inspect;
mod items;
mod keep;
mod lookup;
mod operate;
mod owner;
mod record;
mod schema;
mod stages;
mod transfer;
mod view;

use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::run::{NodeState, RunState};
#[cfg(not(test))]
use database::Database;

pub use compare::{NodeDiff, Pair, RunDiff};
#[cfg(test)]
pub(crate) use database::Database;
pub(crate) use database::Location;
pub(crate) use history::{History, Past};
pub use inspect::Finding;
pub(crate) use items::ItemCall;
pub use keep::{Garbage, GarbageKind, GarbageList, Keep, PinRow, TagRow};
pub(crate) use lookup::{KeyState, KeyStates, KeyStatus, LastAttempt};
pub use operate::{Cancelled, Ruling, Verdict};
pub(crate) use owner::Owner;
pub(crate) use record::{
    AttemptEnd, Batch, Claim, EventRow, KeyRow, LogLine, MetricRow, NewRun, NodeChange,
    ProgressRow, Publish, Reply, Writer, nodes_digest,
};
pub use stages::StageRow;
pub use transfer::TransferError;
pub(crate) use view::Measured;
pub use view::{
    AttemptRow, Lines, LogRow, MetricPoint, NodeDetail, OutputRow, RunDetail, RunNodeRow, RunRow,
};

/// The ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened.
    #[error("cannot open the ledger `{location}`: {message}")]
    CannotOpen {
        /// Its file or server.
        location: String,
        /// What the database says.
        message: String,
    },
    /// Its file is no database, or not a whole one.
    #[error("the ledger `{location}` is damaged: {message}")]
    Damaged {
        /// Its file.
        location: String,
        /// What the database says.
        message: String,
    },
    /// It was made by a newer program.
    #[error("the ledger has schema version {found}; this program knows up to {known}")]
    NewerSchema {
        /// Its version.
        found: i64,
        /// The newest known one.
        known: i64,
    },
    /// It cannot be written.
    #[error("the ledger `{location}` is read-only: {message}")]
    ReadOnly {
        /// Its file or server.
        location: String,
        /// What the database says.
        message: String,
    },
    /// There is no space left.
    #[error("no space left for the ledger `{location}`: {message}")]
    Full {
        /// Its file or server.
        location: String,
        /// What the database says.
        message: String,
    },
    /// `SQLite` needs locks that network file systems do not give.
    #[error("the ledger `{}` lies on a network file system ({kind})", path.display())]
    NetworkFileSystem {
        /// Its folder.
        path: PathBuf,
        /// The file system.
        kind: &'static str,
    },
    /// The connection is lost, or another process holds the database; the same call may succeed
    /// later.
    #[error("the ledger `{location}` cannot be reached: {message}")]
    Unreachable {
        /// Its file or server.
        location: String,
        /// What the database says.
        message: String,
    },
    /// A statement failed.
    #[error("the ledger `{location}` refuses a statement: {message}")]
    Statement {
        /// Its file or server.
        location: String,
        /// What the database says.
        message: String,
    },
    /// A row does not read back as what was written.
    #[error("the ledger holds a value that cannot be read: {0}")]
    Value(String),
    /// The ledger holds no run.
    #[error("there is no run yet")]
    NoRunYet,
    /// No run has this id.
    #[error("no run is called `{0}`")]
    NoSuchRun(String),
    /// Several runs have ids that start so.
    #[error("several runs start with `{prefix}`: {}", matches.join(", "))]
    AmbiguousRun {
        /// What was asked for.
        prefix: String,
        /// Some of them.
        matches: Vec<String>,
    },
    /// Only a parked node waits for a decision.
    #[error("node `{node}` of run `{run}` is {state}; only a parked node waits for a decision")]
    NotParked {
        /// The run.
        run: String,
        /// The node.
        node: String,
        /// How far it is.
        state: NodeState,
    },
    /// What looks like garbage may be about to be used.
    #[error("run `{run}` is under way ({owner}); nothing is removed while one is")]
    RunUnderWay {
        /// The run.
        run: String,
        /// `host:pid` of the process that runs it.
        owner: String,
    },
    /// The store is another ledger's.
    #[error("this ledger knows none of the {n} artifacts in `{}`", store.display())]
    OtherStore {
        /// The store's folder.
        store: PathBuf,
        /// How many artifacts it holds.
        n: usize,
    },
    /// What an operator believes dead is seen to live.
    #[error("the process {owner} of run `{run}` lives")]
    OwnerLives {
        /// The run.
        run: String,
        /// `host:pid` of the process that runs it.
        owner: String,
    },
    /// Nothing runs that could be stopped.
    #[error("run `{run}` is {state}; there is nothing to stop")]
    RunIsOver {
        /// The run.
        run: String,
        /// How it ended.
        state: RunState,
    },
    /// The run has no such node.
    #[error("run `{run}` has no node `{node}`")]
    NoSuchNode {
        /// The run.
        run: String,
        /// What was asked for.
        node: String,
        /// Which node was probably meant.
        help: Option<String>,
    },
}

impl Error {
    fn cannot_open(location: &Location, error: &sqlx::Error) -> Self {
        let message = error.to_string();
        match Self::from_sqlx(location, error) {
            Self::Statement { location, .. } | Self::Unreachable { location, .. } => {
                Self::CannotOpen { location, message }
            }
            other => other,
        }
    }

    fn from_sqlx(location: &Location, error: &sqlx::Error) -> Self {
        let message = error.to_string();
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            .unwrap_or_default();
        let is_sqlite = matches!(location, Location::Sqlite(_));
        let location = location.shown();
        if is_sqlite && let Ok(code) = code.parse::<i32>() {
            // The index of the write-ahead log found no space.
            if code == 4874 {
                return Self::Full { location, message };
            }
            // The low byte is the primary result code.
            return match code & 0xff {
                5 | 6 => Self::Unreachable { location, message },
                8 => Self::ReadOnly { location, message },
                13 => Self::Full { location, message },
                11 | 26 => Self::Damaged { location, message },
                _ => Self::Statement { location, message },
            };
        }
        match (error, code.as_ref()) {
            // Serialization failure, deadlock, shutdown, crash, connection trouble.
            (_, "40001" | "40P01" | "57P01" | "57P02" | "57P03") => {
                Self::Unreachable { location, message }
            }
            (_, "25006" | "42501") => Self::ReadOnly { location, message },
            (_, "53100") => Self::Full { location, message },
            (_, code) if code.starts_with("08") => Self::Unreachable { location, message },
            (sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed, _) => {
                Self::Unreachable { location, message }
            }
            _ => Self::Statement { location, message },
        }
    }

    /// What to do about it, when that is known.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::Damaged { .. } => Some(
                "move the ledger away and run again: checkpoints are kept, finished nodes run anew",
            ),
            Self::NoRunYet => Some("`sbp run PIPELINE` makes one; `--dir` names another folder"),
            Self::OtherStore { .. } => Some(
                "name the ledger of the runs that made them with `--ledger`; nothing is removed",
            ),
            Self::NotParked { .. } => Some("name the run in which it parked with `--run`"),
            Self::NoSuchRun(_) => Some("`sbp status` lists the runs"),
            Self::NoSuchNode { help, .. } => help.as_deref(),
            Self::NewerSchema { .. } => Some("use the newer program, or another ledger"),
            Self::ReadOnly { .. } => {
                Some("make the ledger's folder writable, or choose another one")
            }
            Self::OwnerLives { .. } => Some("`sbp cancel` without `--dead` asks it to stop"),
            Self::RunUnderWay { .. } => Some(
                "when its process is gone where this machine cannot see it, `sbp cancel RUN --dead` \
                 frees what it holds",
            ),
            Self::Full { .. } => Some("free space and run the same command again"),
            Self::NetworkFileSystem { .. } => Some(
                "keep the ledger on a local disk with `--ledger PATH`, or use `--ledger postgres://…`",
            ),
            _ => None,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    fn value(error: impl std::fmt::Display) -> Self {
        Self::Value(error.to_string())
    }
}

/// Help for a name that no node of a run has: the nodes of that entry, or the closest name.
fn meant_nodes(wanted: &str, nodes: &[RunNodeRow]) -> Option<String> {
    let of_entry = nodes.iter().filter(|row| row.entry == wanted);
    let names: Vec<String> = of_entry.map(|row| format!("`{}`", row.name)).collect();
    if names.is_empty() {
        return crate::spec::nearest::suggest(
            wanted,
            nodes.iter().map(|row| row.name.as_str()),
            "nodes",
        );
    }
    Some(format!("name one node of its matrix: {}", names.join(", ")))
}

/// An open ledger.
pub(crate) struct Ledger {
    /// The only connection: one writer, which also reads.
    database: Mutex<Database>,
    location: Location,
    clock: Clock,
    read_only: Option<ReadOnly>,
}

/// What a ledger that cannot be written is read from.
struct ReadOnly {
    /// Held while the ledger is open: a copy with the changes that were not yet in the main file.
    _copy: Option<tempfile::TempDir>,
}

/// Whether a `SQLite` database can be opened in the ordinary way, which writes beside it.
fn is_writable(path: &Path) -> bool {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    writable(path) && writable(dir)
}

impl Ledger {
    /// Opens the ledger and brings its schema up to date.
    pub(crate) async fn open(location: &Location, clock: &Clock) -> Result<Self, Error> {
        if let Location::Sqlite(path) = location {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            refuse_network(dir.unwrap_or(Path::new(".")))?;
        }
        Self::connect(location, clock).await
    }

    async fn connect(location: &Location, clock: &Clock) -> Result<Self, Error> {
        let mut database = Database::connect(location).await?;
        schema::migrate(&mut database, clock.now_us()).await?;
        let (database, location) = (Mutex::new(database), location.clone());
        Ok(Self { database, location, clock: clock.clone(), read_only: None })
    }

    /// A second connection to the same ledger.
    pub(crate) async fn again(&self) -> Result<Self, Error> {
        let location = self.location.clone();
        let database = Mutex::new(Database::connect(&location).await?);
        Ok(Self { database, location, clock: self.clock.clone(), read_only: None })
    }

    /// Leaves the ledger as whoever opens it next likes to find it.
    pub(crate) async fn close(&self) {
        self.database.lock().await.empty_log().await;
    }

    /// Opens the ledger for questions. A missing `SQLite` file is an empty ledger, and one that
    /// cannot be written is read as it is.
    pub(crate) async fn look(location: &Location, clock: &Clock) -> Result<Self, Error> {
        let Location::Sqlite(path) = location else { return Self::open(location, clock).await };
        if !path.exists() {
            return Self::connect(&Location::Sqlite(PathBuf::from(":memory:")), clock).await;
        }
        if is_writable(path) {
            return Self::open(location, clock).await;
        }
        Self::read_as_it_is(path, location, clock).await
    }

    /// Opens a `SQLite` ledger without writing anything beside it.
    pub(crate) async fn read_as_it_is(
        path: &Path,
        location: &Location,
        clock: &Clock,
    ) -> Result<Self, Error> {
        let (mut database, copy) = Database::connect_read_only(path, location).await?;
        schema::refuse_other(&mut database, location).await?;
        let read_only = Some(ReadOnly { _copy: copy });
        let (database, location) = (Mutex::new(database), location.clone());
        Ok(Self { database, location, clock: clock.clone(), read_only })
    }

    /// The only value that a question of a test has as its answer.
    #[cfg(test)]
    pub(crate) async fn ask(&self, sql: &'static str) -> i64 {
        let rows = self.database.lock().await.fetch(sql, &[]).await;
        rows.expect("the question has an answer")[0].int(0)
    }

    /// Whether nothing can be written to it.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.is_some()
    }
}

/// Linux file system magic numbers (`linux/magic.h` and the file systems' own headers).
const NETWORK_FILE_SYSTEMS: &[(u32, &str)] = &[
    (0x0000_6969, "NFS"),
    (0x0000_517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x5346_414f, "AFS"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
];

fn refuse_network(dir: &Path) -> Result<(), Error> {
    let found = rustix::fs::statfs(dir).map_err(|error| Error::CannotOpen {
        location: dir.display().to_string(),
        message: io::Error::from(error).to_string(),
    })?;
    let magic = found.f_type as u32;
    match NETWORK_FILE_SYSTEMS.iter().find(|(known, _)| *known == magic) {
        Some((_, kind)) => Err(Error::NetworkFileSystem { path: dir.to_owned(), kind }),
        None => Ok(()),
    }
}
