//! Launches of `decode.cu`.

use half::bf16;

use super::cache::PAGE;
use crate::attention::Heads;
use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int};

kernel! {
    Write = "decode_write" in "decode.cu", threads 128, shared 0,
    {
        qkv: In<bf16>, slots: In<u32>, keys: Out<bf16>, values: Out<bf16>, n_heads: i32,
        n_kv_heads: i32, head_dim: i32,
    }
}

macro_rules! attend {
    ($name:ident = $function:literal, $dim:literal) => {
        kernel! {
            $name = $function in "decode.cu", threads 256, shared attend_bytes($dim),
            {
                qkv: In<bf16>, keys: In<bf16>, values: In<bf16>, tables: In<u32>, counts: In<u32>,
                out: Out<bf16>, n_heads: i32, n_kv_heads: i32, table_width: i32, scale: f32,
            }
        }
    };
}

attend!(Attend64 = "decode_attend_64", 64);
attend!(Attend128 = "decode_attend_128", 128);

/// The kernels.
pub static SOURCE: Source = Source::new(
    "decode.cu",
    include_str!("decode.cu"),
    &[Write::KERNEL, Attend64::KERNEL, Attend128::KERNEL],
);

/// Sums of every position lane of eight warps: `head_dim` values, a maximum and a mass.
const fn attend_bytes(head_dim: u32) -> u32 {
    8 * (32 / (head_dim / 8)) * (head_dim + 2) * 4
}

/// Keys and values of one layer, `[pages, n_kv_heads, 16, head_dim]` each.
#[derive(Clone)]
pub struct LayerCache {
    /// Keys.
    pub keys: Buffer<bf16>,
    /// Values.
    pub values: Buffer<bf16>,
}

impl LayerCache {
    /// Elements of the keys, and as many of the values, of `n_pages`.
    pub fn len_of(heads: Heads, n_pages: usize) -> usize {
        n_pages * PAGE * heads.kv_width()
    }

    /// Copies page `from` to page `to`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are no such pages.
    pub fn copy_page(
        &self,
        device: &dyn Device,
        heads: Heads,
        [from, to]: [u32; 2],
    ) -> Result<(), Error> {
        let page =
            |page: u32| Self::len_of(heads, page as usize)..Self::len_of(heads, page as usize + 1);
        for all in [&self.keys, &self.values] {
            all.slice(page(to)).copy_from(device, &all.slice(page(from)))?;
        }
        Ok(())
    }

    fn check(&self, heads: Heads) -> usize {
        heads.check();
        assert!(matches!(heads.head_dim, 64 | 128), "there is no kernel for {}", heads.head_dim);
        let page = PAGE * heads.kv_width();
        assert!(self.keys.len() == self.values.len() && self.keys.len().is_multiple_of(page));
        self.keys.len() / page
    }
}

/// Rows of a step on a device, checked against a cache of `n_pages`.
pub struct Step {
    slots: Buffer<u32>,
    tables: Buffer<u32>,
    counts: Buffer<u32>,
    n_rows: usize,
    n_pages: usize,
}

impl Step {
    /// Copies the page table and the number of positions of each row to the front of `scratch`: at
    /// least `rows`, `rows * longest table`, and `rows` elements. A row's own position is its last.
    ///
    /// Tables are as wide as the power of two above the longest where the scratch has the room, so
    /// that sequences which grow give few shapes.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are no rows, a row has no position or fewer pages than it needs, or a page is not
    /// in the cache.
    pub fn new(
        device: &dyn Device,
        rows: &[(&[u32], usize)],
        n_pages: usize,
        scratch: [&Buffer<u32>; 3],
    ) -> Result<Self, Error> {
        let longest = rows.iter().map(|(pages, _)| pages.len()).max().expect("there are rows");
        let room = scratch[1].len() / rows.len();
        let width = longest.next_power_of_two().min(room).max(longest);
        let mut tables = vec![0; rows.len() * width];
        let (mut slots, mut counts) = (Vec::new(), Vec::new());
        for ((pages, count), table) in rows.iter().zip(tables.chunks_exact_mut(width)) {
            assert!(*count > 0 && count.div_ceil(PAGE) <= pages.len(), "a row has its pages");
            assert!(pages.iter().all(|&page| (page as usize) < n_pages), "{n_pages} pages");
            table[..pages.len()].copy_from_slice(pages);
            let last = count - 1;
            slots.push(pages[last / PAGE] * PAGE as u32 + (last % PAGE) as u32);
            counts.push(*count as u32);
        }
        let put = |buffer: &Buffer<u32>, values: &[u32]| {
            let buffer = buffer.front(values.len());
            buffer.write(device, values).map(|()| buffer)
        };
        Ok(Self {
            slots: put(scratch[0], &slots)?,
            tables: put(scratch[1], &tables)?,
            counts: put(scratch[2], &counts)?,
            n_rows: rows.len(),
            n_pages,
        })
    }
}

impl Step {
    /// Pages of a row's table, those that it does not use counted in.
    pub fn table_width(&self) -> usize {
        self.tables.len() / self.n_rows
    }
}

/// Puts the keys and values of every row into the cache. `qkv`: `[rows, qkv_width]`, rotated.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths do not fit.
pub fn write(
    device: &dyn Device,
    qkv: &Buffer<bf16>,
    heads: Heads,
    step: &Step,
    cache: &LayerCache,
) -> Result<(), Error> {
    check(qkv, heads, step, cache);
    let kernel = Write {
        qkv: qkv.input(),
        slots: step.slots.input(),
        keys: cache.keys.output(),
        values: cache.values.output(),
        n_heads: int(heads.n_heads),
        n_kv_heads: int(heads.n_kv_heads),
        head_dim: int(heads.head_dim),
    };
    // SAFETY: Slots are inside the cache, whose pages were counted.
    unsafe { kernel.launch(device, Grid::row(blocks(step.n_rows), 128)) }
}

/// Writes the attention output of every row, `[rows, q_width]`.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths do not fit.
pub fn attend(
    device: &dyn Device,
    qkv: &Buffer<bf16>,
    heads: Heads,
    step: &Step,
    cache: &LayerCache,
    out: &Buffer<bf16>,
) -> Result<(), Error> {
    check(qkv, heads, step, cache);
    assert_eq!(out.len(), step.n_rows * heads.q_width(), "`out` is [rows, q_width]");
    let table_width = int(step.table_width());
    let (qkv, keys, values) = (qkv.input(), cache.keys.input(), cache.values.input());
    let (tables, counts, out) = (step.tables.input(), step.counts.input(), out.output());
    let (n_heads, n_kv_heads) = (int(heads.n_heads), int(heads.n_kv_heads));
    let scale = 1.0 / (heads.head_dim as f32).sqrt();
    let grid = Grid {
        blocks: [blocks(step.n_rows), blocks(heads.n_kv_heads), 1],
        threads: 256,
        shared_bytes: attend_bytes(heads.head_dim as u32),
    };
    macro_rules! launch {
        ($kernel:ident) => {
            $kernel {
                qkv,
                keys,
                values,
                tables,
                counts,
                out,
                n_heads,
                n_kv_heads,
                table_width,
                scale,
            }
            .launch(device, grid)
        };
    }
    // SAFETY: A row reads the pages of its table, which are inside the cache, up to its count.
    unsafe { if heads.head_dim == 64 { launch!(Attend64) } else { launch!(Attend128) } }
}

fn check(qkv: &Buffer<bf16>, heads: Heads, step: &Step, cache: &LayerCache) {
    assert_eq!(cache.check(heads), step.n_pages, "the step was planned for this cache");
    assert_eq!(qkv.len(), step.n_rows * heads.qkv_width(), "`qkv` is [rows, qkv_width]");
}
