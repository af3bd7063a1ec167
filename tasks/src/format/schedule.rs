//! The order in which one arm sees documents: `schedule.sbp` of a `schedule` artifact.
//!
//! The training stream is `<|bos|> text <|eos|>` of each entry in turn; the last entry is cut so
//! that the stream has exactly the budget's tokens. Sections: `entries` (u64: source in the upper 16
//! bits, document in the lower 48) and `starts` (u64, one more than entries: where in the stream each
//! entry starts, and the end).

use std::path::Path;

use super::Error;
use super::container::{Column, Container, Writer};

/// The file in the artifact's folder.
pub const FILE: &str = "schedule.sbp";
const KIND: &str = "schedule";
const VERSION: u32 = 1;
const DOCUMENT_BITS: u32 = 48;

/// A `tokens` artifact that a schedule draws from.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Source {
    /// The port of `mix` that it came in by: `real` or `synthetic`.
    pub name: String,
    /// Documents in it.
    pub n_documents: u64,
    /// Tokens in it, without special tokens.
    pub n_tokens: u64,
}

#[derive(Clone, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Metadata {
    sources: Vec<Source>,
    budget_tokens: u64,
    seed: u64,
}

/// One document's place in the training stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index into [`Schedule::sources`].
    pub source: usize,
    /// Index of the document in the source.
    pub document: usize,
    /// Position in the stream of its first token, `<|bos|>`.
    pub start: u64,
    /// Tokens of `<|bos|> text <|eos|>` that belong to the stream: all of them, except that the
    /// schedule's last entry may be cut.
    pub n_tokens: u64,
}

/// The order of documents of one arm, mapped into memory.
pub struct Schedule {
    container: Container,
    metadata: Metadata,
}

impl Schedule {
    /// Opens the `schedule` artifact in `dir` and verifies it.
    ///
    /// # Errors
    /// When the file cannot be read or is not as a [`ScheduleWriter`] leaves it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let container = Container::open(&dir.join(FILE), KIND, VERSION)?;
        let metadata: Metadata = container.metadata()?;
        let schedule = Self { container, metadata };
        schedule.check()?;
        Ok(schedule)
    }

    fn check(&self) -> Result<(), Error> {
        let damaged = |what: &str| Error::damaged(self.container.path(), what);
        let entries = self.container.section::<u64>("entries")?;
        let starts = self.container.section::<u64>("starts")?;
        if starts.len() != entries.len() + 1 {
            return Err(damaged("its sections differ in length"));
        }
        let budget = self.metadata.budget_tokens;
        let increasing = starts.is_sorted_by(|a, b| a < b);
        if !increasing || starts[0] != 0 || starts[entries.len()] != budget {
            return Err(damaged("its token positions are out of order"));
        }
        let known = entries.iter().all(|&packed| {
            let (source, document) = unpack(packed);
            let source = self.metadata.sources.get(source);
            source.is_some_and(|source| (document as u64) < source.n_documents)
        });
        if known { Ok(()) } else { Err(damaged("it names documents that its sources lack")) }
    }

    fn checked(&self, section: &str) -> &[u64] {
        self.container.section(section).expect("`open` checked the sections")
    }

    /// The artifacts that it draws from.
    pub fn sources(&self) -> &[Source] {
        &self.metadata.sources
    }

    /// Tokens in the stream, special tokens included.
    pub fn budget_tokens(&self) -> u64 {
        self.metadata.budget_tokens
    }

    /// Entries: documents shown, repetitions counted.
    pub fn n_entries(&self) -> usize {
        self.checked("entries").len()
    }

    /// The entry at `index`.
    ///
    /// # Panics
    /// When `index` is not below [`Self::n_entries`].
    pub fn entry(&self, index: usize) -> Entry {
        let starts = self.checked("starts");
        let (source, document) = unpack(self.checked("entries")[index]);
        let start = starts[index];
        Entry { source, document, start, n_tokens: starts[index + 1] - start }
    }

    /// The index of the entry that holds the stream's token `position`, in logarithmic time.
    ///
    /// # Panics
    /// When `position` is not below [`Self::budget_tokens`].
    pub fn entry_at(&self, position: u64) -> usize {
        assert!(position < self.metadata.budget_tokens, "position {position} is past the budget");
        self.checked("starts").partition_point(|&start| start <= position) - 1
    }
}

fn unpack(packed: u64) -> (usize, usize) {
    ((packed >> DOCUMENT_BITS) as usize, (packed & ((1 << DOCUMENT_BITS) - 1)) as usize)
}

/// Writes a `schedule.sbp` entry by entry.
pub struct ScheduleWriter {
    writer: Writer,
    metadata: Metadata,
    starts: Column<u64>,
    n_tokens: u64,
}

impl ScheduleWriter {
    /// Starts `dir`'s file for a stream of exactly `budget_tokens`.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(
        dir: &Path,
        sources: Vec<Source>,
        budget_tokens: u64,
        seed: u64,
    ) -> Result<Self, Error> {
        assert!(sources.len() <= 1 << 16, "sources are packed in 16 bits");
        let fits = sources.iter().all(|source| source.n_documents <= 1 << DOCUMENT_BITS);
        assert!(fits, "documents are packed in {DOCUMENT_BITS} bits");
        let mut writer = Writer::create(&dir.join(FILE), KIND, VERSION)?;
        writer.begin::<u64>("entries")?;
        let mut starts = Column::new(dir)?;
        starts.push(0).map_err(|error| Error::io("write", writer.path(), error))?;
        let metadata = Metadata { sources, budget_tokens, seed };
        Ok(Self { writer, metadata, starts, n_tokens: 0 })
    }

    /// Appends `n_tokens` tokens of `<|bos|> text <|eos|>` of a source's document.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When the source or document does not exist, `n_tokens` is 0, or the budget is exceeded.
    pub fn push(&mut self, source: usize, document: usize, n_tokens: u64) -> Result<(), Error> {
        let limit = self.metadata.sources[source].n_documents;
        assert!((document as u64) < limit, "source {source} has {limit} documents");
        self.n_tokens += n_tokens;
        assert!(n_tokens > 0 && self.n_tokens <= self.metadata.budget_tokens);
        self.writer.extend(&[(source as u64) << DOCUMENT_BITS | document as u64])?;
        self.starts
            .push(self.n_tokens)
            .map_err(|error| Error::io("write", self.writer.path(), error))
    }

    /// Tokens scheduled so far.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Writes what is left and makes the file durable.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When the entries do not sum to the budget.
    pub fn finish(mut self) -> Result<(), Error> {
        assert_eq!(self.n_tokens, self.metadata.budget_tokens, "the schedule must meet its budget");
        self.writer.column("starts", self.starts)?;
        self.writer.finish(&self.metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Vec<Source> {
        let source = |name: &str, n_documents| Source {
            name: name.to_owned(),
            n_documents,
            n_tokens: 5 * n_documents,
        };
        vec![source("real", 3), source("synthetic", 2)]
    }

    #[test]
    fn every_position_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ScheduleWriter::create(dir.path(), sources(), 10, 4).unwrap();
        for (source, document, n_tokens) in [(0, 2, 4), (1, 0, 1), (0, 0, 5)] {
            writer.push(source, document, n_tokens).unwrap();
        }
        writer.finish().unwrap();
        let schedule = Schedule::open(dir.path()).unwrap();
        let indices: Vec<usize> = (0..10).map(|position| schedule.entry_at(position)).collect();
        assert_eq!(indices, [0, 0, 0, 0, 1, 2, 2, 2, 2, 2]);
        assert_eq!(schedule.entry(1), Entry { source: 1, document: 0, start: 4, n_tokens: 1 });
        assert_eq!(schedule.n_entries(), 3);
        assert_eq!(schedule.sources(), sources());
    }

    #[test]
    fn contradictions_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let write = |entries: &[u64], starts: &[u64]| {
            let mut writer = Writer::create(&dir.path().join(FILE), KIND, VERSION).unwrap();
            writer.section("entries", entries).unwrap();
            writer.section("starts", starts).unwrap();
            let metadata = Metadata { sources: sources(), budget_tokens: 9, seed: 0 };
            writer.finish(&metadata).unwrap();
            Schedule::open(dir.path()).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(write(&[0, 1], &[0, 4, 9]), "");
        assert!(write(&[0, 1], &[0, 9]).contains("differ in length"));
        assert!(write(&[0, 1], &[0, 4, 8]).contains("out of order"));
        assert!(write(&[0, 1], &[0, 9, 9]).contains("out of order"));
        assert!(write(&[0, 3], &[0, 4, 9]).contains("sources lack"));
        assert!(write(&[0, 5 << DOCUMENT_BITS], &[0, 4, 9]).contains("sources lack"));
    }
}
