//! Training on a device, measured: how fast at the size of the paper, and how like the CPU's.

use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use kernels::Pool;
use kernels::adamw::AdamW;
use kernels::cross_entropy::{Loss, LossSums};
use kernels::cuda::{Buffer, Device, Error};
use kernels::philox::Philox;
use kernels::sampling::{self, Policy};

use super::DeviceModel;
use super::decoder::DeviceDecoder;
use crate::lm::backward::Activations;
use crate::lm::batch::Batch;
use crate::lm::optimizer::{LearningRate, Optimizer, Shape};
use crate::lm::weights::Part;
use crate::lm::{Config, Preset, Weights};

/// Tokens of a micro-batch, from what a large GPU holds down to one row.
const CAPACITIES: [usize; 3] = [16_384, 8192, 4096];
/// Memory that is left to the driver and to products.
const SPARE_BYTES: u64 = 2 << 30;

/// How fast a model trains.
#[derive(Clone, Debug)]
pub struct Training {
    /// Trained numbers.
    pub n_parameters: u64,
    /// Tokens of a step, in rows of the model's context.
    pub n_tokens: usize,
    /// Tokens of a row.
    pub context: usize,
    /// Seconds of a step, gradients and update, the median.
    pub seconds: f64,
    /// Floating-point operations a second, as the model needs them.
    pub flops: f64,
    /// Losses of the steps, in nats.
    pub losses: Vec<f64>,
    /// Bytes of device memory.
    pub memory_bytes: u64,
}

/// Trains the paper's 3 B model for a few steps on as many tokens as the device has memory for;
/// nothing when it has not enough for one row.
///
/// # Errors
/// When the device fails.
pub fn train(device: Arc<dyn Device>, n_steps: usize) -> Result<Option<Training>, Error> {
    let config = Preset::B3.config();
    let free_bytes = device.free_bytes()?;
    let fits =
        |capacity: &usize| DeviceModel::bytes(&config, *capacity) + SPARE_BYTES <= free_bytes;
    let Some(n_tokens) = CAPACITIES.into_iter().find(fits) else { return Ok(None) };
    let model = DeviceModel::new(device, &made_up(&config), n_tokens)?;
    let batch = text(&config, n_tokens, 0);
    let loss = Loss { z_loss: 0.0, scale: 1.0 / batch.n_targets() as f32 };
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for step in 1..=n_steps as u64 {
        let started = Instant::now();
        let sums = device_step(&model, &batch, loss, 1e-4, step, n_tokens)?;
        model.synchronize()?;
        seconds.push(started.elapsed().as_secs_f64());
        losses.push(sums.nll / sums.n_tokens as f64);
    }
    // The first step compiles kernels and plans products.
    let mut steady = seconds.split_off(1.min(seconds.len() - 1));
    steady.sort_by(f64::total_cmp);
    let seconds = steady[steady.len() / 2];
    let flop = n_tokens as f64 * config.train_flop_per_token(config.context);
    Ok(Some(Training {
        n_parameters: config.n_parameters(),
        n_tokens,
        context: config.context,
        seconds,
        flops: flop / seconds,
        losses,
        memory_bytes: DeviceModel::bytes(&config, n_tokens),
    }))
}

/// Losses of the same steps of a small model, on the device and on `n_threads` of the CPU.
///
/// # Errors
/// When the device fails.
pub fn curve(
    device: Arc<dyn Device>,
    n_threads: usize,
    config: &Config,
    [n_tokens, n_steps]: [usize; 2],
) -> Result<Vec<[f64; 2]>, Error> {
    let (pool, n_steps) = (Pool::new(n_threads), n_steps as u64);
    let start = made_up(config);
    let model = DeviceModel::new(device, &start, n_tokens)?;
    let mut weights = start;
    let mut optimizer = Optimizer::new(&weights, 0.1, 1.0);
    let mut activations = Activations::new(config, n_tokens);
    let mut grads = Weights::zeros(config);
    let rate = LearningRate {
        peak: 3e-3,
        end: 3e-4,
        n_warmup: n_steps / 20,
        n_steps,
        shape: Shape::Cosine,
    };
    let mut losses = Vec::new();
    for step in 0..n_steps {
        let (batch, lr) = (text(config, n_tokens, step), rate.at(step));
        let loss = Loss { z_loss: 0.0, scale: 1.0 / batch.n_targets() as f32 };
        let found = device_step(&model, &batch, loss, lr, step + 1, n_tokens)?;
        grads.data_mut().fill(0.0);
        let mut expected = LossSums::default();
        for micro in batch.micro_batches(n_tokens) {
            let part = activations.loss_and_gradients(&pool, &weights, &micro, loss, &mut grads);
            expected.nll += part.nll;
            expected.n_tokens += part.n_tokens;
        }
        let norm = Optimizer::norm(&pool, &grads);
        optimizer.step(&pool, &mut weights, &grads, norm, lr, step + 1);
        losses.push([found, expected].map(|sums| sums.nll / sums.n_tokens as f64));
    }
    Ok(losses)
}

/// How fast texts are made.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Texts at a time.
    pub n_slots: usize,
    /// Tokens of each prompt, and new ones of each text.
    pub n_tokens: [usize; 2],
    /// Seconds to compute all prompts.
    pub prefill_seconds: f64,
    /// Seconds to make all new tokens, drawn on the device.
    pub seconds: f64,
}

/// Makes texts with the paper's 3 B model: prompts of `n_prompt` tokens, continued by `n_new`, at most
/// `n_slots_max` at a time and as many as the device has memory for; nothing when it has not enough
/// for one.
///
/// # Errors
/// When the device fails.
pub fn generate(
    device: &Arc<dyn Device>,
    n_slots_max: usize,
    [n_prompt, n_new]: [usize; 2],
) -> Result<Option<Generation>, Error> {
    /// Prompts that are computed together.
    const PROMPTS: usize = 8;
    let config = Preset::B3.config();
    let n_pages = (n_prompt + n_new).div_ceil(16);
    let n_rows = |n_slots: usize| (PROMPTS * n_prompt).max(n_slots);
    let free_bytes = device.free_bytes()?;
    let fits = |n_slots: &usize| {
        let sizes = [n_rows(*n_slots), *n_slots];
        DeviceDecoder::bytes(&config, n_slots * n_pages, sizes) + SPARE_BYTES <= free_bytes
    };
    let halves = std::iter::successors(Some(n_slots_max), |n| Some(n / 2).filter(|n| *n > 0));
    let Some(n_slots) = halves.into_iter().find(fits) else { return Ok(None) };
    let n_rows = n_rows(n_slots);
    let weights = made_up(&config);
    let decoder =
        DeviceDecoder::new(Arc::clone(device), &weights, n_slots * n_pages, [n_rows, n_slots])?;
    drop(weights);
    let tables: Vec<Vec<u32>> = (0..n_slots)
        .map(|slot| (0..n_pages).map(|page| (slot * n_pages + page) as u32).collect())
        .collect();
    let rng = Philox::new(13, "prompts");
    let prompt: Vec<u32> =
        (0..n_prompt as u64).map(|i| rng.below(i, config.vocab_size as u64) as u32).collect();
    let started = Instant::now();
    for tables in tables.chunks(PROMPTS) {
        let prompts: Vec<(&[u32], &[u32])> =
            tables.iter().map(|table| (prompt.as_slice(), table.as_slice())).collect();
        decoder.prefill(&prompts)?;
    }
    device.synchronize()?;
    let prefill_seconds = started.elapsed().as_secs_f64();

    let policy = Policy { temperature: 1.0, top_k: 0, top_p: 0.9 };
    let streams: Vec<u64> =
        (0..n_slots as u64).flat_map(|slot| sampling::cuda::stream(rng.fork(slot))).collect();
    let streams = Buffer::of(&**device, &streams)?;
    let positions = Buffer::poisoned(&**device, n_slots)?;
    let drawn = Buffer::poisoned(&**device, n_slots)?;
    let mut tokens: Vec<u32> = vec![prompt[0]; n_slots];
    let started = Instant::now();
    for i in 0..n_new {
        let rows: Vec<(&[u32], usize)> =
            tables.iter().map(|table| (table.as_slice(), n_prompt + i + 1)).collect();
        decoder.step(&tokens, &rows)?;
        positions.write(&**device, &vec![i as u64; n_slots])?;
        tokens = decoder.draw(&policy, [&streams, &positions], &drawn)?;
        if tokens.contains(&sampling::cuda::NO_TOKEN) {
            let message = format!("logits are not finite after {i} tokens");
            return Err(Error::Call { call: "generation", message });
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(Some(Generation { n_slots, n_tokens: [n_prompt, n_new], prefill_seconds, seconds }))
}

/// The small model of [`curve`]: the reference model of BENCHMARKS.md with a smaller vocabulary.
pub fn curve_config() -> Config {
    Config {
        d_model: 256,
        n_layers: 6,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        d_ffn: 704,
        vocab_size: 2048,
        context: 256,
        rope_theta: 1e4,
        norm_eps: 1e-6,
        tie_embeddings: true,
    }
}

fn device_step(
    model: &DeviceModel,
    batch: &Batch,
    loss: Loss,
    lr: f64,
    step: u64,
    n_tokens: usize,
) -> Result<LossSums, Error> {
    model.clear_gradients()?;
    let mut sums = LossSums::default();
    for micro in batch.micro_batches(n_tokens) {
        let part = model.loss_and_gradients(&micro, loss)?;
        sums.nll += part.nll;
        sums.n_tokens += part.n_tokens;
    }
    let norm = model.gradient_norm()?;
    let settings = |part: &Part| {
        let weight_decay = if part.kind.decays() { 0.1 } else { 0.0 };
        AdamW { lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay }
    };
    model.update(settings, step, if norm > 1.0 { (1.0 / norm) as f32 } else { 1.0 })?;
    Ok(sums)
}

/// Weights with the usual spread, from a few random numbers, because billions take minutes.
fn made_up(config: &Config) -> Weights {
    const PERIOD: usize = (1 << 20) - 3;
    let rng = Philox::new(11, "weights");
    let some: Vec<f32> =
        (0..PERIOD as u64).map(|i| bf16::from_f64(0.02 * rng.normal(i)).to_f32()).collect();
    let mut weights = Weights::zeros(config);
    for part in weights.parts() {
        let values = &mut weights.data_mut()[part.range.clone()];
        if part.rows == 1 {
            values.fill(1.0);
        } else {
            let first = part.range.start % PERIOD;
            for (x, value) in values.iter_mut().zip(some.iter().cycle().skip(first)) {
                *x = *value;
            }
        }
    }
    weights
}

/// Rows in which a token decides the next one, but for every fifth.
fn text(config: &Config, n_tokens: usize, step: u64) -> Batch {
    let vocab = config.vocab_size as u64;
    let rng = Philox::new(12, "text").fork(step);
    let mut batch = Batch::default();
    for row in 0..n_tokens / config.context.min(n_tokens) {
        let at = (row * config.context) as u64;
        let mut id = rng.below(at, vocab);
        let ids: Vec<u32> = (0..=config.context as u64)
            .map(|i| {
                let known = (id * 31 + 7) % vocab.min(509);
                id = if i % 5 == 4 { rng.below(at + i, vocab) } else { known };
                id as u32
            })
            .collect();
        batch.push_span(ids.windows(2).map(|two| (two[0], Some(two[1]))));
        batch.end_row();
    }
    batch
}
