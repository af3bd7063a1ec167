//! The rows that are searched: what they are known by, and samples of them.

use std::ops::Range;

use engine::digest::Digest;
use kernels::int8_search::Rows;

use crate::format::vectors::Vectors;

/// Rows of sampled documents.
pub(super) struct Gathered {
    q: Vec<i8>,
    scales: Vec<f32>,
    pub(super) rows_f32: Vec<f32>,
}

impl Gathered {
    pub(super) fn of(vectors: &Vectors, documents: &[usize]) -> Self {
        let dim = vectors.dim();
        let q = |&i: &usize| vectors.quantized()[i * dim..][..dim].iter().copied();
        Self {
            q: documents.iter().flat_map(q).collect(),
            scales: documents.iter().map(|&i| vectors.scales()[i]).collect(),
            rows_f32: documents.iter().flat_map(|&i| vectors.row(i).iter().copied()).collect(),
        }
    }

    pub(super) fn rows(&self, dim: usize) -> Rows<'_> {
        Rows { q: &self.q, scales: &self.scales, columns: dim, first_id: 0 }
    }

    pub(super) fn digest(&self) -> Digest {
        let bytes: Vec<u8> = self.rows_f32.iter().flat_map(|x| x.to_le_bytes()).collect();
        Digest::of(&bytes)
    }
}

/// Of the rows, from which their int8 forms follow.
pub(super) fn digest_of_rows(vectors: &Vectors, documents: &Range<usize>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for i in documents.clone() {
        bytes.clear();
        bytes.extend(vectors.row(i).iter().flat_map(|x| x.to_le_bytes()));
        hasher.update(&bytes);
    }
    Digest::from(hasher.finalize())
}

/// The largest distance of a row from its int8 form.
pub(super) fn quantization_error(vectors: &Vectors, documents: &Range<usize>) -> f32 {
    let dim = vectors.dim();
    let distance = |i: usize| {
        let scale = vectors.scales()[i];
        let quantized = &vectors.quantized()[i * dim..][..dim];
        let square = |(&x, &q): (&f32, &i8)| (x - f32::from(q) * scale).powi(2);
        vectors.row(i).iter().zip(quantized).map(square).sum::<f32>().sqrt()
    };
    documents.clone().map(distance).fold(0.0_f32, f32::max)
}
