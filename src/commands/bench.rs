//! `sbp bench NAME`: measures this machine.
//!
//! Every bench gives [`Figures`]: flat names and numbers, in the order in which people should read
//! them, with the machine beside them. With `--json` they are one line.

mod data;
mod gpu;
mod lm;
mod orch;
mod usage;

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::calibration::{Calibration, Hardware, Rate};
use crate::cli::{BenchArgs, BenchCommand};
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::Place;
use crate::table::Table;

pub(crate) fn run(args: BenchArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let (name, mut figures) = match args.command {
        BenchCommand::Lm(args) => ("lm", lm::measure(&args, printer)?),
        BenchCommand::Orch(args) => ("orch", orch::measure(&args, printer)?),
        BenchCommand::Gpu(args) => return gpu::run(&args, printer),
        BenchCommand::Pair(args) => ("pair", data::pair(&args)),
        BenchCommand::Bpe(args) => ("bpe", data::bpe(&args)?),
        BenchCommand::Dedup(args) => ("dedup", data::dedup(&args)?),
        BenchCommand::Clean(args) => ("clean", data::clean(&args)?),
        BenchCommand::OrchRun(args) => return orch::run(args, place, printer),
        BenchCommand::OrchForkServer => return super::fork_server::run(&orch::registry()),
    };
    let rates = std::mem::take(&mut figures.rates);
    print(name, figures, printer)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Calibration::keep(name, &rates, now.as_micros() as i64, printer);
    Ok(ExitStatus::Done)
}

/// What a bench found: names and values, in order. A name ends in its unit.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    values: Map<String, Value>,
    /// What of it plans are to count with.
    rates: Vec<Rate>,
}

impl Figures {
    /// Adds a figure.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.values.insert(name.to_owned(), value.into());
    }

    /// Adds a rate that plans are to count with. One that is no number above 0 was not measured.
    pub(crate) fn rate(&mut self, task: Option<&'static str>, unit: &'static str, per_second: f64) {
        self.keep(Rate { task, unit, per_second });
    }

    fn keep(&mut self, rate: Rate) {
        if rate.per_second.is_finite() && rate.per_second > 0.0 {
            self.rates.push(rate);
        }
    }

    /// A number among the figures.
    fn number(&self, name: &str) -> Option<f64> {
        self.values.get(name)?.as_f64()
    }
}

fn print(name: &str, figures: Figures, printer: Printer) -> Result<()> {
    let machine = machine();
    if printer.is_json() {
        let mut line = Map::new();
        line.insert("bench".to_owned(), json!(name));
        line.extend(figures.values);
        line.insert("machine".to_owned(), machine);
        printer.json(&line)?;
        return Ok(());
    }
    let mut table = Table::new(&["figure", ">value"]);
    for (name, value) in figures.values {
        let shown = match &value {
            Value::String(text) => text.clone(),
            Value::Number(number) if number.is_f64() => {
                human::figure(number.as_f64().unwrap_or_default())
            }
            other => other.to_string(),
        };
        table.row([name, shown]);
    }
    printer.table(&table)?;
    printer.talk(format!(
        "{}, {} threads, load {}",
        machine["cpu"].as_str().unwrap_or_default(),
        machine["threads"],
        machine["load"]
    ));
    Ok(())
}

/// What the figures depend on besides the program; unknown parts are null.
fn machine() -> Value {
    let Hardware { cpu, threads } = Hardware::here();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Option<f64> = load.split(' ').next().and_then(|text| text.parse().ok());
    json!({
        "cpu": cpu,
        "threads": threads,
        "load": load,
        "version": crate::cli::VERSION,
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
    })
}

/// The middle of the values; of an even number, the lower of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}
