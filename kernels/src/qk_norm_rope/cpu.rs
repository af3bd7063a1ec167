//! Vector code over tiles of tokens. Gradients of the gains are summed per tile, then over tiles in
//! order.

use super::QkNormRope;
use crate::Pool;
use crate::disjoint::Disjoint;
use crate::isa::per_isa;
use crate::lanes::{dot, dot3};
use crate::rms_norm::add;

/// Tokens that one task computes. It fixes the order of sums in the gradients of the gains.
const TILE_TOKENS: usize = 64;

pub(super) fn forward(
    pool: &Pool,
    op: &QkNormRope<'_>,
    qkv: &[f32],
    out: &mut [f32],
    rstd: &mut [f32],
) {
    let width = op.heads.qkv_width();
    let n_normed = op.heads.n_heads + op.heads.n_kv_heads;
    let out = Disjoint::new(out);
    pool.for_chunks(rstd, TILE_TOKENS * n_normed, |tile, rstd| {
        for (i, rstd) in rstd.chunks_exact_mut(n_normed).enumerate() {
            let t = tile * TILE_TOKENS + i;
            // SAFETY: Each tile has its own rows.
            let out = unsafe { out.slice(t * width..(t + 1) * width) };
            forward_token(pool.isa(), op, t, &qkv[t * width..(t + 1) * width], out, rstd);
        }
    });
}

pub(super) fn backward(
    pool: &Pool,
    op: &QkNormRope<'_>,
    d_out: &[f32],
    qkv: &[f32],
    rstd: &[f32],
    d_qkv: &mut [f32],
    [d_q_gain, d_k_gain]: [&mut [f32]; 2],
) {
    let (width, head_dim) = (op.heads.qkv_width(), op.heads.head_dim);
    let n_normed = op.heads.n_heads + op.heads.n_kv_heads;
    let n_tokens = op.starts.len();
    let mut partial = vec![0.0; n_tokens.div_ceil(TILE_TOKENS) * 2 * head_dim];
    let d_qkv = Disjoint::new(d_qkv);
    pool.for_chunks(&mut partial, 2 * head_dim, |tile, d_gains| {
        for t in tile * TILE_TOKENS..n_tokens.min((tile + 1) * TILE_TOKENS) {
            let row = t * width..(t + 1) * width;
            // SAFETY: Each tile has its own rows.
            let d_qkv = unsafe { d_qkv.slice(row.clone()) };
            let rstd = &rstd[t * n_normed..(t + 1) * n_normed];
            let input = [&d_out[row.clone()], &qkv[row], rstd];
            backward_token(pool.isa(), op, t, input, d_qkv, d_gains);
        }
    });
    for part in partial.chunks_exact(2 * head_dim) {
        add(pool.isa(), d_q_gain, &part[..head_dim]);
        add(pool.isa(), d_k_gain, &part[head_dim..]);
    }
}

per_isa! {
    fn forward_token<M>(
        op: &QkNormRope<'_>,
        t: usize,
        qkv: &[f32],
        out: &mut [f32],
        rstd: &mut [f32],
    ) {
        let head_dim = op.heads.head_dim;
        let half = head_dim / 2;
        let (cos, sin) = op.table.row(t - op.starts[t] as usize);
        // Lengths that the compiler can see are equal spare a check for each element.
        let (cos, sin) = (&cos[..half], &sin[..half]);
        for (h, rstd) in rstd.iter_mut().enumerate() {
            let gain = if h < op.heads.n_heads { op.q_gain } else { op.k_gain };
            let (x, gain) = (&qkv[h * head_dim..][..head_dim], &gain[..head_dim]);
            *rstd = 1.0 / (dot::<M>(x, x) / head_dim as f32 + op.eps).sqrt();
            let (a, b) = x.split_at(half);
            let (a_gain, b_gain) = gain.split_at(half);
            let (a_out, b_out) = out[h * head_dim..][..head_dim].split_at_mut(half);
            let (b, b_gain, b_out) = (&b[..half], &b_gain[..half], &mut b_out[..half]);
            for i in 0..half {
                let a = a[i] * *rstd * a_gain[i];
                let b = b[i] * *rstd * b_gain[i];
                a_out[i] = M::mul_add(a, cos[i], -(b * sin[i]));
                b_out[i] = M::mul_add(b, cos[i], a * sin[i]);
            }
        }
        let values = rstd.len() * head_dim;
        out[values..].copy_from_slice(&qkv[values..]);
    }
}

per_isa! {
    fn backward_token<M>(
        op: &QkNormRope<'_>,
        t: usize,
        input: [&[f32]; 3],
        d_qkv: &mut [f32],
        d_gains: &mut [f32],
    ) {
        let [d_out, qkv, rstd] = input;
        let head_dim = op.heads.head_dim;
        let half = head_dim / 2;
        let (cos, sin) = op.table.row(t - op.starts[t] as usize);
        // Lengths that the compiler can see are equal spare a check for each element.
        let (cos, sin) = (&cos[..half], &sin[..half]);
        let (d_q_gain, d_k_gain) = d_gains.split_at_mut(head_dim);
        for (h, &rstd) in rstd.iter().enumerate() {
            let (gain, d_gain) = if h < op.heads.n_heads {
                (op.q_gain, &mut *d_q_gain)
            } else {
                (op.k_gain, &mut *d_k_gain)
            };
            let (a, b) = d_out[h * head_dim..][..head_dim].split_at(half);
            let (x, gain) = (&qkv[h * head_dim..][..head_dim], &gain[..head_dim]);
            let d_x = &mut d_qkv[h * head_dim..][..head_dim];
            let (b, d_gain) = (&b[..half], &mut d_gain[..head_dim]);
            // First `d_x` holds the gradient of the normalized head: the rotation turned back.
            let (d_a, d_b) = d_x.split_at_mut(half);
            let d_b = &mut d_b[..half];
            for i in 0..half {
                d_a[i] = M::mul_add(a[i], cos[i], b[i] * sin[i]);
                d_b[i] = M::mul_add(b[i], cos[i], -(a[i] * sin[i]));
            }
            let mean = dot3::<M>(d_x, gain, x) / head_dim as f32;
            let pull = rstd * rstd * rstd * mean;
            for i in 0..head_dim {
                d_gain[i] = M::mul_add(d_x[i], x[i] * rstd, d_gain[i]);
                d_x[i] = M::mul_add(rstd, d_x[i] * gain[i], -(x[i] * pull));
            }
        }
        let values = rstd.len() * head_dim;
        d_qkv[values..].copy_from_slice(&d_out[values..]);
    }
}
