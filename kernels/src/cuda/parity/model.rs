//! The ops of heads, of the classifier and of generation.

use half::bf16;

use super::{
    Case, Check, Effort, check_bf16, check_equal, check_f32, normal, normal_f32, rounded, wide,
    wide_f32,
};
use crate::attention::{Heads, reference as attention};
use crate::cross_entropy::cuda::{DeviceLoss, Gradients, Scratch, Targets};
use crate::cross_entropy::{self, IGNORE, Loss};
use crate::cuda::{Buffer, Device, Error};
use crate::decode::cuda::{LayerCache, Step};
use crate::isa::Isa;
use crate::philox::Philox;
use crate::qk_norm_rope::cuda::{DeviceTable, Positions, QkNormRope};
use crate::qk_norm_rope::{Table, reference as qk_norm_rope};
use crate::sampling::cuda::Adjustment;
use crate::sampling::{self, Policy, Sampler};
use crate::{decode, matmul};

const EPS: f32 = 1e-6;
const THETA: f64 = 1e4;

pub(super) fn cases(effort: Effort) -> Vec<Case> {
    let full = effort == Effort::Full;
    let mut cases = Vec::new();
    let heads = |n_heads, n_kv_heads, head_dim| Heads { n_heads, n_kv_heads, head_dim };
    let mut shapes = vec![
        (heads(1, 1, 64), 1, 1.0),
        (heads(3, 1, 128), 5, 1.0),
        (heads(2, 2, 64), 13, 1e3),
        (heads(2, 1, 128), 3, 1e-3),
    ];
    if full {
        shapes.push((heads(24, 8, 128), 3000, 1.0));
    }
    for (heads, t, magnitude) in shapes {
        let shape = format!("{t} of {heads:?}");
        cases.push(Case::new("qk_norm_rope", shape, move |device| {
            norm_and_rotate(device, heads, t, magnitude)
        }));
    }
    let mut shapes = vec![(1, 8, 8, 1), (5, 32, 2056, 2), (7, 16, 64, 3)];
    if full {
        shapes.push((300, 512, 8192, 128));
    }
    for (t, d, v, rows) in shapes {
        let shape = format!("{t}x{d} to {v}, {rows} rows at once");
        cases.push(Case::new("cross_entropy", shape, move |device| {
            classifier(device, [t, d, v], rows)
        }));
    }
    let vocabs = [1, 7, 1000, 3001].into_iter().chain([49_152].into_iter().filter(|_| full));
    for vocab in vocabs {
        cases.push(Case::new("sampling", format!("{vocab} tokens"), move |device| {
            let mut checks = draws(device, vocab)?;
            checks.extend(adjusted(device, vocab)?);
            Ok(checks)
        }));
    }
    let mut shapes = vec![
        (heads(1, 1, 64), vec![1]),
        (heads(3, 1, 128), vec![16, 17, 1]),
        (heads(4, 2, 64), vec![5, 200, 33]),
    ];
    if full {
        shapes.push((heads(24, 8, 128), (1..33).map(|i| i * 40).collect()));
    }
    for (heads, counts) in shapes {
        let shape = format!("{counts:?} of {heads:?}");
        cases.push(Case::new("decode", shape, move |device| paged(device, heads, &counts)));
    }
    cases
}

fn norm_and_rotate(
    device: &dyn Device,
    heads: Heads,
    t: usize,
    magnitude: f64,
) -> Result<Vec<Check>, Error> {
    // Two documents, so that a position differs from its token's index.
    let starts: Vec<u32> = (0..t).map(|i| if i >= t / 2 { t as u32 / 2 } else { 0 }).collect();
    let at: Vec<u32> = (0..t as u32).zip(&starts).map(|(i, start)| i - start).collect();
    let settings =
        qk_norm_rope::Settings { heads, theta: THETA, eps: f64::from(EPS), starts: &starts };
    let len = t * heads.qkv_width();
    let (qkv, d_out) = (normal("qkv", len, magnitude), normal("d_out", len, 1.0));
    let gains = normal("gains", 2 * heads.head_dim, 1.0);
    let (q_gain, k_gain) = gains.split_at(heads.head_dim);
    let (q_gain, k_gain) = (wide(q_gain), wide(k_gain));

    let table = DeviceTable::new(device, &Table::new(THETA, heads.head_dim, t))?;
    let positions = Positions::new(device, &at, &table, &Buffer::poisoned(device, t)?)?;
    let d_gains_buffer = Buffer::of(device, &gains)?;
    let op = QkNormRope {
        heads,
        gains: &d_gains_buffer,
        eps: EPS,
        positions: &positions,
        table: &table,
    };
    let input = Buffer::of(device, &qkv)?;
    let out = Buffer::poisoned(device, len)?;
    let rstd = Buffer::poisoned(device, t * (heads.n_heads + heads.n_kv_heads))?;
    op.forward(device, &input, &out, &rstd)?;
    let exact = qk_norm_rope::forward(&settings, &wide(&qkv), &q_gain, &k_gain);
    let mut checks = vec![check_bf16("out", &out.read(device)?, &exact, &rounded(&exact))];

    let (exact_d, mut exact_q, exact_k) =
        qk_norm_rope::backward(&settings, &wide(&d_out), &wide(&qkv), &q_gain, &k_gain);
    exact_q.extend(exact_k);
    let before = normal_f32("d_gains", exact_q.len(), 1.0);
    let exact_gains: Vec<f64> = exact_q.iter().zip(wide_f32(&before)).map(|(a, b)| a + b).collect();
    let (d_qkv, d_gains) = (Buffer::of(device, &d_out)?, Buffer::of(device, &before)?);
    let scratch = Buffer::poisoned(device, QkNormRope::backward_scratch_len(heads))?;
    op.backward(device, &d_qkv, &input, &rstd, &d_qkv, &d_gains, &scratch)?;
    checks.push(check_bf16("d_qkv", &d_qkv.read(device)?, &exact_d, &rounded(&exact_d)));
    let terms = 32.0 + ((t * heads.n_heads) as f64).sqrt();
    checks.push(check_f32("d_gains", &d_gains.read(device)?, &exact_gains, terms));
    op.forward(device, &input, &input, &rstd)?;
    checks.push(check_equal("in place", &input.read(device)?, &out.read(device)?));
    Ok(checks)
}

fn classifier(
    device: &dyn Device,
    [t, d, v]: [usize; 3],
    rows: usize,
) -> Result<Vec<Check>, Error> {
    let loss = Loss { z_loss: 1e-2, scale: 0.25 };
    let (x, w) = (normal("x", t * d, 1.0), normal("w", v * d, 1.0));
    let targets: Vec<u32> =
        (0..t).map(|i| if i % 5 == 3 { IGNORE } else { (i * i % v) as u32 }).collect();
    let scratch = Scratch {
        logits: Buffer::poisoned(device, rows * v)?,
        d_logits: Buffer::poisoned(device, rows * v)?,
        nll: Buffer::poisoned(device, t)?,
        lse: Buffer::poisoned(device, t)?,
        sums: Buffer::poisoned(device, 2)?,
    };
    let on_device = Targets::new(device, &targets, v, &Buffer::poisoned(device, t)?)?;
    let (d_x, d_w0) = (Buffer::poisoned(device, t * d)?, normal_f32("d_w", v * d, 1e-2));
    let d_w = Buffer::of(device, &d_w0)?;
    let inputs = [&Buffer::of(device, &x)?, &Buffer::of(device, &w)?];
    let gradients = Gradients { d_x: &d_x, d_w: &d_w };
    let of_step = DeviceLoss::new(device, loss, &Buffer::poisoned(device, 2)?)?;
    cross_entropy::cuda::linear(device, inputs, &on_device, &of_step, gradients, &scratch)?;
    let sums = cross_entropy::cuda::sums(device, &on_device, &scratch)?;

    let (x, w) = (wide(&x), wide(&w));
    let (nll, lse) = cross_entropy::reference::forward(&x, &w, &targets);
    let scale = f64::from(loss.scale);
    let (exact_x, exact_w) =
        cross_entropy::reference::backward(&x, &w, &targets, f64::from(loss.z_loss), scale);
    let low = naive_d_logits(&x, &w, &targets, [t, d, v], loss);
    let naive_x = rounded(&matmul::reference::nn(&low, &w, t, d, v));
    let naive_w = matmul::reference::tn(&low, &x, v, d, t);
    let sum =
        |a: &[f64]| -> Vec<f64> { a.iter().zip(wide_f32(&d_w0)).map(|(a, b)| a + b).collect() };
    let got_w = d_w.read(device)?;
    let (exact_w, naive_w) = (sum(&exact_w), sum(&naive_w));
    let mut checks = vec![
        check_f32("nll", &scratch.nll.read(device)?, &nll, 64.0),
        check_f32("lse", &scratch.lse.read(device)?, &lse, 64.0),
        check_bf16("d_x", &d_x.read(device)?, &exact_x, &naive_x),
        Check {
            what: "d_w",
            error: super::largest_error(&wide_f32(&got_w), &exact_w),
            limit: 2.0 * super::largest_error(&naive_w, &exact_w) + 1e-6 * super::largest(&exact_w),
            digest: blake3::hash(bytemuck::cast_slice(&got_w)),
        },
    ];
    let exact_sums = [nll.iter().sum::<f64>(), lse.iter().map(|x| x * x).sum()];
    let error = super::largest_error(&[sums.nll, sums.z], &exact_sums);
    let limit = 1e-5 * super::largest(&exact_sums);
    let digest = blake3::hash(&sums.nll.to_le_bytes());
    checks.push(Check { what: "sums", error, limit, digest });
    let again = cross_entropy::cuda::linear_forward(device, inputs, &on_device, &scratch)?;
    checks.push(check_equal("nll alone", &again, &scratch.nll.read(device)?));
    Ok(checks)
}

/// The logits' gradient rounded to bf16, as it enters the products.
fn naive_d_logits(
    x: &[f64],
    w: &[f64],
    targets: &[u32],
    [t, d, v]: [usize; 3],
    loss: Loss,
) -> Vec<f64> {
    let mut logits = matmul::reference::nt(x, w, t, v, d);
    let (scale, z_loss) = (f64::from(loss.scale), f64::from(loss.z_loss));
    for (row, &target) in logits.chunks_exact_mut(v).zip(targets) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
        for (id, x) in (0..).zip(row.iter_mut()) {
            let hit = if id == target { scale } else { 0.0 };
            *x = scale * (1.0 + 2.0 * z_loss * lse) * (*x - lse).exp() - hit;
            *x = if target == IGNORE { 0.0 } else { bf16::from_f64(*x).to_f64() };
        }
    }
    logits
}

/// Tokens of many policies, which equal those of the CPU.
fn draws(device: &dyn Device, vocab: usize) -> Result<Vec<Check>, Error> {
    const ROWS: usize = 6;
    let stride = vocab.next_multiple_of(4);
    let policy = |temperature, top_k, top_p| Policy { temperature, top_k, top_p };
    let policies = [
        policy(1.0, 0, 1.0),
        policy(0.7, 50, 1.0),
        policy(1.0, 0, 0.9),
        policy(1.3, 5, 0.5),
        policy(0.01, 1, 1e-6),
    ];
    let mut logits = normal_f32("logits", ROWS * stride, 4.0);
    // Equal logits, of which only some stay; a row without a distribution; one with -inf.
    for x in &mut logits[stride..2 * stride] {
        *x = (*x * 0.5).round();
    }
    logits[2 * stride + vocab / 2] = f32::NAN;
    logits[3 * stride] = f32::NEG_INFINITY;
    let rng = Philox::new(9, "draws");
    let buffer = Buffer::of(device, &logits)?;
    let mut checks = Vec::new();
    for (n, policy) in policies.iter().enumerate() {
        let forks: Vec<Philox> = (0..ROWS).map(|row| rng.fork((n * ROWS + row) as u64)).collect();
        let streams: Vec<u64> =
            forks.iter().flat_map(|&fork| sampling::cuda::stream(fork)).collect();
        let positions: Vec<u64> = (0..ROWS as u64).map(|row| row << 33 | row).collect();
        let tokens = Buffer::poisoned(device, ROWS)?;
        let random = [&Buffer::of(device, &streams)?, &Buffer::of(device, &positions)?];
        sampling::cuda::draw(device, &buffer, vocab, policy, random, &tokens)?;
        let mut sampler = Sampler::new(Isa::best());
        let expected: Vec<u32> = (0..ROWS)
            .map(|row| {
                let random = forks[row].u64(positions[row]);
                sampler
                    .draw(&logits[row * stride..][..vocab], policy, random)
                    .unwrap_or(sampling::cuda::NO_TOKEN)
            })
            .collect();
        checks.push(check_equal("tokens", &tokens.read(device)?, &expected));
    }
    Ok(checks)
}

/// Suppressed and penalized logits and the likeliest tokens, which equal those of the CPU.
fn adjusted(device: &dyn Device, vocab: usize) -> Result<Vec<Check>, Error> {
    const ROWS: usize = 6;
    let stride = vocab.next_multiple_of(4);
    let mut logits = normal_f32("logits", ROWS * stride, 4.0);
    // Equal logits, the first of which counts, 0 and -0 among them; rows without a distribution.
    for x in &mut logits[stride..2 * stride] {
        *x = (*x * 0.2).round().min(0.0);
    }
    logits[2 * stride + vocab / 2] = f32::NAN;
    logits[3 * stride..4 * stride].fill(f32::NEG_INFINITY);
    logits[4 * stride + vocab / 3] = f32::INFINITY;
    let ids = |row: usize| -> Vec<u32> {
        (0..vocab as u32).filter(|id| *id as usize % (row + 1) == row).collect()
    };
    let lists: Vec<Vec<u32>> = (0..ROWS).map(ids).collect();
    let mut checks = Vec::new();
    let mut some = vec![vocab as u32 / 2, vocab as u32 - 1];
    some.dedup();
    for suppressed in [vec![], some] {
        let seen: Vec<&[u32]> = lists.iter().map(Vec::as_slice).collect();
        let scratch = [vocab, ROWS * vocab, ROWS + 1].map(|len| Buffer::poisoned(device, len));
        let [a, b, c] = scratch;
        let (buffer, tokens) = (Buffer::of(device, &logits)?, Buffer::poisoned(device, ROWS)?);
        let rule = (vocab, 1.3);
        Adjustment::new(device, &suppressed, &seen, rule, [&a?, &b?, &c?])?
            .apply(device, &buffer)?;
        sampling::cuda::greedy(device, &buffer, vocab, &tokens)?;
        let mut expected = logits.clone();
        let mut likeliest = Vec::new();
        for (row, seen) in expected.chunks_exact_mut(stride).zip(&seen) {
            for &id in &suppressed {
                row[id as usize] = f32::NEG_INFINITY;
            }
            sampling::penalize(row, seen, 1.3);
            let token = sampling::greedy(&row[..vocab]);
            likeliest.push(token.unwrap_or(sampling::cuda::NO_TOKEN));
        }
        let bits = |x: Vec<f32>| -> Vec<u32> { x.into_iter().map(f32::to_bits).collect() };
        checks.push(check_equal("adjusted", &bits(buffer.read(device)?), &bits(expected)));
        checks.push(check_equal("likeliest", &tokens.read(device)?, &likeliest));
    }
    Ok(checks)
}

/// Rows of several sequences whose pages lie in no order, against attention over whole streams.
fn paged(device: &dyn Device, heads: Heads, counts: &[usize]) -> Result<Vec<Check>, Error> {
    const PAGE: usize = 16;
    let n_pages: usize = counts.iter().map(|count| count.div_ceil(PAGE)).sum::<usize>() + 2;
    let order = Philox::new(4, "pages").permutation(n_pages);
    let mut unused = order.iter().map(|&page| page as u32);
    let tables: Vec<Vec<u32>> =
        counts.iter().map(|count| unused.by_ref().take(count.div_ceil(PAGE)).collect()).collect();
    let cache = LayerCache {
        keys: Buffer::poisoned(device, LayerCache::len_of(heads, n_pages))?,
        values: Buffer::poisoned(device, LayerCache::len_of(heads, n_pages))?,
    };
    let width = heads.qkv_width();
    let streams: Vec<Vec<bf16>> = (counts.iter().enumerate())
        .map(|(i, count)| normal(&format!("stream {i}"), count * width, 1.0))
        .collect();
    let longest = counts.iter().copied().max().unwrap_or(0);
    let rows_max = counts.len().max(1);
    let scratch = [rows_max, rows_max * longest.div_ceil(PAGE), rows_max]
        .map(|len| Buffer::poisoned(device, len));
    let [slots, pages, lengths] = scratch;
    let scratch = [&slots?, &pages?, &lengths?];
    // Position by position, sequences that are at their end leave.
    for position in 0..longest {
        let live: Vec<usize> = (0..counts.len()).filter(|&i| position < counts[i]).collect();
        let rows: Vec<(&[u32], usize)> =
            live.iter().map(|&i| (tables[i].as_slice(), position + 1)).collect();
        let step = Step::new(device, &rows, n_pages, scratch)?;
        let qkv: Vec<bf16> =
            live.iter().flat_map(|&i| &streams[i][position * width..][..width]).copied().collect();
        decode::cuda::write(device, &Buffer::of(device, &qkv)?, heads, &step, &cache)?;
    }
    let rows: Vec<(&[u32], usize)> =
        tables.iter().zip(counts).map(|(pages, &count)| (pages.as_slice(), count)).collect();
    let step = Step::new(device, &rows, n_pages, scratch)?;
    let qkv: Vec<bf16> =
        streams.iter().flat_map(|stream| &stream[stream.len() - width..]).copied().collect();
    let out = Buffer::poisoned(device, counts.len() * heads.q_width())?;
    decode::cuda::attend(device, &Buffer::of(device, &qkv)?, heads, &step, &cache, &out)?;
    let exact: Vec<f64> = streams
        .iter()
        .zip(counts)
        .flat_map(|(stream, &count)| {
            let (out, _) = attention::forward(&wide(stream), heads, &vec![0; count]);
            out[(count - 1) * heads.q_width()..].to_vec()
        })
        .collect();
    Ok(vec![check_bf16("out", &out.read(device)?, &exact, &rounded(&exact))])
}
