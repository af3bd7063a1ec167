//! The JSON schema of pipeline files, for editors that complete and check YAML.

use serde_json::{Map, Value, json};

use super::check::{NODE_KEYS, TOP_KEYS, VERSION};
use super::params::{PARAM_KEYS, TYPES};
use super::settings::{RESOURCES, RETRY, SETTINGS};
use crate::executor::Executor;
use crate::task::{AnyTask, Arity, Port, Registry};

/// The JSON schema (draft 2020-12) of pipelines that use the tasks of `registry`.
pub fn schema(registry: &Registry) -> Value {
    let mut definitions = Map::new();
    definitions.insert(
        "expression".to_owned(),
        json!({"type": "string", "pattern": r"\$\{\{", "description": "an expression in ${{ }}"}),
    );
    let mut branches = Vec::new();
    let mut task_defaults = Map::new();
    for task in registry.iter() {
        let params = task_params(task.as_ref(), &mut definitions);
        let kind = task.kind();
        definitions.insert(format!("{kind}.params"), params);
        let reference = json!({"$ref": format!("#/$defs/{kind}.params")});
        branches.push(json!({
            "if": {"properties": {"task": {"const": kind}}, "required": ["task"]},
            "then": {"properties": {"params": reference.clone(), "in": inputs(task.inputs())}},
        }));
        let mut defaults = settings_without_when();
        defaults.insert("params".to_owned(), reference);
        task_defaults.insert(kind.to_owned(), closed(defaults));
    }
    definitions.insert("node".to_owned(), node(registry, branches));
    definitions.insert("param".to_owned(), param());
    let mut top = Map::new();
    for (key, doc) in TOP_KEYS {
        let mut schema = match *key {
            "version" => json!({"const": VERSION}),
            "include" => json!({
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            }),
            "params" => {
                json!({"type": "object", "additionalProperties": {"$ref": "#/$defs/param"}})
            }
            "env" => {
                json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}})
            }
            "defaults" => json!({
                "type": "object",
                "properties": {
                    "all": closed(settings_without_when()),
                    "tasks": closed(std::mem::take(&mut task_defaults)),
                },
                "additionalProperties": false,
            }),
            "nodes" => json!({
                "type": "object",
                "propertyNames": {"pattern": "^[a-z][a-z0-9_-]{0,63}$"},
                "additionalProperties": {"$ref": "#/$defs/node"},
            }),
            _ => json!({"type": "string"}),
        };
        schema["description"] = Value::from(*doc);
        top.insert((*key).to_owned(), schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sbp pipeline",
        "type": "object",
        "properties": top,
        "patternProperties": {"^x-": {}},
        "additionalProperties": false,
        "required": ["version", "nodes"],
        "$defs": definitions,
    })
}

fn node(registry: &Registry, branches: Vec<Value>) -> Value {
    let kinds: Vec<_> = registry
        .iter()
        .map(|task| json!({"const": task.kind(), "description": task.summary()}))
        .collect();
    let mut properties = settings();
    for (key, doc) in NODE_KEYS {
        let mut schema = match *key {
            "task" => json!({"oneOf": kinds}),
            "in" => json!({"type": ["string", "array", "object"]}),
            "params" | "matrix" => json!({"type": "object"}),
            _ => json!({"type": "string"}),
        };
        schema["description"] = Value::from(*doc);
        properties.insert((*key).to_owned(), schema);
    }
    let mut node = closed(properties);
    node["required"] = json!(["task"]);
    node["allOf"] = Value::Array(branches);
    node
}

fn param() -> Value {
    let types: Vec<_> = TYPES.iter().map(|(name, _)| *name).collect();
    let keys = PARAM_KEYS.iter().map(|(key, doc)| {
        let schema = match *key {
            "type" => json!({"enum": types, "description": doc}),
            "choices" => json!({"type": "array", "description": doc}),
            "doc" => json!({"type": "string", "description": doc}),
            _ => json!({"description": doc}),
        };
        ((*key).to_owned(), schema)
    });
    let declared = closed(keys.collect());
    json!({"anyOf": [declared, {"type": ["string", "number", "boolean", "array"]}]})
}

fn settings() -> Map<String, Value> {
    let of = |kind: &str| json!({"anyOf": [{"type": kind}, {"$ref": "#/$defs/expression"}]});
    let schema = |key: &str| match key {
        "when" => of("boolean"),
        "priority" | "cpu" | "gpu" | "attempts" => of("integer"),
        "mem" => json!({"type": ["string", "integer"]}),
        "executor" => json!({"anyOf": [
            {"enum": Executor::WORDS}, {"$ref": "#/$defs/expression"}]}),
        "device" => json!({"anyOf": [
            {"type": "string", "pattern": "^(cpu|auto|cuda(:[0-9]+)?)$"},
            {"$ref": "#/$defs/expression"},
        ]}),
        "salt" => json!({"type": ["string", "number"]}),
        "pools" => json!({"type": "object", "additionalProperties": of("integer")}),
        "expect" => json!({"type": "object", "additionalProperties": {
            "type": "object", "additionalProperties": of("number")}}),
        _ => json!({"type": "string"}),
    };
    let described = |keys: &[(&str, &str)]| {
        let keys = keys.iter().map(|(key, doc)| {
            let mut schema = schema(key);
            schema["description"] = Value::from(*doc);
            ((*key).to_owned(), schema)
        });
        keys.collect::<Map<_, _>>()
    };
    let mut settings = described(SETTINGS);
    for (key, fields) in [("resources", RESOURCES), ("retry", RETRY)] {
        let description = settings[key]["description"].take();
        settings[key] = closed(described(fields));
        settings[key]["description"] = description;
    }
    settings
}

fn settings_without_when() -> Map<String, Value> {
    settings().into_iter().filter(|(key, _)| key != "when").collect()
}

fn closed(properties: Map<String, Value>) -> Value {
    let mut schema = json!({"type": "object", "additionalProperties": false});
    schema["properties"] = Value::Object(properties);
    schema
}

/// The `in:` of a node: a reference for the short form, or a map of ports.
fn inputs(ports: &[Port]) -> Value {
    let reference = json!({"type": "string"});
    let references = json!({"type": ["string", "array"], "items": reference.clone()});
    let properties = ports.iter().map(|port| {
        let mut schema = references.clone();
        let many = if port.arity == Arity::Many { ", one or more" } else { "" };
        schema["description"] = format!("{} (`{}`{many})", port.doc, port.kind).into();
        (port.name.to_owned(), schema)
    });
    json!({"anyOf": [closed(properties.collect()), references]})
}

/// The schema of a task's params, its definitions moved beside those of other tasks. Defaults for
/// the task may give any param, so none is required of a node.
fn task_params(task: &dyn AnyTask, definitions: &mut Map<String, Value>) -> Value {
    let mut schema = task.params_schema();
    let Some(object) = schema.as_object_mut() else { return schema };
    for key in ["$schema", "title", "required"] {
        object.remove(key);
    }
    if let Some(Value::Object(own)) = object.remove("$defs") {
        for (name, mut definition) in own {
            open(&mut definition, task.kind());
            definitions.insert(format!("{}.{name}", task.kind()), definition);
        }
    }
    open(&mut schema, task.kind());
    schema
}

/// Lets an expression stand for any value in a schema, and moves its references.
fn open(schema: &mut Value, kind: &str) {
    let Some(object) = schema.as_object_mut() else { return };
    let reference = object.get("$ref").and_then(Value::as_str);
    if let Some(name) = reference.and_then(|reference| reference.strip_prefix("#/$defs/")) {
        let moved = format!("#/$defs/{kind}.{name}");
        object.insert("$ref".to_owned(), moved.into());
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        let alternatives = object.get_mut(key).and_then(Value::as_array_mut);
        alternatives.into_iter().flatten().for_each(|schema| open(schema, kind));
    }
    let mut values: Vec<&mut Value> = Vec::new();
    for (key, value) in object.iter_mut() {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => values.extend(properties.values_mut()),
            ("prefixItems", Value::Array(items)) => values.extend(items),
            ("items" | "additionalProperties", value @ Value::Object(_)) => values.push(value),
            _ => {}
        }
    }
    for value in values {
        open(value, kind);
        let is_text = value.get("type").is_some_and(|name| name == "string");
        let is_tag = value.get("const").is_some();
        if is_tag || (is_text && value.get("enum").is_none()) {
            continue;
        }
        let mut around = Map::new();
        if let Some(object) = value.as_object_mut() {
            for key in ["description", "default"] {
                if let Some(kept) = object.remove(key) {
                    around.insert(key.to_owned(), kept);
                }
            }
        }
        around.insert("anyOf".to_owned(), json!([value.take(), {"$ref": "#/$defs/expression"}]));
        *value = Value::Object(around);
    }
}
