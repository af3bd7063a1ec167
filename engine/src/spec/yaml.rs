//! YAML text -> a tree in which every key and value knows its place.
//!
//! The only module that names a YAML crate. The parser is asked for events, so nothing is lost on
//! the way: equal keys, styles, and spans are all seen. Aliases are copied under a limit, merge
//! keys are applied, and scalars keep their text, because what `0777` or `10_000` means depends on
//! what the reader of the value asks for.

use std::borrow::Cow;
use std::ops::Range;

use indexmap::{IndexMap, IndexSet};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, StrInput, Tag};
use serde_json::Value;

use super::mistake::{Mistake, Sink, Source, Span};
use super::scalar;

/// Collections within collections.
const DEPTH_MAX: usize = 64;

/// Values after every alias has been replaced by what it stands for.
const VALUES_MAX: usize = 5_000_000;

/// Values that aliases may add: pipelines share settings, not documents.
const ALIASED_VALUES_MAX: usize = 1_000_000;

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Yaml<'t> {
    pub(crate) span: Span,
    pub(crate) kind: Kind<'t>,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind<'t> {
    Scalar(Scalar<'t>),
    Seq(Vec<Yaml<'t>>),
    Map(Map<'t>),
}

/// The text of a scalar; only plain ones can be anything but a string.
#[derive(Clone, Debug)]
pub(crate) struct Scalar<'t> {
    pub(crate) text: Cow<'t, str>,
    pub(crate) plain: bool,
}

impl Scalar<'_> {
    /// The value that the text stands for.
    pub(crate) fn value(&self) -> Value {
        if self.plain { scalar::plain_value(&self.text) } else { Value::from(&*self.text) }
    }
}

/// Keys and values in the order written; keys are unique.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map<'t>(pub(crate) Vec<(Key<'t>, Yaml<'t>)>);

#[derive(Clone, Debug)]
pub(crate) struct Key<'t> {
    pub(crate) text: Cow<'t, str>,
    pub(crate) span: Span,
}

impl<'t> Map<'t> {
    pub(crate) fn get(&self, key: &str) -> Option<&Yaml<'t>> {
        self.0.iter().find(|(found, _)| found.text == key).map(|(_, value)| value)
    }

    pub(crate) fn key_span(&self, key: &str) -> Option<Span> {
        self.0.iter().find(|(found, _)| found.text == key).map(|(found, _)| found.span)
    }
}

impl<'t> Yaml<'t> {
    pub(crate) fn scalar(&self) -> Option<&Scalar<'t>> {
        if let Kind::Scalar(scalar) = &self.kind { Some(scalar) } else { None }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.scalar().is_some_and(|scalar| scalar.plain && scalar::is_null(&scalar.text))
    }

    /// What it is, with its text when it is short: "the string `a`".
    pub(crate) fn describe(&self) -> String {
        match &self.kind {
            Kind::Scalar(scalar) => scalar::describe(&scalar.value()),
            Kind::Seq(_) => "a list".to_owned(),
            Kind::Map(_) => "a map".to_owned(),
        }
    }

    /// Whether a scalar in it has an expression and contains `word`.
    pub(crate) fn mentions(&self, word: &str) -> bool {
        match &self.kind {
            Kind::Scalar(scalar) => scalar.text.contains("${{") && scalar.text.contains(word),
            Kind::Seq(items) => items.iter().any(|item| item.mentions(word)),
            Kind::Map(map) => map.0.iter().any(|(_, value)| value.mentions(word)),
        }
    }

    /// The value as it is written, without expressions.
    pub(crate) fn plain(&self) -> Value {
        match &self.kind {
            Kind::Scalar(scalar) => scalar.value(),
            Kind::Seq(items) => items.iter().map(Yaml::plain).collect(),
            Kind::Map(map) => {
                map.0.iter().map(|(key, value)| (key.text.to_string(), value.plain())).collect()
            }
        }
    }

    fn n_values(&self) -> usize {
        match &self.kind {
            Kind::Scalar(_) => 1,
            Kind::Seq(items) => 1 + items.iter().map(Yaml::n_values).sum::<usize>(),
            Kind::Map(map) => 1 + map.0.iter().map(|(_, value)| value.n_values()).sum::<usize>(),
        }
    }
}

/// Reads the one document of the file that is `part` of `text`. `None` when nothing usable could be
/// read; then a mistake says why.
pub(crate) fn read<'t>(
    text: &'t str,
    part: Range<usize>,
    source: &Source,
    sink: &mut Sink,
) -> Option<Yaml<'t>> {
    // A byte order mark is not part of the text, but offsets still count it.
    let has_mark = text[part.clone()].starts_with('\u{feff}');
    let base = part.start + if has_mark { '\u{feff}'.len_utf8() } else { 0 };
    let text = &text[..part.end];
    let mut loader = Loader {
        text,
        source,
        sink,
        offsets: Offsets::new(&text[base..], base),
        stack: Vec::new(),
        anchors: IndexMap::new(),
        n_values: 0,
        n_aliased: 0,
        root: None,
    };
    let mut parser = Parser::new_from_str(&text[base..]);
    let mut n_documents = 0;
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok((event, span)) => (event, loader.offsets.span(span)),
            Err(error) => {
                let open = loader.stack.last().map(|frame| match frame {
                    Frame::Seq { start, .. } | Frame::Map { start, .. } => *start,
                });
                let mistake = syntax_mistake(&error, loader.source, &loader.offsets, open);
                loader.sink.push(mistake);
                return None;
            }
        };
        if matches!(event, Event::DocumentStart(_)) {
            n_documents += 1;
        }
        if n_documents > 1 {
            let at = source.first_line(span);
            loader.sink.push(
                Mistake::new("spec::several_documents", "a pipeline file holds one YAML document")
                    .at(at, "a second one starts here")
                    .help("move it to a file of its own"),
            );
            return None;
        }
        if let Err(mistake) = loader.event(event, span) {
            loader.sink.push(*mistake);
            return None;
        }
    }
    // A file without any value reads as nothing.
    let nothing = Scalar { text: Cow::Borrowed(""), plain: true };
    Some(loader.root.unwrap_or(Yaml { span: Span::default(), kind: Kind::Scalar(nothing) }))
}

enum Frame<'t> {
    Seq { start: Span, anchor: usize, items: Vec<Yaml<'t>> },
    Map { start: Span, anchor: usize, map: Map<'t>, seen: IndexSet<Cow<'t, str>>, next: Next<'t> },
}

/// What a map waits for.
enum Next<'t> {
    Key,
    Value(Key<'t>),
    /// The value of a key that was reported and is not kept.
    Nothing,
}

struct Loader<'a, 't> {
    text: &'t str,
    source: &'a Source,
    sink: &'a mut Sink,
    offsets: Offsets<'t>,
    stack: Vec<Frame<'t>>,
    anchors: IndexMap<usize, Yaml<'t>>,
    n_values: usize,
    n_aliased: usize,
    root: Option<Yaml<'t>>,
}

impl<'t> Loader<'_, 't> {
    fn event(&mut self, event: Event<'t>, span: Span) -> Result<(), Box<Mistake>> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !self.tag(tag.as_deref(), span);
                let text = self.borrowed(text, span);
                let value = Yaml { span, kind: Kind::Scalar(Scalar { text, plain }) };
                self.close(anchor, value)
            }
            Event::SequenceStart(anchor, tag) => {
                self.tag(tag.as_deref(), span);
                self.open(span, Frame::Seq { start: span, anchor, items: Vec::new() })
            }
            Event::MappingStart(anchor, tag) => {
                self.tag(tag.as_deref(), span);
                let (map, seen) = (Map::default(), IndexSet::new());
                self.open(span, Frame::Map { start: span, anchor, map, seen, next: Next::Key })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Frame::Seq { start, anchor, mut items }) => {
                    items.shrink_to_fit();
                    let span = self.collection_span(start, span);
                    self.close(anchor, Yaml { span, kind: Kind::Seq(items) })
                }
                Some(Frame::Map { start, anchor, map, .. }) => {
                    let span = self.collection_span(start, span);
                    let mut map = self.merge(map);
                    // Most maps are short, and there may be a hundred thousand of them.
                    map.0.shrink_to_fit();
                    self.close(anchor, Yaml { span, kind: Kind::Map(map) })
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let value = self.alias(anchor, span)?;
                self.place(value)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    /// The text as a part of the file where it is one: the parser gives copies with room to grow,
    /// which would be most of the memory of a large file.
    fn borrowed(&self, text: Cow<'t, str>, span: Span) -> Cow<'t, str> {
        match self.text.get(span.start as usize..span.end as usize) {
            Some(same) if same == text => Cow::Borrowed(same),
            _ => text,
        }
    }

    fn open(&mut self, span: Span, frame: Frame<'t>) -> Result<(), Box<Mistake>> {
        if self.stack.len() >= DEPTH_MAX {
            let message = format!("values are nested more than {DEPTH_MAX} deep");
            return Err(Box::new(
                Mistake::new("spec::too_deep", message)
                    .at(self.source.first_line(span), "too deep"),
            ));
        }
        self.stack.push(frame);
        Ok(())
    }

    fn close(&mut self, anchor: usize, value: Yaml<'t>) -> Result<(), Box<Mistake>> {
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        self.place(value)
    }

    /// Gives a finished value to the collection around it.
    fn place(&mut self, value: Yaml<'t>) -> Result<(), Box<Mistake>> {
        self.n_values += 1;
        if self.n_values > VALUES_MAX {
            let message = format!("the file holds more than {VALUES_MAX} values");
            return Err(Box::new(
                Mistake::new("spec::too_large", message).at(value.span, "one too many"),
            ));
        }
        let in_nodes = self.is_in_nodes();
        match self.stack.last_mut() {
            None => self.root = Some(value),
            Some(Frame::Seq { items, .. }) => items.push(value),
            Some(Frame::Map { map, seen, next, .. }) => match std::mem::replace(next, Next::Key) {
                Next::Value(key) => map.0.push((key, value)),
                Next::Nothing => {}
                Next::Key => {
                    *next = Next::Nothing;
                    let span = value.span;
                    let Kind::Scalar(Scalar { text, .. }) = value.kind else {
                        let message = "a key must be plain text";
                        let label = "this is a list or a map";
                        let help = "an expression in `${{ }}` needs quotes around it";
                        let mistake = Mistake::new("spec::bad_key", message).at(span, label);
                        self.sink.push(mistake.help(help));
                        return Ok(());
                    };
                    // A set only pays for itself in long maps.
                    let is_new = if map.0.len() < 12 {
                        !map.0.iter().any(|(key, _)| key.text == text)
                    } else {
                        if seen.is_empty() {
                            seen.extend(map.0.iter().map(|(key, _)| key.text.clone()));
                        }
                        seen.insert(text.clone())
                    };
                    if is_new || text == "<<" {
                        *next = Next::Value(Key { text, span });
                    } else {
                        let first = map.key_span(&text).unwrap_or(span);
                        self.sink.push(duplicate_key(&text, span, first, in_nodes));
                    }
                }
            },
        }
        Ok(())
    }

    /// Whether the collection being filled is the value of the top-level key `nodes`.
    fn is_in_nodes(&self) -> bool {
        let [Frame::Map { next: Next::Value(key), .. }, Frame::Map { .. }] = &self.stack[..] else {
            return false;
        };
        key.text == "nodes"
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<Yaml<'t>, Box<Mistake>> {
        let Some(value) = self.anchors.get(&anchor) else {
            let message = "this alias stands for a value that contains it";
            return Err(Box::new(
                Mistake::new("spec::recursive_alias", message).at(span, "inside its own anchor"),
            ));
        };
        self.n_aliased += value.n_values();
        if self.n_aliased > ALIASED_VALUES_MAX {
            let message = format!("aliases expand to more than {ALIASED_VALUES_MAX} values");
            return Err(Box::new(
                Mistake::new("spec::too_large", message).at(span, "one alias too many"),
            ));
        }
        Ok(value.clone())
    }

    /// Reports tags other than `!!str`; whether it is that one.
    fn tag(&mut self, tag: Option<&Tag>, span: Span) -> bool {
        let Some(tag) = tag else { return false };
        if tag.is_yaml_core_schema() && tag.suffix == "str" {
            return true;
        }
        self.sink.push(
            Mistake::new("spec::tag", format!("the tag `{tag}` means nothing here"))
                .at(self.source.first_line(span), "tagged")
                .help("remove the tag; types come from the task's params"),
        );
        false
    }

    /// Applies `<<` keys: keys that are missing are taken from the maps they name.
    fn merge(&mut self, map: Map<'t>) -> Map<'t> {
        if !map.0.iter().any(|(key, _)| key.text == "<<") {
            return map;
        }
        let (merges, mut kept): (Vec<_>, Vec<_>) =
            map.0.into_iter().partition(|(key, _)| key.text == "<<");
        let mut seen: IndexSet<_> = kept.iter().map(|(key, _)| key.text.clone()).collect();
        for (key, value) in merges {
            let values = match value.kind {
                Kind::Seq(items) => items,
                kind => vec![Yaml { span: value.span, kind }],
            };
            for value in values {
                let Kind::Map(merged) = value.kind else {
                    let message = format!("`<<` takes a map, not {}", value.describe());
                    let mistake = Mistake::new("spec::bad_merge", message);
                    self.sink.push(
                        mistake.at(key.span, "merges a map").help("write `<<: *anchor_of_a_map`"),
                    );
                    continue;
                };
                kept.extend(merged.0.into_iter().filter(|(key, _)| seen.insert(key.text.clone())));
            }
        }
        Map(kept)
    }

    /// What to underline of a collection: its first line.
    fn collection_span(&self, start: Span, end: Span) -> Span {
        let span = self.source.first_line(Span { start: start.start, end: end.end });
        let n_bytes = self.source.slice(span).trim_end().len();
        Span::new(span.start as usize, span.start as usize + n_bytes)
    }
}

fn duplicate_key(key: &str, at: Span, first: Span, in_nodes: bool) -> Mistake {
    let (code, message) = if in_nodes {
        ("spec::duplicate_node", format!("node `{key}` is defined twice"))
    } else {
        ("spec::duplicate_key", format!("key `{key}` is given twice"))
    };
    Mistake::new(code, message).at(at, "again here").at(first, "first here")
}

/// A syntax error in the parser's words, with advice where its words are known to mislead.
fn syntax_mistake(
    error: &ScanError,
    source: &Source,
    offsets: &Offsets<'_>,
    open: Option<Span>,
) -> Mistake {
    let at = offsets.offset(*error.marker());
    let open = open.filter(|open| source.slice(*open).starts_with(['{', '[']));
    if let Some(open) = open.filter(|_| source.rest(at).trim().is_empty()) {
        let bracket = source.slice(open).chars().next().unwrap_or_default();
        let at = Span::new(open.start as usize, open.start as usize + 1);
        return Mistake::new("spec::syntax", format!("`{bracket}` is not closed"))
            .at(at, "opened here");
    }
    let line = source.line_range(source.line_of(at));
    let line_text = &source.text()[line.clone()];
    let indent = &line_text[..line_text.len() - line_text.trim_start().len()];
    if let Some(tab) = indent.find('\t') {
        let at = Span::new(line.start + tab, line.start + tab + 1);
        return Mistake::new("spec::syntax", "a tab indents this line; YAML takes only spaces")
            .at(at, "tab")
            .help("replace tabs by two spaces each");
    }
    let info = error.info();
    let help = if line_text.contains("${{") {
        Some("put quotes around `${{ }}` inside `{ }` or `[ ]`")
    } else if info.contains("mapping values are not allowed") {
        Some("put quotes around a value that contains `: `, or indent it below its key")
    } else if info.contains("unknown anchor") {
        Some("define it first with `&name` in front of a value")
    } else {
        None
    };
    let end = source.text()[at..line.end.max(at)].chars().next().map_or(0, char::len_utf8);
    Mistake::new("spec::syntax", format!("this is not YAML: {info}"))
        .at(Span::new(at, at + end), "here")
        .maybe_help(help.map(str::to_owned))
}

/// Turns the parser's counts of characters into offsets in bytes.
struct Offsets<'t> {
    text: &'t str,
    base: usize,
    /// Byte offset of every `STRIDE`th character; empty when all characters are one byte.
    table: Vec<u32>,
}

impl<'t> Offsets<'t> {
    const STRIDE: usize = 64;

    fn new(text: &'t str, base: usize) -> Self {
        let table = if text.is_ascii() {
            Vec::new()
        } else {
            text.char_indices().step_by(Self::STRIDE).map(|(offset, _)| offset as u32).collect()
        };
        Self { text, base, table }
    }

    fn offset(&self, marker: Marker) -> usize {
        let index = marker.index();
        let offset = if self.table.is_empty() {
            index.min(self.text.len())
        } else {
            let known =
                self.table.get(index / Self::STRIDE).map_or(self.text.len(), |o| *o as usize);
            let rest = &self.text[known..];
            let skipped = rest.char_indices().nth(index % Self::STRIDE);
            known + skipped.map_or(rest.len(), |(offset, _)| offset)
        };
        self.base + offset
    }

    fn span(&self, span: saphyr_parser::Span) -> Span {
        Span::new(self.offset(span.start), self.offset(span.end))
    }
}

// The parser must borrow from the text, or every scalar costs an allocation.
const _: fn(&str) -> Parser<'_, StrInput<'_>> = |text| Parser::new_from_str(text);
