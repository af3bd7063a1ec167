//! The tile on aarch64.

use std::arch::aarch64::{int8x16_t, int32x4_t, vdupq_n_s32, vld1q_s8, vst1q_s32};
use std::arch::asm;

use super::{Dots, TILE_QUERIES, Tile, passing};

/// `sum[i] += dot(values[4 i..4 i + 4], word)`, in signed bytes. Written out, because the intrinsic
/// is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(sum: int32x4_t, values: int8x16_t, word: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: the instruction reads and writes registers only, and `dotprod` is enabled.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sum, in(vreg) values, in(vreg) word,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Four queries x sixteen values at a time. Values are offset by 128 in memory; flipping the top bit
/// makes them signed again, so the sums need no correction.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn tile_neon(tile: &Tile<'_>, dots: &mut Dots) -> [u64; TILE_QUERIES] {
    for first in [0, 4] {
        let queries = [0, 1, 2, 3].map(|i| tile.query(first + i));
        for j in 0..3 {
            let mut sums = [[vdupq_n_s32(0); 4]; 4];
            for (g, lanes) in tile.lanes.as_chunks::<3>().0.iter().enumerate() {
                let signed = lanes[j].0.map(|byte| (byte ^ 0x80) as i8);
                let values: [int8x16_t; 4] = std::array::from_fn(|quarter| {
                    // SAFETY: 16 of the lane's 64 bytes.
                    unsafe { vld1q_s8(signed.as_ptr().add(16 * quarter)) }
                });
                for (query, sums) in queries.iter().zip(&mut sums) {
                    let word = [query[g]; 4];
                    // SAFETY: 16 bytes.
                    let word = unsafe { vld1q_s8(word.as_ptr().cast()) };
                    for (sum, values) in sums.iter_mut().zip(values) {
                        *sum = sdot(*sum, values, word);
                    }
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                let quarters = &mut dots[first + i].as_chunks_mut::<4>().0[4 * j..4 * j + 4];
                for (dots, sum) in quarters.iter_mut().zip(sums) {
                    // SAFETY: four `i32`.
                    unsafe { vst1q_s32(dots.as_mut_ptr(), sum) };
                }
            }
        }
    }
    passing(tile, dots)
}
