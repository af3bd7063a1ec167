//! Mistakes in pipeline files: what is wrong, where, and what was probably meant.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use miette::{
    Diagnostic, LabeledSpan, MietteError, MietteSpanContents, Severity, SourceCode, SourceSpan,
    SpanContents,
};
use serde_json::{Value, json};

use crate::graph::Place;

/// Mistakes kept; more are only counted.
const KEPT_MAX: usize = 200;

/// Lines longer than this are shown only around the mistake.
const SHOWN_BYTES_MAX: usize = 300;

/// A range of bytes in a pipeline file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end.max(start) as u32 }
    }

    pub(crate) fn n_bytes(self) -> usize {
        (self.end - self.start) as usize
    }
}

/// A pipeline's text, with where its lines start, and the names of its files as the user gave them.
/// Included files follow the pipeline's own, each at the start of a line.
pub struct Source {
    files: Vec<File>,
    text: Arc<str>,
    line_starts: Vec<u32>,
}

struct File {
    name: Arc<str>,
    start: usize,
    /// Index of its first line.
    first_line: usize,
}

impl Source {
    pub(crate) fn new(name: &str, text: Arc<str>) -> Self {
        Self::of_files(vec![(0, name.to_owned())], text)
    }

    /// A source of several files, each with the byte at which it starts, in order.
    pub(crate) fn of_files(names: Vec<(usize, String)>, text: Arc<str>) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts: Vec<u32> =
            std::iter::once(0).chain(breaks.map(|(i, _)| i as u32 + 1)).collect();
        let file = |(start, name): (usize, String)| {
            let first_line = line_starts.partition_point(|line| (*line as usize) < start);
            File { name: name.into(), start, first_line }
        };
        let files = names.into_iter().map(file).collect();
        Self { files, text, line_starts }
    }

    /// The file that holds `offset`, and the end of its text.
    fn file(&self, offset: usize) -> (&File, usize) {
        let next = self.files.partition_point(|file| file.start <= offset).max(1);
        // The line break between two files belongs to none.
        let end = self.files.get(next).map_or(self.text.len(), |next| next.start - 1);
        (&self.files[next - 1], end)
    }

    /// The rest of the file from `offset` on.
    pub(crate) fn rest(&self, offset: usize) -> &str {
        let end = self.file(offset).1;
        &self.text[offset.min(end)..end]
    }

    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// The text of a span.
    pub(crate) fn slice(&self, span: Span) -> &str {
        &self.text[span.start as usize..span.end as usize]
    }

    /// Index of the line that holds `offset`.
    pub(crate) fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start as usize <= offset) - 1
    }

    /// The range of bytes of a line, without its break.
    pub(crate) fn line_range(&self, line: usize) -> std::ops::Range<usize> {
        let start = self.line_starts[line] as usize;
        let end = self.line_starts.get(line + 1).map_or(self.text.len(), |next| *next as usize - 1);
        let end = if self.text[start..end].ends_with('\r') { end - 1 } else { end };
        start..end
    }

    /// Cuts a span at the end of its first line.
    pub(crate) fn first_line(&self, span: Span) -> Span {
        let end = self.line_range(self.line_of(span.start as usize)).end as u32;
        Span { start: span.start, end: span.end.min(end).max(span.start) }
    }

    /// Line and column of a byte, for people.
    pub(crate) fn place(&self, offset: u32) -> Place {
        let line = self.line_of(offset as usize);
        let start = self.line_starts[line] as usize;
        let column = self.text[start..offset as usize].chars().count() as u32 + 1;
        let file = self.file(offset as usize).0;
        let line = (line - file.first_line) as u32 + 1;
        Place { file: Arc::clone(&file.name), line, column }
    }

    /// A window of an overlong line, on character boundaries.
    fn window(&self, span: SourceSpan, line: usize) -> MietteSpanContents<'_> {
        let range = self.line_range(line);
        let wanted_start = span.offset().saturating_sub(SHOWN_BYTES_MAX / 4).max(range.start);
        let wanted_end =
            (span.offset() + span.len().min(SHOWN_BYTES_MAX) + SHOWN_BYTES_MAX / 4).min(range.end);
        let start = self.text.floor_char_boundary(wanted_start);
        let end = self.text.ceil_char_boundary(wanted_end.max(start));
        let column = self.text[range.start..start].chars().count();
        self.contents(start, end, line, column)
    }

    fn contents(
        &self,
        start: usize,
        end: usize,
        line: usize,
        column: usize,
    ) -> MietteSpanContents<'_> {
        let file = self.file(start).0;
        MietteSpanContents::new_named(
            file.name.to_string(),
            &self.text.as_bytes()[start..end],
            SourceSpan::from((start, end - start)),
            line - file.first_line,
            column,
            self.text[start..end].lines().count().max(1),
        )
    }
}

impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let (start, end) = (span.offset(), span.offset() + span.len());
        if end > self.text.len() {
            return Err(MietteError::OutOfBounds);
        }
        let (first, last) = (self.line_of(start), self.line_of(end.saturating_sub(1).max(start)));
        if lines_before == 0 && lines_after == 0 {
            let column = self.text[self.line_starts[first] as usize..start].chars().count();
            return Ok(Box::new(self.contents(start, end, first, column)));
        }
        let (file, end_of_file) = self.file(start);
        // Lines of another file would only confuse, unless a second label stands there.
        let last_of_file = self.line_of(end_of_file).max(last);
        let lines = first.saturating_sub(lines_before).max(file.first_line)
            ..(last + lines_after + 1).min(last_of_file + 1);
        let longest = lines.clone().map(|line| self.line_range(line).len()).max().unwrap_or(0);
        if longest > SHOWN_BYTES_MAX {
            return Ok(Box::new(self.window(*span, first)));
        }
        let from = self.line_range(lines.start).start;
        let to = self.line_range(lines.end - 1).end;
        Ok(Box::new(self.contents(from, to, lines.start, 0)))
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.files[0].name).finish_non_exhaustive()
    }
}

/// One thing that is wrong with a pipeline file.
#[derive(Clone, Debug)]
pub struct Mistake {
    code: &'static str,
    message: String,
    severity: Severity,
    labels: Vec<(Span, String)>,
    help: Option<String>,
    source: Option<Arc<Source>>,
}

impl Mistake {
    /// An error without a place; [`Self::at`] gives it one.
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            severity: Severity::Error,
            labels: Vec::new(),
            help: None,
            source: None,
        }
    }

    /// Points at a span, with a few words; the first span is the mistake's place.
    #[must_use]
    pub(crate) fn at(mut self, span: Span, label: impl Into<String>) -> Self {
        self.labels.push((span, label.into()));
        self
    }

    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub(crate) fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }

    #[must_use]
    pub(crate) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// The same mistake in a text that stands `by` bytes further on.
    pub(crate) fn moved(mut self, by: usize) -> Self {
        for (span, _) in &mut self.labels {
            *span = Span::new(span.start as usize + by, span.end as usize + by);
        }
        self
    }

    /// The stable name of this sort of mistake, such as `spec::unknown_key`.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do, when that is known.
    pub fn advice(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// Whether the pipeline can still be run.
    pub fn is_warning(&self) -> bool {
        self.severity != Severity::Error
    }

    /// Where it is; `None` for mistakes outside the file, such as in `--set`.
    pub fn place(&self) -> Option<Place> {
        let (source, (span, _)) = (self.source.as_ref()?, self.labels.first()?);
        Some(source.place(span.start))
    }

    /// The mistake as JSON: `severity`, `code`, `message`, `file`, `line`, `column`, `help`.
    pub fn to_json(&self) -> Value {
        let place = self.place();
        json!({
            "severity": if self.is_warning() { "warning" } else { "error" },
            "code": self.code,
            "message": self.message,
            "file": place.as_ref().map(|place| &*place.file),
            "line": place.as_ref().map(|place| place.line),
            "column": place.as_ref().map(|place| place.column),
            "help": self.help,
        })
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

impl Diagnostic for Mistake {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        let source = self.source.as_ref().filter(|source| !source.text.is_empty())?;
        (!self.labels.is_empty()).then_some(&**source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let labels = self.labels.iter().enumerate().map(|(i, (span, label))| {
            let place = SourceSpan::from((span.start as usize, span.n_bytes()));
            let label = Some(label.clone()).filter(|label| !label.is_empty());
            if i == 0 {
                LabeledSpan::new_primary_with_span(label, place)
            } else {
                LabeledSpan::new_with_span(label, place)
            }
        });
        Some(Box::new(labels))
    }
}

/// Every mistake found in a pipeline, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// The mistakes, those without a place first.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    /// Whether there are neither errors nor warnings.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the pipeline cannot be run.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|mistake| !mistake.is_warning())
    }

    /// A JSON list of [`Mistake::to_json`].
    pub fn to_json(&self) -> Value {
        self.0.iter().map(Mistake::to_json).collect()
    }
}

impl From<Mistake> for Mistakes {
    fn from(mistake: Mistake) -> Self {
        Self(vec![mistake])
    }
}

impl IntoIterator for Mistakes {
    type Item = Mistake;
    type IntoIter = std::vec::IntoIter<Mistake>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            match mistake.place() {
                Some(place) => write!(f, "{separator}{place}: {}", mistake.message)?,
                None => write!(f, "{separator}{}", mistake.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Collects mistakes while a file is checked.
#[derive(Debug)]
pub(crate) struct Sink {
    source: Arc<Source>,
    kept: Vec<Mistake>,
    /// A matrix repeats the mistakes of its entry; one report of each is enough.
    seen: BTreeSet<(&'static str, Option<Span>, String)>,
    n_errors: usize,
    n_left_out: usize,
}

impl Sink {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        Self { source, kept: Vec::new(), seen: BTreeSet::new(), n_errors: 0, n_left_out: 0 }
    }

    pub(crate) fn push(&mut self, mut mistake: Mistake) {
        self.n_errors += usize::from(!mistake.is_warning());
        if self.kept.len() >= KEPT_MAX {
            self.n_left_out += 1;
            return;
        }
        let place = mistake.labels.first().map(|(span, _)| *span);
        if self.seen.insert((mistake.code, place, mistake.message.clone())) {
            mistake.source = Some(Arc::clone(&self.source));
            self.kept.push(mistake);
        }
    }

    /// Errors so far, those left out and repeated ones included.
    pub(crate) fn n_errors(&self) -> usize {
        self.n_errors
    }

    /// Whether further mistakes are only counted, so that suggestions need not be looked for.
    pub(crate) fn is_full(&self) -> bool {
        self.kept.len() >= KEPT_MAX
    }

    /// The mistakes in the order of the file.
    pub(crate) fn finish(mut self) -> Mistakes {
        self.kept.sort_by_key(|mistake| {
            mistake.labels.first().map_or((0, 0), |(span, _)| (1, span.start))
        });
        if self.n_left_out > 0 {
            let message = format!("{} more mistakes are not shown", self.n_left_out);
            let more = Mistake::new("spec::more", message);
            self.kept.push(if self.n_errors == 0 { more.warning() } else { more });
        }
        Mistakes(self.kept)
    }
}
