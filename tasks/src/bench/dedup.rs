//! `sbp bench dedup`: cutting token ids into windows, minima over them, and the paper's figure of
//! duplicates among a million documents.

use std::convert::Infallible;

use engine::task::Failure;
use engine::usage::peak_resident_mib;
use kernels::Pool;
use kernels::isa::Isa;
use kernels::minhash::{Functions, windows};
use kernels::philox::Philox;

use super::text::Texts;
use super::{Figures, rounded, timed};
use crate::measure_quality::{DUPLICATE_JACCARD, DUPLICATE_WORDS};
use crate::shingle::{self, duplicates};

/// Tokens of a window, as in the paper's filters.
const WINDOW: usize = shingle::WINDOW_TOKENS;
/// Hash functions of a signature, as in the peers' figures.
const N_FUNCTIONS: usize = 128;
/// Passes over the text; the fastest counts, because other work only ever slows one.
const N_PASSES: usize = 5;
/// Documents whose signatures are compared with those of the portable path.
const N_CHECKED: usize = 64;
/// Words of a document among which duplicates are looked for: 828 tokens are the mean of the paper's
/// corpus.
const DUPLICATE_DOCUMENT_WORDS: usize = 640;
/// Documents in a batch.
const BATCH: usize = 2048;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Text of the signatures, in 10^6 bytes.
    pub mb: f64,
    /// Documents among which duplicates are looked for; 0 for none.
    pub n_documents: usize,
    /// Threads that look for them; signatures are measured on one.
    pub n_threads: usize,
    /// Seed of the text.
    pub seed: u64,
}

/// Runs the bench.
///
/// # Errors
/// When a signature differs from that of the portable path, or other duplicates are found than were
/// planted.
pub fn measure(options: Options) -> Result<Figures, Failure> {
    let mut figures = signatures(options)?;
    if options.n_documents > 0 {
        figures.extend(planted(options)?);
    }
    figures.push(("peak_rss_mib", rounded(peak_resident_mib())));
    Ok(figures)
}

fn signatures(options: Options) -> Result<Figures, Failure> {
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
    let mut minima = vec![0; N_FUNCTIONS];
    let mut folded = 0_u32;
    let minima_s = fastest(|| {
        for hashes in &shingles {
            functions.minima(Isa::best(), hashes, &mut minima);
            folded ^= minima[0];
        }
    });
    std::hint::black_box(folded);
    let (portable_isa, mut portable) = (portable_isa(), vec![0; N_FUNCTIONS]);
    for (i, hashes) in shingles.iter().take(N_CHECKED).enumerate() {
        functions.minima(Isa::best(), hashes, &mut minima);
        functions.minima(portable_isa, hashes, &mut portable);
        if minima != portable {
            let message = format!("the signature of document {i} is not that of the portable path");
            return Err(Failure::permanent(message));
        }
    }
    Ok(vec![
        ("text_mb", rounded(n_bytes as f64 / 1e6)),
        ("documents", documents.len() as f64),
        ("shingles", shingles.iter().map(Vec::len).sum::<usize>() as f64),
        ("functions", N_FUNCTIONS as f64),
        ("minhash_mb_per_s_core", rounded(n_bytes as f64 / 1e6 / minima_s)),
        ("shingle_mb_per_s_core", rounded(4.0 * n_ids as f64 / 1e6 / windows_s)),
        ("checked_signatures", shingles.len().min(N_CHECKED) as f64),
    ])
}

fn portable_isa() -> Isa {
    *Isa::available().last().expect("the portable one is always there")
}

fn word_id(word: &str) -> u32 {
    word.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn fastest(mut pass: impl FnMut()) -> f64 {
    (0..N_PASSES).map(|_| timed(&mut pass).1).fold(f64::INFINITY, f64::min)
}

/// How `measure_quality` looks for duplicates, among documents of which some repeat an earlier one
/// for the most part. The text is made anew for each pass, which is not counted.
fn planted(options: Options) -> Result<Figures, Failure> {
    let pool = Pool::new(options.n_threads);
    let (texts, n) = (Copies::new(options.seed), options.n_documents);
    let (mut made_cpu_s, mut made_wall_s, mut n_bytes) = (0.0, 0.0, 0);
    let (found, cpu_s, wall_s) = timed(|| {
        duplicates::find::<Infallible>(&pool, n, DUPLICATE_JACCARD, |wanted, visit| {
            n_bytes = 0;
            for start in (0..n).step_by(BATCH) {
                let mut batch = vec![String::new(); BATCH.min(n - start)];
                let ((), cpu_s, wall_s) = timed(|| {
                    pool.for_chunks(&mut batch, 16, |chunk, batch| {
                        for (i, text) in batch.iter_mut().enumerate() {
                            *text = texts.document(start + chunk * 16 + i);
                        }
                    });
                });
                (made_cpu_s, made_wall_s) = (made_cpu_s + cpu_s, made_wall_s + wall_s);
                n_bytes += batch.iter().map(String::len).sum::<usize>();
                let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
                visit(&duplicates::windows(&pool, &batch, &wanted[start..], DUPLICATE_WORDS));
            }
            Ok(())
        })
    });
    let found = found.unwrap_or_else(|never| match never {});
    if let Some(i) = (0..n).find(|&i| found[i] != texts.source(i).is_some()) {
        let what = if found[i] { "is" } else { "is not" };
        let message =
            format!("document {i} {what} found to be a duplicate, and was made otherwise");
        return Err(Failure::permanent(message));
    }
    let n_found = found.iter().filter(|found| **found).count();
    Ok(vec![
        ("duplicate_documents", n as f64),
        ("duplicate_text_mb", rounded(n_bytes as f64 / 1e6)),
        ("duplicate_found", n_found as f64),
        ("duplicate_share", rounded(n_found as f64 / n as f64)),
        ("duplicate_cpu_s", rounded(cpu_s - made_cpu_s)),
        ("duplicate_wall_s", rounded(wall_s - made_wall_s)),
        ("duplicate_threads", options.n_threads as f64),
    ])
}

/// Documents, of which one in a hundred or so repeats an earlier one but for some words.
struct Copies {
    /// The word of each of 2^16 equal shares of a Zipf distribution.
    words: Vec<String>,
    rng: Philox,
}

impl Copies {
    fn new(seed: u64) -> Self {
        let texts = Texts::new(seed);
        let words = (0..1 << 16).map(|i| texts.word((f64::from(i) + 0.5) / 65536.0).to_owned());
        Self { words: words.collect(), rng: Philox::new(seed, "bench copies") }
    }

    /// The document that `i` repeats; it repeats none itself.
    fn source(&self, i: usize) -> Option<usize> {
        let is_copy = |i: usize| i > 0 && self.rng.below(i as u64, 120) == 0;
        if !is_copy(i) {
            return None;
        }
        let earlier = self.rng.fork(1).below(i as u64, i as u64) as usize;
        (!is_copy(earlier)).then_some(earlier)
    }

    fn document(&self, i: usize) -> String {
        let source = self.source(i);
        let mut text = String::with_capacity(8 * DUPLICATE_DOCUMENT_WORDS);
        self.write(2 * source.unwrap_or(i) as u64, DUPLICATE_DOCUMENT_WORDS, &mut text);
        if source.is_some() {
            // Up to a sixth as many words more: similarities from 0.85 on.
            let n_more = self.rng.below(i as u64, DUPLICATE_DOCUMENT_WORDS as u64 / 6);
            self.write(2 * i as u64 + 1, n_more as usize, &mut text);
        }
        text
    }

    /// Some words of a stream.
    fn write(&self, stream: u64, n_words: usize, text: &mut String) {
        let rng = self.rng.fork(2 + stream);
        let bits =
            (0..).flat_map(|block| rng.block(block)).flat_map(|bits| [bits & 0xffff, bits >> 16]);
        for bits in bits.take(n_words) {
            text.push_str(&self.words[bits as usize]);
            text.push(' ');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_duplicates_are_found() {
        let options = Options { mb: 0.1, n_documents: 3000, n_threads: 2, seed: 3 };
        let figures = measure(options).unwrap();
        let figure = |name: &str| figures.iter().find(|f| f.0 == name).unwrap().1;
        assert!(figure("duplicate_found") > 10.0 && figure("checked_signatures") > 5.0);
        // Made with the same seed, they are the same.
        let (a, b) = (Copies::new(3), Copies::new(3));
        assert_eq!(a.document(2999), b.document(2999));
    }
}
