//! Which instructions the machine has, and arithmetic that every path rounds alike.

#![expect(clippy::inline_always, reason = "the bodies are compiled once per instruction set")]

/// The widest usable instruction set for the decode kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// AVX-512 F with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the compiler makes of plain loops.
    Portable,
}

/// Whether plain loops have a fused multiply-add: without one, `mul_add` is a slow library call.
pub(crate) const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

impl Isa {
    /// The best one here. The answer is cached by the standard library.
    pub(crate) fn detect() -> Self {
        Self::available()[0]
    }

    /// Every one this machine can run, best first.
    pub(crate) fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 && is_x86_feature_detected!("avx512f") {
                return &[Self::Avx512, Self::Avx2, Self::Portable];
            }
            if avx2 {
                return &[Self::Avx2, Self::Portable];
            }
        }
        &[Self::Portable]
    }
}

/// `a * b + c`, rounded once when `FUSED`.
#[inline(always)]
pub(crate) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` for `x <= 0`, within two units in the last place; arguments below -87 give `e^-87`.
///
/// Plain arithmetic only, so that loops over it become vector code.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    /// Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with trailing zeros so that its multiples are exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// Minimax coefficients of `(e^r - 1 - r) / r^2` on `|r| <= ln 2 / 2` (Cephes `expf`).
    const POLY: [f32; 6] =
        [1.987_569_2e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 5.000_000_3e-1];
    let x = x.max(-87.0);
    let shifted = fma::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FUSED>(n, -LN2[1], fma::<FUSED>(n, -LN2[0], x));
    let mut poly = POLY[0];
    for coefficient in &POLY[1..] {
        poly = fma::<FUSED>(poly, r, *coefficient);
    }
    let fraction = fma::<FUSED>(poly, r * r, r) + 1.0;
    // The low bits of `shifted` hold n in two's complement; n lies in -126..=0.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    fraction * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            for value in [exp::<true>(x), exp::<false>(x)] {
                let expected = f64::from(x).exp();
                let error = (f64::from(value) - expected).abs() / expected;
                assert!(error < 2.5e-7, "exp({x}) = {value}, not {expected}");
            }
        }
        assert_eq!(exp::<true>(0.0).to_bits(), 1.0_f32.to_bits());
        assert!(exp::<true>(f32::NEG_INFINITY) < 1e-37);
    }
}
