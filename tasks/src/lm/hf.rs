//! Models as Hugging Face folders: safetensors and `config.json` of `Qwen3ForCausalLM`.
//!
//! `config.json` carries both generations of field names (`rope_theta` and `rope_parameters`,
//! `torch_dtype` and `dtype`), so that older and newer readers agree. A tied model has no `lm_head`.

mod config;
mod inspect;
mod numbers;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use engine::task::Failure;
use memmap2::Mmap;
use safetensors::tensor::{SafeTensorError, TensorView};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use thiserror::Error;

use super::{Config, Weights};
pub use config::Generation;
pub use inspect::{Inspection, TensorFigures, inspect};
pub use numbers::Precision;
use numbers::{Numbers, decode};

const WEIGHTS_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const CONFIG_FILE: &str = "config.json";
const GENERATION_FILE: &str = "generation_config.json";
/// The tokenizer beside the weights.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Why a model folder cannot be read or written.
#[derive(Debug, Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot access `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("`{}`: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

impl Error {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    fn invalid(path: &Path, message: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), message: message.into() }
    }

    fn safetensors(path: &Path, error: SafeTensorError) -> Self {
        match error {
            SafeTensorError::IoError(source) => Self::io(path, source),
            error => Self::invalid(path, format!("not a safetensors file: {error}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::Io { path, source } => {
                Self::io(format!("cannot access `{}`", path.display()), source)
            }
            Error::Invalid { .. } => Self::permanent(error.to_string()),
        }
    }
}

/// One tensor of the file and its place in the arena.
pub(super) struct Tensor {
    pub(super) name: String,
    shape: Vec<usize>,
    pub(super) range: Range<usize>,
}

/// Every tensor of a model in arena order. Lazy, because the number of blocks may be a lie.
pub(super) fn tensors<'a>(
    config: &'a Config,
    prefix: &'a str,
) -> impl Iterator<Item = Tensor> + 'a {
    let (d, f, hd) = (config.d_model, config.d_ffn, config.head_dim);
    let block = vec![
        ("input_layernorm.weight", vec![d]),
        ("self_attn.q_proj.weight", vec![config.q_width(), d]),
        ("self_attn.k_proj.weight", vec![config.kv_width(), d]),
        ("self_attn.v_proj.weight", vec![config.kv_width(), d]),
        ("self_attn.q_norm.weight", vec![hd]),
        ("self_attn.k_norm.weight", vec![hd]),
        ("self_attn.o_proj.weight", vec![d, config.q_width()]),
        ("post_attention_layernorm.weight", vec![d]),
        ("mlp.gate_proj.weight", vec![f, d]),
        ("mlp.up_proj.weight", vec![f, d]),
        ("mlp.down_proj.weight", vec![d, f]),
    ];
    let table = vec![config.vocab_size, d];
    let first = std::iter::once((format!("{prefix}embed_tokens.weight"), table.clone()));
    let blocks = (0..config.n_layers).flat_map(move |layer| {
        let named = |(name, shape): &(&str, Vec<usize>)| {
            (format!("{prefix}layers.{layer}.{name}"), shape.clone())
        };
        block.iter().map(named).collect::<Vec<_>>()
    });
    let last = std::iter::once((format!("{prefix}norm.weight"), vec![d]));
    let output = (!config.tie_embeddings).then(|| ("lm_head.weight".to_owned(), table));
    let mut at = 0;
    first.chain(blocks).chain(last).chain(output).map(move |(name, shape)| {
        let range = at..at + shape.iter().product::<usize>();
        at = range.end;
        Tensor { name, shape, range }
    })
}

/// Writes named vectors to a safetensors file; equal numbers give equal bytes.
///
/// # Errors
/// When the file cannot be written.
pub fn write_vectors(path: &Path, vectors: &[(&str, &[f32])]) -> Result<(), Error> {
    let views = vectors.iter().map(|(name, data)| {
        (*name, Numbers { shape: vec![data.len()], data, precision: Precision::F32 })
    });
    safetensors::serialize_to_file(views, None, path).map_err(|e| Error::safetensors(path, e))
}

/// Reads named vectors back, each of exactly the length of its destination.
///
/// # Errors
/// When the file is missing, malformed, or holds other vectors.
pub fn read_vectors(path: &Path, vectors: &mut [(&str, &mut [f32])]) -> Result<(), Error> {
    let map = map(path)?;
    let file = SafeTensors::deserialize(&map).map_err(|e| Error::safetensors(path, e))?;
    for (name, data) in vectors {
        let view = file.tensor(name).map_err(|e| Error::safetensors(path, e))?;
        copy(path, name, &view, &[data.len()], data)?;
    }
    Ok(())
}

/// Writes a model folder in f32; see [`save_as`].
///
/// # Errors
/// As [`save_as`].
pub fn save(dir: &Path, weights: &Weights, tokenizer: Option<&Path>) -> Result<(), Error> {
    save_as(dir, weights, tokenizer, Precision::F32)
}

/// Writes a model folder: weights, `config.json`, `generation_config.json`,
/// `tokenizer_config.json`, and a copy of `tokenizer`, a `tokenizer.json`.
///
/// # Errors
/// When a file cannot be written, `tokenizer` cannot be read, or a weight is beyond the range of
/// `precision`.
pub fn save_as(
    dir: &Path,
    weights: &Weights,
    tokenizer: Option<&Path>,
    precision: Precision,
) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))?;
    write_weights(dir, weights, precision)?;
    for (name, value) in [
        (CONFIG_FILE, config::to_json(weights.config(), precision)),
        (GENERATION_FILE, config::generation_json()),
        ("tokenizer_config.json", config::tokenizer_json(weights.config())),
    ] {
        write_json(&dir.join(name), &value)?;
    }
    match tokenizer {
        Some(tokenizer) => copy_file(tokenizer, &dir.join(TOKENIZER_FILE)),
        None => Ok(()),
    }
}

/// Writes the model in `from` to `to` with numbers of another precision; every other file of the
/// folder that tells how to use the model is copied as it is.
///
/// # Errors
/// When a file cannot be read or written, or a weight is beyond the range of `precision`.
pub fn convert(from: &Path, to: &Path, precision: Precision) -> Result<(), Error> {
    let weights = load(from)?;
    fs::create_dir_all(to).map_err(|error| Error::io(to, error))?;
    write_weights(to, &weights, precision)?;
    let mut config = read_json(&from.join(CONFIG_FILE))?;
    for field in ["torch_dtype", "dtype"] {
        config[field] = precision.torch_name().into();
    }
    write_json(&to.join(CONFIG_FILE), &config)?;
    for name in [
        GENERATION_FILE,
        TOKENIZER_FILE,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        // How sentence-transformers pools and normalizes.
        "modules.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
    ] {
        let source = from.join(name);
        if source.exists() {
            let target = to.join(name);
            let folder = target.parent().unwrap_or(to);
            fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
            copy_file(&source, &target)?;
        }
    }
    Ok(())
}

fn write_weights(dir: &Path, weights: &Weights, precision: Precision) -> Result<(), Error> {
    let path = dir.join(WEIGHTS_FILE);
    for tensor in tensors(weights.config(), "model.") {
        let data = &weights.data()[tensor.range];
        if let Some(x) = data.iter().find(|x| !precision.holds(**x)) {
            let (name, limit) = (tensor.name, precision.name());
            let message = format!("tensor `{name}` holds {x}, which `{limit}` cannot hold");
            return Err(Error::invalid(&path, message));
        }
    }
    let views = tensors(weights.config(), "model.").map(|tensor| {
        let data = &weights.data()[tensor.range];
        (tensor.name, Numbers { shape: tensor.shape, data, precision })
    });
    // Readers of PyTorch models look for this entry.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &path)
        .map_err(|error| Error::safetensors(&path, error))
}

fn write_json(path: &Path, value: &Value) -> Result<(), Error> {
    fs::write(path, format!("{value:#}\n")).map_err(|error| Error::io(path, error))
}

fn copy_file(from: &Path, to: &Path) -> Result<(), Error> {
    let bytes = fs::read(from).map_err(|error| Error::io(from, error))?;
    fs::write(to, bytes).map_err(|error| Error::io(to, error))
}

/// Reads the config of a model folder.
///
/// # Errors
/// When it is missing, malformed, or describes another architecture.
pub fn load_config(dir: &Path) -> Result<Config, Error> {
    let path = dir.join(CONFIG_FILE);
    let value = read_json(&path)?;
    config::from_json(&value).map_err(|message| Error::invalid(&path, message))
}

/// Reads how a model folder asks to be sampled from.
///
/// # Errors
/// When a file cannot be read or a field is not what it should be.
pub fn load_generation(dir: &Path) -> Result<Generation, Error> {
    let path = dir.join(GENERATION_FILE);
    let config = dir.join(CONFIG_FILE);
    // Older folders tell the ends of a text in `config.json` only.
    let (path, value) = match read_json(&path) {
        Ok(value) => (path, value),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let value = read_json(&config)?;
            (config, value)
        }
        Err(error) => return Err(error),
    };
    config::generation_from_json(&value).map_err(|message| Error::invalid(&path, message))
}

/// Reads a model folder: one safetensors file or shards with an index; f32, bf16 or f16.
///
/// # Errors
/// When a file is missing or damaged, a tensor is missing, has the wrong shape or type, is unknown
/// to the architecture, or holds a number that is not finite.
pub fn load(dir: &Path) -> Result<Weights, Error> {
    let mut config = load_config(dir)?;
    let files = weight_files(dir)?;
    let maps = files.iter().map(|path| map(path)).collect::<Result<Vec<_>, _>>()?;
    let mut found: BTreeMap<String, (&Path, TensorView<'_>)> = BTreeMap::new();
    for (path, map) in files.iter().zip(&maps) {
        let file = SafeTensors::deserialize(map).map_err(|e| Error::safetensors(path, e))?;
        for (name, view) in file.tensors() {
            found.insert(name, (path, view));
        }
    }
    // Embedding models are saved without the head, and so without the prefix.
    let prefix = if found.contains_key("embed_tokens.weight") { "" } else { "model." };
    if prefix.is_empty() && !found.contains_key("lm_head.weight") {
        config.tie_embeddings = true;
    }
    let mut placed = Vec::new();
    for tensor in tensors(&config, prefix) {
        let Some((path, view)) = found.remove(&tensor.name) else {
            let message = format!("tensor `{}` of {:?} is missing", tensor.name, tensor.shape);
            return Err(Error::invalid(dir, message));
        };
        check_tensor(path, &tensor.name, &view, &tensor.shape)?;
        placed.push((tensor, path, view));
    }
    found.retain(|name, _| {
        let tied_head = config.tie_embeddings && name == "lm_head.weight";
        !(tied_head || name.ends_with("rotary_emb.inv_freq"))
    });
    if let Some((name, (path, _))) = found.first_key_value() {
        let message = format!("tensor `{name}` has no place in this architecture");
        return Err(Error::invalid(path, message));
    }
    // Only now is memory taken: the file is known to hold as many numbers as the config claims.
    let mut weights = Weights::zeros(&config);
    for (tensor, path, view) in placed {
        let data = &mut weights.data_mut()[tensor.range];
        copy(path, &tensor.name, &view, &tensor.shape, data)?;
    }
    Ok(weights)
}

/// The safetensors files of a model folder.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let single = dir.join(WEIGHTS_FILE);
    let index = dir.join(INDEX_FILE);
    if single.exists() || !index.exists() {
        return Ok(vec![single]);
    }
    let value = read_json(&index)?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::invalid(&index, "has no object `weight_map`"));
    };
    let mut files = BTreeMap::new();
    for file in map.values() {
        // A shard is a plain file name: an index must not lead out of the folder.
        let Some(name) = file.as_str().filter(|name| !name.contains(['/', '\\']) && *name != "..")
        else {
            return Err(Error::invalid(&index, format!("`{file}` is no file name of a shard")));
        };
        files.insert(name.to_owned(), dir.join(name));
    }
    Ok(files.into_values().collect())
}

fn read_json(path: &Path) -> Result<Value, Error> {
    let text = fs::read(path).map_err(|error| Error::io(path, error))?;
    serde_json::from_slice(&text).map_err(|error| Error::invalid(path, error.to_string()))
}

fn map(path: &Path) -> Result<Mmap, Error> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    // SAFETY: The file is part of a published artifact or a sealed checkpoint, which nothing writes
    // to while a task reads it; the map is read-only.
    unsafe { Mmap::map(&file) }.map_err(|error| Error::io(path, error))
}

fn check_tensor(
    path: &Path,
    name: &str,
    view: &TensorView<'_>,
    shape: &[usize],
) -> Result<(), Error> {
    if view.shape() != shape {
        let message = format!("tensor `{name}` is {:?}, not {shape:?}", view.shape());
        return Err(Error::invalid(path, message));
    }
    if !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
        let message = format!("tensor `{name}` is {:?}, not F32, BF16 or F16", view.dtype());
        return Err(Error::invalid(path, message));
    }
    Ok(())
}

/// Copies a tensor to `data` as f32.
fn copy(
    path: &Path,
    name: &str,
    view: &TensorView<'_>,
    shape: &[usize],
    data: &mut [f32],
) -> Result<(), Error> {
    check_tensor(path, name, view, shape)?;
    decode(view.dtype(), view.data(), data);
    match data.iter().position(|x| !x.is_finite()) {
        Some(i) => {
            let message = format!("tensor `{name}` holds {} at element {i}", data[i]);
            Err(Error::invalid(path, message))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
