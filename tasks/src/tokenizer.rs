//! The `tokenizer` artifact: a Hugging Face `tokenizer.json`, and the special tokens.
//!
//! The special tokens exist in every tokenizer from the start, so that baseline, synthesizer and
//! joint model share one vocabulary.
//!
//! Byte-level BPE, which is what this program trains, is encoded by code of its own, some fourteen times
//! as fast as the `tokenizers` crate and equal to it id for id; any other tokenizer goes through the
//! crate.

mod encoder;
mod merges;
mod words;

use std::path::Path;

use encoder::Encoder;
use engine::digest::Digest;
use engine::task::Failure;
use tokenizers::Tokenizer as HfTokenizer;

/// Id of [`SPECIALS`]`[0]`, the start of every sequence.
pub const BOS: u32 = 0;
/// Id of [`SPECIALS`]`[1]`, the end of a document.
pub const EOS: u32 = 1;
/// Id of [`SPECIALS`]`[2]`, between the documents of a tuning pair.
pub const SEP: u32 = 2;
/// Id of [`SPECIALS`]`[3]`, fills rows; never a target.
pub const PAD: u32 = 3;

/// The special tokens as written, by id.
pub const SPECIALS: [&str; 4] = ["<|bos|>", "<|eos|>", "<|sep|>", "<|pad|>"];

/// Special tokens that a training document adds to its text: `<|bos|>` and `<|eos|>`.
pub const DOCUMENT_SPECIALS: u64 = 2;

/// The file in the artifact's folder.
pub const FILE: &str = "tokenizer.json";

/// Reads a Hugging Face `tokenizer.json`.
///
/// # Errors
/// When it is none.
pub(crate) fn parse(bytes: &[u8]) -> Result<HfTokenizer, String> {
    // The library expects, and does not check, that parts which it reads twice are what they were
    // the first time; on some damaged files it panics. So it does on every text when the template
    // names a token that it does not give, or a second text in the place of the first.
    let parsed = std::panic::catch_unwind(|| {
        let parsed = HfTokenizer::from_bytes(bytes)?;
        // A tokenizer that cannot tokenize this text may do for others.
        let _ = parsed.encode_fast("a", true);
        Ok::<_, tokenizers::Error>(parsed)
    });
    match parsed {
        Ok(parsed) => parsed.map_err(|error| error.to_string()),
        Err(_) => Err("it is malformed".to_owned()),
    }
}

/// Refuses gaps in the ids: embeddings and tables have a row for each token.
fn check_ids(inner: &HfTokenizer) -> Result<(), String> {
    let vocab = inner.get_vocab(true);
    let (n, last) = (vocab.len(), vocab.into_values().max().unwrap_or(0));
    if (last as usize) < n {
        return Ok(());
    }
    Err(format!("has {n} tokens, but ids up to {last}: renumber them without gaps"))
}

/// Turns text into ids and back.
pub struct Tokenizer {
    inner: HfTokenizer,
    encoder: Option<Encoder>,
    digest: Digest,
}

impl Tokenizer {
    /// Opens the `tokenizer` artifact in `dir`; any artifact with a `tokenizer.json` will do.
    ///
    /// # Errors
    /// When the file cannot be read, or its special tokens are not [`SPECIALS`] with ids 0 to 3.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(FILE);
        let bytes = std::fs::read(&path)
            .map_err(|error| Failure::io(format!("cannot read `{}`", path.display()), &error))?;
        let inner = parse(&bytes).map_err(|message| {
            Failure::permanent(format!("`{}` is not a tokenizer: {message}", path.display()))
        })?;
        let json = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::permanent(format!("`{}` is not a tokenizer: {error}", path.display()))
        })?;
        let wrong = |what| Failure::permanent(format!("`{}` {what}", path.display()));
        // Tables are as long as the vocabulary, so this comes before the encoder's.
        check_ids(&inner).map_err(wrong)?;
        Self::from_parts(inner, Encoder::of(&json), Digest::of(&bytes)).map_err(wrong)
    }

    fn from_parts(
        mut inner: HfTokenizer,
        encoder: Option<Encoder>,
        digest: Digest,
    ) -> Result<Self, String> {
        for (id, special) in SPECIALS.iter().enumerate() {
            if inner.token_to_id(special) != Some(id as u32) {
                return Err(format!("does not give `{special}` the id {id}"));
            }
        }
        // A text that contains `<|eos|>` must not be able to end its document.
        inner.set_encode_special_tokens(true);
        inner
            .with_truncation(None)
            .map_err(|error| format!("cannot be used without truncation: {error}"))?
            .with_padding(None);
        Ok(Self { inner, encoder, digest })
    }

    /// The ids of `text`, without special tokens: those of Hugging Face `encode` with
    /// `add_special_tokens=False` and `encode_special_tokens=True`.
    ///
    /// # Errors
    /// When the tokenizer has no id for a part of the text, which a byte-level one never does.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Failure> {
        if let Some(encoder) = &self.encoder {
            let mut ids = Vec::new();
            encoder.encode(text.as_bytes(), &mut ids);
            return Ok(ids);
        }
        self.encode_by_definition(text)
    }

    /// [`Self::encode`] by the `tokenizers` crate.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_by_definition(&self, text: &str) -> Result<Vec<u32>, Failure> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| Failure::permanent(format!("cannot tokenize: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Failure> {
        if let Some(encoder) = &self.encoder {
            return Ok(String::from_utf8_lossy(&encoder.decode(ids)).into_owned());
        }
        self.inner
            .decode(ids, true)
            .map_err(|error| Failure::permanent(format!("cannot decode: {error}")))
    }

    /// Whether ids come from the fast path, which knows byte-level BPE only.
    pub fn is_fast(&self) -> bool {
        self.encoder.is_some()
    }

    /// Size of the vocabulary, special tokens included; every id is below it.
    pub fn vocab_size(&self) -> u32 {
        self.inner.get_vocab_size(true) as u32
    }

    /// BLAKE3 of the `tokenizer.json`.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

#[cfg(test)]
mod tests;
