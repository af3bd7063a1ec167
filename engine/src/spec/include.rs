//! `include:`: several files that are read as one pipeline.
//!
//! The texts are put one after the other into one [`Source`], so that every mistake and every param
//! keeps its own file and line; then the trees are merged: `params`, `env`, `defaults` and `nodes` of
//! included files come first, and a name that two files define is a mistake.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::FILE_BYTES_MAX;
use super::check::TOP_KEYS;
use super::mistake::{Mistake, Sink, Source, Span};
use super::yaml::{self, Kind, Map, Yaml};

/// Files of one pipeline, and includes within includes.
pub(crate) const FILES_MAX: usize = 64;
const DEPTH_MAX: usize = 16;

/// How deep the maps of a top-level key are merged: `defaults: {tasks: {KIND: {params: …}}}`.
const DEFAULTS_DEPTH: usize = 3;

/// What a pipeline's files hold together.
pub(crate) struct Gathered {
    pub(crate) source: Source,
    /// The part of each file, the pipeline's own first, in the order of the first mention.
    pub(crate) parts: Vec<Range<usize>>,
    /// What is wrong with the includes themselves.
    pub(crate) mistakes: Vec<Mistake>,
}

/// Reads a file's text, or says why not.
pub(crate) type ReadText<'a> = &'a dyn Fn(&Path) -> Result<String, String>;

struct File {
    name: String,
    /// Without `.` and `x/..`, so that one file has one path.
    path: PathBuf,
    text: String,
    mistakes: Vec<Mistake>,
}

struct Gatherer<'a> {
    read: ReadText<'a>,
    files: Vec<File>,
    n_bytes: usize,
}

/// Finds the files that `text`, which stands in `path`, includes.
pub(crate) fn gather(path: &Path, text: &str, read: ReadText<'_>) -> Gathered {
    let file = File {
        name: path.to_string_lossy().into_owned(),
        path: tidied(path),
        text: text.to_owned(),
        mistakes: Vec::new(),
    };
    let mut gatherer = Gatherer { read, files: vec![file], n_bytes: text.len() };
    gatherer.follow(0, &mut Vec::new());
    let (mut all, mut parts) = (String::with_capacity(gatherer.n_bytes), Vec::new());
    let (mut names, mut mistakes) = (Vec::new(), Vec::new());
    for file in gatherer.files {
        if !all.is_empty() {
            // Every file starts at the beginning of a line.
            all.push('\n');
        }
        let start = all.len();
        all.push_str(&file.text);
        parts.push(start..all.len());
        names.push((start, file.name));
        mistakes.extend(file.mistakes.into_iter().map(|mistake| mistake.moved(start)));
    }
    Gathered { source: Source::of_files(names, all.into()), parts, mistakes }
}

impl Gatherer<'_> {
    /// Reads what the file `index` includes; `above` are the files on the way to it.
    fn follow(&mut self, index: usize, above: &mut Vec<usize>) {
        // Most files include nothing, and reading one twice costs time.
        if !self.files[index].text.contains("include") {
            return;
        }
        above.push(index);
        for (span, wanted) in self.mentions(index) {
            if let Err((message, label, help)) = self.include(index, &wanted, above) {
                let mistake = Mistake::new("spec::bad_include", message).at(span, label);
                self.files[index].mistakes.push(mistake.maybe_help(help));
            }
        }
        above.pop();
    }

    /// The names after `include:` with their places; anything else there is a mistake.
    fn mentions(&mut self, index: usize) -> Vec<(Span, String)> {
        let file = &mut self.files[index];
        let source = Arc::new(Source::new(&file.name, file.text.as_str().into()));
        // What is wrong with the text is said when it is read for good.
        let mut unheard = Sink::new(Arc::clone(&source));
        let whole = 0..file.text.len();
        let Some(tree) = yaml::read(&file.text, whole, &source, &mut unheard) else {
            return Vec::new();
        };
        let Kind::Map(top) = &tree.kind else { return Vec::new() };
        let Some(include) = top.get("include") else { return Vec::new() };
        let items = match &include.kind {
            Kind::Seq(items) => items.as_slice(),
            _ => std::slice::from_ref(include),
        };
        let mut mentions = Vec::new();
        for item in items {
            let value = item.scalar().map(yaml::Scalar::value);
            let Some(serde_json::Value::String(text)) = value else {
                let message = format!("an include is {}; it must be a file", item.describe());
                file.mistakes.push(
                    Mistake::new("spec::wrong_type", message)
                        .at(item.span, "expected the name of a file")
                        .help("`include: common.yaml`, or a list of files"),
                );
                continue;
            };
            mentions.push((item.span, text));
        }
        mentions
    }

    /// Adds a file; the error is a message, a label, and advice.
    fn include(
        &mut self,
        from: usize,
        wanted: &str,
        above: &mut Vec<usize>,
    ) -> Result<(), (String, &'static str, Option<String>)> {
        if wanted.contains("${{") {
            let message = "an include cannot hold an expression".to_owned();
            let help = "files are read before params have values".to_owned();
            return Err((message, "must be a plain name", Some(help)));
        }
        if Path::new(wanted).is_absolute() {
            let message = format!("the include `{wanted}` is an absolute path");
            let help = "name it relative to the file that includes it".to_owned();
            return Err((message, "must be relative", Some(help)));
        }
        let folder = self.files[from].path.parent().unwrap_or(Path::new(""));
        let path = tidied(&folder.join(wanted));
        if let Some(at) = above.iter().position(|index| self.files[*index].path == path) {
            let way = above[at..].iter().map(|index| self.files[*index].name.clone());
            let way: Vec<String> = way.chain([path.display().to_string()]).collect();
            let message = format!("`{wanted}` includes itself: {}", way.join(" -> "));
            return Err((message, "closes the circle", None));
        }
        if self.files.iter().any(|file| file.path == path) {
            return Ok(());
        }
        if self.files.len() >= FILES_MAX || above.len() >= DEPTH_MAX {
            let message = format!(
                "a pipeline has at most {FILES_MAX} files, included at most {DEPTH_MAX} deep"
            );
            return Err((message, "one too many", None));
        }
        let text = (self.read)(&path).map_err(|message| {
            let help = "a name is relative to the file that includes it".to_owned();
            (message, "included here", Some(help))
        })?;
        self.n_bytes += text.len() + 1;
        if self.n_bytes as u64 > FILE_BYTES_MAX {
            let message = format!("the files of a pipeline have more than {FILE_BYTES_MAX} bytes");
            return Err((message, "too much with this one", None));
        }
        let name = path.to_string_lossy().into_owned();
        self.files.push(File { name, path, text, mistakes: Vec::new() });
        self.follow(self.files.len() - 1, above);
        Ok(())
    }
}

/// A path without `.`, and without `x/..` where that is plain to see.
fn tidied(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(tidy.components().next_back(), Some(Component::Normal(_))) =>
            {
                tidy.pop();
            }
            other => tidy.push(other),
        }
    }
    tidy
}

/// One tree of all: what the pipeline's own file says of itself, and everything that the files
/// define together.
pub(crate) fn merge<'t>(mut trees: Vec<Yaml<'t>>, sink: &mut Sink) -> Yaml<'t> {
    if trees.len() == 1 {
        return trees.swap_remove(0);
    }
    let own = trees.remove(0);
    let Kind::Map(own_map) = own.kind else { return own };
    let mut merged = Map::default();
    for tree in trees {
        match tree.kind {
            Kind::Map(map) => {
                let shared = map.0.into_iter().filter(|(key, _)| {
                    // What a file says of itself is no part of what it gives.
                    !matches!(&*key.text, "version" | "name" | "doc" | "include")
                });
                absorb(&mut merged, Map(shared.collect()), sink);
            }
            _ if tree.is_null() => {}
            _ => {
                let message = format!("an included file is {}; it must be a map", tree.describe());
                sink.push(
                    Mistake::new("spec::wrong_type", message).at(tree.span, "expected a map"),
                );
            }
        }
    }
    absorb(&mut merged, own_map, sink);
    Yaml { span: own.span, kind: Kind::Map(merged) }
}

/// Adds the top-level keys of a file.
fn absorb<'t>(merged: &mut Map<'t>, from: Map<'t>, sink: &mut Sink) {
    for (key, value) in from.0 {
        let depth = match &*key.text {
            "defaults" => DEFAULTS_DEPTH,
            "params" | "env" | "nodes" => 0,
            // Keys for anchors may be in every file; unknown ones are reported once each.
            _ => {
                let is_known = TOP_KEYS.iter().any(|(name, _)| *name == key.text);
                if is_known || merged.get(&key.text).is_none() {
                    merged.0.push((key, value));
                }
                continue;
            }
        };
        let Some(at) = merged.0.iter().position(|(found, _)| found.text == key.text) else {
            merged.0.push((key, value));
            continue;
        };
        // Whatever is no map is reported when it is taken apart.
        if let (Kind::Map(into), Kind::Map(map)) = (&mut merged.0[at].1.kind, value.kind) {
            join(into, map, depth, &key.text, sink);
        }
    }
}

fn join<'t>(into: &mut Map<'t>, from: Map<'t>, depth: usize, what: &str, sink: &mut Sink) {
    let known = into.0.iter().enumerate().map(|(i, (key, _))| (key.text.to_string(), i));
    let known: BTreeMap<String, usize> = known.collect();
    for (key, value) in from.0 {
        let Some(at) = known.get(&*key.text) else {
            into.0.push((key, value));
            continue;
        };
        let (first, there) = &mut into.0[*at];
        match (&mut there.kind, value.kind) {
            (Kind::Map(there), Kind::Map(map)) if depth > 0 => {
                join(there, map, depth - 1, what, sink);
            }
            _ => {
                let (code, noun) = match what {
                    "nodes" => ("spec::duplicate_node", "node"),
                    "params" => ("spec::duplicate_key", "param"),
                    _ => ("spec::duplicate_key", "key"),
                };
                let message = format!("{noun} `{}` is defined in two files", key.text);
                sink.push(
                    Mistake::new(code, message)
                        .at(key.span, "again here")
                        .at(first.span, "first here")
                        .help("remove one of them; an included file cannot be overridden"),
                );
            }
        }
    }
}
