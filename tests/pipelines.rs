//! The pipelines of the repository, and what a change in one makes run again.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Place, has_extension, read, root};

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(root().join("pipelines")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| has_extension(name, "yaml")).collect();
    names.sort();
    names
}

#[test]
fn every_pipeline_can_be_planned() {
    for name in names() {
        let place = Place::new();
        let pipeline = place.pipeline(&name);
        let plan = place.sbp(&["plan", pipeline.to_str().unwrap(), "--json"]).expect(0).json();
        assert!(!plan["nodes"].as_array().unwrap().is_empty(), "{name}");
    }
}

#[test]
fn every_pipeline_says_what_it_is_for() {
    for name in names() {
        let text = read(format!("pipelines/{name}"));
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        assert!(head.len() >= 2, "{name} does not begin with its question, cost and result");
    }
}

/// Names of a plan's nodes in one of these states.
fn planned(plan: &Value, states: &[&str]) -> BTreeSet<String> {
    let nodes = plan["nodes"].as_array().unwrap().iter();
    let found = nodes.filter(|node| states.contains(&node["state"].as_str().unwrap()));
    found.map(|node| node["name"].as_str().unwrap().to_owned()).collect()
}

/// Names of a run's nodes that ran in it.
fn ran(place: &Place, summary: &Value) -> BTreeSet<String> {
    let run = summary["run"].as_str().unwrap();
    planned(&place.sbp(&["status", run, "--json"]).expect(0).json(), &["done"])
}

fn names_of(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn a_changed_param_reruns_exactly_what_follows() {
    let place = Place::new();
    place.write("small.yaml", &read("tests/pipelines/small.yaml"));
    place.sbp(&["run", "small.yaml"]).expect(0);
    let again = place.sbp(&["run", "small.yaml", "--json"]).expect(0).json();
    assert_eq!(ran(&place, &again), names_of(&[]));

    let cases = [
        ("lr_peak=2e-3", &["train"][..], &[][..]),
        ("vocab_size=420", &["tokenizer"], &["real", "heldout", "order", "train"]),
    ];
    for (set, first, after) in cases {
        let plan = place.sbp(&["plan", "small.yaml", "--json", "--set", set]).expect(0).json();
        assert_eq!(planned(&plan, &["run"]), names_of(first), "{set}");
        assert_eq!(planned(&plan, &["blocked"]), names_of(after), "{set}");
        let summary = place.sbp(&["run", "small.yaml", "--json", "--set", set]).expect(0).json();
        assert_eq!(ran(&place, &summary), names_of(&[first, after].concat()), "{set}");
        let param = set.split('=').next().unwrap();
        let why = place.sbp(&["why", first[0]]).expect(0).stdout;
        assert!(why.contains(&format!("param `{param}` changed from")), "{why}");
    }
}

/// The concept study at a size that learns nothing: every node runs, every check holds, and every arm of
/// every seed is in the comparison.
#[test]
fn the_concept_study_runs() {
    let place = Place::new();
    let pipeline = place.pipeline("concept-smoke.yaml");
    place.sbp(&["run", pipeline.to_str().unwrap(), "--json"]).expect(0).json();
    let detail = place.sbp(&["show", "compare", "--json"]).expect(0).json();
    let outputs = detail["node"]["outputs"].as_array().unwrap();
    let study = outputs.iter().find(|output| output["port"] == "study").unwrap();
    let dir = std::path::Path::new(study["path"].as_str().unwrap());
    let study: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("study.json")).unwrap()).unwrap();
    let n = |name: &str| study[name].as_array().unwrap().len();
    assert_eq!((n("seeds"), n("arms"), n("cells"), n("checks")), (2, 9, 18, 2));
    let checks = study["checks"].as_array().unwrap().iter();
    let mut checks = checks.flat_map(|seed| seed["found"].as_array().unwrap());
    assert!(checks.all(|check| check["holds"] == true));
    let against: BTreeSet<&str> = study["contrasts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["against"].as_str().unwrap())
        .collect();
    assert!(against.is_superset(&BTreeSet::from(["best control", "random", "unconditional"])));
    for cell in study["cells"].as_array().unwrap() {
        let kind = &cell["kinds"][study["headline"].as_str().unwrap()];
        assert!(kind["accuracy"].is_number() && kind["fact_loss"].is_number(), "{cell}");
    }
}
