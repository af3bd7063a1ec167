//! The SQL ledger: every run, attempt, metric, log line and artifact.

mod view;

pub use view::{
    AttemptRow, LogRow, MetricPoint, NodeDetail, OutputRow, RunDetail, RunNodeRow, RunRow,
};
