//! Turns a corpus into token ids, in order, dropping documents that are too short or too long.

use engine::task::{
    CancelToken, Context, Determinism, Estimate, FILE_BYTES, Failure, Inputs, Item, ItemContext,
    Outputs, ParamError, Port, Predicted, Task,
};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, Document};
use crate::cost::{fact, figure, ids_bytes, unit};
use crate::format::tokens::{Tokens, TokensWriter};
use crate::tokenizer::Tokenizer;

/// Text tokenized between two looks at the cancel token, in bytes.
const BATCH_BYTES: usize = 4 << 20;

/// Turns a corpus into token ids.
pub struct Tokenize;

/// Params of `tokenize`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Longer documents are dropped. In tokens without `<|bos|>` and `<|eos|>`; the paper's limit of
    /// 4096 with them is 4094 here.
    #[serde(default = "default_max_document_tokens")]
    pub max_document_tokens: u32,
    /// Shorter documents are dropped. In tokens without `<|bos|>` and `<|eos|>`.
    #[serde(default = "default_min_document_tokens")]
    pub min_document_tokens: u32,
}

/// Bootstrapped pretraining, arXiv 2509.15248, section 3.1: 4096, less the two special tokens.
fn default_max_document_tokens() -> u32 {
    4094
}

fn default_min_document_tokens() -> u32 {
    1
}

impl Task for Tokenize {
    const KIND: &'static str = "tokenize";
    const REVISION: u32 = 1;
    const ITEM_STAGES: u32 = 1;
    const SUMMARY: &'static str = "turns a corpus into token ids";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::one("corpus", "corpus", "documents"),
        Port::one("tokenizer", "tokenizer", "the vocabulary"),
    ];
    const OUTPUTS: &'static [Port] = &[Port::one("tokens", "tokens", "ids, in the corpus' order")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.min_document_tokens > params.max_document_tokens {
            let message = format!(
                "{} is above `max_document_tokens: {}`",
                params.min_document_tokens, params.max_document_tokens
            );
            return Err(ParamError::new("min_document_tokens", message));
        }
        Ok(())
    }

    fn cost(_: &Params, inputs: &Predicted) -> Estimate {
        let corpus = inputs.one("corpus");
        let vocabulary = inputs.fact("tokenizer", fact::VOCABULARY);
        let tokens = corpus.get(fact::TOKENS);
        Estimate::unknown()
            .figure(figure::DOCUMENTS, corpus.get(fact::DOCUMENTS))
            .figure(figure::TOKENS, tokens)
            .work(unit::TEXT_BYTES, corpus.get(fact::TEXT_BYTES))
            .output(
                "tokens",
                corpus
                    .with(fact::VOCABULARY, vocabulary)
                    .with(FILE_BYTES, ids_bytes(tokens, vocabulary)),
            )
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let corpus = Corpus::open(inputs.one("corpus"))?;
        let tokenizer = Tokenizer::open(inputs.one("tokenizer"))?;
        let mut items = Vec::new();
        for (part, digest) in corpus.parts()? {
            let (name, weight) = (part.name(), part.n_documents());
            let made_of = (params, tokenizer.digest(), digest);
            items.push(Item::new(name, &made_of, part).weight(weight));
        }
        let parts = ctx.items("tokenize", "documents", items, |part, item| {
            tokenize_part(part, item, params, &tokenizer)
        })?;
        let dir = ctx.out("tokens")?;
        let mut writer = TokensWriter::create(&dir, tokenizer.vocab_size(), tokenizer.digest())?;
        let mut dropped = Dropped::default();
        for part in parts {
            let part = part?;
            ctx.check_cancelled()?;
            dropped.n_short += part.value.n_short;
            dropped.n_long += part.value.n_long;
            writer.append(&Tokens::open(&part.dir)?)?;
        }
        let (summary, Dropped { n_short, n_long }) = (writer.finish()?, dropped);
        if summary.n_documents == 0 {
            return Err(Failure::permanent(format!(
                "none of {} documents is left: {n_short} have fewer than {} tokens, {n_long} \
                 more than {}",
                corpus.n_documents(),
                params.min_document_tokens,
                params.max_document_tokens
            ))
            .help("change `min_document_tokens` or `max_document_tokens`"));
        }
        Ok(Outputs::default()
            .metric(unit::TEXT_BYTES, corpus.text_bytes() as f64)
            .metric("n_documents", summary.n_documents as f64)
            .metric("n_tokens", summary.n_tokens as f64)
            .metric("n_too_short", n_short as f64)
            .metric("n_too_long", n_long as f64)
            .metric("bytes_per_token", summary.text_bytes as f64 / summary.n_tokens.max(1) as f64))
    }
}

/// Documents that were left out.
#[derive(Default, Serialize, Deserialize)]
struct Dropped {
    n_short: u64,
    n_long: u64,
}

/// Tokenizes a file of the corpus into a `tokens` artifact of its own.
fn tokenize_part(
    part: &Corpus,
    item: &ItemContext<'_>,
    params: &Params,
    tokenizer: &Tokenizer,
) -> Result<Dropped, Failure> {
    let mut writer = TokensWriter::create(item.dir(), tokenizer.vocab_size(), tokenizer.digest())?;
    let pool = Pool::new(item.n_threads());
    let (mut n_read, mut dropped) = (0, Dropped::default());
    let mut documents = part.documents();
    loop {
        let batch = documents.next_batch(BATCH_BYTES)?;
        if batch.is_empty() {
            break;
        }
        n_read += batch.len() as u64;
        let encoded = encode(item.cancel_token(), &pool, tokenizer, &batch)?;
        for (document, ids) in batch.iter().zip(encoded) {
            if ids.len() < params.min_document_tokens as usize {
                dropped.n_short += 1;
            } else if ids.len() > params.max_document_tokens as usize {
                dropped.n_long += 1;
            } else {
                writer.push(document.id, text_bytes(document)?, &ids)?;
            }
        }
        item.progress(n_read);
    }
    writer.finish()?;
    Ok(dropped)
}

fn encode(
    cancel: &CancelToken,
    pool: &Pool,
    tokenizer: &Tokenizer,
    batch: &[Document],
) -> Result<Vec<Vec<u32>>, Failure> {
    let mut encoded: Vec<Result<Vec<u32>, Failure>> = batch.iter().map(|_| Ok(vec![])).collect();
    pool.for_chunks(&mut encoded, 16, |chunk, slots| {
        for (slot, document) in slots.iter_mut().zip(&batch[chunk * 16..]) {
            *slot = if cancel.is_cancelled() {
                Err(Failure::cancelled())
            } else {
                tokenizer.encode(&document.text)
            };
        }
    });
    encoded.into_iter().collect()
}

fn text_bytes(document: &Document) -> Result<u32, Failure> {
    u32::try_from(document.text.len()).map_err(|_| {
        let (id, n_bytes) = (document.id, document.text.len());
        Failure::permanent(format!(
            "document {id:016x} has {n_bytes} bytes; a document may have at most {}",
            u32::MAX
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::task::testbed::Bench;
    use serde_json::json;

    use super::*;
    use crate::corpus::tests::{write_files, write_texts};
    use crate::train_tokenizer::TrainTokenizer;

    const TEXTS: [&str; 4] =
        ["", "to be or not to be", "naïve 日本 🦀", "long long long long text"];

    fn bench(dir: &Path) -> Bench {
        let corpus = dir.join("corpus");
        write_texts(&corpus, TEXTS);
        let train = Bench::new(&dir.join("train")).input("corpus", &corpus);
        train.run::<TrainTokenizer>(&json!({"vocab_size": 262})).unwrap();
        Bench::new(dir).input("corpus", &corpus).input("tokenizer", &train.out("tokenizer"))
    }

    #[test]
    fn ids_keep_the_order_and_the_text() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = bench(dir.path());
        let mut bytes = Vec::new();
        for n_threads in [1, 3] {
            bench.n_threads = n_threads;
            let outputs = bench.run::<Tokenize>(&json!({})).unwrap();
            assert_eq!(outputs.metrics["n_too_short"] as u64, 1);
            bytes.push(std::fs::read(bench.out("tokens").join("tokens.sbp")).unwrap());
        }
        assert_eq!(bytes[0], bytes[1]);
        let tokens = Tokens::open(&bench.out("tokens")).unwrap();
        let tokenizer = Tokenizer::open(&dir.path().join("train/out/tokenizer")).unwrap();
        for (document, text) in TEXTS[1..].iter().enumerate() {
            assert_eq!(tokenizer.decode(&tokens.ids(document)).unwrap(), *text);
            assert_eq!(tokens.text_bytes(document) as usize, text.len());
        }
        assert_eq!(tokens.tokenizer(), tokenizer.digest());
    }

    /// Files are items: however the corpus is cut, the tokens are the same, and an edit has its own
    /// file tokenized again.
    #[test]
    fn files_and_stops_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let train = bench(dir.path());
        let tokenizer = dir.path().join("train/out/tokenizer");
        let mut texts: Vec<String> =
            (0..70).map(|i| format!("to be {i} or not ").repeat(9)).collect();
        let (mut whole, mut cuts) = (None, Vec::new());
        for limit in [u64::MAX, 7_000, 2_000] {
            let corpus = dir.path().join(format!("{limit}"));
            let write =
                |texts: &[String]| write_files(&corpus, texts.iter().map(String::as_str), limit);
            let n_files = write(&texts);
            cuts.push(n_files);
            let place = dir.path().join(format!("place {n_files}"));
            let mut bench =
                Bench::new(&place).input("corpus", &corpus).input("tokenizer", &tokenizer);
            for n_before in 1..n_files {
                bench.stop_after(n_before);
                let stopped = bench.run::<Tokenize>(&json!({})).unwrap_err();
                assert_eq!(stopped.kind, engine::task::FailureKind::Cancelled);
                bench.cancel = CancelToken::default();
            }
            bench.n_threads = 1 + n_files % 2;
            bench.run::<Tokenize>(&json!({})).unwrap();
            assert_eq!(bench.items.n_done(), n_files);
            let bytes = std::fs::read(bench.out("tokens").join("tokens.sbp")).unwrap();
            assert!(whole.get_or_insert_with(|| bytes.clone()) == &bytes, "{n_files} files");

            let n_tries = bench.items.n_tries();
            texts[0].replace_range(0..1, "s");
            write(&texts);
            bench.run::<Tokenize>(&json!({})).unwrap();
            assert_eq!(bench.items.n_tries(), n_tries + 1);
            texts[0].replace_range(0..1, "t");
        }
        assert!(cuts[0] == 1 && cuts[1] > 1 && cuts[2] > 5, "{cuts:?}");
        drop(train);
    }

    #[test]
    fn limits_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let bench = bench(dir.path());
        let outputs = bench.run::<Tokenize>(&json!({"max_document_tokens": 18})).unwrap();
        let tokens = Tokens::open(&bench.out("tokens")).unwrap();
        assert!(tokens.document_tokens_max() <= 18);
        let n_kept = tokens.n_documents() as u64;
        assert_eq!(outputs.metrics["n_too_long"] as u64 + n_kept, 3);
        let none = bench.run::<Tokenize>(&json!({"min_document_tokens": 1000})).unwrap_err();
        assert!(none.message.contains("none of 4 documents is left"), "{none}");
        bench.cancel.cancel();
        let cancelled = bench.run::<Tokenize>(&json!({})).unwrap_err();
        assert_eq!(cancelled.kind, engine::task::FailureKind::Cancelled);
    }
}
