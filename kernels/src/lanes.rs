//! Building blocks of the per-instruction-set bodies: sums in lanes, and the exponential.

#![expect(clippy::inline_always, reason = "a call would leave the caller's instruction set")]

use crate::isa::Arith;

/// Partial sums that a reduction keeps, one per lane: enough for one AVX-512 register, and the same
/// on every instruction set, so that the order of additions is.
pub(crate) const N_LANES: usize = 16;

/// `sum_i x[i]`, in lanes.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; N_LANES];
    let (whole, tail) = x.as_chunks::<N_LANES>();
    for chunk in whole {
        for j in 0..N_LANES {
            lanes[j] += chunk[j];
        }
    }
    fold(lanes, tail.iter().fold(0.0, |sum, x| sum + x))
}

/// `sum_i a[i] * b[i]`, in lanes.
#[inline(always)]
pub(crate) fn dot<M: Arith>(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "a dot product needs equal lengths");
    let mut lanes = [0.0_f32; N_LANES];
    let (a, a_tail) = a.as_chunks::<N_LANES>();
    let (b, b_tail) = b.as_chunks::<N_LANES>();
    for (a, b) in a.iter().zip(b) {
        for j in 0..N_LANES {
            lanes[j] = M::mul_add(a[j], b[j], lanes[j]);
        }
    }
    let tail = a_tail.iter().zip(b_tail).fold(0.0, |sum, (&a, &b)| M::mul_add(a, b, sum));
    fold(lanes, tail)
}

/// `sum_i a[i] * b[i] * c[i]`, in lanes.
#[inline(always)]
pub(crate) fn dot3<M: Arith>(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    assert!(a.len() == b.len() && a.len() == c.len(), "a product of three needs equal lengths");
    let mut lanes = [0.0_f32; N_LANES];
    let (a, a_tail) = a.as_chunks::<N_LANES>();
    let (b, b_tail) = b.as_chunks::<N_LANES>();
    let (c, c_tail) = c.as_chunks::<N_LANES>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for j in 0..N_LANES {
            lanes[j] = M::mul_add(a[j] * b[j], c[j], lanes[j]);
        }
    }
    let tail = a_tail.iter().zip(b_tail).zip(c_tail);
    fold(lanes, tail.fold(0.0, |sum, ((&a, &b), &c)| M::mul_add(a * b, c, sum)))
}

/// The largest element; `-inf` of an empty slice. NaN elements are skipped.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; N_LANES];
    let (whole, tail) = x.as_chunks::<N_LANES>();
    for chunk in whole {
        for j in 0..N_LANES {
            lanes[j] = if chunk[j] > lanes[j] { chunk[j] } else { lanes[j] };
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}

/// Adds the lanes in a tree, then `tail`.
#[inline(always)]
pub(crate) fn fold(lanes: [f32; N_LANES], tail: f32) -> f32 {
    let mut eight = [0.0; 8];
    for j in 0..8 {
        eight[j] = lanes[j] + lanes[j + 8];
    }
    let mut four = [0.0; 4];
    for j in 0..4 {
        four[j] = eight[j] + eight[j + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3]) + tail
}

/// Below this, [`exp`] gives 0: `e^-87` is the last power whose scale is a normal number.
pub(crate) const EXP_MIN: f32 = -87.0;
/// Above this, [`exp`] stays at `e^88`, the last power that is finite.
pub(crate) const EXP_MAX: f32 = 88.0;

/// `e^x` within 2 units in the last place; 0 below [`EXP_MIN`], `e^88` above [`EXP_MAX`], NaN of NaN.
///
/// Free of branches and calls, so that loops over it become vector code. `x = n ln 2 + r` with
/// `|r| <= ln(2)/2`; `e^r` by a polynomial of degree 6 (Cephes `expf`, minimax), and `2^n` by
/// adding `n` to the exponent bits.
#[inline(always)]
pub(crate) fn exp<M: Arith>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few bits, so that `n * LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    let clamped = if x < EXP_MIN { EXP_MIN } else { x };
    let clamped = if clamped > EXP_MAX { EXP_MAX } else { clamped };
    let shifted = M::mul_add(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = M::mul_add(n, -LN2_LOW, M::mul_add(n, -LN2_HIGH, clamped));

    let mut poly = 1.987_569_1e-4;
    poly = M::mul_add(poly, r, 1.398_199_9e-3);
    poly = M::mul_add(poly, r, 8.333_452e-3);
    poly = M::mul_add(poly, r, 4.166_579_6e-2);
    poly = M::mul_add(poly, r, 1.666_666_5e-1);
    poly = M::mul_add(poly, r, 0.5);
    let power = M::mul_add(poly, r * r, r) + 1.0;

    let scaled = f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < EXP_MIN { 0.0 } else { scaled }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "these results are exact")]

    use super::*;
    use crate::isa::{Isa, per_isa};

    per_isa! {
        fn exp_all<M>(x: &mut [f32]) {
            for x in x {
                *x = exp::<M>(*x);
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulps() {
        let input: Vec<f32> = (0..700_000).map(|i| -87.0 + i as f32 * 2.5e-4).collect();
        for isa in Isa::available() {
            let mut output = input.clone();
            exp_all(isa, &mut output);
            for (&x, &y) in input.iter().zip(&output) {
                let exact = f64::from(x).exp();
                let ulp = f64::from(exact as f32) * f64::from(f32::EPSILON);
                assert!((f64::from(y) - exact).abs() <= 2.0 * ulp, "{} e^{x} = {y}", isa.name());
            }
        }
    }

    #[test]
    fn exp_at_the_edges() {
        for isa in Isa::available() {
            let mut x = [0.0, -87.1, f32::NEG_INFINITY, f32::NAN, 90.0, f32::INFINITY, -0.0];
            exp_all(isa, &mut x);
            assert!(x[..3] == [1.0, 0.0, 0.0]);
            assert!(x[3].is_nan());
            assert!(x[4] == x[5] && x[4].is_finite() && x[4] > 1.6e38);
            assert_eq!(x[6], 1.0);
        }
    }

    #[test]
    fn sums_match() {
        for n in [0_usize, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let sum = (n * n.saturating_sub(1) / 2) as f32;
            assert_eq!(super::sum(&x), sum);
            assert_eq!(dot3::<crate::isa::Split>(&x, &vec![2.0; n], &vec![0.5; n]), sum);
            assert_eq!(dot::<crate::isa::Split>(&x, &vec![2.0; n]), 2.0 * sum);
            assert_eq!(max(&x), x.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }
}
