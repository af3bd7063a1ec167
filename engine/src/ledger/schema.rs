//! Migrations: applied at open, under a lock, forward only.

use super::Error;
use super::database::{Bind, Database, Location};

struct Migration {
    version: i64,
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "ledger",
        sqlite: include_str!("../../../migrations/sqlite/0001_ledger.sql"),
        postgres: include_str!("../../../migrations/postgres/0001_ledger.sql"),
    },
    Migration {
        version: 2,
        name: "items",
        sqlite: include_str!("../../../migrations/sqlite/0002_items.sql"),
        postgres: include_str!("../../../migrations/postgres/0002_items.sql"),
    },
    Migration {
        version: 3,
        name: "operators",
        sqlite: include_str!("../../../migrations/sqlite/0003_operators.sql"),
        postgres: include_str!("../../../migrations/postgres/0003_operators.sql"),
    },
    Migration {
        version: 4,
        name: "provenance",
        sqlite: include_str!("../../../migrations/sqlite/0004_provenance.sql"),
        postgres: include_str!("../../../migrations/postgres/0004_provenance.sql"),
    },
    Migration {
        version: 5,
        name: "shared_nodes",
        sqlite: include_str!("../../../migrations/sqlite/0005_shared_nodes.sql"),
        postgres: include_str!("../../../migrations/postgres/0005_shared_nodes.sql"),
    },
];

/// The schema that this program reads and writes.
pub(crate) const VERSION: i64 = MIGRATIONS[MIGRATIONS.len() - 1].version;

const HAS_VERSIONS_SQLITE: &str =
    "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'";
const HAS_VERSIONS_POSTGRES: &str = "SELECT count(*) FROM information_schema.tables
      WHERE table_schema = current_schema() AND table_name = 'schema_version'";
const READ_VERSION: &str = "SELECT max(version) FROM schema_version";
const WRITE_VERSION: &str =
    "INSERT INTO schema_version (version, name, applied_us) VALUES ($1, $2, $3)";
/// Any number that no other program on the same database uses; held to the transaction's end.
const LOCK_POSTGRES: &str = "SELECT pg_advisory_xact_lock(7235421)";

/// Brings the schema to [`VERSION`].
pub(crate) async fn migrate(database: &mut Database, now_us: i64) -> Result<(), Error> {
    if version(database).await? == VERSION {
        return Ok(());
    }
    database.begin().await?;
    let done = migrate_locked(database, now_us).await;
    match done {
        Ok(()) => database.commit().await,
        Err(error) => {
            database.rollback().await;
            Err(error)
        }
    }
}

/// Refuses a ledger that cannot be brought to [`VERSION`] because it cannot be written.
pub(crate) async fn refuse_other(
    database: &mut Database,
    location: &Location,
) -> Result<(), Error> {
    match version(database).await? {
        VERSION => Ok(()),
        found if found > VERSION => Err(Error::NewerSchema { found, known: VERSION }),
        found => Err(Error::ReadOnly {
            location: location.shown(),
            message: format!("its schema version {found} cannot be brought to {VERSION}"),
        }),
    }
}

async fn migrate_locked(database: &mut Database, now_us: i64) -> Result<(), Error> {
    if database.is_postgres() {
        database.script(LOCK_POSTGRES).await?;
    }
    let version = version(database).await?;
    if version > VERSION {
        return Err(Error::NewerSchema { found: version, known: VERSION });
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > version) {
        let script = if database.is_postgres() { migration.postgres } else { migration.sqlite };
        database.script(script).await?;
        let binds = [Bind::Int(migration.version), Bind::Text(migration.name), Bind::Int(now_us)];
        database.run(WRITE_VERSION, &binds).await?;
    }
    Ok(())
}

/// The schema's version, 0 for an empty database.
async fn version(database: &mut Database) -> Result<i64, Error> {
    let probe = if database.is_postgres() { HAS_VERSIONS_POSTGRES } else { HAS_VERSIONS_SQLITE };
    let rows = database.fetch(probe, &[]).await?;
    if rows.first().is_none_or(|row| row.int(0) == 0) {
        return Ok(0);
    }
    let rows = database.fetch(READ_VERSION, &[]).await?;
    Ok(rows.first().map_or(0, |row| row.int(0)))
}
