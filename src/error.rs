//! An error as the user sees it, with the exit status that it leads to.

use std::error::Error as StdError;
use std::fmt::{self, Display};
use std::io;

use engine::spec::Mistakes;
use engine::task::Failure;
use miette::{MietteDiagnostic, MietteHandlerOpts, Report};
use serde_json::{Value, json};

use crate::exit::ExitStatus;
use crate::printer::{self, Format, Printer};

/// Why a command could not do what was asked.
#[derive(Debug)]
pub(crate) struct Error {
    status: ExitStatus,
    /// One report for each mistake.
    reports: Vec<Report>,
    /// The mistakes of a pipeline with their places, for programs.
    mistakes: Option<Value>,
}

/// The result of a command.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Bad usage: the user can mend it.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::message(ExitStatus::Usage, message)
    }

    /// The store or the ledger cannot be used.
    pub(crate) fn storage(error: &(dyn StdError + 'static)) -> Self {
        Self::message(ExitStatus::Storage, chain(error))
    }

    /// Mistakes of a pipeline, each with its place.
    pub(crate) fn pipeline(mistakes: Mistakes) -> Self {
        let json = mistakes.to_json();
        let reports = mistakes.into_iter().map(Report::new).collect();
        Self { status: ExitStatus::Usage, reports, mistakes: Some(json) }
    }

    fn message(status: ExitStatus, message: impl Display) -> Self {
        let report = Report::new(MietteDiagnostic::new(message.to_string()));
        Self { status, reports: vec![report], mistakes: None }
    }

    /// Adds advice.
    pub(crate) fn help(mut self, help: impl Display) -> Self {
        for report in &mut self.reports {
            if let Some(diagnostic) = report.downcast_mut::<MietteDiagnostic>() {
                diagnostic.help = Some(help.to_string());
            }
        }
        self
    }

    /// Writes the error, to stderr for people and with `--json` also as a line of stdout, and gives
    /// the status to exit with.
    pub(crate) fn report(self, printer: Printer) -> ExitStatus {
        for report in &self.reports {
            printer.warn(format!("Error: {report:?}"));
        }
        if self.reports.len() > 1 {
            printer.warn(format!("{} mistakes", self.reports.len()));
        }
        if printer.is_json() {
            let line = json!({"error": {
                "exit_code": self.status.code(),
                "message": self.to_string(),
                "mistakes": self.mistakes,
            }});
            // Where stdout is gone there is nobody left to tell.
            let _ = printer.json(&line);
        }
        self.status
    }
}

/// Prints the help that was asked for, or what is wrong with the command line, where `--json` among
/// the arguments asks for a line of JSON too.
pub(crate) fn report_usage(error: &clap::Error) -> ExitStatus {
    // Where there is nobody left to tell, the status still says it.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitStatus::Done;
    }
    let status = ExitStatus::Usage;
    if std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(first);
        let line = json!({"error": {
            "exit_code": status.code(), "message": message, "mistakes": null,
        }});
        let _ = Printer::new(Format::Json, false).json(&line);
    }
    status
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let made = Self::usage(failure.message);
        match failure.help {
            Some(help) => made.help(help),
            None => made,
        }
    }
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Self {
        let status = if error.is_trouble() { ExitStatus::Storage } else { ExitStatus::Usage };
        let made = Self::message(status, chain(&error));
        match error.help() {
            Some(help) => made.help(help),
            None => made,
        }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages: Vec<String> = self.reports.iter().map(ToString::to_string).collect();
        f.write_str(&messages.join("; "))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::storage(&error)
    }
}

/// An error and its sources: `cannot open the ledger: no such file`.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        // Some libraries repeat the source in their own message.
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        source = error.source();
    }
    text
}

/// Makes reports fit the terminal, and colourless where colour is not wanted.
pub(crate) fn install_handler() {
    let (width, color) =
        (printer::width(&console::Term::stderr()), console::colors_enabled_stderr());
    let hook = miette::set_hook(Box::new(move |_| {
        let opts = MietteHandlerOpts::new().terminal_links(false).width(width).color(color);
        Box::new(opts.break_words(false).build())
    }));
    hook.expect("`main` installs the handler once, before any report");
}
