//! The definitions, in `f64`.

/// `y`; see [`super::forward`].
pub fn forward(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(gain.len()) {
        let rstd = rstd(row, eps);
        y.extend(row.iter().zip(gain).map(|(x, gain)| x * rstd * gain));
    }
    y
}

/// (`d_x`, `d_gain`); see [`super::backward`].
pub fn backward(d_y: &[f64], x: &[f64], gain: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let n_cols = gain.len();
    let mut d_x = Vec::with_capacity(x.len());
    let mut d_gain = vec![0.0; n_cols];
    for (row, d_row) in x.chunks_exact(n_cols).zip(d_y.chunks_exact(n_cols)) {
        let rstd = rstd(row, eps);
        let mean = (0..n_cols).map(|c| d_row[c] * gain[c] * row[c]).sum::<f64>() / n_cols as f64;
        for c in 0..n_cols {
            d_x.push(rstd * (d_row[c] * gain[c] - row[c] * rstd * rstd * mean));
            d_gain[c] += d_row[c] * row[c] * rstd;
        }
    }
    (d_x, d_gain)
}

/// `1 / sqrt(mean(row^2) + eps)`.
pub fn rstd(row: &[f64], eps: f64) -> f64 {
    1.0 / (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + eps).sqrt()
}
