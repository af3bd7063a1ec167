//! Documents that are piped in, or lie in a bucket.

mod bucket;

use std::fs;

use serde_json::Value;

use crate::harness::{Place, Ran, digests};
use bucket::Bucket;

const KEY_ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMIexample";

fn pipeline(place: &Place, path: &str, more: &str) {
    let text = format!(
        "version: 1\nnodes:\n  read: {{task: read_corpus, params: {{paths: ['{path}']{more}}}}}\n  \
         cards: {{task: export, in: {{corpus: read}}, params: {{name: books}}}}\n"
    );
    place.write("p.yaml", &text);
}

fn lines(texts: &[&str]) -> String {
    texts.iter().flat_map(|text| ["{\"text\": \"", text, "\"}\n"]).collect()
}

/// A report on one line.
fn unwrapped(ran: &Ran) -> String {
    let words: Vec<&str> = ran.stderr.split_whitespace().filter(|word| *word != "│").collect();
    words.join(" ")
}

fn node<'a>(summary: &'a Value, name: &str) -> &'a Value {
    &summary["nodes"][name]
}

#[test]
fn what_is_piped_in_is_keyed_by_its_content() {
    const RUN: [&str; 3] = ["run", "p.yaml", "--json"];
    let place = Place::new();
    pipeline(&place, "-", ", format: jsonl");
    let text = lines(&["one", "two"]);
    let first = place.feed(&RUN, text.as_bytes()).expect(0).json();
    assert_eq!(node(&first, "ran"), 2);
    // The same again is cached, and a plan says so.
    let again = place.feed(&RUN, text.as_bytes()).expect(0).json();
    assert_eq!((node(&again, "ran"), digests(&again)), (&Value::from(0), digests(&first)));
    let plan = place.feed(&["plan", "p.yaml", "--json"], text.as_bytes()).expect(0).json();
    let nodes = plan["nodes"].as_array().unwrap();
    assert!(nodes.len() == 2 && nodes.iter().all(|node| node["state"] == "cached"), "{plan}");
    // Compressed it is another file with the same documents.
    let zst = compressed(&place, &text);
    let packed = place.feed(&RUN, &zst).expect(0).json();
    assert_eq!((node(&packed, "ran"), digests(&packed)), (&Value::from(1), digests(&first)));
    let by_process = ["run", "p.yaml", "--json", "--executor", "process"];
    let other = place.feed(&by_process, lines(&["three"]).as_bytes()).expect(0).json();
    assert_ne!(digests(&other), digests(&first));
    assert_eq!(fs::read_dir(place.path().join(".sbp/work")).unwrap().count(), 0);

    let broken = place.feed(&RUN, b"{\"text\": 1}\n").expect(1);
    assert!(broken.stderr.contains("standard input:1: `text` is not a string"), "{broken:?}");
    pipeline(&place, "-", "");
    let nameless = place.feed(&RUN, text.as_bytes()).expect(1);
    assert!(nameless.stderr.contains("cannot tell the format of `standard input`"), "{nameless:?}");
}

/// `text`, compressed by another program.
fn compressed(place: &Place, text: &str) -> Vec<u8> {
    let path = place.path().join("plain.jsonl");
    fs::write(&path, text).unwrap();
    let gz = std::process::Command::new("gzip").args(["-c", "-n"]).arg(&path).output().unwrap();
    assert!(gz.status.success() && gz.stdout.starts_with(&[0x1f, 0x8b]));
    gz.stdout
}

#[test]
fn tasks_that_need_paths_say_so() {
    let place = Place::new();
    for path in ["-", "s3://books/tokenizer.json"] {
        let text = format!(
            "version: 1\nnodes:\n  t: {{task: import_tokenizer, params: {{path: '{path}'}}}}\n"
        );
        place.write("p.yaml", &text);
        let ran = place.sbp(&["plan", "p.yaml"]).expect(2);
        let wanted = format!("`{path}` has no path, by which `import_tokenizer` reads files");
        assert!(unwrapped(&ran).contains(&wanted), "{}", ran.stderr);
    }
}

fn run(place: &Place, bucket: &Bucket, key_id: &str) -> Ran {
    run_by(place, bucket, key_id, "inline")
}

fn run_by(place: &Place, bucket: &Bucket, key_id: &str, executor: &str) -> Ran {
    let mut command = place.command(&["run", "p.yaml", "--json", "--executor", executor]);
    command.env("AWS_ACCESS_KEY_ID", key_id).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command.env("AWS_ENDPOINT_URL", &bucket.endpoint).env("AWS_REGION", "us-east-1");
    Ran::of(command.output().unwrap())
}

#[test]
fn objects_are_read_as_files_are() {
    let (place, bucket) = (Place::new(), Bucket::start(KEY_ID));
    let long = "much text ".repeat(2000);
    let mut names = Vec::new();
    for i in 0..5 {
        let name = format!("part-{i}.jsonl");
        // The first is longer than what is asked for at a time.
        let n = if i == 0 { 500 } else { 2 };
        let text: Vec<String> = (0..n).map(|j| format!("{i} {j} {long}")).collect();
        let text = lines(&text.iter().map(String::as_str).collect::<Vec<_>>());
        place.write(&format!("local/{name}"), &text);
        bucket.put(&format!("a b/{name}"), text.as_bytes());
        names.push(name);
    }
    bucket.put("a b/deep/part-9.jsonl", b"not one of them");
    bucket.put("other/part-0.jsonl", b"not either");
    pipeline(&place, "local/part-*.jsonl", "");
    let local = place.sbp(&["run", "p.yaml", "--json"]).expect(0).json();

    pipeline(&place, "s3://books/a b/part-*.jsonl", "");
    let remote = run_by(&place, &bucket, KEY_ID, "process").expect(0).json();
    assert_eq!((node(&remote, "ran"), digests(&remote)), (&Value::from(1), digests(&local)));
    let asked = bucket.asked();
    let n_gets = |name: &str| {
        let get = ("GET".to_owned(), format!("a b/{name}"));
        asked.iter().filter(|asked| **asked == get).count()
    };
    assert_eq!((n_gets("part-0.jsonl"), n_gets("part-1.jsonl")), (2, 1), "{asked:?}");
    assert_eq!(asked.iter().filter(|(what, _)| what == "LIST").count(), 3, "{asked:?}");

    // A single one is asked for by its name. Nothing is read that is cached.
    assert_eq!(node(&run(&place, &bucket, KEY_ID).expect(0).json(), "ran"), 0);
    assert!(bucket.asked().iter().all(|(what, _)| what == "LIST"));
    pipeline(&place, "s3://books/a b/part-1.jsonl", "");
    run(&place, &bucket, KEY_ID).expect(0);
    let wanted = [("HEAD", "a b/part-1.jsonl"), ("GET", "a b/part-1.jsonl")];
    let wanted = wanted.map(|(what, key)| (what.to_owned(), key.to_owned()));
    assert_eq!(bucket.asked(), wanted);

    // Parquet is read from its end, piece by piece.
    let store = place.path().join(".sbp/store");
    let digest = local["outputs"]["cards"]["dataset"]["digest"].as_str().unwrap();
    let parquet = store.join(&digest[..2]).join(digest).join("data/train-00000.parquet");
    bucket.put("books.parquet", &fs::read(&parquet).unwrap());
    fs::copy(&parquet, place.path().join("books.parquet")).unwrap();
    pipeline(&place, "books.parquet", "");
    let local = place.sbp(&["run", "p.yaml", "--json"]).expect(0).json();
    pipeline(&place, "s3://books/books.parquet", "");
    assert_eq!(digests(&run(&place, &bucket, KEY_ID).expect(0).json()), digests(&local));
}

#[test]
fn replaced_objects_are_other_content() {
    let (place, bucket) = (Place::new(), Bucket::start(KEY_ID));
    pipeline(&place, "s3://books/*.jsonl", "");
    bucket.put("a.jsonl", lines(&["old"]).as_bytes());
    bucket.put("b.jsonl", lines(&["same"]).as_bytes());
    let old = run(&place, &bucket, KEY_ID).expect(0).json();
    bucket.put("a.jsonl", lines(&["new"]).as_bytes());
    let new = run(&place, &bucket, KEY_ID).expect(0).json();
    assert_ne!(digests(&old), digests(&new));

    // One that is replaced between plan and read gives a new key, not new content under the old.
    for executor in ["inline", "process"] {
        bucket.put("a.jsonl", lines(&["newer", executor]).as_bytes());
        bucket.swap("a.jsonl", lines(&["old"]).as_bytes());
        bucket.stumble(1);
        let swapped = run_by(&place, &bucket, KEY_ID, executor).expect(0).json();
        assert_eq!(digests(&swapped), digests(&old), "{executor}");
    }
    bucket.put("a.jsonl", lines(&["newer"]).as_bytes());
    let newer = run(&place, &bucket, KEY_ID).expect(0).json();
    assert_ne!(digests(&newer), digests(&old));
}

#[test]
fn refusals_are_clear_and_credentials_stay_out() {
    let (place, bucket) = (Place::new(), Bucket::start(KEY_ID));
    bucket.put("a.jsonl", lines(&["one"]).as_bytes());
    pipeline(&place, "s3://books/a.jsonl", "");
    run(&place, &bucket, KEY_ID).expect(0);
    let check = |path: &str, key_id: &str, wanted: &[&str]| {
        pipeline(&place, path, "");
        let ran = run(&place, &bucket, key_id).expect(2);
        for wanted in wanted {
            assert!(unwrapped(&ran).contains(wanted), "`{wanted}` is not in\n{}", ran.stderr);
        }
        assert!(!ran.stderr.contains(SECRET) && !ran.stderr.contains("AKIDWRONG"), "{ran:?}");
    };
    check(
        "s3://books/*.jsonl",
        "AKIDWRONG",
        &[
            "cannot use `s3://books/*.jsonl`",
            "403",
            "account and server come from AWS_ACCESS_KEY_ID",
        ],
    );
    check("s3://books/none.jsonl", KEY_ID, &["`s3://books/none.jsonl` matches no file"]);
    check("s3://books/none/*", KEY_ID, &["`s3://books/none/*` matches no file"]);
    check("s3://books", KEY_ID, &["an object is `s3://BUCKET/KEY`"]);
    let inline = format!("s3://id:{SECRET}@books/a");
    check(&inline, KEY_ID, &["`s3://…` is malformed: credentials belong into the environment"]);
    for name in ["ledger.db", "ledger.db-wal"] {
        let bytes = fs::read(place.path().join(".sbp").join(name)).unwrap_or_default();
        for secret in [SECRET, KEY_ID, "AKIDWRONG"] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{name} holds `{secret}`");
        }
    }
}
