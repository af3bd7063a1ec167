//! What this process has used so far.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Time and memory of a process, from its start.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Usage {
    /// CPU time of all threads, user and system, in milliseconds.
    pub(super) cpu_ms: f64,
    /// Highest resident memory in MiB; 0 where the system does not say.
    pub(super) peak_rss_mib: f64,
}

impl Usage {
    /// Of this process, up to now.
    pub(super) fn now() -> Self {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_ms = time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6;
        Self { cpu_ms, peak_rss_mib: engine::usage::peak_resident_mib() }
    }
}
