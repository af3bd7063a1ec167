//! Pairs the documents that a world says are about one concept, in both orders: what pairing by
//! similarity is measured against, and the bound of what it can give.
//!
//! With `found`, `agreement.json` beside the pairs says how many of those are true, and how many of the
//! true ones were found.

use std::collections::{BTreeMap, BTreeSet};

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, Port, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::write_json;
use crate::format::pairs::{self, Documents, Pair, Pairs};
use crate::format::tokens::Tokens;
use crate::world::Truth;

/// Beside the pairs.
pub(crate) const AGREEMENT_FILE: &str = "agreement.json";

/// Pairs the documents of each concept.
pub struct PairTrue;

/// Params of `pair_true`: none.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {}

/// How found pairs agree with the true ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreement {
    /// True pairs, in both orders.
    pub n_true: u64,
    /// Pairs found.
    pub n_found: u64,
    /// Share of those found that are true.
    pub precision: f64,
    /// Share of the true ones that were found.
    pub recall: f64,
}

impl Task for PairTrue {
    const KIND: &'static str = "pair_true";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "pairs the documents of each concept, by a world's truth";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::one("world", "world", "the truth, of `generate_world`"),
        Port::one("documents", "tokens", "its training documents"),
        Port::optional("found", "pairs", "pairs to compare with the true ones"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("pairs", "pairs", "every ordered pair about one concept")];
    type Params = Params;

    fn run(ctx: &mut Context, _: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let truth = Truth::open(inputs.one("world"))?;
        let tokens = Tokens::open(inputs.one("documents"))?;
        let concepts: BTreeMap<u64, usize> =
            truth.documents.iter().map(|row| (row.id, row.concept)).collect();
        let mut of_concept: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for i in 0..tokens.n_documents() {
            let id = tokens.document_id(i);
            let concept = concepts.get(&id).ok_or_else(|| {
                Failure::permanent(format!(
                    "document {id:016x} is no training document of the world"
                ))
            })?;
            of_concept.entry(*concept).or_default().push(i as u32);
        }
        let mut found = Vec::new();
        for documents in of_concept.values() {
            for &seed in documents {
                let others = documents.iter().filter(|&&target| target != seed);
                found.extend(others.map(|&target| Pair { seed, target, score: 1.0 }));
            }
        }
        if found.is_empty() {
            return Err(Failure::permanent("no concept has two documents, so there are no pairs")
                .help("lower `single_share` of `generate_world`"));
        }
        let n_pairs = found.len();
        let true_pairs: BTreeSet<(u32, u32)> =
            found.iter().map(|pair| (pair.seed, pair.target)).collect();
        let dir = ctx.out("pairs")?;
        pairs::write(&dir, Documents::of_tokens(&tokens), found, "true")?;
        let outputs = Outputs::default().metric("n_pairs", n_pairs as f64);
        let Some(other) = inputs.optional("found") else { return Ok(outputs) };
        let other = Pairs::open_for(other, &tokens)?;
        let hits = other.iter().filter(|pair| true_pairs.contains(&(pair.seed, pair.target)));
        let hits = hits.count() as f64;
        let agreement = Agreement {
            n_true: n_pairs as u64,
            n_found: other.n_pairs() as u64,
            precision: hits / (other.n_pairs() as f64).max(1.0),
            recall: hits / n_pairs as f64,
        };
        write_json(&dir.join(AGREEMENT_FILE), &agreement)?;
        Ok(outputs.metric("precision", agreement.precision).metric("recall", agreement.recall))
    }
}

#[cfg(test)]
mod tests {
    use engine::task::testbed::Bench;
    use serde_json::{Value, json};

    use super::*;
    use crate::evaluate_world::tests::world;
    use crate::tokenize::Tokenize;

    #[test]
    fn pairs_join_documents_of_one_concept_and_count_those_found() {
        let dir = tempfile::tempdir().unwrap();
        let world = world(dir.path());
        let tokenize = Bench::new(&dir.path().join("tokens"))
            .input("corpus", &world.out("train"))
            .input("tokenizer", &world.out("tokenizer"));
        tokenize.run::<Tokenize>(&json!({})).unwrap();
        let tokens = Tokens::open(&tokenize.out("tokens")).unwrap();
        let truth = Truth::open(&world.out("world")).unwrap();
        let concept = |i: u32| truth.documents[i as usize].concept;

        let bench = Bench::new(&dir.path().join("true"))
            .input("world", &world.out("world"))
            .input("documents", &tokenize.out("tokens"));
        bench.run::<PairTrue>(&json!({})).unwrap();
        let pairs = Pairs::open_for(&bench.out("pairs"), &tokens).unwrap();
        // 12 concepts with three documents each have six ordered pairs.
        assert_eq!(pairs.n_pairs(), 72);
        assert!(pairs.iter().all(|p| p.seed != p.target && concept(p.seed) == concept(p.target)));

        // Half of the true pairs, and as many that are not.
        let mut found: Vec<Pair> = pairs.iter().filter(|pair| pair.seed < pair.target).collect();
        let single = (0..tokens.n_documents() as u32).find(|&i| truth.world.is_single(concept(i)));
        let wrong = (0..tokens.n_documents() as u32).filter(|&i| Some(i) != single).take(36);
        found.extend(wrong.map(|target| Pair { seed: single.unwrap(), target, score: 0.5 }));
        let found_dir = dir.path().join("found");
        std::fs::create_dir_all(&found_dir).unwrap();
        pairs::write(&found_dir, Documents::of_tokens(&tokens), found, "nearest").unwrap();
        let bench = bench.input("found", &found_dir);
        bench.run::<PairTrue>(&json!({})).unwrap();
        let path = bench.out("pairs").join(AGREEMENT_FILE);
        let agreement: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let expected = json!({"n_true": 72, "n_found": 72, "precision": 0.5, "recall": 0.5});
        assert_eq!(agreement, expected);
    }
}
