//! The batches of a schedule.

use std::path::Path;

use engine::digest::Digest;
use engine::task::{Failure, Inputs};

use crate::format::schedule::{Entry, Schedule};
use crate::format::tokens::{Ids, Tokens};
use crate::lm::batch::{Batch, Steps};
use crate::tokenizer::{BOS, EOS};

/// How documents become rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// The stream is cut into rows of the context's length; a step has `n_rows`.
    Rows { n_rows: u64 },
    /// A document is a row, or several when it is longer than the context; a step has
    /// `n_documents`.
    Documents { n_documents: u64 },
}

/// Opens a `tokens` artifact that must come from `tokenizer`.
pub(crate) fn open_tokens(dir: &Path, port: &str, tokenizer: &Path) -> Result<Tokens, Failure> {
    let tokens = Tokens::open(dir)?;
    let (digest, _) = Digest::of_file(tokenizer).map_err(|error| {
        Failure::io(format!("cannot read the tokenizer `{}`", tokenizer.display()), &error)
    })?;
    if tokens.tokenizer() != digest {
        return Err(Failure::permanent(format!(
            "the tokens of port `{port}` come from tokenizer {}, and the tokenizer given is {}",
            tokens.tokenizer().short(),
            digest.short()
        ))
        .help("connect the tokenizer that `tokenize` used"));
    }
    Ok(tokens)
}

/// Opens the artifacts that a schedule draws from, in its order, and checks that they are the ones.
pub(super) fn open_sources(
    schedule: &Schedule,
    inputs: &Inputs,
    tokenizer: &Path,
) -> Result<Vec<Tokens>, Failure> {
    let mut opened = Vec::new();
    for source in schedule.sources() {
        let name = source.name.as_str();
        let dir = match name {
            "real" | "synthetic" => inputs.optional(name),
            _ => None,
        };
        let Some(dir) = dir else {
            return Err(Failure::permanent(format!(
                "the schedule draws from `{name}`, and nothing is connected to that port"
            ))
            .help(format!("connect the tokens that `mix` read as `{name}`")));
        };
        let tokens = open_tokens(dir, name, tokenizer)?;
        let found = (tokens.n_documents() as u64, tokens.n_tokens() as u64);
        if found != (source.n_documents, source.n_tokens) {
            return Err(Failure::permanent(format!(
                "port `{name}` has {} documents of {} tokens, and the schedule was made for {} of {}",
                found.0, found.1, source.n_documents, source.n_tokens
            ))
            .help(format!("connect the tokens that `mix` read as `{name}`")));
        }
        opened.push(tokens);
    }
    Ok(opened)
}

/// The steps of a schedule.
pub(super) struct ScheduleSteps {
    schedule: Schedule,
    sources: Vec<Tokens>,
    packing: Packing,
    context: usize,
    document_mask: bool,
}

impl ScheduleSteps {
    pub(super) fn new(
        schedule: Schedule,
        sources: Vec<Tokens>,
        packing: Packing,
        context: usize,
        document_mask: bool,
    ) -> Self {
        Self { schedule, sources, packing, context, document_mask }
    }

    /// Appends the tokens `from..to` of a document; each predicts the next one of the document.
    fn push(&self, batch: &mut Batch, entry: Entry, from: u64, to: u64) {
        let ids = self.sources[entry.source].view(entry.document);
        let target = |i: u64| (i + 1 < entry.n_tokens).then(|| token(ids, i + 1));
        batch.push_span((from..to).map(|i| (token(ids, i), target(i))));
    }

    fn fill_rows(&self, n_rows: u64, step: u64, batch: &mut Batch) {
        let (budget, context) = (self.schedule.budget_tokens(), self.context as u64);
        let first = step * n_rows * context;
        let end = budget.min(first + n_rows * context);
        for row in (first..end).step_by(self.context) {
            let row_end = end.min(row + context);
            let mut at = row;
            let mut index = self.schedule.entry_at(row);
            while at < row_end {
                let entry = self.schedule.entry(index);
                let to = row_end.min(entry.start + entry.n_tokens);
                self.push(batch, entry, at - entry.start, to - entry.start);
                (at, index) = (to, index + 1);
            }
            if !self.document_mask {
                batch.join_row();
            }
            batch.end_row();
        }
    }

    fn fill_documents(&self, n_documents: u64, step: u64, batch: &mut Batch) {
        let first = step * n_documents;
        let end = (first + n_documents).min(self.schedule.n_entries() as u64);
        for index in first..end {
            let entry = self.schedule.entry(index as usize);
            for from in (0..entry.n_tokens).step_by(self.context) {
                self.push(batch, entry, from, entry.n_tokens.min(from + self.context as u64));
                batch.end_row();
            }
        }
    }
}

/// Token `i` of `<|bos|> text <|eos|>`.
fn token(ids: Ids<'_>, i: u64) -> u32 {
    match i as usize {
        0 => BOS,
        i if i <= ids.len() => ids.get(i - 1),
        _ => EOS,
    }
}

impl Steps for ScheduleSteps {
    fn n_steps(&self) -> u64 {
        match self.packing {
            Packing::Rows { n_rows } => {
                self.schedule.budget_tokens().div_ceil(n_rows * self.context as u64)
            }
            Packing::Documents { n_documents } => {
                (self.schedule.n_entries() as u64).div_ceil(n_documents)
            }
        }
    }

    fn n_tokens(&self) -> u64 {
        self.schedule.budget_tokens()
    }

    fn row_tokens_max(&self) -> usize {
        self.context
    }

    fn fill(&self, step: u64, batch: &mut Batch) {
        batch.clear();
        match self.packing {
            Packing::Rows { n_rows } => self.fill_rows(n_rows, step, batch),
            Packing::Documents { n_documents } => self.fill_documents(n_documents, step, batch),
        }
    }
}
