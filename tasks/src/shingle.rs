//! Windows of tokens: what two texts, or two places of one text, have in common.
//!
//! A text is normalized (lower case, without punctuation and digits, single spaces), tokenized with
//! the pipeline's own tokenizer and cut into windows of `n` tokens. A text of fewer than `n` tokens is
//! one window as a whole, so that equal short texts are still recognized. Windows are compared by a
//! hash first and by their tokens then.

pub mod duplicates;

use std::collections::HashMap;

use kernels::minhash;

use crate::words;

/// Tokens of a window in the paper.
pub const WINDOW_TOKENS: usize = 13;

/// Lower case, letters only, single spaces.
pub fn normalize(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out: Vec<u8> = Vec::with_capacity(bytes.len());
    let (mut at, mut gap) = (0, false);
    let fill = |gap: &mut bool, out: &mut Vec<u8>| {
        if std::mem::take(gap) && !out.is_empty() {
            out.push(b' ');
        }
    };
    while at < bytes.len() {
        let byte = bytes[at];
        // Most of most texts, and cheaper to tell.
        if byte.is_ascii() {
            at += 1;
            if byte.is_ascii_alphabetic() {
                fill(&mut gap, &mut out);
                out.push(byte.to_ascii_lowercase());
            } else {
                gap |= char::from(byte).is_whitespace();
            }
        } else {
            let c = text[at..].chars().next().expect("characters end where others start");
            at += c.len_utf8();
            if c.is_alphabetic() {
                fill(&mut gap, &mut out);
                let lower = c.to_lowercase();
                lower.for_each(|c| out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()));
            } else {
                gap |= c.is_whitespace();
            }
        }
    }
    String::from_utf8(out).expect("it is made of characters")
}

/// The windows of one text.
#[derive(Clone, Debug)]
pub struct Shingles {
    ids: Vec<u32>,
    /// Hash and start of each window, sorted.
    windows: Vec<(u64, u32)>,
    width: usize,
}

impl Shingles {
    /// Cuts token ids into windows of `n`.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn new(ids: Vec<u32>, n: usize) -> Self {
        assert!(n > 0, "windows have tokens");
        let width = n.min(ids.len());
        let mut hashes = Vec::new();
        if width == 0 {
            // The one window of an empty text.
            hashes.push(0);
        } else {
            minhash::windows(&ids, width, &mut hashes);
        }
        let mut windows: Vec<(u64, u32)> = hashes.into_iter().zip(0..).collect();
        windows.sort_unstable();
        Self { ids, windows, width }
    }

    fn window(&self, start: u32) -> &[u32] {
        &self.ids[start as usize..][..self.width]
    }

    /// Hashes of the windows in ascending order, repetitions included.
    pub fn hashes(&self) -> impl Iterator<Item = u64> {
        self.windows.iter().map(|window| window.0)
    }

    /// Windows, repetitions included; at least 1.
    pub fn n_windows(&self) -> usize {
        self.windows.len()
    }

    /// Whether a window of one text is a window of the other.
    pub fn shares_a_window(&self, other: &Self) -> bool {
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (self.windows.get(i), other.windows.get(j)) {
            match a.0.cmp(&b.0) {
                std::cmp::Ordering::Less => i += 1,
                std::cmp::Ordering::Greater => j += 1,
                std::cmp::Ordering::Equal => {
                    let same_hash = |windows: &[(u64, u32)], from: usize| {
                        windows[from..].iter().take_while(|window| window.0 == a.0).count()
                    };
                    let (m, n) = (same_hash(&self.windows, i), same_hash(&other.windows, j));
                    let equal = self.windows[i..i + m].iter().any(|x| {
                        other.windows[j..j + n]
                            .iter()
                            .any(|y| self.window(x.1) == other.window(y.1))
                    });
                    if equal {
                        return true;
                    }
                    (i, j) = (i + m, j + n);
                }
            }
        }
        false
    }

    /// How often the most frequent window occurs.
    pub fn repeats_max(&self) -> usize {
        let most = |same_hash: &[(u64, u32)]| {
            let mut counts: HashMap<&[u32], usize> = HashMap::new();
            for window in same_hash {
                *counts.entry(self.window(window.1)).or_insert(0) += 1;
            }
            counts.into_values().max().unwrap_or(0)
        };
        self.windows
            .chunk_by(|a, b| a.0 == b.0)
            .map(|same| if same.len() == 1 { 1 } else { most(same) })
            .max()
            .unwrap_or(0)
    }
}

/// Sets of `n`-word windows of a text, as sorted hashes; for Jaccard similarity.
///
/// A text of fewer words is one window as a whole. Words are what [`normalize`] leaves between spaces.
pub fn word_windows(text: &str, n: usize) -> Vec<u64> {
    let mut windows = window_hashes(text, n);
    windows.sort_unstable();
    windows.dedup();
    windows
}

/// The hashes of [`word_windows`] in the order of the text, repetitions included.
pub fn window_hashes(text: &str, n: usize) -> Vec<u64> {
    let normalized = normalize(text);
    let hashes: Vec<u32> =
        normalized.as_bytes().split(|&byte| byte == b' ').map(words::hash_u32).collect();
    let mut windows = Vec::new();
    minhash::windows(&hashes, n.min(hashes.len()), &mut windows);
    windows
}

/// Elements in both, over elements in either, of two sorted sets; 1 for two empty ones.
pub fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0);
    // Without a branch on the order, which is random.
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        both += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    let either = a.len() + b.len() - both;
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kernels::philox::Philox;
    use proptest::prelude::*;

    use super::*;

    fn naive(ids: &[u32], n: usize) -> Vec<Vec<u32>> {
        if ids.len() < n {
            vec![ids.to_vec()]
        } else {
            ids.windows(n).map(<[u32]>::to_vec).collect()
        }
    }

    /// Texts of 0 to 40 tokens over few ids, so that windows often meet.
    fn texts() -> Vec<Vec<u32>> {
        let rng = Philox::new(1, "texts");
        (0..300_u64)
            .map(|i| {
                let len = rng.below(i * 64, 41);
                (0..len).map(|j| rng.below(i * 64 + 1 + j, 2) as u32).collect()
            })
            .collect()
    }

    #[test]
    fn shared_windows_equal_a_naive_oracle() {
        let texts = texts();
        for n in [1, 5, 13] {
            let sets: Vec<BTreeSet<Vec<u32>>> =
                texts.iter().map(|ids| naive(ids, n).into_iter().collect()).collect();
            let shingles: Vec<Shingles> =
                texts.iter().map(|ids| Shingles::new(ids.clone(), n)).collect();
            let mut n_shared = 0;
            for i in 0..150 {
                for j in 150..300 {
                    let expected = sets[i].intersection(&sets[j]).next().is_some();
                    n_shared += usize::from(expected);
                    assert_eq!(shingles[i].shares_a_window(&shingles[j]), expected, "{i} {j} {n}");
                }
            }
            assert!(n_shared > 100, "{n_shared}");
        }
    }

    #[test]
    fn repeats_equal_a_naive_oracle() {
        for ids in texts() {
            for n in [2, 6, 13] {
                let windows = naive(&ids, n);
                let expected =
                    windows.iter().map(|w| windows.iter().filter(|v| *v == w).count()).max();
                assert_eq!(Some(Shingles::new(ids.clone(), n).repeats_max()), expected);
            }
        }
    }

    #[test]
    fn hash_collisions_change_nothing() {
        let mut a = Shingles::new((0..20).collect(), 13);
        let mut b = Shingles::new((100..120).collect(), 13);
        for shingles in [&mut a, &mut b] {
            for window in &mut shingles.windows {
                window.0 = 7;
            }
        }
        assert!(!a.shares_a_window(&b) && a.shares_a_window(&a.clone()));
        assert_eq!(a.repeats_max(), 1);
    }

    proptest! {
        #[test]
        fn normalization_follows_the_rule(text in "[a-zA-Z0-9 .,'\n\u{b}ßÜΣ日İ٣\u{a0}]{0,60}|\\PC{0,40}") {
            let kept = |c: &char| c.is_alphabetic() || c.is_whitespace();
            let lower: String = text.chars().filter(kept).flat_map(char::to_lowercase).collect();
            let words: Vec<&str> = lower.split_whitespace().collect();
            prop_assert_eq!(normalize(&text), words.join(" "));
        }
    }

    #[test]
    fn normalization_drops_case_digits_and_punctuation() {
        let check = |text: &str, expected: &str| assert_eq!(normalize(text), expected);
        check("  It's 10 O'Clock,\n\tÜBER-all! ", "its oclock überall");
        check("123 456", "");
        check("", "");
        check("日本 語。", "日本 語");
    }

    /// Windows are those of the words that [`normalize`] leaves, as a set.
    #[test]
    fn word_windows_are_sets_of_words() {
        let set = |text: &str| word_windows(text, 2);
        assert_eq!(set("A b, c!"), set("a B\nc"));
        assert_eq!(set("a b a b a").len(), 2);
        assert_eq!((set("").len(), set("one").len(), set("12 .").len()), (1, 1, 1));
        assert_ne!(set("ab c"), set("a bc"));
        let (x, y) = (set("a b c d"), set("b c d e"));
        assert!((jaccard(&x, &y) - 0.5).abs() < 1e-12);
        assert!((jaccard(&[], &[]) - 1.0).abs() < 1e-12);
    }
}
