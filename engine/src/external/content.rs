//! What a task reads of an external file, wherever its bytes lie.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::objects::{BLOCK_BYTES, Object, Version};
use crate::digest::Digest;

/// A file outside the store, resolved from [`crate::task::Task::external`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExternalFile {
    /// Where it is now. What messages call it, and its path unless the task's
    /// [`crate::task::Task::STREAMS`] allows it to lie elsewhere.
    pub path: PathBuf,
    /// Its path below the fixed part of its pattern, `/`-separated: part of the key, unlike `path`.
    pub relative: String,
    /// Digest of its content at plan time; of an object in a bucket, of its entity tag.
    pub digest: Digest,
    /// Its size in bytes at plan time.
    pub size_bytes: u64,
    pub(super) source: Source,
    /// Where the newest read of this process ended.
    #[serde(skip)]
    pub(super) position: Arc<AtomicU64>,
}

/// Where the bytes are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "Told", try_from = "Told")]
pub(super) enum Source {
    /// At the path.
    Path,
    /// In a file without a name: what standard input held.
    Input(Arc<File>),
    /// In a bucket.
    Object(Arc<Object>),
    /// Nowhere: standard input was read for its digest only.
    Gone,
}

/// A [`Source`] as the process of an attempt is told of it.
#[derive(Serialize, Deserialize)]
enum Told {
    Path,
    /// What standard input held, open under a number in the process of the run.
    Input {
        process: u32,
        number: i32,
    },
    Object(Version),
    Gone,
}

impl From<Source> for Told {
    fn from(source: Source) -> Self {
        match source {
            Source::Path => Self::Path,
            Source::Input(file) => {
                Self::Input { process: std::process::id(), number: file.as_raw_fd() }
            }
            Source::Object(object) => Self::Object(object.version()),
            Source::Gone => Self::Gone,
        }
    }
}

impl TryFrom<Told> for Source {
    type Error = String;

    fn try_from(told: Told) -> Result<Self, String> {
        Ok(match told {
            Told::Path => Self::Path,
            Told::Input { process, number } => {
                let path = format!("/proc/{process}/fd/{number}");
                let file = File::open(&path)
                    .map_err(|error| format!("cannot open what was piped in, `{path}`: {error}"))?;
                Self::Input(Arc::new(file))
            }
            Told::Object(version) => Self::Object(Arc::new(Object::of(version)?)),
            Told::Gone => Self::Gone,
        })
    }
}

impl ExternalFile {
    /// The file at `path`.
    pub fn at(path: PathBuf, relative: String, digest: Digest, size_bytes: u64) -> Self {
        Self::of(path, relative, digest, size_bytes, Source::Path)
    }

    pub(super) fn of(
        path: PathBuf,
        relative: String,
        digest: Digest,
        size_bytes: u64,
        source: Source,
    ) -> Self {
        Self { path, relative, digest, size_bytes, source, position: Arc::default() }
    }

    /// The byte at which this process's newest read of it ended, for progress.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// When it cannot be opened. An object is not asked for before its first byte is read.
    pub fn open(&self) -> io::Result<Content> {
        let bytes = match &self.source {
            Source::Path => Bytes::File(Arc::new(File::open(&self.path)?)),
            Source::Input(file) => Bytes::File(Arc::clone(file)),
            Source::Object(object) => Bytes::Object(Arc::clone(object)),
            Source::Gone => return Err(io::Error::other("its content was not kept")),
        };
        Ok(Content { bytes, position: Arc::clone(&self.position) })
    }

    /// Whether a read found another version of the object than the one of the key.
    pub(crate) fn is_replaced(&self) -> bool {
        matches!(&self.source, Source::Object(object) if object.is_replaced())
    }

    /// Notes that a read in the attempt's own process found another version of the object.
    pub(crate) fn note_replaced(&self) {
        if let Source::Object(object) = &self.source {
            object.note_replaced();
        }
    }

    /// Whether it came from standard input, so that its name tells nothing.
    pub fn is_input(&self) -> bool {
        matches!(self.source, Source::Input(_) | Source::Gone)
    }
}

/// The bytes of an external file, read in order or anywhere; copies share what is open.
#[derive(Clone, Debug)]
pub struct Content {
    bytes: Bytes,
    position: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
enum Bytes {
    File(Arc<File>),
    Object(Arc<Object>),
}

impl Content {
    /// Reads some bytes at `offset` and tells how many; 0 at the end only.
    ///
    /// # Errors
    /// When the file cannot be read, or an object was replaced since it was planned with.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = match &self.bytes {
            Bytes::File(file) => file.read_at(buffer, offset)?,
            Bytes::Object(object) if offset >= object.size_bytes => 0,
            Bytes::Object(object) => {
                let block = object.block(offset / BLOCK_BYTES)?;
                copy(&block, offset % BLOCK_BYTES, buffer)
            }
        };
        self.position.store(offset + n as u64, Ordering::Relaxed);
        Ok(n)
    }

    /// Reads from the start on. Of an object the next block is fetched while one is read.
    pub fn reader(&self) -> Reader {
        Reader { content: self.clone(), offset: 0, block: None, ahead: None }
    }
}

fn copy(block: &[u8], from: u64, buffer: &mut [u8]) -> usize {
    let rest = &block[(from as usize).min(block.len())..];
    let n = rest.len().min(buffer.len());
    buffer[..n].copy_from_slice(&rest[..n]);
    n
}

type Fetched = io::Result<Vec<u8>>;

/// Reads a [`Content`] from the start on.
#[derive(Debug)]
pub struct Reader {
    content: Content,
    offset: u64,
    /// The block of an object that is being read.
    block: Option<(u64, Vec<u8>)>,
    /// The one after it, on its way.
    ahead: Option<(u64, JoinHandle<Fetched>)>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = match &self.content.bytes {
            Bytes::File(file) => file.read_at(buffer, self.offset)?,
            Bytes::Object(object) if self.offset >= object.size_bytes => 0,
            Bytes::Object(object) => {
                let index = self.offset / BLOCK_BYTES;
                if self.block.as_ref().is_none_or(|(held, _)| *held != index) {
                    let object = Arc::clone(object);
                    self.block = None;
                    self.block = Some((index, self.fetch(&object, index)?));
                }
                let block = self.block.as_ref().expect("it was fetched above");
                copy(&block.1, self.offset % BLOCK_BYTES, buffer)
            }
        };
        self.offset += n as u64;
        self.content.position.store(self.offset, Ordering::Relaxed);
        Ok(n)
    }
}

impl Reader {
    /// Block `index`, and starts on the next.
    fn fetch(&mut self, object: &Arc<Object>, index: u64) -> Fetched {
        let block = match self.ahead.take() {
            Some((ahead, thread)) if ahead == index => {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
            _ => object.fetch(index),
        }?;
        let next = index + 1;
        if next * BLOCK_BYTES < object.size_bytes {
            let object = Arc::clone(object);
            self.ahead = Some((next, std::thread::spawn(move || object.fetch(next))));
        }
        Ok(block)
    }
}
