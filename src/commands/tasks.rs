//! `sbp tasks`: the task kinds, and the reference of one.

use std::fmt::Write as _;
use std::sync::Arc;

use console::Style;
use engine::task::{AnyTask, Arity, Determinism, Port};
use serde_json::{Value, json};

use crate::cli::{TasksArgs, TasksCommand};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::printer::Printer;
use crate::table::Table;

pub(crate) fn run(args: TasksArgs, printer: Printer) -> Result<ExitStatus> {
    match args.command {
        None => list(printer),
        Some(TasksCommand::Show { kind }) => show(&kind, printer),
    }
}

fn list(printer: Printer) -> Result<ExitStatus> {
    let registry = tasks::registry();
    if printer.is_json() {
        let all: Vec<Value> = registry.iter().map(summary).collect();
        printer.json(&all)?;
        return Ok(ExitStatus::Done);
    }
    let mut table = Table::new(&["kind", "summary"]);
    for task in registry.iter() {
        table.row([task.kind().to_owned(), task.summary().to_owned()]);
    }
    printer.table(&table)?;
    printer.talk("`sbp tasks show KIND` prints ports and params");
    Ok(ExitStatus::Done)
}

fn show(kind: &str, printer: Printer) -> Result<ExitStatus> {
    let registry = tasks::registry();
    let Some(task) = registry.get(kind) else {
        return Err(
            Error::usage(format!("there is no task `{kind}`")).help("`sbp tasks` lists the kinds")
        );
    };
    if printer.is_json() {
        let mut value = summary(task);
        value["unkeyed"] = json!(task.unkeyed());
        value["params"] = task.params_schema();
        printer.json(&value)?;
    } else {
        printer.data(document(task))?;
    }
    Ok(ExitStatus::Done)
}

fn summary(task: &Arc<dyn AnyTask>) -> Value {
    json!({
        "kind": task.kind(),
        "summary": task.summary(),
        "revision": task.revision(),
        "determinism": task.determinism(),
        "inputs": task.inputs(),
        "outputs": task.outputs(),
    })
}

fn document(task: &Arc<dyn AnyTask>) -> String {
    let bold = Style::new().bold();
    let promise = match task.determinism() {
        Determinism::Bitwise => "the same bytes on every machine",
        Determinism::BitwisePerDevice => "the same bytes on one device kind and instruction set",
        Determinism::Measured => "the result carries measured figures",
    };
    let mut text = format!(
        "{}: {}\nrevision {}, {promise}\n",
        bold.apply_to(task.kind()),
        task.summary(),
        task.revision()
    );
    for (title, ports) in [("Inputs", task.inputs()), ("Outputs", task.outputs())] {
        if !ports.is_empty() {
            let _ = writeln!(text, "\n{}", bold.apply_to(title));
            text.push_str(&indent(&ports_table(ports).render(None)));
        }
    }
    let params = params(&task.params_schema());
    if !params.is_empty() {
        let _ = writeln!(text, "\n{}", bold.apply_to("Params"));
    }
    for param in params {
        let default = match &param.default {
            Some(default) => format!(", default {default}"),
            None if param.required => ", required".to_owned(),
            None => String::new(),
        };
        let unkeyed = if task.unkeyed().contains(&param.path.as_str()) {
            ", not part of the key"
        } else {
            ""
        };
        let path = Style::new().cyan().apply_to(&param.path);
        let _ = writeln!(text, "  {path}  {}{default}{unkeyed}", param.kind);
        for line in param.doc.lines() {
            let _ = writeln!(text, "{}", format!("      {line}").trim_end());
        }
    }
    text
}

fn ports_table(ports: &[Port]) -> Table {
    let mut table = Table::new(&["port", "kind", "about"]);
    for port in ports {
        let kind = match port.arity {
            Arity::One => port.kind.to_owned(),
            Arity::Optional => format!("{} (optional)", port.kind),
            Arity::Many => format!("{} (one or more)", port.kind),
        };
        table.row([port.name.to_owned(), kind, port.doc.to_owned()]);
    }
    table
}

fn indent(text: &str) -> String {
    text.lines().flat_map(|line| ["  ", line, "\n"]).collect()
}

/// A param, as its JSON schema tells of it.
#[derive(Debug, PartialEq)]
struct Param {
    /// Dotted path.
    path: String,
    /// Its type, in words.
    kind: String,
    default: Option<Value>,
    required: bool,
    doc: String,
}

/// The params of a schema, nested ones after the param that holds them.
fn params(schema: &Value) -> Vec<Param> {
    let mut found = Vec::new();
    collect(schema, schema, "", &mut found);
    found
}

fn collect(root: &Value, object: &Value, prefix: &str, found: &mut Vec<Param>) {
    let Some(properties) = object["properties"].as_object() else { return };
    let required: Vec<&str> =
        object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, property) in properties {
        let path = format!("{prefix}{name}");
        let target = resolve(root, property);
        found.push(Param {
            kind: kind(root, property),
            default: property.get("default").filter(|default| !default.is_object()).cloned(),
            required: required.contains(&name.as_str()),
            doc: doc(property).or_else(|| doc(target)).unwrap_or_default(),
            path: path.clone(),
        });
        collect(root, target, &format!("{path}."), found);
    }
}

fn doc(schema: &Value) -> Option<String> {
    schema["description"].as_str().map(str::to_owned)
}

/// Follows a reference, also where it is one of two alternatives with null.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(pointer) = schema["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
        return root.pointer(pointer).unwrap_or(schema);
    }
    let mut alternatives = schema["anyOf"].as_array().into_iter().flatten();
    match alternatives.find(|alternative| alternative["type"] != "null") {
        Some(alternative) => resolve(root, alternative),
        None => schema,
    }
}

/// A schema's type in words: `integer`, `list of string`, `"a" or "b"`.
fn kind(root: &Value, schema: &Value) -> String {
    let target = resolve(root, schema);
    if let Some(values) = target["enum"].as_array() {
        return alternatives(values);
    }
    if let Some(cases) = target["oneOf"].as_array() {
        let values: Vec<Value> =
            cases.iter().filter_map(|case| case.get("const")).cloned().collect();
        if values.len() == cases.len() {
            return alternatives(&values);
        }
    }
    match &target["type"] {
        Value::String(name) if name == "array" => {
            format!("list of {}", kind(root, &target["items"]))
        }
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or ")
        }
        _ => "any".to_owned(),
    }
}

fn alternatives(values: &[Value]) -> String {
    values.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_params_are_documented_by_path() {
        let schema = json!({
            "type": "object",
            "properties": {
                "steps": {"description": "How long.", "type": "integer", "default": 10},
                "arch": {"$ref": "#/$defs/Arch"},
                "on_empty": {"oneOf": [
                    {"const": "keep", "type": "string"}, {"const": "drop", "type": "string"}
                ]},
                "paths": {"type": "array", "items": {"type": "string"}},
                "limit": {"type": ["integer", "null"]},
            },
            "required": ["arch"],
            "$defs": {"Arch": {
                "description": "The shape.",
                "type": "object",
                "properties": {"n_layers": {"type": "integer"}},
            }},
        });
        let found: Vec<String> = params(&schema)
            .into_iter()
            .map(|param| format!("{} {} {} {}", param.path, param.kind, param.required, param.doc))
            .collect();
        assert_eq!(
            found,
            [
                "steps integer false How long.",
                "arch object true The shape.",
                "arch.n_layers integer false ",
                "on_empty \"keep\" or \"drop\" false ",
                "paths list of string false ",
                "limit integer or null false ",
            ]
        );
    }
}
