//! Tells the binary which commit it is of, so that ledgers and reports can say what made a result.

use std::env;
use std::path::Path;
use std::process::Command;

/// Whatever the binary is made of.
const SOURCES: [&str; 8] =
    ["Cargo.lock", "Cargo.toml", "engine", "kernels", "migrations", "pipelines", "src", "tasks"];

fn main() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    // Which files say what is checked out: a commit or another branch moves them.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    // A source archive has no commit, and a repository around it would be another one's.
    let commit = Path::new(".git")
        .exists()
        .then(|| git(&["describe", "--always", "--dirty", "--exclude", "*", "--abbrev=12"]))
        .flatten();
    let version = commit.map_or(version.clone(), |commit| format!("{version} ({commit})"));
    println!("cargo::rustc-env=SBP_VERSION={version}");
    link_at_a_fixed_address();
}

/// An attempt may get a process of its own, and more than a third of what starting one takes would go
/// into moving the program to a random address (BENCHMARKS.md). Debian links its Python so for the
/// same reason; stack, heap and libraries stay where nobody can guess them.
fn link_at_a_fixed_address() {
    if env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}

/// What git prints, or nothing where there is no git or no repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
