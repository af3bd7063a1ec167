//! `sbp metrics`: the figures that a node reported over time.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use engine::ledger::MetricPoint;

use crate::cli::MetricsArgs;
use crate::commands::{expect_node, look};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::Place;
use crate::table::Table;

pub(crate) async fn run(args: MetricsArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = look(place).await?;
    expect_node(&engine, &args.run, &args.node).await?;
    let mut points = engine.metrics(&args.run, &args.node).await?;
    if let Some(series) = &args.series {
        points.retain(|point| point.name == *series);
    }
    if printer.is_json() {
        printer.json(&points)?;
        return Ok(ExitStatus::Done);
    }
    if points.is_empty() {
        let series = args.series.map(|name| format!(" `{name}`")).unwrap_or_default();
        return Err(Error::usage(format!("`{}` reported no figures{series}", args.node)));
    }
    if args.csv {
        printer.data(csv(&points))?;
    } else {
        printer.table(&table(&points))?;
    }
    Ok(ExitStatus::Done)
}

fn csv(points: &[MetricPoint]) -> String {
    let mut text = "node,series,step,value,at_us\n".to_owned();
    for point in points {
        // Only the names of nodes may hold commas.
        let value = point.value.map(|value| value.to_string()).unwrap_or_default();
        let MetricPoint { node, name, step, at_us, .. } = point;
        let _ = writeln!(text, "\"{node}\",{name},{step},{value},{at_us}");
    }
    text
}

fn table(points: &[MetricPoint]) -> Table {
    let mut series: BTreeMap<(&str, &str), Vec<&MetricPoint>> = BTreeMap::new();
    for point in points {
        series.entry((&point.node, &point.name)).or_default().push(point);
    }
    let titles = ["node", "series", ">points", ">first", ">last", ">least", ">most", ">last step"];
    let mut table = Table::new(&titles);
    for ((node, name), points) in series {
        let values = || points.iter().filter_map(|point| point.value);
        let shown = |value: Option<f64>| value.map(human::figure).unwrap_or_default();
        table.row([
            node.to_owned(),
            name.to_owned(),
            points.len().to_string(),
            shown(values().next()),
            shown(values().next_back()),
            shown(values().reduce(f64::min)),
            shown(values().reduce(f64::max)),
            points.last().map(|point| point.step.to_string()).unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_up_and_written_out() {
        let point = |step, value| MetricPoint {
            node: "pretrain[arm=a,seed=1]".to_owned(),
            name: "loss".to_owned(),
            step,
            value,
            at_us: 5,
        };
        let points = [point(1, Some(4.5)), point(2, None), point(3, Some(2.25))];
        insta::assert_snapshot!(table(&points).render(None), @r"
        NODE                    SERIES  POINTS  FIRST   LAST  LEAST   MOST  LAST STEP
        pretrain[arm=a,seed=1]  loss         3  4.500  2.250  2.250  4.500          3
        ");
        insta::assert_snapshot!(csv(&points), @r#"
        node,series,step,value,at_us
        "pretrain[arm=a,seed=1]",loss,1,4.5,5
        "pretrain[arm=a,seed=1]",loss,2,,5
        "pretrain[arm=a,seed=1]",loss,3,2.25,5
        "#);
    }
}
