//! Kernels for one architecture alone prove themselves on a GPU before they are used there.
//!
//! Another tier does the same work, so nothing but time is lost when they are refused; and what they
//! do wrong may be more than wrong numbers: a trap spoils all that the process has on the GPU. So it is
//! written down that they are being tried before they are, and a process that finds them being tried by
//! nobody refuses them, too. The verdict is kept beside the machine code and counts for this text, this
//! compiler, this kind of GPU and the CUDA release of this driver.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use super::compile::Compiler;
use super::launch::Source;
use super::{Error, libraries, sources};

const BEGUN: &str = "begun";
const HOLDS: &str = "holds";
const FAILS: &str = "fails: ";

/// Whether kernels may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They gave the reference's results.
    Proven,
    /// They may not.
    Refused(Refusal),
}

/// Why kernels may not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Their file, such as `attention_hopper.cu`.
    pub source_name: &'static str,
    /// What happened.
    pub reason: String,
    /// The verdict's file, without which they are tried again.
    pub path: PathBuf,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source_name, reason, path } = self;
        let path = path.display();
        write!(f, "`{source_name}` is not used: {reason}; to try it again, delete {path}")
    }
}

/// What is known of a kernel file on a kind of GPU.
#[derive(Clone, Debug)]
pub struct Record {
    source: &'static Source,
    path: PathBuf,
    /// Of what the verdict is, for people who read it.
    subject: String,
}

impl Record {
    /// Those in `dir` of all kernels for `arch` alone; of the GPU, its name counts.
    pub fn all(dir: &Path, arch: &str, compiler: Compiler, gpu: &str) -> Vec<Self> {
        let own = sources().into_iter().filter(|source| source.only == Some(arch));
        own.map(|source| Self::new(dir, source, arch, compiler, gpu)).collect()
    }

    fn new(dir: &Path, source: &'static Source, arch: &str, compiler: Compiler, gpu: &str) -> Self {
        let driver = libraries::driver_release().unwrap_or_default();
        let subject = format!("{} for {arch} on {gpu}, driver {driver:?}", source.name);
        let mut hash = blake3::Hasher::new();
        hash.update(compiler.digest(source, arch).as_bytes()).update(subject.as_bytes());
        let stem = source.name.trim_end_matches(".cu");
        let name = format!("{stem}-{arch}-{}.verdict", &hash.finalize().to_hex()[..32]);
        Self { source, path: dir.join(name), subject }
    }

    /// The kernel file.
    pub fn source(&self) -> &'static Source {
        self.source
    }

    /// The verdict; nothing before the kernels were tried, or while they are.
    pub fn verdict(&self) -> Option<Verdict> {
        let mut file = File::open(&self.path).ok()?;
        if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return None;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        self.read(&text)
    }

    /// The verdict, by `check` where there is none; it says what is wrong with the kernels, if anything.
    pub fn prove(&self, check: impl FnOnce() -> Result<Option<String>, Error>) -> Verdict {
        match self.open() {
            Ok((file, text)) => self.read(&text).unwrap_or_else(|| self.judge(file, check)),
            Err(error) => self.refused(format!("its verdict cannot be kept: {error}")),
        }
    }

    /// The file and what is in it, held against others who would try the same. Where files cannot be
    /// locked, who comes meanwhile finds the kernels being tried and goes without them.
    fn open(&self) -> std::io::Result<(File, String)> {
        if let Some(dir) = self.path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&self.path)?;
        drop(file.lock());
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok((file, text))
    }

    fn judge(
        &self,
        mut file: File,
        check: impl FnOnce() -> Result<Option<String>, Error>,
    ) -> Verdict {
        if let Err(error) = self.write(&mut file, BEGUN) {
            return self.refused(format!("its verdict cannot be kept: {error}"));
        }
        let (line, verdict) = match check() {
            Ok(None) => (HOLDS.to_owned(), Verdict::Proven),
            Ok(Some(fault)) => (format!("{FAILS}{fault}"), self.refused(fault)),
            // That says nothing of the kernels.
            Err(error @ Error::OutOfMemory { .. }) => {
                (String::new(), self.refused(error.to_string()))
            }
            Err(error) => (format!("{FAILS}{error}"), self.refused(error.to_string())),
        };
        // What cannot be written stays begun, and is refused from then on.
        drop(self.write(&mut file, &line));
        verdict
    }

    /// Replaces what is in the file, durably: the next thing to happen may be the machine's end.
    fn write(&self, file: &mut File, line: &str) -> std::io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        if !line.is_empty() {
            let line = line.replace('\n', " ");
            file.write_all(format!("{line}\n{}\n", self.subject).as_bytes())?;
        }
        file.sync_all()
    }

    fn read(&self, text: &str) -> Option<Verdict> {
        let line = text.lines().next()?;
        Some(match line.strip_prefix(FAILS) {
            Some(fault) => self.refused(fault.to_owned()),
            None if line == HOLDS => Verdict::Proven,
            None => self.refused("a process that tried it did not live to say how".to_owned()),
        })
    }

    fn refused(&self, reason: String) -> Verdict {
        let (source_name, path) = (self.source.name, self.path.clone());
        Verdict::Refused(Refusal { source_name, reason, path })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn record(dir: &Path) -> Record {
        let path = dir.join("folder/some.verdict");
        Record { source: sources()[0], path, subject: "some.cu for sm_90a".to_owned() }
    }

    fn reason(verdict: &Verdict) -> &str {
        match verdict {
            Verdict::Proven => panic!("the kernels are proven"),
            Verdict::Refused(refusal) => &refusal.reason,
        }
    }

    fn never() -> Result<Option<String>, Error> {
        panic!("the kernels are tried again")
    }

    #[test]
    fn kernels_are_tried_once() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(dir.path());
        assert_eq!(record.verdict(), None);
        let during = || {
            assert_eq!(record.verdict(), None, "they are being tried");
            Ok(None)
        };
        assert_eq!(record.prove(during), Verdict::Proven);
        assert_eq!(record.prove(never), Verdict::Proven);
        assert_eq!(record.verdict(), Some(Verdict::Proven));
    }

    #[test]
    fn what_is_wrong_is_remembered_until_the_file_goes() {
        let broken = Error::Call { call: "cuLaunchKernel", message: "a\ntrap".to_owned() };
        for (found, expected) in
            [(Ok(Some("`out` is off".to_owned())), "`out` is off"), (Err(broken), "a trap")]
        {
            let dir = tempfile::tempdir().unwrap();
            let record = record(dir.path());
            let first = record.prove(|| found);
            assert!(reason(&first).replace('\n', " ").contains(expected), "{first:?}");
            let again = record.prove(never);
            assert!(reason(&again).contains(expected), "{again:?}");
            let Some(Verdict::Refused(refusal)) = record.verdict() else { panic!("a refusal") };
            assert!(refusal.to_string().contains("delete"), "{refusal}");
            std::fs::remove_file(refusal.path).unwrap();
            assert_eq!(record.prove(|| Ok(None)), Verdict::Proven);
        }
    }

    #[test]
    fn who_dies_trying_is_the_last_to_try() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(dir.path());
        let died = std::panic::catch_unwind(|| record.prove(|| panic!("a trap")));
        assert!(died.is_err());
        assert!(reason(&record.prove(never)).contains("did not live"));
        assert!(reason(&record.verdict().unwrap()).contains("did not live"));
    }

    #[test]
    fn a_full_gpu_is_no_verdict() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(dir.path());
        let full = Error::OutOfMemory { needed_bytes: 2, free_bytes: 1 };
        assert!(reason(&record.prove(|| Err(full))).contains("1 bytes free"));
        assert_eq!(record.prove(|| Ok(None)), Verdict::Proven);
    }

    #[test]
    fn without_a_place_for_the_verdict_nothing_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("folder"), "a file").unwrap();
        assert!(reason(&record(dir.path()).prove(never)).contains("cannot be kept"));
    }

    #[test]
    fn of_many_at_once_one_tries() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(dir.path());
        let n_tried = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let check = || {
                        n_tried.fetch_add(1, Ordering::Relaxed);
                        Ok(None)
                    };
                    assert_eq!(record.prove(check), Verdict::Proven);
                });
            }
        });
        assert_eq!(n_tried.into_inner(), 1);
    }
}
