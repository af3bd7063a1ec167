//! Draws documents uniformly at random until a number of tokens is reached.
//!
//! Documents are taken in the order of a seeded permutation, so that a smaller sample of the same
//! seed is a prefix of a larger one.

use engine::task::{
    Context, Determinism, Estimate, FILE_BYTES, Failure, Inputs, Outputs, ParamError, Port,
    Predicted, Task,
};
use kernels::philox::Philox;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cost::{fact, figure, ids_bytes};
use crate::format::tokens::{Tokens, TokensWriter};
use crate::tokenizer::DOCUMENT_SPECIALS;

/// Draws documents up to a number of tokens.
pub struct Sample;

/// Params of `sample`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Tokens to reach, `<|bos|>` and `<|eos|>` of every document included, or `all`. The last
    /// document is kept whole, so a sample exceeds this by less than one document.
    #[serde(default)]
    pub tokens: Amount,
    /// Seed of the order. Samples of one seed are nested.
    #[serde(default)]
    pub seed: u64,
    /// Takes all there is when there is less than asked for, instead of failing.
    #[serde(default)]
    pub at_most: bool,
}

/// A number of tokens, or `all`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Amount {
    /// Every document.
    #[default]
    All,
    /// This many tokens.
    Tokens(u64),
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Tokens(n_tokens) => serializer.serialize_u64(*n_tokens),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Amount;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of tokens or `all`")
            }

            fn visit_u64<E: serde::de::Error>(self, n_tokens: u64) -> Result<Amount, E> {
                Ok(Amount::Tokens(n_tokens))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Amount, E> {
                if text == "all" {
                    Ok(Amount::All)
                } else {
                    Err(E::custom(format!("`{text}` is not `all`")))
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Amount {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Amount".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "all"}]})
    }
}

impl Task for Sample {
    const KIND: &'static str = "sample";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "draws documents uniformly up to a number of tokens";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::one("tokens", "tokens", "documents to draw from")];
    const OUTPUTS: &'static [Port] =
        &[Port::one("tokens", "tokens", "the drawn documents, in the order drawn")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.tokens == Amount::Tokens(0) {
            return Err(ParamError::new("tokens", "0 tokens are no sample"));
        }
        Ok(())
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let pool = inputs.one("tokens");
        let available = pool.get(fact::TOKENS);
        let tokens = match (params.tokens, available) {
            (Amount::All, available) => available,
            (Amount::Tokens(asked), Some(available)) if params.at_most => {
                Some(available.min(asked as f64))
            }
            (Amount::Tokens(asked), _) => Some(asked as f64),
        };
        let share = tokens.zip(available).map(|(tokens, available)| tokens / available);
        let vocabulary = pool.get(fact::VOCABULARY);
        let drawn = share.map(|share| pool.scaled(share)).unwrap_or_default();
        Estimate::unknown()
            .figure(figure::DOCUMENTS, drawn.get(fact::DOCUMENTS))
            .figure(figure::TOKENS, tokens)
            .output(
                "tokens",
                drawn
                    .with(fact::TOKENS, tokens)
                    .with(fact::VOCABULARY, vocabulary)
                    .with(FILE_BYTES, ids_bytes(tokens, vocabulary)),
            )
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let pool = Tokens::open(inputs.one("tokens"))?;
        let available = stream_tokens(&pool);
        let target = match params.tokens {
            Amount::All => available,
            Amount::Tokens(target) => target,
        };
        if available < target {
            let message = format!(
                "{target} tokens were asked for, but the {} documents hold {available}",
                pool.n_documents()
            );
            if !params.at_most {
                return Err(Failure::permanent(message)
                    .help("ask for fewer, give more text, or set `at_most: true` to take all"));
            }
            ctx.warn(format!("{message}: all are taken"));
        }

        let dir = ctx.out("tokens")?;
        let mut writer = TokensWriter::create(&dir, pool.vocab_size(), pool.tokenizer())?;
        let (mut n_tokens, mut n_documents) = (0, 0_u64);
        let mut ids = Vec::new();
        for document in Philox::new(params.seed, "sample").permutation(pool.n_documents()) {
            if n_tokens >= target {
                break;
            }
            if n_documents % 4096 == 0 {
                ctx.check_cancelled()?;
                ctx.progress(n_tokens, target, "tokens");
            }
            ids.clear();
            pool.view(document).copy_to(&mut ids);
            writer.push(pool.document_id(document), pool.text_bytes(document), &ids)?;
            n_tokens += ids.len() as u64 + DOCUMENT_SPECIALS;
            n_documents += 1;
        }
        writer.finish()?;
        let ratio = n_tokens as f64 / target.max(1) as f64;
        ctx.info(format!(
            "{n_documents} documents with {n_tokens} tokens, {ratio:.3} of those asked for"
        ));
        Ok(Outputs::default()
            .metric("n_documents", n_documents as f64)
            .metric("n_tokens", n_tokens as f64)
            .metric("available_tokens", available as f64)
            .metric("ratio", ratio))
    }
}

/// Tokens that each document shown once takes in a training stream.
pub(crate) fn stream_tokens(tokens: &Tokens) -> u64 {
    tokens.n_tokens() as u64 + DOCUMENT_SPECIALS * tokens.n_documents() as u64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::digest::Digest;
    use engine::task::testbed::Bench;
    use serde_json::json;

    use super::*;

    fn pool(dir: &Path, n_documents: u64) -> u64 {
        std::fs::create_dir_all(dir).unwrap();
        let mut writer = TokensWriter::create(dir, 300, Digest::of(b"t")).unwrap();
        for i in 0..n_documents {
            writer.push(i, 3, &vec![7; (i % 9) as usize]).unwrap();
        }
        writer.finish().unwrap();
        stream_tokens(&Tokens::open(dir).unwrap())
    }

    fn drawn(dir: &Path) -> Vec<u64> {
        let tokens = Tokens::open(dir).unwrap();
        (0..tokens.n_documents()).map(|i| tokens.document_id(i)).collect()
    }

    #[test]
    fn samples_are_nested_and_meet_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let available = pool(&dir.path().join("pool"), 200);
        let bench = Bench::new(dir.path()).input("tokens", &dir.path().join("pool"));
        let run = |params| {
            let outputs = bench.run::<Sample>(&params).unwrap();
            (drawn(&bench.out("tokens")), outputs.metrics["n_tokens"] as u64)
        };
        let (small, n_small) = run(json!({"tokens": 100, "seed": 3}));
        let (large, n_large) = run(json!({"tokens": 700, "seed": 3}));
        assert!((100..110).contains(&n_small) && (700..710).contains(&n_large));
        assert!(large.starts_with(&small) && large.len() > small.len());
        let (other, _) = run(json!({"tokens": 100, "seed": 4}));
        assert!(!large.starts_with(&other));
        let (mut all, n_all) = run(json!({"tokens": "all"}));
        all.sort_unstable();
        assert_eq!((all, n_all), ((0..200).collect(), available));
    }

    /// Each document is in a half-sized sample about half of the time.
    #[test]
    fn inclusion_is_uniform() {
        let n_trials = 400_u64;
        let mut counts = [0_u64; 50];
        let dir = tempfile::tempdir().unwrap();
        // Documents of one length, so that half of the tokens are half of them.
        std::fs::create_dir_all(dir.path().join("pool")).unwrap();
        let mut writer =
            TokensWriter::create(&dir.path().join("pool"), 300, Digest::of(b"t")).unwrap();
        (0..50).for_each(|i| writer.push(i, 3, &[7, 7]).unwrap());
        writer.finish().unwrap();
        let n_tokens = stream_tokens(&Tokens::open(&dir.path().join("pool")).unwrap());
        let bench = Bench::new(dir.path()).input("tokens", &dir.path().join("pool"));
        for seed in 0..n_trials {
            bench.run::<Sample>(&json!({"tokens": n_tokens / 2, "seed": seed})).unwrap();
            let documents = drawn(&bench.out("tokens"));
            assert_eq!(documents.len(), 25);
            for document in documents {
                counts[document as usize] += 1;
            }
        }
        let expected = n_trials as f64 / 2.0;
        let chi2: f64 = counts.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
        // Drawing half without replacement halves the variance: chi2 / 0.5 has 49 degrees.
        assert!((20.0..90.0).contains(&(chi2 / 0.5)), "{chi2}");
    }

    #[test]
    fn too_little_text_is_refused_or_told() {
        let dir = tempfile::tempdir().unwrap();
        let available = pool(&dir.path().join("pool"), 10);
        let bench = Bench::new(dir.path()).input("tokens", &dir.path().join("pool"));
        let failure = bench.run::<Sample>(&json!({"tokens": 1000})).unwrap_err();
        let expected = format!("1000 tokens were asked for, but the 10 documents hold {available}");
        assert!(failure.message.contains(&expected), "{failure}");
        let outputs = bench.run::<Sample>(&json!({"tokens": 1000, "at_most": true})).unwrap();
        assert!((outputs.metrics["ratio"] - available as f64 / 1000.0).abs() < 1e-9);
        let wrong = bench.run::<Sample>(&json!({"tokens": "some"})).unwrap_err();
        assert!(wrong.message.contains("`some` is not `all`"), "{wrong}");
    }
}
