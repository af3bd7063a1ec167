//! What plain text means: numbers, durations, sizes, and names.

use std::time::Duration;

use serde_json::{Number, Value};

/// Bytes of text quoted in a message.
const QUOTED_CHARS_MAX: usize = 60;

pub(crate) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// The value of unquoted text: YAML 1.2's core schema, except that `_` may separate digits and that
/// `0777` (octal to some readers, decimal to others) and infinities stay text.
pub(crate) fn plain_value(text: &str) -> Value {
    match text {
        _ if is_null(text) => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::from(text), Value::Number),
    }
}

/// The number that a text spells.
pub(crate) fn number(text: &str) -> Option<Number> {
    let first = *text.as_bytes().first()?;
    if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) {
        return None;
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = match digits.get(..2) {
        Some("0x") => u64::from_str_radix(digits_only(&digits[2..])?, 16).ok(),
        Some("0o") => u64::from_str_radix(digits_only(&digits[2..])?, 8).ok(),
        _ => decimal(digits),
    };
    match magnitude {
        Some(magnitude) if !negative => return Some(magnitude.into()),
        Some(magnitude) => return 0_i64.checked_sub_unsigned(magnitude).map(Number::from),
        None => {}
    }
    let well_formed = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.bytes().any(|b| b.is_ascii_digit())
        && !has_leading_zero(digits);
    let value = if well_formed { text.parse::<f64>().ok()? } else { return None };
    Number::from_f64(value)
}

fn digits_only(text: &str) -> Option<&str> {
    text.bytes().all(|b| b.is_ascii_hexdigit()).then_some(text)
}

fn has_leading_zero(digits: &str) -> bool {
    let bytes = digits.as_bytes();
    bytes.len() > 1 && bytes[0] == b'0' && bytes[1].is_ascii_digit()
}

fn decimal(digits: &str) -> Option<u64> {
    let bytes = digits.as_bytes();
    let mut value = 0_u64;
    for (i, byte) in bytes.iter().enumerate() {
        let separates = *byte == b'_'
            && i > 0
            && bytes[i - 1].is_ascii_digit()
            && bytes.get(i + 1).is_some_and(u8::is_ascii_digit);
        if separates {
            continue;
        }
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
    }
    (!bytes.is_empty() && !has_leading_zero(digits)).then_some(value)
}

/// The same number as an integer, when it is one exactly.
pub(crate) fn exact_integer(number: &Number) -> Option<Number> {
    if number.is_i64() || number.is_u64() {
        return Some(number.clone());
    }
    let value = number.as_f64()?;
    // Above 2^53 a float no longer says which integer was meant.
    let exact = value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0;
    exact.then(|| if value < 0.0 { Number::from(value as i64) } else { Number::from(value as u64) })
}

/// A duration such as `90s`, `1h30m`, `250ms`, `1.5h`.
///
/// # Errors
/// What is wrong with it, for the user.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut seconds = 0.0_f64;
    if rest.is_empty() {
        return Err("a duration is empty".to_owned());
    }
    while !rest.is_empty() {
        let n_digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (digits, after) = rest.split_at(n_digits);
        let n_letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(n_letters);
        let scale = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(format!("`{}` is not a duration", shorten(text))),
        };
        let amount: f64 =
            digits.parse().map_err(|_| format!("`{}` is not a duration", shorten(text)))?;
        seconds += amount * scale;
        rest = after.trim_start();
    }
    // Ten years; longer is a slip, and must not overflow a clock.
    if seconds > 315_360_000.0 {
        return Err(format!("`{}` is longer than 10 years", shorten(text)));
    }
    Ok(Duration::from_millis((seconds * 1_000.0).round() as u64))
}

/// A size in bytes such as `512MiB`, `1.5GiB`, `2GB`, `4096`.
///
/// # Errors
/// What is wrong with it, for the user.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let n_digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (digits, unit) = text.split_at(n_digits);
    let scale: f64 = match unit.trim_start() {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        "TiB" => 1_099_511_627_776.0,
        _ => return Err(format!("`{}` is not a size", shorten(text))),
    };
    let amount: f64 = digits.parse().map_err(|_| format!("`{}` is not a size", shorten(text)))?;
    let bytes = amount * scale;
    if bytes > 1e18 {
        return Err(format!("`{}` is larger than 1 EB", shorten(text)));
    }
    Ok(bytes.round() as u64)
}

/// Text for a message: the start of it when it is long, line breaks shown.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text
        .chars()
        .take(QUOTED_CHARS_MAX)
        .map(|c| {
            if c == '\n' {
                '↵'
            } else if c.is_control() {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect();
    if text.chars().nth(QUOTED_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

/// A value for a message, with its type: "the string `a`".
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("the boolean `{value}`"),
        Value::Number(number) if number.is_f64() => format!("the number `{number}`"),
        Value::Number(number) => format!("the integer `{number}`"),
        Value::String(text) => format!("the string `{}`", shorten(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
    }
}

/// What a name in a pipeline file may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    /// A node: `-` is allowed.
    Node,
    /// A param or an axis: must be an identifier of the expression language.
    Variable,
}

/// Longest name of a node, a param, or an axis.
const NAME_BYTES_MAX: usize = 64;

/// What is wrong with a name, and a better one when there is one.
///
/// # Errors
/// Message and help.
pub(crate) fn check_name(text: &str, name: Name) -> Result<(), (String, String)> {
    let is_allowed = |c: char| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-' && name == Name::Node
    };
    let shape = match name {
        Name::Node => "lower-case letters, digits, `_` and `-`, starting with a letter",
        Name::Variable => "lower-case letters, digits and `_`, starting with a letter",
    };
    if text.len() > NAME_BYTES_MAX {
        let message = format!("the name `{}` is longer than {NAME_BYTES_MAX} bytes", shorten(text));
        return Err((message, format!("names are {shape}")));
    }
    if text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(is_allowed) {
        return Ok(());
    }
    let mut better: String =
        text.to_lowercase().chars().map(|c| if is_allowed(c) { c } else { '_' }).collect();
    better = better.trim_matches('_').to_owned();
    let help = if better.starts_with(|c: char| c.is_ascii_lowercase()) {
        format!("names are {shape}, such as `{better}`")
    } else {
        format!("names are {shape}")
    };
    Err((format!("`{}` is not a name", shorten(text)), help))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_text_becomes_the_value_it_spells() {
        let check = |text, expected: Value| assert_eq!(plain_value(text), expected, "{text}");
        check("1", json!(1));
        check("-3", json!(-3));
        check("+3", json!(3));
        check("10_000", json!(10_000));
        check("0x1F", json!(31));
        check("0o17", json!(15));
        check("1e9", json!(1e9));
        check("-2.5e-3", json!(-2.5e-3));
        check(".5", json!(0.5));
        check("18446744073709551615", json!(u64::MAX));
        check("-9223372036854775808", json!(i64::MIN));
        check("99999999999999999999", json!(1e20));
        for text in [
            "0777", "1_", "_1", "1__0", ".inf", "1e999", "1.2.3", "-", "0x", "0xzz", "yes", "1e",
            ".",
        ] {
            check(text, json!(text));
        }
        check("~", json!(null));
        check("true", json!(true));
    }

    #[test]
    fn integers_are_exact_or_nothing() {
        let check = |value: f64, expected: Option<i64>| {
            let number = Number::from_f64(value).unwrap();
            assert_eq!(exact_integer(&number), expected.map(Number::from), "{value}");
        };
        check(1e9, Some(1_000_000_000));
        check(-4.0, Some(-4));
        check(1.5, None);
        check(1e20, None);
    }

    #[test]
    fn durations_and_sizes() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_mins(90)));
        for text in ["", "10", "h", "1x", "-1s", "1e9s", "1..2s", "99999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(size_bytes("1GiB"), Ok(1 << 30));
        assert_eq!(size_bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(size_bytes("4096"), Ok(4096));
        for text in ["", "GiB", "1 Gib", "-1MiB", "1e3", "9999999TiB"] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_have_no_path_tricks() {
        for text in ["a", "read_corpus", "a-1"] {
            assert!(check_name(text, Name::Node).is_ok(), "{text}");
        }
        for text in ["", "..", "a/b", "a.b", "A", "1a", "-a", "a b", "é", "a\0"] {
            assert!(check_name(text, Name::Node).is_err(), "{text}");
        }
        assert!(check_name("a-1", Name::Variable).is_err());
    }
}
