//! Made-up data and comparisons.

use kernels::Pool;
use kernels::isa::Isa;
use kernels::philox::Philox;

/// Normal numbers, the same for the same `purpose`.
pub(crate) fn normal(purpose: &str, len: usize) -> Vec<f32> {
    let rng = Philox::new(42, purpose);
    (0..len as u64).map(|i| rng.normal(i) as f32).collect()
}

pub(crate) fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Runs `op` on every instruction set, checks that 1, 2 and 3 threads give the same bits, and hands
/// each result to `check`.
pub(crate) fn on_each_path(op: impl Fn(&Pool) -> Vec<Vec<f32>>, check: impl Fn(&[Vec<f32>])) {
    let bits = |x: &[Vec<f32>]| -> Vec<Vec<u32>> {
        x.iter().map(|x| x.iter().map(|x| x.to_bits()).collect()).collect()
    };
    thread_local! {
        // Starting threads costs more than most shapes.
        static POOLS: Vec<[Pool; 3]> = Isa::available()
            .into_iter()
            .map(|isa| [1, 2, 3].map(|n_threads| Pool::with_isa(n_threads, isa)))
            .collect();
    }
    POOLS.with(|pools| {
        for [one, two, three] in pools {
            let result = op(one);
            assert!(bits(&result) == bits(&op(two)), "{}: 2 threads differ", one.isa().name());
            assert!(bits(&result) == bits(&op(three)), "{}: 3 threads differ", one.isa().name());
            check(&result);
        }
    });
}

/// Asserts `max|fast - exact| <= tolerance * max|exact|`.
///
/// Tolerances are given in units of `f32::EPSILON` by the callers: rounding errors of a sum of `n`
/// terms grow like `sqrt(n)` for the orders used here, and the largest element sets the scale
/// because terms of its size cancel in the smaller ones.
pub(crate) fn assert_close(what: &str, fast: &[f32], exact: &[f64], epsilons: f64) {
    assert_eq!(fast.len(), exact.len(), "{what}");
    let scale = exact.iter().fold(0.0_f64, |max, x| max.max(x.abs())).max(1e-30);
    for (i, (&fast, &exact)) in fast.iter().zip(exact).enumerate() {
        let error = (f64::from(fast) - exact).abs();
        let limit = epsilons * f64::from(f32::EPSILON) * scale;
        assert!(error <= limit, "{what}[{i}]: {fast} for {exact}, error {error:e} over {limit:e}");
    }
}

/// Asserts that `gradient` is the derivative of `loss` at `x`, by central differences.
pub(crate) fn assert_gradient(
    what: &str,
    x: &[f64],
    gradient: &[f64],
    loss: impl Fn(&[f64]) -> f64,
) {
    const STEP: f64 = 1e-5;
    assert_eq!(x.len(), gradient.len(), "{what}");
    let scale = gradient.iter().fold(0.0_f64, |max, x| max.max(x.abs())).max(1e-3);
    let mut x = x.to_vec();
    for (i, &expected) in gradient.iter().enumerate() {
        let center = x[i];
        x[i] = center + STEP;
        let above = loss(&x);
        x[i] = center - STEP;
        let below = loss(&x);
        x[i] = center;
        let slope = (above - below) / (2.0 * STEP);
        // The differences' own error: STEP^2 of truncation and 1e-16 / STEP of rounding.
        assert!((slope - expected).abs() <= 1e-7 * scale, "{what}[{i}]: {slope} for {expected}");
    }
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `starts` of documents of these lengths.
pub(crate) fn starts(lengths: &[usize]) -> Vec<u32> {
    let mut starts = Vec::new();
    for &length in lengths {
        starts.extend(std::iter::repeat_n(starts.len() as u32, length));
    }
    starts
}
