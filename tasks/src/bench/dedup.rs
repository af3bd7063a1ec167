//! `sbp bench dedup`: cutting token ids into windows, and minima over them.

use kernels::isa::Isa;
use kernels::minhash::{Functions, windows};

use super::text::Texts;
use super::{Figures, rounded, timed};
use crate::shingle;

/// Tokens of a window, as in the paper's filters.
const WINDOW: usize = shingle::WINDOW_TOKENS;
/// Hash functions of a signature, as in the peers' figures.
const N_FUNCTIONS: usize = 128;
/// Passes over the text; the fastest counts, because other work only ever slows one.
const N_PASSES: usize = 5;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Text of the signatures, in 10^6 bytes.
    pub mb: f64,
    /// Seed of the text.
    pub seed: u64,
}

/// Runs the bench, on one thread.
pub fn measure(options: Options) -> Figures {
    let texts = Texts::new(options.seed);
    let (mut n_bytes, mut documents) = (0, Vec::new());
    for i in 0.. {
        if n_bytes as f64 >= options.mb * 1e6 {
            break;
        }
        let text = texts.prose(i, 800);
        n_bytes += text.len();
        documents.push(text.split_whitespace().map(word_id).collect::<Vec<u32>>());
    }
    let n_ids: usize = documents.iter().map(Vec::len).sum();
    let mut shingles: Vec<Vec<u64>> = documents.iter().map(|_| Vec::new()).collect();
    let windows_s = fastest(|| {
        for (ids, hashes) in documents.iter().zip(&mut shingles) {
            hashes.clear();
            windows(ids, WINDOW, hashes);
        }
    });
    let functions = Functions::new(options.seed, N_FUNCTIONS);
    let isa = Isa::best();
    let mut minima = vec![0; N_FUNCTIONS];
    let mut folded = 0_u32;
    let minima_s = fastest(|| {
        for hashes in &shingles {
            functions.minima(isa, hashes, &mut minima);
            folded ^= minima[0];
        }
    });
    vec![
        ("text_mb", rounded(n_bytes as f64 / 1e6)),
        ("documents", documents.len() as f64),
        ("shingles", shingles.iter().map(Vec::len).sum::<usize>() as f64),
        ("functions", N_FUNCTIONS as f64),
        ("minhash_mb_per_s_core", rounded(n_bytes as f64 / 1e6 / minima_s)),
        ("shingle_mb_per_s_core", rounded(4.0 * n_ids as f64 / 1e6 / windows_s)),
        ("checksum", f64::from(folded)),
    ]
}

fn word_id(word: &str) -> u32 {
    word.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn fastest(mut pass: impl FnMut()) -> f64 {
    (0..N_PASSES).map(|_| timed(&mut pass).1).fold(f64::INFINITY, f64::min)
}
