//! Numbers as people read them.

use std::time::Duration;

/// Three significant digits with a unit prefix: `999`, `1.23k`, `45.6M`.
pub(crate) fn count(n: f64) -> String {
    let mut scaled = n;
    let mut prefixes = ["", "k", "M", "G", "T", "P"].into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    // 999.5 and above round to `1000`, so they belong to the next prefix.
    while scaled.abs() >= 999.5 {
        let Some(next) = prefixes.next() else { break };
        (scaled, prefix) = (scaled / 1000.0, next);
    }
    let n_decimals = match scaled.abs() {
        _ if prefix.is_empty() && scaled.fract() == 0.0 => 0,
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.n_decimals$}{prefix}")
}

/// A whole number with its thousands apart: `23,842`.
pub(crate) fn grouped(n: f64) -> String {
    let digits = format!("{n:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", &*digits), |rest| ("-", rest));
    let mut text = sign.to_owned();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in bytes: `12 B`, `3.4 KiB`.
pub(crate) fn bytes(n: u64) -> String {
    let mut scaled = n as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while scaled >= 1023.5 {
        let Some(next) = units.next() else { break };
        (scaled, unit) = (scaled / 1024.0, next);
    }
    let n_decimals = usize::from(unit != "B" && scaled < 99.95);
    format!("{scaled:.n_decimals$} {unit}")
}

/// A time span: `12 ms`, `3.4 s`, `2:05`, `1:02:03`.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1000.0)
    } else if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else {
        clock(span)
    }
}

/// A time span as a clock shows it: `0:07`, `12:34`, `1:02:03`.
pub(crate) fn clock(span: Duration) -> String {
    let seconds = span.as_secs_f64().round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// A measured figure with four significant digits, without an exponent where one can do without.
pub(crate) fn figure(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return format!("{x}");
    }
    if x.fract() == 0.0 && x.abs() < 1e15 {
        return format!("{x:.0}");
    }
    let magnitude = x.abs().log10().floor() as i32;
    match magnitude {
        -4..=3 => format!("{x:.*}", (3 - magnitude).clamp(0, 7) as usize),
        4..=9 => format!("{x:.0}"),
        _ => format!("{x:.3e}"),
    }
}

/// Days and time of day in UTC of a Unix time in microseconds: `2026-11-20 12:30:00`.
///
/// # Source
/// Days to civil date: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
pub(crate) fn timestamp(unix_us: i64) -> String {
    let seconds = unix_us.div_euclid(1_000_000);
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_three_digits() {
        let shown: Vec<String> =
            [0.0, 7.0, 999.0, 999.6, 1000.0, 1234.0, 12_345.0, 999_400.0, 999_500.0, 2.5e9, 0.5]
                .map(count)
                .to_vec();
        assert_eq!(
            shown,
            ["0", "7", "999", "1.00k", "1.00k", "1.23k", "12.3k", "999k", "1.00M", "2.50G", "0.50"]
        );
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(
            [0.0, 999.0, 1000.0, 23_842.0, -1_234_567.0].map(grouped),
            ["0", "999", "1,000", "23,842", "-1,234,567"]
        );
    }

    #[test]
    fn bytes_use_binary_units() {
        assert_eq!([0, 1023, 1024, 5_000_000].map(bytes), ["0 B", "1023 B", "1.0 KiB", "4.8 MiB"]);
    }

    #[test]
    fn spans_change_unit_without_a_gap() {
        let shown = [0.0, 0.9994, 0.9996, 59.9, 59.96, 125.0, 3723.0]
            .map(|seconds| span(Duration::from_secs_f64(seconds)));
        assert_eq!(shown, ["0 ms", "999 ms", "1.0 s", "59.9 s", "1:00", "2:05", "1:02:03"]);
    }

    #[test]
    fn figures_keep_four_digits() {
        assert_eq!(
            [0.0, 3.456_78, 0.000_123_45, 12_345.6, 17.0, 1.5e-9].map(figure),
            ["0", "3.457", "0.0001234", "12346", "17", "1.500e-9"]
        );
    }

    #[test]
    fn timestamps_agree_with_known_dates() {
        assert_eq!(timestamp(0), "1970-01-01 00:00:00");
        assert_eq!(timestamp(951_782_400_000_000), "2000-02-29 00:00:00");
        assert_eq!(timestamp(1_795_177_800_000_000), "2026-11-20 12:30:00");
        assert_eq!(timestamp(-1), "1969-12-31 23:59:59");
    }
}
