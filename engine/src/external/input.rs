//! Standard input as an external file.
//!
//! A key needs the content, so all of it is read before anything runs: into a file without a name in
//! the artifact folder, of which nothing is left when the process ends, however it ends. The same
//! bytes piped in again give the same key, and go on where the earlier run stopped.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::Error;
use super::content::{ExternalFile, Source};
use super::hashing::{Hashing, Teller};
use crate::digest::Digest;

/// The pattern that means standard input.
pub(super) const PATTERN: &str = "-";
/// What stands for its path in keys and ids, and what messages call it.
const RELATIVE: &str = "stdin";
const NAME: &str = "standard input";

/// It can be read once in the life of a process, and several nodes may want it.
static READ: Mutex<Option<ExternalFile>> = Mutex::new(None);

/// What standard input held. Only with a folder `keep` can it be read by a task. `told` hears how much
/// was read.
///
/// # Errors
/// When it is a terminal, or cannot be read or kept.
pub(super) fn file(
    keep: Option<&Path>,
    told: &(dyn Fn(Hashing) + Sync),
) -> Result<ExternalFile, Error> {
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = &*read {
        return Ok(file.clone());
    }
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Error::NoInput);
    }
    let file = spool(&mut stdin.lock(), keep, told)
        .map_err(|source| Error::Io { path: PathBuf::from(NAME), source })?;
    Ok(read.insert(file).clone())
}

fn spool(
    from: &mut dyn Read,
    keep: Option<&Path>,
    told: &(dyn Fn(Hashing) + Sync),
) -> io::Result<ExternalFile> {
    let teller = Teller::new(1, None, told);
    let mut kept: Option<File> = keep.map(tempfile::tempfile_in).transpose()?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size_bytes = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..n]);
        if let Some(file) = &mut kept {
            file.write_all(&buffer[..n])?;
        }
        size_bytes += n as u64;
        teller.read(n as u64);
    }
    teller.end();
    let source = kept.map_or(Source::Gone, |file| Source::Input(Arc::new(file)));
    let digest: Digest = hasher.finalize().into();
    let (path, relative) = (PathBuf::from(NAME), RELATIVE.to_owned());
    Ok(ExternalFile::of(path, relative, digest, size_bytes, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_kept_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let text = vec![b'x'; (3 << 20) + 7];
        let kept = spool(&mut &text[..], Some(dir.path()), &|_| ()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!((kept.digest, kept.size_bytes), (Digest::of(&text), text.len() as u64));
        assert!(kept.is_input());
        for _ in 0..2 {
            let mut back = Vec::new();
            kept.open().unwrap().reader().read_to_end(&mut back).unwrap();
            assert!(back == text);
        }
        let hashed = spool(&mut &text[..], None, &|_| ()).unwrap();
        assert_eq!(hashed.digest, kept.digest);
        assert!(hashed.open().is_err());
    }
}
