//! Cuts documents into windows of the context and packs windows into batches.

use std::ops::Range;

use engine::digest::Digest;
use kernels::cross_entropy::IGNORE;

use crate::format::tokens::Tokens;
use crate::tokenizer::{BOS, EOS};

/// Positions `first..end` of a document's inputs `<|bos|> text`; the targets are `text <|eos|>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) document: usize,
    first: usize,
    end: usize,
}

impl Window {
    /// Tokens scored.
    pub(super) fn len(&self) -> usize {
        self.end - self.first
    }
}

/// All windows, in batches.
pub(super) struct Batches {
    windows: Vec<Window>,
    /// Where each batch begins in `windows`, and the end.
    bounds: Vec<usize>,
    /// Tokens before each batch, and all.
    tokens: Vec<u64>,
}

impl Batches {
    /// Windows of at most `context` tokens, in batches of at most `capacity`.
    pub(super) fn new(documents: &Tokens, context: usize, capacity: usize) -> Self {
        let windows: Vec<Window> = (0..documents.n_documents())
            .flat_map(|document| {
                let len = documents.length(document) + 1;
                (0..len).step_by(context).map(move |first| Window {
                    document,
                    first,
                    end: len.min(first + context),
                })
            })
            .collect();
        let (mut bounds, mut tokens) = (vec![0], vec![0]);
        let (mut used, mut total) = (0, 0);
        for (i, window) in windows.iter().enumerate() {
            if used + window.len() > capacity {
                bounds.push(i);
                tokens.push(total);
                used = 0;
            }
            used += window.len();
            total += window.len() as u64;
        }
        bounds.push(windows.len());
        tokens.push(total);
        Self { windows, bounds, tokens }
    }

    /// How many batches.
    pub(super) fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The windows of batch `i`.
    pub(super) fn get(&self, i: usize) -> &[Window] {
        &self.windows[self.bounds[i]..self.bounds[i + 1]]
    }

    /// Everything that the scores of some batches depend on, the model apart.
    pub(super) fn digest(&self, documents: &Tokens, batches: Range<usize>) -> Digest {
        let (mut buffers, mut bytes) = (Buffers::default(), Vec::new());
        for batch in batches {
            buffers.fill(documents, self.get(batch));
            for column in [&buffers.ids, &buffers.starts, &buffers.targets] {
                bytes.extend((column.len() as u64).to_le_bytes());
                bytes.extend(column.iter().flat_map(|x| x.to_le_bytes()));
            }
        }
        Digest::of(&bytes)
    }

    /// Tokens of the batches before batch `i`.
    pub(super) fn tokens_before(&self, i: usize) -> u64 {
        self.tokens[i]
    }
}

/// A batch as the model takes it.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) ids: Vec<u32>,
    pub(super) starts: Vec<u32>,
    pub(super) targets: Vec<u32>,
    text: Vec<u32>,
}

impl Buffers {
    pub(super) fn fill(&mut self, documents: &Tokens, windows: &[Window]) {
        self.ids.clear();
        self.starts.clear();
        self.targets.clear();
        for window in windows {
            self.text.clear();
            self.text.push(BOS);
            documents.view(window.document).copy_to(&mut self.text);
            self.text.push(EOS);
            let start = self.ids.len() as u32;
            self.starts.resize(self.ids.len() + window.len(), start);
            self.ids.extend(&self.text[window.first..window.end]);
            self.targets.extend(&self.text[window.first + 1..=window.end]);
        }
        debug_assert!(!self.targets.contains(&IGNORE), "every token is scored");
    }
}
