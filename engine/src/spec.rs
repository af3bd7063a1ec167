//! YAML text -> a checked [`Pipeline`], or every mistake at once.
//!
//! A file passes through five steps, and each goes on after a mistake, so that one reading finds
//! them all: `include` puts it together with the files it includes, `yaml` reads text into a tree with places, `check` takes it apart into declarations and
//! entries, `expand` makes the nodes of each entry with typed params, and `wire` connects them and
//! puts them in order.

mod check;
mod editor;
mod expand;
mod expr;
mod include;
mod manual;
mod mistake;
pub(crate) mod nearest;
mod params;
mod reference;
mod resolve;
mod scalar;
mod settings;
mod shape;
mod wire;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

pub use editor::schema;
pub use manual::reference;
pub use mistake::{Mistake, Mistakes, Source};
pub use scalar::size_bytes;

use crate::graph::Pipeline;
use crate::task::Registry;

/// Largest pipeline file.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What was found in a pipeline file.
#[derive(Clone)]
pub struct Checked {
    /// The pipeline; `None` when there are errors.
    pub pipeline: Option<Pipeline>,
    /// Errors and warnings, in the order of the file.
    pub mistakes: Mistakes,
}

/// Reads a pipeline file. `overrides` are the `name=value` pairs of `--set`.
///
/// # Errors
/// Every mistake in it. Warnings alone are no error; [`check_file`] returns them too.
pub fn load(
    path: &Path,
    overrides: &[(String, String)],
    registry: &Registry,
) -> Result<Pipeline, Mistakes> {
    let Checked { pipeline, mistakes } = check_file(path, overrides, registry);
    pipeline.ok_or(mistakes)
}

/// Reads a pipeline file and says all that was found.
pub fn check_file(path: &Path, overrides: &[(String, String)], registry: &Registry) -> Checked {
    match read_text(path) {
        Ok(text) => check(path, &text, overrides, registry, &|name| std::env::var(name).ok()),
        Err(mistake) => Checked { pipeline: None, mistakes: (*mistake).into() },
    }
}

/// Reads a YAML or JSON file that is no pipeline as one value, without expressions.
///
/// # Errors
/// Every mistake in it, with its place.
pub fn read_value(path: &Path) -> Result<serde_json::Value, Mistakes> {
    let text = read_text(path).map_err(|mistake| Mistakes::from(*mistake))?;
    let source = Arc::new(Source::new(&path.to_string_lossy(), text.as_str().into()));
    let mut sink = mistake::Sink::new(Arc::clone(&source));
    let value = yaml::read(&text, 0..text.len(), &source, &mut sink).map(|yaml| yaml.plain());
    match value {
        Some(value) if sink.n_errors() == 0 => Ok(value),
        _ => Err(sink.finish()),
    }
}

/// Reads pipeline text as if it stood in the file `path`, with no environment variables.
///
/// # Errors
/// Every mistake in it.
pub fn parse(
    path: &Path,
    text: &str,
    overrides: &[(String, String)],
    registry: &Registry,
) -> Result<Pipeline, Mistakes> {
    let Checked { pipeline, mistakes } = check(path, text, overrides, registry, &|_| None);
    pipeline.ok_or(mistakes)
}

/// Reads pipeline text as if it stood in the file `path`; `variable` gives the environment.
pub fn check(
    path: &Path,
    text: &str,
    overrides: &[(String, String)],
    registry: &Registry,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Checked {
    let read = |path: &Path| read_text(path).map_err(|mistake| mistake.message().to_owned());
    check_files(path, text, overrides, registry, variable, &read)
}

/// [`check`] with other files than those of the file system.
fn check_files(
    path: &Path,
    text: &str,
    overrides: &[(String, String)],
    registry: &Registry,
    variable: &dyn Fn(&str) -> Option<String>,
    read_text: include::ReadText<'_>,
) -> Checked {
    let gathered = include::gather(path, text, read_text);
    let source = Arc::new(gathered.source);
    let mut sink = mistake::Sink::new(Arc::clone(&source));
    for mistake in gathered.mistakes {
        sink.push(mistake);
    }
    let front = Front { source: &source, parts: &gathered.parts, path };
    let pipeline = read(&front, overrides, registry, variable, &mut sink);
    let pipeline = pipeline.filter(|_| sink.n_errors() == 0);
    Checked { pipeline, mistakes: sink.finish() }
}

/// The text of a pipeline and its files.
struct Front<'a> {
    source: &'a Arc<Source>,
    parts: &'a [std::ops::Range<usize>],
    path: &'a Path,
}

fn read(
    front: &Front<'_>,
    overrides: &[(String, String)],
    registry: &Registry,
    variable: &dyn Fn(&str) -> Option<String>,
    sink: &mut mistake::Sink,
) -> Option<Pipeline> {
    let (source, path) = (front.source, front.path);
    let text = Arc::clone(source.text());
    let trees: Vec<_> =
        front.parts.iter().map(|part| yaml::read(&text, part.clone(), source, sink)).collect();
    let yaml = include::merge(trees.into_iter().collect::<Option<Vec<_>>>()?, sink);
    let env = expr::environment();
    let evaluator = expr::Evaluator::new(&env, source);
    let mut reader = check::Reader {
        source,
        registry,
        sink,
        evaluator,
        kinds: BTreeMap::new(),
        execution: Arc::default(),
    };
    let document = check::document(&mut reader, &yaml, path, overrides, variable)?;
    let instances = expand::instances(&mut reader, &document);
    let nodes = wire::nodes(&mut reader, &document, instances);
    check::report_unused(&mut reader, &document);
    Some(Pipeline {
        name: document.name,
        path: path.to_owned(),
        text: Arc::clone(&text),
        params: document.params,
        nodes,
    })
}

fn read_text(path: &Path) -> Result<String, Box<Mistake>> {
    let cannot_read = |error: &io::Error| {
        let message = format!("cannot read the pipeline `{}`: {error}", path.display());
        Box::new(Mistake::new("spec::unreadable", message))
    };
    let file = fs::File::open(path).map_err(|error| cannot_read(&error))?;
    let n_bytes = file.metadata().map_err(|error| cannot_read(&error))?.len();
    let mut bytes = Vec::with_capacity(n_bytes.min(FILE_BYTES_MAX) as usize);
    // A pipe or a device does not say how much it holds.
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    if read.map_err(|error| cannot_read(&error))? as u64 > FILE_BYTES_MAX {
        let path = path.display();
        let message =
            format!("`{path}` has more than {FILE_BYTES_MAX} bytes, the most of a pipeline file");
        return Err(Box::new(Mistake::new("spec::too_large", message)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let n_valid = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..n_valid];
        let line = before.split(|byte| *byte == b'\n').count();
        let message = format!(
            "`{}` is not UTF-8: line {line} holds the byte 0x{:02x}",
            path.display(),
            error.as_bytes()[n_valid]
        );
        Box::new(
            Mistake::new("spec::not_utf8", message).help("save the file as UTF-8 and try again"),
        )
    })
}
