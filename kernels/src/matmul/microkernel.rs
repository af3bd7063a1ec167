//! The register tile: the only part of a matrix product that is written per instruction set.

#![expect(clippy::inline_always, reason = "a call would leave the caller's instruction set")]

use crate::isa::{Isa, Kind};

/// Registers side by side in a tile.
const N_REGS: usize = 2;

/// One block of a product, as the microkernel reads and writes it.
///
/// `c[i, j] = (c[i, j] if add) + scale * sum_l a[i, l] * b[l, j]` for `i < m`, `j < n`, `l < k`.
/// Element (i, l) of `a` is at `i * a_row + l * a_depth`, or, with rows packed in groups of
/// [`tile_rows`], the groups `a_group` apart. `b` is packed in panels of [`panel_cols`] columns,
/// `b_panel` apart, each `[k, panel_cols]`, the last padded with zeros. Row `i` of `c` is at
/// `i * c_row`.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_depth: usize,
    pub(super) a_group: usize,
    pub(super) b: *const f32,
    pub(super) b_panel: usize,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) scale: f32,
    pub(super) add: bool,
}

/// Rows of a register tile.
pub(super) fn tile_rows(isa: Isa) -> usize {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => x86::AVX512_TILES.len(),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => x86::AVX2_TILES.len(),
        Kind::Portable => PORTABLE_TILES.len(),
    }
}

/// Columns of a register tile, and of a panel of `b`.
pub(super) fn panel_cols(isa: Isa) -> usize {
    N_REGS
        * match isa.kind() {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => x86::Avx512::N_LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => x86::Avx2::N_LANES,
            Kind::Portable => Portable::N_LANES,
        }
}

/// Computes one block.
///
/// # Safety
/// Every element that the layout of [`Block`] names can be read, or written for `c`, and nothing
/// else writes those of `c` meanwhile.
pub(super) unsafe fn multiply(isa: Isa, block: &Block) {
    let (tiles, n_cols): (&[Tile], usize) = match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => (&x86::AVX512_TILES, panel_cols(isa)),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => (&x86::AVX2_TILES, panel_cols(isa)),
        Kind::Portable => (&PORTABLE_TILES, panel_cols(isa)),
    };
    // Rows outside: a group of rows stays in the first-level cache while panels stream by.
    for (group, row) in (0..block.m).step_by(tiles.len()).enumerate() {
        let tile = tiles[tiles.len().min(block.m - row) - 1];
        for (panel, col) in (0..block.n).step_by(n_cols).enumerate() {
            // SAFETY: The offsets stay inside what the caller promises, and only detection makes
            // an `Isa`, so the processor has what the tile was compiled for.
            unsafe {
                let a = block.a.add(group * block.a_group);
                let b = block.b.add(panel * block.b_panel);
                let c = block.c.add(row * block.c_row + col);
                tile(block, a, b, c, n_cols.min(block.n - col));
            }
        }
    }
}

/// Computes the tile at `c` from a group of rows at `a` and a panel at `b`; the last argument is
/// how many of the columns exist.
type Tile = unsafe fn(&Block, *const f32, *const f32, *mut f32, usize);

/// A vector register.
trait Vector {
    type Reg: Copy;
    /// Elements of a register.
    const N_LANES: usize;

    fn splat(x: f32) -> Self::Reg;
    unsafe fn load(at: *const f32) -> Self::Reg;
    unsafe fn store(at: *mut f32, x: Self::Reg);
    fn mul_add(a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg;
}

/// One register tile; see [`Tile`].
///
/// # Safety
/// As of [`multiply`].
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize>(
    block: &Block,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    cols: usize,
) {
    let n_cols = N_REGS * V::N_LANES;
    // SAFETY: The offsets stay inside what the caller promises.
    unsafe {
        let sums = sums::<V, ROWS>(block, a, b);
        if cols == n_cols {
            write::<V, ROWS>(sums, c, block.c_row, block.scale, block.add);
            return;
        }
        // The last panel is narrower than the registers: through a buffer.
        let mut edge = [0.0_f32; 12 * 32];
        write::<V, ROWS>(sums, edge.as_mut_ptr(), n_cols, block.scale, false);
        for r in 0..ROWS {
            for j in 0..cols {
                let target = c.add(r * block.c_row + j);
                let old = if block.add { *target } else { 0.0 };
                *target = old + edge[r * n_cols + j];
            }
        }
    }
}

/// # Safety
/// As of [`multiply`].
#[inline(always)]
unsafe fn sums<V: Vector, const ROWS: usize>(
    block: &Block,
    mut a: *const f32,
    mut b: *const f32,
) -> [[V::Reg; N_REGS]; ROWS] {
    let (a_row, a_depth) = (block.a_row, block.a_depth);
    let mut sums = [[V::splat(0.0); N_REGS]; ROWS];
    for _ in 0..block.k {
        // SAFETY: The offsets stay inside what the caller promises.
        unsafe {
            let b_regs = [V::load(b), V::load(b.add(V::N_LANES))];
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = V::splat(*a.add(r * a_row));
                sums[0] = V::mul_add(x, b_regs[0], sums[0]);
                sums[1] = V::mul_add(x, b_regs[1], sums[1]);
            }
        }
        // The last step leaves `a` and `b` one step behind the operands, hence `wrapping`.
        a = a.wrapping_add(a_depth);
        b = b.wrapping_add(N_REGS * V::N_LANES);
    }
    sums
}

/// # Safety
/// `c` can be written in `ROWS` rows of a tile, `c_row` apart.
#[inline(always)]
unsafe fn write<V: Vector, const ROWS: usize>(
    sums: [[V::Reg; N_REGS]; ROWS],
    c: *mut f32,
    c_row: usize,
    scale: f32,
    add: bool,
) {
    let scale = V::splat(scale);
    for (r, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: The caller's promise.
            unsafe {
                let target = c.add(r * c_row + i * V::N_LANES);
                let old = if add { V::load(target) } else { V::splat(0.0) };
                V::store(target, V::mul_add(scale, sum, old));
            }
        }
    }
}

/// Tiles of 1 to 6 rows.
const PORTABLE_TILES: [Tile; 6] = [
    tile::<Portable, 1>,
    tile::<Portable, 2>,
    tile::<Portable, 3>,
    tile::<Portable, 4>,
    tile::<Portable, 5>,
    tile::<Portable, 6>,
];

/// What every target has: four lanes, left to the compiler.
struct Portable;

impl Vector for Portable {
    type Reg = [f32; 4];
    const N_LANES: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> [f32; 4] {
        // SAFETY: The caller's promise.
        unsafe { at.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, x: [f32; 4]) {
        // SAFETY: The caller's promise.
        unsafe { at.cast::<[f32; 4]>().write_unaligned(x) }
    }

    #[inline(always)]
    fn mul_add(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        use crate::isa::{Arith, Native};
        std::array::from_fn(|i| Native::mul_add(a[i], b[i], c[i]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::{Block, Tile, Vector, tile};

    /// Tiles of 1 to 12 rows.
    pub(super) const AVX512_TILES: [Tile; 12] = [
        avx512::<1>,
        avx512::<2>,
        avx512::<3>,
        avx512::<4>,
        avx512::<5>,
        avx512::<6>,
        avx512::<7>,
        avx512::<8>,
        avx512::<9>,
        avx512::<10>,
        avx512::<11>,
        avx512::<12>,
    ];
    /// Tiles of 1 to 6 rows.
    pub(super) const AVX2_TILES: [Tile; 6] =
        [avx2::<1>, avx2::<2>, avx2::<3>, avx2::<4>, avx2::<5>, avx2::<6>];

    /// # Safety
    /// As of [`super::multiply`], on a processor with AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn avx512<const ROWS: usize>(
        block: &Block,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        cols: usize,
    ) {
        // SAFETY: The caller's promise.
        unsafe { tile::<Avx512, ROWS>(block, a, b, c, cols) }
    }

    /// # Safety
    /// As of [`super::multiply`], on a processor with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const ROWS: usize>(
        block: &Block,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        cols: usize,
    ) {
        // SAFETY: The caller's promise.
        unsafe { tile::<Avx2, ROWS>(block, a, b, c, cols) }
    }

    /// 24 of 32 registers hold sums.
    pub(super) struct Avx512;

    impl Vector for Avx512 {
        type Reg = __m512;
        const N_LANES: usize = 16;

        #[inline(always)]
        fn splat(x: f32) -> __m512 {
            // SAFETY: Used below `avx512` only.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> __m512 {
            // SAFETY: The caller's promise, and used below `avx512` only.
            unsafe { _mm512_loadu_ps(at) }
        }

        #[inline(always)]
        unsafe fn store(at: *mut f32, x: __m512) {
            // SAFETY: The caller's promise, and used below `avx512` only.
            unsafe { _mm512_storeu_ps(at, x) }
        }

        #[inline(always)]
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: Used below `avx512` only.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    /// 12 of 16 registers hold sums.
    pub(super) struct Avx2;

    impl Vector for Avx2 {
        type Reg = __m256;
        const N_LANES: usize = 8;

        #[inline(always)]
        fn splat(x: f32) -> __m256 {
            // SAFETY: Used below `avx2` only.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(at: *const f32) -> __m256 {
            // SAFETY: The caller's promise, and used below `avx2` only.
            unsafe { _mm256_loadu_ps(at) }
        }

        #[inline(always)]
        unsafe fn store(at: *mut f32, x: __m256) {
            // SAFETY: The caller's promise, and used below `avx2` only.
            unsafe { _mm256_storeu_ps(at, x) }
        }

        #[inline(always)]
        fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: Used below `avx2` only.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
    }
}
