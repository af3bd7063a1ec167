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
use crate::lanes::{dot, exp, max, sum_by};
use crate::matmul::{Accumulate, View, product, product_at};

/// Queries in a tile, and keys in a tile of the backward pass.
const TILE: usize = 64;
/// Keys in a tile of the forward pass that lies below the diagonal.
const TILE_KEYS: usize = 256;

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
            document.clone().step_by(TILE).map(|q| (document.start, q..document.end.min(q + TILE)))
        })
        .collect();
    let (out, lse) = (Disjoint::new(out), Disjoint::new(lse));
    pool.for_each(tiles.len() * heads.n_heads, |task| {
        let (first_key, queries) = tiles[task / heads.n_heads].clone();
        let head = Head { heads, index: task % heads.n_heads, qkv };
        let (sums, row_lse) = forward_tile(pool.isa(), head, first_key, queries.clone());
        for (i, t) in queries.enumerate() {
            let at = t * heads.q_width() + head.index * heads.head_dim;
            // SAFETY: Each task writes its own head of its own tokens.
            unsafe { out.slice(at..at + heads.head_dim) }
                .copy_from_slice(&sums[i * heads.head_dim..(i + 1) * heads.head_dim]);
            let at = t * heads.n_heads + head.index;
            // SAFETY: As above.
            let lse = unsafe { lse.slice(at..at + 1) };
            lse[0] = row_lse[i];
        }
    });
}

/// The output rows `[queries, head_dim]` of one head, and their `lse`.
fn forward_tile(
    isa: Isa,
    head: Head<'_>,
    first_key: usize,
    queries: Range<usize>,
) -> (Vec<f32>, Vec<f32>) {
    let head_dim = head.heads.head_dim;
    let n_queries = queries.len();
    let mut scores = vec![0.0; n_queries * TILE_KEYS];
    let mut rows = Rows {
        sums: vec![0.0; n_queries * head_dim],
        max: vec![f32::NEG_INFINITY; n_queries],
        total: vec![0.0; n_queries],
    };
    let mut key = first_key;
    while key < queries.end {
        let end = if key < queries.start { queries.start } else { queries.end };
        let n_keys = TILE_KEYS.min(end - key);
        // Row `i` sees keys up to itself; below the diagonal that is all of them.
        let visible = queries.start + 1 - key;
        let q = head.rows(head.q_at(queries.start));
        let shape = [n_queries, n_keys, head_dim];
        let k = head.columns(head.k_at(key));
        product(&mut scores, n_keys, q, k, shape, head.scale(), Accumulate::Overwrite);
        online_softmax(isa, &mut scores[..n_queries * n_keys], n_keys, visible, &mut rows);
        let (p, v) = (View::rows(&scores, n_keys), head.rows(head.v_at(key)));
        let shape = [n_queries, head_dim, n_keys];
        product(&mut rows.sums, head_dim, p, v, shape, 1.0, Accumulate::Add);
        key += n_keys;
    }
    let mut lse = Vec::with_capacity(n_queries);
    for (i, row) in rows.sums.chunks_exact_mut(head_dim).enumerate() {
        let inverse = 1.0 / rows.total[i];
        for x in row.iter_mut() {
            *x *= inverse;
        }
        lse.push(rows.max[i] + rows.total[i].ln());
    }
    (rows.sums, lse)
}

/// What the online softmax keeps for each row.
struct Rows {
    sums: Vec<f32>,
    max: Vec<f32>,
    total: Vec<f32>,
}

per_isa! {
    /// Turns scores into weights relative to the row's running maximum, and rescales what was summed
    /// before when the maximum grows. Row `i` sees the first `visible + i` keys.
    fn online_softmax<M>(scores: &mut [f32], n_keys: usize, visible: usize, rows: &mut Rows) {
        let head_dim = rows.sums.len() / rows.max.len();
        for (i, row) in scores.chunks_exact_mut(n_keys).enumerate() {
            let (seen, hidden) = row.split_at_mut(n_keys.min(visible + i));
            let old = rows.max[i];
            let tile_max = max(seen);
            let new = if tile_max > old { tile_max } else { old };
            for x in seen.iter_mut() {
                *x = exp::<M>(*x - new);
            }
            hidden.fill(0.0);
            let total = sum_by(seen.len(), |j| seen[j]);
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
    let group = kv_head * heads.group_size()..(kv_head + 1) * heads.group_size();
    let deltas: Vec<Vec<f32>> = group
        .clone()
        .map(|head| {
            let mut delta = vec![0.0; document.len()];
            row_dots(isa, d_out, out, heads, head, document.start, &mut delta);
            delta
        })
        .collect();
    let mut weights = vec![0.0; TILE * TILE];
    let mut d_scores = vec![0.0; TILE * TILE];
    let (mut d_k, mut d_v) = (vec![0.0; TILE * head_dim], vec![0.0; TILE * head_dim]);
    for key in document.clone().step_by(TILE) {
        let n_keys = TILE.min(document.end - key);
        d_k.fill(0.0);
        d_v.fill(0.0);
        for (head, delta) in group.clone().zip(&deltas) {
            let head = Head { heads, index: head, qkv };
            for query in (key..document.end).step_by(TILE) {
                let n_queries = TILE.min(document.end - query);
                let d_out_at = query * heads.q_width() + head.index * head_dim;
                let d_o = &d_out[d_out_at..];
                let shape = [n_queries, n_keys, head_dim];
                let q = head.rows(head.q_at(query));
                let k = head.columns(head.k_at(key));
                product(&mut weights, n_keys, q, k, shape, head.scale(), Accumulate::Overwrite);
                let (d_o_rows, v) =
                    (View::rows(d_o, heads.q_width()), head.columns(head.v_at(key)));
                product(&mut d_scores, n_keys, d_o_rows, v, shape, 1.0, Accumulate::Overwrite);
                let tile = Tile {
                    n_keys,
                    visible: query + 1 - key,
                    scale: head.scale(),
                    lse: &lse[query * heads.n_heads + head.index..],
                    lse_stride: heads.n_heads,
                    delta: &delta[query - document.start..][..n_queries],
                };
                tile_gradient(isa, &tile, &mut weights, &mut d_scores);

                let shape = [n_keys, head_dim, n_queries];
                let p = View::columns(&weights, n_keys);
                product(&mut d_v, head_dim, p, d_o_rows, shape, 1.0, Accumulate::Add);
                let d_s = View::columns(&d_scores, n_keys);
                product(&mut d_k, head_dim, d_s, q, shape, 1.0, Accumulate::Add);
                let first =
                    if key == document.start { Accumulate::Overwrite } else { Accumulate::Add };
                let d_s = View::rows(&d_scores, n_keys);
                let k = head.rows(head.k_at(key));
                let shape = [n_queries, head_dim, n_keys];
                // SAFETY: This task alone writes the query heads of its group, in its document.
                unsafe {
                    product_at(d_qkv, head.q_at(query), heads.qkv_width(), d_s, k, shape, first);
                }
            }
        }
        let head = Head { heads, index: group.start, qkv };
        for i in 0..n_keys {
            for (gradient, at) in [(&d_k, head.k_at(key + i)), (&d_v, head.v_at(key + i))] {
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
