//! Text for benches: prose, code, emoji, Chinese and noise, from a seed.
//!
//! Words follow Zipf's law over a vocabulary of made-up syllables, so caches and merges meet what they
//! meet in real text: few words often, many seldom.

use kernels::philox::Philox;

const N_WORDS: usize = 40_000;
const N_HAN_WORDS: usize = 20_000;
const EMOJI: [&str; 8] = ["🦀", "😀", "🚀", "👩‍👩‍👧", "❤️", "🇫🇷", "🎉", "🤷🏽"];
const SYLLABLES: [&str; 40] = [
    "a", "an", "ar", "be", "con", "cu", "da", "de", "di", "el", "en", "er", "es", "fi", "ga", "il",
    "in", "ing", "is", "la", "le", "lo", "ma", "men", "mi", "na", "no", "on", "or", "pre", "ra",
    "re", "ri", "sta", "ter", "ti", "tion", "un", "ve", "vo",
];

/// Makes documents.
pub struct Texts {
    seed: u64,
    words: Vec<String>,
    han: Vec<String>,
    /// Cumulative share of words by rank.
    zipf: Vec<f64>,
}

impl Texts {
    /// Documents of `seed`.
    pub fn new(seed: u64) -> Self {
        let rng = Philox::new(seed, "bench words");
        let word = |i: usize| -> String {
            let at = (i as u64) << 8;
            let n = 1 + rng.below(at, 4);
            (1..=n).map(|j| SYLLABLES[rng.below(at + j, 40) as usize]).collect()
        };
        let han = |i: usize| -> String {
            let at = (1 << 40) + ((i as u64) << 8);
            let n = 1 + rng.below(at, 3);
            // Common characters come more often than rare ones, as the square of a uniform number.
            let character = |j: u64| {
                let u = rng.uniform(at + j);
                char::from_u32(0x4e00 + (u * u * 6000.0) as u32).unwrap_or('中')
            };
            (1..=n).map(character).collect()
        };
        let mut sum = 0.0;
        let zipf: Vec<f64> = (1..=N_WORDS)
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        Self {
            seed,
            words: (0..N_WORDS).map(word).collect(),
            han: (0..N_HAN_WORDS).map(han).collect(),
            zipf: zipf.iter().map(|share| share / sum).collect(),
        }
    }

    /// Prose of about `n_words` words: document `i`.
    pub fn prose(&self, i: u64, n_words: usize) -> String {
        let rng = Philox::new(self.seed, "bench prose").fork(i);
        let mut text = String::with_capacity(n_words * 7);
        for at in 0..n_words as u64 {
            let word = self.word(rng.uniform(2 * at));
            match rng.below(2 * at + 1, 40) {
                0 => text.push_str(".\n\n"),
                1..=3 => text.push_str(". "),
                4 | 5 => text.push_str(", "),
                6 => {
                    text.push(' ');
                    text.push_str(&rng.below(at, 2100).to_string());
                    text.push(' ');
                }
                7 => text.push_str("'s "),
                _ => text.push(' '),
            }
            text.push_str(word);
        }
        text
    }

    /// The word at a share of the running text.
    pub(super) fn word(&self, share: f64) -> &str {
        let rank = self.zipf.partition_point(|&c| c < share);
        &self.words[rank.min(N_WORDS - 1)]
    }

    /// A document of about `n_bytes` bytes: of ten, six are prose, two code, one is Chinese, and one
    /// emoji between random bytes as UTF-8 replaces them.
    pub fn mixed(&self, i: u64, n_bytes: usize) -> String {
        match i % 10 {
            0..=5 => self.prose(i, n_bytes / 6),
            6 | 7 => self.code(i, n_bytes),
            8 => self.chinese(i, n_bytes),
            _ => self.noise(i, n_bytes),
        }
    }

    fn code(&self, i: u64, n_bytes: usize) -> String {
        let rng = Philox::new(self.seed, "bench code").fork(i);
        let mut text = String::with_capacity(n_bytes + 80);
        for line in 0.. {
            if text.len() >= n_bytes {
                break;
            }
            let word = |j: u64| self.word(rng.uniform(line * 8 + j));
            text.push_str(&" ".repeat(4 * rng.below(line * 8, 4) as usize));
            let made = match rng.below(line * 8 + 7, 5) {
                0 => format!("fn {}_{}(&self) -> u32 {{\n", word(1), word(2)),
                1 => format!("let {} = self.{}[{}];\n", word(1), word(2), rng.below(line, 512)),
                2 => format!("if {} != {}::{}() {{ return; }}\n", word(1), word(2), word(3)),
                3 => format!("// {} {} {}: {}\n", word(1), word(2), word(3), word(4)),
                _ => "}\n\n".to_owned(),
            };
            text.push_str(&made);
        }
        text
    }

    fn chinese(&self, i: u64, n_bytes: usize) -> String {
        let rng = Philox::new(self.seed, "bench han").fork(i);
        let mut text = String::with_capacity(n_bytes + 16);
        for at in 0.. {
            if text.len() >= n_bytes {
                break;
            }
            let u = rng.uniform(2 * at);
            text.push_str(&self.han[(u * u * u * N_HAN_WORDS as f64) as usize]);
            if rng.below(2 * at + 1, 9) == 0 {
                text.push_str(if at % 3 == 0 { "。" } else { "，" });
            }
        }
        text
    }

    fn noise(&self, i: u64, n_bytes: usize) -> String {
        let rng = Philox::new(self.seed, "bench noise").fork(i);
        let mut text = String::with_capacity(n_bytes + 64);
        for at in 0.. {
            if text.len() >= n_bytes {
                break;
            }
            let bytes = rng.block(2 * at).map(u32::to_le_bytes);
            text.push_str(&String::from_utf8_lossy(bytes.as_flattened()));
            text.push_str(EMOJI[rng.below(2 * at + 1, 8) as usize]);
            text.push(' ');
        }
        text
    }
}
