//! References in `in:`: `node`, `node.port`, `node[axis=value].port`.

use serde_json::Value;

use super::check::{Reader, TaskKind};
use super::mistake::{Mistake, Span};
use super::nearest;
use super::resolve::{Tree, TreeNode};
use super::scalar;
use crate::task::{Arity, Port};

/// A reference, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reference<'t> {
    pub(crate) node: &'t str,
    /// Axes and values in brackets.
    pub(crate) picks: Vec<(&'t str, &'t str)>,
    pub(crate) port: Option<&'t str>,
}

impl<'t> Reference<'t> {
    /// Takes a reference apart.
    ///
    /// # Errors
    /// How a reference is written, when this is none.
    pub(crate) fn parse(text: &'t str) -> Result<Self, String> {
        let form = || "write `node`, `node.port` or `node[axis=value].port`".to_owned();
        let text = text.trim();
        let n_name = text.find(['[', '.']).unwrap_or(text.len());
        let (node, mut rest) = text.split_at(n_name);
        let mut picks = Vec::new();
        if let Some(inner) = rest.strip_prefix('[') {
            let (inner, after) = inner.split_once(']').ok_or_else(form)?;
            for pick in inner.split(',') {
                let (axis, value) = pick.split_once('=').ok_or_else(form)?;
                picks.push((axis.trim(), value.trim()));
            }
            rest = after;
        }
        let port = match rest.strip_prefix('.') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => return Err(form()),
        };
        let is_name = |name: &str| scalar::check_name(name, scalar::Name::Node).is_ok();
        if !is_name(node) || port.is_some_and(|port| !is_name(port)) {
            return Err(form());
        }
        Ok(Self { node, picks, port })
    }

    /// The output it names: the only one when it names none. `wanted` is the port it feeds.
    pub(crate) fn output(
        &self,
        reader: &mut Reader<'_>,
        outputs: &'static [Port],
        kind: &str,
        at: Span,
        wanted: Option<&Port>,
    ) -> Option<&'static Port> {
        let node = self.node;
        let (code, message, label, help) = match (self.port, outputs) {
            (None, [output]) => return Some(output),
            (None, outputs) if only_of_kind(outputs, wanted).is_some() => {
                return only_of_kind(outputs, wanted);
            }
            (None, []) => (
                "spec::no_output",
                format!("node `{node}` gives nothing: task `{kind}` has no output ports"),
                "no outputs",
                None,
            ),
            (None, _) => {
                let fits = outputs.iter().filter(|output| {
                    wanted.is_none_or(|wanted| wanted.kind == output.kind || wanted.kind == "any")
                });
                let fits: Vec<_> = fits.map(|output| format!("`{node}.{}`", output.name)).collect();
                (
                    "spec::which_output",
                    format!("node `{node}` has {} output ports", outputs.len()),
                    "which one?",
                    (!fits.is_empty()).then(|| format!("write {}", fits.join(" or "))),
                )
            }
            (Some(port), _) => match outputs.iter().find(|output| output.name == port) {
                Some(output) => return Some(output),
                None => (
                    "spec::unknown_port",
                    format!("node `{node}` has no output port `{}`", scalar::shorten(port)),
                    "no such port",
                    nearest::suggest(port, outputs.iter().map(|output| output.name), "outputs"),
                ),
            },
        };
        reader.sink.push(Mistake::new(code, message).at(at, label).maybe_help(help));
        None
    }
}

/// The output of the kind that is wanted, when there is exactly one.
fn only_of_kind(outputs: &'static [Port], wanted: Option<&Port>) -> Option<&'static Port> {
    let mut fits = outputs.iter().filter(|output| wanted.is_some_and(|w| w.kind == output.kind));
    let first = fits.next()?;
    fits.next().is_none().then_some(first)
}

/// What is connected to a port: the port when there is one of that name, where it is written, and
/// the references.
pub(crate) type Connection = (Option<&'static Port>, Span, Vec<(String, Span)>);

/// Reads the evaluated `in:` of a node. `ports` is `None` when its task is unknown.
pub(crate) fn by_port(
    reader: &mut Reader<'_>,
    name: &str,
    tree: &Tree,
    ports: Option<&'static [Port]>,
    kind: Option<&TaskKind>,
) -> Vec<Connection> {
    let fields = match &tree.node {
        TreeNode::Unknown | TreeNode::Scalar(Value::Null) => return Vec::new(),
        TreeNode::Map(fields) => fields,
        TreeNode::Scalar(_) | TreeNode::Seq(_) => {
            let values = references(reader, name, tree);
            let port = match ports {
                Some(ports) => only_port(reader, name, tree, ports, kind),
                None => None,
            };
            return vec![(port, tree.span, values)];
        }
    };
    let mut connections = Vec::with_capacity(fields.len());
    for field in fields {
        let found = ports.unwrap_or_default().iter().find(|port| port.name == field.key);
        let is_nothing = matches!(field.value.node, TreeNode::Scalar(Value::Null));
        if is_nothing && found.is_some_and(|port| port.arity == Arity::Optional) {
            // An expression may leave an optional port unconnected in some rows of a matrix.
            continue;
        }
        let values = references(reader, name, &field.value);
        if let (None, Some(ports)) = (found, ports) {
            let kind = kind.map_or("", |kind| kind.task.kind());
            let help = nearest::suggest(&field.key, ports.iter().map(|port| port.name), "ports")
                .or_else(|| {
                    Some(format!("`{kind}` has no input ports")).filter(|_| ports.is_empty())
                });
            let key = scalar::shorten(&field.key);
            let message = format!("task `{kind}` has no input port `{key}`");
            reader.sink.push(
                Mistake::new("spec::unknown_port", message)
                    .at(field.key_span, "no such port")
                    .maybe_help(help),
            );
        }
        connections.push((found, field.value.span, values));
    }
    connections
}

/// The port that `in: node` means: the only one, or the only required one.
fn only_port(
    reader: &mut Reader<'_>,
    name: &str,
    tree: &Tree,
    ports: &'static [Port],
    kind: Option<&TaskKind>,
) -> Option<&'static Port> {
    let required: Vec<_> = ports.iter().filter(|port| port.arity != Arity::Optional).collect();
    match (ports, &required[..]) {
        ([port], _) => return Some(port),
        (_, [port]) => return Some(port),
        _ => {}
    }
    let kind = kind.map_or("", |kind| kind.task.kind());
    let example: Vec<_> = ports.iter().map(|port| format!("{}: …", port.name)).collect();
    let (message, help) = if ports.is_empty() {
        (format!("task `{kind}` has no input ports"), "remove `in`".to_owned())
    } else {
        (
            format!("`in` of node `{name}` must say which ports of task `{kind}` it connects"),
            format!("write `in: {{{}}}`", example.join(", ")),
        )
    };
    reader.sink.push(
        Mistake::new("spec::unknown_port", message).at(tree.span, "to which port?").help(help),
    );
    None
}

/// One reference or a list of them.
fn references(reader: &mut Reader<'_>, name: &str, tree: &Tree) -> Vec<(String, Span)> {
    let items = match &tree.node {
        TreeNode::Seq(items) => &items[..],
        _ => std::slice::from_ref(tree),
    };
    let mut references = Vec::with_capacity(items.len());
    for item in items {
        match &item.node {
            TreeNode::Scalar(Value::String(text)) => references.push((text.clone(), item.span)),
            TreeNode::Unknown => {}
            _ => {
                let what = format!("an input of node `{name}`");
                let expected = "a reference such as `node.port`";
                reader.wrong_type(item.span, &what, &item.describe(), expected, None);
            }
        }
    }
    references
}

#[cfg(test)]
mod tests {
    use super::Reference;

    #[test]
    fn references_come_apart() {
        let check = |text, node, picks: &[(&str, &str)], port| {
            let expected = Reference { node, picks: picks.to_vec(), port };
            assert_eq!(Reference::parse(text), Ok(expected), "{text}");
        };
        check("a", "a", &[], None);
        check("a.b", "a", &[], Some("b"));
        check("a[x=1,y=two].b", "a", &[("x", "1"), ("y", "two")], Some("b"));
        check(" a[x = 0.5] ", "a", &[("x", "0.5")], None);
        for text in ["", ".", "a.", "a[", "a[]", "a[x]", "a[x=1]b", "../a", "a.b.c", "A", "a/b"] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
