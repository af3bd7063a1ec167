//! Records of one file, format by format, each with its place.

use std::io::Read;
use std::ops::ControlFlow;

use engine::task::{ExternalFile, Failure};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::{Format, Params, RustDocs, chosen_meta, extract};
use crate::source::lines::{self, Line};
use crate::source::{self, Compression, rows};

/// One record of a file.
pub(super) struct Record {
    /// Its number in the file, from 0.
    pub(super) number: u64,
    /// Where it is, for messages: the line, or `row 7`.
    pub(super) place: String,
    /// What it holds, or why it cannot be used.
    pub(super) content: Result<Content, Fault>,
}

/// Why a record cannot be used, and what could be done about it.
pub(super) struct Fault {
    pub(super) reason: String,
    pub(super) help: &'static str,
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self { reason, help: "mend the file, or raise `max_corrupt` to set such records aside" }
    }
}

/// What is longer than a record may be.
fn too_long(what: &str, n_bytes: u64, params: &Params) -> Fault {
    let limit = params.max_record_bytes;
    let reason = format!("{what} has {n_bytes} bytes, more than `max_record_bytes: {limit}`");
    Fault { reason, help: TOO_LONG_HELP }
}

#[derive(Default)]
pub(super) struct Content {
    pub(super) text: String,
    pub(super) id: Option<String>,
    pub(super) meta: Map<String, Value>,
}

const TOO_LONG_HELP: &str = "raise `max_record_bytes`";

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
        Format::Jsonl => read_lines(file, params, visit),
        _ => read_text(file, params, format, visit),
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

fn read_text(
    file: &ExternalFile,
    params: &Params,
    format: Format,
    visit: &mut Visit<'_>,
) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    source::open(file)?
        .take(params.max_record_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| lines::unreadable(file, line_of(&bytes, bytes.len()), &error))?;
    let corrupt = |line: u64, fault: Fault| Record {
        number: 0,
        place: line.to_string(),
        content: Err(fault),
    };
    if bytes.len() as u64 > params.max_record_bytes {
        let limit = params.max_record_bytes;
        let reason = format!("the file is longer than `max_record_bytes: {limit}`");
        return visit(corrupt(1, Fault { reason, help: TOO_LONG_HELP }));
    }
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.replace("\r\n", "\n"),
        Err(error) => {
            let line = line_of(&bytes, error.valid_up_to());
            return visit(corrupt(line, "the text is not UTF-8".to_owned().into()));
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

fn read_lines(file: &ExternalFile, params: &Params, visit: &mut Visit<'_>) -> Result<(), Failure> {
    lines::each(file, params.max_record_bytes, |number, line| {
        let content = match line {
            Line::Whole(line) => json_content(line, params),
            Line::TooLong(n_bytes) => Err(too_long("the line", n_bytes, params)),
        };
        visit(Record { number, place: (number + 1).to_string(), content })?;
        Ok(ControlFlow::Continue(()))
    })
}

fn json_content(line: &[u8], params: &Params) -> Result<Content, Fault> {
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
        Some(_) => return Err(format!("`{}` is not a string", params.text_key).into()),
        None => {
            let keys: Vec<&str> = object.keys().take(8).map(String::as_str).collect();
            let keys = keys.join("`, `");
            return Err(format!("no key `{}` among `{keys}`", params.text_key).into());
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
    let mut wanted: Vec<&String> = vec![&params.text_key];
    wanted.extend(&params.id_key);
    wanted.extend(&params.meta_keys);
    rows::each(file, Some(&wanted), |number, row| {
        let content = row_content(row, params);
        visit(Record { number, place: format!("row {}", number + 1), content })?;
        Ok(ControlFlow::Continue(()))
    })
}

fn row_content(row: &Row, params: &Params) -> Result<Content, Fault> {
    let field = |key: &str| row.get_column_iter().find(|(name, _)| *name == key).map(|(_, f)| f);
    let key = &params.text_key;
    let text = match field(key) {
        Some(Field::Str(text)) => text.clone(),
        Some(Field::Bytes(bytes)) => {
            String::from_utf8(bytes.data().to_vec()).map_err(|_| format!("`{key}` is not UTF-8"))?
        }
        Some(Field::Null) | None => return Err(format!("`{key}` is null").into()),
        Some(_) => return Err(format!("`{key}` is not text").into()),
    };
    if text.len() as u64 > params.max_record_bytes {
        return Err(too_long(&format!("`{key}`"), text.len() as u64, params));
    }
    let value = |key: &str| field(key).map(rows::json);
    let id = match &params.id_key {
        Some(key) => Some(id_text(value(key).as_ref()).ok_or_else(|| format!("no id in `{key}`"))?),
        None => None,
    };
    Ok(Content { text, id, meta: chosen_meta(params, value) })
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
