//! Attention of single queries over the paged key-value cache.

#![expect(clippy::inline_always, reason = "a call would leave the caller's instruction set")]

use super::cache::{Cache, PAGE, Sequence, Shape};
use super::linear::Line;
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::isa::{Arith, Isa, per_isa};
use crate::lanes::{self, N_LANES, exp};
use crate::qk_norm_rope::Table;

/// Positions times heads that pay for handing work to another thread.
const GRAIN: usize = 256;

/// One token to compute: where its key and value go, and so what it may attend to.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The sequence, with room for `position`.
    pub sequence: &'a Sequence,
    /// The token's position; it attends to `0..=position`.
    pub position: usize,
}

/// The rows of one step, with their pages.
pub struct Step {
    rows: Vec<Place>,
    /// Page tables of the rows, one after another.
    pages: Vec<u32>,
}

struct Place {
    first_page: usize,
    position: usize,
}

/// What attention needs of one layer.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// Index of the layer.
    pub index: usize,
    /// Query heads; a multiple of the cache's key-value heads.
    pub n_heads: usize,
    /// Gains of the queries' RMS norm, `[head_dim]`.
    pub q_gain: &'a [f32],
    /// Gains of the keys' RMS norm, `[head_dim]`.
    pub k_gain: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
    /// The rotation of every position.
    pub table: &'a Table,
}

impl Step {
    /// Plans a step.
    ///
    /// # Panics
    /// When a row lies outside its sequence, two rows share a place, or a row's page is shared by
    /// several sequences.
    pub fn new(cache: &Cache, rows: &[Row<'_>]) -> Self {
        let mut step = Self { rows: Vec::with_capacity(rows.len()), pages: Vec::new() };
        let mut places = Vec::with_capacity(rows.len());
        for row in rows {
            assert!(row.position < row.sequence.len(), "the sequence has room for the row");
            let page = row.sequence.pages[row.position / PAGE];
            assert!(cache.is_private(page), "a page that is written belongs to one sequence");
            places.push((page, row.position % PAGE));
            step.rows.push(Place { first_page: step.pages.len(), position: row.position });
            step.pages.extend(&row.sequence.pages[..=row.position / PAGE]);
        }
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0] != pair[1]), "rows have places of their own");
        step
    }

    /// Rows of the step.
    pub fn n_rows(&self) -> usize {
        self.rows.len()
    }
}

impl Layer<'_> {
    fn check(&self, shape: Shape, n_rows: usize, qkv: &[f32]) {
        let (n_kv_heads, head_dim) = (shape.n_kv_heads, shape.head_dim);
        assert!(self.index < shape.n_layers, "the cache has the layer");
        assert_eq!(self.n_heads % n_kv_heads, 0, "query heads share key-value heads evenly");
        assert_eq!(qkv.len(), n_rows * (self.n_heads + 2 * n_kv_heads) * head_dim, "shape of qkv");
        assert!(
            head_dim % 2 == 0 && self.q_gain.len() == head_dim && self.k_gain.len() == head_dim
        );
    }
}

/// Normalizes and rotates the queries and keys of every row in place, and puts keys and values into
/// the cache.
///
/// `qkv`: `[rows, (n_heads + 2 n_kv_heads) head_dim]`, a row being queries, keys, values.
///
/// # Panics
/// When shapes disagree or a position has no rotation.
pub fn append(pool: &Pool, cache: &mut Cache, step: &Step, layer: &Layer<'_>, qkv: &mut [f32]) {
    let shape = cache.shape();
    layer.check(shape, step.n_rows(), qkv);
    let width = qkv.len() / step.n_rows().max(1);
    // A row is little work: only larger steps are worth several threads.
    let chunk_rows = if step.n_rows() < 16 { 16 } else { 4 };
    pool.for_chunks(qkv, chunk_rows * width.max(1), |chunk, qkv| {
        for (place, qkv) in step.rows[chunk * chunk_rows..].iter().zip(qkv.chunks_exact_mut(width))
        {
            let (q, kv) = qkv.split_at_mut(layer.n_heads * shape.head_dim);
            let k = &mut kv[..shape.n_kv_heads * shape.head_dim];
            let turn = layer.table.row(place.position);
            normalize_rotate(pool.isa(), q, layer.q_gain, layer.eps, turn);
            normalize_rotate(pool.isa(), k, layer.k_gain, layer.eps, turn);
        }
    });
    for (place, qkv) in step.rows.iter().zip(qkv.chunks_exact(width.max(1))) {
        let page = step.pages[place.first_page + place.position / PAGE];
        let kv = &qkv[layer.n_heads * shape.head_dim..];
        let (keys, values) = kv.split_at(shape.n_kv_heads * shape.head_dim);
        let heads = keys.chunks_exact(shape.head_dim).zip(values.chunks_exact(shape.head_dim));
        for (kv_head, (k, v)) in heads.enumerate() {
            let lines = cache.head_mut(page, layer.index, kv_head);
            write(lines, place.position % PAGE, shape, k, v);
        }
    }
}

/// Writes one position of one head of a page.
fn write(lines: &mut [Line], lane: usize, shape: Shape, k: &[f32], v: &[f32]) {
    let (keys, values) = lines.split_at_mut(shape.head_dim);
    for (line, &k) in keys.iter_mut().zip(k) {
        line.0[lane] = k;
    }
    let values = &mut values[lane * shape.value_lines()..][..shape.value_lines()];
    for (line, v) in values.iter_mut().zip(v.chunks(16)) {
        line.0[..v.len()].copy_from_slice(v);
    }
}

per_isa! {
    /// `x = rotate(x * gain / rms(x))` for each head in `x`, pairs `(i, i + head_dim / 2)`.
    fn normalize_rotate<M>(x: &mut [f32], gain: &[f32], eps: f32, turn: (&[f32], &[f32])) {
        let (cos, sin) = turn;
        for x in x.chunks_exact_mut(gain.len()) {
            let scale = 1.0 / (lanes::dot::<M>(x, x) / x.len() as f32 + eps).sqrt();
            let (left, right) = x.split_at_mut(cos.len());
            let (left_gain, right_gain) = gain.split_at(cos.len());
            for i in 0..cos.len() {
                let (a, b) = (left[i] * scale * left_gain[i], right[i] * scale * right_gain[i]);
                left[i] = a * cos[i] - b * sin[i];
                right[i] = b * cos[i] + a * sin[i];
            }
        }
    }
}

/// Writes the attention output of every row: softmax of scaled scores, times the values.
///
/// `qkv` as [`append`] left it; `out`: `[rows, n_heads * head_dim]`.
///
/// # Panics
/// When shapes disagree.
pub fn attend(
    pool: &Pool,
    cache: &Cache,
    step: &Step,
    layer: &Layer<'_>,
    qkv: &[f32],
    out: &mut [f32],
) {
    let shape = cache.shape();
    layer.check(shape, step.n_rows(), qkv);
    let width = qkv.len() / step.n_rows().max(1);
    let q_width = layer.n_heads * shape.head_dim;
    assert_eq!(out.len(), step.n_rows() * q_width, "shape of out");
    let group = layer.n_heads / shape.n_kv_heads * shape.head_dim;
    let n_items = step.n_rows() * shape.n_kv_heads;
    let work: usize = step.rows.iter().map(|row| row.position * layer.n_heads).sum();
    let n_tasks = (work / GRAIN).clamp(1, 8 * pool.n_threads()).min(n_items.max(1));
    let out = Disjoint::new(out);
    pool.for_each(n_tasks, |task| {
        let mut scores = Vec::new();
        for item in task * n_items / n_tasks..(task + 1) * n_items / n_tasks {
            let (row, kv_head) = (item / shape.n_kv_heads, item % shape.n_kv_heads);
            let place = &step.rows[row];
            let pages = &step.pages[place.first_page..][..=place.position / PAGE];
            let pages: Vec<&[Line]> =
                pages.iter().map(|&page| cache.head(page, layer.index, kv_head)).collect();
            let query = Query {
                q: &qkv[row * width + kv_head * group..][..group],
                n_positions: place.position + 1,
                head_dim: shape.head_dim,
                value_lines: shape.value_lines(),
            };
            let at = row * q_width + kv_head * group;
            // SAFETY: No other item writes these elements.
            let out = unsafe { out.slice(at..at + group) };
            query.run(pool.isa(), &pages, &mut scores, out);
        }
    });
}

/// The queries of one row that share a key-value head.
#[derive(Clone, Copy)]
struct Query<'a> {
    q: &'a [f32],
    n_positions: usize,
    head_dim: usize,
    value_lines: usize,
}

impl Query<'_> {
    fn run(self, isa: Isa, pages: &[&[Line]], scores: &mut Vec<Line>, out: &mut [f32]) {
        scores.resize(2 * pages.len(), Line([0.0; 16]));
        let pairs = 2 * self.head_dim;
        for (q, out) in self.q.chunks(pairs).zip(out.chunks_mut(pairs)) {
            if q.len() == pairs {
                two_heads(isa, self, q, pages, scores, out);
            } else {
                one_head(isa, self, q, pages, scores, out);
            }
        }
    }
}

per_isa! {
    fn two_heads<M>(query: Query<'_>, q: &[f32], pages: &[&[Line]], scores: &mut [Line], out: &mut [f32]) {
        heads::<2, M>(query, q, pages, scores, out);
    }
}

per_isa! {
    fn one_head<M>(query: Query<'_>, q: &[f32], pages: &[&[Line]], scores: &mut [Line], out: &mut [f32]) {
        heads::<1, M>(query, q, pages, scores, out);
    }
}

/// `H` queries at a time, so that keys and values are read once for them: scores of all positions,
/// softmax, weighted sum of values.
#[inline(always)]
fn heads<const H: usize, M: Arith>(
    query: Query<'_>,
    q: &[f32],
    pages: &[&[Line]],
    scores: &mut [Line],
    out: &mut [f32],
) {
    let dim = query.head_dim;
    let q: [&[f32]; H] = std::array::from_fn(|h| &q[h * dim..(h + 1) * dim]);
    let scale = 1.0 / (dim as f32).sqrt();
    let n = pages.len();
    let mut done = 0;
    while n - done >= 4 {
        let lines = score::<H, 4, M>(q, [0, 1, 2, 3].map(|i| pages[done + i]), scale);
        for (h, lines) in lines.iter().enumerate() {
            scores[h * n + done..][..4].copy_from_slice(lines);
        }
        done += 4;
    }
    for done in done..n {
        for h in 0..H {
            [[scores[h * n + done]]] = score::<1, 1, M>([q[h]], [pages[done]], scale);
        }
    }
    // Not by `array::from_fn`: its closure would be compiled without the caller's instruction set.
    let mut totals = [0.0; H];
    for h in 0..H {
        totals[h] = softmax::<M>(&mut scores[h * n..(h + 1) * n], query.n_positions);
    }
    let weights: [&[Line]; H] = std::array::from_fn(|h| &scores[h * n..(h + 1) * n]);
    let mut line = 0;
    while line < query.value_lines {
        let first = line * 16;
        let mut store = |h: usize, sums: &[Line]| {
            let out = &mut out[h * dim..(h + 1) * dim][first..];
            for (out, &sum) in out.iter_mut().zip(sums.iter().flat_map(|line| &line.0)) {
                *out = sum / totals[h];
            }
        };
        if query.value_lines - line >= 4 {
            let sums = weigh::<H, 4, M>(query, pages, weights, line);
            sums.iter().enumerate().for_each(|(h, sums)| store(h, sums));
            line += 4;
        } else {
            for (h, &weights) in weights.iter().enumerate() {
                let [sums] = weigh::<1, 1, M>(query, pages, [weights], line);
                store(h, &sums);
            }
            line += 1;
        }
    }
}

/// Scaled scores of `P` pages for `H` queries; a score is one chain over the dimensions.
///
/// Loops over indices of arrays: written with iterators it compiles to single numbers instead of
/// lines.
#[inline(always)]
fn score<const H: usize, const P: usize, M: Arith>(
    q: [&[f32]; H],
    pages: [&[Line]; P],
    scale: f32,
) -> [[Line; P]; H] {
    let n = q[0].len();
    let q = q.map(|q| &q[..n]);
    let keys = pages.map(|page| &page[..n]);
    let mut sums = [[[0.0_f32; 16]; P]; H];
    for i in 0..n {
        for p in 0..P {
            let key = &keys[p][i].0;
            for h in 0..H {
                for j in 0..16 {
                    sums[h][p][j] = M::mul_add(q[h][i], key[j], sums[h][p][j]);
                }
            }
        }
    }
    sums.map(|sums| sums.map(|sums| Line(sums.map(|sum| sum * scale))))
}

/// Replaces scores by `e^(score - max)` and gives their sum; places past the end get 0.
#[inline(always)]
fn softmax<M: Arith>(scores: &mut [Line], n_positions: usize) -> f32 {
    if let Some(last) = scores.last_mut() {
        let used = n_positions - (n_positions - 1) / PAGE * PAGE;
        last.0[used..].fill(f32::NEG_INFINITY);
    }
    let mut max = f32::NEG_INFINITY;
    for line in &*scores {
        let line = lanes::max(&line.0);
        max = if line > max { line } else { max };
    }
    let mut sums = [0.0_f32; N_LANES];
    for line in scores {
        for (sum, score) in sums.iter_mut().zip(&mut line.0) {
            // Below -87 the exponential is 0, so places past the end weigh nothing.
            *score = exp::<M>(*score - max);
            *sum += *score;
        }
    }
    lanes::fold(sums, 0.0)
}

/// Weighted sums of `L` lines of the values from `line` on, for `H` queries; a sum is one chain over
/// the positions.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "as in `score`")]
fn weigh<const H: usize, const L: usize, M: Arith>(
    query: Query<'_>,
    pages: &[&[Line]],
    weights: [&[Line]; H],
    line: usize,
) -> [[Line; L]; H] {
    let mut sums = [[[0.0_f32; 16]; L]; H];
    for (at, page) in pages.iter().enumerate() {
        let values = page[query.head_dim..].chunks_exact(query.value_lines);
        for (j, values) in values.take(PAGE).enumerate() {
            let values = &values[line..line + L];
            for l in 0..L {
                for h in 0..H {
                    let weight = weights[h][at].0[j];
                    for k in 0..16 {
                        sums[h][l][k] = M::mul_add(weight, values[l].0[k], sums[h][l][k]);
                    }
                }
            }
        }
    }
    sums.map(|sums| sums.map(Line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Philox;

    const SHAPE: Shape = Shape { n_layers: 2, n_kv_heads: 2, head_dim: 24 };
    const N_HEADS: usize = 6;
    const WIDTH: usize = (N_HEADS + 2 * 2) * 24;
    const OUT: usize = N_HEADS * 24;

    struct World {
        gains: [Vec<f32>; 2],
        table: Table,
    }

    impl World {
        fn new() -> Self {
            let rng = Philox::new(5, "attention");
            let gains =
                [0, 100].map(|at| (0..24).map(|i| 0.5 + rng.uniform(at + i) as f32).collect());
            Self { gains, table: Table::new(100.0, 24, 100) }
        }

        fn layer(&self, index: usize) -> Layer<'_> {
            let [q_gain, k_gain] = &self.gains;
            Layer { index, n_heads: N_HEADS, q_gain, k_gain, eps: 1e-6, table: &self.table }
        }

        /// The definition, in `f64`: every row of one sequence, from the first.
        fn reference(&self, qkv: &[f32]) -> Vec<f64> {
            let n = qkv.len() / WIDTH;
            let head = |row: usize, head: usize| &qkv[row * WIDTH + head * 24..][..24];
            let turn = |x: &[f32], gain: &[f32], position: usize| -> Vec<f64> {
                let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 24.0;
                let scale = 1.0 / (mean + 1e-6).sqrt();
                let x: Vec<f64> = x
                    .iter()
                    .zip(gain)
                    .map(|(&x, &g)| f64::from(x) * f64::from(g) * scale)
                    .collect();
                let angle = |i: usize| position as f64 * 100_f64.powf(-((i % 12) as f64) / 12.0);
                (0..24)
                    .map(|i| {
                        let other = if i < 12 { -x[i + 12] } else { x[i - 12] };
                        x[i] * angle(i).cos() + other * angle(i).sin()
                    })
                    .collect()
            };
            let mut out = Vec::new();
            for (row, h) in (0..n).flat_map(|row| (0..N_HEADS).map(move |h| (row, h))) {
                let kv = h / (N_HEADS / 2);
                let q = turn(head(row, h), &self.gains[0], row);
                let scores: Vec<f64> = (0..=row)
                    .map(|j| {
                        let k = turn(head(j, N_HEADS + kv), &self.gains[1], j);
                        q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / 24_f64.sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..24).map(|i| {
                    let value = |j| f64::from(head(j, N_HEADS + 2 + kv)[i]);
                    weights.iter().enumerate().map(|(j, w)| w * value(j)).sum::<f64>() / total
                }));
            }
            out
        }
    }

    fn random_qkv(n: usize) -> Vec<f32> {
        let rng = Philox::new(9, "qkv");
        (0..n * WIDTH).map(|i| rng.normal(i as u64) as f32).collect()
    }

    /// Runs the rows of one sequence in steps of the given sizes.
    fn in_steps(pool: &Pool, qkv: &[f32], sizes: &[usize]) -> Vec<f32> {
        let world = World::new();
        let mut cache = Cache::new(SHAPE, 16);
        let mut sequence = cache.start();
        let mut out = vec![0.0; qkv.len() / WIDTH * OUT];
        let mut at = 0;
        for &n in sizes {
            cache.extend(&mut sequence, n).unwrap();
            let rows: Vec<Row<'_>> =
                (at..at + n).map(|position| Row { sequence: &sequence, position }).collect();
            let step = Step::new(&cache, &rows);
            let mut qkv = qkv[at * WIDTH..][..n * WIDTH].to_vec();
            append(pool, &mut cache, &step, &world.layer(1), &mut qkv);
            let out = &mut out[at * OUT..][..n * OUT];
            attend(pool, &cache, &step, &world.layer(1), &qkv, out);
            at += n;
        }
        out
    }

    #[test]
    fn agrees_with_the_definition() {
        let qkv = random_qkv(83);
        let expected = World::new().reference(&qkv);
        for isa in Isa::available() {
            let out = in_steps(&Pool::with_isa(2, isa), &qkv, &[83]);
            for (i, (&out, &expected)) in out.iter().zip(&expected).enumerate() {
                // Values are of order 1 and averaged: a few units of the last place.
                let error = (f64::from(out) - expected).abs();
                assert!(error < 5e-6, "{} at {i}: {out}, not {expected}", isa.name());
            }
        }
    }

    #[test]
    fn steps_and_threads_do_not_matter() {
        let qkv = random_qkv(70);
        for isa in Isa::available() {
            let pool = |n_threads| Pool::with_isa(n_threads, isa);
            let whole = in_steps(&pool(1), &qkv, &[70]);
            assert!(whole == in_steps(&pool(3), &qkv, &[70]));
            assert!(whole == in_steps(&pool(2), &qkv, &[1; 70]));
            assert!(whole == in_steps(&pool(2), &qkv, &[15, 1, 17, 37]));
        }
    }

    #[test]
    fn a_fork_goes_on_as_its_parent_would() {
        let (world, pool, qkv) = (World::new(), Pool::new(1), random_qkv(40));
        let expected = in_steps(&pool, &qkv, &[21, 19]);
        let mut cache = Cache::new(SHAPE, 16);
        let mut prompt = cache.start();
        cache.extend(&mut prompt, 21).unwrap();
        let run = |cache: &mut Cache, sequence: &Sequence, from: usize, to: usize| {
            let rows: Vec<Row<'_>> =
                (from..to).map(|position| Row { sequence, position }).collect();
            let step = Step::new(cache, &rows);
            let mut qkv = qkv[from * WIDTH..to * WIDTH].to_vec();
            let mut out = vec![0.0; (to - from) * OUT];
            append(&pool, cache, &step, &world.layer(1), &mut qkv);
            attend(&pool, cache, &step, &world.layer(1), &qkv, &mut out);
            out
        };
        run(&mut cache, &prompt, 0, 21);
        for _ in 0..2 {
            let mut fork = cache.fork(&prompt).unwrap();
            cache.extend(&mut fork, 19).unwrap();
            assert!(run(&mut cache, &fork, 21, 40) == expected[21 * OUT..]);
        }
    }
}
