//! What this process has used so far.

use std::fs;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The unit of times in `/proc`: a hundredth of a second, whatever the kernel counts in itself.
const TICK_MS: f64 = 10.0;

/// Time and memory of a process, from its start.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Usage {
    /// CPU time of all threads, user and system, in milliseconds.
    pub(super) cpu_ms: f64,
    /// The same of all child processes that have ended, to the clock tick (10 ms).
    pub(super) children_cpu_ms: f64,
    /// Highest resident memory in MiB; 0 where the system does not say.
    pub(super) peak_rss_mib: f64,
}

impl Usage {
    /// Of this process, up to now.
    pub(super) fn now() -> Self {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_ms = time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6;
        let peak_rss_mib = engine::usage::peak_resident_mib();
        Self { cpu_ms, children_cpu_ms: children_cpu_ms(), peak_rss_mib }
    }
}

fn children_cpu_ms() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces; user and system time of children are the 14th and
    // 15th field after it.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks = fields.split_ascii_whitespace().skip(13).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 * TICK_MS
}
