//! Processor time, for benches: other work on the machine hardly changes it.

/// Seconds that all threads of this process have computed, the system's work for them included.
pub fn process_seconds() -> f64 {
    seconds(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Seconds that this thread has computed.
pub fn thread_seconds() -> f64 {
    seconds(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn seconds(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place to write to.
    let status = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(status, 0, "the system counts processor time");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
