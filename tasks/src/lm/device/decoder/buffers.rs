//! Every buffer of a decoder, in one list that is counted before and then taken.

use half::bf16;
use kernels::cuda::Buffer;
use kernels::decode::cuda::LayerCache;

use super::heads;
use crate::lm::Config;
use crate::lm::device::buffers::Planner;

/// Buffers of the rows of a step.
pub(super) struct Rows {
    pub(super) ids: [Buffer<u32>; 3],
    pub(super) positions: Buffer<u32>,
    pub(super) documents: [Buffer<u32>; 2],
    pub(super) step: [Buffer<u32>; 3],
    pub(super) x: Buffer<bf16>,
    pub(super) delta: Buffer<bf16>,
    pub(super) normed: Buffer<bf16>,
    pub(super) qkv: Buffer<bf16>,
    pub(super) heads_out: Buffer<bf16>,
    pub(super) gate_up: Buffer<bf16>,
    pub(super) hidden: Buffer<bf16>,
    pub(super) rstd: Buffer<f32>,
    pub(super) qk_rstd: Buffer<f32>,
    pub(super) lse: Buffer<f32>,
}

/// What tokens are chosen with, beside the logits.
pub(super) struct Choosing {
    /// Logits after the last prompt.
    pub(super) prompt: Buffer<f32>,
    pub(super) ids: [Buffer<u32>; 3],
    pub(super) streams: Buffer<u64>,
    pub(super) positions: Buffer<u64>,
    pub(super) tokens: Buffer<u32>,
}

/// Every buffer of a decoder, counted or taken.
pub(super) struct Buffers {
    pub(super) rounded: Buffer<bf16>,
    pub(super) caches: Vec<LayerCache>,
    pub(super) rows: Rows,
    pub(super) logits: Buffer<f32>,
    pub(super) choosing: Choosing,
}

impl Buffers {
    pub(super) fn new(
        config: &Config,
        n_pages: usize,
        [n_rows, n_logits]: [usize; 2],
        planner: &mut Planner<'_>,
    ) -> Option<Self> {
        let rounded = planner.take(config.n_parameters() as usize);
        let len = LayerCache::len_of(heads(config), n_pages);
        let caches: Vec<Option<LayerCache>> = (0..config.n_layers)
            .map(|_| {
                let (keys, values) = (planner.take(len), planner.take(len));
                Some(LayerCache { keys: keys?, values: values? })
            })
            .collect();
        let rows = Rows::new(config, n_rows, planner);
        let logits = planner.take(n_logits * config.vocab_size);
        let choosing = Choosing::new(config, n_logits, planner);
        let caches = caches.into_iter().collect::<Option<_>>()?;
        let (rounded, rows, logits) = (rounded?, rows?, logits?);
        Some(Self { rounded, caches, rows, logits, choosing: choosing? })
    }
}

impl Choosing {
    /// For at most `n` rows.
    pub(super) fn new(config: &Config, n: usize, planner: &mut Planner<'_>) -> Option<Self> {
        let prompt = planner.take(config.vocab_size);
        let ids = [config.vocab_size, n * config.context, n + 1].map(|len| planner.take(len));
        let (streams, positions) = (planner.take(2 * n), planner.take(n));
        let tokens = planner.take(n);
        let [suppressed, seen, ends] = ids;
        Some(Self {
            prompt: prompt?,
            ids: [suppressed?, seen?, ends?],
            streams: streams?,
            positions: positions?,
            tokens: tokens?,
        })
    }
}

impl Rows {
    pub(super) fn new(config: &Config, n: usize, planner: &mut Planner<'_>) -> Option<Self> {
        let pages = config.context.div_ceil(16);
        let numbers = [n, n, 3 * n, n, n, n, n, n * pages, n].map(|len| planner.take(len));
        let (d, f) = (config.d_model, config.d_ffn);
        let low = [d, d, d, config.qkv_width(), config.q_width(), 2 * f, f]
            .map(|width| planner.take(n * width));
        let high = [1, config.n_heads + config.n_kv_heads, config.n_heads]
            .map(|width| planner.take(n * width));
        let [ids, order, groups, positions, starts, ends, slots, tables, counts] = numbers;
        let [x, delta, normed, qkv, heads_out, gate_up, hidden] = low;
        let [rstd, qk_rstd, lse] = high;
        Some(Self {
            ids: [ids?, order?, groups?],
            positions: positions?,
            documents: [starts?, ends?],
            step: [slots?, tables?, counts?],
            x: x?,
            delta: delta?,
            normed: normed?,
            qkv: qkv?,
            heads_out: heads_out?,
            gate_up: gate_up?,
            hidden: hidden?,
            rstd: rstd?,
            qk_rstd: qk_rstd?,
            lse: lse?,
        })
    }
}
