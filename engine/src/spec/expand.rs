//! Makes the nodes of each entry: one for each combination of its matrix.

use std::rc::Rc;

use indexmap::{IndexMap, IndexSet};
use serde_json::Value;

use super::check::{Document, Entry, NODES_MAX, Reader, TaskKind};
use super::expr::Scope;
use super::mistake::{Mistake, Span};
use super::params::text_of;
use super::resolve::{Field, Tree, TreeNode};
use super::scalar;
use super::settings::{self, Settings};
use super::shape::Typing;
use super::yaml::{Kind, Map, Yaml};
use crate::graph::Place;
use crate::task::Checked;

/// Combinations of one matrix.
const COMBINATIONS_MAX: usize = 100_000;

/// Longest text of a matrix value: it becomes part of a node's name.
const VALUE_CHARS_MAX: usize = 64;

/// A node that is not yet connected.
pub(crate) struct Instance {
    /// Index of its entry in the document.
    pub(crate) entry: usize,
    pub(crate) name: String,
    pub(crate) matrix: IndexMap<String, Value>,
    pub(crate) scope: Rc<Scope>,
    pub(crate) made: Rc<Made>,
}

/// What an entry gives for one combination, or for all when it does not use the matrix.
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) settings: Settings,
    /// Canonical params; null when there is a mistake in them.
    pub(crate) params: Value,
    pub(crate) param_places: Vec<(String, Place)>,
    pub(crate) external: Vec<String>,
}

/// Expands every entry, in the order of the file. Entries whose matrix is wrong give none.
pub(crate) fn instances(reader: &mut Reader<'_>, document: &Document<'_, '_>) -> Vec<Instance> {
    let mut instances = Vec::with_capacity(document.entries.len());
    let plain = Rc::new(document.scope.clone());
    for (index, (name, entry)) in document.entries.iter().enumerate() {
        let Some(combinations) = combinations(reader, name, entry, &document.scope) else {
            continue;
        };
        if instances.len() + combinations.len() > NODES_MAX {
            let message = format!("the pipeline expands to more than {NODES_MAX} nodes");
            reader.sink.push(
                Mistake::new("spec::too_large", message).at(entry.span, "the limit is passed here"),
            );
            break;
        }
        let varies =
            entry.layers.iter().any(|map| varies(map)) || entry.default_params.is_some_and(varies);
        let mut shared: Option<Rc<Made>> = None;
        for matrix in combinations {
            let scope = if matrix.is_empty() {
                Rc::clone(&plain)
            } else {
                Rc::new(document.scope.with_matrix(&matrix))
            };
            let made = match &shared {
                Some(made) => Rc::clone(made),
                None => Rc::new(make(reader, name, entry, &scope)),
            };
            if !varies {
                shared = Some(Rc::clone(&made));
            }
            let name = instance_name(name, &matrix);
            instances.push(Instance { entry: index, name, matrix, scope, made });
        }
    }
    instances
}

/// Whether params or settings differ from one combination to the next.
fn varies(map: &Map<'_>) -> bool {
    map.0
        .iter()
        .filter(|(key, _)| !matches!(&*key.text, "in" | "matrix"))
        .any(|(_, value)| value.mentions("matrix"))
}

fn instance_name(entry: &str, matrix: &IndexMap<String, Value>) -> String {
    if matrix.is_empty() {
        return entry.to_owned();
    }
    let values: Vec<_> =
        matrix.iter().map(|(axis, value)| format!("{axis}={}", text_of(value))).collect();
    format!("{entry}[{}]", values.join(","))
}

fn make(reader: &mut Reader<'_>, name: &str, entry: &Entry<'_, '_>, scope: &Scope) -> Made {
    let settings = settings::read(reader, name, entry, scope);
    let mut made =
        Made { settings, params: Value::Null, param_places: Vec::new(), external: Vec::new() };
    let (at, fields) = param_fields(reader, name, entry, scope);
    let Some(kind) = entry.kind.as_deref() else { return made };
    let mut typing = Typing::new(kind.task.kind());
    let params = typing.params(&fields, &kind.params, at);
    let is_usable = typing.is_complete && typing.mistakes.is_empty();
    typing.mistakes.into_iter().for_each(|mistake| reader.sink.push(mistake));
    if !is_usable || !made.settings.when {
        // A node that is left out may have params that make no sense without its condition.
        return made;
    }
    let tree = Tree { span: at, node: TreeNode::Map(fields) };
    tree.places(reader.source, &mut String::new(), &mut made.param_places);
    made.param_places.shrink_to_fit();
    if let Some(checked) = checked(reader, kind, &params, &tree) {
        made.params = checked.params;
        made.external = checked.external;
    }
    made
}

/// The entry's params over its task's defaults, evaluated, and where missing ones are reported.
fn param_fields(
    reader: &mut Reader<'_>,
    name: &str,
    entry: &Entry<'_, '_>,
    scope: &Scope,
) -> (Span, Vec<Field>) {
    let own = entry.map.get("params");
    let at = entry.map.key_span("params").or_else(|| entry.map.key_span("task"));
    let own = match own.filter(|yaml| !yaml.is_null()) {
        Some(yaml) => reader.expect_map(yaml, &format!("`params` of node `{name}`")),
        None => None,
    };
    let mut fields: Vec<Field> = Vec::new();
    for (key, value) in [own, entry.default_params].into_iter().flatten().flat_map(|map| &map.0) {
        // Params are few; the first layer that gives one wins.
        if fields.iter().any(|field| field.key == key.text) {
            continue;
        }
        fields.push(Field {
            key: key.text.to_string(),
            key_span: key.span,
            value: Tree::of(value, &mut reader.evaluator, scope, reader.sink),
        });
    }
    (at.unwrap_or(entry.span), fields)
}

/// Lets the task check its params and fill in defaults.
fn checked(
    reader: &mut Reader<'_>,
    kind: &TaskKind,
    params: &Value,
    tree: &Tree,
) -> Option<Checked> {
    match kind.task.checked(params) {
        Ok(checked) => Some(checked),
        Err(error) => {
            let at = tree.span_at(&error.path);
            let what = if error.path.is_empty() {
                format!("params of task `{}`", kind.task.kind())
            } else {
                format!("param `{}` of task `{}`", error.path, kind.task.kind())
            };
            reader.sink.push(
                Mistake::new("spec::bad_param", format!("{what}: {}", error.message))
                    .at(at, "refused by the task")
                    .maybe_help(error.help),
            );
            None
        }
    }
}

/// The combinations of an entry's matrix: one without values when it has none, `None` when the
/// matrix is wrong.
fn combinations(
    reader: &mut Reader<'_>,
    name: &str,
    entry: &Entry<'_, '_>,
    scope: &Scope,
) -> Option<Vec<IndexMap<String, Value>>> {
    let Some(yaml) = entry.map.get("matrix") else { return Some(vec![IndexMap::new()]) };
    let n_errors = reader.sink.n_errors();
    let what = format!("`matrix` of node `{name}`");
    let map = reader.expect_map(yaml, &what)?;
    let mut axes: IndexMap<String, Vec<Value>> = IndexMap::new();
    for (key, yaml) in &map.0 {
        if matches!(&*key.text, "include" | "exclude") {
            continue;
        }
        reader.check_name(&key.text, key.span, scalar::Name::Variable);
        let tree = Tree::of(yaml, &mut reader.evaluator, scope, reader.sink);
        axes.insert(key.text.to_string(), axis_values(reader, &key.text, &tree));
    }
    let rows = |reader: &mut Reader<'_>, key: &str| match map.get(key) {
        Some(yaml) => matrix_rows(reader, key, yaml, &axes, scope),
        None => Vec::new(),
    };
    let include = rows(reader, "include");
    let exclude = rows(reader, "exclude");
    if reader.sink.n_errors() > n_errors {
        return None;
    }
    let n_combinations =
        axes.values().try_fold(1_usize, |product, values| product.checked_mul(values.len()));
    if axes.is_empty() || n_combinations.is_none_or(|n| n > COMBINATIONS_MAX) {
        let (code, message) = if axes.is_empty() {
            ("spec::bad_matrix", format!("{what} has no axes"))
        } else {
            ("spec::too_large", format!("{what} gives more than {COMBINATIONS_MAX} nodes"))
        };
        let at = entry.map.key_span("matrix").unwrap_or(yaml.span);
        reader.sink.push(Mistake::new(code, message).at(at, "this matrix"));
        return None;
    }
    let mut combinations = product(&axes);
    report_vain_excludes(reader, &combinations, &exclude);
    combinations.retain(|combination| !exclude.iter().any(|(row, _)| is_part(row, combination)));
    for (row, at) in include {
        if let Some(missing) = axes.keys().find(|axis| !row.contains_key(*axis)) {
            let message =
                format!("a row of `include` must give every axis; `{missing}` is missing");
            reader.sink.push(Mistake::new("spec::bad_matrix", message).at(at, "this row"));
        }
        // The axes' order makes the name, whatever order the row was written in.
        let row: IndexMap<_, _> =
            axes.keys().filter_map(|axis| Some((axis.clone(), row.get(axis)?.clone()))).collect();
        if combinations.contains(&row) {
            let message = "this row of `include` is already in the matrix";
            reader.sink.push(Mistake::new("spec::bad_matrix", message).at(at, "there already"));
        }
        combinations.push(row);
    }
    if combinations.is_empty() {
        let at = entry.map.key_span("matrix").unwrap_or(yaml.span);
        let message = format!("{what} gives no nodes");
        reader.sink.push(Mistake::new("spec::bad_matrix", message).at(at, "nothing is left"));
    }
    (reader.sink.n_errors() == n_errors).then_some(combinations)
}

/// All combinations, the first axis slowest.
fn product(axes: &IndexMap<String, Vec<Value>>) -> Vec<IndexMap<String, Value>> {
    let mut combinations = vec![IndexMap::new()];
    for (axis, values) in axes {
        combinations = combinations
            .iter()
            .flat_map(|combination: &IndexMap<String, Value>| {
                values.iter().map(|value| {
                    let mut combination = combination.clone();
                    combination.insert(axis.clone(), value.clone());
                    combination
                })
            })
            .collect();
    }
    combinations
}

fn is_part(row: &IndexMap<String, Value>, combination: &IndexMap<String, Value>) -> bool {
    row.iter().all(|(axis, value)| combination.get(axis) == Some(value))
}

fn report_vain_excludes(
    reader: &mut Reader<'_>,
    combinations: &[IndexMap<String, Value>],
    exclude: &[(IndexMap<String, Value>, Span)],
) {
    for (row, at) in exclude {
        if !combinations.iter().any(|combination| is_part(row, combination)) {
            let message = "this row of `exclude` matches no combination";
            reader.sink.push(Mistake::new("spec::bad_matrix", message).at(*at, "matches nothing"));
        }
    }
}

fn axis_values(reader: &mut Reader<'_>, axis: &str, tree: &Tree) -> Vec<Value> {
    let items = match &tree.node {
        TreeNode::Seq(items) => items,
        TreeNode::Unknown => return Vec::new(),
        _ => {
            let what = format!("axis `{axis}`");
            let help = Some("write its values as `[a, b]`".to_owned());
            reader.wrong_type(tree.span, &what, &tree.describe(), "a list of values", help);
            return Vec::new();
        }
    };
    if items.is_empty() {
        let message = format!("axis `{axis}` has no values");
        reader.sink.push(Mistake::new("spec::bad_matrix", message).at(tree.span, "empty"));
    }
    let mut seen = IndexSet::new();
    let mut values = Vec::with_capacity(items.len());
    for item in items {
        let Some(value) = axis_value(reader, axis, item) else { continue };
        if seen.insert(text_of(&value)) {
            values.push(value);
        } else {
            let message = format!("axis `{axis}` has the value `{}` twice", text_of(&value));
            reader.sink.push(Mistake::new("spec::bad_matrix", message).at(item.span, "again here"));
        }
    }
    values
}

/// A value of an axis: a scalar that can stand in a node's name.
fn axis_value(reader: &mut Reader<'_>, axis: &str, tree: &Tree) -> Option<Value> {
    let value = match &tree.node {
        TreeNode::Scalar(value @ (Value::Bool(_) | Value::Number(_))) => {
            return Some(value.clone());
        }
        TreeNode::Scalar(value @ Value::String(text)) => (value, text),
        TreeNode::Unknown => return None,
        _ => {
            let what = format!("a value of axis `{axis}`");
            let expected = "a string, a number or a boolean";
            reader.wrong_type(tree.span, &what, &tree.describe(), expected, None);
            return None;
        }
    };
    let (value, text) = value;
    let is_allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | ':');
    let is_dots = text.chars().all(|c| c == '.');
    if !is_dots && text.chars().all(is_allowed) && text.chars().count() <= VALUE_CHARS_MAX {
        return Some(value.clone());
    }
    let message = format!(
        "`{}` cannot be a value of axis `{axis}`: it becomes part of a name",
        scalar::shorten(text)
    );
    reader
        .sink
        .push(Mistake::new("spec::bad_name", message).at(tree.span, "bad value").help(format!(
        "values are up to {VALUE_CHARS_MAX} letters, digits and `_-.+:`; choose other settings by \
         an expression such as `\"${{{{ params.paths[matrix.{axis}] }}}}\"`"
    )));
    None
}

/// The rows of `include` or `exclude`, with their places.
fn matrix_rows(
    reader: &mut Reader<'_>,
    key: &str,
    yaml: &Yaml<'_>,
    axes: &IndexMap<String, Vec<Value>>,
    scope: &Scope,
) -> Vec<(IndexMap<String, Value>, Span)> {
    let Kind::Seq(items) = &yaml.kind else {
        reader.wrong_type(yaml.span, &format!("`{key}`"), &yaml.describe(), "a list of maps", None);
        return Vec::new();
    };
    let mut rows = Vec::new();
    for item in items {
        let Some(map) = reader.expect_map(item, &format!("a row of `{key}`")) else { continue };
        let mut row = IndexMap::new();
        for (axis, yaml) in &map.0 {
            if !axes.contains_key(&*axis.text) {
                let known = axes.keys().map(String::as_str);
                let help = super::nearest::suggest(&axis.text, known, "axes");
                let message = format!("the matrix has no axis `{}`", scalar::shorten(&axis.text));
                reader.sink.push(
                    Mistake::new("spec::unknown_axis", message)
                        .at(axis.span, "no such axis")
                        .maybe_help(help),
                );
                continue;
            }
            let tree = Tree::of(yaml, &mut reader.evaluator, scope, reader.sink);
            if let Some(value) = axis_value(reader, &axis.text, &tree) {
                row.insert(axis.text.to_string(), value);
            }
        }
        rows.push((row, item.span));
    }
    rows
}
