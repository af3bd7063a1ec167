//! The lines of a file, one at a time in bounded memory.

use std::io::{self, BufRead};
use std::ops::ControlFlow;

use engine::task::{ExternalFile, Failure};

/// One line that is not blank.
pub(crate) enum Line<'a> {
    /// What it holds.
    Whole(&'a [u8]),
    /// It has this many bytes, more than were allowed.
    TooLong(u64),
}

/// Visits the lines of a file with their numbers, from 0, until `visit` breaks off.
///
/// # Errors
/// When the file cannot be read on, with the line; or `visit`'s.
pub(crate) fn each(
    file: &ExternalFile,
    bytes_max: u64,
    mut visit: impl FnMut(u64, Line<'_>) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    let mut reader = super::open(file)?;
    let mut line = Vec::new();
    for number in 0.. {
        let n_bytes = read(&mut reader, bytes_max, &mut line)
            .map_err(|error| unreadable(file, number + 1, &error))?;
        let found = match n_bytes {
            0 => break,
            _ if n_bytes > bytes_max => Line::TooLong(n_bytes),
            _ if line.trim_ascii().is_empty() => continue,
            _ => Line::Whole(&line),
        };
        if visit(number, found)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// A file that cannot be read on is no corrupt record: what follows would be lost.
pub(crate) fn unreadable(file: &ExternalFile, line: u64, error: &io::Error) -> Failure {
    Failure::io(format!("{}:{line}: cannot read on", file.path.display()), error)
}

/// Reads a line and tells its length in bytes, line break included; 0 at the end of the file. Of a
/// line longer than `limit`, only the start is kept.
fn read(reader: &mut dyn BufRead, limit: u64, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let mut n_bytes = 0_u64;
    loop {
        let available = match reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = memchr::memchr(b'\n', available);
        let n = end.map_or(available.len(), |end| end + 1);
        if n_bytes + n as u64 <= limit {
            line.extend_from_slice(&available[..n]);
        }
        n_bytes += n as u64;
        reader.consume(n);
        if end.is_some() || n == 0 {
            return Ok(n_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use super::*;

    #[test]
    fn long_lines_are_measured_not_kept() {
        let mut reader = BufReader::with_capacity(7, &b"short\n0123456789012345\n\nend"[..]);
        let mut line = Vec::new();
        let mut lengths = Vec::new();
        loop {
            let n_bytes = read(&mut reader, 10, &mut line).unwrap();
            lengths.push(n_bytes);
            assert!(line.len() <= 10);
            if n_bytes == 0 {
                break;
            }
        }
        assert_eq!(lengths, [6, 17, 1, 3, 0]);
    }

    /// A line of gigabytes takes the memory of the limit.
    #[test]
    fn endless_lines_take_no_memory() {
        let n_bytes = 3_u64 << 30;
        let mut reader = BufReader::with_capacity(1 << 20, io::repeat(b'x').take(n_bytes));
        let mut line = Vec::new();
        assert_eq!(read(&mut reader, 1 << 20, &mut line).unwrap(), n_bytes);
        assert!(line.capacity() <= 2 << 20, "{}", line.capacity());
    }
}
