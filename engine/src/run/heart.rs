//! The run's sign of life while its loop is busy: hashing what a node reads may take longer than a
//! lease lasts, and then other runs must not believe it dead.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::open::Engine;

/// A thread that prolongs the leases of its process until it is dropped.
pub(super) struct Heart(#[expect(dead_code, reason = "what counts is that it goes")] Sender<()>);

impl Heart {
    /// Starts it. Without a thread the loop's own heartbeat has to do.
    pub(super) fn start(engine: &Engine, every: Duration) -> Self {
        let (keep, kept) = channel::<()>();
        let (ledger, clock) = (Arc::clone(&engine.ledger), engine.clock.clone());
        let (owner, lease) = (engine.owner.id.clone(), engine.lease);
        let beats = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            let mut connection = None;
            // Most runs are over before the first beat, and so never connect again.
            while kept.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                runtime.block_on(beat(&mut connection, &ledger, &owner, &clock, lease));
            }
        };
        let _ = thread::Builder::new().name("sbp-heart".to_owned()).spawn(beats);
        Self(keep)
    }
}

/// What goes wrong here goes wrong in the loop too, which says so and tries again.
async fn beat(
    connection: &mut Option<Ledger>,
    ledger: &Ledger,
    owner: &str,
    clock: &Clock,
    lease: Duration,
) {
    if connection.is_none() {
        *connection = ledger.again().await.ok();
    }
    let until_us = clock.now_us().saturating_add(lease.as_micros() as i64);
    if let Some(own) = connection
        && own.prolong(owner, until_us).await.is_err()
    {
        *connection = None;
    }
}
