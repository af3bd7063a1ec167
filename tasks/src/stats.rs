//! Intervals and tests for rates and for differences of paired items.

mod corrections;
mod student;

use engine::task::ParamError;
use kernels::philox::Philox;
use serde::{Deserialize, Serialize};

pub use corrections::{benjamini_hochberg, holm};
pub use student::{t_interval, t_quantile_975};

/// Two-sided 95 % quantile of the normal distribution.
const Z_95: f64 = 1.959_963_984_540_054;

/// Fewer resamples give no interval worth its name.
const RESAMPLES_MIN: usize = 100;

/// A value with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// On all items.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Estimate {
    /// A value with the central 95 % of its resamples.
    ///
    /// # Panics
    /// When `resamples` is empty.
    pub fn of(value: f64, resamples: Vec<f64>) -> Self {
        let (low, high) = interval_95(resamples);
        Self { value, low, high }
    }
}

/// Refuses a param `n_resamples` that is too low.
///
/// # Errors
/// When it is below 100.
pub fn check_resamples(n_resamples: usize) -> Result<(), ParamError> {
    if n_resamples < RESAMPLES_MIN {
        let message = format!("{n_resamples} is below {RESAMPLES_MIN}, too few for an interval");
        return Err(ParamError::new("n_resamples", message));
    }
    Ok(())
}

/// The generator of a task's resamples.
pub fn resampling(seed: u64) -> Philox {
    Philox::new(seed, "bootstrap")
}

/// The Wilson score interval at 95 % for `k` of `n`; all of `[0, 1]` when `n` is 0.
///
/// # Source
/// Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
///
/// # Panics
/// When `k` is above `n`.
pub fn wilson(k: u64, n: u64) -> (f64, f64) {
    assert!(k <= n, "{k} of {n}");
    if n == 0 {
        return (0.0, 1.0);
    }
    let (n, p, z2) = (n as f64, k as f64 / n as f64, Z_95 * Z_95);
    let center = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let low = if k == 0 { 0.0 } else { center - half };
    let high = if k as f64 >= n { 1.0 } else { center + half };
    (low, high)
}

/// Two-sided p-value of the exact `McNemar` (sign) test: of `wins + losses` discordant pairs, `wins`
/// went one way. 1 when there is none.
pub fn mcnemar(wins: u64, losses: u64) -> f64 {
    let n = wins + losses;
    // ln C(n, i) 2^-n, summed from the smaller tail.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for i in 0..wins.min(losses) {
        log_term += ((n - i) as f64 / (i + 1) as f64).ln();
        tail += log_term.exp();
    }
    (2.0 * tail).min(1.0)
}

/// The value below which a share `q` of `sorted` lies, with linear interpolation.
///
/// # Panics
/// When `sorted` is empty.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    assert!(!sorted.is_empty(), "nothing has no quantiles");
    let at = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, share) = (at.floor() as usize, at.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + share * (sorted[above] - sorted[below])
}

/// The central 95 % of bootstrap values.
///
/// # Panics
/// When `values` is empty.
pub fn interval_95(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    (quantile(&values, 0.025), quantile(&values, 0.975))
}

/// Ratios of sums, `sum x / sum y`, of several arms under one bootstrap over their common items.
///
/// `ratios[a][r]` is arm `a` in resample `r`. All arms see the same items in a resample, so
/// differences between rows are paired. Items that have nothing to do with each other want generators
/// of their own, such as forks of [`resampling`].
///
/// # Source
/// Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979.
///
/// # Panics
/// When arms differ in their number of items, or there are none.
pub fn paired_bootstrap(
    arms: &[Vec<(f64, f64)>],
    n_resamples: usize,
    rng: Philox,
) -> Vec<Vec<f64>> {
    let n = arms.first().map_or(0, Vec::len);
    assert!(n > 0 && arms.iter().all(|arm| arm.len() == n), "arms have the same items");
    let mut ratios = vec![Vec::with_capacity(n_resamples); arms.len()];
    let mut drawn = vec![0_u32; n];
    for resample in 0..n_resamples as u64 {
        drawn.fill(0);
        let rng = rng.fork(resample);
        for i in 0..n as u64 {
            drawn[rng.below(i, n as u64) as usize] += 1;
        }
        for (arm, ratios) in arms.iter().zip(&mut ratios) {
            let (mut x, mut y) = (0.0, 0.0);
            for (item, &times) in arm.iter().zip(&drawn) {
                x += f64::from(times) * item.0;
                y += f64::from(times) * item.1;
            }
            ratios.push(x / y);
        }
    }
    ratios
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Made by `tests/goldens/make_stats.py` with scipy and numpy.
    #[test]
    fn intervals_and_tests_agree_with_scipy() {
        let golden: Value =
            serde_json::from_str(include_str!("../tests/goldens/stats.json")).unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        for case in golden["wilson"].as_array().unwrap() {
            let (low, high) = wilson(case["k"].as_u64().unwrap(), case["n"].as_u64().unwrap());
            assert!((low - number(&case["low"])).abs() < 1e-12, "{case}");
            assert!((high - number(&case["high"])).abs() < 1e-12, "{case}");
        }
        for case in golden["mcnemar"].as_array().unwrap() {
            let p = mcnemar(case["wins"].as_u64().unwrap(), case["losses"].as_u64().unwrap());
            assert!((p / number(&case["p"]) - 1.0).abs() < 1e-9, "{case} {p}");
        }
        let sorted: Vec<f64> = golden["sorted"].as_array().unwrap().iter().map(number).collect();
        for case in golden["quantiles"].as_array().unwrap() {
            assert!((quantile(&sorted, number(&case["q"])) - number(&case["value"])).abs() < 1e-12);
        }
        for case in golden["corrections"].as_array().unwrap() {
            let list = |name: &str| -> Vec<f64> {
                case[name].as_array().unwrap().iter().map(number).collect()
            };
            let p = list("p");
            for (found, expected) in
                [(holm(&p), list("holm")), (benjamini_hochberg(&p), list("fdr"))]
            {
                let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12);
                assert!(near, "{case} {found:?}");
            }
        }
        for case in golden["t"].as_array().unwrap() {
            let values: Vec<f64> = case["values"].as_array().unwrap().iter().map(number).collect();
            let (_, low, high) = t_interval(&values);
            assert!((low - number(&case["low"])).abs() < 1e-9, "{case} {low}");
            assert!((high - number(&case["high"])).abs() < 1e-9, "{case} {high}");
        }
        // The bootstrap of a mean, against the interval that scipy gives with its own resamples.
        let items = vec![sorted.iter().map(|&x| (x, 1.0)).collect::<Vec<_>>()];
        let (low, high) = interval_95(paired_bootstrap(&items, 4000, resampling(1)).swap_remove(0));
        let expected = &golden["bootstrap_mean"];
        let width = number(&expected["high"]) - number(&expected["low"]);
        assert!((low - number(&expected["low"])).abs() < 0.06 * width);
        assert!((high - number(&expected["high"])).abs() < 0.06 * width);
    }

    /// Against the normal law of a mean: 400 uniform numbers have a standard error of 0.0144.
    #[test]
    fn intervals_have_the_width_of_theory() {
        let rng = Philox::new(4, "items");
        let items: Vec<(f64, f64)> = (0..400).map(|i| (rng.uniform(i), 1.0)).collect();
        let mean = items.iter().map(|item| item.0).sum::<f64>() / 400.0;
        let resamples = paired_bootstrap(&[items], 2000, resampling(1)).swap_remove(0);
        let Estimate { value, low, high } = Estimate::of(mean, resamples);
        assert!(low < value && value < high);
        let expected = 2.0 * 1.96 * (1.0_f64 / 12.0 / 400.0).sqrt();
        assert!(((high - low) / expected - 1.0).abs() < 0.15, "{}", high - low);
    }

    #[test]
    fn arms_are_resampled_together() {
        let arm: Vec<(f64, f64)> = (0..30).map(|i| (f64::from(i * i), 2.0)).collect();
        let shifted = arm.iter().map(|&(x, y)| (x + 4.0, y)).collect();
        let ratios = paired_bootstrap(&[arm, shifted], 50, resampling(3));
        assert!(ratios[0].iter().zip(&ratios[1]).all(|(a, b)| (b - a - 2.0).abs() < 1e-9));
        assert!(ratios[0].iter().any(|x| (x - ratios[0][0]).abs() > 1e-6));
    }
}
