//! Damaged and hostile artifacts: whatever the bytes, a reader gives what it can vouch for or an error
//! that names the file; never a panic, and never more memory than the file could fill.
//!
//! `SBP_TEST_FUZZ_S` says for how many seconds, `SBP_TEST_SEED` with which changes.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::digest::Digest;

use super::container::tampered;
use super::pairs::{self, Documents, Pair, Pairs};
use super::schedule::{Schedule, ScheduleWriter, Source};
use super::tokens::{Tokens, TokensWriter};
use super::vectors::{self, Vectors};
use crate::corpus::{Corpus, Document};
use crate::rows;

/// Without a time limit, so many changes of each file.
const N_CHANGES: u64 = 150;

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    fn place(&mut self, bytes: &[u8]) -> usize {
        self.roll(bytes.len() as u64) as usize
    }

    /// One change: bits, numbers that are often wrong, cuts, repetitions.
    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.place(bytes);
        match self.roll(6) {
            _ if bytes.is_empty() => bytes.extend_from_slice(&self.roll(u64::MAX).to_le_bytes()),
            0 | 1 => bytes[at] ^= 1 << self.roll(8),
            2 => {
                let extremes = [0, 1, u64::MAX, u64::MAX >> 1, 1 << 32, 1 << 31, 65_536];
                let number = extremes[self.roll(extremes.len() as u64) as usize].to_le_bytes();
                let n = (bytes.len() - at).min(8);
                bytes[at..at + n].copy_from_slice(&number[..n]);
            }
            3 => bytes.truncate(at),
            4 => {
                let end = at + (bytes.len() - at).min(1 + self.roll(24) as usize);
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let end = at + (bytes.len() - at).min(1 + self.roll(24) as usize);
                bytes.drain(at..end);
            }
        }
    }

    /// Usually nothing, so that most of a file stays as it was.
    fn seldom_change(&mut self, bytes: &mut Vec<u8>) {
        if self.roll(5) == 0 {
            self.change(bytes);
        }
    }
}

fn read_tokens(dir: &Path) -> Result<(), super::Error> {
    let tokens = Tokens::open(dir)?;
    let mut n_tokens = 0;
    for document in 0..tokens.n_documents() {
        let ids = tokens.ids(document);
        assert!(ids.iter().all(|id| *id < tokens.vocab_size()));
        assert_eq!(ids.len(), tokens.length(document));
        n_tokens += ids.len();
        let _ = (tokens.document_id(document), tokens.text_bytes(document));
    }
    assert_eq!(n_tokens, tokens.n_tokens());
    let _ = (tokens.total_text_bytes(), tokens.document_tokens_max(), tokens.tokenizer());
    Ok(())
}

fn read_pairs(dir: &Path) -> Result<(), super::Error> {
    let pairs = Pairs::open(dir)?;
    let n_documents = pairs.documents().n;
    for i in 0..pairs.n_pairs() {
        let pair = pairs.get(i);
        assert!(u64::from(pair.seed.max(pair.target)) < n_documents && pair.score.is_finite());
    }
    let _ = pairs.method();
    Ok(())
}

fn read_schedule(dir: &Path) -> Result<(), super::Error> {
    let schedule = Schedule::open(dir)?;
    let mut position = 0;
    for index in 0..schedule.n_entries() {
        let entry = schedule.entry(index);
        assert_eq!(entry.start, position);
        assert!((entry.document as u64) < schedule.sources()[entry.source].n_documents);
        assert_eq!(schedule.entry_at(position), index);
        position += entry.n_tokens;
    }
    assert_eq!(position, schedule.budget_tokens());
    Ok(())
}

fn read_vectors(dir: &Path) -> Result<(), super::Error> {
    let vectors = Vectors::open(dir)?;
    assert_eq!(vectors.rows().len(), vectors.n_documents() * vectors.dim());
    for i in 0..vectors.n_documents() {
        let length: f32 = vectors.row(i).iter().map(|x| x * x).sum();
        assert!(length < 1.1, "{length}");
    }
    assert_eq!(vectors.quantized().len(), vectors.rows().len());
    assert_eq!(vectors.scales().len(), vectors.document_ids().len());
    Ok(())
}

fn read_corpus(dir: &Path) -> Result<(), super::Error> {
    let corpus = Corpus::open(dir)?;
    let mut n_documents = 0;
    for document in corpus.documents() {
        document?;
        n_documents += 1;
    }
    assert_eq!(n_documents, corpus.n_documents());
    Ok(())
}

fn read_rows(dir: &Path) -> Result<(), super::Error> {
    rows::read::<serde_json::Value>(&dir.join("rows.jsonl.zst")).map(drop)
}

/// A reader and a folder that it reads.
struct Kind {
    name: &'static str,
    read: fn(&Path) -> Result<(), super::Error>,
    dir: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Kind {
    fn new(
        root: &Path,
        name: &'static str,
        read: fn(&Path) -> Result<(), super::Error>,
        write: impl FnOnce(&Path),
    ) -> Self {
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap();
        write(&dir);
        read(&dir).unwrap();
        let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        Self { name, read, dir, files }
    }

    /// Changes one file, reads the folder, and puts the file back.
    fn attack(&self, dice: &mut Dice) -> bool {
        let (path, good) = &self.files[dice.roll(self.files.len() as u64) as usize];
        let extension = path.extension().and_then(|name| name.to_str()).unwrap_or_default();
        let bytes = match (extension, dice.roll(4)) {
            ("sbp", 1..) => tampered(good, |part| dice.seldom_change(part)),
            ("zst", 1..) => {
                let mut text = zstd::decode_all(good.as_slice()).unwrap();
                (0..=dice.roll(2)).for_each(|_| dice.change(&mut text));
                zstd::encode_all(text.as_slice(), 1).unwrap()
            }
            _ => {
                let mut bytes = good.clone();
                (0..=dice.roll(2)).for_each(|_| dice.change(&mut bytes));
                bytes
            }
        };
        fs::File::create(path).unwrap().write_all(&bytes).unwrap();
        let read = (self.read)(&self.dir);
        fs::write(path, good).unwrap();
        match read {
            Ok(()) => true,
            Err(error) => {
                assert!(error.to_string().contains('`'), "{}: {error}", self.name);
                false
            }
        }
    }
}

fn kinds(root: &Path) -> Vec<Kind> {
    let tokens = |vocab_size: u32| {
        move |dir: &Path| {
            let mut writer = TokensWriter::create(dir, vocab_size, Digest::of(b"t")).unwrap();
            for (document, ids) in [vec![1, 2, 3], vec![], vec![4; 40]].iter().enumerate() {
                writer.push(document as u64, 9, ids).unwrap();
            }
            writer.finish().unwrap();
        }
    };
    let pairs = |dir: &Path| {
        let documents = Documents::of([7, 8, 9]);
        let pair = |seed, target, score| Pair { seed, target, score };
        let list = vec![pair(0, 1, 0.9), pair(0, 2, 0.8), pair(2, 1, 0.7)];
        pairs::write(dir, documents, list, "exact").unwrap();
    };
    let schedule = |dir: &Path| {
        let source = |name: &str| Source { name: name.to_owned(), n_documents: 3, n_tokens: 30 };
        let sources = vec![source("a"), source("b")];
        let mut writer = ScheduleWriter::create(dir, sources, 50, 1).unwrap();
        for i in 0..5 {
            writer.push(i % 2, i % 3, 10).unwrap();
        }
        writer.finish().unwrap();
    };
    let vectors = |dir: &Path| {
        let rows = [1.0, 0.0, 0.0, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0];
        let pool = kernels::Pool::new(1);
        vectors::write(&pool, dir, &[1, 2, 3], &rows, 3, "tfidf").unwrap();
    };
    let corpus =
        |dir: &Path| crate::corpus::tests::write_texts(dir, ["one", "zwei", "troi\u{fc}s"]);
    let documents = |dir: &Path| {
        let document = |id| Document { id, text: "text".to_owned(), meta: serde_json::Map::new() };
        rows::write(&dir.join("rows.jsonl.zst"), &[document(1), document(2)]).unwrap();
    };
    vec![
        Kind::new(root, "tokens", read_tokens, tokens(9)),
        Kind::new(root, "wide-tokens", read_tokens, tokens(100_000)),
        Kind::new(root, "pairs", read_pairs, pairs),
        Kind::new(root, "schedule", read_schedule, schedule),
        Kind::new(root, "vectors", read_vectors, vectors),
        Kind::new(root, "corpus", read_corpus, corpus),
        Kind::new(root, "rows", read_rows, documents),
    ]
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn any_bytes_are_read_or_refused() {
    let seed = number("SBP_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("SBP_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let root = tempfile::tempdir().unwrap();
    let kinds = kinds(root.path());
    let limit = number("SBP_TEST_FUZZ_S").map(Duration::from_secs);
    let (began, mut n_read, mut n_changes) = (Instant::now(), 0_u64, 0_u64);
    loop {
        for kind in &kinds {
            n_read += u64::from(kind.attack(&mut dice));
            n_changes += 1;
        }
        let is_over = match limit {
            Some(limit) => began.elapsed() >= limit,
            None => n_changes >= N_CHANGES * kinds.len() as u64,
        };
        if is_over {
            break;
        }
    }
    println!("{n_changes} changed artifacts, {n_read} of them still as a writer could leave them");
    // Were every change refused at a checksum, nothing behind it would have been tried.
    assert!(n_read > 0 && n_read < n_changes);
}
