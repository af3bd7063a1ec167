//! Products of a few rows with prepacked weights.
//!
//! A general matrix product spends its time packing when only a few rows share it. Here the weights
//! are packed once, into panels of 32 output columns laid out as the inner loop reads them; each
//! output is one chain of fused multiply-adds over `k`, in order.

use crate::Pool;
use crate::disjoint::Disjoint;
use crate::isa::{Arith, Isa, Kind, Native};
use crate::matmul::Accumulate;

/// Output columns of a panel: two AVX-512 or four AVX2 registers.
const PANEL: usize = 32;
/// Rows that share one load of a panel: 8 x 2 accumulators hide the latency of two FMA units.
const ROWS: usize = 8;
/// Multiply-adds that pay for handing work to another thread.
const GRAIN: usize = 1 << 16;

/// One cache line, so that vector loads never straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [f32; 16]);

/// Weights `[n, k]` in the order in which [`Self::apply`] reads them.
pub struct Packed {
    /// `[panel][k][PANEL]`, the last panel padded with zeros.
    lines: Vec<Line>,
    n: usize,
    k: usize,
}

impl Packed {
    /// Packs `weights`, `[n, k]` row-major (output by input, as Hugging Face stores them).
    ///
    /// # Panics
    /// When `weights` is not `n * k` long.
    pub fn new(pool: &Pool, weights: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weights.len(), n * k, "weights have the shape [n, k]");
        let mut lines = vec![Line([0.0; 16]); n.div_ceil(PANEL) * k * (PANEL / 16)];
        if k > 0 {
            pool.for_chunks(&mut lines, k * (PANEL / 16), |panel, lines| {
                for column in 0..PANEL.min(n - panel * PANEL) {
                    let row = &weights[(panel * PANEL + column) * k..][..k];
                    for (i, &weight) in row.iter().enumerate() {
                        lines[i * (PANEL / 16) + column / 16].0[column % 16] = weight;
                    }
                }
            });
        }
        Self { lines, n, k }
    }

    /// Outputs of a row.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Writes `out[r, j] (+)= sum_i x[r, i] * w[j, i]` for every row.
    ///
    /// # Shapes
    /// `x`: `[m, k]`, `out`: `[m, n]`, row-major; `m = x.len() / k`.
    ///
    /// # Panics
    /// When the shapes disagree.
    pub fn apply(&self, pool: &Pool, x: &[f32], out: &mut [f32], accumulate: Accumulate) {
        let m = x.len() / self.k.max(1);
        assert_eq!(x.len(), m * self.k, "x has the shape [m, k]");
        assert_eq!(out.len(), m * self.n, "out has the shape [m, n]");
        let n_panels = self.n.div_ceil(PANEL);
        let n_tasks = (m * self.n * self.k / GRAIN).clamp(1, 4 * pool.n_threads()).min(n_panels);
        let out = Disjoint::new(out);
        pool.for_each(n_tasks, |task| {
            for panel in task * n_panels / n_tasks..(task + 1) * n_panels / n_tasks {
                self.panel(pool.isa(), panel, x, &out, accumulate);
            }
        });
    }

    /// Computes the columns of one panel for every row.
    fn panel(
        &self,
        isa: Isa,
        panel: usize,
        x: &[f32],
        out: &Disjoint<'_, f32>,
        accumulate: Accumulate,
    ) {
        let (k, n) = (self.k, self.n);
        let lines = &self.lines[panel * k * (PANEL / 16)..][..k * (PANEL / 16)];
        let columns = PANEL.min(n - panel * PANEL);
        let m = x.len() / k.max(1);
        let mut sums = [[0.0_f32; PANEL]; ROWS];
        for row in (0..m).step_by(ROWS) {
            let rows = ROWS.min(m - row);
            tile(isa, rows, &x[row * k..][..rows * k], k, lines, &mut sums);
            for (r, sums) in sums.iter().enumerate().take(rows) {
                let at = (row + r) * n + panel * PANEL;
                // SAFETY: No other panel writes these columns.
                let out = unsafe { out.slice(at..at + columns) };
                match accumulate {
                    Accumulate::Overwrite => out.copy_from_slice(&sums[..columns]),
                    Accumulate::Add => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                }
            }
        }
    }
}

type Sums = [[f32; PANEL]; ROWS];

/// Writes `sums[r][j] = sum_i x[r, i] * lines[i][j]` for `rows` rows of length `k`.
fn tile(isa: Isa, rows: usize, x: &[f32], k: usize, lines: &[Line], sums: &mut Sums) {
    assert!(x.len() == rows * k && lines.len() == k * (PANEL / 16), "a tile has whole rows");
    macro_rules! by_rows {
        ($kernel:ident) => {
            match rows {
                1 => $kernel::<1>(x, k, lines, sums),
                2 => $kernel::<2>(x, k, lines, sums),
                3 => $kernel::<3>(x, k, lines, sums),
                4 => $kernel::<4>(x, k, lines, sums),
                5 => $kernel::<5>(x, k, lines, sums),
                6 => $kernel::<6>(x, k, lines, sums),
                7 => $kernel::<7>(x, k, lines, sums),
                8 => $kernel::<8>(x, k, lines, sums),
                _ => unreachable!("a tile has 1 to {ROWS} rows"),
            }
        };
    }
    match isa.kind() {
        // SAFETY: Detection found AVX-512 and the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe { by_rows!(tile_avx512) },
        // SAFETY: Detection found AVX2 and FMA and the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { by_rows!(tile_avx2) },
        Kind::Portable => by_rows!(tile_portable),
    }
}

/// # Safety
/// `x` has `R * k` elements, `lines` `2 * k`, and the machine has AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tile_avx512<const R: usize>(x: &[f32], k: usize, lines: &[Line], sums: &mut Sums) {
    use std::arch::x86_64::{
        _mm512_fmadd_ps, _mm512_load_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    let (x, lines) = (x.as_ptr(), lines.as_ptr());
    for i in 0..k {
        // SAFETY: `2 * i` lies inside the `2 * k` lines; a line is 64-byte aligned.
        let left = unsafe { _mm512_load_ps(lines.add(2 * i).cast()) };
        // SAFETY: So does `2 * i + 1`.
        let right = unsafe { _mm512_load_ps(lines.add(2 * i + 1).cast()) };
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `r < R` and `i < k`, so it lies inside the `R * k` elements.
            let x = _mm512_set1_ps(unsafe { *x.add(r * k + i) });
            acc[0] = _mm512_fmadd_ps(x, left, acc[0]);
            acc[1] = _mm512_fmadd_ps(x, right, acc[1]);
        }
    }
    for (acc, sums) in acc.iter().zip(sums) {
        let (left, right) = sums.split_at_mut(16);
        // SAFETY: Each half has 16 elements.
        unsafe { _mm512_storeu_ps(left.as_mut_ptr(), acc[0]) };
        // SAFETY: As above.
        unsafe { _mm512_storeu_ps(right.as_mut_ptr(), acc[1]) };
    }
}

/// Half a panel and up to four rows at a time: 8 accumulators of the 16 registers.
///
/// # Safety
/// `x` has `R * k` elements, `lines` `2 * k`, and the machine has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const R: usize>(x: &[f32], k: usize, lines: &[Line], sums: &mut Sums) {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_load_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };
    const STEP: usize = 4;
    let (x, lines) = (x.as_ptr(), lines.as_ptr());
    for (first, half) in (0..R).step_by(STEP).flat_map(|first| [(first, 0), (first, 1)]) {
        let rows = STEP.min(R - first);
        let mut acc = [[_mm256_setzero_ps(); 2]; STEP];
        for i in 0..k {
            // SAFETY: `2 * i + half` lies inside the `2 * k` lines; a line is 64-byte aligned.
            let line: *const f32 = unsafe { lines.add(2 * i + half).cast() };
            // SAFETY: The first 8 elements of the line.
            let left = unsafe { _mm256_load_ps(line) };
            // SAFETY: The last 8 elements of the line.
            let right = unsafe { _mm256_load_ps(line.add(8)) };
            for (r, acc) in acc.iter_mut().enumerate() {
                // Rows past the end repeat the last one and are not stored.
                let row = first + r.min(rows - 1);
                // SAFETY: `row < R` and `i < k`, so it lies inside the `R * k` elements.
                let x = _mm256_set1_ps(unsafe { *x.add(row * k + i) });
                acc[0] = _mm256_fmadd_ps(x, left, acc[0]);
                acc[1] = _mm256_fmadd_ps(x, right, acc[1]);
            }
        }
        for (acc, sums) in acc.iter().zip(&mut sums[first..]).take(rows) {
            let (left, right) = sums[half * 16..half * 16 + 16].split_at_mut(8);
            // SAFETY: Each part has 8 elements.
            unsafe { _mm256_storeu_ps(left.as_mut_ptr(), acc[0]) };
            // SAFETY: As above.
            unsafe { _mm256_storeu_ps(right.as_mut_ptr(), acc[1]) };
        }
    }
}

fn tile_portable<const R: usize>(x: &[f32], k: usize, lines: &[Line], sums: &mut Sums) {
    for (r, sums) in sums.iter_mut().enumerate().take(R) {
        let mut acc = [0.0; PANEL];
        for (&x, lines) in x[r * k..][..k].iter().zip(lines.chunks_exact(PANEL / 16)) {
            for (acc, line) in acc.chunks_exact_mut(16).zip(lines) {
                for (acc, &weight) in acc.iter_mut().zip(&line.0) {
                    *acc = Native::mul_add(x, weight, *acc);
                }
            }
        }
        *sums = acc;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Philox;

    fn random(seed: u64, len: usize) -> Vec<f32> {
        let rng = Philox::new(seed, "linear");
        (0..len).map(|i| rng.normal(i as u64) as f32).collect()
    }

    /// The definition: sums in `f64`.
    fn reference(x: &[f32], weights: &[f32], n: usize, k: usize) -> Vec<f64> {
        x.chunks_exact(k)
            .flat_map(|x| {
                (0..n).map(move |j| {
                    let row = &weights[j * k..][..k];
                    x.iter().zip(row).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum()
                })
            })
            .collect()
    }

    #[test]
    fn agrees_with_the_definition() {
        let pool = Pool::new(2);
        for (m, n, k) in [(1, 1, 1), (1, 33, 7), (3, 64, 65), (8, 31, 96), (17, 100, 130)] {
            let (x, weights) = (random(1, m * k), random(2, n * k));
            let packed = Packed::new(&pool, &weights, n, k);
            let expected = reference(&x, &weights, n, k);
            for isa in Isa::available() {
                let mut out = vec![1.0; m * n];
                packed.apply(&Pool::with_isa(2, isa), &x, &mut out, Accumulate::Add);
                for (i, (&out, &expected)) in out.iter().zip(&expected).enumerate() {
                    // A chain of k roundings, each at most half a unit of a sum near sqrt(k).
                    let limit = 1e-6 * (k as f64) + 1e-6;
                    let error = (f64::from(out) - 1.0 - expected).abs();
                    assert!(error < limit, "{} {m}x{n}x{k} at {i}: error {error}", isa.name());
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let (n, k) = (129, 70);
        let (x, weights) = (random(3, 64 * k), random(4, n * k));
        let packed = Packed::new(&Pool::new(1), &weights, n, k);
        for isa in Isa::available() {
            let mut whole = vec![0.0; 64 * n];
            packed.apply(&Pool::with_isa(1, isa), &x, &mut whole, Accumulate::Overwrite);
            for (n_threads, m) in (1..=3).flat_map(|n| [1, 2, 5, 7, 8, 9, 64].map(|m| (n, m))) {
                let pool = Pool::with_isa(n_threads, isa);
                for first in [0, 64 - m] {
                    let mut part = vec![0.0; m * n];
                    packed.apply(&pool, &x[first * k..][..m * k], &mut part, Accumulate::Overwrite);
                    let whole = &whole[first * n..][..m * n];
                    assert!(part == whole, "{} {n_threads} {m} {first}", isa.name());
                }
            }
        }
    }
}
