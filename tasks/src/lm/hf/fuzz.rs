//! Damaged model folders: whatever the bytes, the readers give a model or an error, never a panic,
//! and never more memory than the file could fill.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::lm::Preset;
use crate::lm::folder::FolderTokenizer;

/// A change to the bytes of a file.
#[derive(Clone, Debug)]
enum Damage {
    Flip { at: usize, mask: u8 },
    Truncate { at: usize },
    Insert { at: usize, bytes: Vec<u8> },
    Remove { at: usize, n: usize },
    Repeat { at: usize, n: usize },
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<usize>();
    prop_oneof![
        4 => (any::<usize>(), 1_u8..).prop_map(|(at, mask)| Damage::Flip { at, mask }),
        1 => at.prop_map(|at| Damage::Truncate { at }),
        1 => (any::<usize>(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
        1 => (any::<usize>(), 1_usize..40).prop_map(|(at, n)| Damage::Remove { at, n }),
        1 => (any::<usize>(), 1_usize..40).prop_map(|(at, n)| Damage::Repeat { at, n }),
    ]
}

/// Applies damage to the first `head` bytes, where the structure of a file is.
fn apply(bytes: &mut Vec<u8>, damage: &[Damage], head: usize) {
    for damage in damage {
        let head = head.min(bytes.len());
        if head == 0 {
            return;
        }
        match damage {
            Damage::Flip { at, mask } => bytes[at % head] ^= mask,
            Damage::Truncate { at } => bytes.truncate(at % bytes.len()),
            Damage::Insert { at, bytes: new } => {
                let at = at % head;
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove { at, n } => {
                let at = at % head;
                bytes.drain(at..head.min(at + n));
            }
            Damage::Repeat { at, n } => {
                let at = at % head;
                let again = bytes[at..head.min(at + n)].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
}

fn tiny(dir: &Path) {
    let mut config = Preset::Smoke.config();
    (config.vocab_size, config.d_model, config.d_ffn, config.n_layers) = (8, 4, 4, 1);
    (config.n_heads, config.n_kv_heads, config.head_dim) = (2, 1, 2);
    let mut weights = Weights::zeros(&config);
    weights.data_mut().iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
    save(dir, &weights, None).unwrap();
}

/// Reads everything in a folder; what comes out is a model or an error that names a file.
fn read_all(dir: &Path) {
    match load(dir) {
        Ok(weights) => assert!(weights.data().iter().all(|x| x.is_finite())),
        Err(error) => assert!(error.to_string().contains('`'), "{error}"),
    }
    let _ = (load_generation(dir), inspect(dir), load_config(dir));
}

/// A value that a hostile `config.json` may hold.
fn hostile() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_u64..40).prop_map(Value::from),
        any::<f64>().prop_map(|x| json!(x)),
        ".{0,6}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([1, "a", null])),
        Just(json!({"rope_type": "default", "rope_theta": -1})),
    ]
}

/// The library panics on them when it first encodes a text.
#[test]
fn damaged_templates_are_refused() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bytes = fs::read(source.join("tests/goldens/qwen3-embedding/tokenizer.json")).unwrap();
    let open = |damage: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&bytes).unwrap();
        damage(&mut value["post_processor"]);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(TOKENIZER_FILE), value.to_string()).unwrap();
        FolderTokenizer::open(dir.path()).map(|_| ()).map_err(|failure| failure.message)
    };
    assert_eq!(open(&|_| ()), Ok(()));
    let nameless = open(&|template| {
        let token = template["special_tokens"]["<|endoftext|>"].take();
        template["special_tokens"] = json!({ "<|other|>": token });
    });
    assert!(nameless.unwrap_err().contains("is not a tokenizer"));
    let second = open(&|template| template["single"][0]["Sequence"]["id"] = json!("B"));
    assert!(second.unwrap_err().contains("is not a tokenizer"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_weights(damage in prop::collection::vec(damage(), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        tiny(dir.path());
        let path = dir.path().join(WEIGHTS_FILE);
        let mut bytes = fs::read(&path).unwrap();
        let head = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        apply(&mut bytes, &damage, head);
        fs::write(&path, bytes).unwrap();
        read_all(dir.path());
    }

    #[test]
    fn damaged_text_files(
        file in prop::sample::select(vec![CONFIG_FILE, GENERATION_FILE]),
        damage in prop::collection::vec(damage(), 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        tiny(dir.path());
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        apply(&mut bytes, &damage, usize::MAX);
        fs::write(&path, bytes).unwrap();
        read_all(dir.path());
    }

    #[test]
    fn hostile_configs(
        field in prop::sample::select(vec![
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings", "rope_theta",
            "rope_parameters", "rope_scaling", "rms_norm_eps", "tie_word_embeddings", "model_type",
            "hidden_act", "attention_bias", "quantization_config", "eos_token_id", "top_p",
            "temperature", "top_k",
        ]),
        value in hostile(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        tiny(dir.path());
        for file in [CONFIG_FILE, GENERATION_FILE] {
            let path = dir.path().join(file);
            let mut json = read_json(&path).unwrap();
            json[field] = value.clone();
            fs::write(&path, json.to_string()).unwrap();
        }
        read_all(dir.path());
    }

    #[test]
    fn damaged_indexes(
        damage in prop::collection::vec(damage(), 1..4),
        shard in prop_oneof![
            Just("model-0.safetensors".to_owned()),
            Just("/etc/hostname".to_owned()),
            Just("..".to_owned()),
            ".{0,12}",
        ],
    ) {
        let dir = tempfile::tempdir().unwrap();
        tiny(dir.path());
        let (whole, part) = (WEIGHTS_FILE, "model-0.safetensors");
        fs::rename(dir.path().join(whole), dir.path().join(part)).unwrap();
        let index = json!({"weight_map": {"model.norm.weight": shard, "a": part}});
        fs::write(dir.path().join(INDEX_FILE), index.to_string()).unwrap();
        read_all(dir.path());
        let mut bytes = index.to_string().into_bytes();
        apply(&mut bytes, &damage, usize::MAX);
        fs::write(dir.path().join(INDEX_FILE), bytes).unwrap();
        read_all(dir.path());
    }

    #[test]
    fn damaged_tokenizers(damage in prop::collection::vec(damage(), 1..4)) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut bytes =
            fs::read(source.join("tests/goldens/qwen3-embedding/tokenizer.json")).unwrap();
        apply(&mut bytes, &damage, usize::MAX);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(TOKENIZER_FILE), bytes).unwrap();
        if let Ok(tokenizer) = FolderTokenizer::open(dir.path()) {
            let n_ids = tokenizer.n_ids();
            let ids = tokenizer.encode_whole("The cat, die Brücke.", Some(0)).unwrap_or_default();
            prop_assert!(ids.iter().all(|id| (*id as usize) < n_ids.max(1)));
            let _ = tokenizer.decode(&ids);
        }
    }
}
