//! Attention, forward by each tier and backward.

use half::bf16;

use super::{Case, Check, Effort, check_bf16, check_f32, normal, rounded, wide, wide_f32};
use crate::attention::cuda::{Documents, Saved, Tier, hopper};
use crate::attention::{Heads, cuda, reference};
use crate::cuda::{Buffer, Device, Error};

pub(super) fn cases(effort: Effort) -> Vec<Case> {
    let heads = |n_heads, n_kv_heads, head_dim| Heads { n_heads, n_kv_heads, head_dim };
    let mut shapes = vec![
        (heads(1, 1, 64), vec![1], 1.0),
        (heads(2, 1, 128), vec![1, 2, 1], 1.0),
        // A tile's end, one more, one less; documents that begin inside a tile and span several.
        (heads(2, 2, 64), vec![64], 1.0),
        (heads(1, 1, 128), vec![65], 3.0),
        (heads(3, 1, 64), vec![3, 60, 1, 70, 63], 1.0),
        (heads(2, 1, 128), vec![30, 130, 5], 1.0),
        (heads(1, 1, 64), vec![200], 30.0),
    ];
    if effort == Effort::Full {
        shapes.push((heads(4, 2, 64), vec![700, 5, 324], 1.0));
        shapes.push((heads(3, 1, 128), vec![1500], 1.0));
        shapes.push((heads(24, 8, 128), vec![100, 156], 1.0));
    }
    let warp = shapes.iter().cloned().map(|shape| {
        Case::new("attention", name(&shape), move |device| {
            Ok([forward(Tier::Warp, device, &shape)?, backward(device, &shape)?].concat())
        })
    });
    // Its tiles are of 128 rows; the last of these goes around its two stages of keys more than once.
    let more = [
        (heads(1, 1, 128), vec![128], 1.0),
        (heads(2, 1, 64), vec![129, 127], 1.0),
        (heads(1, 1, 64), vec![20, 650], 1.0),
    ];
    let warpgroup = shapes.iter().cloned().chain(more).map(|shape| {
        Case::new("attention_hopper", name(&shape), move |device| {
            forward(Tier::Warpgroup, device, &shape)
        })
        .only(&hopper::SOURCE)
    });
    warp.chain(warpgroup).collect()
}

/// Heads, lengths of the documents, and the magnitude of queries, keys and values.
type Shape = (Heads, Vec<usize>, f64);

fn name((heads, lengths, _): &Shape) -> String {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    format!("{n_heads}/{n_kv_heads} heads of {head_dim}, {lengths:?}")
}

fn starts_of(lengths: &[usize]) -> Vec<u32> {
    let mut starts = Vec::new();
    for &length in lengths {
        starts.extend(std::iter::repeat_n(starts.len() as u32, length));
    }
    starts
}

fn documents(device: &dyn Device, starts: &[u32]) -> Result<Documents, Error> {
    let [a, b] = [(); 2].map(|()| Buffer::poisoned(device, starts.len()));
    Documents::new(device, starts, [&a?, &b?])
}

fn forward(tier: Tier, device: &dyn Device, shape: &Shape) -> Result<Vec<Check>, Error> {
    let (heads, ref lengths, magnitude) = *shape;
    let starts = starts_of(lengths);
    let t = starts.len();
    let qkv = normal("qkv", t * heads.qkv_width(), magnitude);
    let input = Buffer::of(device, &qkv)?;
    let out = Buffer::poisoned(device, t * heads.q_width())?;
    let lse = Buffer::poisoned(device, t * heads.n_heads)?;
    let to = Saved { qkv: &input, out: &out, lse: &lse };
    cuda::forward_by(tier, device, to, heads, &documents(device, &starts)?)?;
    let qkv = wide(&qkv);
    let (exact, exact_lse) = reference::forward(&qkv, heads, &starts);
    let naive = Naive::new(&qkv, heads, &starts).forward();
    Ok(vec![
        check_bf16("out", &out.read(device)?, &exact, &naive),
        check_f32("lse", &lse.read(device)?, &exact_lse, 64.0),
    ])
}

/// The backward pass is checked on its own: from the right output, not from a kernel's.
fn backward(device: &dyn Device, shape: &Shape) -> Result<Vec<Check>, Error> {
    let (heads, ref lengths, magnitude) = *shape;
    let starts = starts_of(lengths);
    let t = starts.len();
    let qkv = normal("qkv", t * heads.qkv_width(), magnitude);
    let d_out = normal("d_out", t * heads.q_width(), 1.0);
    let (wide_qkv, wide_d) = (wide(&qkv), wide(&d_out));
    let (exact, exact_lse) = reference::forward(&wide_qkv, heads, &starts);
    let low = |x: &[f64]| -> Vec<bf16> { x.iter().map(|&x| bf16::from_f64(x)).collect() };
    let exact_low_lse: Vec<f32> = exact_lse.iter().map(|&x| x as f32).collect();
    let (input, d_out) = (Buffer::of(device, &qkv)?, Buffer::of(device, &d_out)?);
    let (out, lse) = (Buffer::of(device, &low(&exact))?, Buffer::of(device, &exact_low_lse)?);
    let d_qkv = Buffer::poisoned(device, qkv.len())?;
    let scratch = Buffer::poisoned(device, lse.len())?;
    let saved = Saved { qkv: &input, out: &out, lse: &lse };
    let documents = documents(device, &starts)?;
    cuda::backward(device, &d_out, saved, heads, &documents, &d_qkv, &scratch)?;
    let exact_d = reference::backward(&wide_d, &wide_qkv, heads, &starts);
    let naive = Naive::new(&wide_qkv, heads, &starts);
    let naive_d = naive.backward(&wide_d, &rounded(&exact), &wide_f32(&exact_low_lse));
    Ok(vec![check_bf16("d_qkv", &d_qkv.read(device)?, &exact_d, &naive_d)])
}

/// The textbook's evaluation in bf16: what goes into a product is rounded, and so are the results.
struct Naive<'a> {
    qkv: &'a [f64],
    heads: Heads,
    starts: &'a [u32],
}

impl<'a> Naive<'a> {
    fn new(qkv: &'a [f64], heads: Heads, starts: &'a [u32]) -> Self {
        Self { qkv, heads, starts }
    }

    /// Head `h`'s query, or the key or value that it reads, of token `i`.
    fn vector(&self, i: usize, h: usize, part: usize) -> &[f64] {
        let Heads { n_heads, n_kv_heads, head_dim } = self.heads;
        let at = match part {
            0 => h,
            1 => n_heads + h / self.heads.group_size(),
            _ => n_heads + n_kv_heads + h / self.heads.group_size(),
        };
        &self.qkv[i * self.heads.qkv_width() + at * head_dim..][..head_dim]
    }

    fn scores(&self, i: usize, h: usize) -> Vec<f64> {
        let scale = 1.0 / (self.heads.head_dim as f64).sqrt();
        (self.starts[i] as usize..=i)
            .map(|j| dot(self.vector(i, h, 0), self.vector(j, h, 1)) * scale)
            .collect()
    }

    fn forward(&self) -> Vec<f64> {
        let mut out = Vec::new();
        for i in 0..self.starts.len() {
            for h in 0..self.heads.n_heads {
                let scores = self.scores(i, h);
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let mass: f64 = weights.iter().sum();
                let weights = rounded(&weights.iter().map(|w| w / mass).collect::<Vec<_>>());
                out.extend((0..self.heads.head_dim).map(|c| {
                    let values = (self.starts[i] as usize..).map(|j| self.vector(j, h, 2)[c]);
                    weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>()
                }));
            }
        }
        rounded(&out)
    }

    fn backward(&self, d_out: &[f64], out: &[f64], lse: &[f64]) -> Vec<f64> {
        let Heads { n_heads, head_dim, .. } = self.heads;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let width = self.heads.qkv_width();
        let mut d_qkv = vec![0.0; self.qkv.len()];
        for i in 0..self.starts.len() {
            for h in 0..n_heads {
                let row = i * self.heads.q_width() + h * head_dim..;
                let (d_row, o_row) = (&d_out[row.clone()][..head_dim], &out[row][..head_dim]);
                let delta = dot(d_row, o_row);
                let kv = h / self.heads.group_size() * head_dim;
                let first = self.starts[i] as usize;
                for (j, score) in (first..).zip(self.scores(i, h)) {
                    let p = (score - lse[i * n_heads + h]).exp();
                    let d_p = dot(d_row, self.vector(j, h, 2));
                    let low = |x: f64| bf16::from_f64(x).to_f64();
                    let (d_s, p) = (low(p * (d_p - delta)), low(p));
                    let k_at = j * width + self.heads.q_width() + kv;
                    let v_at = k_at + self.heads.kv_width();
                    for c in 0..head_dim {
                        d_qkv[i * width + h * head_dim + c] +=
                            d_s * scale * self.vector(j, h, 1)[c];
                        d_qkv[k_at + c] += d_s * scale * self.vector(i, h, 0)[c];
                        d_qkv[v_at + c] += p * d_row[c];
                    }
                }
            }
        }
        rounded(&d_qkv)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
