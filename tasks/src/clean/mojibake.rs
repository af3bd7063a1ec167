//! Repairs UTF-8 that was decoded as Windows-1252 or Latin-1.
//!
//! Each byte of a multi-byte UTF-8 sequence became a character of its own; a run of such characters
//! that encodes back to valid UTF-8 is replaced by what it meant, when honest text is unlikely to
//! have it. That judgement is what `ftfy` calls badness (Robyn Speer, "ftfy", 2019); the rules here
//! are fewer, go by single runs, and know no other encodings.

/// Characters of Windows-1252 for the bytes 0x80 to 0x9f; where it has none, the control character
/// of Latin-1.
const HIGH: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
    '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// What a byte looks like in Windows-1252.
pub(crate) fn windows_1252(byte: u8) -> char {
    if (0x80..0xa0).contains(&byte) { HIGH[usize::from(byte) - 0x80] } else { char::from(byte) }
}

/// The byte that looks like `c` in Windows-1252 or Latin-1.
fn byte_of(c: char) -> Option<u8> {
    if let Ok(byte) = u8::try_from(u32::from(c)) {
        return Some(byte);
    }
    HIGH.iter().position(|&high| high == c).map(|i| i as u8 + 0x80)
}

/// The repaired text, or `None` when there is nothing to repair. Text that was broken several times
/// is repaired as often.
pub(super) fn repair(text: &str) -> Option<String> {
    let mut repaired = repair_once(text)?;
    while let Some(again) = repair_once(&repaired) {
        repaired = again;
    }
    Some(repaired)
}

fn repair_once(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let mut repaired = String::with_capacity(text.len());
    let mut changed = false;
    let mut before = None;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some((meant, after)) =
            run(rest).filter(|(run, after)| is_mojibake(before, run, after))
        {
            repaired.extend(meant.iter().map(|sequence| sequence.meant));
            (rest, changed, before) = (after, true, repaired.chars().last());
            continue;
        }
        // Windows-1252 read as Latin-1 leaves control characters that nothing else uses.
        match c {
            '\u{80}'..='\u{9f}' => {
                let high = windows_1252(c as u8);
                repaired.extend((high != c).then_some(high));
                changed = true;
            }
            _ => repaired.push(c),
        }
        (rest, before) = (&rest[c.len_utf8()..], Some(c));
    }
    changed.then_some(repaired)
}

/// Characters that are the bytes of one UTF-8 sequence.
struct Sequence {
    chars: Vec<char>,
    meant: char,
}

/// The sequences that `text` starts with, and what follows them.
fn run(text: &str) -> Option<(Vec<Sequence>, &str)> {
    let mut sequences = Vec::new();
    let mut rest = text;
    while let Some((sequence, after)) = sequence(rest) {
        sequences.push(sequence);
        rest = after;
    }
    (!sequences.is_empty()).then_some((sequences, rest))
}

fn sequence(text: &str) -> Option<(Sequence, &str)> {
    let len = match byte_of(text.chars().next()?)? {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let chars: Vec<char> = text.chars().take(len).collect();
    let bytes: Vec<u8> = chars.iter().copied().map_while(byte_of).collect();
    let meant = std::str::from_utf8(&bytes).ok()?.chars().next()?;
    let n_bytes = chars.iter().map(|c| c.len_utf8()).sum();
    Some((Sequence { chars, meant }, &text[n_bytes..]))
}

/// Whether a run is mojibake rather than honest text, between the character `before` it and what
/// comes `after`.
fn is_mojibake(before: Option<char>, run: &[Sequence], after: &str) -> bool {
    let [sequence] = run else { return true };
    let (first, others) = sequence.chars.split_first().expect("sequences have characters");
    if others.iter().any(|c| ('\u{80}'..='\u{9f}').contains(c)) {
        return true;
    }
    let in_word = after.starts_with(char::is_alphabetic);
    match (first, others) {
        // `Â` before punctuation would mean a control character; other letters before a closing
        // quote or dash are a word's end, unless they start a word or a letter follows.
        ('Â', [c]) => !is_punctuation(*c),
        ('Ã', [c]) => !is_punctuation(*c) || in_word || !before.is_some_and(char::is_alphabetic),
        ('Å', [c]) if in_word => !is_symbol(*c),
        // `3×½` is honest, and so are the letters past it.
        ('Ä'..='Û', [c]) if *first != '×' => !is_punctuation(*c) && !is_symbol(*c),
        (_, [_]) => false,
        // The end of a quotation: `café”…`.
        (_, [a, b]) => {
            !(is_punctuation(*a) || is_symbol(*a)) || !(is_punctuation(*b) || is_symbol(*b))
        }
        _ => true,
    }
}

/// Punctuation that often follows a letter.
fn is_punctuation(c: char) -> bool {
    matches!(c, '‘' | '’' | '“' | '”' | '–' | '—' | '…')
}

/// Symbols that often follow a letter.
fn is_symbol(c: char) -> bool {
    matches!(
        c,
        '»' | '›' | '•' | '™' | '®' | '©' | '°' | '·' | '¹' | '²' | '³' | '´' | '\u{a0}' | '\u{ad}'
    )
}
