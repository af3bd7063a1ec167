//! The ops that work on elements and rows.

use half::bf16;

use super::{
    Case, Check, Effort, check_bf16, check_equal, check_f32, normal, normal_f32, rounded, wide,
    wide_f32,
};
use crate::adamw::{self, AdamW, Factors};
use crate::cuda::{Buffer, Device, Error};
use crate::{Pool, embedding, norm, rms_norm, swiglu};

const EPS: f32 = 1e-6;

pub(super) fn cases(effort: Effort) -> Vec<Case> {
    let full = effort == Effort::Full;
    let mut cases = Vec::new();
    let shapes = [(1, 8, 1.0), (3, 64, 1.0), (5, 520, 1e3), (2, 1096, 1e-3), (300, 24, 1.0)];
    let large = [(4096, 3072, 1.0), (1, 8192, 1.0), (1000, 4096, 30.0)];
    // More columns than registers keep.
    for (rows, cols) in [(2, 8200), (1, 16_384)] {
        cases.push(Case::new("rms_norm", format!("{rows}x{cols} forward"), move |device| {
            rms_norm_forward(device, rows, cols, 1.0)
        }));
    }
    for (rows, cols, magnitude) in shapes.into_iter().chain(large.into_iter().filter(|_| full)) {
        cases.push(Case::new("rms_norm", format!("{rows}x{cols}"), move |device| {
            let mut checks = rms_norm_forward(device, rows, cols, magnitude)?;
            checks.extend(rms_norm_backward(device, rows, cols, magnitude)?);
            Ok(checks)
        }));
    }
    let shapes = [(1, 8, 1.0), (3, 264, 3.0), (2, 2056, 30.0)];
    for (rows, hidden, magnitude) in
        shapes.into_iter().chain([(4096, 8064, 1.0)].into_iter().filter(|_| full))
    {
        cases.push(Case::new("swiglu", format!("{rows}x{hidden}"), move |device| {
            swiglu_both(device, rows, hidden, magnitude)
        }));
    }
    for len in [4, 1028, 5000].into_iter().chain([10_000_000].into_iter().filter(|_| full)) {
        cases.push(Case::new("adamw", format!("{len}"), move |device| adamw_steps(device, len)));
    }
    for len in [1, 5, 32_768, 100_003].into_iter().chain([50_000_001].into_iter().filter(|_| full))
    {
        cases.push(Case::new("norm", format!("{len}"), move |device| norm_of(device, len)));
    }
    for (tokens, vocab, cols) in [(1, 1, 8), (7, 5, 520), (100, 30, 64)] {
        let shape = format!("{tokens} of {vocab}x{cols}");
        cases.push(Case::new("embedding", shape, move |device| {
            embedding_both(device, tokens, vocab, cols)
        }));
    }
    cases
}

fn rms_norm_forward(
    device: &dyn Device,
    rows: usize,
    cols: usize,
    magnitude: f64,
) -> Result<Vec<Check>, Error> {
    let (x, delta) = (normal("x", rows * cols, magnitude), normal("delta", rows * cols, magnitude));
    let gain = normal("gain", cols, 1.0);
    let eps = f64::from(EPS);
    let exact = |x: &[f64]| rms_norm::reference::forward(x, &wide(&gain), eps);
    // The naive evaluation rounds the normalized row before it is scaled, as Hugging Face does.
    let naive = |x: &[f64]| {
        let normed = rounded(&rms_norm::reference::forward(x, &vec![1.0; cols], eps));
        let scaled = normed.iter().zip(wide(&gain).into_iter().cycle()).map(|(x, g)| x * g);
        rounded(&scaled.collect::<Vec<_>>())
    };
    let gains = Buffer::of(device, &gain)?;
    let (y, rstd) = (Buffer::poisoned(device, x.len())?, Buffer::poisoned(device, rows)?);
    rms_norm::cuda::forward(device, &Buffer::of(device, &x)?, &gains, EPS, &y, &rstd)?;
    let exact_rstd: Vec<f64> =
        wide(&x).chunks_exact(cols).map(|row| rms_norm::reference::rstd(row, eps)).collect();
    let mut checks = vec![
        check_bf16("y", &y.read(device)?, &exact(&wide(&x)), &naive(&wide(&x))),
        check_f32("rstd", &rstd.read(device)?, &exact_rstd, 8.0),
    ];
    let sum: Vec<bf16> =
        x.iter().zip(&delta).map(|(x, d)| bf16::from_f32(x.to_f32() + d.to_f32())).collect();
    let residual = Buffer::of(device, &x)?;
    let (y, rstd) = (Buffer::poisoned(device, x.len())?, Buffer::poisoned(device, rows)?);
    let delta = Buffer::of(device, &delta)?;
    rms_norm::cuda::add_forward(device, [&residual, &delta, &residual], &gains, EPS, &y, &rstd)?;
    checks.push(check_equal("sum", &residual.read(device)?, &sum));
    let (exact, naive) = (exact(&wide(&sum)), naive(&wide(&sum)));
    checks.push(check_bf16("y of the sum", &y.read(device)?, &exact, &naive));
    Ok(checks)
}

fn rms_norm_backward(
    device: &dyn Device,
    rows: usize,
    cols: usize,
    magnitude: f64,
) -> Result<Vec<Check>, Error> {
    let (x, d_y) = (normal("x", rows * cols, magnitude), normal("d_y", rows * cols, 1.0));
    let gain = normal("gain", cols, 1.0);
    let (d_x0, d_gain0) =
        (normal("d_x", rows * cols, 1.0 / magnitude), normal_f32("d_gain", cols, 1.0));
    let eps = f64::from(EPS);
    let rstd: Vec<f32> =
        wide(&x).chunks_exact(cols).map(|row| rms_norm::reference::rstd(row, eps) as f32).collect();
    let (d_x, d_gain) = (Buffer::of(device, &d_x0)?, Buffer::of(device, &d_gain0)?);
    let scratch = Buffer::poisoned(device, rms_norm::cuda::backward_scratch_len(rows, cols))?;
    rms_norm::cuda::backward(
        device,
        &Buffer::of(device, &d_y)?,
        &Buffer::of(device, &x)?,
        &Buffer::of(device, &gain)?,
        &Buffer::of(device, &rstd)?,
        &d_x,
        &d_gain,
        &scratch,
    )?;
    let (exact_x, exact_gain) =
        rms_norm::reference::backward(&wide(&d_y), &wide(&x), &wide(&gain), eps);
    let sum = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let exact = sum(&exact_x, &wide(&d_x0));
    let naive = rounded(&sum(&rounded(&exact_x), &wide(&d_x0)));
    let exact_gain = sum(&exact_gain, &wide_f32(&d_gain0));
    let terms = 16.0 + (rows as f64).sqrt();
    Ok(vec![
        check_bf16("d_x", &d_x.read(device)?, &exact, &naive),
        check_f32("d_gain", &d_gain.read(device)?, &exact_gain, terms),
    ])
}

fn swiglu_both(
    device: &dyn Device,
    rows: usize,
    hidden: usize,
    magnitude: f64,
) -> Result<Vec<Check>, Error> {
    let gate_up = normal("gate_up", 2 * rows * hidden, magnitude);
    let d_out = normal("d_out", rows * hidden, 1.0);
    let input = Buffer::of(device, &gate_up)?;
    let out = Buffer::poisoned(device, rows * hidden)?;
    swiglu::cuda::forward(device, &input, hidden, &out)?;
    let exact = swiglu::reference::forward(&wide(&gate_up), hidden);
    let mut checks = vec![check_bf16("out", &out.read(device)?, &exact, &rounded(&exact))];
    let exact = swiglu::reference::backward(&wide(&d_out), &wide(&gate_up), hidden);
    let d_out = Buffer::of(device, &d_out)?;
    let d_gate_up = Buffer::poisoned(device, gate_up.len())?;
    swiglu::cuda::backward(device, &d_out, &input, hidden, &d_gate_up)?;
    checks.push(check_bf16("d_gate_up", &d_gate_up.read(device)?, &exact, &rounded(&exact)));
    swiglu::cuda::backward(device, &d_out, &input, hidden, &input)?;
    checks.push(check_equal("in place", &input.read(device)?, &d_gate_up.read(device)?));
    Ok(checks)
}

/// Three steps, which equal those of the CPU bit for bit.
fn adamw_steps(device: &dyn Device, len: usize) -> Result<Vec<Check>, Error> {
    let settings = AdamW { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let pool = Pool::new(1);
    let mut params = normal_f32("params", len, 1.0);
    let (mut m, mut v) = (normal_f32("m", len, 1e-3), vec![1e-6_f32; len]);
    let (d_params, d_m) = (Buffer::of(device, &params)?, Buffer::of(device, &m)?);
    let (d_v, rounded) = (Buffer::of(device, &v)?, Buffer::poisoned(device, len)?);
    let state = adamw::cuda::State { params: &d_params, rounded: &rounded, m: &d_m, v: &d_v };
    for step in 1..=3 {
        let grads = normal_f32(&format!("grads {step}"), len, 1e-3);
        adamw::step(&pool, &mut params, &grads, &mut m, &mut v, settings, step, 0.5);
        let factors = Buffer::of(device, &[Factors::of(settings, step, 0.5)])?;
        adamw::cuda::step(device, state, &Buffer::of(device, &grads)?, &factors)?;
    }
    let low: Vec<bf16> = params.iter().map(|&p| bf16::from_f32(p)).collect();
    Ok(vec![
        check_equal("params", &d_params.read(device)?, &params),
        check_equal("rounded", &rounded.read(device)?, &low),
        check_equal("m", &d_m.read(device)?, &m),
        check_equal("v", &d_v.read(device)?, &v),
    ])
}

fn norm_of(device: &dyn Device, len: usize) -> Result<Vec<Check>, Error> {
    let x = normal_f32("x", len, 1.0);
    let scratch = Buffer::poisoned(device, norm::cuda::scratch_len(len))?;
    let sum = norm::cuda::sum_of_squares(device, &Buffer::of(device, &x)?, &scratch)?;
    let exact = norm::reference(&wide_f32(&x));
    Ok(vec![Check {
        what: "sum of squares",
        error: (sum - exact).abs(),
        limit: 1e-6 * exact,
        digest: blake3::hash(&sum.to_le_bytes()),
    }])
}

fn embedding_both(
    device: &dyn Device,
    tokens: usize,
    vocab: usize,
    cols: usize,
) -> Result<Vec<Check>, Error> {
    let pool = Pool::new(1);
    let table = normal("table", vocab * cols, 1.0);
    let ids: Vec<u32> = (0..tokens).map(|t| (t * t % vocab) as u32).collect();
    let d_out = normal("d_out", tokens * cols, 1.0);
    let scratch = [tokens, tokens, 3 * tokens].map(|len| Buffer::poisoned(device, len));
    let [a, b, c] = scratch;
    let on_device = embedding::cuda::Ids::new(device, &ids, vocab, [&a?, &b?, &c?])?;
    let out = Buffer::poisoned(device, tokens * cols)?;
    embedding::cuda::forward(device, &Buffer::of(device, &table)?, &on_device, &out)?;
    let expected: Vec<bf16> =
        ids.iter().flat_map(|&id| &table[id as usize * cols..][..cols]).copied().collect();
    let mut d_table = normal_f32("d_table", vocab * cols, 1.0);
    let on_device_table = Buffer::of(device, &d_table)?;
    embedding::cuda::backward(device, &on_device, &Buffer::of(device, &d_out)?, &on_device_table)?;
    let d_out: Vec<f32> = d_out.iter().map(|x| x.to_f32()).collect();
    embedding::backward(&pool, &ids, &d_out, &mut d_table);
    Ok(vec![
        check_equal("out", &out.read(device)?, &expected),
        check_equal("d_table", &on_device_table.read(device)?, &d_table),
    ])
}
