//! How a pipeline names an architecture: a preset, or a preset with changes.

use std::fmt;

use engine::task::ParamError;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::Config;

/// Base of the rotary frequencies in the paper's models (arXiv 2509.15248, table 11).
const ROPE_THETA: f64 = 5e5;
/// RMSNorm's epsilon in Qwen3.
const NORM_EPS: f32 = 1e-6;

/// A named architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// 0.12 M parameters: tests.
    Smoke,
    /// 1 M parameters: minutes on two cores.
    Toy,
    /// 27 M parameters: minutes on one GPU.
    Small,
    /// 87 M parameters: hours on one GPU.
    Medium,
    /// The paper's 3 B model (arXiv 2509.15248, table 11).
    #[serde(rename = "3b")]
    B3,
    /// The paper's 6 B model (arXiv 2509.15248, table 11).
    #[serde(rename = "6b")]
    B6,
}

impl Preset {
    /// Every preset, smallest first.
    pub const ALL: [Self; 6] =
        [Self::Smoke, Self::Toy, Self::Small, Self::Medium, Self::B3, Self::B6];

    /// The name in a pipeline.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Toy => "toy",
            Self::Small => "small",
            Self::Medium => "medium",
            Self::B3 => "3b",
            Self::B6 => "6b",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// The preset's config, with the vocabulary it was sized for.
    pub fn config(self) -> Config {
        let config = |n_layers, d_model, d_ffn, heads: [usize; 3], vocab_size, context| Config {
            d_model,
            n_layers,
            n_heads: heads[0],
            n_kv_heads: heads[1],
            head_dim: heads[2],
            d_ffn,
            vocab_size,
            context,
            rope_theta: ROPE_THETA,
            norm_eps: NORM_EPS,
            tie_embeddings: true,
        };
        match self {
            Self::Smoke => config(2, 64, 168, [2, 1, 32], 512, 64),
            Self::Toy => config(4, 128, 336, [4, 2, 32], 2048, 128),
            Self::Small => config(8, 512, 1344, [8, 4, 64], 8192, 1024),
            Self::Medium => config(12, 768, 2016, [12, 4, 64], 16_384, 2048),
            Self::B3 => config(26, 3072, 8064, [24, 8, 128], 49_152, 4096),
            Self::B6 => config(32, 4096, 13_056, [32, 8, 128], 49_152, 4096),
        }
    }
}

/// An architecture in a pipeline: `arch: toy`, or `arch: {preset: toy, n_layers: 6}`.
///
/// A field of this type needs both attributes below, so that the short form is read too:
/// `#[serde(deserialize_with = "arch::deserialize")] #[schemars(schema_with = "arch::schema")]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arch {
    /// Where values not given come from.
    pub preset: Preset,
    /// Width of the residual stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_model: Option<usize>,
    /// Blocks of attention and feed-forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_layers: Option<usize>,
    /// Query heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_heads: Option<usize>,
    /// Key and value heads; `n_heads` is a multiple.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// Width of one head; even.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Width of the feed-forward layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_ffn: Option<usize>,
    /// Rows of the embedding table, at least the tokenizer's vocabulary, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// Longest sequence, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Base of the rotary frequencies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Whether the output matrix is the embedding table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tie_embeddings: Option<bool>,
}

impl From<Preset> for Arch {
    fn from(preset: Preset) -> Self {
        Self {
            preset,
            d_model: None,
            n_layers: None,
            n_heads: None,
            n_kv_heads: None,
            head_dim: None,
            d_ffn: None,
            vocab_size: None,
            context: None,
            rope_theta: None,
            tie_embeddings: None,
        }
    }
}

impl Arch {
    /// The config for a tokenizer of `n_tokenizer_ids` ids.
    ///
    /// # Errors
    /// When a dimension is wrong or the table has fewer rows than the tokenizer has ids.
    pub fn config(&self, n_tokenizer_ids: usize) -> Result<Config, ParamError> {
        let preset = self.preset.config();
        let config = Config {
            d_model: self.d_model.unwrap_or(preset.d_model),
            n_layers: self.n_layers.unwrap_or(preset.n_layers),
            n_heads: self.n_heads.unwrap_or(preset.n_heads),
            n_kv_heads: self.n_kv_heads.unwrap_or(preset.n_kv_heads),
            head_dim: self.head_dim.unwrap_or(preset.head_dim),
            d_ffn: self.d_ffn.unwrap_or(preset.d_ffn),
            vocab_size: self.vocab_size.unwrap_or(n_tokenizer_ids),
            context: self.context.unwrap_or(preset.context),
            rope_theta: self.rope_theta.unwrap_or(preset.rope_theta),
            tie_embeddings: self.tie_embeddings.unwrap_or(preset.tie_embeddings),
            norm_eps: preset.norm_eps,
        };
        config
            .check()
            .map_err(|error| ParamError::new(format!("arch.{}", error.field), error.message))?;
        if config.vocab_size < n_tokenizer_ids {
            let rows = config.vocab_size;
            return Err(ParamError::new(
                "arch.vocab_size",
                format!("{rows} rows cannot hold the tokenizer's {n_tokenizer_ids} ids"),
            )
            .help("leave `vocab_size` out to take the tokenizer's"));
        }
        Ok(config)
    }

    /// Checks what can be checked before the tokenizer is known.
    ///
    /// # Errors
    /// As [`Self::config`].
    pub fn check(&self) -> Result<(), ParamError> {
        self.config(self.vocab_size.unwrap_or(self.preset.config().vocab_size)).map(|_| ())
    }
}

/// Reads the name of a preset or an object.
///
/// # Errors
/// When it is neither, or has an unknown field.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arch, D::Error> {
    deserializer.deserialize_any(ArchVisitor)
}

/// The JSON schema of both forms.
pub fn schema(generator: &mut SchemaGenerator) -> Schema {
    let preset = generator.subschema_for::<Preset>();
    let object = generator.subschema_for::<Arch>();
    json_schema!({ "anyOf": [preset, object] })
}

struct ArchVisitor;

impl<'de> Visitor<'de> for ArchVisitor {
    type Value = Arch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a preset, or an object with `preset` and changed values")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Arch, E> {
        Preset::from_name(name).map(Arch::from).ok_or_else(|| {
            let names = Preset::ALL.map(Preset::name).join("`, `");
            E::custom(format!("no preset is called `{name}`; there are `{names}`"))
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Arch, A::Error> {
        Arch::deserialize(MapAccessDeserializer::new(map)).map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Counts of mission rows C-1 and C-2: per-head QK-norm, tied and untied.
    #[test]
    fn presets_have_the_papers_sizes() {
        let check = |preset: Preset, tied, untied| {
            let mut config = preset.config();
            assert_eq!(config.check(), Ok(()));
            assert_eq!(config.n_parameters(), tied, "{}", preset.name());
            config.tie_embeddings = false;
            assert_eq!(config.n_parameters(), untied, "{}", preset.name());
        };
        check(Preset::Smoke, 122_304, 155_072);
        check(Preset::Toy, 976_256, 1_238_400);
        check(Preset::Small, 27_010_560, 31_204_864);
        check(Preset::Medium, 87_216_384, 99_799_296);
        check(Preset::B3, 2_737_739_264, 2_888_734_208);
        check(Preset::B6, 6_677_606_400, 6_878_932_992);
    }

    #[test]
    fn names_and_objects_are_one_canonical_form() {
        let name = deserialize(json!("toy")).unwrap();
        let object = deserialize(json!({"preset": "toy"})).unwrap();
        assert_eq!(name, object);
        assert_eq!(serde_json::to_value(&name).unwrap(), json!({"preset": "toy"}));
        let changed =
            deserialize(json!({"preset": "3b", "n_layers": 6, "tie_embeddings": false})).unwrap();
        let config = changed.config(50_000).unwrap();
        assert_eq!((config.n_layers, config.d_model, config.vocab_size), (6, 3072, 50_000));
        assert!(!config.tie_embeddings);
    }

    #[test]
    fn wrong_arches_say_what_is_wrong() {
        let check = |value: serde_json::Value, message: &str| {
            let error = deserialize(value).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(json!("tiny"), "no preset is called `tiny`");
        check(json!({"preset": "toy", "n_layer": 3}), "n_layer");
        check(json!({"n_layers": 3}), "preset");
        check(json!(3), "name of a preset");
        let small = deserialize(json!({"preset": "toy", "vocab_size": 300})).unwrap();
        assert_eq!(small.check(), Ok(()));
        assert_eq!(small.config(301).unwrap_err().path, "arch.vocab_size");
    }
}
