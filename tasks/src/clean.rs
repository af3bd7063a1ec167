//! Cleans text: mojibake, control characters, line breaks, long URLs.
//!
//! The paper names three operations: normalise repeated line breaks, remove long URL links, and fix
//! malformed Unicode (arXiv 2509.15248, section 3.1). The operations are repeated until nothing
//! changes, so that cleaning a clean text changes nothing.

mod mojibake;

pub(crate) use mojibake::windows_1252;

use engine::task::{
    Context, Determinism, Estimate, Failure, Inputs, Item, ItemContext, Outputs, ParamError, Port,
    Predicted, Task,
};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unicode_normalization::{UnicodeNormalization, is_nfc};

use crate::corpus::{Corpus, CorpusWriter, Document};
use crate::cost::{fact, figure, unit};

/// Text cleaned between two looks at the cancel token, in bytes.
const BATCH_BYTES: usize = 4 << 20;

/// Cleans text.
pub struct Clean;

/// Params of `clean`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Repairs UTF-8 that was read as Windows-1252 or Latin-1, such as `cafÃ©`.
    #[serde(default = "yes")]
    pub mojibake: bool,
    /// Composes letters and accents (Unicode normalization form C).
    #[serde(default)]
    pub nfc: bool,
    /// Removes control characters other than tab and line break.
    #[serde(default = "yes")]
    pub controls: bool,
    /// Shortens longer runs of line breaks to this many; 0 keeps them.
    #[serde(default = "default_max_newlines")]
    pub max_newlines: usize,
    /// Removes URLs with more characters; 0 keeps them.
    #[serde(default = "default_max_url_chars")]
    pub max_url_chars: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            mojibake: yes(),
            nfc: false,
            controls: yes(),
            max_newlines: default_max_newlines(),
            max_url_chars: default_max_url_chars(),
        }
    }
}

fn yes() -> bool {
    true
}

fn default_max_newlines() -> usize {
    2
}

fn default_max_url_chars() -> usize {
    80
}

/// The operations, in order, as their counts are called.
const OPERATIONS: [&str; 6] =
    ["n_mojibake", "n_nfc", "n_line_breaks", "n_controls", "n_urls", "n_newlines"];

/// Which operations changed a text.
type Changes = [bool; OPERATIONS.len()];

impl Task for Clean {
    const KIND: &'static str = "clean";
    const REVISION: u32 = 2;
    const ITEM_STAGES: u32 = 1;
    const KEEPS_ITEMS: bool = true;
    const SUMMARY: &'static str = "repairs mojibake, removes control characters and long URLs";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::one("corpus", "corpus", "documents")];
    const OUTPUTS: &'static [Port] =
        &[Port::one("corpus", "corpus", "the same without those that became empty")];
    type Params = Params;

    fn check(_: &Params) -> Result<(), ParamError> {
        Ok(())
    }

    fn cost(_: &Params, inputs: &Predicted) -> Estimate {
        // What is dropped is not known beforehand: the output holds this much at most.
        let corpus = inputs.one("corpus");
        Estimate::unknown()
            .figure(figure::DOCUMENTS, corpus.get(fact::DOCUMENTS))
            .work(unit::TEXT_BYTES, corpus.get(fact::TEXT_BYTES))
            .output("corpus", corpus)
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let corpus = Corpus::open(inputs.one("corpus"))?;
        let mut items = Vec::new();
        for (part, digest) in corpus.parts()? {
            let (name, weight) = (part.name(), part.n_documents());
            items.push(Item::new(name, &(params, digest), part).weight(weight));
        }
        let results =
            ctx.items("clean", "documents", items, |part, item| clean_part(part, item, params))?;
        let mut writer = CorpusWriter::create(&ctx.out("corpus")?)?;
        let mut counts = Counts::default();
        for result in results {
            let result = result?;
            counts.add(&result.value);
            writer.append(&result.dir)?;
        }
        let (n_read, summary) = (corpus.n_documents(), writer.finish()?);
        if summary.n_documents == 0 {
            return Err(Failure::permanent(format!("none of {n_read} documents has text left")));
        }
        let mut outputs = Outputs::default()
            .metric(unit::TEXT_BYTES, corpus.text_bytes() as f64)
            .metric("n_documents", summary.n_documents as f64)
            .metric("n_changed", counts.n_changed as f64)
            .metric("n_emptied", counts.n_emptied as f64);
        for (name, count) in OPERATIONS.into_iter().zip(counts.operations) {
            outputs = outputs.metric(name, count as f64);
        }
        Ok(outputs)
    }
}

/// How many documents were changed, emptied, and changed by each operation.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counts {
    n_changed: u64,
    n_emptied: u64,
    operations: [u64; OPERATIONS.len()],
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.n_changed += other.n_changed;
        self.n_emptied += other.n_emptied;
        for (count, more) in self.operations.iter_mut().zip(other.operations) {
            *count += more;
        }
    }
}

/// Cleans a file of the corpus into a corpus of its own.
fn clean_part(part: &Corpus, item: &ItemContext<'_>, params: &Params) -> Result<Counts, Failure> {
    let mut writer = CorpusWriter::create(item.dir())?;
    let pool = Pool::new(item.n_threads());
    let mut counts = Counts::default();
    let mut documents = part.documents();
    let mut n_read = 0;
    loop {
        item.check_cancelled()?;
        let mut batch: Vec<(Document, Changes)> = documents
            .next_batch(BATCH_BYTES)?
            .into_iter()
            .map(|document| (document, Changes::default()))
            .collect();
        if batch.is_empty() {
            break;
        }
        pool.for_chunks(&mut batch, 16, |_, chunk| {
            for (document, changes) in chunk {
                (document.text, *changes) = clean(&document.text, params);
            }
        });
        n_read += batch.len() as u64;
        for (document, changes) in &batch {
            counts.n_changed += u64::from(changes.contains(&true));
            for (count, &changed) in counts.operations.iter_mut().zip(changes) {
                *count += u64::from(changed);
            }
            if document.text.trim().is_empty() {
                counts.n_emptied += 1;
            } else {
                writer.push(document)?;
            }
        }
        item.progress(n_read);
    }
    writer.finish()?;
    Ok(counts)
}

/// Applies the operations until none changes the text.
///
/// It ends: mojibake, URL and newline operations shorten the text, and what the others make they
/// leave alone.
pub(crate) fn clean(text: &str, params: &Params) -> (String, Changes) {
    let mut text = text.to_owned();
    let mut changes = Changes::default();
    loop {
        let mut changed = false;
        let mut apply = |operation: usize, result: Option<String>, text: &mut String| {
            if let Some(result) = result.filter(|result| result != text) {
                *text = result;
                changes[operation] = true;
                changed = true;
            }
        };
        let repaired = params.mojibake.then(|| mojibake::repair(&text)).flatten();
        apply(0, repaired, &mut text);
        let composed = (params.nfc && !is_nfc(&text)).then(|| text.nfc().collect());
        apply(1, composed, &mut text);
        let broken = line_breaks(&text);
        apply(2, broken, &mut text);
        let printable = params.controls.then(|| without_controls(&text)).flatten();
        apply(3, printable, &mut text);
        let short = (params.max_url_chars > 0).then(|| without_urls(&text, params.max_url_chars));
        apply(4, short, &mut text);
        let collapsed = (params.max_newlines > 0).then(|| collapse(&text, params.max_newlines));
        apply(5, collapsed, &mut text);
        if !changed {
            return (text, changes);
        }
    }
}

/// Every kind of line break as `\n`.
fn line_breaks(text: &str) -> Option<String> {
    let is_other = |c| matches!(c, '\r' | '\u{2028}' | '\u{2029}');
    text.contains(is_other).then(|| text.replace("\r\n", "\n").replace(is_other, "\n"))
}

/// Without control characters, byte order marks and interlinear annotation marks.
fn without_controls(text: &str) -> Option<String> {
    let is_noise = |c: char| match c {
        '\t' | '\n' => false,
        '\u{feff}' | '\u{206a}'..='\u{206f}' | '\u{fff9}'..='\u{fffc}' => true,
        _ => c.is_control(),
    };
    text.contains(is_noise).then(|| text.replace(is_noise, ""))
}

/// How URLs start.
const URL_STARTS: [&str; 4] = ["http://", "https://", "ftp://", "www."];

/// Without URLs of more than `max_chars` characters.
fn without_urls(text: &str, max_chars: usize) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    // Where each start is next: a text of many links is searched once for each.
    let mut next = URL_STARTS.map(|start| text.find(start));
    while let Some(start) = next.iter().flatten().min().copied() {
        let url = url_at(&text[start..]);
        kept.push_str(&text[at..start]);
        if url.chars().count() <= max_chars {
            kept.push_str(url);
        }
        at = start + url.len();
        for (next, start) in next.iter_mut().zip(URL_STARTS) {
            if next.is_some_and(|next| next < at) {
                *next = text[at..].find(start).map(|found| at + found);
            }
        }
    }
    kept.push_str(&text[at..]);
    kept
}

/// The URL that `text` starts with: up to white space, a quote or a bracket, without punctuation at
/// its end.
fn url_at(text: &str) -> &str {
    let end = text
        .find(|c: char| c.is_whitespace() || "<>\"`()[]{}|\\^".contains(c))
        .unwrap_or(text.len());
    text[..end].trim_end_matches(['.', ',', ';', ':', '!', '?', '\'', '*', '_'])
}

/// At most `max_newlines` line breaks in a row, lines of blanks counted as empty, and none at either
/// end.
fn collapse(text: &str, max_newlines: usize) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut n_newlines = 0;
    for line in text.split('\n') {
        if line.trim_matches([' ', '\t']).is_empty() {
            n_newlines += 1;
            continue;
        }
        if !kept.is_empty() {
            kept.extend(std::iter::repeat_n('\n', (n_newlines + 1).min(max_newlines)));
        }
        kept.push_str(line);
        n_newlines = 0;
    }
    kept
}

#[cfg(test)]
mod tests {
    use engine::store::Manifest;
    use engine::task::testbed::Bench;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::corpus::tests::{write_files, write_texts};

    fn params(value: Value) -> Params {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn operations() {
        let defaults = params(json!({"max_url_chars": 20}));
        let check = |text: &str, expected: &str| assert_eq!(clean(text, &defaults).0, expected);
        check("a\r\nb\rc\u{2028}d", "a\nb\nc\nd");
        check("a\n\n\n\n\nb\n \t\n \nc", "a\n\nb\n\nc");
        check("\n\n  a\n", "  a");
        check("a\u{0}b\u{feff}\tc\u{1b}", "ab\tc");
        check("see https://example.org/a/long/path, ok", "see , ok");
        check("[x](https://example.org/a/long/path) y", "[x]() y");
        check("http://short.org and www.x", "http://short.org and www.x");
        check("www. www.ftp://https://http://x", "www. ");
        check("www.. http://a?www.example.org/a/long/path b", "www..  b");
        check("hthttp://a.example.org/long/path tp://b", "ht tp://b");
        check("cafÃ© â€œquotedâ€\u{9d}", "café “quoted”");
        let nfc = params(json!({"nfc": true}));
        assert_eq!(clean("e\u{301}", &nfc).0, "é");
        let off =
            json!({"mojibake": false, "controls": false, "max_newlines": 0, "max_url_chars": 0});
        let text = "cafÃ©\u{7}\n\n\n\nhttps://example.org/".to_owned() + &"x".repeat(200);
        assert_eq!(clean(&text, &params(off)).0, text);
    }

    /// As many links as a record can hold: a search for each from where it starts would take hours.
    #[test]
    fn many_links_take_one_search() {
        let defaults = params(json!({}));
        let text = "http://a.org ".repeat(1 << 20);
        assert_eq!(clean(&text, &defaults).0, text);
    }

    /// Where the rules here differ from `ftfy`'s, and what they give: a trade mark sign that it
    /// leaves broken, and honest text that it changes.
    const OURS: [(&str, &str); 5] = [
        ("â„¢ mark", "™ mark"),
        ("see â„¢ mark here", "see ™ mark here"),
        ("MAÇÃ”, ela disse", "MAÇÃ”, ela disse"),
        ("Ñ° 5", "Ñ° 5"),
        ("Â and Ã alone", "Â and Ã alone"),
    ];

    /// The encodings are repaired as `ftfy` does; the script beside the golden made it.
    #[test]
    fn equals_ftfy() {
        let golden = include_str!("../tests/goldens/clean.json");
        let cases: Vec<(String, String)> = serde_json::from_str(golden).unwrap();
        assert!(cases.len() > 60);
        let params = params(json!({"max_newlines": 0, "max_url_chars": 0}));
        let wrong: Vec<_> = cases
            .iter()
            .map(|(text, fixed)| {
                let ours = OURS.iter().find(|(broken, _)| broken == text).map(|(_, ours)| *ours);
                (text, clean(text, &params).0, ours.unwrap_or(fixed))
            })
            .filter(|(_, cleaned, expected)| cleaned != expected)
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn cleaning_twice_changes_nothing(
            pieces in prop::collection::vec(prop_oneof![
                "[ÃÂâÄÑðï€œ™”“…©®°»¿\u{80}-\u{ff}]{1,4}",
                "[a-z \n\r\t]{0,5}",
                Just("http://".to_owned()),
                Just("www.".to_owned()),
                "[a-z/.]{5,40}",
                any::<String>(),
            ], 0..12),
            nfc in any::<bool>(),
        ) {
            let params = params(json!({"nfc": nfc, "max_url_chars": 12}));
            let once = clean(&pieces.concat(), &params).0;
            let (twice, changes) = clean(&once, &params);
            prop_assert_eq!(&once, &twice);
            prop_assert!(!changes.contains(&true));
        }

        /// What was broken by reading UTF-8 as Windows-1252 comes back.
        #[test]
        fn broken_text_is_repaired(text in "[a-z ]{1,5}([éèüñöçàêîôû][a-z]){1,5}[a-z ]{0,5}") {
            let broken: String = text.bytes().map(windows_1252).collect();
            let params = params(json!({"max_newlines": 0}));
            prop_assert_eq!(clean(&broken, &params).0, text);
        }
    }

    fn write_parts(dir: &std::path::Path, texts: &[String]) {
        assert!(write_files(dir, texts.iter().map(String::as_str), 2000) > 5);
    }

    #[test]
    fn files_are_items_and_an_edit_redoes_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut texts: Vec<String> = (0..100).map(|i| format!("{i} cafÃ© ").repeat(10)).collect();
        let mut digests = Vec::new();
        for n_threads in [1, 2, 7] {
            let place = dir.path().join(n_threads.to_string());
            write_parts(&place.join("corpus"), &texts);
            let mut bench = Bench::new(&place).input("corpus", &place.join("corpus"));
            bench.n_threads = n_threads;
            bench.run::<Clean>(&json!({})).unwrap();
            digests.push(Manifest::of_dir(&bench.out("corpus")).unwrap().digest());
            let corpus = Corpus::open(&bench.out("corpus")).unwrap();
            let found: Vec<Document> = corpus.documents().collect::<Result<_, _>>().unwrap();
            assert!(
                found.iter().map(|found| found.text.as_str()).eq(texts
                    .iter()
                    .map(|text| clean(text, &params(json!({}))).0)
                    .collect::<Vec<_>>()
                    .iter()
                    .map(String::as_str))
            );
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]));
        // One letter of the same size: of all files one is cleaned again.
        let place = dir.path().join("7");
        let bench = Bench::new(&place).input("corpus", &place.join("corpus"));
        bench.run::<Clean>(&json!({})).unwrap();
        let n_files = bench.items.n_done();
        assert_eq!(bench.items.n_tries(), n_files as u64);
        texts[50].replace_range(0..1, "x");
        write_parts(&place.join("corpus"), &texts);
        std::fs::remove_dir_all(place.join("out")).unwrap();
        bench.run::<Clean>(&json!({})).unwrap();
        assert_eq!(bench.items.n_tries(), n_files as u64 + 1);
    }

    #[test]
    fn documents_are_counted_and_threads_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = dir.path().join("corpus");
        write_texts(&corpus, ["fine", "cafÃ©\u{7}", "\u{7}", "a\n\n\n\nb"]);
        let mut bench = Bench::new(dir.path()).input("corpus", &corpus);
        let mut bytes = Vec::new();
        for n_threads in [1, 3] {
            bench.n_threads = n_threads;
            let metrics = bench.run::<Clean>(&json!({})).unwrap().metrics;
            let n = |name: &str| metrics[name] as u64;
            assert_eq!((n("n_documents"), n("n_changed"), n("n_emptied")), (3, 3, 1));
            assert_eq!((n("n_mojibake"), n("n_controls"), n("n_newlines")), (1, 2, 1));
            let shard = bench.out("corpus").join("docs-00000.jsonl.zst");
            bytes.push(std::fs::read(shard).unwrap());
        }
        assert_eq!(bytes[0], bytes[1]);
        assert_eq!(bench.items.n_tries(), 1, "the item was found done");
        write_texts(&dir.path().join("empty"), ["\u{7}"]);
        let bench = Bench::new(dir.path()).input("corpus", &dir.path().join("empty"));
        let failure = bench.run::<Clean>(&json!({})).unwrap_err();
        assert!(failure.message.contains("none of 1 documents has text left"));
    }
}
