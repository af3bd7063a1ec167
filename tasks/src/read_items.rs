//! Reads the items of a benchmark, as they are: a line or row is a JSON object in the dataset's own
//! schema.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::Path;

use engine::task::{
    Context, Determinism, Estimate, ExternalFile, Facts, Failure, Inputs, Outputs, ParamError,
    Port, Predicted, Task,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::corpus::write_json;
use crate::cost::{fact, figure};
use crate::format::Error;
use crate::source::lines::{self, Line};
use crate::source::rows;

/// The file of the items in the artifact's folder.
pub(crate) const FILE: &str = "items.jsonl.zst";
/// A longer line is no item of a benchmark.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// See the module.
pub struct ReadItems;

/// Params of `read_items`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Glob patterns of the files: JSON lines, which may be compressed (`.gz`, `.zst`, `.zstd`), or
    /// Parquet. Files are read in the order of their paths. As in `read_corpus`, they may lie in a
    /// bucket (`s3://…`) or be piped in (`-`).
    pub paths: Vec<String>,
    /// Keeps the first items only.
    #[serde(default)]
    pub max_items: Option<u64>,
}

impl Task for ReadItems {
    const KIND: &'static str = "read_items";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "reads the items of a benchmark from JSON lines or Parquet";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[];
    const OUTPUTS: &'static [Port] = &[Port::one("items", "items", "the items, as they are")];
    const UNKEYED: &'static [&'static str] = &["paths"];
    const STREAMS: bool = true;
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        match (params.paths.is_empty(), params.max_items) {
            (true, _) => Err(ParamError::new("paths", "it is empty")),
            (_, Some(0)) => Err(ParamError::new("max_items", "0 items are none")),
            _ => Ok(()),
        }
    }

    fn external(params: &Params) -> Vec<String> {
        params.paths.clone()
    }

    fn cost(params: &Params, _: &Predicted) -> Estimate {
        let items = params.max_items.map(|n| n as f64);
        Estimate::unknown()
            .figure(figure::DOCUMENTS, items)
            .output("items", Facts::default().with(fact::DOCUMENTS, items))
    }

    fn run(ctx: &mut Context, params: &Params, _: &Inputs) -> Result<Outputs, Failure> {
        let dir = ctx.out("items")?;
        let mut encoder = zstd::Encoder::new(File::create(dir.join(FILE))?, 3)?;
        let limit = params.max_items.unwrap_or(u64::MAX);
        let mut n_items = 0;
        for file in ctx.external() {
            ctx.check_cancelled()?;
            read(file, &mut |item| {
                if n_items == limit {
                    return Ok(ControlFlow::Break(()));
                }
                n_items += 1;
                serde_json::to_writer(&mut encoder, &item).map_err(std::io::Error::from)?;
                encoder.write_all(b"\n")?;
                Ok(ControlFlow::Continue(()))
            })?;
        }
        encoder.finish()?.sync_all()?;
        if n_items == 0 {
            return Err(Failure::permanent("the files hold no items"));
        }
        write_json(
            &dir.join("items.json"),
            &serde_json::json!({"version": 1, "n_items": n_items}),
        )?;
        Ok(Outputs::default().metric("n_items", n_items as f64))
    }
}

/// Reads the `items` artifact in `dir`.
pub(crate) fn open(dir: &Path) -> Result<Vec<Value>, Failure> {
    let path = dir.join(FILE);
    let opened = File::open(&path).and_then(zstd::Decoder::new);
    let decoder = opened.map_err(|error| Error::io("open", &path, error))?;
    let mut items = Vec::new();
    for line in BufReader::new(decoder).lines() {
        let line = line.map_err(|error| Error::damaged(&path, error.to_string()))?;
        let item = serde_json::from_str(&line);
        items.push(item.map_err(|error| Error::damaged(&path, error.to_string()))?);
    }
    Ok(items)
}

/// Visits the items of a file until `visit` breaks off.
fn read(
    file: &ExternalFile,
    visit: &mut dyn FnMut(Map<String, Value>) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    let name = file.relative.to_ascii_lowercase();
    if matches!(name.rsplit('.').next(), Some("parquet" | "pq")) {
        return rows::each(file, None, |_, row| {
            visit(
                row.get_column_iter()
                    .map(|(name, cell)| (name.clone(), rows::json(cell)))
                    .collect(),
            )
        });
    }
    lines::each(file, LINE_BYTES_MAX, |number, line| {
        let wrong = |what: String| {
            Failure::permanent(format!("{}:{}: {what}", file.path.display(), number + 1))
        };
        match line {
            Line::Whole(line) => visit(
                serde_json::from_slice(line)
                    .map_err(|error| wrong(format!("not a JSON object: {error}")))?,
            ),
            Line::TooLong(n_bytes) => {
                Err(wrong(format!("the line has {n_bytes} bytes, more than {LINE_BYTES_MAX}")))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use engine::task::testbed::Bench;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;

    use super::*;

    fn run(dir: &Path, files: &[&str], params: &Value) -> Result<Vec<Value>, Failure> {
        let bench =
            files.iter().fold(Bench::new(dir), |bench, name| bench.external(&dir.join(name), name));
        bench.run::<ReadItems>(params)?;
        open(&bench.out("items"))
    }

    /// A list of texts and a number, as the datasets' own files have them.
    fn write_parquet(path: &Path) {
        let schema = "message m { required binary question (UTF8); required int64 answer;
            required group choices (LIST) { repeated group list { required binary element (UTF8); } } }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let texts =
            |texts: &[&str]| texts.iter().map(|&text| ByteArray::from(text)).collect::<Vec<_>>();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts(&["q1", "q2"]), None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1, 0], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let (definition, repetition) = ([1, 1, 1, 1], [0, 1, 0, 1]);
        column
            .typed::<ByteArrayType>()
            .write_batch(&texts(&["a", "b", "c", "d"]), Some(&definition), Some(&repetition))
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn both_formats_give_the_same_items() {
        let dir = tempfile::tempdir().unwrap();
        write_parquet(&dir.path().join("a.parquet"));
        let lines = "{\"question\":\"q1\",\"answer\":1,\"choices\":[\"a\",\"b\"]}\n\n\
                     {\"question\":\"q2\",\"answer\":0,\"choices\":[\"c\",\"d\"]}\n";
        fs::write(dir.path().join("a.jsonl"), lines).unwrap();
        fs::write(dir.path().join("b.jsonl.zst"), zstd::encode_all(lines.as_bytes(), 1).unwrap())
            .unwrap();
        let params = json!({"paths": ["a"]});
        let expected: Vec<Value> = lines
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for name in ["a.parquet", "a.jsonl", "b.jsonl.zst"] {
            assert_eq!(run(dir.path(), &[name], &params).unwrap(), expected, "{name}");
        }
        let three = json!({"paths": ["a"], "max_items": 3});
        let found = run(dir.path(), &["a.jsonl", "b.jsonl.zst"], &three).unwrap();
        assert_eq!(found[..2], expected[..]);
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn wrong_files_are_told_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.jsonl"), "{}\n[1]\n").unwrap();
        fs::write(dir.path().join("b.jsonl"), "\n").unwrap();
        let message =
            |name: &str| run(dir.path(), &[name], &json!({"paths": ["a"]})).unwrap_err().message;
        assert!(
            message("a.jsonl").contains("a.jsonl:2: not a JSON object"),
            "{}",
            message("a.jsonl")
        );
        assert!(message("b.jsonl").contains("no items"));
    }
}
