//! Measures how much of each benchmark occurs in each training corpus.
//!
//! A benchmark item is cut into windows of 13 words, in lower case and without punctuation, as GPT-3's
//! report does; an item of fewer words is one window. A window counts when it occurs in a document of
//! the training corpus. Items of which a large share occurs were seen in training, and scores on them
//! say less. The benchmarks' windows are held in memory; the training corpora pass by as streams.
//!
//! The paper reports no such figures.
//!
//! # Source
//! Brown et al., "Language Models are Few-Shot Learners", arXiv 2005.14165, appendix C.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, ParamError, Port, Task};
use kernels::Pool;
use kernels::minhash;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, Document, write_json};
use crate::words;

/// Words of a window.
const WINDOW_WORDS: usize = 13;
/// Text looked up between two looks at the cancel token, in bytes.
const BATCH_BYTES: usize = 4 << 20;

/// See the module.
pub struct MeasureOverlap;

/// Params of `measure_overlap`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Words of a window.
    #[serde(default = "default_window_words")]
    pub window_words: usize,
    /// An item counts as contaminated when at least this share of its windows occurs.
    #[serde(default = "default_contaminated_share")]
    pub contaminated_share: f64,
}

fn default_window_words() -> usize {
    WINDOW_WORDS
}

fn default_contaminated_share() -> f64 {
    0.5
}

/// The overlap of one benchmark with one training corpus, in `overlap.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Overlap {
    /// The node that made the benchmark.
    benchmark: String,
    /// The node that made the training corpus.
    training: String,
    items: u64,
    /// Items with at least one window in the training corpus.
    items_touched: u64,
    /// Items with at least `contaminated_share` of their windows in it.
    items_contaminated: u64,
    /// Distinct windows of the benchmark, and how many of them occur.
    windows: u64,
    windows_found: u64,
}

impl Task for MeasureOverlap {
    const KIND: &'static str = "measure_overlap";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "measures how much of benchmarks occurs in training corpora";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::many("benchmarks", "corpus", "held-out texts or benchmark items"),
        Port::many("training", "corpus", "what models are trained on"),
    ];
    const OUTPUTS: &'static [Port] = &[Port::one(
        "overlap",
        "overlap",
        "overlap.json, and items.jsonl.zst with every item that is touched",
    )];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.window_words == 0 {
            return Err(ParamError::new("window_words", "it is 0; it must be at least 1"));
        }
        let share = params.contaminated_share;
        if !(share > 0.0 && share <= 1.0) {
            let message = format!("{share} is not above 0 and at most 1");
            return Err(ParamError::new("contaminated_share", message));
        }
        Ok(())
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        for port in ["benchmarks", "training"] {
            if inputs.many(port).is_empty() {
                let message = format!("nothing is connected to `{port}`");
                return Err(Failure::permanent(message).help("name nodes that make a corpus"));
            }
        }
        let mut index = Index::default();
        let mut benchmarks = Vec::new();
        for input in inputs.many("benchmarks") {
            benchmarks.push(index.add(&Corpus::open(&input.dir)?, params.window_words)?);
        }
        let dir = ctx.out("overlap")?;
        let path = dir.join("items.jsonl.zst");
        let fail = |error| Failure::io(format!("cannot write `{}`", path.display()), &error);
        let mut rows = zstd::Encoder::new(File::create(&path).map_err(fail)?, 3).map_err(fail)?;
        let mut overlaps = Vec::new();
        let mut worst = 0.0_f64;
        for training in inputs.many("training") {
            let found = index.look_up(ctx, &training.dir)?;
            for (input, items) in inputs.many("benchmarks").iter().zip(&benchmarks) {
                let of_item = |item: &Item| {
                    let n_found = item.windows.iter().filter(|&&w| found[w as usize]).count();
                    (n_found, n_found as f64 / item.windows.len() as f64)
                };
                let distinct: BTreeSet<u32> =
                    items.iter().flat_map(|item| item.windows.iter().copied()).collect();
                let mut overlap = Overlap {
                    benchmark: input.node.clone(),
                    training: training.node.clone(),
                    items: items.len() as u64,
                    items_touched: 0,
                    items_contaminated: 0,
                    windows: distinct.len() as u64,
                    windows_found: distinct.iter().filter(|&&w| found[w as usize]).count() as u64,
                };
                for item in items {
                    let (n_found, share) = of_item(item);
                    if n_found == 0 {
                        continue;
                    }
                    overlap.items_touched += 1;
                    overlap.items_contaminated += u64::from(share >= params.contaminated_share);
                    let row = serde_json::json!({
                        "benchmark": overlap.benchmark,
                        "training": overlap.training,
                        "id": format!("{:016x}", item.id),
                        "windows": item.windows.len(),
                        "found": n_found,
                    });
                    writeln!(rows, "{row}").map_err(fail)?;
                }
                let share = overlap.items_contaminated as f64 / overlap.items.max(1) as f64;
                worst = worst.max(share);
                ctx.info(format!(
                    "`{}` in `{}`: {} of {} items are contaminated, {} touched",
                    overlap.benchmark,
                    overlap.training,
                    overlap.items_contaminated,
                    overlap.items,
                    overlap.items_touched
                ));
                overlaps.push(overlap);
            }
        }
        rows.finish().and_then(|file| file.sync_all()).map_err(fail)?;
        write_json(&dir.join("overlap.json"), &overlaps)?;
        let n = |value: fn(&Overlap) -> u64| overlaps.iter().map(value).sum::<u64>() as f64;
        Ok(Outputs::default()
            .metric("n_contaminated", n(|overlap| overlap.items_contaminated))
            .metric("n_touched", n(|overlap| overlap.items_touched))
            .metric("contaminated_share_max", worst))
    }
}

/// A benchmark item: its distinct windows, by number.
struct Item {
    id: u64,
    windows: Vec<u32>,
}

/// The windows of all benchmarks, by length: most have the full length, short items have their own.
#[derive(Default)]
struct Index {
    lengths: Vec<(usize, HashMap<u64, u32>)>,
    n_windows: u32,
}

impl Index {
    fn add(&mut self, corpus: &Corpus, window_words: usize) -> Result<Vec<Item>, Failure> {
        let mut items = Vec::new();
        let mut hashes = Vec::new();
        for document in corpus.documents() {
            let document = document?;
            let words = word_hashes(&document.text);
            let length = words.len().min(window_words);
            // An item without words can be found nowhere.
            if length == 0 {
                continue;
            }
            hashes.clear();
            minhash::windows(&words, length, &mut hashes);
            let at = self.lengths.iter().position(|(of, _)| *of == length).unwrap_or_else(|| {
                self.lengths.push((length, HashMap::new()));
                self.lengths.len() - 1
            });
            let known = &mut self.lengths[at].1;
            let mut windows: Vec<u32> = hashes
                .iter()
                .map(|&hash| {
                    *known.entry(hash).or_insert_with(|| {
                        self.n_windows += 1;
                        self.n_windows - 1
                    })
                })
                .collect();
            windows.sort_unstable();
            windows.dedup();
            items.push(Item { id: document.id, windows });
        }
        Ok(items)
    }

    /// Which windows occur in the corpus in `dir`.
    fn look_up(&self, ctx: &Context, dir: &Path) -> Result<Vec<bool>, Failure> {
        let corpus = Corpus::open(dir)?;
        let pool = Pool::new(ctx.n_threads());
        let mut found = vec![false; self.n_windows as usize];
        let (mut documents, mut n_read) = (corpus.documents(), 0_u64);
        loop {
            ctx.check_cancelled()?;
            let batch = documents.next_batch(BATCH_BYTES)?;
            if batch.is_empty() {
                return Ok(found);
            }
            let mut hits: Vec<Vec<u32>> = vec![Vec::new(); batch.len()];
            pool.for_chunks(&mut hits, 1, |i, hits| self.look_in(&batch[i], &mut hits[0]));
            hits.into_iter().flatten().for_each(|window| found[window as usize] = true);
            n_read += batch.len() as u64;
            ctx.progress(n_read, corpus.n_documents(), "documents");
        }
    }

    fn look_in(&self, document: &Document, hits: &mut Vec<u32>) {
        let words = word_hashes(&document.text);
        let mut hashes = Vec::new();
        for (length, known) in &self.lengths {
            hashes.clear();
            minhash::windows(&words, *length, &mut hashes);
            hits.extend(hashes.iter().filter_map(|hash| known.get(hash)));
        }
    }
}

/// A number for each word of a text.
fn word_hashes(text: &str) -> Vec<u32> {
    let mut hashes = Vec::with_capacity(text.len() / 5);
    words::read(text, |word| hashes.push(words::hash_u32(word.as_bytes())));
    hashes
}

#[cfg(test)]
mod tests {
    use engine::task::testbed::Bench;
    use serde_json::{Value, json};

    use super::*;
    use crate::corpus::tests::write_texts;

    /// The definition, on words themselves.
    fn shared(item: &str, training: &[&str], n: usize) -> usize {
        let split = |text: &str| -> Vec<String> {
            let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
            words.map(str::to_lowercase).collect()
        };
        let words = split(item);
        let length = words.len().min(n).max(1);
        let distinct: BTreeSet<&[String]> = words.windows(length).collect();
        let training: Vec<Vec<String>> = training.iter().map(|text| split(text)).collect();
        let occurs = |window: &&&[String]| {
            training.iter().any(|words| words.windows(length).any(|other| other == **window))
        };
        distinct.iter().filter(occurs).count()
    }

    #[test]
    fn counts_follow_the_definition() {
        let items = [
            "One two three, four five six seven.",
            "never seen anywhere at all",
            "short",
            "four FIVE six seven eight",
            "!!",
        ];
        let training = ["zero one TWO three four five six nine", "it is short", "a b c d"];
        let dir = tempfile::tempdir().unwrap();
        write_texts(&dir.path().join("items"), items);
        write_texts(&dir.path().join("training"), training);
        let mut reports = Vec::new();
        for n_threads in [1, 3] {
            let mut bench = Bench::new(dir.path())
                .input("benchmarks", &dir.path().join("items"))
                .input("training", &dir.path().join("training"));
            bench.n_threads = n_threads;
            bench
                .run::<MeasureOverlap>(&json!({"window_words": 3, "contaminated_share": 0.6}))
                .unwrap();
            reports.push(std::fs::read(bench.out("overlap").join("overlap.json")).unwrap());
        }
        assert_eq!(reports[0], reports[1]);
        let report: Value = serde_json::from_slice(&reports[0]).unwrap();
        let found: usize = items.iter().map(|item| shared(item, &training, 3)).sum();
        // `four five six` is a window of two items.
        assert_eq!(report[0]["windows_found"], found - 1);
        assert_eq!(report[0]["items"], 4);
        assert_eq!(report[0]["items_touched"], 3);
        assert_eq!(report[0]["items_contaminated"], 2);
    }

    #[test]
    fn wrong_params_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let run = |params: Value| {
            Bench::new(dir.path()).run::<MeasureOverlap>(&params).unwrap_err().message
        };
        assert!(run(json!({"window_words": 0})).contains("at least 1"));
        assert!(run(json!({"contaminated_share": 0.0})).contains("not above 0"));
        assert!(run(json!({})).contains("nothing is connected"));
    }
}
