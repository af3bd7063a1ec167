//! `config.json` and its neighbours.

use kernels::sampling::is_temperature;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Precision;
use crate::lm::Config;
use crate::tokenizer::{BOS, EOS, PAD, SEP, SPECIALS};

/// The `config.json` of a model.
pub(super) fn to_json(config: &Config, precision: Precision) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ffn,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rope_parameters": { "rope_type": "default", "rope_theta": config.rope_theta },
        "rms_norm_eps": shortest(config.norm_eps),
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "use_sliding_window": false,
        "initializer_range": 0.02,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "use_cache": true,
        "torch_dtype": precision.torch_name(),
        "dtype": precision.torch_name(),
    })
}

/// The `f64` that prints like the `f32`: 1e-6 rather than 9.999999974752427e-7.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().expect("a printed number parses")
}

/// How to sample from a model, as the paper does (arXiv 2509.15248, section A.2).
pub(super) fn generation_json() -> Value {
    json!({
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "do_sample": true,
        "temperature": 1.0,
        // Without it transformers keeps the 50 likeliest.
        "top_k": 0,
        "top_p": 0.9,
    })
}

/// How a model folder asks to be sampled from; what it does not say is transformers' default.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generation {
    /// Tokens that end a text; may be none.
    pub stop: Vec<u32>,
    /// Whether tokens are drawn; else the likeliest is taken.
    pub do_sample: bool,
    /// Divides the logits.
    pub temperature: f32,
    /// How many of the likeliest tokens stay; 0 keeps all.
    pub top_k: usize,
    /// The share of the mass that stays.
    pub top_p: f64,
    /// Above 1, makes tokens that occurred less likely.
    pub repetition_penalty: f32,
}

/// Reads a `generation_config.json`, or those fields of a `config.json`.
///
/// # Errors
/// The first field that has the wrong type or is out of range.
pub(super) fn generation_from_json(value: &Value) -> Result<Generation, String> {
    let object = value.as_object().ok_or("is not a JSON object")?;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or(format!("`eos_token_id` holds `{value}`, not a token id"))
    };
    let stop = match object.get("eos_token_id") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids.iter().map(id).collect::<Result<_, _>>()?,
        Some(one) => vec![id(one)?],
    };
    let number = |field: &str, default: f64, lowest: f64| match object.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => match value.as_f64() {
            Some(x) if x.is_finite() && x >= lowest => Ok(x),
            _ => Err(format!("`{field}` is `{value}`, not a number of at least {lowest}")),
        },
    };
    let generation = Generation {
        stop,
        do_sample: object.get("do_sample").and_then(Value::as_bool).unwrap_or(false),
        temperature: number("temperature", 1.0, f64::MIN_POSITIVE)? as f32,
        top_k: number("top_k", 50.0, 0.0)? as usize,
        top_p: number("top_p", 1.0, f64::MIN_POSITIVE)?,
        repetition_penalty: number("repetition_penalty", 1.0, 1.0)? as f32,
    };
    if generation.top_p > 1.0 || !is_temperature(generation.temperature) {
        let Generation { top_p, temperature, .. } = generation;
        return Err(format!("`top_p` {top_p} or `temperature` {temperature} is out of range"));
    }
    Ok(generation)
}

/// How other libraries load `tokenizer.json`.
pub(super) fn tokenizer_json(config: &Config) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[BOS as usize],
        "eos_token": SPECIALS[EOS as usize],
        "sep_token": SPECIALS[SEP as usize],
        "pad_token": SPECIALS[PAD as usize],
        "model_max_length": config.context,
        "clean_up_tokenization_spaces": false,
    })
}

/// Reads a `config.json`.
///
/// # Errors
/// The first field that is missing, has the wrong type, or asks for what this model code lacks.
pub(super) fn from_json(value: &Value) -> Result<Config, String> {
    let object = value.as_object().ok_or("is not a JSON object")?;
    refuse_unsupported(object)?;
    let count = |field: &str| -> Result<usize, String> {
        let value = object.get(field).ok_or(format!("`{field}` is missing"))?;
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        count.ok_or(format!("`{field}` is `{value}`, not a count"))
    };
    let n_heads = count("num_attention_heads")?;
    let config = Config {
        d_model: count("hidden_size")?,
        n_layers: count("num_hidden_layers")?,
        n_heads,
        n_kv_heads: count("num_key_value_heads")?,
        head_dim: count("head_dim")?,
        d_ffn: count("intermediate_size")?,
        vocab_size: count("vocab_size")?,
        context: count("max_position_embeddings")?,
        rope_theta: rope_theta(object)?,
        norm_eps: number(object, "rms_norm_eps")? as f32,
        tie_embeddings: match object.get("tie_word_embeddings") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(tied)) => *tied,
            Some(other) => return Err(format!("`tie_word_embeddings` is `{other}`, not a bool")),
        },
    };
    config.check().map_err(|error| error.to_string())?;
    Ok(config)
}

fn number(object: &Map<String, Value>, field: &str) -> Result<f64, String> {
    let value = object.get(field).ok_or(format!("`{field}` is missing"))?;
    value.as_f64().ok_or(format!("`{field}` is `{value}`, not a number"))
}

/// `rope_parameters.rope_theta` of newer files, else `rope_theta`.
fn rope_theta(object: &Map<String, Value>) -> Result<f64, String> {
    match object.get("rope_parameters") {
        Some(Value::Object(parameters)) if parameters.contains_key("rope_theta") => {
            number(parameters, "rope_theta")
        }
        None | Some(Value::Null | Value::Object(_)) => number(object, "rope_theta"),
        Some(other) => Err(format!("`rope_parameters` is `{other}`, not an object")),
    }
}

/// Refuses settings that would change the numbers and that this model code does not have.
fn refuse_unsupported(object: &Map<String, Value>) -> Result<(), String> {
    let model_type = object.get("model_type").and_then(Value::as_str).unwrap_or("absent");
    if model_type != "qwen3" {
        return Err(format!("`model_type` is `{model_type}`; only `qwen3` is known"));
    }
    let rope_type = |field: &str| {
        let scaling = object.get(field)?.as_object()?;
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type"))?.as_str()?;
        (kind != "default").then(|| format!("`{field}` asks for `{kind}` rotary scaling"))
    };
    for field in ["rope_parameters", "rope_scaling"] {
        if let Some(message) = rope_type(field) {
            return Err(format!("{message}, which is not supported"));
        }
    }
    for field in ["attention_bias", "use_sliding_window"] {
        if object.get(field).is_some_and(|value| *value == Value::Bool(true)) {
            return Err(format!("`{field}` is on, which is not supported"));
        }
    }
    let act = object.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
    if act != "silu" {
        return Err(format!("`hidden_act` is `{act}`; only `silu` is known"));
    }
    if object.get("quantization_config").is_some_and(|value| !value.is_null()) {
        return Err("`quantization_config` is set; only unquantized weights are read".to_owned());
    }
    Ok(())
}
