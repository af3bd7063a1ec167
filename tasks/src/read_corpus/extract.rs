//! Text out of source formats: Markdown, Rust doc comments, and parts of long texts.

/// A run of doc comments.
#[derive(Debug, PartialEq)]
pub(super) struct Block {
    /// The line that it starts at, from 1.
    pub(super) line: u64,
    pub(super) text: String,
}

/// The doc comments of Rust source: `//!`, `///`, `/*! */` and `/** */`, markers removed, code
/// examples kept. Comments with code between them are separate blocks.
///
/// Goes by lines: a string literal with a line that starts with `///` is taken for a comment.
pub(super) fn rust_docs(source: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut is_open = false;
    let mut lines = (1..).zip(source.lines());
    while let Some((number, line)) = lines.next() {
        let start = line.trim_start();
        let mut push = |text: &str| {
            if !std::mem::replace(&mut is_open, true) {
                blocks.push(Block { line: number, text: String::new() });
            }
            let block = blocks.last_mut().expect("one is open");
            block.text.push_str(text.trim_end());
            block.text.push('\n');
        };
        let is_line_comment =
            start.starts_with("//!") || (start.starts_with("///") && !start.starts_with("////"));
        let is_block_comment = start.starts_with("/*!")
            || (start.starts_with("/**")
                && !start.starts_with("/***")
                && !start.starts_with("/**/"));
        if is_line_comment {
            push(start[3..].strip_prefix(' ').unwrap_or(&start[3..]));
        } else if is_block_comment {
            let mut rest = &start[3..];
            loop {
                let (text, is_last) = match rest.split_once("*/") {
                    Some((text, _)) => (text, true),
                    None => (rest, false),
                };
                push(undecorated(text));
                if is_last {
                    break;
                }
                let Some((_, next)) = lines.next() else { break };
                rest = next;
            }
        } else {
            // Attributes stand between the comments of one item.
            is_open &= start.starts_with("#[") || start.starts_with("#![");
        }
    }
    for block in &mut blocks {
        block.text = block.text.trim_matches('\n').to_owned();
    }
    blocks.retain(|block| !block.text.trim().is_empty());
    blocks
}

/// A line of a block comment without the star that some put before it.
fn undecorated(line: &str) -> &str {
    let start = line.trim_start();
    match start.strip_prefix('*') {
        Some(text) => text.strip_prefix(' ').unwrap_or(text),
        None => start,
    }
}

/// Markdown without front matter, HTML comments, lines of badges and images, and link definitions;
/// code blocks are kept as they are.
pub(super) fn markdown(text: &str) -> String {
    let text = without_front_matter(text);
    let mut comments = Comments { is_open: false, last_close: text.rfind("-->").unwrap_or(0) };
    let mut kept: Vec<String> = Vec::new();
    let mut fence: Option<&str> = None;
    let (mut line, mut offset) = (String::new(), 0);
    for source in text.split_inclusive('\n') {
        offset += source.len();
        let source = source.strip_suffix('\n').unwrap_or(source);
        let start = source.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark));
        match (fence, mark) {
            _ if comments.is_open => {}
            (Some(open), Some(mark)) if open == mark => fence = None,
            (None, Some(mark)) => fence = Some(mark),
            _ => {}
        }
        if !comments.is_open && (fence.is_some() || mark.is_some()) {
            kept.push(source.to_owned());
            continue;
        }
        comments.leave_out(source, offset, &mut line);
        if !comments.is_open {
            let line = std::mem::take(&mut line);
            if !is_link_definition(line.trim_start()) && !is_images(&line) {
                kept.push(line);
            }
        }
    }
    kept.join("\n")
}

fn without_front_matter(text: &str) -> &str {
    text.strip_prefix("---\n")
        .and_then(|rest| rest.split_once("\n---\n"))
        .map_or(text, |(_, body)| body)
}

/// Comments of HTML, line by line.
struct Comments {
    /// Whether one goes on in the next line.
    is_open: bool,
    /// Where the last of them ends: one that is never closed is text.
    last_close: usize,
}

impl Comments {
    /// Appends to `kept` what of a line is no comment; the next line starts at `offset`.
    fn leave_out(&mut self, line: &str, offset: usize, kept: &mut String) {
        let mut rest = line;
        loop {
            if self.is_open {
                let Some((_, after)) = rest.split_once("-->") else { return };
                (rest, self.is_open) = (after, false);
            }
            let Some((before, comment)) = rest.split_once("<!--") else { break };
            kept.push_str(before);
            let is_code = kept.matches('`').count() % 2 == 1;
            let is_closed = self.last_close >= offset || comment.contains("-->");
            self.is_open = is_closed && !is_code;
            if !self.is_open {
                kept.push_str("<!--");
            }
            rest = comment;
        }
        kept.push_str(rest);
    }
}

/// `[name]: target`; a footnote, `[^1]: text`, is text.
fn is_link_definition(line: &str) -> bool {
    let definition = line.strip_prefix('[').and_then(|rest| rest.split_once("]:"));
    definition.is_some_and(|(name, target)| {
        !name.starts_with('^') && !name.contains(['[', ']']) && !target.trim().is_empty()
    })
}

/// Whether a line has images and linked images, and nothing else.
fn is_images(line: &str) -> bool {
    let mut rest = line.trim();
    let mut n_images = 0;
    while !rest.is_empty() {
        let Some(after) = image(rest) else { return false };
        (rest, n_images) = (after.trim_start(), n_images + 1);
    }
    n_images > 0
}

/// What follows the image, or the image inside a link, that `text` starts with.
fn image(text: &str) -> Option<&str> {
    if let Some(inner) = text.strip_prefix('[').filter(|inner| inner.starts_with("![")) {
        return target(image(inner)?.strip_prefix(']')?);
    }
    let (_, after) = text.strip_prefix("![")?.split_once(']')?;
    target(after)
}

/// What follows a `(target)` or `[reference]`.
fn target(text: &str) -> Option<&str> {
    let close = match text.chars().next()? {
        '(' => ')',
        '[' => ']',
        _ => return None,
    };
    text.split_once(close).map(|(_, after)| after)
}

/// Cuts `text` into parts of at most `max_chars` characters, each at least half as long but the
/// last: at the end of a paragraph, else of a line, a sentence, a word, else anywhere.
///
/// # Panics
/// When `max_chars` is 0.
pub(super) fn parts(text: &str, max_chars: usize) -> Vec<&str> {
    assert!(max_chars > 0, "parts have characters");
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((limit, _)) = rest.char_indices().nth(max_chars) {
        let head = &rest[..limit];
        let cut = ["\n\n", "\n", ". ", " "]
            .iter()
            .find_map(|end| Some(head.rfind(end)? + end.len()).filter(|&cut| cut > limit / 2))
            .unwrap_or(limit);
        parts.push(rest[..cut].trim_end());
        rest = rest[cut..].trim_start_matches('\n');
    }
    parts.push(rest.trim_end());
    parts.retain(|part| !part.trim().is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doc_comments_are_found() {
        let source = "// no\n//! Crate.\n//!\n//! ```\n//! let x = 1;\n//! ```\n\nuse a;\n\n    /// Does.\n    \
            #[inline]\n    /// More.\n    pub fn f() {} // no\n//// no\n/** Block\n * two\n */\nstruct S;\n\
            /*! Inner */\n/**/\n/*** no */\n";
        let blocks = rust_docs(source);
        let found: Vec<(u64, &str)> = blocks.iter().map(|b| (b.line, b.text.as_str())).collect();
        let expected = [
            (2, "Crate.\n\n```\nlet x = 1;\n```"),
            (10, "Does.\nMore."),
            (15, " Block\ntwo".trim_start()),
            (19, "Inner"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn markdown_keeps_prose_and_code() {
        let text = "---\ntitle: x\n---\n# Title\n[![CI](a.svg)](b) ![x](y)\n<!-- hidden\nlines -->Text ![i](j) on.\n\
            [ref]: http://x\n```\n[ref]: kept\n![kept](x)\n```\n<!-- open";
        let expected = "# Title\nText ![i](j) on.\n```\n[ref]: kept\n![kept](x)\n```\n<!-- open";
        assert_eq!(markdown(text), expected);
        let check = |text: &str, expected: &str| assert_eq!(markdown(text), expected);
        check(
            "```\n<!-- x -->\n```\nUse `<!--` here.\n-->",
            "```\n<!-- x -->\n```\nUse `<!--` here.\n-->",
        );
        check("[^1]: A note.\n[a]: b", "[^1]: A note.");
        check("a <!-- b\n```\n[x]: y --> c <!-- d --> e", "a  c  e");
        check("<!-- a\n[x]: y", "<!-- a");
        check("a\n\nb\n", "a\n\nb");
    }

    #[test]
    fn parts_end_at_paragraphs() {
        let check = |text, max, expected: &[&str]| assert_eq!(parts(text, max), expected, "{text}");
        check("one two", 10, &["one two"]);
        check("one two\n\nthree four", 12, &["one two", "three four"]);
        check("One. Two three.", 10, &["One. Two", "three."]);
        check("Alone is. Two", 12, &["Alone is.", "Two"]);
        check("abcdefghij", 4, &["abcd", "efgh", "ij"]);
    }

    proptest! {
        #[test]
        fn parts_are_short_and_lose_nothing(text in "[a-cé \n.]{0,200}", max in 1_usize..30) {
            let parts = parts(&text, max);
            prop_assert!(parts.iter().all(|part| part.chars().count() <= max));
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(letters(&parts.concat()), letters(&text));
        }
    }
}
