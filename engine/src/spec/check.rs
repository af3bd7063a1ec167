//! Takes a pipeline's YAML apart: declarations, defaults, and entries.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use super::expr::{Evaluator, Scope};
use super::mistake::{Mistake, Sink, Source, Span};
use super::settings::SETTINGS;
use super::shape::{Record, Shape, ShapeKind};
use super::yaml::{Kind, Map, Yaml};
use super::{nearest, params, scalar};
use crate::graph::Execution;
use crate::task::{AnyTask, Registry};

/// The version of the format that this program reads.
pub(crate) const VERSION: u64 = 1;

/// Nodes in a pipeline, after matrices are expanded.
pub(crate) const NODES_MAX: usize = 200_000;

/// Keys of a pipeline file, with their help.
pub(crate) const TOP_KEYS: &[(&str, &str)] = &[
    ("version", "version of the format; always `1`"),
    ("name", "name of the pipeline; the file's stem when left out"),
    ("doc", "what the pipeline is for"),
    ("include", "files whose params, env, defaults and nodes are added, relative to this one"),
    ("params", "typed params that `--set NAME=VALUE` can change"),
    ("env", "environment variables that expressions may read, with defaults"),
    ("defaults", "settings for all nodes (`all`) and settings and params for a task (`tasks`)"),
    ("nodes", "the nodes, by name"),
];

/// Keys of a node besides its settings, with their help.
pub(crate) const NODE_KEYS: &[(&str, &str)] = &[
    ("task", "the task that the node runs"),
    ("in", "the artifacts it reads: `NODE`, `NODE.PORT`, or a map from port to those"),
    ("params", "the task's params"),
    ("matrix", "axes with lists of values; one node for each combination"),
    ("doc", "what the node is for"),
];

/// Words of other tools, and ours.
const FOREIGN_KEYS: &[(&str, &str)] = &[
    ("needs", "in"),
    ("depends_on", "in"),
    ("dependencies", "in"),
    ("inputs", "in"),
    ("input", "in"),
    ("from", "in"),
    ("if", "when"),
    ("condition", "when"),
    ("with", "params"),
    ("args", "params"),
    ("config", "params"),
    ("uses", "task"),
    ("kind", "task"),
    ("type", "task"),
    ("op", "task"),
    ("foreach", "matrix"),
    ("strategy", "matrix"),
    ("retries", "retry"),
    ("vars", "params"),
    ("variables", "params"),
    ("steps", "nodes"),
    ("jobs", "nodes"),
    ("tasks", "nodes"),
    ("stages", "nodes"),
    ("memory", "mem"),
    ("cpus", "cpu"),
    ("threads", "cpu"),
    ("gpus", "gpu"),
    ("max_attempts", "attempts"),
];

/// What the steps of a reading share.
pub(crate) struct Reader<'a> {
    pub(crate) source: &'a Source,
    pub(crate) registry: &'a Registry,
    pub(crate) sink: &'a mut Sink,
    pub(crate) evaluator: Evaluator<'a>,
    /// Tasks met so far; reading a schema is not free.
    pub(crate) kinds: BTreeMap<String, Rc<TaskKind>>,
    /// How the attempts of the node before are run: those of most nodes are run alike.
    pub(crate) execution: Arc<Execution>,
}

/// A task with the types of its params.
pub(crate) struct TaskKind {
    pub(crate) task: Arc<dyn AnyTask>,
    pub(crate) params: Record,
}

/// A pipeline file, taken apart.
pub(crate) struct Document<'y, 't> {
    pub(crate) name: String,
    /// Values of the pipeline's params.
    pub(crate) params: IndexMap<String, Value>,
    /// Where each param is declared.
    pub(crate) declared: Vec<(String, Span)>,
    /// What expressions see outside a matrix.
    pub(crate) scope: Scope,
    pub(crate) entries: IndexMap<&'y str, Entry<'y, 't>>,
}

/// An entry of `nodes:`.
pub(crate) struct Entry<'y, 't> {
    pub(crate) span: Span,
    /// `None` when there is no such task.
    pub(crate) kind: Option<Rc<TaskKind>>,
    pub(crate) map: &'y Map<'t>,
    /// Where settings are looked for: the entry, its task's defaults, the defaults of all.
    pub(crate) layers: Vec<&'y Map<'t>>,
    /// `defaults: {tasks: {KIND: {params: …}}}`.
    pub(crate) default_params: Option<&'y Map<'t>>,
}

impl Reader<'_> {
    /// The task of a kind, its schema read once.
    pub(crate) fn kind(&mut self, name: &str) -> Option<Rc<TaskKind>> {
        if let Some(kind) = self.kinds.get(name) {
            return Some(Rc::clone(kind));
        }
        let task = Arc::clone(self.registry.get(name)?);
        let params = match Shape::of_schema(&task.params_schema()).kind {
            ShapeKind::Record(record) => record,
            // Params without fields, such as `()`, have no properties to list.
            _ => Record::default(),
        };
        let kind = Rc::new(TaskKind { task, params });
        self.kinds.insert(name.to_owned(), Rc::clone(&kind));
        Some(kind)
    }

    /// Reports keys that mean nothing; `holder` is what has the keys: "a node".
    pub(crate) fn check_keys<'k>(
        &mut self,
        map: &Map<'_>,
        known: &(impl Iterator<Item = &'k str> + Clone),
        holder: &str,
    ) {
        for (key, _) in &map.0 {
            if known.clone().any(|name| name == key.text) {
                continue;
            }
            let foreign = FOREIGN_KEYS.iter().find(|(word, _)| *word == key.text);
            let help = match foreign.filter(|(_, ours)| known.clone().any(|name| name == *ours)) {
                Some((_, ours)) => Some(format!("it is called `{ours}` here")),
                None => nearest::suggest(&key.text, known.clone(), "keys"),
            };
            let message = format!("{holder} has no key `{}`", scalar::shorten(&key.text));
            self.sink.push(
                Mistake::new("spec::unknown_key", message)
                    .at(key.span, "unknown key")
                    .maybe_help(help),
            );
        }
    }

    /// The map that `yaml` must be; reports anything else. Nothing counts as an empty map.
    pub(crate) fn expect_map<'y, 't>(
        &mut self,
        yaml: &'y Yaml<'t>,
        what: &str,
    ) -> Option<&'y Map<'t>> {
        match &yaml.kind {
            Kind::Map(map) => return Some(map),
            _ if yaml.is_null() => return None,
            _ => {}
        }
        self.wrong_type(yaml.span, what, &yaml.describe(), "a map", None);
        None
    }

    pub(crate) fn wrong_type(
        &mut self,
        at: Span,
        what: &str,
        found: &str,
        expected: &str,
        help: Option<String>,
    ) {
        self.sink.push(
            Mistake::new("spec::wrong_type", format!("{what} is {found}; it must be {expected}"))
                .at(at, format!("expected {expected}"))
                .maybe_help(help),
        );
    }

    /// Reports a name that cannot be one.
    pub(crate) fn check_name(&mut self, text: &str, span: Span, name: scalar::Name) {
        if let Err((message, help)) = scalar::check_name(text, name) {
            self.sink.push(Mistake::new("spec::bad_name", message).at(span, "bad name").help(help));
        }
    }
}

/// Takes the document apart. `None` when it has no nodes to go on with.
pub(crate) fn document<'y, 't>(
    reader: &mut Reader<'_>,
    yaml: &'y Yaml<'t>,
    path: &Path,
    overrides: &[(String, String)],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Option<Document<'y, 't>> {
    let top = match &yaml.kind {
        Kind::Map(map) => map,
        _ if yaml.is_null() => {
            reader.sink.push(
                Mistake::new("spec::empty", "the pipeline is empty")
                    .at(Span::default(), "nothing here")
                    .help("a pipeline has at least `version: 1` and `nodes:`"),
            );
            return None;
        }
        _ => {
            reader.wrong_type(yaml.span, "the pipeline", &yaml.describe(), "a map", None);
            return None;
        }
    };
    // Keys that start with `x-` hold anchors, as in Compose files.
    let own = top.0.iter().map(|(key, _)| &*key.text).filter(|key| key.starts_with("x-"));
    reader.check_keys(top, &TOP_KEYS.iter().map(|(name, _)| *name).chain(own), "a pipeline");
    version(reader, top);
    let name = name(reader, top, path);
    let declarations = params::read(reader, top, overrides, variable);
    let defaults = Defaults::read(reader, top);
    let mut document = Document {
        name,
        params: declarations.values,
        declared: declarations.declared,
        scope: declarations.scope,
        entries: IndexMap::new(),
    };
    let Some(nodes) = top.get("nodes") else {
        if has_misspelled(top, "nodes") {
            return Some(document);
        }
        reader.sink.push(
            Mistake::new("spec::no_nodes", "the pipeline has no `nodes:`")
                .at(Span::default(), "in this file")
                .help("add `nodes: {NAME: {task: KIND}}`"),
        );
        return Some(document);
    };
    let entries = reader.expect_map(nodes, "`nodes`");
    if entries.is_none_or(|entries| entries.0.is_empty()) && reader.sink.n_errors() == 0 {
        let at = top.key_span("nodes").unwrap_or(nodes.span);
        reader.sink.push(Mistake::new("spec::no_nodes", "`nodes` is empty").at(at, "no nodes"));
    }
    for (key, value) in entries.into_iter().flat_map(|entries| &entries.0) {
        if document.entries.len() >= NODES_MAX {
            let message = format!("the pipeline has more than {NODES_MAX} nodes");
            reader.sink.push(Mistake::new("spec::too_large", message).at(key.span, "one too many"));
            break;
        }
        reader.check_name(&key.text, key.span, scalar::Name::Node);
        if let Some(entry) = entry(reader, &key.text, key.span, value, &defaults) {
            document.entries.insert(&key.text, entry);
        }
    }
    Some(document)
}

/// Whether a map has `ours` under a wrong name, so that its absence is no second mistake.
pub(crate) fn has_misspelled(map: &Map<'_>, ours: &str) -> bool {
    let is_ours =
        |key: &str| TOP_KEYS.iter().chain(NODE_KEYS).chain(SETTINGS).any(|(name, _)| *name == key);
    // Most keys are right, and looking for what was meant costs time.
    map.0.iter().filter(|(key, _)| !is_ours(&key.text)).any(|(key, _)| {
        FOREIGN_KEYS.iter().any(|(word, meant)| *word == key.text && *meant == ours)
            || (key.text != ours && nearest::nearest(&key.text, [ours]).is_some())
    })
}

/// Warns of params that nothing reads: most are slips.
pub(crate) fn report_unused(reader: &mut Reader<'_>, document: &Document<'_, '_>) {
    if reader.sink.n_errors() > 0 {
        // An expression that was never reached may have read it.
        return;
    }
    for (name, span) in &document.declared {
        if !reader.evaluator.has_used(name) {
            let message = format!("nothing reads the param `{name}`");
            reader.sink.push(
                Mistake::new("spec::unused_param", message)
                    .at(*span, "declared here")
                    .help(format!("use it as `${{{{ params.{name} }}}}` or remove it"))
                    .warning(),
            );
        }
    }
}

fn version(reader: &mut Reader<'_>, top: &Map<'_>) {
    let Some(version) = top.get("version") else {
        reader.sink.push(
            Mistake::new("spec::no_version", "the pipeline does not say its version")
                .at(Span::default(), "in this file")
                .help(format!("start with `version: {VERSION}`")),
        );
        return;
    };
    let found = version.scalar().and_then(|scalar| scalar.value().as_u64());
    if found != Some(VERSION) {
        let message = match found {
            Some(found) if found > VERSION => {
                format!("version {found} is newer than this program, which reads {VERSION}")
            }
            _ => format!("the version is {}; it must be `{VERSION}`", version.describe()),
        };
        reader.sink.push(
            Mistake::new("spec::bad_version", message)
                .at(version.span, format!("expected `{VERSION}`")),
        );
    }
}

fn name(reader: &mut Reader<'_>, top: &Map<'_>, path: &Path) -> String {
    let stem = || path.file_stem().map_or("pipeline".into(), |stem| stem.to_string_lossy());
    let Some(name) = top.get("name") else { return stem().into_owned() };
    let Some(Value::String(text)) = name.scalar().map(super::yaml::Scalar::value) else {
        reader.wrong_type(name.span, "`name`", &name.describe(), "a string", None);
        return stem().into_owned();
    };
    reader.check_name(&text, name.span, scalar::Name::Node);
    text
}

fn entry<'y, 't>(
    reader: &mut Reader<'_>,
    name: &str,
    span: Span,
    value: &'y Yaml<'t>,
    defaults: &Defaults<'y, 't>,
) -> Option<Entry<'y, 't>> {
    if value.is_null() {
        reader.sink.push(
            Mistake::new("spec::missing_task", format!("node `{name}` has no task"))
                .at(span, "empty")
                .help("write `task: KIND` below it; `sbp tasks` lists the kinds"),
        );
        return None;
    }
    let map = reader.expect_map(value, &format!("node `{name}`"))?;
    let known = NODE_KEYS.iter().chain(SETTINGS).map(|(name, _)| *name);
    reader.check_keys(map, &known, &format!("node `{name}`"));
    let mut kind = task(reader, name, span, map);
    let task_defaults = kind.as_ref().and_then(|kind| defaults.tasks.get(kind.task.kind()));
    let layers = [Some(map), task_defaults.copied(), defaults.all];
    let default_params = task_defaults.and_then(|defaults| defaults.get("params"));
    let default_params = default_params.and_then(|yaml| reader.expect_map(yaml, "`params`"));
    if let Some(found) = &kind {
        kind = Some(with_own_ports(found, map, default_params));
    }
    Some(Entry { span, kind, map, layers: layers.into_iter().flatten().collect(), default_params })
}

/// The task with the ports that the entry's params declare. Those are fixed names, so expressions
/// in them are left as they are and found wrong by the task.
fn with_own_ports(
    kind: &Rc<TaskKind>,
    map: &Map<'_>,
    default_params: Option<&Map<'_>>,
) -> Rc<TaskKind> {
    let own = match map.get("params").map(|yaml| &yaml.kind) {
        Some(Kind::Map(own)) => Some(own),
        _ => None,
    };
    let mut params = serde_json::Map::new();
    for (key, value) in [default_params, own].into_iter().flatten().flat_map(|map| &map.0) {
        params.insert(key.text.to_string(), params::plain(value));
    }
    match kind.task.with_own_ports(&params) {
        Some(task) => Rc::new(TaskKind { task, params: kind.params.clone() }),
        None => Rc::clone(kind),
    }
}

fn task(reader: &mut Reader<'_>, name: &str, span: Span, map: &Map<'_>) -> Option<Rc<TaskKind>> {
    let Some(task) = map.get("task") else {
        reader.sink.push(
            Mistake::new("spec::missing_task", format!("node `{name}` has no task"))
                .at(span, "no `task` below it")
                .help("write `task: KIND`; `sbp tasks` lists the kinds"),
        );
        return None;
    };
    let Some(Value::String(text)) = task.scalar().map(super::yaml::Scalar::value) else {
        let what = format!("`task` of node `{name}`");
        reader.wrong_type(task.span, &what, &task.describe(), "the name of a task", None);
        return None;
    };
    let kind = reader.kind(&text);
    if kind.is_none() {
        reader.unknown_task(&text, task.span);
    }
    kind
}

impl Reader<'_> {
    fn unknown_task(&mut self, text: &str, at: Span) {
        let known = self.registry.iter().map(|task| task.kind());
        let help = if text.contains("${{") {
            Some("a task is a fixed name; use `when:` on two nodes to choose between tasks".into())
        } else {
            nearest::nearest(text, known)
                .map(|near| format!("did you mean `{near}`?"))
                .or_else(|| Some("`sbp tasks` lists the tasks".to_owned()))
        };
        let message = format!("there is no task `{}`", scalar::shorten(text));
        self.sink.push(
            Mistake::new("spec::unknown_task", message).at(at, "no such task").maybe_help(help),
        );
    }
}

/// `defaults:`.
#[derive(Default)]
struct Defaults<'y, 't> {
    all: Option<&'y Map<'t>>,
    tasks: BTreeMap<&'y str, &'y Map<'t>>,
}

impl<'y, 't> Defaults<'y, 't> {
    fn read(reader: &mut Reader<'_>, top: &'y Map<'t>) -> Self {
        let mut defaults = Self::default();
        let Some(map) = top.get("defaults").and_then(|yaml| reader.expect_map(yaml, "`defaults`"))
        else {
            return defaults;
        };
        reader.check_keys(map, &["all", "tasks"].into_iter(), "`defaults`");
        let settings = SETTINGS.iter().map(|(name, _)| *name).filter(|name| *name != "when");
        defaults.all = map.get("all").and_then(|yaml| reader.expect_map(yaml, "`all`"));
        if let Some(all) = defaults.all {
            reader.check_keys(all, &settings, "`defaults.all`");
        }
        let tasks = map.get("tasks").and_then(|yaml| reader.expect_map(yaml, "`tasks`"));
        for (key, value) in tasks.into_iter().flat_map(|tasks| &tasks.0) {
            if reader.registry.get(&key.text).is_none() {
                reader.unknown_task(&key.text, key.span);
            }
            let Some(map) = reader.expect_map(value, &format!("`{}`", key.text)) else { continue };
            let known = settings.clone().chain(["params"]);
            reader.check_keys(map, &known, &format!("`defaults.tasks.{}`", key.text));
            defaults.tasks.insert(&key.text, map);
        }
        defaults
    }
}
