//! Tokenized documents: `tokens.sbp` of a `tokens` artifact, and `tokens.json` beside it.
//!
//! Sections: `ids` (u16 when the vocabulary fits, else u32; all documents one after the other,
//! without special tokens), `offsets` (u64, one more than documents), `document_ids` (u64),
//! `text_bytes` (u32, UTF-8 length of the text).

use std::ops::Range;
use std::path::Path;

use engine::digest::Digest;
use serde::Serialize;

use super::Error;
use super::container::{Column, Container, Writer};

/// The file in the artifact's folder.
pub const FILE: &str = "tokens.sbp";
const KIND: &str = "tokens";
const VERSION: u32 = 1;

/// The largest vocabulary whose ids fit in 16 bits.
const U16_VOCAB_MAX: u32 = 1 << 16;

#[derive(Clone, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Metadata {
    vocab_size: u32,
    tokenizer: [u8; 32],
    n_documents: u64,
    n_tokens: u64,
    text_bytes: u64,
    document_tokens_max: u64,
}

/// What `tokens.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokensSummary {
    /// Documents.
    pub n_documents: u64,
    /// Tokens of all documents, without special tokens.
    pub n_tokens: u64,
    /// UTF-8 bytes of all texts.
    pub text_bytes: u64,
    /// Tokens of the longest document, without special tokens.
    pub document_tokens_max: u64,
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// BLAKE3 of the `tokenizer.json` that made the ids.
    pub tokenizer: Digest,
}

/// The ids of one document, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids<'a> {
    /// Of a vocabulary of at most 65,536.
    U16(&'a [u16]),
    /// Of a larger one.
    U32(&'a [u32]),
}

impl Ids<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(ids) => ids.len(),
            Self::U32(ids) => ids.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id at `position`.
    ///
    /// # Panics
    /// When `position` is past the end.
    pub fn get(&self, position: usize) -> u32 {
        match self {
            Self::U16(ids) => u32::from(ids[position]),
            Self::U32(ids) => ids[position],
        }
    }

    /// Appends them to `out`.
    pub fn copy_to(&self, out: &mut Vec<u32>) {
        match self {
            Self::U16(ids) => out.extend(ids.iter().map(|&id| u32::from(id))),
            Self::U32(ids) => out.extend_from_slice(ids),
        }
    }
}

/// Tokenized documents, mapped into memory.
pub struct Tokens {
    container: Container,
    metadata: Metadata,
}

impl Tokens {
    /// Opens the `tokens` artifact in `dir` and verifies it.
    ///
    /// # Errors
    /// When the file cannot be read or is not as a [`TokensWriter`] leaves it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let container = Container::open(&dir.join(FILE), KIND, VERSION)?;
        let metadata: Metadata = container.metadata()?;
        let tokens = Self { container, metadata };
        tokens.check()?;
        Ok(tokens)
    }

    fn check(&self) -> Result<(), Error> {
        let damaged = |what: &str| Error::damaged(self.container.path(), what);
        let offsets = self.container.section::<u64>("offsets")?;
        let n_documents = self.container.section::<u64>("document_ids")?.len();
        let text_bytes = self.container.section::<u32>("text_bytes")?;
        let (n_tokens, vocab_size) = (self.n_tokens() as u64, self.metadata.vocab_size);
        let counts_agree = self.metadata.n_documents == n_documents as u64
            && text_bytes.len() == n_documents
            && offsets.len() == n_documents + 1
            && self.metadata.n_tokens == n_tokens;
        if !counts_agree {
            return Err(damaged("its sections differ in length"));
        }
        let ordered = offsets.is_sorted() && offsets[0] == 0 && offsets[n_documents] == n_tokens;
        if !ordered {
            return Err(damaged("its document offsets are out of order"));
        }
        let id_max = match self.all_ids()? {
            Ids::U16(ids) => ids.iter().copied().max().map(u32::from),
            Ids::U32(ids) => ids.iter().copied().max(),
        };
        if id_max.is_some_and(|id| id >= vocab_size) {
            return Err(damaged("it has token ids past its vocabulary"));
        }
        Ok(())
    }

    fn all_ids(&self) -> Result<Ids<'_>, Error> {
        Ok(if self.metadata.vocab_size <= U16_VOCAB_MAX {
            Ids::U16(self.container.section("ids")?)
        } else {
            Ids::U32(self.container.section("ids")?)
        })
    }

    fn checked<T: super::container::Element>(&self, section: &str) -> &[T] {
        self.container.section(section).expect("`open` checked the sections")
    }

    /// Documents in the file.
    pub fn n_documents(&self) -> usize {
        self.metadata.n_documents as usize
    }

    /// Tokens of all documents, without special tokens.
    pub fn n_tokens(&self) -> usize {
        self.all_ids().map_or(0, |ids| ids.len())
    }

    /// Tokens of the longest document, without special tokens.
    pub fn document_tokens_max(&self) -> usize {
        self.metadata.document_tokens_max as usize
    }

    /// UTF-8 bytes of all texts.
    pub fn total_text_bytes(&self) -> u64 {
        self.metadata.text_bytes
    }

    /// Size of the vocabulary; every id is below it.
    pub fn vocab_size(&self) -> u32 {
        self.metadata.vocab_size
    }

    /// BLAKE3 of the `tokenizer.json` that made the ids.
    pub fn tokenizer(&self) -> Digest {
        Digest::from(blake3::Hash::from_bytes(self.metadata.tokenizer))
    }

    /// The ids of document `document`, without special tokens, as stored.
    ///
    /// # Panics
    /// When `document` is not below [`Self::n_documents`].
    pub fn view(&self, document: usize) -> Ids<'_> {
        let offsets = self.checked::<u64>("offsets");
        let range = offsets[document] as usize..offsets[document + 1] as usize;
        if self.metadata.vocab_size <= U16_VOCAB_MAX {
            Ids::U16(&self.checked("ids")[range])
        } else {
            Ids::U32(&self.checked("ids")[range])
        }
    }

    /// The ids of document `document`, without special tokens.
    ///
    /// # Panics
    /// When `document` is not below [`Self::n_documents`].
    pub fn ids(&self, document: usize) -> Vec<u32> {
        let mut ids = Vec::new();
        self.view(document).copy_to(&mut ids);
        ids
    }

    /// What some neighbouring documents say: their ids, one document after the other.
    ///
    /// # Panics
    /// When there are fewer documents.
    pub fn digest(&self, documents: Range<usize>) -> Digest {
        let (mut hasher, mut ids, mut bytes) = (blake3::Hasher::new(), Vec::new(), Vec::new());
        for document in documents {
            ids.clear();
            bytes.clear();
            self.view(document).copy_to(&mut ids);
            bytes.extend((ids.len() as u64).to_le_bytes());
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            hasher.update(&bytes);
        }
        Digest::from(hasher.finalize())
    }

    /// How many tokens document `document` has, without special tokens.
    ///
    /// # Panics
    /// When `document` is not below [`Self::n_documents`].
    pub fn length(&self, document: usize) -> usize {
        let offsets = self.checked::<u64>("offsets");
        (offsets[document + 1] - offsets[document]) as usize
    }

    /// The id of document `document` in the corpus.
    ///
    /// # Panics
    /// When `document` is not below [`Self::n_documents`].
    pub fn document_id(&self, document: usize) -> u64 {
        self.checked::<u64>("document_ids")[document]
    }

    /// UTF-8 bytes of document `document`'s text.
    ///
    /// # Panics
    /// When `document` is not below [`Self::n_documents`].
    pub fn text_bytes(&self, document: usize) -> u32 {
        self.checked::<u32>("text_bytes")[document]
    }
}

/// Writes a `tokens` artifact as a stream of documents.
pub struct TokensWriter {
    writer: Writer,
    metadata: Metadata,
    offsets: Column<u64>,
    document_ids: Column<u64>,
    text_bytes: Column<u32>,
    narrow: Vec<u16>,
}

impl TokensWriter {
    /// Starts `dir`'s files for ids below `vocab_size` made by the `tokenizer.json` of this digest.
    ///
    /// # Errors
    /// When the files cannot be created.
    pub fn create(dir: &Path, vocab_size: u32, tokenizer: Digest) -> Result<Self, Error> {
        let mut writer = Writer::create(&dir.join(FILE), KIND, VERSION)?;
        if vocab_size <= U16_VOCAB_MAX {
            writer.begin::<u16>("ids")?;
        } else {
            writer.begin::<u32>("ids")?;
        }
        let metadata = Metadata {
            vocab_size,
            tokenizer: *tokenizer.as_bytes(),
            n_documents: 0,
            n_tokens: 0,
            text_bytes: 0,
            document_tokens_max: 0,
        };
        let mut offsets = Column::new(dir)?;
        offsets.push(0).map_err(|error| Error::io("write", writer.path(), error))?;
        let (document_ids, text_bytes) = (Column::new(dir)?, Column::new(dir)?);
        Ok(Self { writer, metadata, offsets, document_ids, text_bytes, narrow: Vec::new() })
    }

    /// Appends a document: its id, the UTF-8 length of its text, its ids without special tokens.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When an id is not below the vocabulary's size.
    pub fn push(&mut self, document_id: u64, text_bytes: u32, ids: &[u32]) -> Result<(), Error> {
        let metadata = &mut self.metadata;
        assert!(ids.iter().all(|&id| id < metadata.vocab_size), "token id past the vocabulary");
        if metadata.vocab_size <= U16_VOCAB_MAX {
            self.narrow.clear();
            self.narrow.extend(ids.iter().map(|&id| id as u16));
            self.writer.extend(&self.narrow)?;
        } else {
            self.writer.extend(ids)?;
        }
        metadata.n_documents += 1;
        metadata.n_tokens += ids.len() as u64;
        metadata.text_bytes += u64::from(text_bytes);
        metadata.document_tokens_max = metadata.document_tokens_max.max(ids.len() as u64);
        self.offsets
            .push(metadata.n_tokens)
            .and_then(|()| self.document_ids.push(document_id))
            .and_then(|()| self.text_bytes.push(text_bytes))
            .map_err(|error| Error::io("write", self.writer.path(), error))
    }

    /// Appends the documents of an artifact made with the same tokenizer.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When the tokenizers differ.
    pub fn append(&mut self, tokens: &Tokens) -> Result<(), Error> {
        assert_eq!(tokens.metadata.tokenizer, self.metadata.tokenizer, "one tokenizer");
        let mut ids = Vec::new();
        for document in 0..tokens.n_documents() {
            ids.clear();
            tokens.view(document).copy_to(&mut ids);
            self.push(tokens.document_id(document), tokens.text_bytes(document), &ids)?;
        }
        Ok(())
    }

    /// Tokens written so far.
    pub fn n_tokens(&self) -> u64 {
        self.metadata.n_tokens
    }

    /// Writes what is left and makes the files durable.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> Result<TokensSummary, Error> {
        self.writer.column("offsets", self.offsets)?;
        self.writer.column("document_ids", self.document_ids)?;
        self.writer.column("text_bytes", self.text_bytes)?;
        let summary_path = self.writer.path().with_file_name("tokens.json");
        self.writer.finish(&self.metadata)?;
        let summary = TokensSummary {
            n_documents: self.metadata.n_documents,
            n_tokens: self.metadata.n_tokens,
            text_bytes: self.metadata.text_bytes,
            document_tokens_max: self.metadata.document_tokens_max,
            vocab_size: self.metadata.vocab_size,
            tokenizer: Digest::from(blake3::Hash::from_bytes(self.metadata.tokenizer)),
        };
        crate::corpus::write_json(&summary_path, &summary)?;
        Ok(summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_come_back_as_written() {
        let check = |vocab_size: u32, id: u32| {
            let dir = tempfile::tempdir().unwrap();
            let digest = Digest::of(b"tokenizer");
            let mut writer = TokensWriter::create(dir.path(), vocab_size, digest).unwrap();
            writer.push(9, 5, &[4, 5, id]).unwrap();
            writer.push(8, 0, &[]).unwrap();
            writer.push(u64::MAX, 2, &[7]).unwrap();
            let summary = writer.finish().unwrap();
            assert_eq!((summary.n_tokens, summary.text_bytes), (4, 7));
            let tokens = Tokens::open(dir.path()).unwrap();
            assert_eq!((tokens.n_documents(), tokens.n_tokens()), (3, 4));
            assert_eq!(tokens.ids(0), [4, 5, id]);
            assert_eq!((tokens.length(1), tokens.view(2).get(0)), (0, 7));
            assert_eq!((tokens.document_id(2), tokens.text_bytes(0)), (u64::MAX, 5));
            assert_eq!((tokens.document_tokens_max(), tokens.tokenizer()), (3, digest));
        };
        check(1 << 16, 0xffff);
        check((1 << 16) + 1, 0x1_0000);
    }

    #[test]
    fn contradictions_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let write = |offsets: &[u64], ids: &[u16]| {
            let mut writer = Writer::create(&dir.path().join(FILE), KIND, VERSION).unwrap();
            writer.section("ids", ids).unwrap();
            writer.section("offsets", offsets).unwrap();
            writer.section("document_ids", &[1_u64, 2]).unwrap();
            writer.section("text_bytes", &[1_u32, 2]).unwrap();
            let metadata = Metadata {
                vocab_size: 10,
                tokenizer: [0; 32],
                n_documents: 2,
                n_tokens: ids.len() as u64,
                text_bytes: 3,
                document_tokens_max: 2,
            };
            writer.finish(&metadata).unwrap();
            Tokens::open(dir.path()).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(write(&[0, 1, 3], &[1, 2, 3]), "");
        assert!(write(&[0, 4, 3], &[1, 2, 3]).contains("out of order"));
        assert!(write(&[0, 1, 2], &[1, 2, 3]).contains("out of order"));
        assert!(write(&[0, 3], &[1, 2, 3]).contains("differ in length"));
        assert!(write(&[0, 1, 3], &[1, 2, 10]).contains("past its vocabulary"));
    }
}
