//! Which sets of a long list repeat an earlier one: exactly, in little memory.
//!
//! Two sets of Jaccard similarity `t` or more share an element among the first `len - ceil(t * len) + 1`
//! of each, in whatever order all sets agree on. Here elements that are in one set only come first: a
//! set with enough of them can be no duplicate, and boilerplate, which is in many sets, is looked at
//! last. Which elements are in several sets is told by a table of two bits an element; elements that
//! share a slot are taken for one, which costs time and never a duplicate.
//!
//! # Source
//! Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", WWW 2007.

use std::sync::atomic::{AtomicU64, Ordering};

use kernels::Pool;

use super::{jaccard, window_hashes};

/// Slots of the table for each set; a set of some hundred elements leaves most of them free.
const SLOTS_PER_SET: usize = 2048;
const SLOTS_MIN: usize = 1 << 16;
/// Sets that a thread takes at a time.
const CHUNK_SETS: usize = 16;

/// `n`-word windows of the texts that are wanted; see [`window_hashes`].
///
/// # Panics
/// When fewer texts are wanted or not than there are.
pub fn windows(pool: &Pool, texts: &[&str], wanted: &[bool], n: usize) -> Vec<Vec<u64>> {
    assert!(wanted.len() >= texts.len(), "it is said of each text whether it is wanted");
    let mut sets = vec![Vec::new(); texts.len()];
    pool.for_chunks(&mut sets, CHUNK_SETS, |chunk, sets| {
        let from = chunk * CHUNK_SETS;
        for (set, (text, wanted)) in sets.iter_mut().zip(texts[from..].iter().zip(&wanted[from..]))
        {
            if *wanted {
                *set = window_hashes(text, n);
            }
        }
    });
    sets
}

/// For each of `n` sets whether an earlier one is at least as similar as `threshold`, by Jaccard.
///
/// `pass` shows all sets in order, some at a time, and of each its elements in any order, also more
/// than once. It is called up to three times, and told which sets are wanted: others may be shown
/// empty. In memory are half a kilobyte for each set, and the sets that may be similar to another.
///
/// # Errors
/// What `pass` returns.
///
/// # Panics
/// When `threshold` is not above 0 and at most 1, or `pass` shows other than `n` sets.
pub fn find<E>(
    pool: &Pool,
    n: usize,
    threshold: f64,
    mut pass: impl FnMut(&[bool], &mut dyn FnMut(&[Vec<u64>])) -> Result<(), E>,
) -> Result<Vec<bool>, E> {
    assert!(threshold > 0.0 && threshold <= 1.0, "a threshold of {threshold}");
    assert!(u32::try_from(n).is_ok(), "{n} sets are counted in 32 bits");
    let table = Table::new(n * SLOTS_PER_SET);
    let (mut n_seen, all) = (0, vec![true; n]);
    pass(&all, &mut |sets| {
        n_seen += sets.len();
        pool.for_each(sets.len().div_ceil(CHUNK_SETS), |chunk| {
            let sets = sets[chunk * CHUNK_SETS..].iter().take(CHUNK_SETS);
            sets.flatten().for_each(|&element| table.add(element));
        });
    })?;
    assert_eq!(n_seen, n, "a pass shows every set");

    let mut postings: Vec<(u64, u32)> = Vec::new();
    let mut i = 0_u32;
    pass(&all, &mut |sets| {
        let mut found: Vec<Vec<u64>> = vec![Vec::new(); sets.len()];
        pool.for_chunks(&mut found, CHUNK_SETS, |chunk, found| {
            for (found, set) in found.iter_mut().zip(&sets[chunk * CHUNK_SETS..]) {
                *found = table.prefix(set, threshold);
            }
        });
        for found in found {
            postings.extend(found.into_iter().map(|element| (element, i)));
            i += 1;
        }
    })?;
    drop(table);
    postings.sort_unstable();
    let postings: Vec<(u64, u32)> = postings
        .chunk_by(|a, b| a.0 == b.0)
        .filter(|group| group.len() > 1)
        .flatten()
        .copied()
        .collect();
    let mut is_duplicate = vec![false; n];
    if postings.is_empty() {
        return Ok(is_duplicate);
    }
    let mut sets: Vec<Vec<u64>> = vec![Vec::new(); n];
    let mut wanted = vec![false; n];
    for (_, i) in &postings {
        wanted[*i as usize] = true;
    }
    let mut i = 0;
    pass(&wanted, &mut |shown| {
        for set in shown {
            if wanted[i] {
                sets[i].clone_from(set);
                sets[i].sort_unstable();
                sets[i].dedup();
            }
            i += 1;
        }
    })?;
    verify(&sets, &postings, threshold, &mut is_duplicate);
    Ok(is_duplicate)
}

/// Compares each set with the earlier ones that it shares a posting with, until one is similar.
fn verify(sets: &[Vec<u64>], postings: &[(u64, u32)], threshold: f64, is_duplicate: &mut [bool]) {
    // Where the group of each posting starts, by set.
    let mut groups: Vec<(u32, usize)> = Vec::with_capacity(postings.len());
    let mut start = 0;
    for group in postings.chunk_by(|a, b| a.0 == b.0) {
        groups.extend(group.iter().map(|(_, i)| (*i, start)));
        start += group.len();
    }
    groups.sort_unstable();
    let mut seen = vec![u32::MAX; sets.len()];
    for own in groups.chunk_by(|a, b| a.0 == b.0) {
        let i = own[0].0;
        let mut earlier = own.iter().flat_map(|&(_, start)| {
            postings[start..].iter().map(|(_, j)| *j).take_while(|&j| j < i)
        });
        is_duplicate[i as usize] = earlier.any(|j| {
            let is_new = std::mem::replace(&mut seen[j as usize], i) != i;
            let (a, b) = (&sets[i as usize], &sets[j as usize]);
            let (short, long) = (a.len().min(b.len()), a.len().max(b.len()));
            // The smaller set may be all of what they share.
            is_new && short as f64 >= threshold * long as f64 - 1e-9 && jaccard(a, b) >= threshold
        });
    }
}

/// Whether elements were seen never, once or more often.
struct Table {
    words: Vec<AtomicU64>,
    /// How far a hash is shifted to become a slot.
    shift: u32,
}

impl Table {
    fn new(n_slots: usize) -> Self {
        let n_slots = n_slots.max(SLOTS_MIN).next_power_of_two();
        let mut words = Vec::new();
        words.resize_with(n_slots / 32, AtomicU64::default);
        Self { words, shift: 64 - n_slots.ilog2() }
    }

    fn place(&self, element: u64) -> (&AtomicU64, u32) {
        let slot = element >> self.shift;
        (&self.words[(slot / 32) as usize], 2 * (slot % 32) as u32)
    }

    /// Bits are only ever set, so the end does not depend on the order of threads.
    fn add(&self, element: u64) {
        let (word, bit) = self.place(element);
        if (word.load(Ordering::Relaxed) >> bit) & 0b10 != 0 {
            return;
        }
        if (word.fetch_or(1 << bit, Ordering::Relaxed) >> bit) & 1 != 0 {
            word.fetch_or(0b10 << bit, Ordering::Relaxed);
        }
    }

    fn is_repeated(&self, element: u64) -> bool {
        let (word, bit) = self.place(element);
        (word.load(Ordering::Relaxed) >> bit) & 0b10 != 0
    }

    /// The elements of a set's prefix that are in other sets too, or were shown twice.
    fn prefix(&self, set: &[u64], threshold: f64) -> Vec<u64> {
        let length = |n: usize| {
            // A hair below, so that rounding never shortens a prefix.
            let least = (threshold * n as f64 - 1e-9).ceil() as usize;
            (n - least + 1).min(n)
        };
        let mut repeated: Vec<u64> =
            set.iter().copied().filter(|&element| self.is_repeated(element)).collect();
        // What was seen once in all is here once, so these are distinct.
        let n_single = set.len() - repeated.len();
        // A longer set has no shorter prefix: most end here, without a sort.
        if length(set.len()) <= n_single {
            return Vec::new();
        }
        repeated.sort_unstable();
        repeated.dedup();
        repeated.truncate(length(n_single + repeated.len()).saturating_sub(n_single));
        repeated
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kernels::philox::Philox;

    use super::*;

    fn found(sets: &[Vec<u64>], threshold: f64, n_threads: usize) -> Vec<bool> {
        let pool = Pool::new(n_threads);
        // Elements come in any order and some twice, and what is not wanted does not come.
        let shown = |set: &Vec<u64>| -> Vec<u64> {
            set.iter().rev().chain(set.iter().step_by(3)).copied().collect()
        };
        let found: Result<_, Infallible> = find(&pool, sets.len(), threshold, |wanted, visit| {
            let is_wanted =
                |(set, wanted): (_, &bool)| if *wanted { shown(set) } else { Vec::new() };
            let shown: Vec<Vec<u64>> = sets.iter().zip(wanted).map(is_wanted).collect();
            shown.chunks(37).for_each(visit);
            Ok(())
        });
        found.unwrap_or_else(|never| match never {})
    }

    fn all_pairs(sets: &[Vec<u64>], threshold: f64) -> Vec<bool> {
        (0..sets.len()).map(|i| (0..i).any(|j| jaccard(&sets[i], &sets[j]) >= threshold)).collect()
    }

    #[test]
    fn duplicates_equal_all_pairs() {
        let rng = Philox::new(4, "sets");
        let sets: Vec<Vec<u64>> = (0..120_u64)
            .map(|i| {
                let mut set: Vec<u64> = (0..rng.below(i, 12))
                    .map(|j| rng.below(1000 + i * 16 + j, 16).wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    .map(|x: u64| x.rotate_left(17))
                    .collect();
                set.sort_unstable();
                set.dedup();
                set
            })
            .filter(|set| !set.is_empty())
            .collect();
        for threshold in [0.3, 0.6, 1.0] {
            let expected = all_pairs(&sets, threshold);
            assert!(expected.iter().any(|x| *x) && !expected.iter().all(|x| *x));
            for n_threads in [1, 3] {
                assert_eq!(found(&sets, threshold, n_threads), expected);
            }
        }
    }

    /// Sets that share much boilerplate and vary around the threshold, where elements meet in slots.
    #[test]
    fn boilerplate_and_shared_slots_hide_nothing() {
        let rng = Philox::new(5, "texts");
        let sets: Vec<Vec<u64>> = (0..400_u64)
            .map(|i| {
                let rng = rng.fork(i);
                let source = if i % 3 == 0 { i } else { rng.below(0, i + 1) };
                let own = Philox::new(6, "elements").fork(source);
                let n_own = 20 + rng.below(1, 60);
                // Few slots: the high bits of an element are those of many others.
                let mut set: Vec<u64> = (0..n_own).map(|j| own.u64(j) >> 9).collect();
                set.extend((0..30).map(|j| Philox::new(7, "boilerplate").u64(j) >> 9));
                set.sort_unstable();
                set.dedup();
                set
            })
            .collect();
        for threshold in [0.5, 0.6, 0.75] {
            let expected = all_pairs(&sets, threshold);
            let n_expected = expected.iter().filter(|x| **x).count();
            assert!((20..380).contains(&n_expected), "{n_expected}");
            assert_eq!(found(&sets, threshold, 2), expected);
        }
        assert!(found(&[], 0.6, 1).is_empty());
    }
}
