//! Byte-pair merges of one word.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No merge joins the pair, or the place is gone.
const NONE: u32 = u32::MAX;
/// Longer words are merged through a queue: looking for the best pair costs a pass over the word.
const SCAN_PARTS_MAX: usize = 160;

/// A pair that is joined: the lower the rank, the sooner.
#[derive(Clone, Copy)]
struct Join {
    pair: u64,
    rank: u32,
}

/// The merges of a vocabulary.
pub(super) struct Merges {
    byte_ids: [u32; 256],
    /// Rank of the merge of two bytes.
    byte_ranks: Box<[u32]>,
    /// Open addressing; an empty place has rank [`NONE`].
    joins: Box<[Join]>,
    shift: u32,
    /// Token that each merge makes, by rank.
    ids: Vec<u32>,
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Merges {
    /// The merges in order of rank, as (left, right, joined); of equal pairs the last counts.
    pub(super) fn new(byte_ids: &[u32; 256], merges: &[(u32, u32, u32)]) -> Self {
        let n_places = (merges.len() * 2 + 2).next_power_of_two();
        let empty = Join { pair: u64::MAX, rank: NONE };
        let mut this = Self {
            byte_ids: *byte_ids,
            byte_ranks: vec![NONE; 1 << 16].into_boxed_slice(),
            joins: vec![empty; n_places].into_boxed_slice(),
            shift: 64 - n_places.trailing_zeros(),
            ids: merges.iter().map(|merge| merge.2).collect(),
        };
        for (rank, &(left, right, _)) in merges.iter().enumerate() {
            let pair = pair(left, right);
            let at = this.place(pair);
            this.joins[at] = Join { pair, rank: rank as u32 };
        }
        for (i, &left) in byte_ids.iter().enumerate() {
            for (j, &right) in byte_ids.iter().enumerate() {
                this.byte_ranks[i << 8 | j] = this.rank(left, right);
            }
        }
        this
    }

    /// Where a pair is, or would be.
    #[inline]
    fn place(&self, pair: u64) -> usize {
        let mut at = (pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        while self.joins[at].rank != NONE && self.joins[at].pair != pair {
            at = (at + 1) & (self.joins.len() - 1);
        }
        at
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        self.joins[self.place(pair(left, right))].rank
    }

    /// The id of a single byte.
    pub(super) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// Appends the ids of a word: again and again the pair of lowest rank is joined, of several the
    /// leftmost.
    pub(super) fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        if word.len() > SCAN_PARTS_MAX {
            self.encode_long(word, ids);
            return;
        }
        let mut parts = [0_u32; SCAN_PARTS_MAX];
        // `ranks[i]` is that of parts `i` and `i + 1`.
        let mut ranks = [NONE; SCAN_PARTS_MAX];
        let mut n = word.len();
        for (part, &byte) in parts.iter_mut().zip(word) {
            *part = self.byte_id(byte);
        }
        for (rank, two) in ranks.iter_mut().zip(word.windows(2)) {
            *rank = self.byte_ranks[usize::from(two[0]) << 8 | usize::from(two[1])];
        }
        while n > 1 {
            let best = ranks[..n - 1].iter().fold(NONE, |best, &rank| best.min(rank));
            if best == NONE {
                break;
            }
            let at = ranks[..n - 1].iter().position(|&rank| rank == best).unwrap_or_default();
            parts[at] = self.ids[best as usize];
            parts.copy_within(at + 2..n, at + 1);
            ranks.copy_within(at + 1..n - 1, at);
            n -= 1;
            ranks[n - 1] = NONE;
            if at > 0 {
                ranks[at - 1] = self.rank(parts[at - 1], parts[at]);
            }
            if at + 1 < n {
                ranks[at] = self.rank(parts[at], parts[at + 1]);
            }
        }
        ids.extend_from_slice(&parts[..n]);
    }

    /// [`Self::encode`] with a queue of pairs and a linked list of parts.
    fn encode_long(&self, word: &[u8], ids: &mut Vec<u32>) {
        let n = word.len();
        let mut parts: Vec<u32> = word.iter().map(|&byte| self.byte_id(byte)).collect();
        let mut next: Vec<u32> = (1..=n as u32).collect();
        let mut previous: Vec<u32> = (0..n as u32).map(|i| i.wrapping_sub(1)).collect();
        let mut queue = BinaryHeap::new();
        for (at, two) in parts.windows(2).enumerate() {
            let rank = self.rank(two[0], two[1]);
            if rank != NONE {
                queue.push(Reverse((rank, at as u32)));
            }
        }
        while let Some(Reverse((rank, at))) = queue.pop() {
            let at = at as usize;
            let right = next[at] as usize;
            // Parts changed since the pair was queued: it is another pair now.
            let stale =
                parts[at] == NONE || right >= n || self.rank(parts[at], parts[right]) != rank;
            if stale {
                continue;
            }
            parts[at] = self.ids[rank as usize];
            parts[right] = NONE;
            next[at] = next[right];
            if (next[at] as usize) < n {
                previous[next[at] as usize] = at as u32;
                let rank = self.rank(parts[at], parts[next[at] as usize]);
                if rank != NONE {
                    queue.push(Reverse((rank, at as u32)));
                }
            }
            if previous[at] != NONE {
                let left = previous[at];
                let rank = self.rank(parts[left as usize], parts[at]);
                if rank != NONE {
                    queue.push(Reverse((rank, left)));
                }
            }
        }
        ids.extend(parts.into_iter().filter(|&part| part != NONE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::philox::Philox;

    /// Both ways give what the definition gives, on an alphabet small enough for many ties.
    #[test]
    fn words_of_any_length_follow_the_definition() {
        let byte_ids = std::array::from_fn(|byte| byte as u32);
        let a = u32::from(b'a');
        let merges = [
            (a, a, 256),
            (a + 1, a, 257),
            (256, 256, 258),
            (257, 256, 259),
            (a + 1, a + 1, 260),
            (258, a, 261),
            (260, 257, 262),
        ];
        let tables = Merges::new(&byte_ids, &merges);
        let rng = Philox::new(3, "words");
        for length in [1, 2, 3, 10, 100, SCAN_PARTS_MAX, SCAN_PARTS_MAX + 1, 700] {
            for trial in 0..20_u64 {
                let word: Vec<u8> = (0..length as u64)
                    .map(|i| b'a' + rng.below(trial << 32 | i, 3) as u8)
                    .collect();
                let mut expected: Vec<u32> = word.iter().map(|&byte| u32::from(byte)).collect();
                while let Some((at, id)) = merges.iter().find_map(|&(left, right, id)| {
                    let at = expected.windows(2).position(|two| two == [left, right])?;
                    Some((at, id))
                }) {
                    expected.splice(at..at + 2, [id]);
                }
                let (mut short, mut long) = (Vec::new(), Vec::new());
                tables.encode(&word, &mut short);
                tables.encode_long(&word, &mut long);
                assert_eq!(short, expected);
                assert_eq!(long, expected);
            }
        }
    }
}
