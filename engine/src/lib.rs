//! Pipelines as content-addressed tasks.
//!
//! Data flows one way: [`spec`] reads YAML into a checked pipeline, [`graph`] expands it into a
//! directed acyclic graph of nodes, [`plan`] gives each node its key and says what must run,
//! [`run`] obeys the pure state machine of `schedule`, and [`store`] and [`ledger`] keep what
//! was made. The crate knows nothing of language models.

pub mod checkpoint;
pub mod clock;
pub mod cost;
pub mod digest;
pub mod exec;
pub mod executor;
pub mod external;
pub mod graph;
mod item;
pub mod key;
pub mod ledger;
mod open;
mod parallel;
pub mod plan;
mod process;
pub mod run;
mod schedule;
pub mod spec;
pub mod store;
pub mod task;
pub mod usage;

pub use open::{Engine, Error, Settings};
