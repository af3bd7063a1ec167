//! What is known of a run while it goes on.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use engine::run::RunEvent;
use engine::task::{FailureKind, Report};

use crate::human;

/// The run so far. Times are since the run began.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Nodes of the run.
    pub(super) n_total: usize,
    /// Nodes that ran and ended well.
    pub(super) n_done: usize,
    /// Nodes whose result was there.
    pub(super) n_cached: usize,
    /// Nodes that failed.
    pub(super) n_failed: usize,
    /// Nodes that wait for an operator.
    pub(super) n_parked: usize,
    /// Nodes left out because of another, or stopped.
    pub(super) n_skipped: usize,
    /// Nodes at work, by name.
    pub(super) running: BTreeMap<String, Running>,
}

impl State {
    /// Nodes that have neither ended nor begun.
    pub(super) fn n_waiting(&self) -> usize {
        let n_ended = self.n_done + self.n_cached + self.n_failed + self.n_parked + self.n_skipped;
        self.n_total.saturating_sub(n_ended + self.running.len())
    }

    /// Notes an event. Gives how long the attempt that it ends took.
    pub(super) fn observe(&mut self, event: &RunEvent, now: Duration) -> Option<Duration> {
        match event {
            RunEvent::RunStarted { n_total, n_cached, .. } => {
                (self.n_total, self.n_cached) = (*n_total, *n_cached);
                self.running.clear();
            }
            RunEvent::Cached { node, .. } => {
                self.n_cached += 1;
                self.running.remove(node);
            }
            RunEvent::Started { node, .. } => {
                self.running.insert(node.clone(), Running::new(now));
            }
            RunEvent::Reported { node, report } => self.report(node, report, now),
            RunEvent::HashesFiles { node, size_bytes, read_bytes, .. } => {
                self.hashes(node, *read_bytes, *size_bytes, now);
            }
            RunEvent::Retrying { node, .. } => return self.end(node, now),
            RunEvent::Finished { node, .. } => {
                self.n_done += 1;
                return self.end(node, now);
            }
            RunEvent::Failed { node, failure } => {
                let counter = match failure.kind {
                    FailureKind::Parked => &mut self.n_parked,
                    FailureKind::Cancelled => &mut self.n_skipped,
                    FailureKind::Permanent | FailureKind::Transient => &mut self.n_failed,
                };
                *counter += 1;
                return self.end(node, now);
            }
            RunEvent::Skipped { .. } => self.n_skipped += 1,
            RunEvent::ReadsInputs { .. }
            | RunEvent::Waiting { .. }
            | RunEvent::Stopping { .. }
            | RunEvent::LedgerTrouble { .. } => {}
        }
        None
    }

    /// Before the run starts, a node whose files are hashed is shown like one that runs.
    fn hashes(&mut self, node: &str, done: u64, total: Option<u64>, now: Duration) {
        if self.n_total > 0 {
            return;
        }
        if total.is_some_and(|total| done >= total) {
            self.running.remove(node);
            return;
        }
        self.running.entry(node.to_owned()).or_insert_with(|| Running::new(now));
        let (total, unit) = (total.unwrap_or(0), "bytes".to_owned());
        self.report(node, &Report::Progress { done, total, unit }, now);
    }

    fn end(&mut self, node: &str, now: Duration) -> Option<Duration> {
        self.running.remove(node).map(|running| now.saturating_sub(running.since))
    }

    /// Notes a report; one from a node that does not run is dropped, as it comes too late.
    pub(super) fn report(&mut self, node: &str, report: &Report, now: Duration) {
        let Some(running) = self.running.get_mut(node) else { return };
        match report {
            Report::Progress { done, total, unit } => {
                running.done = *done;
                running.total = *total;
                if running.unit != *unit {
                    running.unit.clone_from(unit);
                    running.rate = Rate::default();
                }
                running.rate.note(now, *done);
            }
            Report::Metric { name, value, .. } => running.note_metric(name, *value),
            Report::Log { .. } => {}
        }
    }
}

/// A node at work.
#[derive(Debug)]
pub(super) struct Running {
    /// When the attempt began.
    pub(super) since: Duration,
    /// Units finished.
    pub(super) done: u64,
    /// Units in all; 0 when unknown.
    pub(super) total: u64,
    /// What one unit is.
    pub(super) unit: String,
    /// The last value of the series worth showing.
    pub(super) metric: Option<(String, f64)>,
    /// How fast it goes.
    pub(super) rate: Rate,
    /// When a plain line was last printed about it.
    pub(super) told: Duration,
}

impl Running {
    /// A node whose attempt begins.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            since: now,
            done: 0,
            total: 0,
            unit: String::new(),
            metric: None,
            rate: Rate::default(),
            told: now,
        }
    }

    /// Keeps `loss` over any other series, else the latest.
    fn note_metric(&mut self, name: &str, value: f64) {
        let keeps_loss = self.metric.as_ref().is_some_and(|(kept, _)| kept == "loss");
        if name == "loss" || !keeps_loss {
            self.metric = Some((name.to_owned(), value));
        }
    }

    /// The finished share, when the total is known.
    pub(super) fn fraction(&self) -> Option<f64> {
        (self.total > 0).then(|| (self.done as f64 / self.total as f64).clamp(0.0, 1.0))
    }

    /// `34%`, when the total is known. Rounded down, so that 100% means finished.
    pub(super) fn percent(&self) -> Option<String> {
        self.fraction().map(|fraction| format!("{:>3.0}%", (fraction * 100.0).floor()))
    }

    /// `23.4k tokens/s`, once there is something to measure.
    pub(super) fn speed(&self) -> Option<String> {
        self.rate.per_second().map(|rate| format!("{} {}/s", human::count(rate), self.unit))
    }

    /// `eta 1:30`, once the rate has settled: the first units are often slow.
    pub(super) fn eta(&self) -> Option<String> {
        let left = self.total.checked_sub(self.done).filter(|&left| left > 0)?;
        self.rate.span().filter(|&span| span >= Rate::SETTLED)?;
        let seconds = left as f64 / self.rate.per_second().filter(|&rate| rate > 0.0)?;
        let eta = Duration::try_from_secs_f64(seconds).ok()?;
        Some(format!("eta {}", human::clock(eta)))
    }

    /// `loss 3.42`, when a series was reported.
    pub(super) fn figure(&self) -> Option<String> {
        self.metric.as_ref().map(|(name, value)| format!("{name} {}", human::figure(*value)))
    }
}

/// Units per second over the last seconds.
///
/// A resumed attempt begins at a high count, so the rate is a difference between two reports and
/// never a share of all that is done.
#[derive(Debug, Default)]
pub(super) struct Rate(VecDeque<(Duration, u64)>);

impl Rate {
    const SPACING: Duration = Duration::from_millis(200);
    const HORIZON: Duration = Duration::from_secs(20);
    const SETTLED: Duration = Duration::from_secs(2);

    fn note(&mut self, now: Duration, done: u64) {
        if self.0.back().is_some_and(|&(_, last)| done < last) {
            self.0.clear();
        }
        // The newest sample moves until it is far enough from the one before it.
        let n = self.0.len();
        if n >= 2 && now.saturating_sub(self.0[n - 2].0) < Self::SPACING {
            self.0[n - 1] = (now, done);
        } else {
            self.0.push_back((now, done));
        }
        while self.0.len() > 2 && now.saturating_sub(self.0[1].0) >= Self::HORIZON {
            self.0.pop_front();
        }
    }

    /// The time that the rate is measured over.
    fn span(&self) -> Option<Duration> {
        Some(self.0.back()?.0.saturating_sub(self.0.front()?.0))
    }

    fn per_second(&self) -> Option<f64> {
        let (&(first, from), &(last, to)) = (self.0.front()?, self.0.back()?);
        let seconds = last.saturating_sub(first).as_secs_f64();
        (seconds >= 0.1).then(|| (to - from) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(done: u64, total: u64) -> Report {
        Report::Progress { done, total, unit: "tokens".to_owned() }
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn rate_of_a_resumed_attempt_ignores_what_was_done_before() {
        let mut state = State::default();
        state.running.insert("a".to_owned(), Running::new(seconds(0.0)));
        state.report("a", &progress(5_000, 10_000), seconds(1.0));
        state.report("a", &progress(5_500, 10_000), seconds(6.0));
        let running = &state.running["a"];
        assert_eq!(running.speed().as_deref(), Some("100 tokens/s"));
        assert_eq!(running.eta().as_deref(), Some("eta 0:45"));
        assert_eq!(running.percent().as_deref(), Some(" 55%"));
    }

    #[test]
    fn rate_follows_the_last_twenty_seconds() {
        let mut rate = Rate::default();
        for second in 0..=100 {
            let done = if second <= 50 { second * 10 } else { 500 + (second - 50) * 100 };
            rate.note(Duration::from_secs(second), done);
        }
        assert_eq!(rate.per_second(), Some(100.0));
        assert!(rate.0.len() <= 23, "{} samples are kept", rate.0.len());
    }

    #[test]
    fn many_reports_keep_few_samples() {
        let mut rate = Rate::default();
        for i in 0..100_000_u64 {
            rate.note(Duration::from_millis(i), i);
        }
        assert!(rate.0.len() <= 202, "{} samples are kept", rate.0.len());
        let per_second = rate.per_second().unwrap();
        assert!((per_second - 1000.0).abs() < 1.0, "{per_second}");
    }

    #[test]
    fn loss_is_preferred() {
        let mut running = Running::new(Duration::ZERO);
        running.note_metric("lr", 0.1);
        assert_eq!(running.figure().as_deref(), Some("lr 0.1000"));
        running.note_metric("loss", 3.25);
        running.note_metric("lr", 0.2);
        assert_eq!(running.figure().as_deref(), Some("loss 3.250"));
    }

    #[test]
    fn late_reports_are_dropped() {
        let mut state = State::default();
        state.report("gone", &progress(1, 2), Duration::ZERO);
        assert!(state.running.is_empty());
    }
}
