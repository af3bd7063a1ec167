//! Scoring hits again in `f32`.

use super::{Hit, Search, best_first};
use crate::isa::{Isa, per_isa};

/// Rows of a query block that is rescored at once: 128 rows of 1,024 columns are half a megabyte,
/// which a second-level cache holds while the values pass by.
pub(super) const BLOCK_QUERIES: usize = 128;
/// Bits of a hit's place among those of its query.
const PLACE_BITS: u32 = 24;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;

/// The rows of queries and values in `f32`, from which hits get their final scores.
#[derive(Clone, Copy, Debug)]
pub struct Rescore<'a> {
    /// Rows of the queries, `[n, columns]`, as quantized.
    pub queries: &'a [f32],
    /// Rows of the values.
    pub values: &'a [f32],
    /// Id of the first value.
    pub first_value_id: u32,
    /// Columns of a row.
    pub columns: usize,
    /// Hits kept for each query; a search takes more candidates than that.
    pub k: usize,
    /// Hits below this score are dropped.
    pub min_score: f32,
}

impl<'a> Rescore<'a> {
    /// A search whose candidates are enough for `k` hits after rescoring.
    ///
    /// Quantization changes a score of unit rows by thousandths at most, which exchanges neighbours
    /// in rank; an eighth more covers all that could enter. `margin` is what quantization may change.
    pub fn candidates(&self, search: Search, margin: f32) -> Search {
        Search { k: self.k + self.k / 8 + 8, min_score: self.min_score - margin, ..search }
    }

    fn query(&self, i: u32) -> &'a [f32] {
        &self.queries[i as usize * self.columns..][..self.columns]
    }

    fn value(&self, id: u32) -> &'a [f32] {
        &self.values[(id - self.first_value_id) as usize * self.columns..][..self.columns]
    }

    /// Gives the hits of some queries their final scores, order and number. Values are taken in
    /// order of id, each with all queries that met it, so that a row is read from memory once.
    pub(super) fn apply(&self, isa: Isa, members: &[u32], hits: &mut [Vec<Hit>]) {
        // Id, query and place of each hit in one number: sorted, equal ids stand together.
        let mut visits: Vec<u64> = Vec::with_capacity(hits.iter().map(Vec::len).sum());
        for (slot, hits) in hits.iter().enumerate() {
            let places = hits.iter().enumerate();
            visits.extend(
                places.map(|(place, hit)| {
                    u64::from(hit.id) << 32 | (slot << PLACE_BITS | place) as u64
                }),
            );
        }
        visits.sort_unstable();
        let mut rest = visits.as_slice();
        while let Some(&first) = rest.first() {
            let id = (first >> 32) as u32;
            let n_same = rest.iter().take_while(|&&visit| (visit >> 32) as u32 == id).count();
            let (same, later) = rest.split_at(n_same);
            if let Some(next) = later.first() {
                prefetch(self.value((next >> 32) as u32));
            }
            let value = self.value(id);
            for four in same.chunks(4) {
                let at = four.iter().map(|&visit| {
                    ((visit as u32 >> PLACE_BITS) as usize, (visit as u32 & PLACE_MASK) as usize)
                });
                // Spare places repeat the first query.
                let mut queries = [self.query(members[(first as u32 >> PLACE_BITS) as usize]); 4];
                for (query, (slot, _)) in queries.iter_mut().zip(at.clone()) {
                    *query = self.query(members[slot]);
                }
                let scores = dot_four(isa, value, queries);
                for ((slot, place), score) in at.zip(scores) {
                    hits[slot][place].score = score;
                }
            }
            rest = later;
        }
        for hits in hits {
            hits.retain(|hit| hit.score >= self.min_score);
            hits.sort_unstable_by(best_first);
            hits.truncate(self.k);
        }
    }
}

/// The inner product of two `f32` rows, summed in sixteen lanes in a fixed order and never fused, so
/// that it has the same bits everywhere.
///
/// # Panics
/// When the rows differ in length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of_products(a, b)
}

/// [`dot`] of one row with four, to the bit: four sums run side by side, where one would wait for
/// each addition.
fn dot_four(isa: Isa, a: &[f32], rows: [&[f32]; 4]) -> [f32; 4] {
    #[cfg(target_arch = "x86_64")]
    if isa.kind() == crate::isa::Kind::Avx512 {
        // SAFETY: Only detection makes an `Isa`, so the processor has AVX-512.
        return unsafe { x86::dot_four(a, rows) };
    }
    rows.map(|row| dot_on(isa, a, row))
}

/// Asks for a row that is read soon.
fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a hint reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

per_isa! {
    /// [`dot`] on a chosen instruction set, to the bit.
    fn dot_on<M>(a: &[f32], b: &[f32]) -> f32 {
        sum_of_products(a, b)
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "a call would leave the caller's instruction set")]
fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "rows differ in length");
    let mut sums = [0.0_f32; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    fold(sums, a_rest, b_rest)
}

/// Adds the products that fill no whole register, and then the lanes.
#[inline(always)]
#[expect(clippy::inline_always, reason = "a call would leave the caller's instruction set")]
fn fold(mut sums: [f32; 16], a_rest: &[f32], b_rest: &[f32]) -> f32 {
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += a * b;
    }
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::fold;

    #[target_feature(enable = "avx512f")]
    pub(super) fn dot_four(a: &[f32], rows: [&[f32]; 4]) -> [f32; 4] {
        assert!(rows.iter().all(|row| row.len() == a.len()), "rows differ in length");
        let mut sums = [_mm512_setzero_ps(); 4];
        let (whole, a_rest) = a.as_chunks::<16>();
        for (i, a) in whole.iter().enumerate() {
            // SAFETY: sixteen numbers.
            let a = unsafe { _mm512_loadu_ps(a.as_ptr()) };
            for (sum, row) in sums.iter_mut().zip(rows) {
                // SAFETY: rows are as long as `a`, which has sixteen numbers from `16 * i`.
                let at = unsafe { row.as_ptr().add(16 * i) };
                // SAFETY: as above.
                let b = unsafe { _mm512_loadu_ps(at) };
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(a, b));
            }
        }
        let mut found = [0.0; 4];
        for ((found, sum), row) in found.iter_mut().zip(sums).zip(rows) {
            let mut lanes = [0.0_f32; 16];
            // SAFETY: sixteen numbers.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
            *found = fold(lanes, a_rest, &row[row.len() - a_rest.len()..]);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_the_same_bits() {
        let rng = crate::philox::Philox::new(2, "dot");
        for columns in [1, 16, 33, 1000] {
            let row = |r: u64| -> Vec<f32> {
                (0..columns).map(|c| rng.normal(r << 32 | c) as f32).collect()
            };
            let (a, b) = (row(0), row(1));
            for isa in Isa::available() {
                let expected = dot(&a, &b).to_bits();
                assert_eq!(dot_on(isa, &a, &b).to_bits(), expected, "{}", isa.name());
                let four = dot_four(isa, &a, [&b, &a, &b, &b]).map(f32::to_bits);
                let own = dot(&a, &a).to_bits();
                assert_eq!(four, [expected, own, expected, expected], "{}", isa.name());
            }
        }
    }
}
