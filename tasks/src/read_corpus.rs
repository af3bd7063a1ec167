//! Reads files of many formats into a corpus, as a stream.
//!
//! A record that cannot be used is never dropped in silence: it is counted, its place and reason go
//! to `quarantine.jsonl` in the corpus' folder, and past `max_corrupt` of them the task fails at the
//! place of the next.

mod extract;
mod records;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fs::File;
use std::io::{BufWriter, Write};

use engine::task::{
    Context, Determinism, Estimate, ExternalFile, FILE_BYTES, Facts, Failure, Inputs, Outputs,
    ParamError, Port, Predicted, Task,
};
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::corpus::{CorpusWriter, Document, document_id};
use crate::cost::{fact, figure};
use records::{Fault, Record};

/// Reads files into a corpus.
pub struct ReadCorpus;

/// Params of `read_corpus`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Glob patterns of the files to read, such as `docs/**/*.md`, of objects in an S3-compatible
    /// bucket, such as `s3://bucket/docs/*.jsonl.zst`, or `-` for standard input. Their contents and
    /// their paths below the fixed part of the pattern are part of the node's key, the patterns are
    /// not. An object's entity tag stands for its content; account and server come from the
    /// environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`).
    pub paths: Vec<String>,
    /// How the files are read; `auto` goes by each file's name, which standard input lacks. All but
    /// Parquet may be compressed (`.gz`, `.zst`, `.zstd`).
    #[serde(default)]
    pub format: Format,
    /// The JSON key or Parquet column of the text.
    #[serde(default = "default_text_key")]
    pub text_key: String,
    /// The JSON key or Parquet column whose value identifies a document; without it, ids come from
    /// the file's path and the record's number.
    #[serde(default)]
    pub id_key: Option<String>,
    /// JSON keys or Parquet columns to keep in the documents' `meta`.
    #[serde(default)]
    pub meta_keys: Vec<String>,
    /// What becomes a document in `rust_doc` files.
    #[serde(default)]
    pub rust_docs: RustDocs,
    /// Cuts longer texts into documents of at most this many characters, at the end of a paragraph,
    /// line, sentence or word.
    #[serde(default)]
    pub part_chars: Option<usize>,
    /// Leaves out documents with fewer characters.
    #[serde(default = "default_min_chars")]
    pub min_chars: usize,
    /// Leaves out documents with more characters.
    #[serde(default)]
    pub max_chars: Option<usize>,
    /// Leaves out documents in which less than this share of the characters are English letters and
    /// spaces; 0.7 keeps prose and leaves out tables, code and most other languages.
    #[serde(default)]
    pub min_letter_share: f64,
    /// Keeps this many documents, drawn uniformly.
    #[serde(default)]
    pub max_documents: Option<u64>,
    /// Seed of that draw.
    #[serde(default)]
    pub seed: u64,
    /// A longer record is corrupt. In bytes, of a line in JSON lines, of a cell in Parquet, of a
    /// whole file otherwise.
    #[serde(default = "default_max_record_bytes")]
    pub max_record_bytes: u64,
    /// How many corrupt records to set aside before failing.
    #[serde(default)]
    pub max_corrupt: u64,
}

/// How a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// By the file's name.
    #[default]
    Auto,
    /// A file is a document.
    Text,
    /// A file is a document, without front matter, HTML comments, badges and link definitions.
    Markdown,
    /// Doc comments of Rust source.
    RustDoc,
    /// A line is a JSON object.
    Jsonl,
    /// A row is a document.
    Parquet,
}

/// What becomes a document in Rust source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RustDocs {
    /// All doc comments of a file together.
    #[default]
    File,
    /// Each run of doc comments alone.
    Item,
}

fn default_text_key() -> String {
    "text".to_owned()
}

fn default_min_chars() -> usize {
    1
}

fn default_max_record_bytes() -> u64 {
    16 << 20
}

impl Task for ReadCorpus {
    const KIND: &'static str = "read_corpus";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "reads text, Markdown, Rust docs, JSON lines or Parquet";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[];
    const OUTPUTS: &'static [Port] = &[Port::one("corpus", "corpus", "the documents")];
    const UNKEYED: &'static [&'static str] = &["paths"];
    const STREAMS: bool = true;
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        let positive = [
            ("paths", params.paths.len()),
            ("part_chars", params.part_chars.unwrap_or(1)),
            ("max_chars", params.max_chars.unwrap_or(1)),
            ("max_documents", params.max_documents.map_or(1, |n| n.min(1) as usize)),
            ("max_record_bytes", params.max_record_bytes.min(1) as usize),
        ];
        if let Some((path, _)) = positive.iter().find(|(_, value)| *value == 0) {
            let what = if *path == "paths" { "no pattern is given" } else { "0 keeps nothing" };
            return Err(ParamError::new(*path, what));
        }
        if let Some(max) = params.max_chars.filter(|&max| max < params.min_chars) {
            let message = format!("{max} is below `min_chars: {}`", params.min_chars);
            return Err(ParamError::new("max_chars", message));
        }
        if !(0.0..=1.0).contains(&params.min_letter_share) {
            let message = format!("{} is not between 0 and 1", params.min_letter_share);
            return Err(ParamError::new("min_letter_share", message));
        }
        Ok(())
    }

    fn external(params: &Params) -> Vec<String> {
        params.paths.clone()
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let documents = params.max_documents.map(|n| n as f64);
        Estimate::unknown()
            .figure(figure::DOCUMENTS, documents)
            .work(FILE_BYTES, inputs.external_bytes())
            .output("corpus", Facts::default().with(fact::DOCUMENTS, documents))
    }

    fn run(ctx: &mut Context, params: &Params, _: &Inputs) -> Result<Outputs, Failure> {
        check_files(ctx.external(), &params.paths)?;
        let draw = Philox::new(params.seed, "read_corpus");
        let limit = match params.max_documents {
            Some(n_documents) => Some(smallest(ctx, params, draw, n_documents)?),
            None => None,
        };
        let dir = ctx.out("corpus")?;
        let mut writer = CorpusWriter::create(&dir)?;
        let mut scan = Scan::new(params);
        scan.quarantine = Some(Quarantine { path: dir.join("quarantine.jsonl"), file: None });
        scan.run(ctx, &mut |document| {
            let is_kept = limit.is_none_or(|limit| (draw.u64(document.id), document.id) <= limit);
            if is_kept { Ok(writer.push(&document)?) } else { Ok(()) }
        })?;
        let summary = writer.finish()?;
        if summary.n_documents == 0 {
            let message = format!("no document was found in {} files", ctx.external().len());
            return Err(Failure::permanent(format!("{message}: {}", scan.describe()))
                .help("look at `paths`, `text_key` and the limits of the documents' length"));
        }
        let file_bytes: u64 = ctx.external().iter().map(|file| file.size_bytes).sum();
        scan.finish(ctx, Outputs::default())
            .map(|outputs| outputs.metric(FILE_BYTES, file_bytes as f64))
            .map(|outputs| outputs.metric("n_documents", summary.n_documents as f64))
            .map(|outputs| outputs.metric("text_bytes", summary.text_bytes as f64))
    }
}

fn check_files(files: &[ExternalFile], patterns: &[String]) -> Result<(), Failure> {
    if files.is_empty() {
        return Err(Failure::permanent(format!("no file matches `{}`", patterns.join("`, `"))));
    }
    let mut seen = BTreeMap::new();
    for file in files {
        if let Some(other) = seen.insert(&file.relative, &file.path) {
            let message = format!(
                "`{}` and `{}` are both called `{}` below their patterns, so their documents would \
                 have the same ids",
                other.display(),
                file.path.display(),
                file.relative
            );
            return Err(Failure::permanent(message).help("use one pattern that covers both"));
        }
    }
    Ok(())
}

/// The largest (draw, id) among the `n` smallest of all documents.
fn smallest(
    ctx: &Context,
    params: &Params,
    draw: Philox,
    n_documents: u64,
) -> Result<(u64, u64), Failure> {
    let mut smallest = BinaryHeap::new();
    Scan::new(params).run(ctx, &mut |document| {
        smallest.push((draw.u64(document.id), document.id));
        if smallest.len() as u64 > n_documents {
            smallest.pop();
        }
        Ok(())
    })?;
    Ok(smallest.pop().unwrap_or_default())
}

/// One pass over all files.
struct Scan<'a> {
    params: &'a Params,
    counts: BTreeMap<&'static str, u64>,
    quarantine: Option<Quarantine>,
    /// Ids from `id_key`; the others are unique by construction.
    ids: BTreeSet<u64>,
    /// The first file without a record.
    empty_file: Option<String>,
}

struct Quarantine {
    path: std::path::PathBuf,
    file: Option<BufWriter<File>>,
}

impl<'a> Scan<'a> {
    fn new(params: &'a Params) -> Self {
        let counts =
            ["n_corrupt", "n_empty", "n_empty_files", "n_too_short", "n_too_long", "n_not_prose"];
        let counts = counts.map(|name| (name, 0)).into();
        Self { params, counts, quarantine: None, ids: BTreeSet::new(), empty_file: None }
    }

    fn run(
        &mut self,
        ctx: &Context,
        visit: &mut dyn FnMut(Document) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let files = ctx.external();
        let total: u64 = files.iter().map(|file| file.size_bytes).sum();
        let (mut done, mut n_records) = (0, 0_u64);
        for file in files {
            ctx.check_cancelled()?;
            let n_before = n_records;
            records::read(file, self.params, &mut |record| {
                n_records += 1;
                if n_records.is_multiple_of(1024) {
                    ctx.check_cancelled()?;
                    ctx.progress(done + file.position().min(file.size_bytes), total, "bytes");
                }
                self.take(file, record, visit)
            })?;
            if n_records == n_before {
                self.count("n_empty_files");
                self.empty_file.get_or_insert_with(|| file.path.display().to_string());
            }
            done += file.size_bytes;
            ctx.progress(done, total, "bytes");
        }
        Ok(())
    }

    fn take(
        &mut self,
        file: &ExternalFile,
        record: Record,
        visit: &mut dyn FnMut(Document) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let params = self.params;
        let mut meta = Map::new();
        meta.insert("source".to_owned(), file.relative.clone().into());
        let mut id = document_id(&file.relative, record.number);
        let text = match record.content {
            Ok(content) => {
                if let Some(key) = content.id {
                    id = document_id(&key, 0);
                    if !self.ids.insert(id) {
                        let seen = format!("id `{key}` was seen before");
                        return self.set_aside(file, &record.place, &seen.into());
                    }
                    meta.insert("id".to_owned(), key.into());
                }
                meta.extend(content.meta);
                content.text
            }
            Err(fault) => return self.set_aside(file, &record.place, &fault),
        };
        let text = text.trim_matches(['\n', '\r', '\u{feff}']);
        if text.trim().is_empty() {
            self.count("n_empty");
            return Ok(());
        }
        let parts = match params.part_chars {
            Some(max) => extract::parts(text, max),
            None => vec![text],
        };
        let n_parts = parts.len();
        for (part, text) in parts.into_iter().enumerate() {
            if let Some(reason) = self.unfit(text) {
                self.count(reason);
                continue;
            }
            let mut meta = meta.clone();
            if n_parts > 1 {
                meta.insert("part".to_owned(), part.into());
            }
            let id = if part == 0 { id } else { document_id(&format!("{id:016x}"), part as u64) };
            visit(Document { id, text: text.to_owned(), meta })?;
        }
        Ok(())
    }

    /// Why a text is left out.
    fn unfit(&self, text: &str) -> Option<&'static str> {
        let params = self.params;
        let n_chars = text.chars().count();
        if n_chars < params.min_chars {
            return Some("n_too_short");
        }
        if params.max_chars.is_some_and(|max| n_chars > max) {
            return Some("n_too_long");
        }
        let n_letters = text.bytes().filter(|b| b.is_ascii_alphabetic() || *b == b' ').count();
        let is_prose = n_letters as f64 >= params.min_letter_share * n_chars as f64;
        if is_prose { None } else { Some("n_not_prose") }
    }

    fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_insert(0) += 1;
    }

    fn set_aside(
        &mut self,
        file: &ExternalFile,
        place: &str,
        fault: &Fault,
    ) -> Result<(), Failure> {
        let reason = &fault.reason;
        self.count("n_corrupt");
        let n_corrupt = self.counts["n_corrupt"];
        if n_corrupt > self.params.max_corrupt {
            let place = format!("{}:{place}", file.path.display());
            let message = format!(
                "{place}: {reason}; that is corrupt record {n_corrupt}, past `max_corrupt: {}`",
                self.params.max_corrupt
            );
            return Err(Failure::permanent(message).help(fault.help));
        }
        let Some(quarantine) = &mut self.quarantine else { return Ok(()) };
        let fail = |error| Failure::io("cannot write `quarantine.jsonl`", &error);
        if quarantine.file.is_none() {
            let file = File::create(&quarantine.path).map_err(fail)?;
            quarantine.file = Some(BufWriter::new(file));
        }
        let line = json!({"file": file.relative, "place": place, "reason": reason});
        let out = quarantine.file.as_mut().expect("it was opened above");
        writeln!(out, "{line}").map_err(fail)
    }

    fn describe(&self) -> String {
        let counts: Vec<String> =
            self.counts.iter().map(|(name, n)| format!("{n} {}", name.replace('_', " "))).collect();
        counts.join(", ").replace("n ", "")
    }

    fn finish(self, ctx: &Context, mut outputs: Outputs) -> Result<Outputs, Failure> {
        if self.counts["n_corrupt"] > 0 {
            let n_corrupt = self.counts["n_corrupt"];
            ctx.warn(format!("{n_corrupt} corrupt records were set aside in `quarantine.jsonl`"));
        }
        if let Some(file) = &self.empty_file {
            let n = self.counts["n_empty_files"];
            ctx.warn(format!("{n} files hold no record, the first `{file}`"));
        }
        if let Some(mut file) = self.quarantine.and_then(|quarantine| quarantine.file) {
            let write = file.flush().and_then(|()| file.get_ref().sync_all());
            write.map_err(|error| Failure::io("cannot write `quarantine.jsonl`", &error))?;
        }
        for (name, n) in self.counts {
            outputs = outputs.metric(name, n as f64);
        }
        Ok(outputs)
    }
}

/// The meta of a record: the chosen keys that it has.
fn chosen_meta(params: &Params, get: impl Fn(&str) -> Option<Value>) -> Map<String, Value> {
    let chosen = params.meta_keys.iter().filter_map(|key| Some((key.clone(), get(key)?)));
    chosen.collect()
}

#[cfg(test)]
#[path = "read_corpus/tests.rs"]
mod tests;
