//! Pauses between attempts.

use crate::graph::Retry;

/// No pause is longer.
const PAUSE_MAX_US: i64 = 600_000_000;

/// The pause after the `n_failed`-th failure: doubles each time, less up to a half, so that nodes
/// that failed together do not come back together.
pub(super) fn pause_us(retry: &Retry, n_failed: u32, node: usize, seed: u64) -> i64 {
    let base_us = i64::try_from(retry.backoff.as_micros()).unwrap_or(PAUSE_MAX_US);
    let doublings = n_failed.saturating_sub(1).min(20);
    let full_us = base_us.saturating_mul(1 << doublings).min(PAUSE_MAX_US);
    let mut hasher = blake3::Hasher::new();
    for part in [seed, node as u64, u64::from(n_failed)] {
        hasher.update(&part.to_le_bytes());
    }
    let mut bytes = [0; 4];
    hasher.finalize_xof().fill(&mut bytes);
    let jitter = i64::from(u32::from_le_bytes(bytes));
    full_us - (full_us / 2).saturating_mul(jitter >> 16) / (1 << 16)
}
