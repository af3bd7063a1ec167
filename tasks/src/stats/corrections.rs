//! Corrections of p-values for being several.

/// Indices in ascending order of their p-values; equal ones keep their order.
fn ascending(p: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    order
}

/// P-values under which rejecting below a level keeps the chance of any false rejection at it.
///
/// # Source
/// Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6, 1979.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut adjusted = vec![0.0; p.len()];
    let mut floor = 0.0_f64;
    for (rank, i) in ascending(p).into_iter().enumerate() {
        floor = floor.max((p.len() - rank) as f64 * p[i]).min(1.0);
        adjusted[i] = floor;
    }
    adjusted
}

/// P-values under which rejecting below a level keeps the expected share of false rejections at it.
///
/// # Source
/// Benjamini and Hochberg, "Controlling the false discovery rate", J. R. Statist. Soc. B 57, 1995.
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let mut adjusted = vec![0.0; p.len()];
    let mut ceiling = 1.0_f64;
    for (rank, i) in ascending(p).into_iter().enumerate().rev() {
        ceiling = ceiling.min(p.len() as f64 / (rank + 1) as f64 * p[i]);
        adjusted[i] = ceiling;
    }
    adjusted
}
