//! The bootstrap: an interval from resamples of the items.

use kernels::philox::Philox;

/// The central 95 % of `sum(a) / sum(b)` over resamples of the pairs `(a, b)`.
///
/// # Panics
/// When there are no pairs or no resamples.
///
/// # Source
/// Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979;
/// percentile interval.
pub(super) fn ratio_interval(pairs: &[(f64, f64)], n_resamples: usize, seed: u64) -> (f64, f64) {
    assert!(!pairs.is_empty() && n_resamples > 0, "a bootstrap needs items and resamples");
    let rng = Philox::new(seed, "bootstrap");
    let mut ratios: Vec<f64> = (0..n_resamples as u64)
        .map(|resample| {
            let rng = rng.fork(resample);
            let (mut a, mut b) = (0.0, 0.0);
            for i in 0..pairs.len() as u64 {
                let pair = pairs[rng.below(i, pairs.len() as u64) as usize];
                a += pair.0;
                b += pair.1;
            }
            a / b
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[(share * (n_resamples - 1) as f64).round() as usize];
    (at(0.025), at(0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the normal law of a mean: 400 uniform numbers have a standard error of 0.0144.
    #[test]
    fn interval_has_the_width_of_theory() {
        let rng = Philox::new(4, "items");
        let pairs: Vec<(f64, f64)> = (0..400).map(|i| (rng.uniform(i), 1.0)).collect();
        let mean = pairs.iter().map(|pair| pair.0).sum::<f64>() / 400.0;
        let (low, high) = ratio_interval(&pairs, 2000, 1);
        assert!(low < mean && mean < high);
        let expected = 2.0 * 1.96 * (1.0_f64 / 12.0 / 400.0).sqrt();
        assert!(((high - low) / expected - 1.0).abs() < 0.15, "{}", high - low);
        assert_eq!(ratio_interval(&pairs[..1], 100, 1), (pairs[0].0, pairs[0].0));
    }
}
