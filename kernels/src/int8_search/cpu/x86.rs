//! The tile on x86-64.

use std::arch::x86_64::{
    __m256i, _CMP_GE_OQ, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_set1_epi32,
    _mm256_add_epi32, _mm256_cmp_ps, _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi16, _mm256_dpbusd_avx_epi32, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_movemask_ps, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_si256, _mm256_storeu_si256, _mm512_cmp_ps_mask, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_load_si512, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_storeu_si512,
};

use super::{Dots, PANEL_VALUES, TILE_QUERIES, Tile};

/// Groups of columns that a panel is fetched ahead of its use: 16 groups are 48 cache lines, about
/// 190 cycles of multiplying, which covers a second-level cache and most of a third.
const AHEAD_GROUPS: usize = 16;

fn word(bytes: [i8; 4]) -> i32 {
    i32::from_le_bytes(bytes.map(|b| b as u8))
}

/// Twenty-four accumulators, three registers of values, one broadcast word of a query: 28 of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn tile_avx512(tile: &Tile<'_>, dots: &mut Dots) -> [u64; TILE_QUERIES] {
    let n_groups = tile.n_groups;
    assert_eq!(tile.lanes.len(), 3 * n_groups);
    let queries: [*const [i8; 4]; TILE_QUERIES] = std::array::from_fn(|i| tile.query(i).as_ptr());
    let lanes = tile.lanes.as_ptr();
    let mut sums = tile.starts.map(|start| [_mm512_set1_epi32(start); 3]);
    for g in 0..n_groups {
        for j in 0..3 {
            // A hint may name any address, also one past the panel.
            _mm_prefetch::<_MM_HINT_T0>(lanes.wrapping_add(3 * (g + AHEAD_GROUPS) + j).cast());
        }
        let values: [_; 3] = std::array::from_fn(|j| {
            // SAFETY: `3 g + j` is below the length asserted above.
            let lane = unsafe { lanes.add(3 * g + j) };
            // SAFETY: a lane is 64 bytes, aligned to 64.
            unsafe { _mm512_load_si512(lane.cast()) }
        });
        for (query, sums) in queries.iter().zip(&mut sums) {
            // SAFETY: `query` has `n_groups` words, and `g` is below.
            let at = unsafe { query.add(g) };
            // SAFETY: as above.
            let word = _mm512_set1_epi32(word(unsafe { at.read() }));
            for (sum, values) in sums.iter_mut().zip(values) {
                *sum = _mm512_dpbusd_epi32(*sum, values, word);
            }
        }
    }
    let mut masks = [0; TILE_QUERIES];
    for (i, mask) in masks.iter_mut().enumerate() {
        let scale = _mm512_set1_ps(tile.query_scales[i]);
        let threshold = _mm512_set1_ps(tile.thresholds[i]);
        for (j, sum) in sums[i].into_iter().enumerate() {
            // SAFETY: sixteen of the panel's 48 scales.
            let scales = unsafe { _mm512_loadu_ps(tile.value_scales.as_ptr().add(16 * j)) };
            let scores = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scales), scale);
            let passing = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(scores, threshold);
            *mask |= u64::from(passing) << (16 * j);
        }
        if *mask != 0 {
            for (dots, sum) in dots[i].as_chunks_mut::<16>().0.iter_mut().zip(sums[i]) {
                // SAFETY: the chunk holds sixteen `i32`.
                unsafe { _mm512_storeu_si512(dots.as_mut_ptr().cast(), sum) };
            }
        }
    }
    masks
}

/// Four queries x 24 values at a time: twelve accumulators, three registers of values, one word.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn tile_avx_vnni(tile: &Tile<'_>, dots: &mut Dots) -> [u64; TILE_QUERIES] {
    for first in [0, 4] {
        let queries = [0, 1, 2, 3].map(|i| tile.query(first + i));
        for half in 0..2 {
            let mut sums = [0, 1, 2, 3].map(|i| [_mm256_set1_epi32(tile.starts[first + i]); 3]);
            for (g, lanes) in tile.lanes.as_chunks::<3>().0.iter().enumerate() {
                let values: [__m256i; 3] = std::array::from_fn(|j| {
                    let eight = 3 * half + j;
                    let bytes = &lanes[eight / 2].0.as_chunks::<32>().0[eight % 2];
                    // SAFETY: 32 bytes.
                    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
                });
                for (query, sums) in queries.iter().zip(&mut sums) {
                    let word = _mm256_set1_epi32(word(query[g]));
                    for (sum, values) in sums.iter_mut().zip(values) {
                        *sum = _mm256_dpbusd_avx_epi32(*sum, values, word);
                    }
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (j, sum) in sums.into_iter().enumerate() {
                    let eight = 3 * half + j;
                    let dots = &mut dots[first + i].as_chunks_mut::<8>().0[eight];
                    // SAFETY: eight `i32`.
                    unsafe { _mm256_storeu_si256(dots.as_mut_ptr().cast(), sum) };
                }
            }
        }
    }
    passing_avx2(tile, dots)
}

/// Two queries x sixteen values at a time. Each 256-bit accumulator holds two partial sums of
/// four values, added at the end.
#[target_feature(enable = "avx2")]
pub(super) fn tile_avx2(tile: &Tile<'_>, dots: &mut Dots) -> [u64; TILE_QUERIES] {
    for pair in 0..TILE_QUERIES / 2 {
        let queries = [0, 1].map(|i| tile.query(2 * pair + i));
        for j in 0..3 {
            let mut sums = [[_mm256_setzero_si256(); 4]; 2];
            for (g, lanes) in tile.lanes.as_chunks::<3>().0.iter().enumerate() {
                let quarters = lanes[j].0.as_chunks::<16>().0;
                let values: [__m256i; 4] = std::array::from_fn(|quarter| {
                    // SAFETY: the quarter holds 16 bytes.
                    let bytes = unsafe { _mm_loadu_si128(quarters[quarter].as_ptr().cast()) };
                    _mm256_cvtepu8_epi16(bytes)
                });
                for (sums, query) in sums.iter_mut().zip(queries) {
                    let word = _mm256_cvtepi8_epi16(_mm_set1_epi32(word(query[g])));
                    for (sum, values) in sums.iter_mut().zip(values) {
                        // 255 * 127 * 2 fits in 32 bits: exact.
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(values, word));
                    }
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                let query = 2 * pair + i;
                for (quarter, sum) in sums.into_iter().enumerate() {
                    let mut halves = [0_i32; 8];
                    // SAFETY: the array holds eight `i32`.
                    unsafe { _mm256_storeu_si256(halves.as_mut_ptr().cast(), sum) };
                    for value in 0..4 {
                        dots[query][16 * j + 4 * quarter + value] =
                            tile.starts[query] + halves[2 * value] + halves[2 * value + 1];
                    }
                }
            }
        }
    }
    passing_avx2(tile, dots)
}

#[target_feature(enable = "avx2")]
fn passing_avx2(tile: &Tile<'_>, dots: &Dots) -> [u64; TILE_QUERIES] {
    let mut masks = [0; TILE_QUERIES];
    for (i, mask) in masks.iter_mut().enumerate() {
        let scale = _mm256_set1_ps(tile.query_scales[i]);
        let threshold = _mm256_set1_ps(tile.thresholds[i]);
        for j in 0..PANEL_VALUES / 8 {
            let dots = &dots[i].as_chunks::<8>().0[j];
            let scales = &tile.value_scales.as_chunks::<8>().0[j];
            // SAFETY: eight `i32`.
            let dots = unsafe { _mm256_loadu_si256(dots.as_ptr().cast()) };
            // SAFETY: eight `f32`.
            let scales = unsafe { _mm256_loadu_ps(scales.as_ptr()) };
            let scores = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dots), scales), scale);
            let passing = _mm256_cmp_ps::<_CMP_GE_OQ>(scores, threshold);
            *mask |= u64::from(_mm256_movemask_ps(passing) as u8) << (8 * j);
        }
    }
    masks
}
