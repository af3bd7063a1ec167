//! How close the register tile comes to the processor's peak.

use super::block::Block;
use super::cpu::Isa;
use super::{Own, Rows, Search, Values, WORK_QUERIES};
use crate::Pool;
use crate::clock::thread_seconds;

/// Speeds of one thread, in 10^9 multiplications and additions of int8 a second.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// The path.
    pub isa: Isa,
    /// Multiply-adds on registers alone; `None` where the path has no such instruction.
    pub peak: Option<f64>,
    /// The tile with its filter, 256 queries against values that no cache holds.
    pub tile: f64,
}

/// Measures both in turn, `n_runs` times, in processor time of this thread; the best of each counts,
/// because other work on the machine only ever slows one.
pub fn speed(n_runs: usize) -> Speed {
    const COLUMNS: usize = 1024;
    const N_VALUES: usize = 48_000;
    let isa = Isa::detect();
    let pool = Pool::new(1);
    let numbers = |n: usize| -> Vec<i8> {
        (0..n * COLUMNS).map(|i| ((i * 37 + i / COLUMNS * 11) % 255) as i8 / 2).collect()
    };
    let (q, v) = (numbers(WORK_QUERIES), numbers(N_VALUES));
    let scales = vec![0.001; N_VALUES];
    let rows = |q| Rows { q, scales: &scales[..q.len() / COLUMNS], columns: COLUMNS, first_id: 0 };
    let values = Values::pack(&pool, rows(&v));
    let members: Vec<u32> = (0..WORK_QUERIES as u32).collect();
    // Nothing passes, as for nearly all values of a real search.
    let search = Search { k: 1, min_score: f32::INFINITY, own: Own::Keep };
    let mut block = Block::new(isa, rows(&q), &members, search);
    let (mut peak, mut tile) = (None, 0.0_f64);
    for _ in 0..n_runs.max(1) {
        if let Some(seconds_per_op) = peak_seconds(isa) {
            peak = Some(peak.unwrap_or(0.0_f64).max(1e-9 / seconds_per_op));
        }
        let start = thread_seconds();
        for panel in 0..values.n_panels() {
            block.scan(values.panel(panel), &members);
        }
        let n_ops = (2 * WORK_QUERIES * N_VALUES * COLUMNS) as f64;
        tile = tile.max(n_ops * 1e-9 / (thread_seconds() - start));
    }
    Speed { isa, peak, tile }
}

/// Seconds of one multiplication or addition when operands stay in registers.
#[cfg(target_arch = "x86_64")]
fn peak_seconds(isa: Isa) -> Option<f64> {
    const N: usize = 4_000_000;
    let start = thread_seconds();
    let ops = match isa {
        // SAFETY: detection gave the path.
        Isa::Avx512Vnni => unsafe { peak::avx512(N) },
        // SAFETY: as above.
        Isa::AvxVnni => unsafe { peak::avx_vnni(N) },
        _ => return None,
    };
    Some((thread_seconds() - start) / ops as f64)
}

#[cfg(not(target_arch = "x86_64"))]
fn peak_seconds(_: Isa) -> Option<f64> {
    None
}

#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::asm;
    use std::arch::x86_64::{
        _mm256_dpbusd_avx_epi32, _mm256_extract_epi32, _mm256_set1_epi8, _mm256_set1_epi32,
        _mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_set1_epi32,
    };

    /// Runs `n` rounds of sixteen independent instructions; returns their operations.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn avx512(n: usize) -> usize {
        let mut sums = [_mm512_set1_epi32(0); 16];
        let (mut a, b) = (_mm512_set1_epi8(3), _mm512_set1_epi8(5));
        for _ in 0..n {
            // SAFETY: no instruction. It hides the operand, so that the rounds are not folded.
            unsafe { asm!("/* {0} */", inout(zmm_reg) a, options(pure, nomem, nostack)) };
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        for sum in sums {
            std::hint::black_box(_mm512_reduce_add_epi32(sum));
        }
        n * 16 * 64 * 2
    }

    /// Runs `n` rounds of twelve independent instructions; returns their operations.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn avx_vnni(n: usize) -> usize {
        let mut sums = [_mm256_set1_epi32(0); 12];
        let (mut a, b) = (_mm256_set1_epi8(3), _mm256_set1_epi8(5));
        for _ in 0..n {
            // SAFETY: no instruction. It hides the operand, so that the rounds are not folded.
            unsafe { asm!("/* {0} */", inout(ymm_reg) a, options(pure, nomem, nostack)) };
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        for sum in sums {
            std::hint::black_box(_mm256_extract_epi32::<0>(sum));
        }
        n * 12 * 32 * 2
    }
}
