//! Node keys: the content address of what a node would make.
//!
//! A key is BLAKE3 over canonical bytes of everything that may change the result and of nothing
//! else: task kind and revision, params (less the task's unkeyed ones), the digests on each input
//! port, the relative paths and contents of external files, and the salt. Paths, times, host
//! names, thread counts and resources never enter.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::{Digest, ParseDigestError};
use crate::graph::Node;
use crate::task::Arity;

/// Written into every key, so that a changed encoding never meets old keys.
const DOMAIN: &[u8] = b"sbp node key 1";

/// The content address of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeKey(pub(crate) Digest);

impl NodeKey {
    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        self.0.short()
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NodeKey {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// One artifact on an input port, as the key sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputPart {
    /// The artifact.
    pub digest: Digest,
    /// The producer's name on ports that take a list, where tasks label results with it; empty
    /// on other ports.
    pub label: String,
}

/// Everything a key is made of; kept in the ledger, so that two keys can be compared later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Components {
    /// The task's kind.
    pub task: String,
    /// The task's revision.
    pub revision: u32,
    /// Params with defaults filled in, less the unkeyed ones.
    pub params: Map<String, Value>,
    /// Artifacts by port, in the order written.
    pub inputs: BTreeMap<String, Vec<InputPart>>,
    /// Digest of the list of external files; `None` when the node has no patterns.
    pub external: Option<Digest>,
    /// The node's salt.
    pub salt: String,
}

impl Components {
    /// The components of `node` with these inputs and external files.
    pub fn of(
        node: &Node,
        inputs: BTreeMap<String, Vec<InputPart>>,
        external: Option<Digest>,
    ) -> Self {
        let params = keyed_params(node).map(|(name, value)| (name.clone(), value.clone()));
        Self {
            task: node.task.kind().to_owned(),
            revision: node.task.revision(),
            params: params.collect(),
            inputs,
            external,
            salt: node.salt.clone(),
        }
    }

    /// The key.
    pub fn key(&self) -> NodeKey {
        let params = self.params.iter().collect();
        key_of(&self.task, self.revision, params, &self.inputs, self.external, &self.salt)
    }
}

impl NodeKey {
    /// The key that [`Components::of`] the same has, without making them.
    pub(crate) fn of(
        node: &Node,
        inputs: &BTreeMap<String, Vec<InputPart>>,
        external: Option<Digest>,
    ) -> Self {
        let params = keyed_params(node).collect();
        key_of(node.task.kind(), node.task.revision(), params, inputs, external, &node.salt)
    }
}

/// The params that belong to the key.
fn keyed_params(node: &Node) -> impl Iterator<Item = (&String, &Value)> {
    let unkeyed = node.task.unkeyed();
    let params = node.params.as_object().into_iter().flatten();
    params.filter(|(name, _)| !unkeyed.contains(&name.as_str()))
}

fn key_of(
    task: &str,
    revision: u32,
    params: Vec<(&String, &Value)>,
    inputs: &BTreeMap<String, Vec<InputPart>>,
    external: Option<Digest>,
    salt: &str,
) -> NodeKey {
    let mut canon = Canon(Vec::with_capacity(512));
    canon.bytes(DOMAIN);
    canon.bytes(task.as_bytes());
    canon.bytes(&revision.to_le_bytes());
    canon.object(params);
    canon.count(inputs.len());
    for (port, parts) in inputs {
        canon.bytes(port.as_bytes());
        canon.count(parts.len());
        for part in parts {
            canon.bytes(part.digest.as_bytes());
            canon.bytes(part.label.as_bytes());
        }
    }
    match external {
        None => canon.count(0),
        Some(digest) => canon.bytes(digest.as_bytes()),
    }
    canon.bytes(salt.as_bytes());
    NodeKey(Digest::of(&canon.0))
}

/// Whether the names of producers on `port` are seen by the task and so belong to the key.
pub(crate) fn is_labelled(node: &Node, port: &str) -> bool {
    node.task.inputs().iter().any(|known| known.name == port && known.arity == Arity::Many)
}

/// An unambiguous encoding: every string is preceded by its length, every value by its type.
struct Canon(Vec<u8>);

impl Canon {
    fn count(&mut self, n: usize) {
        self.0.extend_from_slice(&(n as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn object(&mut self, mut fields: Vec<(&String, &Value)>) {
        fields.sort_unstable_by_key(|(name, _)| *name);
        self.count(fields.len());
        for (name, value) in fields {
            self.bytes(name.as_bytes());
            self.value(value);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.bytes(b"null"),
            Value::Bool(value) => self.bytes(if *value { b"true" } else { b"false" }),
            Value::Number(number) => {
                self.bytes(b"number");
                self.bytes(number.to_string().as_bytes());
            }
            Value::String(text) => {
                self.bytes(b"string");
                self.bytes(text.as_bytes());
            }
            Value::Array(items) => {
                self.bytes(b"array");
                self.count(items.len());
                for item in items {
                    self.value(item);
                }
            }
            Value::Object(map) => {
                self.bytes(b"object");
                self.object(map.iter().collect());
            }
        }
    }
}
