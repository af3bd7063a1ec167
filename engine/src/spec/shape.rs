//! The types of a task's params, read from their JSON schema, and the check of values against them.
//!
//! `serde` stops at the first wrong param and does not know its place. This check finds every one
//! and points at it; what only the task can know is left to
//! [`AnyTask::canonical`](crate::task::AnyTask::canonical).

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::mistake::{Mistake, Span};
use super::nearest;
use super::resolve::{Field, Tree, TreeNode};
use super::scalar;

/// Schemas nested deeper than this refer to themselves; the rest is left to the task.
const DEPTH_MAX: usize = 24;

/// The type of a value.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: ShapeKind,
    pub(crate) is_nullable: bool,
    pub(crate) doc: String,
    pub(crate) default: Option<Value>,
}

#[derive(Clone, Debug)]
pub(crate) enum ShapeKind {
    /// The schema says nothing that can be checked here.
    Any,
    Boolean,
    Integer {
        min: Option<f64>,
        max: Option<f64>,
    },
    Number {
        min: Option<f64>,
        max: Option<f64>,
    },
    Text,
    /// One of a few words.
    Choice(Vec<String>),
    List(Box<Shape>),
    /// A list with a type for each place.
    Tuple(Vec<Shape>),
    Record(Record),
    OneOf(Vec<Shape>),
}

/// A map with known keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) fields: IndexMap<String, Shape>,
    pub(crate) required: Vec<String>,
    /// The type of values under keys that are not listed; `None` when there can be none.
    pub(crate) rest: Option<Box<Shape>>,
}

impl Shape {
    /// Reads a JSON schema as `schemars` writes it.
    pub(crate) fn of_schema(schema: &Value) -> Self {
        let definitions = schema.get("$defs").and_then(Value::as_object);
        compile(schema, definitions, 0)
    }

    fn any() -> Self {
        Self { kind: ShapeKind::Any, is_nullable: true, doc: String::new(), default: None }
    }

    /// What values are allowed, for people.
    pub(crate) fn describe(&self) -> String {
        let described = match &self.kind {
            ShapeKind::Any => "any value".to_owned(),
            ShapeKind::Boolean => "`true` or `false`".to_owned(),
            ShapeKind::Integer { .. } => "an integer".to_owned(),
            ShapeKind::Number { .. } => "a number".to_owned(),
            ShapeKind::Text => "a string".to_owned(),
            ShapeKind::Choice(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
                if words.len() == 1 {
                    words.join("")
                } else {
                    format!("one of {}", words.join(", "))
                }
            }
            ShapeKind::List(_) => "a list".to_owned(),
            ShapeKind::Tuple(items) => format!("a list of {} values", items.len()),
            ShapeKind::Record(_) => "a map".to_owned(),
            ShapeKind::OneOf(shapes) => {
                let mut all: Vec<_> = shapes.iter().map(Self::describe_variant).collect();
                all.dedup();
                all.join(" or ")
            }
        };
        if self.is_nullable && !matches!(self.kind, ShapeKind::Any) {
            format!("{described}, or `null`")
        } else {
            described
        }
    }

    /// A record among alternatives is told by its keys.
    fn describe_variant(&self) -> String {
        let ShapeKind::Record(record) = &self.kind else { return self.describe() };
        match &record.required[..] {
            [] => "a map".to_owned(),
            keys => {
                let keys: Vec<_> = keys
                    .iter()
                    .map(|key| match record.fields.get(key).map(|shape| &shape.kind) {
                        Some(ShapeKind::Choice(words)) if words.len() == 1 => {
                            format!("`{key}: {}`", words[0])
                        }
                        _ => format!("`{key}`"),
                    })
                    .collect();
                format!("a map with {}", keys.join(", "))
            }
        }
    }
}

fn compile(schema: &Value, definitions: Option<&Map<String, Value>>, depth: usize) -> Shape {
    let Some(object) = schema.as_object().filter(|_| depth < DEPTH_MAX) else {
        return Shape::any();
    };
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut shape = match text("$ref").strip_prefix("#/$defs/") {
        Some(name) => match definitions.and_then(|definitions| definitions.get(name)) {
            Some(definition) => compile(definition, definitions, depth + 1),
            None => Shape::any(),
        },
        None => compile_kind(object, definitions, depth),
    };
    if !text("description").is_empty() {
        text("description").clone_into(&mut shape.doc);
    }
    if let Some(default) = object.get("default") {
        shape.default = Some(default.clone());
    }
    shape
}

fn compile_kind(
    object: &Map<String, Value>,
    definitions: Option<&Map<String, Value>>,
    depth: usize,
) -> Shape {
    let mut shape = Shape::any();
    shape.is_nullable = false;
    if let Some(words) = words(object) {
        shape.kind = ShapeKind::Choice(words);
        return shape;
    }
    let list = |key: &str| object.get(key).and_then(Value::as_array);
    if let Some(alternatives) = list("oneOf").or_else(|| list("anyOf")).or_else(|| list("allOf")) {
        return compile_alternatives(alternatives, definitions, depth);
    }
    let types: Vec<&str> = match object.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    shape.is_nullable = types.contains(&"null");
    let mut named = types.into_iter().filter(|name| *name != "null");
    let (Some(name), None) = (named.next(), named.next()) else {
        return Shape::any();
    };
    let bound = |key: &str| object.get(key).and_then(Value::as_f64);
    let (format_min, format_max) =
        format_range(object.get("format").and_then(Value::as_str).unwrap_or_default());
    let (min, max) = (bound("minimum").or(format_min), bound("maximum").or(format_max));
    shape.kind = match name {
        "boolean" => ShapeKind::Boolean,
        "integer" => ShapeKind::Integer { min, max },
        "number" => ShapeKind::Number { min, max },
        "string" => ShapeKind::Text,
        "array" => match (list("prefixItems"), object.get("items")) {
            (Some(items), _) => ShapeKind::Tuple(
                items.iter().map(|item| compile(item, definitions, depth + 1)).collect(),
            ),
            (None, Some(item)) => ShapeKind::List(Box::new(compile(item, definitions, depth + 1))),
            (None, None) => ShapeKind::List(Box::new(Shape::any())),
        },
        "object" => ShapeKind::Record(compile_record(object, definitions, depth)),
        _ => ShapeKind::Any,
    };
    shape
}

fn compile_record(
    object: &Map<String, Value>,
    definitions: Option<&Map<String, Value>>,
    depth: usize,
) -> Record {
    let properties = object.get("properties").and_then(Value::as_object).into_iter().flatten();
    let fields = properties
        .map(|(name, schema)| (name.clone(), compile(schema, definitions, depth + 1)))
        .collect();
    let required = object.get("required").and_then(Value::as_array).into_iter().flatten();
    let rest = match object.get("additionalProperties") {
        Some(Value::Bool(false)) => None,
        Some(schema @ Value::Object(_)) => Some(Box::new(compile(schema, definitions, depth + 1))),
        _ => Some(Box::new(Shape::any())),
    };
    Record {
        fields,
        required: required.filter_map(|name| Some(name.as_str()?.to_owned())).collect(),
        rest,
    }
}

fn compile_alternatives(
    alternatives: &[Value],
    definitions: Option<&Map<String, Value>>,
    depth: usize,
) -> Shape {
    let (nulls, others): (Vec<_>, Vec<_>) = alternatives
        .iter()
        .partition(|schema| schema.get("type").and_then(Value::as_str) == Some("null"));
    let mut shapes: Vec<_> =
        others.iter().map(|schema| compile(schema, definitions, depth + 1)).collect();
    let all_words = shapes.iter().all(|shape| matches!(shape.kind, ShapeKind::Choice(_)));
    let mut shape = if shapes.len() == 1 {
        shapes.remove(0)
    } else {
        let kind = if all_words {
            let words = shapes.into_iter().filter_map(|shape| match shape.kind {
                ShapeKind::Choice(words) => Some(words),
                _ => None,
            });
            ShapeKind::Choice(words.flatten().collect())
        } else {
            ShapeKind::OneOf(shapes)
        };
        Shape { kind, is_nullable: false, doc: String::new(), default: None }
    };
    shape.is_nullable |= !nulls.is_empty();
    shape
}

/// The words of an enumeration.
fn words(object: &Map<String, Value>) -> Option<Vec<String>> {
    if let Some(word) = object.get("const") {
        return Some(vec![word.as_str()?.to_owned()]);
    }
    let words = object.get("enum")?.as_array()?;
    words.iter().map(|word| Some(word.as_str()?.to_owned())).collect()
}

/// The range of an integer type by its name.
fn format_range(format: &str) -> (Option<f64>, Option<f64>) {
    let (min, max) = match format {
        "uint8" => (0.0, f64::from(u8::MAX)),
        "uint16" => (0.0, f64::from(u16::MAX)),
        "uint32" => (0.0, f64::from(u32::MAX)),
        "uint64" | "uint" => (0.0, u64::MAX as f64),
        "int8" => (f64::from(i8::MIN), f64::from(i8::MAX)),
        "int16" => (f64::from(i16::MIN), f64::from(i16::MAX)),
        "int32" => (f64::from(i32::MIN), f64::from(i32::MAX)),
        "int64" | "int" => (i64::MIN as f64, i64::MAX as f64),
        _ => return (None, None),
    };
    (Some(min), Some(max))
}

/// Checks values and turns them into the JSON that the task reads.
pub(crate) struct Typing<'a> {
    /// The task, for messages.
    pub(crate) kind: &'a str,
    pub(crate) mistakes: Vec<Mistake>,
    /// Whether every part has a value.
    pub(crate) is_complete: bool,
}

impl<'a> Typing<'a> {
    pub(crate) fn new(kind: &'a str) -> Self {
        Self { kind, mistakes: Vec::new(), is_complete: true }
    }

    /// Checks a task's params. `at` is where a missing one is reported.
    pub(crate) fn params(&mut self, fields: &[Field], record: &Record, at: Span) -> Value {
        self.fields(fields, record, "", at)
    }

    fn value(&mut self, tree: &Tree, shape: &Shape, path: &str) -> Value {
        let scalar = match &tree.node {
            TreeNode::Unknown => {
                self.is_complete = false;
                return Value::Null;
            }
            TreeNode::Scalar(Value::Null) if shape.is_nullable => return Value::Null,
            TreeNode::Scalar(value) => Some(value),
            TreeNode::Seq(_) | TreeNode::Map(_) => None,
        };
        match (&shape.kind, &tree.node) {
            (ShapeKind::Any, _) => tree.value().unwrap_or_else(|| {
                self.is_complete = false;
                Value::Null
            }),
            (ShapeKind::OneOf(shapes), _) => self.one_of(tree, shape, shapes, path),
            (ShapeKind::List(item), TreeNode::Seq(items)) => {
                let items = items.iter().enumerate();
                items
                    .map(|(i, value)| self.value(value, item, &join(path, &i.to_string())))
                    .collect()
            }
            (ShapeKind::Tuple(shapes), TreeNode::Seq(items)) if items.len() == shapes.len() => {
                let items = items.iter().zip(shapes).enumerate();
                items
                    .map(|(i, (value, item))| self.value(value, item, &join(path, &i.to_string())))
                    .collect()
            }
            (ShapeKind::Record(record), TreeNode::Map(fields)) => {
                self.fields(fields, record, path, tree.span)
            }
            (kind, _) => match scalar.and_then(|value| accept(value, kind)) {
                Some(value) => self.in_range(value, tree, shape, path),
                None => self.wrong_type(tree, shape, path),
            },
        }
    }

    fn fields(&mut self, fields: &[Field], record: &Record, path: &str, at: Span) -> Value {
        let mut values = Map::with_capacity(fields.len());
        let mut meant = Vec::new();
        for field in fields {
            let inner = join(path, &field.key);
            let shape = record.fields.get(&field.key).or(record.rest.as_deref());
            if let Some(shape) = shape {
                let value = self.value(&field.value, shape, &inner);
                values.insert(field.key.clone(), value);
            } else {
                meant.extend(nearest::nearest(&field.key, record.fields.keys().map(|k| &**k)));
                self.unknown(field, record, path);
            }
        }
        for name in record.required.iter().filter(|name| !values.contains_key(*name)) {
            self.is_complete = false;
            if meant.contains(&name.as_str()) {
                // The misspelled one was reported with this name as its suggestion.
                continue;
            }
            let (kind, inner) = (self.kind, join(path, name));
            let expected = record.fields.get(name).map_or("a value".to_owned(), Shape::describe);
            let doc = record.fields.get(name).map_or("", |shape| first_line(&shape.doc));
            let about = if doc.is_empty() { expected } else { format!("{expected}: {doc}") };
            self.mistakes.push(
                Mistake::new("spec::missing_param", format!("task `{kind}` needs param `{inner}`"))
                    .at(at, "not given here")
                    .help(format!("`{name}` is {about}")),
            );
        }
        Value::Object(values)
    }

    fn unknown(&mut self, field: &Field, record: &Record, path: &str) {
        self.is_complete = false;
        let known = record.fields.keys().map(String::as_str);
        let (kind, key) = (self.kind, scalar::shorten(&field.key));
        let message = if path.is_empty() {
            format!("task `{kind}` has no param `{key}`")
        } else {
            format!("param `{path}` of task `{kind}` has no field `{key}`")
        };
        let help = if record.fields.is_empty() {
            Some(format!("`{kind}` takes no params"))
        } else {
            nearest::suggest(&field.key, known, "known")
                .or_else(|| Some(format!("`sbp tasks show {kind}` lists them")))
        };
        self.mistakes.push(
            Mistake::new("spec::unknown_param", message)
                .at(field.key_span, "no such param")
                .maybe_help(help),
        );
    }

    /// The alternative without mistakes, else the mistakes of the one that was probably meant.
    fn one_of(&mut self, tree: &Tree, shape: &Shape, shapes: &[Shape], path: &str) -> Value {
        let mut best: Option<(usize, Self, Value)> = None;
        for alternative in shapes {
            let mut trial = Typing::new(self.kind);
            let value = trial.value(tree, alternative, path);
            if trial.mistakes.is_empty() {
                self.is_complete &= trial.is_complete;
                return value;
            }
            let likeness = likeness(tree, alternative);
            if best.as_ref().is_none_or(|(most, ..)| likeness > *most) {
                best = Some((likeness, trial, value));
            }
        }
        match best {
            Some((likeness, trial, value)) if likeness > 0 => {
                self.mistakes.extend(trial.mistakes);
                self.is_complete = false;
                value
            }
            _ => self.wrong_alternative(tree, shape, shapes, path),
        }
    }

    fn wrong_alternative(
        &mut self,
        tree: &Tree,
        shape: &Shape,
        shapes: &[Shape],
        path: &str,
    ) -> Value {
        let TreeNode::Map(fields) = &tree.node else {
            return self.wrong_type(tree, shape, path);
        };
        // A map whose keys fit no alternative: the keys are the mistake.
        let known: Vec<&str> = shapes
            .iter()
            .filter_map(|shape| match &shape.kind {
                ShapeKind::Record(record) => Some(record.fields.keys().map(String::as_str)),
                _ => None,
            })
            .flatten()
            .collect();
        let Some(field) = fields.first().filter(|_| !known.is_empty()) else {
            return self.wrong_type(tree, shape, path);
        };
        self.is_complete = false;
        let (kind, key) = (self.kind, scalar::shorten(&field.key));
        let help = nearest::suggest(&field.key, known.iter().copied(), "known");
        self.mistakes.push(
            Mistake::new(
                "spec::unknown_param",
                format!("param `{path}` of task `{kind}` has no field `{key}`"),
            )
            .at(field.key_span, "no such field")
            .maybe_help(help),
        );
        Value::Null
    }

    fn wrong_type(&mut self, tree: &Tree, shape: &Shape, path: &str) -> Value {
        self.is_complete = false;
        let (kind, expected, found) = (self.kind, shape.describe(), tree.describe());
        let message = format!("param `{path}` of task `{kind}` is {found}; it must be {expected}");
        self.mistakes.push(
            Mistake::new("spec::wrong_type", message)
                .at(tree.span, format!("expected {expected}"))
                .maybe_help(type_help(tree, &shape.kind)),
        );
        Value::Null
    }

    fn in_range(&mut self, value: Value, tree: &Tree, shape: &Shape, path: &str) -> Value {
        let (ShapeKind::Integer { min, max } | ShapeKind::Number { min, max }) = shape.kind else {
            return value;
        };
        let Some(number) = value.as_f64() else { return value };
        let limit = match (min, max) {
            (Some(min), _) if number < min => format!("at least {min}"),
            (_, Some(max)) if number > max => format!("at most {max}"),
            _ => return value,
        };
        self.is_complete = false;
        let kind = self.kind;
        let message = format!("param `{path}` of task `{kind}` is {value}; it must be {limit}");
        self.mistakes.push(
            Mistake::new("spec::out_of_range", message).at(tree.span, format!("must be {limit}")),
        );
        value
    }
}

/// The scalar as the type wants it; `None` when it is of another type.
pub(crate) fn accept(value: &Value, kind: &ShapeKind) -> Option<Value> {
    match (kind, value) {
        (ShapeKind::Boolean, Value::Bool(_))
        | (ShapeKind::Text, Value::String(_))
        | (ShapeKind::Number { .. }, Value::Number(_)) => Some(value.clone()),
        (ShapeKind::Integer { .. }, Value::Number(number)) => {
            scalar::exact_integer(number).map(Value::Number)
        }
        (ShapeKind::Choice(words), Value::String(word)) => {
            words.contains(word).then(|| value.clone())
        }
        _ => None,
    }
}

/// How much a map looks like an alternative: shared keys, and above all shared tags.
fn likeness(tree: &Tree, shape: &Shape) -> usize {
    match (&tree.node, &shape.kind) {
        (TreeNode::Map(fields), ShapeKind::Record(record)) => fields
            .iter()
            .filter_map(|field| Some((field, record.fields.get(&field.key)?)))
            .map(|(field, shape)| match (&shape.kind, &field.value.node) {
                (ShapeKind::Choice(words), TreeNode::Scalar(Value::String(word)))
                    if words.contains(word) =>
                {
                    10
                }
                (ShapeKind::Choice(words), _) if words.len() == 1 => 0,
                _ => 1,
            })
            .sum(),
        (TreeNode::Seq(_), ShapeKind::List(_) | ShapeKind::Tuple(_)) => 1,
        _ => 0,
    }
}

/// Advice for values that look like the wanted type and are not.
pub(crate) fn type_help(tree: &Tree, kind: &ShapeKind) -> Option<String> {
    let TreeNode::Scalar(value) = &tree.node else {
        return match (&tree.node, kind) {
            (TreeNode::Map(_) | TreeNode::Seq(_), ShapeKind::Text) => {
                Some("text that starts with `{` or `[` needs quotes".to_owned())
            }
            _ => None,
        };
    };
    match (kind, value) {
        (ShapeKind::Boolean, Value::String(text)) => match &*text.to_ascii_lowercase() {
            "yes" | "on" | "y" | "true" => Some("write `true`, without quotes".to_owned()),
            "no" | "off" | "n" | "false" => Some("write `false`, without quotes".to_owned()),
            _ => None,
        },
        (ShapeKind::Integer { .. } | ShapeKind::Number { .. }, Value::String(text)) => {
            number_help(text)
        }
        (ShapeKind::Integer { .. }, Value::Number(number)) => {
            let nearest = number.as_f64().map(f64::round).filter(|value| value.abs() < 1e15)?;
            Some(format!("the nearest integer is {nearest}"))
        }
        (ShapeKind::Text, Value::Number(_) | Value::Bool(_)) => {
            Some("put quotes around it to make it a string".to_owned())
        }
        (ShapeKind::Choice(words), Value::String(text)) => {
            let near = nearest::nearest(text, words.iter().map(String::as_str))?;
            Some(format!("did you mean `{near}`?"))
        }
        (ShapeKind::List(_), _) => Some("put it in `[ ]`".to_owned()),
        _ => None,
    }
}

fn number_help(text: &str) -> Option<String> {
    let digits = text.trim_start_matches('0');
    if text.starts_with('0') && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Some(format!(
            "a leading 0 is ambiguous: write `{digits}`, or `0o{digits}` for octal"
        ));
    }
    if scalar::number(text).is_some() {
        return Some("remove the quotes".to_owned());
    }
    if matches!(&*text.to_ascii_lowercase(), ".inf" | "-.inf" | ".nan" | "inf" | "nan") {
        return Some("numbers are finite".to_owned());
    }
    let plain: String = text.chars().filter(|c| !matches!(c, ',' | '\'' | ' ')).collect();
    scalar::number(&plain).map(|_| format!("write `{plain}`"))
}

pub(crate) fn first_line(doc: &str) -> &str {
    doc.lines().next().unwrap_or_default()
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
