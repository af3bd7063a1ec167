//! Document embeddings: `vectors.sbp` of a `vectors` artifact.
//!
//! Sections: `document_ids` (u64), `rows` (f32, `[documents, dim]`, unit length or all zero),
//! `quantized` (i8, the same shape) and `scales` (f32, one a row) as [`kernels::quantize`] gives them.

use std::path::Path;

use kernels::{Pool, quantize};

use super::Error;
use super::container::{Column, Container, Writer};

/// The file in the artifact's folder.
pub const FILE: &str = "vectors.sbp";
const KIND: &str = "vectors";
const VERSION: u32 = 1;

/// The length of a row may differ from 1 by this much.
const UNIT_TOLERANCE: f32 = 1e-4;

#[derive(Clone, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Metadata {
    dim: u32,
    backend: String,
}

/// Bytes of a document with `dim` components: its id, its two rows and its scale.
pub(crate) fn row_bytes(dim: f64) -> f64 {
    (size_of::<u64>() + size_of::<f32>()) as f64 + dim * (size_of::<f32>() + size_of::<i8>()) as f64
}

/// Embeddings of documents, mapped into memory.
pub struct Vectors {
    container: Container,
    metadata: Metadata,
}

impl Vectors {
    /// Opens the `vectors` artifact in `dir` and verifies it.
    ///
    /// # Errors
    /// When the file cannot be read or is not as a [`VectorsWriter`] leaves it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let container = Container::open(&dir.join(FILE), KIND, VERSION)?;
        let metadata: Metadata = container.metadata()?;
        let n = container.section::<u64>("document_ids")?.len();
        let cells = n.checked_mul(metadata.dim as usize);
        let agree = metadata.dim > 0
            && Some(container.section::<f32>("rows")?.len()) == cells
            && Some(container.section::<i8>("quantized")?.len()) == cells
            && container.section::<f32>("scales")?.len() == n;
        if !agree {
            return Err(Error::damaged(container.path(), "its sections differ in length"));
        }
        let vectors = Self { container, metadata };
        let bad = (0..n).find(|&i| !is_unit_or_zero(vectors.row(i)));
        if let Some(i) = bad {
            let what = format!("row {i} is neither of unit length nor zero");
            return Err(Error::damaged(vectors.container.path(), what));
        }
        Ok(vectors)
    }

    fn checked<T: super::container::Element>(&self, section: &str) -> &[T] {
        self.container.section(section).expect("`open` checked the sections")
    }

    /// Documents.
    pub fn n_documents(&self) -> usize {
        self.document_ids().len()
    }

    /// Components of a row.
    pub fn dim(&self) -> usize {
        self.metadata.dim as usize
    }

    /// What made the rows: `tfidf` or `model`.
    pub fn backend(&self) -> &str {
        &self.metadata.backend
    }

    /// The documents' ids, in the order of the `tokens` artifact that was embedded.
    pub fn document_ids(&self) -> &[u64] {
        self.checked("document_ids")
    }

    /// The embedding of document `i`.
    ///
    /// # Panics
    /// When `i` is not below [`Self::n_documents`].
    pub fn row(&self, i: usize) -> &[f32] {
        &self.checked("rows")[i * self.dim()..][..self.dim()]
    }

    /// All rows, `[documents, dim]`.
    pub fn rows(&self) -> &[f32] {
        self.checked("rows")
    }

    /// All rows in int8, `[documents, dim]`.
    pub fn quantized(&self) -> &[i8] {
        self.checked("quantized")
    }

    /// The scale of each int8 row.
    pub fn scales(&self) -> &[f32] {
        self.checked("scales")
    }
}

fn is_unit_or_zero(row: &[f32]) -> bool {
    let square = kernels::int8_search::dot(row, row);
    (square - 1.0).abs() <= 2.0 * UNIT_TOLERANCE || row.iter().all(|&x| x == 0.0)
}

/// Writes a `vectors` artifact as a stream of rows.
pub struct VectorsWriter {
    writer: Writer,
    metadata: Metadata,
    quantized: Column<i8>,
    scales: Column<f32>,
    n_left: usize,
}

impl VectorsWriter {
    /// Starts `dir`'s file for one row of `dim` components a document, made by `backend`.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(
        dir: &Path,
        document_ids: &[u64],
        dim: usize,
        backend: &str,
    ) -> Result<Self, Error> {
        let mut writer = Writer::create(&dir.join(FILE), KIND, VERSION)?;
        writer.section("document_ids", document_ids)?;
        writer.begin::<f32>("rows")?;
        Ok(Self {
            writer,
            metadata: Metadata { dim: dim as u32, backend: backend.to_owned() },
            quantized: Column::new(dir)?,
            scales: Column::new(dir)?,
            n_left: document_ids.len(),
        })
    }

    /// Appends rows, `[n, dim]`.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When there are more rows than documents, or one is neither of unit length nor zero.
    pub fn push(&mut self, pool: &Pool, rows: &[f32]) -> Result<(), Error> {
        let dim = self.metadata.dim as usize;
        assert!(rows.chunks_exact(dim).all(is_unit_or_zero), "rows have unit length");
        let n = rows.len() / dim;
        self.n_left = self.n_left.checked_sub(n).expect("one row a document");
        let (mut quantized, mut scales) = (vec![0; rows.len()], vec![0.0; n]);
        quantize::rows(pool, rows, dim, &mut quantized, &mut scales);
        self.writer.extend(rows)?;
        let aside = self.quantized.extend(&quantized).and_then(|()| self.scales.extend(&scales));
        aside.map_err(|error| Error::io("write", self.writer.path(), error))
    }

    /// Writes what is left and makes the file durable.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When a document has no row.
    pub fn finish(mut self) -> Result<(), Error> {
        assert_eq!(self.n_left, 0, "one row a document");
        self.writer.column("quantized", self.quantized)?;
        self.writer.column("scales", self.scales)?;
        self.writer.finish(&self.metadata)
    }
}

/// Writes `rows`, `[documents, dim]`, and their int8 form into `dir`.
///
/// # Errors
/// When writing fails.
///
/// # Panics
/// When the lengths disagree, or a row is neither of unit length nor zero.
pub fn write(
    pool: &Pool,
    dir: &Path,
    document_ids: &[u64],
    rows: &[f32],
    dim: usize,
    backend: &str,
) -> Result<(), Error> {
    let mut writer = VectorsWriter::create(dir, document_ids, dim, backend)?;
    writer.push(pool, rows)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [0.6, -0.8, 0.0, 0.0, 0.0, 1.0];
        write(&Pool::new(1), dir.path(), &[4, 5, 6], &rows, 2, "tfidf").unwrap();
        let vectors = Vectors::open(dir.path()).unwrap();
        assert_eq!((vectors.n_documents(), vectors.dim(), vectors.backend()), (3, 2, "tfidf"));
        assert_eq!((vectors.row(0), vectors.row(1)), (&rows[..2], &rows[2..4]));
        assert_eq!(vectors.quantized(), [95, -127, 0, 0, 0, 127]);
        assert_eq!(vectors.document_ids(), [4, 5, 6]);
        assert!((vectors.scales()[2] - 1.0 / 127.0).abs() < 1e-9);
    }

    #[test]
    fn contradictions_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let write = |rows: &[f32], scales: &[f32]| {
            let mut writer = Writer::create(&dir.path().join(FILE), KIND, VERSION).unwrap();
            writer.section("document_ids", &[1_u64, 2]).unwrap();
            writer.section("rows", rows).unwrap();
            writer.section("quantized", &[1_i8, 2, 3, 4]).unwrap();
            writer.section("scales", scales).unwrap();
            writer.finish(&Metadata { dim: 2, backend: String::new() }).unwrap();
            Vectors::open(dir.path()).err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(write(&[1.0, 0.0, 0.0, 1.0], &[1.0, 1.0]), "");
        assert!(write(&[1.0, 0.0, 0.0], &[1.0, 1.0]).contains("differ in length"));
        assert!(write(&[1.0, 0.0, 0.0, 1.0], &[1.0]).contains("differ in length"));
        assert!(write(&[1.0, 0.0, 0.5, 0.5], &[1.0, 1.0]).contains("row 1"));
        assert!(write(&[1.0, 0.0, f32::NAN, 0.5], &[1.0, 1.0]).contains("row 1"));
    }
}
