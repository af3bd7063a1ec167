//! How long a run will take, how much memory and disk: from what past attempts took, and where there
//! were none, from how fast the machine is said to be.

use serde::Serialize;

use super::{Plan, PlannedState};
use crate::cost::{Machine, NodeCost, Rates};
use crate::graph::Pipeline;
use crate::ledger::{History, Past};

/// Where an expectation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ground {
    /// Medians of past attempts.
    Past,
    /// The node's work at the machine's rates.
    Rates,
}

/// What an attempt at a node will probably take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// Wall time in microseconds.
    pub duration_us: i64,
    /// Highest resident memory of its process in bytes; 0 where it was never measured.
    pub memory_bytes: u64,
    /// Size of its artifacts in bytes.
    pub disk_bytes: u64,
    /// How that is known.
    pub ground: Ground,
}

/// What a run will probably take, as far as the past tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// Nodes that would run, those that wait for them included.
    pub n_nodes: usize,
    /// How many of them have a past.
    pub n_known: usize,
    /// How many others are counted at the machine's rates.
    pub n_rated: usize,
    /// The longest way through them in microseconds: no number of threads is faster.
    pub critical_path_us: i64,
    /// All of them one after the other, in microseconds.
    pub serial_us: i64,
    /// The largest of their memories in bytes.
    pub memory_bytes: u64,
    /// The sum of their artifacts in bytes.
    pub disk_bytes: u64,
}

impl Forecast {
    /// The expected wall time when `n` nodes run at a time: never less than the critical path, nor
    /// than the work shared evenly.
    pub fn wall_us(&self, n: u32) -> i64 {
        self.critical_path_us.max(self.serial_us / i64::from(n.max(1)))
    }
}

impl From<Past> for Expected {
    fn from(past: Past) -> Self {
        let Past { duration_us, memory_bytes, disk_bytes, .. } = past;
        Self { duration_us, memory_bytes, disk_bytes, ground: Ground::Past }
    }
}

impl Expected {
    /// The node's work at the machine's rates.
    fn rated(node: &NodeCost, rates: &Rates) -> Option<Self> {
        Some(Self {
            duration_us: (rates.hours(node)? * 3.6e9) as i64,
            memory_bytes: 0,
            disk_bytes: node.output_bytes.unwrap_or(0.0) as u64,
            ground: Ground::Rates,
        })
    }
}

impl Plan {
    /// Fills in what each node that may run will take, and sums up. `costs` are those of all nodes, or
    /// none.
    pub(crate) fn foresee(
        &mut self,
        pipeline: &Pipeline,
        history: &History,
        costs: &[NodeCost],
        machine: &Machine,
    ) {
        let mut forecast = Forecast::default();
        let mut end_us = vec![0_i64; pipeline.nodes.len()];
        for planned in self.nodes.iter_mut().filter(|node| node.state != PlannedState::Cached) {
            let past = history.expect(&planned.name, planned.task).map(Expected::from);
            let rated = || Expected::rated(costs.get(planned.index)?, &machine.rates);
            planned.expected = past.or_else(rated);
            forecast.n_nodes += 1;
            let mut duration_us = machine.node_overhead_us as i64;
            if let Some(expected) = planned.expected {
                match expected.ground {
                    Ground::Past => forecast.n_known += 1,
                    Ground::Rates => forecast.n_rated += 1,
                }
                forecast.memory_bytes = forecast.memory_bytes.max(expected.memory_bytes);
                forecast.disk_bytes += expected.disk_bytes;
                duration_us += expected.duration_us;
            }
            forecast.serial_us += duration_us;
            let sources = pipeline.nodes[planned.index].inputs.values().flatten();
            let start_us = sources.map(|source| end_us[source.node]).max().unwrap_or(0);
            end_us[planned.index] = start_us + duration_us;
            forecast.critical_path_us = forecast.critical_path_us.max(end_us[planned.index]);
        }
        self.forecast = forecast;
    }
}
