//! The reference of the YAML language as Markdown, made from the tables that the checks use.

use std::fmt::Write as _;

use serde_json::Value;

use super::check::{NODE_KEYS, NODES_MAX, TOP_KEYS};
use super::expr::FILTERS;
use super::include::FILES_MAX;
use super::params::{PARAM_KEYS, TYPES};
use super::settings::{RESOURCES, RETRY, SETTINGS};
use super::shape::{Record, Shape, ShapeKind};
use crate::task::{AnyTask, Arity, Determinism, Port, Registry};

const INTRODUCTION: &str = "\
A pipeline is one YAML file. Names of nodes are lower-case letters, digits, `_` and `-`; names of
params and axes have no `-`. Keys that are not listed here are errors, as are equal keys; top-level
keys that start with `x-` are left alone, for anchors. `&anchor`, `*alias` and `<<` work as usual.
`sbp schema` prints the JSON schema for editors.
";

const REFERENCES: &str = "\
`in: NODE` connects the only output of `NODE` to the only (or only required) input port. A map
connects ports by name; its values are references or lists of them:

| reference | stands for |
|---|---|
| `node` | the only output of `node` |
| `node.port` | the output `port` |
| `node[axis=value]` | the nodes of a matrix with that value; several separated by commas |

A node with a matrix that reads from a node with the same axis gets the one with its own value. Axes
that the reader does not have are all taken, which needs a port for many artifacts, or picked in
brackets.
";

const MATRIX: &str = "\
`matrix: {axis: [value, …], …}` makes a node for each combination, the first axis slowest, called
`node[axis=value,…]`. `exclude` is a list of maps; combinations that have all the values of one are
left out. `include` is a list of maps that give every axis; they are added. An axis may be an
expression that gives a list.
";

const WHEN: &str = "\
A node whose `when` is false is left out. Readers of it lose that connection; for a required port
that is an error, unless other sources remain.
";

const EXPRESSIONS: &str = "\
`${{ … }}` stands for the value of an expression. A value that is exactly one expression keeps its
type; otherwise the result is put into the text. `$${{` stands for the characters `${{`. Expressions
see `params.NAME`, `matrix.AXIS` and `env.NAME`, `range(n)`, the operators
`+ - * / // % ** ~ == != < <= > >= and or not in`, `A if CONDITION else B`, lists and maps, and these
filters, written `value | filter`:
";

const VALUES: &str = "\
| value | written as |
|---|---|
| boolean | `true` or `false`; `yes`, `no`, `on` and `off` are text |
| integer | `1000`, `10_000`, `1e3`, `0x1F`, `0o17`; `0777` is text |
| number | `0.5`, `1e-3`; infinities are refused |
| string | text, in quotes when it looks like a number or a boolean |
| duration | `250ms`, `90s`, `10m`, `1h30m`, `2d` |
| size | `512MiB`, `1.5GiB`, `2GB`, or a count of bytes |
";

const INCLUDES: &str = "`include: FILE`, or a list of files, adds the `params`, `env`, `defaults` and `nodes` of other files,
which may include files themselves. Names are relative to the file that has them, and have no
expressions. What an included file says of itself (`version`, `name`, `doc`) does not count, so a whole
pipeline can be included. A name that two files define is an error; a file that is included twice counts
once.
";

/// The YAML reference: the language, then the tasks of `registry`.
pub fn reference(registry: &Registry) -> String {
    let mut text = String::from("# YAML reference\n\n");
    text.push_str(INTRODUCTION);
    section(&mut text, "Keys of a pipeline", "", TOP_KEYS);
    let params = "A value instead of these keys is a default; its type is that of the value.\n\n";
    section(&mut text, "Keys of a pipeline param", params, PARAM_KEYS);
    section(&mut text, "Types of pipeline params", "", TYPES);
    section(&mut text, "Keys of a node", "", NODE_KEYS);
    let defaults = "These can also stand in `defaults: {all: …}` and `defaults: {tasks: {KIND: …}}` \
                    (there with `params`); a node's own come first, then its task's, then those of all.\n\n";
    section(&mut text, "Settings of a node", defaults, SETTINGS);
    section(&mut text, "Keys of `resources`", "", RESOURCES);
    section(&mut text, "Keys of `retry`", "", RETRY);
    paragraph(&mut text, "Includes", INCLUDES);
    paragraph(&mut text, "References", REFERENCES);
    paragraph(&mut text, "Matrix", MATRIX);
    paragraph(&mut text, "Conditions", WHEN);
    section(&mut text, "Expressions", &format!("{EXPRESSIONS}\n"), FILTERS);
    paragraph(&mut text, "Values", VALUES);
    let limits = format!(
        "A pipeline expands to at most {NODES_MAX} nodes and has at most {FILES_MAX} files.\n"
    );
    paragraph(&mut text, "Limits", &limits);
    text.push_str("\n# Tasks\n");
    for entry in registry.iter() {
        task(&mut text, entry.as_ref());
    }
    text
}

fn paragraph(text: &mut String, title: &str, body: &str) {
    line(text, format_args!("\n## {title}\n\n{}", body.trim_end()));
}

fn section(text: &mut String, title: &str, body: &str, rows: &[(&str, &str)]) {
    line(text, format_args!("\n## {title}\n\n{body}| name | meaning |\n|---|---|"));
    for (name, doc) in rows {
        line(text, format_args!("| `{name}` | {} |", cell(doc)));
    }
}

fn task(text: &mut String, task: &dyn AnyTask) {
    let same = match task.determinism() {
        Determinism::Bitwise => "the same bytes on every machine",
        Determinism::BitwisePerDevice => {
            "the same bytes on one kind of device and instruction set, for any number of threads"
        }
        Determinism::Measured => "bytes that carry measured times or other facts of one execution",
    };
    let (kind, summary, revision) = (task.kind(), task.summary(), task.revision());
    let device = if task.uses_device() { " Computes on the node's `device`." } else { "" };
    line(
        text,
        format_args!("\n## `{kind}`\n\n{summary}. Revision {revision}; gives {same}.{device}"),
    );
    ports(text, "input", task.inputs());
    ports(text, "output", task.outputs());
    let ShapeKind::Record(record) = Shape::of_schema(&task.params_schema()).kind else { return };
    if record.fields.is_empty() {
        return;
    }
    line(text, format_args!("\n| param | type | default | meaning |\n|---|---|---|---|"));
    params(text, &record, "", None);
}

fn ports(text: &mut String, direction: &str, ports: &[Port]) {
    if ports.is_empty() {
        return;
    }
    line(text, format_args!("\n| {direction} | kind | how many | meaning |\n|---|---|---|---|"));
    for port in ports {
        let arity = match port.arity {
            Arity::One => "one",
            Arity::Optional => "none or one",
            Arity::Many => "one or more",
        };
        let (name, kind, doc) = (port.name, port.kind, cell(port.doc));
        line(text, format_args!("| `{name}` | `{kind}` | {arity} | {doc} |"));
    }
}

/// A row for each param, those of nested records below their own by dotted path. A record's default
/// is the default of its fields.
fn params(text: &mut String, record: &Record, prefix: &str, defaults: Option<&Value>) {
    for (name, shape) in &record.fields {
        let path = format!("{prefix}{name}");
        let default = shape.default.as_ref().or_else(|| defaults?.get(name));
        let is_required = record.required.contains(name) && defaults.is_none();
        let is_record = matches!(shape.kind, ShapeKind::Record(_));
        let shown = match default {
            _ if is_required => "required".to_owned(),
            Some(Value::Null) => "none".to_owned(),
            Some(Value::Object(_)) if is_record => String::new(),
            Some(default) => format!("`{default}`"),
            None => String::new(),
        };
        let (expected, doc) = (cell(&type_of(shape)), cell(&shape.doc));
        line(text, format_args!("| `{path}` | {expected} | {} | {doc} |", cell(&shown)));
        for (nested, suffix) in nested(shape) {
            params(text, nested, &format!("{path}{suffix}."), default.filter(|_| is_record));
        }
    }
}

/// The records in a value: its own, those of its items, those of its alternatives.
fn nested(shape: &Shape) -> Vec<(&Record, &'static str)> {
    match &shape.kind {
        ShapeKind::Record(record) => vec![(record, "")],
        ShapeKind::List(item) => {
            nested(item).into_iter().map(|(record, _)| (record, "[]")).collect()
        }
        ShapeKind::OneOf(shapes) => shapes.iter().flat_map(nested).collect(),
        _ => Vec::new(),
    }
}

/// The type in a table, with that of a list's items.
fn type_of(shape: &Shape) -> String {
    match &shape.kind {
        ShapeKind::List(item) => match &item.kind {
            ShapeKind::Any => "a list".to_owned(),
            ShapeKind::Text => "a list of strings".to_owned(),
            ShapeKind::Integer { .. } => "a list of integers".to_owned(),
            ShapeKind::Number { .. } => "a list of numbers".to_owned(),
            _ => format!("a list; each is {}", item.describe()),
        },
        _ => shape.describe(),
    }
}

/// Text for a cell of a table: one line, no bars.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}
