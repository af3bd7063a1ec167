//! The mistakes that users make, as they see them: message, place, and suggestion.

use std::fmt::Write as _;

use miette::{GraphicalReportHandler, GraphicalTheme};

use super::read;
use crate::spec::{Mistake, Mistakes};

fn render(mistakes: &Mistakes) -> String {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .without_cause_chain();
    let mut text = String::new();
    for mistake in mistakes.iter() {
        handler.render_report(&mut text, mistake).unwrap();
    }
    text
}

fn codes(text: &str, set: &[(&str, &str)]) -> Vec<&'static str> {
    read(text, set).mistakes.iter().map(Mistake::code).collect()
}

/// Renders each case below its name; every case must have a mistake.
fn report(cases: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, yaml) in cases {
        let checked = read(yaml, &[]);
        assert!(checked.mistakes.has_errors(), "no mistake found: {name}");
        assert!(checked.pipeline.is_none(), "{name}");
        writeln!(text, "=== {name}\n{}", render(&checked.mistakes)).unwrap();
    }
    text
}

/// Compares without the Rust expression, which would repeat every case.
fn check(name: &str, text: &str) {
    insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!(name, text) });
}

/// Cases whose text is a whole file.
fn files(cases: &[(&str, &str)]) -> String {
    report(&cases.iter().map(|(name, yaml)| (*name, (*yaml).to_owned())).collect::<Vec<_>>())
}

/// Cases whose text follows a node `read` that makes a corpus.
fn nodes(cases: &[(&str, &str)]) -> String {
    let start = "version: 1\nnodes:\n  read: {task: read_corpus, params: {sources: []}}\n";
    report(&cases.iter().map(|(name, yaml)| (*name, format!("{start}{yaml}"))).collect::<Vec<_>>())
}

#[test]
fn text_that_is_not_a_pipeline() {
    let deep = format!("version: 1\nx-deep: {}{}\nnodes: {{}}\n", "[".repeat(70), "]".repeat(70));
    let laughs = (1..12).fold("x-a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8]\n".to_owned(), |text, i| {
        let j = i - 1;
        format!("{text}x-a{i}: &a{i} [*a{j}, *a{j}, *a{j}, *a{j}, *a{j}, *a{j}, *a{j}, *a{j}]\n")
    });
    check(
        "not_a_pipeline",
        &files(&[
            ("empty file", ""),
            ("only a comment", "# nothing\n"),
            ("a list", "- a\n- b\n"),
            ("a tab", "version: 1\nnodes:\n\tread: {task: clean}\n"),
            ("an open bracket", "version: 1\nnodes: {a: {task: clean\n"),
            ("a colon in text", "version: 1\nname: a: b\n"),
            ("unquoted expression in braces", "version: 1\nnodes:\n  a: {task: ${{ params.t }}}\n"),
            ("two documents", "version: 1\n---\nversion: 1\n"),
            ("duplicate key", "version: 1\nname: a\nname: b\n"),
            (
                "duplicate node",
                "version: 1\nnodes:\n  a: {task: clean}\n  b: {task: clean}\n  a: {task: split}\n",
            ),
            ("tag", "version: 1\nname: !path a\n"),
            ("unknown anchor", "version: 1\nname: *who\n"),
            ("alias in its own anchor", "version: 1\nx-a: &a [*a]\n"),
            ("merge of a scalar", "version: 1\nx-a: {<<: 1}\nnodes:\n"),
            ("too deep", &deep),
            ("billion laughs", &laughs),
            ("a list as a key", "version: 1\n[a]: 1\n"),
        ]),
    );
}

#[test]
fn top_level() {
    check(
        "top_level",
        &files(&[
            ("no version", "nodes: {}\n"),
            ("newer version", "version: 2\nnodes: {}\n"),
            ("version in words", "version: one\nnodes: {}\n"),
            ("unknown key", "version: 1\nparam: {}\nnodes: {}\n"),
            ("another tool's key", "version: 1\njobs: {a: {task: clean}}\n"),
            ("no nodes", "version: 1\n"),
            ("empty nodes", "version: 1\nnodes:\n"),
            ("nodes in a list", "version: 1\nnodes: [{task: clean}]\n"),
            ("bad pipeline name", "version: 1\nname: ../up\nnodes: {a: {task: clean}}\n"),
            (
                "default for an unknown task",
                "version: 1\ndefaults: {tasks: {claen: {timeout: 1s}}}\nnodes: {a: {task: nothing}}\n",
            ),
            (
                "unknown key in defaults",
                "version: 1\ndefaults: {all: {when: true}, nodes: {}}\nnodes: {a: {task: nothing}}\n",
            ),
        ]),
    );
}

#[test]
fn pipeline_params() {
    check(
        "pipeline_params",
        &files(&[
            (
                "neither type nor default",
                "version: 1\nparams:\n  a:\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
            (
                "unknown type",
                "version: 1\nparams:\n  a: {type: int, default: 1}\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
            (
                "default of another type",
                "version: 1\nparams:\n  a: {type: string, default: 1.10}\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
            (
                "YAML 1.1 boolean",
                "version: 1\nparams:\n  a: {type: boolean, default: yes}\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
            (
                "no value",
                "version: 1\nparams:\n  a: {type: string}\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
            (
                "not among choices",
                "version: 1\nparams:\n  a: {default: x, choices: [y, z]}\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
            (
                "unknown key",
                "version: 1\nparams:\n  a: {default: x, docs: y}\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
            (
                "bad name",
                "version: 1\nparams:\n  learning-rate: 1\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
            (
                "declared later",
                "version: 1\nparams:\n  a: \"${{ params.b }}\"\n  b: 1\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
            (
                "variable without default",
                "version: 1\nenv:\n  HOME:\n  A-B: x\nnodes: {r: {task: read_corpus, params: {sources: []}}}\n",
            ),
        ]),
    );
}

#[test]
fn overrides() {
    let text = "version: 1\nparams:\n  seed: 1\n  corpus: {type: string}\nnodes:\n  a: {task: read_corpus, params: {sources: [{glob: \"${{ params.corpus }}\"}], limit: \"${{ params.seed }}\"}}\n";
    let set = [("sede", "2"), ("seed", "two"), ("corpus", "x")];
    check("overrides", &render(&read(text, &set).mistakes));
    assert!(codes(text, &[("corpus", "x"), ("seed", "10_000")]).is_empty());
}

#[test]
fn expressions() {
    check(
        "expressions",
        &nodes(&[
            (
                "unknown param",
                "  a: {task: clean, in: read, params: {note: \"${{ params.sed }}\"}}\n",
            ),
            (
                "unknown root",
                "  a: {task: clean, in: read, params: {note: \"${{ parms.seed }}\"}}\n",
            ),
            ("no matrix", "  a: {task: clean, in: read, params: {note: \"${{ matrix.arm }}\"}}\n"),
            (
                "unknown axis",
                "  a: {task: clean, in: read, matrix: {arm: [x]}, params: {note: \"${{ matrix.arms }}\"}}\n",
            ),
            (
                "undeclared variable",
                "  a: {task: clean, in: read, params: {note: \"${{ env.HOME }}\"}}\n",
            ),
            (
                "missing root",
                "  a: {task: clean, in: read, matrix: {arm: [x]}, params: {note: \"${{ arm }}\"}}\n",
            ),
            ("not closed", "  a: {task: clean, in: read, params: {note: \"a ${{ 1 + 1\"}}\n"),
            ("syntax", "  a: {task: clean, in: read, params: {note: \"${{ 1 + }}\"}}\n"),
            (
                "unknown filter",
                "  a: {task: clean, in: read, params: {note: \"${{ 'a' | uper }}\"}}\n",
            ),
            (
                "division by zero",
                "  a: {task: clean, in: read, params: {max_newlines: \"${{ 1 // 0 }}\"}}\n",
            ),
            (
                "a list in text",
                "  a: {task: clean, in: read, params: {note: \"x ${{ [1, 2] }}\"}}\n",
            ),
            (
                "value of another type",
                "  a: {task: clean, in: read, params: {max_newlines: \"${{ 'two' }}\"}}\n",
            ),
        ]),
    );
}

#[test]
fn task_params() {
    check(
        "task_params",
        &nodes(&[
            ("unknown task", "  a: {task: claen, in: read}\n"),
            ("no task", "  a: {in: read}\n"),
            ("empty node", "  a:\n"),
            ("task is a list", "  a: {task: [clean], in: read}\n"),
            ("unknown param", "  a: {task: clean, in: read, params: {max_newline: 1}}\n"),
            (
                "unknown nested param",
                "  a: {task: clean, in: read, params: {lower: true}}\n  t:\n    task: pretrain\n    in: {real: read, tokenizer: read}\n    params: {steps: 1, arch: {layers: 2}}\n",
            ),
            (
                "a string for an integer",
                "  a: {task: clean, in: read, params: {max_newlines: \"3\"}}\n",
            ),
            (
                "a fraction for an integer",
                "  a: {task: clean, in: read, params: {max_newlines: 2.5}}\n",
            ),
            ("a leading zero", "  a: {task: clean, in: read, params: {max_newlines: 0777}}\n"),
            (
                "a comma in a number",
                "  a: {task: clean, in: read, params: {max_newlines: '10,000'}}\n",
            ),
            (
                "too large for the type",
                "  a: {task: clean, in: read, params: {max_newlines: 99999999999}}\n",
            ),
            ("negative", "  a: {task: clean, in: read, params: {max_newlines: -1}}\n"),
            ("YAML 1.1 boolean", "  a: {task: clean, in: read, params: {lower: off}}\n"),
            ("a number for a string", "  a: {task: clean, in: read, params: {note: 1.10}}\n"),
            ("nothing for a string", "  a: {task: clean, in: read, params: {note: }}\n"),
            ("a map for a string", "  a: {task: clean, in: read, params: {note: {a: b}}}\n"),
            ("missing", "  a: {task: split, in: read}\n"),
            (
                "missing and misspelled",
                "  a: {task: split, in: read, params: {held_out_docs: 3}}\n",
            ),
            (
                "refused by the task",
                "  a: {task: train_tokenizer, in: read, params: {vocab_size: 100}}\n",
            ),
            (
                "unknown word",
                "  t: {task: pretrain, in: {real: read, tokenizer: read}, params: {steps: 1, schedule: cosin}}\n",
            ),
            (
                "wrong length",
                "  t: {task: pretrain, in: {real: read, tokenizer: read}, params: {steps: 1, betas: [0.9]}}\n",
            ),
            ("unknown variant", "  r: {task: read_corpus, params: {sources: [{globb: x}]}}\n"),
            (
                "wrong field of a variant",
                "  r: {task: read_corpus, params: {sources: [{generated: {n_docs: ten, seed: 1}}]}}\n",
            ),
            ("one instead of a list", "  r: {task: read_corpus, params: {sources: {glob: x}}}\n"),
            ("params in a list", "  a: {task: clean, in: read, params: [1]}\n"),
            (
                "infinite",
                "  t: {task: pretrain, in: {real: read, tokenizer: read}, params: {steps: 1, lr_peak: .inf}}\n",
            ),
        ]),
    );
}

#[test]
fn wiring() {
    check(
        "wiring",
        &nodes(&[
            ("unknown node", "  a: {task: clean, in: raed}\n"),
            (
                "unknown output",
                "  s: {task: split, in: read, params: {heldout_docs: 1}}\n  a: {task: clean, in: s.held}\n",
            ),
            (
                "which output",
                "  s: {task: split, in: read, params: {heldout_docs: 1}}\n  a: {task: clean, in: s}\n",
            ),
            ("unknown port", "  a: {task: clean, in: {doc: read}}\n"),
            (
                "kinds disagree",
                "  t: {task: train_tokenizer, in: read, params: {vocab_size: 300}}\n  a: {task: clean, in: t}\n",
            ),
            (
                "missing port",
                "  t: {task: train_tokenizer, in: read, params: {vocab_size: 300}}\n  a: {task: pretrain, in: {real: read}, params: {steps: 1}}\n",
            ),
            ("not connected", "  a: {task: clean}\n"),
            ("two for one", "  b: {task: clean, in: read}\n  a: {task: clean, in: [read, b]}\n"),
            ("which port", "  a: {task: pretrain, in: read, params: {steps: 1}}\n"),
            ("no input ports", "  a: {task: read_corpus, in: read, params: {sources: []}}\n"),
            ("no reference", "  a: {task: clean, in: ../read}\n"),
            ("a number", "  a: {task: clean, in: 3}\n"),
            ("itself", "  a: {task: clean, in: a}\n"),
            (
                "a circle",
                "  a: {task: clean, in: c}\n  b: {task: clean, in: a}\n  c: {task: clean, in: b}\n",
            ),
            ("left out", "  b: {task: clean, in: read, when: false}\n  a: {task: clean, in: b}\n"),
            ("bad name", "  A/b: {task: clean, in: read}\n"),
        ]),
    );
}

#[test]
fn matrices() {
    check(
        "matrices",
        &nodes(&[
            (
                "too many for a port",
                "  m: {task: clean, in: read, matrix: {arm: [x, y]}}\n  a: {task: clean, in: m}\n",
            ),
            (
                "no such combination",
                "  m: {task: clean, in: read, matrix: {arm: [base, sbp]}}\n  a: {task: clean, in: 'm[arm=spb]'}\n",
            ),
            (
                "no such axis in a reference",
                "  m: {task: clean, in: read, matrix: {arm: [x]}}\n  a: {task: clean, in: 'm[arms=x]'}\n",
            ),
            ("no matrix to pick from", "  a: {task: clean, in: 'read[arm=x]'}\n"),
            (
                "values of another axis",
                "  m: {task: clean, in: read, matrix: {arm: [x]}}\n  a: {task: clean, in: m, matrix: {arm: [x, z]}}\n",
            ),
            ("not a list", "  a: {task: clean, in: read, matrix: {arm: x}}\n"),
            ("empty axis", "  a: {task: clean, in: read, matrix: {arm: []}}\n"),
            ("no axes", "  a: {task: clean, in: read, matrix: {}}\n"),
            ("value twice", "  a: {task: clean, in: read, matrix: {n: [1, 2, 1]}}\n"),
            ("path in a value", "  a: {task: clean, in: read, matrix: {arm: [../x, ..]}}\n"),
            (
                "unknown axis in exclude",
                "  a: {task: clean, in: read, matrix: {arm: [x], exclude: [{amr: x}]}}\n",
            ),
            (
                "vain exclude",
                "  a: {task: clean, in: read, matrix: {arm: [x], exclude: [{arm: y}]}}\n",
            ),
            (
                "all excluded",
                "  a: {task: clean, in: read, matrix: {arm: [x], exclude: [{arm: x}]}}\n",
            ),
            (
                "partial include",
                "  a: {task: clean, in: read, matrix: {arm: [x], n: [1], include: [{arm: y}]}}\n",
            ),
            (
                "a million nodes",
                "  a: {task: clean, in: read, matrix: {i: \"${{ range(1000) | list }}\", j: \"${{ range(1000) | list }}\"}}\n",
            ),
        ]),
    );
}

#[test]
fn settings() {
    check(
        "settings",
        &nodes(&[
            ("unknown key", "  a: {task: clean, in: read, resource: {cpu: 1}}\n"),
            ("another tool's key", "  a: {task: clean, needs: read}\n"),
            ("unknown resource", "  a: {task: clean, in: read, resources: {memory: 1GiB}}\n"),
            ("no threads", "  a: {task: clean, in: read, resources: {cpu: 0}}\n"),
            ("half a thread", "  a: {task: clean, in: read, resources: {cpu: 0.5}}\n"),
            ("bad size", "  a: {task: clean, in: read, resources: {mem: 1 gig}}\n"),
            ("duration without unit", "  a: {task: clean, in: read, timeout: 60}\n"),
            ("bad duration", "  a: {task: clean, in: read, timeout: 1 fortnight}\n"),
            ("no time", "  a: {task: clean, in: read, stall_timeout: 0s}\n"),
            ("no attempts", "  a: {task: clean, in: read, retry: {attempts: 0, backoff: soon}}\n"),
            (
                "bad pool",
                "  a: {task: clean, in: read, resources: {pools: {Disk: 1, net: many}}}\n",
            ),
            ("condition in text", "  a: {task: clean, in: read, when: \"no\"}\n"),
            ("condition of a number", "  a: {task: clean, in: read, when: \"${{ 1 }}\"}\n"),
            ("priority in words", "  a: {task: clean, in: read, priority: high}\n"),
            ("salt in a list", "  a: {task: clean, in: read, salt: [1]}\n"),
        ]),
    );
}

#[test]
fn every_mistake_at_once() {
    let text = "version: 1
params: {seed: {type: int}, corpus: x}
nodes:
  read: {task: read_corpus, params: {source: []}}
  clean: {task: clean, in: raed, params: {lower: yes, max_newlines: \"${{ params.sed }}\"}}
  eval: {task: evaluate, matrix: {arm: [base, sbp]}, in: {model: clean}, timeout: 5}
";
    let checked = read(text, &[]);
    check("every_mistake", &checked.mistakes.to_string());
    check(
        "every_mistake_json",
        &serde_json::to_string_pretty(&checked.mistakes.to_json()[0]).unwrap(),
    );
}

#[test]
fn a_matrix_reports_a_mistake_once() {
    let text = "version: 1\nnodes:\n  r: {task: read_corpus, matrix: {n: \"${{ range(500) | list }}\"}, params: {sources: [], limit: \"${{ matrix.m }}\"}}\n";
    assert_eq!(codes(text, &[]), ["spec::unknown_axis"]);
}

#[test]
fn many_mistakes_are_cut_short() {
    let mut text = "version: 1\nnodes:\n".to_owned();
    for i in 0..1_000 {
        writeln!(text, "  n{i}: {{task: nope}}").unwrap();
    }
    let codes = codes(&text, &[]);
    assert_eq!(codes.len(), 201);
    assert_eq!(codes.last(), Some(&"spec::more"));
}

#[test]
fn a_long_line_is_shown_around_the_mistake() {
    let filler = "x".repeat(100_000);
    let text = format!(
        "version: 1\nname: \"{filler}\"\nx-a: \"{filler}\"\nnodes: {{a: {{task: claen}}, b: {{task: clean, params: {{note: \"{filler}\"}}}}}}\n"
    );
    let rendered = render(&read(&text, &[]).mistakes);
    assert!(rendered.len() < 10_000, "{}", rendered.len());
    assert!(rendered.contains("no such task"), "{rendered}");
}

#[test]
fn hostile_expressions_are_refused() {
    let too_long = "1 + ".repeat(600);
    let hostile = [
        "(".repeat(1_900),
        "[".repeat(1_900),
        "-".repeat(1_900),
        "not ".repeat(450),
        "1 if ".repeat(350),
        "a.".repeat(900),
        too_long,
        "range(999999999) | list".to_owned(),
        "'a' * 99999999999".to_owned(),
        "2 ** 999".to_owned(),
        "1e308 * 10".to_owned(),
        "range".to_owned(),
    ];
    for expression in hostile {
        let text = format!(
            "version: 1\nnodes:\n  r: {{task: read_corpus, params: {{sources: [], text_key: \"${{{{ {expression} }}}}\"}}}}\n"
        );
        assert!(read(&text, &[]).mistakes.has_errors(), "{expression}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let check = |path: &std::path::Path, code: &str, words: &str| {
        let mistakes = crate::spec::load(path, &[], &super::registry()).err().unwrap();
        let mistake = mistakes.iter().next().unwrap();
        assert_eq!(mistake.code(), code);
        assert!(mistake.message().contains(words), "{mistake}");
    };
    check(&dir.path().join("missing.yaml"), "spec::unreadable", "missing.yaml");
    check(dir.path(), "spec::unreadable", "cannot read");
    check(&write("latin.yaml", b"version: 1\nname: caf\xe9\n"), "spec::not_utf8", "line 2");
    check(&write("line.yaml", &vec![b'x'; 10 << 20]), "spec::wrong_type", "a map");
}
