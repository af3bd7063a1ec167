//! What a finished run is worth reading: the comparison's table and the reports' paths.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use engine::graph::Pipeline;
use engine::run::RunSummary;

use crate::human;
use crate::printer::Printer;
use crate::table::{Align, Table};

/// Prints the arms of each comparison, then the path of each report.
///
/// # Errors
/// When an artifact cannot be read or stdout not written.
pub(crate) fn print(pipeline: &Pipeline, summary: &RunSummary, printer: Printer) -> io::Result<()> {
    for (node, dir) in artifacts(pipeline, summary, "compare") {
        printer.data(format!("\n{node}\n"))?;
        printer.table(&arms(&fs::read_to_string(dir.join("arms.csv"))?))?;
    }
    for (node, dir) in artifacts(pipeline, summary, "report") {
        printer.data(format!("\n{node}: {}\n", dir.join("report.html").display()))?;
    }
    Ok(())
}

/// Nodes of a task kind that have a result, with its folder.
fn artifacts<'a>(
    pipeline: &'a Pipeline,
    summary: &'a RunSummary,
    kind: &'a str,
) -> impl Iterator<Item = (&'a str, PathBuf)> {
    let nodes = pipeline.nodes.iter().filter(move |node| node.task.kind() == kind);
    nodes.flat_map(|node| {
        let ports = summary.outputs.get(&node.name).into_iter().flatten();
        ports.map(|(_, artifact)| (node.name.as_str(), Path::to_owned(&artifact.path)))
    })
}

/// A table of the rows of a CSV file, numbers cut to what they mean.
fn arms(csv: &str) -> Table {
    let mut rows = csv.lines().map(|line| line.split(',').map(str::to_owned).collect());
    let titles: Vec<String> = rows.next().unwrap_or_default();
    let rows: Vec<Vec<String>> = rows.collect();
    let mut table = Table::new(&[]);
    for (c, title) in titles.iter().enumerate() {
        let is_number = rows.iter().all(|row| {
            row.get(c).is_none_or(|cell| cell.is_empty() || cell.parse::<f64>().is_ok())
        });
        table.column(title, if is_number { Align::Right } else { Align::Left });
    }
    for row in rows {
        let cells = row.into_iter().map(|cell| cell.parse().map_or(cell, human::figure));
        table.row(cells.collect::<Vec<_>>());
    }
    table
}
