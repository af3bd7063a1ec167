//! One module for each subcommand.

mod bench;
mod cancel;
mod completions;
mod cost;
mod diff;
mod doctor;
mod fork_server;
mod gc;
mod graph;
mod ledger;
mod lm;
mod logs;
mod metrics;
mod pin;
mod plan;
mod retry;
mod rule;
mod run;
mod schema;
mod show;
mod status;
mod tag;
mod tasks;
mod verify;
mod watch;
mod why;

use std::time::Duration;

use engine::Engine;
use engine::graph::Pipeline;
use engine::ledger::Verdict;
use engine::spec::{self, Checked};
use engine::task::Registry;

use crate::cli::{Cli, Command, PipelineArgs};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::Place;

/// Does what the command line asks.
pub(crate) fn run(cli: Cli, printer: Printer) -> Result<ExitStatus> {
    let place = Place::new(&cli.global)?;
    match cli.command {
        Command::Tasks(args) => tasks::run(args, printer),
        Command::Schema => schema::run(printer),
        Command::Reference => schema::reference(printer),
        Command::ForkServer => fork_server::run(&::tasks::registry()),
        Command::Completions { shell } => completions::run(shell, printer),
        Command::Bench(args) => bench::run(args, place, printer),
        Command::Lm(args) => lm::run(args, printer),
        Command::Run(args) => wait(run::run(args, place, printer)),
        Command::Plan(args) => wait(plan::run(args, place, printer)),
        Command::Cost(args) => wait(cost::run(args, place, printer)),
        Command::Status(args) => wait(status::run(args, place, printer)),
        Command::Show(args) => wait(show::run(args, place, printer)),
        Command::Why(args) => wait(why::run(args, place, printer)),
        Command::Logs(args) => wait(logs::run(args, place, printer)),
        Command::Approve(args) => wait(rule::run(args, Verdict::Approved, place, printer)),
        Command::Reject(args) => wait(rule::run(args, Verdict::Rejected, place, printer)),
        Command::Cancel(args) => wait(cancel::run(args, place, printer)),
        Command::Retry(args) => wait(retry::run(args, place, printer)),
        Command::Pin(args) => wait(pin::run(args, place, printer)),
        Command::Unpin(args) => wait(pin::remove(args, place, printer)),
        Command::Tag(args) => wait(tag::run(args, place, printer)),
        Command::Gc(args) => wait(gc::run(args, place, printer)),
        Command::Watch(args) => wait(watch::run(args, place, printer)),
        Command::Metrics(args) => wait(metrics::run(args, place, printer)),
        Command::Diff(args) => wait(diff::run(args, place, printer)),
        Command::Graph(args) => graph::run(args, printer),
        Command::Verify(args) => wait(verify::run(args, place, printer)),
        Command::Ledger(args) => wait(ledger::run(args, place, printer)),
        Command::Doctor => wait(doctor::run(place, printer)),
    }
}

/// Runs a command's future. One thread is enough for the engine's loop; tasks have their own.
pub(crate) fn wait(command: impl Future<Output = Result<ExitStatus>>) -> Result<ExitStatus> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(command);
    // An abandoned attempt must not hold up the exit: its node is resumable.
    runtime.shutdown_background();
    status
}

/// Reads the pipeline; warnings go to stderr.
fn load(args: &PipelineArgs, printer: Printer) -> Result<Pipeline> {
    load_with(args, &::tasks::registry(), printer)
}

/// Reads a pipeline of these tasks; warnings go to stderr.
fn load_with(args: &PipelineArgs, registry: &Registry, printer: Printer) -> Result<Pipeline> {
    let Checked { pipeline, mistakes } = spec::check_file(&args.pipeline, &args.set, registry);
    match pipeline {
        Some(pipeline) => {
            for warning in mistakes {
                printer.warn(format!("{:?}", miette::Report::new(warning)));
            }
            Ok(pipeline)
        }
        None => Err(Error::pipeline(mistakes)),
    }
}

/// Opens store and ledger to work with them.
async fn open(place: Place) -> Result<Engine> {
    Ok(Engine::open(settings(place)).await?)
}

/// Opens store and ledger to change what runs left there. A folder without a ledger is a mistyped
/// one, and stays as it is.
async fn open_existing(place: Place) -> Result<Engine> {
    if !place.has_ledger() {
        return Err(engine::Error::from(engine::ledger::Error::NoRunYet).into());
    }
    open(place).await
}

/// Opens store and ledger to ask them, which makes and needs nothing that can be written.
async fn look(place: Place) -> Result<Engine> {
    Ok(Engine::look(settings(place)).await?)
}

/// Fails, with a suggestion where there is one, unless a run has a node or an entry of this name.
async fn expect_node(engine: &Engine, run: &str, name: &str) -> Result<()> {
    let detail = engine.run_detail(run).await?;
    if name.is_empty() || detail.nodes.iter().any(|node| node.name == name || node.entry == name) {
        return Ok(());
    }
    engine.node_detail(run, name).await?;
    Ok(())
}

fn settings(place: Place) -> engine::Settings {
    engine::Settings {
        ledger: place.ledger,
        build: format!("sbp {}", crate::cli::VERSION),
        ..engine::Settings::new(place.dir)
    }
}

/// A time span in microseconds, for people.
fn took(us: i64) -> String {
    human::span(Duration::from_micros(u64::try_from(us).unwrap_or(0)))
}
