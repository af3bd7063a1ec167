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

#[cfg(test)]
mod tests {
    use super::*;

    const RUN_OF_BEFORE: &str = "
        INSERT INTO owner (id, host, boot, pid, pid_started, started_us) VALUES ('o', 'h', 'b', 1, 1, 1);
        INSERT INTO run (id, pipeline, path, text, params, owner, state, started_us)
        VALUES ('r', 'p', 'p.yaml', 'text', '{}', 'o', 'done', 7);
        INSERT INTO run_node (run_id, run_us, ordinal, name, entry, task, state, reason)
        VALUES ('r', 7, 0, 'a', 'a', 'exec', 'done', '\"never_ran\"')";
    const NODES: &str = "SELECT run_id, run_us, name, state, reason FROM run_node";

    #[tokio::test]
    async fn an_older_ledger_keeps_what_it_says_of_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::Sqlite(dir.path().join("ledger.db"));
        let mut database = Database::connect(&location).await.unwrap();
        for migration in MIGRATIONS.iter().filter(|migration| migration.version <= 4) {
            database.script(migration.sqlite).await.unwrap();
            let binds = [Bind::Int(migration.version), Bind::Text(migration.name), Bind::Int(0)];
            database.run(WRITE_VERSION, &binds).await.unwrap();
        }
        database.script(RUN_OF_BEFORE).await.unwrap();
        let before = database.fetch(NODES, &[]).await.unwrap();
        migrate(&mut database, 0).await.unwrap();
        assert_eq!(version(&mut database).await.unwrap(), VERSION);
        let after = database.fetch(NODES, &[]).await.unwrap();
        assert_eq!((after.len(), after[0].cells()), (1, before[0].cells()));
    }
}
