//! Log likelihoods of continuations, token for token as lm-evaluation-harness splits them.

use std::sync::Arc;

use engine::task::Failure;
use kernels::Pool;
use kernels::cuda::Device;
use kernels::matmul::{self, Accumulate};

use crate::device;
use crate::lm::device::{DeviceModel, Purpose};
use crate::lm::forward::Forward;
use crate::lm::{Config, Weights};
use crate::tokenizer::{BOS, Tokenizer};

/// Tokens computed together.
const BATCH_TOKENS: usize = 2048;
/// Rows of logits that exist at a time.
const LOGIT_ROWS: usize = 64;

/// A sequence, of which the last `targets.len()` positions are scored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Span {
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

/// What a continuation got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scored {
    /// Log likelihood in nats.
    pub(super) log_likelihood: f64,
    /// Whether every token was the likeliest.
    pub(super) greedy: bool,
    /// Tokens of the continuation.
    pub(super) n_tokens: usize,
}

/// Cuts texts into spans.
pub(super) struct Cutter<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// The model's longest sequence.
    pub(super) context: usize,
    /// Whether contexts begin with `<|bos|>`.
    pub(super) bos: bool,
}

impl Cutter<'_> {
    /// The ids of a context, alone.
    pub(super) fn context_ids(&self, context: &str) -> Result<Vec<u32>, Failure> {
        let mut ids = if self.bos { vec![BOS] } else { Vec::new() };
        ids.extend(self.tokenizer.encode(context)?);
        Ok(ids)
    }

    /// The span of a continuation: the ids that the whole has more than the context, whose blanks at
    /// the end count to the continuation. A context too long loses its beginning.
    pub(super) fn pair(&self, context: &str, continuation: &str) -> Result<Span, Failure> {
        let kept = context.trim_end_matches(is_python_space);
        let continuation = format!("{}{continuation}", &context[kept.len()..]);
        if kept.is_empty() {
            let targets = self.tokenizer.encode(&continuation)?;
            return self.span(vec![BOS], targets);
        }
        let context = self.context_ids(kept)?;
        let mut whole = self.context_ids(&format!("{kept}{continuation}"))?;
        let targets = whole.split_off(context.len().min(whole.len()));
        self.span(context, targets)
    }

    fn span(&self, mut context: Vec<u32>, targets: Vec<u32>) -> Result<Span, Failure> {
        if targets.is_empty() || targets.len() > self.context {
            return Err(Failure::permanent(format!(
                "a continuation has {} tokens, of which the model's context holds 1 to {}",
                targets.len(),
                self.context
            )));
        }
        context.extend_from_slice(&targets[..targets.len() - 1]);
        let n_over = context.len().saturating_sub(self.context);
        Ok(Span { inputs: context.split_off(n_over), targets })
    }

    /// Spans that score each token of a text once. All but the last have the context's length and
    /// follow each other; the last one reaches back as far as the context does.
    pub(super) fn rolling(&self, text: &str) -> Result<Vec<Span>, Failure> {
        let ids = self.tokenizer.encode(text)?;
        let mut stream = vec![BOS];
        stream.extend_from_slice(&ids);
        let mut spans = Vec::new();
        let mut done = 0;
        while done < ids.len() {
            let end = ids.len().min(done + self.context);
            let first = end.saturating_sub(self.context);
            // The input of token i is token i - 1, which `stream` has at i.
            let inputs = stream[first..end].to_vec();
            spans.push(Span { inputs, targets: ids[done..end].to_vec() });
            done = end;
        }
        Ok(spans)
    }
}

/// Python's `str.isspace`, which knows four separators that Unicode's white space does not have.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Scores spans with one model.
pub(super) struct Scorer<'a> {
    capacity: usize,
    place: Place<'a>,
}

/// Where the model is.
enum Place<'a> {
    Cpu(Box<OnCpu<'a>>),
    Device(Box<DeviceModel>),
}

/// A model that is read on the CPU.
struct OnCpu<'a> {
    pool: &'a Pool,
    weights: &'a Weights,
    forward: Forward,
    logits: Vec<f32>,
}

/// Spans that have their inputs in common, as the letters of one question do.
struct Group<'s> {
    inputs: &'s [u32],
    /// Indices of the spans.
    members: Vec<usize>,
    /// Positions scored, the most of any member.
    n_rows: usize,
}

/// A scored position: of which group, how far from its end, and its row among the hidden states.
struct Position {
    group: usize,
    from_end: usize,
    row: usize,
}

/// What a row of logits says.
struct RowFacts<'l> {
    logits: &'l [f32],
    log_sum: f64,
    likeliest: u32,
}

/// The streams of some groups, one after the other.
struct Stream {
    ids: Vec<u32>,
    starts: Vec<u32>,
    positions: Vec<Position>,
}

impl Stream {
    fn new(groups: &[Group<'_>]) -> Self {
        let (mut ids, mut starts, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for (g, group) in groups.iter().enumerate() {
            let start = ids.len() as u32;
            ids.extend_from_slice(group.inputs);
            starts.resize(ids.len(), start);
            let end = ids.len();
            positions.extend((0..group.n_rows).map(|from_end| Position {
                group: g,
                from_end,
                row: end - 1 - from_end,
            }));
        }
        Self { ids, starts, positions }
    }
}

impl<'a> Scorer<'a> {
    /// A scorer on a device that was opened for [`Self::work`], or on the CPU where none was.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub(super) fn new(
        device: Option<Arc<dyn Device>>,
        pool: &'a Pool,
        weights: &'a Weights,
    ) -> Result<Self, Failure> {
        let config = weights.config();
        let capacity = capacity(config);
        let place = match device {
            None => Place::Cpu(Box::new(OnCpu {
                pool,
                weights,
                forward: Forward::new(config, capacity),
                logits: vec![0.0; LOGIT_ROWS * config.vocab_size],
            })),
            Some(device) => {
                let model = DeviceModel::new(device, weights, capacity, Purpose::Read);
                Place::Device(Box::new(model.map_err(device::failure)?))
            }
        };
        Ok(Self { capacity, place })
    }

    /// What scoring is to ask of a device.
    pub(super) fn work(config: &Config) -> device::Work {
        DeviceModel::work(config, capacity(config), Purpose::Read)
    }

    /// What each span gets.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn score(&mut self, spans: &[Span]) -> Result<Vec<Scored>, Failure> {
        let mut scored: Vec<Scored> = spans
            .iter()
            .map(|span| Scored { log_likelihood: 0.0, greedy: true, n_tokens: span.targets.len() })
            .collect();
        let groups = groups(spans);
        let mut rest = &groups[..];
        while !rest.is_empty() {
            let mut n_tokens = 0;
            let fits = |group: &&Group<'_>| {
                n_tokens += group.inputs.len();
                n_tokens <= self.capacity
            };
            let n = rest.iter().take_while(fits).count().max(1);
            let (batch, after) = rest.split_at(n);
            let stream = Stream::new(batch);
            match &mut self.place {
                Place::Cpu(cpu) => cpu.score(&stream, spans, batch, &mut scored),
                Place::Device(model) => {
                    score_on(model, &stream, spans, batch, &mut scored).map_err(device::failure)?;
                }
            }
            rest = after;
        }
        Ok(scored)
    }
}

/// Tokens of the longest pass.
fn capacity(config: &Config) -> usize {
    BATCH_TOKENS.max(config.context)
}

/// The members of a position's group that have a target there, and the targets.
fn targets_at<'s>(
    position: &Position,
    spans: &'s [Span],
    groups: &'s [Group<'_>],
) -> impl Iterator<Item = (usize, u32)> + use<'s> {
    let from_end = position.from_end;
    groups[position.group].members.iter().filter_map(move |&member| {
        let targets = &spans[member].targets;
        Some((member, targets[targets.len().checked_sub(from_end + 1)?]))
    })
}

fn score_on(
    model: &DeviceModel,
    stream: &Stream,
    spans: &[Span],
    groups: &[Group<'_>],
    scored: &mut [Scored],
) -> Result<(), kernels::cuda::Error> {
    let (mut members, mut targets) = (Vec::new(), Vec::new());
    for position in &stream.positions {
        for (member, target) in targets_at(position, spans, groups) {
            members.push(member);
            targets.push((position.row, target));
        }
    }
    let (nll, likeliest) = model.likelihoods([&stream.ids, &stream.starts], &targets)?;
    for (((member, (_, target)), nll), likeliest) in
        members.into_iter().zip(targets).zip(nll).zip(likeliest)
    {
        let scored = &mut scored[member];
        scored.log_likelihood -= f64::from(nll);
        scored.greedy &= likeliest == target;
    }
    Ok(())
}

impl OnCpu<'_> {
    fn score(
        &mut self,
        stream: &Stream,
        spans: &[Span],
        groups: &[Group<'_>],
        scored: &mut [Scored],
    ) {
        let config = self.weights.config();
        let (d, v) = (config.d_model, config.vocab_size);
        let hidden = self.forward.hidden(self.pool, self.weights, &stream.ids, &stream.starts);
        for positions in stream.positions.chunks(LOGIT_ROWS) {
            let rows: Vec<f32> = positions
                .iter()
                .flat_map(|position| &hidden[position.row * d..][..d])
                .copied()
                .collect();
            let logits = &mut self.logits[..positions.len() * v];
            let output = self.weights.output();
            matmul::nt(
                self.pool,
                logits,
                &rows,
                output,
                positions.len(),
                v,
                d,
                Accumulate::Overwrite,
            );
            let mut facts: Vec<RowFacts<'_>> = logits
                .chunks_exact(v)
                .map(|logits| RowFacts { logits, log_sum: 0.0, likeliest: 0 })
                .collect();
            self.pool.for_chunks(&mut facts, 1, |_, facts| {
                facts.iter_mut().for_each(RowFacts::measure);
            });
            for (position, facts) in positions.iter().zip(&facts) {
                for (member, target) in targets_at(position, spans, groups) {
                    let scored = &mut scored[member];
                    scored.log_likelihood +=
                        f64::from(facts.logits[target as usize]) - facts.log_sum;
                    scored.greedy &= facts.likeliest == target;
                }
            }
        }
    }
}

impl RowFacts<'_> {
    fn measure(&mut self) {
        let (mut likeliest, mut max) = (0, f32::NEG_INFINITY);
        for (i, &logit) in self.logits.iter().enumerate() {
            if logit > max {
                (likeliest, max) = (i as u32, logit);
            }
        }
        let sum: f64 = self.logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        (self.likeliest, self.log_sum) = (likeliest, f64::from(max) + sum.ln());
    }
}

/// Neighbours with equal inputs, together.
fn groups(spans: &[Span]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        let n_rows = span.targets.len();
        match groups.last_mut() {
            Some(group) if group.inputs == span.inputs => {
                group.members.push(i);
                group.n_rows = group.n_rows.max(n_rows);
            }
            _ => groups.push(Group { inputs: &span.inputs, members: vec![i], n_rows }),
        }
    }
    groups
}
