//! Rows as Parquet or JSON lines, in files of bounded size.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::task::Failure;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde::Serialize;

use super::{FILE_TEXT_BYTES, Format};

/// Text of a row group, in bytes: what is held in memory.
const GROUP_TEXT_BYTES: u64 = 32 << 20;
const ZSTD_LEVEL: i32 = 3;
const SCHEMA: &str = "message document {
    REQUIRED BYTE_ARRAY id (UTF8);
    REQUIRED BYTE_ARRAY text (UTF8);
    OPTIONAL BYTE_ARRAY seed_id (UTF8);
    OPTIONAL INT64 draw;
    OPTIONAL BYTE_ARRAY checkpoint (UTF8);
    REQUIRED BYTE_ARRAY meta (UTF8);
}";

/// A document as it is exported.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) text: String,
    pub(super) seed_id: Option<String>,
    pub(super) draw: Option<i64>,
    pub(super) checkpoint: Option<String>,
    /// A JSON object.
    pub(super) meta: String,
}

impl Row {
    /// Whether a model drew it.
    pub(super) fn is_synthetic(&self) -> bool {
        self.draw.is_some()
    }
}

enum Open {
    Parquet { writer: SerializedFileWriter<File>, group: Vec<Row>, group_bytes: u64 },
    Jsonl(zstd::Encoder<'static, BufWriter<File>>),
}

/// Writes rows into a folder.
pub(super) struct RowWriter {
    dir: PathBuf,
    format: Format,
    open: Option<(Open, PathBuf)>,
    file_bytes: u64,
    n_files: u64,
}

impl RowWriter {
    pub(super) fn new(dir: &Path, format: Format) -> Self {
        Self { dir: dir.to_owned(), format, open: None, file_bytes: 0, n_files: 0 }
    }

    /// Appends a row.
    pub(super) fn push(&mut self, row: Row) -> Result<(), Failure> {
        if self.file_bytes >= FILE_TEXT_BYTES {
            self.close()?;
        }
        let n_bytes = (row.text.len() + row.meta.len()) as u64;
        if self.open.is_none() {
            self.open = Some(self.create()?);
        }
        let (open, path) = self.open.as_mut().expect("it was opened above");
        match open {
            Open::Jsonl(encoder) => {
                let mut line = serde_json::to_vec(&row).map_err(|error| failed(path, &error))?;
                line.push(b'\n');
                encoder.write_all(&line).map_err(|error| failed_io(path, &error))?;
            }
            Open::Parquet { writer, group, group_bytes } => {
                group.push(row);
                *group_bytes += n_bytes;
                if *group_bytes >= GROUP_TEXT_BYTES {
                    write_group(writer, group).map_err(|error| failed(path, &error))?;
                    group.clear();
                    *group_bytes = 0;
                }
            }
        }
        self.file_bytes += n_bytes;
        Ok(())
    }

    /// Completes the files; returns how many there are.
    pub(super) fn finish(mut self) -> Result<u64, Failure> {
        self.close()?;
        Ok(self.n_files)
    }

    fn create(&mut self) -> Result<(Open, PathBuf), Failure> {
        let extension = match self.format {
            Format::Parquet => "parquet",
            Format::Jsonl => "jsonl.zst",
        };
        let path = self.dir.join(format!("train-{:05}.{extension}", self.n_files));
        self.n_files += 1;
        let file = File::create(&path).map_err(|error| failed_io(&path, &error))?;
        let open = match self.format {
            Format::Jsonl => {
                let mut encoder = zstd::Encoder::new(BufWriter::new(file), ZSTD_LEVEL)
                    .map_err(|error| failed_io(&path, &error))?;
                encoder.include_checksum(true).map_err(|error| failed_io(&path, &error))?;
                Open::Jsonl(encoder)
            }
            Format::Parquet => {
                let schema = parse_message_type(SCHEMA).map_err(|error| failed(&path, &error))?;
                let level =
                    ZstdLevel::try_new(ZSTD_LEVEL).map_err(|error| failed(&path, &error))?;
                // The library's own name for itself would change the bytes with its version.
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(level))
                    .set_created_by("sbp".to_owned())
                    .build();
                let writer =
                    SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))
                        .map_err(|error| failed(&path, &error))?;
                Open::Parquet { writer, group: Vec::new(), group_bytes: 0 }
            }
        };
        Ok((open, path))
    }

    fn close(&mut self) -> Result<(), Failure> {
        self.file_bytes = 0;
        let Some((open, path)) = self.open.take() else { return Ok(()) };
        let file = match open {
            Open::Jsonl(encoder) => {
                let buffered = encoder.finish().map_err(|error| failed_io(&path, &error))?;
                buffered.into_inner().map_err(|error| failed_io(&path, error.error()))?
            }
            Open::Parquet { mut writer, group, .. } => {
                if !group.is_empty() {
                    write_group(&mut writer, &group).map_err(|error| failed(&path, &error))?;
                }
                writer.into_inner().map_err(|error| failed(&path, &error))?
            }
        };
        file.sync_all().map_err(|error| failed_io(&path, &error))
    }
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::permanent(format!("cannot write `{}`: {error}", path.display()))
}

fn failed_io(path: &Path, error: &std::io::Error) -> Failure {
    Failure::io(format!("cannot write `{}`", path.display()), error)
}

fn write_group(
    writer: &mut SerializedFileWriter<File>,
    rows: &[Row],
) -> parquet::errors::Result<()> {
    let mut group = writer.next_row_group()?;
    let text = |value: fn(&Row) -> &str| rows.iter().map(move |row| Some(value(row)));
    text_column(&mut group, text(|row| &row.id), false)?;
    text_column(&mut group, text(|row| &row.text), false)?;
    text_column(&mut group, rows.iter().map(|row| row.seed_id.as_deref()), true)?;
    let draws: Vec<i64> = rows.iter().filter_map(|row| row.draw).collect();
    let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.draw.is_some())).collect();
    if let Some(mut column) = group.next_column()? {
        column.typed::<Int64Type>().write_batch(&draws, Some(&levels), None)?;
        column.close()?;
    }
    text_column(&mut group, rows.iter().map(|row| row.checkpoint.as_deref()), true)?;
    text_column(&mut group, text(|row| &row.meta), false)?;
    group.close()?;
    Ok(())
}

fn text_column<'a>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: impl Iterator<Item = Option<&'a str>>,
    is_optional: bool,
) -> parquet::errors::Result<()> {
    let values: Vec<Option<&str>> = values.collect();
    let present: Vec<ByteArray> =
        values.iter().flatten().map(|text| ByteArray::from(*text)).collect();
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    if let Some(mut column) = group.next_column()? {
        let levels = is_optional.then_some(levels.as_slice());
        column.typed::<ByteArrayType>().write_batch(&present, levels, None)?;
        column.close()?;
    }
    Ok(())
}
