//! The task kinds of synthetic bootstrapped pretraining.

use engine::task::Registry;

/// Every task, in pipeline order.
pub fn registry() -> Registry {
    Registry::default()
}
