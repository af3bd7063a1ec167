//! Token-by-token inference on a device, over a paged cache of keys and values.
//!
//! Tokens are chosen where the logits are, by the CPU's rule to the bit: only ids cross the bus.
//! Attention and choice are by row. Products are not: a GPU's library plans them by the number of
//! rows, so the last bits of a row can depend on how many rows a step has. On the emulator they do not.

use std::sync::Arc;

use engine::task::Failure;
use half::bf16;
use kernels::Pool;
use kernels::attention::cuda::Documents;
use kernels::attention::{self, Heads};
use kernels::cuda::memory::Arena;
use kernels::cuda::product::{Layout, Product, Target};
use kernels::cuda::{Buffer, Device, Error};
use kernels::decode::cuda::{LayerCache, Step};
use kernels::decode::{Cache, Pages, Sequence};
use kernels::embedding::cuda::Ids;
use kernels::matmul::Accumulate;
use kernels::qk_norm_rope::Table;
use kernels::qk_norm_rope::cuda::{DeviceTable, Positions, QkNormRope};
use kernels::sampling::cuda::{self as sampling, Adjustment};
use kernels::{decode, embedding, rms_norm, swiglu};

use super::buffers::Planner;
use super::forward::{DOWN, GATE_UP, INPUT_NORM, O, POST_NORM, QKV};
use super::{BLOCK_PARTS, DeviceModel};
use crate::device;
use crate::lm::generate::{self, Chance, Choice, Chosen, Decode, Settings};
use crate::lm::weights::Part;
use crate::lm::{Config, Weights};

/// One token to compute: the pages of its sequence, and the positions it sees, its own the last.
pub type Row<'a> = (&'a [u32], usize);

/// A model on a device that computes the next tokens of many sequences.
pub struct DeviceDecoder {
    device: Arc<dyn Device>,
    config: Config,
    parts: Vec<Part>,
    rounded: Buffer<bf16>,
    table: DeviceTable,
    caches: Vec<LayerCache>,
    n_pages: usize,
    rows: Rows,
    logits: Buffer<f32>,
    choosing: Choosing,
}

/// [`DeviceDecoder`] with the pages of its sequences: what generation asks for.
///
/// Every step has the same number of rows, so that products have one plan and a text does not depend
/// on how many others are under way; rows that nobody needs write to a page that nobody reads.
pub struct Generator {
    decoder: DeviceDecoder,
    pages: Pages,
    /// Rows of a step.
    n_rows: usize,
    spare_page: u32,
}

/// Buffers of the rows of a step.
struct Rows {
    ids: [Buffer<u32>; 3],
    positions: Buffer<u32>,
    documents: [Buffer<u32>; 2],
    step: [Buffer<u32>; 3],
    x: Buffer<bf16>,
    delta: Buffer<bf16>,
    normed: Buffer<bf16>,
    qkv: Buffer<bf16>,
    heads_out: Buffer<bf16>,
    gate_up: Buffer<bf16>,
    hidden: Buffer<bf16>,
    rstd: Buffer<f32>,
    qk_rstd: Buffer<f32>,
    lse: Buffer<f32>,
}

/// What tokens are chosen with, beside the logits.
struct Choosing {
    /// Logits after the last prompt.
    prompt: Buffer<f32>,
    ids: [Buffer<u32>; 3],
    streams: Buffer<u64>,
    positions: Buffer<u64>,
    tokens: Buffer<u32>,
}

/// Whom the rows of a step attend to.
enum Attend {
    /// Each to its sequence in the cache.
    Cache,
    /// Whole prompts, each token to those before it.
    Prompts(Documents),
}

impl DeviceDecoder {
    /// Copies a model and takes memory for `n_pages` pages of 16 positions, steps of at most
    /// `n_rows` rows and logits of at most `n_logits`.
    ///
    /// # Errors
    /// When the device has not enough memory.
    ///
    /// # Panics
    /// When [`DeviceModel::supports`] says no.
    pub fn new(
        device: Arc<dyn Device>,
        weights: &Weights,
        n_pages: usize,
        [n_rows, n_logits]: [usize; 2],
    ) -> Result<Self, Error> {
        let config = weights.config().clone();
        DeviceModel::supports(&config).unwrap_or_else(|reason| panic!("checked before: {reason}"));
        let size_bytes = Self::bytes(&config, n_pages, [n_rows, n_logits]) as usize;
        let mut arena = Arena::new(&*device, size_bytes)?;
        let buffers =
            Buffers::new(&config, n_pages, [n_rows, n_logits], &mut Planner::Take(&mut arena));
        let Buffers { rounded, caches, rows, logits, choosing } =
            buffers.expect("an arena gives buffers");
        let values: Vec<bf16> = weights.data().iter().map(|&x| bf16::from_f32(x)).collect();
        rounded.write(&*device, &values)?;
        let table = Table::new(config.rope_theta, config.head_dim, config.context);
        let table = DeviceTable::new(&*device, &table)?;
        let parts = weights.parts();
        Ok(Self { device, config, parts, rounded, table, caches, n_pages, rows, logits, choosing })
    }

    /// Bytes of device memory that [`Self::new`] takes, rotary tables aside.
    pub fn bytes(config: &Config, n_pages: usize, n_rows_and_logits: [usize; 2]) -> u64 {
        let mut planner = Planner::Count(0);
        Buffers::new(config, n_pages, n_rows_and_logits, &mut planner);
        planner.bytes()
    }

    /// Computes whole prompts, `pages` being those of each, and leaves the logits of their last
    /// tokens.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When a prompt is empty or what was planned for is exceeded.
    pub fn prefill(&self, prompts: &[(&[u32], &[u32])]) -> Result<(), Error> {
        let device = &*self.device;
        let (mut tokens, mut starts, mut rows, mut lasts) = (vec![], vec![], vec![], vec![]);
        for (prompt, pages) in prompts {
            let start = tokens.len();
            assert!(!prompt.is_empty(), "a prompt has a token");
            tokens.extend_from_slice(prompt);
            starts.extend(std::iter::repeat_n(start as u32, prompt.len()));
            rows.extend((1..=prompt.len()).map(|count| (*pages, count)));
            lasts.push(tokens.len() - 1);
        }
        let [a, b] = &self.rows.documents;
        let documents = Documents::new(device, &starts, [a, b])?;
        let states = self.states(&tokens, &rows, &Attend::Prompts(documents))?;
        let row = |i: usize| states.slice(i * self.config.d_model..(i + 1) * self.config.d_model);
        // A prompt's last row moves to the front, to where no row is that is still wanted.
        for (to, &last) in lasts.iter().enumerate().filter(|(to, last)| to != *last) {
            row(to).copy_from(device, &row(last))?;
        }
        self.logits_of(&states, lasts.len())
    }

    /// Computes one more token of each row's sequence and leaves their logits.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When what was planned for is exceeded.
    pub fn step(&self, tokens: &[u32], rows: &[Row<'_>]) -> Result<(), Error> {
        let states = self.states(tokens, rows, &Attend::Cache)?;
        self.logits_of(&states, tokens.len())
    }

    /// Chooses a token from each of the first of the last logits, which are changed.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are more chances than logits, or [`Adjustment::new`] refuses an id.
    pub fn choose(
        &self,
        settings: &Settings,
        chances: &[Chance<'_>],
    ) -> Result<Vec<Chosen>, Error> {
        let (device, vocab, n) = (&*self.device, self.config.vocab_size, chances.len());
        let Choosing { ids: [suppressed, seen, ends], streams, positions, tokens, .. } =
            &self.choosing;
        let (logits, tokens) = (self.logits.front(n * vocab), tokens.front(n));
        let lists: Vec<&[u32]> = chances.iter().map(|chance| chance.seen).collect();
        let rule = (vocab, settings.repetition_penalty);
        let scratch = [suppressed, seen, ends];
        Adjustment::new(device, &settings.suppress, &lists, rule, scratch)?
            .apply(device, &logits)?;
        match &settings.choice {
            Choice::Greedy => sampling::greedy(device, &logits, vocab, &tokens)?,
            Choice::Sample(policy) => {
                let (streams, positions) = (streams.front(2 * n), positions.front(n));
                let of_rows: Vec<u64> =
                    chances.iter().flat_map(|chance| sampling::stream(chance.rng)).collect();
                streams.write(device, &of_rows)?;
                let of_rows: Vec<u64> = chances.iter().map(|chance| chance.position).collect();
                positions.write(device, &of_rows)?;
                let random = [&streams, &positions];
                sampling::draw(device, &logits, vocab, policy, random, &tokens)?;
            }
        }
        Ok(tokens.read(device)?.into_iter().map(sampling::chosen).collect())
    }

    /// Keeps the logits of the last prompt for [`Self::recall_prompt`].
    fn keep_prompt(&self) -> Result<(), Error> {
        let kept = &self.choosing.prompt;
        kept.copy_from(&*self.device, &self.logits.front(kept.len()))
    }

    /// Makes the logits that were kept the last ones.
    fn recall_prompt(&self) -> Result<(), Error> {
        let kept = &self.choosing.prompt;
        self.logits.front(kept.len()).copy_from(&*self.device, kept)
    }

    /// The last logits of `n` rows.
    ///
    /// # Errors
    /// When the device fails.
    pub fn logits(&self, n: usize) -> Result<Vec<f32>, Error> {
        self.logits.front(n * self.config.vocab_size).read(&*self.device)
    }

    fn part(&self, layer: usize, part: usize) -> Buffer<bf16> {
        self.rounded.slice(self.parts[1 + layer * BLOCK_PARTS + part].range.clone())
    }

    fn multiply(
        &self,
        sizes: [usize; 3],
        [x, weights]: [&Buffer<bf16>; 2],
        c: Target<'_>,
    ) -> Result<(), Error> {
        let accumulate = Accumulate::Overwrite;
        Product { layout: Layout::Nt, sizes, a: x, b: weights, c, accumulate }.run(&*self.device)
    }

    /// The normalized states after the last block.
    fn states(
        &self,
        tokens: &[u32],
        rows: &[Row<'_>],
        attend: &Attend,
    ) -> Result<Buffer<bf16>, Error> {
        let (device, config, t) = (&*self.device, &self.config, tokens.len());
        let all = &self.rows;
        let [ids, order, groups] = &all.ids;
        let ids = Ids::new(device, tokens, config.vocab_size, [ids, order, groups])?;
        let [slots, tables, counts] = &all.step;
        let step = Step::new(device, rows, self.n_pages, [slots, tables, counts])?;
        let at: Vec<u32> = rows.iter().map(|(_, count)| *count as u32 - 1).collect();
        let positions = Positions::new(device, &at, &self.table, &all.positions)?;
        let x = all.x.front(t * config.d_model);
        let table = self.rounded.slice(self.parts[0].range.clone());
        embedding::cuda::forward(device, &table, &ids, &x)?;
        for layer in 0..config.n_layers {
            self.block(layer, &x, &step, &positions, attend)?;
        }
        let gain = self.parts[1 + config.n_layers * BLOCK_PARTS].range.clone();
        let (delta, normed) = (all.delta.front(x.len()), all.normed.front(x.len()));
        let (gain, rstd) = (self.rounded.slice(gain), all.rstd.front(t));
        let sum = [&x, &delta, &x];
        rms_norm::cuda::add_forward(device, sum, &gain, config.norm_eps, &normed, &rstd)?;
        Ok(normed)
    }

    /// Runs a block on the residual stream in place.
    fn block(
        &self,
        layer: usize,
        x: &Buffer<bf16>,
        step: &Step,
        positions: &Positions,
        attend: &Attend,
    ) -> Result<(), Error> {
        let (device, config, all) = (&*self.device, &self.config, &self.rows);
        let (d, f, eps) = (config.d_model, config.d_ffn, config.norm_eps);
        let (t, heads) = (x.len() / d, heads(config));
        let (normed, delta) = (all.normed.front(t * d), all.delta.front(t * d));
        let rstd = all.rstd.front(t);
        let norm = |part, first: bool| {
            let gain = self.part(layer, part);
            if first {
                rms_norm::cuda::forward(device, x, &gain, eps, &normed, &rstd)
            } else {
                rms_norm::cuda::add_forward(device, [x, &delta, x], &gain, eps, &normed, &rstd)
            }
        };
        // What the block before added at its end is added here.
        norm(INPUT_NORM, layer == 0)?;
        let qkv = all.qkv.front(t * config.qkv_width());
        let weights = self.part(layer, QKV);
        self.multiply([t, config.qkv_width(), d], [&normed, &weights], Target::Bf16(&qkv))?;
        let at = 1 + layer * BLOCK_PARTS;
        let gains =
            self.rounded.slice(self.parts[at + 2].range.start..self.parts[at + 3].range.end);
        let qk_rstd = all.qk_rstd.front(t * (config.n_heads + config.n_kv_heads));
        QkNormRope { heads, gains: &gains, eps, positions, table: &self.table }
            .forward(device, &qkv, &qkv, &qk_rstd)?;
        let (cache, heads_out) = (&self.caches[layer], all.heads_out.front(t * config.q_width()));
        decode::cuda::write(device, &qkv, heads, step, cache)?;
        match attend {
            Attend::Cache => decode::cuda::attend(device, &qkv, heads, step, cache, &heads_out)?,
            Attend::Prompts(documents) => {
                let lse = all.lse.front(t * config.n_heads);
                attention::cuda::forward(device, &qkv, heads, documents, &heads_out, &lse)?;
            }
        }
        let weights = self.part(layer, O);
        self.multiply([t, d, config.q_width()], [&heads_out, &weights], Target::Bf16(&delta))?;
        norm(POST_NORM, false)?;
        let (gate_up, hidden) = (all.gate_up.front(t * 2 * f), all.hidden.front(t * f));
        let weights = self.part(layer, GATE_UP);
        self.multiply([t, 2 * f, d], [&normed, &weights], Target::Bf16(&gate_up))?;
        swiglu::cuda::forward(device, &gate_up, f, &hidden)?;
        let weights = self.part(layer, DOWN);
        self.multiply([t, d, f], [&hidden, &weights], Target::Bf16(&delta))
    }

    /// Multiplies the first `n` rows of normalized states with the output matrix.
    fn logits_of(&self, states: &Buffer<bf16>, n: usize) -> Result<(), Error> {
        let (d, v) = (self.config.d_model, self.config.vocab_size);
        let output = if self.config.tie_embeddings { 0 } else { self.parts.len() - 1 };
        let output = self.rounded.slice(self.parts[output].range.clone());
        let logits = self.logits.front(n * v);
        self.multiply([n, v, d], [states, &output], Target::F32(&logits))
    }
}

/// Every buffer of a decoder, counted or taken.
struct Buffers {
    rounded: Buffer<bf16>,
    caches: Vec<LayerCache>,
    rows: Rows,
    logits: Buffer<f32>,
    choosing: Choosing,
}

impl Buffers {
    fn new(
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

impl Generator {
    /// What a node that generates `n_sequences` texts at a time is to ask of a device.
    pub fn work(config: &Config, n_sequences: usize) -> device::Work {
        let [n_pages, n_rows] = Self::sizes(config, n_sequences);
        device::Work {
            supported: DeviceModel::supports(config),
            planned_bytes: DeviceDecoder::bytes(config, n_pages, [n_rows, n_sequences]),
            remedy: "lower `batch`",
        }
    }

    /// Copies a model and plans the cache for `n_sequences` of the model's whole context.
    ///
    /// # Errors
    /// When the device has not enough memory.
    ///
    /// # Panics
    /// When [`DeviceModel::supports`] says no.
    pub fn new(
        device: Arc<dyn Device>,
        weights: &Weights,
        n_sequences: usize,
    ) -> Result<Self, Failure> {
        let [n_pages, n_rows] = Self::sizes(weights.config(), n_sequences);
        let decoder = DeviceDecoder::new(device, weights, n_pages, [n_rows, n_sequences])
            .map_err(device::failure)?;
        let spare_page = n_pages - 1;
        Ok(Self {
            decoder,
            pages: Pages::new(spare_page),
            n_rows: n_sequences,
            spare_page: spare_page as u32,
        })
    }

    /// What computes.
    pub fn decoder(&self) -> &DeviceDecoder {
        &self.decoder
    }

    /// Pages with the spare one, and most rows of a pass.
    fn sizes(config: &Config, n_sequences: usize) -> [usize; 2] {
        let n_rows = n_sequences.max(config.context);
        [n_sequences * Cache::pages_for(config.context) + 1, n_rows]
    }
}

impl Decode for Generator {
    fn config(&self) -> &Config {
        &self.decoder.config
    }

    fn prefill(&mut self, _: &Pool, prompt: &[u32]) -> Result<Sequence, Failure> {
        let mut sequence = self.pages.start();
        self.pages.extend(&mut sequence, prompt.len()).expect("the cache was planned for it");
        let decoder = &self.decoder;
        decoder
            .prefill(&[(prompt, sequence.pages())])
            .and_then(|()| decoder.keep_prompt())
            .map_err(device::failure)?;
        Ok(sequence)
    }

    fn first(
        &mut self,
        _: &Pool,
        settings: &Settings,
        chance: Chance<'_>,
    ) -> Result<Chosen, Failure> {
        let decoder = &self.decoder;
        decoder.recall_prompt().map_err(device::failure)?;
        Ok(decoder.choose(settings, &[chance]).map_err(device::failure)?[0])
    }

    fn fork(&mut self, sequence: &Sequence) -> Result<Sequence, Failure> {
        let (fork, copy) = self.pages.fork(sequence).expect("the cache was planned for it");
        let DeviceDecoder { device, config, caches, .. } = &self.decoder;
        for cache in caches {
            if let Some(pages) = copy {
                cache.copy_page(&**device, heads(config), pages).map_err(device::failure)?;
            }
        }
        Ok(fork)
    }

    fn release(&mut self, sequence: Sequence) {
        self.pages.release(sequence);
    }

    fn step(
        &mut self,
        _: &Pool,
        settings: &Settings,
        rows: &mut [generate::Row<'_>],
    ) -> Result<Vec<Chosen>, Failure> {
        for row in &mut *rows {
            self.pages.extend(row.sequence, 1).expect("the cache was planned for it");
        }
        let spare: &[u32] = &[self.spare_page];
        let (mut tokens, mut places): (Vec<u32>, Vec<Row<'_>>) =
            rows.iter().map(|row| (row.token, (row.sequence.pages(), row.sequence.len()))).unzip();
        tokens.resize(self.n_rows, 0);
        places.resize(self.n_rows, (spare, 1));
        self.decoder.step(&tokens, &places).map_err(device::failure)?;
        let chances: Vec<Chance<'_>> = rows.iter().map(|row| row.chance).collect();
        self.decoder.choose(settings, &chances).map_err(device::failure)
    }
}

impl Choosing {
    /// For at most `n` rows.
    fn new(config: &Config, n: usize, planner: &mut Planner<'_>) -> Option<Self> {
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
    fn new(config: &Config, n: usize, planner: &mut Planner<'_>) -> Option<Self> {
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

fn heads(config: &Config) -> Heads {
    let Config { n_heads, n_kv_heads, head_dim, .. } = *config;
    Heads { n_heads, n_kv_heads, head_dim }
}
