//! Tiles of queries against tiles of keys inside one document, each tile a small matrix product.
//!
//! Documents are cut into tiles one by one, so no tile mixes two of them and masks are needed on the
//! diagonal only. The forward pass keeps a running maximum and sum per row (online softmax). The
//! backward pass recomputes the weights from `lse`; one task owns a document's key head with all
//! query heads that share it, so each gradient has one writer and one order of additions.

use std::ops::Range;

use super::Heads;
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::isa::{Isa, per_isa};
use crate::lanes::{dot, exp, max, sum};
use crate::matmul::{Accumulate, Packed, View, product, product_at};

/// Keys in a tile, and queries in a tile of the backward pass.
const TILE: usize = 64;
/// Queries in a tile of the forward pass, which share its packed keys and values.
const TILE_QUERIES: usize = 256;

/// Where the parts of one query head lie.
#[derive(Clone, Copy)]
struct Head<'a> {
    heads: Heads,
    index: usize,
    qkv: &'a [f32],
}

impl<'a> Head<'a> {
    fn q_at(self, token: usize) -> usize {
        token * self.heads.qkv_width() + self.index * self.heads.head_dim
    }

    fn k_at(self, token: usize) -> usize {
        let kv_head = self.index / self.heads.group_size();
        token * self.heads.qkv_width() + self.heads.q_width() + kv_head * self.heads.head_dim
    }

    fn v_at(self, token: usize) -> usize {
        self.k_at(token) + self.heads.kv_width()
    }

    /// Rows of the packed buffer that start at `at`.
    fn rows(self, at: usize) -> View<'a> {
        View::rows(&self.qkv[at..], self.heads.qkv_width())
    }

    /// The same, transposed.
    fn columns(self, at: usize) -> View<'a> {
        View::columns(&self.qkv[at..], self.heads.qkv_width())
    }

    fn scale(self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }
}

pub(super) fn forward(
    pool: &Pool,
    qkv: &[f32],
    heads: Heads,
    documents: &[Range<usize>],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let tiles: Vec<(usize, Range<usize>)> = documents
        .iter()
        .flat_map(|document| {
            document
                .clone()
                .step_by(TILE_QUERIES)
                .map(|q| (document.start, q..document.end.min(q + TILE_QUERIES)))
        })
        .collect();
    let (out, lse) = (Disjoint::new(out), Disjoint::new(lse));
    pool.for_each(tiles.len() * heads.n_kv_heads, |task| {
        let (first_key, queries) = tiles[task / heads.n_kv_heads].clone();
        let group = heads.group(task % heads.n_kv_heads);
        let states = forward_tile(pool.isa(), qkv, heads, group.clone(), first_key, &queries);
        for (head, rows) in group.zip(states) {
            for (i, t) in queries.clone().enumerate() {
                let at = t * heads.q_width() + head * heads.head_dim;
                // SAFETY: Each task writes its own heads of its own tokens.
                let target = unsafe { out.slice(at..at + heads.head_dim) };
                let inverse = 1.0 / rows.total[i];
                for (target, sum) in target.iter_mut().zip(&rows.sums[i * heads.head_dim..]) {
                    *target = sum * inverse;
                }
                let at = t * heads.n_heads + head;
                // SAFETY: As above.
                let target = unsafe { lse.slice(at..at + 1) };
                target[0] = rows.max[i] + rows.total[i].ln();
            }
        }
    });
}

/// What the softmax of `queries` leaves, for each head of a group that shares keys and values.
fn forward_tile(
    isa: Isa,
    qkv: &[f32],
    heads: Heads,
    group: Range<usize>,
    first_key: usize,
    queries: &Range<usize>,
) -> Vec<Rows> {
    let head_dim = heads.head_dim;
    let n_queries = queries.len();
    let mut scores = vec![0.0; n_queries * TILE];
    let mut states: Vec<Rows> = group.clone().map(|_| Rows::new(n_queries, head_dim)).collect();
    let (mut packed_k, mut packed_v) = (Packed::new(), Packed::new());
    for key in (first_key..queries.end).step_by(TILE) {
        let n_keys = TILE.min(queries.end - key);
        let first = Head { heads, index: group.start, qkv };
        packed_k.fill(isa, first.columns(first.k_at(key)), head_dim, n_keys);
        packed_v.fill(isa, first.rows(first.v_at(key)), n_keys, head_dim);
        // Queries before the tile of keys see none of it.
        let n_blind = key.saturating_sub(queries.start);
        let n_seeing = n_queries - n_blind;
        let query = queries.start + n_blind;
        let scores = &mut scores[..n_seeing * n_keys];
        for (index, rows) in group.clone().zip(&mut states) {
            let head = Head { heads, index, qkv };
            let q = head.rows(head.q_at(query));
            product(isa, scores, q, &packed_k, n_seeing, head.scale(), Accumulate::Overwrite);
            online_softmax(isa, scores, n_keys, query + 1 - key, n_blind, rows);
            let p = View::rows(scores, n_keys);
            let sums = &mut rows.sums[n_blind * head_dim..];
            product(isa, sums, p, &packed_v, n_seeing, 1.0, Accumulate::Add);
        }
    }
    states
}

/// What the online softmax keeps for each row.
struct Rows {
    sums: Vec<f32>,
    max: Vec<f32>,
    total: Vec<f32>,
}

impl Rows {
    fn new(n_rows: usize, head_dim: usize) -> Self {
        Self {
            sums: vec![0.0; n_rows * head_dim],
            max: vec![f32::NEG_INFINITY; n_rows],
            total: vec![0.0; n_rows],
        }
    }
}

per_isa! {
    /// Turns scores into weights relative to the row's running maximum, and rescales what was summed
    /// before when the maximum grows. Row `i` of `scores` is row `first + i` of `rows`, and sees the
    /// first `visible + i` keys.
    fn online_softmax<M>(
        scores: &mut [f32],
        n_keys: usize,
        visible: usize,
        first: usize,
        rows: &mut Rows,
    ) {
        let head_dim = rows.sums.len() / rows.max.len();
        for (i, row) in scores.chunks_exact_mut(n_keys).enumerate() {
            let (seen, hidden) = row.split_at_mut(n_keys.min(visible + i));
            let i = first + i;
            let old = rows.max[i];
            let tile_max = max(seen);
            let new = if tile_max > old { tile_max } else { old };
            for x in seen.iter_mut() {
                *x = exp::<M>(*x - new);
            }
            hidden.fill(0.0);
            let total = sum(seen);
            if new > old {
                let shrink = exp::<M>(old - new);
                rows.total[i] = M::mul_add(rows.total[i], shrink, total);
                for sum in &mut rows.sums[i * head_dim..(i + 1) * head_dim] {
                    *sum *= shrink;
                }
            } else {
                rows.total[i] += total;
            }
            rows.max[i] = new;
        }
    }
}

pub(super) fn backward(
    pool: &Pool,
    input: [&[f32]; 4],
    heads: Heads,
    documents: &[Range<usize>],
    d_qkv: &mut [f32],
) {
    let d_qkv = Disjoint::new(d_qkv);
    pool.for_each(documents.len() * heads.n_kv_heads, |task| {
        let document = documents[task / heads.n_kv_heads].clone();
        let kv_head = task % heads.n_kv_heads;
        backward_kv_head(pool.isa(), input, heads, &document, kv_head, &d_qkv);
    });
}

/// A tile of keys and values, packed for the products of the backward pass.
struct PackedKeys {
    k_columns: Packed,
    v_columns: Packed,
    k_rows: Packed,
}

impl PackedKeys {
    fn new() -> Self {
        Self { k_columns: Packed::new(), v_columns: Packed::new(), k_rows: Packed::new() }
    }

    fn fill(&mut self, isa: Isa, head: Head<'_>, key: usize, n_keys: usize) {
        let head_dim = head.heads.head_dim;
        self.k_columns.fill(isa, head.columns(head.k_at(key)), head_dim, n_keys);
        self.v_columns.fill(isa, head.columns(head.v_at(key)), head_dim, n_keys);
        self.k_rows.fill(isa, head.rows(head.k_at(key)), n_keys, head_dim);
    }
}

/// The gradients of one key and value head of one document, and of its query heads.
fn backward_kv_head(
    isa: Isa,
    [d_out, qkv, out, lse]: [&[f32]; 4],
    heads: Heads,
    document: &Range<usize>,
    kv_head: usize,
    d_qkv: &Disjoint<'_, f32>,
) {
    let head_dim = heads.head_dim;
    let group = heads.group(kv_head);
    let deltas: Vec<Vec<f32>> = group
        .clone()
        .map(|head| {
            let mut delta = vec![0.0; document.len()];
            row_dots(isa, d_out, out, heads, head, document.start, &mut delta);
            delta
        })
        .collect();
    let (mut weights, mut d_scores) = (vec![0.0; TILE * TILE], vec![0.0; TILE * TILE]);
    let (mut d_k, mut d_v) = (vec![0.0; TILE * head_dim], vec![0.0; TILE * head_dim]);
    let mut keys = PackedKeys::new();
    let (mut packed_q, mut packed_d_out) = (Packed::new(), Packed::new());
    for key in document.clone().step_by(TILE) {
        let n_keys = TILE.min(document.end - key);
        keys.fill(isa, Head { heads, index: group.start, qkv }, key, n_keys);
        let (d_k, d_v) = (&mut d_k[..n_keys * head_dim], &mut d_v[..n_keys * head_dim]);
        d_k.fill(0.0);
        d_v.fill(0.0);
        for (index, delta) in group.clone().zip(&deltas) {
            let head = Head { heads, index, qkv };
            for query in (key..document.end).step_by(TILE) {
                let n_queries = TILE.min(document.end - query);
                let q = head.rows(head.q_at(query));
                let d_o = View::rows(
                    &d_out[query * heads.q_width() + index * head_dim..],
                    heads.q_width(),
                );
                let weights = &mut weights[..n_queries * n_keys];
                let d_scores = &mut d_scores[..n_queries * n_keys];
                let (scale, overwrite) = (head.scale(), Accumulate::Overwrite);
                product(isa, weights, q, &keys.k_columns, n_queries, scale, overwrite);
                product(isa, d_scores, d_o, &keys.v_columns, n_queries, 1.0, overwrite);
                let tile = Tile {
                    n_keys,
                    visible: query + 1 - key,
                    scale,
                    lse: &lse[query * heads.n_heads + index..],
                    lse_stride: heads.n_heads,
                    delta: &delta[query - document.start..][..n_queries],
                };
                tile_gradient(isa, &tile, weights, d_scores);

                packed_d_out.fill(isa, d_o, n_queries, head_dim);
                let p = View::columns(weights, n_keys);
                product(isa, d_v, p, &packed_d_out, n_keys, 1.0, Accumulate::Add);
                packed_q.fill(isa, q, n_queries, head_dim);
                let d_s = View::columns(d_scores, n_keys);
                product(isa, d_k, d_s, &packed_q, n_keys, 1.0, Accumulate::Add);
                let first = if key == document.start { overwrite } else { Accumulate::Add };
                let place = [head.q_at(query), heads.qkv_width()];
                let d_s = View::rows(d_scores, n_keys);
                // SAFETY: This task alone writes the query heads of its group, in its document.
                unsafe { product_at(isa, d_qkv, place, d_s, &keys.k_rows, n_queries, first) };
            }
        }
        let head = Head { heads, index: group.start, qkv };
        for i in 0..n_keys {
            for (gradient, at) in [(&*d_k, head.k_at(key + i)), (&*d_v, head.v_at(key + i))] {
                // SAFETY: This task alone writes its key and value head, in its document.
                unsafe { d_qkv.slice(at..at + head_dim) }
                    .copy_from_slice(&gradient[i * head_dim..(i + 1) * head_dim]);
            }
        }
    }
}

per_isa! {
    /// `delta[i] = d_out[i] · out[i]` in one head: the mean of the weights' gradients.
    fn row_dots<M>(
        d_out: &[f32],
        out: &[f32],
        heads: Heads,
        head: usize,
        first: usize,
        delta: &mut [f32],
    ) {
        for (i, delta) in delta.iter_mut().enumerate() {
            let at = (first + i) * heads.q_width() + head * heads.head_dim;
            let row = at..at + heads.head_dim;
            *delta = dot::<M>(&d_out[row.clone()], &out[row]);
        }
    }
}

/// A tile of the backward pass: row `i` sees the first `visible + i` keys.
struct Tile<'a> {
    n_keys: usize,
    visible: usize,
    scale: f32,
    lse: &'a [f32],
    lse_stride: usize,
    delta: &'a [f32],
}

per_isa! {
    /// Turns scores into weights, and gradients of weights into gradients of unscaled scores.
    fn tile_gradient<M>(tile: &Tile<'_>, weights: &mut [f32], d_scores: &mut [f32]) {
        let n_keys = tile.n_keys;
        for (i, &delta) in tile.delta.iter().enumerate() {
            let lse = tile.lse[i * tile.lse_stride];
            let n_seen = n_keys.min(tile.visible + i);
            let (p, p_hidden) = weights[i * n_keys..(i + 1) * n_keys].split_at_mut(n_seen);
            let (d, d_hidden) = d_scores[i * n_keys..(i + 1) * n_keys].split_at_mut(n_seen);
            for j in 0..n_seen {
                p[j] = exp::<M>(p[j] - lse);
                d[j] = p[j] * (d[j] - delta) * tile.scale;
            }
            p_hidden.fill(0.0);
            d_hidden.fill(0.0);
        }
    }
}
