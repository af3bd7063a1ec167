//! Some queries on their way through the values.

use super::cpu::{self, Isa, Tile};
use super::select::Selector;
use super::values::Panel;
use super::{Hit, Own, PANEL_VALUES, Rows, Search, TILE_QUERIES, score};

/// Some queries, their rows copied into whole words, and the best they have met.
pub(super) struct Block {
    isa: Isa,
    own: Own,
    n_groups: usize,
    /// `[n_queries, n_groups]`, padded with zero columns, which add nothing to a sum.
    words: Vec<[i8; 4]>,
    starts: Vec<i32>,
    scales: Vec<f32>,
    ids: Vec<u32>,
    selectors: Vec<Selector>,
}

impl Block {
    /// The rows of `queries` that `members` name.
    pub(super) fn new(isa: Isa, queries: Rows<'_>, members: &[u32], search: Search) -> Self {
        let n_groups = queries.columns.div_ceil(4);
        let mut words = vec![[0_i8; 4]; members.len() * n_groups];
        let mut starts = Vec::with_capacity(members.len());
        for (&member, words) in members.iter().zip(words.chunks_exact_mut(n_groups)) {
            let row = queries.row(member as usize);
            words.as_flattened_mut()[..row.len()].copy_from_slice(row);
            // Values are offset by 128: sum q * (v + 128) exceeds the product by 128 * sum q.
            starts.push(-128 * row.iter().map(|&q| i32::from(q)).sum::<i32>());
        }
        Self {
            isa,
            own: search.own,
            n_groups,
            words,
            starts,
            scales: members.iter().map(|&member| queries.scales[member as usize]).collect(),
            ids: members.iter().map(|&member| queries.first_id + member).collect(),
            selectors: members.iter().map(|_| Selector::new(search.k, search.min_score)).collect(),
        }
    }

    pub(super) fn n_queries(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn selector(&mut self, query: usize) -> &mut Selector {
        &mut self.selectors[query]
    }

    /// The hits of each query, best first.
    pub(super) fn finish(mut self) -> Vec<Vec<Hit>> {
        self.selectors.iter_mut().map(Selector::finish).collect()
    }

    /// Shows a panel to the queries that `subset` names.
    pub(super) fn scan(&mut self, panel: Panel<'_>, subset: &[u32]) {
        let mut dots = [[0; PANEL_VALUES]; TILE_QUERIES];
        for members in subset.chunks(TILE_QUERIES) {
            let tile = self.tile(panel, members, |block, query| block.selectors[query].threshold());
            let masks = cpu::tile(self.isa, &tile, &mut dots);
            for (i, &member) in members.iter().enumerate() {
                let mut passing = masks[i];
                let query = member as usize;
                let selector = &mut self.selectors[query];
                while passing != 0 {
                    let c = passing.trailing_zeros() as usize;
                    passing &= passing - 1;
                    let id = panel.ids[c];
                    if self.own == Own::Keep || id != self.ids[query] {
                        let score = score(dots[i][c], panel.scales[c], self.scales[query]);
                        selector.push(Hit { id, score });
                    }
                }
            }
        }
    }

    /// Writes the scores of all queries with a panel: `scores[query * stride + first + c]`.
    pub(super) fn score(&self, panel: Panel<'_>, scores: &mut [f32], stride: usize, first: usize) {
        let mut dots = [[0; PANEL_VALUES]; TILE_QUERIES];
        let all: Vec<u32> = (0..self.n_queries() as u32).collect();
        for members in all.chunks(TILE_QUERIES) {
            let tile = self.tile(panel, members, |_, _| f32::NEG_INFINITY);
            cpu::tile(self.isa, &tile, &mut dots);
            for (dots, &member) in dots.iter().zip(members) {
                let query = member as usize;
                let row = &mut scores[query * stride..][..stride];
                let row = row[first..].iter_mut().zip(dots.iter().zip(panel.scales));
                for (out, (&dot, &scale)) in row {
                    *out = score(dot, scale, self.scales[query]);
                }
            }
        }
    }

    #[inline]
    fn tile<'a>(
        &'a self,
        panel: Panel<'a>,
        members: &[u32],
        threshold: impl Fn(&Self, usize) -> f32,
    ) -> Tile<'a> {
        let mut tile = Tile {
            words: &self.words,
            rows: [0; TILE_QUERIES],
            n_groups: self.n_groups,
            lanes: panel.lanes,
            value_scales: panel.scales,
            starts: [0; TILE_QUERIES],
            query_scales: [0.0; TILE_QUERIES],
            // Places without a query let nothing pass.
            thresholds: [f32::NAN; TILE_QUERIES],
        };
        for (i, &member) in members.iter().enumerate() {
            let query = member as usize;
            tile.rows[i] = query;
            tile.starts[i] = self.starts[query];
            tile.query_scales[i] = self.scales[query];
            tile.thresholds[i] = threshold(self, query);
        }
        tile
    }
}
