//! `sbp schema` and `sbp reference`: what a pipeline file may hold, for editors and for people.

use engine::spec;

use crate::error::Result;
use crate::exit::ExitStatus;
use crate::printer::Printer;

pub(crate) fn run(printer: Printer) -> Result<ExitStatus> {
    let schema = spec::schema(&tasks::registry());
    if printer.is_json() {
        printer.json(&schema)?;
    } else {
        printer.data(format!("{schema:#}\n"))?;
    }
    Ok(ExitStatus::Done)
}

pub(crate) fn reference(printer: Printer) -> Result<ExitStatus> {
    let text = spec::reference(&tasks::registry());
    if printer.is_json() {
        printer.json(&text)?;
    } else {
        printer.data(text)?;
    }
    Ok(ExitStatus::Done)
}
