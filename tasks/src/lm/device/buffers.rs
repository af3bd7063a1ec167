//! Every buffer of a model on a device, in one list that is counted before and then taken.

use half::bf16;
use kernels::adamw::Factors;
use kernels::attention::Heads;
use kernels::cross_entropy::cuda::Scratch;
use kernels::cuda::Buffer;
use kernels::cuda::memory::Arena;
use kernels::qk_norm_rope::cuda::QkNormRope;
use kernels::{norm, rms_norm};

use super::BLOCK_PARTS;
use super::forward::BlockState;
use crate::lm::Config;

/// What a model on a device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// States and losses: no gradients, and one block's buffers serve all blocks.
    Read,
    /// Gradients and updates.
    Train,
}

/// Counts bytes as [`Arena`] hands them out, or takes them.
pub(super) enum Planner<'a> {
    Count(usize),
    Take(&'a mut Arena),
}

impl Planner<'_> {
    /// Bytes counted so far.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Count(bytes) => *bytes as u64,
            Self::Take(_) => unreachable!("an arena is not counted"),
        }
    }

    pub(super) fn take<T>(&mut self, len: usize) -> Option<Buffer<T>> {
        match self {
            Self::Count(bytes) => {
                *bytes += Arena::size_of::<T>(len);
                None
            }
            Self::Take(arena) => Some(arena.take(len)),
        }
    }
}

/// What every pass needs.
pub(super) struct Buffers {
    /// The weights as products read them.
    pub(super) rounded: Buffer<bf16>,
    /// One for each block, or one for all.
    pub(super) blocks: Vec<BlockState>,
    /// The residual stream before each block and after the last; or two that take turns.
    pub(super) residual: Vec<Buffer<bf16>>,
    /// What a layer adds to the residual stream, until the norm that follows adds it.
    pub(super) delta: Buffer<bf16>,
    pub(super) normed: Buffer<bf16>,
    pub(super) final_rstd: Buffer<f32>,
    pub(super) tokens: Tokens,
    pub(super) classifier: Scratch,
    pub(super) training: Option<Training>,
}

/// What only training needs.
pub(super) struct Training {
    pub(super) params: Buffer<f32>,
    pub(super) grads: Buffer<f32>,
    pub(super) first: Buffer<f32>,
    pub(super) second: Buffer<f32>,
    pub(super) gradients: Gradients,
    pub(super) scratch: Buffer<f32>,
    pub(super) norm_scratch: Buffer<f64>,
    /// Of a step's update: one for each part of the weights.
    pub(super) factors: Buffer<Factors>,
    pub(super) loss: Buffer<f32>,
}

/// Gradients of activations; each buffer serves every block.
pub(super) struct Gradients {
    pub(super) residual: Buffer<bf16>,
    /// Also [`Buffers::delta`]: the forward pass is over before the backward pass begins.
    pub(super) normed: Buffer<bf16>,
    pub(super) hidden: Buffer<bf16>,
    pub(super) gate_up: Buffer<bf16>,
    pub(super) heads_out: Buffer<bf16>,
    pub(super) qkv: Buffer<bf16>,
}

/// What a micro-batch brings, one number a token.
pub(super) struct Tokens {
    pub(super) ids: Buffer<u32>,
    pub(super) order: Buffer<u32>,
    pub(super) groups: Buffer<u32>,
    pub(super) starts: Buffer<u32>,
    pub(super) ends: Buffer<u32>,
    pub(super) positions: Buffer<u32>,
    pub(super) targets: Buffer<u32>,
}

impl Buffers {
    /// The buffers, or nothing when they are counted only.
    pub(super) fn new(
        config: &Config,
        capacity: usize,
        purpose: Purpose,
        planner: &mut Planner<'_>,
    ) -> Option<Self> {
        let d = config.d_model;
        let (n_blocks, n_residual) = match purpose {
            Purpose::Read => (1, 2),
            Purpose::Train => (config.n_layers, config.n_layers + 1),
        };
        let rounded = planner.take(config.n_parameters() as usize);
        let blocks: Vec<Option<BlockState>> =
            (0..n_blocks).map(|_| BlockState::new(config, capacity, planner)).collect();
        let residual: Vec<Option<Buffer<bf16>>> =
            (0..n_residual).map(|_| planner.take(capacity * d)).collect();
        let (delta, normed) = (planner.take(capacity * d), planner.take(capacity * d));
        let final_rstd = planner.take(capacity);
        let tokens = Tokens::new(capacity, planner);
        let logits_len = Scratch::logits_len(capacity, config.vocab_size);
        let (logits, d_logits) = (planner.take(logits_len), planner.take(logits_len));
        let (nll, lse, sums) = (planner.take(capacity), planner.take(capacity), planner.take(2));
        let training = match purpose {
            Purpose::Read => None,
            Purpose::Train => Some(Training::new(config, capacity, delta.as_ref(), planner)),
        };
        let classifier =
            Scratch { logits: logits?, d_logits: d_logits?, nll: nll?, lse: lse?, sums: sums? };
        Some(Self {
            rounded: rounded?,
            blocks: blocks.into_iter().collect::<Option<_>>()?,
            residual: residual.into_iter().collect::<Option<_>>()?,
            delta: delta?,
            normed: normed?,
            final_rstd: final_rstd?,
            tokens: tokens?,
            classifier,
            training: training.flatten(),
        })
    }
}

impl Training {
    fn new(
        config: &Config,
        capacity: usize,
        delta: Option<&Buffer<bf16>>,
        planner: &mut Planner<'_>,
    ) -> Option<Self> {
        let (n, d) = (config.n_parameters() as usize, config.d_model);
        let heads = Heads {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        };
        let [params, grads, first, second] = [(); 4].map(|()| planner.take(n));
        let [residual, hidden, gate_up, heads_out, qkv] =
            [d, config.d_ffn, 2 * config.d_ffn, config.q_width(), config.qkv_width()]
                .map(|width| planner.take(capacity * width));
        let scratch_len = rms_norm::cuda::backward_scratch_len(capacity, d)
            .max(QkNormRope::backward_scratch_len(heads))
            .max(capacity * config.n_heads);
        let scratch = planner.take(scratch_len);
        let norm_scratch = planner.take(norm::cuda::scratch_len(n));
        let (factors, loss) = (planner.take(n_parts(config)), planner.take(2));
        Some(Self {
            params: params?,
            grads: grads?,
            first: first?,
            second: second?,
            gradients: Gradients {
                residual: residual?,
                normed: delta?.clone(),
                hidden: hidden?,
                gate_up: gate_up?,
                heads_out: heads_out?,
                qkv: qkv?,
            },
            scratch: scratch?,
            norm_scratch: norm_scratch?,
            factors: factors?,
            loss: loss?,
        })
    }
}

/// Parts of the weights: the table, those of the blocks, the final gain, and the output if it is not
/// the table.
fn n_parts(config: &Config) -> usize {
    2 + BLOCK_PARTS * config.n_layers + usize::from(!config.tie_embeddings)
}

impl Tokens {
    fn new(capacity: usize, planner: &mut Planner<'_>) -> Option<Self> {
        let [ids, order, groups, starts, ends, positions, targets] =
            [1, 1, 3, 1, 1, 1, 1].map(|n| planner.take(n * capacity));
        Some(Self {
            ids: ids?,
            order: order?,
            groups: groups?,
            starts: starts?,
            ends: ends?,
            positions: positions?,
            targets: targets?,
        })
    }
}
