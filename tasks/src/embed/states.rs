//! Hidden states of a transformer as document vectors: of the pipeline's own model, or of any
//! Qwen3-type embedding model in a folder, such as Qwen3-Embedding-0.6B.
//!
//! Documents are embedded raw, without an instruction, as that model's card asks for documents; its
//! vector is the state of the last token, which is the end of the text.

use std::ops::Range;
use std::path::Path;

use engine::digest::Digest;
use engine::task::{Context, ExternalFile, Failure, Inputs, Item, ItemContext};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Params;
use super::rows::{self, Rows, Span};
use crate::decode::Codec;
use crate::device;
use crate::format::tokens::Tokens;
use crate::lm::folder::{FolderTokenizer, check_vocabulary};
use crate::lm::reader::Reader;
use crate::lm::{Weights, hf};
use crate::tokenizer::{BOS, EOS};

/// Tokens computed together; a longer document is computed alone.
const BATCH_TOKENS: usize = 2048;
/// Tokens of a run of documents, which is embedded, or lost by a kill, together.
const SPAN_TOKENS: usize = 1 << 16;

/// Which states of a document become its vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The last token's, which has seen the whole document.
    #[default]
    Last,
    /// The mean over all tokens.
    Mean,
}

/// The files of an embedding model below `path` that decide its vectors.
pub(super) fn external(path: &str) -> Vec<String> {
    let path = path.trim_end_matches('/');
    ["config.json", "generation_config.json", "tokenizer.json", "*.safetensors"]
        .into_iter()
        .chain(["*.safetensors.index.json"])
        .map(|file| format!("{path}/{file}"))
        .collect()
}

/// Embeds every document; whether a GPU does.
pub(super) fn rows(
    ctx: &Context,
    pool: &Pool,
    params: &Params,
    inputs: &Inputs,
    documents: &Tokens,
) -> Result<(Rows, bool), Failure> {
    let source = Source::open(ctx, params, inputs, documents)?;
    let embedder = Embedder::new(&source.weights, params)?;
    let capacity = BATCH_TOKENS.max(embedder.n_tokens_max);
    let device = device::open(ctx, &Reader::work(source.weights.config(), capacity))?;
    let made_of = (source.digest(ctx, inputs, documents), params.pooling, embedder.limits());
    let stage = device::stage("states", device.as_deref());
    let item = |span: Span| {
        let (name, weight) = (span.name(), span.weight());
        Item::new(name, &(&made_of, span.digest), span).weight(weight)
    };
    let items = rows::spans(documents, SPAN_TOKENS).into_iter().map(item).collect();
    // One worker has all threads, and so the pool.
    let begin = |_| Reader::new(device.clone(), pool, &source.weights, capacity);
    let results = ctx.stage(&stage, "documents").alone().last().each_with(
        items,
        begin,
        |reader, span, item| {
            let (rows, n_cut) = embedder.embed(reader, documents, &source, (span, item))?;
            rows::leave(item.dir(), &rows)?;
            Ok(n_cut)
        },
    )?;
    let (mut dirs, mut n_cut) = (Vec::new(), 0);
    for result in results {
        let result = result?;
        n_cut += result.value;
        dirs.push(result.dir);
    }
    let rows = Rows { source: rows::Source::Parts(dirs), dim: embedder.dim, n_cut };
    Ok((rows, device.is_some()))
}

/// A model, and how documents become its ids.
struct Source {
    weights: Weights,
    spelling: Spelling,
}

enum Spelling {
    /// The documents' ids are the model's own.
    Own,
    /// The model has a tokenizer of its own, and maybe an end.
    Foreign { from: Box<Codec>, to: Box<FolderTokenizer>, end: Option<u32> },
}

impl Source {
    fn open(
        ctx: &Context,
        params: &Params,
        inputs: &Inputs,
        documents: &Tokens,
    ) -> Result<Self, Failure> {
        if params.path.is_none() {
            return Self::own(inputs, documents);
        }
        let dir = external_folder(ctx.external(), params)?;
        let Some(tokenizer) = inputs.optional("tokenizer") else {
            return Err(Failure::permanent(
                "a model in `path` reads text, not the pipeline's tokens",
            )
            .help("connect `tokenizer`, the one that made the documents"));
        };
        let from = Box::new(Codec::open_for(tokenizer, documents)?);
        let to = Box::new(FolderTokenizer::open(dir)?);
        let weights = hf::load(dir)?;
        check_vocabulary(weights.config(), &to)?;
        let end = hf::load_generation(dir)?.stop.first().copied();
        Ok(Self { weights, spelling: Spelling::Foreign { from, to, end } })
    }

    fn own(inputs: &Inputs, documents: &Tokens) -> Result<Self, Failure> {
        let Some(dir) = inputs.optional("model") else {
            return Err(Failure::permanent("backend `states` needs a model")
                .help("connect `model`, or give the `path` of an embedding model"));
        };
        let weights = hf::load(dir)?;
        let (needed, known) = (documents.vocab_size() as usize, weights.config().vocab_size);
        if needed > known {
            return Err(Failure::permanent(format!(
                "the documents have ids below {needed}, and the model has {known} tokens"
            ))
            .help("connect the model that was trained with this tokenizer"));
        }
        Ok(Self { weights, spelling: Spelling::Own })
    }

    /// The content of whatever decides vectors, apart from the documents and params.
    fn digest(&self, ctx: &Context, inputs: &Inputs, documents: &Tokens) -> Vec<Digest> {
        match &self.spelling {
            Spelling::Own => inputs.many("model").iter().map(|model| model.digest).collect(),
            Spelling::Foreign { .. } => {
                let files = ctx.external().iter().map(|file| file.digest);
                files.chain([documents.tokenizer()]).collect()
            }
        }
    }

    /// The ids of document `i`, its end included.
    fn ids(&self, documents: &Tokens, i: usize) -> Result<Vec<u32>, Failure> {
        match &self.spelling {
            Spelling::Own => Ok([&[BOS], &*documents.ids(i), &[EOS]].concat()),
            Spelling::Foreign { from, to, end } => to.encode_whole(&from.text(documents, i)?, *end),
        }
    }
}

/// The folder of the external files. The engine notices when their content changes meanwhile.
fn external_folder<'a>(files: &'a [ExternalFile], params: &Params) -> Result<&'a Path, Failure> {
    let folder = files
        .iter()
        .find_map(|file| (file.path.file_name()? == "config.json").then(|| file.path.parent())?);
    let Some(folder) = folder else {
        let path = params.path.as_deref().unwrap_or_default();
        return Err(Failure::permanent(format!("`{path}` has no `config.json`"))
            .help("`path` is the folder of a Hugging Face model"));
    };
    Ok(folder)
}

/// How states become a vector.
pub(super) struct Embedder<'a> {
    weights: &'a Weights,
    pooling: Pooling,
    n_blocks: usize,
    dim: usize,
    n_tokens_max: usize,
}

impl<'a> Embedder<'a> {
    pub(super) fn new(weights: &'a Weights, params: &Params) -> Result<Self, Failure> {
        let config = weights.config();
        let too_much = |what: &str, asked: usize, limit: usize| {
            Failure::permanent(format!("`{what}` is {asked}, and the model has {limit}"))
                .help(format!("lower `{what}`, or leave it out"))
        };
        let n_blocks = params.layer.unwrap_or(config.n_layers);
        if n_blocks > config.n_layers {
            return Err(too_much("layer", n_blocks, config.n_layers));
        }
        let dim = params.dim.unwrap_or(config.d_model);
        if dim > config.d_model {
            return Err(too_much("dim", dim, config.d_model));
        }
        let n_tokens_max = params.max_tokens.unwrap_or(config.context);
        if n_tokens_max > config.context {
            return Err(too_much("max_tokens", n_tokens_max, config.context));
        }
        Ok(Self { weights, pooling: params.pooling, n_blocks, dim, n_tokens_max })
    }

    /// What of the params decides vectors.
    fn limits(&self) -> [usize; 3] {
        [self.n_blocks, self.dim, self.n_tokens_max]
    }

    /// The rows of a run of documents, and how many were longer than the limit.
    fn embed(
        &self,
        reader: &mut Reader<'_>,
        documents: &Tokens,
        source: &Source,
        (span, item): (&Span, &ItemContext<'_>),
    ) -> Result<(Vec<f32>, u64), Failure> {
        let Range { start, end } = span.documents;
        let (mut rows, mut n_cut) = (Vec::with_capacity(span.documents.len() * self.dim), 0);
        let (mut batch, mut n_tokens) = (Vec::new(), 0);
        for i in start..=end {
            let mut ids = if i < end { source.ids(documents, i)? } else { Vec::new() };
            n_cut += u64::from(self.cut(&mut ids));
            let is_full = i == end || n_tokens + ids.len() > BATCH_TOKENS;
            if is_full && !batch.is_empty() {
                item.check_cancelled()?;
                rows.extend(self.batch(reader, &batch)?);
                (batch, n_tokens) = (Vec::new(), 0);
                item.progress((i - start) as u64);
            }
            n_tokens += ids.len();
            batch.push(ids);
        }
        Ok((rows, n_cut))
    }

    /// Shortens a document to the limit and keeps its end; whether it was longer.
    pub(super) fn cut(&self, ids: &mut Vec<u32>) -> bool {
        let is_long = ids.len() > self.n_tokens_max;
        if is_long {
            let end = ids[ids.len() - 1];
            ids.truncate(self.n_tokens_max);
            ids[self.n_tokens_max - 1] = end;
        }
        is_long
    }

    /// The vectors of some documents, one after another, not yet of unit length.
    pub(super) fn batch(
        &self,
        reader: &mut Reader<'_>,
        documents: &[Vec<u32>],
    ) -> Result<Vec<f32>, Failure> {
        let (config, d) = (self.weights.config(), self.weights.config().d_model);
        let ids = documents.concat();
        let mut starts = Vec::with_capacity(ids.len());
        for document in documents {
            let start = starts.len();
            starts.resize(start + document.len(), start as u32);
        }
        // The states after the last block are normalized, as the output matrix would see them.
        let n_blocks = Some(self.n_blocks).filter(|n| *n < config.n_layers);
        let states = reader.states(&ids, &starts, n_blocks)?;
        let mut rows = Vec::with_capacity(documents.len() * self.dim);
        let mut states = states.chunks_exact(d);
        for document in documents {
            let states = states.by_ref().take(document.len());
            match self.pooling {
                Pooling::Last => {
                    let last = states.last().expect("a document has a token");
                    rows.extend_from_slice(&last[..self.dim]);
                }
                Pooling::Mean => {
                    let mut sums = vec![0.0_f64; self.dim];
                    for state in states {
                        sums.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
                    }
                    rows.extend(sums.iter().map(|sum| (sum / document.len() as f64) as f32));
                }
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
