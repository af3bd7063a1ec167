//! A folder of one's own, and `sbp` in it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The project's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a tracked file.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether a path ends in `.extension`.
pub(crate) fn has_extension(path: impl AsRef<Path>, extension: &str) -> bool {
    path.as_ref().extension().is_some_and(|found| found == extension)
}

/// A pipeline whose every node takes milliseconds.
pub(crate) const WORLD: &str = r#"version: 1
params:
  seed: 1
  vocab_size: 300
nodes:
  corpus:
    task: generate_corpus
    params: {n_concepts: 12, seed: "${{ params.seed }}"}
  split: {task: split, in: corpus, params: {n_documents: 4}}
  tokenizer:
    task: train_tokenizer
    in: split.train
    params: {vocab_size: "${{ params.vocab_size }}"}
  tokens: {task: tokenize, in: {corpus: split.train, tokenizer: tokenizer}}
"#;

/// A temporary folder in which `sbp` runs.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

/// Numbers from a seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `n`.
    pub(crate) fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// The number in a variable of the environment.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Returns when `holds` is true; `what` names it when that takes too long.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_mins(2), "not in two minutes: {what}");
        sleep(Duration::from_millis(5));
    }
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A folder with [`WORLD`] as `world.yaml`.
    pub(crate) fn world() -> Self {
        let place = Self::new();
        place.write("world.yaml", WORLD);
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file, and gives its path relative to the folder.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        PathBuf::from(name)
    }

    /// A copy of a tracked pipeline, below `pipelines/`.
    pub(crate) fn pipeline(&self, name: &str) -> PathBuf {
        let name = format!("pipelines/{name}");
        self.write(&name, &read(&name))
    }

    /// `sbp` with arguments, without the environment's settings.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sbp"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        // What was measured on this machine stays out, and what is measured in tests too.
        command.env("XDG_CACHE_HOME", self.path().join("cache"));
        for name in [
            "SBP_DIR",
            "SBP_LEDGER",
            "SBP_CPU",
            "SBP_EXECUTOR",
            "SBP_LEASE",
            "NO_COLOR",
            "CLICOLOR_FORCE",
            "COLUMNS",
        ] {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn sbp(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// `sbp` with `input` piped in.
    pub(crate) fn feed(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Whoever does not want it all closes the pipe; what the command says then is what counts.
        let _ = child.stdin.take().unwrap().write_all(input);
        Ran::of(child.wait_with_output().unwrap())
    }

    /// What the command started last by [`Self::start`] printed so far.
    pub(crate) fn said(&self) -> Ran {
        let text = |name: &str| fs::read_to_string(self.path().join(name)).unwrap_or_default();
        Ran { code: None, stdout: text("out.json"), stderr: text("err.txt") }
    }

    /// Starts `sbp` with its output in `out.json` and `err.txt`.
    pub(crate) fn start(&self, args: &[&str]) -> Child {
        let file = |name: &str| fs::File::create(self.path().join(name)).unwrap();
        self.command(args).stdout(file("out.json")).stderr(file("err.txt")).spawn().unwrap()
    }
}

impl Ran {
    /// What a command that ended has printed.
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Fails the test unless the command ended with `code`.
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The only line of stdout, as JSON.
    pub(crate) fn json(&self) -> Value {
        let lines: Vec<&str> = self.stdout.lines().collect();
        assert_eq!(lines.len(), 1, "one line of JSON is expected in\n{}", self.stdout);
        serde_json::from_str(lines[0]).unwrap()
    }

    /// Everything as a snapshot shows it.
    pub(crate) fn shown(&self) -> String {
        let mut text = format!("exit code {}\n", self.code.map_or(-1, i64::from));
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !stream.is_empty() {
                text.extend(["--- ", name, "\n", stream.trim_end(), "\n"]);
            }
        }
        text
    }
}

/// Digests of a run's artifacts by `node.port`, without those that carry measured times.
pub(crate) fn digests(summary: &Value) -> Vec<(String, String)> {
    let outputs = summary["outputs"].as_object().expect("a run's JSON has outputs");
    let mut digests = Vec::new();
    for (node, ports) in outputs.iter().filter(|(node, _)| !node.contains("report")) {
        for (port, artifact) in ports.as_object().unwrap() {
            digests.push((format!("{node}.{port}"), artifact["digest"].to_string()));
        }
    }
    digests.sort();
    digests
}
