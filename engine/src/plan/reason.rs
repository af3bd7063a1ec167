//! Why a node runs: the answer of `sbp plan` and, kept in the ledger, of `sbp why`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::graph::Node;
use crate::key::{Components, NodeKey};
use crate::ledger::Ruling;

/// Why a node runs, waits, or was cut off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// No node of this name was ever keyed in this ledger.
    NeverRan,
    /// The nearest earlier key differs.
    Changed {
        /// That key.
        since: NodeKey,
        /// The last run that used it.
        run: String,
        /// Every differing component.
        changes: Vec<Change>,
    },
    /// The same key was tried before and did not finish.
    Unfinished {
        /// How the last attempt ended: `failed`, `cancelled`, `parked`, `lost`; `missing` when
        /// it never started.
        last: String,
        /// Its failure, when it has one.
        message: Option<String>,
    },
    /// It was parked, and an operator decided.
    Ruled {
        /// What, why, and who.
        ruling: Ruling,
    },
    /// A published artifact is damaged and was quarantined.
    Damaged {
        /// The output port.
        port: String,
        /// What is wrong, naming the file.
        problem: String,
    },
    /// The key is done, but an artifact is not in this store.
    NotInStore {
        /// The output port.
        port: String,
    },
    /// Another process computes it now.
    Elsewhere {
        /// Who: `host:pid`.
        owner: String,
    },
    /// Its external files are not there; a run would refuse to start.
    NoFiles {
        /// Which pattern finds nothing.
        problem: String,
    },
    /// It waits for nodes that run.
    Blocked {
        /// The nearest of them.
        by: Vec<String>,
    },
    /// Nodes before it ran again and gave the same bytes, so it did not.
    CutOff {
        /// Those nodes.
        reran: Vec<String>,
    },
}

/// One component that differs between two keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "component", rename_all = "snake_case")]
pub enum Change {
    /// Another task.
    Task {
        /// The earlier kind.
        from: String,
        /// The kind now.
        to: String,
    },
    /// The task's code changed its results.
    Revision {
        /// The earlier revision.
        from: u32,
        /// The revision now.
        to: u32,
    },
    /// A param.
    Param {
        /// Its dotted path.
        path: String,
        /// The earlier value; `None` when it did not exist.
        from: Option<Value>,
        /// The value now; `None` when it is gone.
        to: Option<Value>,
        /// `file:line:column` where the value now is set; `None` for a default.
        place: Option<String>,
    },
    /// An input port got other artifacts.
    Input {
        /// The port.
        port: String,
        /// The nodes connected to it now whose artifacts were not there before.
        nodes: Vec<String>,
    },
    /// External files.
    External {
        /// Files that are new.
        n_added: usize,
        /// Files that are gone.
        n_removed: usize,
        /// Files with other content.
        n_changed: usize,
        /// The first few, each with `+`, `-` or `~` before its relative path.
        examples: Vec<String>,
    },
    /// The salt.
    Salt {
        /// The earlier one.
        from: String,
        /// The one now.
        to: String,
    },
}

/// Relative paths and digests of external files, as the ledger keeps them.
pub(crate) type FileList = Vec<(String, String)>;

/// A key that a node of the same name had before.
pub(crate) struct Earlier {
    pub(crate) key: NodeKey,
    pub(crate) run: String,
    pub(crate) components: Components,
    pub(crate) external: FileList,
}

const EXAMPLES_MAX: usize = 3;

/// Every component in which `now` differs from `earlier`. `sources` names the producers on each
/// port of `node`, in the order of the components' inputs.
pub(crate) fn changes(
    node: &Node,
    sources: &BTreeMap<String, Vec<String>>,
    now: &Components,
    external: &FileList,
    earlier: &Earlier,
) -> Vec<Change> {
    let place = |path: &str| place_of(node, path);
    let external = || files(&earlier.external, external);
    differences(&earlier.components, now, sources, &place, &external)
}

/// Every component in which `now` differs from `before`, with their external files.
pub(crate) fn changes_between(
    before: (&Components, &FileList),
    now: (&Components, &FileList),
) -> Vec<Change> {
    let external = || files(before.1, now.1);
    differences(before.0, now.0, &BTreeMap::new(), &|_| None, &external)
}

fn differences(
    before: &Components,
    now: &Components,
    sources: &BTreeMap<String, Vec<String>>,
    place: &dyn Fn(&str) -> Option<String>,
    external: &dyn Fn() -> Change,
) -> Vec<Change> {
    let mut changes = Vec::new();
    if before.task != now.task {
        changes.push(Change::Task { from: before.task.clone(), to: now.task.clone() });
    } else if before.revision != now.revision {
        changes.push(Change::Revision { from: before.revision, to: now.revision });
    }
    params("", &before.params, &now.params, &mut |path, from, to| {
        let place = place(&path);
        changes.push(Change::Param { path, from: from.cloned(), to: to.cloned(), place });
    });
    let ports: BTreeSet<&String> = before.inputs.keys().chain(now.inputs.keys()).collect();
    for port in ports {
        let (was, is) = (before.inputs.get(port), now.inputs.get(port));
        if was == is {
            continue;
        }
        let names = sources.get(port).map_or(&[][..], Vec::as_slice);
        let changed =
            is.into_iter().flatten().zip(names).filter(|(part, _)| {
                !was.is_some_and(|was| was.iter().any(|earlier| earlier == *part))
            });
        let nodes: BTreeSet<String> = changed.map(|(_, name)| name.clone()).collect();
        changes.push(Change::Input { port: port.clone(), nodes: nodes.into_iter().collect() });
    }
    if before.external != now.external {
        changes.push(external());
    }
    if before.salt != now.salt {
        changes.push(Change::Salt { from: before.salt.clone(), to: now.salt.clone() });
    }
    changes
}

/// Where the param at `path`, or the nearest object around it, is set.
fn place_of(node: &Node, path: &str) -> Option<String> {
    let mut path = path;
    loop {
        if let Some(place) = node.param_place(path) {
            return Some(place.to_string());
        }
        path = path.rsplit_once('.')?.0;
    }
}

fn params(
    prefix: &str,
    before: &Map<String, Value>,
    now: &Map<String, Value>,
    differs: &mut impl FnMut(String, Option<&Value>, Option<&Value>),
) {
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    for name in names {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match (before.get(name), now.get(name)) {
            (Some(Value::Object(before)), Some(Value::Object(now))) => {
                params(&path, before, now, differs);
            }
            (from, to) if from != to => differs(path, from, to),
            _ => {}
        }
    }
}

fn files(before: &FileList, now: &FileList) -> Change {
    let was: BTreeMap<&String, &String> =
        before.iter().map(|(path, digest)| (path, digest)).collect();
    let is: BTreeMap<&String, &String> = now.iter().map(|(path, digest)| (path, digest)).collect();
    let (mut n_added, mut n_removed, mut n_changed) = (0, 0, 0);
    let mut examples = Vec::new();
    let all: BTreeSet<&String> = was.keys().chain(is.keys()).copied().collect();
    for path in all {
        let (sign, count) = match (was.get(path), is.get(path)) {
            (None, Some(_)) => ('+', &mut n_added),
            (Some(_), None) => ('-', &mut n_removed),
            (was, is) if was != is => ('~', &mut n_changed),
            _ => continue,
        };
        *count += 1;
        if examples.len() < EXAMPLES_MAX {
            examples.push(format!("{sign} {path}"));
        }
    }
    Change::External { n_added, n_removed, n_changed, examples }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverRan => f.write_str("never ran"),
            Self::Changed { changes, .. } => {
                let texts: Vec<String> = changes.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join("; "))
            }
            Self::Unfinished { last, message } => {
                write!(f, "last attempt: {last}")?;
                message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
            }
            Self::Ruled { ruling } => ruling.fmt(f),
            Self::Damaged { port, problem } => {
                write!(f, "artifact of port `{port}` is damaged: {problem}")
            }
            Self::NotInStore { port } => {
                write!(f, "artifact of port `{port}` is not in this store")
            }
            Self::Elsewhere { owner } => write!(f, "{owner} computes it now"),
            Self::NoFiles { problem } => f.write_str(problem),
            Self::Blocked { by } => write!(f, "waits for {}", names(by)),
            Self::CutOff { reran } => write!(f, "{} gave the same bytes again", names(reran)),
        }
    }
}

fn names(names: &[String]) -> String {
    let mut text: Vec<String> =
        names.iter().take(EXAMPLES_MAX).map(|name| format!("`{name}`")).collect();
    if names.len() > EXAMPLES_MAX {
        text.push(format!("{} more", names.len() - EXAMPLES_MAX));
    }
    text.join(", ")
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task { from, to } => write!(f, "task changed from `{from}` to `{to}`"),
            Self::Revision { from, to } => {
                write!(f, "the task's revision changed from {from} to {to}")
            }
            Self::Param { path, from, to, place } => {
                match (from, to) {
                    (Some(from), Some(to)) => {
                        write!(f, "param `{path}` changed from {from} to {to}")?;
                    }
                    (None, Some(to)) => write!(f, "param `{path}` is new: {to}")?,
                    (Some(from), None) => write!(f, "param `{path}` is gone, was {from}")?,
                    (None, None) => {}
                }
                place.as_ref().map_or(Ok(()), |place| write!(f, " ({place})"))
            }
            Self::Input { port, nodes } if nodes.is_empty() => {
                write!(f, "input `{port}` changed: it is connected otherwise, or has other bytes")
            }
            Self::Input { port, nodes } => {
                write!(f, "input `{port}` changed: other bytes from {}", names(nodes))
            }
            Self::External { n_added, n_removed, n_changed, examples } => write!(
                f,
                "external files: {n_added} added, {n_removed} removed, {n_changed} changed ({})",
                examples.join(", ")
            ),
            Self::Salt { from, to } => write!(f, "salt changed from `{from}` to `{to}`"),
        }
    }
}
