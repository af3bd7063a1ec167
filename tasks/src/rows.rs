//! Rows of an artifact: one JSON value a line, compressed, in `*.jsonl.zst`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::format::Error;

const ZSTD_LEVEL: i32 = 3;

/// Writes rows, durably.
///
/// # Errors
/// When the file cannot be written.
pub fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result<(), Error> {
    save(path, rows).map_err(|error| Error::io("write", path, error))
}

/// The same with the system's own error, for a checkpoint.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn save<T: Serialize>(path: &Path, rows: &[T]) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(File::create(path)?, ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    for row in rows {
        serde_json::to_writer(&mut encoder, row)?;
        encoder.write_all(b"\n")?;
    }
    encoder.finish()?.sync_all()
}

/// Reads rows back.
///
/// # Errors
/// When the file cannot be read or a line is no row.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    let open = || zstd::Decoder::new(File::open(path)?);
    let decoder = open().map_err(|error| Error::io("open", path, error))?;
    let lines = BufReader::new(decoder).lines().enumerate();
    lines
        .map(|(i, line)| {
            let line = line.map_err(|error| Error::damaged(path, error.to_string()))?;
            serde_json::from_str(&line)
                .map_err(|error| Error::damaged(path, format!("line {}: {error}", i + 1)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_damage_is_located() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl.zst");
        write(&path, &[(1, "a"), (2, "b")]).unwrap();
        let rows: Vec<(u32, String)> = read(&path).unwrap();
        assert_eq!(rows, [(1, "a".to_owned()), (2, "b".to_owned())]);
        let wrong = read::<u32>(&path).unwrap_err().to_string();
        assert!(wrong.contains("line 1: "), "{wrong}");
    }
}
