//! The same steps on the CPU and on a device, which is the emulator here.

use kernels::cuda::Emulator;
use kernels::cuda::emulator::Schedule;
use kernels::philox::Philox;

use super::*;
use crate::lm::device;
use crate::lm::optimizer::Parametrization;

const SIZES: Sizes = Sizes { row_tokens_max: 16, scored_tokens_max: 40 };

fn config() -> Config {
    Config { context: 16, ..device::tests::config(true) }
}

fn settings() -> Settings {
    let parametrization = Parametrization::MupSimple;
    Settings {
        weight_decay: 0.1,
        clip: 0.5,
        z_loss: 1e-3,
        micro_batch_tokens: 20,
        rate_scale: RateScale { parametrization, base_width: 32.0 },
    }
}

fn start() -> Weights {
    let mut weights = Weights::zeros(&config());
    let rng = Philox::new(5, "weights");
    for part in weights.parts() {
        for (i, x) in (0_u64..).zip(&mut weights.data_mut()[part.range.clone()]) {
            let drawn = rng.normal(part.range.start as u64 + i);
            *x = if part.rows == 1 { 1.0 } else { (0.1 * drawn) as f32 };
        }
    }
    weights
}

/// Rows of several documents, the last of each token's ids being its successor's.
fn batch(step: u64) -> Batch {
    let rng = Philox::new(6, "tokens").fork(step);
    let mut batch = Batch::default();
    for (row, lengths) in (0_u64..).zip([[5, 11], [1, 9], [16, 0]]) {
        for (document, length) in (0_u64..).zip(lengths) {
            let id = |i: u64| ((rng.below(8 * row + document, 40) + 3 * i) % 40) as u32;
            batch.push_span((0..length).map(|i| (id(i), Some(id(i + 1)))));
        }
        batch.end_row();
    }
    batch
}

fn on_device() -> Learner<'static> {
    let dir = std::env::temp_dir().join("sbp-emulated-kernels");
    let emulator = Arc::new(Emulator::new(&dir, Schedule::Forward));
    Learner::on_device(emulator, settings(), start(), SIZES).unwrap()
}

fn on_cpu(pool: &Pool) -> Learner<'_> {
    Learner::new(pool, settings(), start(), SIZES, Recompute::Nothing)
}

/// The loss and the length of the gradients of a step, which is made.
fn step(learner: &mut Learner<'_>, number: u64) -> [f64; 2] {
    let sums = learner.gradients(&batch(number), || Ok(())).unwrap();
    let grad_norm = learner.grad_norm().unwrap();
    learner.update(grad_norm, 1e-2, number).unwrap();
    [sums.nll / sums.n_tokens as f64, grad_norm]
}

fn state(learner: &mut Learner<'_>) -> [Vec<f32>; 3] {
    let mut state = [vec![], vec![], vec![]];
    learner
        .save(|vectors| {
            state = vectors.map(<[f32]>::to_vec);
            Ok(())
        })
        .unwrap();
    state
}

/// The cosine between two moves.
fn cosine(from: &[f32], a: &[f32], b: &[f32]) -> f64 {
    let move_of = |to: &[f32], i: usize| f64::from(to[i]) - f64::from(from[i]);
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        (0..from.len()).map(|i| move_of(x, i) * move_of(y, i)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Forward, backward, clipping, decay and rates by width: the whole step. bf16 keeps 8 bits, so losses
/// agree to hundredths. The moves of a part point the same way, though Adam makes each number of a
/// move as long as the rate, those too whose gradient is lost in rounding; a part that learns from a
/// wrong gradient would be near 0.
#[test]
fn steps_on_a_device_follow_the_cpu() {
    let pool = Pool::new(1);
    let (mut device, mut cpu) = (on_device(), on_cpu(&pool));
    assert!(device.device().is_some() && cpu.device().is_none());
    for number in 1..=6 {
        let (found, expected) = (step(&mut device, number), step(&mut cpu, number));
        for (found, expected) in found.into_iter().zip(expected) {
            let off = (found - expected).abs() / expected;
            assert!(off < 0.03, "step {number}: {found} is not {expected}");
        }
    }
    let micro_batch = batch(9);
    let micro = micro_batch.micro_batches(40).next().unwrap();
    let mean = |nll: Vec<f32>| nll.iter().map(|x| f64::from(*x)).sum::<f64>() / nll.len() as f64;
    let (found, expected) = (mean(device.nll(&micro).unwrap()), mean(cpu.nll(&micro).unwrap()));
    assert!((found - expected).abs() < 0.03 * expected, "{found} is not {expected}");
    let weights = start();
    let (found, expected) = (device.into_weights().unwrap(), cpu.into_weights().unwrap());
    for part in weights.parts() {
        let range = part.range;
        let [from, found, expected] =
            [&weights, &found, &expected].map(|weights| &weights.data()[range.clone()]);
        let cosine = cosine(from, found, expected);
        assert!(cosine > 0.7, "{}: {cosine}", part.name);
    }
}

/// Weights and moments survive the way there and back to the bit, and training goes on.
#[test]
fn training_moves_between_devices() {
    let pool = Pool::new(1);
    let (mut device, mut cpu) = (on_device(), on_cpu(&pool));
    for number in 1..=2 {
        step(&mut cpu, number);
    }
    let carried = state(&mut cpu);
    let take = |learner: &mut Learner<'_>, state: &[Vec<f32>; 3]| {
        learner
            .restore(|vectors| {
                for (to, from) in vectors.into_iter().zip(state) {
                    to.copy_from_slice(from);
                }
                Ok(())
            })
            .unwrap();
    };
    take(&mut device, &carried);
    assert!(state(&mut device) == carried);
    let (found, expected) = (step(&mut device, 3), step(&mut cpu, 3));
    assert!((found[0] - expected[0]).abs() < 0.03 * expected[0], "{found:?} {expected:?}");
    let carried = state(&mut device);
    take(&mut cpu, &carried);
    assert!(state(&mut cpu) == carried);
    let (found, expected) = (step(&mut cpu, 4), step(&mut device, 4));
    assert!((found[0] - expected[0]).abs() < 0.03 * expected[0], "{found:?} {expected:?}");
}

#[test]
fn the_worst_gradient_is_found_on_a_device() {
    let mut device = on_device();
    device.gradients(&batch(1), || Ok(())).unwrap();
    let pool = Pool::new(1);
    let mut cpu = on_cpu(&pool);
    cpu.gradients(&batch(1), || Ok(())).unwrap();
    let part = |worst: String| worst.split('`').nth(1).map(str::to_owned);
    assert_eq!(part(device.worst_gradient().unwrap()), part(cpu.worst_gradient().unwrap()));
}
