//! What valid pipelines become.

use std::fmt::Write as _;

use super::{pipeline, read};
use crate::graph::Pipeline;

/// A pipeline that uses most of the language.
pub(super) const EXAMPLE: &str = r#"# Which arm wins? Seconds; no result expected.
version: 1
params:
  corpus: {type: string, default: "docs/**/*.md", doc: "files to read"}
  seed: 1
  steps: {type: integer, default: 1e3}
  long_steps: "${{ params.steps * 20 }}"
env:
  HOME_DIR: "/root"
x-arch: &arch {n_layers: 4, width: 128}
defaults:
  all: {retry: {attempts: 5}}
  tasks:
    pretrain: {params: {lr_peak: 0.02}, resources: {cpu: 2, mem: 1GiB}}
nodes:
  read: {task: read_corpus, params: {sources: [{glob: "${{ env.HOME_DIR }}/${{ params.corpus }}"}]}}
  clean: {task: clean, in: read, params: {lower: true}}
  split: {task: split, in: clean, params: {heldout_docs: 10_000}}
  tokenizer: {task: train_tokenizer, in: split.train, params: {vocab_size: 512}}
  train:
    task: pretrain
    matrix: {arm: [base, oracle], seed: [1, 2], exclude: [{arm: oracle, seed: 2}]}
    in: {real: split.train, tokenizer: tokenizer}
    params:
      arch: {<<: *arch, width: 256}
      steps: "${{ params.long_steps if matrix.arm == 'oracle' else params.steps }}"
    resources: {gpu: 1}
    timeout: 1h30m
  eval:
    task: evaluate
    matrix: {arm: [base, oracle]}
    when: "${{ params.seed == 1 }}"
    in: {model: "train[seed=1].model", heldout: split.heldout}
    params: {name: "arm ${{ matrix.arm }}"}
  compare: {task: compare, in: eval}
"#;

/// One line a node: what a reader of the YAML expects to be able to work out.
fn outline(pipeline: &Pipeline) -> String {
    let mut text = String::new();
    for node in &pipeline.nodes {
        let inputs: Vec<_> = node
            .inputs
            .iter()
            .flat_map(|(port, sources)| {
                sources.iter().map(move |source| {
                    format!(" {port}={}.{}", pipeline.nodes[source.node].name, source.port)
                })
            })
            .collect();
        writeln!(text, "{} {} <-{}", node.name, node.params, inputs.concat()).unwrap();
    }
    text
}

#[test]
fn the_example_expands() {
    let pipeline = pipeline(EXAMPLE, &[]);
    assert_eq!(pipeline.name, "p");
    insta::assert_snapshot!(outline(&pipeline), @r#"
    read {"sources":[{"glob":"/home/docs/**/*.md"}],"text_key":"text","limit":null} <-
    clean {"max_newlines":2,"lower":true,"note":""} <- docs=read.docs
    split {"heldout_docs":10000} <- docs=clean.docs
    tokenizer {"vocab_size":512} <- docs=split.train
    train[arm=base,seed=1] {"arch":{"n_layers":4,"width":256},"lr_peak":0.02,"schedule":"cosine","steps":1000,"betas":[0.9,0.95]} <- real=split.train tokenizer=tokenizer.tokenizer
    train[arm=base,seed=2] {"arch":{"n_layers":4,"width":256},"lr_peak":0.02,"schedule":"cosine","steps":1000,"betas":[0.9,0.95]} <- real=split.train tokenizer=tokenizer.tokenizer
    train[arm=oracle,seed=1] {"arch":{"n_layers":4,"width":256},"lr_peak":0.02,"schedule":"cosine","steps":20000,"betas":[0.9,0.95]} <- real=split.train tokenizer=tokenizer.tokenizer
    eval[arm=base] {"name":"arm base"} <- heldout=split.heldout model=train[arm=base,seed=1].model
    eval[arm=oracle] {"name":"arm oracle"} <- heldout=split.heldout model=train[arm=oracle,seed=1].model
    compare {} <- evaluations=eval[arm=base].evaluation evaluations=eval[arm=oracle].evaluation
    "#);
    let train = &pipeline.nodes[4];
    assert_eq!(train.external, Vec::<String>::new());
    assert_eq!(pipeline.nodes[0].external, ["/home/docs/**/*.md"]);
    let how = &train.execution;
    assert_eq!((how.resources.cpu, how.resources.gpu), (2, 1));
    assert_eq!(how.resources.memory_bytes, Some(1 << 30));
    assert_eq!(how.retry.attempts_max, 5);
    assert_eq!(how.timeout.unwrap().as_secs(), 5_400);
    assert_eq!(train.place.to_string(), "p.yaml:20:3");
    let place = |path: &str| train.param_place(path).unwrap().to_string();
    assert_eq!(place("arch.width"), "p.yaml:25:32");
    assert_eq!(place("arch.n_layers"), "p.yaml:10:26");
    assert_eq!(place("lr_peak"), "p.yaml:14:34");
    assert!(train.param_place("schedule").is_none());
}

#[test]
fn sources_come_before_consumers() {
    let text = "version: 1\nnodes:\n  c: {task: clean, in: b}\n  b: {task: clean, in: a}\n  \
                a: {task: read_corpus, params: {sources: []}}\n";
    let pipeline = pipeline(text, &[]);
    let names: Vec<_> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn set_replaces_defaults() {
    let set = [("corpus", "x.txt"), ("steps", "2e3"), ("seed", "1")];
    let pipeline = pipeline(EXAMPLE, &set);
    assert_eq!(pipeline.params["corpus"], "x.txt");
    assert_eq!(pipeline.params["steps"], 2_000);
    assert_eq!(pipeline.params["long_steps"], 40_000);
}

#[test]
fn unused_params_are_a_warning() {
    let text =
        "version: 1\nparams: {seed: 1}\nnodes:\n  a: {task: read_corpus, params: {sources: []}}\n";
    let checked = read(text, &[]);
    assert!(checked.pipeline.is_some());
    let codes: Vec<_> = checked.mistakes.iter().map(super::super::Mistake::code).collect();
    assert_eq!(codes, ["spec::unused_param"]);
    assert!(!checked.mistakes.has_errors());
}

#[test]
fn expected_facts_are_numbers_of_output_ports() {
    let text = |expect: &str| {
        format!(
            "version: 1\nparams: {{n: 3}}\nnodes:\n  read: {{task: read_corpus, params: {{sources: []}}, \
             expect: {expect}}}\n"
        )
    };
    let pipeline =
        pipeline(&text("{docs: {documents: \"${{ params.n * 2 }}\", tokens: 1e9}}"), &[]);
    let facts = &pipeline.nodes[0].expect["docs"];
    assert_eq!((facts.get("documents"), facts.get("tokens")), (Some(6.0), Some(1e9)));
    let codes = |expect: &str| -> Vec<&str> {
        read(&text(expect), &[]).mistakes.iter().map(crate::spec::Mistake::code).collect()
    };
    assert!(codes("{corpse: {documents: 1}}").contains(&"spec::unknown_key"));
    assert!(codes("{docs: {documents: -1}}").contains(&"spec::wrong_type"));
    assert!(codes("{docs: {documents: many}}").contains(&"spec::wrong_type"));
}
