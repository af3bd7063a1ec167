//! Shingle sets of texts and their `MinHash` bands.
//!
//! # Source
//! Broder, "On the resemblance and containment of documents", 1997. Band sizes: datatrove 0.10.1,
//! `pipeline/dedup/minhash.py`.

use kernels::isa::Isa;
use kernels::minhash::Functions;

use crate::words;

/// Words in a shingle.
const SHINGLE_WORDS: usize = 5;

/// The words of a text.
pub(super) struct Words {
    /// With a blank after each.
    normalized: String,
    hashes: Vec<u64>,
}

impl Words {
    /// The words of `text`.
    pub(super) fn of(text: &str) -> Self {
        let mut hashes = Vec::with_capacity(text.len() / 5);
        let normalized = words::read(text, |word| hashes.push(words::hash(word.as_bytes())));
        Self { normalized, hashes }
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Hashes of the 5-word shingles, sorted and distinct; fewer words are one shingle.
    pub(super) fn shingles(&self) -> Vec<u64> {
        if self.is_empty() {
            return Vec::new();
        }
        let width = self.hashes.len().min(SHINGLE_WORDS);
        let mut sorted: Vec<u64> =
            self.hashes.windows(width).map(|window| combine(window.iter().copied())).collect();
        sorted.sort_unstable();
        sorted.dedup();
        sorted
    }

    /// Digest of the normalised text. A text of symbols alone is equal to its like only.
    pub(super) fn text_digest(&self, text: &str) -> u128 {
        let equal = if self.is_empty() { text } else { &self.normalized };
        let digest = blake3::hash(equal.as_bytes());
        u128::from_le_bytes(*digest.as_bytes().first_chunk().expect("32 bytes"))
    }
}

fn combine(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0x2545_f491_4f6c_dd1d, |hash: u64, value| {
        words::mix(hash.rotate_left(23) ^ value, 0xd6e8_feb8_6659_fd93)
    })
}

/// The hash functions of a signature.
#[derive(Clone)]
pub(super) struct MinHash {
    functions: Functions,
    isa: Isa,
    band_values: usize,
}

impl MinHash {
    pub(super) fn new(seed: u64, n_bands: usize, band_values: usize) -> Self {
        let functions = Functions::new(seed, n_bands * band_values);
        Self { functions, isa: Isa::best(), band_values }
    }

    /// One hash for each band of the signature of a set of shingles.
    pub(super) fn bands(&self, shingles: &[u64]) -> Vec<u64> {
        let mut minima = vec![0; self.functions.n()];
        self.functions.minima(self.isa, shingles, &mut minima);
        let band = |values: &[u32]| combine(values.iter().map(|&value| u64::from(value)));
        minima.chunks(self.band_values).map(band).collect()
    }
}

#[cfg(test)]
mod tests {
    use kernels::philox::Philox;

    use super::*;
    use crate::shingle::jaccard;

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
                    sorted
                };
                let (a, b) = (set(0), set(1));
                assert!((jaccard(&a, &b) - similarity).abs() < 1e-9);
                let minhash = MinHash::new(trial, 14, 8);
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
        let digest = |text: &str| Words::of(text).text_digest(text);
        assert_eq!(digest("One, TWO\nthree"), digest("one two three!"));
        assert_ne!(digest("one twothree"), digest("one two three"));
        assert_ne!(digest("!!"), digest("??"));
        assert_eq!(Words::of("a b c").shingles().len(), 1);
        assert_eq!(Words::of("a b c d e f a b c d e").shingles().len(), 6);
    }
}
