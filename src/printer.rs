//! Data goes to stdout, talk to stderr.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};

use console::{Style, Term};
use serde::Serialize;

use crate::table::Table;

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Writes what a command has to say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    format: Format,
    quiet: bool,
}

impl Printer {
    /// A printer; colour is a matter of [`console`], which `main` sets up.
    pub(crate) fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// Whether data is wanted as JSON.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Whether only data, warnings and errors are wanted.
    pub(crate) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Writes data, as it is. Where the reader has gone (`| head`), the rest is not wanted.
    ///
    /// # Errors
    /// When stdout cannot be written.
    #[expect(clippy::unused_self, reason = "all output goes through the printer")]
    pub(crate) fn data(self, text: impl Display) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => {
                let message = format!("cannot write to stdout: {error}");
                Err(io::Error::new(error.kind(), message))
            }
            Ok(()) => Ok(()),
        }
    }

    /// Writes one line of JSON to stdout.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn json(self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_string(value)?;
        line.push('\n');
        self.data(line)
    }

    /// Writes a table, cut to the terminal's width where stdout is one.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub(crate) fn table(self, table: &Table) -> io::Result<()> {
        let width = io::stdout().is_terminal().then(|| width(&Term::stdout()));
        self.data(table.render(width))
    }

    /// Tells something that is not data, on stderr, unless quiet.
    pub(crate) fn talk(self, text: impl Display) {
        if !self.quiet {
            self.warn(text);
        }
    }

    /// Writes a line to stderr even when quiet.
    #[expect(clippy::unused_self, reason = "all output goes through the printer")]
    pub(crate) fn warn(self, text: impl Display) {
        // In one call, since nothing gathers what is written to stderr.
        let line = format!("{text}\n");
        // Where stderr is gone there is nobody left to tell.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
}

/// The terminal's width in columns; 100 where it does not tell.
pub(crate) fn width(term: &Term) -> usize {
    term.size_checked().map_or(100, |(_, columns)| usize::from(columns))
}

/// The colour of a state's name; the name says the same without colour.
pub(crate) fn state_style(state: &str) -> Style {
    match state {
        "done" | "cached" => Style::new().green(),
        "failed" | "damaged" => Style::new().red(),
        "running" => Style::new().cyan(),
        "parked" | "cancelled" | "interrupted" => Style::new().yellow(),
        _ => Style::new(),
    }
}
