//! Reports of running tasks on their way to observer and ledger, and the end of a run.

use std::time::Instant;

use tokio::sync::mpsc::unbounded_channel;

use super::super::report::{Counts, NodeFailure, NodeState, RunEvent, RunState, RunSummary};
use super::{Driver, REPORT_EVERY};
use crate::ledger::{Batch, EventRow, LogLine, MetricRow, ProgressRow, Writer, nodes_digest};
use crate::open::Error;
use crate::plan::artifacts;
use crate::schedule::Event;
use crate::task::Report;

/// How long the end of a run that was stopped twice waits for the ledger.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(5);

impl Driver<'_> {
    /// What is due now: reports, the heartbeat, and the scheduler's own timers.
    pub(super) fn tick(&mut self) {
        if self.last_report.elapsed() >= REPORT_EVERY {
            self.last_report = Instant::now();
            for node in self.attempts.keys().copied().collect::<Vec<_>>() {
                self.drain(node);
            }
        }
        if self.last_heartbeat.elapsed() >= self.heartbeat_every() {
            self.last_heartbeat = Instant::now();
            if !self.attempts.is_empty() || !self.claimed.is_empty() {
                self.batch.lease_until_us = Some(self.lease_until_us());
            }
        }
        self.step(Event::Tick);
    }

    /// Takes what the attempt at a node reported since the last time.
    pub(super) fn drain(&mut self, node: usize) {
        let Some(attempt) = self.attempts.get(&node) else { return };
        let (key, epoch, helps) = (attempt.key, attempt.epoch, attempt.helps);
        let kept = attempt.buffer.take();
        let moved = kept.progress.is_some() || !kept.others.is_empty();
        let at_us = self.now_us();
        if helps {
            // The process that holds the node reports for it.
            return;
        }
        for (at_us, report) in kept.others {
            match &report {
                Report::Metric { name, step, value } => {
                    let (name, step, value) = (name.clone(), counted(*step), *value);
                    self.reports.metrics.push(MetricRow { key, epoch, name, step, value, at_us });
                }
                Report::Log { level, text } => {
                    let (level, text) = (*level, text.clone());
                    self.reports.logs.push(LogLine { key, epoch, at_us, level, text });
                }
                Report::Progress { .. } => {}
            }
            self.observe(&RunEvent::Reported { node: self.name(node), report });
        }
        if let Some(report) = kept.progress {
            if let Report::Progress { done, total, unit } = &report {
                let (done, total, unit) = (counted(*done), counted(*total), unit.clone());
                let row = ProgressRow { done, total, unit, at_us };
                self.reports.progress.insert((key, epoch), row);
            }
            self.observe(&RunEvent::Reported { node: self.name(node), report });
        }
        if moved {
            self.step(Event::Progress { node });
        }
    }

    /// Writes the end of the run and gives its summary.
    pub(super) async fn finish(mut self, n_stops: u8) -> Result<RunSummary, Error> {
        let nodes = self.counts();
        let state = if nodes.cancelled > 0 {
            RunState::Cancelled
        } else if nodes.failed > 0 {
            RunState::Failed
        } else if nodes.parked > 0 {
            RunState::Parked
        } else {
            RunState::Done
        };
        let mut batch = std::mem::take(&mut self.batch);
        let Batch { metrics, logs, progress, .. } = std::mem::take(&mut self.reports);
        batch.metrics.extend(metrics);
        batch.logs.extend(logs);
        batch.progress.extend(progress);
        let rows = self.nodes.iter().enumerate().filter(|(node, _)| self.covered[*node]);
        let digest = nodes_digest(rows.map(|(index, node)| {
            let key = self.results[index].as_ref().map(|result| result.key);
            (index, node.name.as_str(), node.entry.as_str(), node.task.kind(), key)
        }));
        batch.run_end = Some((state, digest));
        batch.events.push(EventRow {
            at_us: self.now_us(),
            node: None,
            key: None,
            epoch: None,
            kind: "run_ended",
            detail: Some(state.to_string()),
        });
        let engine = self.engine;
        let writer = Writer {
            owner: &engine.owner,
            run: &self.run,
            store: engine.store.id(),
            lease_until_us: self.lease_until_us(),
            sequence: self.sequence + 1,
            peak_memory_bytes: peak_memory_bytes(),
        };
        let write = super::super::flight::patiently(&engine.ledger, &self.trouble.0, || {
            engine.ledger.commit(&writer, &batch)
        });
        if n_stops >= 2 {
            // The next run takes over what could not be said.
            let _ = tokio::time::timeout(LAST_WORDS, write).await;
        } else {
            write.await?;
            let (sender, mut receiver) = std::mem::replace(&mut self.tidying, unbounded_channel());
            drop(sender);
            receiver.recv().await;
        }
        Ok(self.summary(state, nodes))
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (node, state) in self.finished.iter().enumerate() {
            let Some(state) = state else { continue };
            counts.total += 1;
            match state {
                NodeState::Done if self.ran.contains(&node) => counts.ran += 1,
                NodeState::Done | NodeState::Cached => counts.cached += 1,
                NodeState::Failed => counts.failed += 1,
                NodeState::Skipped => counts.skipped += 1,
                NodeState::Cancelled => counts.cancelled += 1,
                NodeState::Parked => counts.parked += 1,
                NodeState::Waiting | NodeState::Running => {
                    unreachable!("a finished node is neither waiting nor running")
                }
            }
        }
        counts
    }

    fn summary(mut self, state: RunState, nodes: Counts) -> RunSummary {
        let mut outputs = std::collections::BTreeMap::new();
        let mut failures = Vec::new();
        for (node, finished) in self.finished.iter().enumerate() {
            let name = self.nodes[node].name.clone();
            if let Some(made) = &self.outputs[node] {
                outputs.insert(name, artifacts(&self.engine.store, made));
            } else if matches!(finished, Some(NodeState::Failed | NodeState::Parked))
                && let Some(failure) = self.failures.remove(&node)
            {
                failures.push(NodeFailure { node: name, failure });
            }
        }
        RunSummary { run: self.run, state, nodes, outputs, failures }
    }
}

/// A count as the ledger can hold it: a program may claim to have come further.
fn counted(n: u64) -> u64 {
    n.min(i64::MAX.unsigned_abs())
}

/// Highest resident memory of this process in bytes, as the ledger keeps it; 0 when unknown.
pub(crate) fn peak_memory_bytes() -> i64 {
    let bytes = crate::usage::peak_resident_bytes();
    bytes.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(0)
}
