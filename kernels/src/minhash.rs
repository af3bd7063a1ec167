//! Window hashes of token ids, and minima of many hash functions over a set of them.
//!
//! Two sets of Jaccard similarity J have the same minimum under a random order of their elements
//! with probability J, so signatures of minima tell which sets are worth comparing.
//!
//! # Source
//! Broder, "On the resemblance and containment of documents", 1997.

use crate::isa::{Isa, per_isa};
use crate::philox::Philox;

/// Multiplier of the rolling hash; odd, so that it has an inverse.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// Appends a hash of every window of `width` ids, in order; of fewer ids none.
///
/// `hash = mix(sum_j (id[i + j] + 1) * BASE^(width - 1 - j) mod 2^64)`: a window's hash follows from the
/// one before in a multiplication and two additions. Equal windows have equal hashes; different ones
/// rarely do, so what is decided on hashes alone must bear a mistake in 2^-64 of all pairs.
///
/// # Panics
/// When `width` is 0.
pub fn windows(ids: &[u32], width: usize, hashes: &mut Vec<u64>) {
    assert!(width > 0, "windows have ids");
    if ids.len() < width {
        return;
    }
    hashes.reserve(ids.len() - width + 1);
    let term = |id: u32| u64::from(id) + 1;
    let mut sum =
        ids[..width].iter().fold(0_u64, |sum, &id| sum.wrapping_mul(BASE).wrapping_add(term(id)));
    hashes.push(mix(sum));
    let leaving = (0..width).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    let rest = ids[width..].iter().zip(ids);
    hashes.extend(rest.map(|(&new, &old)| {
        // What enters and what leaves do not wait for the sum: one product is all that does.
        let change = term(new).wrapping_sub(term(old).wrapping_mul(leaving));
        sum = sum.wrapping_mul(BASE).wrapping_add(change);
        mix(sum)
    }));
}

/// Every bit of `x` reaches every bit of the result (the finalizer of `MurmurHash3`).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Hash functions that are computed side by side: four registers of AVX-512.
const SIDE_BY_SIDE: usize = 64;

/// A family of hash functions on 64-bit elements.
#[derive(Clone, Debug)]
pub struct Functions {
    /// `[adds, multipliers]` of 64 functions each; the last group is padded.
    groups: Vec<[[u32; SIDE_BY_SIDE]; 2]>,
    n: usize,
}

impl Functions {
    /// `n` functions.
    pub fn new(seed: u64, n: usize) -> Self {
        let rng = Philox::new(seed, "minhash functions");
        let group = |g: usize| {
            let at = |i: usize| rng.u64((g * SIDE_BY_SIDE + i) as u64);
            [
                std::array::from_fn(|i| at(i) as u32),
                // Odd multipliers lose nothing.
                std::array::from_fn(|i| (at(i) >> 32) as u32 | 1),
            ]
        };
        Self { groups: (0..n.div_ceil(SIDE_BY_SIDE)).map(group).collect(), n }
    }

    /// Functions in the family.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Writes the lowest hash of the elements under each function; of an empty set `u32::MAX`.
    ///
    /// `hash[f](x) = (fold(x) ^ add[f]) * multiplier[f] mod 2^32`, where `fold(x) = x ^ x >> 32`.
    /// Elements are hashes already: their bits are taken as random.
    ///
    /// # Panics
    /// When `minima` is not as long as the family.
    pub fn minima(&self, isa: Isa, elements: &[u64], minima: &mut [u32]) {
        assert_eq!(minima.len(), self.n, "one minimum a function");
        for (group, minima) in self.groups.iter().zip(minima.chunks_mut(SIDE_BY_SIDE)) {
            let mut found = [u32::MAX; SIDE_BY_SIDE];
            group_minima(isa, &group[0], &group[1], elements, &mut found);
            minima.copy_from_slice(&found[..minima.len()]);
        }
    }
}

per_isa! {
    fn group_minima<M>(
        adds: &[u32; SIDE_BY_SIDE],
        multipliers: &[u32; SIDE_BY_SIDE],
        elements: &[u64],
        found: &mut [u32; SIDE_BY_SIDE],
    ) {
        // A local copy can stay in registers.
        let mut minima = *found;
        for &element in elements {
            let folded = (element ^ (element >> 32)) as u32;
            for f in 0..SIDE_BY_SIDE {
                let hash = (folded ^ adds[f]).wrapping_mul(multipliers[f]);
                minima[f] = minima[f].min(hash);
            }
        }
        *found = minima;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_told_apart() {
        let ids: Vec<u32> = [1, 2, 3, 1, 2, 3, 4, 0, 0, 0, 0].to_vec();
        let mut hashes = Vec::new();
        windows(&ids, 3, &mut hashes);
        assert_eq!(hashes.len(), ids.len() - 2);
        for (i, a) in hashes.iter().enumerate() {
            for (j, b) in hashes.iter().enumerate() {
                assert_eq!(a == b, ids[i..i + 3] == ids[j..j + 3], "{i} {j}");
            }
        }
        let mut none = Vec::new();
        windows(&ids[..2], 3, &mut none);
        assert!(none.is_empty());
        let (mut short, mut long) = (Vec::new(), Vec::new());
        windows(&[0, 5], 2, &mut short);
        windows(&[0, 0, 5], 3, &mut long);
        assert_ne!(short, long);
    }

    #[test]
    fn minima_are_those_of_the_definition() {
        let rng = Philox::new(4, "elements");
        for n in [1, 64, 112, 128] {
            let functions = Functions::new(9, n);
            for n_elements in [0, 1, 100] {
                let elements: Vec<u64> = (0..n_elements).map(|i| rng.u64(i)).collect();
                let group = |f: usize| &functions.groups[f / SIDE_BY_SIDE];
                let expected: Vec<u32> = (0..n)
                    .map(|f| {
                        let [add, multiplier] = group(f).map(|values| values[f % SIDE_BY_SIDE]);
                        let hash = |x: &u64| ((x ^ x >> 32) as u32 ^ add).wrapping_mul(multiplier);
                        elements.iter().map(hash).min().unwrap_or(u32::MAX)
                    })
                    .collect();
                for isa in Isa::available() {
                    let mut minima = vec![0; n];
                    functions.minima(isa, &elements, &mut minima);
                    assert_eq!(minima, expected);
                }
            }
        }
    }

    /// The share of equal minima estimates the similarity, within four standard errors.
    #[test]
    fn equal_minima_estimate_similarity() {
        for (n_common, n_own) in [(20, 180), (100, 100), (180, 20)] {
            let (n_trials, n) = (100_u64, 128_usize);
            let mut n_equal = 0;
            for trial in 0..n_trials {
                let rng = Philox::new(trial, "sets");
                let set = |side: u64| -> Vec<u64> {
                    let own = (0..n_own / 2).map(|i| rng.u64(1000 * (side + 1) + i));
                    (0..n_common).map(|i| rng.u64(i)).chain(own).collect()
                };
                let functions = Functions::new(trial, n);
                let mut minima = [vec![0; n], vec![0; n]];
                for (side, minima) in minima.iter_mut().enumerate() {
                    functions.minima(Isa::best(), &set(side as u64), minima);
                }
                n_equal += minima[0].iter().zip(&minima[1]).filter(|(a, b)| a == b).count();
            }
            let similarity = n_common as f64 / (n_common + n_own) as f64;
            let n_draws = n_trials as f64 * n as f64;
            let found = n_equal as f64 / n_draws;
            let error = (similarity * (1.0 - similarity) / n_draws).sqrt();
            assert!((found - similarity).abs() < 4.0 * error, "{found} {similarity} {error}");
        }
    }
}
