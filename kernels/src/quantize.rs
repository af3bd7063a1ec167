//! Symmetric int8 quantization of rows.
//!
//! Every row has a scale of its own, so one large row does not cost the others their precision, and
//! no zero point, so inner products of quantized rows need no cross terms.

use crate::Pool;

/// Largest magnitude of a quantized value. -128 is never produced, so negation stays in range.
pub const Q_MAX: f32 = 127.0;

/// Rows handled by one work item.
const TILE_ROWS: usize = 64;

/// Adding and subtracting 1.5 * 2^23 rounds an `f32` below 2^22 to the nearest integer, ties to even,
/// in two additions that every instruction set vectorizes.
const ROUND: f32 = 12_582_912.0;

/// Writes `q[r, c] = round(x[r, c] / scale[r])` with `scale[r] = max_c |x[r, c]| / 127`, ties to even.
///
/// A row of zeros gets scale 0 and zeros. `x[r, c]` differs from `q[r, c] * scale[r]` by at most
/// half a scale (and one rounding of the division).
///
/// # Shapes
/// `x`, `q`: `[rows, cols]`; `scales`: `[rows]`.
///
/// # Panics
/// When the lengths disagree or a value of `x` is not finite.
pub fn rows(pool: &Pool, x: &[f32], cols: usize, q: &mut [i8], scales: &mut [f32]) {
    check(x, cols, q, scales);
    let mut tiles: Vec<_> =
        q.chunks_mut(TILE_ROWS * cols).zip(scales.chunks_mut(TILE_ROWS)).collect();
    pool.for_chunks(&mut tiles, 1, |tile, chunk| {
        let (q, scales) = &mut chunk[0];
        let x = &x[tile * TILE_ROWS * cols..][..q.len()];
        let rows = x.chunks_exact(cols).zip(q.chunks_exact_mut(cols)).zip(scales.iter_mut());
        for ((x, q), scale) in rows {
            let inverse;
            (*scale, inverse) = scale_of(x);
            for (q, &x) in q.iter_mut().zip(x) {
                // The rounding trick yields an integer in [-127, 127].
                *q = ((x * inverse + ROUND) - ROUND) as i8;
            }
        }
    });
}

/// The definition of [`rows`]: one row at a time, rounding by the standard library.
///
/// # Panics
/// As [`rows`].
pub fn reference(x: &[f32], cols: usize, q: &mut [i8], scales: &mut [f32]) {
    check(x, cols, q, scales);
    for ((x, q), scale) in x.chunks_exact(cols).zip(q.chunks_exact_mut(cols)).zip(scales) {
        let inverse;
        (*scale, inverse) = scale_of(x);
        for (q, &x) in q.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i8;
        }
    }
}

/// Scale of a row and what its values are multiplied by.
fn scale_of(x: &[f32]) -> (f32, f32) {
    let mut largest = 0.0_f32;
    let mut sum = 0.0_f32;
    for &value in x {
        largest = largest.max(value.abs());
        // `max` ignores a NaN, a sum of zero multiples does not.
        sum += value * 0.0;
    }
    assert!(
        sum == 0.0 && largest.is_finite(),
        "a row to quantize holds a value that is not finite"
    );
    // A subnormal maximum would overflow the inverse; such a row is zero at int8 precision.
    if largest < f32::MIN_POSITIVE * Q_MAX {
        (0.0, 0.0)
    } else {
        (largest / Q_MAX, Q_MAX / largest)
    }
}

fn check(x: &[f32], cols: usize, q: &[i8], scales: &[f32]) {
    assert!(cols > 0, "rows have no columns");
    assert_eq!(x.len(), q.len(), "input and output differ in length");
    assert_eq!(x.len(), cols * scales.len(), "one scale a row");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Philox;

    #[test]
    fn equals_the_reference_bit_for_bit() {
        for (n, cols) in [(1, 1), (3, 7), (65, 64), (130, 33)] {
            let rng = Philox::new(3, "quantize");
            let mut x: Vec<f32> = (0..n * cols).map(|i| rng.normal(i as u64) as f32).collect();
            x[..cols].fill(0.0);
            let (mut q, mut scales) = (vec![1; x.len()], vec![1.0; n]);
            let (mut q_ref, mut scales_ref) = (vec![2; x.len()], vec![2.0; n]);
            reference(&x, cols, &mut q_ref, &mut scales_ref);
            for threads in [1, 2, 3] {
                rows(&Pool::new(threads), &x, cols, &mut q, &mut scales);
                assert_eq!((&q, &scales), (&q_ref, &scales_ref), "{n}x{cols}");
            }
        }
    }

    #[test]
    fn inner_products_of_unit_rows_stay_within_a_hundredth() {
        let cols = 1024;
        let rng = Philox::new(5, "unit");
        let mut x: Vec<f32> = (0..2 * cols).map(|i| rng.normal(i as u64) as f32).collect();
        for row in x.chunks_exact_mut(cols) {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            for value in row {
                *value /= norm;
            }
        }
        let (mut q, mut scales) = (vec![0; x.len()], vec![0.0; 2]);
        rows(&Pool::new(1), &x, cols, &mut q, &mut scales);
        let product = |a: usize, b: usize| {
            let exact: f32 = (0..cols).map(|c| x[a * cols + c] * x[b * cols + c]).sum();
            let dot: i32 =
                (0..cols).map(|c| i32::from(q[a * cols + c]) * i32::from(q[b * cols + c])).sum();
            (exact, dot as f32 * scales[a] * scales[b])
        };
        for (a, b) in [(0, 0), (0, 1), (1, 1)] {
            let (exact, quantized) = product(a, b);
            assert!((exact - quantized).abs() < 0.01, "{exact} {quantized}");
        }
    }
}
