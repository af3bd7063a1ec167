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
        Kind::Avx512 => x86::Avx512::N_ROWS,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => x86::Avx2::N_ROWS,
        Kind::Portable => Portable::N_ROWS,
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
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: Only detection makes an `Isa`; the rest is the caller's promise.
        Kind::Avx512 => unsafe { x86::avx512(block) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: Only detection makes an `Isa`; the rest is the caller's promise.
        Kind::Avx2 => unsafe { x86::avx2(block) },
        // SAFETY: The caller's promise.
        Kind::Portable => unsafe { tiles::<Portable>(block) },
    }
}

/// A vector register.
trait Vector {
    type Reg: Copy;
    /// Elements of a register.
    const N_LANES: usize;
    /// Rows of a register tile: as many as the registers hold, at most 12.
    const N_ROWS: usize;

    fn splat(x: f32) -> Self::Reg;
    unsafe fn load(at: *const f32) -> Self::Reg;
    unsafe fn store(at: *mut f32, x: Self::Reg);
    fn mul_add(a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg;
}

/// All tiles of a block: rows outside, so that a group of rows stays in the first-level cache while
/// the panels stream from the second.
///
/// # Safety
/// As of [`multiply`].
#[inline(always)]
unsafe fn tiles<V: Vector>(block: &Block) {
    let mut row = 0;
    while row < block.m {
        let n_rows = V::N_ROWS.min(block.m - row);
        // SAFETY: The offsets stay inside what the caller promises.
        let group = unsafe {
            Block {
                a: block.a.add(row / V::N_ROWS * block.a_group),
                c: block.c.add(row * block.c_row),
                ..*block
            }
        };
        // SAFETY: As above.
        unsafe {
            match n_rows {
                1 => panels::<V, 1>(&group),
                2 => panels::<V, 2>(&group),
                3 => panels::<V, 3>(&group),
                4 => panels::<V, 4>(&group),
                5 => panels::<V, 5>(&group),
                6 => panels::<V, 6>(&group),
                7 => panels::<V, 7>(&group),
                8 => panels::<V, 8>(&group),
                9 => panels::<V, 9>(&group),
                10 => panels::<V, 10>(&group),
                11 => panels::<V, 11>(&group),
                _ => panels::<V, 12>(&group),
            }
        }
        row += n_rows;
    }
}

/// # Safety
/// As of [`multiply`].
#[inline(always)]
unsafe fn panels<V: Vector, const ROWS: usize>(block: &Block) {
    // The match in `tiles` names more rows than some instruction sets have.
    if ROWS > V::N_ROWS {
        return;
    }
    let n_cols = N_REGS * V::N_LANES;
    let mut col = 0;
    while col < block.n {
        // SAFETY: The offsets stay inside what the caller promises.
        unsafe {
            let b = block.b.add(col / n_cols * block.b_panel);
            let sums = sums::<V, ROWS>(block, b);
            let c = block.c.add(col);
            if col + n_cols <= block.n {
                write::<V, ROWS>(sums, c, block.c_row, block.scale, block.add);
            } else {
                // The last panel is narrower than the registers: through a buffer.
                let mut edge = [0.0_f32; 12 * 32];
                write::<V, ROWS>(sums, edge.as_mut_ptr(), n_cols, block.scale, false);
                for r in 0..ROWS {
                    for j in 0..block.n - col {
                        let target = c.add(r * block.c_row + j);
                        let old = if block.add { *target } else { 0.0 };
                        *target = old + edge[r * n_cols + j];
                    }
                }
            }
        }
        col += n_cols;
    }
}

/// # Safety
/// As of [`multiply`].
#[inline(always)]
unsafe fn sums<V: Vector, const ROWS: usize>(
    block: &Block,
    mut b: *const f32,
) -> [[V::Reg; N_REGS]; ROWS] {
    let mut sums = [[V::splat(0.0); N_REGS]; ROWS];
    let mut a = block.a;
    for _ in 0..block.k {
        // SAFETY: The offsets stay inside what the caller promises.
        unsafe {
            let b_regs = [V::load(b), V::load(b.add(V::N_LANES))];
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = V::splat(*a.add(r * block.a_row));
                sums[0] = V::mul_add(x, b_regs[0], sums[0]);
                sums[1] = V::mul_add(x, b_regs[1], sums[1]);
            }
            // The last step leaves `a` and `b` one step behind the operands, hence `wrapping`.
            a = a.wrapping_add(block.a_depth);
            b = b.wrapping_add(N_REGS * V::N_LANES);
        }
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

/// What every target has: four lanes, left to the compiler.
struct Portable;

impl Vector for Portable {
    type Reg = [f32; 4];
    const N_LANES: usize = 4;
    const N_ROWS: usize = 6;

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

    use super::{Block, Vector, tiles};

    /// # Safety
    /// As of [`super::multiply`], on a processor with AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn avx512(block: &Block) {
        // SAFETY: The caller's promise.
        unsafe { tiles::<Avx512>(block) }
    }

    /// # Safety
    /// As of [`super::multiply`], on a processor with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(block: &Block) {
        // SAFETY: The caller's promise.
        unsafe { tiles::<Avx2>(block) }
    }

    /// 24 of 32 registers hold sums.
    pub(super) struct Avx512;

    impl Vector for Avx512 {
        type Reg = __m512;
        const N_LANES: usize = 16;
        const N_ROWS: usize = 12;

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
        const N_ROWS: usize = 6;

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
