//! Writes a corpus as a data set that other programs read: Parquet or JSON lines, with a card.
//!
//! The columns are the same in both formats: `id`, `text`, where a synthetic document came from
//! (`seed_id`, `draw`, `checkpoint`), and the rest of what is known of it as JSON in `meta`. The card
//! is a `README.md` with the metadata block that the Hugging Face Hub reads.

mod card;
mod rows;

use std::path::Path;

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, ParamError, Port, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::corpus::{Corpus, Document};
use card::Card;
use rows::{Row, RowWriter};

/// Text of a file, in bytes: about what the Hub recommends, after compression.
const FILE_TEXT_BYTES: u64 = 1 << 30;

/// Writes a corpus as a data set.
pub struct Export;

/// Params of `export`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// `parquet`, or `jsonl` for JSON lines compressed with zstd.
    #[serde(default)]
    pub format: Format,
    /// The data set's name, the card's title.
    pub name: String,
    /// What it holds and what it is for, in Markdown.
    #[serde(default)]
    pub description: String,
    /// A licence identifier of the Hub, such as `cc-by-4.0`.
    #[serde(default = "default_license")]
    pub license: String,
    /// Languages, as ISO 639 codes.
    #[serde(default = "default_languages")]
    pub languages: Vec<String>,
    /// Tags of the card. `synthetic` is added when documents were generated.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Parquet, compressed with zstd.
    #[default]
    Parquet,
    /// JSON lines, compressed with zstd.
    Jsonl,
}

fn default_license() -> String {
    "other".to_owned()
}

fn default_languages() -> Vec<String> {
    vec!["en".to_owned()]
}

impl Task for Export {
    const KIND: &'static str = "export";
    const REVISION: u32 = 2;
    const SUMMARY: &'static str = "writes a corpus as Parquet or JSON lines with a dataset card";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::one("corpus", "corpus", "the documents"),
        Port::optional("model", "model", "the model that wrote them, for their `checkpoint`"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("dataset", "dataset", "`README.md` and the files under `data`")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.name.trim().is_empty() {
            return Err(ParamError::new("name", "the name is empty"));
        }
        let plain = |text: &String| {
            !text.is_empty()
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c))
        };
        let lists = [("languages", &params.languages), ("tags", &params.tags)];
        for (name, list) in lists.into_iter().chain([("license", &vec![params.license.clone()])]) {
            if let Some(bad) = list.iter().find(|text| !plain(text)) {
                let message = format!("`{bad}` is not made of letters, digits and `-._:`");
                return Err(ParamError::new(name, message));
            }
        }
        Ok(())
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let corpus = Corpus::open(inputs.one("corpus"))?;
        let checkpoint = inputs.optional("model").map(checkpoint).transpose()?;
        let dir = ctx.out("dataset")?;
        let data = dir.join("data");
        std::fs::create_dir_all(&data)
            .map_err(|error| Failure::io(format!("cannot create `{}`", data.display()), &error))?;
        let mut writer = RowWriter::new(&data, params.format);
        let (mut n_synthetic, mut n_seeded) = (0_u64, 0_u64);
        for (i, document) in corpus.documents().enumerate() {
            if i % 1024 == 0 {
                ctx.check_cancelled()?;
                ctx.progress(i as u64, corpus.n_documents(), "documents");
            }
            let row = Row::of(document?, checkpoint.as_deref());
            n_synthetic += u64::from(row.is_synthetic());
            n_seeded += u64::from(row.seed_id.is_some());
            writer.push(row)?;
        }
        let files = writer.finish()?;
        let card = Card {
            params,
            n_documents: corpus.n_documents(),
            text_bytes: corpus.text_bytes(),
            n_synthetic,
            n_seeded,
            checkpoint: checkpoint.as_deref(),
        };
        card.write(&dir.join("README.md"))?;
        Ok(Outputs::default()
            .metric("n_documents", corpus.n_documents() as f64)
            .metric("n_synthetic", n_synthetic as f64)
            .metric("n_files", files as f64))
    }
}

/// BLAKE3 of a model's weights.
fn checkpoint(model: &Path) -> Result<String, Failure> {
    let path = model.join("model.safetensors");
    let mut hasher = blake3::Hasher::new();
    std::fs::File::open(&path)
        .and_then(|file| hasher.update_reader(file).map(|_| ()))
        .map_err(|error| Failure::io(format!("cannot read `{}`", path.display()), &error))?;
    Ok(hasher.finalize().to_hex().to_string())
}

impl Row {
    fn of(document: Document, checkpoint: Option<&str>) -> Self {
        let Document { id, text, mut meta } = document;
        // What `synthesize` writes; in other documents these names may mean anything.
        let is_drawn = meta.contains_key("n_sampled");
        let draw = meta.get("draw").and_then(Value::as_i64).filter(|_| is_drawn);
        let seed_id = meta.get("seed_id").and_then(Value::as_str).filter(|_| draw.is_some());
        let seed_id = seed_id.map(str::to_owned);
        for (name, is_taken) in [("draw", draw.is_some()), ("seed_id", seed_id.is_some())] {
            if is_taken {
                meta.shift_remove(name);
            }
        }
        // Only what a model drew has a checkpoint.
        let checkpoint = checkpoint.filter(|_| draw.is_some()).map(str::to_owned);
        let meta = Value::Object(meta).to_string();
        Self { id: format!("{id:016x}"), text, seed_id, draw, checkpoint, meta }
    }
}

#[cfg(test)]
mod tests;
