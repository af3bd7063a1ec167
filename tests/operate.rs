//! What operators do: decide, stop, compare, keep, collect, and move the ledger.

use std::time::{Duration, Instant};

use crate::harness::{Place, WORLD};

#[test]
fn a_run_is_stopped_from_elsewhere() {
    let place = Place::new();
    let text = crate::harness::read("tests/pipelines/small.yaml");
    place.write("small.yaml", &text);
    // It cannot be over before it is stopped.
    let run = ["run", "small.yaml", "--set", "budget_tokens=50_000_000", "--json"];
    let mut child = place.start(&run);
    let since = Instant::now();
    // The run is in the ledger some time after its process started.
    let asked = loop {
        let ran = place.sbp(&["cancel", "last", "--json"]);
        if ran.code == Some(0) {
            break ran.json();
        }
        assert!(since.elapsed() < Duration::from_mins(1), "{}", ran.stderr);
        let is_over = child.try_wait().unwrap().is_some();
        assert!(!is_over, "the run was over before it could be stopped");
    };
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let id = asked["run"].as_str().unwrap();
    let status = place.sbp(&["status", id, "--json"]).expect(0).json();
    assert_eq!(status["run"]["state"], "cancelled");
    place.sbp(&["cancel", id]).expect(2);
    place.sbp(&["watch", id]).expect(130);
}

#[test]
fn runs_are_compared_and_tagged_and_old_results_collected() {
    let place = Place::world();
    let run = |vocab: &str| {
        let set = format!("vocab_size={vocab}");
        place.sbp(&["run", "world.yaml", "--set", &set, "--json"]).expect(0).json()
    };
    let first = run("300");
    let id = first["run"].as_str().unwrap().to_owned();
    let diff = {
        run("310");
        place.sbp(&["diff", &id, "last", "--json"]).expect(0).json()
    };
    assert_eq!(diff["params"][0]["name"], "vocab_size");
    let differ: Vec<&str> =
        diff["nodes"].as_array().unwrap().iter().map(|n| n["node"].as_str().unwrap()).collect();
    assert_eq!((differ, &diff["n_same"]), (vec!["tokenizer", "tokens"], &2.into()));
    let shown = place.sbp(&["diff", &id]).expect(0).stdout;
    assert!(shown.contains("param `vocab_size`: 300 -> 310"), "{shown}");

    place.sbp(&["tag", "first", &id]).expect(0);
    let garbage = |args: &[&str]| {
        let args = [&["gc", "--keep-runs", "1", "--json"][..], args].concat();
        place.sbp(&args).expect(0).json()
    };
    assert_eq!(garbage(&[])["list"]["garbage"].as_array().unwrap().len(), 0);
    place.sbp(&["tag", "first", "--delete"]).expect(0);
    place.sbp(&["pin", "tokenizer", "--run", &id]).expect(0);
    let dry = garbage(&[]);
    assert_eq!(dry["removed_bytes"], serde_json::Value::Null);
    let would_go = dry["list"]["garbage"].as_array().unwrap();
    assert_eq!(would_go.iter().map(|one| &one["node"]).collect::<Vec<_>>(), ["tokens"]);
    assert!(would_go[0]["cost_us"].as_i64().unwrap() > 0);
    let removed = garbage(&["--delete"]);
    assert_eq!(removed["removed_bytes"], dry["list"]["size_bytes"]);
    place.sbp(&["verify"]).expect(0);
    place.sbp(&["ledger", "check"]).expect(0);
    assert_eq!(run("310")["nodes"]["cached"], 4);
    assert_eq!(run("300")["nodes"]["ran"], 1);
}

#[test]
fn stray_words_stop_and_keep_nothing() {
    let place = Place::world();
    let done = place.sbp(&["run", "world.yaml", "--to", "split", "--json"]).expect(0).json();
    let id = done["run"].as_str().unwrap();
    let first = &id[..1];
    for what in ["", first, "tokens"] {
        let said = place.sbp(&["cancel", what]).expect(2).stderr;
        assert!(said.contains(&format!("has no node `{what}`")), "{said}");
    }
    place.sbp(&["cancel", "split", "--run", "typo"]).expect(2);
    let unknown = "0".repeat(64);
    let said = place.sbp(&["pin", &unknown]).expect(2).stderr;
    assert!(said.contains("neither ledger nor store know"), "{said}");
    // What that run covered, and nothing more.
    let again = place.sbp(&["retry", "--json"]).expect(0).json();
    assert_eq!(again["nodes"]["total"], 2);
}

#[test]
fn a_mistyped_folder_stays_a_mistake() {
    let place = Place::world();
    place.sbp(&["run", "world.yaml", "--to", "corpus"]).expect(0);
    place.sbp(&["ledger", "export", "backup.jsonl"]).expect(0);
    for args in [
        &["ledger", "check"][..],
        &["ledger", "export", "other.jsonl"],
        &["pin", "corpus"],
        &["tag", "best"],
        &["gc", "--delete"],
        &["cancel", "last"],
        &["retry"],
        &["approve", "corpus", "--reason", "good"],
    ] {
        let said = place.sbp(&[args, &["--dir", "typo"]].concat()).expect(2).stderr;
        assert!(said.contains("there is no run yet"), "{args:?}: {said}");
        assert!(!place.path().join("typo").exists(), "{args:?}");
    }
    // Nor is a ledger of another kind taken for a path, and nobody is told its password.
    let said = place.sbp(&["status", "--ledger", "mysql://me:secret@host/runs"]).expect(2).stderr;
    assert!(said.contains("`mysql://…` is of no known kind") && !said.contains("secret"), "{said}");
    // A backup is not overwritten, and a part of one is no backup.
    place.sbp(&["ledger", "export", "backup.jsonl"]).expect(2);
    let backup = std::fs::read_to_string(place.path().join("backup.jsonl")).unwrap();
    let part: Vec<&str> = backup.lines().take(5).collect();
    place.write("part.jsonl", &part.join("\n"));
    let said = place.sbp(&["ledger", "import", "part.jsonl", "--dir", "new"]).expect(2).stderr;
    assert!(said.contains("the export is cut: it holds 4 rows"), "{said}");
    place.sbp(&["ledger", "import", "backup.jsonl", "--dir", "new"]).expect(0);
    let said = place.sbp(&["logs", "corpsu"]).expect(2).stderr;
    assert!(said.contains("has no node `corpsu`"), "{said}");
}

#[test]
fn a_run_has_the_resources_that_it_is_given() {
    let place = Place::new();
    place.write(
        "pool.yaml",
        r"version: 1
nodes:
  corpus:
    task: generate_corpus
    params: {n_concepts: 12}
    resources: {gpu: 1, mem: 1GiB, pools: {disk: 1}}
",
    );
    let run = |flags: &[&str]| place.sbp(&[&["run", "pool.yaml"][..], flags].concat());
    let said = run(&["--gpu", "0"]).expect(2).stderr;
    assert!(said.contains("needs 1 of `gpu`, and the run has 0"), "{said}");
    let said = run(&["--gpu", "1", "--mem", "1MiB"]).expect(2).stderr;
    assert!(said.contains("`--mem SIZE`"), "{said}");
    let said = run(&["--gpu", "1"]).expect(2).stderr;
    assert!(said.contains("`--pool disk=1`"), "{said}");
    run(&["--gpu", "1", "--pool", "disk=1"]).expect(0);
}

#[test]
fn the_ledger_moves_as_a_whole() {
    let place = Place::world();
    let summary = place.sbp(&["run", "world.yaml", "--json"]).expect(0).json();
    let exported = place.sbp(&["ledger", "export", "all.jsonl", "--json"]).expect(0).json();
    assert!(exported["rows"].as_u64().unwrap() > 20);
    place.sbp(&["ledger", "import", "all.jsonl"]).expect(2);
    let moved = ["--ledger", "other.db"];
    place.sbp(&[&["ledger", "import", "all.jsonl"][..], &moved].concat()).expect(0);
    let again = place.sbp(&[&["run", "world.yaml", "--json"][..], &moved].concat()).expect(0);
    assert_eq!(again.json()["outputs"], summary["outputs"]);
    assert_eq!(again.json()["nodes"]["cached"], 4);
    place.sbp(&[&["ledger", "check"][..], &moved].concat()).expect(0);
    let old = place.sbp(&["logs", "tokenizer"]).stdout;
    assert_eq!(place.sbp(&[&["logs", "tokenizer"][..], &moved].concat()).stdout, old);
}

#[test]
fn a_lost_artifact_is_found_by_the_ledger_check() {
    let place = Place::world();
    let summary = place.sbp(&["run", "world.yaml", "--json"]).expect(0).json();
    let path = summary["outputs"]["tokens"]["tokens"]["path"].as_str().unwrap().to_owned();
    std::fs::rename(place.path().join(&path), place.path().join("gone")).unwrap();
    let found = place.sbp(&["ledger", "check", "--json"]).expect(1).json();
    assert_eq!(found[0]["problem"], "an artifact is not in the store");
}

#[test]
fn pipelines_are_drawn_with_fan_outs_collapsed() {
    let place = Place::new();
    let text =
        format!("{WORLD}  many: {{task: clean, matrix: {{i: [1, 2, 3]}}, in: split.train}}\n");
    place.write("world.yaml", &text);
    let graph = |args: &[&str]| place.sbp(&[&["graph", "world.yaml"][..], args].concat()).expect(0);
    assert!(graph(&[]).stdout.contains("[label=\"many\\nclean × 3\"]"));
    assert!(graph(&["--format", "mermaid"]).stdout.contains("many<br/>clean × 3"));
    assert!(graph(&["--format", "svg"]).stdout.ends_with("</svg>\n"));
    assert_eq!(graph(&["--json"]).json()["boxes"].as_array().unwrap().len(), 5);
    assert_eq!(graph(&["--all", "--json"]).json()["boxes"].as_array().unwrap().len(), 7);
}

#[test]
fn operator_commands_give_one_line_of_json() {
    let place = Place::world();
    place.sbp(&["run", "world.yaml"]).expect(0);
    for (args, code) in [
        (&["metrics", "tokenizer"][..], 0),
        (&["watch"], 0),
        (&["diff", "last"], 0),
        (&["graph", "world.yaml"], 0),
        (&["gc"], 0),
        (&["pin"], 0),
        (&["tag"], 0),
        (&["verify", "--sample", "2"], 0),
        (&["ledger", "check"], 0),
        (&["cancel", "last"], 2),
        (&["unpin", "abc"], 2),
        (&["tag", "a/b"], 2),
        (&["approve", "tokens", "--reason", "x"], 2),
    ] {
        let args = [args, &["--json"]].concat();
        place.sbp(&args).expect(code).json();
    }
    let followed = place.sbp(&["logs", "tokenizer", "--follow"]).expect(0);
    assert_eq!(followed.stdout, place.sbp(&["logs", "tokenizer"]).stdout);
}
