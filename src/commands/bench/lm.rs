//! `sbp bench lm`: training and generation of a language model, for real, and every op by itself.

use serde_json::Value;
use tasks::lm::bench::{Op, Report, Workload, run};

use super::Figures;
use crate::cli::LmBenchArgs;
use crate::error::{Error, Result};
use crate::printer::Printer;
use crate::settings;
use crate::table::Table;

/// Takes all measurements; for people also a table of the ops.
pub(super) fn measure(args: &LmBenchArgs, printer: Printer) -> Result<Figures> {
    let workload = match &args.config {
        None => Workload::default(),
        Some(path) => {
            let value = engine::spec::read_value(path).map_err(Error::pipeline)?;
            serde_json::from_value(value)
                .map_err(|error| Error::usage(format!("`{}`: {error}", path.display())))?
        }
    };
    let n_threads = settings::n_threads(args.threads) as usize;
    let report = run(&workload, n_threads, &mut |what| printer.talk(what))?;
    if !printer.is_json() {
        printer.table(&table(&report.ops))?;
        printer.data("\n")?;
    }
    let mut figures = figures(&report, printer);
    for (unit, per_second) in report.rates() {
        figures.rate(None, unit, per_second);
    }
    Ok(figures)
}

fn figures(report: &Report, printer: Printer) -> Figures {
    let mut figures = Figures::default();
    let fields = serde_json::to_value(report).unwrap_or_default();
    for (name, value) in fields.as_object().into_iter().flatten() {
        match value {
            // For people the ops are a table of their own, and nested figures lines.
            Value::Array(_) if !printer.is_json() && name == "ops" => {}
            Value::Object(parts) if !printer.is_json() => {
                for (part, value) in parts {
                    figures.set(&format!("{name} at {part}"), value.clone());
                }
            }
            value => figures.set(name, value.clone()),
        }
    }
    figures
}

fn table(ops: &[Op]) -> Table {
    let mut table = Table::new(&["op", ">calls", ">ms", ">share", ">GFLOP/s", ">of peak", ">GB/s"]);
    let percent = |x: f64| format!("{:.0} %", 100.0 * x);
    for op in ops {
        table.row([
            op.op.clone(),
            op.calls.to_string(),
            format!("{:.3}", op.ms),
            format!("{:.1} %", 100.0 * op.share),
            op.gflops.map(|x| format!("{x:.0}")).unwrap_or_default(),
            op.utilisation.map(percent).unwrap_or_default(),
            format!("{:.1}", op.gigabytes_per_s),
        ]);
    }
    table
}
