//! `sbp bench bpe`: training a tokenizer and encoding with it, on mixed text.

use std::path::PathBuf;

use engine::task::Failure;

use super::text::Texts;
use super::{Figures, rounded, timed};
use crate::corpus::Corpus;
use crate::tokenizer::Tokenizer;
use crate::train_tokenizer;

/// Bytes of a generated document.
const DOCUMENT_BYTES: usize = 4096;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens in the vocabulary.
    pub vocab_size: u32,
    /// Text that is trained on, in 10^6 bytes.
    pub train_mb: f64,
    /// Text that is encoded, in 10^6 bytes.
    pub encode_mb: f64,
    /// Text whose ids are compared with those of the `tokenizers` crate, in 10^6 bytes.
    pub check_mb: f64,
    /// Threads of the training; encoding is measured on one.
    pub n_threads: usize,
    /// Seed of the generated text.
    pub seed: u64,
    /// Text of a `corpus` artifact instead of generated text.
    pub corpus: Option<PathBuf>,
    /// A folder for the tokenizer.
    pub dir: PathBuf,
}

/// Runs the bench.
///
/// # Errors
/// When the corpus cannot be read, the text is too little for the vocabulary, or an id differs from
/// that of the `tokenizers` crate.
pub fn measure(options: &Options) -> Result<Figures, Failure> {
    let train = texts(options, 0, options.train_mb)?;
    let train_mb = megabytes(&train);
    let (trained, cpu_s, wall_s) = timed(|| {
        train_tokenizer::train_texts(&train, options.vocab_size, options.n_threads, &options.dir)
    });
    trained?;
    let after_training_mib = engine::usage::peak_resident_mib();
    drop(train);
    let tokenizer = Tokenizer::open(&options.dir)?;

    let text = texts(options, 1 << 32, options.encode_mb)?;
    let encode_mb = megabytes(&text);
    let mut speeds = Vec::new();
    let mut n_tokens = 0;
    // The first pass meets an empty cache; it is the figure.
    for _ in 0..2 {
        let (n, cpu_s, _) = timed(|| -> Result<usize, Failure> {
            text.iter().map(|text| Ok(tokenizer.encode(text)?.len())).sum()
        });
        n_tokens = n?;
        speeds.push(encode_mb / cpu_s);
    }
    let checked = check(&tokenizer, &text, options.check_mb)?;
    Ok(vec![
        ("vocab_size", f64::from(tokenizer.vocab_size())),
        ("train_mb", rounded(train_mb)),
        ("train_mb_per_s", rounded(train_mb / cpu_s)),
        ("train_wall_s", rounded(wall_s)),
        ("train_peak_rss_mib", rounded(after_training_mib)),
        ("encode_mb", rounded(encode_mb)),
        ("encode_mb_per_s_core", rounded(speeds[0])),
        ("encode_again_mb_per_s_core", rounded(speeds[1])),
        ("definition_mb_per_s_core", rounded(checked.1)),
        ("checked_mb", rounded(checked.0)),
        ("bytes_per_token", rounded(encode_mb * 1e6 / n_tokens.max(1) as f64)),
        ("peak_rss_mib", rounded(engine::usage::peak_resident_mib())),
    ])
}

fn megabytes(texts: &[String]) -> f64 {
    texts.iter().map(String::len).sum::<usize>() as f64 / 1e6
}

/// Texts of about `mb` megabytes: of the corpus, or generated ones from number `first`.
fn texts(options: &Options, first: u64, mb: f64) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    let mut left = mb * 1e6;
    if let Some(dir) = &options.corpus {
        for document in Corpus::open(dir)?.documents() {
            if left <= 0.0 {
                break;
            }
            let text = document?.text;
            left -= text.len() as f64;
            found.push(text);
        }
        return Ok(found);
    }
    let texts = Texts::new(options.seed);
    for i in first.. {
        if left <= 0.0 {
            break;
        }
        let text = texts.mixed(i, DOCUMENT_BYTES);
        left -= text.len() as f64;
        found.push(text);
    }
    Ok(found)
}

/// Compares ids with those of the crate, and text with what the ids say. Returns the megabytes
/// compared and how many of them the crate encodes a second.
fn check(tokenizer: &Tokenizer, texts: &[String], mb: f64) -> Result<(f64, f64), Failure> {
    let (mut checked_mb, mut seconds) = (0.0, 0.0);
    for text in texts {
        if checked_mb >= mb {
            break;
        }
        let ids = tokenizer.encode(text)?;
        let (expected, cpu_s, _) = timed(|| tokenizer.encode_by_definition(text));
        if ids != expected? || tokenizer.decode(&ids)? != *text {
            let start: String = text.chars().take(60).collect();
            let message = format!("the ids of a text are not those of its definition: {start:?}");
            return Err(Failure::permanent(message));
        }
        checked_mb += text.len() as f64 / 1e6;
        seconds += cpu_s;
    }
    Ok((checked_mb, checked_mb / f64::max(seconds, 1e-9)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked_on_every_kind_of_text() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            vocab_size: 1000,
            train_mb: 0.2,
            encode_mb: 0.2,
            check_mb: 0.2,
            n_threads: 2,
            seed: 5,
            corpus: None,
            dir: dir.path().to_owned(),
        };
        let figures = measure(&options).unwrap();
        let figure = |name: &str| figures.iter().find(|f| f.0 == name).unwrap().1;
        assert!(figure("checked_mb") >= 0.2 && figure("bytes_per_token") > 1.0, "{figures:?}");
        assert!((figure("vocab_size") - 1000.0).abs() < 0.5);
    }
}
