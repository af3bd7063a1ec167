//! Hidden states of a transformer as document vectors: of the pipeline's own model, or of any
//! Qwen3-type embedding model in a folder, such as Qwen3-Embedding-0.6B.
//!
//! Documents are embedded raw, without an instruction, as that model's card asks for documents; its
//! vector is the state of the last token, which is the end of the text.

use std::path::Path;
use std::time::{Duration, Instant};

use engine::digest::Digest;
use engine::task::{Context, ExternalFile, Failure, Inputs};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Params;
use crate::decode::Codec;
use crate::format::tokens::Tokens;
use crate::lm::folder::{FolderTokenizer, check_vocabulary};
use crate::lm::forward::Forward;
use crate::lm::{Weights, hf};
use crate::tokenizer::{BOS, EOS};

/// Tokens computed together; a longer document is computed alone.
const BATCH_TOKENS: usize = 2048;
/// Time between checkpoints; results do not depend on it.
const CHECKPOINT_EVERY: Duration = Duration::from_mins(1);
const CHECKPOINT_FILE: &str = "rows";

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

/// The vectors of all documents.
pub(super) struct Rows {
    pub(super) values: Vec<f32>,
    pub(super) dim: usize,
    /// Documents that were longer than the limit and lost tokens before their end.
    pub(super) n_cut: u64,
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

/// Embeds every document.
pub(super) fn rows(
    ctx: &Context,
    pool: &Pool,
    params: &Params,
    inputs: &Inputs,
    documents: &Tokens,
) -> Result<Rows, Failure> {
    let source = Source::open(ctx, params, inputs, documents)?;
    let embedder = Embedder::new(&source.weights, params)?;
    embedder.embed(ctx, pool, documents, &source)
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

    /// The ids of document `i`, its end included.
    fn ids(&self, documents: &Tokens, i: usize) -> Result<Vec<u32>, Failure> {
        match &self.spelling {
            Spelling::Own => Ok([&[BOS], &*documents.ids(i), &[EOS]].concat()),
            Spelling::Foreign { from, to, end } => to.encode_whole(&from.text(documents, i)?, *end),
        }
    }
}

/// The folder of the external files, whose content must still be what the key was made from.
fn external_folder<'a>(files: &'a [ExternalFile], params: &Params) -> Result<&'a Path, Failure> {
    let folder = files
        .iter()
        .find_map(|file| (file.path.file_name()? == "config.json").then(|| file.path.parent())?);
    let Some(folder) = folder else {
        let path = params.path.as_deref().unwrap_or_default();
        return Err(Failure::permanent(format!("`{path}` has no `config.json`"))
            .help("`path` is the folder of a Hugging Face model"));
    };
    for file in files {
        let path = file.path.display();
        let (digest, _) = Digest::of_file(&file.path)
            .map_err(|error| Failure::io(format!("cannot read `{path}`"), &error))?;
        if digest != file.digest {
            return Err(Failure::permanent(format!("`{path}` changed after the run was planned"))
                .help("run the same command again"));
        }
    }
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

    fn embed(
        &self,
        ctx: &Context,
        pool: &Pool,
        documents: &Tokens,
        source: &Source,
    ) -> Result<Rows, Failure> {
        let n = documents.n_documents();
        let mut done = Rows { values: Vec::new(), dim: self.dim, n_cut: 0 };
        let first = restore(ctx, &mut done)?;
        let mut forward = Forward::new(self.weights.config(), BATCH_TOKENS.max(self.n_tokens_max));
        let (mut batch, mut n_tokens, mut saved_at) = (Vec::new(), 0, Instant::now());
        for i in first..=n {
            let mut ids = if i < n { source.ids(documents, i)? } else { Vec::new() };
            let is_cut = self.cut(&mut ids);
            let is_full = i == n || n_tokens + ids.len() > BATCH_TOKENS;
            if is_full && !batch.is_empty() {
                done.values.extend(self.batch(pool, &mut forward, &batch));
                (batch, n_tokens) = (Vec::new(), 0);
                let cancelled = ctx.check_cancelled();
                if cancelled.is_err() || saved_at.elapsed() >= CHECKPOINT_EVERY {
                    save(ctx, &done)?;
                    saved_at = Instant::now();
                }
                cancelled?;
                ctx.progress(i as u64, n as u64, "documents");
            }
            done.n_cut += u64::from(is_cut);
            n_tokens += ids.len();
            batch.push(ids);
        }
        Ok(done)
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
        pool: &Pool,
        forward: &mut Forward,
        documents: &[Vec<u32>],
    ) -> Vec<f32> {
        let (config, d) = (self.weights.config(), self.weights.config().d_model);
        let ids = documents.concat();
        let mut starts = Vec::with_capacity(ids.len());
        for document in documents {
            let start = starts.len();
            starts.resize(start + document.len(), start as u32);
        }
        // The states after the last block are normalized, as the output matrix would see them.
        let states = if self.n_blocks == config.n_layers {
            forward.hidden(pool, self.weights, &ids, &starts)
        } else {
            forward.residual(pool, self.weights, &ids, &starts, self.n_blocks)
        };
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
        rows
    }
}

/// Takes the newest checkpoint's rows; gives the next document.
fn restore(ctx: &Context, done: &mut Rows) -> Result<usize, Failure> {
    let Some(checkpoint) = ctx.latest_checkpoint()? else { return Ok(0) };
    let bytes = std::fs::read(checkpoint.dir.join(CHECKPOINT_FILE))?;
    let (head, bytes) = bytes.split_at(bytes.len().min(8));
    let (words, rest) = bytes.as_chunks::<4>();
    let n = checkpoint.step as usize;
    let head: Option<[u8; 8]> = head.try_into().ok();
    let (Some(head), true) = (head, rest.is_empty() && words.len() == n * done.dim) else {
        return Err(Failure::permanent(format!(
            "the checkpoint has {} bytes for {n} documents",
            bytes.len()
        )));
    };
    done.n_cut = u64::from_le_bytes(head);
    done.values = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    ctx.info(format!("resumes after {n} documents"));
    Ok(n)
}

fn save(ctx: &Context, done: &Rows) -> Result<(), Failure> {
    let n = (done.values.len() / done.dim) as u64;
    if n == 0 || ctx.latest_checkpoint()?.is_some_and(|checkpoint| checkpoint.step >= n) {
        return Ok(());
    }
    let words = done.values.iter().flat_map(|x| x.to_le_bytes());
    let bytes: Vec<u8> = done.n_cut.to_le_bytes().into_iter().chain(words).collect();
    Ok(ctx.save_checkpoint(n, |dir| std::fs::write(dir.join(CHECKPOINT_FILE), bytes))?)
}

#[cfg(test)]
mod tests;
