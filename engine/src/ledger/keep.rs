//! What is kept and what may go: tags, pins, and the garbage between them.
//!
//! Reachable is what a pin names, what a tagged run refers to, and what the newest runs in which a
//! node had a key refer to, for every node of every pipeline: so the next run of any pipeline finds
//! what it would have found without collecting. Everything else is garbage.
//!
//! **Invariant:** after collecting, a run of any pipeline's last state repeats nothing
//! (`collecting_never_breaks_a_resume`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::Error;
use super::database::{Bind, Database};
use crate::digest::Digest;
use crate::item::{ItemKey, ItemStore};
use crate::open::{self, Engine};
use crate::plan::blocking;
use crate::store::{Leftover, LeftoverKind, Trash};

/// What the newest runs protect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// For each node, the results of so many of the newest runs that gave it a key.
    pub n_runs: u32,
    /// Nodes that no run has covered since this time, in microseconds since 1970, protect nothing.
    pub since_us: i64,
}

/// What kind of thing may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GarbageKind {
    /// A published artifact that nothing refers to.
    Artifact,
    /// An artifact that the ledger does not know: what a crash between store and ledger left.
    Orphan,
    /// What attempts saved at a key that is finished or that nothing refers to.
    Checkpoint,
    /// A damaged artifact that was set aside.
    Quarantine,
    /// The result of an item that no node will ask for. Its files may be those of an artifact too.
    Item,
}

impl GarbageKind {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Artifact => "artifact",
            Self::Orphan => "orphan",
            Self::Checkpoint => "checkpoint",
            Self::Quarantine => "quarantine",
            Self::Item => "item",
        }
    }
}

/// A thing that may go.
#[derive(Clone, Debug, Serialize)]
pub struct Garbage {
    /// What it is.
    pub kind: GarbageKind,
    /// Its folder's name: a digest, a key, or a digest with a time.
    pub name: String,
    /// Size of its files in bytes.
    pub size_bytes: u64,
    /// The node that made it last, when known.
    pub node: Option<String>,
    /// The run that made it last, when known.
    pub run: Option<String>,
    /// What making it took, in microseconds: what it costs to have it again.
    pub cost_us: Option<i64>,
}

/// Everything that may go, and what stays.
#[derive(Clone, Debug, Serialize)]
pub struct GarbageList {
    /// What may go, largest first.
    pub garbage: Vec<Garbage>,
    /// Size of all of it in bytes.
    pub size_bytes: u64,
    /// What making all of it took, in microseconds, each attempt counted once.
    pub cost_us: i64,
    /// Artifacts that stay.
    pub n_kept: usize,
    /// Their size in bytes.
    pub kept_bytes: u64,
}

/// A name of a run.
#[derive(Clone, Debug, Serialize)]
pub struct TagRow {
    /// The name.
    pub name: String,
    /// The run's id.
    pub run: String,
    /// When it was given, in microseconds since 1970.
    pub at_us: i64,
}

/// An artifact that is never garbage.
#[derive(Clone, Debug, Serialize)]
pub struct PinRow {
    /// The artifact.
    pub digest: String,
    /// What it is, as the operator named it.
    pub about: String,
    /// Who pinned it: `user@host`.
    pub by: String,
    /// When, in microseconds since 1970.
    pub at_us: i64,
}

const KEPT_KEYS: &str = "
    SELECT k.key
      FROM (SELECT n.key, n.run_us,
                   row_number() OVER (PARTITION BY r.pipeline, n.name
                                      ORDER BY n.run_us DESC, n.run_id) AS i,
                   max(n.run_us) OVER (PARTITION BY r.pipeline, n.name) AS last_us
              FROM run_node AS n JOIN run AS r ON r.id = n.run_id
             WHERE n.key IS NOT NULL) AS k
     WHERE k.i <= $1 AND k.last_us >= $2
    UNION
    SELECT n.key FROM tag AS t JOIN run_node AS n ON n.run_id = t.run_id
     WHERE n.key IS NOT NULL";
const OUTPUTS: &str = "SELECT key, digest FROM output";
const PINNED: &str = "SELECT digest, about, by_whom, at_us FROM pin ORDER BY at_us, digest";
const PRESENT: &str = "
    SELECT digest, size_bytes FROM artifact WHERE store = $1 AND state = 'present'";
/// The newest finished attempt at each key.
const COSTS: &str = "
    SELECT a.key, a.node, a.run_id, a.ended_us - a.started_us
      FROM attempt AS a
     WHERE a.state = 'done'
       AND a.epoch = (SELECT max(b.epoch) FROM attempt AS b
                       WHERE b.key = a.key AND b.state = 'done')";
const DONE_KEYS: &str = "SELECT key FROM node_key WHERE state = 'done'";
const COLLECT: &str = "
    UPDATE artifact SET state = 'collected'
      FROM {rows: digest TEXT} AS r
     WHERE artifact.digest = r.digest AND artifact.store = $2";
const COLLECT_EVENTS: &str = "
    INSERT INTO event (at_us, kind, detail)
    SELECT $2, 'artifact_collected', r.digest
      FROM {rows: digest TEXT} AS r";

const WRITE_TAG: &str = "
    INSERT INTO tag (name, run_id, at_us) VALUES ($1, $2, $3)
    ON CONFLICT (name) DO UPDATE SET run_id = excluded.run_id, at_us = excluded.at_us";
const REMOVE_TAG: &str = "DELETE FROM tag WHERE name = $1";
const TAGS: &str = "SELECT name, run_id, at_us FROM tag ORDER BY name";
const WRITE_PIN: &str = "
    INSERT INTO pin (digest, about, by_whom, at_us) VALUES ($1, $2, $3, $4)
    ON CONFLICT (digest) DO NOTHING";
const REMOVE_PIN: &str = "DELETE FROM pin WHERE digest = $1";

/// A finished attempt.
struct Cost {
    node: String,
    run: String,
    us: i64,
}

/// What the ledger says of everything in the store.
struct Reach {
    kept_keys: BTreeSet<String>,
    kept: BTreeSet<Digest>,
    present: BTreeMap<Digest, u64>,
    /// Keys that gave an artifact.
    makers: BTreeMap<Digest, Vec<String>>,
    costs: BTreeMap<String, Cost>,
    done: BTreeSet<String>,
    /// Whether it ever knew an artifact of this store.
    knows_store: bool,
    /// Finished items by the names of their folders, and whether a node that is kept has them.
    items: BTreeMap<String, (ItemKey, i64, bool)>,
}

/// Whether the ledger ever knew an artifact of the store.
const KNOWS_STORE: &str = "SELECT 1 FROM artifact WHERE store = $1 LIMIT 1";
const KNOWS_ARTIFACT: &str = "SELECT 1 FROM artifact WHERE digest = $1 LIMIT 1";
const DONE_ITEMS: &str = "
    SELECT i.key, i.epoch, n.node_key FROM item AS i JOIN node_item AS n ON n.item = i.key
     WHERE i.store = $1 AND i.state = 'done'";
const COLLECT_ITEMS: &str = "
    UPDATE item SET state = 'collected', digest = NULL
      FROM {rows: key TEXT, epoch BIGINT} AS r
     WHERE item.key = r.key AND item.epoch = r.epoch AND item.store = $2 AND item.state = 'done'";
/// Keeps runs from starting until the transaction ends; a writing transaction of `SQLite` does that
/// by itself.
const LOCK_RUNS: &str = "LOCK TABLE run IN SHARE ROW EXCLUSIVE MODE";
const UNDER_WAY: &str = "
    SELECT r.id, o.host || ':' || o.pid FROM run AS r JOIN owner AS o ON o.id = r.owner
     WHERE r.state = 'running' ORDER BY r.started_us LIMIT 1";

impl Reach {
    async fn read(database: &mut Database, store: &str, keep: Keep) -> Result<Self, Error> {
        let binds = [Bind::Int(i64::from(keep.n_runs)), Bind::Int(keep.since_us)];
        let kept_keys: BTreeSet<String> =
            database.fetch(KEPT_KEYS, &binds).await?.into_iter().map(|mut r| r.text(0)).collect();
        let mut kept = BTreeSet::new();
        let mut makers: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for mut row in database.fetch(OUTPUTS, &[]).await? {
            let key = row.text(0);
            let digest = row.text(1).parse().map_err(Error::value)?;
            if kept_keys.contains(&key) {
                kept.insert(digest);
            }
            makers.entry(digest).or_default().push(key);
        }
        for mut row in database.fetch(PINNED, &[]).await? {
            kept.insert(row.text(0).parse().map_err(Error::value)?);
        }
        let mut present = BTreeMap::new();
        for mut row in database.fetch(PRESENT, &[Bind::Text(store)]).await? {
            present.insert(row.text(0).parse().map_err(Error::value)?, row.int(1).unsigned_abs());
        }
        let mut costs = BTreeMap::new();
        for mut row in database.fetch(COSTS, &[]).await? {
            let cost = Cost { node: row.text(1), run: row.text(2), us: row.int(3) };
            costs.insert(row.text(0), cost);
        }
        let done = database.fetch(DONE_KEYS, &[]).await?;
        let done = done.into_iter().map(|mut row| row.text(0)).collect();
        let knows_store = !database.fetch(KNOWS_STORE, &[Bind::Text(store)]).await?.is_empty();
        let mut items = BTreeMap::new();
        for mut row in database.fetch(DONE_ITEMS, &[Bind::Text(store)]).await? {
            let key = ItemKey(row.text(0).parse().map_err(Error::value)?);
            let epoch = row.int(1);
            let (_, _, is_kept) =
                items.entry(ItemStore::name(key, epoch)).or_insert((key, epoch, false));
            *is_kept |= kept_keys.contains(&row.text(2));
        }
        Ok(Self { kept_keys, kept, present, makers, costs, done, knows_store, items })
    }

    /// What is known of who made an artifact, and the cheapest way to have it again.
    fn describe(&self, digest: &Digest, garbage: &mut Garbage) {
        let makers = self.makers.get(digest).into_iter().flatten();
        if let Some(cost) = makers.filter_map(|key| self.costs.get(key)).min_by_key(|cost| cost.us)
        {
            garbage.node = Some(cost.node.clone());
            garbage.run = Some(cost.run.clone());
            garbage.cost_us = Some(cost.us);
        }
    }

    fn artifacts(&self, found: &[(Digest, u64)], list: &mut GarbageList) -> BTreeSet<String> {
        let mut lost_keys = BTreeSet::new();
        for (digest, size_bytes) in found {
            if self.kept.contains(digest) {
                list.n_kept += 1;
                list.kept_bytes += size_bytes;
                continue;
            }
            let is_known = self.present.contains_key(digest);
            let kind = if is_known { GarbageKind::Artifact } else { GarbageKind::Orphan };
            let mut garbage = Garbage::new(kind, digest.to_string(), *size_bytes);
            self.describe(digest, &mut garbage);
            lost_keys.extend(self.makers.get(digest).into_iter().flatten().cloned());
            list.garbage.push(garbage);
        }
        lost_keys
    }
}

impl Garbage {
    fn new(kind: GarbageKind, name: String, size_bytes: u64) -> Self {
        Self { kind, name, size_bytes, node: None, run: None, cost_us: None }
    }
}

impl Engine {
    /// Says what may go. Changes nothing.
    ///
    /// # Errors
    /// When the ledger never knew anything of a store that holds artifacts: it is another store's.
    /// When store or ledger are in trouble.
    pub async fn garbage(&self, keep: Keep) -> Result<GarbageList, open::Error> {
        let mut database = self.ledger.database.lock().await;
        let reach = Reach::read(&mut database, self.store.id(), keep).await?;
        drop(database);
        self.unreached(&reach)
    }

    fn unreached(&self, reach: &Reach) -> Result<GarbageList, open::Error> {
        let found = blocking(|| self.store.sizes())?;
        if !found.is_empty() && !reach.knows_store {
            let (store, n) = (self.store.dir().to_owned(), found.len());
            return Err(Error::OtherStore { store, n }.into());
        }
        let mut list = GarbageList {
            garbage: Vec::new(),
            size_bytes: 0,
            cost_us: 0,
            n_kept: 0,
            kept_bytes: 0,
        };
        let lost_keys = reach.artifacts(&found, &mut list);
        list.cost_us = lost_keys.iter().filter_map(|key| reach.costs.get(key)).map(|c| c.us).sum();
        for Leftover { name, size_bytes, kind } in blocking(|| self.store.set_aside())? {
            let kind = match kind {
                LeftoverKind::Damaged => GarbageKind::Quarantine,
                LeftoverKind::Checkpoint
                    if reach.done.contains(&name) || !reach.kept_keys.contains(&name) =>
                {
                    GarbageKind::Checkpoint
                }
                LeftoverKind::Item
                    if !reach.items.get(&name).is_some_and(|(_, _, is_kept)| *is_kept) =>
                {
                    GarbageKind::Item
                }
                LeftoverKind::Checkpoint | LeftoverKind::Item => continue,
            };
            list.garbage.push(Garbage::new(kind, name, size_bytes));
        }
        list.garbage.sort_by(|a, b| {
            b.size_bytes.cmp(&a.size_bytes).then_with(|| (a.kind, &a.name).cmp(&(b.kind, &b.name)))
        });
        list.size_bytes = list.garbage.iter().map(|garbage| garbage.size_bytes).sum();
        Ok(list)
    }

    /// Removes what [`Self::garbage`] says, and gives what that was.
    ///
    /// No run can start between the question and the moment at which everything is out of the
    /// store. A crash in between leaves promises that the store does not hold; the next run that
    /// needs one makes it again.
    ///
    /// # Errors
    /// As [`Self::garbage`]; when a run is under way, which may be about to use what looks like
    /// garbage.
    pub async fn collect(&self, keep: Keep) -> Result<GarbageList, open::Error> {
        self.ledger.recover(&self.owner).await?;
        let mut database = self.ledger.database.lock().await;
        database.begin().await?;
        let thrown = match self.throw_away(&mut database, keep).await {
            Ok(thrown) => database.commit().await.map(|()| thrown).map_err(open::Error::from),
            Err(error) => {
                database.rollback().await;
                Err(error)
            }
        };
        drop(database);
        let (list, trash) = thrown?;
        blocking(|| trash.into_iter().try_for_each(Trash::empty))?;
        Ok(list)
    }

    /// Moves everything that may go out of the store, inside a transaction.
    async fn throw_away(
        &self,
        database: &mut Database,
        keep: Keep,
    ) -> Result<(GarbageList, Vec<Trash>), open::Error> {
        if database.is_postgres() {
            database.script(LOCK_RUNS).await?;
        }
        if let Some(mut row) = database.fetch(UNDER_WAY, &[]).await?.into_iter().next() {
            return Err(Error::RunUnderWay { run: row.text(0), owner: row.text(1) }.into());
        }
        let reach = Reach::read(database, self.store.id(), keep).await?;
        let list = self.unreached(&reach)?;
        let artifacts = list.garbage.iter().filter(|one| one.kind == GarbageKind::Artifact);
        let rows: Vec<[&str; 1]> = artifacts.map(|one| [one.name.as_str()]).collect();
        let rows = serde_json::to_string(&rows).map_err(Error::value)?;
        let now_us = self.clock.now_us();
        database.run(COLLECT, &[Bind::Text(&rows), Bind::Text(self.store.id())]).await?;
        database.run(COLLECT_EVENTS, &[Bind::Text(&rows), Bind::Int(now_us)]).await?;
        let known = list.garbage.iter().filter(|one| one.kind == GarbageKind::Item);
        let known = known.filter_map(|one| reach.items.get(&one.name));
        let rows: Vec<(ItemKey, i64)> = known.map(|(key, epoch, _)| (*key, *epoch)).collect();
        let rows = serde_json::to_string(&rows).map_err(Error::value)?;
        database.run(COLLECT_ITEMS, &[Bind::Text(&rows), Bind::Text(self.store.id())]).await?;
        let trash = blocking(|| {
            let folders = list.garbage.iter().map(|garbage| self.folder(garbage));
            folders.filter_map(|folder| self.store.throw_away(&folder).transpose()).collect()
        });
        let trash: Result<Vec<Trash>, _> = trash;
        Ok((list, trash?))
    }

    fn folder(&self, garbage: &Garbage) -> PathBuf {
        let (dir, name) = (self.store.dir(), &garbage.name);
        match garbage.kind {
            GarbageKind::Artifact | GarbageKind::Orphan => {
                self.store.path(&name.parse().expect("the store lists digests"))
            }
            GarbageKind::Checkpoint => dir.join("checkpoints").join(name),
            GarbageKind::Quarantine => dir.join("quarantine").join(name),
            GarbageKind::Item => self.store.items().folder(name),
        }
    }

    /// Moves a damaged artifact to quarantine, so that the next run makes it again.
    ///
    /// # Errors
    /// When store or ledger are in trouble.
    pub async fn set_aside(&self, digest: &Digest) -> Result<(), open::Error> {
        blocking(|| self.store.quarantine(digest, self.clock.now_us()))?;
        self.ledger.mark_damaged(self.store.id(), digest).await?;
        Ok(())
    }

    /// Names a run, so that nothing it refers to is garbage; a name that is taken moves.
    ///
    /// # Errors
    /// As [`Self::find_run`].
    pub async fn tag(&self, name: &str, run: &str) -> Result<String, open::Error> {
        let run = self.find_run(run).await?;
        let binds = [Bind::Text(name), Bind::Text(&run), Bind::Int(self.clock.now_us())];
        self.ledger.database.lock().await.run(WRITE_TAG, &binds).await?;
        Ok(run)
    }

    /// Takes a name back; gives whether there was one.
    ///
    /// # Errors
    /// When the ledger is in trouble.
    pub async fn untag(&self, name: &str) -> Result<bool, open::Error> {
        Ok(self.ledger.database.lock().await.run(REMOVE_TAG, &[Bind::Text(name)]).await? > 0)
    }

    /// Every tag, by name.
    ///
    /// # Errors
    /// When the ledger is in trouble.
    pub async fn tags(&self) -> Result<Vec<TagRow>, open::Error> {
        let rows = self.ledger.database.lock().await.fetch(TAGS, &[]).await?;
        let tag = |mut row: super::database::Row| TagRow {
            name: row.text(0),
            run: row.text(1),
            at_us: row.int(2),
        };
        Ok(rows.into_iter().map(tag).collect())
    }

    /// Whether the ledger ever had an artifact, in any store, or this store has it.
    ///
    /// # Errors
    /// When the ledger is in trouble.
    pub async fn knows_artifact(&self, digest: &str) -> Result<bool, open::Error> {
        let mut database = self.ledger.database.lock().await;
        let known = database.fetch(KNOWS_ARTIFACT, &[Bind::Text(digest)]).await?;
        let held = digest.parse().is_ok_and(|digest| self.store.path(&digest).is_dir());
        Ok(held || !known.is_empty())
    }

    /// Keeps an artifact whatever runs do.
    ///
    /// # Errors
    /// When the ledger is in trouble.
    pub async fn pin(&self, digest: &str, about: &str, by: &str) -> Result<(), open::Error> {
        let binds =
            [Bind::Text(digest), Bind::Text(about), Bind::Text(by), Bind::Int(self.clock.now_us())];
        self.ledger.database.lock().await.run(WRITE_PIN, &binds).await?;
        Ok(())
    }

    /// Takes a pin back; gives whether there was one.
    ///
    /// # Errors
    /// When the ledger is in trouble.
    pub async fn unpin(&self, digest: &str) -> Result<bool, open::Error> {
        Ok(self.ledger.database.lock().await.run(REMOVE_PIN, &[Bind::Text(digest)]).await? > 0)
    }

    /// Every pin, oldest first.
    ///
    /// # Errors
    /// When the ledger is in trouble.
    pub async fn pins(&self) -> Result<Vec<PinRow>, open::Error> {
        let rows = self.ledger.database.lock().await.fetch(PINNED, &[]).await?;
        let pin = |mut row: super::database::Row| PinRow {
            digest: row.text(0),
            about: row.text(1),
            by: row.text(2),
            at_us: row.int(3),
        };
        Ok(rows.into_iter().map(pin).collect())
    }
}
