//! Items: the parts of a node's work that are leased, retried and kept one by one.
//!
//! A task with many independent parts lists them and calls
//! [`Context::items`](crate::task::Context::items) instead of looping over them:
//!
//! ```
//! # use engine::task::{Context, Failure, Item};
//! # struct Part { text: String }
//! # fn parts() -> Vec<Part> { Vec::new() }
//! # fn run(ctx: &engine::task::Context) -> Result<u64, Failure> {
//! let items: Vec<Item<Part>> = parts()
//!     .into_iter()
//!     .enumerate()
//!     .map(|(i, part)| Item::new(format!("part {i}"), &("params", part.text.clone()), part))
//!     .collect();
//! let results = ctx.items("count", "parts", items, |part, item| {
//!     std::fs::write(item.dir().join("text"), &part.text)?; // Files, if there are any,
//!     Ok(part.text.len() as u64) // and a value, kept as JSON.
//! })?;
//! let mut n_bytes = 0;
//! for result in results {
//!     n_bytes += result?.value; // In the order of the list, whoever made them and when.
//! }
//! # Ok(n_bytes)
//! # }
//! ```
//!
//! An item's key is the digest of what it computes: the task's kind and revision, the node's salt,
//! the stage, and `made_of`, which the task fills with the params that matter and the digests of the
//! item's own input. Its place in the list, the number of items, of threads and of processes are in
//! no key. So a list must be cut by the data (a file, a fixed number of documents), never by the
//! number of workers; then a run with other workers, or a node with more input, finds the items that
//! are still right.
//!
//! Items run in parallel within the node's `cpu`. A finished item's folder is made durable and moved
//! to the store before the ledger says that it is done, and its digest is checked before it is used
//! again. Several runs on one ledger share the items of a node: the one that holds the node merges.
//! Once the node's own result is published its items are collected.

pub(crate) mod memory;
mod stage;
pub(crate) mod store;
mod table;
mod team;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::task::Failure;
pub use stage::{Feed, Held, ItemContext, Stage};
pub(crate) use store::ItemStore;
pub(crate) use team::Team;

/// Written into every item's key, so that a changed encoding never meets old keys.
const DOMAIN: &[u8] = b"sbp item key 1";

/// The content address of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ItemKey(pub(crate) Digest);

impl std::fmt::Display for ItemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One part of a node's work.
#[derive(Clone, Debug)]
pub struct Item<T> {
    /// Names it in messages: `docs-00003.jsonl.zst`, `documents 4096 to 8191`.
    pub name: String,
    /// What the work gets.
    pub part: T,
    /// How much of the node's progress it is; 1 unless said.
    pub weight: u64,
    made_of: Digest,
}

impl<T> Item<T> {
    /// An item whose result depends on `made_of` and on nothing else: the params that matter and
    /// the digests of its own input. Kind, revision, salt and stage are added by the engine.
    ///
    /// # Panics
    /// When `made_of` cannot be written as JSON.
    pub fn new(name: impl Into<String>, made_of: &impl Serialize, part: T) -> Self {
        let text = serde_json::to_vec(made_of).expect("what an item is made of becomes JSON");
        Self { name: name.into(), part, weight: 1, made_of: Digest::of(&text) }
    }

    /// Sets how much of the node's progress it is, in the unit given to `Context::items`.
    #[must_use]
    pub fn weight(mut self, weight: u64) -> Self {
        self.weight = weight;
        self
    }

    fn key(&self, scope: &Digest, stage: &str) -> ItemKey {
        let mut hasher = blake3::Hasher::new();
        for bytes in [DOMAIN, scope.as_bytes(), stage.as_bytes(), self.made_of.as_bytes()] {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        ItemKey(hasher.finalize().into())
    }
}

/// What the keys of all items of a node have in common.
pub(crate) fn scope(kind: &str, revision: u32, salt: &str) -> Digest {
    let text = serde_json::to_vec(&(kind, revision, salt)).expect("plain values become JSON");
    Digest::of(&text)
}

/// Results in the order of the list, read as they are asked for.
pub struct ItemResults<R> {
    dirs: std::vec::IntoIter<PathBuf>,
    value: std::marker::PhantomData<fn() -> R>,
}

/// What an item gave.
#[derive(Debug)]
pub struct ItemResult<R> {
    /// The folder with the files it wrote. Read-only; files may be linked from it.
    pub dir: PathBuf,
    /// The value it returned.
    pub value: R,
}

impl<R> ItemResults<R> {
    fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs: dirs.into_iter(), value: std::marker::PhantomData }
    }
}

impl<R: DeserializeOwned> Iterator for ItemResults<R> {
    type Item = Result<ItemResult<R>, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(store::read(self.dirs.next()?))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.dirs.size_hint()
    }
}

/// Everything that the items of an attempt need of the engine.
#[derive(Clone)]
pub(crate) struct ItemParts {
    pub(crate) board: Arc<dyn Board>,
    pub(crate) store: ItemStore,
    /// See [`scope`].
    pub(crate) scope: Digest,
    /// A lease of another process that stands still for so long is taken over.
    pub(crate) lease: Duration,
    /// Tries at one item within an attempt.
    pub(crate) tries_max: u32,
    /// Pause before the second try; doubles each time.
    pub(crate) backoff: Duration,
    /// For an attempt that only helps another process: how many stages the task has.
    pub(crate) helps: Option<u32>,
}

impl ItemParts {
    /// Without an engine: items of a task of this kind, kept in `dir`.
    pub(crate) fn alone(dir: &Path, kind: &str) -> Self {
        Self {
            board: Arc::new(memory::MemoryBoard::default()),
            store: ItemStore::new(dir.to_owned()),
            scope: scope(kind, 0, ""),
            lease: Duration::from_mins(1),
            tries_max: 3,
            backoff: Duration::from_millis(1),
            helps: None,
        }
    }
}

/// Where items are listed, claimed and published: the ledger, reached through the run.
pub(crate) trait Board: Send + Sync {
    /// Writes the changes in one transaction and gives the state of every item mentioned. Blocks;
    /// `None` when the run is over.
    fn call(&self, call: Call) -> Option<Vec<State>>;
}

/// A change or a question about items.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) list: Vec<Listed>,
    pub(crate) look: Vec<ItemKey>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) publishes: Vec<Publish>,
    pub(crate) ends: Vec<End>,
    /// Items with their epochs whose results turned out damaged or missing.
    pub(crate) spoiled: Vec<(ItemKey, i64)>,
    /// Whether to look first for processes that died.
    pub(crate) recover: bool,
}

impl Call {
    /// Every item that it is about.
    pub(crate) fn mentioned(&self) -> BTreeSet<ItemKey> {
        let mut keys: BTreeSet<ItemKey> = self.look.iter().copied().collect();
        keys.extend(self.list.iter().map(|listed| listed.key));
        keys.extend(self.claims.iter().map(|claim| claim.key));
        keys.extend(self.publishes.iter().map(|publish| publish.key));
        keys.extend(self.ends.iter().map(|end| end.key));
        keys.extend(self.spoiled.iter().map(|(key, _)| *key));
        keys
    }

    fn is_empty(&self) -> bool {
        self.list.is_empty()
            && self.look.is_empty()
            && self.claims.is_empty()
            && self.publishes.is_empty()
            && self.ends.is_empty()
            && self.spoiled.is_empty()
    }
}

/// An item in the list of a stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) stage: String,
    pub(crate) ordinal: u64,
    pub(crate) key: ItemKey,
    pub(crate) name: String,
}

/// A wish to work on an item.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) key: ItemKey,
    /// The epoch seen when it was free: the claim fails when it has moved on.
    pub(crate) epoch: i64,
    /// The lease to take over, when it was seen to stand still for too long.
    pub(crate) stale_lease_us: Option<i64>,
}

/// A finished item whose folder is in the store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Publish {
    pub(crate) key: ItemKey,
    pub(crate) epoch: i64,
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
}

/// An item given back without a result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) key: ItemKey,
    pub(crate) epoch: i64,
    pub(crate) name: String,
    pub(crate) failure: Failure,
}

/// How far an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    Missing,
    /// Given up, because every node that was made of it is done.
    Collected,
    /// Whether the asker holds it.
    Running {
        is_mine: bool,
        lease_until_us: i64,
    },
    /// With the digest of its folder, and whether the asker made it.
    Done {
        is_mine: bool,
        digest: Digest,
    },
}

/// An item as the ledger has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) key: ItemKey,
    pub(crate) epoch: i64,
    pub(crate) status: Status,
}
