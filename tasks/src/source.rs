//! External files as readers: streams of text, decompressed, and the chunks of Parquet files;
//! wherever the bytes lie.

pub(crate) mod lines;
pub(crate) mod rows;

use std::io::{self, BufRead, BufReader, Read};

use engine::external::Content;
use engine::task::{ExternalFile, Failure};
use flate2::read::MultiGzDecoder;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 17;
/// What compressed streams start with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// What a name in lower case says, and the name without it.
    pub(crate) fn of(name: &str) -> (Self, &str) {
        let suffixes = [(".gz", Self::Gzip), (".zst", Self::Zstd), (".zstd", Self::Zstd)];
        suffixes
            .iter()
            .find_map(|(suffix, compression)| Some((*compression, name.strip_suffix(suffix)?)))
            .unwrap_or((Self::None, name))
    }

    /// What the first bytes say.
    fn seen(start: &[u8]) -> Self {
        if start.starts_with(&ZSTD_MAGIC) {
            Self::Zstd
        } else if start.starts_with(&GZIP_MAGIC) {
            Self::Gzip
        } else {
            Self::None
        }
    }
}

/// The content of a file, decompressed as its name says; of standard input, which has no name, as
/// its first bytes do.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn open(file: &ExternalFile) -> Result<Box<dyn BufRead>, Failure> {
    let open = || -> io::Result<Box<dyn BufRead>> {
        let mut raw = BufReader::with_capacity(BUFFER_BYTES, file.open()?.reader());
        let compression = if file.is_input() {
            Compression::seen(raw.fill_buf()?)
        } else {
            Compression::of(&file.relative.to_ascii_lowercase()).0
        };
        Ok(match compression {
            Compression::None => Box::new(raw),
            Compression::Gzip => Box::new(BufReader::new(MultiGzDecoder::new(raw))),
            Compression::Zstd => {
                Box::new(BufReader::with_capacity(BUFFER_BYTES, zstd::Decoder::with_buffer(raw)?))
            }
        })
    };
    open().map_err(|error| Failure::io(format!("cannot open `{}`", file.path.display()), &error))
}

/// A file as the Parquet reader wants it.
struct Chunks {
    content: Content,
    size_bytes: u64,
}

impl Chunks {
    fn open(file: &ExternalFile) -> Result<Self, Failure> {
        let content = file.open().map_err(|error| {
            Failure::io(format!("cannot open `{}`", file.path.display()), &error)
        })?;
        Ok(Self { content, size_bytes: file.size_bytes })
    }

    fn at(&self, offset: u64) -> At {
        At { content: self.content.clone(), offset }
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.size_bytes
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<At>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(BufReader::new(self.at(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<bytes::Bytes> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.size_bytes);
        if end.is_none() {
            let size = self.size_bytes;
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} are beyond the end at {size}"
            )));
        }
        let mut bytes = vec![0; length];
        self.at(start).read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// A place in a file.
struct At {
    content: Content,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.content.read_at(buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}
