//! The dataset card: what the Hub reads, and what people should know.

use std::fmt::Write as _;
use std::path::Path;

use engine::task::Failure;

use super::{Format, Params};

/// What a card says.
pub(super) struct Card<'a> {
    pub(super) params: &'a Params,
    pub(super) n_documents: u64,
    pub(super) text_bytes: u64,
    /// Documents that a model drew.
    pub(super) n_synthetic: u64,
    /// Of those, documents that it wrote after a seed document.
    pub(super) n_seeded: u64,
    pub(super) checkpoint: Option<&'a str>,
}

impl Card<'_> {
    pub(super) fn write(&self, path: &Path) -> Result<(), Failure> {
        std::fs::write(path, self.text())
            .map_err(|error| Failure::io(format!("cannot write `{}`", path.display()), &error))
    }

    fn text(&self) -> String {
        let params = self.params;
        let mut text = String::from("---\n");
        line(&mut text, format_args!("pretty_name: {}", quoted(&params.name)));
        line(&mut text, format_args!("license: {}", quoted(&params.license)));
        list(&mut text, "language", params.languages.iter().map(String::as_str));
        let synthetic = (self.n_synthetic > 0).then_some("synthetic");
        let tags = params.tags.iter().map(String::as_str).filter(|tag| Some(*tag) != synthetic);
        list(&mut text, "tags", synthetic.into_iter().chain(tags));
        list(&mut text, "task_categories", ["text-generation"].into_iter());
        list(&mut text, "size_categories", [size_category(self.n_documents)].into_iter());
        let files = match params.format {
            Format::Parquet => "data/train-*.parquet",
            Format::Jsonl => "data/train-*.jsonl.zst",
        };
        text.push_str("configs:\n- config_name: default\n  data_files:\n  - split: train\n");
        line(&mut text, format_args!("    path: {files}\n---\n"));
        line(&mut text, format_args!("# {}\n", params.name));
        if !params.description.is_empty() {
            line(&mut text, format_args!("{}\n", params.description.trim_end()));
        }
        let (n, n_bytes) = (self.n_documents, self.text_bytes);
        line(&mut text, format_args!("{n} documents, {n_bytes} bytes of text.\n"));
        text.push_str(
            "| column | meaning |\n|---|---|\n\
             | `id` | identifies the document: 16 hex digits |\n\
             | `text` | the document |\n\
             | `seed_id` | id of the document that the model was given; empty when it had none |\n\
             | `draw` | number of the draw; empty when no model drew the document |\n\
             | `checkpoint` | BLAKE3 of the weights that drew it |\n\
             | `meta` | what else is known, as a JSON object |\n\n",
        );
        if self.n_synthetic > 0 {
            line(&mut text, format_args!("{}\n", self.warning()));
        }
        if let Some(checkpoint) = self.checkpoint {
            line(&mut text, format_args!("Weights: BLAKE3 `{checkpoint}`.\n"));
        }
        text.push_str("Written by `sbp`, task `export`.\n");
        text
    }

    /// What readers of synthetic documents should know.
    fn warning(&self) -> String {
        let (n, n_seeded) = (self.n_synthetic, self.n_seeded);
        let seeded = if n_seeded == 0 {
            String::new()
        } else {
            format!(
                ", {n_seeded} of them after a seed document, as in *Synthetic Bootstrapped \
                 Pretraining* (arXiv 2509.15248)"
            )
        };
        format!(
            "{n} of the documents are **synthetic**: a language model wrote them{seeded}. They may \
             be wrong in fact, and repeat what it was trained on."
        )
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes any text");
}

/// A string of YAML, which takes JSON's: bare, `no` would be a truth value and `1.0` a number.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn list<'a>(text: &mut String, name: &str, items: impl Iterator<Item = &'a str>) {
    let items: Vec<&str> = items.collect();
    if !items.is_empty() {
        line(text, format_args!("{name}:"));
        for item in items {
            line(text, format_args!("- {}", quoted(item)));
        }
    }
}

/// The Hub's name for a number of rows.
fn size_category(n: u64) -> &'static str {
    match n {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        1_000_000..10_000_000 => "1M<n<10M",
        10_000_000..100_000_000 => "10M<n<100M",
        100_000_000..1_000_000_000 => "100M<n<1B",
        _ => "n>1B",
    }
}
