//! Finds texts that are nearly the same as known ones.

use std::collections::HashMap;

use crate::shingle::{jaccard, word_windows};

/// Words of a window.
const WINDOW_WORDS: usize = 5;
/// Jaccard similarity of windows from which two texts count as the same.
const JACCARD: f64 = 0.8;

/// Known texts, by their windows.
pub(super) struct Copies {
    /// The texts that have a window.
    by_window: HashMap<u64, Vec<usize>>,
    /// The windows of each text.
    windows: Vec<Vec<u64>>,
}

impl Copies {
    /// The texts to look for.
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let windows: Vec<Vec<u64>> = texts.map(|text| word_windows(text, WINDOW_WORDS)).collect();
        let mut by_window: HashMap<u64, Vec<usize>> = HashMap::new();
        for (i, windows) in windows.iter().enumerate() {
            for &window in windows {
                by_window.entry(window).or_default().push(i);
            }
        }
        Self { by_window, windows }
    }

    /// Whether `text` is nearly one of the known texts.
    pub(super) fn is_known(&self, text: &str) -> bool {
        let windows = word_windows(text, WINDOW_WORDS);
        let mut sharing: Vec<usize> = windows
            .iter()
            .filter_map(|window| self.by_window.get(window))
            .flatten()
            .copied()
            .collect();
        sharing.sort_unstable();
        sharing.dedup();
        sharing.into_iter().any(|i| jaccard(&self.windows[i], &windows) >= JACCARD)
    }
}

/// Whether two texts are nearly the same.
pub(super) fn is_copy(one: &str, other: &str) -> bool {
    jaccard(&word_windows(one, WINDOW_WORDS), &word_windows(other, WINDOW_WORDS)) >= JACCARD
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
