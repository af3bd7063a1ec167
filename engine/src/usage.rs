//! What this process uses of the machine's memory.

use std::fs;

/// Resident memory of this process in bytes; `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// The most resident memory that this process has had, in bytes; `None` where the system does not
/// say.
pub fn peak_resident_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// The same in MiB; 0 where the system does not say.
pub fn peak_resident_mib() -> f64 {
    peak_resident_bytes().unwrap_or(0) as f64 / f64::from(1 << 20)
}

fn status(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_no_less_than_what_is_used() {
        let used = resident_bytes().unwrap();
        assert!(used > 1 << 20 && peak_resident_bytes().unwrap() >= used);
    }
}
