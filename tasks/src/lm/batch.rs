//! Tokens of one optimizer step as a flat stream of rows.
//!
//! A row is at most `context` tokens. Rows follow each other without padding; `starts` tells every
//! token the first one it may attend to, `targets` the token to predict. Positions count from
//! `starts`, so a document that is cut by the end of a row begins anew, without its past.

use std::ops::Range;

use kernels::cross_entropy::IGNORE;

/// Tokens of one optimizer step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    ids: Vec<u32>,
    starts: Vec<u32>,
    targets: Vec<u32>,
    row_ends: Vec<usize>,
    n_targets: usize,
}

/// Consecutive rows of a [`Batch`] that are computed together; `starts` counts from their first
/// token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroBatch<'a> {
    /// Input ids, `[t]`.
    pub ids: &'a [u32],
    /// For each token the index of the first one it attends to, `[t]`.
    pub starts: Vec<u32>,
    /// For each token the id to predict, or [`IGNORE`], `[t]`.
    pub targets: &'a [u32],
}

impl Batch {
    /// Removes everything and keeps the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.starts.clear();
        self.targets.clear();
        self.row_ends.clear();
        self.n_targets = 0;
    }

    /// Input ids.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Input tokens.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens that have a target.
    pub fn n_targets(&self) -> usize {
        self.n_targets
    }

    /// Pairs of a token and one that it attends to, itself included: what attention costs.
    pub fn n_attended(&self) -> u64 {
        self.starts.iter().zip(0_u64..).map(|(start, i)| i + 1 - u64::from(*start)).sum()
    }

    /// Appends a span of tokens that attend to each other, to the row that is open.
    pub fn push_span(&mut self, tokens: impl IntoIterator<Item = (u32, Option<u32>)>) {
        let start = self.ids.len() as u32;
        for (id, target) in tokens {
            self.ids.push(id);
            self.starts.push(start);
            self.targets.push(target.unwrap_or(IGNORE));
            self.n_targets += usize::from(target.is_some());
        }
    }

    /// Closes the row that is open, unless it is empty.
    pub fn end_row(&mut self) {
        if self.row_ends.last().copied().unwrap_or(0) < self.ids.len() {
            self.row_ends.push(self.ids.len());
        }
    }

    /// Lets every token attend to its whole row: the row of the last tokens, before
    /// [`Self::end_row`].
    pub fn join_row(&mut self) {
        let row_start = self.row_ends.last().copied().unwrap_or(0);
        self.starts[row_start..].fill(row_start as u32);
    }

    /// Cuts the rows into micro-batches of as many whole rows as fit into `n_tokens_max`, and at
    /// least one.
    pub fn micro_batches(&self, n_tokens_max: usize) -> impl Iterator<Item = MicroBatch<'_>> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = if next == 0 { 0 } else { self.row_ends[next - 1] };
            let mut end = *self.row_ends.get(next)?;
            next += 1;
            while let Some(&row_end) = self.row_ends.get(next)
                && row_end - start <= n_tokens_max
            {
                end = row_end;
                next += 1;
            }
            Some(self.slice(start..end))
        })
    }

    fn slice(&self, range: Range<usize>) -> MicroBatch<'_> {
        let starts = self.starts[range.clone()].iter().map(|s| s - range.start as u32).collect();
        MicroBatch { ids: &self.ids[range.clone()], starts, targets: &self.targets[range] }
    }
}

/// Where a trainer's batches come from: a pure function of the step, so that any step can be
/// reached at once.
pub trait Steps {
    /// Optimizer steps in all.
    fn n_steps(&self) -> u64;

    /// Input tokens of all steps.
    fn n_tokens(&self) -> u64;

    /// Longest row, in tokens.
    fn row_tokens_max(&self) -> usize;

    /// Replaces `batch` with step `step`, counted from 0; rows are closed.
    fn fill(&self, step: u64, batch: &mut Batch);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_keep_rows_whole_and_starts_relative() {
        let mut batch = Batch::default();
        batch.push_span([(1, Some(2)), (2, None)]);
        batch.push_span([(3, Some(4))]);
        batch.end_row();
        batch.push_span([(5, Some(6)), (6, Some(7)), (7, None)]);
        batch.end_row();
        batch.end_row();
        batch.push_span([(8, Some(9))]);
        batch.end_row();
        assert_eq!((batch.n_tokens(), batch.n_targets()), (7, 5));
        let check = |n_tokens_max, expected: &[&[u32]]| {
            let ids: Vec<_> = batch.micro_batches(n_tokens_max).map(|m| m.ids).collect();
            assert_eq!(ids, expected);
        };
        check(1, &[&[1, 2, 3], &[5, 6, 7], &[8]]);
        check(4, &[&[1, 2, 3], &[5, 6, 7, 8]]);
        check(6, &[&[1, 2, 3, 5, 6, 7], &[8]]);
        // Spans of 2, 1, 3 and 1 tokens that see 1, 2, .. of their own.
        assert_eq!(batch.n_attended(), 3 + 1 + 6 + 1);
        let second = batch.micro_batches(4).nth(1).unwrap();
        assert_eq!(second.starts, [0, 0, 0, 3]);
        assert_eq!(second.targets, [6, 7, IGNORE, 9]);
    }

    #[test]
    fn a_joined_row_attends_across_spans() {
        let mut batch = Batch::default();
        batch.push_span([(1, None)]);
        batch.end_row();
        batch.push_span([(2, None)]);
        batch.push_span([(3, None), (4, None)]);
        batch.join_row();
        batch.end_row();
        assert_eq!(batch.micro_batches(9).next().unwrap().starts, [0, 1, 1, 1]);
    }
}
