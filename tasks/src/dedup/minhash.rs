//! Shingle sets of texts and their `MinHash` bands.
//!
//! # Source
//! Broder, "On the resemblance and containment of documents", 1997. Band sizes: datatrove 0.10.1,
//! `pipeline/dedup/minhash.py`.

use kernels::isa::Isa;
use kernels::minhash::Functions;

/// Words in a shingle.
const SHINGLE_WORDS: usize = 5;
/// Bands of a signature.
pub(super) const N_BANDS: usize = 14;
/// Values in a band.
const BAND_VALUES: usize = 8;

/// One hash for each band of a signature.
pub(super) type Bands = [u64; N_BANDS];

/// The set of hashed 5-word shingles of a text; a shorter text is one shingle.
#[derive(Default)]
pub(super) struct Shingles {
    sorted: Vec<u64>,
    text_digest: u128,
}

impl Shingles {
    /// The shingles of `text`'s words: runs of letters and digits, in lower case.
    pub(super) fn of(text: &str) -> Self {
        let (normalized, words) = words(text);
        let n_words = words.len().min(SHINGLE_WORDS);
        let mut sorted: Vec<u64> =
            if n_words == 0 { Vec::new() } else { words.windows(n_words).map(combine).collect() };
        sorted.sort_unstable();
        sorted.dedup();
        // A text of symbols alone is equal to its like only.
        let digest = blake3::hash(if words.is_empty() { text } else { &normalized }.as_bytes());
        let text_digest = u128::from_le_bytes(*digest.as_bytes().first_chunk().expect("32 bytes"));
        Self { sorted, text_digest }
    }

    /// The hashes, sorted and distinct.
    pub(super) fn as_slice(&self) -> &[u64] {
        &self.sorted
    }

    /// Digest of the normalised text.
    pub(super) fn text_digest(&self) -> u128 {
        self.text_digest
    }
}

/// Multiplies to 128 bits and folds the halves: every input bit reaches every output bit.
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// The words of a text in lower case with a blank after each, and their hashes.
fn words(text: &str) -> (String, Vec<u64>) {
    let mut normalized = String::with_capacity(text.len() + 1);
    let mut hashes = Vec::with_capacity(text.len() / 5);
    let mut start = 0;
    for c in text.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() {
            normalized.push(c.to_ascii_lowercase());
        } else if !c.is_ascii() && c.is_alphanumeric() {
            normalized.extend(c.to_lowercase());
        } else if normalized.len() > start {
            hashes.push(word_hash(&normalized.as_bytes()[start..]));
            normalized.push(' ');
            start = normalized.len();
        }
    }
    (normalized, hashes)
}

fn word_hash(word: &[u8]) -> u64 {
    let (eights, rest) = word.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let start = mix(word.len() as u64 ^ 0xcbf2_9ce4_8422_2325, 0x9e37_79b9_7f4a_7c15);
    eights
        .iter()
        .chain([&last])
        .fold(start, |hash, eight| mix(hash ^ u64::from_le_bytes(*eight), 0x9e37_79b9_7f4a_7c15))
}

fn combine(words: &[u64]) -> u64 {
    words.iter().fold(0x2545_f491_4f6c_dd1d, |hash: u64, &word| {
        mix(hash.rotate_left(23) ^ word, 0xd6e8_feb8_6659_fd93)
    })
}

/// Jaccard similarity of two sorted sets; two empty sets have none.
pub(super) fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut n_common) = (0, 0, 0_usize);
    while i < a.len() && j < b.len() {
        n_common += usize::from(a[i] == b[j]);
        let (x, y) = (a[i], b[j]);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    n_common as f64 / (a.len() + b.len() - n_common).max(1) as f64
}

/// The hash functions of a signature.
pub(super) struct MinHash {
    functions: Functions,
    isa: Isa,
}

impl MinHash {
    pub(super) fn new(seed: u64) -> Self {
        Self { functions: Functions::new(seed, N_BANDS * BAND_VALUES), isa: Isa::best() }
    }

    /// The bands of a set's signature.
    pub(super) fn bands(&self, shingles: &Shingles) -> Bands {
        let mut minima = [0; N_BANDS * BAND_VALUES];
        self.functions.minima(self.isa, shingles.as_slice(), &mut minima);
        let mut bands = [0; N_BANDS];
        for (band, minima) in bands.iter_mut().zip(minima.as_chunks::<BAND_VALUES>().0) {
            *band = combine(&minima.map(u64::from));
        }
        bands
    }
}

#[cfg(test)]
mod tests {
    use kernels::philox::Philox;

    use super::*;

    /// Sets of similarity J become candidates with probability 1 - (1 - J^8)^14, within 3 standard
    /// errors.
    #[test]
    fn candidates_follow_the_s_curve() {
        let n_trials = 400_u64;
        for (n_common, n_own) in [(40, 60), (60, 40), (70, 30), (74, 26), (80, 20), (90, 10)] {
            let similarity = f64::from(n_common) / f64::from(n_common + n_own);
            let mut n_candidates = 0;
            for trial in 0..n_trials {
                let rng = Philox::new(trial, "sets");
                let numbers = |from: u64, n: i32| (0..n as u64).map(move |i| rng.u64(from + i));
                // Each set has the common numbers and half of the others.
                let set = |side: u64| {
                    let own = numbers(1000 * (side + 1), n_own / 2);
                    let mut sorted: Vec<u64> = numbers(0, n_common).chain(own).collect();
                    sorted.sort_unstable();
                    Shingles { sorted, text_digest: 0 }
                };
                let (a, b) = (set(0), set(1));
                assert!((jaccard(a.as_slice(), b.as_slice()) - similarity).abs() < 1e-9);
                let minhash = MinHash::new(trial);
                let (a, b) = (minhash.bands(&a), minhash.bands(&b));
                n_candidates += u64::from(a.iter().zip(&b).any(|(a, b)| a == b));
            }
            let expected = 1.0 - (1.0 - similarity.powi(8)).powi(14);
            let error = (expected * (1.0 - expected) / n_trials as f64).sqrt();
            let found = n_candidates as f64 / n_trials as f64;
            assert!(
                (found - expected).abs() <= 3.0 * error + 1e-3,
                "{similarity} {found} {expected}"
            );
        }
    }

    #[test]
    fn words_decide() {
        let digest = |text: &str| Shingles::of(text).text_digest();
        assert_eq!(digest("One, TWO\nthree"), digest("one two three!"));
        assert_ne!(digest("one twothree"), digest("one two three"));
        assert_ne!(digest("!!"), digest("??"));
        assert_eq!(Shingles::of("a b c").as_slice().len(), 1);
        assert_eq!(Shingles::of("a b c d e f a b c d e").as_slice().len(), 6);
        assert!((jaccard(&[1, 2, 3], &[2, 3, 4]) - 0.5).abs() < 1e-12);
        assert!(jaccard(&[], &[]).abs() < 1e-12);
    }
}
