//! Tiles of fixed size, each one single-threaded product of the `gemm` crate, so that the bits of
//! the result do not depend on how many threads share the tiles.

use gemm::Parallelism;

use super::Accumulate;
use crate::Pool;
use crate::disjoint::Disjoint;

/// Rows of an output tile.
const TILE_ROWS: usize = 256;
/// Columns of an output tile.
const TILE_COLS: usize = 512;

/// A read-only matrix inside a slice: element (r, c) is at `r * row_stride + c * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of the slice are rows of the matrix.
    pub(crate) fn rows(data: &'a [f32], row_stride: usize) -> Self {
        Self { data, row_stride, col_stride: 1 }
    }

    /// Rows of the slice are columns of the matrix.
    pub(crate) fn columns(data: &'a [f32], col_stride: usize) -> Self {
        Self { data, row_stride: 1, col_stride }
    }

    /// The matrix from (row, col) on.
    fn from(self, row: usize, col: usize) -> Self {
        Self { data: &self.data[row * self.row_stride + col * self.col_stride..], ..self }
    }

    fn holds(self, rows: usize, cols: usize) -> bool {
        (rows - 1) * self.row_stride + (cols - 1) * self.col_stride < self.data.len()
    }
}

/// Computes `c[m, n] (+)= a[m, k] · b[k, n]` in parallel tiles; `c` is contiguous.
pub(super) fn tiled(
    pool: &Pool,
    c: &mut [f32],
    a: View<'_>,
    b: View<'_>,
    [m, n, k]: [usize; 3],
    accumulate: Accumulate,
) {
    assert_eq!(c.len(), m * n, "`c` is [m, n]");
    let (n_tile_rows, n_tile_cols) = (m.div_ceil(TILE_ROWS), n.div_ceil(TILE_COLS));
    let c = Disjoint::new(c);
    pool.for_each(n_tile_rows * n_tile_cols, |tile| {
        let (row, col) = (tile / n_tile_cols * TILE_ROWS, tile % n_tile_cols * TILE_COLS);
        let (rows, cols) = (TILE_ROWS.min(m - row), TILE_COLS.min(n - col));
        if k == 0 {
            if accumulate == Accumulate::Overwrite {
                for r in row..row + rows {
                    // SAFETY: Each tile writes its own rows and columns only.
                    unsafe { c.slice(r * n + col..r * n + col + cols) }.fill(0.0);
                }
            }
            return;
        }
        let target = c.strided(row * n + col, (row + rows - 1) * n + col + cols);
        // SAFETY: `strided` has checked the tile's last element, and each tile writes its own rows
        // and columns only.
        unsafe {
            block(target, n, a.from(row, 0), b.from(0, col), [rows, cols, k], 1.0, accumulate);
        }
    });
}

/// Computes `c[m, n] (+)= scale * a[m, k] · b[k, n]` on the calling thread, where row `r` of `c`
/// starts at `r * c_stride`. Nothing happens when a size is 0.
pub(crate) fn product(
    c: &mut [f32],
    c_stride: usize,
    a: View<'_>,
    b: View<'_>,
    [m, n, k]: [usize; 3],
    scale: f32,
    accumulate: Accumulate,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(n <= c_stride && (m - 1) * c_stride + n <= c.len(), "the product fits its output");
    // SAFETY: `c` is borrowed mutably, and holds the last element.
    unsafe { block(c.as_mut_ptr(), c_stride, a, b, [m, n, k], scale, accumulate) };
}

/// As [`product`], into a buffer shared by tasks: element (0, 0) of `c` is at `at`.
///
/// # Safety
/// Nothing else reaches the elements of the product meanwhile.
pub(crate) unsafe fn product_at(
    c: &Disjoint<'_, f32>,
    at: usize,
    c_stride: usize,
    a: View<'_>,
    b: View<'_>,
    [m, n, k]: [usize; 3],
    accumulate: Accumulate,
) {
    assert!(m > 0 && n > 0 && k > 0 && n <= c_stride, "a shared product is not empty");
    let target = c.strided(at, at + (m - 1) * c_stride + n);
    // SAFETY: `strided` has checked the last element; the rest is the caller's promise.
    unsafe { block(target, c_stride, a, b, [m, n, k], 1.0, accumulate) };
}

/// One product.
///
/// # Safety
/// `c` may be written at `r * c_stride + j` for each `r < m` and `j < n`, by this call only.
unsafe fn block(
    c: *mut f32,
    c_stride: usize,
    a: View<'_>,
    b: View<'_>,
    [m, n, k]: [usize; 3],
    scale: f32,
    accumulate: Accumulate,
) {
    assert!(a.holds(m, k) && b.holds(k, n), "operands hold their last element");
    let add = accumulate == Accumulate::Add;
    // SAFETY: The operands were checked above, the output is the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            c_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0_f32,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
