//! Several files read as one pipeline.

use std::path::Path;

use insta::assert_snapshot;

use super::super::{Checked, check_files};
use super::tasks::registry;

/// Reads the first of these files, which may include the others.
fn read(files: &[(&str, &str)]) -> Checked {
    let find = |path: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == path);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| {
            format!("cannot read the pipeline `{}`: it is not there", path.display())
        })
    };
    let (name, text) = files[0];
    check_files(Path::new(name), text, &[], &registry(), &|_| None, &find)
}

fn mistakes(files: &[(&str, &str)]) -> String {
    let checked = read(files);
    assert!(checked.pipeline.is_none(), "nothing is wrong with {files:?}");
    let lines = checked.mistakes.iter().map(|mistake| {
        let place = mistake.place().map(|place| format!("{place}: ")).unwrap_or_default();
        let help = mistake.advice().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{place}{}: {}{help}", mistake.code(), mistake.message())
    });
    lines.collect::<Vec<_>>().join("\n")
}

const COMMON: &str = "params: {size: 3}
defaults: {all: {timeout: 1m}, tasks: {clean: {priority: 1}}}
nodes:
  read: {task: read_corpus, params: {sources: [{glob: 'x/*'}]}}
  tidy: {task: clean, in: read}
";

#[test]
fn files_are_one_pipeline_with_places_of_their_own() {
    let own = "version: 1
include: parts/common.yaml
defaults: {tasks: {split: {priority: 2}}}
nodes:
  mine: {task: clean, in: tidy}
x-note: \"${{ params.size }}\"
";
    let checked = read(&[("p.yaml", own), ("parts/common.yaml", COMMON)]);
    let pipeline = checked.pipeline.unwrap_or_else(|| panic!("{}", checked.mistakes));
    let nodes = pipeline.nodes.iter();
    let shown: Vec<String> = nodes
        .map(|node| format!("{} {} {}", node.name, node.place, node.execution.priority))
        .collect();
    assert_eq!(
        shown,
        ["read parts/common.yaml:4:3 0", "tidy parts/common.yaml:5:3 1", "mine p.yaml:5:3 1"]
    );
    let place = pipeline.nodes[0].param_place("sources").unwrap();
    assert!(place.to_string().starts_with("parts/common.yaml:4:"), "{place}");
}

#[test]
fn a_file_that_is_met_twice_counts_once() {
    let checked = read(&[
        ("p.yaml", "version: 1\ninclude: [a.yaml, ./b.yaml]\n"),
        ("a.yaml", "include: x/../common.yaml\n"),
        ("b.yaml", "include: common.yaml\nversion: 7\nname: b\n"),
        ("common.yaml", COMMON),
    ]);
    let pipeline = checked.pipeline.unwrap_or_else(|| panic!("{}", checked.mistakes));
    assert_eq!((pipeline.name.as_str(), pipeline.nodes.len()), ("p", 2));
}

#[test]
fn wrong_includes_are_reported_where_they_stand() {
    let main = |include: &str| format!("version: 1\ninclude: {include}\nnodes: {{}}\n");
    let shown = [
        mistakes(&[("p.yaml", &main("gone.yaml"))]),
        mistakes(&[("p.yaml", &main("/etc/passwd"))]),
        mistakes(&[("p.yaml", &main("3"))]),
        mistakes(&[("p.yaml", &main("\"${{ params.file }}\""))]),
        mistakes(&[("p.yaml", &main("p.yaml"))]),
        mistakes(&[
            ("p.yaml", &main("a.yaml")),
            ("a.yaml", "include: b.yaml\n"),
            ("b.yaml", "\ninclude: [a.yaml]\n"),
        ]),
        mistakes(&[("p.yaml", &main("a.yaml")), ("a.yaml", "- a list\n")]),
        mistakes(&[("p.yaml", &main("a.yaml")), ("a.yaml", "nodes: {x: {\n")]),
        mistakes(&[("p.yaml", &main("a.yaml")), ("a.yaml", "nodez: {}\n")]),
        mistakes(&[
            ("p.yaml", "version: 1\ninclude: common.yaml\nnodes:\n  tidy: {task: clean}\n"),
            ("common.yaml", COMMON),
        ]),
    ];
    assert_snapshot!(shown.join("\n--\n"));
}

#[test]
fn includes_have_limits() {
    let files: Vec<(String, String)> =
        (0..100).map(|i| (format!("f{i}.yaml"), format!("include: f{}.yaml\n", i + 1))).collect();
    let files: Vec<(&str, &str)> =
        files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert!(mistakes(&files).contains("included at most 16 deep"));
    let list: Vec<String> = (0..100).map(|i| format!("f{i}.yaml")).collect();
    let main = format!("version: 1\ninclude: [{}]\n", list.join(", "));
    let mut files = vec![("p.yaml", main.as_str())];
    files.extend(list.iter().map(|name| (name.as_str(), "x-empty: 1\n")));
    assert!(mistakes(&files).contains("has at most 64 files"));
}
