//! Spherical k-means over int8 rows.
//!
//! Both halves run on quantized numbers: rows find their centroid with the register tiles, and a
//! centroid is the direction of the sum of its rows as the scales give them back. Rows are taken in a
//! fixed order, so the centroids do not depend on the number of threads.

use super::cpu::Isa;
use super::values::Values;
use super::{Own, Rows, Search, search_all};
use crate::isa::per_isa;
use crate::philox::Philox;
use crate::{Pool, quantize};

/// Directions in int8, `[n, columns]`.
pub(super) struct Centroids {
    q: Vec<i8>,
    scales: Vec<f32>,
    columns: usize,
}

impl Centroids {
    pub(super) fn rows(&self) -> Rows<'_> {
        Rows { q: &self.q, scales: &self.scales, columns: self.columns, first_id: 0 }
    }

    /// Rows and their scales.
    pub(super) fn into_parts(self) -> (Vec<i8>, Vec<f32>) {
        (self.q, self.scales)
    }

    /// Finds `n` centroids of the rows that `sample` names, in `n_rounds` rounds from random rows.
    pub(super) fn find(
        pool: &Pool,
        rows: Rows<'_>,
        sample: &[u32],
        n: usize,
        n_rounds: usize,
        seed: u64,
    ) -> Self {
        assert!(n <= sample.len(), "{n} centroids of {} rows", sample.len());
        let columns = rows.columns;
        let sampled = gather(rows, sample);
        let sampled = sampled.rows();
        let rng = Philox::new(seed, "k-means");
        // The sample is in random order, so its first rows are random ones.
        let mut found = gather(sampled, &(0..n as u32).collect::<Vec<_>>());
        for round in 0..n_rounds {
            let packed = Values::pack(pool, found.rows());
            let nearest = nearest(pool, sampled, &packed);
            let mut means = sums(pool, sampled, &nearest, n);
            for (c, mean) in means.chunks_exact_mut(columns).enumerate() {
                let square: f64 = mean.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                if square > 0.0 {
                    let inverse = (1.0 / square.sqrt()) as f32;
                    for x in mean {
                        *x *= inverse;
                    }
                } else {
                    // A centroid without rows starts again from a random one.
                    let pick = rng.fork(round as u64).below(c as u64, sample.len() as u64);
                    let scale = sampled.scales[pick as usize];
                    let row = sampled.row(pick as usize);
                    mean.iter_mut().zip(row).for_each(|(x, &q)| *x = f32::from(q) * scale);
                }
            }
            quantize::rows(pool, &means, columns, &mut found.q, &mut found.scales);
        }
        found
    }
}

fn gather(rows: Rows<'_>, picks: &[u32]) -> Centroids {
    let mut q = Vec::with_capacity(picks.len() * rows.columns);
    for &pick in picks {
        q.extend_from_slice(rows.row(pick as usize));
    }
    let scales = picks.iter().map(|&pick| rows.scales[pick as usize]).collect();
    Centroids { q, scales, columns: rows.columns }
}

/// The value with the highest score of each row.
pub(super) fn nearest(pool: &Pool, rows: Rows<'_>, values: &Values) -> Vec<u32> {
    let search = Search { k: 1, min_score: f32::NEG_INFINITY, own: Own::Keep };
    let found = search_all(Isa::detect(), pool, rows, values, search, None);
    found.into_iter().map(|hits| hits[0].id).collect()
}

/// The sum of the rows of each of `n` groups, `[n, columns]`, in the order of rows.
pub(super) fn sums(pool: &Pool, rows: Rows<'_>, groups: &[u32], n: usize) -> Vec<f32> {
    let members = members(groups, n);
    let mut sums = vec![0.0; n * rows.columns];
    pool.for_chunks(&mut sums, rows.columns, |group, sum| {
        for &member in &members[group] {
            let member = member as usize;
            add_row(pool.isa(), sum, rows.row(member), rows.scales[member]);
        }
    });
    sums
}

/// The rows of each of `n` groups, ascending.
pub(super) fn members(groups: &[u32], n: usize) -> Vec<Vec<u32>> {
    let mut members = vec![Vec::new(); n];
    for (row, &group) in groups.iter().enumerate() {
        members[group as usize].push(row as u32);
    }
    members
}

per_isa! {
    /// `sum[c] += q[c] * scale`: a product and an addition, never fused.
    fn add_row<M>(sum: &mut [f32], q: &[i8], scale: f32) {
        for (sum, &q) in sum.iter_mut().zip(q) {
            *sum += f32::from(q) * scale;
        }
    }
}
