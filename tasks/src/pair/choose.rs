//! Which of the found pairs stay: directions, the limit for each seed, and the limit in all.

use super::{Directions, Params};
use crate::format::pairs::Pair;

/// Takes found pairs as they come, and holds no more of them than the rules need.
pub(super) struct Chooser<'a> {
    params: &'a Params,
    /// Pairs to keep in all.
    most: usize,
    /// Whether pairs can be given up before all are there.
    is_bounded: bool,
    pairs: Vec<Pair>,
}

impl<'a> Chooser<'a> {
    pub(super) fn new(params: &'a Params, n_documents: usize) -> Self {
        let most = params.pairs_per_document.map(|n| (n * n_documents as f64).round() as usize);
        // A seed's reversed pairs come with other keys, so that its best are known at the end only.
        let is_seed_final =
            params.directions == Directions::AsFound || params.max_pairs_per_seed.is_none();
        Self {
            params,
            most: most.unwrap_or(usize::MAX),
            is_bounded: most.is_some() && is_seed_final,
            pairs: Vec::new(),
        }
    }

    /// Adds every pair that was found for some seeds.
    pub(super) fn add(&mut self, pairs: impl Iterator<Item = Pair>) {
        match self.params.directions {
            Directions::AsFound => {
                let mut pairs: Vec<Pair> = pairs.collect();
                self.limit_seeds(&mut pairs);
                self.pairs.append(&mut pairs);
            }
            Directions::Both => self.pairs.extend(pairs.flat_map(|pair| [pair, reversed(&pair)])),
            Directions::Once => {
                let once =
                    |pair: Pair| if pair.seed > pair.target { reversed(&pair) } else { pair };
                self.pairs.extend(pairs.map(once));
            }
        }
        if self.is_bounded && self.pairs.len() / 2 > self.most {
            self.keep_best();
        }
    }

    /// The pairs that stay.
    pub(super) fn finish(mut self) -> Vec<Pair> {
        let mut pairs = std::mem::take(&mut self.pairs);
        self.limit_seeds(&mut pairs);
        self.pairs = pairs;
        if self.most < usize::MAX {
            self.keep_best();
        }
        self.pairs
    }

    /// Leaves each pair once, and of every seed the best.
    fn limit_seeds(&self, pairs: &mut Vec<Pair>) {
        pairs.sort_unstable_by(Pair::by_seed);
        // Scores are symmetric to the bit, so equal pairs are neighbours.
        pairs.dedup_by_key(|pair| (pair.seed, pair.target));
        if let Some(most) = self.params.max_pairs_per_seed {
            let (mut seed, mut n) = (u32::MAX, 0);
            pairs.retain(|pair| {
                n = if pair.seed == seed { n + 1 } else { 1 };
                seed = pair.seed;
                n <= most
            });
        }
    }

    /// Leaves each pair once, and the best.
    fn keep_best(&mut self) {
        self.pairs.sort_unstable_by(Pair::best_first);
        self.pairs.dedup_by_key(|pair| (pair.seed, pair.target));
        self.pairs.truncate(self.most);
    }
}

fn reversed(pair: &Pair) -> Pair {
    Pair { seed: pair.target, target: pair.seed, score: pair.score }
}

#[cfg(test)]
mod tests {
    use kernels::philox::Philox;
    use serde_json::json;

    use super::*;

    /// In many parts, so that pairs are given up on the way, as in one.
    #[test]
    fn parts_change_nothing() {
        let rng = Philox::new(3, "pairs");
        let n = 60_u32;
        let score = |a: u32, b: u32| rng.uniform(u64::from(a.min(b) * n + a.max(b))) as f32;
        let of_seed = |seed: u32| {
            let others = (0..n).filter(move |&target| target != seed);
            others.map(move |target| Pair { seed, target, score: score(seed, target) })
        };
        for directions in ["as_found", "both", "once"] {
            for rule in [json!({}), json!({"max_pairs_per_seed": 3}), json!({"threshold": 0.5})] {
                let mut params = json!({"directions": directions, "pairs_per_document": 1.5});
                params.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
                let params: Params = serde_json::from_value(params).unwrap();
                let mut whole = Chooser::new(&params, n as usize);
                whole.add((0..n).flat_map(of_seed));
                let mut parts = Chooser::new(&params, n as usize);
                let mut n_most = 0;
                for seed in 0..n {
                    parts.add(of_seed(seed));
                    n_most = n_most.max(parts.pairs.len());
                }
                assert!(!parts.is_bounded || n_most < 600, "{n_most}");
                let (whole, parts) = (whole.finish(), parts.finish());
                assert_eq!(whole.len(), 90);
                assert_eq!(whole, parts, "{directions}");
            }
        }
    }
}
