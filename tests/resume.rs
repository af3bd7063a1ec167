//! A run that is stopped anywhere, any number of times, ends with the bytes of one that was not.

use std::fmt::Write as _;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Place, Ran, digests, read, until};

const RUN: [&str; 4] = ["run", "small.yaml", "--json", "--cpu=2"];

fn small() -> Place {
    let place = Place::new();
    place.write("small.yaml", &read("tests/pipelines/small.yaml"));
    place
}

/// The result of an undisturbed run, and how long it took.
fn undisturbed(place: &Place, run: &[&str]) -> (Value, Duration) {
    let began = Instant::now();
    let summary = place.sbp(run).expect(0).json();
    (summary, began.elapsed())
}

/// Random moments from a seed: `SBP_TEST_SEED`, else the clock. A failing test prints it.
struct Moments(u64);

impl Moments {
    fn new() -> Self {
        let seed = match std::env::var("SBP_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        };
        println!("SBP_TEST_SEED={seed}");
        Self(seed)
    }

    /// A moment before `latest`.
    fn next(&mut self, latest: Duration) -> Duration {
        latest.mul_f64((splitmix(&mut self.0) >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn ended(place: &Place, child: &mut Child) -> Ran {
    let status = child.wait().unwrap();
    let text = |name: &str| std::fs::read_to_string(place.path().join(name)).unwrap();
    Ran { code: status.code(), stdout: text("out.json"), stderr: text("err.txt") }
}

/// Kills the run at `n_kills` random moments and then lets it finish; gives its result.
fn killed(place: &Place, run: &[&str], n_kills: usize, took: Duration) -> Value {
    let mut moments = Moments::new();
    for _ in 0..n_kills {
        let mut child = place.start(run);
        sleep(moments.next(took));
        child.kill().unwrap();
        let ran = ended(place, &mut child);
        // It ended before the kill, or the kill ended it: nothing else.
        assert!(matches!(ran.code, None | Some(0)), "{ran:?}");
    }
    place.sbp(run).expect(0).json()
}

/// Fails where a node of the run was finished twice.
fn assert_nothing_repeated(place: &Place, summary: &Value) {
    for node in summary["outputs"].as_object().unwrap().keys() {
        let detail = place.sbp(&["show", node, "--json"]).expect(0).json();
        let attempts = detail["attempts"].as_array().unwrap();
        let n_done = attempts.iter().filter(|attempt| attempt["state"] == "done").count();
        assert_eq!(n_done, 1, "{node}: {attempts:#?}");
    }
}

#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let (reference, took) = undisturbed(&small(), &RUN);
    let place = small();
    let resumed = killed(&place, &RUN, 10, took);
    assert_eq!(digests(&resumed), digests(&reference));
    assert_nothing_repeated(&place, &resumed);
}

/// Two files of made-up lines: some tell nearly what an earlier one does, some are broken.
fn lines(place: &Place) {
    let mut state = 7;
    let mut draw = |n: usize| (splitmix(&mut state) % n as u64) as usize;
    let parts = ["an", "be", "con", "da", "el", "fi", "ga", "il", "lo", "ma", "ne", "or", "pre"];
    let words: Vec<String> =
        (0..300).map(|_| (0..=draw(4)).map(|_| parts[draw(parts.len())]).collect()).collect();
    let mut documents: Vec<Vec<&str>> = Vec::new();
    let mut lines = String::new();
    for i in 0..600 {
        let mut document: Vec<&str> = match i % 5 {
            4 => documents[draw(i)].clone(),
            _ => (0..40 + draw(30)).map(|_| words[draw(words.len())].as_str()).collect(),
        };
        let n_words = document.len();
        document[draw(n_words)] = &words[draw(words.len())];
        let ending = if i % 7 == 0 { " caf\u{c3}\u{a9}\\r\\n\\n\\n\\n" } else { "" };
        writeln!(lines, "{{\"text\": \"{}{ending}\"}}", document.join(" ")).unwrap();
        if i % 100 == 50 {
            lines += "{\"text\": 1}\n";
        }
        documents.push(document);
    }
    let half = lines.match_indices('\n').nth(300).unwrap().0 + 1;
    place.write("lines/a.jsonl", &lines[..half]);
    place.write("lines/b.jsonl", &lines[half..]);
    place.write("data.yaml", &read("tests/pipelines/data.yaml"));
}

/// From raw files to pairs: one thread or two, killed or not, the bytes are the same.
#[test]
fn killed_data_runs_resume_to_the_same_bytes() {
    let run = |n_threads| ["run", "data.yaml", "--json", n_threads];
    let place = Place::new();
    lines(&place);
    let (reference, took) = undisturbed(&place, &run("--cpu=1"));
    assert_eq!(reference["nodes"]["ran"], 13);
    let place = Place::new();
    lines(&place);
    let resumed = killed(&place, &run("--cpu=2"), 8, took);
    assert_eq!(digests(&resumed), digests(&reference));
    assert_nothing_repeated(&place, &resumed);
}

#[test]
fn an_interrupted_run_saves_and_resumes() {
    // Long enough that it cannot be over before it is interrupted.
    let run = [&RUN[..], &["--set", "budget_tokens=400_000"]].concat();
    let (reference, _) = undisturbed(&small(), &run);
    let place = small();
    let mut child = place.start(&run);
    let checkpoints = || {
        let entries = std::fs::read_dir(place.path().join(".sbp/checkpoints"));
        entries.map_or(0, Iterator::count)
    };
    until("training", || place.said().stderr.contains("train      started"));
    until("a checkpoint", || checkpoints() > 0);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ran = ended(&place, &mut child).expect(130);
    assert_eq!(ran.json()["state"], "cancelled");
    assert!(ran.stderr.contains("the same command goes on"), "{}", ran.stderr);

    assert_eq!(checkpoints(), 1, "the interrupted node left its checkpoint");
    let resumed = place.sbp(&run).expect(0).json();
    assert_eq!(digests(&resumed), digests(&reference));
    assert_eq!(resumed["nodes"]["ran"], 1);
}

/// Asked to stop, it saves for seconds, which the first interrupt lets it do.
const SAVES_SLOWLY: &str = "
version: 1
nodes:
  slow:
    task: exec
    params:
      shell: true
      outputs: {out: any}
      command:
        - |
          trap 'touch asked; sleep 5; touch saved; exit 1' TERM
          touch started
          while true; do sleep 0.1; done
";

#[test]
fn a_second_interrupt_stops_at_once() {
    let place = Place::new();
    place.write("slow.yaml", SAVES_SLOWLY);
    let has = |name: &str| place.path().join(name).exists();
    let mut child = place.start(&["run", "slow.yaml"]);
    let pid = Pid::from_child(&child);
    until("the program runs", || has("started"));
    kill_process(pid, Signal::INT).unwrap();
    until("the program is asked to stop", || has("asked"));
    kill_process(pid, Signal::INT).unwrap();
    ended(&place, &mut child).expect(130);
    assert!(!has("saved"), "the second interrupt was not heard");
}
