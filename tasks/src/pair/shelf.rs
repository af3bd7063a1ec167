//! The values of a shard where they are searched: packed in memory, or on a device.

use engine::task::Failure;
use kernels::Pool;
use kernels::cuda::Device;
use kernels::int8_search::cuda::{self, DeviceRows};
use kernels::int8_search::{self, Hit, Rescore, Rows, Search, Values};

use crate::device;

/// Multiply-adds of a search on the CPU between two looks at the cancel token: below a second on one
/// thread of any path.
const STRIDE_MACS: usize = 8 << 30;
/// Queries of a search call on the CPU, a multiple of the kernel's work item.
const STRIDE_QUERIES: usize = 256;

/// See the module.
pub(super) enum Shelf<'a> {
    Cpu { values: Values, macs_per_query: usize },
    Device { device: &'a dyn Device, values: DeviceRows },
}

/// What a search of `[n_queries, n_values, dim]` for `k` candidates each is to ask of a device.
pub(super) fn work([n_queries, n_values, dim]: [usize; 3], k: usize) -> device::Work {
    let limit = cuda::K_MAX;
    let supported = if k <= limit {
        Ok(())
    } else {
        Err(format!("{k} candidates a document are more than {limit}; lower `k`"))
    };
    let planned_bytes = cuda::bytes(n_queries, n_values, dim);
    device::Work { supported, planned_bytes, remedy: "lower `shard_documents`" }
}

impl<'a> Shelf<'a> {
    /// Puts `rows` on the device, or packs them.
    pub(super) fn new(
        device: Option<&'a dyn Device>,
        pool: &Pool,
        rows: Rows<'_>,
    ) -> Result<Self, Failure> {
        let Some(device) = device else {
            let macs_per_query = rows.q.len();
            return Ok(Self::Cpu { values: Values::pack(pool, rows), macs_per_query });
        };
        let values = DeviceRows::new(device, rows).map_err(device::failure)?;
        Ok(Self::Device { device, values })
    }

    /// Queries of a call, of the `n_keys` of a tile: a device takes them all at once.
    pub(super) fn stride(&self, n_keys: usize) -> usize {
        match self {
            Self::Cpu { macs_per_query, .. } => {
                (STRIDE_MACS / macs_per_query).max(1).next_multiple_of(STRIDE_QUERIES)
            }
            Self::Device { .. } => n_keys,
        }
    }

    /// The hits of each query, as [`int8_search::search_rescored`] gives them.
    pub(super) fn search(
        &self,
        pool: &Pool,
        queries: Rows<'_>,
        search: Search,
        rescore: Rescore<'_>,
    ) -> Result<Vec<Vec<Hit>>, Failure> {
        match self {
            Self::Cpu { values, .. } => {
                Ok(int8_search::search_rescored(pool, queries, values, search, rescore))
            }
            Self::Device { device, values } => {
                let queries = DeviceRows::new(*device, queries).map_err(device::failure)?;
                let mut hits =
                    cuda::search(*device, &queries, values, search).map_err(device::failure)?;
                int8_search::rescore_all(pool, &mut hits, rescore);
                Ok(hits)
            }
        }
    }
}
