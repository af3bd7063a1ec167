//! Texts back from token ids.

use std::path::Path;

use engine::task::Failure;

use crate::format::tokens::Tokens;
use crate::tokenizer::Tokenizer;

/// The tokenizer that made some token ids.
pub struct Codec(Tokenizer);

impl Codec {
    /// Opens the `tokenizer` artifact in `dir`, for texts.
    ///
    /// # Errors
    /// When `tokenizer.json` cannot be read.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        Ok(Self(Tokenizer::open(dir)?))
    }

    /// As [`Self::open`], for ids that the tokenizer must have made.
    ///
    /// # Errors
    /// As [`Self::open`], and when another tokenizer made the ids.
    pub fn open_for(dir: &Path, tokens: &Tokens) -> Result<Self, Failure> {
        let codec = Self::open(dir)?;
        if codec.0.digest() != tokens.tokenizer() {
            let message = format!(
                "tokenizer {} is connected, but tokenizer {} made the token ids",
                codec.0.digest().short(),
                tokens.tokenizer().short()
            );
            return Err(Failure::permanent(message));
        }
        Ok(codec)
    }

    /// The text of document `i`.
    ///
    /// # Errors
    /// When the tokenizer cannot decode it.
    pub fn text(&self, tokens: &Tokens, i: usize) -> Result<String, Failure> {
        self.0.decode(&tokens.ids(i)).map_err(|failure| {
            let id = tokens.document_id(i);
            Failure::permanent(format!("cannot decode document {id:016x}: {failure}"))
        })
    }

    /// The token ids of a text, without special tokens.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Failure> {
        self.0.encode(text)
    }
}
