//! The vocabulary's special tokens.
//!
//! They exist in every tokenizer from the start, so that baseline, synthesizer and joint model share
//! one vocabulary.

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
