//! Embeddings as a bench needs them: a hierarchical mixture with Zipf cluster sizes and few
//! intrinsic dimensions, of unit length.
//!
//! A row is the direction of `mean + topic + cluster + spread * (a local subspace of 12 dimensions +
//! isotropic noise)`; the spread is log-normal, so a cluster has a tight core and a loose halo. Of
//! 200,000 rows the inner product of a random pair is about 0.3 and that of a row and its 200th
//! neighbour about 0.6, as of documents under a text encoder.

use kernels::Pool;
use kernels::philox::Philox;

/// Dimensions that topics and clusters live in.
const GLOBAL: usize = 96;
const LOCAL: usize = 12;
const N_TOPICS: usize = 250;
const N_CLUSTERS: usize = 5000;
/// Rows of a work item.
const CHUNK_ROWS: usize = 256;

/// `n` rows of `columns` components.
pub(super) fn generate(pool: &Pool, n: usize, columns: usize, seed: u64) -> Vec<f32> {
    let world = World::new(columns, seed);
    let mut rows = vec![0.0; n * columns];
    pool.for_chunks(&mut rows, CHUNK_ROWS * columns, |chunk, rows| {
        for (i, row) in rows.chunks_exact_mut(columns).enumerate() {
            world.row((chunk * CHUNK_ROWS + i) as u64, row);
        }
    });
    rows
}

struct World {
    columns: usize,
    mean: Vec<f32>,
    /// `[N_TOPICS, columns]`.
    topics: Vec<f32>,
    /// `[N_CLUSTERS, columns]`.
    clusters: Vec<f32>,
    topic_of: Vec<usize>,
    /// `[N_TOPICS, LOCAL, columns]`.
    local: Vec<f32>,
    /// Share of the rows in clusters up to this one.
    cumulative: Vec<f64>,
    seed: u64,
}

impl World {
    fn new(columns: usize, seed: u64) -> Self {
        let basis = orthonormal(GLOBAL.min(columns), columns, seed);
        let global = |n: usize, purpose: &str| -> Vec<f32> {
            let mut rows = vec![0.0; n * columns];
            for (i, row) in rows.chunks_exact_mut(columns).enumerate() {
                let normals = Normals::new(seed, purpose, i as u64);
                for (j, basis) in basis.chunks_exact(columns).enumerate() {
                    // A decaying spectrum.
                    let weight = normals.at(j) / ((j + 1) as f32).sqrt();
                    add(row, basis, weight);
                }
                unit(row);
            }
            rows
        };
        let mut mean = normal_row(columns, seed, "mean", 0);
        unit(&mut mean);
        let mut local = Vec::with_capacity(N_TOPICS * LOCAL * columns);
        for i in 0..N_TOPICS * LOCAL {
            let mut row = normal_row(columns, seed, "local", i as u64);
            unit(&mut row);
            local.extend(row);
        }
        let rng = Philox::new(seed, "topic of cluster");
        let topic_of = (0..N_CLUSTERS as u64).map(|i| rng.below(i, N_TOPICS as u64) as usize);
        let mut cumulative: Vec<f64> = Vec::with_capacity(N_CLUSTERS);
        let mut sum = 0.0;
        for rank in 1..=N_CLUSTERS {
            sum += (rank as f64).powf(-0.8);
            cumulative.push(sum);
        }
        for share in &mut cumulative {
            *share /= sum;
        }
        Self {
            columns,
            mean,
            topics: global(N_TOPICS, "topics"),
            clusters: global(N_CLUSTERS, "clusters"),
            topic_of: topic_of.collect(),
            local,
            cumulative,
            seed,
        }
    }

    fn row(&self, i: u64, row: &mut [f32]) {
        let d = self.columns;
        let rng = Philox::new(self.seed, "rows").fork(i);
        let share = rng.uniform(0);
        let cluster = self.cumulative.partition_point(|&c| c < share).min(N_CLUSTERS - 1);
        let topic = self.topic_of[cluster];
        let spread = (-0.12 + 0.40 * rng.normal(1)).exp().clamp(0.15, 2.0) as f32;
        let normals = Normals::new(self.seed, "coordinates", i);
        let scale = 0.55 * spread / (d as f32).sqrt();
        for (c, x) in row.iter_mut().enumerate() {
            *x = scale * normals.at(LOCAL + c);
        }
        add(row, &self.mean, 0.35);
        add(row, &self.topics[topic * d..][..d], 0.55);
        add(row, &self.clusters[cluster * d..][..d], 0.75);
        for j in 0..LOCAL {
            let weight = 0.45 * spread * normals.at(j) / (LOCAL as f32).sqrt();
            add(row, &self.local[(topic * LOCAL + j) * d..][..d], weight);
        }
        unit(row);
    }
}

fn normal_row(columns: usize, seed: u64, purpose: &str, i: u64) -> Vec<f32> {
    let normals = Normals::new(seed, purpose, i);
    (0..columns).map(|c| normals.at(c)).collect()
}

/// Rows that are orthogonal to each other and of unit length (Gram-Schmidt).
fn orthonormal(n: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut rows: Vec<f32> = Vec::with_capacity(n * columns);
    for i in 0..n {
        let mut row = normal_row(columns, seed, "basis", i as u64);
        for other in rows.chunks_exact(columns) {
            let product = kernels::int8_search::dot(&row, other);
            add(&mut row, other, -product);
        }
        unit(&mut row);
        rows.extend(row);
    }
    rows
}

fn add(row: &mut [f32], other: &[f32], weight: f32) {
    row.iter_mut().zip(other).for_each(|(x, y)| *x += weight * y);
}

fn unit(row: &mut [f32]) {
    let inverse = 1.0 / kernels::int8_search::dot(row, row).sqrt();
    for x in row {
        *x *= inverse;
    }
}

/// Normal numbers in single precision, four from one block of random bits.
struct Normals(Philox);

impl Normals {
    fn new(seed: u64, purpose: &str, i: u64) -> Self {
        Self(Philox::new(seed, purpose).fork(i))
    }

    fn at(&self, i: usize) -> f32 {
        let bits = self.0.block(i as u64 / 4);
        let uniform = |bits: u32| ((bits >> 8) as f32 + 0.5) / (1 << 24) as f32;
        let pair = i / 2 % 2;
        let radius = (-2.0 * uniform(bits[2 * pair]).ln()).sqrt();
        let angle = std::f32::consts::TAU * uniform(bits[2 * pair + 1]);
        radius * if i.is_multiple_of(2) { angle.cos() } else { angle.sin() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_clustered_units_on_any_number_of_threads() {
        let rows = generate(&Pool::new(1), 600, 64, 7);
        assert_eq!(rows, generate(&Pool::new(3), 600, 64, 7));
        let product = |a: &[f32], b: &[f32]| kernels::int8_search::dot(a, b);
        let rows: Vec<&[f32]> = rows.chunks_exact(64).collect();
        assert!(rows.iter().all(|row| (product(row, row) - 1.0).abs() < 1e-5));
        let mut best: Vec<f32> = (0..100)
            .map(|i| {
                let others = (0..600).filter(|&j| j != i).map(|j| product(rows[i], rows[j]));
                others.fold(f32::NEG_INFINITY, f32::max)
            })
            .collect();
        best.sort_by(f32::total_cmp);
        let typical = product(rows[0], rows[1]) + product(rows[2], rows[3]);
        assert!(best[50] > 0.5 && typical / 2.0 < best[50], "{} {typical}", best[50]);
    }
}
