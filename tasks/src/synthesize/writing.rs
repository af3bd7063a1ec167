//! A worker that writes texts: draws of several items share the slots of one batch, so that the last
//! texts of an item leave no slot idle.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use engine::task::{Failure, Feed, Held};
use kernels::Pool;
use kernels::cuda::Device;
use serde_json::{Map, Value};

use super::books::{self, Draw, Fate, Tally};
use super::plan::{Origin, Plan};
use super::{OnTruncate, Params};
use crate::corpus::{Document, document_id};
use crate::lm::Weights;
use crate::lm::device::decoder::Generator;
use crate::lm::generate::{self, Completion, Decode, Decoder, Driver, Request, Settings};
use crate::tokenizer::Tokenizer;

/// What every text is written with.
pub(super) struct Desk<'a> {
    pub(super) params: &'a Params,
    pub(super) weights: &'a Weights,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) settings: Settings,
    pub(super) n_slots: usize,
    /// The GPU that computes; the CPU where there is none.
    pub(super) device: Option<Arc<dyn Device>>,
    /// From which, and its draw, a text gets its id.
    pub(super) id_base: String,
}

impl Desk<'_> {
    /// Writes the draws of items until there are no more.
    ///
    /// # Errors
    /// When the model fails.
    pub(super) fn work(
        &self,
        feed: &Feed<'_, Range<u64>>,
        plan: Plan<'_>,
        tally: &Tally<'_>,
    ) -> Result<(), Failure> {
        let Some(first) = feed.next() else { return Ok(()) };
        let pool = Pool::new(feed.n_threads());
        // One sequence more than slots holds the prompt that draws share.
        let n_sequences = self.n_slots + 1;
        let mut decoder: Box<dyn Decode + '_> = match &self.device {
            Some(device) => {
                Box::new(Generator::new(Arc::clone(device), self.weights, n_sequences)?)
            }
            None => Box::new(Decoder::new(&pool, self.weights, n_sequences)),
        };
        let mut writing =
            Writing { desk: self, feed, plan, tally, open: BTreeMap::new(), next: 0..0 };
        writing.open(first);
        loop {
            generate::generate(&pool, &mut *decoder, &self.settings, self.n_slots, &mut writing)?;
            if feed.is_stopped() {
                return Ok(());
            }
            match feed.next() {
                Some(held) => writing.open(held),
                None => return Ok(()),
            }
        }
    }

    /// What becomes of a text.
    fn draw(&self, origin: Origin, completion: &Completion) -> Result<Draw, Failure> {
        let text = self.tokenizer.decode(&completion.ids)?;
        let n_tokens = self.tokenizer.encode(&text)?.len() as u64;
        let n_sampled = completion.ids.len() as u64 + u64::from(!completion.truncated);
        let fate = if completion.truncated && self.params.on_truncate == OnTruncate::Drop {
            Fate::Truncated
        } else if n_tokens < u64::from(self.params.min_tokens) {
            Fate::Short
        } else {
            let id = document_id(&self.id_base, completion.index);
            let meta = meta(origin, n_tokens, n_sampled, completion.truncated);
            Fate::Kept(Document { id, text, meta })
        };
        Ok(Draw { n_sampled, n_tokens, fate })
    }
}

/// An item whose texts are not all finished.
struct Open<'f> {
    held: Held<'f, Range<u64>>,
    /// Where the draws that were begun come from.
    origins: Vec<Origin>,
    draws: Vec<Option<Draw>>,
    n_finished: usize,
}

/// The work of a worker on the items that it holds.
struct Writing<'f> {
    desk: &'f Desk<'f>,
    feed: &'f Feed<'f, Range<u64>>,
    plan: Plan<'f>,
    tally: &'f Tally<'f>,
    /// By the first draw.
    open: BTreeMap<u64, Open<'f>>,
    /// Draws of the item opened last that were not begun.
    next: Range<u64>,
}

impl<'f> Writing<'f> {
    fn open(&mut self, held: Held<'f, Range<u64>>) {
        let draws = held.part().clone();
        let n = (draws.end - draws.start) as usize;
        let empty = (0..n).map(|_| None).collect();
        let open = Open { held, origins: Vec::with_capacity(n), draws: empty, n_finished: 0 };
        self.open.insert(draws.start, open);
        self.next = draws;
    }

    /// The open item that has a draw, and its first draw.
    fn open_with(&mut self, draw: u64) -> Option<(u64, &mut Open<'f>)> {
        let (first, open) = self.open.range_mut(..=draw).next_back()?;
        open.held.part().contains(&draw).then_some((*first, open))
    }
}

impl Driver for Writing<'_> {
    fn next(&mut self) -> Option<Request> {
        loop {
            let Some(draw) = self.next.next() else {
                let held = self.feed.try_next()?;
                self.open(held);
                continue;
            };
            let (origin, request) = self.plan.request(draw);
            if let Some((_, open)) = self.open_with(draw) {
                open.origins.push(origin);
                return Some(request);
            }
            // The item was lost.
            self.next = 0..0;
        }
    }

    fn finished(&mut self, completion: Completion) -> Result<(), Failure> {
        let (desk, tally) = (self.desk, self.tally);
        // A text of an item that was lost is of no use.
        let Some((first, open)) = self.open_with(completion.index) else { return Ok(()) };
        let at = (completion.index - first) as usize;
        if at >= open.origins.len() || open.draws[at].is_some() {
            return Ok(());
        }
        let draw = desk.draw(open.origins[at], &completion)?;
        tally.written(first, &draw);
        open.draws[at] = Some(draw);
        open.n_finished += 1;
        if open.n_finished == open.draws.len()
            && let Some(open) = self.open.remove(&first)
        {
            let draws: Vec<Draw> = open.draws.into_iter().flatten().collect();
            books::leave(open.held.context().dir(), &draws)?;
            open.held.finish(&());
        }
        Ok(())
    }

    fn stepped(&mut self, n_tokens: usize) -> Result<ControlFlow<()>, Failure> {
        self.tally.sampled(n_tokens);
        // Whoever took a lost item over writes it.
        self.open.retain(|_, open| open.held.context().check_cancelled().is_ok());
        let stops = self.feed.is_stopped();
        Ok(if stops { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

fn meta(origin: Origin, n_tokens: u64, n_sampled: u64, truncated: bool) -> Map<String, Value> {
    let mut meta = Map::new();
    if let Some((_, id)) = origin.seed {
        meta.insert("seed_id".to_owned(), format!("{id:016x}").into());
    }
    meta.insert("draw".to_owned(), origin.draw.into());
    meta.insert("n_tokens".to_owned(), n_tokens.into());
    meta.insert("n_sampled".to_owned(), n_sampled.into());
    meta.insert("truncated".to_owned(), truncated.into());
    meta
}
