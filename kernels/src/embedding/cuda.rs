//! Launches of `embedding.cu`.

use half::bf16;

use crate::cuda::launch::{Grid, In, Out, kernel};
use crate::cuda::{Buffer, Device, Error, Source, blocks, int};

kernel! {
    Forward = "embedding_bf16" in "embedding.cu", threads 128, shared 0,
    { table: In<bf16>, ids: In<u32>, out: Out<bf16>, cols: i32 }
}

kernel! {
    Backward = "embedding_backward_bf16" in "embedding.cu", threads 64, shared 0,
    { d_out: In<bf16>, order: In<u32>, groups: In<u32>, d_table: Out<f32>, cols: i32 }
}

/// The kernels.
pub static SOURCE: Source =
    Source::new("embedding.cu", include_str!("embedding.cu"), &[Forward::KERNEL, Backward::KERNEL]);

/// Token ids on a device, checked against a table, with the tokens of each id together.
pub struct Ids {
    by_token: Buffer<u32>,
    order: Buffer<u32>,
    groups: Buffer<u32>,
    n_rows: usize,
}

impl Ids {
    /// Copies `ids` into the front of `scratch`, three buffers of at least `ids.len()`,
    /// `ids.len()` and `3 * ids.len()` elements.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are no ids, an id is not below `n_rows`, or a buffer is too short.
    pub fn new(
        device: &dyn Device,
        ids: &[u32],
        n_rows: usize,
        scratch: [&Buffer<u32>; 3],
    ) -> Result<Self, Error> {
        let largest = ids.iter().copied().max().expect("there are ids") as usize;
        assert!(largest < n_rows, "id {largest} has no row in a table of {n_rows}");
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|&t| ids[t as usize]);
        let mut groups: Vec<[u32; 3]> = Vec::new();
        for (n, &t) in (0..).zip(&order) {
            let id = ids[t as usize];
            match groups.last_mut() {
                Some(group) if group[0] == id => group[2] = n + 1,
                _ => groups.push([id, n, n + 1]),
            }
        }
        // As many groups as tokens, so that launches do not depend on the ids; the rest are empty.
        groups.resize(ids.len(), [0; 3]);
        let groups = groups.as_flattened();
        let put = |buffer: &Buffer<u32>, values: &[u32]| {
            let buffer = buffer.front(values.len());
            buffer.write(device, values).map(|()| buffer)
        };
        Ok(Self {
            by_token: put(scratch[0], ids)?,
            order: put(scratch[1], &order)?,
            groups: put(scratch[2], groups)?,
            n_rows,
        })
    }
}

/// [`super::forward`] on a device.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When the lengths do not fit, or a row is not a multiple of 8 elements.
pub fn forward(
    device: &dyn Device,
    table: &Buffer<bf16>,
    ids: &Ids,
    out: &Buffer<bf16>,
) -> Result<(), Error> {
    let cols = cols(ids, table.len(), out.len());
    let kernel = Forward {
        table: table.input(),
        ids: ids.by_token.input(),
        out: out.output(),
        cols: int(cols),
    };
    // SAFETY: Block `t` reads row `ids[t] < n_rows` of the table and writes row `t` of `out`.
    unsafe { kernel.launch(device, Grid::row(blocks(ids.by_token.len()), 128)) }
}

/// [`super::backward`] on a device: `d_table += ..`.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// As of [`forward`].
pub fn backward(
    device: &dyn Device,
    ids: &Ids,
    d_out: &Buffer<bf16>,
    d_table: &Buffer<f32>,
) -> Result<(), Error> {
    let cols = cols(ids, d_table.len(), d_out.len());
    let kernel = Backward {
        d_out: d_out.input(),
        order: ids.order.input(),
        groups: ids.groups.input(),
        d_table: d_table.output(),
        cols: int(cols),
    };
    let grid = Grid {
        blocks: [blocks(ids.groups.len() / 3), blocks((cols / 8).div_ceil(64)), 1],
        threads: 64,
        shared_bytes: 0,
    };
    // SAFETY: A group's tokens are below `ids.len()`, its id below `n_rows`; groups with tokens have
    // distinct ids and those without write nothing, so no two blocks write the same row.
    unsafe { kernel.launch(device, grid) }
}

fn cols(ids: &Ids, table_len: usize, out_len: usize) -> usize {
    let cols = out_len / ids.by_token.len();
    assert_eq!(out_len, ids.by_token.len() * cols, "each id has one row");
    assert!(cols > 0 && cols.is_multiple_of(8), "{cols} columns are not a multiple of 8");
    assert_eq!(table_len, ids.n_rows * cols, "the table has the rows that ids were checked for");
    cols
}
