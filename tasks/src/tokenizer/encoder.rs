//! Byte-level BPE at the speed of memory: words by a state machine, merges by table, and a cache of
//! words that were met before.
//!
//! Ids are those of the `tokenizers` crate, which remains the definition and does everything that is
//! not here: other models, other pre-tokenizers, normalization.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::merges::Merges;
use super::words::Words;

/// Words of at most this many bytes are remembered.
const KEY_WORDS: usize = 3;
/// Ids that are remembered with a word, at most.
const SLOT_IDS: usize = 8;
/// Places for words: with 64 bytes each, 4 MiB a thread.
const N_SLOTS: usize = 1 << 16;

/// A remembered word: one cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Slot {
    key: [u64; KEY_WORDS],
    ids: [u32; SLOT_IDS],
    /// Length of the word; 0 in an empty slot.
    n_bytes: u8,
    n_ids: u8,
}

/// Words that one thread met before.
struct Cache(Box<[Slot]>);

impl Cache {
    fn new() -> Self {
        let empty = Slot { key: [0; KEY_WORDS], ids: [0; SLOT_IDS], n_bytes: 0, n_ids: 0 };
        Self(vec![empty; N_SLOTS].into_boxed_slice())
    }
}

/// Turns bytes into ids.
pub(super) struct Encoder {
    words: Words,
    merges: Merges,
    /// Tokens that a whole word becomes at once, with `ignore_merges`.
    whole: BTreeMap<Vec<u8>, u32>,
    /// Bytes of each id, empty where the id has none.
    bytes: Vec<Box<[u8]>>,
    /// Caches that no thread uses now.
    caches: Mutex<Vec<Cache>>,
}

impl Encoder {
    /// Reads a `tokenizer.json`; `None` when it asks for something that is not here.
    pub(super) fn of(json: &Value) -> Option<Self> {
        let model = &json["model"];
        let plain = |key: &str| matches!(model[key], Value::Null | Value::Bool(false));
        let absent = |key: &str| model[key].as_str().unwrap_or_default().is_empty();
        let byte_level = json["pre_tokenizer"]["type"] == "ByteLevel"
            && json["pre_tokenizer"]["add_prefix_space"] == false
            && json["pre_tokenizer"]["use_regex"] != false;
        let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        let plain_text = added.iter().all(|token| token["special"] == true);
        if model["type"] != "BPE"
            || !json["normalizer"].is_null()
            || !byte_level
            || !plain_text
            || !model["dropout"].is_null()
            || !plain("byte_fallback")
            || !absent("continuing_subword_prefix")
            || !absent("end_of_word_suffix")
        {
            return None;
        }
        let vocab = model["vocab"].as_object()?;
        let id = |token: &str| vocab.get(token)?.as_u64().and_then(|id| u32::try_from(id).ok());
        let alphabet = Alphabet::new();
        let mut byte_ids = [0; 256];
        for (byte, id_of_byte) in byte_ids.iter_mut().enumerate() {
            *id_of_byte = id(&alphabet.chars[byte].to_string())?;
        }
        let merges = model["merges"].as_array()?.iter().map(|merge| {
            let (left, right) = match merge {
                Value::String(both) => both.split_once(' ')?,
                Value::Array(both) => match both.as_slice() {
                    [left, right] => (left.as_str()?, right.as_str()?),
                    _ => return None,
                },
                _ => return None,
            };
            Some((id(left)?, id(right)?, id(&format!("{left}{right}"))?))
        });
        let merges: Vec<_> = merges.collect::<Option<_>>()?;
        let n_ids = vocab.values().filter_map(Value::as_u64).max()? as usize + 1;
        let mut bytes = vec![Box::default(); n_ids];
        let mut whole = BTreeMap::new();
        for (token, token_id) in vocab {
            // Special tokens are written in characters that are no bytes, or are never produced.
            let Some(token_bytes) = alphabet.bytes(token) else { continue };
            let token_id = token_id.as_u64()? as u32;
            if model["ignore_merges"] == true {
                whole.insert(token_bytes.clone(), token_id);
            }
            bytes[token_id as usize] = token_bytes.into_boxed_slice();
        }
        for token in added {
            if let Some(slot) = token["id"].as_u64().and_then(|id| bytes.get_mut(id as usize)) {
                *slot = Box::default();
            }
        }
        let merges = Merges::new(&byte_ids, &merges);
        Some(Self { words: Words::new(), merges, whole, bytes, caches: Mutex::default() })
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &[u8], ids: &mut Vec<u32>) {
        let spare = self.caches.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut cache = spare.unwrap_or_else(Cache::new);
        ids.reserve(text.len() / 3);
        for word in self.words.split(text) {
            self.encode_word(&mut cache, text, word.start, word.end, ids);
        }
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
    }

    #[inline]
    fn encode_word(
        &self,
        cache: &mut Cache,
        text: &[u8],
        from: usize,
        to: usize,
        ids: &mut Vec<u32>,
    ) {
        let n_bytes = to - from;
        if n_bytes == 1 && self.whole.is_empty() {
            ids.push(self.merges.byte_id(text[from]));
            return;
        }
        if n_bytes > KEY_WORDS * 8 {
            self.merge(&text[from..to], ids);
            return;
        }
        let key = key(text, from, n_bytes);
        let slot = &mut cache.0[place(key)];
        if slot.n_bytes == n_bytes as u8 && slot.key == key {
            // A fixed number of ids is copied at once; what is too much is taken back.
            let n_before = ids.len();
            ids.extend_from_slice(&slot.ids);
            ids.truncate(n_before + usize::from(slot.n_ids));
            return;
        }
        let n_before = ids.len();
        self.merge(&text[from..to], ids);
        let made = &ids[n_before..];
        if made.len() <= SLOT_IDS {
            (slot.key, slot.n_bytes, slot.n_ids) = (key, n_bytes as u8, made.len() as u8);
            slot.ids[..made.len()].copy_from_slice(made);
        }
    }

    fn merge(&self, word: &[u8], ids: &mut Vec<u32>) {
        match self.whole.get(word) {
            Some(&id) => ids.push(id),
            None => self.merges.encode(word, ids),
        }
    }

    /// The bytes of ids; those without bytes, such as special tokens, are left out.
    pub(super) fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let bytes = ids.iter().filter_map(|&id| self.bytes.get(id as usize));
        bytes.flat_map(|bytes| bytes.iter().copied()).collect()
    }
}

/// The bytes of a word, filled up with zeros.
#[inline]
fn key(text: &[u8], from: usize, n_bytes: usize) -> [u64; KEY_WORDS] {
    let mut key = [0; KEY_WORDS];
    if let Some(whole) = text[from..].first_chunk::<{ KEY_WORDS * 8 }>() {
        for (i, (key, bytes)) in key.iter_mut().zip(whole.as_chunks::<8>().0).enumerate() {
            let kept = n_bytes.saturating_sub(8 * i).min(8) as u32;
            let mask = if kept == 0 { 0 } else { u64::MAX >> (64 - 8 * kept) };
            *key = u64::from_le_bytes(*bytes) & mask;
        }
    } else {
        let mut bytes = [0; KEY_WORDS * 8];
        bytes[..n_bytes].copy_from_slice(&text[from..from + n_bytes]);
        for (key, bytes) in key.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *key = u64::from_le_bytes(*bytes);
        }
    }
    key
}

#[inline]
fn place(key: [u64; KEY_WORDS]) -> usize {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        (product >> 64) as u64 ^ product as u64
    };
    let hash = fold(key[0] ^ 0x9e37_79b9_7f4a_7c15, key[1] ^ 0xd6e8_feb8_6659_fd93);
    fold(hash ^ key[2], 0xa076_1d64_78bd_642f) as usize & (N_SLOTS - 1)
}

/// The characters that stand for bytes in a `tokenizer.json`: printable Latin-1 stands for itself,
/// the others follow from U+0100.
///
/// # Source
/// `bytes_to_unicode` of GPT-2's `encoder.py`.
struct Alphabet {
    chars: [char; 256],
    bytes: BTreeMap<char, u8>,
}

impl Alphabet {
    fn new() -> Self {
        let mut n_shifted = 0;
        let chars = std::array::from_fn(|byte| {
            let itself = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let code = if itself { byte as u32 } else { 0x100 + n_shifted };
            n_shifted += u32::from(!itself);
            char::from_u32(code).expect("no surrogate lies below U+0200")
        });
        let bytes = chars.iter().enumerate().map(|(byte, &c)| (c, byte as u8)).collect();
        Self { chars, bytes }
    }

    fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        token.chars().map(|c| self.bytes.get(&c).copied()).collect()
    }
}
