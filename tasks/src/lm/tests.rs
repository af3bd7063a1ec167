//! Agreement with transformers' `Qwen3ForCausalLM`; the goldens come from
//! `tests/goldens/make_qwen3.py`.

mod shapes;

use std::path::{Path, PathBuf};

use kernels::Pool;
use kernels::cross_entropy::{IGNORE, Loss};
use safetensors::SafeTensors;

use super::backward::{Activations, Recompute};
use super::batch::{Batch, MicroBatch};
use super::forward::Forward;
use super::optimizer::{LearningRate, Optimizer, Shape};
use super::{Weights, hf};

const CASES: [&str; 3] = ["qwen3-1to1-tied", "qwen3-3to1-untied", "qwen3-4to1-tied"];
/// Largest difference relative to the largest value of a tensor: `f32` against `f64` sums.
const TOLERANCE: f64 = 1e-4;

struct Golden {
    dir: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    fn open(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
        Self { dir, bytes }
    }

    fn raw(&self, name: &str) -> Vec<[u8; 8]> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.tensor(name).unwrap().data().as_chunks::<8>().0.to_vec()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.raw(name).into_iter().map(|b| u32::try_from(i64::from_le_bytes(b)).unwrap()).collect()
    }

    fn f64s(&self, name: &str) -> Vec<f64> {
        self.raw(name).into_iter().map(f64::from_le_bytes).collect()
    }

    fn f32s(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        data.into_iter().map(|b| f64::from(f32::from_le_bytes(b))).collect()
    }

    fn batch(&self) -> Batch {
        let (ids, starts, targets) = (self.ids("ids"), self.ids("starts"), self.ids("targets"));
        let mut batch = Batch::default();
        for start in 0..ids.len() {
            let span: Vec<usize> =
                (0..ids.len()).filter(|&i| starts[i] as usize == start).collect();
            batch.push_span(
                span.iter().map(|&i| (ids[i], (targets[i] != IGNORE).then_some(targets[i]))),
            );
            batch.end_row();
        }
        batch
    }
}

fn whole(batch: &Batch) -> MicroBatch<'_> {
    batch.micro_batches(usize::MAX).next().unwrap()
}

fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    let error =
        found.iter().zip(expected).fold(0.0_f64, |m, (x, y)| m.max((f64::from(*x) - y).abs()));
    assert!(error <= TOLERANCE * size, "{what}: {error:e} of {size:e}");
}

#[test]
fn losses_and_every_gradient_agree() {
    for case in CASES {
        let golden = Golden::open(case);
        let weights = hf::load(&golden.dir).unwrap();
        let (pool, batch) = (Pool::new(2), golden.batch());
        let z_loss = golden.f64s("z_loss")[0];
        let micro = whole(&batch);
        let nll = Forward::new(weights.config(), 16).nll(
            &pool,
            &weights,
            micro.ids,
            &micro.starts,
            micro.targets,
        );
        assert_close(&nll, &golden.f64s("nll"), case);

        let loss = Loss { z_loss: z_loss as f32, scale: 1.0 / batch.n_targets() as f32 };
        let mut grads = Weights::zeros(weights.config());
        let mut activations = Activations::new(weights.config(), 16);
        let sums = activations.loss_and_gradients(&pool, &weights, &micro, loss, &mut grads);
        let objective = (sums.nll + z_loss * sums.z) / sums.n_tokens as f64;
        assert_close(&[objective as f32], &golden.f64s("loss"), case);
        assert_eq!(sums.n_tokens, batch.n_targets());
        for tensor in hf::tensors(weights.config(), "model.") {
            let expected = golden.f32s(&format!("grad.{}", tensor.name));
            assert_close(
                &grads.data()[tensor.range],
                &expected,
                &format!("{case} {}", tensor.name),
            );
        }

        // The same bits come out when blocks are computed again.
        let mut again = Weights::zeros(weights.config());
        let mut small = Activations::with_recompute(weights.config(), 16, Recompute::Blocks);
        let sums_again = small.loss_and_gradients(&pool, &weights, &micro, loss, &mut again);
        assert!(sums_again == sums && again.data() == grads.data(), "{case}");

        // The same gradients come out of micro-batches, within rounding.
        let mut parts = Weights::zeros(weights.config());
        for micro in batch.micro_batches(1) {
            activations.loss_and_gradients(&pool, &weights, &micro, loss, &mut parts);
        }
        let expected: Vec<f64> = grads.data().iter().map(|x| f64::from(*x)).collect();
        assert_close(parts.data(), &expected, "micro-batches");
    }
}

#[test]
fn steps_of_the_optimizer_agree() {
    for case in CASES {
        let golden = Golden::open(case);
        let mut weights = hf::load(&golden.dir).unwrap();
        let (pool, batch, history) = (Pool::new(1), golden.batch(), golden.f64s("history"));
        let rate = LearningRate {
            peak: 2e-2,
            end: 1e-3,
            n_warmup: 4,
            n_steps: history.len() as u64,
            shape: Shape::Cosine,
        };
        let scale = 1.0 / batch.n_targets() as f32;
        let loss = Loss { z_loss: golden.f64s("z_loss")[0] as f32, scale };
        let mut optimizer = Optimizer::new(&weights, 0.1, 0.5);
        let mut activations = Activations::new(weights.config(), 16);
        let mut losses = Vec::new();
        for step in 0..rate.n_steps {
            let mut grads = Weights::zeros(weights.config());
            let micro = whole(&batch);
            activations.loss_and_gradients(&pool, &weights, &micro, loss, &mut grads);
            let norm = Optimizer::norm(&pool, &grads);
            optimizer.step(&pool, &mut weights, &grads, norm, rate.at(step), step + 1);
            let after = activations.loss_and_gradients(&pool, &weights, &micro, loss, &mut grads);
            losses.push((after.nll / after.n_tokens as f64) as f32);
        }
        assert_close(&losses, &history, case);
    }
}

#[test]
fn states_before_the_last_block_are_within_reach() {
    let golden = Golden::open(CASES[0]);
    let weights = hf::load(&golden.dir).unwrap();
    let (pool, ids) = (Pool::new(1), [3, 1, 4]);
    let mut forward = Forward::new(weights.config(), 4);
    let embedded = forward.residual(&pool, &weights, &ids, &[0, 0, 0], 0).to_vec();
    let d = weights.config().d_model;
    assert_eq!(embedded[..d], weights.embedding()[3 * d..4 * d]);
    let one = forward.residual(&pool, &weights, &ids, &[0, 0, 0], 1).to_vec();
    let alone = forward.residual(&pool, &weights, &ids[..1], &[0], 1).to_vec();
    assert_eq!(one[..d], alone[..]);
    assert_ne!(one[..d], embedded[..d]);
}
