//! Every kernel against its `f64` reference, on any [`Device`]: on the emulator in the tests, and on
//! a GPU where there is one.
//!
//! A case makes up inputs that bf16 holds exactly, runs the op through its launches with outputs
//! poisoned by NaN, and compares. The rule is that of `FlashAttention`'s tests: the error is at most
//! twice that of a naive evaluation which rounds to bf16 wherever the kernel may, plus a floor for what
//! both get right.

mod attention;
mod model;
mod search;
mod small;

use half::bf16;

use super::{Device, Error, Source};
use crate::philox::Philox;

/// One comparison.
#[derive(Clone, Debug)]
pub struct Check {
    /// Which output.
    pub what: &'static str,
    /// Largest error.
    pub error: f64,
    /// Largest error that is right.
    pub limit: f64,
    /// The output's bits, to compare runs.
    pub digest: blake3::Hash,
}

impl Check {
    /// Whether the output is right; NaN never is.
    pub fn holds(&self) -> bool {
        self.error <= self.limit
    }
}

/// One op on one shape.
pub struct Case {
    /// The op.
    pub op: &'static str,
    /// The shape, as a person reads it.
    pub shape: String,
    /// The kernels that it is for, where not every device offers them.
    pub source: Option<&'static Source>,
    /// Runs it.
    pub run: Run,
}

/// Runs a case on a device.
pub type Run = Box<dyn Fn(&dyn Device) -> Result<Vec<Check>, Error> + Send + Sync>;

impl Case {
    fn new(
        op: &'static str,
        shape: String,
        run: impl Fn(&dyn Device) -> Result<Vec<Check>, Error> + Send + Sync + 'static,
    ) -> Self {
        Self { op, shape, source: None, run: Box::new(run) }
    }

    /// The same for kernels that not every device offers.
    fn only(self, source: &'static Source) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Whether a device has what it is for.
    pub fn is_for(&self, device: &dyn Device) -> bool {
        self.source.is_none_or(|source| device.offers(source))
    }
}

/// How many shapes to try, and how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Odd sizes, single rows, extreme values; seconds on the emulator.
    Emulated,
    /// Also sizes as models have them; for a GPU.
    Full,
}

/// All cases, by op.
pub fn cases(effort: Effort) -> Vec<Case> {
    let mut cases = small::cases(effort);
    cases.extend(attention::cases(effort));
    cases.extend(model::cases(effort));
    cases.extend(search::cases(effort));
    cases
}

/// What is wrong with kernels that not every device offers, whether or not this one does: an output
/// that is not right, or not the same when it is computed again.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When there are no cases of them.
pub fn fault(
    device: &dyn Device,
    source: &Source,
    effort: Effort,
) -> Result<Option<String>, Error> {
    let mut cases = cases(effort);
    cases.retain(|case| case.source.is_some_and(|own| own.name == source.name));
    assert!(!cases.is_empty(), "there are cases of `{}`", source.name);
    for Case { op, shape, run, .. } in &cases {
        let (first, again) = (run(device)?, run(device)?);
        for (check, again) in first.iter().zip(&again) {
            let Check { what, error, limit, digest } = check;
            if !check.holds() {
                let fault =
                    format!("`{what}` of {op}, {shape}, is off by {error:e}, over {limit:e}");
                return Ok(Some(fault));
            }
            if *digest != again.digest {
                return Ok(Some(format!("`{what}` of {op}, {shape}, has other bits every time")));
            }
        }
    }
    Ok(None)
}

/// Numbers that bf16 holds, normally distributed, the same for the same `purpose`.
fn normal(purpose: &str, len: usize, magnitude: f64) -> Vec<bf16> {
    let rng = Philox::new(42, purpose);
    (0..len as u64).map(|i| bf16::from_f64(rng.normal(i) * magnitude)).collect()
}

/// The same as `f32`.
fn normal_f32(purpose: &str, len: usize, magnitude: f64) -> Vec<f32> {
    let rng = Philox::new(42, purpose);
    (0..len as u64).map(|i| (rng.normal(i) * magnitude) as f32).collect()
}

fn wide(x: &[bf16]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

fn wide_f32(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Rounds to bf16, as the naive evaluation does at every store.
fn rounded(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| bf16::from_f64(x).to_f64()).collect()
}

fn largest_error(x: &[f64], exact: &[f64]) -> f64 {
    assert_eq!(x.len(), exact.len(), "outputs have the shape of the reference");
    x.iter().zip(exact).fold(0.0, |max, (x, exact)| {
        let error = (x - exact).abs();
        // `max` would ignore a NaN.
        if error.is_nan() || error > max { error } else { max }
    })
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |max, x| x.abs().max(max))
}

/// An output in bf16 beside its reference and a naive evaluation.
fn check_bf16(what: &'static str, got: &[bf16], exact: &[f64], naive: &[f64]) -> Check {
    Check {
        what,
        error: largest_error(&wide(got), exact),
        limit: 2.0 * largest_error(naive, exact) + 1e-6 * largest(exact),
        digest: blake3::hash(bytemuck::cast_slice(got)),
    }
}

/// An output in f32 whose errors are of `epsilons` units of the largest element.
fn check_f32(what: &'static str, got: &[f32], exact: &[f64], epsilons: f64) -> Check {
    Check {
        what,
        error: largest_error(&wide_f32(got), exact),
        limit: epsilons * f64::from(f32::EPSILON) * largest(exact).max(1e-30),
        digest: blake3::hash(bytemuck::cast_slice(got)),
    }
}

/// An output whose bits are known.
fn check_equal<T: PartialEq + bytemuck::Pod>(what: &'static str, got: &[T], exact: &[T]) -> Check {
    let wrong = got.iter().zip(exact).filter(|(got, exact)| got != exact).count();
    let missing = got.len().abs_diff(exact.len());
    Check {
        what,
        error: (wrong + missing) as f64,
        limit: 0.0,
        digest: blake3::hash(bytemuck::cast_slice(got)),
    }
}
