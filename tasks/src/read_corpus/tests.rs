use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use engine::task::Report;
use engine::task::testbed::Bench;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;

use super::*;
use crate::corpus::Corpus;

struct Files {
    dir: tempfile::TempDir,
    bench: Bench,
}

impl Files {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::new(dir.path());
        fs::create_dir(dir.path().join("in")).unwrap();
        for (name, bytes) in files {
            let path = dir.path().join("in").join(name);
            fs::write(&path, bytes).unwrap();
            bench = bench.external(&path, name);
        }
        Self { dir, bench }
    }

    fn run(&self, mut params: Value) -> Result<Outputs, Failure> {
        params["paths"] = json!(["in/*"]);
        self.bench.run::<ReadCorpus>(&params)
    }

    fn documents(&self, params: Value) -> Vec<Document> {
        self.run(params).unwrap();
        let corpus = Corpus::open(&self.bench.out("corpus")).unwrap();
        corpus.documents().map(Result::unwrap).collect()
    }

    fn texts(&self, params: Value) -> Vec<String> {
        self.documents(params).into_iter().map(|document| document.text).collect()
    }

    fn error(&self, params: Value) -> String {
        self.run(params).unwrap_err().message
    }
}

fn write_parquet(path: &Path, texts: &[&str]) {
    let schema = "message m { REQUIRED BYTE_ARRAY text (UTF8); REQUIRED BYTE_ARRAY key (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for suffix in ["", "-key"] {
        let values: Vec<ByteArray> =
            texts.iter().map(|text| format!("{text}{suffix}").as_str().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Progress is in bytes of the files as they lie there, also in the middle of one.
#[test]
fn progress_goes_on_within_a_file() {
    let noise = Philox::new(1, "noise");
    let line = |i| format!("{{\"text\": \"document {i} {:x}\"}}\n", noise.u64(i));
    let lines: String = (0..60_000).map(line).collect();
    let zst = zstd::encode_all(lines.as_bytes(), 1).unwrap();
    let files = Files::new(&[("a.jsonl.zst", &zst)]);
    files.run(json!({})).unwrap();
    let reports = files.bench.sink.reports().into_iter();
    let done: Vec<u64> = reports
        .filter_map(|report| match report {
            Report::Progress { done, total, .. } => {
                assert_eq!(total, zst.len() as u64);
                Some(done)
            }
            _ => None,
        })
        .collect();
    let within = done.iter().filter(|&&done| 0 < done && done < zst.len() as u64);
    assert!(within.count() > 2 && done.is_sorted(), "{done:?}");
    assert_eq!(done.last(), Some(&(zst.len() as u64)));
}

/// The same records as JSON lines, compressed or not, and as Parquet give the same texts.
#[test]
fn formats_agree() {
    let lines = "{\"text\": \"one\", \"n\": 1}\n\n{\"text\": \"two\\nlines\", \"n\": 2}\n";
    let zst = zstd::encode_all(lines.as_bytes(), 1).unwrap();
    let expected = ["one", "two\nlines"];
    let jsonl = Files::new(&[("a.jsonl", lines.as_bytes())]);
    assert_eq!(jsonl.texts(json!({})), expected);
    assert_eq!(Files::new(&[("a.jsonl.zstd", &zst)]).texts(json!({})), expected);
    assert_eq!(Files::new(&[("a.jsonl.gz", &gzip(lines.as_bytes()))]).texts(json!({})), expected);
    let mut parquet = Files::new(&[]);
    let path = parquet.dir.path().join("in/a.parquet");
    write_parquet(&path, &expected);
    parquet.bench = parquet.bench.external(&path, "a.parquet");
    assert_eq!(parquet.texts(json!({})), expected);
    let by_key = parquet.documents(json!({"id_key": "key", "meta_keys": ["key"]}));
    assert_eq!(by_key[0].meta["key"], "one-key");
    assert_eq!(by_key[0].id, document_id("one-key", 0));
    let missing = parquet.error(json!({"text_key": "body"}));
    assert!(missing.contains("a.parquet: no column `body` among `text`, `key`"), "{missing}");
    let long = parquet.run(json!({"max_record_bytes": 8})).unwrap_err();
    assert!(long.message.contains("a.parquet:row 2: `text` has 9 bytes"), "{long}");
    assert_eq!(long.help.unwrap(), "raise `max_record_bytes`");
    let kept = jsonl.documents(json!({"meta_keys": ["n"]}));
    assert_eq!(kept[1].meta["n"], 2);
    assert_eq!(kept[1].id, document_id("a.jsonl", 2));
}

#[test]
fn trees_of_text_are_read() {
    let files = Files::new(&[
        ("a.txt", b"plain\r\ntext\n"),
        ("b.md", b"<!-- x --># Head\n"),
        ("c.rs", b"//! Crate.\nfn f() {}\n/// Item.\n"),
        ("d.txt", b"\n \n"),
        ("e.txt", b""),
    ]);
    let outputs = files.run(json!({})).unwrap();
    assert_eq!(outputs.metrics["n_empty"] as u64, 2);
    assert_eq!(files.texts(json!({})), ["plain\ntext", "# Head", "Crate.\n\nItem."]);
    let items = files.documents(json!({"rust_docs": "item"}));
    assert_eq!(items.len(), 4);
    assert_eq!(items[3].meta["source"], "c.rs");
    let unknown = Files::new(&[("a.bin", b"x")]).error(json!({}));
    assert!(unknown.contains("cannot tell the format of") && unknown.contains("a.bin"));
}

#[test]
fn long_texts_are_cut_and_unfit_ones_left_out() {
    let files =
        Files::new(&[("a.txt", b"first part\n\nsecond part"), ("b.txt", b"1 2 3 4 5 6 7 8")]);
    let parts = files.documents(json!({"part_chars": 15, "min_letter_share": 0.7}));
    let texts: Vec<&str> = parts.iter().map(|document| document.text.as_str()).collect();
    assert_eq!(texts, ["first part", "second part"]);
    assert_eq!(parts[1].meta["part"], 1);
    assert_ne!(parts[0].id, parts[1].id);
    let none = files.error(json!({"min_chars": 100}));
    assert!(
        none.contains("no document was found in 2 files") && none.contains("2 too short"),
        "{none}"
    );
}

#[test]
fn a_draw_is_uniform_nested_and_in_order() {
    let lines: Vec<String> = (0..100).map(|i| format!("{{\"text\": \"{i}\"}}")).collect();
    let lines = lines.join("\n");
    let files = Files::new(&[("a.jsonl", lines.as_bytes())]);
    let draw = |n: u64, seed: u64| -> Vec<u64> {
        let texts = files.texts(json!({"max_documents": n, "seed": seed}));
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let (ten, fifty) = (draw(10, 1), draw(50, 1));
    assert!(ten.is_sorted() && fifty.is_sorted());
    assert!(ten.iter().all(|i| fifty.contains(i)));
    assert_eq!((ten.len(), fifty.len(), draw(200, 1).len()), (10, 50, 100));
    assert_ne!(draw(10, 2), ten);
}

#[test]
fn corrupt_records_are_located_and_set_aside() {
    let lines = b"{\"text\": \"good\"}\n{\"text\": \n{\"body\": \"x\"}\n{\"text\": 7}\n\xff\n\
        {\"text\": \"0123456789012345678901234567890123456789\"}\n{\"text\": \"last\"}\n";
    let files = Files::new(&[("a.jsonl", lines)]);
    let first = files.error(json!({}));
    assert!(first.contains("a.jsonl:2: column 8: not a JSON object"), "{first}");
    assert!(first.contains("corrupt record 1, past `max_corrupt: 0`"), "{first}");
    let third = files.error(json!({"max_corrupt": 2, "max_record_bytes": 30}));
    assert!(third.contains("a.jsonl:4: `text` is not a string"), "{third}");
    let long = files.run(json!({"max_corrupt": 4, "max_record_bytes": 30})).unwrap_err();
    assert!(long.message.contains("a.jsonl:6: the line has"), "{long}");
    assert_eq!(long.help.unwrap(), "raise `max_record_bytes`");
    let texts = files.texts(json!({"max_corrupt": 5, "max_record_bytes": 30}));
    assert_eq!(texts, ["good", "last"]);
    let quarantine =
        fs::read_to_string(files.bench.out("corpus").join("quarantine.jsonl")).unwrap();
    let reasons: Vec<Value> =
        quarantine.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reasons.len(), 5);
    assert_eq!(reasons[1]["reason"], "no key `text` among `body`");
    assert_eq!(reasons[3]["reason"], "the line is not UTF-8");
    assert_eq!(reasons[4]["place"], "6");
    assert!(reasons[4]["reason"].as_str().unwrap().contains("more than `max_record_bytes: 30`"));
}

/// Files without a record are no error beside others, but they are counted and named.
#[test]
fn empty_files_are_told() {
    let (gz, zst) = (gzip(b""), zstd::encode_all(&b""[..], 1).unwrap());
    let empty: [(&str, &[u8]); 4] =
        [("b.jsonl", b""), ("c.jsonl.gz", &gz), ("d.jsonl.zst", &zst), ("e.jsonl", b"\n\n")];
    let mut all: Vec<(&str, &[u8])> = vec![("a.jsonl", b"{\"text\": \"x\"}")];
    all.extend(empty);
    let files = Files::new(&all);
    let outputs = files.run(json!({})).unwrap();
    let counts = ["n_documents", "n_empty_files"].map(|name| outputs.metrics[name] as u64);
    assert_eq!(counts, [1, 4]);
    let warned = files.bench.sink.reports().into_iter().any(|report| {
        matches!(report, Report::Log { text, .. } if text.contains("4 files hold no record") && text.contains("in/b.jsonl"))
    });
    assert!(warned);
    let none = Files::new(&empty).error(json!({}));
    assert!(
        none.contains("no document was found in 4 files") && none.contains("4 empty files"),
        "{none}"
    );
    let parquet = Files::new(&[("a.parquet", b"")]).error(json!({}));
    assert!(parquet.contains("a.parquet: not a Parquet file"), "{parquet}");
}

#[test]
fn wrong_files_are_clear_errors() {
    let latin = Files::new(&[("a.txt", b"first\nna\xefve")]);
    assert!(latin.error(json!({})).contains("a.txt:2: the text is not UTF-8"));
    let long = Files::new(&[("a.txt", &[b'x'; 5000])]);
    let long = long.run(json!({"max_record_bytes": 1000})).unwrap_err();
    let message = "a.txt:1: the file is longer than `max_record_bytes: 1000`";
    assert!(long.message.contains(message), "{long}");
    assert_eq!(long.help.unwrap(), "raise `max_record_bytes`");
    let zst = zstd::encode_all(&b"{\"text\": \"abc\"}\n".repeat(50_000)[..], 1).unwrap();
    let cut = Files::new(&[("a.jsonl.zst", &zst[..zst.len() - 5])]);
    let cut = cut.error(json!({}));
    assert!(cut.contains("a.jsonl.zst:") && cut.contains("cannot read on"), "{cut}");
    let gz = gzip(&b"{\"text\": \"abc\"}\n".repeat(50_000));
    let cut = Files::new(&[("a.jsonl.gz", &gz[..gz.len() - 9])]).error(json!({"max_corrupt": 9}));
    assert!(cut.contains("a.jsonl.gz:50001: cannot read on"), "{cut}");
    let twice = b"{\"text\": \"a\", \"id\": 1}\n{\"text\": \"b\", \"id\": 1}\n";
    let twice = Files::new(&[("a.jsonl", twice)]).error(json!({"id_key": "id"}));
    assert!(twice.contains("a.jsonl:2: id `1` was seen before"), "{twice}");
    let empty = Files::new(&[]).error(json!({}));
    assert!(empty.contains("no file matches `in/*`"), "{empty}");
    let parquet = Files::new(&[("a.parquet", b"no")]).error(json!({}));
    assert!(parquet.contains("a.parquet: not a Parquet file"), "{parquet}");
    let mut same = Files::new(&[("a.txt", b"x")]);
    same.bench.external.push(same.bench.external[0].clone());
    assert!(same.error(json!({})).contains("are both called `a.txt`"));
    assert!(same.error(json!({"part_chars": 0})).contains("0 keeps nothing"));
    assert!(same.error(json!({"min_chars": 5, "max_chars": 4})).contains("below `min_chars: 5`"));
}

/// Damage to a file: where, and what comes there.
fn damaged(bytes: &[u8], damage: &[(u16, u8)], kept: u16) -> Vec<u8> {
    let mut bytes = bytes.to_owned();
    for &(at, byte) in damage {
        let at = usize::from(at) * bytes.len() / (1 << 16);
        bytes[at] = byte;
    }
    bytes.truncate(bytes.len() * usize::from(kept) / (1 << 16) + 1);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// Whatever a file holds, the end is a corpus or a message that names the file.
    #[test]
    fn no_file_makes_the_reader_panic(
        damage in prop::collection::vec((any::<u16>(), any::<u8>()), 0..6),
        kept in prop_oneof![3 => Just(u16::MAX), 1 => any::<u16>()],
    ) {
        let lines = b"{\"text\": \"caf\xc3\xa9 \\ud83e\\udd80\", \"id\": 1}\n{\"text\": \"b\"}\n".repeat(20);
        let dir = tempfile::tempdir().unwrap();
        write_parquet(&dir.path().join("x"), &["one", "two two", "three"]);
        let parquet = fs::read(dir.path().join("x")).unwrap();
        let (gz, zst) = (gzip(&lines), zstd::encode_all(&lines[..], 1).unwrap());
        let sound = [("a.jsonl", &lines), ("a.jsonl.gz", &gz), ("a.jsonl.zst", &zst), ("a.parquet", &parquet), ("a.md", &lines)];
        for (name, bytes) in sound {
            let files = Files::new(&[(name, &damaged(bytes, &damage, kept))]);
            match files.run(json!({"max_corrupt": 1000, "max_record_bytes": 1 << 20})) {
                Ok(_) => {
                    let corpus = Corpus::open(&files.bench.out("corpus")).unwrap();
                    prop_assert!(corpus.documents().all(|document| document.is_ok()));
                }
                Err(failure) => prop_assert!(
                    failure.message.contains(name) || failure.message.contains("no document was found"),
                    "{}", failure.message
                ),
            }
        }
    }
}
