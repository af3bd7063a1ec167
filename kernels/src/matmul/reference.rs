//! The definitions, in `f64`.

/// `a[m, k] · b[n, k]^T`.
pub fn nt(a: &[f64], b: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
    product(m, n, k, |i, l| a[i * k + l], |l, j| b[j * k + l])
}

/// `a[m, k] · b[k, n]`.
pub fn nn(a: &[f64], b: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
    product(m, n, k, |i, l| a[i * k + l], |l, j| b[l * n + j])
}

/// `a[k, m]^T · b[k, n]`.
pub fn tn(a: &[f64], b: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
    product(m, n, k, |i, l| a[l * m + i], |l, j| b[l * n + j])
}

fn product(
    m: usize,
    n: usize,
    k: usize,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut c = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            c.push((0..k).map(|l| a(i, l) * b(l, j)).sum());
        }
    }
    c
}
