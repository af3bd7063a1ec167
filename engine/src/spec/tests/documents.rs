//! The JSON schema and the reference that are made for people and editors.

use serde_json::Value;

use super::registry;
use crate::spec::{reference, schema};

#[test]
fn the_reference_says_all() {
    let text = reference(&registry());
    insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!(text) });
}

/// Every `$ref` below `value`.
fn refs<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| refs(item, found)),
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|value| refs(value, found));
        }
        _ => {}
    }
}

#[test]
fn every_reference_of_the_schema_leads_somewhere() {
    let schema = schema(&registry());
    let mut found = Vec::new();
    refs(&schema, &mut found);
    assert!(found.contains(&"#/$defs/pretrain.Arch"), "{found:?}");
    for reference in found {
        let name = reference.strip_prefix("#/$defs/").unwrap();
        assert!(schema["$defs"].get(name).is_some(), "{reference}");
    }
}

#[test]
fn the_schema_lets_expressions_stand_for_values() {
    let schema = schema(&registry());
    let params = &schema["$defs"]["clean.params"]["properties"];
    let expression = serde_json::json!({"$ref": "#/$defs/expression"});
    assert_eq!(params["max_newlines"]["anyOf"][1], expression);
    assert_eq!(params["max_newlines"]["default"], 2);
    assert_eq!(params["lower"]["description"], "Whether text is lower-cased.");
    // Any text can hold an expression.
    assert_eq!(params["note"]["type"], "string");
}
