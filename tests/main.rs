//! Integration tests over the real `sbp`, one module for each boundary.

#![expect(clippy::unwrap_used, reason = "a test fails where a step fails")]
#![expect(clippy::print_stdout, reason = "a failing test shows what it printed")]

mod bench;
mod browser;
mod cli;
mod cost;
mod devices;
mod documents;
mod harness;
mod judge;
mod kills;
mod operate;
mod pinned;
mod pipelines;
mod programs;
mod resume;
mod sources;
mod tidy;
