//! Rules of the repository that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Place, has_extension, read, root};

/// No file of Rust code should be longer; what is gets split by what it does.
const LINES_MAX: usize = 1000;

fn tracked() -> Vec<String> {
    let output = Command::new("git").arg("ls-files").current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all = String::from_utf8(output.stdout).unwrap();
    // A file may be deleted and not yet committed.
    all.lines().filter(|path| root().join(path).exists()).map(str::to_owned).collect()
}

fn tracked_texts() -> impl Iterator<Item = (String, String)> {
    tracked().into_iter().filter_map(|path| {
        let bytes = std::fs::read(root().join(&path)).unwrap();
        Some((path, String::from_utf8(bytes).ok()?))
    })
}

fn metadata(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(args)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn dependencies_point_one_way() {
    let allowed = BTreeMap::from([
        ("sbp", BTreeSet::from(["engine", "tasks"])),
        ("tasks", BTreeSet::from(["engine", "kernels"])),
        ("engine", BTreeSet::new()),
        ("kernels", BTreeSet::new()),
    ]);
    let metadata = metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), allowed.len());
    for package in packages {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let target = dependency["name"].as_str().unwrap();
            assert!(
                !allowed.contains_key(target) || allowed[name].contains(target),
                "`{name}` must not depend on `{target}`"
            );
        }
    }
}

#[test]
fn modules_have_no_mod_rs() {
    let found: Vec<String> =
        tracked().into_iter().filter(|path| Path::new(path).ends_with("mod.rs")).collect();
    assert!(found.is_empty(), "{found:?}: a module is `foo.rs` beside `foo/`");
}

#[test]
fn files_stay_readable() {
    let mut long: Vec<(usize, String)> = tracked_texts()
        .filter(|(path, _)| has_extension(path, "rs"))
        .map(|(path, text)| (text.lines().count(), path))
        .filter(|(n_lines, _)| *n_lines > LINES_MAX / 2)
        .collect();
    long.sort();
    for (n_lines, path) in &long {
        println!("{n_lines:>5} {path}");
    }
    let longest = long.last().map_or(0, |(n_lines, _)| *n_lines);
    assert!(longest <= LINES_MAX, "{:?} has more than {LINES_MAX} lines", long.last());
}

#[test]
fn kernels_have_their_header() {
    let fields = ["Needs", "Launch", "Moves", "Numbers", "Source"];
    for (path, text) in tracked_texts() {
        if !has_extension(&path, "cu") {
            continue;
        }
        let mut header = text.lines().take_while(|line| line.starts_with("//"));
        for field in fields {
            let wanted = format!("// {field}");
            assert!(
                header.any(|line| line.starts_with(&wanted)),
                "{path}: the header lacks `{field}`, or it is out of order"
            );
        }
    }
}

#[test]
fn migrations_are_the_same_in_both_folders() {
    let names = |folder: &str| -> BTreeSet<String> {
        let prefix = format!("migrations/{folder}/");
        tracked().iter().filter_map(|path| path.strip_prefix(&prefix)).map(str::to_owned).collect()
    };
    let (sqlite, postgres) = (names("sqlite"), names("postgres"));
    assert!(!sqlite.is_empty(), "there are no migrations");
    assert_eq!(sqlite, postgres);
}

#[test]
fn no_paths_of_a_machine() {
    let home = std::env::var("HOME").unwrap_or_default();
    let candidates = [home, root().display().to_string()];
    let private: Vec<String> = candidates
        .iter()
        .filter(|path| path.len() > 1)
        .map(|path| format!("{}/", path.trim_end_matches('/')))
        .collect();
    for (path, text) in tracked_texts() {
        for (i, line) in text.lines().enumerate() {
            for private in &private {
                assert!(!line.contains(private), "{path}:{}: `{private}`", i + 1);
            }
        }
    }
}

#[test]
fn no_unfinished_places() {
    // Written apart, so that this file does not find itself.
    let marks = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[", "ignore")];
    for (path, text) in tracked_texts().filter(|(path, _)| has_extension(path, "rs")) {
        for mark in marks {
            assert!(!text.contains(mark), "{path} holds `{mark}`");
        }
    }
}

#[test]
fn licences_are_allowed() {
    let deny = read("deny.toml");
    let list = deny.split("\nallow = [").nth(1).unwrap().split(']').next().unwrap();
    let allowed: BTreeSet<&str> = list.split('"').skip(1).step_by(2).collect();
    for package in
        metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"])["packages"].as_array().unwrap()
    {
        let name = package["name"].as_str().unwrap();
        let license = package["license"].as_str().unwrap_or_else(|| panic!("{name}: no licence"));
        assert!(permits(&allowed, license), "{name}: licence `{license}` is not in deny.toml");
    }
}

/// Whether an expression such as `(MIT OR Apache-2.0) AND Unicode-3.0` can be met.
fn permits(allowed: &BTreeSet<&str>, expression: &str) -> bool {
    expression.split(" AND ").all(|part| {
        let part = part.trim_matches(['(', ')']).replace('/', " OR ");
        part.split(" OR ").any(|license| allowed.contains(license.trim()))
    })
}

#[test]
fn licence_expressions_are_read() {
    let allowed = BTreeSet::from(["MIT", "Unicode-3.0"]);
    assert!(permits(&allowed, "(MIT OR Apache-2.0) AND Unicode-3.0"));
    assert!(permits(&allowed, "Unlicense/MIT"));
    assert!(!permits(&allowed, "MIT AND GPL-3.0"));
    assert!(!permits(&allowed, "GPL-3.0"));
}

#[test]
fn pipeline_reference_is_current() {
    let reference = Place::new().sbp(&["reference"]).expect(0).stdout;
    assert!(
        read("pipelines/README.md") == reference,
        "pipelines/README.md is old: run `sbp reference > pipelines/README.md`"
    );
}
