//! Training on a device, measured: how fast at the size of the paper, and how like the CPU's.

use std::sync::Arc;
use std::time::Instant;

use engine::task::Failure;
use half::bf16;
use kernels::Pool;
use kernels::cuda::{Device, Error};
use kernels::philox::Philox;
use kernels::sampling::{NotFinite, Policy};

use super::decoder::DeviceDecoder;
use super::{DeviceModel, Purpose};
use crate::device::failure;
use crate::lm::backward::Recompute;
use crate::lm::batch::Batch;
use crate::lm::generate::{self, Chance, Choice};
use crate::lm::learner::{Learner, Settings, Sizes};
use crate::lm::optimizer::{LearningRate, RateScale, Shape};
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
pub fn train(device: Arc<dyn Device>, n_steps: usize) -> Result<Option<Training>, Failure> {
    let config = Preset::B3.config();
    let free_bytes = device.free_bytes().map_err(failure)?;
    let bytes = |capacity| DeviceModel::bytes(&config, capacity, Purpose::Train);
    let fits = |capacity: &usize| bytes(*capacity) + SPARE_BYTES <= free_bytes;
    let Some(n_tokens) = CAPACITIES.into_iter().find(fits) else { return Ok(None) };
    let settings = settings(n_tokens);
    let mut learner =
        Learner::on_device(device, settings, made_up(&config), sizes(config.context))?;
    let batch = text(&config, n_tokens, 0);
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for number in 1..=n_steps as u64 {
        let started = Instant::now();
        losses.push(step(&mut learner, &batch, 1e-4, number)?);
        // The update is over once a number that it precedes is here.
        learner.grad_norm()?;
        seconds.push(started.elapsed().as_secs_f64());
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
        memory_bytes: bytes(n_tokens),
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
) -> Result<Vec<[f64; 2]>, Failure> {
    let (pool, n_steps) = (Pool::new(n_threads), n_steps as u64);
    let (settings, sizes) = (settings(n_tokens), sizes(config.context));
    let weights = made_up(config);
    let mut on_cpu = Learner::new(&pool, settings, weights.clone(), sizes, Recompute::Nothing);
    let mut on_device = Learner::on_device(device, settings, weights, sizes)?;
    let rate = LearningRate {
        peak: 3e-3,
        end: 3e-4,
        n_warmup: n_steps / 20,
        n_steps,
        shape: Shape::Cosine,
    };
    let mut losses = Vec::new();
    for number in 0..n_steps {
        let (batch, lr) = (text(config, n_tokens, number), rate.at(number));
        let found = step(&mut on_device, &batch, lr, number + 1)?;
        losses.push([found, step(&mut on_cpu, &batch, lr, number + 1)?]);
    }
    Ok(losses)
}

/// The loss of a step, in nats a token.
fn step(learner: &mut Learner<'_>, batch: &Batch, lr: f64, number: u64) -> Result<f64, Failure> {
    let sums = learner.gradients(batch, || Ok(()))?;
    let grad_norm = learner.grad_norm()?;
    learner.update(grad_norm, lr, number)?;
    Ok(sums.nll / sums.n_tokens as f64)
}

/// Clipping and decay as a real run has them.
fn settings(micro_batch_tokens: usize) -> Settings {
    Settings {
        weight_decay: 0.1,
        clip: 1.0,
        z_loss: 0.0,
        micro_batch_tokens,
        rate_scale: RateScale::STANDARD,
    }
}

fn sizes(row_tokens_max: usize) -> Sizes {
    Sizes { row_tokens_max, scored_tokens_max: 0 }
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
    /// The same with each kernel launched by itself.
    pub seconds_without_graphs: f64,
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

    // The first step compiles kernels and plans products.
    continue_texts(&decoder, &tables, prompt[0], [n_prompt, 1])?;
    let seconds = continue_texts(&decoder, &tables, prompt[0], [n_prompt, n_new])?;
    let decoder = decoder.without_graphs();
    let seconds_without_graphs = continue_texts(&decoder, &tables, prompt[0], [n_prompt, n_new])?;
    let n_tokens = [n_prompt, n_new];
    Ok(Some(Generation { n_slots, n_tokens, prefill_seconds, seconds, seconds_without_graphs }))
}

/// Seconds to write `n_new` tokens after each prompt, whose pages are in `tables`.
fn continue_texts(
    decoder: &DeviceDecoder,
    tables: &[Vec<u32>],
    first: u32,
    [n_prompt, n_new]: [usize; 2],
) -> Result<f64, Error> {
    let settings = generate::Settings {
        choice: Choice::Sample(Policy { temperature: 1.0, top_k: 0, top_p: 0.9 }),
        repetition_penalty: 1.0,
        suppress: Vec::new(),
        stop: Vec::new(),
    };
    let rng = Philox::new(13, "draws");
    let mut tokens: Vec<u32> = vec![first; tables.len()];
    let started = Instant::now();
    for i in 0..n_new {
        let rows: Vec<(&[u32], usize)> =
            tables.iter().map(|table| (table.as_slice(), n_prompt + i + 1)).collect();
        let chances: Vec<Chance<'_>> = (0..tables.len() as u64)
            .map(|slot| Chance { rng: rng.fork(slot), position: i as u64, seen: &[] })
            .collect();
        let chosen = decoder.step_and_choose(&tokens, &rows, &settings, &chances)?;
        let chosen = chosen.into_iter().collect();
        tokens = Result::<_, NotFinite>::map_err(chosen, |NotFinite| {
            let message = format!("logits are not finite after {i} tokens");
            Error::Call { call: "generation", message }
        })?;
    }
    Ok(started.elapsed().as_secs_f64())
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
