//! The random numbers of Python's `random.Random`, which choose lm-evaluation-harness' examples.

/// Numbers in the generator's state.
const N: usize = 624;
const M: usize = 397;

/// `random.Random(seed)` of `CPython`.
///
/// # Source
/// Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8, 1998, seeded by an array; the sampling
/// as documented for Python's `random.sample`.
pub(super) struct PythonRandom {
    state: [u32; N],
    index: usize,
}

impl PythonRandom {
    /// The generator of a seed below 2^32.
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [0_u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = step(state[i - 1], 1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        for _ in 0..N {
            state[i] = (state[i] ^ step(state[i - 1], 1_664_525)).wrapping_add(seed);
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            state[i] = (state[i] ^ step(state[i - 1], 1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 1 << 31;
        Self { state, index: N }
    }

    fn next(&mut self) -> u32 {
        if self.index == N {
            for i in 0..N {
                let joined =
                    (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = if joined & 1 == 0 { 0 } else { 0x9908_b0df };
                self.state[i] = self.state[(i + M) % N] ^ (joined >> 1) ^ twist;
            }
            self.index = 0;
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number below `n`, `n` above 0 and below 2^32.
    fn below(&mut self, n: usize) -> usize {
        let n_bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.next() >> (32 - n_bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// Indices of `random.sample(population, k)` from a population of `n`.
    ///
    /// # Panics
    /// When `k` is above `n`.
    pub(super) fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "{k} of {n}");
        let mut set_size = 21;
        if k > 5 {
            // 4 to the power of ceil(log4(3 k)).
            let mut power = 1;
            while power < 3 * k {
                power *= 4;
            }
            set_size += power;
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let chosen = pool[j];
                    pool[j] = pool[n - i - 1];
                    chosen
                })
                .collect();
        }
        let mut chosen: Vec<usize> = Vec::with_capacity(k);
        while chosen.len() < k {
            let j = self.below(n);
            if !chosen.contains(&j) {
                chosen.push(j);
            }
        }
        chosen
    }
}

fn step(before: u32, factor: u32) -> u32 {
    factor.wrapping_mul(before ^ (before >> 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python 3.11 gives for `r = random.Random(1234)`: `getrandbits(32)` three times, then
    /// `sample(range(n), k)` for several n and k.
    #[test]
    fn numbers_and_samples_are_pythons() {
        let mut random = PythonRandom::new(1234);
        let numbers: Vec<u32> = (0..3).map(|_| random.next()).collect();
        assert_eq!(numbers, [4_150_886_329, 3_342_196_574, 1_892_932_127]);
        assert_eq!(random.sample(100, 5), [14, 0, 11, 74, 4]);
        assert_eq!(random.sample(10, 3), [1, 9, 5]);
        assert_eq!(random.sample(5000, 2), [1939, 142]);
        let many = [
            0, 25, 29, 11, 20, 19, 15, 24, 14, 4, 2, 5, 3, 27, 23, 21, 17, 1, 10, 8, 7, 12, 26, 28,
            6,
        ];
        assert_eq!(random.sample(30, 25), many);
    }
}
