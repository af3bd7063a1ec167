//! Register tiles of 8 queries x 48 values on each instruction set.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

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
    /// AVX2 with VNNI: 32 pairs.
    AvxVnni,
    /// AVX2, by widening to 16 bits.
    Avx2,
    /// NEON with the dot-product extension: 16 pairs.
    NeonDot,
    /// Plain Rust.
    Portable,
}

impl Isa {
    /// Every path, fastest first.
    pub const ALL: [Self; 5] =
        [Self::Avx512Vnni, Self::AvxVnni, Self::Avx2, Self::NeonDot, Self::Portable];

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
            Self::AvxVnni => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            Self::Portable => true,
            _ => false,
        }
    }

    /// The fastest path of this machine.
    pub fn detect() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }
}

/// `[query, value]` of a tile.
pub(super) type Dots = [[i32; PANEL_VALUES]; TILE_QUERIES];

/// What a tile multiplies, and what its scores are compared with.
pub(super) struct Tile<'a> {
    /// Rows of a block of queries, `[n_rows, n_groups]`.
    pub(super) words: &'a [[i8; 4]],
    /// The tile's rows in `words`.
    pub(super) rows: [usize; TILE_QUERIES],
    pub(super) n_groups: usize,
    /// A panel of values, `[n_groups, 3]`.
    pub(super) lanes: &'a [Lane],
    pub(super) value_scales: &'a [f32; PANEL_VALUES],
    /// What the sums start from: it undoes the values' offset.
    pub(super) starts: [i32; TILE_QUERIES],
    pub(super) query_scales: [f32; TILE_QUERIES],
    /// A score at or above passes; NaN lets none pass.
    pub(super) thresholds: [f32; TILE_QUERIES],
}

impl<'a> Tile<'a> {
    fn query(&self, i: usize) -> &'a [[i8; 4]] {
        &self.words[self.rows[i] * self.n_groups..][..self.n_groups]
    }
}

/// Writes `dots[i][c] = start[i] + sum query[i] * packed_value[c]` for each query with a passing score;
/// bit `c` of the returned mask `i` tells whether that score passes.
pub(super) fn tile(isa: Isa, tile: &Tile<'_>, dots: &mut Dots) -> [u64; TILE_QUERIES] {
    assert_eq!(tile.lanes.len(), 3 * tile.n_groups, "tile and panel differ in columns");
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: Callers check once that the instruction set is available.
        Isa::Avx512Vnni => unsafe { x86::tile_avx512(tile, dots) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AvxVnni => unsafe { x86::tile_avx_vnni(tile, dots) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::tile_avx2(tile, dots) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Isa::NeonDot => unsafe { neon::tile_neon(tile, dots) },
        _ => {
            dots_portable(tile, dots);
            passing(tile, dots)
        }
    }
}

fn dots_portable(tile: &Tile<'_>, dots: &mut Dots) {
    for (i, dots) in dots.iter_mut().enumerate() {
        dots.fill(tile.starts[i]);
        for (word, lanes) in tile.query(i).iter().zip(tile.lanes.chunks_exact(3)) {
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

/// The masks of finished sums, in plain Rust that the caller's instruction set vectorizes.
#[inline]
fn passing(tile: &Tile<'_>, dots: &Dots) -> [u64; TILE_QUERIES] {
    let mut masks = [0; TILE_QUERIES];
    for (i, mask) in masks.iter_mut().enumerate() {
        let (scale, threshold) = (tile.query_scales[i], tile.thresholds[i]);
        for (c, (&dot, &value_scale)) in dots[i].iter().zip(tile.value_scales).enumerate() {
            *mask |= u64::from(score(dot, value_scale, scale) >= threshold) << c;
        }
    }
    masks
}
