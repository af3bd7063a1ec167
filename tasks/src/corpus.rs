//! The `corpus` artifact: documents in compressed JSON lines, written and read as a stream.
//!
//! `docs-NNNNN.jsonl.zst` hold one `{"id","text","meta"}` per line; a new shard starts when one is
//! full. `corpus.json` lists the shards with their counts, which the reader checks, so that a shard
//! that was cut off is an error and never a smaller corpus. Equal documents in equal order give equal
//! bytes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use engine::digest::Digest;
use engine::task::Failure;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::format::Error;

const SUMMARY_FILE: &str = "corpus.json";
const VERSION: u32 = 1;
const SHARD_BYTES: u64 = 64 << 20;
const ZSTD_LEVEL: i32 = 3;

/// A text with its identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Unique in its corpus; 16 hex digits in JSON.
    #[serde(with = "hex_id")]
    pub id: u64,
    /// The text.
    pub text: String,
    /// What is known of it: where it came from, and anything a task adds.
    #[serde(default)]
    pub meta: Map<String, Value>,
}

impl Document {
    /// The id of the real document that it was written from; nothing when it was written without one.
    ///
    /// # Errors
    /// With what stands at `seed_id` where that is no id.
    pub fn seed_id(&self) -> Option<Result<u64, &Value>> {
        let value = self.meta.get("seed_id").filter(|value| !value.is_null())?;
        Some(value.as_str().and_then(hex_id::parse).ok_or(value))
    }

    /// What `find` has under the id of the document's seed; nothing for one written without a seed.
    ///
    /// # Errors
    /// When it has a seed that is not among `what`.
    pub(crate) fn seed_among<T>(
        &self,
        what: &str,
        find: impl FnOnce(u64) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some(id) = self.seed_id() else { return Ok(None) };
        id.ok().and_then(find).map(Some).ok_or_else(|| {
            let (id, seed) = (self.id, &self.meta["seed_id"]);
            Failure::permanent(format!("document {id:016x} has seed {seed}, not among {what}"))
        })
    }
}

/// The id of record `record` of the source file `relative`: the first 8 bytes of a BLAKE3 digest.
pub fn document_id(relative: &str, record: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(relative.as_bytes());
    hasher.update(&[0]);
    hasher.update(&record.to_le_bytes());
    u64::from_be_bytes(*hasher.finalize().as_bytes().first_chunk().expect("32 bytes hold 8"))
}

/// Document ids as 16 lower-case hex digits.
pub mod hex_id {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes an id.
    ///
    /// # Errors
    /// As the serializer.
    pub fn serialize<S: Serializer>(id: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{id:016x}"))
    }

    /// Reads an id.
    ///
    /// # Errors
    /// When it is not 16 hex digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| D::Error::custom(format!("id `{text}` is not 16 hex digits")))
    }

    /// The id that 16 hex digits stand for.
    pub(super) fn parse(text: &str) -> Option<u64> {
        let hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| u64::from_str_radix(text, 16).ok()).flatten()
    }
}

/// What `corpus.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Format version.
    pub version: u32,
    /// Documents in all shards.
    pub n_documents: u64,
    /// UTF-8 bytes of all texts.
    pub text_bytes: u64,
    /// The shards in order.
    pub shards: Vec<Shard>,
}

/// One file of documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its name in the artifact's folder.
    pub file: String,
    /// Documents in it.
    pub n_documents: u64,
    /// UTF-8 bytes of their texts.
    pub text_bytes: u64,
}

/// A corpus on disk.
#[derive(Clone, Debug)]
pub struct Corpus {
    dir: PathBuf,
    summary: Summary,
}

impl Corpus {
    /// Opens the `corpus` artifact in `dir`.
    ///
    /// # Errors
    /// When `corpus.json` cannot be read, contradicts itself or is of a newer version.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(SUMMARY_FILE);
        let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let summary: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Error::damaged(&path, error.to_string()))?;
        // A newer version may have other fields, so its number is looked at first.
        let found = summary.get("version").and_then(Value::as_u64).unwrap_or(0);
        if found > u64::from(VERSION) {
            let (what, found) = ("corpus".to_owned(), u32::try_from(found).unwrap_or(u32::MAX));
            return Err(Error::Newer { path, what, found, supported: VERSION });
        }
        let summary: Summary = serde_json::from_value(summary)
            .map_err(|error| Error::damaged(&path, error.to_string()))?;
        let plain = summary.shards.iter().all(|shard| !shard.file.contains(['/', '\\']));
        if !plain {
            return Err(Error::damaged(&path, "it names a shard outside its folder"));
        }
        let sum = |of: fn(&Shard) -> u64| {
            summary.shards.iter().try_fold(0_u64, |sum, shard| sum.checked_add(of(shard)))
        };
        if sum(|shard| shard.n_documents) != Some(summary.n_documents)
            || sum(|shard| shard.text_bytes) != Some(summary.text_bytes)
        {
            return Err(Error::damaged(&path, "its totals are not the sums of its shards"));
        }
        Ok(Self { dir: dir.to_owned(), summary })
    }

    /// Documents in the corpus.
    pub fn n_documents(&self) -> u64 {
        self.summary.n_documents
    }

    /// UTF-8 bytes of all texts.
    pub fn text_bytes(&self) -> u64 {
        self.summary.text_bytes
    }

    /// What `corpus.json` says.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The files of the corpus as corpora of their own, with the digest of each: the items of tasks
    /// that work on documents one by one. What was made of a file that an edit left alone is still
    /// right.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn parts(&self) -> Result<Vec<(Self, Digest)>, Error> {
        let part = |shard: &Shard| {
            let path = self.dir.join(&shard.file);
            let hashed = Digest::of_file(&path);
            let (digest, _) = hashed.map_err(|error| Error::io("read", &path, error))?;
            let summary = Summary {
                version: VERSION,
                n_documents: shard.n_documents,
                text_bytes: shard.text_bytes,
                shards: vec![shard.clone()],
            };
            Ok((Self { dir: self.dir.clone(), summary }, digest))
        };
        self.summary.shards.iter().map(part).collect()
    }

    /// What a corpus of one file is called in messages.
    pub fn name(&self) -> String {
        self.summary.shards.first().map_or_else(String::new, |shard| shard.file.clone())
    }

    /// Every document in order, read as it is asked for. Ends after the first error.
    pub fn documents(&self) -> Documents {
        Documents {
            dir: self.dir.clone(),
            shards: self.summary.shards.clone().into_iter(),
            open: None,
            line: String::new(),
        }
    }
}

/// Iterates over a corpus; see [`Corpus::documents`].
pub struct Documents {
    dir: PathBuf,
    shards: std::vec::IntoIter<Shard>,
    open: Option<OpenShard>,
    line: String,
}

struct OpenShard {
    reader: Box<dyn BufRead + Send>,
    path: PathBuf,
    expected: Shard,
    n_documents: u64,
    text_bytes: u64,
}

impl Documents {
    /// The next documents, together at least `text_bytes` long unless the corpus ends; empty at the
    /// end.
    ///
    /// # Errors
    /// When a shard cannot be read or is damaged.
    pub fn next_batch(&mut self, text_bytes: usize) -> Result<Vec<Document>, Error> {
        let mut batch = Vec::new();
        let mut n_bytes = 0;
        while n_bytes < text_bytes {
            let Some(document) = self.next().transpose()? else { break };
            // The constant keeps many tiny documents from making a large batch.
            n_bytes += document.text.len() + 64;
            batch.push(document);
        }
        Ok(batch)
    }

    fn next_document(&mut self) -> Result<Option<Document>, Error> {
        loop {
            if self.open.is_none() {
                let Some(shard) = self.shards.next() else { return Ok(None) };
                self.open = Some(OpenShard::open(&self.dir, shard)?);
            }
            let Some(shard) = &mut self.open else { return Ok(None) };
            if let Some(document) = shard.next_document(&mut self.line)? {
                return Ok(Some(document));
            }
            shard.check_counts()?;
            self.open = None;
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_document().transpose();
        if let Some(Err(_)) = next {
            self.open = None;
            self.shards = Vec::new().into_iter();
        }
        next
    }
}

impl OpenShard {
    fn open(dir: &Path, expected: Shard) -> Result<Self, Error> {
        let path = dir.join(&expected.file);
        let open = || -> io::Result<Box<dyn BufRead + Send>> {
            let decoder = zstd::Decoder::new(File::open(&path)?)?;
            Ok(Box::new(BufReader::with_capacity(1 << 17, decoder)))
        };
        let reader = open().map_err(|error| Error::io("open", &path, error))?;
        Ok(Self { reader, path, expected, n_documents: 0, text_bytes: 0 })
    }

    fn next_document(&mut self, line: &mut String) -> Result<Option<Document>, Error> {
        line.clear();
        let place = |n: u64| format!("line {}", n + 1);
        let n_bytes = self.reader.read_line(line).map_err(|error| {
            Error::damaged(&self.path, format!("{}: {error}", place(self.n_documents)))
        })?;
        if n_bytes == 0 {
            return Ok(None);
        }
        let document: Document = serde_json::from_str(line).map_err(|error| {
            Error::damaged(&self.path, format!("{}: {error}", place(self.n_documents)))
        })?;
        self.n_documents += 1;
        self.text_bytes += document.text.len() as u64;
        Ok(Some(document))
    }

    fn check_counts(&self) -> Result<(), Error> {
        let found = (self.n_documents, self.text_bytes);
        let expected = (self.expected.n_documents, self.expected.text_bytes);
        if found == expected {
            return Ok(());
        }
        let what = format!(
            "it has {} documents of {} bytes, but {SUMMARY_FILE} says {} of {}",
            found.0, found.1, expected.0, expected.1
        );
        Err(Error::damaged(&self.path, what))
    }
}

/// Writes a corpus as a stream of documents.
pub struct CorpusWriter {
    dir: PathBuf,
    shard_bytes_max: u64,
    summary: Summary,
    open: Option<(zstd::Encoder<'static, BufWriter<File>>, u64)>,
    line: Vec<u8>,
}

impl CorpusWriter {
    /// Starts a corpus in the folder `dir`.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn create(dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(|error| Error::io("create", dir, error))?;
        Ok(Self {
            dir: dir.to_owned(),
            shard_bytes_max: SHARD_BYTES,
            summary: Summary { version: VERSION, n_documents: 0, text_bytes: 0, shards: vec![] },
            open: None,
            line: Vec::new(),
        })
    }

    /// Starts a new shard once one has this many uncompressed bytes.
    #[must_use]
    pub fn shard_bytes_max(mut self, limit: u64) -> Self {
        self.shard_bytes_max = limit;
        self
    }

    /// Documents written so far.
    pub fn n_documents(&self) -> u64 {
        self.summary.n_documents
    }

    /// Appends a document.
    ///
    /// # Errors
    /// When writing fails.
    pub fn push(&mut self, document: &Document) -> Result<(), Error> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, document)
            .map_err(|error| Error::io("write", &self.dir, error.into()))?;
        self.line.push(b'\n');
        self.write_line()?;
        let text_bytes = document.text.len() as u64;
        let shard = self.summary.shards.last_mut().expect("`write_line` opened one");
        shard.n_documents += 1;
        shard.text_bytes += text_bytes;
        self.summary.n_documents += 1;
        self.summary.text_bytes += text_bytes;
        Ok(())
    }

    /// Appends a finished corpus, its files as they are: by links where the file system allows.
    ///
    /// # Errors
    /// When `dir` is no corpus, or its files cannot be linked or copied.
    pub fn append(&mut self, dir: &Path) -> Result<(), Error> {
        self.close_shard()?;
        for shard in Corpus::open(dir)?.summary.shards {
            let from = dir.join(&shard.file);
            let file = file_name(self.summary.shards.len());
            let to = self.dir.join(&file);
            link(&from, &to).map_err(|error| Error::io("link", &to, error))?;
            self.summary.n_documents += shard.n_documents;
            self.summary.text_bytes += shard.text_bytes;
            self.summary.shards.push(Shard { file, ..shard });
        }
        Ok(())
    }

    /// Completes the shards and writes `corpus.json`, all durable.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> Result<Summary, Error> {
        self.close_shard()?;
        write_json(&self.dir.join(SUMMARY_FILE), &self.summary)?;
        Ok(self.summary)
    }

    fn write_line(&mut self) -> Result<(), Error> {
        if self.open.as_ref().is_some_and(|(_, n_bytes)| *n_bytes >= self.shard_bytes_max) {
            self.close_shard()?;
        }
        if self.open.is_none() {
            let file = file_name(self.summary.shards.len());
            let path = self.dir.join(&file);
            let create = || -> io::Result<_> {
                let file = BufWriter::with_capacity(1 << 17, File::create(&path)?);
                let mut encoder = zstd::Encoder::new(file, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Ok(encoder)
            };
            let encoder = create().map_err(|error| Error::io("create", &path, error))?;
            self.open = Some((encoder, 0));
            self.summary.shards.push(Shard { file, n_documents: 0, text_bytes: 0 });
        }
        let (encoder, n_bytes) = self.open.as_mut().expect("it was opened above");
        *n_bytes += self.line.len() as u64;
        encoder.write_all(&self.line).map_err(|error| Error::io("write", &self.dir, error))
    }

    fn close_shard(&mut self) -> Result<(), Error> {
        let Some((encoder, _)) = self.open.take() else { return Ok(()) };
        let close = || -> io::Result<()> {
            let file = encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()
        };
        close().map_err(|error| Error::io("write", &self.dir, error))
    }
}

/// Makes `to` the same file as `from`, or a copy where files cannot be linked: for files that nobody
/// writes to any more.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if std::fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    // `to` is not there, so the copy cannot write into the very file that it reads.
    std::fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

fn file_name(index: usize) -> String {
    format!("docs-{index:05}.jsonl.zst")
}

/// Writes `value` as indented JSON with a final line break, durably.
///
/// # Errors
/// When writing fails.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value)?;
        bytes.push(b'\n');
        let mut file = File::create(path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().map_err(|error| Error::io("write", path, error))
}

/// Reads a JSON file.
///
/// # Errors
/// When it cannot be read or is no such value.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::damaged(path, error.to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// Writes a corpus of these texts, with ids 0, 1, ….
    pub(crate) fn write_texts<'a>(dir: &Path, texts: impl IntoIterator<Item = &'a str>) {
        write_files(dir, texts, u64::MAX);
    }

    /// The same in files of at most so much text, or one document; gives their number.
    pub(crate) fn write_files<'a>(
        dir: &Path,
        texts: impl IntoIterator<Item = &'a str>,
        shard_bytes_max: u64,
    ) -> usize {
        let mut writer = CorpusWriter::create(dir).unwrap().shard_bytes_max(shard_bytes_max);
        for (id, text) in (0..).zip(texts) {
            let (text, meta) = (text.to_owned(), Map::new());
            writer.push(&Document { id, text, meta }).unwrap();
        }
        writer.finish().unwrap().shards.len()
    }

    fn documents(n: u64) -> Vec<Document> {
        (0..n)
            .map(|i| {
                let mut meta = Map::new();
                meta.insert("source".to_owned(), format!("a/{i}.txt").into());
                Document { id: document_id("a", i), text: format!("tëxt\n{i}"), meta }
            })
            .collect()
    }

    fn write(dir: &Path, shard_bytes: u64) -> Summary {
        let mut writer = CorpusWriter::create(dir).unwrap().shard_bytes_max(shard_bytes);
        for document in &documents(50) {
            writer.push(document).unwrap();
        }
        writer.finish().unwrap()
    }

    fn error_of(dir: &Path) -> String {
        let read =
            Corpus::open(dir).and_then(|corpus| corpus.documents().collect::<Result<Vec<_>, _>>());
        read.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn documents_come_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let summary = write(dir.path(), 1000);
        assert!(summary.shards.len() > 2);
        let corpus = Corpus::open(dir.path()).unwrap();
        let read: Vec<Document> = corpus.documents().collect::<Result<_, _>>().unwrap();
        assert_eq!(read, documents(50));
        assert_eq!(corpus.summary(), &summary);
        let again = tempfile::tempdir().unwrap();
        write(again.path(), 1000);
        for shard in summary.shards {
            let bytes = |dir: &Path| fs::read(dir.join(&shard.file)).unwrap();
            assert_eq!(bytes(dir.path()), bytes(again.path()));
        }
    }

    #[test]
    fn damage_is_located() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1000);
        let shard = dir.path().join("docs-00001.jsonl.zst");
        let good = fs::read(&shard).unwrap();
        fs::write(&shard, &good[..good.len() - 8]).unwrap();
        assert!(error_of(dir.path()).contains("docs-00001.jsonl.zst"), "{}", error_of(dir.path()));
        let short =
            zstd::encode_all(&b"{\"id\":\"00000000000000ff\",\"text\":\"x\"}\n"[..], 3).unwrap();
        fs::write(&shard, short).unwrap();
        assert!(error_of(dir.path()).contains("it has 1 documents of 1 bytes, but"));
        let bad = zstd::encode_all(&b"{\"id\":\"ff\",\"text\":\"x\"}\n"[..], 3).unwrap();
        fs::write(&shard, bad).unwrap();
        assert!(error_of(dir.path()).contains("line 1: id `ff` is not 16 hex digits"));
        fs::remove_file(&shard).unwrap();
        assert!(error_of(dir.path()).contains("cannot open"));
        fs::write(dir.path().join(SUMMARY_FILE), b"{\"version\": 9}").unwrap();
        assert!(error_of(dir.path()).contains("corpus version 9"));
    }
}
