//! Splits a corpus by document into a training part and a held-out part.
//!
//! Each document draws a number from (seed, id), so that membership does not depend on order or on
//! sharding; with `fraction` nor on other documents, with `n_documents` on how many draw less.

use std::collections::BinaryHeap;

use engine::task::{
    Context, Determinism, Estimate, Failure, Inputs, Outputs, ParamError, Port, Predicted, Task,
};
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, CorpusWriter};
use crate::cost::{fact, figure, unit};

/// Splits a corpus by document.
pub struct Split;

/// Params of `split`: `n_documents` or `fraction`, not both.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// How many documents to hold out.
    #[serde(default)]
    pub n_documents: Option<u64>,
    /// Which share of the documents to hold out, between 0 and 1; met on average.
    #[serde(default)]
    pub fraction: Option<f64>,
    /// Seed of the choice.
    #[serde(default)]
    pub seed: u64,
}

impl Task for Split {
    const KIND: &'static str = "split";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "splits a corpus into training and held-out documents";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::one("corpus", "corpus", "documents")];
    const OUTPUTS: &'static [Port] = &[
        Port::one("train", "corpus", "documents to train on"),
        Port::one("heldout", "corpus", "documents that no training sees"),
    ];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        match (params.n_documents, params.fraction) {
            (Some(0), None) => Err(ParamError::new("n_documents", "0 holds nothing out")),
            (None, Some(fraction)) if !(fraction > 0.0 && fraction < 1.0) => {
                let message = format!("{fraction} is not between 0 and 1");
                Err(ParamError::new("fraction", message))
            }
            (Some(_), None) | (None, Some(_)) => Ok(()),
            _ => Err(ParamError::new("", "exactly one of `n_documents` and `fraction` is needed")),
        }
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let corpus = inputs.one("corpus");
        let documents = corpus.get(fact::DOCUMENTS);
        let by_number = || Some(params.n_documents? as f64 / documents?);
        let Some(share) = params.fraction.or_else(by_number) else { return Estimate::unknown() };
        Estimate::unknown()
            .figure(figure::DOCUMENTS, documents)
            .work(unit::TEXT_BYTES, corpus.get(fact::TEXT_BYTES))
            .output("train", corpus.clone().scaled(1.0 - share))
            .output("heldout", corpus.scaled(share))
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let corpus = Corpus::open(inputs.one("corpus"))?;
        let draw = Philox::new(params.seed, "split");
        // A document is held out when its (draw, id) is below this.
        let limit = match params.n_documents {
            Some(n_documents) => smallest(ctx, &corpus, draw, n_documents)?,
            None => (fraction_limit(params.fraction.unwrap_or(0.0)), 0),
        };
        let mut train = CorpusWriter::create(&ctx.out("train")?)?;
        let mut heldout = CorpusWriter::create(&ctx.out("heldout")?)?;
        for (i, document) in corpus.documents().enumerate() {
            let document = document?;
            if i % 1024 == 0 {
                ctx.check_cancelled()?;
                ctx.progress(i as u64, corpus.n_documents(), "documents");
            }
            let is_heldout = (draw.u64(document.id), document.id) < limit;
            let part = if is_heldout { &mut heldout } else { &mut train };
            part.push(&document)?;
        }
        let (train, heldout) = (train.finish()?, heldout.finish()?);
        if train.n_documents == 0 || heldout.n_documents == 0 {
            return Err(Failure::permanent(format!(
                "{} of {} documents would be held out, which leaves one part empty",
                heldout.n_documents,
                corpus.n_documents()
            ))
            .help("change `n_documents` or `fraction`, or give more documents"));
        }
        Ok(Outputs::default()
            .metric(unit::TEXT_BYTES, corpus.text_bytes() as f64)
            .metric("n_train", train.n_documents as f64)
            .metric("n_heldout", heldout.n_documents as f64))
    }
}

fn fraction_limit(fraction: f64) -> u64 {
    (fraction * (1_u128 << 64) as f64) as u64
}

/// The (draw, id) just above the `n` smallest of the corpus.
fn smallest(ctx: &Context, corpus: &Corpus, draw: Philox, n: u64) -> Result<(u64, u64), Failure> {
    if n >= corpus.n_documents() {
        return Err(Failure::permanent(format!(
            "`n_documents: {n}` leaves nothing to train on: the corpus has {} documents",
            corpus.n_documents()
        )));
    }
    let mut smallest = BinaryHeap::new();
    for (i, document) in corpus.documents().enumerate() {
        let document = document?;
        if i % 1024 == 0 {
            ctx.check_cancelled()?;
        }
        smallest.push((draw.u64(document.id), document.id));
        if smallest.len() as u64 > n {
            smallest.pop();
        }
    }
    let (draw, id) = smallest.pop().expect("`check` refuses 0");
    Ok((draw, id.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use engine::task::testbed::Bench;
    use serde_json::json;

    use super::*;
    use crate::corpus::tests::write_texts;

    fn ids(dir: &Path) -> BTreeSet<u64> {
        Corpus::open(dir).unwrap().documents().map(|document| document.unwrap().id).collect()
    }

    #[test]
    fn parts_are_disjoint_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = dir.path().join("corpus");
        let texts: Vec<String> = (0..500).map(|i| format!("text {i}")).collect();
        write_texts(&corpus, texts.iter().map(String::as_str));
        let bench = Bench::new(dir.path()).input("corpus", &corpus);
        let run = |params| {
            bench.run::<Split>(&params).unwrap();
            let (train, heldout) = (ids(&bench.out("train")), ids(&bench.out("heldout")));
            assert!(train.is_disjoint(&heldout));
            assert_eq!(&train | &heldout, ids(&corpus));
            heldout
        };
        let (ten, fifty) = (run(json!({"n_documents": 10})), run(json!({"n_documents": 50})));
        assert_eq!((ten.len(), fifty.len()), (10, 50));
        assert!(ten.is_subset(&fifty));
        assert_ne!(run(json!({"n_documents": 10, "seed": 1})), ten);
        let tenth = run(json!({"fraction": 0.1}));
        assert!(
            (25..80).contains(&tenth.len()) && (tenth.is_subset(&fifty) || fifty.is_subset(&tenth))
        );
    }

    #[test]
    fn impossible_splits_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = dir.path().join("corpus");
        write_texts(&corpus, ["a", "b"]);
        let bench = Bench::new(dir.path()).input("corpus", &corpus);
        let message = |params| bench.run::<Split>(&params).unwrap_err().message;
        assert!(message(json!({"n_documents": 2})).contains("leaves nothing to train on"));
        assert!(message(json!({"fraction": 1e-9})).contains("leaves one part empty"));
        assert!(message(json!({"fraction": 1.5})).contains("1.5 is not between 0 and 1"));
        assert!(message(json!({})).contains("exactly one of"));
        assert!(message(json!({"n_documents": 0})).contains("holds nothing out"));
    }
}
