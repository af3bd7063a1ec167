//! Answers of a judge are paid for: no stop, and no setting that leaves them as they are, asks again.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::yield_now;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::Place;

/// Questions under way at a time.
const CONCURRENCY: u64 = 4;
/// How long a client has to wait for a server that keeps it waiting.
const PATIENCE: Duration = Duration::from_secs(20);

const PIPELINE: &str = r#"
version: 1
params:
  url: {type: string, default: "http://127.0.0.1:9/v1", doc: The server.}
  unparsed_max: {type: number, default: 0.5, doc: Highest share of answers that cannot be read.}
nodes:
  world: {task: generate_corpus, params: {n_concepts: 60, seed: 1}}
  judge:
    task: judge
    in: {synthetic: world}
    params:
      base_url: "${{ params.url }}"
      model: scripted
      measures: [repetition, factuality]
      n_items: 120
      unparsed_max: "${{ params.unparsed_max }}"
      concurrency: 4
      attempts: 30
      backoff_s: 0.001
"#;

/// How a server treats its clients.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    /// Answers.
    Plain,
    /// Refuses, fails, answers garbage and hangs up in between; cannot make up its mind on some documents.
    Stumbles,
    /// Answers only those who wait very long.
    Keeps,
}

/// A server with the interface that `judge` asks.
pub(crate) struct Server {
    pub(crate) url: String,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    /// Answers by request.
    given: Mutex<BTreeMap<String, u64>>,
    /// Clients that hung up while they were kept waiting.
    left: AtomicU64,
}

impl Server {
    pub(crate) fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let counts: Arc<Counts> = Arc::default();
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                // A client that was killed leaves a broken stream, which is no concern of ours.
                std::thread::spawn(move || serve(&mut stream.unwrap(), manner, &shared).ok());
            }
        });
        Self { url, counts }
    }

    fn n_given(&self) -> u64 {
        self.counts.given.lock().unwrap().values().sum()
    }

    fn n_distinct(&self) -> u64 {
        self.counts.given.lock().unwrap().len() as u64
    }
}

fn serve(stream: &mut TcpStream, manner: Manner, counts: &Counts) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let n = counts.requests.fetch_add(1, Ordering::SeqCst);
    if manner == Manner::Keeps {
        stream.set_read_timeout(Some(PATIENCE))?;
        if stream.read(&mut [0]).is_ok_and(|n| n == 0) {
            counts.left.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
    }
    let (status, text) = match n % 9 {
        2 if manner == Manner::Stumbles => ("429 Too Many Requests", String::new()),
        4 if manner == Manner::Stumbles => ("500 Internal Server Error", "oops".to_owned()),
        6 if manner == Manner::Stumbles => ("200 OK", "<html>garbage".to_owned()),
        8 if manner == Manner::Stumbles => return Ok(()),
        _ => {
            let request: Value = serde_json::from_slice(&body).unwrap();
            let answer = answer(request["messages"][0]["content"].as_str().unwrap(), manner);
            *counts.given.lock().unwrap().entry(request.to_string()).or_default() += 1;
            ("200 OK", json!({"choices": [{"message": {"content": answer}}]}).to_string())
        }
    };
    let head =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", text.len());
    stream.write_all((head + &text).as_bytes())
}

/// An answer that follows from the question, so that two runs have the same.
fn answer(question: &str, manner: Manner) -> &'static str {
    let n_bytes: usize = question.bytes().map(usize::from).sum();
    match (question.contains("repetition problem"), n_bytes % 10) {
        (_, 0) if manner == Manner::Stumbles => "It depends.",
        (true, 1) if manner == Manner::Stumbles => "It goes round in circles.\nYes",
        (true, _) => "Nothing comes back.\nNo",
        (false, 1 | 2) => "<well defined>False</well defined>",
        (false, _) => "<well defined>True</well defined>",
    }
}

fn place() -> Place {
    let place = Place::new();
    place.write("judge.yaml", PIPELINE);
    place
}

fn digest(summary: &Value) -> String {
    summary["outputs"]["judge"]["judgement"]["digest"].to_string()
}

#[test]
fn killed_runs_repeat_no_judged_item() {
    let undisturbed = Server::start(Manner::Stumbles);
    let url = format!("url={}", undisturbed.url);
    let reference = place().sbp(&["run", "judge.yaml", "--set", &url, "--json"]).expect(0).json();

    let server = Server::start(Manner::Stumbles);
    let url = format!("url={}", server.url);
    let run = ["run", "judge.yaml", "--set", &url, "--json"];
    let place = place();
    let mut n_kills = 0;
    for answers in [25, 80, 170] {
        let mut child = place.start(&run);
        while server.n_distinct() < answers && child.try_wait().unwrap().is_none() {
            yield_now();
        }
        child.kill().unwrap();
        n_kills += u64::from(child.wait().unwrap().code().is_none());
    }
    assert_eq!(n_kills, 3);
    let resumed = place.sbp(&run).expect(0).json();
    assert_eq!(digest(&resumed), digest(&reference));
    assert_eq!(server.n_distinct(), undisturbed.n_distinct());
    // An answer is lost only where it was on its way when the kill came.
    let n_repeated = server.n_given() - server.n_distinct();
    assert!(n_repeated <= n_kills * CONCURRENCY, "{n_repeated} answers were asked for again");
}

#[test]
fn an_interrupt_does_not_wait_for_answers() {
    let server = Server::start(Manner::Keeps);
    let place = place();
    let url = format!("url={}", server.url);
    let mut child = place.start(&["run", "judge.yaml", "--set", &url]);
    while server.counts.requests.load(Ordering::SeqCst) < CONCURRENCY {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it asked");
        yield_now();
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    while server.counts.left.load(Ordering::SeqCst) + server.n_given() < CONCURRENCY {
        yield_now();
    }
    assert_eq!(server.n_given(), 0, "it waited");
}

/// Too many unreadable answers fail the node; who then allows them pays for no answer again.
#[test]
fn a_raised_limit_asks_nothing_again() {
    let server = Server::start(Manner::Stumbles);
    let place = place();
    let url = format!("url={}", server.url);
    let run = ["run", "judge.yaml", "--set", &url, "--json", "--set"];
    let strict = place.sbp(&[&run[..], &["unparsed_max=0.001"]].concat()).expect(1);
    assert!(strict.stderr.contains("unparsed_max: 0.001"), "{}", strict.stderr);
    let n_requests = server.counts.requests.load(Ordering::SeqCst);
    place.sbp(&[&run[..], &["unparsed_max=0.9"]].concat()).expect(0);
    assert_eq!(server.counts.requests.load(Ordering::SeqCst), n_requests);
}
