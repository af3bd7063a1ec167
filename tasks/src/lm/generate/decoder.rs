//! The forward pass for single tokens of many sequences, over a cache of keys and values.

use engine::task::Failure;
use kernels::decode::attention::{self, Layer, Row, Step};
use kernels::decode::{Cache, Packed, Sequence, cache};
use kernels::matmul::Accumulate;
use kernels::qk_norm_rope::Table;
use kernels::sampling::{NotFinite, Sampler};
use kernels::{Pool, embedding, rms_norm, swiglu};

use super::{Chance, Chosen, Decode, Settings};
use crate::lm::{Config, Weights};

/// Rows of one prefill step: enough to share each load of the weights, few enough to stay in cache.
const PREFILL_ROWS: usize = 64;

/// A model ready to generate: weights packed for few rows, and room for `n_sequences`.
///
/// What a row gets does not depend on the other rows of its step; see [`kernels::decode`].
pub struct Decoder<'a> {
    weights: &'a Weights,
    blocks: Vec<PackedBlock>,
    output: Packed,
    table: Table,
    cache: Cache,
    buffers: Buffers,
    /// Logits after the last prompt, and a copy to choose from.
    prompt: [Vec<f32>; 2],
    /// One a sequence.
    samplers: Vec<Sampler>,
}

struct PackedBlock {
    qkv: Packed,
    o: Packed,
    gate_up: Packed,
    down: Packed,
}

/// Buffers of one step, each `[rows, width]`.
struct Buffers {
    x: Vec<f32>,
    normalized: Vec<f32>,
    rstd: Vec<f32>,
    qkv: Vec<f32>,
    heads_out: Vec<f32>,
    gate_up: Vec<f32>,
    hidden: Vec<f32>,
    logits: Vec<f32>,
}

impl<'a> Decoder<'a> {
    /// Packs `weights` and plans the cache for `n_sequences` of the model's whole context.
    pub fn new(pool: &Pool, weights: &'a Weights, n_sequences: usize) -> Self {
        let config = weights.config();
        let d = config.d_model;
        let blocks = (0..config.n_layers)
            .map(|layer| {
                let block = weights.block(layer);
                PackedBlock {
                    qkv: Packed::new(pool, block.qkv, config.qkv_width(), d),
                    o: Packed::new(pool, block.o, d, config.q_width()),
                    gate_up: Packed::new(pool, block.gate_up, 2 * config.d_ffn, d),
                    down: Packed::new(pool, block.down, d, config.d_ffn),
                }
            })
            .collect();
        let n_pages = n_sequences * Cache::pages_for(config.context);
        Self {
            weights,
            blocks,
            output: Packed::new(pool, weights.output(), config.vocab_size, d),
            table: Table::new(config.rope_theta, config.head_dim, config.context),
            cache: Cache::new(shape(config), n_pages),
            buffers: Buffers::new(config, n_sequences.max(PREFILL_ROWS), n_sequences),
            prompt: [(); 2].map(|()| vec![0.0; config.vocab_size]),
            samplers: (0..n_sequences).map(|_| Sampler::new(pool.isa())).collect(),
        }
    }

    /// Bytes that [`Self::new`] takes once every sequence fills the context, beside the weights.
    pub fn bytes(config: &Config, n_sequences: usize) -> u64 {
        let pages = n_sequences * Cache::pages_for(config.context);
        let widths = 2 * config.d_model + config.qkv_width() + config.q_width() + 3 * config.d_ffn;
        let rows = n_sequences.max(PREFILL_ROWS);
        let floats = config.n_parameters()
            + (rows * widths + n_sequences * config.vocab_size) as u64
            + (config.context * config.head_dim) as u64;
        4 * floats + (pages * Cache::page_bytes(shape(config))) as u64
    }

    /// Bytes of the keys and values of one token.
    pub fn cache_bytes_per_token(config: &Config) -> u64 {
        (2 * 4 * config.n_layers * config.kv_width()) as u64
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.weights.config()
    }

    /// The cache, to start, fork and release sequences.
    pub fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }

    /// Computes one token for each row: its keys and values enter the cache, its state is kept for
    /// [`Self::logits`].
    ///
    /// # Panics
    /// When tokens and rows differ in number, there are more than fit the buffers, a token is not in
    /// the vocabulary, or a row is outside its sequence.
    pub fn step(&mut self, pool: &Pool, tokens: &[u32], rows: &[Row<'_>]) {
        assert_eq!(tokens.len(), rows.len(), "one token a row");
        let config = self.weights.config();
        let (m, d, eps) = (rows.len(), config.d_model, config.norm_eps);
        let step = Step::new(&self.cache, rows);
        let buffers = &mut self.buffers;
        let x = &mut buffers.x[..m * d];
        let normalized = &mut buffers.normalized[..m * d];
        let rstd = &mut buffers.rstd[..m];
        let qkv = &mut buffers.qkv[..m * config.qkv_width()];
        let heads_out = &mut buffers.heads_out[..m * config.q_width()];
        let gate_up = &mut buffers.gate_up[..m * 2 * config.d_ffn];
        let hidden = &mut buffers.hidden[..m * config.d_ffn];
        embedding::forward(pool, self.weights.embedding(), tokens, x);
        for (index, packed) in self.blocks.iter().enumerate() {
            let block = self.weights.block(index);
            let layer = Layer {
                index,
                n_heads: config.n_heads,
                q_gain: block.q_norm,
                k_gain: block.k_norm,
                eps,
                table: &self.table,
            };
            rms_norm::forward(pool, x, block.input_norm, eps, normalized, rstd);
            packed.qkv.apply(pool, normalized, qkv, Accumulate::Overwrite);
            attention::append(pool, &mut self.cache, &step, &layer, qkv);
            attention::attend(pool, &self.cache, &step, &layer, qkv, heads_out);
            packed.o.apply(pool, heads_out, x, Accumulate::Add);
            rms_norm::forward(pool, x, block.post_norm, eps, normalized, rstd);
            packed.gate_up.apply(pool, normalized, gate_up, Accumulate::Overwrite);
            swiglu::forward(pool, gate_up, config.d_ffn, hidden);
            packed.down.apply(pool, hidden, x, Accumulate::Add);
        }
    }

    /// The logits of rows `first..first + n` of the last step, `[n, vocab_size]`, to be changed at
    /// will.
    ///
    /// # Panics
    /// When there are more rows than sequences.
    pub fn logits(&mut self, pool: &Pool, first: usize, n: usize) -> &mut [f32] {
        let config = self.weights.config();
        let d = config.d_model;
        let buffers = &mut self.buffers;
        let x = &buffers.x[first * d..(first + n) * d];
        let normalized = &mut buffers.normalized[..n * d];
        let gain = self.weights.final_norm();
        rms_norm::forward(pool, x, gain, config.norm_eps, normalized, &mut buffers.rstd[..n]);
        let logits = &mut buffers.logits[..n * config.vocab_size];
        self.output.apply(pool, normalized, logits, Accumulate::Overwrite);
        logits
    }

    /// A new sequence that holds `prompt`; [`Self::logits`] of the row given back beside it are those
    /// after the prompt's last token.
    ///
    /// # Panics
    /// When the prompt is empty or longer than the context, or the cache is full.
    pub fn prefill(&mut self, pool: &Pool, prompt: &[u32]) -> (Sequence, usize) {
        assert!(!prompt.is_empty(), "a prompt has a token");
        let mut sequence = self.cache.start();
        self.cache.extend(&mut sequence, prompt.len()).expect("the cache was planned for it");
        for (chunk, tokens) in prompt.chunks(PREFILL_ROWS).enumerate() {
            let rows: Vec<Row<'_>> = (chunk * PREFILL_ROWS..)
                .take(tokens.len())
                .map(|position| Row { sequence: &sequence, position })
                .collect();
            self.step(pool, tokens, &rows);
        }
        (sequence, (prompt.len() - 1) % PREFILL_ROWS)
    }
}

impl Decode for Decoder<'_> {
    fn config(&self) -> &Config {
        self.weights.config()
    }

    fn prefill(&mut self, pool: &Pool, prompt: &[u32]) -> Result<Sequence, Failure> {
        let (sequence, last) = Decoder::prefill(self, pool, prompt);
        let mut kept = std::mem::take(&mut self.prompt);
        kept[0].copy_from_slice(self.logits(pool, last, 1));
        self.prompt = kept;
        Ok(sequence)
    }

    fn first(
        &mut self,
        _: &Pool,
        settings: &Settings,
        chance: Chance<'_>,
    ) -> Result<Chosen, Failure> {
        let [kept, logits] = &mut self.prompt;
        logits.copy_from_slice(kept);
        Ok(settings.choose(&mut self.samplers[0], logits, chance))
    }

    fn fork(&mut self, sequence: &Sequence) -> Result<Sequence, Failure> {
        Ok(self.cache.fork(sequence).expect("the cache was planned for it"))
    }

    fn release(&mut self, sequence: Sequence) {
        self.cache.release(sequence);
    }

    fn step(
        &mut self,
        pool: &Pool,
        settings: &Settings,
        rows: &mut [super::Row<'_>],
    ) -> Result<Vec<Chosen>, Failure> {
        for row in &mut *rows {
            self.cache.extend(row.sequence, 1).expect("the cache was planned for it");
        }
        let tokens: Vec<u32> = rows.iter().map(|row| row.token).collect();
        let places: Vec<Row<'_>> = (rows.iter())
            .map(|row| Row { sequence: row.sequence, position: row.sequence.len() - 1 })
            .collect();
        Decoder::step(self, pool, &tokens, &places);
        let n_vocab = self.config().vocab_size;
        let mut samplers = std::mem::take(&mut self.samplers);
        let logits = self.logits(pool, 0, rows.len()).chunks_exact_mut(n_vocab);
        let mut chosen = vec![Err(NotFinite); rows.len()];
        let mut work: Vec<_> = (chosen.iter_mut().zip(&mut samplers))
            .zip(logits.zip(rows.iter().map(|row| row.chance)))
            .collect();
        pool.for_chunks(&mut work, 1, |_, work| {
            for ((chosen, sampler), (logits, chance)) in work {
                **chosen = settings.choose(sampler, logits, *chance);
            }
        });
        self.samplers = samplers;
        Ok(chosen)
    }
}

fn shape(config: &Config) -> cache::Shape {
    let Config { n_layers, n_kv_heads, head_dim, .. } = *config;
    cache::Shape { n_layers, n_kv_heads, head_dim }
}

impl Buffers {
    fn new(config: &Config, n_rows: usize, n_logits: usize) -> Self {
        let buffer = |width: usize| vec![0.0; n_rows * width];
        Self {
            x: buffer(config.d_model),
            normalized: buffer(config.d_model),
            rstd: buffer(1),
            qkv: buffer(config.qkv_width()),
            heads_out: buffer(config.q_width()),
            gate_up: buffer(2 * config.d_ffn),
            hidden: buffer(config.d_ffn),
            logits: vec![0.0; n_logits * config.vocab_size],
        }
    }
}
