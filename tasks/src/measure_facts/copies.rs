//! Finds texts that are nearly the same as known ones.

use std::collections::{BTreeMap, BTreeSet};

/// Words of a window.
const WINDOW: usize = 5;
/// Jaccard similarity of windows from which two texts count as the same.
const JACCARD: f64 = 0.8;

/// Known texts, by their windows.
pub(super) struct Copies {
    /// The texts that have a window.
    by_window: BTreeMap<Vec<String>, Vec<usize>>,
    /// Distinct windows of each text.
    sizes: Vec<usize>,
}

impl Copies {
    /// The texts to look for.
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let mut copies = Self { by_window: BTreeMap::new(), sizes: Vec::new() };
        for (i, text) in texts.enumerate() {
            let windows = windows(text);
            copies.sizes.push(windows.len());
            for window in windows {
                copies.by_window.entry(window).or_default().push(i);
            }
        }
        copies
    }

    /// Whether `text` is nearly one of the known texts.
    pub(super) fn is_known(&self, text: &str) -> bool {
        let windows = windows(text);
        let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
        for &i in windows.iter().filter_map(|window| self.by_window.get(window)).flatten() {
            *shared.entry(i).or_default() += 1;
        }
        shared.into_iter().any(|(i, n)| is_same(n, self.sizes[i], windows.len()))
    }
}

/// Whether two texts are nearly the same.
pub(super) fn is_copy(one: &str, other: &str) -> bool {
    let (one, other) = (windows(one), windows(other));
    is_same(one.intersection(&other).count(), one.len(), other.len())
}

fn is_same(n_shared: usize, n_one: usize, n_other: usize) -> bool {
    n_shared as f64 >= JACCARD * (n_one + n_other - n_shared) as f64
}

/// Every run of [`WINDOW`] words, or the whole of a shorter text.
fn windows(text: &str) -> BTreeSet<Vec<String>> {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let size = WINDOW.min(words.len()).max(1);
    words.windows(size).map(<[String]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_copies_are_known_and_others_are_not() {
        let text = "a b c d e f g h i j k l m n o p q r s t u v w x y z";
        let copies = Copies::new([text, "one two three"].into_iter());
        assert!(copies.is_known(text));
        assert!(copies.is_known(&text.replace(" z", " other")));
        assert!(!copies.is_known(&text.replace(" m", " other")));
        assert!(copies.is_known("one two three") && !copies.is_known("one two"));
        assert!(is_copy(text, text) && !is_copy(text, "one two three"));
    }
}
