//! `sbp cost`: what a pipeline would take, from stated and measured rates, before anything runs.

use std::collections::BTreeMap;

use engine::Engine;
use engine::cost::{self, NodeCost, Rates};
use serde_json::{Map, Value, json};

use crate::calibration::Calibration;
use crate::cli::PipelineArgs;
use crate::commands::{load, look};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::{self, Place};
use crate::table::{Align, Table};

/// Runs looked through for the last one of a pipeline.
const RUNS_MAX: usize = 1000;

/// A figure of a node that has a column.
struct Figure {
    /// Its name in estimates.
    name: &'static str,
    title: &'static str,
    show: fn(f64) -> String,
}

const FIGURES: [Figure; 5] = [
    Figure { name: "documents", title: "documents", show: human::count },
    Figure { name: "real_repetitions", title: "repeats", show: repeats },
    Figure { name: "tokens", title: "tokens", show: human::count },
    Figure { name: "steps", title: "steps", show: human::grouped },
    Figure { name: "flop", title: "flop", show: flop },
];

/// Rates with where they come from.
struct Device {
    rates: Rates,
    source: String,
}

pub(crate) async fn run(args: PipelineArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let pipeline = load(&args, printer)?;
    let nodes = cost::estimate(&pipeline, &settings::targets(&args))?;
    let mut devices: Vec<Device> = tasks::cost::rates()
        .into_iter()
        .map(|stated| Device { rates: stated.rates, source: stated.source.to_owned() })
        .collect();
    let calibration = Calibration::read(printer);
    devices.push(Device { rates: calibration.machine().rates, source: calibration.source() });
    // Asking what something costs makes no folder.
    let mut took = BTreeMap::new();
    if place.has_ledger() {
        let engine = look(place).await?;
        took = took_hours(&engine, &pipeline.name).await?;
        let mut rates = engine.measured_rates().await?;
        rates.by_task.retain(|(task, unit), _| {
            nodes.iter().any(|node| node.task == task && node.estimate.work.get(unit).is_some())
        });
        let source = "finished nodes of this ledger, the time of all attempts counted".to_owned();
        devices.push(Device { rates, source });
    }
    devices.retain(|device| nodes.iter().any(|node| device.rates.hours(node).is_some()));
    if printer.is_json() {
        printer.json(&as_json(&pipeline.name, &nodes, &devices, &took))?;
        return Ok(ExitStatus::Done);
    }
    printer.table(&table(&nodes, &devices, &took))?;
    if !took.is_empty() {
        printer.talk("hours that it took: the last run of this pipeline, nodes that ran in it");
    }
    for Device { rates, source } in &devices {
        printer.talk(format!("hours of `{}`: {source}", rates.name));
    }
    Ok(ExitStatus::Done)
}

/// Hours that each node took in the last run of a pipeline; nothing for cached ones.
async fn took_hours(engine: &Engine, pipeline: &str) -> Result<BTreeMap<String, f64>> {
    let runs = engine.runs(RUNS_MAX).await?;
    let Some(last) = runs.into_iter().find(|run| run.pipeline == pipeline) else {
        return Ok(BTreeMap::new());
    };
    let nodes = engine.run_detail(&last.id).await?.nodes.into_iter();
    let hours = |us: i64| us as f64 / 3.6e9;
    Ok(nodes.filter_map(|node| Some((node.name, hours(node.duration_us?)))).collect())
}

fn as_json(
    pipeline: &str,
    nodes: &[NodeCost],
    devices: &[Device],
    took: &BTreeMap<String, f64>,
) -> Value {
    let hours = |node: &NodeCost| -> Map<String, Value> {
        devices.iter().map(|d| (d.rates.name.clone(), json!(d.rates.hours(node)))).collect()
    };
    let node = |node: &NodeCost| {
        let mut value = json!(node);
        value["hours"] = Value::Object(hours(node));
        value["took_hours"] = json!(took.get(&node.name));
        value
    };
    let rates: Map<String, Value> = devices
        .iter()
        .map(|Device { rates, source }| {
            let by_task = rates.by_task.iter().map(
                |((task, unit), rate)| json!({"task": task, "unit": unit, "per_second": rate}),
            );
            let by_unit =
                rates.by_unit.iter().map(|(unit, rate)| json!({"unit": unit, "per_second": rate}));
            let all: Vec<Value> = by_unit.chain(by_task).collect();
            (rates.name.clone(), json!({"source": source, "rates": all}))
        })
        .collect();
    let totals: Map<String, Value> =
        devices.iter().map(|d| (d.rates.name.clone(), json!(total(&d.rates, nodes)))).collect();
    json!({
        "pipeline": pipeline,
        "nodes": nodes.iter().map(node).collect::<Vec<_>>(),
        "flop": sum(nodes, "flop"),
        "output_bytes": nodes.iter().filter_map(|node| node.output_bytes).sum::<f64>(),
        "hours": totals,
        "rates": rates,
    })
}

/// Hours of the nodes that these rates know.
fn total(rates: &Rates, nodes: &[NodeCost]) -> f64 {
    nodes.iter().filter_map(|node| rates.hours(node)).sum()
}

fn sum(nodes: &[NodeCost], figure: &str) -> f64 {
    nodes.iter().filter_map(|node| node.estimate.figures.get(figure)).sum()
}

fn table(nodes: &[NodeCost], devices: &[Device], took: &BTreeMap<String, f64>) -> Table {
    let shown: Vec<_> = FIGURES
        .iter()
        .filter(|figure| nodes.iter().any(|node| node.estimate.figures.get(figure.name).is_some()))
        .collect();
    let mut table = Table::new(&["node"]);
    for title in shown.iter().map(|figure| figure.title).chain(["output"]) {
        table.column(title, Align::Right);
    }
    for device in devices {
        table.column(&format!("{} h", device.rates.name), Align::Right);
    }
    if !took.is_empty() {
        table.column("took h", Align::Right);
    }
    let or_blank = |text: Option<String>| text.unwrap_or_default();
    for node in nodes {
        let mut row = vec![node.name.clone()];
        let value = |figure: &Figure| node.estimate.figures.get(figure.name).map(figure.show);
        row.extend(shown.iter().map(|figure| or_blank(value(figure))));
        row.push(or_blank(node.output_bytes.map(bytes)));
        row.extend(devices.iter().map(|device| or_blank(device.rates.hours(node).map(hours))));
        if !took.is_empty() {
            row.push(or_blank(took.get(&node.name).copied().map(hours)));
        }
        table.row(row);
    }
    let mut row = vec!["total".to_owned()];
    row.extend(shown.iter().map(|figure| match figure.name {
        "flop" => flop(sum(nodes, figure.name)),
        _ => String::new(),
    }));
    row.push(bytes(nodes.iter().filter_map(|node| node.output_bytes).sum()));
    row.extend(devices.iter().map(|device| hours(total(&device.rates, nodes))));
    if !took.is_empty() {
        let known = nodes.iter().filter_map(|node| took.get(&node.name));
        row.push(hours(known.sum()));
    }
    table.row(row);
    table
}

fn repeats(n: f64) -> String {
    format!("{n:.2}")
}

fn flop(n: f64) -> String {
    format!("{n:.2e}")
}

fn bytes(n: f64) -> String {
    human::bytes(n.max(0.0) as u64)
}

/// Hours, with as many digits as tell something; below an hundredth, the exponent.
fn hours(n: f64) -> String {
    match n {
        _ if n >= 99.95 => human::grouped(n.round()),
        _ if n >= 0.01 || n == 0.0 => format!("{n:.2}"),
        _ => format!("{n:.0e}"),
    }
}
