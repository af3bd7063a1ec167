//! What the planner asks of the ledger: in batches, one question for thousands of keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;

use super::database::{Bind, Database, Row};
use super::{Error, Ledger, Ruling, Verdict};
use crate::digest::Digest;
use crate::external::StatCache;
use crate::key::{Components, InputPart, NodeKey};
use crate::plan::{Earlier, FileList};
use crate::store::Manifest;

/// Where the result of a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeyStatus {
    Missing,
    Running,
    Done,
}

/// What the ledger knows of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyState {
    pub(crate) status: KeyStatus,
    /// The newest attempt; 0 when there was none.
    pub(crate) epoch: i64,
    /// `host:pid` of who holds or held it.
    pub(crate) owner: String,
    pub(crate) lease_until_us: i64,
    /// Digests by port, when done.
    pub(crate) outputs: BTreeMap<String, Digest>,
}

/// What a key is made of and what its result says.
pub(crate) struct KeyFact {
    pub(crate) key: NodeKey,
    pub(crate) components: Components,
    pub(crate) external: FileList,
    pub(crate) metrics: BTreeMap<String, f64>,
}

/// How an attempt ended, and what an operator decided since.
pub(crate) struct LastAttempt {
    pub(crate) state: String,
    pub(crate) message: Option<String>,
    pub(crate) ruling: Option<Ruling>,
}

const KEYS: &str = "
    SELECT {list: k.key, k.state, k.epoch, coalesce(w.host || ':' || w.pid, ''), k.lease_until_us,
           o.port, o.digest}
      FROM {rows: key TEXT} AS r
      JOIN node_key AS k ON k.key = r.key
      LEFT JOIN owner AS w ON w.id = k.owner
      LEFT JOIN output AS o ON o.key = k.key AND k.state = 'done'";

/// Keys of a range of the nodes of the pipeline's last run: most of them are asked for next, all in a
/// few goes instead of one question for each level of the graph.
const KEYS_OF_LAST_RUN: &str = "
    SELECT {list: k.key, k.state, k.epoch, '', k.lease_until_us, o.port, o.digest}
      FROM run_node AS n
      JOIN node_key AS k ON k.key = n.key AND k.state = 'done'
      LEFT JOIN output AS o ON o.key = k.key
     WHERE n.run_id = (SELECT id FROM run WHERE pipeline = $1
                        ORDER BY started_us DESC, id LIMIT 1)
       AND n.ordinal >= $2 AND n.ordinal < $3";
/// Nodes in one answer: its text is built in memory, on both sides.
const NODES_AT_ONCE: i64 = 16_384;

const MANIFESTS: &str = "
    SELECT {list: a.digest, a.manifest}
      FROM {rows: digest TEXT} AS r
      JOIN artifact AS a ON a.digest = r.digest AND a.store = $2 AND a.state = 'present'";

const LAST_ATTEMPTS: &str = "
    SELECT a.key, a.state, a.failure_message, u.verdict, u.reason, u.by_whom
      FROM {rows: key TEXT} AS r
      JOIN node_key AS k ON k.key = r.key
      JOIN attempt AS a ON a.key = k.key AND a.epoch = k.epoch
      LEFT JOIN ruling AS u ON u.key = k.key";

/// Only of rows that runs wrote themselves: a run that shares those of the run before it has the
/// same keys.
const EARLIER: &str = "
    SELECT r.i, n.run_id, k.key, k.task, k.revision, k.params, k.inputs, k.external, k.salt
      FROM {rows: i BIGINT, name TEXT, key TEXT} AS r
      JOIN own_node AS n ON n.name = r.name AND n.key IS NOT NULL AND n.key <> r.key
       AND n.run_us = (SELECT x.run_us FROM own_node AS x JOIN run AS y ON y.id = x.run_id
                        WHERE x.name = r.name AND x.key IS NOT NULL AND x.key <> r.key
                          AND y.pipeline = $2
                        ORDER BY x.run_us DESC LIMIT 1)
      JOIN node_key AS k ON k.key = n.key";

/// The same columns as [`EARLIER`], with the final figures of the newest finished attempt.
const KEY_FACTS: &str = "
    SELECT 0, '', k.key, k.task, k.revision, k.params, k.inputs, k.external, k.salt,
           (SELECT a.metrics FROM attempt AS a WHERE a.key = k.key AND a.state = 'done'
             ORDER BY a.epoch DESC LIMIT 1)
      FROM {rows: key TEXT} AS r JOIN node_key AS k ON k.key = r.key";

const EXTERNAL_LISTS: &str = "
    SELECT e.digest, e.files
      FROM {rows: digest TEXT} AS r JOIN external_list AS e ON e.digest = r.digest";

const READ_STATS: &str = "SELECT files FROM file_stat WHERE base = $1";
const WRITE_STATS: &str = "
    INSERT INTO file_stat (base, files, updated_us) VALUES ($1, $2, $3)
    ON CONFLICT (base) DO UPDATE SET files = excluded.files, updated_us = excluded.updated_us";

const MARK_DAMAGED: &str = "
    UPDATE artifact SET state = 'damaged' WHERE digest = $1 AND store = $2";

const LIVE_ATTEMPTS: &str = "
    SELECT key, epoch FROM attempt WHERE state = 'running'";

const RUNNING_OWNERS: &str = "SELECT DISTINCT owner FROM run WHERE state = 'running'";

/// The rows of a one-column statement.
pub(super) fn column<T: ToString>(values: impl Iterator<Item = T>) -> Result<String, Error> {
    let rows: Vec<[String; 1]> = values.map(|value| [value.to_string()]).collect();
    serde_json::to_string(&rows).map_err(Error::value)
}

/// A row of [`KEYS`] and [`KEYS_OF_LAST_RUN`]: one for each output of a key, or one alone.
type KeyPart = (NodeKey, KeyStatus, i64, String, i64, Option<String>, Option<Digest>);

/// What is known of keys. There may be many, and they are only asked for one by one.
pub(crate) type KeyStates = HashMap<NodeKey, KeyState>;

fn add_key(
    states: &mut KeyStates,
    (key, status, epoch, owner, lease_until_us, port, digest): KeyPart,
) {
    let state = states.entry(key).or_insert_with(|| KeyState {
        status,
        epoch,
        owner,
        lease_until_us,
        outputs: BTreeMap::new(),
    });
    state.outputs.extend(port.zip(digest));
}

impl Ledger {
    /// What is known of `keys`; unknown ones are left out.
    pub(crate) async fn keys(
        &self,
        keys: impl Iterator<Item = NodeKey>,
    ) -> Result<KeyStates, Error> {
        let rows = column(keys)?;
        let mut states = KeyStates::new();
        let mut database = self.database.lock().await;
        database.each_of_list(KEYS, &[Bind::Text(&rows)], |row| add_key(&mut states, row)).await?;
        Ok(states)
    }

    /// What is known of the keys of the first `n_nodes` nodes of the pipeline's last run.
    pub(crate) async fn keys_of_last_run(
        &self,
        pipeline: &str,
        n_nodes: usize,
    ) -> Result<KeyStates, Error> {
        let mut states = KeyStates::new();
        let mut database = self.database.lock().await;
        for first in (0..n_nodes as i64).step_by(NODES_AT_ONCE as usize) {
            let end = first + NODES_AT_ONCE;
            let binds = [Bind::Text(pipeline), Bind::Int(first), Bind::Int(end)];
            let take = |row| add_key(&mut states, row);
            database.each_of_list(KEYS_OF_LAST_RUN, &binds, take).await?;
        }
        Ok(states)
    }

    /// Manifests of the artifacts that the store should hold.
    pub(crate) async fn manifests(
        &self,
        store: &str,
        digests: impl Iterator<Item = Digest>,
    ) -> Result<BTreeMap<Digest, Manifest>, Error> {
        let rows = column(digests)?;
        let binds = [Bind::Text(&rows), Bind::Text(store)];
        let mut manifests = BTreeMap::new();
        let mut texts: Vec<(Digest, String)> = Vec::new();
        let mut database = self.database.lock().await;
        database.each_of_list(MANIFESTS, &binds, |row| texts.push(row)).await?;
        for (digest, text) in texts {
            manifests.insert(digest, serde_json::from_str(&text).map_err(Error::value)?);
        }
        Ok(manifests)
    }

    /// How the newest attempt at each key ended.
    pub(crate) async fn last_attempts(
        &self,
        keys: impl Iterator<Item = NodeKey>,
    ) -> Result<BTreeMap<NodeKey, LastAttempt>, Error> {
        let rows = column(keys)?;
        let rows = self.database.lock().await.fetch(LAST_ATTEMPTS, &[Bind::Text(&rows)]).await?;
        let mut ends = BTreeMap::new();
        for mut row in rows {
            let key = row.text(0).parse().map_err(Error::value)?;
            let verdict = match row.opt_text(3).as_deref() {
                Some("approved") => Some(Verdict::Approved),
                Some("rejected") => Some(Verdict::Rejected),
                _ => None,
            };
            let ruling =
                verdict.map(|verdict| Ruling { verdict, reason: row.text(4), by: row.text(5) });
            ends.insert(key, LastAttempt { state: row.text(1), message: row.opt_text(2), ruling });
        }
        Ok(ends)
    }

    /// For each `(i, name, key)`, the last other key that a node of that name had in this pipeline.
    pub(crate) async fn earlier(
        &self,
        pipeline: &str,
        asked: &[(usize, &str, NodeKey)],
    ) -> Result<BTreeMap<usize, Earlier>, Error> {
        let rows = serde_json::to_string(asked).map_err(Error::value)?;
        let mut database = self.database.lock().await;
        let rows = database.fetch(EARLIER, &[Bind::Text(&rows), Bind::Text(pipeline)]).await?;
        let mut earlier = BTreeMap::new();
        let mut lists: BTreeSet<String> = BTreeSet::new();
        for mut row in rows {
            let external = row.opt_text(7);
            lists.extend(external.clone());
            let components = read_components(&mut row, external)?;
            let i = usize::try_from(row.int(0)).map_err(Error::value)?;
            let key = row.text(2).parse().map_err(Error::value)?;
            earlier.insert(i, Earlier { key, run: row.text(1), components, external: Vec::new() });
        }
        let files = file_lists(&mut database, lists).await?;
        for earlier in earlier.values_mut() {
            let digest = earlier.components.external.map(|digest| digest.to_string());
            if let Some(list) = digest.and_then(|digest| files.get(&digest)) {
                earlier.external.clone_from(list);
            }
        }
        Ok(earlier)
    }

    /// What is known of `keys`, by their text.
    pub(crate) async fn key_facts(
        &self,
        keys: &[NodeKey],
    ) -> Result<BTreeMap<String, KeyFact>, Error> {
        let rows = column(keys.iter())?;
        let mut database = self.database.lock().await;
        let rows = database.fetch(KEY_FACTS, &[Bind::Text(&rows)]).await?;
        let (mut facts, mut lists) = (BTreeMap::new(), BTreeSet::new());
        for mut row in rows {
            let text = row.text(2);
            let external = row.opt_text(7);
            lists.extend(external.clone());
            let components = read_components(&mut row, external)?;
            let metrics = row.opt_text(9).map(|text| serde_json::from_str(&text));
            let metrics = metrics.transpose().map_err(Error::value)?.unwrap_or_default();
            let key = text.parse().map_err(Error::value)?;
            let external = Vec::new();
            facts.insert(text, KeyFact { key, components, external, metrics });
        }
        let files = file_lists(&mut database, lists).await?;
        for fact in facts.values_mut() {
            let digest = fact.components.external.map(|digest| digest.to_string());
            if let Some(list) = digest.and_then(|digest| files.get(&digest)) {
                fact.external.clone_from(list);
            }
        }
        Ok(facts)
    }

    /// The cached digests of files below `base`; empty when the cache cannot be read.
    pub(crate) async fn file_stats(&self, base: &str) -> Result<StatCache, Error> {
        let rows = self.database.lock().await.fetch(READ_STATS, &[Bind::Text(base)]).await?;
        let text = rows.into_iter().next().map(|mut row| row.text(0));
        // A cache in an older form is no reason to fail: files are hashed again.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// Keeps the digests of files below `base`.
    pub(crate) async fn write_file_stats(
        &self,
        base: &str,
        stats: &StatCache,
    ) -> Result<(), Error> {
        let text = serde_json::to_string(stats).map_err(Error::value)?;
        let binds = [Bind::Text(base), Bind::Text(&text), Bind::Int(self.clock.now_us())];
        self.database.lock().await.run(WRITE_STATS, &binds).await?;
        Ok(())
    }

    /// Notes that an artifact was moved to quarantine.
    pub(crate) async fn mark_damaged(&self, store: &str, digest: &Digest) -> Result<(), Error> {
        let text = digest.to_string();
        let binds = [Bind::Text(&text), Bind::Text(store)];
        self.database.lock().await.run(MARK_DAMAGED, &binds).await?;
        Ok(())
    }

    /// Processes that run something, as far as is known.
    pub(crate) async fn running_owners(&self) -> Result<BTreeSet<String>, Error> {
        let rows = self.database.lock().await.fetch(RUNNING_OWNERS, &[]).await?;
        Ok(rows.into_iter().map(|mut row| row.text(0)).collect())
    }

    /// Work folder names (`KEY-EPOCH`) of attempts that may still run.
    pub(crate) async fn live_attempts(&self) -> Result<BTreeSet<String>, Error> {
        let rows = self.database.lock().await.fetch(LIVE_ATTEMPTS, &[]).await?;
        let name = |mut row: Row| format!("{}-{}", row.text(0), row.int(1));
        Ok(rows.into_iter().map(name).collect())
    }
}

/// The lists of external files with these digests.
async fn file_lists(
    database: &mut Database,
    digests: BTreeSet<String>,
) -> Result<BTreeMap<String, FileList>, Error> {
    let mut files = BTreeMap::new();
    if digests.is_empty() {
        return Ok(files);
    }
    let digests = column(digests.into_iter())?;
    for mut row in database.fetch(EXTERNAL_LISTS, &[Bind::Text(&digests)]).await? {
        files.insert(row.text(0), serde_json::from_str(&row.text(1)).map_err(Error::value)?);
    }
    Ok(files)
}

/// Reads columns 3.. of [`EARLIER`].
fn read_components(row: &mut Row, external: Option<String>) -> Result<Components, Error> {
    let inputs: BTreeMap<String, Vec<InputPart>> =
        serde_json::from_str(&row.text(6)).map_err(Error::value)?;
    Ok(Components {
        task: row.text(3),
        revision: u32::try_from(row.int(4)).map_err(Error::value)?,
        params: serde_json::from_str(&row.text(5)).map_err(Error::value)?,
        inputs,
        external: external.map(|text| text.parse()).transpose().map_err(Error::value)?,
        salt: row.text(8),
    })
}
