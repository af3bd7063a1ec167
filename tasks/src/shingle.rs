//! Windows of tokens: what two texts, or two places of one text, have in common.
//!
//! A text is normalized (lower case, without punctuation and digits, single spaces), tokenized with
//! the pipeline's own tokenizer and cut into windows of `n` tokens. A text of fewer than `n` tokens is
//! one window as a whole, so that equal short texts are still recognized. Windows are compared by a
//! hash first and by their tokens then.

use std::collections::HashMap;

use kernels::minhash;

/// Tokens of a window in the paper.
pub const WINDOW_TOKENS: usize = 13;

/// Lower case, letters only, single spaces.
pub fn normalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut gap = false;
    for c in text.chars() {
        if c.is_whitespace() {
            gap = true;
        } else if c.is_alphabetic() {
            if gap && !out.is_empty() {
                out.push(' ');
            }
            gap = false;
            out.extend(c.to_lowercase());
        }
    }
    out
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
    let normalized = normalize(text);
    let words: Vec<u32> = normalized.split(' ').map(|word| blake3_u32(word.as_bytes())).collect();
    let mut windows: Vec<u64> = Shingles::new(words, n).hashes().collect();
    windows.dedup();
    windows
}

fn blake3_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*blake3::hash(bytes).as_bytes().first_chunk().expect("32 bytes hold 4"))
}

/// Elements in both, over elements in either, of two sorted sets; 1 for two empty ones.
pub fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        match x.cmp(y) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                both += 1;
                i += 1;
                j += 1;
            }
        }
    }
    let either = a.len() + b.len() - both;
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

/// For each set whether an earlier one is at least as similar as `threshold`, by Jaccard, exactly.
///
/// Two sets that similar share an element among the first `len - ceil(threshold * len) + 1` of
/// each in a common order; only those are indexed and looked up. Hashes are a random order, in which
/// no prefix is crowded.
///
/// # Source
/// Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", WWW 2007.
///
/// # Panics
/// When `threshold` is not above 0 and at most 1.
pub fn duplicates(sets: &[Vec<u64>], threshold: f64) -> Vec<bool> {
    assert!(threshold > 0.0 && threshold <= 1.0, "a threshold of {threshold}");
    let mut index: HashMap<u64, Vec<u32>> = HashMap::new();
    let mut found = Vec::with_capacity(sets.len());
    let mut seen = vec![u32::MAX; sets.len()];
    for (i, set) in sets.iter().enumerate() {
        // A hair below, so that rounding never shortens a prefix.
        let least = (threshold * set.len() as f64 - 1e-9).ceil() as usize;
        let prefix = &set[..(set.len() - least + 1).min(set.len())];
        let mut is_duplicate = false;
        'candidates: for element in prefix {
            for &j in index.get(element).map_or(&[][..], Vec::as_slice) {
                let first_look = std::mem::replace(&mut seen[j as usize], i as u32) != i as u32;
                if first_look && jaccard(set, &sets[j as usize]) >= threshold {
                    is_duplicate = true;
                    break 'candidates;
                }
            }
        }
        for &element in prefix {
            index.entry(element).or_default().push(i as u32);
        }
        found.push(is_duplicate);
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kernels::philox::Philox;

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

    #[test]
    fn normalization_drops_case_digits_and_punctuation() {
        let check = |text: &str, expected: &str| assert_eq!(normalize(text), expected);
        check("  It's 10 O'Clock,\n\tÜBER-all! ", "its oclock überall");
        check("123 456", "");
        check("", "");
        check("日本 語。", "日本 語");
    }

    #[test]
    fn duplicates_equal_all_pairs() {
        let rng = Philox::new(4, "sets");
        let sets: Vec<Vec<u64>> = (0..120_u64)
            .map(|i| {
                let mut set: Vec<u64> = (0..rng.below(i, 12))
                    .map(|j| rng.below(1000 + i * 16 + j, 16).wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    .map(|x: u64| x.rotate_left(17))
                    .collect();
                set.sort_unstable();
                set.dedup();
                set
            })
            .filter(|set| !set.is_empty())
            .collect();
        for threshold in [0.3, 0.6, 1.0] {
            let expected: Vec<bool> = (0..sets.len())
                .map(|i| (0..i).any(|j| jaccard(&sets[i], &sets[j]) >= threshold))
                .collect();
            assert!(expected.iter().any(|x| *x) && !expected.iter().all(|x| *x));
            assert_eq!(duplicates(&sets, threshold), expected);
        }
    }
}
