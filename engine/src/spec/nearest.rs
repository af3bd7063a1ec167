//! Which known name was probably meant.

/// The known name closest to `wanted`, when it is close enough to be worth saying.
pub(crate) fn nearest<'a>(
    wanted: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wanted_folded = fold(wanted);
    let distance_max = (wanted_folded.len() / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
    for name in known {
        let limit = best.map_or(distance_max, |(distance, _)| distance.saturating_sub(1));
        let folded = fold(name);
        if folded.len().abs_diff(wanted_folded.len()) > limit {
            continue;
        }
        let distance = edit_distance(&wanted_folded, &folded);
        if distance <= limit && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, name));
            if distance == 0 {
                break;
            }
        }
    }
    best.map(|(_, name)| name)
}

/// Help that names the closest known name, or lists them all when they are few.
pub(crate) fn suggest<'a>(
    wanted: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
    plural: &str,
) -> Option<String> {
    if let Some(name) = nearest(wanted, known.clone()) {
        return Some(format!("did you mean `{name}`?"));
    }
    let names: Vec<_> = known.into_iter().take(25).map(|name| format!("`{name}`")).collect();
    match names.len() {
        1..25 => Some(format!("{plural}: {}", names.join(", "))),
        _ => None,
    }
}

/// Letters in lower case, without separators: `Top-P` and `top_p` are one name to a person.
fn fold(name: &str) -> Vec<char> {
    name.chars().take(80).filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// Insertions, deletions, replacements, and swaps of neighbours between two names.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, a_char) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b_char) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(a_char != b_char);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a_char == b[j - 1] && a[i - 1] == *b_char {
                least = least.min(before_last[j - 1] + 1);
            }
            row.push(least);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_what_was_meant() {
        let known = ["read_corpus", "clean", "pretrain", "evaluate", "in", "params"];
        let check = |wanted, expected| assert_eq!(nearest(wanted, known), expected, "{wanted}");
        check("claen", Some("clean"));
        check("read-corpus", Some("read_corpus"));
        check("Evaluate", Some("evaluate"));
        check("pretrian", Some("pretrain"));
        check("param", Some("params"));
        check("synthesize", None);
        check("", None);
        check("x", None);
    }
}
