//! What the documents promise.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{Place, read, root};

const DOCUMENTS: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md"];

/// The fenced blocks of a language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let (mut found, mut open): (Vec<String>, Option<String>) = (Vec::new(), None);
    for line in document.lines() {
        match (&mut open, line.trim().strip_prefix("```")) {
            (None, Some(tag)) if tag == language => open = Some(String::new()),
            // Another language: skipped up to its end, which is not a block of ours.
            (None, _) => {}
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    found
}

#[test]
fn pipelines_in_the_readme_can_be_planned() {
    let blocks = blocks(&read("README.md"), "yaml");
    assert!(!blocks.is_empty(), "the README shows no pipeline");
    for (i, block) in blocks.iter().enumerate() {
        let place = Place::new();
        place.write("texts/one.txt", "A text.\n");
        let name = format!("readme-{i}.yaml");
        place.write(&name, block);
        place.sbp(&["plan", &name]).expect(0);
    }
}

#[test]
fn commands_in_the_documents_exist() {
    let help = Place::new().sbp(&["--help"]).expect(0).stdout;
    let known: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .collect();
    assert!(known.contains(&"run"), "{help}");
    let mut n_found = 0;
    for document in DOCUMENTS {
        for (command, line) in commands(&read(document)) {
            n_found += 1;
            assert!(known.contains(&command.as_str()), "{document}: `{line}`: no such command");
        }
    }
    assert!(n_found > 10, "only {n_found} commands were found");
}

/// The sub-commands that a document calls in shell blocks and inline code: `sbp COMMAND …`. Other
/// blocks show output.
fn commands(document: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut block: Option<&str> = None;
    for line in document.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            block = if block.is_some() { None } else { Some(language) };
            continue;
        }
        let pieces: Vec<&str> = match block {
            Some("sh") => vec![line],
            Some(_) => Vec::new(),
            None => line.split('`').skip(1).step_by(2).collect(),
        };
        for piece in pieces {
            // What follows `#` is a comment.
            let code = piece.split('#').next().unwrap_or_default();
            let is_sbp = |word: &&str| *word == "sbp" || word.ends_with("release/sbp");
            let mut words = code.split_whitespace().skip_while(|word| !is_sbp(word));
            let is_command = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
            if let Some(command) = words.nth(1).filter(is_command) {
                found.push((command.to_owned(), line.to_owned()));
            }
        }
    }
    found
}

#[test]
fn scripts_can_be_called() {
    for script in ["quickstart", "test", ".ci/run"] {
        let mode = root().join(script).metadata().unwrap().permissions().mode();
        assert!(mode & 0o111 != 0, "{script} cannot be executed");
        let name = script.rsplit('/').next().unwrap();
        let told = read("README.md") + &read("CONTRIBUTING.md");
        assert!(
            script == ".ci/run" || told.contains(&format!("./{name}")),
            "{script} is not documented"
        );
    }
}

#[test]
fn invariants_name_what_holds_them() {
    let document = read("ARCHITECTURE.md");
    let paragraphs = document.split("\n\n");
    let mut n_found = 0;
    for paragraph in paragraphs.filter(|paragraph| paragraph.contains("**Invariant:**")) {
        let statement = paragraph.split("**Invariant:**").nth(1).unwrap();
        let names = statement.split('`').skip(1).step_by(2);
        let named =
            names.filter(|name| root().join(name).is_file() || name.contains('_') && is_test(name));
        assert!(named.count() > 0 || statement.contains("tests"), "no test holds:{statement}");
        n_found += 1;
    }
    assert!(n_found > 0, "ARCHITECTURE.md states no invariant");
}

fn is_test(name: &str) -> bool {
    let wanted = format!("fn {name}(");
    walk(root()).iter().any(|text| text.contains(&wanted))
}

/// The Rust sources of the workspace.
fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            texts.extend(walk(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(std::fs::read_to_string(&path).unwrap());
        }
    }
    texts
}

#[test]
fn blocks_are_found() {
    let document = "a\n```sh\nx\n```\n```yaml\nname: a\n```\n";
    assert_eq!(blocks(document, "yaml"), ["name: a\n"]);
    assert_eq!(blocks(document, "sh"), ["x\n"]);
}
