//! YAML values with their expressions evaluated.

use serde_json::Value;

use super::expr::{Evaluator, Scope};
use super::mistake::{Sink, Source, Span};
use super::scalar;
use super::yaml::{Kind, Yaml};
use crate::graph::Place;

/// A value whose parts still know their places.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) span: Span,
    pub(crate) node: TreeNode,
}

#[derive(Clone, Debug)]
pub(crate) enum TreeNode {
    /// A mistake was reported for it.
    Unknown,
    Scalar(Value),
    Seq(Vec<Tree>),
    Map(Vec<Field>),
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Tree,
}

impl Tree {
    /// Evaluates the expressions in `yaml`.
    pub(crate) fn of(
        yaml: &Yaml<'_>,
        evaluator: &mut Evaluator<'_>,
        scope: &Scope,
        sink: &mut Sink,
    ) -> Self {
        let span = yaml.span;
        let node = match &yaml.kind {
            Kind::Scalar(scalar) => match evaluator.value(scalar, span, scope, sink) {
                Some(value) => return Self::of_value(value, span),
                None => TreeNode::Unknown,
            },
            Kind::Seq(items) => TreeNode::Seq(
                items.iter().map(|item| Self::of(item, evaluator, scope, sink)).collect(),
            ),
            Kind::Map(map) => TreeNode::Map(
                map.0
                    .iter()
                    .map(|(key, value)| Field {
                        key: key.text.to_string(),
                        key_span: key.span,
                        value: Self::of(value, evaluator, scope, sink),
                    })
                    .collect(),
            ),
        };
        Self { span, node }
    }

    /// A computed value: every part of it stands where the expression stands.
    pub(crate) fn of_value(value: Value, span: Span) -> Self {
        let node = match value {
            Value::Array(items) => {
                TreeNode::Seq(items.into_iter().map(|item| Self::of_value(item, span)).collect())
            }
            Value::Object(fields) => TreeNode::Map(
                fields
                    .into_iter()
                    .map(|(key, value)| Field {
                        key,
                        key_span: span,
                        value: Self::of_value(value, span),
                    })
                    .collect(),
            ),
            scalar => TreeNode::Scalar(scalar),
        };
        Self { span, node }
    }

    /// What it is, for a message.
    pub(crate) fn describe(&self) -> String {
        match &self.node {
            TreeNode::Unknown => "an unknown value".to_owned(),
            TreeNode::Scalar(value) => scalar::describe(value),
            TreeNode::Seq(_) => "a list".to_owned(),
            TreeNode::Map(_) => "a map".to_owned(),
        }
    }

    /// The value as it stands; `None` when a part of it is unknown.
    pub(crate) fn value(&self) -> Option<Value> {
        Some(match &self.node {
            TreeNode::Unknown => return None,
            TreeNode::Scalar(value) => value.clone(),
            TreeNode::Seq(items) => {
                Value::Array(items.iter().map(Self::value).collect::<Option<_>>()?)
            }
            TreeNode::Map(fields) => Value::Object(
                fields
                    .iter()
                    .map(|field| Some((field.key.clone(), field.value.value()?)))
                    .collect::<Option<_>>()?,
            ),
        })
    }

    /// The span of the part at a dotted path, or of the closest part around it.
    pub(crate) fn span_at(&self, path: &str) -> Span {
        let mut tree = self;
        let mut span = self.span;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            let next = match &tree.node {
                TreeNode::Map(fields) => {
                    fields.iter().find(|field| field.key == part).map(|field| &field.value)
                }
                TreeNode::Seq(items) => part.parse().ok().and_then(|i: usize| items.get(i)),
                TreeNode::Unknown | TreeNode::Scalar(_) => None,
            };
            let Some(next) = next else { break };
            tree = next;
            span = tree.span;
        }
        span
    }

    /// Writes down the place of each part by dotted path.
    pub(crate) fn places(
        &self,
        source: &Source,
        path: &mut String,
        places: &mut Vec<(String, Place)>,
    ) {
        let length = path.len();
        if length > 0 {
            places.push((path.clone(), source.place(self.span.start)));
        }
        let mut child = |name: &str, value: &Self| {
            if length > 0 {
                path.push('.');
            }
            path.push_str(name);
            value.places(source, path, places);
            path.truncate(length);
        };
        match &self.node {
            TreeNode::Unknown | TreeNode::Scalar(_) => {}
            TreeNode::Seq(items) => {
                for (i, item) in items.iter().enumerate() {
                    child(&i.to_string(), item);
                }
            }
            TreeNode::Map(fields) => {
                for field in fields {
                    child(&field.key, &field.value);
                }
            }
        }
    }
}
