//! What a finished run is worth reading: the comparison's table and the reports' paths.

use std::io;
use std::path::{Path, PathBuf};

use engine::graph::Pipeline;
use engine::run::RunSummary;
use tasks::compare::Comparison;
use tasks::stats::Estimate;

use crate::human;
use crate::printer::Printer;
use crate::table::Table;

/// Prints the arms of each comparison, then the path of each report.
///
/// # Errors
/// When an artifact cannot be read or stdout not written.
pub(crate) fn print(pipeline: &Pipeline, summary: &RunSummary, printer: Printer) -> io::Result<()> {
    for (node, dir) in artifacts(pipeline, summary, "compare") {
        let comparison = Comparison::read(&dir).map_err(io::Error::other)?;
        let n_items = comparison.n_items;
        printer
            .data(format!("\n{node}: loss on {n_items} held-out documents, 95 % intervals\n"))?;
        printer.table(&arms(&comparison))?;
    }
    for (node, dir) in artifacts(pipeline, summary, "report") {
        printer.data(format!("\n{node}: {}\n", from_here(&dir).join("report.html").display()))?;
    }
    Ok(())
}

/// The path as one would type it here, where that is shorter.
fn from_here(path: &Path) -> &Path {
    let here = std::env::current_dir().ok();
    here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path)
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

/// The arms with their intervals. Losses are in nats per token; lower is better.
fn arms(comparison: &Comparison) -> Table {
    let titles = [
        "ARM",
        "ROLE",
        ">SHOWN",
        ">SYNTHETIC",
        ">LOSS",
        "INTERVAL",
        ">PERPLEXITY",
        ">BITS/BYTE",
        ">VS BASELINE",
        "INTERVAL",
        ">OF ORACLE",
    ];
    let mut table = Table::new(&titles);
    // What is left fits 80 columns: arm, loss, perplexity, and the difference with its interval.
    table.spare(&[1, 5, 3, 7, 2]);
    for arm in &comparison.arms {
        let source = |name: &str, field: &str| {
            let sources = arm.books["sources"].as_array()?;
            sources.iter().find(|source| source["name"] == name)?[field].as_f64()
        };
        let interval = |e: Estimate| format!("{:.3} to {:.3}", e.low, e.high);
        let signed = |e: Estimate| format!("{:+.3} to {:+.3}", e.low, e.high);
        table.row([
            arm.name.clone(),
            arm.role.name().to_owned(),
            source("real", "repetitions").map_or_else(String::new, |n| format!("{n:.1}x")),
            source("synthetic", "n_tokens").map_or_else(|| "0".to_owned(), human::count),
            format!("{:.4}", arm.mean_nll.value),
            interval(arm.mean_nll),
            format!("{:.2}", arm.perplexity.value),
            format!("{:.4}", arm.bits_per_byte.value),
            arm.difference.map_or_else(String::new, |e| format!("{:+.4}", e.value)),
            arm.difference.map_or_else(String::new, signed),
            arm.gap_closed.map_or_else(String::new, |e| format!("{:.0} %", 100.0 * e.value)),
        ]);
    }
    table
}
