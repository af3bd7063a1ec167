//! The int8 search, whose results equal the CPU's bit for bit.

use super::{Case, Check, Effort, check_equal};
use crate::Pool;
use crate::cuda::{Device, Error};
use crate::int8_search::cuda::DeviceRows;
use crate::int8_search::{self, Hit, Own, Rows, Search, Values, cuda};
use crate::philox::Philox;

/// How made-up values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// In no order, with many equal scores.
    Mixed,
    /// The best last, so that every range overflows its buckets.
    Rising,
}

pub(super) fn cases(effort: Effort) -> Vec<Case> {
    let mut shapes = vec![
        (1, 1, 1, 1, Order::Mixed),
        (3, 300, 65, 200, Order::Mixed),
        (130, 257, 64, 7, Order::Mixed),
        (2, 3000, 100, 20, Order::Mixed),
        (1, 9000, 16, 10, Order::Rising),
    ];
    if effort == Effort::Full {
        shapes.push((500, 20_000, 1024, 200, Order::Mixed));
        shapes.push((20, 100_000, 64, 200, Order::Rising));
    }
    shapes
        .into_iter()
        .map(|(queries, values, columns, k, order)| {
            let shape = format!("{queries} in {values} of {columns}, {k} best, {order:?}");
            Case::new("int8_search", shape, move |device| {
                [(f32::NEG_INFINITY, Own::Exclude), (0.0, Own::Keep), (0.05, Own::Keep)]
                    .into_iter()
                    .map(|(min_score, own)| {
                        let search = Search { k, min_score, own };
                        both(device, [queries, values, columns], order, search)
                    })
                    .collect()
            })
        })
        .collect()
}

fn both(
    device: &dyn Device,
    [n_queries, n_values, columns]: [usize; 3],
    order: Order,
    search: Search,
) -> Result<Check, Error> {
    let bytes = |purpose: &str, n: usize| -> Vec<i8> {
        let rng = Philox::new(3, purpose);
        (0..n as u64).map(|i| (rng.below(i, 255) as i64 - 127) as i8).collect()
    };
    let q = bytes("queries", n_queries * columns);
    let v = match order {
        Order::Mixed => bytes("values", n_values * columns),
        // Value `i` is the query's own row in its first entries, more of them the later it comes.
        Order::Rising => (0..n_values * columns)
            .map(|i| {
                let (value, column) = (i / columns, i % columns);
                if column * n_values < (value + 1) * columns { q[column] } else { 0 }
            })
            .collect(),
    };
    let q_scales: Vec<f32> = (0..n_queries).map(|i| [0.01, 0.0, 0.02][i % 3]).collect();
    let v_scales: Vec<f32> = match order {
        Order::Mixed => (0..n_values).map(|i| [0.01, 0.015, 0.01, 0.0][i % 4]).collect(),
        Order::Rising => (0..n_values).map(|i| 0.01 + i as f32 * 1e-6).collect(),
    };
    let queries = Rows { q: &q, scales: &q_scales, columns, first_id: 5 };
    let values = Rows { q: &v, scales: &v_scales, columns, first_id: 2 };
    let pool = Pool::new(1);
    let expected = int8_search::search(&pool, queries, &Values::pack(&pool, values), search);
    let (queries, values) = (DeviceRows::new(device, queries)?, DeviceRows::new(device, values)?);
    let found = cuda::search(device, &queries, &values, search)?;
    let flat = |hits: &[Vec<Hit>]| -> Vec<u32> {
        hits.iter()
            .flat_map(|hits| {
                let pairs = hits.iter().flat_map(|hit| [hit.id, hit.score.to_bits()]);
                std::iter::once(hits.len() as u32).chain(pairs)
            })
            .collect()
    };
    Ok(check_equal("hits", &flat(&found), &flat(&expected)))
}
