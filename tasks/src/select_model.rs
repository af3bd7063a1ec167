//! Takes the best of several models by what was measured of their texts: how far to tune a synthesizer,
//! and at which rate (arXiv 2509.15248, section A.2).
//!
//! Each candidate comes with the decision of a `gate` on a sample of its texts. Of those that pass, the
//! one with the highest figure is taken; of equal ones the first.

use std::fs;
use std::path::Path;

use engine::task::{
    Context, Determinism, Estimate, Failure, Inputs, Outputs, ParamError, Port, Predicted, Task,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::write_json;
use crate::gate::{DECISION_FILE, Decision};

/// See the module.
pub struct SelectModel;

/// Params of `select_model`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The figure to maximize: `relevance`, `novelty` or `non_repetition`.
    #[serde(default = "default_maximize")]
    pub maximize: String,
    /// What to do when no candidate passes.
    #[serde(default)]
    pub when_none_passes: WhenNonePasses,
}

/// What to do when no candidate passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenNonePasses {
    /// End the node as failed.
    #[default]
    Fail,
    /// Take the best anyway, and say so.
    TakeBest,
}

fn default_maximize() -> String {
    "relevance".to_owned()
}

/// The figures that a gate measures.
const FIGURES: [&str; 3] = ["relevance", "novelty", "non_repetition"];

/// `choice.json` beside the decision taken over.
#[derive(Debug, Serialize)]
struct Choice<'a> {
    chosen: &'a str,
    maximize: &'a str,
    candidates: Vec<Candidate<'a>>,
}

#[derive(Debug, Serialize)]
struct Candidate<'a> {
    node: &'a str,
    value: f64,
    pass: bool,
}

impl Task for SelectModel {
    const KIND: &'static str = "select_model";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "takes the model whose texts are the best of those that pass";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::many("models", "model", "the candidates"),
        Port::many("decisions", "decision", "a gate's decision on each, in the same order"),
    ];
    const OUTPUTS: &'static [Port] = &[
        Port::one("model", "model", "the chosen one"),
        Port::one("decision", "decision", "its gate's decision, and the candidates"),
    ];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if FIGURES.contains(&params.maximize.as_str()) {
            return Ok(());
        }
        let message = format!("`{}` is none of `{}`", params.maximize, FIGURES.join("`, `"));
        Err(ParamError::new("maximize", message))
    }

    fn cost(_: &Params, inputs: &Predicted) -> Estimate {
        Estimate::unknown().output("model", inputs.one("models"))
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let (models, decisions) = (inputs.many("models"), inputs.many("decisions"));
        if models.len() != decisions.len() {
            let (m, d) = (models.len(), decisions.len());
            let message = format!("{m} models and {d} decisions are connected");
            return Err(Failure::permanent(message).help("connect one decision for each model"));
        }
        for (model, decision) in models.iter().zip(decisions) {
            let of = (matrix(&model.node), matrix(&decision.node));
            if matches!(of, (Some(a), Some(b)) if a != b) {
                let (model, decision) = (&model.node, &decision.node);
                let message = format!("`{decision}` has the place of the decision on `{model}`");
                return Err(
                    Failure::permanent(message).help("connect models and decisions in one order")
                );
            }
        }
        let mut candidates = Vec::new();
        for input in decisions {
            let decision = Decision::read(&input.dir)?;
            let figure = decision.figures.iter().find(|figure| figure.name == params.maximize);
            let Some(figure) = figure else {
                let message = format!("`{}` has no figure `{}`", input.node, params.maximize);
                return Err(Failure::permanent(message).help("give the gate a limit for it"));
            };
            candidates.push(Candidate { node: "", value: figure.value, pass: decision.pass });
        }
        for (candidate, model) in candidates.iter_mut().zip(models) {
            candidate.node = &model.node;
        }
        let any_passes = candidates.iter().any(|candidate| candidate.pass);
        if !any_passes {
            let message = format!("none of {} candidates passes its gate", candidates.len());
            match params.when_none_passes {
                WhenNonePasses::Fail => return Err(Failure::permanent(message)),
                WhenNonePasses::TakeBest => ctx.warn(format!("{message}: the best is taken")),
            }
        }
        let mut best = None;
        for (i, candidate) in candidates.iter().enumerate() {
            let is_better = best.is_none_or(|best: usize| candidates[best].value < candidate.value);
            if (candidate.pass || !any_passes) && is_better {
                best = Some(i);
            }
        }
        let best = best.ok_or_else(|| Failure::permanent("there are no candidates"))?;
        ctx.info(format!("`{}` is taken", models[best].node));
        copy(&models[best].dir, &ctx.out("model")?)?;
        let dir = ctx.out("decision")?;
        fs::copy(decisions[best].dir.join(DECISION_FILE), dir.join(DECISION_FILE))?;
        let value = candidates[best].value;
        let choice = Choice { chosen: &models[best].node, maximize: &params.maximize, candidates };
        write_json(&dir.join("choice.json"), &choice)?;
        Ok(Outputs::default()
            .metric("n_candidates", models.len() as f64)
            .metric("chosen", best as f64)
            .metric(params.maximize.clone(), value))
    }
}

/// The values of a node's matrix, as its name has them.
fn matrix(node: &str) -> Option<&str> {
    Some(node.split_once('[')?.1)
}

/// Copies the files of a model; it has no folders.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let mut names = Vec::new();
    for entry in fs::read_dir(from)? {
        names.push(entry?.file_name());
    }
    names.sort();
    for name in names {
        fs::copy(from.join(&name), to.join(&name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use engine::task::testbed::Bench;
    use serde_json::json;

    use super::*;
    use crate::gate::Figure;

    fn bench(dir: &Path, candidates: &[(f64, bool)]) -> Bench {
        let mut bench = Bench::new(dir);
        for (i, &(value, pass)) in candidates.iter().enumerate() {
            let (model, decision) = (dir.join(format!("m{i}")), dir.join(format!("d{i}")));
            fs::create_dir_all(&model).unwrap();
            fs::create_dir_all(&decision).unwrap();
            fs::write(model.join("model.safetensors"), i.to_string()).unwrap();
            let name = "relevance".to_owned();
            let figure = Figure { name, value, low: 0.0, high: 1.0, n: 9, min: 0.5, pass };
            let decided = Decision { pass, proceed: true, figures: vec![figure] };
            write_json(&decision.join(DECISION_FILE), &decided).unwrap();
            bench = bench.input("models", &model).input("decisions", &decision);
        }
        bench
    }

    fn chosen(bench: &Bench) -> String {
        fs::read_to_string(bench.out("model").join("model.safetensors")).unwrap()
    }

    #[test]
    fn the_best_of_those_that_pass_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let bench = bench(dir.path(), &[(0.6, true), (0.9, false), (0.8, true), (0.8, true)]);
        bench.run::<SelectModel>(&json!({})).unwrap();
        assert_eq!(chosen(&bench), "2");
        assert!(Decision::read(&bench.out("decision")).unwrap().pass);
    }

    #[test]
    fn decisions_in_another_order_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = bench(dir.path(), &[(0.6, true), (0.9, true)]);
        for (port, node, values) in [("models", "tune", [1, 2]), ("decisions", "gate", [2, 1])] {
            for (input, value) in bench.inputs.get_mut(port).unwrap().iter_mut().zip(values) {
                input.node = format!("{node}[lr={value}]");
            }
        }
        let failure = bench.run::<SelectModel>(&json!({})).unwrap_err();
        let expected = "`gate[lr=2]` has the place of the decision on `tune[lr=1]`";
        assert!(failure.message.contains(expected), "{failure}");
        bench.inputs.get_mut("decisions").unwrap().swap(0, 1);
        bench.run::<SelectModel>(&json!({})).unwrap();
        assert_eq!(chosen(&bench), "0");
    }

    #[test]
    fn without_any_that_passes_it_fails_or_takes_the_best() {
        let dir = tempfile::tempdir().unwrap();
        let bench = bench(dir.path(), &[(0.1, false), (0.3, false)]);
        let failure = bench.run::<SelectModel>(&json!({})).unwrap_err();
        assert!(failure.message.contains("none of 2 candidates"), "{failure}");
        bench.run::<SelectModel>(&json!({"when_none_passes": "take_best"})).unwrap();
        assert_eq!(chosen(&bench), "1");
        let failure = bench.run::<SelectModel>(&json!({"maximize": "novelty"})).unwrap_err();
        assert!(failure.message.contains("has no figure `novelty`"), "{failure}");
        assert!(bench.run::<SelectModel>(&json!({"maximize": "length"})).is_err());
    }
}
