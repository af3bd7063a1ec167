//! Who holds a lease, and whether it still lives.

use std::fs;
use std::io::Read as _;

use super::database::{Bind, Database, Row};
use super::{Error, Ledger};
use crate::digest::Digest;

/// A process that claims nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Unique among all owners of all time.
    pub(crate) id: String,
    /// The host's name.
    pub(crate) host: String,
    /// This boot of the host and its process namespace: process ids mean nothing outside them.
    boot: String,
    pid: i64,
    /// Clock ticks from boot to the process's start, which tells a reused id from the old one.
    pid_started: i64,
}

impl Owner {
    /// This process. `salt` tells several owners in one process apart.
    pub(crate) fn this_process(now_us: i64, salt: u64) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let (host, boot_id) =
            (read("/proc/sys/kernel/hostname"), read("/proc/sys/kernel/random/boot_id"));
        let boot = format!("{boot_id} {}", namespace.display());
        let pid = i64::from(std::process::id());
        let pid_started = started(pid).unwrap_or_default();
        let text = format!("{host} {boot} {pid} {pid_started} {now_us} {salt}");
        let id = Digest::of(text.as_bytes()).to_string()[..16].to_owned();
        Self { id, host, boot, pid, pid_started }
    }

    /// Whether `other` is seen to live on this host.
    fn knows_alive(&self, other: &Self) -> bool {
        other.host == self.host
            && other.boot == self.boot
            && started(other.pid) == Some(other.pid_started)
    }

    /// Whether `other` ran on this host and is gone. False when that cannot be known from here.
    fn knows_dead(&self, other: &Self) -> bool {
        other.host == self.host
            && (other.boot.split(' ').next() != self.boot.split(' ').next()
                || (other.boot == self.boot && started(other.pid) != Some(other.pid_started)))
    }
}

/// Processor, threads and memory of this machine.
fn machine() -> String {
    // The first processor's lines are enough; a large machine has megabytes of them.
    let mut text = String::new();
    if let Ok(file) = fs::File::open("/proc/cpuinfo") {
        let _ = file.take(4096).read_to_string(&mut text);
    }
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let info = rustix::system::sysinfo();
    let bytes = info.totalram as f64 * f64::from(info.mem_unit);
    format!("{model}, {n_threads} threads, {:.0} GiB", bytes / (1_u64 << 30) as f64)
}

/// Start time of a process in clock ticks since boot; `None` when there is no such process, or
/// only the remains of one.
fn started(pid: i64) -> Option<i64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

const INSERT_OWNER: &str = "
    INSERT INTO owner (id, host, boot, pid, pid_started, started_us, build, machine)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING";

const OWNERS_AT_WORK: &str = "
    SELECT DISTINCT o.id, o.host, o.boot, o.pid, o.pid_started
      FROM owner AS o
     WHERE o.id IN (SELECT owner FROM node_key WHERE state = 'running')
        OR o.id IN (SELECT owner FROM run WHERE state = 'running')
        OR o.id IN (SELECT owner FROM attempt WHERE state = 'running')
        OR o.id IN (SELECT owner FROM item WHERE state = 'running')";

const OWNER_OF_RUN: &str = "
    SELECT o.id, o.host, o.boot, o.pid, o.pid_started
      FROM run AS r JOIN owner AS o ON o.id = r.owner
     WHERE r.id = $1 AND r.state = 'running'";
const EVENTS_OF_LOST: &str = "
    INSERT INTO event (at_us, run_id, node, key, epoch, kind, detail)
    SELECT $2, run_id, node, key, epoch, 'attempt_lost', 'its process died'
      FROM attempt
     WHERE state = 'running' AND owner IN (SELECT id FROM {rows: id TEXT} AS r)";
const LOSE_ATTEMPTS: &str = "
    UPDATE attempt SET state = 'lost', ended_us = $2
     WHERE state = 'running' AND owner IN (SELECT id FROM {rows: id TEXT} AS r)";
const RELEASE_KEYS: &str = "
    UPDATE node_key SET state = 'missing', lease_until_us = 0
     WHERE state = 'running' AND owner IN (SELECT id FROM {rows: id TEXT} AS r)";
const RELEASE_ITEMS: &str = "
    UPDATE item SET state = 'missing', lease_until_us = 0
     WHERE state = 'running' AND owner IN (SELECT id FROM {rows: id TEXT} AS r)";
const ABANDON_RUNS: &str = "
    UPDATE run SET state = 'abandoned', ended_us = $2
     WHERE state = 'running' AND owner IN (SELECT id FROM {rows: id TEXT} AS r)";
const ABANDON_RUN: &str = "UPDATE run SET state = 'abandoned', ended_us = $2 WHERE id = $1";

impl Ledger {
    /// Writes the owner down, once, before it claims anything; it runs the program `build`.
    pub(crate) async fn register(&self, owner: &Owner, build: &str) -> Result<(), Error> {
        let machine = machine();
        let mut database = self.database.lock().await;
        let binds = [
            Bind::Text(&owner.id),
            Bind::Text(&owner.host),
            Bind::Text(&owner.boot),
            Bind::Int(owner.pid),
            Bind::Int(owner.pid_started),
            Bind::Int(self.clock.now_us()),
            Bind::Text(build),
            Bind::Text(&machine),
        ];
        database.run(INSERT_OWNER, &binds).await?;
        Ok(())
    }

    /// Ends a run that did not begin to work.
    pub(crate) async fn abandon(&self, run: &str) -> Result<(), Error> {
        let mut database = self.database.lock().await;
        let binds = [Bind::Text(run), Bind::Int(self.clock.now_us())];
        database.run(ABANDON_RUN, &binds).await?;
        Ok(())
    }

    /// Releases at once what processes of this host held when they died; gives how many they were.
    pub(crate) async fn recover(&self, owner: &Owner) -> Result<usize, Error> {
        let mut database = self.database.lock().await;
        let dead = dead_owners(&mut database, owner).await?;
        if dead.is_empty() {
            return Ok(0);
        }
        write_off(&mut database, &dead, self.clock.now_us()).await?;
        Ok(dead.len())
    }

    /// Releases what the process of a run holds, on an operator's word that it is gone. Were it
    /// not, it would find its leases lost, and nothing of it would count.
    pub(crate) async fn bury(&self, run: &str, me: &Owner) -> Result<(), Error> {
        let mut database = self.database.lock().await;
        let rows = database.fetch(OWNER_OF_RUN, &[Bind::Text(run)]).await?;
        let Some(owner) = rows.into_iter().map(owner_of).next() else { return Ok(()) };
        if me.knows_alive(&owner) {
            let owner = format!("{}:{}", owner.host, owner.pid);
            return Err(Error::OwnerLives { run: run.to_owned(), owner });
        }
        write_off(&mut database, &[owner.id], self.clock.now_us()).await
    }
}

/// Releases whatever these owners hold, in one transaction.
async fn write_off(database: &mut Database, owners: &[String], now_us: i64) -> Result<(), Error> {
    let rows: Vec<[&str; 1]> = owners.iter().map(|id| [id.as_str()]).collect();
    let rows = serde_json::to_string(&rows).map_err(Error::value)?;
    database.begin().await?;
    let written = async {
        for sql in [EVENTS_OF_LOST, LOSE_ATTEMPTS, ABANDON_RUNS] {
            database.run(sql, &[Bind::Text(&rows), Bind::Int(now_us)]).await?;
        }
        for sql in [RELEASE_KEYS, RELEASE_ITEMS] {
            database.run(sql, &[Bind::Text(&rows)]).await?;
        }
        database.commit().await
    };
    let written = written.await;
    if written.is_err() {
        database.rollback().await;
    }
    written
}

fn owner_of(mut row: Row) -> Owner {
    Owner {
        id: row.text(0),
        host: row.text(1),
        boot: row.text(2),
        pid: row.int(3),
        pid_started: row.int(4),
    }
}

pub(super) async fn dead_owners(
    database: &mut Database,
    owner: &Owner,
) -> Result<Vec<String>, Error> {
    let rows = database.fetch(OWNERS_AT_WORK, &[]).await?;
    let owners = rows.into_iter().map(owner_of);
    Ok(owners.filter(|other| owner.knows_dead(other)).map(|other| other.id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_process_is_known_only_on_its_own_host() {
        let me = Owner::this_process(1, 0);
        assert!(!me.knows_dead(&me));
        let reused = Owner { pid_started: me.pid_started + 1, ..me.clone() };
        assert!(me.knows_dead(&reused));
        let elsewhere = Owner { host: "elsewhere".to_owned(), ..reused.clone() };
        assert!(!me.knows_dead(&elsewhere));
        let namespace = Owner { boot: format!("{}x", me.boot), ..reused };
        assert!(!me.knows_dead(&namespace));
        let rebooted = Owner { boot: "earlier pid:[1]".to_owned(), ..me.clone() };
        assert!(me.knows_dead(&rebooted));
    }
}
