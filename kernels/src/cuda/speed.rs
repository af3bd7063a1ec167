//! How fast the kernels are on a GPU, beside what the GPU can do at best, measured in the same run.

use std::time::Instant;

use half::bf16;

use super::product::{Layout, Product, Target};
use super::{Buffer, Device, Error};
use crate::adamw::{self, AdamW, Factors};
use crate::attention::cuda::{Saved, Tier};
use crate::attention::{self, Heads};
use crate::cross_entropy::{self, Loss};
use crate::int8_search::{self, Own, Rows, Search};
use crate::matmul::Accumulate;
use crate::philox::Philox;
use crate::qk_norm_rope::Table;
use crate::qk_norm_rope::cuda::{DeviceTable, Positions, QkNormRope};
use crate::sampling::{self, Policy};
use crate::{decode, norm, rms_norm, swiglu};

/// Time that a measurement takes at least.
const SECONDS_MIN: f64 = 0.05;
/// Measurements, of which the median counts.
const N_ROUNDS: usize = 3;
/// The 3 B model of the paper (arXiv 2509.15248, table 11).
const D_MODEL: usize = 3072;
const D_FFN: usize = 8064;
const N_VOCAB: usize = 49_152;
const HEADS: Heads = Heads { n_heads: 24, n_kv_heads: 8, head_dim: 128 };

/// The same shapes in `PyTorch`: a program for `python3`, which prints a JSON object a line.
pub const TORCH_PEERS: &str = include_str!("torch_peers.py");

/// What a speed is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 10^12 floating-point operations a second.
    Tflops,
    /// 10^12 integer operations a second.
    Tops,
    /// 10^9 bytes a second.
    GbPerSecond,
}

impl Unit {
    /// The unit as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tflops => "TFLOP/s",
            Self::Tops => "TOPS",
            Self::GbPerSecond => "GB/s",
        }
    }
}

/// One measured speed.
#[derive(Clone, Debug)]
pub struct Speed {
    /// The op.
    pub op: &'static str,
    /// The shape, as a person reads it.
    pub shape: String,
    /// Seconds of one run, the median.
    pub seconds: f64,
    /// The speed.
    pub value: f64,
    /// Its unit.
    pub unit: Unit,
    /// The speed over that of the ceiling of the same unit; none for ceilings themselves.
    pub of_ceiling: Option<f64>,
}

/// Speeds of one run.
struct Report<'a> {
    device: &'a dyn Device,
    speeds: Vec<Speed>,
    copy: f64,
    matmul: f64,
}

/// Measures every op; about a minute.
///
/// # Errors
/// When the device fails, also for want of about 12 GiB of memory.
pub fn measure(device: &dyn Device) -> Result<Vec<Speed>, Error> {
    let mut report = Report { device, speeds: Vec::new(), copy: f64::NAN, matmul: f64::NAN };
    report.ceilings()?;
    report.rows()?;
    report.attention()?;
    report.model()?;
    report.generation()?;
    report.search()?;
    Ok(report.speeds)
}

impl Report<'_> {
    /// Times `work` and notes its speed.
    fn add(
        &mut self,
        op: &'static str,
        shape: impl Into<String>,
        (amount, unit): (f64, Unit),
        work: impl Fn() -> Result<(), Error>,
    ) -> Result<f64, Error> {
        let seconds = time(self.device, work)?;
        let value = amount / seconds / if unit == Unit::GbPerSecond { 1e9 } else { 1e12 };
        let ceiling = match unit {
            Unit::Tflops => self.matmul,
            Unit::GbPerSecond => self.copy,
            Unit::Tops => f64::NAN,
        };
        let of_ceiling = ceiling.is_finite().then_some(value / ceiling);
        self.speeds.push(Speed { op, shape: shape.into(), seconds, value, unit, of_ceiling });
        Ok(value)
    }

    fn zeros<T: super::launch::Element>(&self, len: usize) -> Result<Buffer<T>, Error> {
        let buffer = Buffer::poisoned(self.device, len)?;
        buffer.clear(self.device)?;
        Ok(buffer)
    }

    /// Normal numbers: kernels take other times on zeros, because the GPU needs less power.
    fn normal(&self, len: usize) -> Result<Buffer<bf16>, Error> {
        const PERIOD: usize = 1 << 20;
        let rng = Philox::new(1, "speed");
        let some: Vec<bf16> =
            (0..PERIOD.min(len) as u64).map(|i| bf16::from_f64(rng.normal(i))).collect();
        let all: Vec<bf16> = some.iter().copied().cycle().take(len).collect();
        Buffer::of(self.device, &all)
    }

    fn ceilings(&mut self) -> Result<(), Error> {
        const COPIED: usize = 1 << 30;
        let device = self.device;
        let (from, to) = (self.zeros::<i8>(COPIED)?, self.zeros::<i8>(COPIED)?);
        let work = (2.0 * COPIED as f64, Unit::GbPerSecond);
        self.copy =
            self.add("copy", "1 GiB on the device", work, || to.copy_from(device, &from))?;
        let n = 8192;
        let (a, b, c) = (self.normal(n * n)?, self.normal(n * n)?, self.zeros(n * n)?);
        let product = Product {
            layout: Layout::Nt,
            sizes: [n, n, n],
            a: &a,
            b: &b,
            c: Target::Bf16(&c),
            accumulate: Accumulate::Overwrite,
        };
        let work = (2.0 * (n as f64).powi(3), Unit::Tflops);
        self.matmul = self.add("matmul", "8192 cubed, bf16", work, || product.run(device))?;
        Ok(())
    }

    fn rows(&mut self) -> Result<(), Error> {
        let device = self.device;
        for cols in [1024, D_MODEL, 4096, 8192] {
            let rows = (1 << 27) / cols;
            let len = rows * cols;
            let (x, gain, y) = (self.normal(len)?, self.normal(cols)?, self.zeros(len)?);
            let (delta, rstd) = (self.normal(len)?, self.zeros(rows)?);
            let bytes = |n: usize| (2.0 * (n * len) as f64, Unit::GbPerSecond);
            let shape = format!("{rows}x{cols}");
            self.add("rms_norm", &shape, bytes(2), || {
                rms_norm::cuda::forward(device, &x, &gain, 1e-6, &y, &rstd)
            })?;
            self.add("rms_norm with residual", &shape, bytes(4), || {
                rms_norm::cuda::add_forward(device, [&x, &delta, &x], &gain, 1e-6, &y, &rstd)
            })?;
            let d_gain = self.zeros(cols)?;
            let scratch = self.zeros(rms_norm::cuda::backward_scratch_len(rows, cols))?;
            self.add("rms_norm backward", &shape, bytes(4), || {
                rms_norm::cuda::backward(device, &y, &delta, &gain, &rstd, &x, &d_gain, &scratch)
            })?;
        }
        let rows = 16_384;
        let (gate_up, hidden) = (self.normal(2 * rows * D_FFN)?, self.normal(rows * D_FFN)?);
        let bytes = |n: usize| (2.0 * (n * rows * D_FFN) as f64, Unit::GbPerSecond);
        let shape = format!("{rows}x{D_FFN}");
        self.add("swiglu", &shape, bytes(3), || {
            swiglu::cuda::forward(device, &gate_up, D_FFN, &hidden)
        })?;
        self.add("swiglu backward", &shape, bytes(5), || {
            swiglu::cuda::backward(device, &hidden, &gate_up, D_FFN, &gate_up)
        })?;
        Ok(())
    }

    fn attention(&mut self) -> Result<(), Error> {
        let heads = |n_heads, n_kv_heads, head_dim| Heads { n_heads, n_kv_heads, head_dim };
        for (heads, n_documents, length) in [
            (heads(16, 16, 128), 4, 4096),
            (HEADS, 4, 4096),
            (HEADS, 1, 16_384),
            (heads(32, 32, 64), 4, 4096),
        ] {
            self.attention_of(heads, n_documents, length)?;
        }
        Ok(())
    }

    fn attention_of(
        &mut self,
        heads: Heads,
        n_documents: usize,
        length: usize,
    ) -> Result<(), Error> {
        let device = self.device;
        let t = n_documents * length;
        let starts: Vec<u32> = (0..t).map(|i| (i / length * length) as u32).collect();
        let scratch = [self.zeros(t)?, self.zeros(t)?];
        let documents =
            attention::cuda::Documents::new(device, &starts, [&scratch[0], &scratch[1]])?;
        let (qkv, d_qkv) =
            (self.normal(t * heads.qkv_width())?, self.zeros(t * heads.qkv_width())?);
        let (out, d_out) = (self.zeros(t * heads.q_width())?, self.normal(t * heads.q_width())?);
        let (lse, delta) = (self.zeros(t * heads.n_heads)?, self.zeros(t * heads.n_heads)?);
        // The usual count: half of the square, two products forward and five backward.
        let flop = 2.0 * (heads.q_width() * t * length) as f64;
        let Heads { n_heads, n_kv_heads, head_dim } = heads;
        let shape =
            format!("{n_documents}x{length} causal, {n_heads}/{n_kv_heads} heads of {head_dim}");
        let saved = Saved { qkv: &qkv, out: &out, lse: &lse };
        // Each tier that the device offers; the slowest comes first.
        let fastest = Tier::of(device);
        for (op, tier) in [("attention", Tier::Warp), ("attention, wgmma", Tier::Warpgroup)] {
            if tier == Tier::Warp || tier == fastest {
                self.add(op, &shape, (flop, Unit::Tflops), || {
                    attention::cuda::forward_by(tier, device, saved, heads, &documents)
                })?;
            }
        }
        self.add("attention backward", &shape, (2.5 * flop, Unit::Tflops), || {
            attention::cuda::backward(device, &d_out, saved, heads, &documents, &d_qkv, &delta)
        })?;
        Ok(())
    }

    fn model(&mut self) -> Result<(), Error> {
        let device = self.device;
        let t = 16_384;
        let table = DeviceTable::new(device, &Table::new(5e5, HEADS.head_dim, 4096))?;
        let at: Vec<u32> = (0..t as u32).map(|i| i % 4096).collect();
        let positions = Positions::new(device, &at, &table, &self.zeros(t)?)?;
        let gains = self.normal(2 * HEADS.head_dim)?;
        let op = QkNormRope {
            heads: HEADS,
            gains: &gains,
            eps: 1e-6,
            positions: &positions,
            table: &table,
        };
        let len = t * HEADS.qkv_width();
        let (qkv, out) = (self.normal(len)?, self.normal(len)?);
        let rstd = self.zeros(t * (HEADS.n_heads + HEADS.n_kv_heads))?;
        let shape = format!("{t} rows of {}", HEADS.qkv_width());
        let bytes = |n: usize| (2.0 * (n * len) as f64, Unit::GbPerSecond);
        self.add("qk_norm_rope", &shape, bytes(2), || op.forward(device, &qkv, &out, &rstd))?;
        let d_gains = self.zeros(2 * HEADS.head_dim)?;
        let scratch = self.zeros(QkNormRope::backward_scratch_len(HEADS))?;
        self.add("qk_norm_rope backward", &shape, bytes(3), || {
            op.backward(device, &out, &qkv, &rstd, &out, &d_gains, &scratch)
        })?;

        let len = 200_000_000;
        let (params, rounded) = (self.zeros(len)?, self.zeros(len)?);
        let (grads, m, v) = (self.zeros(len)?, self.zeros(len)?, self.zeros(len)?);
        let state = adamw::cuda::State { params: &params, rounded: &rounded, m: &m, v: &v };
        let settings = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        let factors = Buffer::of(device, &[Factors::of(settings, 1, 1.0)])?;
        self.add("adamw", format!("{len}"), (30.0 * len as f64, Unit::GbPerSecond), || {
            adamw::cuda::step(device, state, &grads, &factors)
        })?;
        let scratch = self.zeros(norm::cuda::scratch_len(len))?;
        self.add("norm", format!("{len}"), (4.0 * len as f64, Unit::GbPerSecond), || {
            norm::cuda::sum_of_squares(device, &grads, &scratch).map(|_| ())
        })?;
        self.classifier()
    }

    fn classifier(&mut self) -> Result<(), Error> {
        let device = self.device;
        let t = 8192;
        let (x, w) = (self.normal(t * D_MODEL)?, self.normal(N_VOCAB * D_MODEL)?);
        let (d_x, d_w) = (self.zeros(t * D_MODEL)?, self.zeros(N_VOCAB * D_MODEL)?);
        let logits_len = cross_entropy::cuda::Scratch::logits_len(t, N_VOCAB);
        let scratch = cross_entropy::cuda::Scratch {
            logits: self.zeros(logits_len)?,
            d_logits: self.zeros(logits_len)?,
            nll: self.zeros(t)?,
            lse: self.zeros(t)?,
            sums: self.zeros(2)?,
        };
        let ids: Vec<u32> = (0..t as u32).collect();
        let targets = cross_entropy::cuda::Targets::new(device, &ids, N_VOCAB, &self.zeros(t)?)?;
        let loss = Loss { z_loss: 0.0, scale: 1e-4 };
        let loss = cross_entropy::cuda::DeviceLoss::new(device, loss, &self.zeros(2)?)?;
        let gradients = cross_entropy::cuda::Gradients { d_x: &d_x, d_w: &d_w };
        let flop = 6.0 * (t * D_MODEL * N_VOCAB) as f64;
        let shape = format!("{t}x{D_MODEL} to {N_VOCAB}, with gradients");
        self.add("cross_entropy", shape, (flop, Unit::Tflops), || {
            cross_entropy::cuda::linear(device, [&x, &w], &targets, &loss, gradients, &scratch)
        })?;
        Ok(())
    }

    fn generation(&mut self) -> Result<(), Error> {
        let device = self.device;
        let (rows, count) = (128, 2048);
        let pages = count / 16;
        let n_pages = rows * pages;
        let len = decode::cuda::LayerCache::len_of(HEADS, n_pages);
        let cache = decode::cuda::LayerCache { keys: self.normal(len)?, values: self.normal(len)? };
        let tables: Vec<Vec<u32>> = (0..rows)
            .map(|row| (0..pages).map(|page| (page * rows + row) as u32).collect())
            .collect();
        let places: Vec<(&[u32], usize)> =
            tables.iter().map(|table| (table.as_slice(), count)).collect();
        let scratch = [self.zeros(rows)?, self.zeros(n_pages)?, self.zeros(rows)?];
        let [a, b, c] = &scratch;
        let step = decode::cuda::Step::new(device, &places, n_pages, [a, b, c])?;
        let (qkv, out) =
            (self.normal(rows * HEADS.qkv_width())?, self.zeros(rows * HEADS.q_width())?);
        let shape = format!("{rows} rows over {count} positions");
        let work = (4.0 * len as f64, Unit::GbPerSecond);
        self.add("decode attention", shape, work, || {
            decode::cuda::attend(device, &qkv, HEADS, &step, &cache, &out)
        })?;

        let rng = Philox::new(2, "speed");
        let values: Vec<f32> =
            (0..(rows * N_VOCAB) as u64).map(|i| 3.0 * rng.normal(i) as f32).collect();
        let (logits, tokens) = (Buffer::of(device, &values)?, self.zeros(rows)?);
        let (streams, positions) = (self.zeros(2 * rows)?, self.zeros(rows)?);
        let policy = Policy { temperature: 1.0, top_k: 0, top_p: 0.9 };
        let work = (4.0 * (rows * N_VOCAB) as f64, Unit::GbPerSecond);
        self.add("sampling", format!("{rows} rows of {N_VOCAB}, top-p 0.9"), work, || {
            let random = [&streams, &positions];
            sampling::cuda::draw(device, &logits, N_VOCAB, &policy, random, &tokens)
        })?;
        Ok(())
    }

    fn search(&mut self) -> Result<(), Error> {
        const COLUMNS: usize = 1024;
        let device = self.device;
        let (n_queries, n_values) = (16_384, 1 << 20);
        let bytes = |purpose: &str, n: usize| -> Vec<i8> {
            let rng = Philox::new(3, purpose);
            let some: Vec<i8> =
                (0..1 << 20).map(|i| (30.0 * rng.normal(i)).clamp(-127.0, 127.0) as i8).collect();
            // Rows differ in where they begin, so that scores do.
            (0..n)
                .flat_map(|row| (0..COLUMNS).map(move |c| row * 7919 + c))
                .map(|i| some[i % some.len()])
                .collect()
        };
        let (q, v) = (bytes("queries", n_queries), bytes("values", n_values));
        let scales = vec![1e-3_f32; n_values];
        let rows =
            |q, n: usize, first_id| Rows { q, scales: &scales[..n], columns: COLUMNS, first_id };
        let queries = int8_search::cuda::DeviceRows::new(device, rows(&q, n_queries, 1 << 30))?;
        let values = int8_search::cuda::DeviceRows::new(device, rows(&v, n_values, 0))?;
        let search = Search { k: 200, min_score: f32::NEG_INFINITY, own: Own::Keep };
        let work = (2.0 * (n_queries * n_values) as f64 * COLUMNS as f64, Unit::Tops);
        let shape = format!("top 200 of {n_values} for {n_queries}, {COLUMNS} columns");
        self.add("int8_search", shape, work, || {
            int8_search::cuda::search(device, &queries, &values, search).map(|_| ())
        })?;
        Ok(())
    }
}

/// Seconds of one run: the median of rounds that each take long enough to count.
fn time(device: &dyn Device, work: impl Fn() -> Result<(), Error>) -> Result<f64, Error> {
    // Compiles, plans, and brings the clock up.
    work()?;
    device.synchronize()?;
    let round = |n: usize| -> Result<f64, Error> {
        let started = Instant::now();
        for _ in 0..n {
            work()?;
        }
        device.synchronize()?;
        Ok(started.elapsed().as_secs_f64())
    };
    let once = round(1)?.max(1e-6);
    let n = ((SECONDS_MIN / once).ceil() as usize).clamp(1, 10_000);
    let mut seconds = (0..N_ROUNDS)
        .map(|_| round(n).map(|seconds| seconds / n as f64))
        .collect::<Result<Vec<f64>, Error>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[N_ROUNDS / 2])
}
