//! The rows of a Parquet file, one at a time.

use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::task::{ExternalFile, Failure};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Value;

use super::Chunks;

/// Visits the rows of a file with their numbers, from 0, until `visit` breaks off. With `wanted`, only
/// those columns are read.
///
/// # Errors
/// When the file is damaged or lacks a column, with its name and the row; or `visit`'s.
pub(crate) fn each(
    file: &ExternalFile,
    wanted: Option<&[&String]>,
    mut visit: impl FnMut(u64, &Row) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    let chunks = Chunks::open(file)?;
    let failed = |what: &str, error| failed(file, what, error);
    let reader = guarded(|| SerializedFileReader::new(chunks))
        .map_err(|error| failed("not a Parquet file", error))?;
    let schema = reader.metadata().file_metadata().schema();
    let projection = wanted.map(|wanted| project(file, schema, wanted)).transpose()?;
    let mut rows = guarded(|| reader.get_row_iter(projection))
        .map_err(|error| failed("cannot read the columns", error))?;
    for number in 0.. {
        let row = guarded(|| rows.next().transpose())
            .map_err(|error| failed(&format!("row {}", number + 1), error))?;
        let Some(row) = row else { break };
        if visit(number, &row)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The schema with the columns that are wanted only.
fn project(file: &ExternalFile, schema: &Type, wanted: &[&String]) -> Result<Type, Failure> {
    let fields = schema.get_fields();
    let is = |name: &String, field: &Type| name == field.name();
    if let Some(missing) = wanted.iter().find(|name| !fields.iter().any(|field| is(name, field))) {
        let columns: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        let (path, columns) = (file.path.display(), columns.join("`, `"));
        return Err(Failure::permanent(format!("{path}: no column `{missing}` among `{columns}`"))
            .help("set `text_key`, `id_key` and `meta_keys` to columns of the file"));
    }
    let kept = fields.iter().filter(|field| wanted.iter().any(|name| is(name, field)));
    Type::group_type_builder(schema.name())
        .with_fields(kept.cloned().collect())
        .build()
        .map_err(|error| failed(file, "cannot read the schema", error))
}

fn failed(file: &ExternalFile, what: &str, error: ParquetError) -> Failure {
    let path = file.path.display();
    match error {
        // What a server does may pass.
        ParquetError::External(source) if source.is::<io::Error>() => {
            let source = source.downcast::<io::Error>().expect("it was looked at");
            Failure::io(format!("{path}: {what}"), &source)
        }
        error => Failure::permanent(format!("{path}: {what}: {error}")),
    }
}

/// Calls the library, which panics on some damaged files.
fn guarded<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(ParquetError::General("it is damaged".to_owned())))
}

/// A cell as JSON, nested ones too; kinds that JSON lacks become their text.
pub(crate) fn json(field: &Field) -> Value {
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
        Field::Group(row) => Value::Object(
            row.get_column_iter().map(|(name, field)| (name.clone(), json(field))).collect(),
        ),
        Field::ListInternal(list) => list.elements().iter().map(json).collect(),
        other => other.to_string().into(),
    }
}
