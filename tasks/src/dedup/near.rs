//! Near duplicates: signatures of all documents on disk, and sets of those that share a band.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use engine::task::{Context, Failure};
use kernels::Pool;

use super::minhash::{MinHash, Words};
use super::{BATCH_BYTES, CHUNK_DOCUMENTS, Clusters, Params};
use crate::corpus::Corpus;
use crate::format::Error;
use crate::shingle::jaccard;

/// Finds near duplicates; see the module.
pub(super) struct Near {
    dir: PathBuf,
    minhash: MinHash,
    bands: Vec<BandFile>,
    n_documents: u32,
    /// Documents without a word: they have no band, and zeros stand for it.
    wordless: Vec<u32>,
}

/// One band of every document, in order.
struct BandFile(BufWriter<File>);

impl BandFile {
    fn create(dir: &Path) -> Result<Self, Error> {
        let file = tempfile::tempfile_in(dir).map_err(|error| Error::io("create", dir, error))?;
        Ok(Self(BufWriter::with_capacity(1 << 16, file)))
    }

    fn read(&mut self, n: u32) -> io::Result<Vec<u64>> {
        self.0.flush()?;
        let file = self.0.get_mut();
        file.rewind()?;
        let mut values = vec![0_u64; n as usize];
        file.read_exact(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

impl Near {
    pub(super) fn new(params: &Params, dir: &Path) -> Result<Self, Failure> {
        let bands = (0..params.bands).map(|_| BandFile::create(dir));
        Ok(Self {
            dir: dir.to_owned(),
            minhash: MinHash::new(params.seed, params.bands, params.band_values),
            bands: bands.collect::<Result<_, _>>()?,
            n_documents: 0,
            wordless: Vec::new(),
        })
    }

    pub(super) fn minhash(&self) -> MinHash {
        self.minhash.clone()
    }

    /// Takes the bands of the next document; `None` when it has no words.
    pub(super) fn push(&mut self, bands: Option<&[u64]>) -> Result<(), Failure> {
        if bands.is_none() {
            self.wordless.push(self.n_documents);
        }
        for (b, file) in self.bands.iter_mut().enumerate() {
            let band = bands.map_or(0, |bands| bands[b]);
            let written = file.0.write_all(&band.to_ne_bytes());
            written.map_err(|error| Error::io("write to", &self.dir, error))?;
        }
        self.n_documents += 1;
        Ok(())
    }

    /// Joins documents that share a band and are similar enough; returns how many pairs were
    /// compared. Exact duplicates have equal bands: the first of each stands for all.
    pub(super) fn join(
        mut self,
        ctx: &Context,
        corpus: &Corpus,
        params: &Params,
        is_exact: &[bool],
        clusters: &mut Clusters,
    ) -> Result<u64, Failure> {
        let mut is_out = is_exact.to_vec();
        self.wordless.iter().for_each(|&i| is_out[i as usize] = true);
        let candidates = Candidates::find(ctx, &mut self, &is_out)?;
        let sets = candidates.sets(ctx, corpus, &self.dir)?;
        candidates.join(ctx, &sets, params.min_jaccard, clusters)
    }
}

/// Shingles of the candidates, one set after the other in a file without a name. They may take more
/// than the memory there is, so each is read when it is compared.
struct Sets {
    dir: PathBuf,
    file: File,
    /// Where each candidate's set begins, in shingles, and where the last ends.
    offsets: Vec<u64>,
}

impl Sets {
    /// The set of a candidate into `set`.
    fn read(&self, candidate: u32, set: &mut Vec<u64>) -> Result<(), Error> {
        let i = candidate as usize;
        let (from, to) = (self.offsets[i], self.offsets[i + 1]);
        set.resize((to - from) as usize, 0);
        let read = self.file.read_exact_at(bytemuck::cast_slice_mut(set), 8 * from);
        read.map_err(|error| Error::io("read back from", &self.dir, error))
    }
}

/// The documents that share a band with another.
struct Candidates {
    /// Their indices, ascending.
    documents: Vec<u32>,
    /// `[bands][documents]`.
    bands: Vec<Vec<u64>>,
}

impl Candidates {
    fn find(ctx: &Context, near: &mut Near, is_out: &[bool]) -> Result<Self, Failure> {
        let (n, dir) = (near.n_documents, near.dir.clone());
        let failed = |error| Error::io("read back from", &dir, error);
        let mut is_candidate = vec![false; n as usize];
        let in_play = |&i: &u32| !is_out[i as usize];
        for file in &mut near.bands {
            ctx.check_cancelled()?;
            let values = file.read(n).map_err(failed)?;
            let mut order: Vec<(u64, u32)> =
                (0..n).filter(in_play).map(|i| (values[i as usize], i)).collect();
            drop(values);
            order.sort_unstable();
            for bucket in order.chunk_by(|a, b| a.0 == b.0).filter(|bucket| bucket.len() > 1) {
                for (_, i) in bucket {
                    is_candidate[*i as usize] = true;
                }
            }
        }
        let documents: Vec<u32> = (0..n).filter(|&i| is_candidate[i as usize]).collect();
        let mut bands = Vec::with_capacity(near.bands.len());
        for file in &mut near.bands {
            let values = file.read(n).map_err(failed)?;
            bands.push(documents.iter().map(|&i| values[i as usize]).collect());
        }
        Ok(Self { documents, bands })
    }

    /// Reads the corpus again for the candidates' shingles.
    fn sets(&self, ctx: &Context, corpus: &Corpus, dir: &Path) -> Result<Sets, Failure> {
        let pool = Pool::new(ctx.n_threads());
        let failed = |error: io::Error| Error::io("write to", dir, error);
        let file = tempfile::tempfile_in(dir).map_err(failed)?;
        let mut writer = BufWriter::with_capacity(1 << 16, file);
        let mut offsets = vec![0_u64];
        let mut next = self.documents.iter().copied().peekable();
        let mut documents = corpus.documents();
        let mut n_read = 0_u32;
        while next.peek().is_some() {
            ctx.check_cancelled()?;
            let mut batch = documents.next_batch(BATCH_BYTES)?;
            let mut index = n_read;
            n_read += batch.len() as u32;
            ctx.progress(u64::from(n_read), corpus.n_documents(), "documents");
            batch.retain(|_| {
                index += 1;
                next.next_if_eq(&(index - 1)).is_some()
            });
            let mut sets: Vec<Vec<u64>> = vec![Vec::new(); batch.len()];
            pool.for_chunks(&mut sets, CHUNK_DOCUMENTS, |chunk, slots| {
                let documents = &batch[chunk * CHUNK_DOCUMENTS..];
                for (slot, document) in slots.iter_mut().zip(documents) {
                    *slot = Words::of(&document.text).shingles();
                }
            });
            for set in sets {
                writer.write_all(bytemuck::cast_slice(&set)).map_err(failed)?;
                offsets.push(offsets.last().expect("it starts with one") + set.len() as u64);
            }
        }
        let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        Ok(Sets { dir: dir.to_owned(), file, offsets })
    }

    fn join(
        &self,
        ctx: &Context,
        sets: &Sets,
        min_jaccard: f64,
        clusters: &mut Clusters,
    ) -> Result<u64, Failure> {
        let (mut own, mut other) = (Vec::new(), Vec::new());
        let mut held = None;
        let mut n_compared = 0;
        for (b, band) in self.bands.iter().enumerate() {
            // Two that shared an earlier band were compared there.
            let is_new = |i: u32, j: u32| {
                self.bands[..b].iter().all(|band| band[i as usize] != band[j as usize])
            };
            let mut order: Vec<u32> = (0..self.documents.len() as u32).collect();
            order.sort_unstable_by_key(|&i| (band[i as usize], i));
            let same = |i: &u32, j: &u32| band[*i as usize] == band[*j as usize];
            for bucket in order.chunk_by(same).filter(|bucket| bucket.len() > 1) {
                let mut parts: Vec<Vec<u32>> = Vec::new();
                for &i in bucket {
                    ctx.check_cancelled()?;
                    let mut failed = None;
                    let mut is_similar = |j: u32| {
                        if failed.is_some() || !is_new(i, j) {
                            return false;
                        }
                        n_compared += 1;
                        let mut read = || {
                            // Most candidates are compared in one band only.
                            if held != Some(i) {
                                sets.read(i, &mut own)?;
                                held = Some(i);
                            }
                            sets.read(j, &mut other)
                        };
                        failed = read().err();
                        failed.is_none() && jaccard(&own, &other) >= min_jaccard
                    };
                    self.place(i, &mut parts, clusters, &mut is_similar);
                    if let Some(error) = failed {
                        return Err(error.into());
                    }
                }
            }
            ctx.progress(b as u64 + 1, self.bands.len() as u64, "bands");
        }
        Ok(n_compared)
    }

    /// Puts candidate `i` of a bucket among the others, which stand in parts that are connected
    /// already: one similar member of a part is enough, so a bucket of copies takes a comparison each.
    fn place(
        &self,
        i: u32,
        parts: &mut Vec<Vec<u32>>,
        clusters: &mut Clusters,
        is_similar: &mut dyn FnMut(u32) -> bool,
    ) {
        let document = |i: u32| self.documents[i as usize];
        let mut own = vec![i];
        parts.retain_mut(|part| {
            let (a, b) = (document(i), document(part[0]));
            let is_joined = clusters.root(a) == clusters.root(b);
            if !is_joined && !part.iter().any(|&j| is_similar(j)) {
                return true;
            }
            clusters.join(a, b);
            own.append(part);
            false
        });
        parts.push(own);
    }
}
