//! Tests of `embed` on made-up documents.

use std::path::Path;

use engine::digest::Digest;
use engine::task::testbed::Bench;
use serde_json::json;

use kernels::philox::Philox;

use super::*;
use crate::format::tokens::{Tokens, TokensWriter};
use crate::format::vectors::Vectors;
use crate::lm::{config::Config, hf, weights::Weights};
use crate::tfidf::{self, Counts, Frequencies};

const VOCAB: u32 = 40;

/// Documents of five topics: four tokens of the topic, four of a shared genre.
fn documents() -> Vec<Vec<u32>> {
    let rng = Philox::new(9, "documents");
    (0..60_u64)
        .map(|i| {
            let topic = (i % 5) as u32;
            let word = |j: u64| {
                let pick = rng.below(i * 16 + j, 4) as u32;
                if j < 4 { topic * 4 + pick } else { 20 + (i / 5 % 3) as u32 * 4 + pick }
            };
            (0..8).map(word).collect()
        })
        .collect()
}

fn write_tokens(dir: &Path, documents: &[Vec<u32>], tokenizer: Digest) {
    std::fs::create_dir_all(dir).unwrap();
    let mut writer = TokensWriter::create(dir, VOCAB, tokenizer).unwrap();
    for (i, ids) in documents.iter().enumerate() {
        writer.push(0xabc0 + i as u64, 4, ids).unwrap();
    }
    writer.finish().unwrap();
}

fn write_model(dir: &Path) {
    let config = Config {
        d_model: 16,
        n_layers: 1,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 8,
        d_ffn: 16,
        vocab_size: VOCAB as usize,
        context: 32,
        rope_theta: 1e4,
        norm_eps: 1e-6,
        tie_embeddings: true,
    };
    let mut weights = Weights::zeros(&config);
    let rng = Philox::new(1, "model");
    for (i, x) in weights.data_mut().iter_mut().enumerate() {
        *x = rng.normal(i as u64) as f32;
    }
    std::fs::create_dir_all(dir).unwrap();
    hf::save(dir, &weights, None).unwrap();
}

fn embed(documents: &[Vec<u32>], params: &serde_json::Value) -> Result<Vec<Vec<f32>>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let [tokens, model] = ["tokens", "model"].map(|name| dir.path().join(name));
    write_tokens(&tokens, documents, Digest::of(b"tokenizer"));
    let mut bench = Bench::new(dir.path()).input("documents", &tokens);
    if params["backend"] == "model" {
        write_model(&model);
        bench = bench.input("model", &model);
    }
    bench.run::<Embed>(params)?;
    let vectors = Vectors::open(&bench.out("vectors")).unwrap();
    assert_eq!(vectors.document_ids()[1], 0xabc1);
    Ok((0..vectors.n_documents()).map(|i| vectors.row(i).to_vec()).collect())
}

/// Share of documents whose nearest neighbour has the same topic; a fifth by chance.
fn topic_precision(rows: &[Vec<f32>]) -> f64 {
    let product = |a: usize, b: usize| kernels::int8_search::dot(&rows[a], &rows[b]);
    let right = |&a: &usize| {
        let others = (0..rows.len()).filter(|&b| b != a);
        let best = others.max_by(|&x, &y| product(a, x).total_cmp(&product(a, y)));
        best.unwrap() % 5 == a % 5
    };
    (0..rows.len()).filter(right).count() as f64 / rows.len() as f64
}

#[test]
fn both_backends_find_topics() {
    let tfidf = json!({ "terms": "tokens", "dim": 512 });
    assert!(topic_precision(&embed(&documents(), &tfidf).unwrap()) > 0.85);
    let model = json!({ "backend": "model" });
    let rows = embed(&documents(), &model).unwrap();
    assert_eq!(rows[0].len(), 16);
    assert!(topic_precision(&rows) > 0.6, "{}", topic_precision(&rows));
}

/// The projection keeps inner products within five standard errors.
#[test]
fn projection_keeps_inner_products() {
    let documents = documents();
    let counts: Vec<Counts> = documents.iter().map(|ids| tfidf::tokens(ids)).collect();
    let frequencies = Frequencies::of(&counts);
    let weights: Vec<_> = counts.iter().map(|c| frequencies.weigh(c, |_| true)).collect();
    let rows = embed(&documents, &json!({ "terms": "tokens", "dim": 2048 })).unwrap();
    for (a, b) in [(0, 5), (0, 1), (3, 33), (10, 40), (20, 21)] {
        let exact = tfidf::cosine(&weights[a], &weights[b]);
        let projected = f64::from(kernels::int8_search::dot(&rows[a], &rows[b]));
        assert!((exact - projected).abs() < 5.0 / 2048.0_f64.sqrt(), "{exact} {projected}");
    }
}

/// Each backend over several runs of documents: threads, and where it was stopped, change nothing.
#[test]
fn runs_and_stops_do_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let [tokens, model] = ["tokens", "model"].map(|name| dir.path().join(name));
    // As many documents as fill runs of every backend.
    let documents: Vec<Vec<u32>> = documents().into_iter().cycle().take(9_000).collect();
    write_tokens(&tokens, &documents, Digest::of(b"tokenizer"));
    write_model(&model);
    for (backend, n_stages) in [("tfidf", 2), ("model", 2), ("states", 1)] {
        let params = json!({ "backend": backend, "terms": "tokens", "dim": 8 });
        let bench = |name: &str, n_threads: usize| {
            let bench = Bench::new(&dir.path().join(format!("{backend} {name}")));
            let bench = bench.input("documents", &tokens).input("model", &model);
            Bench { n_threads, ..bench }
        };
        let bytes =
            |bench: &Bench| std::fs::read(bench.out("vectors").join(vectors::FILE)).unwrap();
        let whole = bench("whole", 1);
        whole.run::<Embed>(&params).unwrap();
        let n_items = whole.items.n_done();
        assert!(n_items >= 2 * n_stages, "{backend}: {n_items} items");
        let other = bench("other", 3);
        other.run::<Embed>(&params).unwrap();
        assert!(bytes(&other) == bytes(&whole), "{backend}");
        let mut stopped = bench("stopped", 2);
        for n_before in 1..n_items {
            stopped.cancel = engine::task::CancelToken::default();
            stopped.stop_after(n_before);
            // An item may end after the last look at the token.
            let _ = stopped.run::<Embed>(&params);
            assert!(stopped.items.n_done() >= n_before);
        }
        stopped.cancel = engine::task::CancelToken::default();
        stopped.run::<Embed>(&params).unwrap();
        assert!(bytes(&stopped) == bytes(&whole), "{backend}");
    }
}

/// A run of documents that an edit left alone is not embedded again.
#[test]
fn an_edit_embeds_its_own_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let [tokens, model] = ["tokens", "model"].map(|name| dir.path().join(name));
    let mut documents: Vec<Vec<u32>> = documents().into_iter().cycle().take(2 * 9_000).collect();
    write_tokens(&tokens, &documents, Digest::of(b"tokenizer"));
    write_model(&model);
    let bench = Bench::new(dir.path()).input("documents", &tokens).input("model", &model);
    let params = json!({ "backend": "states", "dim": 4 });
    bench.run::<Embed>(&params).unwrap();
    let n_items = bench.items.n_done() as u64;
    assert!(n_items > 2 && bench.items.n_tries() == n_items);
    let last = documents.len() - 1;
    documents[last][0] ^= 1;
    write_tokens(&tokens, &documents, Digest::of(b"tokenizer"));
    std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    bench.run::<Embed>(&params).unwrap();
    assert_eq!(bench.items.n_tries(), n_items + 1);
    assert_eq!(Tokens::open(&tokens).unwrap().n_documents(), documents.len());
}

#[test]
fn empty_documents_are_named_or_kept() {
    let mut documents = documents();
    documents[2].clear();
    for backend in ["tfidf", "model"] {
        let params = json!({ "backend": backend, "terms": "tokens" });
        let error = embed(&documents, &params).unwrap_err();
        assert!(error.message.contains("000000000000abc2"), "{error}");
        let params = json!({ "backend": backend, "terms": "tokens", "on_empty": "keep" });
        let rows = embed(&documents, &params).unwrap();
        assert!(rows[2].iter().all(|&x| x == 0.0) && rows[3].iter().any(|&x| x != 0.0));
    }
}

#[test]
fn missing_inputs_are_named() {
    let check = |params, expected: &str| {
        let failure = embed(&documents(), &params).unwrap_err();
        assert!(failure.message.contains(expected), "{failure}");
    };
    check(json!({}), "need the tokenizer");
    check(json!({ "dim": 0 }), "dim is 0");
    check(json!({ "backend": "model", "dim": 17 }), "vary in 16 directions");
    let empty = embed(&[], &json!({ "terms": "tokens" })).unwrap_err();
    assert!(empty.message.contains("no documents"), "{empty}");
}

/// A tolerant snapshot: changed vectors need a new revision.
#[test]
fn output_is_pinned() {
    let check = |params, expected: [f32; 4]| {
        let rows = embed(&documents(), &params).unwrap();
        for (found, expected) in rows[7].iter().zip(expected) {
            assert!((found.abs() - expected).abs() < 1e-4, "{:.6?}", &rows[7][..4]);
        }
    };
    check(json!({ "terms": "tokens", "dim": 32 }), [0.228_042, 0.088_018, 0.231_074, 0.328_157]);
    check(json!({ "backend": "model", "dim": 8 }), [0.313_073, 0.041_896, 0.538_443, 0.298_094]);
}
