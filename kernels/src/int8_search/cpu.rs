//! Register tiles of 8 queries x 48 values on each instruction set.

use super::{PANEL_VALUES, TILE_QUERIES, score};

/// Four columns of sixteen values: one 512-bit register.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Lane(pub(super) [u8; 64]);

/// An instruction set with a path of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with VNNI: one instruction multiplies and adds 64 pairs.
    Avx512Vnni,
    /// AVX2, by widening to 16 bits.
    Avx2,
    /// Plain Rust.
    Portable,
}

type Dots = [[i32; PANEL_VALUES]; TILE_QUERIES];

impl Isa {
    /// Every path, fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512Vnni, Self::Avx2, Self::Portable];

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Vnni | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// The fastest path of this machine.
    pub fn detect() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }
}

/// Writes `dots[i][c] = start[i] + sum query[i] * packed_value[c]` for a tile.
///
/// `words` is `[8, n_groups]`, `lanes` a panel `[n_groups, 3]`.
pub(super) fn dots(
    isa: Isa,
    words: &[[i8; 4]],
    lanes: &[Lane],
    start: &[i32; TILE_QUERIES],
    dots: &mut Dots,
) {
    assert_eq!(words.len() * 3, lanes.len() * TILE_QUERIES, "tile and panel differ in columns");
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `search_on` asserts that the instruction set is available; lengths agree, above.
        Isa::Avx512Vnni => unsafe { dots_avx512(words, lanes, start, dots) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { dots_avx2(words, lanes, start, dots) },
        _ => dots_portable(words, lanes, start, dots),
    }
}

/// Bit `c` tells whether the score of `dots[c]` is above `threshold`.
pub(super) fn above(
    isa: Isa,
    dots: &[i32; PANEL_VALUES],
    value_scales: &[f32; PANEL_VALUES],
    query_scale: f32,
    threshold: f32,
) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `search_on` asserts that the instruction set is available.
        Isa::Avx512Vnni => unsafe { above_avx512(dots, value_scales, query_scale, threshold) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { above_avx2(dots, value_scales, query_scale, threshold) },
        _ => above_any(dots, value_scales, query_scale, threshold),
    }
}

fn dots_portable(words: &[[i8; 4]], lanes: &[Lane], start: &[i32; TILE_QUERIES], dots: &mut Dots) {
    let n_groups = lanes.len() / 3;
    for ((query, dots), &start) in words.chunks_exact(n_groups).zip(dots).zip(start) {
        dots.fill(start);
        for (word, lanes) in query.iter().zip(lanes.chunks_exact(3)) {
            let word = word.map(i32::from);
            for (lane, dots) in lanes.iter().zip(dots.chunks_exact_mut(16)) {
                for (value, dot) in lane.0.chunks_exact(4).zip(dots) {
                    *dot += word[0] * i32::from(value[0])
                        + word[1] * i32::from(value[1])
                        + word[2] * i32::from(value[2])
                        + word[3] * i32::from(value[3]);
                }
            }
        }
    }
}

fn above_any(
    dots: &[i32; PANEL_VALUES],
    value_scales: &[f32; PANEL_VALUES],
    query_scale: f32,
    threshold: f32,
) -> u64 {
    let mut mask = 0;
    for c in 0..PANEL_VALUES {
        mask |= u64::from(score(dots[c], value_scales[c], query_scale) > threshold) << c;
    }
    mask
}

#[cfg(target_arch = "x86_64")]
use x86::{above_avx2, above_avx512, dots_avx2, dots_avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _CMP_GT_OQ, _mm_loadu_si128, _mm_set1_epi32, _mm256_add_epi32, _mm256_cmp_ps,
        _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_loadu_ps,
        _mm256_loadu_si256, _mm256_madd_epi16, _mm256_movemask_ps, _mm256_mul_ps, _mm256_set1_ps,
        _mm256_setzero_si256, _mm256_storeu_si256, _mm512_cmp_ps_mask, _mm512_cvtepi32_ps,
        _mm512_dpbusd_epi32, _mm512_load_si512, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_si512,
    };

    use super::{Dots, Lane, PANEL_VALUES, TILE_QUERIES};

    /// Twenty-four accumulators, three registers of values, one broadcast word of a query: 28 of 32.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn dots_avx512(
        words: &[[i8; 4]],
        lanes: &[Lane],
        start: &[i32; TILE_QUERIES],
        dots: &mut Dots,
    ) {
        let n_groups = lanes.len() / 3;
        assert_eq!(words.len(), n_groups * TILE_QUERIES);
        let mut sums = start.map(|start| [_mm512_set1_epi32(start); 3]);
        let words = words.as_ptr();
        for (g, lanes) in lanes.chunks_exact(3).enumerate() {
            // SAFETY: a lane is 64 bytes, aligned to 64.
            let values: [_; 3] =
                std::array::from_fn(|j| unsafe { _mm512_load_si512(lanes[j].0.as_ptr().cast()) });
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `i < 8` and `g < n_groups`, so the index is below the length asserted.
                let word = i32::from_le_bytes(
                    unsafe { words.add(i * n_groups + g).read() }.map(|b| b as u8),
                );
                let word = _mm512_set1_epi32(word);
                for (sum, values) in sums.iter_mut().zip(values) {
                    *sum = _mm512_dpbusd_epi32(*sum, values, word);
                }
            }
        }
        for (dots, sums) in dots.iter_mut().zip(sums) {
            for (dots, sum) in dots.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
                // SAFETY: the chunk holds sixteen `i32`.
                unsafe { _mm512_storeu_si512(dots.as_mut_ptr().cast(), sum) };
            }
        }
    }

    /// Two queries x sixteen values at a time. Each 256-bit accumulator holds two partial sums of
    /// four values, added at the end.
    #[target_feature(enable = "avx2")]
    pub(super) fn dots_avx2(
        words: &[[i8; 4]],
        lanes: &[Lane],
        start: &[i32; TILE_QUERIES],
        dots: &mut Dots,
    ) {
        let n_groups = lanes.len() / 3;
        for pair in 0..TILE_QUERIES / 2 {
            let queries = [0, 1].map(|i| &words[(2 * pair + i) * n_groups..][..n_groups]);
            for j in 0..3 {
                let mut sums = [[_mm256_setzero_si256(); 4]; 2];
                for (g, lanes) in lanes.chunks_exact(3).enumerate() {
                    let quarters = lanes[j].0.as_chunks::<16>().0;
                    let values: [__m256i; 4] = std::array::from_fn(|quarter| {
                        // SAFETY: the quarter holds 16 bytes.
                        let bytes = unsafe { _mm_loadu_si128(quarters[quarter].as_ptr().cast()) };
                        _mm256_cvtepu8_epi16(bytes)
                    });
                    for (sums, query) in sums.iter_mut().zip(queries) {
                        let word = i32::from_le_bytes(query[g].map(|b| b as u8));
                        let word = _mm256_cvtepi8_epi16(_mm_set1_epi32(word));
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
                                start[query] + halves[2 * value] + halves[2 * value + 1];
                        }
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn above_avx512(
        dots: &[i32; PANEL_VALUES],
        value_scales: &[f32; PANEL_VALUES],
        query_scale: f32,
        threshold: f32,
    ) -> u64 {
        let (query_scale, threshold) = (_mm512_set1_ps(query_scale), _mm512_set1_ps(threshold));
        let mut mask = 0;
        for j in 0..3 {
            let dots = &dots[16 * j..16 * j + 16];
            let scales = &value_scales[16 * j..16 * j + 16];
            // SAFETY: sixteen `i32`.
            let dots = _mm512_cvtepi32_ps(unsafe { _mm512_loadu_si512(dots.as_ptr().cast()) });
            // SAFETY: sixteen `f32`.
            let scales = unsafe { _mm512_loadu_ps(scales.as_ptr()) };
            let score = _mm512_mul_ps(_mm512_mul_ps(dots, scales), query_scale);
            let passing = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(score, threshold);
            mask |= u64::from(passing) << (16 * j);
        }
        mask
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn above_avx2(
        dots: &[i32; PANEL_VALUES],
        value_scales: &[f32; PANEL_VALUES],
        query_scale: f32,
        threshold: f32,
    ) -> u64 {
        let (query_scale, threshold) = (_mm256_set1_ps(query_scale), _mm256_set1_ps(threshold));
        let mut mask = 0;
        for j in 0..6 {
            let dots = &dots[8 * j..8 * j + 8];
            let scales = &value_scales[8 * j..8 * j + 8];
            // SAFETY: eight `i32`.
            let dots = _mm256_cvtepi32_ps(unsafe { _mm256_loadu_si256(dots.as_ptr().cast()) });
            // SAFETY: eight `f32`.
            let scales = unsafe { _mm256_loadu_ps(scales.as_ptr()) };
            let score = _mm256_mul_ps(_mm256_mul_ps(dots, scales), query_scale);
            let passing = _mm256_cmp_ps::<_CMP_GT_OQ>(score, threshold);
            mask |= u64::from(_mm256_movemask_ps(passing) as u8) << (8 * j);
        }
        mask
    }
}
