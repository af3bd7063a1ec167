//! Cuts text into the words that byte-pair merges stay within.
//!
//! The rule is that of GPT-2, which Hugging Face's byte-level pre-tokenizer applies as the regular
//! expression
//!
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
//!
//! Read from left to right it is a small state machine over four classes of characters, which is
//! what is here. Which character belongs to which class is asked from the regular expression
//! engine of the `tokenizers` crate itself, so both follow the same version of Unicode.

use std::ops::Range;
use std::sync::LazyLock;

use tokenizers::utils::SysRegex;

/// Anything that is neither of the others, bytes that are not UTF-8 included.
const OTHER: u8 = 0;
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 3;

/// Class of every code point.
static CLASSES: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut classes = vec![OTHER; 0x11_0000].into_boxed_slice();
    let all: String = ('\0'..=char::MAX).collect();
    for (pattern, class) in [(r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE)] {
        let runs = SysRegex::new(pattern).expect("the pattern is valid");
        for (from, to) in runs.find_iter(&all) {
            for c in all[from..to].chars() {
                classes[c as usize] = class;
            }
        }
    }
    classes
});

/// The classes of characters, ready for use.
#[derive(Clone, Copy)]
pub(super) struct Words {
    classes: &'static [u8],
}

impl Words {
    pub(super) fn new() -> Self {
        Self { classes: &CLASSES }
    }

    /// Class and length in bytes of the character at `at`.
    #[inline]
    fn class(self, text: &[u8], at: usize) -> (u8, usize) {
        let first = text[at];
        if first < 0x80 {
            return (self.classes[usize::from(first)], 1);
        }
        self.wide_class(text, at)
    }

    #[inline]
    fn wide_class(self, text: &[u8], at: usize) -> (u8, usize) {
        let tail = |i: usize| -> Option<u32> {
            let byte = *text.get(at + i)?;
            (byte & 0xc0 == 0x80).then_some(u32::from(byte & 0x3f))
        };
        let first = u32::from(text[at]);
        let decoded = match first {
            0xc2..=0xdf => tail(1).map(|a| ((first & 0x1f) << 6 | a, 2)),
            0xe0..=0xef => tail(1)
                .zip(tail(2))
                .map(|(a, b)| ((first & 0x0f) << 12 | a << 6 | b, 3))
                .filter(|(code, _)| *code >= 0x800 && !(0xd800..0xe000).contains(code)),
            0xf0..=0xf4 => tail(1)
                .zip(tail(2))
                .zip(tail(3))
                .map(|((a, b), c)| ((first & 0x07) << 18 | a << 12 | b << 6 | c, 4))
                .filter(|(code, _)| (0x1_0000..0x11_0000).contains(code)),
            _ => None,
        };
        match decoded {
            Some((code, length)) => (self.classes[code as usize], length),
            None => (OTHER, 1),
        }
    }

    /// The first place at or after `at` whose class is not `class`.
    #[inline]
    fn run_end(self, text: &[u8], mut at: usize, class: u8) -> usize {
        while at < text.len() {
            let (found, length) = self.class(text, at);
            if found != class {
                break;
            }
            at += length;
        }
        at
    }

    /// The end of the word that starts at `at`.
    #[inline]
    pub(super) fn end(self, text: &[u8], at: usize) -> usize {
        let (class, length) = self.class(text, at);
        if class != SPACE {
            if text[at] == b'\''
                && let Some(suffix) = contraction(&text[at + 1..])
            {
                return at + 1 + suffix;
            }
            return self.run_end(text, at + length, class);
        }
        let next = at + length;
        if next == text.len() {
            return next;
        }
        let (next_class, next_length) = self.class(text, next);
        if next_class != SPACE {
            // One blank belongs to the word that follows it; other white space stands alone.
            return if text[at] == b' ' {
                self.run_end(text, next + next_length, next_class)
            } else {
                next
            };
        }
        // Of several, the last is left for the word that follows, if one does.
        let (mut last, mut end) = (next, next + next_length);
        while end < text.len() {
            let (class, length) = self.class(text, end);
            if class != SPACE {
                return last;
            }
            last = end;
            end += length;
        }
        end
    }

    /// All words.
    pub(super) fn split(self, text: &[u8]) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let from = at;
            (from < text.len()).then(|| {
                at = self.end(text, from);
                from..at
            })
        })
    }
}

/// Length of what follows the apostrophe of an English contraction.
#[inline]
fn contraction(rest: &[u8]) -> Option<usize> {
    match rest {
        [b's' | b't' | b'm' | b'd', ..] => Some(1),
        [b'r' | b'v', b'e', ..] | [b'l', b'l', ..] => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: &str =
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    fn check(text: &str) {
        let rule = SysRegex::new(RULE).unwrap();
        let expected: Vec<&str> = rule.find_iter(text).map(|(a, b)| &text[a..b]).collect();
        let found: Vec<&str> =
            Words::new().split(text.as_bytes()).map(|word| &text[word]).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn words_are_those_of_the_rule() {
        for text in [
            "",
            " ",
            "  a",
            "a  ",
            "\n\n  b\t c",
            "it's we'll I'd 'tis 's 'RE don't've ''s '",
            "x1 2y ½Ⅷ 12,345.6",
            "naïve 日本語 テスト 🦀🦀 한국어",
            "a\u{a0}b \u{2003}\u{2003}c\u{85}d\u{200b}e",
            "\r\n\r\nfn main() {\n    println!(\"{}\", x);\n}\n",
        ] {
            check(text);
        }
    }

    #[test]
    fn every_character_has_the_class_of_the_rule() {
        // Each character between letters, in chunks: a wrong class would move a cut.
        for chunk in ('\0'..=char::MAX).collect::<Vec<_>>().chunks(4096) {
            check(&chunk.iter().flat_map(|&c| ['a', c]).collect::<String>());
            check(&chunk.iter().flat_map(|&c| [' ', c]).collect::<String>());
        }
    }

    proptest! {
        #[test]
        fn any_text_is_cut_like_the_rule(text in any::<String>()) {
            check(&text);
        }

        #[test]
        fn texts_of_few_characters_are_cut_like_the_rule(text in "[ \n\t'stamdlvre1é日🦀!\u{a0}]{0,40}") {
            check(&text);
        }

        #[test]
        fn any_bytes_are_covered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut at = 0;
            for word in Words::new().split(&bytes) {
                prop_assert_eq!(word.start, at);
                prop_assert!(word.end > at);
                at = word.end;
            }
            prop_assert_eq!(at, bytes.len());
        }
    }
}
