//! Draws a token from logits: temperature, then top-k, then top-p.
//!
//! Probabilities are held as fixed-point weights: `e^((x - max) / temperature)` in units of 2^-40.
//! Their sums are exact in any order, so the set of tokens kept and the token drawn do not depend on
//! how the vocabulary is walked, and no sort of it is needed. A token less likely than the likeliest
//! by more than 2^40 gets weight 0.
//!
//! Tokens are ordered by weight, then id. Top-k keeps the first `k`; top-p keeps the shortest prefix
//! whose mass reaches `top_p` of what top-k left, so the token that crosses the limit stays in
//! (`TopPLogitsWarper` of Hugging Face transformers).
//!
//! # Source
//! Holtzman et al., "The curious case of neural text degeneration", arXiv 1904.09751, section 3.1.

pub mod cuda;

use crate::isa::{Isa, per_isa};
use crate::lanes::{self, exp};

/// The weight of the likeliest token.
const ONE: f32 = (1_u64 << 40) as f32;
/// Buckets have 4 bits of mantissa below the exponent of `f32`.
const BUCKET_SHIFT: u32 = 19;
/// The leading bits of weight 1.
const BUCKET_MIN: u32 = 127 << (23 - BUCKET_SHIFT);
/// Buckets up to that of [`ONE`].
const N_BUCKETS: usize = 40 * 16 + 1;

/// How to choose among tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Divides the logits; above 0.
    pub temperature: f32,
    /// How many of the likeliest tokens stay; 0 keeps all.
    pub top_k: usize,
    /// The share of the mass that stays, in `(0, 1]`; 1 keeps all.
    pub top_p: f64,
}

/// The logits give no distribution: one is NaN or +inf, or all are -inf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite;

/// The last token kept, in the order of weight, then id; and the weight of all kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    weight: u64,
    id: u32,
    total: u64,
}

impl Cut {
    fn keeps(self, weight: u64, id: u32) -> bool {
        weight > self.weight || (weight == self.weight && id <= self.id)
    }
}

/// Draws tokens; holds the buffers that a draw needs.
pub struct Sampler {
    isa: Isa,
    likelihoods: Vec<f32>,
    masses: Vec<u64>,
    counts: Vec<u32>,
    bucket: Vec<(u64, u32)>,
}

impl Sampler {
    /// A sampler that computes with `isa`.
    pub fn new(isa: Isa) -> Self {
        let (likelihoods, masses, counts) = (Vec::new(), Vec::new(), Vec::new());
        Self { isa, likelihoods, masses, counts, bucket: Vec::new() }
    }

    /// The token that `random`, uniform over all 64-bit integers, selects from `logits`.
    ///
    /// # Errors
    /// [`NotFinite`] when the logits give no distribution.
    ///
    /// # Panics
    /// When the policy's temperature is not above 0 or its `top_p` is outside `(0, 1]`.
    pub fn draw(&mut self, logits: &[f32], policy: &Policy, random: u64) -> Result<u32, NotFinite> {
        let cut = self.select(logits, policy)?;
        let mut left = ((u128::from(random) * u128::from(cut.total)) >> 64) as u64;
        for (id, &likelihood) in (0..).zip(&self.likelihoods) {
            let weight = weight(likelihood);
            if cut.keeps(weight, id) {
                if left < weight {
                    return Ok(id);
                }
                left -= weight;
            }
        }
        unreachable!("`left` starts below the sum of the weights kept")
    }

    /// The ids that stay, ascending.
    ///
    /// # Errors
    /// [`NotFinite`] when the logits give no distribution.
    ///
    /// # Panics
    /// As [`Self::draw`].
    pub fn kept(&mut self, logits: &[f32], policy: &Policy) -> Result<Vec<u32>, NotFinite> {
        let cut = self.select(logits, policy)?;
        let weights = self.likelihoods.iter().map(|&likelihood| weight(likelihood));
        Ok((0..).zip(weights).filter(|&(id, w)| cut.keeps(w, id)).map(|(id, _)| id).collect())
    }

    fn select(&mut self, logits: &[f32], policy: &Policy) -> Result<Cut, NotFinite> {
        assert!(is_temperature(policy.temperature), "temperature {}", policy.temperature);
        assert!(policy.top_p > 0.0 && policy.top_p <= 1.0, "top_p {}", policy.top_p);
        self.likelihoods.resize(logits.len(), 0.0);
        if !likelihoods(self.isa, logits, policy.temperature, &mut self.likelihoods) {
            return Err(NotFinite);
        }
        self.masses.clear();
        self.masses.resize(N_BUCKETS, 0);
        self.counts.clear();
        self.counts.resize(N_BUCKETS, 0);
        for &likelihood in &self.likelihoods {
            let weight = weight(likelihood);
            if let Some(bucket) = bucket(weight) {
                self.masses[bucket] += weight;
                self.counts[bucket] += 1;
            }
        }
        let mut total: u64 = self.masses.iter().sum();
        let n_tokens: u32 = self.counts.iter().sum();
        let top_k = if policy.top_k == 0 { u32::MAX } else { policy.top_k.min(1 << 31) as u32 };
        if top_k < n_tokens {
            total = self.cut(|_, n_before| n_before < top_k).total;
        }
        let limit = mass_limit(policy.top_p, total);
        Ok(self.cut(|mass_before, _| mass_before < limit))
    }

    /// The longest prefix of the order whose every token `stays`, given the mass and the number of
    /// the tokens before it.
    fn cut(&mut self, stays: impl Fn(u64, u32) -> bool) -> Cut {
        let (mut mass, mut n) = (0, 0);
        let mut last = None;
        for bucket in (0..N_BUCKETS).rev().filter(|&bucket| self.counts[bucket] > 0) {
            if !stays(mass, n) {
                break;
            }
            last = Some((bucket, mass, n));
            mass += self.masses[bucket];
            n += self.counts[bucket];
        }
        let (last, mut mass, mut n) = last.expect("the likeliest token stays");
        self.bucket.clear();
        let weights = self.likelihoods.iter().map(|&likelihood| weight(likelihood));
        self.bucket.extend(weights.zip(0..).filter(|&(weight, _)| bucket(weight) == Some(last)));
        self.bucket.sort_unstable_by_key(|&(weight, id)| (std::cmp::Reverse(weight), id));
        let mut cut = Cut { weight: 0, id: 0, total: 0 };
        for &(weight, id) in self.bucket.iter().take_while(|&&(weight, _)| {
            let stays = stays(mass, n);
            (mass, n) = (mass + weight, n + 1);
            stays
        }) {
            cut = Cut { weight, id, total: 0 };
        }
        let above: u64 = self.masses[last + 1..].iter().sum();
        let inside = self.bucket.iter().filter(|&&(weight, id)| cut.keeps(weight, id));
        Cut { total: above + inside.map(|&(weight, _)| weight).sum::<u64>(), ..cut }
    }
}

/// Whether logits can be divided by `temperature`: it is above 0, and not so close to 0 that its
/// inverse is not finite.
pub fn is_temperature(temperature: f32) -> bool {
    temperature > 0.0 && temperature.is_finite() && (1.0 / temperature).is_finite()
}

/// The likeliest token; the first of equals.
///
/// # Errors
/// [`NotFinite`] when the logits give no distribution.
pub fn greedy(logits: &[f32]) -> Result<u32, NotFinite> {
    let mut best = (f32::NEG_INFINITY, None);
    for (id, &logit) in (0..).zip(logits) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(NotFinite);
        }
        if logit > best.0 {
            best = (logit, Some(id));
        }
    }
    best.1.ok_or(NotFinite)
}

/// Makes the tokens in `seen` less likely: positive logits are divided by `penalty`, negative ones
/// multiplied. Each id in `seen` must occur once.
///
/// # Source
/// Keskar et al., "CTRL", arXiv 1909.05858, section 4.1, with the sign rule of transformers.
pub fn penalize(logits: &mut [f32], seen: &[u32], penalty: f32) {
    for &id in seen {
        let logit = &mut logits[id as usize];
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }
}

/// The ids that stay, ascending, by a full sort: the definition of [`Sampler::kept`].
///
/// # Errors
/// [`NotFinite`] when the logits give no distribution.
pub fn reference(isa: Isa, logits: &[f32], policy: &Policy) -> Result<Vec<u32>, NotFinite> {
    let mut values = vec![0.0; logits.len()];
    if !likelihoods(isa, logits, policy.temperature, &mut values) {
        return Err(NotFinite);
    }
    let mut order: Vec<(u64, u32)> =
        values.iter().map(|&likelihood| weight(likelihood)).zip(0..).collect();
    order.retain(|&(weight, _)| weight > 0);
    order.sort_by_key(|&(weight, id)| (std::cmp::Reverse(weight), id));
    if policy.top_k > 0 {
        order.truncate(policy.top_k);
    }
    let limit = mass_limit(policy.top_p, order.iter().map(|&(weight, _)| weight).sum());
    let mut mass = 0;
    order.retain(|&(weight, _)| {
        let before = mass;
        mass += weight;
        before < limit
    });
    let mut ids: Vec<u32> = order.into_iter().map(|(_, id)| id).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// The mass before which tokens stay: `top_p` of `total`, rounded up, at least 1.
fn mass_limit(top_p: f64, total: u64) -> u64 {
    if top_p >= 1.0 { total } else { ((top_p * total as f64).ceil() as u64).max(1) }
}

fn weight(likelihood: f32) -> u64 {
    (likelihood * ONE) as u64
}

/// The leading bits of a weight, so that buckets follow the order of weights; none for weight 0.
fn bucket(weight: u64) -> Option<usize> {
    // Weights come from `f32` and have at most 24 significant bits: the conversion is exact.
    let bucket = (weight as f32).to_bits() >> BUCKET_SHIFT;
    (weight > 0).then(|| (bucket - BUCKET_MIN) as usize)
}

per_isa! {
    /// Writes `e^((x - max) / temperature)`, 1 for the largest logit; whether they are a
    /// distribution.
    fn likelihoods<M>(logits: &[f32], temperature: f32, out: &mut [f32]) -> bool {
        let max = lanes::max(logits);
        let scale = 1.0 / temperature;
        let mut n_nan = 0_u32;
        for (out, &logit) in out.iter_mut().zip(logits) {
            n_nan += u32::from(logit.is_nan());
            *out = exp::<M>((logit - max) * scale);
        }
        n_nan == 0 && max.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::philox::Philox;

    fn logits(seed: u64, n: usize, spread: f64) -> Vec<f32> {
        let rng = Philox::new(seed, "logits");
        (0..n).map(|i| (rng.normal(i as u64) * spread) as f32).collect()
    }

    fn policy(temperature: f32, top_k: usize, top_p: f64) -> Policy {
        Policy { temperature, top_k, top_p }
    }

    #[test]
    fn keeps_what_a_full_sort_keeps() {
        let mut sampler = Sampler::new(Isa::best());
        for (seed, &n) in (0..).zip(&[1, 2, 17, 64, 1000, 4096]) {
            for spread in [0.0, 0.1, 1.0, 3.0, 20.0] {
                let mut logits = logits(seed, n, spread);
                logits[n / 2] = f32::NEG_INFINITY;
                logits[n / 3] = 0.5;
                for top_p in [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0] {
                    for top_k in [0, 1, 5, 64, 5000] {
                        for temperature in [0.2, 1.0, 2.5] {
                            let policy = policy(temperature, top_k, top_p);
                            let expected = reference(Isa::best(), &logits, &policy);
                            assert_eq!(sampler.kept(&logits, &policy), expected, "{n} {policy:?}");
                        }
                    }
                }
            }
        }
    }

    #[derive(Deserialize)]
    struct Case {
        logits: Vec<f32>,
        temperature: f32,
        top_k: usize,
        top_p: f64,
        kept: Vec<u32>,
    }

    /// Sets kept by transformers' logits warpers; see `tests/goldens/make_sampling.py`.
    #[test]
    fn keeps_what_transformers_keep() {
        let golden = include_str!("../tests/goldens/sampling.json");
        let cases: Vec<Case> = serde_json::from_str(golden).unwrap();
        assert!(cases.len() >= 10);
        for case in cases {
            let policy = policy(case.temperature, case.top_k, case.top_p);
            let kept = Sampler::new(Isa::best()).kept(&case.logits, &policy).unwrap();
            assert_eq!(kept, case.kept, "{policy:?}");
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        const N_DRAWS: u64 = 100_000;
        let logits = logits(3, 40, 1.5);
        for policy in [policy(1.0, 0, 0.9), policy(0.7, 12, 1.0), policy(1.3, 0, 1.0)] {
            let kept = reference(Isa::best(), &logits, &policy).unwrap();
            let likelihood =
                |id: u32| (f64::from(logits[id as usize]) / f64::from(policy.temperature)).exp();
            let total: f64 = kept.iter().map(|&id| likelihood(id)).sum();
            let rng = Philox::new(11, "draws");
            let mut counts = vec![0_u64; logits.len()];
            let mut sampler = Sampler::new(Isa::best());
            for i in 0..N_DRAWS {
                counts[sampler.draw(&logits, &policy, rng.u64(i)).unwrap() as usize] += 1;
            }
            assert_eq!(kept.iter().map(|&id| counts[id as usize]).sum::<u64>(), N_DRAWS);
            let chi_square: f64 = kept
                .iter()
                .map(|&id| {
                    let expected = likelihood(id) / total * N_DRAWS as f64;
                    (counts[id as usize] as f64 - expected).powi(2) / expected
                })
                .sum();
            // Mean and spread of the chi-square law; five deviations are one in a million.
            let df = (kept.len() - 1) as f64;
            assert!(chi_square < df + 5.0 * (2.0 * df).sqrt(), "{chi_square} over {df}");
            assert!(chi_square > df - 5.0 * (2.0 * df).sqrt(), "{chi_square} over {df}");
        }
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        let all = policy(1.0, 0, 1.0);
        let mut sampler = Sampler::new(Isa::best());
        for logits in [vec![], vec![0.0, f32::NAN], vec![f32::NEG_INFINITY; 3], vec![f32::INFINITY]]
        {
            assert_eq!(sampler.draw(&logits, &all, 5), Err(NotFinite));
            assert_eq!(greedy(&logits), Err(NotFinite));
        }
        assert_eq!(greedy(&[1.0, 3.0, 3.0]), Ok(1));
    }

    #[test]
    fn penalty_works_against_both_signs() {
        let mut logits = [2.0, -2.0, 1.0];
        penalize(&mut logits, &[0, 1], 2.0);
        assert_eq!(logits.map(f32::to_bits), [1.0_f32, -4.0, 1.0].map(f32::to_bits));
    }
}
