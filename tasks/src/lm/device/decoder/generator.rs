//! A decoder with the pages of its sequences: what generation asks for.

use std::sync::Arc;

use engine::task::Failure;
use kernels::Pool;
use kernels::cuda::Device;
use kernels::decode::{Cache, Pages, Sequence};

use super::{DeviceDecoder, Row, heads};
use crate::device;
use crate::lm::device::DeviceModel;
use crate::lm::generate::{self, Chance, Chosen, Decode, Settings};
use crate::lm::{Config, Weights};

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

    /// The same without graphs: each kernel is launched by itself.
    #[must_use]
    pub fn without_graphs(self) -> Self {
        Self { decoder: self.decoder.without_graphs(), ..self }
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
        let mut chances: Vec<Chance<'_>> = rows.iter().map(|row| row.chance).collect();
        // Nobody asks what follows a spare row.
        let spare = Chance { seen: &[], ..chances[0] };
        chances.resize(self.n_rows, spare);
        let mut chosen = self
            .decoder
            .step_and_choose(&tokens, &places, settings, &chances)
            .map_err(device::failure)?;
        chosen.truncate(rows.len());
        Ok(chosen)
    }
}
