//! Writes: everything that happened since the last transaction, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::database::{Bind, Database};
use super::items::{self, ItemCall};
use super::{Error, Ledger, Owner};
use crate::digest::Digest;
use crate::item::{ItemKey, State as ItemState};
use crate::key::{Components, NodeKey};
use crate::plan::{FileList, Reason};
use crate::run::{NodeState, RunState};
use crate::store::Published;
use crate::task::{Failure, FailureKind, LogLevel};

/// A run that starts.
pub(crate) struct NewRun<'a> {
    pub(crate) id: &'a str,
    pub(crate) pipeline: &'a str,
    pub(crate) path: &'a str,
    pub(crate) text: &'a str,
    pub(crate) params: String,
    /// Ordinal, name, entry, task, key, state, reason as JSON.
    #[expect(clippy::type_complexity, reason = "one row, in the order of the statement")]
    pub(crate) nodes:
        Vec<(usize, &'a str, &'a str, &'a str, Option<NodeKey>, NodeState, Option<String>)>,
}

/// A key with what it is made of.
pub(crate) struct KeyRow {
    pub(crate) key: NodeKey,
    pub(crate) components: Components,
    pub(crate) external: Option<FileList>,
}

/// A wish to compute a key.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) key: NodeKey,
    /// The epoch seen when the result was found missing: the claim fails when it has moved on.
    pub(crate) epoch: i64,
    /// The lease to take over, when it was seen to stand still for too long.
    pub(crate) stale_lease_us: Option<i64>,
    pub(crate) node: String,
}

/// A finished attempt whose artifacts are in the store.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    pub(crate) key: NodeKey,
    pub(crate) epoch: i64,
    pub(crate) outputs: BTreeMap<String, Published>,
    pub(crate) metrics: BTreeMap<String, f64>,
    /// Of the attempt's own process; `None` when it ran in that of the run.
    pub(crate) peak_memory_bytes: Option<i64>,
    /// Whether it was made of items that nothing needs any more.
    pub(crate) drops_items: bool,
}

/// An attempt that ended without a result.
#[derive(Clone, Debug)]
pub(crate) struct AttemptEnd {
    pub(crate) key: NodeKey,
    pub(crate) epoch: i64,
    pub(crate) node: String,
    pub(crate) failure: Failure,
    /// As [`Publish::peak_memory_bytes`].
    pub(crate) peak_memory_bytes: Option<i64>,
}

/// A new state of a node of the run.
#[derive(Clone, Debug)]
pub(crate) struct NodeChange {
    pub(crate) state: NodeState,
    pub(crate) key: Option<NodeKey>,
    pub(crate) reason: Option<Reason>,
}

#[derive(Clone, Debug)]
pub(crate) struct MetricRow {
    pub(crate) key: NodeKey,
    pub(crate) epoch: i64,
    pub(crate) name: String,
    pub(crate) step: u64,
    pub(crate) value: f64,
    pub(crate) at_us: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct LogLine {
    pub(crate) key: NodeKey,
    pub(crate) epoch: i64,
    pub(crate) at_us: i64,
    pub(crate) level: LogLevel,
    pub(crate) text: String,
}

#[derive(Clone, Debug)]
pub(crate) struct ProgressRow {
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) unit: String,
    pub(crate) at_us: i64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct EventRow {
    pub(crate) at_us: i64,
    pub(crate) node: Option<String>,
    pub(crate) key: Option<NodeKey>,
    pub(crate) epoch: Option<i64>,
    pub(crate) kind: &'static str,
    pub(crate) detail: Option<String>,
}

/// Everything that happened since the last transaction.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) keys: BTreeMap<NodeKey, KeyRow>,
    pub(crate) claims: BTreeMap<NodeKey, Claim>,
    pub(crate) publishes: BTreeMap<NodeKey, Publish>,
    pub(crate) ends: BTreeMap<NodeKey, AttemptEnd>,
    pub(crate) nodes: BTreeMap<usize, NodeChange>,
    pub(crate) metrics: Vec<MetricRow>,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) progress: BTreeMap<(NodeKey, i64), ProgressRow>,
    pub(crate) events: Vec<EventRow>,
    /// When set, every lease is prolonged to this time.
    pub(crate) lease_until_us: Option<i64>,
    pub(crate) items: Vec<ItemCall>,
    /// How the run ended, and [`nodes_digest`] when every key is known.
    pub(crate) run_end: Option<(RunState, Option<Digest>)>,
    /// Attempts that are over, or given up, and may hold items.
    pub(crate) gone_holders: Vec<String>,
}

impl Batch {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty()
            && self.publishes.is_empty()
            && self.ends.is_empty()
            && self.nodes.is_empty()
            && self.metrics.is_empty()
            && self.logs.is_empty()
            && self.progress.is_empty()
            && self.events.is_empty()
            && self.lease_until_us.is_none()
            && self.run_end.is_none()
            && self.items.is_empty()
            && self.gone_holders.is_empty()
    }

    /// Whether nobody waits for what it says: results and claims, and what the nodes of these become.
    pub(crate) fn can_wait(&self) -> bool {
        !self.is_empty()
            && self.ends.is_empty()
            && self.lease_until_us.is_none()
            && self.run_end.is_none()
            && self.items.is_empty()
            && self.gone_holders.is_empty()
    }
}

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Granted claims with their epochs; other claims were too late.
    pub(crate) claimed: BTreeMap<NodeKey, i64>,
    /// Accepted publishes; others held a stale epoch.
    pub(crate) published: BTreeSet<NodeKey>,
    /// Keys whose attempts ended without a result while they still held the lease.
    pub(crate) ended: BTreeSet<NodeKey>,
    /// After a heartbeat: every key and epoch that is still ours.
    pub(crate) held: Option<BTreeMap<NodeKey, i64>>,
    /// For each call about items, the states of those that it mentions.
    pub(crate) items: Vec<Vec<ItemState>>,
    /// Items that published nodes need no more.
    pub(crate) collected: Vec<(ItemKey, i64)>,
}

/// The run before, when it read the same text and found or made the same results.
const SAME_RUN: &str = "
    SELECT r.nodes_of FROM run AS r JOIN run AS o ON o.id = r.nodes_of
     WHERE r.id = (SELECT b.id FROM run AS b WHERE b.pipeline = $1
                    ORDER BY b.started_us DESC, b.id LIMIT 1)
       AND r.nodes_digest = $2 AND o.text = $3";
const INSERT_RUN: &str = "
    INSERT INTO run (id, pipeline, path, text, params, owner, state, started_us, nodes_digest,
                     nodes_of)
    VALUES ($1, $2, $3, $4, $5, $6, 'running', $7, nullif($8, ''), $9)";
const INSERT_RUN_NODES: &str = "
    INSERT INTO own_node (run_id, run_us, ordinal, name, entry, task, key, state, reason)
    SELECT $2, $3, r.ordinal, r.name, r.entry, r.task, r.key, r.state, r.reason
      FROM {rows: ordinal BIGINT, name TEXT, entry TEXT, task TEXT, key TEXT, state TEXT,
            reason TEXT} AS r";

/// Counts batches, so that one sent again after a lost connection writes its log once.
const NEXT_BATCH: &str = "UPDATE owner SET batch = $2 WHERE id = $1 AND batch < $2";

const INSERT_EXTERNAL: &str = "
    INSERT INTO external_list (digest, files)
    SELECT r.digest, r.files FROM {rows: digest TEXT, files TEXT} AS r WHERE true
    ON CONFLICT (digest) DO NOTHING";
const INSERT_KEYS: &str = "
    INSERT INTO node_key (key, task, revision, params, inputs, external, salt, state, epoch,
                          lease_until_us, created_us)
    SELECT r.key, r.task, r.revision, r.params, r.inputs, r.external, r.salt, 'missing', 0, 0, $2
      FROM {rows: key TEXT, task TEXT, revision BIGINT, params TEXT, inputs TEXT, external TEXT,
            salt TEXT} AS r WHERE true
    ON CONFLICT (key) DO NOTHING";

/// Takes a key whose epoch has not moved since it was found missing, or whose lease was seen to
/// stand still for longer than a lease lasts. No clock is compared with another host's.
///
/// The predicates on state and lease are checked again by Postgres after it has locked the row,
/// so of two claimers the second changes nothing. The last line makes a claim that is sent again
/// after a lost connection find itself granted.
const CLAIM: &str = "
    UPDATE node_key
       SET state = 'running', owner = $2, epoch = r.epoch + 1, lease_until_us = $3
      FROM {rows: key TEXT, epoch BIGINT, stale_lease_us BIGINT} AS r
     WHERE node_key.key = r.key
       AND ((node_key.epoch = r.epoch
             AND (node_key.state <> 'running' OR node_key.lease_until_us = r.stale_lease_us))
            OR (node_key.epoch = r.epoch + 1 AND node_key.state = 'running'
                AND node_key.owner = $2))
    RETURNING node_key.key, node_key.epoch";
const LOSE_EARLIER: &str = "
    UPDATE attempt SET state = 'lost', ended_us = $2
      FROM {rows: key TEXT, epoch BIGINT, node TEXT} AS r
     WHERE attempt.key = r.key AND attempt.epoch = r.epoch - 1 AND attempt.state = 'running'";
const INSERT_ATTEMPTS: &str = "
    INSERT INTO attempt (key, epoch, run_id, node, owner, state, started_us)
    SELECT r.key, r.epoch, $2, r.node, $3, 'running', $4
      FROM {rows: key TEXT, epoch BIGINT, node TEXT} AS r WHERE true
    ON CONFLICT (key, epoch) DO NOTHING";

/// Accepts the result of an attempt that still holds the key's newest epoch. A result that is
/// there with the same epoch and owner is this one, sent again.
const PUBLISH: &str = "
    UPDATE node_key SET state = 'done', lease_until_us = 0
      FROM {rows: key TEXT, epoch BIGINT} AS r
     WHERE node_key.key = r.key AND node_key.epoch = r.epoch AND node_key.owner = $2
       AND node_key.state IN ('running', 'done')
    RETURNING node_key.key";
const INSERT_OUTPUTS: &str = "
    INSERT INTO output (key, port, digest)
    SELECT r.key, r.port, r.digest FROM {rows: key TEXT, port TEXT, digest TEXT} AS r WHERE true
    ON CONFLICT (key, port) DO UPDATE SET digest = excluded.digest";
const INSERT_ARTIFACTS: &str = "
    INSERT INTO artifact (digest, store, size_bytes, n_files, manifest, state, created_us)
    SELECT r.digest, $2, r.size_bytes, r.n_files, r.manifest, 'present', $3
      FROM {rows: digest TEXT, size_bytes BIGINT, n_files BIGINT, manifest TEXT} AS r WHERE true
    ON CONFLICT (digest, store) DO UPDATE SET manifest = excluded.manifest, state = 'present'";
const FINISH_ATTEMPTS: &str = "
    UPDATE attempt
       SET state = 'done', ended_us = $2, peak_memory_bytes = coalesce(r.peak, $3),
           metrics = r.metrics
      FROM {rows: key TEXT, epoch BIGINT, metrics TEXT, peak BIGINT} AS r
     WHERE attempt.key = r.key AND attempt.epoch = r.epoch";

/// Gives back a key whose newest epoch is still the attempt's. One that is free with the same epoch
/// and owner was given back by this, sent again.
const RELEASE: &str = "
    UPDATE node_key SET state = 'missing', lease_until_us = 0
      FROM {rows: key TEXT, epoch BIGINT} AS r
     WHERE node_key.key = r.key AND node_key.epoch = r.epoch AND node_key.owner = $2
       AND node_key.state IN ('running', 'missing')
    RETURNING node_key.key";
const END_ATTEMPTS: &str = "
    UPDATE attempt
       SET state = r.state, ended_us = $2, peak_memory_bytes = coalesce(r.peak, $3),
           failure_kind = r.kind, failure_message = r.message, failure_help = r.help
      FROM {rows: key TEXT, epoch BIGINT, state TEXT, kind TEXT, message TEXT, help TEXT,
            peak BIGINT} AS r
     WHERE attempt.key = r.key AND attempt.epoch = r.epoch AND attempt.state = 'running'";

/// The run's id is in every row: bound apart, it makes `SQLite` go through all nodes of the run.
const UPDATE_NODES: &str = "
    UPDATE own_node
       SET state = r.state, key = coalesce(r.key, own_node.key),
           reason = coalesce(r.reason, own_node.reason)
      FROM {rows: run_id TEXT, ordinal BIGINT, state TEXT, key TEXT, reason TEXT} AS r
     WHERE own_node.run_id = r.run_id AND own_node.ordinal = r.ordinal";
const INSERT_METRICS: &str = "
    INSERT INTO metric (key, epoch, name, step, value, at_us)
    SELECT r.key, r.epoch, r.name, r.step, r.value, r.at_us
      FROM {rows: key TEXT, epoch BIGINT, name TEXT, step BIGINT, value FLOAT8, at_us BIGINT} AS r
     WHERE true
    ON CONFLICT (key, name, step, epoch) DO UPDATE SET value = excluded.value";
const INSERT_LOGS: &str = "
    INSERT INTO log (key, epoch, at_us, level, text)
    SELECT r.key, r.epoch, r.at_us, r.level, r.text
      FROM {rows: key TEXT, epoch BIGINT, at_us BIGINT, level TEXT, text TEXT} AS r";
const UPDATE_PROGRESS: &str = "
    UPDATE attempt
       SET progress_done = r.done, progress_total = r.total, progress_unit = r.unit,
           progress_at_us = r.at_us
      FROM {rows: key TEXT, epoch BIGINT, done BIGINT, total BIGINT, unit TEXT, at_us BIGINT} AS r
     WHERE attempt.key = r.key AND attempt.epoch = r.epoch";
const INSERT_EVENTS: &str = "
    INSERT INTO event (run_id, at_us, node, key, epoch, kind, detail)
    SELECT $2, r.at_us, r.node, r.key, r.epoch, r.kind, r.detail
      FROM {rows: at_us BIGINT, node TEXT, key TEXT, epoch BIGINT, kind TEXT, detail TEXT} AS r";
const HEARTBEAT: &str = "
    UPDATE node_key SET lease_until_us = $2 WHERE owner = $1 AND state = 'running'
    RETURNING key, epoch";
const END_RUN: &str = "
    UPDATE run SET state = $2, ended_us = $3, nodes_digest = nullif($4, '') WHERE id = $1";

/// Who writes: the same for all batches of a run.
pub(crate) struct Writer<'a> {
    pub(crate) owner: &'a Owner,
    pub(crate) run: &'a str,
    pub(crate) store: &'a str,
    /// Until when new claims are leased.
    pub(crate) lease_until_us: i64,
    /// Grows with each new batch, not when one is sent again.
    pub(crate) sequence: i64,
    pub(crate) peak_memory_bytes: i64,
}

/// Over everything that a finished node's row says; `None` while a key is unknown.
pub(crate) fn nodes_digest<'a>(
    nodes: impl Iterator<Item = (usize, &'a str, &'a str, &'a str, Option<NodeKey>)>,
) -> Option<Digest> {
    let mut text = Vec::new();
    for (ordinal, name, entry, task, key) in nodes {
        text.extend_from_slice(&(ordinal as u64).to_le_bytes());
        for part in [name, entry, task] {
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        text.extend_from_slice(key?.0.as_bytes());
    }
    Some(Digest::of(&text))
}

/// Rows as the statements take them. No database takes the character 0 in a text, and a program
/// may print one, so another character stands for it.
pub(super) fn json(rows: &impl Serialize) -> Result<String, Error> {
    let text = serde_json::to_string(rows).map_err(Error::value)?;
    Ok(if text.contains(NUL) { without_nul(&text) } else { text })
}

const NUL: &str = "\\u0000";

fn without_nul(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        let (before, after) = rest.split_at(at);
        text.push_str(before);
        let (escape, next) = match after.strip_prefix(NUL) {
            Some(next) => ("\\ufffd", next),
            // A backslash and what it escapes are taken together.
            None => after.split_at(2),
        };
        text.push_str(escape);
        rest = next;
    }
    text.push_str(rest);
    text
}

fn optional_json<T: Serialize>(value: Option<&T>) -> Result<Option<String>, Error> {
    value.map(json).transpose()
}

impl Ledger {
    /// Writes a new run with its nodes and the keys known so far.
    pub(crate) async fn start_run(
        &self,
        owner: &Owner,
        run: NewRun<'_>,
        keys: &BTreeMap<NodeKey, KeyRow>,
    ) -> Result<(), Error> {
        let now_us = self.clock.now_us();
        let digest = nodes_digest(run.nodes.iter().map(|row| (row.0, row.1, row.2, row.3, row.4)));
        let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
        let all_cached = run.nodes.iter().all(|row| row.5 == NodeState::Cached);
        let mut database = self.database.lock().await;
        database.begin().await?;
        let write = async {
            let same = if all_cached {
                let binds = [Bind::Text(run.pipeline), Bind::Text(&digest), Bind::Text(run.text)];
                database.fetch(SAME_RUN, &binds).await?.first_mut().map(|row| row.text(0))
            } else {
                None
            };
            let binds = [
                Bind::Text(run.id),
                Bind::Text(run.pipeline),
                Bind::Text(run.path),
                Bind::Text(if same.is_some() { "" } else { run.text }),
                Bind::Text(&run.params),
                Bind::Text(&owner.id),
                Bind::Int(now_us),
                Bind::Text(&digest),
                Bind::Text(same.as_deref().unwrap_or(run.id)),
            ];
            database.run(INSERT_RUN, &binds).await?;
            if same.is_none() {
                let nodes = json(&run.nodes)?;
                let binds = [Bind::Text(&nodes), Bind::Text(run.id), Bind::Int(now_us)];
                database.run(INSERT_RUN_NODES, &binds).await?;
            }
            insert_keys(&mut database, keys, now_us).await?;
            let started = EventRow {
                at_us: now_us,
                node: None,
                key: None,
                epoch: None,
                kind: "run_started",
                detail: None,
            };
            insert_events(&mut database, run.id, &[started]).await
        };
        match write.await {
            Ok(()) => database.commit().await,
            Err(error) => {
                database.rollback().await;
                Err(error)
            }
        }
    }

    /// Writes a batch in one transaction. After [`Error::Unreachable`] the same batch may be sent
    /// again: what the lost connection had already committed is found, not done twice.
    pub(crate) async fn commit(&self, writer: &Writer<'_>, batch: &Batch) -> Result<Reply, Error> {
        let mut database = self.database.lock().await;
        let now_us = self.clock.now_us();
        let written = async {
            database.begin().await?;
            let reply = write(&mut database, writer, batch, now_us).await?;
            database.commit().await?;
            Ok::<_, Error>(reply)
        };
        match written.await {
            Ok(reply) => Ok(reply),
            Err(error) => {
                database.rollback().await;
                Err(error)
            }
        }
    }

    /// Prolongs whatever `owner` holds. Tells nothing: whether a lease was lost is for
    /// [`Self::commit`] to say.
    pub(crate) async fn prolong(&self, owner: &str, until_us: i64) -> Result<(), Error> {
        let mut database = self.database.lock().await;
        let binds = [Bind::Text(owner), Bind::Int(until_us)];
        database.run(HEARTBEAT, &binds).await?;
        items::heartbeat(&mut database, owner, until_us).await
    }

    /// Replaces a connection that a server's end may have cut off; nothing to `SQLite`.
    pub(crate) async fn reconnect(&self) {
        let mut database = self.database.lock().await;
        if database.is_postgres() {
            // While the server is away this fails, as what is tried next does.
            let _ = database.reconnect().await;
        }
    }
}

async fn write(
    database: &mut Database,
    writer: &Writer<'_>,
    batch: &Batch,
    now_us: i64,
) -> Result<Reply, Error> {
    let mut reply = Reply::default();
    let sequence = [Bind::Text(&writer.owner.id), Bind::Int(writer.sequence)];
    let is_first = database.run(NEXT_BATCH, &sequence).await? > 0;
    insert_keys(database, &batch.keys, now_us).await?;
    publish(database, writer, batch, now_us, &mut reply).await?;
    let mut events = end(database, writer, batch, now_us, &mut reply).await?;
    items::free(database, writer, &batch.gone_holders).await?;
    events.extend(claim(database, writer, batch, now_us, &mut reply).await?);
    update_nodes(database, writer, batch).await?;
    insert_reports(database, batch, is_first).await?;
    if is_first {
        events.extend(batch.events.iter().cloned());
        insert_events(database, writer.run, &events).await?;
    }
    if let Some(until_us) = batch.lease_until_us {
        let binds = [Bind::Text(&writer.owner.id), Bind::Int(until_us)];
        let mut held = BTreeMap::new();
        for mut row in database.fetch(HEARTBEAT, &binds).await? {
            held.insert(row.text(0).parse().map_err(Error::value)?, row.int(1));
        }
        reply.held = Some(held);
        items::heartbeat(database, &writer.owner.id, until_us).await?;
    }
    reply.items = items::obey(database, writer, &batch.items, now_us, is_first).await?;
    if let Some((state, digest)) = batch.run_end {
        let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
        let binds = [
            Bind::Text(writer.run),
            Bind::Text(state.as_str()),
            Bind::Int(now_us),
            Bind::Text(&digest),
        ];
        database.run(END_RUN, &binds).await?;
    }
    Ok(reply)
}

async fn insert_keys(
    database: &mut Database,
    keys: &BTreeMap<NodeKey, KeyRow>,
    now_us: i64,
) -> Result<(), Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut rows = Vec::with_capacity(keys.len());
    let mut lists: BTreeMap<String, String> = BTreeMap::new();
    for KeyRow { key, components, external } in keys.values() {
        if let (Some(digest), Some(files)) = (components.external, external) {
            lists.insert(digest.to_string(), json(files)?);
        }
        let Components { task, revision, params, inputs, external, salt } = components;
        rows.push((key, task, revision, json(params)?, json(inputs)?, external, salt));
    }
    if !lists.is_empty() {
        let lists: Vec<_> = lists.into_iter().collect();
        database.run(INSERT_EXTERNAL, &[Bind::Text(&json(&lists)?)]).await?;
    }
    database.run(INSERT_KEYS, &[Bind::Text(&json(&rows)?), Bind::Int(now_us)]).await?;
    Ok(())
}

/// Gives the events of what was granted.
async fn claim(
    database: &mut Database,
    writer: &Writer<'_>,
    batch: &Batch,
    now_us: i64,
    reply: &mut Reply,
) -> Result<Vec<EventRow>, Error> {
    if batch.claims.is_empty() {
        return Ok(Vec::new());
    }
    let claims = batch.claims.values();
    let rows: Vec<_> = claims.map(|claim| (claim.key, claim.epoch, claim.stale_lease_us)).collect();
    let rows = json(&rows)?;
    let binds = [Bind::Text(&rows), Bind::Text(&writer.owner.id), Bind::Int(writer.lease_until_us)];
    for mut row in database.fetch(CLAIM, &binds).await? {
        reply.claimed.insert(row.text(0).parse().map_err(Error::value)?, row.int(1));
    }
    if reply.claimed.is_empty() {
        return Ok(Vec::new());
    }
    let node = |key: &NodeKey| batch.claims.get(key).map_or("", |claim| claim.node.as_str());
    let rows: Vec<_> = reply.claimed.iter().map(|(key, epoch)| (key, epoch, node(key))).collect();
    if rows.iter().any(|(_, epoch, _)| **epoch > 1) {
        let binds = [Bind::Text(&json(&rows)?), Bind::Int(now_us)];
        database.run(LOSE_EARLIER, &binds).await?;
    }
    let binds = [
        Bind::Text(&json(&rows)?),
        Bind::Text(writer.run),
        Bind::Text(&writer.owner.id),
        Bind::Int(now_us),
    ];
    database.run(INSERT_ATTEMPTS, &binds).await?;
    let claimed = rows.iter().map(|(key, epoch, node)| EventRow {
        at_us: now_us,
        node: Some((*node).to_owned()),
        key: Some(**key),
        epoch: Some(**epoch),
        kind: "attempt_started",
        detail: None,
    });
    Ok(claimed.collect())
}

async fn publish(
    database: &mut Database,
    writer: &Writer<'_>,
    batch: &Batch,
    now_us: i64,
    reply: &mut Reply,
) -> Result<(), Error> {
    if batch.publishes.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> =
        batch.publishes.values().map(|publish| (publish.key, publish.epoch)).collect();
    let binds = [Bind::Text(&json(&rows)?), Bind::Text(&writer.owner.id)];
    for mut row in database.fetch(PUBLISH, &binds).await? {
        reply.published.insert(row.text(0).parse().map_err(Error::value)?);
    }
    let accepted =
        || batch.publishes.values().filter(|publish| reply.published.contains(&publish.key));
    let mut outputs = Vec::new();
    let mut artifacts = BTreeMap::new();
    let mut attempts = Vec::new();
    let mut made_of_items = Vec::new();
    for publish in accepted() {
        for (port, made) in &publish.outputs {
            outputs.push((publish.key, port, made.digest));
            artifacts.insert(made.digest, &made.manifest);
        }
        let metrics = (!publish.metrics.is_empty()).then_some(&publish.metrics);
        made_of_items.extend(publish.drops_items.then_some(publish.key));
        let metrics = optional_json(metrics)?;
        attempts.push((publish.key, publish.epoch, metrics, publish.peak_memory_bytes));
    }
    if !outputs.is_empty() {
        database.run(INSERT_OUTPUTS, &[Bind::Text(&json(&outputs)?)]).await?;
    }
    if !artifacts.is_empty() {
        let mut rows = Vec::with_capacity(artifacts.len());
        for (digest, manifest) in artifacts {
            rows.push((digest, manifest.size_bytes(), manifest.files.len(), json(manifest)?));
        }
        let rows = json(&rows)?;
        let binds = [Bind::Text(&rows), Bind::Text(writer.store), Bind::Int(now_us)];
        database.run(INSERT_ARTIFACTS, &binds).await?;
    }
    if !attempts.is_empty() {
        let rows = json(&attempts)?;
        let binds = [Bind::Text(&rows), Bind::Int(now_us), Bind::Int(writer.peak_memory_bytes)];
        database.run(FINISH_ATTEMPTS, &binds).await?;
    }
    reply.collected = items::collect(database, writer, &made_of_items).await?;
    Ok(())
}

/// Gives the events of the attempts that still held their leases: what became of any other is in the
/// ledger since it was lost.
async fn end(
    database: &mut Database,
    writer: &Writer<'_>,
    batch: &Batch,
    now_us: i64,
    reply: &mut Reply,
) -> Result<Vec<EventRow>, Error> {
    if batch.ends.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<_> = batch.ends.values().map(|end| (end.key, end.epoch)).collect();
    let binds = [Bind::Text(&json(&rows)?), Bind::Text(&writer.owner.id)];
    for mut row in database.fetch(RELEASE, &binds).await? {
        reply.ended.insert(row.text(0).parse().map_err(Error::value)?);
    }
    let (mut rows, mut events) = (Vec::new(), Vec::new());
    for end in batch.ends.values().filter(|end| reply.ended.contains(&end.key)) {
        let (state, kind, event) = match end.failure.kind {
            FailureKind::Transient => ("failed", "transient", "attempt_failed"),
            FailureKind::Permanent => ("failed", "permanent", "attempt_failed"),
            FailureKind::Cancelled => ("cancelled", "cancelled", "attempt_cancelled"),
            FailureKind::Parked => ("parked", "parked", "attempt_parked"),
        };
        let Failure { message, help, .. } = &end.failure;
        rows.push((end.key, end.epoch, state, kind, message, help, end.peak_memory_bytes));
        events.push(EventRow {
            at_us: now_us,
            node: Some(end.node.clone()),
            key: Some(end.key),
            epoch: Some(end.epoch),
            kind: event,
            detail: Some(message.clone()),
        });
    }
    if !rows.is_empty() {
        let rows = json(&rows)?;
        let binds = [Bind::Text(&rows), Bind::Int(now_us), Bind::Int(writer.peak_memory_bytes)];
        database.run(END_ATTEMPTS, &binds).await?;
    }
    Ok(events)
}

async fn update_nodes(
    database: &mut Database,
    writer: &Writer<'_>,
    batch: &Batch,
) -> Result<(), Error> {
    if batch.nodes.is_empty() {
        return Ok(());
    }
    let mut rows = Vec::with_capacity(batch.nodes.len());
    for (ordinal, change) in &batch.nodes {
        let reason = optional_json(change.reason.as_ref())?;
        rows.push((writer.run, ordinal, change.state, change.key, reason));
    }
    database.run(UPDATE_NODES, &[Bind::Text(&json(&rows)?)]).await?;
    Ok(())
}

async fn insert_reports(
    database: &mut Database,
    batch: &Batch,
    is_first: bool,
) -> Result<(), Error> {
    if !batch.metrics.is_empty() {
        // One statement may not touch a row twice: of equal steps the last value counts.
        let mut rows = BTreeMap::new();
        for row in &batch.metrics {
            let value = row.value.is_finite().then_some(row.value);
            rows.insert((row.key, row.epoch, &row.name, row.step), (value, row.at_us));
        }
        let rows: Vec<_> = rows
            .into_iter()
            .map(|((key, epoch, name, step), (value, at_us))| {
                (key, epoch, name, step, value, at_us)
            })
            .collect();
        database.run(INSERT_METRICS, &[Bind::Text(&json(&rows)?)]).await?;
    }
    if !batch.logs.is_empty() && is_first {
        let rows: Vec<_> = batch
            .logs
            .iter()
            .map(|line| (line.key, line.epoch, line.at_us, line.level, &line.text))
            .collect();
        database.run(INSERT_LOGS, &[Bind::Text(&json(&rows)?)]).await?;
    }
    if !batch.progress.is_empty() {
        let rows: Vec<_> = batch
            .progress
            .iter()
            .map(|((key, epoch), row)| (key, epoch, row.done, row.total, &row.unit, row.at_us))
            .collect();
        database.run(UPDATE_PROGRESS, &[Bind::Text(&json(&rows)?)]).await?;
    }
    Ok(())
}

pub(super) async fn insert_events(
    database: &mut Database,
    run: &str,
    events: &[EventRow],
) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = events
        .iter()
        .map(|row| (row.at_us, &row.node, row.key, row.epoch, row.kind, &row.detail))
        .collect();
    database.run(INSERT_EVENTS, &[Bind::Text(&json(&rows)?), Bind::Text(run)]).await?;
    Ok(())
}
