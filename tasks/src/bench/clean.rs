//! `sbp bench clean`: repairing mixed text, of which a tenth is broken in known ways.

use engine::task::Failure;
use engine::usage::peak_resident_mib;
use kernels::philox::Philox;

use super::text::Texts;
use super::{Figures, rounded, timed};
use crate::clean::{Params, clean, windows_1252};

/// Bytes of a document.
const DOCUMENT_BYTES: usize = 4096;
/// One document of so many is broken.
const BROKEN_EVERY: u64 = 10;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Text, in 10^6 bytes.
    pub mb: f64,
    /// Seed of the text.
    pub seed: u64,
}

/// A document, and what it was before it was broken.
struct Case {
    text: String,
    /// `None` for what was not broken.
    sound: Option<String>,
}

/// Runs the bench, on one thread.
///
/// # Errors
/// When a broken text does not come back, or cleaning a clean text changes it.
pub fn measure(options: Options) -> Result<Figures, Failure> {
    let params = Params::default();
    let cases = cases(options);
    let text_mb = cases.iter().map(|case| case.text.len()).sum::<usize>() as f64 / 1e6;
    let (cleaned, clean_s, _) =
        timed(|| cases.iter().map(|case| clean(&case.text, &params).0).collect::<Vec<String>>());
    let clean_mb = cleaned.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    let (again, again_s, _) =
        timed(|| cleaned.iter().map(|text| clean(text, &params).0).collect::<Vec<String>>());
    for (i, (case, (cleaned, again))) in cases.iter().zip(cleaned.iter().zip(&again)).enumerate() {
        if cleaned != again {
            return Err(Failure::permanent(format!("document {i} changes when cleaned again")));
        }
        if case.sound.as_ref().is_some_and(|sound| clean(sound, &params).0 != *cleaned) {
            return Err(Failure::permanent(format!("document {i} was broken and is not mended")));
        }
    }
    let n_changed = cases.iter().zip(&cleaned).filter(|(case, text)| case.text != **text).count();
    Ok(vec![
        ("text_mb", rounded(text_mb)),
        ("documents", cases.len() as f64),
        ("broken", cases.iter().filter(|case| case.sound.is_some()).count() as f64),
        ("changed", n_changed as f64),
        ("clean_mb_per_s_core", rounded(text_mb / clean_s)),
        ("clean_again_mb_per_s_core", rounded(clean_mb / again_s)),
        ("peak_rss_mib", rounded(peak_resident_mib())),
    ])
}

fn cases(options: Options) -> Vec<Case> {
    let texts = Texts::new(options.seed);
    let (mut n_bytes, mut cases) = (0, Vec::new());
    for i in 0.. {
        if n_bytes as f64 >= options.mb * 1e6 {
            break;
        }
        let case = if i % BROKEN_EVERY == 0 {
            broken(&texts, i / BROKEN_EVERY)
        } else {
            Case { text: texts.mixed(i, DOCUMENT_BYTES), sound: None }
        };
        n_bytes += case.text.len();
        cases.push(case);
    }
    cases
}

/// Prose that was read in the wrong encoding, has the line breaks of another system, control
/// characters in it, or a long link and many empty lines.
fn broken(texts: &Texts, i: u64) -> Case {
    let sound = texts.prose(i, DOCUMENT_BYTES / 6);
    let (sound, text) = match i % 4 {
        0 => {
            let accented = sound.replace('e', "é").replace("tion", "tiön");
            let text = accented.bytes().map(windows_1252).collect();
            (accented, text)
        }
        1 => (sound.clone(), sound.replace('\n', "\r\n")),
        2 => (sound.clone(), sound.replace(". ", ".\u{0} \u{feff}")),
        _ => {
            let link = format!("https://example.org/{:032x}?{}", i, "q".repeat(100));
            (sound.replace("\n\n", "\n\n "), sound.replace("\n\n", &format!("\n\n\n \n{link} ")))
        }
    };
    let cut = Philox::new(0, "bench breaks").below(i, 8) as usize;
    Case { text: " ".repeat(cut) + &text, sound: Some(" ".repeat(cut) + &sound) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_is_mended() {
        let figures = measure(Options { mb: 0.5, seed: 2 }).unwrap();
        let figure = |name: &str| figures.iter().find(|f| f.0 == name).unwrap().1;
        assert!(figure("broken") >= 10.0 && figure("changed") >= figure("broken"), "{figures:?}");
    }
}
