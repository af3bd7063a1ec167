//! Records of one file, format by format, each with its place.

use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::task::{ExternalFile, Failure};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::{Format, Params, RustDocs, chosen_meta, extract};
use crate::source::{self, Chunks, Compression, read_line};

/// One record of a file.
pub(super) struct Record {
    /// Its number in the file, from 0.
    pub(super) number: u64,
    /// Where it is, for messages: the line, or `row 7`.
    pub(super) place: String,
    /// What it holds, or why it cannot be used.
    pub(super) content: Result<Content, String>,
}

#[derive(Default)]
pub(super) struct Content {
    pub(super) text: String,
    pub(super) id: Option<String>,
    pub(super) meta: Map<String, Value>,
}

type Visit<'a> = dyn FnMut(Record) -> Result<(), Failure> + 'a;

/// Visits every record of `file`.
pub(super) fn read(
    file: &ExternalFile,
    params: &Params,
    visit: &mut Visit<'_>,
) -> Result<(), Failure> {
    let format = detect(&file.relative, params.format).ok_or_else(|| {
        Failure::permanent(format!(
            "cannot tell the format of `{}` from its name",
            file.path.display()
        ))
        .help("set `format`, or leave the file out of `paths`")
    })?;
    match format {
        Format::Parquet => read_parquet(file, params, visit),
        Format::Jsonl => read_lines(file, params, &mut source::open(file)?, visit),
        _ => read_text(file, params, format, &mut source::open(file)?, visit),
    }
}

/// The format of a file called `name`; `None` when the name does not tell.
fn detect(name: &str, format: Format) -> Option<Format> {
    if format != Format::Auto {
        return Some(format);
    }
    let name = name.to_ascii_lowercase();
    let (_, stem) = Compression::of(&name);
    let base = stem.rsplit('/').next().unwrap_or(stem);
    Some(match base.rsplit_once('.').map(|(_, extension)| extension) {
        Some("txt" | "text") => Format::Text,
        Some("md" | "markdown") => Format::Markdown,
        Some("rs") => Format::RustDoc,
        Some("jsonl" | "ndjson" | "json") => Format::Jsonl,
        Some("parquet" | "pq") => Format::Parquet,
        None if base == "readme" => Format::Text,
        _ => return None,
    })
}

/// A file that cannot be read on is no corrupt record: what follows would be lost.
fn unreadable(file: &ExternalFile, line: u64, error: &io::Error) -> Failure {
    Failure::io(format!("{}:{line}: cannot read on", file.path.display()), error)
}

fn read_text(
    file: &ExternalFile,
    params: &Params,
    format: Format,
    reader: &mut dyn BufRead,
    visit: &mut Visit<'_>,
) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    reader
        .take(params.max_record_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(file, line_of(&bytes, bytes.len()), &error))?;
    let corrupt = |line: u64, reason: String| Record {
        number: 0,
        place: line.to_string(),
        content: Err(reason),
    };
    if bytes.len() as u64 > params.max_record_bytes {
        let limit = params.max_record_bytes;
        return visit(corrupt(1, format!("the file is longer than `max_record_bytes: {limit}`")));
    }
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.replace("\r\n", "\n"),
        Err(error) => {
            let line = line_of(&bytes, error.valid_up_to());
            return visit(corrupt(line, "the text is not UTF-8".to_owned()));
        }
    };
    let mut visit_at = |number: u64, line: u64, text: String| {
        let content = Ok(Content { text, ..Content::default() });
        visit(Record { number, place: line.to_string(), content })
    };
    match format {
        Format::Markdown => visit_at(0, 1, extract::markdown(&text)),
        Format::RustDoc => {
            let blocks = extract::rust_docs(&text);
            if params.rust_docs == RustDocs::Item {
                return (0..)
                    .zip(blocks)
                    .try_for_each(|(i, block)| visit_at(i, block.line, block.text));
            }
            let texts: Vec<String> = blocks.into_iter().map(|block| block.text).collect();
            visit_at(0, 1, texts.join("\n\n"))
        }
        _ => visit_at(0, 1, text),
    }
}

/// The line, from 1, of the byte at `offset`.
fn line_of(bytes: &[u8], offset: usize) -> u64 {
    bytes[..offset].split(|&byte| byte == b'\n').count() as u64
}

fn read_lines(
    file: &ExternalFile,
    params: &Params,
    reader: &mut dyn BufRead,
    visit: &mut Visit<'_>,
) -> Result<(), Failure> {
    let mut line = Vec::new();
    for number in 0.. {
        let n_bytes = read_line(reader, params.max_record_bytes, &mut line)
            .map_err(|error| unreadable(file, number + 1, &error))?;
        if n_bytes == 0 {
            return Ok(());
        }
        let content = if n_bytes > params.max_record_bytes {
            let limit = params.max_record_bytes;
            Err(format!("the line has {n_bytes} bytes, more than `max_record_bytes: {limit}`"))
        } else if line.trim_ascii().is_empty() {
            continue;
        } else {
            json_content(&line, params)
        };
        visit(Record { number, place: (number + 1).to_string(), content })?;
    }
    Ok(())
}

fn json_content(line: &[u8], params: &Params) -> Result<Content, String> {
    let line = std::str::from_utf8(line.trim_ascii_end())
        .map_err(|_| "the line is not UTF-8".to_owned())?;
    let mut object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
        // The position is within the line, whose number is already part of the place.
        let message = error.to_string();
        let message = message.split(" at line").next().unwrap_or(&message).to_owned();
        format!("column {}: not a JSON object: {message}", error.column())
    })?;
    let text = match object.remove(&params.text_key) {
        Some(Value::String(text)) => text,
        Some(_) => return Err(format!("`{}` is not a string", params.text_key)),
        None => {
            let keys: Vec<&str> = object.keys().take(8).map(String::as_str).collect();
            return Err(format!("no key `{}` among `{}`", params.text_key, keys.join("`, `")));
        }
    };
    let id = match &params.id_key {
        Some(key) => Some(id_text(object.get(key)).ok_or_else(|| format!("no id in `{key}`"))?),
        None => None,
    };
    Ok(Content { text, id, meta: chosen_meta(params, |key| object.get(key).cloned()) })
}

fn id_text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn read_parquet(
    file: &ExternalFile,
    params: &Params,
    visit: &mut Visit<'_>,
) -> Result<(), Failure> {
    let path = file.path.display();
    let failed = |what: &str, error: ParquetError| match error {
        // What a server does may pass.
        ParquetError::External(source) if source.is::<io::Error>() => {
            let source = source.downcast::<io::Error>().expect("it was looked at");
            Failure::io(format!("{path}: {what}"), &source)
        }
        error => Failure::permanent(format!("{path}: {what}: {error}")),
    };
    let chunks = Chunks::open(file)?;
    let reader = guarded(|| SerializedFileReader::new(chunks))
        .map_err(|error| failed("not a Parquet file", error))?;
    let schema = reader.metadata().file_metadata().schema();
    let columns: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
    let mut wanted: Vec<&String> = vec![&params.text_key];
    wanted.extend(&params.id_key);
    wanted.extend(&params.meta_keys);
    if let Some(missing) = wanted.iter().find(|name| !columns.contains(&name.as_str())) {
        let columns = columns.join("`, `");
        return Err(Failure::permanent(format!("{path}: no column `{missing}` among `{columns}`"))
            .help("set `text_key`, `id_key` and `meta_keys` to columns of the file"));
    }
    let fields = schema.get_fields().iter();
    let fields = fields.filter(|field| wanted.iter().any(|name| *name == field.name()));
    let projection = Type::group_type_builder(schema.name())
        .with_fields(fields.cloned().collect())
        .build()
        .map_err(|error| failed("cannot read the schema", error))?;
    let mut rows = guarded(|| reader.get_row_iter(Some(projection)))
        .map_err(|error| failed("cannot read the columns", error))?;
    for number in 0.. {
        let row = guarded(|| rows.next().transpose())
            .map_err(|error| failed(&format!("row {}", number + 1), error))?;
        let Some(row) = row else { break };
        let content = row_content(&row, params);
        visit(Record { number, place: format!("row {}", number + 1), content })?;
    }
    Ok(())
}

/// Calls the library, which panics on some damaged files.
fn guarded<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(ParquetError::General("it is damaged".to_owned())))
}

fn row_content(row: &Row, params: &Params) -> Result<Content, String> {
    let field = |key: &str| row.get_column_iter().find(|(name, _)| *name == key).map(|(_, f)| f);
    let key = &params.text_key;
    let text = match field(key) {
        Some(Field::Str(text)) => text.clone(),
        Some(Field::Bytes(bytes)) => {
            String::from_utf8(bytes.data().to_vec()).map_err(|_| format!("`{key}` is not UTF-8"))?
        }
        Some(Field::Null) | None => return Err(format!("`{key}` is null")),
        Some(_) => return Err(format!("`{key}` is not text")),
    };
    if text.len() as u64 > params.max_record_bytes {
        let (n_bytes, limit) = (text.len(), params.max_record_bytes);
        return Err(format!("`{key}` has {n_bytes} bytes, more than `max_record_bytes: {limit}`"));
    }
    let value = |key: &str| field(key).map(json_value);
    let id = match &params.id_key {
        Some(key) => Some(id_text(value(key).as_ref()).ok_or_else(|| format!("no id in `{key}`"))?),
        None => None,
    };
    Ok(Content { text, id, meta: chosen_meta(params, value) })
}

/// A cell as JSON; kinds that JSON lacks become their text.
fn json_value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_formats() {
        let check = |name: &str, expected: Option<Format>| {
            assert_eq!(detect(name, Format::Auto), expected, "{name}");
        };
        check("a/README", Some(Format::Text));
        check("a/b.JSONL.ZST", Some(Format::Jsonl));
        check("a/b.jsonl.zstd", Some(Format::Jsonl));
        check("b.txt.gz", Some(Format::Text));
        check("src/lib.rs", Some(Format::RustDoc));
        check("a.parquet", Some(Format::Parquet));
        check("a.d/file", None);
        check("a.bin", None);
        assert_eq!(detect("a.bin", Format::Text), Some(Format::Text));
    }
}
