//! Tiles of a size that the shape alone decides, each one computed by one thread, so that the bits
//! of the result do not depend on how many threads share them.
//!
//! The right operand is packed once into panels as wide as a register tile. Rows of the left one
//! are read where they are; columns (`tn`) are packed by the tile, a block of the depth at a time.

use std::cell::RefCell;

use super::Accumulate;
use super::microkernel::{self, Block};
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::isa::Isa;

/// Depth of a block, at most: a panel's block and a group of rows fit the second-level cache.
const DEPTH: usize = 384;
/// Rows and columns of an output tile, at most: its block of the right operand stays in the
/// second-level cache.
const TILE_MAX: usize = 384;
/// Tiles that a product is cut into at least, when it is large enough: fewer tiles read operands
/// fewer times, more keep more threads busy.
const N_TILES: usize = 8;

/// Rows this many elements apart, one page, fall into the same few places of the first-level cache
/// and drive each other out: such rows are packed.
const ALIASING: usize = 1024;

/// Columns at most this many elements apart are read where they are, for they fit the first-level
/// cache.
const NEAR: usize = 128;

thread_local! {
    /// Packed rows of the left operand; kept, since fresh memory costs a page fault for each 4 KB.
    static GROUPS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A read-only matrix inside a slice: element (r, c) is at `r * row_stride + c * col_stride`, and
/// one of the strides is 1.
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

    fn holds(self, n_rows: usize, n_cols: usize) -> bool {
        (n_rows - 1) * self.row_stride + (n_cols - 1) * self.col_stride < self.data.len()
    }
}

/// A right operand `b[k, n]`, packed in panels of columns.
pub(crate) struct Packed {
    panels: Vec<f32>,
    k: usize,
    n: usize,
}

impl Packed {
    /// An empty operand, to [`Self::fill`].
    pub(crate) fn new() -> Self {
        Self { panels: Vec::new(), k: 0, n: 0 }
    }

    /// Packs `b[k, n]` with the threads of `pool`.
    pub(crate) fn in_parallel(pool: &Pool, b: View<'_>, k: usize, n: usize) -> Self {
        /// Rows that one task packs.
        const ROWS: usize = 64;
        let cols = microkernel::panel_cols(pool.isa());
        let len = n.div_ceil(cols) * cols * k;
        let mut packed = Self { panels: pool.take_buffer(len), k, n };
        if k == 0 || n == 0 {
            return packed;
        }
        let panels = Disjoint::new(&mut packed.panels);
        if b.col_stride == 1 {
            pool.for_each(k.div_ceil(ROWS), |i| {
                let rows = i * ROWS..k.min((i + 1) * ROWS);
                for (panel, col) in (0..n).step_by(cols).enumerate() {
                    let at = panel * cols * k;
                    let range = at + rows.start * cols..at + rows.end * cols;
                    // SAFETY: Each task packs rows of its own.
                    let target = unsafe { panels.slice(range) };
                    pack_rows(target, cols, b.from(rows.start, col), cols.min(n - col));
                }
            });
        } else {
            pool.for_each(n.div_ceil(cols), |i| {
                // SAFETY: Each task packs a panel of its own.
                let target = unsafe { panels.slice(i * cols * k..(i + 1) * cols * k) };
                pack_columns(target, cols, b.from(0, i * cols), cols.min(n - i * cols));
            });
        }
        packed
    }

    /// Packs `b[k, n]` on the calling thread, and reuses the memory.
    pub(crate) fn fill(&mut self, isa: Isa, b: View<'_>, k: usize, n: usize) {
        let cols = microkernel::panel_cols(isa);
        let len = n.div_ceil(cols) * cols * k;
        grow(&mut self.panels, len);
        (self.k, self.n) = (k, n);
        for (i, panel) in self.panels[..len].chunks_exact_mut((cols * k).max(1)).enumerate() {
            let (b, n) = (b.from(0, i * cols), cols.min(n - i * cols));
            if b.col_stride == 1 {
                pack_rows(panel, cols, b, n);
            } else {
                pack_columns(panel, cols, b, n);
            }
        }
    }

    /// Leaves the memory to later ops.
    pub(crate) fn give_back(self, pool: &Pool) {
        pool.give_buffer(self.panels);
    }
}

/// Writes `panel[l, j] = b[l, j]` for `j < n`, and 0 for the rest of its `cols` columns, where rows
/// of `b` are contiguous.
fn pack_rows(panel: &mut [f32], cols: usize, b: View<'_>, n: usize) {
    for (l, target) in panel.chunks_exact_mut(cols).enumerate() {
        let source = &b.data[l * b.row_stride..][..n];
        if let (Ok(target), Ok(source)) =
            (<&mut [f32; 32]>::try_from(&mut *target), <&[f32; 32]>::try_from(source))
        {
            // A size that the compiler knows spares a call for each row.
            *target = *source;
        } else {
            let (target, padding) = target.split_at_mut(n);
            target.copy_from_slice(source);
            padding.fill(0.0);
        }
    }
}

/// As [`pack_rows`], where columns of `b` are contiguous.
fn pack_columns(panel: &mut [f32], cols: usize, b: View<'_>, n: usize) {
    /// Elements of a column that are read at once: one cache line.
    const RUN: usize = 16;
    for (i, rows) in panel.chunks_mut(cols * RUN).enumerate() {
        let depth = rows.len() / cols;
        for j in 0..n {
            let column = &b.data[j * b.col_stride + i * RUN..][..depth];
            for (row, &x) in rows.chunks_exact_mut(cols).zip(column) {
                row[j] = x;
            }
        }
        for row in rows.chunks_exact_mut(cols) {
            row[n..].fill(0.0);
        }
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
    let b = Packed::in_parallel(pool, b, k, n);
    packed_tiled(pool, c, a, &b, m, accumulate);
    b.give_back(pool);
}

/// As [`tiled`], with `b` packed before.
pub(crate) fn packed_tiled(
    pool: &Pool,
    c: &mut [f32],
    a: View<'_>,
    b: &Packed,
    m: usize,
    accumulate: Accumulate,
) {
    let (n, isa) = (b.n, pool.isa());
    assert_eq!(c.len(), m * n, "`c` is [m, n]");
    if m == 0 || n == 0 {
        return;
    }
    let [tile_rows, tile_cols] = tile_size(isa, m, n, a.col_stride != 1);
    let n_tile_cols = n.div_ceil(tile_cols);
    let c = Disjoint::new(c);
    pool.for_each(m.div_ceil(tile_rows) * n_tile_cols, |tile| {
        let (row, col) = (tile / n_tile_cols * tile_rows, tile % n_tile_cols * tile_cols);
        let (rows, cols) = (tile_rows.min(m - row), tile_cols.min(n - col));
        let target = Target { row, col, rows, cols, stride: n, offset: 0 };
        // SAFETY: Each tile writes its own rows and columns only.
        unsafe { compute(isa, &c, target, a, b, 1.0, accumulate) };
    });
}

/// Rows and columns of the tiles of `c[m, n]`: nearly square, which reads the least of the operands,
/// nearly equal, and whole register tiles. Where each tile packs its rows, tiles are wider, so that
/// fewer of them pack the same rows.
fn tile_size(isa: Isa, m: usize, n: usize, packs_rows: bool) -> [usize; 2] {
    let side = ((m * n).div_ceil(N_TILES) as f64).sqrt() as usize;
    let side = if packs_rows { 2 * side } else { side };
    let even = |size: usize, side: usize, unit: usize| {
        let n_parts = size.div_ceil(side.clamp(unit, TILE_MAX));
        size.div_ceil(n_parts).next_multiple_of(unit)
    };
    let cols = even(n, side, microkernel::panel_cols(isa));
    let area = (m * n).div_ceil(N_TILES);
    [even(m, area.div_ceil(cols), microkernel::tile_rows(isa)), cols]
}

/// Computes `c[m, n] (+)= scale * a[m, k] · b[k, n]` on the calling thread; `c` is contiguous.
pub(crate) fn product(
    isa: Isa,
    c: &mut [f32],
    a: View<'_>,
    b: &Packed,
    m: usize,
    scale: f32,
    accumulate: Accumulate,
) {
    let target = Target { row: 0, col: 0, rows: m, cols: b.n, stride: b.n, offset: 0 };
    // SAFETY: `c` is borrowed mutably.
    unsafe { compute(isa, &Disjoint::new(c), target, a, b, scale, accumulate) };
}

/// As [`product`], into a buffer shared by tasks: element (i, j) of `c` is at
/// `offset + i * stride + j`.
///
/// # Safety
/// Nothing else reaches the elements of the product meanwhile.
pub(crate) unsafe fn product_at(
    isa: Isa,
    c: &Disjoint<'_, f32>,
    [offset, stride]: [usize; 2],
    a: View<'_>,
    b: &Packed,
    m: usize,
    accumulate: Accumulate,
) {
    assert!(b.n <= stride, "rows of the product do not overlap");
    // Columns in blocks, so that each block of `b` is read once from beyond the second-level cache.
    for col in (0..b.n).step_by(TILE_MAX) {
        let cols = TILE_MAX.min(b.n - col);
        let target = Target { row: 0, col, rows: m, cols, stride, offset };
        // SAFETY: The caller's promise.
        unsafe { compute(isa, c, target, a, b, 1.0, accumulate) };
    }
}

/// A part of the product, and where its element (0, 0) and its rows lie.
#[derive(Clone, Copy)]
struct Target {
    row: usize,
    col: usize,
    rows: usize,
    cols: usize,
    stride: usize,
    offset: usize,
}

/// Computes one part of a product, its depth in equal blocks.
///
/// # Safety
/// Nothing else reaches the elements of `target` meanwhile.
unsafe fn compute(
    isa: Isa,
    c: &Disjoint<'_, f32>,
    target: Target,
    a: View<'_>,
    b: &Packed,
    scale: f32,
    accumulate: Accumulate,
) {
    let Target { row, col, rows, cols, stride, offset } = target;
    if rows == 0 || cols == 0 {
        return;
    }
    let start = offset + row * stride + col;
    if b.k == 0 {
        for r in 0..if accumulate == Accumulate::Overwrite { rows } else { 0 } {
            // SAFETY: The caller's promise.
            unsafe { c.slice(start + r * stride..start + r * stride + cols) }.fill(0.0);
        }
        return;
    }
    let panel_cols = microkernel::panel_cols(isa);
    let group = microkernel::tile_rows(isa);
    assert!(col.is_multiple_of(panel_cols), "tiles start at a panel");
    assert!(b.panels.len() >= b.n.div_ceil(panel_cols) * panel_cols * b.k, "panels are whole");
    assert!(a.from(row, 0).holds(rows, b.k), "the operand holds its last element");
    let depth = b.k.div_ceil(b.k.div_ceil(DEPTH));
    let mut groups = GROUPS.take();
    for first in (0..b.k).step_by(depth) {
        let k = depth.min(b.k - first);
        let a = a.from(row, first);
        let is_across = a.col_stride != 1;
        let is_packed =
            if is_across { a.col_stride > NEAR } else { a.row_stride.is_multiple_of(ALIASING) };
        if is_packed && is_across {
            pack_groups(&mut groups, group, a, rows, k);
        } else if is_packed {
            pack_group_rows(&mut groups, group, a, rows, k);
        }
        let block = Block {
            a: if is_packed { groups.as_ptr() } else { a.data.as_ptr() },
            a_row: if is_packed { 1 } else { a.row_stride },
            a_depth: if is_packed { group } else { a.col_stride },
            a_group: group * if is_packed { k } else { a.row_stride },
            b: b.panels[col * b.k + first * panel_cols..].as_ptr(),
            b_panel: panel_cols * b.k,
            c: c.strided(start, start + (rows - 1) * stride + cols),
            c_row: stride,
            m: rows,
            n: cols,
            k,
            scale,
            add: accumulate == Accumulate::Add || first > 0,
        };
        // SAFETY: The layout is that of `a`, or of `pack_groups`, and that of `Packed`, whose sizes
        // were checked above; `strided` has checked the last element of `c`; that nothing else
        // reaches its elements is the caller's promise.
        unsafe { microkernel::multiply(isa, &block) };
    }
    GROUPS.set(groups);
}

fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

/// Packs `a[m, k]`, whose rows are contiguous, in groups of rows `[k, group]`.
fn pack_group_rows(groups: &mut Vec<f32>, group: usize, a: View<'_>, m: usize, k: usize) {
    grow(groups, m.div_ceil(group) * group * k);
    let n_groups = m.div_ceil(group);
    for (i, target) in groups.chunks_exact_mut(group * k).take(n_groups).enumerate() {
        for r in 0..group.min(m - i * group) {
            let source = &a.data[(i * group + r) * a.row_stride..][..k];
            for (target, &x) in target.chunks_exact_mut(group).zip(source) {
                target[r] = x;
            }
        }
    }
}

/// Packs `a[m, k]`, whose columns are contiguous, in groups of rows `[k, group]`.
fn pack_groups(groups: &mut Vec<f32>, group: usize, a: View<'_>, m: usize, k: usize) {
    /// Columns packed at once: few enough that their lines stay in the first-level cache though
    /// the stride may be a power of two, many enough to write in runs.
    const COLS: usize = 8;
    grow(groups, m.div_ceil(group) * group * k);
    for first in (0..k).step_by(COLS) {
        let cols = COLS.min(k - first);
        for (i, row) in (0..m).step_by(group).enumerate() {
            let n_rows = group.min(m - row);
            let target = &mut groups[(i * k + first) * group..][..cols * group];
            for (l, target) in target.chunks_exact_mut(group).enumerate() {
                let source = &a.data[(first + l) * a.col_stride + row..][..n_rows];
                match (<&mut [f32; 12]>::try_from(&mut *target), <&[f32; 12]>::try_from(source)) {
                    // A size that the compiler knows spares a call for each group.
                    (Ok(target), Ok(source)) => *target = *source,
                    _ => target[..n_rows].copy_from_slice(source),
                }
            }
        }
    }
}
