//! Amounts of what attempts hold while they run.

use std::collections::BTreeMap;

use crate::graph::Resources;

/// Integer amounts of each resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) cpu: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) gpu: u32,
    pub(crate) pools: BTreeMap<String, u32>,
}

impl Amounts {
    pub(crate) fn of(resources: &Resources) -> Self {
        Self {
            cpu: resources.cpu.max(1),
            memory_bytes: resources.memory_bytes.unwrap_or(0),
            gpu: resources.gpu,
            pools: resources.pools.clone(),
        }
    }

    /// The amounts with no more threads than there are: fewer change no result.
    pub(crate) fn within(mut self, total: &Self) -> Self {
        self.cpu = self.cpu.min(total.cpu);
        self
    }

    /// Whether all of `other` is there.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.cpu >= other.cpu
            && self.memory_bytes >= other.memory_bytes
            && self.gpu >= other.gpu
            && other.pools.iter().all(|(name, n)| self.pools.get(name).is_some_and(|has| has >= n))
    }

    /// Whether no thread is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.cpu == 0
    }

    pub(crate) fn take(&mut self, other: &Self) {
        self.cpu = self.cpu.saturating_sub(other.cpu);
        self.memory_bytes = self.memory_bytes.saturating_sub(other.memory_bytes);
        self.gpu = self.gpu.saturating_sub(other.gpu);
        for (name, n) in &other.pools {
            if let Some(has) = self.pools.get_mut(name) {
                *has = has.saturating_sub(*n);
            }
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.memory_bytes += other.memory_bytes;
        self.gpu += other.gpu;
        for (name, n) in &other.pools {
            if let Some(has) = self.pools.get_mut(name) {
                *has += n;
            }
        }
    }
}
