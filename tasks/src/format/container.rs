//! A file of named, typed, checksummed sections.
//!
//! ```text
//! byte 0    magic      8 bytes  89 'S' 'B' 'P' 0d 0a 1a 0a
//!      8    version    u32      of the container
//!     12    header     u32      length in bytes
//!     16    header     u64      offset in bytes, a multiple of 64
//!     24    file       u64      size in bytes
//!     32    checksum   32 bytes BLAKE3 of bytes 0..32 and the header
//!     64    sections            each starts at a multiple of 64, zero bytes between
//!           header              rkyv: kind, kind's version, metadata, sections with checksums
//! ```
//!
//! All numbers are little-endian. The header comes last so that sections are streamed to disk
//! before their lengths are known. [`Container::open`] checks every byte of the file against a
//! checksum; only then are sections lent out as slices of the mapped file.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;

use super::Error;

const MAGIC: [u8; 8] = *b"\x89SBP\r\n\x1a\n";
/// Version of the layout above; kinds have versions of their own.
const CONTAINER_VERSION: u32 = 1;
const PRELUDE_LEN: usize = 64;
const ALIGNMENT: u64 = 64;
/// A header holds names and metadata, never data.
const HEADER_LEN_MAX: usize = 16 << 20;

const _: () = assert!(cfg!(target_endian = "little"), "sections are used in place, little-endian");

/// A number that sections are made of.
///
/// # Safety
/// Every bit pattern of the type's size must be a value of it, and it must have no padding.
pub unsafe trait Element: Copy + 'static {
    /// The type's code in section tables.
    const CODE: u8;
    /// The type's name in messages.
    const NAME: &'static str;
}

macro_rules! elements {
    ($($type:ty = $code:literal),*) => {$(
        // SAFETY: Primitive numbers have no padding and no invalid bit patterns.
        unsafe impl Element for $type {
            const CODE: u8 = $code;
            const NAME: &'static str = stringify!($type);
        }
    )*};
}
elements!(u8 = 1, i8 = 2, u16 = 3, u32 = 4, u64 = 5, f32 = 6, f64 = 7);

fn element_size(code: u8) -> Option<u64> {
    Some(match code {
        1 | 2 => 1,
        3 => 2,
        4 | 6 => 4,
        5 | 7 => 8,
        _ => return None,
    })
}

fn as_bytes<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: `Element` types have no padding, so all `size_of_val` bytes are initialized; `u8` has
    // alignment 1.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Header {
    kind: String,
    version: u32,
    metadata: Vec<u8>,
    sections: Vec<Section>,
}

#[derive(Clone, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Section {
    name: String,
    element: u8,
    offset: u64,
    n_elements: u64,
    checksum: [u8; 32],
}

/// Metadata that [`Writer::finish`] takes: anything that derives `rkyv::{Archive, Serialize}`.
pub trait Metadata:
    for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
{
}

impl<T> Metadata for T where
    T: for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>
{
}

/// Writes a container; nothing appears at its path before [`Writer::finish`].
pub struct Writer {
    file: BufWriter<tempfile::NamedTempFile>,
    path: PathBuf,
    kind: &'static str,
    version: u32,
    offset: u64,
    sections: Vec<Section>,
    hasher: blake3::Hasher,
}

impl Writer {
    /// Starts a file of `kind` in the kind's format `version`.
    ///
    /// # Errors
    /// When no file can be created beside `path`.
    pub fn create(path: &Path, kind: &'static str, version: u32) -> Result<Self, Error> {
        let create = || -> io::Result<_> {
            let mut builder = tempfile::Builder::new();
            builder.prefix(".partial-");
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
            let mut file =
                BufWriter::with_capacity(1 << 20, builder.tempfile_in(parent_dir(path))?);
            file.write_all(&[0; PRELUDE_LEN])?;
            Ok(file)
        };
        let file = create().map_err(|error| Error::io("create", path, error))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            kind,
            version,
            offset: PRELUDE_LEN as u64,
            sections: Vec::new(),
            hasher: blake3::Hasher::new(),
        })
    }

    /// The file that is being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a section of `T`, ending the one before.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When the file has a section of this name.
    pub fn begin<T: Element>(&mut self, name: &str) -> Result<(), Error> {
        assert!(self.sections.iter().all(|section| section.name != name), "two sections `{name}`");
        self.end_section()?;
        self.sections.push(Section {
            name: name.to_owned(),
            element: T::CODE,
            offset: self.offset,
            n_elements: 0,
            checksum: [0; 32],
        });
        Ok(())
    }

    /// Appends to the section that was begun last.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When no section was begun, or it is of another type.
    pub fn extend<T: Element>(&mut self, values: &[T]) -> Result<(), Error> {
        let section = self.sections.last_mut().expect("`begin` comes before `extend`");
        assert_eq!(section.element, T::CODE, "section `{}` is not of {}", section.name, T::NAME);
        section.n_elements += values.len() as u64;
        let bytes = as_bytes(values);
        self.hasher.update(bytes);
        self.write(bytes)
    }

    /// Writes a whole section.
    ///
    /// # Errors
    /// When writing fails.
    pub fn section<T: Element>(&mut self, name: &str, values: &[T]) -> Result<(), Error> {
        self.begin::<T>(name)?;
        self.extend(values)
    }

    /// Writes a column that was collected aside as a whole section.
    ///
    /// # Errors
    /// When reading the column or writing fails.
    pub fn column<T: Element>(&mut self, name: &str, column: Column<T>) -> Result<(), Error> {
        self.begin::<T>(name)?;
        let fail = |error| Error::io("write", &self.path, error);
        let mut file = column.file.into_inner().map_err(|error| fail(error.into_error()))?;
        file.rewind().map_err(fail)?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut buffer = vec![0_u8; 1 << 20];
        loop {
            let n = reader.read(&mut buffer).map_err(|e| Error::io("write", &self.path, e))?;
            if n == 0 {
                break;
            }
            self.hasher.update(&buffer[..n]);
            self.write(&buffer[..n])?;
        }
        let section = self.sections.last_mut().expect("`begin` pushed one");
        section.n_elements = column.n_elements;
        Ok(())
    }

    /// Writes the header, makes the file durable and moves it to its path.
    ///
    /// # Errors
    /// When writing fails; nothing is left at the path then.
    pub fn finish(mut self, metadata: &impl Metadata) -> Result<(), Error> {
        self.end_section()?;
        let header_offset = self.offset;
        let metadata = encode(&self.path, metadata)?.into_vec();
        let sections = std::mem::take(&mut self.sections);
        let header =
            Header { kind: self.kind.to_owned(), version: self.version, metadata, sections };
        let header = encode(&self.path, &header)?;
        assert!(header.len() <= HEADER_LEN_MAX, "headers hold no data");
        self.write(&header)?;

        let mut prelude = [0_u8; PRELUDE_LEN];
        prelude[..8].copy_from_slice(&MAGIC);
        prelude[8..12].copy_from_slice(&CONTAINER_VERSION.to_le_bytes());
        prelude[12..16].copy_from_slice(&(header.len() as u32).to_le_bytes());
        prelude[16..24].copy_from_slice(&header_offset.to_le_bytes());
        prelude[24..32].copy_from_slice(&self.offset.to_le_bytes());
        let checksum = header_checksum(&prelude, &header);
        prelude[32..].copy_from_slice(&checksum);
        let Self { file, path, .. } = self;
        seal(file, &path, &prelude).map_err(|error| Error::io("write", &path, error))
    }

    fn end_section(&mut self) -> Result<(), Error> {
        if let Some(section) = self.sections.last_mut() {
            section.checksum = *self.hasher.finalize().as_bytes();
            self.hasher.reset();
        }
        let padding = self.offset.next_multiple_of(ALIGNMENT) - self.offset;
        self.write(&[0; ALIGNMENT as usize][..padding as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.offset += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| Error::io("write", &self.path, error))
    }
}

fn parent_dir(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn seal(
    file: BufWriter<tempfile::NamedTempFile>,
    path: &Path,
    prelude: &[u8; PRELUDE_LEN],
) -> io::Result<()> {
    let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(prelude)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(parent_dir(path))?.sync_all()
}

fn encode(path: &Path, value: &impl Metadata) -> Result<AlignedVec, Error> {
    rkyv::to_bytes::<rancor::Error>(value)
        .map_err(|error| Error::io("write", path, io::Error::other(error.to_string())))
}

fn header_checksum(prelude: &[u8; PRELUDE_LEN], header: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&prelude[..32]);
    hasher.update(header);
    *hasher.finalize().as_bytes()
}

/// Numbers kept in a temporary file while another section is being streamed.
pub struct Column<T> {
    file: BufWriter<File>,
    n_elements: u64,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Column<T> {
    /// An empty column, on the file system of `dir`.
    ///
    /// # Errors
    /// When no temporary file can be created there.
    pub fn new(dir: &Path) -> Result<Self, Error> {
        let file = tempfile::tempfile_in(dir).map_err(|error| Error::io("create", dir, error))?;
        let file = BufWriter::with_capacity(1 << 16, file);
        Ok(Self { file, n_elements: 0, element: std::marker::PhantomData })
    }

    /// Appends one number.
    ///
    /// # Errors
    /// When writing fails.
    pub fn push(&mut self, value: T) -> io::Result<()> {
        self.extend(&[value])
    }

    /// Appends some numbers.
    ///
    /// # Errors
    /// When writing fails.
    pub fn extend(&mut self, values: &[T]) -> io::Result<()> {
        self.n_elements += values.len() as u64;
        self.file.write_all(as_bytes(values))
    }
}

/// A container mapped into memory.
pub struct Container {
    map: Mmap,
    path: PathBuf,
    metadata: Vec<u8>,
    sections: Vec<Section>,
}

impl Container {
    /// Opens a file of `kind` whose format version is at most `version_max`, and verifies all of it.
    ///
    /// # Errors
    /// When the file cannot be read, is foreign, of another kind, newer, cut off, or damaged.
    pub fn open(path: &Path, kind: &'static str, version_max: u32) -> Result<Self, Error> {
        let fail = |error| Error::io("open", path, error);
        let file = File::open(path).map_err(fail)?;
        let size_bytes = file.metadata().map_err(fail)?.len();
        if size_bytes < PRELUDE_LEN as u64 {
            return Err(short(path, &file, size_bytes));
        }
        // SAFETY: Artifacts are immutable once published and private to one attempt before that, so
        // nothing changes the mapped file.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        let header = read_header(path, &map)?;
        if header.kind != kind {
            let (path, found) = (path.to_owned(), header.kind);
            return Err(Error::Kind { path, found, expected: kind });
        }
        if header.version > version_max {
            let (path, what, found) = (path.to_owned(), kind.to_owned(), header.version);
            return Err(Error::Newer { path, what, found, supported: version_max });
        }
        for section in &header.sections {
            check_section(path, &map, section)?;
        }
        let Header { metadata, sections, .. } = header;
        Ok(Self { map, path: path.to_owned(), metadata, sections })
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata given to [`Writer::finish`].
    ///
    /// # Errors
    /// When it is not an `M`.
    pub fn metadata<M>(&self) -> Result<M, Error>
    where
        M: rkyv::Archive,
        M::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
            + rkyv::Deserialize<M, HighDeserializer<rancor::Error>>,
    {
        decode(&self.metadata)
            .map_err(|error| Error::damaged(&self.path, format!("metadata: {error}")))
    }

    /// The numbers of a section.
    ///
    /// # Errors
    /// When the file has no such section, or it is of another type.
    pub fn section<T: Element>(&self, name: &str) -> Result<&[T], Error> {
        let section = self
            .sections
            .iter()
            .find(|section| section.name == name)
            .ok_or_else(|| Error::damaged(&self.path, format!("it has no section `{name}`")))?;
        if section.element != T::CODE {
            let what = format!("section `{name}` is not of {}", T::NAME);
            return Err(Error::damaged(&self.path, what));
        }
        let start = section.offset as usize;
        let n_elements = section.n_elements as usize;
        let bytes = &self.map[start..start + n_elements * size_of::<T>()];
        // SAFETY: `check_section` proved that the section lies in the map at a multiple of 64, which
        // aligns it (maps start at a page); `Element` accepts every bit pattern; the borrow of
        // `self` keeps the map alive.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), n_elements) })
    }
}

fn short(path: &Path, file: &File, size_bytes: u64) -> Error {
    let mut start = [0_u8; 8];
    let n = (size_bytes as usize).min(8);
    let mut file = file;
    if file.read_exact(&mut start[..n]).is_ok() && n == 8 && start == MAGIC {
        let path = path.to_owned();
        return Error::Size { path, found: size_bytes, expected: PRELUDE_LEN as u64 };
    }
    Error::Foreign { path: path.to_owned() }
}

fn read_header(path: &Path, map: &[u8]) -> Result<Header, Error> {
    let prelude: &[u8; PRELUDE_LEN] = map.first_chunk().expect("`open` checked the length");
    if prelude[..8] != MAGIC {
        return Err(Error::Foreign { path: path.to_owned() });
    }
    let u32_at = |at: usize| u32::from_le_bytes(*prelude[at..].first_chunk().expect("in prelude"));
    let u64_at = |at: usize| u64::from_le_bytes(*prelude[at..].first_chunk().expect("in prelude"));
    let version = u32_at(8);
    if version > CONTAINER_VERSION {
        let (what, supported) = ("container".to_owned(), CONTAINER_VERSION);
        return Err(Error::Newer { path: path.to_owned(), what, found: version, supported });
    }
    let (size_bytes, expected) = (map.len() as u64, u64_at(24));
    if size_bytes != expected {
        return Err(Error::Size { path: path.to_owned(), found: size_bytes, expected });
    }
    let (header_len, header_offset) = (u32_at(12) as usize, u64_at(16));
    let in_file = header_len <= HEADER_LEN_MAX
        && header_offset >= PRELUDE_LEN as u64
        && header_offset.checked_add(header_len as u64) == Some(size_bytes);
    if !in_file {
        return Err(Error::damaged(path, "its header lies outside the file"));
    }
    let header = &map[header_offset as usize..];
    if header_checksum(prelude, header) != prelude[32..] {
        return Err(Error::damaged(path, "its header does not match its checksum"));
    }
    decode(header).map_err(|error| Error::damaged(path, format!("header: {error}")))
}

/// Decodes rkyv bytes wherever they lie; the archive is checked before it is used.
fn decode<M>(bytes: &[u8]) -> Result<M, rancor::Error>
where
    M: rkyv::Archive,
    M::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + rkyv::Deserialize<M, HighDeserializer<rancor::Error>>,
{
    let mut aligned: AlignedVec = AlignedVec::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    rkyv::from_bytes::<M, rancor::Error>(&aligned)
}

fn check_section(path: &Path, map: &[u8], section: &Section) -> Result<(), Error> {
    let name = &section.name;
    let end = element_size(section.element)
        .and_then(|size| section.n_elements.checked_mul(size))
        .and_then(|size_bytes| section.offset.checked_add(size_bytes))
        .filter(|&end| end <= map.len() as u64 && section.offset.is_multiple_of(ALIGNMENT));
    let Some(end) = end else {
        return Err(Error::damaged(path, format!("section `{name}` lies outside the file")));
    };
    let bytes = &map[section.offset as usize..end as usize];
    if *blake3::hash(bytes).as_bytes() != section.checksum {
        let what = format!("section `{name}` does not match its checksum");
        return Err(Error::damaged(path, what));
    }
    Ok(())
}

/// The file `bytes` with `change` applied to each section, to the metadata and to the numbers of the
/// section table, and every checksum right again: what a hostile writer could make.
#[cfg(test)]
pub(crate) fn tampered(bytes: &[u8], mut change: impl FnMut(&mut Vec<u8>)) -> Vec<u8> {
    let path = Path::new("tampered");
    let mut header = read_header(path, bytes).expect("the file is whole");
    let mut made = vec![0; PRELUDE_LEN];
    for section in &mut header.sections {
        let size_bytes = section.n_elements * element_size(section.element).expect("it is known");
        let start = section.offset as usize;
        let mut body = bytes[start..start + size_bytes as usize].to_vec();
        change(&mut body);
        section.checksum = *blake3::hash(&body).as_bytes();
        section.offset = made.len() as u64;
        section.n_elements = body.len() as u64 / element_size(section.element).unwrap_or(1);
        made.extend_from_slice(&body);
        made.resize(made.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut numbers = [section.offset, section.n_elements].map(u64::to_le_bytes).concat();
        change(&mut numbers);
        numbers.resize(16, 0);
        let number =
            |at: usize| u64::from_le_bytes(*numbers[at..].first_chunk().expect("16 bytes"));
        (section.offset, section.n_elements) = (number(0), number(8));
    }
    change(&mut header.metadata);
    let header_offset = made.len() as u64;
    made.extend_from_slice(&encode(path, &header).expect("a header becomes bytes"));
    let header_len = made.len() as u32 - header_offset as u32;
    made[..8].copy_from_slice(&MAGIC);
    made[8..12].copy_from_slice(&CONTAINER_VERSION.to_le_bytes());
    made[12..16].copy_from_slice(&header_len.to_le_bytes());
    made[16..24].copy_from_slice(&header_offset.to_le_bytes());
    let size_bytes = made.len() as u64;
    made[24..32].copy_from_slice(&size_bytes.to_le_bytes());
    let prelude = made.first_chunk().expect("the file has a prelude");
    let checksum = header_checksum(prelude, &made[header_offset as usize..]);
    made[32..64].copy_from_slice(&checksum);
    made
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
    struct Facts {
        name: String,
        n: u64,
    }

    fn sample(path: &Path) {
        let mut column = Column::<u64>::new(path.parent().unwrap()).unwrap();
        let mut writer = Writer::create(path, "sample", 3).unwrap();
        writer.begin::<u16>("ids").unwrap();
        for i in 0..100_u16 {
            writer.extend(&[i, i + 1]).unwrap();
            column.push(u64::from(i) << 40).unwrap();
        }
        writer.column("offsets", column).unwrap();
        writer.section::<f32>("empty", &[]).unwrap();
        writer.section::<i8>("rows", &[-1, 2, 3]).unwrap();
        writer.finish(&Facts { name: "x".to_owned(), n: 7 }).unwrap();
    }

    static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sbp");
        sample(&path);
        fs::read(&path).unwrap()
    });

    fn error_of(path: &Path) -> String {
        Container::open(path, "sample", 3).err().map(|e| e.to_string()).unwrap_or_default()
    }

    /// Recomputes the header's checksum, as a forger would.
    fn reseal(bytes: &mut [u8]) {
        let offset = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
        if let Some(header) = bytes.get(offset..) {
            let checksum = header_checksum(bytes.first_chunk().unwrap(), header);
            bytes[32..64].copy_from_slice(&checksum);
        }
    }

    /// Uses everything of a container that opens.
    fn exercise(path: &Path) {
        let Ok(container) = Container::open(path, "sample", 3) else { return };
        let _ = container.metadata::<Facts>();
        let _ = container.section::<u16>("ids").map(|ids| ids.iter().map(|&x| u64::from(x)).sum())
            as Result<u64, Error>;
        let _ = container.section::<u64>("offsets").map(<[u64]>::len);
        let _ = container.section::<i8>("rows").map(<[i8]>::len);
    }

    #[test]
    fn sections_come_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sbp");
        sample(&path);
        let container = Container::open(&path, "sample", 3).unwrap();
        let ids: &[u16] = container.section("ids").unwrap();
        assert_eq!((ids.len(), ids[199]), (200, 100));
        assert_eq!(container.section::<u64>("offsets").unwrap()[99], 99 << 40);
        assert!(container.section::<f32>("empty").unwrap().is_empty());
        assert_eq!(container.section::<i8>("rows").unwrap(), [-1, 2, 3]);
        let facts: Facts = container.metadata().unwrap();
        assert_eq!(facts, Facts { name: "x".to_owned(), n: 7 });
        assert!(container.section::<u32>("ids").unwrap_err().to_string().contains("not of u32"));
        assert!(container.section::<u32>("none").unwrap_err().to_string().contains("no section"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unfinished_writer_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(&dir.path().join("a.sbp"), "sample", 1).unwrap();
        writer.section::<u8>("x", &[1; 1000]).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn wrong_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sbp");
        sample(&path);
        let good = fs::read(&path).unwrap();
        let check = |bytes: &[u8], expected: &str| {
            fs::write(&path, bytes).unwrap();
            let message = error_of(&path);
            assert!(message.contains("a.sbp") && message.contains(expected), "{message}");
        };
        check(b"", "not an sbp file");
        check(&[b'x'; 200], "not an sbp file");
        check(&good[..40], "cut off");
        check(&good[..good.len() - 1], "cut off");
        let mut damaged = good.clone();
        damaged[70] ^= 1;
        check(&damaged, "section `ids` does not match its checksum");
        let mut newer = good.clone();
        newer[8] = 9;
        check(&newer, "container version 9; this program reads up to version 1");
        fs::write(&path, &good).unwrap();
        let newer = Container::open(&path, "sample", 2).err().unwrap().to_string();
        assert!(newer.contains("sample version 3"), "{newer}");
        let kind = Container::open(&path, "tokens", 3).err().unwrap().to_string();
        assert!(kind.contains("holds `sample`, not `tokens`"), "{kind}");
        assert!(error_of(&dir.path().join("none.sbp")).contains("cannot open"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Any change is an error, and a forged checksum never leads to a panic.
        #[test]
        fn mutations_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..6),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.sbp");
            let good = SAMPLE.clone();
            let header = u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
            let mut bytes = good.clone();
            for (index, change) in &changes {
                let at = index.index(bytes.len());
                bytes[at] ^= change;
            }
            // Padding between sections carries nothing and is not under a checksum.
            fs::write(&path, &bytes).unwrap();
            exercise(&path);
            if bytes[..64] != good[..64] || bytes[header..] != good[header..] {
                prop_assert!(!error_of(&path).is_empty());
            }
            let mut forged = good;
            for (index, change) in &changes {
                let at = header + index.index(forged.len() - header);
                forged[at] ^= change;
            }
            if let Some(cut) = cut {
                forged.truncate(64 + cut.index(forged.len() - 64));
                let size = forged.len() as u64;
                forged[24..32].copy_from_slice(&size.to_le_bytes());
            }
            reseal(&mut forged);
            fs::write(&path, &forged).unwrap();
            exercise(&path);
        }
    }
}
