//! Measures a synthetic corpus by rules, beside the same figures for real documents where they apply.
//!
//! - *repetition*: a sentence occurs more than three times, or a window of 13 tokens occurs twice.
//! - *duplicate*: Jaccard similarity of at least 0.6 with an earlier document of the corpus, over
//!   5-word windows, exact.
//! - *pair copying*: that similarity with the document's own seed, or equality after normalization.
//! - *regurgitation*: at least half of the document's 13-token windows occur in the real documents.
//! - *unsupported*: of the documents that state a number of two digits or more, those that state one
//!   which no real document has; for a real document, no other one. Numbers stand in for facts: a number
//!   that is nowhere in the real text was made up, though one that is there may still be wrong.
//! - *relevance*: TF-IDF cosine with the own seed is above that with each of 20 random real documents;
//!   1 in 21 would be by chance. *Win rate* is the mean share of the 20 that the seed beats: 0.5 by
//!   chance.
//!
//! Difference from the paper: it asks a language model about repetition, facts, relevance and copying;
//! rules need no judge and are exactly repeatable, but see words, not meaning.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::num::NonZeroU64;
use std::path::Path;

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, Port, Task};
use kernels::Pool;
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, Document, read_json, write_json};
use crate::decode::Codec;
use crate::format::Error;
use crate::format::tokens::Tokens;
use crate::shingle::{self, Shingles, WINDOW_TOKENS, duplicates};
use crate::tfidf::{self, Counts, Frequencies};
use crate::{rows, stats};

/// Jaccard similarity of duplicates, of the paper's Table 2.
pub(crate) const DUPLICATE_JACCARD: f64 = 0.6;
/// Words of a window for Jaccard similarity; the paper does not say.
pub(crate) const DUPLICATE_WORDS: usize = 5;
/// Share of a document's windows found in real documents that makes it regurgitated.
const REGURGITATED_SHARE: f64 = 0.5;
/// A sentence that occurs more often is a repetition; the paper's judge is told the same.
const SENTENCE_REPEATS_MAX: usize = 3;
/// Text read at a time, in bytes.
const BATCH_BYTES: usize = 4 << 20;
/// Random real documents that the seed is compared with.
const N_RANDOM: u64 = 20;

/// See the module.
pub struct MeasureQuality;

/// Params of `measure_quality`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Documents measured one by one, drawn at random; duplicates are looked for among all.
    #[serde(default = "default_n_items")]
    pub n_items: NonZeroU64,
    /// Seed of the sample and of the random real documents.
    #[serde(default)]
    pub seed: u64,
}

fn default_n_items() -> NonZeroU64 {
    const { NonZeroU64::new(1000).expect("it is not 0") }
}

/// A share with its 95 % Wilson interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// `k / n`; 0 when `n` is 0.
    pub rate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Documents that have the property.
    pub k: u64,
    /// Documents looked at.
    pub n: u64,
}

impl Rate {
    /// The share of `flags` that are true.
    pub(crate) fn of(flags: impl IntoIterator<Item = bool>) -> Self {
        let (mut k, mut n) = (0, 0);
        for flag in flags {
            k += u64::from(flag);
            n += 1;
        }
        Self::of_counts(k, n)
    }

    /// `k` of `n`.
    pub(crate) fn of_counts(k: u64, n: u64) -> Self {
        let (low, high) = stats::wilson(k, n);
        Self { rate: k as f64 / (n as f64).max(1.0), low, high, k, n }
    }
}

/// What `quality.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Documents in the corpus.
    pub n_documents: u64,
    /// Documents that repeat themselves.
    pub repetition: Rate,
    /// The same among real documents.
    pub repetition_real: Rate,
    /// Documents that are near-duplicates of an earlier one, among all.
    pub duplicate: Rate,
    /// The same among the first real documents, as many.
    pub duplicate_real: Rate,
    /// Documents that copy their seed.
    pub pair_copying: Rate,
    /// Documents with a number that no real document has, of those with a number.
    pub unsupported: Rate,
    /// Real documents with a number that no other one has, of those with a number.
    pub unsupported_real: Rate,
    /// Documents that are mostly made of windows of real documents.
    pub regurgitation: Rate,
    /// Mean share of a document's windows that occur in real documents.
    pub containment_mean: f64,
    /// Documents that are nearer to their seed than to each of 20 random documents.
    pub relevance: Rate,
    /// Mean share of random documents that the seed beats; `None` without seeds.
    pub win_rate: Option<f64>,
    /// Tokens of the measured documents: quantiles by name.
    pub tokens: BTreeMap<String, f64>,
    /// Measured documents without any letter.
    pub empty: u64,
}

impl Quality {
    /// Reads the `quality` artifact in `dir`.
    ///
    /// # Errors
    /// When `quality.json` cannot be read.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        read_json(&dir.join("quality.json"))
    }
}

/// One line of `items.jsonl.zst`.
#[derive(Clone, Debug, Serialize)]
struct Item {
    id: String,
    seed: Option<String>,
    tokens: u64,
    empty: bool,
    repeated_sentence: bool,
    repeated_window: bool,
    unsupported: Option<bool>,
    containment: f64,
    seed_jaccard: Option<f64>,
    copies_seed: Option<bool>,
    seed_cosine: Option<f64>,
    beaten: Option<u64>,
}

impl Task for MeasureQuality {
    const KIND: &'static str = "measure_quality";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str =
        "measures repetition, duplicates, copying and relevance of synthetic documents by rules";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const INPUTS: &'static [Port] = &[
        Port::one("synthetic", "corpus", "the synthetic documents"),
        Port::one("real", "tokens", "the real documents, the seeds among them"),
        Port::one("tokenizer", "tokenizer", "the tokenizer of the real documents"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("quality", "quality", "rates with intervals, and one row per document")];
    type Params = Params;

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let corpus = Corpus::open(inputs.one("synthetic"))?;
        if corpus.n_documents() == 0 {
            return Err(Failure::permanent("the synthetic corpus has no documents"));
        }
        let tokens = Tokens::open(inputs.one("real"))?;
        let codec = Codec::open_for(inputs.one("tokenizer"), &tokens)?;
        let real = Real::read(ctx, &codec, &tokens)?;
        let n = corpus.n_documents() as usize;
        let mut chosen = Philox::new(params.seed, "quality sample").permutation(n);
        chosen.truncate(params.n_items.get() as usize);
        chosen.sort_unstable();
        let rng = Philox::new(params.seed, "quality random documents");
        let mut items = Vec::new();
        let mut next_chosen = chosen.into_iter().peekable();
        for (i, document) in corpus.documents().enumerate() {
            let document = document?;
            if next_chosen.next_if_eq(&i).is_some() {
                items.push(real.measure(&codec, &document, rng.fork(i as u64))?);
            }
            if i % 32 == 0 {
                ctx.check_cancelled()?;
                ctx.progress(i as u64, n as u64, "documents");
            }
        }
        let pool = Pool::new(ctx.n_threads());
        let duplicates = [duplicates_of(ctx, &pool, &corpus)?, real.duplicates(&pool, n)];
        let quality = summarize(&items, &real, duplicates);
        let dir = ctx.out("quality")?;
        rows::write(&dir.join("items.jsonl.zst"), &items)?;
        write_json(&dir.join("quality.json"), &quality)?;
        ctx.progress(n as u64, n as u64, "documents");
        let mut outputs = Outputs::default()
            .metric("repetition", quality.repetition.rate)
            .metric("duplicate", quality.duplicate.rate)
            .metric("regurgitation", quality.regurgitation.rate);
        if let Some(win_rate) = quality.win_rate {
            outputs = outputs
                .metric("pair_copying", quality.pair_copying.rate)
                .metric("relevance", quality.relevance.rate)
                .metric("win_rate", win_rate);
        }
        Ok(outputs)
    }
}

/// What is kept of the real documents.
struct Real {
    index: HashMap<u64, usize>,
    normalized: Vec<String>,
    sets: Vec<Vec<u64>>,
    counts: Vec<Counts>,
    frequencies: Frequencies,
    /// Hashes of all 13-token windows, sorted and distinct.
    windows: Vec<u64>,
    repeats: Vec<bool>,
    /// In how many documents a number stands.
    numbers: BTreeMap<String, u64>,
    unsupported: Vec<bool>,
}

impl Real {
    fn read(ctx: &Context, codec: &Codec, tokens: &Tokens) -> Result<Self, Failure> {
        let n = tokens.n_documents();
        if n < 2 {
            return Err(Failure::permanent(format!("{n} real documents; 2 are needed to compare")));
        }
        let (mut normalized, mut sets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut windows, mut repeats, mut stated) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            if i % 32 == 0 {
                ctx.check_cancelled()?;
            }
            let text = codec.text(tokens, i)?;
            let plain = shingle::normalize(&text);
            let shingles = Shingles::new(codec.encode(&plain)?, WINDOW_TOKENS);
            windows.extend(shingles.hashes());
            repeats.push(shingles.repeats_max() > 1 || repeats_a_sentence(&text));
            sets.push(shingle::word_windows(&text, DUPLICATE_WORDS));
            counts.push(tfidf::words(&text));
            stated.push(numbers(&text));
            normalized.push(plain);
        }
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        for number in stated.iter().flatten() {
            *numbers.entry(number.clone()).or_default() += 1;
        }
        let elsewhere = |number: &str| numbers.get(number).is_some_and(|n| *n > 1);
        let unsupported = stated.iter().filter_map(|own| unsupported(own, elsewhere)).collect();
        windows.sort_unstable();
        windows.dedup();
        let index = (0..n).map(|i| (tokens.document_id(i), i)).collect();
        let frequencies = Frequencies::of(&counts);
        Ok(Self {
            index,
            normalized,
            sets,
            counts,
            frequencies,
            windows,
            repeats,
            numbers,
            unsupported,
        })
    }

    fn measure(&self, codec: &Codec, document: &Document, rng: Philox) -> Result<Item, Failure> {
        let plain = shingle::normalize(&document.text);
        let ids = codec.encode(&plain)?;
        let shingles = Shingles::new(ids, WINDOW_TOKENS);
        let known = shingles.hashes().filter(|hash| self.windows.binary_search(hash).is_ok());
        let containment = known.count() as f64 / shingles.n_windows() as f64;
        let seed = self.seed(document)?;
        let mut item = Item {
            id: format!("{:016x}", document.id),
            seed: seed.map(|_| document.meta["seed_id"].as_str().unwrap_or_default().to_owned()),
            tokens: codec.encode(&document.text)?.len() as u64,
            empty: plain.is_empty(),
            repeated_sentence: repeats_a_sentence(&document.text),
            repeated_window: shingles.repeats_max() > 1,
            unsupported: unsupported(&numbers(&document.text), |number| {
                self.numbers.contains_key(number)
            }),
            containment,
            seed_jaccard: None,
            copies_seed: None,
            seed_cosine: None,
            beaten: None,
        };
        if let Some(seed) = seed {
            let set = shingle::word_windows(&document.text, DUPLICATE_WORDS);
            let jaccard = shingle::jaccard(&set, &self.sets[seed]);
            item.seed_jaccard = Some(jaccard);
            item.copies_seed = Some(jaccard >= DUPLICATE_JACCARD || plain == self.normalized[seed]);
            let own = self.frequencies.weigh(&tfidf::words(&document.text), |_| true);
            let cosine =
                |i: usize| tfidf::cosine(&own, &self.frequencies.weigh(&self.counts[i], |_| true));
            let with_seed = cosine(seed);
            let n = self.counts.len() as u64;
            let beaten = (0..N_RANDOM).filter(|&draw| {
                let other = rng.below(draw, n - 1) as usize;
                cosine(other + usize::from(other >= seed)) < with_seed
            });
            item.beaten = Some(beaten.count() as u64);
            item.seed_cosine = Some(with_seed);
        }
        Ok(item)
    }

    /// Which of the first `n` real documents repeat an earlier one.
    fn duplicates(&self, pool: &Pool, n: usize) -> Vec<bool> {
        let sets = &self.sets[..n.min(self.sets.len())];
        let found =
            duplicates::find::<Infallible>(pool, sets.len(), DUPLICATE_JACCARD, |_, visit| {
                visit(sets);
                Ok(())
            });
        found.unwrap_or_else(|never| match never {})
    }

    /// Index of the document's seed; `None` when it was written without one.
    fn seed(&self, document: &Document) -> Result<Option<usize>, Failure> {
        document
            .seed_among("the real documents", |id| self.index.get(&id).copied())
            .map_err(|failure| failure.help("connect to `real` the documents that were the seeds"))
    }
}

/// Whether a sentence of at least three words occurs more than three times.
fn repeats_a_sentence(text: &str) -> bool {
    let mut counts: HashMap<String, usize> = HashMap::new();
    text.split(['.', '!', '?', '\n', '。', '！', '？'])
        .map(shingle::normalize)
        .filter(|sentence| sentence.split(' ').count() >= 3)
        .any(|sentence| {
            let count = counts.entry(sentence).or_insert(0);
            *count += 1;
            *count > SENTENCE_REPEATS_MAX
        })
}

/// Numbers of two digits or more, each once.
fn numbers(text: &str) -> BTreeSet<String> {
    let runs = text.split(|c: char| !c.is_ascii_digit());
    runs.filter(|run| run.len() > 1).map(str::to_owned).collect()
}

/// Whether one of the numbers is not known; nothing where there are none.
fn unsupported(numbers: &BTreeSet<String>, is_known: impl Fn(&str) -> bool) -> Option<bool> {
    (!numbers.is_empty()).then(|| !numbers.iter().all(|number| is_known(number)))
}

/// Which documents of a corpus repeat an earlier one.
fn duplicates_of(ctx: &Context, pool: &Pool, corpus: &Corpus) -> Result<Vec<bool>, Failure> {
    let n = corpus.n_documents() as usize;
    duplicates::find(pool, n, DUPLICATE_JACCARD, |wanted, visit| {
        let (mut documents, mut n_read) = (corpus.documents(), 0);
        loop {
            ctx.check_cancelled()?;
            let batch = documents.next_batch(BATCH_BYTES)?;
            if batch.is_empty() {
                return Ok(());
            }
            let texts: Vec<&str> = batch.iter().map(|document| document.text.as_str()).collect();
            visit(&duplicates::windows(pool, &texts, &wanted[n_read..], DUPLICATE_WORDS));
            n_read += texts.len();
        }
    })
}

fn summarize(items: &[Item], real: &Real, [duplicate, duplicate_real]: [Vec<bool>; 2]) -> Quality {
    let beaten: Vec<u64> = items.iter().filter_map(|item| item.beaten).collect();
    let win_rate = (!beaten.is_empty())
        .then(|| beaten.iter().sum::<u64>() as f64 / (beaten.len() as u64 * N_RANDOM) as f64);
    let mut lengths: Vec<f64> = items.iter().map(|item| item.tokens as f64).collect();
    lengths.sort_unstable_by(f64::total_cmp);
    let names = [("p5", 0.05), ("p50", 0.5), ("p95", 0.95), ("max", 1.0)];
    Quality {
        n_documents: duplicate.len() as u64,
        repetition: Rate::of(items.iter().map(|i| i.repeated_sentence || i.repeated_window)),
        repetition_real: Rate::of(real.repeats.iter().copied()),
        duplicate: Rate::of(duplicate),
        duplicate_real: Rate::of(duplicate_real),
        pair_copying: Rate::of(items.iter().filter_map(|item| item.copies_seed)),
        unsupported: Rate::of(items.iter().filter_map(|item| item.unsupported)),
        unsupported_real: Rate::of(real.unsupported.iter().copied()),
        regurgitation: Rate::of(items.iter().map(|item| item.containment >= REGURGITATED_SHARE)),
        containment_mean: items.iter().map(|item| item.containment).sum::<f64>()
            / items.len() as f64,
        relevance: Rate::of(beaten.iter().map(|&beaten| beaten == N_RANDOM)),
        win_rate,
        tokens: names
            .iter()
            .map(|&(name, q)| (name.to_owned(), stats::quantile(&lengths, q)))
            .collect(),
        empty: items.iter().filter(|item| item.empty).count() as u64,
    }
}

#[cfg(test)]
mod tests;
