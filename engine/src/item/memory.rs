//! A board without a database, for tests of tasks.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::{Board, Call, ItemKey, State, Status};
use crate::digest::Digest;
use crate::task::CancelToken;

/// States of items in memory. One process, so whatever runs is the asker's.
#[derive(Default)]
pub struct MemoryBoard {
    states: Mutex<BTreeMap<ItemKey, State>>,
    stop: Mutex<Option<(usize, CancelToken)>>,
}

impl MemoryBoard {
    /// Cancels `token` once so many items are done.
    pub(crate) fn stop_after(&self, n_done: usize, token: CancelToken) {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some((n_done, token));
    }

    /// How many items are done.
    pub fn n_done(&self) -> usize {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.values().filter(|state| is_done(state)).count()
    }

    /// Items that are done, each with the number of the attempt that did it.
    pub fn done(&self) -> BTreeMap<Digest, i64> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let done = states.iter().filter(|(_, state)| is_done(state));
        done.map(|(key, state)| (key.0, state.epoch)).collect()
    }

    /// How many times items were begun.
    pub fn n_tries(&self) -> u64 {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.values().map(|state| state.epoch.unsigned_abs()).sum()
    }
}

fn is_done(state: &State) -> bool {
    matches!(state.status, Status::Done { .. })
}

impl Board for MemoryBoard {
    fn call(&self, call: Call) -> Option<Vec<State>> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let mentioned = call.mentioned();
        for listed in call.list {
            let fresh = State { key: listed.key, epoch: 0, status: Status::Missing };
            states.entry(listed.key).or_insert(fresh);
        }
        let mut set = |key: ItemKey, epoch: i64, next: i64, status: Status| {
            if let Some(state) = states.get_mut(&key).filter(|state| state.epoch == epoch) {
                *state = State { key, epoch: next, status };
            }
        };
        for publish in call.publishes {
            let status = Status::Done { is_mine: true, digest: publish.digest };
            set(publish.key, publish.epoch, publish.epoch, status);
        }
        for end in call.ends {
            set(end.key, end.epoch, end.epoch, Status::Missing);
        }
        for (key, epoch) in call.spoiled {
            set(key, epoch, epoch, Status::Missing);
        }
        for claim in call.claims {
            let status = Status::Running { is_mine: true, lease_until_us: 0 };
            set(claim.key, claim.epoch, claim.epoch + 1, status);
        }
        let n_done = states.values().filter(|state| is_done(state)).count();
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, token)) = stop.as_ref().filter(|(n, _)| n_done >= *n) {
            token.cancel();
        }
        Some(mentioned.iter().filter_map(|key| states.get(key).copied()).collect())
    }
}
