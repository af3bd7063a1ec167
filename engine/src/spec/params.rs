//! Pipeline params: declared types and defaults, `--set`, and environment variables.

use indexmap::IndexMap;
use serde_json::Value;

use super::check::Reader;
use super::expr::Scope;
use super::mistake::{Mistake, Sink, Source, Span};
use super::resolve::Tree;
use super::shape::{self, ShapeKind};
use super::yaml::{Key, Kind, Map, Yaml};
use super::{nearest, scalar, yaml};

/// What pipelines declare before their nodes.
pub(crate) struct Declarations {
    pub(crate) values: IndexMap<String, Value>,
    pub(crate) declared: Vec<(String, Span)>,
    pub(crate) scope: Scope,
}

/// The type of a pipeline param.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ParamType {
    String,
    Integer,
    Number,
    Boolean,
    List,
    Map,
}

/// Names of the types, with their help.
pub(crate) const TYPES: &[(&str, &str)] = &[
    ("string", "text"),
    ("integer", "a whole number; `1e9` and `10_000` count"),
    ("number", "a number"),
    ("boolean", "`true` or `false`"),
    ("list", "a list of anything"),
    ("map", "a map of anything"),
];

/// Keys of a param's declaration, with their help.
pub(crate) const PARAM_KEYS: &[(&str, &str)] = &[
    (
        "type",
        "`string`, `integer`, `number`, `boolean`, `list` or `map`; that of the default when left out",
    ),
    ("default", "the value without `--set`; may use params declared above it"),
    ("doc", "what it is for"),
    ("choices", "the only values allowed"),
];

impl ParamType {
    fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            "list" => Self::List,
            "map" => Self::Map,
            _ => return None,
        })
    }

    fn of_value(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Null => return None,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.is_f64() => Self::Number,
            Value::Number(_) => Self::Integer,
            Value::String(_) => Self::String,
            Value::Array(_) => Self::List,
            Value::Object(_) => Self::Map,
        })
    }

    fn describe(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::Boolean => "`true` or `false`",
            Self::List => "a list",
            Self::Map => "a map",
        }
    }

    fn shape(self) -> ShapeKind {
        match self {
            Self::String => ShapeKind::Text,
            Self::Integer => ShapeKind::Integer { min: None, max: None },
            Self::Number => ShapeKind::Number { min: None, max: None },
            Self::Boolean => ShapeKind::Boolean,
            Self::List | Self::Map => ShapeKind::Any,
        }
    }

    /// The value as this type wants it.
    fn accept(self, value: &Value) -> Option<Value> {
        match (self, value) {
            (Self::List, Value::Array(_)) | (Self::Map, Value::Object(_)) => Some(value.clone()),
            (Self::List | Self::Map, _) => None,
            _ => shape::accept(value, &self.shape()),
        }
    }

    /// The value of `--set` text.
    fn parse(self, text: &str) -> Option<Value> {
        match self {
            Self::String => Some(text.into()),
            Self::Integer | Self::Number => {
                self.accept(&scalar::number(text.trim()).map(Value::Number)?)
            }
            Self::Boolean => self.accept(&scalar::plain_value(text.trim())),
            Self::List => {
                let text = text.trim();
                let bracketed = format!("[{text}]");
                self.accept(&parse_yaml(if text.starts_with('[') { text } else { &bracketed })?)
            }
            Self::Map => self.accept(&parse_yaml(text)?),
        }
    }
}

/// The value of YAML text without expressions.
fn parse_yaml(text: &str) -> Option<Value> {
    let source = std::sync::Arc::new(Source::new("--set", text.into()));
    let mut sink = Sink::new(std::sync::Arc::clone(&source));
    let yaml = yaml::read(text, 0..text.len(), &source, &mut sink)?;
    (sink.n_errors() == 0).then(|| plain(&yaml))
}

/// The value of YAML whose expressions are left as they are.
pub(crate) fn plain(yaml: &Yaml<'_>) -> Value {
    match &yaml.kind {
        Kind::Scalar(scalar) => scalar.value(),
        Kind::Seq(items) => items.iter().map(plain).collect(),
        Kind::Map(map) => {
            map.0.iter().map(|(key, value)| (key.text.to_string(), plain(value))).collect()
        }
    }
}

/// Reads `params:` and `env:` and applies `--set`.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    top: &Map<'_>,
    overrides: &[(String, String)],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Declarations {
    let env = read_env(reader, top, variable);
    let params = top.get("params").and_then(|yaml| reader.expect_map(yaml, "`params`"));
    let params = params.map(|map| &map.0[..]).unwrap_or_default();
    for (name, _) in overrides {
        if !params.iter().any(|(key, _)| key.text == *name) {
            let known = params.iter().map(|(key, _)| &*key.text);
            let help = nearest::suggest(name, known, "params")
                .unwrap_or_else(|| "the pipeline declares no params".to_owned());
            let message = format!("`--set {name}=…` names no param of this pipeline");
            reader.sink.push(Mistake::new("spec::unknown_param", message).help(help));
        }
    }
    reader.evaluator.declared_params = params.iter().map(|(key, _)| key.text.to_string()).collect();
    let mut known: IndexMap<String, Option<Value>> = IndexMap::new();
    for (key, declaration) in params {
        reader.check_name(&key.text, key.span, scalar::Name::Variable);
        let given = overrides.iter().rev().find(|(name, _)| *name == key.text);
        let scope = if declaration.mentions("") {
            Scope::new(known.clone(), env.clone())
        } else {
            Scope::default()
        };
        let value =
            read_param(reader, key, declaration, given.map(|(_, text)| text.as_str()), &scope);
        known.insert(key.text.to_string(), value);
    }
    Declarations {
        values: known
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
            .collect(),
        declared: params.iter().map(|(key, _)| (key.text.to_string(), key.span)).collect(),
        scope: Scope::new(known, env),
    }
}

/// The value of one param; `None` when it has a mistake.
fn read_param(
    reader: &mut Reader<'_>,
    key: &Key<'_>,
    declaration: &Yaml<'_>,
    given: Option<&str>,
    scope: &Scope,
) -> Option<Value> {
    let name = &*key.text;
    let empty = Map::default();
    let (fields, default) = match &declaration.kind {
        Kind::Map(fields) => (fields, fields.get("default")),
        _ => (&empty, (!declaration.is_null()).then_some(declaration)),
    };
    reader.check_keys(fields, &PARAM_KEYS.iter().map(|(key, _)| *key), &format!("param `{name}`"));
    let declared = fields.get("type").map(|yaml| read_type(reader, name, yaml));
    let default = match default {
        Some(yaml) => {
            let tree = Tree::of(yaml, &mut reader.evaluator, scope, reader.sink);
            // A default that cannot be evaluated was reported, and leaves the type open.
            Some((tree.value()?, tree))
        }
        None => None,
    };
    let inferred = || ParamType::of_value(&default.as_ref()?.0);
    let Some(param_type) = declared.unwrap_or_else(inferred) else {
        if declared.is_none() {
            reader.sink.push(
                Mistake::new("spec::untyped_param", format!("param `{name}` has no type"))
                    .at(key.span, "neither type nor default")
                    .help(format!("write `{name}: {{type: string}}` or give it a default")),
            );
        }
        return None;
    };
    let default = match default {
        Some((value, tree)) => Some(accept_default(reader, name, param_type, &value, &tree)?),
        None => None,
    };
    let value = match (given, default) {
        (Some(text), _) => {
            let parsed = param_type.parse(text);
            if parsed.is_none() {
                let expected = param_type.describe();
                let text = scalar::shorten(text);
                let message = format!("`--set {name}={text}` must give {expected}");
                reader.sink.push(
                    Mistake::new("spec::wrong_type", message)
                        .at(key.span, format!("declared as {expected}")),
                );
            }
            parsed?
        }
        (None, Some(default)) => default,
        (None, None) => {
            reader.sink.push(
                Mistake::new("spec::unset_param", format!("param `{name}` has no value"))
                    .at(key.span, "no default")
                    .help(format!("run with `--set {name}=VALUE`, or give it a `default`")),
            );
            return None;
        }
    };
    check_choices(reader, key, fields, &value).then_some(value)
}

fn read_type(reader: &mut Reader<'_>, name: &str, yaml: &Yaml<'_>) -> Option<ParamType> {
    let text = yaml.scalar().map(|scalar| scalar.text.clone()).unwrap_or_default();
    let known = TYPES.iter().map(|(name, _)| *name);
    let found = ParamType::of_name(&text);
    if found.is_none() {
        let help = match &*text {
            "str" | "text" | "path" => Some("did you mean `string`?".to_owned()),
            "int" | "u64" | "i64" => Some("did you mean `integer`?".to_owned()),
            "float" | "f64" | "double" => Some("did you mean `number`?".to_owned()),
            "array" | "seq" => Some("did you mean `list`?".to_owned()),
            "object" | "dict" => Some("did you mean `map`?".to_owned()),
            _ => nearest::suggest(&text, known, "types"),
        };
        let message = format!("the type of param `{name}` is {}", yaml.describe());
        reader.sink.push(
            Mistake::new("spec::unknown_type", message)
                .at(yaml.span, "no such type")
                .maybe_help(help),
        );
    }
    found
}

fn accept_default(
    reader: &mut Reader<'_>,
    name: &str,
    param_type: ParamType,
    value: &Value,
    tree: &Tree,
) -> Option<Value> {
    let accepted = param_type.accept(value);
    if accepted.is_none() {
        let what = format!("the default of param `{name}`");
        let help = shape::type_help(tree, &param_type.shape());
        reader.wrong_type(tree.span, &what, &tree.describe(), param_type.describe(), help);
    }
    accepted
}

fn check_choices(reader: &mut Reader<'_>, key: &Key<'_>, fields: &Map<'_>, value: &Value) -> bool {
    let Some(yaml) = fields.get("choices") else { return true };
    let Kind::Seq(choices) = &yaml.kind else {
        let what = format!("`choices` of param `{}`", key.text);
        reader.wrong_type(yaml.span, &what, &yaml.describe(), "a list", None);
        return false;
    };
    let choices: Vec<_> = choices.iter().map(plain).collect();
    if choices.contains(value) {
        return true;
    }
    let listed: Vec<_> = choices.iter().map(|choice| format!("`{}`", text_of(choice))).collect();
    let (name, value) = (&key.text, scalar::describe(value));
    let message = format!("param `{name}` is {value}, which is not among its choices");
    reader.sink.push(
        Mistake::new("spec::bad_choice", message)
            .at(yaml.span, "choices")
            .help(format!("choose {}", listed.join(", "))),
    );
    false
}

/// A scalar as text, without quotes.
pub(crate) fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn read_env(
    reader: &mut Reader<'_>,
    top: &Map<'_>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> IndexMap<String, Option<Value>> {
    let mut env = IndexMap::new();
    let map = top.get("env").and_then(|yaml| reader.expect_map(yaml, "`env`"));
    for (key, yaml) in map.into_iter().flat_map(|map| &map.0) {
        let name = &*key.text;
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            let message = format!("`{}` is not the name of a variable", scalar::shorten(name));
            reader.sink.push(Mistake::new("spec::bad_name", message).at(key.span, "bad name"));
        }
        let default = match &yaml.kind {
            Kind::Scalar(scalar) if !yaml.is_null() => Some(scalar.text.to_string()),
            _ => {
                let what = format!("the default of variable `{name}`");
                let help = Some(format!("write `{name}: \"\"` for an empty one"));
                reader.wrong_type(yaml.span, &what, &yaml.describe(), "a string", help);
                None
            }
        };
        let value = variable(name).or(default);
        env.insert(name.to_owned(), value.map(Value::String));
    }
    env
}
