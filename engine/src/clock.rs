//! Time, as one value that tests can hold still.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Gives the wall-clock time in microseconds since 1970.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// A clock that stands at `now_us` until the returned handle is written.
    pub fn manual(now_us: i64) -> (Self, Arc<AtomicI64>) {
        let hand = Arc::new(AtomicI64::new(now_us));
        (Self(Some(Arc::clone(&hand))), hand)
    }

    /// Microseconds since 1970.
    pub fn now_us(&self) -> i64 {
        if let Some(hand) = &self.0 {
            return hand.load(Ordering::Acquire);
        }
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
    }
}
