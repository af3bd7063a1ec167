//! Centring and whitening by principal components.

use kernels::Pool;

/// Directions whose variance is below this share of the largest are noise of the arithmetic.
const VARIANCE_MIN: f64 = 1e-9;
/// QL needs about two steps for an eigenvalue; this many mean that the matrix holds NaN.
const QL_STEPS_MAX: usize = 60;

/// Centres `rows`, `[n, width]`, and gives their coordinates along the `dim` directions of largest
/// variance, each scaled to variance 1, with `dim`.
///
/// Rows that `skip` names do not count and come out as zeros. Without `dim`, every direction in which
/// the rows vary is kept.
///
/// # Errors
/// When the rows vary in fewer than `dim` directions, or in none.
pub(super) fn whiten(
    pool: &Pool,
    rows: &[f64],
    width: usize,
    dim: Option<usize>,
    skip: impl Fn(usize) -> bool + Sync,
) -> Result<(Vec<f32>, usize), String> {
    let n = rows.len() / width;
    let counted: Vec<usize> = (0..n).filter(|&i| !skip(i)).collect();
    let n_counted = counted.len().max(1) as f64;
    let row = |i: usize| &rows[i * width..][..width];
    let mut mean = vec![0.0; width];
    for &i in &counted {
        for (mean, x) in mean.iter_mut().zip(row(i)) {
            *mean += x / n_counted;
        }
    }
    let mut covariance = vec![0.0; width * width];
    pool.for_chunks(&mut covariance, width, |a, out| {
        for &i in &counted {
            let row = row(i);
            let x = (row[a] - mean[a]) / n_counted;
            for ((out, y), mean) in out.iter_mut().zip(row).zip(&mean) {
                *out += x * (y - mean);
            }
        }
    });
    let (values, vectors) = eigen(covariance, width);
    let largest = values.first().copied().unwrap_or(0.0);
    let rank = values.iter().filter(|&&v| v > 0.0 && v >= VARIANCE_MIN * largest).count();
    let dim = dim.unwrap_or(rank);
    if rank == 0 || dim > rank {
        return Err(format!(
            "{} documents vary in {rank} directions of the model's {width}; {dim} are asked for",
            counted.len()
        ));
    }
    let mut out = vec![0.0_f32; n * dim];
    pool.for_chunks(&mut out, dim, |i, out| {
        if skip(i) {
            return;
        }
        for (k, out) in out.iter_mut().enumerate() {
            let vector = &vectors[k * width..][..width];
            let coordinate: f64 =
                row(i).iter().zip(&mean).zip(vector).map(|((x, mean), v)| (x - mean) * v).sum();
            *out = (coordinate / values[k].sqrt()) as f32;
        }
    });
    Ok((out, dim))
}

/// Eigenvalues in descending order and unit eigenvectors as rows, of a symmetric matrix.
///
/// Householder reflections to tridiagonal form, then implicit QL steps.
///
/// # Source
/// Golub and Van Loan, "Matrix Computations", sections 8.3 and 8.4.
fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0.0; n * n];
    for i in 0..n {
        vectors[i * n + i] = 1.0;
    }
    let (mut diagonal, mut off) = tridiagonalize(&mut a, n, &mut vectors);
    ql(&mut diagonal, &mut off, n, &mut vectors);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]).then(i.cmp(&j)));
    let values = order.iter().map(|&i| diagonal[i]).collect();
    let sorted = order.iter().flat_map(|&i| vectors[i * n..][..n].to_vec()).collect();
    (values, sorted)
}

/// Reduces `a` to `diagonal` and `off` (`off[i]` couples `i` and `i + 1`); applies the reflections to
/// the rows of `q`.
fn tridiagonalize(a: &mut [f64], n: usize, q: &mut [f64]) -> (Vec<f64>, Vec<f64>) {
    let mut off = vec![0.0; n];
    for k in 0..n.saturating_sub(1) {
        let mut v: Vec<f64> = (k + 1..n).map(|i| a[i * n + k]).collect();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let alpha = if v[0] > 0.0 { -norm } else { norm };
        off[k] = alpha;
        v[0] -= alpha;
        let square = v.iter().map(|x| x * x).sum::<f64>();
        if square <= 0.0 {
            continue;
        }
        // The trailing block becomes H B H with H = I - 2 v v^T / |v|^2.
        let m = n - k - 1;
        let scale = 2.0 / square;
        let block = |i: usize| (k + 1 + i) * n + k + 1;
        let mut p: Vec<f64> = (0..m)
            .map(|i| scale * a[block(i)..][..m].iter().zip(&v).map(|(x, v)| x * v).sum::<f64>())
            .collect();
        let half = 0.5 * scale * p.iter().zip(&v).map(|(p, v)| p * v).sum::<f64>();
        p.iter_mut().zip(&v).for_each(|(p, v)| *p -= half * v);
        for i in 0..m {
            let row = &mut a[block(i)..][..m];
            for ((x, v_j), p_j) in row.iter_mut().zip(&v).zip(&p) {
                *x -= v[i] * p_j + p[i] * v_j;
            }
        }
        let mut shadow = vec![0.0; n];
        for (i, v) in v.iter().enumerate() {
            let row = &q[(k + 1 + i) * n..][..n];
            shadow.iter_mut().zip(row).for_each(|(s, x)| *s += scale * v * x);
        }
        for (i, v) in v.iter().enumerate() {
            let row = &mut q[(k + 1 + i) * n..][..n];
            row.iter_mut().zip(&shadow).for_each(|(x, s)| *x -= v * s);
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), off)
}

/// Diagonalizes; rotates the rows of `q` along.
fn ql(d: &mut [f64], e: &mut [f64], n: usize, q: &mut [f64]) {
    for l in 0..n {
        for step in 0.. {
            let negligible = |m: usize| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs());
            let m = (l..n - 1).find(|&m| negligible(m)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            assert!(step < QL_STEPS_MAX, "the covariance holds values that are not finite");
            let g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let mut g = d[m] - d[l] + e[l] / (g + g.hypot(1.0).copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut split = false;
            for i in (l..m).rev() {
                let (f, b) = (s * e[i], c * e[i]);
                let r = f64::hypot(f, g);
                e[i + 1] = r;
                if r == 0.0 {
                    // The matrix falls apart here: take what was subtracted and start over.
                    d[i + 1] -= p;
                    e[m] = 0.0;
                    split = true;
                    break;
                }
                (s, c) = (f / r, g / r);
                let g_next = d[i + 1] - p;
                let r = (d[i] - g_next) * s + 2.0 * c * b;
                p = s * r;
                d[i + 1] = g_next + p;
                g = c * r - b;
                let (upper, lower) = q.split_at_mut((i + 1) * n);
                for (x, y) in upper[i * n..].iter_mut().zip(&mut lower[..n]) {
                    let f = *y;
                    *y = s * *x + c * f;
                    *x = c * *x - s * f;
                }
            }
            if !split {
                d[l] -= p;
                e[l] = g;
                e[m] = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kernels::philox::Philox;

    use super::*;

    #[test]
    fn eigenvectors_rebuild_the_matrix() {
        for n in [1, 2, 3, 8, 33] {
            let rng = Philox::new(n as u64, "symmetric");
            let mut a = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..=i {
                    a[i * n + j] = rng.normal((i * n + j) as u64);
                    a[j * n + i] = a[i * n + j];
                }
            }
            let (values, vectors) = eigen(a.clone(), n);
            assert!(values.is_sorted_by(|x, y| x >= y));
            for i in 0..n {
                for j in 0..n {
                    let sum: f64 =
                        (0..n).map(|k| values[k] * vectors[k * n + i] * vectors[k * n + j]).sum();
                    assert!((sum - a[i * n + j]).abs() < 1e-12 * n as f64, "{n}: {i} {j}");
                }
            }
        }
    }

    #[test]
    fn degenerate_matrices_are_solved() {
        for a in [vec![0.0; 16], [1.0, 0.0, 0.0, 0.0].repeat(4), vec![1.0; 16]] {
            let a: Vec<f64> = (0..16).map(|i| f64::midpoint(a[i], a[i % 4 * 4 + i / 4])).collect();
            let (values, vectors) = eigen(a.clone(), 4);
            for (i, &expected) in a.iter().enumerate() {
                let sum: f64 = (0..4)
                    .map(|k| values[k] * vectors[k * 4 + i / 4] * vectors[k * 4 + i % 4])
                    .sum();
                assert!((sum - expected).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn whitened_rows_have_unit_covariance() {
        let (n, width) = (400, 12);
        let rng = Philox::new(2, "rows");
        let rows: Vec<f64> = (0..n * width)
            .map(|i| {
                3.0 + rng.normal(i as u64) * (1 + i % width) as f64 + rng.normal((i / width) as u64)
            })
            .collect();
        let (white, dim) = whiten(&Pool::new(2), &rows, width, Some(5), |i| i == 7).unwrap();
        assert_eq!((dim, white.len()), (5, n * 5));
        assert!(white[35..40].iter().all(|&x| x == 0.0));
        for a in 0..5 {
            for b in 0..5 {
                let covariance = white
                    .chunks_exact(5)
                    .map(|row| f64::from(row[a]) * f64::from(row[b]))
                    .sum::<f64>()
                    / (n - 1) as f64;
                let expected = if a == b { 1.0 } else { 0.0 };
                assert!((covariance - expected).abs() < 1e-4, "{a} {b} {covariance}");
            }
        }
    }

    #[test]
    fn too_many_dimensions_are_refused() {
        let rows: Vec<f64> = (0..30).map(|i| f64::from(i % 7)).collect();
        let error = whiten(&Pool::new(1), &rows, 10, Some(5), |_| false).unwrap_err();
        assert!(error.contains("3 documents vary in 2 directions"), "{error}");
        assert_eq!(whiten(&Pool::new(1), &rows, 10, None, |_| false).unwrap().1, 2);
    }
}
