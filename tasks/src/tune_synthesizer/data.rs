//! Which pairs are trained on, and in which order.

use std::cell::RefCell;
use std::ops::Range;

use engine::task::Failure;
use kernels::philox::Philox;

use super::{Directions, OnTooLong};
use crate::format::pairs::{Pair, Pairs};
use crate::format::tokens::Tokens;
use crate::lm::batch::{Batch, Steps};
use crate::tokenizer::{BOS, EOS, SEP};

/// Special tokens of a pair: `<|bos|>`, `<|sep|>`, `<|eos|>`.
const PAIR_SPECIALS: usize = 3;
/// Held-out documents d1 are at most one of this many.
const HELDOUT_SHARE: usize = 10;
/// Tries to find a document d1 that has nothing to do with a d2.
const N_UNRELATED_TRIES: u64 = 64;

/// How pairs are chosen.
pub(super) struct Selection {
    pub(super) context: usize,
    pub(super) on_too_long: OnTooLong,
    pub(super) directions: Directions,
    pub(super) max_pairs_per_seed: usize,
    pub(super) n_heldout_seeds: usize,
    pub(super) seed: u64,
}

/// A held-out pair, and a d1 that d2 is not paired with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldoutPair {
    pub(super) d1: u32,
    pub(super) d2: u32,
    pub(super) unrelated: u32,
}

/// The pairs to train on, by d1, and those held out.
pub(super) struct Selected {
    /// Each d1 with its range of `targets`.
    seeds: Vec<(u32, Range<usize>)>,
    targets: Vec<u32>,
    pub(super) heldout: Vec<HeldoutPair>,
    pub(super) n_too_long: usize,
}

impl Selected {
    pub(super) fn n_seeds(&self) -> usize {
        self.seeds.len()
    }

    pub(super) fn n_pairs(&self) -> usize {
        self.targets.len()
    }
}

impl Selection {
    /// Chooses pairs.
    ///
    /// # Errors
    /// When none are left, or one is too long and that is to fail.
    pub(super) fn select(&self, pairs: &Pairs, tokens: &Tokens) -> Result<Selected, Failure> {
        let mut all: Vec<Pair> = pairs.iter().filter(|pair| pair.seed != pair.target).collect();
        if self.directions == Directions::Both {
            let turned = |pair: &Pair| Pair { seed: pair.target, target: pair.seed, ..*pair };
            all.extend(all.iter().map(turned).collect::<Vec<_>>());
        }
        all.sort_by(Pair::by_seed);
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|pair| {
            if seen.last().is_some_and(|&(seed, _)| seed != pair.seed) {
                seen.clear();
            }
            seen.insert((pair.seed, pair.target))
        });
        let related = Related::of(&all);
        let n_all = all.len();
        all.retain(|pair| pair_tokens(tokens, pair.seed, pair.target) <= self.context);
        let n_too_long = n_all - all.len();
        if n_too_long > 0 && self.on_too_long == OnTooLong::Fail {
            return Err(Failure::permanent(format!(
                "{n_too_long} of {n_all} pairs do not fit a context of {} tokens",
                self.context
            ))
            .help("raise `context`, drop long documents, or set `on_too_long: skip`"));
        }
        let (heldout, heldout_seeds) = self.hold_out(&all, &related, tokens);
        let is_heldout = |document: u32| heldout_seeds.binary_search(&document).is_ok();
        all.retain(|pair| !is_heldout(pair.seed) && !is_heldout(pair.target));

        let (mut seeds, mut targets) = (Vec::new(), Vec::new());
        for group in all.chunk_by(|a, b| a.seed == b.seed) {
            let start = targets.len();
            targets.extend(group.iter().take(self.max_pairs_per_seed).map(|pair| pair.target));
            seeds.push((group[0].seed, start..targets.len()));
        }
        if targets.is_empty() {
            return Err(Failure::permanent(format!(
                "no pairs to train on: {n_all} came in, {n_too_long} do not fit a context of {} tokens, {} documents are held out",
                self.context,
                heldout_seeds.len()
            ))
            .help("lower the threshold of `pair`, or raise `context`"));
        }
        Ok(Selected { seeds, targets, heldout, n_too_long })
    }

    /// The held-out pairs, and their sorted documents d1.
    fn hold_out(
        &self,
        all: &[Pair],
        related: &Related,
        tokens: &Tokens,
    ) -> (Vec<HeldoutPair>, Vec<u32>) {
        let groups: Vec<&[Pair]> = all.chunk_by(|a, b| a.seed == b.seed).collect();
        let rng = Philox::new(self.seed, "tune.heldout");
        let mut chosen = rng.permutation(groups.len());
        chosen.truncate(self.n_heldout_seeds.min(groups.len() / HELDOUT_SHARE));
        chosen.sort_unstable();
        let mut heldout = Vec::new();
        for &group in &chosen {
            let Pair { seed: d1, target: d2, .. } = groups[group][0];
            let rng = rng.fork(u64::from(d1));
            let unrelated = (0..N_UNRELATED_TRIES)
                .map(|i| groups[rng.below(i, groups.len() as u64) as usize][0].seed)
                .find(|&other| {
                    other != d1
                        && other != d2
                        && !related.contains(other, d2)
                        && !related.contains(d2, other)
                        && pair_tokens(tokens, other, d2) <= self.context
                });
            heldout.extend(unrelated.map(|unrelated| HeldoutPair { d1, d2, unrelated }));
        }
        (heldout, chosen.iter().map(|&group| groups[group][0].seed).collect())
    }
}

/// Whether two documents are a pair.
struct Related(Vec<(u32, u32)>);

impl Related {
    fn of(pairs: &[Pair]) -> Self {
        let mut sorted: Vec<_> = pairs.iter().map(|pair| (pair.seed, pair.target)).collect();
        sorted.sort_unstable();
        Self(sorted)
    }

    fn contains(&self, seed: u32, target: u32) -> bool {
        self.0.binary_search(&(seed, target)).is_ok()
    }
}

/// Tokens of `<|bos|> d1 <|sep|> d2 <|eos|>`.
fn pair_tokens(tokens: &Tokens, d1: u32, d2: u32) -> usize {
    tokens.length(d1 as usize) + tokens.length(d2 as usize) + PAIR_SPECIALS
}

/// Appends a pair as a row: every token attends to the pair, d2 and the last token are predicted.
pub(super) fn push_pair(batch: &mut Batch, tokens: &Tokens, d1: u32, d2: u32) {
    let mut ids = Vec::with_capacity(pair_tokens(tokens, d1, d2));
    ids.push(BOS);
    tokens.view(d1 as usize).copy_to(&mut ids);
    let separator = ids.len();
    ids.push(SEP);
    tokens.view(d2 as usize).copy_to(&mut ids);
    ids.push(EOS);
    let target = |i: usize| if i < separator { None } else { ids.get(i + 1).copied() };
    batch.push_span(ids.iter().enumerate().map(|(i, &id)| (id, target(i))));
    batch.end_row();
}

/// How many pairs a step has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Batching {
    /// This many.
    Pairs(u64),
    /// As many as have this many tokens on average.
    Tokens(u64),
}

impl Batching {
    pub(super) fn pairs(self, selected: &Selected, tokens: &Tokens) -> u64 {
        match self {
            Self::Pairs(n) => n,
            Self::Tokens(n) => {
                let lengths = selected.seeds.iter().flat_map(|(d1, range)| {
                    let targets = &selected.targets[range.clone()];
                    targets.iter().map(|&d2| pair_tokens(tokens, *d1, d2) as u64)
                });
                let mean = lengths.sum::<u64>() as f64 / selected.n_pairs() as f64;
                ((n as f64 / mean).round() as u64).max(1)
            }
        }
    }
}

/// The steps of a tuning run. Draw `i` takes every d1 once before any comes again, in an order of the
/// round's own, and walks through the pairs of each d1 in an order of its own.
pub(super) struct PairSteps {
    selected: Selected,
    tokens: Tokens,
    batch_pairs: u64,
    n_steps: u64,
    n_tokens: u64,
    context: usize,
    rng: Philox,
    /// The order of a round, kept because consecutive steps are mostly of one round.
    order: RefCell<(u64, Vec<usize>)>,
}

impl PairSteps {
    pub(super) fn new(
        selected: Selected,
        tokens: Tokens,
        batch_pairs: u64,
        n_steps: u64,
        seed: u64,
        context: usize,
    ) -> Self {
        let rng = Philox::new(seed, "tune.order");
        let order = RefCell::new((0, rng.fork(0).permutation(selected.n_seeds())));
        let mut steps =
            Self { selected, tokens, batch_pairs, n_steps, n_tokens: 0, context, rng, order };
        steps.n_tokens = (0..n_steps * batch_pairs)
            .map(|draw| {
                let (d1, d2) = steps.pair(draw);
                pair_tokens(&steps.tokens, d1, d2) as u64
            })
            .sum();
        steps
    }

    /// The pair of a draw.
    fn pair(&self, draw: u64) -> (u32, u32) {
        let n_seeds = self.selected.n_seeds() as u64;
        let (round, place) = (draw / n_seeds, (draw % n_seeds) as usize);
        let mut order = self.order.borrow_mut();
        if order.0 != round {
            *order = (round, self.rng.fork(round).permutation(n_seeds as usize));
        }
        let (d1, range) = &self.selected.seeds[order.1[place]];
        let targets = &self.selected.targets[range.clone()];
        // An order per d1 and pass over its pairs; odd streams keep it apart from the rounds'.
        let (pass, at) = (round / targets.len() as u64, (round % targets.len() as u64) as usize);
        let walk = Philox::new(pass, "tune.walk").fork(self.rng.u64(u64::from(*d1)));
        (*d1, targets[walk.permutation(targets.len())[at]])
    }
}

impl Steps for PairSteps {
    fn n_steps(&self) -> u64 {
        self.n_steps
    }

    fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    fn row_tokens_max(&self) -> usize {
        self.context
    }

    fn fill(&self, step: u64, batch: &mut Batch) {
        batch.clear();
        for draw in step * self.batch_pairs..(step + 1) * self.batch_pairs {
            let (d1, d2) = self.pair(draw);
            push_pair(batch, &self.tokens, d1, d2);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tune_synthesizer::tests::{PairWorld, documents};

    fn selection() -> Selection {
        Selection {
            context: 40,
            on_too_long: OnTooLong::Skip,
            directions: Directions::AsFound,
            max_pairs_per_seed: 2,
            n_heldout_seeds: 2,
            seed: 0,
        }
    }

    fn ring(n: u32) -> Vec<Pair> {
        (0..n)
            .flat_map(|i| {
                (1..=3).map(move |k| Pair {
                    seed: i,
                    target: (i + k) % n,
                    score: 1.0 - 0.1 * k as f32,
                })
            })
            .collect()
    }

    #[test]
    fn selection_keeps_the_best_and_holds_documents_out() {
        let world = PairWorld::new(&documents(30), &ring(30));
        let (pairs, tokens) = world.open();
        let selected = selection().select(&pairs, &tokens).unwrap();
        assert_eq!(selected.heldout.len(), 2);
        for pair in &selected.heldout {
            assert_eq!(pair.d2, (pair.d1 + 1) % 30, "the best pair is measured");
            let distance = (pair.d2 + 30 - pair.unrelated) % 30;
            assert!((4..=26).contains(&distance), "{pair:?} are related");
            assert!(selected.seeds.iter().all(|(seed, _)| *seed != pair.d1));
            assert!(!selected.targets.contains(&pair.d1));
        }
        assert_eq!(selected.n_seeds(), 28);
        assert!(selected.seeds.iter().all(|(_, range)| (1..=2).contains(&range.len())));

        let both = Selection {
            directions: Directions::Both,
            max_pairs_per_seed: 99,
            n_heldout_seeds: 0,
            ..selection()
        };
        assert_eq!(both.select(&pairs, &tokens).unwrap().n_pairs(), 180);
        let short = Selection { context: 12, n_heldout_seeds: 0, ..selection() };
        let selected = short.select(&pairs, &tokens).unwrap();
        assert!(selected.n_too_long > 0 && selected.n_pairs() > 0);
        let fail = Selection { on_too_long: OnTooLong::Fail, ..short };
        assert!(fail.select(&pairs, &tokens).is_err());
        let none = Selection { context: 3, ..selection() };
        assert!(none.select(&pairs, &tokens).is_err());
    }

    #[test]
    fn draws_are_even_over_seeds_then_over_their_pairs() {
        let world = PairWorld::new(&documents(30), &ring(30));
        let (pairs, tokens) = world.open();
        let all = Selection { n_heldout_seeds: 0, max_pairs_per_seed: 3, ..selection() };
        let selected = all.select(&pairs, &tokens).unwrap();
        let steps = PairSteps::new(selected, tokens, 9, 20, 5, 40);
        let mut counts: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        for draw in 0..180 {
            *counts.entry(steps.pair(draw)).or_default() += 1;
        }
        assert_eq!(counts.len(), 90);
        assert!(counts.values().all(|&n| n == 2));
        let forward: Vec<_> = (0..180).map(|draw| steps.pair(draw)).collect();
        let backward: Vec<_> = (0..180).rev().map(|draw| steps.pair(draw)).collect();
        assert!(forward.iter().eq(backward.iter().rev()), "a draw does not depend on those before");
        assert_ne!(forward[..30], forward[30..60]);
    }

    #[test]
    fn only_the_second_document_is_predicted() {
        let world = PairWorld::new(&[vec![5, 6], vec![7, 8, 9]], &ring(2)[..1]);
        let (_, tokens) = world.open();
        let mut batch = Batch::default();
        push_pair(&mut batch, &tokens, 0, 1);
        let micro = batch.micro_batches(1).next().unwrap();
        assert_eq!(micro.ids, [BOS, 5, 6, SEP, 7, 8, 9, EOS]);
        let none = u32::MAX;
        assert_eq!(micro.targets, [none, none, none, 7, 8, 9, EOS, none]);
        assert_eq!(micro.starts, [0; 8]);
    }
}
