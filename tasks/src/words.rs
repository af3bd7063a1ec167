//! The words of a text: runs of letters and digits, in lower case.
//!
//! Every task that compares texts by their words goes by this rule, except where the paper has letters
//! alone ([`shingle::normalize`](crate::shingle::normalize)).

/// Visits the words of a text in order, and gives them with a blank after each.
pub(crate) fn read(text: &str, mut visit: impl FnMut(&str)) -> String {
    let mut words = String::with_capacity(text.len() + 1);
    let mut start = 0;
    for c in text.chars().chain([' ']) {
        // Most of most texts, and cheaper to tell.
        if c.is_ascii_alphanumeric() {
            words.push(c.to_ascii_lowercase());
        } else if !c.is_ascii() && c.is_alphanumeric() {
            words.extend(c.to_lowercase());
        } else if words.len() > start {
            visit(&words[start..]);
            words.push(' ');
            start = words.len();
        }
    }
    words
}

/// A hash of a word.
pub(crate) fn hash(word: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let (eights, rest) = word.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let start = mix(word.len() as u64 ^ 0xcbf2_9ce4_8422_2325, FACTOR);
    let eights = eights.iter().chain([&last]);
    eights.fold(start, |hash, eight| mix(hash ^ u64::from_le_bytes(*eight), FACTOR))
}

/// The same in 32 bits, for windows of words.
pub(crate) fn hash_u32(word: &[u8]) -> u32 {
    let hash = hash(word);
    (hash ^ (hash >> 32)) as u32
}

/// Multiplies to 128 bits and folds the halves: every input bit reaches every output bit.
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let joined = read(text, |word| words.push(word.to_owned()));
        assert_eq!(joined, words.iter().flat_map(|word| [word, " "]).collect::<String>());
        words
    }

    proptest! {
        /// The rule as it is said, on any text.
        #[test]
        fn words_are_runs_of_letters_and_digits(text in "[a-zA-Z0-9 .,'\n_ßÜΣ日本İ٣½-]{0,60}|\\PC{0,40}") {
            let runs = text.split(|c: char| !c.is_alphanumeric()).filter(|run| !run.is_empty());
            let lower = |run: &str| run.chars().flat_map(char::to_lowercase).collect::<String>();
            prop_assert_eq!(words(&text), runs.map(lower).collect::<Vec<_>>());
        }
    }

    #[test]
    fn hashes_tell_words_apart() {
        let words: Vec<String> = (0..50_000).map(|i| format!("w{i}")).collect();
        let n_distinct = words.iter().map(|word| hash(word.as_bytes())).collect::<BTreeSet<_>>();
        assert_eq!(n_distinct.len(), words.len());
        assert_ne!(hash(b"a"), hash(b"a\0"));
    }
}
