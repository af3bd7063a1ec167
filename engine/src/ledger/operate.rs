//! What operators decide: rulings on parked nodes, and runs and nodes to be stopped.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::database::Bind;
use super::{Error, Ledger};
use crate::key::NodeKey;
use crate::open::{self, Engine};
use crate::plan::Reason;
use crate::run::{NodeState, RunState};

/// An operator's decision on a parked node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may go on: the next attempt passes.
    Approved,
    /// It may not: the next run counts it as failed.
    Rejected,
}

impl Verdict {
    /// The word in the ledger and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A decision with who made it and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruling {
    /// The decision.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// Who decided: `user@host`.
    pub by: String,
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}: {}", self.verdict, self.by, self.reason)
    }
}

/// What a command to stop something was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cancelled {
    /// The run's id.
    pub run: String,
    /// The nodes; empty for the whole run.
    pub nodes: Vec<String>,
    /// `host:pid` of the process that will obey.
    pub owner: String,
}

const WRITE_RULING: &str = "
    INSERT INTO ruling (key, verdict, reason, by_whom, at_us) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (key) DO UPDATE SET verdict = excluded.verdict, reason = excluded.reason,
       by_whom = excluded.by_whom, at_us = excluded.at_us";
const WRITE_EVENT: &str = "
    INSERT INTO event (at_us, run_id, node, key, epoch, kind, detail)
    VALUES ($1, $2, $3, $4, NULL, $5, $6)";
const WRITE_BURIAL: &str = "
    INSERT INTO event (at_us, run_id, kind, detail) VALUES ($1, $2, 'run_buried', $3)";
const WRITE_REQUEST: &str = "
    INSERT INTO cancel_request (run_id, node, by_whom, at_us) VALUES ($1, $2, $3, $4)";
const WRITE_RUN_REQUEST: &str = "
    INSERT INTO cancel_request (run_id, node, by_whom, at_us) VALUES ($1, NULL, $2, $3)";

/// Asked each second, so it must not take the lock of a writer.
const OPEN_REQUESTS: &str = "
    SELECT id FROM cancel_request WHERE run_id = $1 AND obeyed_us IS NULL LIMIT 1";

/// Reading and noting it are one statement, so that no request is obeyed twice or lost.
const TAKE_REQUESTS: &str = "
    UPDATE cancel_request SET obeyed_us = $2 WHERE run_id = $1 AND obeyed_us IS NULL
    RETURNING node";

impl Ledger {
    /// Nodes of the run that an operator wants stopped since the last time; `None` stands for the
    /// whole run.
    pub(crate) async fn take_cancel_requests(
        &self,
        run: &str,
    ) -> Result<Vec<Option<String>>, Error> {
        let mut database = self.database.lock().await;
        if database.fetch(OPEN_REQUESTS, &[Bind::Text(run)]).await?.is_empty() {
            return Ok(Vec::new());
        }
        let binds = [Bind::Text(run), Bind::Int(self.clock.now_us())];
        let rows = database.fetch(TAKE_REQUESTS, &binds).await?;
        Ok(rows.into_iter().map(|mut row| row.opt_text(0)).collect())
    }

    async fn rule(&self, run: &str, node: &str, key: &str, ruling: &Ruling) -> Result<(), Error> {
        let now_us = self.clock.now_us();
        let detail = ruling.to_string();
        let mut database = self.database.lock().await;
        database.begin().await?;
        let write = async {
            let binds = [
                Bind::Text(key),
                Bind::Text(ruling.verdict.as_str()),
                Bind::Text(&ruling.reason),
                Bind::Text(&ruling.by),
                Bind::Int(now_us),
            ];
            database.run(WRITE_RULING, &binds).await?;
            let binds = [
                Bind::Int(now_us),
                Bind::Text(run),
                Bind::Text(node),
                Bind::Text(key),
                Bind::Text(ruling.verdict.as_str()),
                Bind::Text(&detail),
            ];
            database.run(WRITE_EVENT, &binds).await
        };
        match write.await {
            Ok(_) => database.commit().await,
            Err(error) => {
                database.rollback().await;
                Err(error)
            }
        }
    }
}

impl Engine {
    /// Decides on a parked node of a run; gives its key. The decision belongs to the key, so it
    /// holds for every run in which the node has the same inputs and params.
    ///
    /// # Errors
    /// As [`Self::find_run`]; when the run has no such node, or the node neither is parked nor
    /// failed by an earlier decision, which the new one replaces.
    pub async fn rule(
        &self,
        run: &str,
        node: &str,
        ruling: &Ruling,
    ) -> Result<NodeKey, open::Error> {
        let detail = self.node_detail(run, node).await?;
        let state = detail.node.state;
        let waits = match state {
            NodeState::Parked => true,
            NodeState::Failed => matches!(detail.node.reason, Some(Reason::Ruled { .. })),
            _ => false,
        };
        let Some(key) = detail.node.key.as_ref().filter(|_| waits) else {
            let (run, node) = (detail.run, node.to_owned());
            return Err(Error::NotParked { run, node, state }.into());
        };
        self.ledger.rule(&detail.run, node, key, ruling).await?;
        Ok(key.parse().map_err(|_| Error::Value(key.clone()))?)
    }

    /// Asks the process that runs `run` to stop it, or only `node` (a node or an entry with all of
    /// its matrix) and what needs it. Attempts save what they have, as after Ctrl-C.
    ///
    /// # Errors
    /// As [`Self::find_run`]; when the run has no such node, or is over.
    pub async fn cancel(
        &self,
        run: &str,
        node: Option<&str>,
        by: &str,
    ) -> Result<Cancelled, open::Error> {
        let detail = self.run_detail(run).await?;
        let (id, state) = (detail.run.id.clone(), detail.run.state);
        let mut nodes = Vec::new();
        if let Some(wanted) = node {
            let meant = detail.nodes.iter().filter(|row| row.name == wanted || row.entry == wanted);
            nodes.extend(meant.map(|row| row.name.clone()));
            if nodes.is_empty() {
                let help = super::meant_nodes(wanted, &detail.nodes);
                return Err(Error::NoSuchNode { run: id, node: wanted.to_owned(), help }.into());
            }
        }
        if state != RunState::Running {
            return Err(Error::RunIsOver { run: id, state }.into());
        }
        let now_us = self.clock.now_us();
        let mut database = self.ledger.database.lock().await;
        if nodes.is_empty() {
            let binds = [Bind::Text(&id), Bind::Text(by), Bind::Int(now_us)];
            database.run(WRITE_RUN_REQUEST, &binds).await?;
        }
        for node in &nodes {
            let binds = [Bind::Text(&id), Bind::Text(node), Bind::Text(by), Bind::Int(now_us)];
            database.run(WRITE_REQUEST, &binds).await?;
        }
        Ok(Cancelled { run: id, nodes, owner: detail.run.owner })
    }

    /// Writes a run off whose process is gone where this machine cannot see it, and frees what it
    /// held: other runs need not wait for its leases, and garbage can be collected again.
    ///
    /// # Errors
    /// When no such run is under way, its process is seen to live, or the ledger is in trouble.
    pub async fn bury(&self, run: &str, by: &str) -> Result<Cancelled, open::Error> {
        let detail = self.run_detail(run).await?;
        let (run, owner, state) = (detail.run.id, detail.run.owner, detail.run.state);
        if state != RunState::Running {
            return Err(Error::RunIsOver { run, state }.into());
        }
        self.ledger.bury(&run, &self.owner).await?;
        let now_us = self.clock.now_us();
        let mut database = self.ledger.database.lock().await;
        let binds = [Bind::Int(now_us), Bind::Text(&run), Bind::Text(by)];
        database.run(WRITE_BURIAL, &binds).await?;
        drop(database);
        Ok(Cancelled { run, nodes: Vec::new(), owner })
    }
}
