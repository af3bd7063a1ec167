use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use engine::task::FailureKind;
use engine::task::testbed::Bench;
use serde_json::{Map, Value, json};

use super::*;
use crate::fixture;

/// A server that knows the truth by marks in the documents.
struct Server {
    url: String,
    /// Readable answers given, by request.
    given: Arc<Mutex<BTreeMap<String, u64>>>,
    n_requests: Arc<AtomicU64>,
    /// Clients that hung up while they were kept waiting.
    n_left: Arc<AtomicU64>,
}

/// How a server treats its clients.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Answers,
    /// Refuses, fails, answers garbage and hangs up in between.
    Stumbles,
    /// Answers only those who wait for [`PATIENCE`].
    Keeps,
}

/// What a server takes for an answer, so that several are under way at a time.
const THINKING: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(15);

impl Server {
    /// `key` is what every request must bring.
    fn start(manner: Manner, key: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let given: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
        let n_requests: Arc<AtomicU64> = Arc::default();
        let n_left: Arc<AtomicU64> = Arc::default();
        let (counts, requests) = (Arc::clone(&given), Arc::clone(&n_requests));
        let left = Arc::clone(&n_left);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (counts, requests, key) =
                    (Arc::clone(&counts), Arc::clone(&requests), key.clone());
                let left = Arc::clone(&left);
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let n = requests.fetch_add(1, Ordering::SeqCst);
                    let served = serve(&mut stream, n, manner, key.as_deref(), &counts);
                    if served.is_err_and(|error| error.kind() == ErrorKind::ConnectionAborted) {
                        left.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self { url, given, n_requests, n_left }
    }
}

fn serve(
    stream: &mut TcpStream,
    n: u64,
    manner: Manner,
    key: Option<&str>,
    given: &Mutex<BTreeMap<String, u64>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut length, mut authorized) = (0, key.is_none());
    let mut sent = String::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if lower.starts_with("authorization:") {
            sent.clone_from(&line);
        }
        authorized |= key.is_some_and(|key| line.trim_end().ends_with(&format!("Bearer {key}")));
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request: Value = serde_json::from_slice(&body).unwrap();
    let reply = |status: &str, more: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\n{more}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    std::thread::sleep(THINKING);
    if manner == Manner::Keeps {
        stream.set_read_timeout(Some(PATIENCE))?;
        if stream.read(&mut [0])? == 0 {
            return Err(ErrorKind::ConnectionAborted.into());
        }
    }
    let stumbles = manner == Manner::Stumbles;
    let text = match n % 13 {
        _ if !authorized => reply("401 Unauthorized", "", &format!("not the key: {sent}")),
        3 if stumbles => reply("429 Too Many Requests", "Retry-After: 0\r\n", ""),
        5 if stumbles => reply("500 Internal Server Error", "", "oops"),
        7 if stumbles => reply("200 OK", "", "<html>garbage"),
        9 if stumbles => return Ok(()),
        11 if stumbles => reply("200 OK", "", "{\"choices\": []}"),
        _ => {
            let answer = answer(request["messages"][0]["content"].as_str().unwrap());
            *given.lock().unwrap().entry(request.to_string()).or_default() += 1;
            let body = json!({
                "choices": [{"message": {"role": "assistant", "content": answer}}],
                "usage": {"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42},
            });
            reply("200 OK", "Content-Type: application/json\r\n", &body.to_string())
        }
    };
    stream.write_all(text.as_bytes())
}

/// The truth, from the marks that a question's document bears.
fn answer(question: &str) -> String {
    if question.contains("[mumble]") {
        return "It depends.".to_owned();
    }
    let last = |yes: bool| format!("I looked at it.\n{}", if yes { "Yes" } else { "No" });
    let has = |mark: &str| question.contains(mark);
    if question.contains("repetition problem") {
        last(has("[loop]"))
    } else if question.contains("near copy") {
        last(has("[copy]"))
    } else if question.contains("belong together") {
        last(!has("[far]"))
    } else if question.contains("took a concept") {
        let (domain, relation) =
            if has("[far]") { ("Medicine", "Cause") } else { ("Culture", "Scope") };
        format!(
            "<seed_summary>a</seed_summary><concept>b</concept><document_summary>c</document_summary>\
             <domain>{domain}</domain><category>Event</category><relation>{relation}</relation>"
        )
    } else if has("[undefined]") {
        "<not well defined></not well defined>".to_owned()
    } else {
        let is_true = if has("[false]") { "False" } else { "True" };
        format!("<well defined>{is_true}</well defined>")
    }
}

const N: usize = 200;

/// 10 % copies, 15 % wrong, 30 % undefined, 5 % loops, 25 % far from their seeds, 2 % that nobody can
/// judge.
fn world(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let tokenizer = fixture::tokenizer(dir);
    let seeds: Vec<String> = (0..20).map(|i| fixture::words(i, 30)).collect();
    let real = fixture::tokens(dir, &seeds, &tokenizer);
    let text = |i: usize| {
        let mut text = fixture::words(1000 + i as u64, 20);
        for (mark, period, rest) in
            [("copy", 10, 1), ("loop", 20, 2), ("far", 4, 3), ("mumble", 50, 4)]
        {
            if i % period == rest {
                text.extend([" [", mark, "]"]);
            }
        }
        match i % 20 {
            0..3 => text.push_str(" [false]"),
            3..9 => text.push_str(" [undefined]"),
            _ => {}
        }
        text
    };
    let texts: Vec<String> = (0..N).map(text).collect();
    let synthetic = dir.join("synthetic");
    fixture::corpus(&synthetic, &texts, |i| {
        let mut meta = Map::new();
        meta.insert("seed_id".to_owned(), format!("{:016x}", i % 20 + 1).into());
        meta
    });
    (synthetic, real, tokenizer)
}

fn bench(dir: &Path, name: &str, world: &(PathBuf, PathBuf, PathBuf)) -> Bench {
    Bench::new(&dir.join(name))
        .input("synthetic", &world.0)
        .input("real", &world.1)
        .input("tokenizer", &world.2)
}

fn params(server: &Server) -> Value {
    json!({"base_url": server.url, "model": "scripted", "n_items": N, "attempts": 25, "backoff_s": 0.001})
}

#[test]
fn planted_rates_are_found_through_a_stumbling_server() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let server = Server::start(Manner::Stumbles, None);
    let all = bench(dir.path(), "all", &world);
    all.run::<Judge>(&params(&server)).unwrap();
    let judgement = Judgement::read(&all.out("judgement")).unwrap();
    let planted = [
        (Measure::Repetition, 0.05),
        (Measure::Factuality, 0.15),
        (Measure::Relevance, 0.25),
        (Measure::Copying, 0.10),
    ];
    for (measure, rate) in planted {
        let rates = &judgement.measures[&measure];
        let bad = rates.bad.as_ref().unwrap();
        // Four documents mumble, and are no part of the rate.
        assert_eq!((rates.unparsed.k, bad.n), (4, N as u64 - 4), "{measure:?}");
        assert!(bad.low <= rate && rate <= bad.high, "{measure:?} {bad:?}");
        assert!((bad.rate - rate).abs() < 0.011, "{measure:?} {bad:?}");
    }
    let undefined = judgement.measures[&Measure::Factuality].undefined.as_ref().unwrap();
    assert!(undefined.low <= 0.3 && 0.3 <= undefined.high, "{undefined:?}");
    // Each of the four was asked three times about each of four measures.
    assert_eq!(judgement.spent.answers, 4 * (N as u64 + 2 * 4));
    assert_eq!(judgement.spent.tokens, 42 * judgement.spent.answers);
    assert!(server.n_requests.load(Ordering::SeqCst) > judgement.spent.answers);

    // A sample tells the rates within its intervals.
    let mut few = params(&server);
    few["n_items"] = json!(120);
    let sample = bench(dir.path(), "sample", &world);
    sample.run::<Judge>(&few).unwrap();
    let judgement = Judgement::read(&sample.out("judgement")).unwrap();
    for (measure, rate) in planted {
        let bad = judgement.bad(measure).unwrap();
        assert!(bad.n <= 120 && bad.low <= rate && rate <= bad.high, "{measure:?} {bad:?}");
    }
}

#[test]
fn a_stopped_run_asks_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let server = Server::start(Manner::Stumbles, None);
    for limit in [30, 90, 300] {
        let stopped = bench(dir.path(), "stopped", &world);
        let cancel = stopped.cancel.clone();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| stopped.run::<Judge>(&params(&server)));
            while server.given.lock().unwrap().len() < limit && !running.is_finished() {
                std::thread::yield_now();
            }
            cancel.cancel();
            assert_eq!(running.join().unwrap().unwrap_err().kind, FailureKind::Cancelled);
        });
    }
    let again = bench(dir.path(), "stopped", &world);
    again.run::<Judge>(&params(&server)).unwrap();
    let given = server.given.lock().unwrap();
    let twice: Vec<_> = given.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "answered again: {twice:?}");
    let judgement = Judgement::read(&again.out("judgement")).unwrap();
    assert_eq!(judgement.spent.answers, given.len() as u64);
}

#[test]
fn stopping_does_not_wait_for_answers() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let server = Server::start(Manner::Keeps, None);
    let stopped = bench(dir.path(), "stopped", &world);
    let cancel = stopped.cancel.clone();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| stopped.run::<Judge>(&params(&server)));
        while server.n_requests.load(Ordering::SeqCst) < 8 && !running.is_finished() {
            std::thread::yield_now();
        }
        cancel.cancel();
        assert_eq!(running.join().unwrap().unwrap_err().kind, FailureKind::Cancelled);
    });
    // Whoever waits gets an answer.
    while server.n_left.load(Ordering::SeqCst) + (server.given.lock().unwrap().len() as u64) < 8 {
        std::thread::yield_now();
    }
    assert_eq!(server.given.lock().unwrap().len(), 0);
}

#[test]
fn the_budget_holds_and_can_be_raised() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let server = Server::start(Manner::Answers, None);
    let mut asked = params(&server);
    asked["measures"] = json!(["relevance"]);
    asked["concurrency"] = json!(8);
    asked["answers_max"] = json!(50);
    let short = bench(dir.path(), "budget", &world);
    let failure = short.run::<Judge>(&asked).unwrap_err();
    assert!(failure.message.contains("`answers_max: 50` is spent"), "{failure}");
    assert_eq!(server.given.lock().unwrap().len(), 50);
    asked["answers_max"] = json!(1000);
    short.run::<Judge>(&asked).unwrap();
    assert!(server.given.lock().unwrap().values().all(|n| *n == 1));
}

#[test]
fn the_key_goes_to_the_server_alone() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    // Any variable of the test's environment serves as the key.
    let key = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let server = Server::start(Manner::Answers, Some(key.clone()));
    let mut asked = params(&server);
    asked["measures"] = json!(["copying"]);
    // A server that shows what it was sent does not bring the key into a message.
    let strict = Server::start(Manner::Answers, Some("another".to_owned()));
    let mut refused = asked.clone();
    refused["base_url"] = json!(strict.url);
    refused["api_key_env"] = json!("CARGO_MANIFEST_DIR");
    let failure = bench(dir.path(), "refused", &world).run::<Judge>(&refused).unwrap_err();
    let shown = "401: not the key: authorization: Bearer …";
    assert!(failure.message.to_lowercase().contains(&shown.to_lowercase()), "{failure}");
    let failure = bench(dir.path(), "without", &world).run::<Judge>(&asked).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.help.unwrap().contains("api_key_env"), "{}", failure.message);
    asked["api_key_env"] = json!("SBP_NO_SUCH_VARIABLE");
    let failure = bench(dir.path(), "missing", &world).run::<Judge>(&asked).unwrap_err();
    assert!(failure.message.contains("no variable `SBP_NO_SUCH_VARIABLE`"), "{failure}");
    asked["api_key_env"] = json!("CARGO_MANIFEST_DIR");
    let with = bench(dir.path(), "with", &world);
    with.run::<Judge>(&asked).unwrap();
    for entry in walkdir::WalkDir::new(dir.path().join("with")) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let bytes = fs::read(entry.path()).unwrap();
            let found = bytes.windows(key.len()).any(|window| window == key.as_bytes());
            assert!(!found, "{} holds the key", entry.path().display());
        }
    }
}

#[test]
fn unreadable_answers_and_lost_servers_fail_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let server = Server::start(Manner::Answers, None);
    let mut asked = params(&server);
    asked["unparsed_max"] = json!(0.01);
    let failure = bench(dir.path(), "strict", &world).run::<Judge>(&asked).unwrap_err();
    assert!(failure.message.contains("4 of 200 answers on"), "{failure}");
    // A port that nobody listens on.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    asked["base_url"] = json!(format!("http://{closed}/v1"));
    asked["attempts"] = json!(2);
    let failure = bench(dir.path(), "lost", &world).run::<Judge>(&asked).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Transient, "{failure}");
    assert!(failure.message.contains("2 times"), "{failure}");
}

#[test]
fn concepts_are_counted_under_merged_names() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let server = Server::start(Manner::Answers, None);
    let mut asked = params(&server);
    asked["measures"] = json!(["concepts"]);
    asked["merge"] = json!({"medicine": "health"});
    let concepts = bench(dir.path(), "concepts", &world);
    concepts.run::<Judge>(&asked).unwrap();
    let judgement = Judgement::read(&concepts.out("judgement")).unwrap();
    let [(first, n_first), (second, n_second)] = &judgement.domains[..] else { panic!() };
    assert_eq!((first.as_str(), second.as_str(), n_first + n_second), ("culture", "health", 196));
    assert_eq!(judgement.categories, [("event".to_owned(), 196)]);
    assert_eq!(judgement.relations[1].0, "cause");
}

#[test]
fn own_questions_need_their_places() {
    let check = |prompts: Value| {
        let params = json!({"base_url": "http://x/v1", "model": "m", "prompts": prompts});
        <Judge as Task>::check(&serde_json::from_value(params).unwrap())
    };
    assert!(check(json!({"relevance": "{document} {seed}?"})).is_ok());
    let twice =
        json!({"base_url": "http://x/v1", "model": "m", "measures": ["copying", "copying"]});
    let error = <Judge as Task>::check(&serde_json::from_value(twice).unwrap()).unwrap_err();
    assert_eq!((&*error.path, &*error.message), ("measures", "`copying` is there twice"));
    let error = check(json!({"relevance": "{document}?"})).unwrap_err();
    assert_eq!(
        (error.path.as_str(), error.message.contains("{seed}")),
        ("prompts.relevance", true)
    );
    let params: Params = serde_json::from_value(json!({
        "base_url": "http://x/v1", "model": "m", "document_chars": 9,
        "prompts": {"copying": "A {seed} {other} B {document}"},
    }))
    .unwrap();
    let document = Document { id: 1, text: "ab{seed}cdef".to_owned(), meta: Map::new() };
    let subject = Subject { document, seed: "S".to_owned() };
    assert_eq!(params.question(Measure::Copying, &subject), "A S {other} B ab{seed}c");
}
