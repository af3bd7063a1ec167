//! Launches of `int8_search.cu`: exact search on a device, with the CPU's results bit for bit.
//!
//! Values are searched in growing ranges. What scores above a query's threshold goes to the query's
//! bucket; after each range the best `k` of the bucket stay and give the next threshold. A range
//! whose finds exceed a bucket is searched again in halves, so nothing is lost, whatever the order of
//! the values.

use super::{Hit, Own, Rows, Search};
use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int};

const TILE_QUERIES: usize = 128;
const TILE_VALUES: usize = 256;
/// Columns are padded to whole slices.
const SLICE: usize = 64;
const TILES_SHARED: u32 = 4 * (TILE_QUERIES + TILE_VALUES) as u32 * SLICE as u32;
/// Candidates that a query's bucket holds.
const CAPACITY: usize = 2048;
/// Most hits of a query: a bucket must have room for the best and for a range of new ones.
pub const K_MAX: usize = CAPACITY / 2;
/// Queries that share one pass over the values; their buckets take 256 MiB.
const BATCH: usize = 16_384;

kernel! {
    Tiles = "int8_search_tiles" in "int8_search.cu", threads 256, shared TILES_SHARED,
    {
        queries: In<i8>, query_scales: In<f32>, values: In<i8>, value_scales: In<f32>,
        thresholds: In<f32>, hits: Out<u64>, counts: Out<u32>, n_queries: i32, n_values: i32,
        columns: i32, capacity: i32, first_query: u32, first_value: u32, exclude_own: i32,
    }
}

kernel! {
    Check = "int8_search_overflow" in "int8_search.cu", threads 256, shared 0,
    { counts: In<u32>, overflow: Out<u32>, n_queries: i32, capacity: i32 }
}

kernel! {
    Select = "int8_search_select" in "int8_search.cu", threads 256, shared CAPACITY as u32 * 8,
    {
        hits: Out<u64>, counts: Out<u32>, kept: Out<u32>, thresholds: Out<f32>, capacity: i32,
        k: i32,
    }
}

/// The kernels.
pub static SOURCE: Source = Source::new(
    "int8_search.cu",
    include_str!("int8_search.cu"),
    &[Tiles::KERNEL, Check::KERNEL, Select::KERNEL],
);

/// Rows on a device, columns padded with zeros.
pub struct DeviceRows {
    q: Buffer<i8>,
    scales: Buffer<f32>,
    columns: usize,
    padded: usize,
    first_id: u32,
}

impl DeviceRows {
    /// Copies rows to a device.
    ///
    /// # Errors
    /// When there is not enough memory.
    ///
    /// # Panics
    /// When there are no rows, or a length, a value or a scale is out of its range.
    pub fn new(device: &dyn Device, rows: Rows<'_>) -> Result<Self, Error> {
        rows.check();
        assert!(rows.n() > 0, "there are rows");
        let padded = rows.columns.next_multiple_of(SLICE);
        let q = if padded == rows.columns {
            Buffer::of(device, rows.q)?
        } else {
            let mut wide = vec![0; rows.n() * padded];
            for (wide, row) in wide.chunks_exact_mut(padded).zip(rows.q.chunks_exact(rows.columns))
            {
                wide[..rows.columns].copy_from_slice(row);
            }
            Buffer::of(device, &wide)?
        };
        let scales = Buffer::of(device, rows.scales)?;
        Ok(Self { q, scales, columns: rows.columns, padded, first_id: rows.first_id })
    }

    /// Rows.
    pub fn n(&self) -> usize {
        self.scales.len()
    }
}

/// Bytes of device memory to search `n_values` rows for `n_queries` at a time.
pub fn bytes(n_queries: usize, n_values: usize, columns: usize) -> u64 {
    let row = columns.next_multiple_of(SLICE) + size_of::<f32>();
    let bucket = CAPACITY * size_of::<u64>() + 3 * size_of::<u32>();
    ((n_queries + n_values) * row + n_queries.min(BATCH) * bucket) as u64
}

/// [`super::search`] on a device.
///
/// # Errors
/// When the device fails or has not enough memory.
///
/// # Panics
/// When the numbers of columns differ, or `k` is 0 or above [`K_MAX`].
pub fn search(
    device: &dyn Device,
    queries: &DeviceRows,
    values: &DeviceRows,
    search: Search,
) -> Result<Vec<Vec<Hit>>, Error> {
    assert_eq!(queries.columns, values.columns, "queries and values differ in columns");
    assert!(search.k > 0 && search.k <= K_MAX, "k is {} of at most {K_MAX}", search.k);
    assert!(!search.min_score.is_nan(), "the lowest score is NaN");
    let n_most = queries.n().min(BATCH);
    let batch = Batch {
        device,
        search,
        hits: Buffer::poisoned(device, n_most * CAPACITY)?,
        counts: Buffer::poisoned(device, n_most)?,
        kept: Buffer::poisoned(device, n_most)?,
        thresholds: Buffer::poisoned(device, n_most)?,
        overflow: Buffer::poisoned(device, 1)?,
    };
    let mut found = Vec::with_capacity(queries.n());
    for first in (0..queries.n()).step_by(BATCH) {
        batch.run(queries, first..queries.n().min(first + BATCH), values, &mut found)?;
    }
    Ok(found)
}

/// Buffers of the queries that are searched together.
struct Batch<'a> {
    device: &'a dyn Device,
    search: Search,
    hits: Buffer<u64>,
    counts: Buffer<u32>,
    kept: Buffer<u32>,
    thresholds: Buffer<f32>,
    overflow: Buffer<u32>,
}

impl Batch<'_> {
    fn run(
        &self,
        queries: &DeviceRows,
        range: std::ops::Range<usize>,
        values: &DeviceRows,
        found: &mut Vec<Vec<Hit>>,
    ) -> Result<(), Error> {
        let (device, n) = (self.device, range.len());
        let thresholds = vec![self.search.min_score; n];
        self.thresholds.front(n).write(device, &thresholds)?;
        self.counts.front(n).clear(device)?;
        self.kept.front(n).clear(device)?;
        let mut done = 0;
        let mut length = CAPACITY - self.search.k;
        while done < values.n() {
            let end = values.n().min(done + length);
            if self.tiles(queries, range.clone(), values, done..end)? {
                // Ranges grow with what was seen: about `k` new candidates are expected of each.
                done = end;
                length = done.max(CAPACITY - self.search.k);
                self.select(n)?;
            } else {
                self.counts.front(n).copy_from(device, &self.kept.front(n))?;
                length = ((end - done) / 2).max(CAPACITY - self.search.k);
            }
        }
        let counts = self.counts.front(n).read(device)?;
        let hits = self.hits.front(n * CAPACITY).read(device)?;
        found.extend(counts.iter().zip(hits.chunks_exact(CAPACITY)).map(|(&count, hits)| {
            hits[..count as usize].iter().map(|&key| hit(key)).collect::<Vec<Hit>>()
        }));
        Ok(())
    }

    /// Adds candidates of a range of values; false when a bucket was too small.
    fn tiles(
        &self,
        queries: &DeviceRows,
        range: std::ops::Range<usize>,
        values: &DeviceRows,
        chunk: std::ops::Range<usize>,
    ) -> Result<bool, Error> {
        let (device, n, width) = (self.device, range.len(), queries.padded);
        let part = |rows: &DeviceRows, range: &std::ops::Range<usize>| {
            let q = rows.q.slice(range.start * width..range.end * width).input();
            (q, rows.scales.slice(range.clone()).input(), rows.first_id + range.start as u32)
        };
        let (q, query_scales, first_query) = part(queries, &range);
        let (v, value_scales, first_value) = part(values, &chunk);
        let kernel = Tiles {
            queries: q,
            query_scales,
            values: v,
            value_scales,
            thresholds: self.thresholds.input(),
            hits: self.hits.output(),
            counts: self.counts.output(),
            n_queries: int(n),
            n_values: int(chunk.len()),
            columns: int(width),
            capacity: int(CAPACITY),
            first_query,
            first_value,
            exclude_own: i32::from(self.search.own == Own::Exclude),
        };
        let tiles = n.div_ceil(TILE_QUERIES) * chunk.len().div_ceil(TILE_VALUES);
        let grid = Grid::row(blocks(tiles), 256).shared(TILES_SHARED);
        // SAFETY: Rows of the ranges; a bucket's entries are below its capacity.
        unsafe { kernel.launch(device, grid) }?;
        self.overflow.clear(device)?;
        let check = Check {
            counts: self.counts.input(),
            overflow: self.overflow.output(),
            n_queries: int(n),
            capacity: int(CAPACITY),
        };
        // SAFETY: `n` counts and one flag.
        unsafe { check.launch(device, Grid::row(blocks(n.div_ceil(256)), 256)) }?;
        Ok(self.overflow.read(device)?[0] == 0)
    }

    /// Cuts every bucket back to its best `k`, in order.
    fn select(&self, n: usize) -> Result<(), Error> {
        let kernel = Select {
            hits: self.hits.output(),
            counts: self.counts.output(),
            kept: self.kept.output(),
            thresholds: self.thresholds.output(),
            capacity: int(CAPACITY),
            k: int(self.search.k),
        };
        let grid = Grid::row(blocks(n), 256).shared(CAPACITY as u32 * 8);
        // SAFETY: Block `q` touches bucket `q` and its three numbers.
        unsafe { kernel.launch(self.device, grid) }
    }
}

/// The hit of a key: the score's bits in order above, the id's complement below.
fn hit(key: u64) -> Hit {
    let ordered = (key >> 32) as u32;
    let bits = if ordered >> 31 == 1 { ordered & 0x7fff_ffff } else { !ordered };
    Hit { id: !(key as u32), score: f32::from_bits(bits) }
}
