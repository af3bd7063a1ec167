//! The model on the emulator against the model on the CPU, whose gradients agree with transformers.

use kernels::Pool;
use kernels::cuda::Emulator;
use kernels::cuda::emulator::Schedule;
use kernels::philox::Philox;
use kernels::sampling::{Policy, Sampler};

use super::decoder::{DeviceDecoder, Generator};
use super::*;
use crate::lm::backward::Activations;
use crate::lm::batch::Batch;
use crate::lm::generate::{
    Chance, Choice, Completion, Decode, Decoder, Driver, Request, Row, Settings, generate,
};

/// A model of two layers whose shapes the kernels take.
pub(crate) fn config(tie_embeddings: bool) -> Config {
    Config {
        d_model: 64,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 64,
        d_ffn: 96,
        vocab_size: 40,
        context: 64,
        rope_theta: 1e4,
        norm_eps: 1e-6,
        tie_embeddings,
    }
}

/// Weights that bf16 holds, so that both models have the same.
fn weights(config: &Config) -> Weights {
    let mut weights = Weights::zeros(config);
    let rng = Philox::new(5, "weights");
    for (i, x) in weights.data_mut().iter_mut().enumerate() {
        *x = bf16::from_f64(0.15 * rng.normal(i as u64)).to_f32();
    }
    for part in weights.parts() {
        if part.rows == 1 {
            for x in &mut weights.data_mut()[part.range] {
                *x = bf16::from_f32(1.0 + *x).to_f32();
            }
        }
    }
    weights
}

fn batch() -> Batch {
    let mut batch = Batch::default();
    let rng = Philox::new(6, "tokens");
    let mut n = 0;
    for length in [7_u64, 1, 30, 3] {
        batch.push_span((0..length).map(|i| {
            n += 1;
            let target = rng.below(100 + n, 40) as u32;
            (rng.below(n, 40) as u32, (i % 4 != 2).then_some(target))
        }));
        batch.end_row();
    }
    batch
}

/// 1 for the same direction and length; 0 for nothing in common.
fn agreement(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    2.0 * dot(a, b) / (dot(a, a) + dot(b, b)).max(1e-30)
}

#[test]
fn losses_and_every_gradient_agree_with_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    // Each tier of attention.
    for (tied, arch) in [(true, "sm_80"), (false, "sm_80"), (false, "sm_90a")] {
        let config = config(tied);
        let (weights, batch, pool) = (weights(&config), batch(), Pool::new(1));
        let loss = Loss { z_loss: 1e-2, scale: 1.0 / batch.n_targets() as f32 };
        let mut expected = Weights::zeros(&config);
        let mut activations = Activations::new(&config, 48);
        let mut expected_sums = LossSums::default();
        let emulator = Emulator::new(dir.path(), Schedule::Forward).of_arch(arch);
        let model = DeviceModel::new(Arc::new(emulator), &weights, 48, Purpose::Train).unwrap();
        let mut sums = LossSums::default();
        for micro in batch.micro_batches(20) {
            let part = activations.loss_and_gradients(&pool, &weights, &micro, loss, &mut expected);
            expected_sums.nll += part.nll;
            expected_sums.n_tokens += part.n_tokens;
            let part = model.loss_and_gradients(&micro, loss).unwrap();
            sums.nll += part.nll;
            sums.n_tokens += part.n_tokens;
        }
        assert_eq!(sums.n_tokens, expected_sums.n_tokens);
        let off = (sums.nll - expected_sums.nll).abs() / expected_sums.nll;
        assert!(off < 2e-3, "{} for {}", sums.nll, expected_sums.nll);
        let mut grads = Weights::zeros(&config);
        model.gradients(&mut grads).unwrap();
        for part in weights.parts() {
            let range = part.range;
            let agreement = agreement(&grads.data()[range.clone()], &expected.data()[range]);
            assert!(agreement > 0.9995, "{}: {agreement}", part.name);
        }
        let norm = grads.data().iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        assert!((model.gradient_norm().unwrap() / norm - 1.0).abs() < 1e-6);
    }
}

#[test]
fn losses_fall_as_on_the_cpu_and_repeat_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(true);
    let (weights, batch, pool) = (weights(&config), batch(), Pool::new(1));
    let settings = |part: &Part| {
        let weight_decay = if part.kind.decays() { 0.1 } else { 0.0 };
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay }
    };
    let micro = batch.micro_batches(usize::MAX).next().unwrap();
    let loss = Loss { z_loss: 0.0, scale: 1.0 / batch.n_targets() as f32 };
    let run = |schedule| {
        let device = Arc::new(Emulator::new(dir.path(), schedule));
        let model = DeviceModel::new(device, &weights, 48, Purpose::Train).unwrap();
        let losses: Vec<f64> = (1..=4)
            .map(|step| {
                model.clear_gradients().unwrap();
                let sums = model.loss_and_gradients(&micro, loss).unwrap();
                model.update(settings, step, 1.0).unwrap();
                sums.nll / sums.n_tokens as f64
            })
            .collect();
        let mut trained = Weights::zeros(&config);
        model.weights(&mut trained).unwrap();
        (losses, trained)
    };
    let (losses, trained) = run(Schedule::Forward);
    let (again, trained_again) = run(Schedule::Backward);
    assert_eq!((&losses, &trained), (&again, &trained_again));

    let mut on_cpu = weights.clone();
    let mut optimizer = crate::lm::optimizer::Optimizer::new(&on_cpu, 0.1, f64::INFINITY);
    let mut activations = Activations::new(&config, 48);
    for (step, found) in (1..=4).zip(&losses) {
        let mut grads = Weights::zeros(&config);
        let sums = activations.loss_and_gradients(&pool, &on_cpu, &micro, loss, &mut grads);
        optimizer.step(&pool, &mut on_cpu, &grads, 1.0, 1e-2, step);
        let expected = sums.nll / sums.n_tokens as f64;
        assert!((found - expected).abs() < 2e-2 * expected, "step {step}: {found} {expected}");
    }
    assert!(losses[3] < losses[0], "{losses:?}");
}

/// Every step has other tokens, other distinct ids, another number of targets, another rate; a shape
/// that comes again is replayed, and nothing differs from launches one by one.
#[test]
fn graphs_change_no_bit_of_a_training() {
    const N_STEPS: u64 = 5;
    let dir = tempfile::tempdir().unwrap();
    let config = config(false);
    let weights = weights(&config);
    let batch = |step: u64| {
        let (mut batch, rng) = (Batch::default(), Philox::new(step, "tokens"));
        for (row, length) in [7_u64, 1, 12, 3].into_iter().enumerate() {
            batch.push_span((0..length).map(|i| {
                let at = 2 * (100 * row as u64 + i);
                let id = rng.below(at, 40 / step) as u32;
                (id, (at % step != 1).then(|| rng.below(at + 1, 40) as u32))
            }));
            batch.end_row();
        }
        batch
    };
    let run = |keeps_graphs: bool| {
        let emulator = Arc::new(Emulator::new(dir.path(), Schedule::Forward));
        let device: Arc<dyn Device> = Arc::clone(&emulator) as _;
        let model = DeviceModel::new(device, &weights, 24, Purpose::Train).unwrap();
        let model = if keeps_graphs { model } else { model.without_graphs() };
        let (mut losses, mut n_passes, mut shapes) = (Vec::new(), 0, Vec::new());
        for step in 1..=N_STEPS {
            let batch = batch(step);
            model.clear_gradients().unwrap();
            let loss = Loss { z_loss: 1e-2, scale: 1.0 / batch.n_targets() as f32 };
            for micro in batch.micro_batches(12) {
                losses.push(model.loss_and_gradients(&micro, loss).unwrap().nll);
                shapes.push(micro.ids.len());
                n_passes += 1;
            }
            let (lr, scale) = (1e-2 / step as f64, 1.0 / (1.0 + model.gradient_norm().unwrap()));
            let settings = AdamW { lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
            model.update(|_| settings, step, scale as f32).unwrap();
        }
        let mut trained = Weights::zeros(&config);
        model.weights(&mut trained).unwrap();
        shapes.sort_unstable();
        shapes.dedup();
        (losses, trained, model.moments().unwrap(), emulator.n_replays(), n_passes, shapes.len())
    };
    let (losses, trained, moments, n_replays, n_passes, n_shapes) = run(true);
    let plain = run(false);
    assert!(n_shapes > 1, "micro-batches have several shapes");
    // All but the first pass of each shape, and all but the first update.
    assert_eq!((n_replays, plain.3), (n_passes - n_shapes as u64 + N_STEPS - 1, 0));
    assert_eq!(losses, plain.0);
    assert!((trained, moments) == (plain.1, plain.2));
}

/// A sequence computed as a prompt and then token by token has the logits of the whole, and its own
/// whatever else is in the batch.
#[test]
fn decoding_continues_a_prompt_as_the_whole_would() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(true);
    let weights = weights(&config);
    let emulator = Emulator::new(dir.path(), Schedule::WarpsBackward).of_arch("sm_90a");
    let device: Arc<dyn Device> = Arc::new(emulator);
    let decoder = DeviceDecoder::new(device, &weights, 6, [40, 4]).unwrap();
    let ids: Vec<u32> = (0..21).map(|i| (i * 7 + 3) % 40).collect();
    let (pages, other) = ([4_u32, 1], [0_u32, 2]);
    let close = |found: &[f32], expected: &[f32]| {
        let agreement = agreement(found, expected);
        assert!(agreement > 0.9995, "{agreement}");
    };
    // The CPU's logits after every token.
    let mut forward = crate::lm::forward::Forward::new(&config, 32);
    let pool = Pool::new(1);
    let hidden = forward.hidden(&pool, &weights, &ids, &vec![0; ids.len()]).to_vec();
    let v = config.vocab_size;
    let mut expected = vec![0.0; ids.len() * v];
    kernels::matmul::nt(
        &pool,
        &mut expected,
        &hidden,
        weights.output(),
        ids.len(),
        v,
        config.d_model,
        kernels::matmul::Accumulate::Overwrite,
    );
    decoder.prefill(&[(&ids[..15], &pages), (&ids[..2], &other)]).unwrap();
    let logits = decoder.logits(2).unwrap();
    close(&logits[..v], &expected[14 * v..15 * v]);
    close(&logits[v..], &expected[v..2 * v]);
    for i in 15..ids.len() {
        decoder.step(&[ids[i - 13], ids[i]], &[(&other, i - 12), (&pages, i + 1)]).unwrap();
        let logits = decoder.logits(2).unwrap();
        close(&logits[..v], &expected[(i - 13) * v..(i - 12) * v]);
        close(&logits[v..], &expected[i * v..(i + 1) * v]);
    }
}

#[test]
fn what_the_kernels_cannot_do_is_said() {
    assert_eq!(DeviceModel::supports(&config(true)), Ok(()));
    let check = |change: fn(&mut Config), reason: &str| {
        let mut config = config(true);
        change(&mut config);
        let said = DeviceModel::supports(&config).unwrap_err();
        assert!(said.contains(reason), "{said}");
    };
    check(|config| config.head_dim = 32, "`head_dim` of 32");
    check(|config| config.vocab_size = 41, "`vocab_size` of 41");
    check(|config| config.d_model = 16_384, "above 8192");
}

/// The benches ask for memory before they make up billions of weights.
#[test]
fn a_small_device_is_told_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let device: Arc<dyn Device> =
        Arc::new(Emulator::new(dir.path(), Schedule::Forward).limited(4 << 30));
    assert!(bench::train(Arc::clone(&device), 1).unwrap().is_none());
    assert!(bench::generate(&device, 128, [1024, 256]).unwrap().is_none());
}

#[test]
fn what_does_not_fit_is_an_error_with_both_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let (config, limit) = (config(true), 1 << 20);
    let emulator = Arc::new(Emulator::new(dir.path(), Schedule::Forward).limited(limit));
    let error = DeviceModel::new(emulator, &weights(&config), 4096, Purpose::Read).err().unwrap();
    let needed_bytes = DeviceModel::bytes(&config, 4096, Purpose::Read);
    assert_eq!(error, Error::OutOfMemory { needed_bytes, free_bytes: limit });
}

/// One block's buffers serve all, and give what the buffers of training give.
#[test]
fn a_reader_has_the_states_and_losses_of_the_cpu() {
    use crate::lm::reader::{Losses as _, Reader};

    let dir = tempfile::tempdir().unwrap();
    let (config, batch, pool) = (config(false), batch(), Pool::new(1));
    let weights = weights(&config);
    let emulator: Arc<dyn Device> = Arc::new(Emulator::new(dir.path(), Schedule::Backward));
    let trains = DeviceModel::new(Arc::clone(&emulator), &weights, 48, Purpose::Train).unwrap();
    assert!(
        DeviceModel::bytes(&config, 48, Purpose::Read)
            < DeviceModel::bytes(&config, 48, Purpose::Train) / 2
    );
    let mut reads = Reader::on_device(emulator, &pool, &weights, 48).unwrap();
    let mut on_cpu = Reader::on_cpu(&pool, &weights, 48);
    let micro = batch.micro_batches(usize::MAX).next().unwrap();
    let nll = reads.nll(&micro).unwrap();
    assert_eq!(nll, trains.nll(&micro).unwrap());
    for (found, expected) in nll.iter().zip(on_cpu.nll(&micro).unwrap()) {
        assert!((found - expected).abs() < 0.05, "{found} {expected}");
    }
    for n_blocks in [None, Some(0), Some(1), Some(2)] {
        let expected = on_cpu.states(micro.ids, &micro.starts, n_blocks).unwrap();
        let found = reads.states(micro.ids, &micro.starts, n_blocks).unwrap();
        let agreement = agreement(&found, &expected);
        assert!(agreement > 0.9998, "{n_blocks:?}: {agreement}");
    }
}

/// Only rows with a target have logits, some of them several times, and in more than one pass.
#[test]
fn likelihoods_are_those_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let (config, pool) = (config(true), Pool::new(1));
    let weights = weights(&config);
    let device: Arc<dyn Device> = Arc::new(Emulator::new(dir.path(), Schedule::WarpsBackward));
    let model = DeviceModel::new(device, &weights, 24, Purpose::Read).unwrap();
    let ids: Vec<u32> = (0..19).map(|i| (i * 7 + 3) % 40).collect();
    let starts: Vec<u32> = (0..19).map(|i| if i < 11 { 0 } else { 11 }).collect();
    let targets: Vec<(usize, u32)> =
        (0..60).map(|i| ([18, 4, 11, 18, 0][i % 5], (i * 11 % 40) as u32)).collect();
    let (nll, likeliest) = model.likelihoods([&ids, &starts], &targets).unwrap();
    assert_eq!((nll.len(), likeliest.len()), (60, 60));

    let mut forward = crate::lm::forward::Forward::new(&config, 24);
    let hidden = forward.hidden(&pool, &weights, &ids, &starts);
    let (d, mut n_clear) = (config.d_model, 0);
    for ((&(row, token), nll), likeliest) in targets.iter().zip(nll).zip(likeliest) {
        let state = &hidden[row * d..(row + 1) * d];
        let logits: Vec<f64> = (weights.output().chunks_exact(d))
            .map(|of| of.iter().zip(state).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum())
            .collect();
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let expected = total.ln() - logits[token as usize];
        assert!((f64::from(nll) - expected).abs() < 0.05, "row {row}: {nll} {expected}");
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        if logits[order[0]] - logits[order[1]] > 0.1 {
            assert_eq!(likeliest as usize, order[0], "row {row}");
            n_clear += 1;
        }
    }
    assert!(n_clear > 20, "{n_clear} rows have a likeliest token");
}

/// Texts of all requests, by index, `n_slots` at a time.
fn generated(
    weights: &Weights,
    dir: &std::path::Path,
    n_slots: usize,
    order: &[u64],
) -> Vec<Vec<u32>> {
    let policy = Policy { temperature: 1.0, top_k: 0, top_p: 0.9 };
    let settings = Settings {
        choice: Choice::Sample(policy),
        repetition_penalty: 1.1,
        suppress: vec![0, 2],
        stop: vec![1],
    };
    let device: Arc<dyn Device> = Arc::new(Emulator::new(dir, Schedule::Forward));
    let mut generator = Generator::new(device, weights, n_slots + 1).unwrap();
    written(&mut generator, &settings, n_slots, order)
}

/// Texts of all requests with any settings.
fn written(
    generator: &mut Generator,
    settings: &Settings,
    n_slots: usize,
    order: &[u64],
) -> Vec<Vec<u32>> {
    use std::ops::ControlFlow;

    use engine::task::Failure;

    struct Collect {
        requests: Vec<Request>,
        texts: Vec<Vec<u32>>,
    }

    impl Driver for Collect {
        fn next(&mut self) -> Option<Request> {
            self.requests.pop()
        }

        fn finished(&mut self, completion: Completion) -> Result<(), Failure> {
            self.texts[completion.index as usize] = completion.ids;
            Ok(())
        }

        fn stepped(&mut self, _: usize) -> Result<ControlFlow<()>, Failure> {
            Ok(ControlFlow::Continue(()))
        }
    }

    // Draws 2n and 2n + 1 share a prompt, which ends inside a page or with it.
    let request = |&i: &u64| Request {
        index: i,
        prompt: (0..[5, 16, 18][i as usize / 2]).map(|j| (7 * j + 3 + i as u32 / 2) % 40).collect(),
        rng: Philox::new(3, "test").fork(i),
        n_tokens_max: 4 + i as usize,
    };
    let requests = order.iter().rev().map(request).collect();
    let mut collect = Collect { requests, texts: vec![Vec::new(); order.len()] };
    generate(&Pool::new(2), generator, settings, n_slots, &mut collect).unwrap();
    collect.texts
}

/// Positions, pages, random numbers and penalized ids are those of each step, also where several
/// kinds of choice take turns on one decoder and tables grow.
#[test]
fn graphs_change_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let weights = weights(&config(true));
    let sample = |temperature, top_k, top_p| Choice::Sample(Policy { temperature, top_k, top_p });
    let all = [
        Settings { choice: sample(1.0, 0, 0.9), repetition_penalty: 1.1, ..greedy() },
        Settings { repetition_penalty: 1.3, suppress: vec![0, 2], ..greedy() },
        Settings { choice: sample(1.3, 7, 1.0), suppress: vec![3], ..greedy() },
        Settings { choice: sample(0.6, 0, 1.0), ..greedy() },
    ];
    let run = |keeps_graphs: bool| {
        let emulator = Arc::new(Emulator::new(dir.path(), Schedule::Forward));
        let device: Arc<dyn Device> = Arc::clone(&emulator) as _;
        let generator = Generator::new(device, &weights, 4).unwrap();
        let mut generator = if keeps_graphs { generator } else { generator.without_graphs() };
        let texts: Vec<Vec<Vec<u32>>> = (0..2)
            .flat_map(|_| &all)
            .map(|settings| written(&mut generator, settings, 3, &[5, 2, 0, 4, 1, 3]))
            .collect();
        (texts, emulator.n_replays())
    };
    let ((texts, n_replays), (plain, n_plain)) = (run(true), run(false));
    assert!(n_replays > 40 && n_plain == 0, "{n_replays} {n_plain}");
    assert_eq!(texts, plain);
    assert_eq!(texts[..4], texts[4..]);
}

#[test]
fn generated_texts_do_not_depend_on_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let weights = weights(&config(true));
    let expected = generated(&weights, dir.path(), 1, &[0, 1, 2, 3, 4, 5]);
    assert!(expected.iter().all(|ids| !ids.is_empty()), "{expected:?}");
    assert!(expected[4] != expected[5], "draws of one prompt differ");
    assert_eq!(generated(&weights, dir.path(), 4, &[0, 1, 2, 3, 4, 5]), expected);
    assert_eq!(generated(&weights, dir.path(), 3, &[5, 2, 0, 4, 1, 3]), expected);
}

/// Prompts, forks of them, and steps that are given their tokens; the logits of each.
fn walked<D: Decode>(decoder: &mut D, logits: impl Fn(&mut D, [usize; 2]) -> Vec<f32>) -> Vec<f32> {
    let (pool, settings) = (Pool::new(1), greedy());
    let chance = Chance { rng: Philox::new(1, "unused"), position: 0, seen: &[] };
    let whole = decoder.prefill(&pool, &[3, 1, 4, 1, 5, 9, 2, 6]).unwrap();
    let mut found = logits(decoder, [7, 1]);
    let mut forks = [decoder.fork(&whole).unwrap(), decoder.fork(&whole).unwrap()];
    decoder.release(whole);
    for i in 0..12 {
        let mut rows: Vec<Row<'_>> = ([i, 39 - i].into_iter().zip(&mut forks))
            .map(|(token, sequence)| Row { token, sequence, chance })
            .collect();
        decoder.step(&pool, &settings, &mut rows).unwrap();
        found.extend(logits(decoder, [0, 2]));
    }
    found
}

fn greedy() -> Settings {
    let choice = Choice::Greedy;
    Settings { choice, repetition_penalty: 1.0, suppress: Vec::new(), stop: Vec::new() }
}

#[test]
fn generation_has_the_logits_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let (weights, pool) = (weights(&config(false)), Pool::new(1));
    let device: Arc<dyn Device> = Arc::new(Emulator::new(dir.path(), Schedule::Backward));
    let mut generator = Generator::new(device, &weights, 3).unwrap();
    let found = walked(&mut generator, |generator, [_, n]| generator.decoder().logits(n).unwrap());
    let mut decoder = Decoder::new(&pool, &weights, 3);
    let expected =
        walked(&mut decoder, |decoder, [first, n]| decoder.logits(&pool, first, n).to_vec());
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.chunks(40).zip(expected.chunks(40)).enumerate() {
        let agreement = agreement(found, expected);
        assert!(agreement > 0.999, "row {i}: {agreement}");
    }
}

/// For the same logits a device chooses what the CPU chooses, with everything that settings have, and
/// nothing but the choice is copied back.
#[test]
fn a_device_chooses_as_the_cpu_and_sends_ids_only() {
    let dir = tempfile::tempdir().unwrap();
    let weights = weights(&config(true));
    let emulator = Arc::new(Emulator::new(dir.path(), Schedule::Forward));
    let device: Arc<dyn Device> = Arc::clone(&emulator) as _;
    let decoder = DeviceDecoder::new(device, &weights, 4, [16, 4]).unwrap();
    let pages: [[u32; 1]; 4] = [[2], [0], [3], [1]];
    let prompts: Vec<(&[u32], &[u32])> =
        (pages.iter().zip([[1, 2, 3], [9, 8, 7], [5, 5, 5], [0, 39, 0]].iter()))
            .map(|(pages, prompt)| (prompt.as_slice(), pages.as_slice()))
            .collect();
    let policy = |temperature, top_k, top_p| Choice::Sample(Policy { temperature, top_k, top_p });
    let seen: [&[u32]; 4] = [&[], &[0, 7, 39], &[5], &[1, 2, 3, 4, 5, 6]];
    let all = [
        greedy(),
        Settings { choice: policy(1.0, 0, 0.9), ..greedy() },
        Settings { choice: policy(0.7, 9, 0.95), suppress: vec![4, 11, 39], ..greedy() },
        Settings { repetition_penalty: 1.4, suppress: vec![0], ..greedy() },
        Settings { choice: policy(1.2, 0, 1.0), repetition_penalty: 1.1, ..greedy() },
    ];
    for (n, settings) in (0..).zip(&all) {
        let rng = |row: usize| Philox::new(n, "draws").fork(row as u64);
        let chances: Vec<Chance<'_>> = (0..4)
            .map(|row| Chance { rng: rng(row), position: n << 34 | row as u64, seen: seen[row] })
            .collect();
        decoder.prefill(&prompts).unwrap();
        let mut logits = decoder.logits(4).unwrap();
        let mut sampler = Sampler::new(kernels::isa::Isa::best());
        let expected: Vec<_> = (logits.chunks_exact_mut(40).zip(&chances))
            .map(|(logits, chance)| settings.choose(&mut sampler, logits, *chance))
            .collect();
        let before = emulator.n_bytes_read();
        assert_eq!(decoder.choose(settings, &chances).unwrap(), expected, "{settings:?}");
        assert_eq!(emulator.n_bytes_read() - before, 4 * 4, "an id a row");
    }
}
