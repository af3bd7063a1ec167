//! Embeds documents as unit vectors.
//!
//! Three backends; the first two were seen to group documents by what they are about even where the
//! model is tiny:
//! - `tfidf`: TF-IDF over words, projected to `dim` by random signs. A random projection needs no
//!   fit, one pass and no memory for a basis, and its inner products are unbiased with a standard
//!   error of about `1 / sqrt(dim)`; a truncated SVD would cost a fit and drop rare terms, which are
//!   the ones that tell documents apart.
//! - `model`: the IDF-weighted mean of the model's own token embeddings, centred and PCA-whitened.
//!   Both steps are needed: plain means of hidden states group documents by genre.
//! - `states`: hidden states of a transformer: the paper's Qwen3-Embedding-0.6B or another model of
//!   that type in a folder, or the pipeline's own model, which its section 6 calls the ideal.

mod pca;
mod states;

use std::sync::Mutex;

use engine::task::{
    Context, Determinism, Estimate, FILE_BYTES, Facts, Failure, Inputs, Outputs, ParamError, Port,
    Predicted, Task,
};
use kernels::Pool;
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::{fact, figure};
use crate::decode::Codec;
use crate::format::tokens::Tokens;
use crate::format::vectors;
use crate::lm::hf;
use crate::tfidf::{self, Counts, Frequencies};
pub use states::Pooling;

/// Components of `tfidf` vectors unless `dim` is given; the paper's embeddings have as many.
const TFIDF_DIM: usize = 1024;
/// Documents between two looks at the cancel token.
const STRIDE: usize = 1024;

/// See the module.
pub struct Embed;

/// Params of `embed`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// What makes the vectors: `tfidf`, `model` for the model's own token embeddings, or `states` for
    /// hidden states of a transformer.
    #[serde(default)]
    pub backend: Backend,
    /// Components of a vector. Default: 1024 for `tfidf`; for `model` every direction in which the
    /// documents vary, at most the model's width; for `states` the width, of which the first `dim` are
    /// taken.
    #[serde(default)]
    pub dim: Option<usize>,
    /// For `states`: the folder of a Qwen3-type embedding model in Hugging Face's form, which reads
    /// the documents' text (so `tokenizer` is needed); else the input `model` reads their tokens.
    #[serde(default)]
    pub path: Option<String>,
    /// Which of a document's states `states` takes: the `last` token's, or their `mean`.
    #[serde(default)]
    pub pooling: Pooling,
    /// After how many blocks `states` takes them; all by default, and normalized then.
    #[serde(default)]
    pub layer: Option<usize>,
    /// Most tokens of a document that `states` reads, its end included; by default the model's
    /// context. Longer ones lose what is before their end, and are counted.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// What `tfidf` counts: `words` (needs the tokenizer) or `tokens`.
    #[serde(default)]
    pub terms: Terms,
    /// `tfidf` leaves out terms that fewer documents have.
    #[serde(default = "default_min_documents")]
    pub min_documents: u32,
    /// Seed of `tfidf`'s projection.
    #[serde(default)]
    pub seed: u64,
    /// What to do with a document without terms or tokens: `fail`, or `keep` it with a zero vector,
    /// whose inner product with every document is 0.
    #[serde(default)]
    pub on_empty: OnEmpty,
}

/// What makes the vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Projected TF-IDF.
    #[default]
    Tfidf,
    /// The model's own token embeddings.
    Model,
    /// Hidden states of a transformer.
    States,
}

/// What TF-IDF counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Terms {
    /// Runs of letters and digits, in lower case.
    #[default]
    Words,
    /// Token ids.
    Tokens,
}

/// What to do with a document that has no vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnEmpty {
    /// End with an error that names it.
    #[default]
    Fail,
    /// Give it a zero vector.
    Keep,
}

fn default_min_documents() -> u32 {
    1
}

impl Task for Embed {
    const KIND: &'static str = "embed";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str =
        "embeds documents as unit vectors, by TF-IDF, a model's token embeddings or its states";
    // Logarithms come from the platform's math library.
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const INPUTS: &'static [Port] = &[
        Port::one("documents", "tokens", "the documents"),
        Port::optional("model", "model", "the model, for backends `model` and `states`"),
        Port::optional("tokenizer", "tokenizer", "the tokenizer, for terms `words` and `path`"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("vectors", "vectors", "one unit vector a document, in f32 and int8")];
    // The content of the folder is in the key, its place is not.
    const UNKEYED: &'static [&'static str] = &["path"];
    type Params = Params;

    fn external(params: &Params) -> Vec<String> {
        params.path.as_deref().map(states::external).unwrap_or_default()
    }

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.path.is_some() && params.backend != Backend::States {
            return Err(ParamError::new(
                "path",
                "a model's folder is read by backend `states` only",
            )
            .help("set `backend: states`"));
        }
        if params.max_tokens.is_some_and(|n| n < 2) {
            let message = "a document and its end have at least 2 tokens";
            return Err(ParamError::new("max_tokens", message));
        }
        match params.dim {
            Some(dim) if dim == 0 || dim > kernels::int8_search::COLUMNS_MAX => {
                let limit = kernels::int8_search::COLUMNS_MAX;
                Err(ParamError::new("dim", format!("dim is {dim}; it must be 1 to {limit}")))
            }
            _ => Ok(()),
        }
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let documents = inputs.fact("documents", fact::DOCUMENTS);
        let own = (params.backend == Backend::Tfidf).then_some(TFIDF_DIM);
        let dim = params.dim.or(own).map(|dim| dim as f64);
        let bytes = documents.zip(dim).map(|(documents, dim)| documents * vectors::row_bytes(dim));
        Estimate::unknown().figure(figure::DOCUMENTS, documents).output(
            "vectors",
            Facts::default()
                .with(fact::DOCUMENTS, documents)
                .with(fact::DIMENSIONS, dim)
                .with(FILE_BYTES, bytes),
        )
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let documents = Tokens::open(inputs.one("documents"))?;
        if documents.n_documents() == 0 {
            return Err(Failure::permanent("there are no documents to embed"));
        }
        let pool = Pool::new(ctx.n_threads());
        let mut n_cut = 0;
        let (mut rows, dim, name) = match params.backend {
            Backend::Tfidf => {
                let dim = params.dim.unwrap_or(TFIDF_DIM);
                (tfidf_rows(ctx, &pool, params, inputs, &documents, dim)?, dim, "tfidf")
            }
            Backend::Model => {
                let (rows, dim) = model_rows(ctx, &pool, params, inputs, &documents)?;
                (rows, dim, "model")
            }
            Backend::States => {
                let found = states::rows(ctx, &pool, params, inputs, &documents)?;
                n_cut = found.n_cut;
                (found.values, found.dim, "states")
            }
        };
        let n_zero = normalize(params, &documents, &mut rows, dim)?;
        let ids: Vec<u64> =
            (0..documents.n_documents()).map(|i| documents.document_id(i)).collect();
        vectors::write(&pool, &ctx.out("vectors")?, &ids, &rows, dim, name)?;
        if n_zero > 0 {
            ctx.warn(format!("{n_zero} of {} documents have a zero vector", ids.len()));
        }
        if n_cut > 0 {
            ctx.warn(format!("{n_cut} of {} documents were longer than the limit", ids.len()));
        }
        let outputs = Outputs::default()
            .metric("n_documents", ids.len() as f64)
            .metric("dim", dim as f64)
            .metric("n_zero", n_zero as f64);
        Ok(if params.backend == Backend::States {
            outputs.metric("n_cut", n_cut as f64)
        } else {
            outputs
        })
    }
}

/// Scales rows to unit length; gives the number of zero rows.
fn normalize(
    params: &Params,
    documents: &Tokens,
    rows: &mut [f32],
    dim: usize,
) -> Result<u64, Failure> {
    let mut n_zero = 0;
    for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
        let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let id = documents.document_id(i);
        if !norm.is_finite() {
            let message =
                format!("the vector of document {id:016x} has a component that is no number");
            return Err(Failure::permanent(message));
        }
        if norm == 0.0 {
            if params.on_empty == OnEmpty::Fail {
                let message = format!(
                    "document {id:016x} ({} tokens) has a zero vector: it has no terms",
                    documents.length(i)
                );
                return Err(Failure::permanent(message)
                    .help("drop such documents, or set `on_empty: keep`"));
            }
            n_zero += 1;
            continue;
        }
        for x in row {
            *x = (f64::from(*x) / norm) as f32;
        }
    }
    Ok(n_zero)
}

fn tfidf_rows(
    ctx: &Context,
    pool: &Pool,
    params: &Params,
    inputs: &Inputs,
    documents: &Tokens,
    dim: usize,
) -> Result<Vec<f32>, Failure> {
    let n = documents.n_documents();
    let counts = count_terms(ctx, pool, params, inputs, documents)?;
    let frequencies = Frequencies::of(&counts);
    let rng = Philox::new(params.seed, "embed projection");
    let mut rows = vec![0.0; n * dim];
    for (stride, rows) in rows.chunks_mut(STRIDE * dim).enumerate() {
        ctx.check_cancelled()?;
        pool.for_chunks(rows, dim, |i, row| {
            let keep = |term| frequencies.documents(term) >= params.min_documents;
            for (term, weight) in frequencies.weigh(&counts[stride * STRIDE + i], keep) {
                project(row, rng.fork(term), weight);
            }
        });
        ctx.progress(((stride + 1) * STRIDE).min(n) as u64, n as u64, "documents");
    }
    ctx.info(format!("{} distinct terms in {n} documents", frequencies.n_terms()));
    Ok(rows)
}

fn count_terms(
    ctx: &Context,
    pool: &Pool,
    params: &Params,
    inputs: &Inputs,
    documents: &Tokens,
) -> Result<Vec<Counts>, Failure> {
    let codec = match (params.terms, inputs.optional("tokenizer")) {
        (Terms::Tokens, _) => None,
        (Terms::Words, Some(dir)) => Some(Codec::open_for(dir, documents)?),
        (Terms::Words, None) => {
            return Err(Failure::permanent(
                "terms `words` need the tokenizer to read the documents",
            )
            .help("connect `tokenizer`, or set `terms: tokens`"));
        }
    };
    let mut counts: Vec<Counts> = vec![Vec::new(); documents.n_documents()];
    let failed = Mutex::new(None);
    for (stride, counts) in counts.chunks_mut(STRIDE).enumerate() {
        ctx.check_cancelled()?;
        pool.for_chunks(counts, 1, |i, counts| {
            let i = stride * STRIDE + i;
            match &codec {
                None => counts[0] = tfidf::tokens(&documents.ids(i)),
                Some(codec) => match codec.text(documents, i) {
                    Ok(text) => counts[0] = tfidf::words(&text),
                    Err(failure) => {
                        let mut first = failed.lock().expect("no thread panics while it holds it");
                        first.get_or_insert(failure);
                    }
                },
            }
        });
    }
    match failed.into_inner().expect("no thread panicked") {
        Some(failure) => Err(failure),
        None => Ok(counts),
    }
}

/// Adds `weight` with the term's random signs to a row.
fn project(row: &mut [f32], signs: Philox, weight: f32) {
    for (block, components) in row.chunks_mut(128).enumerate() {
        let words = signs.block(block as u64);
        for (word, components) in words.iter().zip(components.chunks_mut(32)) {
            for (bit, component) in components.iter_mut().enumerate() {
                let sign = (word >> bit) << 31;
                *component += f32::from_bits(weight.to_bits() ^ sign);
            }
        }
    }
}

fn model_rows(
    ctx: &Context,
    pool: &Pool,
    params: &Params,
    inputs: &Inputs,
    documents: &Tokens,
) -> Result<(Vec<f32>, usize), Failure> {
    let Some(dir) = inputs.optional("model") else {
        return Err(Failure::permanent("backend `model` needs a model").help("connect `model`"));
    };
    let weights = hf::load(dir)?;
    let (width, vocab) = (weights.config().d_model, weights.config().vocab_size);
    if (documents.vocab_size() as usize) > vocab {
        let message = format!(
            "the documents have {} token ids, the model {vocab} embeddings",
            documents.vocab_size()
        );
        return Err(Failure::permanent(message));
    }
    let n = documents.n_documents();
    let counts: Vec<Counts> = (0..n).map(|i| tfidf::tokens(&documents.ids(i))).collect();
    ctx.check_cancelled()?;
    let frequencies = Frequencies::of(&counts);
    let table = weights.embedding();
    let mut means = vec![0.0_f64; n * width];
    pool.for_chunks(&mut means, width, |i, mean| {
        let mut total = 0.0;
        for &(id, n) in &counts[i] {
            let weight = f64::from(n) * frequencies.idf(id);
            total += weight;
            let embedding = &table[id as usize * width..][..width];
            for (mean, &x) in mean.iter_mut().zip(embedding) {
                *mean += weight * f64::from(x);
            }
        }
        if total > 0.0 {
            for mean in mean {
                *mean /= total;
            }
        }
    });
    ctx.progress(n as u64 / 2, n as u64, "documents");
    ctx.check_cancelled()?;
    let empty = |i: usize| counts[i].is_empty();
    let bad = means.chunks_exact(width).position(|mean| mean.iter().any(|x| !x.is_finite()));
    if let Some(i) = bad {
        let id = documents.document_id(i);
        let message = format!("the vector of document {id:016x} has a component that is no number");
        return Err(Failure::permanent(message).help("the model holds NaN or infinite embeddings"));
    }
    let (rows, dim) = pca::whiten(pool, &means, width, params.dim, empty)
        .map_err(|message| Failure::permanent(message).help("lower `dim`"))?;
    ctx.progress(n as u64, n as u64, "documents");
    Ok((rows, dim))
}

#[cfg(test)]
mod tests;
