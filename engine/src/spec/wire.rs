//! Connects nodes by their ports and puts them in topological order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;
use std::rc::Rc;

use indexmap::IndexMap;
use serde_json::Value;

use super::check::{self, Document, Reader};
use super::expand::Instance;
use super::mistake::{Mistake, Span};
use super::params::text_of;
use super::reference::{self, Reference};
use super::resolve::{Tree, TreeNode};
use super::{nearest, scalar};
use crate::graph::{Node, Source};
use crate::task::{Arity, Port};

/// Cycles reported in one reading, and nodes shown of each.
const CYCLES_MAX: usize = 5;
const CYCLE_LABELS_MAX: usize = 8;

/// A connection, before nodes are in order.
struct Edge {
    from: usize,
    port: &'static str,
    at: Span,
}

/// Connections of an instance by input port.
type Edges = BTreeMap<&'static str, Vec<Edge>>;

/// The nodes in topological order; empty when there is a cycle.
pub(crate) fn nodes(
    reader: &mut Reader<'_>,
    document: &Document<'_, '_>,
    instances: Vec<Instance>,
) -> Vec<Node> {
    let mut ranges = vec![0..0; document.entries.len()];
    for (i, instance) in instances.iter().enumerate() {
        let range: &mut Range<usize> = &mut ranges[instance.entry];
        *range = if range.start == range.end { i..i + 1 } else { range.start..i + 1 };
    }
    let mut wiring = Wiring { document, instances: &instances, ranges, groups: IndexMap::new() };
    let edges: Vec<Edges> = (0..instances.len()).map(|i| wiring.edges_of(reader, i)).collect();
    if reader.sink.n_errors() > 0 {
        report_cycles(reader, document, &instances, &edges);
        return Vec::new();
    }
    let Some(order) = order(&edges) else {
        report_cycles(reader, document, &instances, &edges);
        return Vec::new();
    };
    finish(reader, document, instances, edges, &order)
}

struct Wiring<'a, 'y, 't> {
    document: &'a Document<'y, 't>,
    instances: &'a [Instance],
    /// The instances of each entry.
    ranges: Vec<Range<usize>>,
    /// Instances of an entry by the values of some of its axes.
    groups: IndexMap<(usize, Vec<String>), IndexMap<String, Vec<usize>>>,
}

impl Wiring<'_, '_, '_> {
    fn edges_of(&mut self, reader: &mut Reader<'_>, index: usize) -> Edges {
        let instance = &self.instances[index];
        let mut edges = Edges::new();
        if !instance.made.settings.when {
            return edges;
        }
        let (name, entry) =
            self.document.entries.get_index(instance.entry).expect("instances come from entries");
        let ports = entry.kind.as_ref().map(|kind| kind.task.inputs());
        let tree = entry
            .map
            .get("in")
            .map(|yaml| Tree::of(yaml, &mut reader.evaluator, &instance.scope, reader.sink));
        let by_port = match &tree {
            Some(tree) => reference::by_port(reader, name, tree, ports, entry.kind.as_deref()),
            None => Vec::new(),
        };
        let Some(ports) = ports else {
            // The task is unknown, but names of nodes can still be checked.
            for (_, _, values) in by_port {
                for (text, at) in values {
                    self.resolve(reader, index, &text, at, None);
                }
            }
            return edges;
        };
        let mut seen = Vec::new();
        let mut is_readable = tree.as_ref().is_none_or(|tree| !has_unknown(tree))
            && (tree.is_some() || !check::has_misspelled(entry.map, "in"));
        for (port, at, values) in by_port {
            let Some(port) = port else {
                // It was probably meant for a port that would be reported as missing.
                is_readable = false;
                continue;
            };
            let n_errors = reader.sink.n_errors();
            let mut found = Vec::new();
            let mut n_removed = 0;
            for (text, at) in &values {
                found.extend(self.resolve(reader, index, text, *at, Some(port)));
            }
            found.retain(|edge: &Edge| {
                let is_live = self.instances[edge.from].made.settings.when;
                n_removed += usize::from(!is_live);
                is_live
            });
            if reader.sink.n_errors() > n_errors {
                seen.push(port.name);
                continue;
            }
            self.check_arity(reader, index, port, at, &found, n_removed);
            if !values.is_empty() {
                seen.push(port.name);
            }
            if !found.is_empty() {
                edges.insert(port.name, found);
            }
        }
        for port in ports.iter().filter(|port| port.arity != Arity::Optional) {
            if is_readable && !seen.contains(&port.name) {
                let at = entry.map.key_span("in").unwrap_or(entry.span);
                self.missing(reader, name, port, at);
            }
        }
        edges
    }

    /// The connections that a reference stands for.
    fn resolve(
        &mut self,
        reader: &mut Reader<'_>,
        consumer: usize,
        text: &str,
        at: Span,
        port: Option<&Port>,
    ) -> Vec<Edge> {
        let entries = &self.document.entries;
        let consumer_name =
            entries.get_index(self.instances[consumer].entry).map_or("", |(name, _)| *name);
        let reference = match Reference::parse(text) {
            Ok(reference) => reference,
            Err(help) => {
                let message = format!("`{}` does not name a node", scalar::shorten(text));
                reader.sink.push(
                    Mistake::new("spec::bad_reference", message)
                        .at(at, "not a reference")
                        .help(help),
                );
                return Vec::new();
            }
        };
        let Some((source, _, entry)) = entries.get_full(reference.node) else {
            let help = if reader.sink.is_full() {
                None
            } else {
                nearest::suggest(reference.node, entries.keys().copied(), "nodes")
            };
            let wanted = scalar::shorten(reference.node);
            let message = format!(
                "node `{consumer_name}` needs `{wanted}`, which this pipeline does not define"
            );
            reader.sink.push(
                Mistake::new("spec::unknown_node", message).at(at, "no such node").maybe_help(help),
            );
            return Vec::new();
        };
        let Some(kind) = &entry.kind else { return Vec::new() };
        let outputs = kind.task.outputs();
        let Some(output) = reference.output(reader, outputs, kind.task.kind(), at, port) else {
            return Vec::new();
        };
        if let Some(port) = port
            && port.kind != output.kind
            && port.kind != "any"
            && output.kind != "any"
        {
            let help = self
                .makers(port.kind, consumer_name)
                .map(|makers| format!("`{}` comes from {makers}", port.kind));
            let message = format!(
                "port `{}` of node `{consumer_name}` takes `{}`, but `{}.{}` is `{}`",
                port.name, port.kind, reference.node, output.name, output.kind
            );
            reader.sink.push(
                Mistake::new("spec::wrong_kind", message)
                    .at(at, format!("this is `{}`", output.kind))
                    .maybe_help(help),
            );
            return Vec::new();
        }
        let Some(found) = self.select(reader, consumer, source, &reference, at) else {
            return Vec::new();
        };
        found.into_iter().map(|from| Edge { from, port: output.name, at }).collect()
    }

    /// The instances of an entry that agree with the consumer's matrix and with the picks.
    fn select(
        &mut self,
        reader: &mut Reader<'_>,
        consumer: usize,
        source: usize,
        reference: &Reference<'_>,
        at: Span,
    ) -> Option<Vec<usize>> {
        let range = self.ranges[source].clone();
        let first = self.instances.get(range.start).filter(|_| !range.is_empty())?;
        let axes: Vec<&String> = first.matrix.keys().collect();
        let own = &self.instances[consumer].matrix;
        let mut wanted: Vec<(String, String)> = Vec::new();
        for (axis, value) in &reference.picks {
            if !axes.iter().any(|known| known == axis) {
                let help = nearest::suggest(axis, axes.iter().map(|axis| axis.as_str()), "axes");
                let message = format!("`{}` has no axis `{axis}`", reference.node);
                reader.sink.push(
                    Mistake::new("spec::unknown_axis", message)
                        .at(at, "no such axis")
                        .maybe_help(help.or_else(|| Some("it has no matrix".to_owned()))),
                );
                return None;
            }
            wanted.push(((*axis).to_owned(), (*value).to_owned()));
        }
        for axis in &axes {
            let is_picked = wanted.iter().any(|(picked, _)| picked == *axis);
            if let Some(value) = own.get(*axis).filter(|_| !is_picked) {
                wanted.push(((*axis).clone(), text_of(value)));
            }
        }
        if wanted.is_empty() {
            return Some(range.collect());
        }
        let found = self.group(source, &wanted);
        if found.is_empty() {
            let picks: Vec<_> =
                wanted.iter().map(|(axis, value)| format!("{axis}={value}")).collect();
            let message = format!("`{}` has no node with {}", reference.node, picks.join(", "));
            let names = range.map(|i| self.instances[i].name.as_str());
            let text = format!("{}[{}]", reference.node, picks.join(","));
            reader.sink.push(
                Mistake::new("spec::no_such_combination", message)
                    .at(at, "not in its matrix")
                    .maybe_help(nearest::suggest(&text, names, "it has")),
            );
            return None;
        }
        Some(found)
    }

    fn group(&mut self, source: usize, wanted: &[(String, String)]) -> Vec<usize> {
        let axes: Vec<String> = wanted.iter().map(|(axis, _)| axis.clone()).collect();
        let (instances, range) = (self.instances, self.ranges[source].clone());
        let group = self.groups.entry((source, axes)).or_insert_with_key(|(_, axes)| {
            let mut group: IndexMap<String, Vec<usize>> = IndexMap::new();
            for i in range {
                let values = axes.iter().map(|axis| instances[i].matrix.get(axis).map(text_of));
                let key = group_key(values.map(Option::unwrap_or_default));
                group.entry(key).or_default().push(i);
            }
            group
        });
        let key = group_key(wanted.iter().map(|(_, value)| value.clone()));
        group.get(&key).cloned().unwrap_or_default()
    }

    fn check_arity(
        &self,
        reader: &mut Reader<'_>,
        index: usize,
        port: &Port,
        at: Span,
        found: &[Edge],
        n_removed: usize,
    ) {
        let name = &self.instances[index].name;
        let port_name = port.name;
        if found.is_empty() && n_removed > 0 && port.arity != Arity::Optional {
            let message =
                format!("port `{port_name}` of node `{name}` has no source: `when` leaves it out");
            reader.sink.push(
                Mistake::new("spec::removed_input", message)
                    .at(at, "left out by its `when`")
                    .help("give this node the same `when`, or connect another node"),
            );
        }
        if found.len() > 1 && port.arity != Arity::Many {
            let n_found = found.len();
            let message =
                format!("port `{port_name}` of node `{name}` takes one artifact, not {n_found}");
            let example = &self.instances[found[0].from].name;
            let help = if example.contains('[') && found[0].at == found[1].at {
                format!("pick one, such as `{example}`, or give this node the same axis")
            } else {
                "keep one of them".to_owned()
            };
            let mistake = Mistake::new("spec::too_many_inputs", message);
            let mistake = if found[0].at == found[1].at {
                mistake.at(found[0].at, format!("{n_found} nodes"))
            } else {
                mistake.at(found[1].at, "a second one").at(found[0].at, "the first")
            };
            reader.sink.push(mistake.help(help));
        }
    }

    fn missing(&self, reader: &mut Reader<'_>, name: &str, port: &Port, at: Span) {
        let message = format!("port `{}` of node `{name}` is not connected", port.name);
        let makers = self.makers(port.kind, name);
        let makers =
            makers.map_or(String::new(), |makers| format!("; `{}` comes from {makers}", port.kind));
        reader.sink.push(
            Mistake::new("spec::missing_input", message)
                .at(at, format!("needs `{}`", port.name))
                .help(format!("`{}`: {}{makers}", port.name, port.doc)),
        );
    }

    /// References to outputs of a kind, for help.
    fn makers(&self, kind: &str, consumer: &str) -> Option<String> {
        let makers: Vec<_> = self
            .document
            .entries
            .iter()
            .filter(|(name, _)| **name != consumer)
            .filter_map(|(name, entry)| Some((name, entry.kind.as_ref()?.task.outputs())))
            .flat_map(|(name, outputs)| {
                let of_kind = outputs.iter().filter(move |output| output.kind == kind);
                of_kind.map(move |output| match outputs.len() {
                    1 => format!("`{name}`"),
                    _ => format!("`{name}.{}`", output.name),
                })
            })
            .take(5)
            .collect();
        (!makers.is_empty()).then(|| makers.join(", "))
    }
}

fn group_key(values: impl Iterator<Item = String>) -> String {
    values.map(|value| value + "\u{1f}").collect()
}

fn has_unknown(tree: &Tree) -> bool {
    match &tree.node {
        TreeNode::Unknown => true,
        TreeNode::Scalar(value) => !matches!(value, Value::String(_) | Value::Null),
        TreeNode::Seq(items) => items.iter().any(has_unknown),
        TreeNode::Map(fields) => fields.iter().any(|field| has_unknown(&field.value)),
    }
}

/// Instances in topological order, as close to the order of the file as it allows. `None` when
/// there is a cycle.
fn order(edges: &[Edges]) -> Option<Vec<usize>> {
    let (mut n_waiting, consumers) = degrees(edges);
    let mut ready: BinaryHeap<Reverse<usize>> =
        (0..edges.len()).filter(|i| n_waiting[*i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(edges.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for consumer in &consumers[i] {
            n_waiting[*consumer] -= 1;
            if n_waiting[*consumer] == 0 {
                ready.push(Reverse(*consumer));
            }
        }
    }
    (order.len() == edges.len()).then_some(order)
}

/// How many connections each instance waits for, and who waits for it.
fn degrees(edges: &[Edges]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut consumers = vec![Vec::new(); edges.len()];
    let mut n_waiting = vec![0; edges.len()];
    for (i, ports) in edges.iter().enumerate() {
        for edge in ports.values().flatten() {
            n_waiting[i] += 1;
            consumers[edge.from].push(i);
        }
    }
    (n_waiting, consumers)
}

/// Finds cycles by walking from a node to its sources until one comes up again.
fn report_cycles(
    reader: &mut Reader<'_>,
    document: &Document<'_, '_>,
    instances: &[Instance],
    edges: &[Edges],
) {
    // 0: not seen; otherwise one more than the walk's number.
    let mut state = vec![0_u32; edges.len()];
    let mut n_cycles = 0;
    for start in 0..edges.len() {
        if state[start] != 0 {
            continue;
        }
        // Each frame: an instance and the sources it has left to look at.
        let mut path: Vec<(usize, Vec<&Edge>)> = Vec::new();
        let sources = |i: usize| edges[i].values().flatten().rev().collect::<Vec<_>>();
        path.push((start, sources(start)));
        state[start] = 1;
        while let Some((_, left)) = path.last_mut() {
            let Some(edge) = left.pop() else {
                let (done, _) = path.pop().expect("the loop saw a last frame");
                state[done] = 2;
                continue;
            };
            match state[edge.from] {
                0 => {
                    state[edge.from] = 1;
                    path.push((edge.from, sources(edge.from)));
                }
                1 => {
                    let from = path.iter().position(|(i, _)| *i == edge.from).unwrap_or(0);
                    let cycle: Vec<usize> = path[from..].iter().map(|(i, _)| *i).collect();
                    report_cycle(reader, document, instances, edges, &cycle);
                    n_cycles += 1;
                    if n_cycles >= CYCLES_MAX {
                        return;
                    }
                }
                _ => {}
            }
        }
    }
}

/// `cycle` holds consumers before their sources; the last one's source is the first.
fn report_cycle(
    reader: &mut Reader<'_>,
    document: &Document<'_, '_>,
    instances: &[Instance],
    edges: &[Edges],
    cycle: &[usize],
) {
    let name = |i: usize| &instances[i].name;
    let mut names: Vec<_> = cycle.iter().take(CYCLE_LABELS_MAX).map(|i| &**name(*i)).collect();
    if cycle.len() > CYCLE_LABELS_MAX {
        names.push("…");
    }
    names.push(name(cycle[0]));
    let message = if cycle.len() == 1 {
        format!("node `{}` needs itself", names[0])
    } else {
        format!("nodes need each other in a circle: {}", names.join(" → "))
    };
    let mut mistake = Mistake::new("spec::cycle", message);
    for (i, consumer) in cycle.iter().enumerate().take(CYCLE_LABELS_MAX) {
        let source = cycle[(i + 1) % cycle.len()];
        let edge = edges[*consumer].values().flatten().find(|edge| edge.from == source);
        let span =
            document.entries.get_index(instances[*consumer].entry).map(|(_, entry)| entry.span);
        if let Some(at) = edge.map(|edge| edge.at).or(span) {
            mistake = mistake.at(at, format!("`{}` needs `{}`", name(*consumer), name(source)));
        }
    }
    reader.sink.push(mistake.help("remove one of these connections"));
}

/// Puts the parts of each node together, in order.
fn finish(
    reader: &Reader<'_>,
    document: &Document<'_, '_>,
    instances: Vec<Instance>,
    edges: Vec<Edges>,
    order: &[usize],
) -> Vec<Node> {
    // Nodes that are left out get no index; nothing refers to them.
    let mut index_of = vec![usize::MAX; instances.len()];
    let live = order.iter().filter(|i| instances[**i].made.settings.when);
    live.enumerate().for_each(|(index, i)| index_of[*i] = index);
    let mut nodes: Vec<(usize, Node)> = Vec::with_capacity(instances.len());
    for (i, (instance, ports)) in instances.into_iter().zip(edges).enumerate() {
        if index_of[i] == usize::MAX {
            continue;
        }
        let (entry_name, entry) =
            document.entries.get_index(instance.entry).expect("instances come from entries");
        let kind = entry.kind.as_ref().expect("an unknown task is an error, and there are none");
        // The last node of an entry takes what its others copy.
        let made = Rc::unwrap_or_clone(instance.made);
        let settings = made.settings;
        let inputs = ports.into_iter().map(|(port, edges)| {
            let sources = edges
                .into_iter()
                .map(|edge| Source { node: index_of[edge.from], port: edge.port.to_owned() });
            (port.to_owned(), sources.collect())
        });
        let node = Node {
            name: instance.name,
            entry: (*entry_name).to_owned(),
            matrix: instance.matrix,
            task: std::sync::Arc::clone(&kind.task),
            params: made.params,
            inputs: inputs.collect(),
            external: made.external,
            execution: settings.execution,
            salt: settings.salt,
            expect: settings.expect,
            place: reader.source.place(entry.span.start),
            param_places: made.param_places,
        };
        nodes.push((index_of[i], node));
    }
    nodes.sort_unstable_by_key(|(index, _)| *index);
    nodes.into_iter().map(|(_, node)| node).collect()
}
