//! What the commands print, and how they end.

use insta::assert_snapshot;

use crate::harness::{Place, WORLD, read};

/// Compares with a snapshot, with everything replaced that differs from run to run.
macro_rules! snapshot {
    ($place:expr, $args:expr) => {
        assert_snapshot!(scrubbed(&$place.sbp($args).shown()))
    };
}

fn scrubbed(text: &str) -> String {
    let filters = [
        (r"\b[0-9a-f]{64}\b", "DIGEST"),
        (r"\b[0-9a-f]{12}\b", "DIGEST12"),
        (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
        (r"(?m)(run |^)[0-9a-z]{10}\b", "${1}RUN"),
        (r"  [0-9a-z]{10}  (done|failed)", "  RUN  $1"),
        (r"run `[0-9a-z]{10}`", "run `RUN`"),
        (r" +\d+(\.\d)? (ms|s)\b", " SPAN"),
        (r" +\d+(\.\d)? [KM]iB\b", " SIZE"),
        // As wide as the widest of its values.
        (r" +TOOK\b", "  TOOK"),
        (r"(/[\w.-]+)+/\.sbp", "DIR/.sbp"),
        (r"(?m)^ +\d+:\d\d  ", "  0:00  "),
    ];
    let mut text = text.to_owned();
    for (pattern, replacement) in filters {
        let pattern = regex::Regex::new(pattern).unwrap();
        text = pattern.replace_all(&text, replacement).into_owned();
    }
    text
}

#[test]
fn help() {
    snapshot!(Place::new(), &["--help"]);
}

#[test]
fn help_of_run() {
    snapshot!(Place::new(), &["run", "--help"]);
}

#[test]
fn unknown_command() {
    snapshot!(Place::new(), &["rnu", "world.yaml"]);
}

#[test]
fn bad_setting() {
    snapshot!(Place::world(), &["plan", "world.yaml", "--set", "seed"]);
}

#[test]
fn unknown_param() {
    snapshot!(Place::world(), &["plan", "world.yaml", "--set", "sead=2"]);
}

#[test]
fn unknown_target() {
    snapshot!(Place::world(), &["plan", "world.yaml", "--to", "token"]);
}

/// The nodes of `tidy` do not stand side by side: `between` needs one and gives to the other.
const MATRIX: &str = r#"version: 1
nodes:
  corpus: {task: generate_corpus, params: {n_concepts: 12}}
  tidy: {task: clean, matrix: {from: [corpus, between]}, in: "${{ matrix.from }}"}
  between: {task: clean, in: "tidy[from=corpus]"}
"#;

#[test]
fn unknown_nodes_have_suggestions() {
    let place = Place::new();
    place.write("matrix.yaml", MATRIX);
    snapshot!(place, &["plan", "matrix.yaml", "--to", "tydi"]);
    snapshot!(place, &["show", "tidy"]);
    place.sbp(&["run", "matrix.yaml"]).expect(0);
    snapshot!(place, &["show", "tidy"]);
    snapshot!(place, &["why", "betwen"]);
    snapshot!(place, &["status", "zzz"]);
}

#[test]
fn missing_pipeline() {
    snapshot!(Place::new(), &["run", "none.yaml"]);
}

#[test]
fn mistakes_of_a_pipeline() {
    let place = Place::new();
    let text = WORLD.replace("in: corpus", "in: corpse").replace("n_concepts: 12", "n_concept: 12");
    place.write("world.yaml", &text);
    snapshot!(place, &["run", "world.yaml"]);
}

#[test]
fn json_is_one_line() {
    let place = Place::world();
    for args in [
        &["plan", "world.yaml"][..],
        &["run", "world.yaml"],
        &["run", "world.yaml"],
        &["plan", "world.yaml"],
        &["status"],
        &["show", "tokens"],
        &["why", "tokens"],
        &["logs", "tokens"],
        &["tasks"],
        &["tasks", "show", "tokenize"],
        &["schema"],
        &["reference"],
        &["completions", "bash"],
        &["verify"],
        &["doctor"],
    ] {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        place.sbp(&args).expect(0).json();
    }
    for (args, code) in [
        (&["plan", "none.yaml"][..], 2),
        (&["plan", "world.yaml", "--to", "token"], 2),
        (&["why", "token"], 2),
        (&["status", "no-such-run"], 2),
        (&["plan", "world.yaml", "--dir", "world.yaml"], 3),
    ] {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let error = place.sbp(&args).expect(code).json();
        assert_eq!(error["error"]["exit_code"], code, "{args:?}");
    }
}

#[test]
fn a_run_from_plan_to_logs() {
    let place = Place::world();
    snapshot!(place, &["plan", "world.yaml"]);
    snapshot!(place, &["run", "world.yaml", "--cpu", "1"]);
    snapshot!(place, &["plan", "world.yaml"]);
    snapshot!(place, &["run", "world.yaml"]);
    snapshot!(place, &["plan", "world.yaml", "--set", "vocab_size=310"]);
    snapshot!(place, &["run", "world.yaml", "--set", "vocab_size=310"]);
    snapshot!(place, &["why", "tokenizer"]);
    snapshot!(place, &["why", "tokens"]);
    snapshot!(place, &["why", "corpus"]);
    snapshot!(place, &["show", "tokenizer"]);
    snapshot!(place, &["logs", "tokenizer"]);
    snapshot!(place, &["status"]);
}

#[test]
fn summary_has_the_promised_fields() {
    let place = Place::world();
    let summary = place.sbp(&["run", "world.yaml", "--json"]).expect(0).json();
    assert_eq!(summary["state"], "done");
    for (count, n) in [("total", 4), ("ran", 4), ("cached", 0), ("failed", 0)] {
        assert_eq!(summary["nodes"][count], n, "{count}");
    }
    let artifact = &summary["outputs"]["split"]["train"];
    assert_eq!(artifact["digest"].as_str().unwrap().len(), 64);
    assert!(place.path().join(artifact["path"].as_str().unwrap()).is_dir());
    let id = summary["run"].as_str().unwrap();
    let status = place.sbp(&["status", id, "--json"]).expect(0).json();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 4);
}

#[test]
fn targets_run_what_they_need_only() {
    let place = Place::world();
    let run = ["run", "world.yaml", "--json", "--to", "split"];
    let summary = place.sbp(&run).expect(0).json();
    let names: Vec<&String> = summary["outputs"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["corpus", "split"]);
}

#[test]
fn a_failed_node_stops_the_run() {
    let place = Place::world();
    // The world has too few different pairs of bytes for such a vocabulary.
    let args = ["run", "world.yaml", "--set", "vocab_size=60000"];
    snapshot!(place, &args);
    let again = place.sbp(&[&args[..], &["--json"]].concat()).expect(1).json();
    assert_eq!(again["state"], "failed");
    assert_eq!(again["nodes"]["failed"], 1);
    assert_eq!(again["nodes"]["cached"], 2);
}

#[test]
fn store_trouble_has_its_own_code() {
    let place = Place::world();
    place.write("file", "");
    place.sbp(&["run", "world.yaml", "--dir", "file/below"]).expect(3);
    place.sbp(&["run", "world.yaml", "--ledger", "postgres://127.0.0.1:1/none"]).expect(3);
}

#[test]
fn quiet_prints_data_only() {
    let place = Place::world();
    let ran = place.sbp(&["run", "world.yaml", "--quiet"]).expect(0);
    assert_eq!(ran.stderr, "");
    let ran = place.sbp(&["run", "world.yaml", "--quiet", "--json"]).expect(0);
    assert_eq!(ran.stderr, "");
    assert_eq!(ran.json()["nodes"]["cached"], 4);
}

#[test]
fn no_colour_where_nobody_asked() {
    let place = Place::world();
    let ran = place.sbp(&["run", "world.yaml"]).expect(0);
    assert!(!ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'));
    let ran = place.sbp(&["plan", "world.yaml", "--color", "always"]).expect(0);
    assert!(ran.stdout.contains('\u{1b}'));
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Place::new().sbp(&["completions", shell]).expect(0).stdout;
        assert!(script.contains("keep-going"), "{shell}");
    }
}

#[test]
fn every_task_is_documented() {
    let place = Place::new();
    let tasks = place.sbp(&["tasks", "--json"]).expect(0).json();
    assert!(!tasks.as_array().unwrap().is_empty());
    for task in tasks.as_array().unwrap() {
        let kind = task["kind"].as_str().unwrap();
        let text = place.sbp(&["tasks", "show", kind]).expect(0).stdout;
        for port in task["outputs"].as_array().unwrap() {
            assert!(text.contains(port["name"].as_str().unwrap()), "{kind}: {text}");
        }
        let mut undocumented = text.lines().collect::<Vec<_>>();
        undocumented.retain(|line| line.ends_with("  any"));
        assert!(undocumented.is_empty(), "{kind}: params without a type: {undocumented:?}");
    }
}

#[test]
fn damage_is_found_and_mended() {
    let place = Place::world();
    let summary = place.sbp(&["run", "world.yaml", "--json"]).expect(0).json();
    let dir =
        place.path().join(summary["outputs"]["tokenizer"]["tokenizer"]["path"].as_str().unwrap());
    let file = dir.join("tokenizer.json");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, bytes).unwrap();
    let found = place.sbp(&["verify"]).expect(1);
    let digest = summary["outputs"]["tokenizer"]["tokenizer"]["digest"].as_str().unwrap();
    assert!(found.stdout.contains(digest), "{}", found.stdout);
    let mended = place.sbp(&["run", "world.yaml", "--json"]).expect(0).json();
    assert_eq!(mended["outputs"], summary["outputs"]);
    place.sbp(&["verify"]).expect(0);
}

#[test]
fn small_pipeline_is_the_documented_one() {
    // The fixture of `resume.rs` stays valid YAML of ours.
    let place = Place::new();
    place.write("small.yaml", &read("tests/pipelines/small.yaml"));
    place.sbp(&["plan", "small.yaml"]).expect(0);
}
