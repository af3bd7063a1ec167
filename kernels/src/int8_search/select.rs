//! The best hits of one query so far.

use super::{Hit, PANEL_VALUES};

/// A hit as one integer: a greater one ranks before a smaller one, by score and then by lower id.
fn rank(hit: Hit) -> u64 {
    let bits = hit.score.to_bits();
    // The order of `f32::total_cmp`: negative numbers run backwards.
    let ordered = bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!hit.id)
}

fn hit(rank: u64) -> Hit {
    let ordered = (rank >> 32) as u32;
    let bits = ordered ^ if ordered >> 31 == 0 { u32::MAX } else { 1 << 31 };
    Hit { id: !(rank as u32), score: f32::from_bits(bits) }
}

/// Keeps the `k` best of the hits it is shown, in any order.
pub(super) struct Selector {
    bucket: Vec<u64>,
    k: usize,
    /// What can still enter has at least this score.
    threshold: f32,
    /// What can still enter ranks before this.
    last: u64,
}

impl Selector {
    pub(super) fn new(k: usize, min_score: f32) -> Self {
        Self { bucket: Vec::new(), k, threshold: min_score, last: 0 }
    }

    /// Hits below this score need not be shown.
    #[inline]
    pub(super) fn threshold(&self) -> f32 {
        self.threshold
    }

    /// Adds a hit at or above the threshold.
    #[inline]
    pub(super) fn push(&mut self, hit: Hit) {
        let rank = rank(hit);
        if rank <= self.last {
            return;
        }
        if self.k == 1 {
            self.bucket.clear();
            self.bucket.push(rank);
            (self.last, self.threshold) = (rank, hit.score);
            return;
        }
        // A selection costs about one pass, so twice `k` makes it cheap for each entry.
        if self.bucket.len() >= 2 * self.k + PANEL_VALUES {
            self.shrink();
            if rank <= self.last {
                return;
            }
        }
        self.bucket.push(rank);
    }

    fn shrink(&mut self) {
        if self.bucket.len() > self.k {
            let (_, &mut last, _) = self.bucket.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
            self.bucket.truncate(self.k);
            (self.last, self.threshold) = (last, hit(last).score);
        }
    }

    /// The score of the `k`-th best hit so far; `None` when there are fewer.
    pub(super) fn kth_score(&mut self) -> Option<f32> {
        self.shrink();
        if self.bucket.len() < self.k {
            return None;
        }
        self.bucket.iter().min().map(|&last| hit(last).score)
    }

    /// The hits, best first.
    pub(super) fn finish(&mut self) -> Vec<Hit> {
        self.shrink();
        self.bucket.sort_unstable_by(|a, b| b.cmp(a));
        std::mem::take(&mut self.bucket).into_iter().map(hit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::int8_search::best_first;

    #[test]
    fn ranks_follow_the_order_of_hits() {
        let scores = [f32::NEG_INFINITY, -1.5, -0.0, 0.0, 1e-30, 0.5, f32::INFINITY];
        let hits: Vec<Hit> =
            scores.iter().flat_map(|&score| [0, 7, u32::MAX].map(|id| Hit { id, score })).collect();
        for a in &hits {
            assert_eq!(hit(rank(*a)), *a);
            for b in &hits {
                assert_eq!(rank(*b).cmp(&rank(*a)), best_first(a, b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn the_best_are_kept_in_any_order() {
        let rng = crate::philox::Philox::new(1, "select");
        for k in [1, 2, 30] {
            let hits: Vec<Hit> = (0..500)
                .map(|i| Hit { id: i, score: rng.below(u64::from(i), 40) as f32 })
                .collect();
            let mut expected = hits.clone();
            expected.sort_by(best_first);
            expected.truncate(k);
            for seed in 0..5 {
                let mut selector = Selector::new(k, 0.0);
                for i in crate::philox::Philox::new(seed, "order").permutation(hits.len()) {
                    if hits[i].score >= selector.threshold() {
                        selector.push(hits[i]);
                    }
                }
                assert_eq!(selector.finish(), expected);
            }
        }
    }
}
