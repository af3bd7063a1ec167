//! The task kinds of synthetic bootstrapped pretraining.

pub mod corpus;
pub mod format;
pub mod lm;
pub mod tokenizer;

use engine::task::Registry;

/// Every task, in pipeline order.
pub fn registry() -> Registry {
    Registry::default()
}
