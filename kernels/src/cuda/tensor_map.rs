//! Matrices as the copy engine of `sm_90` takes them.

use half::bf16;

use super::Buffer;
use super::launch::Argument;

/// Columns of a panel, which are 128 bytes: what the swizzle of `hopper.cuh` turns within.
pub const PANEL: usize = 64;
/// Bytes of which a matrix's address and rows are multiples.
const ALIGNMENT: u64 = 16;
/// Most rows of a box.
const BOX_ROWS_MAX: usize = 256;

/// A matrix in device memory, copied in boxes of some rows and [`PANEL`] columns; made by
/// [`super::Device::tensor_map`] and a parameter of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(128))]
pub struct TensorMap(pub(super) [u64; 16]);

impl Argument for TensorMap {
    fn c_type() -> String {
        "TensorMap".to_owned()
    }
}

/// A row-major matrix of bf16 and how it is copied.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Its elements, and nothing after them.
    pub elements: &'a Buffer<bf16>,
    /// Elements of a row.
    pub n_columns: usize,
    /// Rows of a box.
    pub box_rows: usize,
}

impl Matrix<'_> {
    /// Its rows.
    ///
    /// # Panics
    /// When the engine cannot copy it; devices call it first.
    pub(super) fn n_rows(&self) -> usize {
        let Self { elements, n_columns, box_rows } = *self;
        let (len, address) = (elements.len(), elements.address());
        assert!(
            len > 0 && n_columns > 0 && len.is_multiple_of(n_columns),
            "{len} elements are no matrix of {n_columns} columns"
        );
        assert!(
            address.is_multiple_of(ALIGNMENT) && self.row_bytes().is_multiple_of(ALIGNMENT),
            "rows of {n_columns} from {address} on do not begin at multiples of {ALIGNMENT} bytes"
        );
        assert!((1..=BOX_ROWS_MAX).contains(&box_rows), "no box has {box_rows} rows");
        len / n_columns
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(&self) -> u64 {
        (self.n_columns * size_of::<bf16>()) as u64
    }
}
