//! What operators ask of the ledger.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::database::{Bind, Row};
use super::{Error, Ledger, Owner, StageRow};
use crate::digest::Digest;
use crate::open::{self, Engine};
use crate::plan::Reason;
use crate::run::{NodeState, RunState};
use crate::store::Store;
use crate::task::{Failure, FailureKind, LogLevel};

/// A run in a list.
#[derive(Clone, Debug, Serialize)]
pub struct RunRow {
    /// Its id.
    pub id: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline's file.
    pub path: String,
    /// How far it is. A run whose process died counts as abandoned.
    pub state: RunState,
    /// Microseconds since 1970.
    pub started_us: i64,
    /// Microseconds since 1970; `None` while it runs.
    pub ended_us: Option<i64>,
    /// Nodes by state.
    pub nodes: BTreeMap<NodeState, usize>,
    /// `host:pid` of the process that runs it.
    pub owner: String,
}

/// A run with its nodes.
#[derive(Clone, Debug, Serialize)]
pub struct RunDetail {
    /// The run.
    pub run: RunRow,
    /// The pipeline's text as it was.
    pub text: String,
    /// Pipeline params as they were, a JSON object.
    pub params: Value,
    /// Its nodes in topological order.
    pub nodes: Vec<RunNodeRow>,
}

/// A node of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RunNodeRow {
    /// The node's name.
    pub name: String,
    /// Its entry in the YAML.
    pub entry: String,
    /// The task's kind.
    pub task: String,
    /// How far it is.
    pub state: NodeState,
    /// Its key; `None` when it was never known.
    pub key: Option<String>,
    /// Why it ran, waited or was cut off.
    pub reason: Option<Reason>,
    /// Attempts of this run.
    pub n_attempts: u32,
    /// Start of the last attempt of this run, in microseconds since 1970.
    pub started_us: Option<i64>,
    /// Duration of the last attempt of this run, in microseconds.
    pub duration_us: Option<i64>,
    /// Last progress of the last attempt: done, total (0 when unknown), unit.
    pub progress: Option<(u64, u64, String)>,
    /// When that progress was reported, in microseconds since 1970.
    pub progress_at_us: Option<i64>,
    /// What it will probably take in microseconds, while the run goes on and it is not finished.
    pub expected_us: Option<i64>,
    /// The last attempt's failure.
    pub failure: Option<Failure>,
    /// Its artifacts.
    pub outputs: Vec<OutputRow>,
    /// While it runs, and until it is done where it is looked at alone: how far its items are.
    pub stages: Vec<StageRow>,
}

/// An artifact of a node.
#[derive(Clone, Debug, Serialize)]
pub struct OutputRow {
    /// The output port.
    pub port: String,
    /// The artifact's digest.
    pub digest: String,
    /// Size of its files in bytes; `None` when it is not in this store.
    pub size_bytes: Option<u64>,
    /// How many files; `None` when it is not in this store.
    pub n_files: Option<u64>,
    /// Its folder; `None` when it is not in this store.
    pub path: Option<String>,
}

/// A node with everything known of its key.
#[derive(Clone, Debug, Serialize)]
pub struct NodeDetail {
    /// The run's id.
    pub run: String,
    /// The node in that run.
    pub node: RunNodeRow,
    /// Keyed params.
    pub params: Value,
    /// The task's revision; `None` when the key was never known.
    pub revision: Option<u32>,
    /// Every attempt at the key, of this run and others, oldest first.
    pub attempts: Vec<AttemptRow>,
}

/// An attempt.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptRow {
    /// The key.
    pub key: String,
    /// Grows by one with each attempt at the key.
    pub epoch: i64,
    /// The run.
    pub run: String,
    /// The node's name in that run.
    pub node: String,
    /// `running`, `done`, `failed`, `cancelled`, `parked`, or `lost`.
    pub state: String,
    /// `host:pid` of the process.
    pub owner: String,
    /// Microseconds since 1970.
    pub started_us: i64,
    /// Microseconds since 1970; `None` while it runs.
    pub ended_us: Option<i64>,
    /// Highest resident memory of the process up to the attempt's end, in bytes.
    pub peak_memory_bytes: Option<i64>,
    /// Why it ended without a result.
    pub failure: Option<Failure>,
    /// The task's final figures.
    pub metrics: BTreeMap<String, f64>,
}

/// A finished key: what its task reported, and the time that all attempts at it took.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) task: String,
    pub(crate) metrics: BTreeMap<String, f64>,
    pub(crate) seconds: f64,
}

/// A line of a node's log.
#[derive(Clone, Debug, Serialize)]
pub struct LogRow {
    /// Position in the ledger: ask for lines after it to follow a log.
    pub id: i64,
    /// The node's name.
    pub node: String,
    /// The attempt.
    pub epoch: i64,
    /// Microseconds since 1970.
    pub at_us: i64,
    /// How much it matters.
    pub level: LogLevel,
    /// The line.
    pub text: String,
}

/// A point of a node's time series.
#[derive(Clone, Debug, Serialize)]
pub struct MetricPoint {
    /// The node's name.
    pub node: String,
    /// The series.
    pub name: String,
    /// The position.
    pub step: i64,
    /// The value; `None` when it was not a number.
    pub value: Option<f64>,
    /// Microseconds since 1970.
    pub at_us: i64,
}

const RUNS: &str = "
    SELECT r.id, r.pipeline, r.path, r.state, r.started_us, r.ended_us, w.host || ':' || w.pid,
           r.owner
      FROM run AS r JOIN owner AS w ON w.id = r.owner
     ORDER BY r.started_us DESC, r.id LIMIT $1";
const RUN: &str = "
    SELECT r.id, r.pipeline, r.path, r.state, r.started_us, r.ended_us, w.host || ':' || w.pid,
           r.owner, o.text, r.params
      FROM run AS r JOIN owner AS w ON w.id = r.owner JOIN run AS o ON o.id = r.nodes_of
     WHERE r.id = $1";
const RUN_COUNTS: &str = "
    SELECT n.run_id, n.state, count(*)
      FROM {rows: id TEXT} AS r JOIN run_node AS n ON n.run_id = r.id GROUP BY n.run_id, n.state";
const FIND_RUN: &str = "
    SELECT id FROM run WHERE substr(id, 1, length($1)) = $1 ORDER BY started_us DESC LIMIT 5";
const LAST_RUN: &str = "SELECT id FROM run ORDER BY started_us DESC, id LIMIT 1";

const RUN_NODES: &str = "
    SELECT ordinal, name, entry, task, state, key, reason FROM run_node
     WHERE run_id = $1 ORDER BY ordinal";
const RUN_ATTEMPTS: &str = "
    SELECT node, epoch, started_us, ended_us, failure_kind, failure_message, failure_help,
           progress_done, progress_total, progress_unit, progress_at_us
      FROM attempt WHERE run_id = $1 ORDER BY started_us, epoch";
const RUN_OUTPUTS: &str = "
    SELECT n.ordinal, o.port, o.digest, a.size_bytes, a.n_files
      FROM run_node AS n
      JOIN output AS o ON o.key = n.key
      LEFT JOIN artifact AS a ON a.digest = o.digest AND a.store = $2 AND a.state = 'present'
     WHERE n.run_id = $1 AND n.state IN ('cached', 'done') ORDER BY n.ordinal, o.port";

const KEY: &str = "SELECT revision, params FROM node_key WHERE key = $1";
const KEY_ATTEMPTS: &str = "
    SELECT a.key, a.epoch, a.run_id, a.node, a.state, w.host || ':' || w.pid, a.started_us,
           a.ended_us, a.peak_memory_bytes, a.failure_kind, a.failure_message, a.failure_help,
           a.metrics
      FROM attempt AS a JOIN owner AS w ON w.id = a.owner WHERE a.key = $1 ORDER BY a.epoch";

/// Keys with a finished attempt: its figures, and the time of every attempt.
const MEASURED: &str = "
    SELECT k.task, d.metrics,
           (SELECT CAST(sum(a.ended_us - a.started_us) AS BIGINT) FROM attempt AS a
             WHERE a.key = k.key AND a.ended_us IS NOT NULL)
      FROM node_key AS k JOIN attempt AS d ON d.key = k.key AND d.state = 'done'
     WHERE d.metrics IS NOT NULL ORDER BY k.key, d.epoch";

/// A node's last key; with a name, of that node alone.
const LOGS: &str = "
    SELECT l.id, n.name, l.epoch, l.at_us, l.level, l.text
      FROM run_node AS n JOIN log AS l ON l.key = n.key
     WHERE n.run_id = $1 AND ($2 = '' OR n.name = $2 OR n.entry = $2) AND l.id > $3
     ORDER BY l.id LIMIT $4";
const LAST_LOGS: &str = "
    SELECT l.id, n.name, l.epoch, l.at_us, l.level, l.text
      FROM run_node AS n JOIN log AS l ON l.key = n.key
     WHERE n.run_id = $1 AND ($2 = '' OR n.name = $2 OR n.entry = $2)
     ORDER BY l.id DESC LIMIT $3";

/// Of several attempts that reported a step, the newest counts: it resumed and did it again.
const METRICS: &str = "
    SELECT n.name, m.name, m.step, m.value, m.at_us
      FROM run_node AS n JOIN metric AS m ON m.key = n.key
     WHERE n.run_id = $1 AND ($2 = '' OR n.name = $2 OR n.entry = $2)
       AND m.epoch = (SELECT max(x.epoch) FROM metric AS x
                       WHERE x.key = m.key AND x.name = m.name AND x.step = m.step)
     ORDER BY n.ordinal, m.name, m.step";

fn parse_run(row: &mut Row, dead: &[String]) -> Result<RunRow, Error> {
    let mut state: RunState = row.text(3).parse().map_err(Error::value)?;
    if state == RunState::Running && dead.contains(&row.text(7)) {
        state = RunState::Abandoned;
    }
    Ok(RunRow {
        id: row.text(0),
        pipeline: row.text(1),
        path: row.text(2),
        state,
        started_us: row.int(4),
        ended_us: row.opt_int(5),
        nodes: BTreeMap::new(),
        owner: row.text(6),
    })
}

/// Reads kind, message and help from three columns.
fn parse_failure(row: &mut Row, first: usize) -> Option<Failure> {
    let kind = match row.opt_text(first)?.as_str() {
        "transient" => FailureKind::Transient,
        "cancelled" => FailureKind::Cancelled,
        "parked" => FailureKind::Parked,
        _ => FailureKind::Permanent,
    };
    Some(Failure { kind, message: row.text(first + 1), help: row.opt_text(first + 2) })
}

fn parse_log(mut row: Row) -> LogRow {
    LogRow {
        id: row.int(0),
        node: row.text(1),
        epoch: row.int(2),
        at_us: row.int(3),
        level: if row.text(4) == "warn" { LogLevel::Warn } else { LogLevel::Info },
        text: row.text(5),
    }
}

impl Ledger {
    async fn runs(&self, owner: &Owner, n_max: usize) -> Result<Vec<RunRow>, Error> {
        let mut database = self.database.lock().await;
        let dead = super::owner::dead_owners(&mut database, owner).await?;
        let n_max = i64::try_from(n_max).unwrap_or(i64::MAX);
        let mut runs = Vec::new();
        for mut row in database.fetch(RUNS, &[Bind::Int(n_max)]).await? {
            runs.push(parse_run(&mut row, &dead)?);
        }
        let ids: Vec<[&str; 1]> = runs.iter().map(|run| [run.id.as_str()]).collect();
        let ids = serde_json::to_string(&ids).map_err(Error::value)?;
        for mut row in database.fetch(RUN_COUNTS, &[Bind::Text(&ids)]).await? {
            let id = row.text(0);
            let state = row.text(1).parse().map_err(Error::value)?;
            if let Some(run) = runs.iter_mut().find(|run| run.id == id) {
                run.nodes.insert(state, usize::try_from(row.int(2)).map_err(Error::value)?);
            }
        }
        Ok(runs)
    }

    async fn find_run(&self, prefix: &str) -> Result<String, Error> {
        let mut database = self.database.lock().await;
        if prefix.is_empty() || prefix == "last" {
            let last = database.fetch(LAST_RUN, &[]).await?;
            return last.into_iter().next().map(|mut row| row.text(0)).ok_or(Error::NoRunYet);
        }
        let rows = database.fetch(FIND_RUN, &[Bind::Text(prefix)]).await?;
        let mut matches: Vec<String> = rows.into_iter().map(|mut row| row.text(0)).collect();
        match matches.len() {
            0 => Err(Error::NoSuchRun(prefix.to_owned())),
            1 => Ok(matches.remove(0)),
            _ if matches.iter().any(|id| id == prefix) => Ok(prefix.to_owned()),
            _ => Err(Error::AmbiguousRun { prefix: prefix.to_owned(), matches }),
        }
    }

    async fn run_detail(&self, owner: &Owner, store: &Store, id: &str) -> Result<RunDetail, Error> {
        let mut database = self.database.lock().await;
        let dead = super::owner::dead_owners(&mut database, owner).await?;
        let found = database.fetch(RUN, &[Bind::Text(id)]).await?.into_iter().next();
        let mut row = found.ok_or_else(|| Error::NoSuchRun(id.to_owned()))?;
        let (text, params) = (row.text(8), row.text(9));
        let mut run = parse_run(&mut row, &dead)?;
        let params = serde_json::from_str(&params).map_err(Error::value)?;
        let mut nodes: BTreeMap<i64, RunNodeRow> = BTreeMap::new();
        for mut row in database.fetch(RUN_NODES, &[Bind::Text(id)]).await? {
            let node = parse_run_node(&mut row)?;
            *run.nodes.entry(node.state).or_default() += 1;
            nodes.insert(row.int(0), node);
        }
        let mut by_name: BTreeMap<String, i64> = BTreeMap::new();
        for (ordinal, node) in &nodes {
            by_name.insert(node.name.clone(), *ordinal);
        }
        for mut row in database.fetch(RUN_ATTEMPTS, &[Bind::Text(id)]).await? {
            let at = by_name.get(&row.text(0)).copied();
            if let Some(node) = at.and_then(|at| nodes.get_mut(&at)) {
                node.n_attempts += 1;
                node.started_us = row.opt_int(2);
                let ended_us = row.opt_int(3);
                node.duration_us = ended_us.zip(node.started_us).map(|(end, start)| end - start);
                node.failure = parse_failure(&mut row, 4);
                node.progress_at_us = row.opt_int(10);
                let figures = row.opt_int(7).zip(row.opt_int(8));
                node.progress = figures
                    .map(|(done, total)| (done.unsigned_abs(), total.unsigned_abs(), row.text(9)));
            }
        }
        let binds = [Bind::Text(id), Bind::Text(store.id())];
        for mut row in database.fetch(RUN_OUTPUTS, &binds).await? {
            let Some(node) = nodes.get_mut(&row.int(0)) else { continue };
            let (port, text) = (row.text(1), row.text(2));
            let digest: Digest = text.parse().map_err(Error::value)?;
            let size_bytes = row.opt_int(3).map(i64::unsigned_abs);
            let path = size_bytes.map(|_| store.path(&digest).display().to_string());
            let n_files = row.opt_int(4).map(i64::unsigned_abs);
            node.outputs.push(OutputRow { port, digest: text, size_bytes, n_files, path });
        }
        Ok(RunDetail { run, text, params, nodes: nodes.into_values().collect() })
    }

    pub(crate) async fn measured(&self) -> Result<Vec<Measured>, Error> {
        let mut database = self.database.lock().await;
        let mut found = Vec::new();
        for mut row in database.fetch(MEASURED, &[]).await? {
            let metrics = serde_json::from_str(&row.text(1)).map_err(Error::value)?;
            let seconds = row.opt_int(2).unwrap_or(0) as f64 / 1e6;
            found.push(Measured { task: row.text(0), metrics, seconds });
        }
        Ok(found)
    }

    async fn attempts(&self, key: &str) -> Result<(Option<u32>, Value, Vec<AttemptRow>), Error> {
        let mut database = self.database.lock().await;
        let (mut revision, mut params) = (None, Value::Null);
        if let Some(mut row) = database.fetch(KEY, &[Bind::Text(key)]).await?.into_iter().next() {
            revision = u32::try_from(row.int(0)).ok();
            params = serde_json::from_str(&row.text(1)).map_err(Error::value)?;
        }
        let mut attempts = Vec::new();
        for mut row in database.fetch(KEY_ATTEMPTS, &[Bind::Text(key)]).await? {
            let metrics = row.opt_text(12).map(|text| serde_json::from_str(&text));
            attempts.push(AttemptRow {
                key: row.text(0),
                epoch: row.int(1),
                run: row.text(2),
                node: row.text(3),
                state: row.text(4),
                owner: row.text(5),
                started_us: row.int(6),
                ended_us: row.opt_int(7),
                peak_memory_bytes: row.opt_int(8),
                failure: parse_failure(&mut row, 9),
                metrics: metrics.transpose().map_err(Error::value)?.unwrap_or_default(),
            });
        }
        Ok((revision, params, attempts))
    }
}

fn parse_run_node(row: &mut Row) -> Result<RunNodeRow, Error> {
    let reason = row.opt_text(6).map(|text| serde_json::from_str(&text));
    Ok(RunNodeRow {
        name: row.text(1),
        entry: row.text(2),
        task: row.text(3),
        state: row.text(4).parse().map_err(Error::value)?,
        key: row.opt_text(5),
        reason: reason.transpose().map_err(Error::value)?,
        n_attempts: 0,
        started_us: None,
        duration_us: None,
        progress: None,
        progress_at_us: None,
        expected_us: None,
        failure: None,
        outputs: Vec::new(),
        stages: Vec::new(),
    })
}

/// How many log lines to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// The last `n`.
    Last(usize),
    /// At most `n_max` after the line with this id; 0 for the first.
    After {
        /// [`LogRow::id`] of the last line that is known.
        id: i64,
        /// How many at most.
        n_max: usize,
    },
}

impl Engine {
    /// The newest runs first, at most `n_max`.
    ///
    /// # Errors
    /// When the ledger is in trouble.
    pub async fn runs(&self, n_max: usize) -> Result<Vec<RunRow>, open::Error> {
        Ok(self.ledger.runs(&self.owner, n_max).await?)
    }

    /// The id of the run that starts with `prefix`; of the last one for `last` or nothing.
    ///
    /// # Errors
    /// When no run or more than one starts so.
    pub async fn find_run(&self, prefix: &str) -> Result<String, open::Error> {
        Ok(self.ledger.find_run(prefix).await?)
    }

    /// A run with its nodes; `run` as for [`Self::find_run`].
    ///
    /// # Errors
    /// As [`Self::find_run`].
    pub async fn run_detail(&self, run: &str) -> Result<RunDetail, open::Error> {
        let id = self.ledger.find_run(run).await?;
        let mut detail = self.ledger.run_detail(&self.owner, &self.store, &id).await?;
        if detail.run.state == RunState::Running {
            let history = self.ledger.history(&detail.run.pipeline).await?;
            for node in &mut detail.nodes {
                if matches!(node.state, NodeState::Waiting | NodeState::Running) {
                    let past = history.expect(&node.name, &node.task);
                    node.expected_us = past.map(|past| past.duration_us);
                }
            }
            let at_work = |node: &&mut RunNodeRow| node.state == NodeState::Running;
            self.add_stages(detail.nodes.iter_mut().filter(at_work)).await?;
        }
        Ok(detail)
    }

    /// A node of a run with everything known of its key: what `sbp why` and `sbp show` print.
    ///
    /// # Errors
    /// As [`Self::find_run`]; when the run has no such node.
    pub async fn node_detail(&self, run: &str, node: &str) -> Result<NodeDetail, open::Error> {
        let detail = self.run_detail(run).await?;
        let run = detail.run.id;
        let Some(at) = detail.nodes.iter().position(|row| row.name == node) else {
            let help = super::meant_nodes(node, &detail.nodes);
            return Err(Error::NoSuchNode { run, node: node.to_owned(), help }.into());
        };
        let mut row = detail.nodes.into_iter().nth(at).expect("the position was just found");
        let is_over = matches!(row.state, NodeState::Done | NodeState::Cached);
        self.add_stages(std::iter::once(&mut row).filter(|_| !is_over)).await?;
        let (revision, params, attempts) = match &row.key {
            Some(key) => self.ledger.attempts(key).await?,
            None => (None, Value::Null, Vec::new()),
        };
        Ok(NodeDetail { run, node: row, params, revision, attempts })
    }

    async fn add_stages(
        &self,
        nodes: impl Iterator<Item = &mut RunNodeRow>,
    ) -> Result<(), open::Error> {
        let mut nodes: Vec<_> = nodes.collect();
        let keys: Vec<&str> = nodes.iter().filter_map(|node| node.key.as_deref()).collect();
        let stages = self.ledger.stages(&self.owner, self.store.id(), &keys).await?;
        for node in &mut nodes {
            let found = node.key.as_ref().and_then(|key| stages.get(key));
            node.stages = found.cloned().unwrap_or_default();
        }
        Ok(())
    }

    /// Log lines of a run, oldest first; `node` is a node, an entry, or empty for all. Lines that
    /// earlier runs wrote for the same keys belong to it.
    ///
    /// # Errors
    /// As [`Self::find_run`].
    pub async fn logs(
        &self,
        run: &str,
        node: &str,
        lines: Lines,
    ) -> Result<Vec<LogRow>, open::Error> {
        let id = self.ledger.find_run(run).await?;
        let mut database = self.ledger.database.lock().await;
        let limit = |n: usize| Bind::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let rows = match lines {
            Lines::Last(n) => {
                let binds = [Bind::Text(&id), Bind::Text(node), limit(n)];
                let mut rows = database.fetch(LAST_LOGS, &binds).await?;
                rows.reverse();
                rows
            }
            Lines::After { id: after, n_max } => {
                let binds = [Bind::Text(&id), Bind::Text(node), Bind::Int(after), limit(n_max)];
                database.fetch(LOGS, &binds).await?
            }
        };
        Ok(rows.into_iter().map(parse_log).collect())
    }

    /// Time series of a run, by node, name and step; `node` is a node, an entry, or empty for all.
    ///
    /// # Errors
    /// As [`Self::find_run`].
    pub async fn metrics(&self, run: &str, node: &str) -> Result<Vec<MetricPoint>, open::Error> {
        let id = self.ledger.find_run(run).await?;
        let mut database = self.ledger.database.lock().await;
        let rows = database.fetch(METRICS, &[Bind::Text(&id), Bind::Text(node)]).await?;
        let point = |mut row: Row| MetricPoint {
            node: row.text(0),
            name: row.text(1),
            step: row.int(2),
            value: row.opt_real(3),
            at_us: row.int(4),
        };
        Ok(rows.into_iter().map(point).collect())
    }
}
