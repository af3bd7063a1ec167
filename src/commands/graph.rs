//! `sbp graph`: a pipeline's nodes and what they read from one another.
//!
//! The nodes of one matrix are one box unless asked otherwise: a study of fifty nodes is read by its
//! ten entries.

mod svg;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use engine::graph::Pipeline;
use indexmap::IndexMap;
use serde::Serialize;

use crate::cli::{GraphArgs, GraphFormat};
use crate::commands::load;
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::printer::Printer;

/// What is drawn.
#[derive(Debug, Serialize)]
struct Drawing {
    pipeline: String,
    boxes: Vec<Drawn>,
    /// From producer to consumer, by index into `boxes`.
    edges: BTreeSet<(usize, usize)>,
}

/// A node, or all nodes of an entry.
#[derive(Debug, Serialize)]
struct Drawn {
    name: String,
    task: &'static str,
    n_nodes: usize,
}

pub(crate) fn run(args: GraphArgs, printer: Printer) -> Result<ExitStatus> {
    let GraphArgs { pipeline, format, all } = args;
    let drawing = drawing(&load(&pipeline, printer)?, all);
    if printer.is_json() {
        printer.json(&drawing)?;
        return Ok(ExitStatus::Done);
    }
    printer.data(match format {
        GraphFormat::Dot => dot(&drawing),
        GraphFormat::Mermaid => mermaid(&drawing),
        GraphFormat::Svg => svg::draw(&drawing),
    })?;
    Ok(ExitStatus::Done)
}

fn drawing(pipeline: &Pipeline, all: bool) -> Drawing {
    let mut boxes: IndexMap<&str, Drawn> = IndexMap::new();
    let mut edges = BTreeSet::new();
    let mut place = Vec::with_capacity(pipeline.nodes.len());
    for node in &pipeline.nodes {
        let name = if all { &node.name } else { &node.entry };
        let entry = boxes.entry(name.as_str());
        place.push(entry.index());
        let task = node.task.kind();
        entry.or_insert_with(|| Drawn { name: name.clone(), task, n_nodes: 0 }).n_nodes += 1;
    }
    for (index, node) in pipeline.nodes.iter().enumerate() {
        for source in node.inputs.values().flatten() {
            // Nodes of one entry may read from one another.
            if place[source.node] != place[index] {
                edges.insert((place[source.node], place[index]));
            }
        }
    }
    Drawing { pipeline: pipeline.name.clone(), boxes: boxes.into_values().collect(), edges }
}

impl Drawn {
    /// The task, and how many nodes there are when more than one.
    fn about(&self) -> String {
        match self.n_nodes {
            1 if self.task == self.name => String::new(),
            1 => self.task.to_owned(),
            n if self.task == self.name => format!("× {n}"),
            n => format!("{} × {n}", self.task),
        }
    }
}

fn dot(drawing: &Drawing) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = format!("digraph {} {{\n  rankdir=LR;\n", quoted(&drawing.pipeline));
    text.push_str("  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n");
    for (i, drawn) in drawing.boxes.iter().enumerate() {
        let about = drawn.about();
        let label = if about.is_empty() {
            quoted(&drawn.name)
        } else {
            // The line break is one of Graphviz, not of the text.
            let name = quoted(&drawn.name);
            format!("{}\\n{about}\"", &name[..name.len() - 1])
        };
        let _ = writeln!(text, "  n{i} [label={label}];");
    }
    for (from, to) in &drawing.edges {
        let _ = writeln!(text, "  n{from} -> n{to};");
    }
    text.push_str("}\n");
    text
}

fn mermaid(drawing: &Drawing) -> String {
    let mut text = "flowchart LR\n".to_owned();
    for (i, drawn) in drawing.boxes.iter().enumerate() {
        let about = drawn.about();
        let name = drawn.name.replace('"', "#quot;");
        let label = if about.is_empty() { name } else { format!("{name}<br/>{about}") };
        let _ = writeln!(text, "  n{i}[\"{label}\"]");
    }
    for (from, to) in &drawing.edges {
        let _ = writeln!(text, "  n{from} --> n{to}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Drawing {
        let drawn = |name: &str, task, n_nodes| Drawn { name: name.to_owned(), task, n_nodes };
        let boxes = vec![
            drawn("corpus", "read_corpus", 1),
            drawn("pretrain", "pretrain", 3),
            drawn("compare", "compare", 1),
        ];
        let edges = BTreeSet::from([(0, 1), (1, 2), (0, 2)]);
        Drawing { pipeline: "study".to_owned(), boxes, edges }
    }

    #[test]
    fn every_format_has_boxes_and_edges() {
        insta::assert_snapshot!(dot(&sample()), @r#"
        digraph "study" {
          rankdir=LR;
          node [shape=box, style=rounded, fontname="sans-serif"];
          n0 [label="corpus\nread_corpus"];
          n1 [label="pretrain\n× 3"];
          n2 [label="compare"];
          n0 -> n1;
          n0 -> n2;
          n1 -> n2;
        }
        "#);
        insta::assert_snapshot!(mermaid(&sample()), @r#"
        flowchart LR
          n0["corpus<br/>read_corpus"]
          n1["pretrain<br/>× 3"]
          n2["compare"]
          n0 --> n1
          n0 --> n2
          n1 --> n2
        "#);
        let picture = svg::draw(&sample());
        assert_eq!(picture.matches("<rect").count(), 3);
        assert_eq!(picture.matches("<path class=\"edge\"").count(), 3);
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }
}
