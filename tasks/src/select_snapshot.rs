//! Takes one model out of a pretraining run's snapshots: the one at a fraction of the budget, or the
//! one with the lowest loss on validation documents.
//!
//! The second is early stopping. It needs documents of its own: a choice by the held-out documents
//! that results are measured on would favour the arm that chooses.

use std::path::{Path, PathBuf};

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, ParamError, Port, Task};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::write_json;
use crate::format::tokens::Tokens;
use crate::lm::reader::Reader;
use crate::lm::{hf, snapshots};
use crate::pretrain::heldout::Heldout;

/// Takes one model out of snapshots.
pub struct SelectSnapshot;

/// Params of `select_snapshot`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Takes the snapshot at this fraction of the budget. Without it, the one with the lowest loss on
    /// `validation`, the final model included.
    #[serde(default)]
    pub fraction: Option<f64>,
    /// Most validation tokens that the loss is measured on: the first documents.
    #[serde(default = "default_validation_tokens_max")]
    pub validation_tokens_max: u64,
}

fn default_validation_tokens_max() -> u64 {
    100_000
}

/// The loss of one candidate, in `selection.json` beside the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Candidate {
    fraction: f64,
    validation_loss: f64,
}

#[derive(Serialize)]
struct Selection {
    fraction: f64,
    candidates: Vec<Candidate>,
}

impl Task for SelectSnapshot {
    const KIND: &'static str = "select_snapshot";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str =
        "takes one model out of snapshots, by fraction or validation loss";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const USES_DEVICE: bool = true;
    const INPUTS: &'static [Port] = &[
        Port::one("snapshots", "models", "the snapshots of `pretrain`"),
        Port::optional("model", "model", "its final model, a candidate too"),
        Port::optional("validation", "tokens", "documents to choose by"),
    ];
    const OUTPUTS: &'static [Port] = &[Port::one("model", "model", "the one taken")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        match params.fraction {
            Some(fraction) if !(fraction > 0.0 && fraction < 1.0) => {
                Err(ParamError::new("fraction", format!("{fraction} is not between 0 and 1")))
            }
            _ => Ok(()),
        }
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let dir = inputs.one("snapshots");
        let mut found: Vec<(f64, PathBuf)> = snapshots::fractions(dir)?
            .into_iter()
            .map(|fraction| (fraction, dir.join(snapshots::folder(fraction))))
            .collect();
        found.extend(inputs.optional("model").map(|dir| (1.0, dir.to_owned())));
        let (chosen, candidates) = match params.fraction {
            Some(fraction) => (at_fraction(&found, fraction)?, Vec::new()),
            None => lowest_loss(ctx, params, inputs, &found)?,
        };
        let (fraction, from) = &found[chosen];
        let dir = ctx.out("model")?;
        copy_files(from, &dir)?;
        let mut outputs = Outputs::default().metric("fraction", *fraction);
        if let Some(candidate) = candidates.get(chosen) {
            outputs = outputs.metric("validation_loss", candidate.validation_loss);
        }
        write_json(&dir.join("selection.json"), &Selection { fraction: *fraction, candidates })?;
        Ok(outputs)
    }
}

fn at_fraction(found: &[(f64, PathBuf)], fraction: f64) -> Result<usize, Failure> {
    let folder = snapshots::folder(fraction);
    found.iter().position(|(_, dir)| dir.ends_with(&folder)).ok_or_else(|| {
        let fractions: Vec<String> = found.iter().map(|(at, _)| at.to_string()).collect();
        let fractions = fractions.join(", ");
        Failure::permanent(format!("there is no snapshot at {fraction}; there are: {fractions}"))
            .help(format!("add {fraction} to the param `snapshots` of `pretrain`"))
    })
}

fn lowest_loss(
    ctx: &Context,
    params: &Params,
    inputs: &Inputs,
    found: &[(f64, PathBuf)],
) -> Result<(usize, Vec<Candidate>), Failure> {
    let Some(validation) = inputs.optional("validation") else {
        return Err(Failure::permanent("there is nothing to choose a snapshot by")
            .help("set `fraction`, or connect `validation`"));
    };
    let tokens = Tokens::open(validation)?;
    let pool = Pool::new(ctx.n_threads());
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut best = None;
    for (i, (fraction, dir)) in found.iter().enumerate() {
        let weights = hf::load(dir)?;
        let heldout = Heldout::new(&tokens, weights.config(), params.validation_tokens_max)?;
        let capacity = Heldout::tokens_max(weights.config());
        let mut reader = Reader::open(ctx, &pool, &weights, capacity)?;
        let validation_loss = heldout.loss(ctx, &mut reader)?;
        if best.is_none_or(|best: usize| validation_loss < candidates[best].validation_loss) {
            best = Some(i);
        }
        candidates.push(Candidate { fraction: *fraction, validation_loss });
        ctx.progress(i as u64 + 1, found.len() as u64, "models");
    }
    match best {
        Some(best) => Ok((best, candidates)),
        None => Err(Failure::permanent("there is no snapshot to choose from")
            .help("set the param `snapshots` of `pretrain`, or connect `model`")),
    }
}

/// Copies the files of a model folder; what only its training wrote stays behind.
fn copy_files(from: &Path, to: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use engine::task::testbed::Bench;
    use serde_json::{Value, json};

    use super::*;
    use crate::lm::Preset;
    use crate::lm::init::Init;

    /// Snapshots whose output matrix is scaled: a model without preferences has the lowest loss on
    /// documents it never saw.
    fn models(dir: &Path, vocab_size: usize, scales: &[(f64, f32)]) -> PathBuf {
        for &(fraction, scale) in scales {
            let mut config = Preset::Smoke.config();
            (config.vocab_size, config.tie_embeddings) = (vocab_size, false);
            let mut weights = Init::default().draw(&Pool::new(1), &config, 3);
            weights.output_mut().iter_mut().for_each(|x| *x *= scale);
            hf::save(&dir.join(snapshots::folder(fraction)), &weights, None).unwrap();
        }
        dir.to_owned()
    }

    #[test]
    fn the_lowest_validation_loss_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = crate::fixture::tokenizer(dir.path());
        let texts: Vec<String> = (0..20).map(|i| crate::fixture::words(i, 20)).collect();
        let validation = crate::fixture::tokens(dir.path(), &texts, &tokenizer);
        let scales = [(0.25, 40.0), (0.5, 1e-3), (0.75, 20.0)];
        let models = models(&dir.path().join("models"), 320, &scales);
        let bench = Bench::new(dir.path()).input("snapshots", &models);
        let bench = bench.input("validation", &validation);
        let outputs = bench.run::<SelectSnapshot>(&json!({})).unwrap();
        assert!((outputs.metrics["fraction"] - 0.5).abs() < 1e-12);
        let taken = hf::load(&bench.out("model")).unwrap();
        assert_eq!(taken, hf::load(&models.join("at-0.5000")).unwrap());
        let path = bench.out("model").join("selection.json");
        let selection: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(selection["candidates"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn a_fraction_names_its_snapshot_or_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let models = models(&dir.path().join("models"), 320, &[(0.4, 1.0), (0.8, 2.0)]);
        let bench = Bench::new(dir.path()).input("snapshots", &models);
        bench.run::<SelectSnapshot>(&json!({"fraction": 0.8})).unwrap();
        let taken = hf::load(&bench.out("model")).unwrap();
        assert_eq!(taken, hf::load(&models.join("at-0.8000")).unwrap());
        let wrong = bench.run::<SelectSnapshot>(&json!({"fraction": 0.5})).unwrap_err();
        assert!(wrong.message.contains("no snapshot at 0.5; there are: 0.4, 0.8"), "{wrong}");
        let none = bench.run::<SelectSnapshot>(&json!({})).unwrap_err();
        assert!(none.message.contains("nothing to choose a snapshot by"), "{none}");
    }
}
