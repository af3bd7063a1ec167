use half::{bf16, f16};
use kernels::Pool;
use serde_json::json;

use super::*;
use crate::lm::Preset;
use crate::lm::init::Init;

fn model(tied: bool) -> Weights {
    let mut config = Preset::Smoke.config();
    (config.vocab_size, config.tie_embeddings) = (40, tied);
    Init::default().draw(&Pool::new(1), &config, 5)
}

fn saved(weights: &Weights) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), weights, None).unwrap();
    dir
}

#[test]
fn what_is_saved_is_loaded() {
    for tied in [true, false] {
        let weights = model(tied);
        let dir = saved(&weights);
        assert_eq!(load(dir.path()).unwrap(), weights);
        let bytes = fs::read(dir.path().join(WEIGHTS_FILE)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut names = file.names();
        names.sort_unstable();
        assert_eq!(names.len(), 2 * 11 + if tied { 2 } else { 3 });
        assert_eq!(names.contains(&"lm_head.weight"), !tied);
        let q = file.tensor("model.layers.1.self_attn.q_proj.weight").unwrap();
        assert_eq!((q.dtype(), q.shape()), (Dtype::F32, &[64, 64][..]));
        let v = file.tensor("model.layers.1.self_attn.v_proj.weight").unwrap();
        assert_eq!(v.data(), bytemuck::cast_slice::<f32, u8>(&weights.block(1).qkv[96 * 64..]));
    }
}

#[test]
fn half_precision_shards_and_headless_models_are_read() {
    let weights = model(true);
    let rounded: Vec<f32> = weights.data().iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
    let dir = saved(&weights);
    fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
    let mut map = serde_json::Map::new();
    for shard in 0..2 {
        let name = format!("model-{shard}.safetensors");
        let held: Vec<(String, Vec<usize>, Vec<u8>)> = tensors(weights.config(), "")
            .enumerate()
            .filter(|(i, _)| i % 2 == shard)
            .map(|(_, t)| {
                let data = &weights.data()[t.range];
                let bytes = data.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
                (t.name, t.shape, bytes)
            })
            .collect();
        let views = held.iter().map(|(tensor, shape, bytes)| {
            map.insert(tensor.clone(), json!(name));
            (tensor, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.path().join(&name)).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(dir.path().join(INDEX_FILE), index.to_string()).unwrap();
    assert_eq!(load(dir.path()).unwrap().data(), rounded);
    // Embedding models say nothing of a head that they do not have.
    let mut config = read_json(&dir.path().join(CONFIG_FILE)).unwrap();
    config["tie_word_embeddings"] = json!(false);
    write_json(&dir.path().join(CONFIG_FILE), &config).unwrap();
    assert_eq!(load(dir.path()).unwrap().data(), rounded);
    fs::write(
        dir.path().join(INDEX_FILE),
        json!({"weight_map": {"embed_tokens.weight": "../secret"}}).to_string(),
    )
    .unwrap();
    assert!(load(dir.path()).unwrap_err().to_string().contains("`\"../secret\"` is no file name"));
}

#[test]
fn damaged_models_are_errors() {
    let check = |damage: &dyn Fn(&Path), message: &str| {
        let dir = saved(&model(false));
        damage(dir.path());
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    let edit = |field: &'static str, value: Value| {
        move |dir: &Path| {
            let mut config = read_json(&dir.join(CONFIG_FILE)).unwrap();
            config[field] = value.clone();
            fs::write(dir.join(CONFIG_FILE), config.to_string()).unwrap();
        }
    };
    let bytes_of = |change: fn(&mut Vec<u8>)| {
        move |dir: &Path| {
            let mut bytes = fs::read(dir.join(WEIGHTS_FILE)).unwrap();
            change(&mut bytes);
            fs::write(dir.join(WEIGHTS_FILE), bytes).unwrap();
        }
    };
    check(&|dir| fs::remove_file(dir.join(WEIGHTS_FILE)).unwrap(), "cannot access");
    check(&|dir| fs::remove_file(dir.join(CONFIG_FILE)).unwrap(), "config.json");
    check(&|dir| fs::write(dir.join(CONFIG_FILE), "{").unwrap(), "config.json");
    check(&bytes_of(|b| b.truncate(b.len() - 4)), "not a safetensors file");
    check(&bytes_of(|b| b.truncate(5)), "not a safetensors file");
    check(&bytes_of(Vec::clear), "model.safetensors");
    check(&bytes_of(|b| b[..8].fill(0xff)), "not a safetensors file");
    check(
        &bytes_of(|b| {
            let end = b.len();
            b[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        }),
        "holds NaN",
    );
    check(&edit("hidden_size", json!(128)), "is [40, 64], not [40, 128]");
    check(&edit("num_hidden_layers", json!(3)), "`model.layers.2.input_layernorm.weight`");
    check(&edit("num_hidden_layers", json!(1 << 20)), "is missing");
    check(&edit("num_hidden_layers", json!(1)), "has no place");
    check(&edit("vocab_size", json!(-1)), "`vocab_size` is `-1`, not a count");
    check(&edit("vocab_size", json!(1_u64 << 60)), "vocab_size: 1152921504606846976 is not within");
    check(&edit("model_type", json!("llama")), "`llama`");
    check(&edit("hidden_act", json!("gelu")), "`gelu`");
    check(&edit("rope_scaling", json!({"rope_type": "yarn", "factor": 4})), "`yarn`");
    check(&edit("attention_bias", json!(true)), "`attention_bias` is on");
}

#[test]
fn vectors_round_trip_and_refuse_other_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    write_vectors(&path, &[("a", &[1.0, 2.5]), ("b", &[-0.0])]).unwrap();
    let (mut a, mut b) = ([0.0; 2], [1.0; 1]);
    read_vectors(&path, &mut [("a", &mut a), ("b", &mut b)]).unwrap();
    assert_eq!((a, b[0].to_bits()), ([1.0, 2.5], (-0.0_f32).to_bits()));
    assert!(read_vectors(&path, &mut [("a", &mut b)]).is_err());
    assert!(read_vectors(&path, &mut [("c", &mut b)]).is_err());
}

#[test]
fn every_precision_is_saved_loaded_and_converted() {
    for tied in [true, false] {
        let weights = model(tied);
        let rounded = |round: &dyn Fn(f32) -> f32| -> Vec<f32> {
            weights.data().iter().map(|x| round(*x)).collect()
        };
        for (precision, name, expected) in [
            (Precision::F32, "float32", rounded(&|x| x)),
            (Precision::Bf16, "bfloat16", rounded(&|x| bf16::from_f32(x).to_f32())),
            (Precision::F16, "float16", rounded(&|x| f16::from_f32(x).to_f32())),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (direct, converted) = (dir.path().join("direct"), dir.path().join("converted"));
            save_as(&direct, &weights, None, precision).unwrap();
            assert_eq!(load(&direct).unwrap().data(), expected);
            let config = read_json(&direct.join(CONFIG_FILE)).unwrap();
            assert_eq!((&config["dtype"], &config["torch_dtype"]), (&json!(name), &json!(name)));
            convert(saved(&weights).path(), &converted, precision).unwrap();
            for file in [WEIGHTS_FILE, CONFIG_FILE, GENERATION_FILE] {
                let read = |dir: &Path| fs::read(dir.join(file)).unwrap();
                assert!(read(&direct) == read(&converted), "{file} as {name}");
            }
        }
    }
    let mut wide = model(true);
    wide.data_mut()[3] = 70_000.0;
    let dir = tempfile::tempdir().unwrap();
    let error = save_as(dir.path(), &wide, None, Precision::F16).unwrap_err().to_string();
    assert!(error.contains("embed_tokens.weight` holds 70000, which `f16` cannot hold"), "{error}");
    save_as(dir.path(), &wide, None, Precision::Bf16).unwrap();
}

#[test]
fn folders_are_inspected_even_when_they_cannot_be_loaded() {
    let mut weights = model(true);
    weights.data_mut()[..3].copy_from_slice(&[f32::NAN, f32::INFINITY, 3.0]);
    let dir = tempfile::tempdir().unwrap();
    // NaN is refused when it is read, not when the f32 it came from is written by another program.
    let finite = model(true);
    save(dir.path(), &finite, None).unwrap();
    let path = dir.path().join(WEIGHTS_FILE);
    let mut bytes = fs::read(&path).unwrap();
    let table: Vec<u8> = finite.embedding().iter().flat_map(|x| x.to_le_bytes()).collect();
    let at = bytes.windows(16).position(|window| window == &table[..16]).unwrap();
    let broken = weights.embedding()[..3].iter().flat_map(|x| x.to_le_bytes());
    bytes.splice(at..at + 12, broken);
    fs::write(&path, bytes).unwrap();
    assert!(load(dir.path()).is_err());
    let found = inspect(dir.path()).unwrap();
    assert_eq!(found.n_numbers, weights.config().n_parameters());
    assert_eq!(found.files[0].0, WEIGHTS_FILE);
    let table = found.tensors.iter().find(|t| t.name == "model.embed_tokens.weight").unwrap();
    assert_eq!((table.n_not_finite, table.max), (2, Some(3.0)));
    assert_eq!((table.dtype.as_str(), &*table.shape), ("F32", &[40, 64][..]));
    let norm = found.tensors.iter().find(|t| t.name == "model.norm.weight").unwrap();
    assert_eq!((norm.mean, norm.root_mean_square), (Some(1.0), Some(1.0)));
}
