//! Runs of documents, each an item, and their rows on the way to the artifact.

use std::ops::Range;
use std::path::PathBuf;

use engine::digest::Digest;
use engine::task::{Context, Failure};
use kernels::Pool;

use super::{OnEmpty, Params};
use crate::format::part::{Part, PartWriter};
use crate::format::tokens::Tokens;
use crate::format::vectors::VectorsWriter;

const SECTION: &str = "rows";
/// Documents of a run, at most: 64 MiB of rows with 1,024 components. Fewer where tests cut.
const SPAN_DOCUMENTS: usize = if cfg!(test) { 1 << 12 } else { 1 << 14 };
/// Rows held at a time where all of them are in memory anyway.
const CHUNK_ROWS: usize = 1 << 14;

/// A run of neighbouring documents.
#[derive(Clone)]
pub(super) struct Span {
    pub(super) documents: Range<usize>,
    /// Of what they say.
    pub(super) digest: Digest,
}

impl Span {
    /// How an item over it is called.
    pub(super) fn name(&self) -> String {
        format!("documents {} to {}", self.documents.start, self.documents.end - 1)
    }

    /// How much of the progress it is.
    pub(super) fn weight(&self) -> u64 {
        self.documents.len() as u64
    }
}

/// Cuts documents, from the first one on, into runs of about `n_tokens`.
pub(super) fn spans(documents: &Tokens, n_tokens: usize) -> Vec<Span> {
    let (mut spans, mut first, mut length) = (Vec::new(), 0, 0);
    for i in 0..documents.n_documents() {
        length += documents.length(i);
        let n = i + 1 - first;
        if length >= n_tokens || n == SPAN_DOCUMENTS || i + 1 == documents.n_documents() {
            let run = first..i + 1;
            spans.push(Span { digest: documents.digest(run.clone()), documents: run });
            (first, length) = (i + 1, 0);
        }
    }
    spans
}

/// Leaves the rows of a run in an item's folder.
pub(super) fn leave(dir: &std::path::Path, rows: &[f32]) -> Result<(), Failure> {
    Ok(PartWriter::create(dir)?.section(SECTION, rows)?.finish()?)
}

/// The rows of all documents, in order, not yet of unit length.
pub(super) struct Rows {
    pub(super) source: Source,
    pub(super) dim: usize,
    /// Documents that were longer than the limit and lost tokens before their end.
    pub(super) n_cut: u64,
}

/// Where rows are.
pub(super) enum Source {
    /// In the folders of items, a run in each.
    Parts(Vec<PathBuf>),
    /// In memory.
    Values(Vec<f32>),
}

impl Rows {
    /// Brings the rows to unit length and writes them; gives the number of zero rows.
    pub(super) fn write(
        &self,
        ctx: &Context,
        pool: &Pool,
        params: &Params,
        documents: &Tokens,
        mut writer: VectorsWriter,
    ) -> Result<u64, Failure> {
        let (mut n_done, mut n_zero) = (0, 0);
        let mut push = |rows: &[f32]| -> Result<(), Failure> {
            ctx.check_cancelled()?;
            let mut rows = rows.to_vec();
            n_zero += normalize(params, documents, n_done, &mut rows, self.dim)?;
            n_done += rows.len() / self.dim;
            Ok(writer.push(pool, &rows)?)
        };
        match &self.source {
            Source::Parts(dirs) => {
                for dir in dirs {
                    push(Part::open(dir)?.section(SECTION)?)?;
                }
            }
            Source::Values(values) => {
                for rows in values.chunks(CHUNK_ROWS * self.dim) {
                    push(rows)?;
                }
            }
        }
        writer.finish()?;
        Ok(n_zero)
    }
}

/// Scales the rows of the documents from `first` to unit length; gives the number of zero rows.
fn normalize(
    params: &Params,
    documents: &Tokens,
    first: usize,
    rows: &mut [f32],
    dim: usize,
) -> Result<u64, Failure> {
    let mut n_zero = 0;
    for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
        let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let id = documents.document_id(first + i);
        if !norm.is_finite() {
            let message =
                format!("the vector of document {id:016x} has a component that is no number");
            return Err(Failure::permanent(message));
        }
        if norm == 0.0 {
            if params.on_empty == OnEmpty::Fail {
                let message = format!(
                    "document {id:016x} ({} tokens) has a zero vector: it has no terms",
                    documents.length(first + i)
                );
                return Err(Failure::permanent(message)
                    .help("drop such documents, or set `on_empty: keep`"));
            }
            n_zero += 1;
            continue;
        }
        for x in row {
            *x = (f64::from(*x) / norm) as f32;
        }
    }
    Ok(n_zero)
}
