//! Token-by-token inference on a device, over a paged cache of keys and values.
//!
//! Tokens are chosen where the logits are, by the CPU's rule to the bit: only ids cross the bus. A step
//! is one graph: ids, page tables, positions and random streams are written to the device before, and
//! the graph reads them there. Attention and choice are by row. Products are not: a GPU's library plans
//! them by the number of rows, so the last bits of a row can depend on how many rows a step has. On the
//! emulator they do not.

mod buffers;
mod generator;

use std::sync::Arc;

use half::bf16;
use kernels::attention::cuda::Documents;
use kernels::attention::{self, Heads};
use kernels::cuda::graph::Graphs;
use kernels::cuda::memory::Arena;
use kernels::cuda::product::{Layout, Product, Target};
use kernels::cuda::{Buffer, Device, Error};
use kernels::decode;
use kernels::decode::cuda::{LayerCache, Step};
use kernels::embedding::cuda::Ids;
use kernels::matmul::Accumulate;
use kernels::qk_norm_rope::Table;
use kernels::qk_norm_rope::cuda::{DeviceTable, Positions, QkNormRope};
use kernels::sampling::cuda::{self as sampling, Adjustment};
use kernels::{embedding, rms_norm, swiglu};

use super::buffers::Planner;
use super::forward::{DOWN, GATE_UP, INPUT_NORM, O, POST_NORM, QKV};
use super::{BLOCK_PARTS, DeviceModel};
use crate::lm::generate::{Chance, Choice, Chosen, Settings};
use crate::lm::weights::Part;
use crate::lm::{Config, Weights};
use buffers::{Buffers, Choosing, Rows};
pub use generator::Generator;

/// Shapes of steps whose graphs are kept: of one batch, the widths of its page tables.
const N_GRAPHS: usize = 16;

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
    graphs: Graphs<Shape>,
}

/// What the launches of a step depend on, beside what is in device memory.
#[derive(Clone, Copy, PartialEq)]
struct Shape {
    n_rows: usize,
    table_width: usize,
    /// How tokens are chosen in the same step, where they are.
    rule: Option<Rule>,
}

/// [`Settings`] as kernels take them.
#[derive(Clone, Copy, PartialEq)]
struct Rule {
    choice: Choice,
    repetition_penalty: f32,
    n_suppressed: usize,
}

impl Rule {
    fn of(settings: &Settings) -> Self {
        let &Settings { choice, repetition_penalty, ref suppress, .. } = settings;
        Self { choice, repetition_penalty, n_suppressed: suppress.len() }
    }
}

/// The rows of a step on the device.
struct Placed {
    ids: Ids,
    step: Step,
    positions: Positions,
    n_rows: usize,
}

/// What the tokens of some rows are chosen with, on the device.
struct PlacedChances {
    adjustment: Adjustment,
    logits: Buffer<f32>,
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
        let graphs = Graphs::new(N_GRAPHS);
        Ok(Self {
            device,
            config,
            parts,
            rounded,
            table,
            caches,
            n_pages,
            rows,
            logits,
            choosing,
            graphs,
        })
    }

    /// The same without graphs: each kernel is launched by itself.
    #[must_use]
    pub fn without_graphs(self) -> Self {
        Self { graphs: Graphs::new(0), ..self }
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
        let placed = self.place(&tokens, &rows)?;
        let states = self.states(&placed, &Attend::Prompts(documents))?;
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
        let placed = self.place(tokens, rows)?;
        self.graphs.run(&*self.device, placed.shape(None), || self.compute(&placed))
    }

    /// As [`Self::step`], and chooses a token after each row.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// As of both, and when there is not a chance for each row.
    pub fn step_and_choose(
        &self,
        tokens: &[u32],
        rows: &[Row<'_>],
        settings: &Settings,
        chances: &[Chance<'_>],
    ) -> Result<Vec<Chosen>, Error> {
        assert_eq!(chances.len(), rows.len(), "a chance for each row");
        let placed = self.place(tokens, rows)?;
        let with = self.place_chances(settings, chances)?;
        let shape = placed.shape(Some(Rule::of(settings)));
        self.graphs.run(&*self.device, shape, || {
            self.compute(&placed)?;
            self.choose_with(settings, &with)
        })?;
        self.chosen(&with)
    }

    /// The launches of a step.
    fn compute(&self, placed: &Placed) -> Result<(), Error> {
        let states = self.states(placed, &Attend::Cache)?;
        self.logits_of(&states, placed.n_rows)
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
        let with = self.place_chances(settings, chances)?;
        self.choose_with(settings, &with)?;
        self.chosen(&with)
    }

    fn place_chances(
        &self,
        settings: &Settings,
        chances: &[Chance<'_>],
    ) -> Result<PlacedChances, Error> {
        let (device, vocab, n) = (&*self.device, self.config.vocab_size, chances.len());
        let Choosing { ids: [suppressed, seen, ends], streams, positions, tokens, .. } =
            &self.choosing;
        let lists: Vec<&[u32]> = chances.iter().map(|chance| chance.seen).collect();
        let rule = (vocab, settings.repetition_penalty);
        let scratch = [suppressed, seen, ends];
        let adjustment = Adjustment::new(device, &settings.suppress, &lists, rule, scratch)?;
        let (streams, positions) = (streams.front(2 * n), positions.front(n));
        if matches!(settings.choice, Choice::Sample(_)) {
            let of_rows: Vec<u64> =
                chances.iter().flat_map(|chance| sampling::stream(chance.rng)).collect();
            streams.write(device, &of_rows)?;
            let of_rows: Vec<u64> = chances.iter().map(|chance| chance.position).collect();
            positions.write(device, &of_rows)?;
        }
        let (logits, tokens) = (self.logits.front(n * vocab), tokens.front(n));
        Ok(PlacedChances { adjustment, logits, streams, positions, tokens })
    }

    /// The launches of a choice.
    fn choose_with(&self, settings: &Settings, with: &PlacedChances) -> Result<(), Error> {
        let (device, vocab) = (&*self.device, self.config.vocab_size);
        let PlacedChances { adjustment, logits, streams, positions, tokens } = with;
        adjustment.apply(device, logits)?;
        match &settings.choice {
            Choice::Greedy => sampling::greedy(device, logits, vocab, tokens),
            Choice::Sample(policy) => {
                sampling::draw(device, logits, vocab, policy, [streams, positions], tokens)
            }
        }
    }

    fn chosen(&self, with: &PlacedChances) -> Result<Vec<Chosen>, Error> {
        Ok(with.tokens.read(&*self.device)?.into_iter().map(sampling::chosen).collect())
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

    /// Copies what is to be computed to the device.
    fn place(&self, tokens: &[u32], rows: &[Row<'_>]) -> Result<Placed, Error> {
        let (device, all) = (&*self.device, &self.rows);
        let [ids, order, groups] = &all.ids;
        let ids = Ids::new(device, tokens, self.config.vocab_size, [ids, order, groups])?;
        let [slots, tables, counts] = &all.step;
        let step = Step::new(device, rows, self.n_pages, [slots, tables, counts])?;
        let at: Vec<u32> = rows.iter().map(|(_, count)| *count as u32 - 1).collect();
        let positions = Positions::new(device, &at, &self.table, &all.positions)?;
        Ok(Placed { ids, step, positions, n_rows: rows.len() })
    }

    /// The normalized states after the last block.
    fn states(&self, placed: &Placed, attend: &Attend) -> Result<Buffer<bf16>, Error> {
        let (device, config, all) = (&*self.device, &self.config, &self.rows);
        let Placed { ids, step, positions, n_rows: t } = placed;
        let t = *t;
        let x = all.x.front(t * config.d_model);
        let table = self.rounded.slice(self.parts[0].range.clone());
        embedding::cuda::forward(device, &table, ids, &x)?;
        for layer in 0..config.n_layers {
            self.block(layer, &x, step, positions, attend)?;
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

impl Placed {
    fn shape(&self, rule: Option<Rule>) -> Shape {
        Shape { n_rows: self.n_rows, table_width: self.step.table_width(), rule }
    }
}

fn heads(config: &Config) -> Heads {
    let Config { n_heads, n_kv_heads, head_dim, .. } = *config;
    Heads { n_heads, n_kv_heads, head_dim }
}
