//! Runs a pipeline: the only event loop, which feeds [`crate::schedule`] and obeys its commands.
//!
//! Tasks run on threads of their own; the loop never blocks. One ledger transaction is in flight
//! at a time, and whatever happens meanwhile goes into the next one, so that a busy run commits in
//! groups without waiting.

mod report;

pub use report::{
    Counts, NodeFailure, NodeState, Observer, Options, RunEvent, RunState, RunSummary, Silent, Stop,
};
