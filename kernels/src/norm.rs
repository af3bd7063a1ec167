//! The squared Euclidean norm of a buffer, for clipping gradients.

pub mod cuda;

use crate::Pool;
use crate::isa::per_isa;
use crate::lanes::N_LANES;

/// Elements that one task sums.
const TILE: usize = 1 << 15;
/// Elements summed in `f32` before the sum goes to `f64`.
const RUN: usize = 1024;

/// Returns `sum_i x[i]^2`: runs of 1,024 elements in `f32` lanes, runs in `f64`, in a fixed order.
pub fn sum_of_squares(pool: &Pool, x: &[f32]) -> f64 {
    let mut sums = vec![0.0_f64; x.len().div_ceil(TILE)];
    pool.for_chunks(&mut sums, 1, |i, sum| {
        let tile = &x[i * TILE..x.len().min((i + 1) * TILE)];
        sum[0] = tile_sum(pool.isa(), tile);
    });
    sums.iter().sum()
}

/// The definition.
pub fn reference(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

per_isa! {
    fn tile_sum<M>(x: &[f32]) -> f64 {
        let mut total = 0.0_f64;
        for run in x.chunks(RUN) {
            let (whole, tail) = run.as_chunks::<N_LANES>();
            let mut lanes = [0.0_f32; N_LANES];
            for chunk in whole {
                for j in 0..N_LANES {
                    lanes[j] = M::mul_add(chunk[j], chunk[j], lanes[j]);
                }
            }
            for lane in lanes {
                total += f64::from(lane);
            }
            for &x in tail {
                total += f64::from(x) * f64::from(x);
            }
        }
        total
    }
}
