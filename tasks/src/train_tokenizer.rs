//! Trains a byte-level BPE tokenizer and writes it as a Hugging Face `tokenizer.json`.
//!
//! The trainer is that of the `tokenizers` crate. Its memory grows with the text and its pair counts
//! are 32-bit, so it sees a seeded sample of bounded size, and long texts in pieces: while it looks for
//! words it holds some hundred bytes for each byte of a piece.

use std::path::Path;

use engine::task::{
    Context, Determinism, Estimate, Facts, Failure, Inputs, Outputs, ParamError, Port, Predicted,
    Task,
};
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper};
use tokenizers::{PreTokenizerWrapper, TokenizerImpl};

use crate::corpus::{Corpus, write_json};
use crate::cost::{fact, unit};
use crate::tokenizer::{FILE, SPECIALS, Tokenizer};

/// The byte alphabet and the special tokens are always there.
const VOCAB_SIZE_MIN: u32 = 256 + SPECIALS.len() as u32;
/// A pair cannot occur more often than the sample has bytes, so the trainer's counts hold.
const SAMPLE_BYTES_MAX: u64 = i32::MAX as u64;
/// Text that the trainer looks at in one piece, where it has a place to cut.
const PIECE_BYTES: usize = 1 << 20;

type Trainee = TokenizerImpl<
    BPE,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Trains a byte-level BPE tokenizer.
pub struct TrainTokenizer;

/// Params of `train_tokenizer`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Tokens in the vocabulary, the 256 bytes and 4 special tokens included.
    pub vocab_size: u32,
    /// Text that the trainer sees at most, in bytes, sampled document by document. Memory grows with
    /// its distinct words: it took 3 times the text for 250 MB of documentation, and takes more where
    /// most words are new.
    #[serde(default = "default_sample_bytes")]
    pub sample_bytes: u64,
    /// Seed of the sample.
    #[serde(default)]
    pub seed: u64,
    /// A pair must occur this often to be merged.
    #[serde(default = "default_min_frequency")]
    pub min_frequency: u64,
}

fn default_sample_bytes() -> u64 {
    128 << 20
}

fn default_min_frequency() -> u64 {
    2
}

#[derive(Serialize)]
struct Stats {
    vocab_size: u32,
    sample_documents: u64,
    sample_bytes: u64,
    corpus_documents: u64,
    corpus_bytes: u64,
    bytes_per_token: f64,
}

impl Task for TrainTokenizer {
    const KIND: &'static str = "train_tokenizer";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "trains a byte-level BPE tokenizer";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::one("corpus", "corpus", "text to learn from")];
    const OUTPUTS: &'static [Port] =
        &[Port::one("tokenizer", "tokenizer", "a Hugging Face tokenizer.json")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.vocab_size < VOCAB_SIZE_MIN {
            let message = format!("{} is below {VOCAB_SIZE_MIN}", params.vocab_size);
            return Err(ParamError::new("vocab_size", message)
                .help("256 bytes and 4 special tokens are always in the vocabulary"));
        }
        if params.sample_bytes == 0 || params.sample_bytes > SAMPLE_BYTES_MAX {
            let message = format!("{} is not in 1..={SAMPLE_BYTES_MAX}", params.sample_bytes);
            return Err(ParamError::new("sample_bytes", message)
                .help("the trainer's pair counts are 32-bit and would wrap"));
        }
        Ok(())
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let sample = params.sample_bytes as f64;
        let bytes = inputs.fact("corpus", fact::TEXT_BYTES).map(|bytes| bytes.min(sample));
        Estimate::unknown().work(unit::TEXT_BYTES, bytes).output(
            "tokenizer",
            Facts::default().with(fact::VOCABULARY, f64::from(params.vocab_size)),
        )
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let corpus = Corpus::open(inputs.one("corpus"))?;
        let sample = Sample::draw(ctx, &corpus, params)?;
        ctx.check_cancelled()?;
        let cancel = ctx.cancel_token();
        let trained = train(params, &sample.texts, ctx.n_threads(), &|| cancel.is_cancelled())?;
        ctx.check_cancelled()?;

        let dir = ctx.out("tokenizer")?;
        write(&trained, &dir)?;
        let tokenizer = Tokenizer::open(&dir)?;
        let stats = Stats {
            vocab_size: tokenizer.vocab_size(),
            sample_documents: sample.texts.len() as u64,
            sample_bytes: sample.n_bytes,
            corpus_documents: corpus.n_documents(),
            corpus_bytes: corpus.text_bytes(),
            bytes_per_token: bytes_per_token(&tokenizer, &sample.texts)?,
        };
        write_json(&dir.join("tokenizer_stats.json"), &stats)?;
        Ok(Outputs::default()
            .metric(unit::TEXT_BYTES, stats.sample_bytes as f64)
            .metric("vocab_size", f64::from(stats.vocab_size))
            .metric("sample_bytes", stats.sample_bytes as f64)
            .metric("bytes_per_token", stats.bytes_per_token))
    }
}

struct Sample {
    texts: Vec<String>,
    n_bytes: u64,
}

impl Sample {
    /// Takes every document with the same chance, never more than `sample_bytes` in all.
    fn draw(ctx: &Context, corpus: &Corpus, params: &Params) -> Result<Self, Failure> {
        let share = params.sample_bytes as f64 / corpus.text_bytes().max(1) as f64;
        let chance = Philox::new(params.seed, "train_tokenizer");
        let mut sample = Self { texts: Vec::new(), n_bytes: 0 };
        for (i, document) in corpus.documents().enumerate() {
            let document = document?;
            if i % 1024 == 0 {
                ctx.check_cancelled()?;
                ctx.progress(i as u64, corpus.n_documents(), "documents");
            }
            let n_bytes = sample.n_bytes + document.text.len() as u64;
            let fits = n_bytes <= params.sample_bytes;
            if fits && (share >= 1.0 || chance.uniform(document.id) < share) {
                sample.n_bytes = n_bytes;
                sample.texts.push(document.text);
            }
        }
        if sample.n_bytes == 0 {
            let message = format!(
                "no document was drawn, or none fits in `sample_bytes: {}`: the corpus has {} documents \
                 of {} bytes",
                params.sample_bytes,
                corpus.n_documents(),
                corpus.text_bytes()
            );
            return Err(Failure::permanent(message).help("raise `sample_bytes`, or change `seed`"));
        }
        Ok(sample)
    }
}

/// Trains on `texts` and writes `tokenizer.json` into `dir`; for the bench.
pub(crate) fn train_texts(
    texts: &[String],
    vocab_size: u32,
    n_threads: usize,
    dir: &Path,
) -> Result<(), Failure> {
    let params = Params {
        vocab_size,
        sample_bytes: SAMPLE_BYTES_MAX,
        seed: 0,
        min_frequency: default_min_frequency(),
    };
    let n_bytes: u64 = texts.iter().map(|text| text.len() as u64).sum();
    if n_bytes > SAMPLE_BYTES_MAX {
        let message = format!("{n_bytes} bytes to train on; the counts hold {SAMPLE_BYTES_MAX}");
        return Err(Failure::permanent(message));
    }
    write(&train(&params, texts, n_threads, &|| false)?, dir)
}

fn write(trained: &Trainee, dir: &Path) -> Result<(), Failure> {
    let path = dir.join(FILE);
    let mut json = trained
        .to_string(true)
        .map_err(|error| Failure::permanent(format!("cannot write the tokenizer: {error}")))?;
    json.push('\n');
    std::fs::write(&path, json)
        .map_err(|error| Failure::io(format!("cannot write `{}`", path.display()), &error))
}

fn train(
    params: &Params,
    texts: &[String],
    n_threads: usize,
    is_cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Trainee, Failure> {
    let specials = SPECIALS.iter().map(|&special| AddedToken::from(special, true)).collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(params.vocab_size as usize)
        .min_frequency(params.min_frequency)
        .special_tokens(specials)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut trainee = Trainee::new(BPE::default());
    // Without offsets to trim nor a space to add, ids and text convert back and forth exactly.
    let byte_level = ByteLevel::new(false, false, true);
    trainee
        .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(byte_level)))
        .with_decoder(Some(DecoderWrapper::ByteLevel(byte_level)));

    let workers = rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads)
        .build()
        .map_err(|error| Failure::transient(format!("cannot start threads: {error}")))?;
    workers
        .install(|| {
            let pieces = texts.iter().flat_map(|text| pieces(text, PIECE_BYTES));
            let pieces = pieces.take_while(|_| !is_cancelled());
            trainee.train(&mut trainer, pieces).map(|_| ())
        })
        .map_err(|error| Failure::permanent(format!("cannot train the tokenizer: {error}")))?;
    if is_cancelled() {
        return Err(Failure::cancelled());
    }

    let vocab_size = trainee.get_vocab_size(true) as u32;
    if vocab_size < params.vocab_size {
        let message = format!(
            "the sample supports {vocab_size} tokens, fewer than `vocab_size: {}`",
            params.vocab_size
        );
        return Err(Failure::permanent(message)
            .help(format!("set `vocab_size: {vocab_size}` or less, or give more text")));
    }
    Ok(trainee)
}

/// Cuts a text where words end anyway, after about `piece_bytes` each.
///
/// Every alternative of the pre-tokenizer's pattern ends where a blank or a line break follows anything
/// else, and none looks back, so the words are those of the whole text.
fn pieces(text: &str, piece_bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let is_word_end = |at: &usize| rest.as_bytes()[at - 1].is_ascii_graphic();
        let from = piece_bytes.min(rest.len());
        let gaps = memchr::memchr2_iter(b' ', b'\n', &rest.as_bytes()[from..]).map(|at| from + at);
        let end = gaps.filter(|at| *at > 0).find(is_word_end).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Compression on at most the first megabyte of the sample.
fn bytes_per_token(tokenizer: &Tokenizer, texts: &[String]) -> Result<f64, Failure> {
    let (mut n_bytes, mut n_tokens) = (0, 0);
    for text in texts {
        if n_bytes > 1 << 20 {
            break;
        }
        n_bytes += text.len();
        n_tokens += tokenizer.encode(text)?.len();
    }
    Ok(n_bytes as f64 / n_tokens.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use engine::task::testbed::Bench;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;
    use crate::corpus::tests::write_texts;

    const GOLDEN: &str = include_str!("../tests/goldens/tokenizer.json");

    fn golden() -> (Vec<String>, Value) {
        let golden: Value = serde_json::from_str(GOLDEN).unwrap();
        let texts = golden["texts"].as_array().unwrap();
        (texts.iter().map(|text| text.as_str().unwrap().to_owned()).collect(), golden)
    }

    fn train_golden(dir: &Path, n_threads: usize) -> Tokenizer {
        let texts = golden().0;
        write_texts(&dir.join("corpus"), texts.iter().map(String::as_str));
        let mut bench = Bench::new(dir).input("corpus", &dir.join("corpus"));
        bench.n_threads = n_threads;
        bench.run::<TrainTokenizer>(&json!({"vocab_size": 350})).unwrap();
        Tokenizer::open(&bench.out("tokenizer")).unwrap()
    }

    /// Merges, vocabulary and ids are those of Python's `tokenizers`, for any number of threads.
    #[test]
    fn equals_hugging_face() {
        let (texts, golden) = golden();
        for n_threads in [1, 3] {
            let dir = tempfile::tempdir().unwrap();
            let tokenizer = train_golden(dir.path(), n_threads);
            let path = dir.path().join("out/tokenizer/tokenizer.json");
            let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            assert_eq!(json["model"]["merges"], golden["merges"]);
            for (text, ids) in texts.iter().zip(golden["ids"].as_array().unwrap()) {
                assert_eq!(json!(tokenizer.encode(text).unwrap()), *ids, "{text}");
            }
        }
    }

    proptest! {
        /// The trainer sees the same words, wherever a text is cut.
        #[test]
        fn pieces_have_the_words_of_the_whole(
            text in "([a-c'’é日0-9.,]{0,4}[ \n\t\u{a0}]{0,3}){0,30}",
            piece_bytes in 1_usize..40,
        ) {
            let words = |text: &str| -> Vec<String> {
                let mut pre = PreTokenizedString::from(text);
                ByteLevel::new(false, false, true).pre_tokenize(&mut pre).unwrap();
                let splits = pre.get_splits(OffsetReferential::Original, OffsetType::Byte);
                splits.into_iter().map(|split| split.0.to_owned()).collect()
            };
            let cut: Vec<&str> = pieces(&text, piece_bytes).collect();
            prop_assert_eq!(cut.concat(), &text[..]);
            prop_assert_eq!(cut.into_iter().flat_map(words).collect::<Vec<_>>(), words(&text));
        }
    }

    #[test]
    fn long_texts_are_cut() {
        let text = "a bc\ndef ".repeat(1000);
        let sizes: Vec<usize> = pieces(&text, 100).map(str::len).collect();
        assert!(sizes.len() > 80 && sizes.iter().all(|size| *size <= 104), "{sizes:?}");
    }

    #[test]
    fn special_tokens_in_text_are_text() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = train_golden(dir.path(), 1);
        let ids = tokenizer.encode("a<|eos|>b").unwrap();
        assert!(ids.iter().all(|&id| id > 3), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), "a<|eos|>b");
    }

    #[test]
    fn every_text_survives() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = train_golden(dir.path(), 1);
        proptest!(ProptestConfig::with_cases(200), |(text in any::<String>())| {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        });
    }

    #[test]
    fn impossible_vocabularies_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_texts(&dir.path().join("corpus"), ["to be or not to be"]);
        let bench = Bench::new(dir.path()).input("corpus", &dir.path().join("corpus"));
        let run = |params| bench.run::<TrainTokenizer>(&params).unwrap_err();
        let large = run(json!({"vocab_size": 5000}));
        assert!(large.message.contains("fewer than `vocab_size: 5000`"), "{large}");
        assert!(large.help.unwrap().contains("set `vocab_size: 26"));
        assert!(run(json!({"vocab_size": 200})).message.contains("below 260"));
        let wrap = run(json!({"vocab_size": 300, "sample_bytes": 1_u64 << 31}));
        assert!(wrap.message.contains("is not in 1..=2147483647"), "{wrap}");
        let small = run(json!({"vocab_size": 300, "sample_bytes": 3}));
        assert!(small.message.contains("none fits in `sample_bytes: 3`"), "{small}");
    }
}
