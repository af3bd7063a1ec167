//! What `sbp bench` measures of the data tasks: the inner loops at the sizes of a real run, on
//! generated inputs, beside a check that their results are right.

pub mod bpe;
pub mod clean;
pub mod dedup;
pub mod pair;
pub mod text;
mod vectors;

/// Names and values, in the order in which people should read them. A name ends in its unit.
pub type Figures = Vec<(&'static str, f64)>;

/// `x` with few digits: measurements have no more.
fn rounded(x: f64) -> f64 {
    let scale = 10_f64.powi(3 - x.abs().max(1e-9).log10().floor() as i32);
    (x * scale).round() / scale
}

/// Processor and wall seconds of a call.
fn timed<R>(call: impl FnOnce() -> R) -> (R, f64, f64) {
    let (cpu, wall) = (kernels::clock::process_seconds(), std::time::Instant::now());
    let result = call();
    (result, kernels::clock::process_seconds() - cpu, wall.elapsed().as_secs_f64())
}
