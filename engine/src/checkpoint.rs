//! What a long task saves mid-way, bound to the node's key.
//!
//! A checkpoint is a folder `step-N` with a `manifest.json` of its files' digests. It is written
//! beside its final place, made durable, then renamed, so that a crash leaves either the whole
//! checkpoint or none. [`CheckpointStore::latest`] verifies before it returns.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

const MANIFEST: &str = "manifest.json";
/// With the epoch of the attempt that writes it after a `-`.
const PARTIAL: &str = "partial";
const OWN: &str = "own";
const JOURNAL: &str = "journal";

/// A verified checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The step it was saved at.
    pub step: u64,
    /// The folder with the files that the task wrote.
    pub dir: PathBuf,
}

/// Lines that a task keeps one by one, each durable before the task goes on: for work that must not
/// be done twice, such as paid requests. Bound to the node's key and gone with its checkpoints.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

impl Journal {
    /// Adds a line and makes it durable.
    ///
    /// # Errors
    /// When the line has a line break, or writing fails.
    pub fn append(&mut self, line: &str) -> io::Result<()> {
        if line.contains('\n') {
            return Err(io::Error::other("a line of the journal has a line break"));
        }
        self.file.write_all(format!("{} {line}\n", Digest::of(line.as_bytes())).as_bytes())?;
        self.file.sync_data()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    files: Vec<ManifestFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    path: String,
    digest: Digest,
    size_bytes: u64,
}

/// The checkpoints of one node key, as one attempt sees them.
///
/// An attempt that lost its lease without knowing, because its machine stood still, may go on
/// writing beside the one that took over. So each writes under a name of its own, and removes only
/// what is older than what it has just saved.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    dir: PathBuf,
    epoch: i64,
}

impl CheckpointStore {
    /// Checkpoints in `dir`, which need not exist yet.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, epoch: 0 }
    }

    /// The same checkpoints for the attempt with this epoch.
    #[must_use]
    pub(crate) fn for_attempt(self, epoch: i64) -> Self {
        Self { epoch, ..self }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The newest checkpoint whose files match its manifest.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn latest(&self) -> io::Result<Option<Checkpoint>> {
        let mut steps = self.steps()?;
        while let Some(step) = steps.pop() {
            let dir = self.step_dir(step);
            if verify(&dir).is_ok() {
                return Ok(Some(Checkpoint { step, dir }));
            }
        }
        Ok(None)
    }

    /// Saves a checkpoint and removes older ones; see [`crate::task::Context::save_checkpoint`].
    ///
    /// # Errors
    /// When writing fails; the previous checkpoint then still stands.
    pub fn save(&self, step: u64, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        self.remove_partial()?;
        let partial = self.dir.join(format!("{PARTIAL}-{}", self.epoch));
        fs::create_dir_all(&partial)?;
        write(&partial)?;
        seal(&partial)?;
        let target = self.step_dir(step);
        remove_dir(&target)?;
        match fs::rename(&partial, &target) {
            // An attempt beside this one saved the same step, and so the same files, a moment ago.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => remove_dir(&partial)?,
            renamed => renamed?,
        }
        File::open(&self.dir)?.sync_all()?;
        for older in self.steps()?.into_iter().filter(|&older| older < step) {
            // It only takes space, and an attempt beside this one may be removing it too.
            let _ = remove_dir(&self.step_dir(older));
        }
        Ok(())
    }

    /// Whether there is anything to clear.
    pub(crate) fn exists(&self) -> bool {
        self.dir.exists()
    }

    /// A folder for programs that look after their own checkpoints, made when missing.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn own_dir(&self) -> io::Result<PathBuf> {
        let dir = self.dir.join(OWN);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// The whole lines of the journal, oldest first, and the journal to add to. A line that a crash cut
    /// short is left out.
    ///
    /// # Errors
    /// When the file cannot be read or opened.
    pub fn journal(&self) -> io::Result<(Vec<String>, Journal)> {
        fs::create_dir_all(&self.dir)?;
        let path = self.dir.join(JOURNAL);
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&path)?;
        let bytes = fs::read(&path)?;
        if bytes.last().is_some_and(|byte| *byte != b'\n') {
            file.write_all(b"\n")?;
        }
        File::open(&self.dir)?.sync_all()?;
        let whole = |line: &[u8]| {
            let (digest, text) = std::str::from_utf8(line).ok()?.split_once(' ')?;
            (digest == Digest::of(text.as_bytes()).to_string()).then(|| text.to_owned())
        };
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(whole).collect();
        Ok((lines, Journal { file }))
    }

    /// Removes every checkpoint and the journal, once the node's result is published.
    ///
    /// # Errors
    /// When the folder exists and cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        remove_dir(&self.dir)
    }

    /// Removes what this attempt and those before it left half written.
    fn remove_partial(&self) -> io::Result<()> {
        let earlier = self.numbered(PARTIAL)?.into_iter().filter(|(_, epoch)| *epoch <= self.epoch);
        for (name, epoch) in earlier {
            // Whoever took over cannot wait for one that still writes.
            let removed = remove_dir(&self.dir.join(name));
            if epoch == self.epoch {
                removed?;
            }
        }
        Ok(())
    }

    fn step_dir(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:012}"))
    }

    fn steps(&self) -> io::Result<Vec<u64>> {
        let steps = self.numbered("step")?.into_iter();
        let mut steps: Vec<u64> = steps.filter_map(|(_, step)| u64::try_from(step).ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Entries whose name is `prefix`, a `-` and a number.
    fn numbered(&self, prefix: &str) -> io::Result<Vec<(String, i64)>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let number = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                found.push((name, number));
            }
        }
        Ok(found)
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes the manifest and makes every file and the folder durable.
fn seal(dir: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(dir).sort_by_file_name() {
        let entry = entry.map_err(io::Error::other)?;
        if !entry.file_type().is_file() {
            continue;
        }
        let (digest, size_bytes) = Digest::of_file(entry.path())?;
        File::open(entry.path())?.sync_all()?;
        let path = entry.path().strip_prefix(dir).map_err(io::Error::other)?;
        let path = path.to_str().ok_or_else(|| io::Error::other("file name is not UTF-8"))?;
        files.push(ManifestFile { path: path.to_owned(), digest, size_bytes });
    }
    let manifest = serde_json::to_vec(&Manifest { version: 1, files })?;
    fs::write(dir.join(MANIFEST), manifest)?;
    File::open(dir.join(MANIFEST))?.sync_all()?;
    File::open(dir)?.sync_all()
}

fn verify(dir: &Path) -> io::Result<()> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join(MANIFEST))?)?;
    for file in manifest.files {
        if Digest::of_file(&dir.join(&file.path))? != (file.digest, file.size_bytes) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "checkpoint is damaged"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_valid_checkpoint_wins() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(dir.path().join("key"));
        assert_eq!(store.latest().unwrap(), None);
        store.save(1, |dir| fs::write(dir.join("state"), b"one")).unwrap();
        store.save(20, |dir| fs::write(dir.join("state"), b"twenty")).unwrap();
        let latest = store.latest().unwrap().unwrap();
        assert_eq!(
            (latest.step, fs::read(latest.dir.join("state")).unwrap()),
            (20, b"twenty".to_vec())
        );
        fs::write(latest.dir.join("state"), b"twentx").unwrap();
        assert_eq!(store.latest().unwrap(), None);
    }

    #[test]
    fn failed_save_keeps_the_previous_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(dir.path().to_owned());
        store.save(1, |dir| fs::write(dir.join("state"), b"one")).unwrap();
        let failed = store.save(2, |dir| {
            fs::write(dir.join("state"), b"tw")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(failed.is_err());
        assert_eq!(store.latest().unwrap().unwrap().step, 1);
    }

    #[test]
    fn an_attempt_that_lost_its_lease_spoils_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(dir.path().join("key"));
        let [old, new] = [3, 4].map(|epoch| store.clone().for_attempt(epoch));
        old.save(1, |dir| fs::write(dir.join("state"), b"one")).unwrap();
        // The old attempt stands still in the middle of a save, and goes on after the new one took
        // over, went further, and is in the middle of a save itself.
        old.save(2, |of_old| {
            new.save(2, |dir| fs::write(dir.join("state"), b"two"))?;
            new.save(3, |of_new| {
                fs::write(of_new.join("state"), b"three")?;
                assert_ne!(of_old, of_new);
                fs::create_dir_all(of_old)?;
                fs::write(of_old.join("state"), b"two")?;
                old.remove_partial()?;
                assert!(of_new.exists(), "the old attempt removed what the new one writes");
                Ok(())
            })?;
            fs::create_dir_all(of_old)?;
            fs::write(of_old.join("state"), b"two")
        })
        .unwrap();
        let latest = store.latest().unwrap().unwrap();
        assert_eq!(
            (latest.step, fs::read(latest.dir.join("state")).unwrap()),
            (3, b"three".to_vec())
        );
        // The next save leaves nothing behind.
        new.save(4, |dir| fs::write(dir.join("state"), b"four")).unwrap();
        assert_eq!(fs::read_dir(store.dir()).unwrap().count(), 1);
    }

    #[test]
    fn journals_keep_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(dir.path().join("key"));
        let (lines, mut journal) = store.journal().unwrap();
        assert!(lines.is_empty());
        journal.append("one").unwrap();
        journal.append("").unwrap();
        journal.append("two words").unwrap();
        assert!(journal.append("a\nb").is_err());
        // A crash in the middle of a line, then another attempt.
        let path = dir.path().join("key").join(JOURNAL);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let (lines, mut journal) = store.journal().unwrap();
        assert_eq!(lines, ["one", ""]);
        journal.append("three").unwrap();
        assert_eq!(store.journal().unwrap().0, ["one", "", "three"]);
        // Checkpoints come and go beside it.
        store.save(1, |dir| fs::write(dir.join("state"), b"x")).unwrap();
        store.save(2, |dir| fs::write(dir.join("state"), b"y")).unwrap();
        assert_eq!(store.journal().unwrap().0.len(), 3);
        store.clear().unwrap();
        assert!(store.journal().unwrap().0.is_empty());
    }
}
