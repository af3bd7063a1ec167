//! Counter-based random numbers: a value is a pure function of (seed, purpose, index).
//!
//! No state is carried from one draw to the next, so results do not depend on batch composition,
//! order or resume. The generator is Philox4x32-10.
//!
//! # Source
//! Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants of Random123.

/// A stream of random numbers for one (seed, purpose).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    stream: u64,
}

impl Philox {
    /// The stream of `seed` for `purpose`; equal arguments give equal numbers for ever.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a spreads the purpose's name over the stream half of the counter.
        let stream = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        Self { key: [seed as u32, (seed >> 32) as u32], stream }
    }

    /// The sub-stream for item `index`, such as one document or one draw.
    #[must_use]
    pub fn fork(self, index: u64) -> Self {
        let [a, b, c, d] = self.block(index);
        Self {
            key: [self.key[0] ^ a, self.key[1] ^ b],
            stream: self.stream ^ (u64::from(c) | u64::from(d) << 32),
        }
    }

    /// The stream as two numbers, for kernels: key, then the stream half of the counter.
    pub(crate) fn raw(self) -> [u64; 2] {
        [u64::from(self.key[0]) | u64::from(self.key[1]) << 32, self.stream]
    }

    /// Four 32-bit numbers at position `index`.
    pub fn block(self, index: u64) -> [u32; 4] {
        let counter =
            [index as u32, (index >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        philox4x32_10(counter, self.key)
    }

    /// A 64-bit number at position `index`.
    pub fn u64(self, index: u64) -> u64 {
        let [a, b, _, _] = self.block(index);
        u64::from(a) | u64::from(b) << 32
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn uniform(self, index: u64) -> f64 {
        (self.u64(index) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// An integer in `[0, n)`, without bias beyond 2^-64.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(self, index: u64, n: u64) -> u64 {
        assert!(n > 0, "no integer lies below 0");
        ((u128::from(self.u64(index)) * u128::from(n)) >> 64) as u64
    }

    /// A standard normal number (Box-Muller, cosine branch).
    pub fn normal(self, index: u64) -> f64 {
        let [a, b, c, d] = self.block(index);
        let unit = |lo: u32, hi: u32| {
            ((u64::from(lo) | u64::from(hi) << 32) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
        };
        let radius = (-2.0 * (1.0 - unit(a, b)).ln()).sqrt();
        radius * (std::f64::consts::TAU * unit(c, d)).cos()
    }

    /// A uniformly random order of `0..n` (Fisher-Yates).
    pub fn permutation(self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64, i as u64 + 1) as usize);
        }
        order
    }
}

fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let left = u64::from(counter[0]) * 0xD251_1F53;
        let right = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (right >> 32) as u32 ^ counter[1] ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ counter[3] ^ key[1],
            left as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123's `kat_vectors`.
    #[test]
    fn known_answers() {
        let check = |counter, key, expected: [u32; 4]| {
            assert_eq!(philox4x32_10(counter, key), expected);
        };
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn permutation_is_one() {
        let mut order = Philox::new(7, "test").permutation(1000);
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(i, &x)| i == x));
    }

    #[test]
    fn normal_has_unit_moments() {
        let rng = Philox::new(1, "normal");
        let draws: Vec<f64> = (0..100_000).map(|i| rng.normal(i)).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
