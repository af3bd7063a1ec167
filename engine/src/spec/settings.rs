//! Settings of a node that stay out of its task: resources, retries, limits, order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::check::{Entry, Reader};
use super::expr::Scope;
use super::mistake::{Mistake, Span};
use super::resolve::{Tree, TreeNode};
use super::scalar;
use super::shape::{self, ShapeKind};
use super::yaml::{Map, Yaml};
use crate::executor::Executor;
use crate::graph::{Execution, Resources, Retry};
use crate::task::{AnyTask, Facts, Port};

/// Keys of a node that are its settings, with their help.
pub(crate) const SETTINGS: &[(&str, &str)] = &[
    ("when", "`false` leaves the node out; usually an expression"),
    ("resources", "what an attempt holds while it runs: `cpu`, `mem`, `gpu`, `device`, `pools`"),
    (
        "executor",
        "how attempts run: `inline`, on a thread of the run, or `process`, in a process of \
                  their own, so that a crash or too little memory ends the attempt and not the run",
    ),
    ("retry", "how transient failures are tried again: `attempts`, `backoff`"),
    ("timeout", "longest time of an attempt, such as `1h30m`"),
    ("stall_timeout", "longest time without progress, such as `10m`"),
    ("priority", "an integer; ready nodes with a higher one run first"),
    ("salt", "free text in the node's key; change it to force a rerun"),
    ("expect", "what outputs will hold, for `sbp cost`: a map from port to counts by name"),
];

/// Keys of `resources`, with their help.
pub(crate) const RESOURCES: &[(&str, &str)] = &[
    ("cpu", "threads, at least 1; default 1"),
    ("mem", "memory, such as `512MiB` or `2GiB`; no limit by default"),
    ("gpu", "GPUs; default 0"),
    (
        "device",
        "what computes: `cpu`, `cuda:N`, or `auto` for a GPU where one can be used; default `cpu`",
    ),
    ("pools", "units of named pools, such as `{disk: 1}`"),
];

/// Keys of `retry`, with their help.
pub(crate) const RETRY: &[(&str, &str)] = &[
    ("attempts", "attempts in all, the first included; default 3"),
    ("backoff", "pause before the second attempt, doubled each time; default `1s`"),
];

/// Most threads, GPUs, attempts, or units of a pool.
const AMOUNT_MAX: i64 = 65_535;

/// A node's settings.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) when: bool,
    pub(crate) execution: Arc<Execution>,
    pub(crate) salt: String,
    pub(crate) expect: BTreeMap<String, Facts>,
}

/// Reads the settings of an entry for one combination of its matrix.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    name: &str,
    entry: &Entry<'_, '_>,
    scope: &Scope,
) -> Settings {
    let mut at = Lookup { reader, name, scope };
    let layers = &entry.layers[..];
    let when = at.boolean(layers, "when").unwrap_or(true);
    let execution = Execution {
        resources: at.resources(layers, entry.kind.as_ref().map(|kind| &*kind.task)),
        executor: at.executor(layers),
        retry: at.retry(layers),
        timeout: at.duration(layers, "timeout"),
        stall_timeout: at.duration(layers, "stall_timeout"),
        priority: at
            .integer(layers, "priority", i64::from(i32::MIN), i64::from(i32::MAX))
            .unwrap_or(0) as i32,
    };
    Settings {
        when,
        execution: at.shared(execution),
        salt: at.text(layers, "salt").unwrap_or_default(),
        expect: at.expect(layers, entry.kind.as_ref().map_or(&[], |kind| kind.task.outputs())),
    }
}

/// Where a value is looked for and how it is evaluated.
struct Lookup<'a, 'r> {
    reader: &'a mut Reader<'r>,
    name: &'a str,
    scope: &'a Scope,
}

impl Lookup<'_, '_> {
    /// The value of the first layer that has the key, expressions evaluated.
    fn find(&mut self, layers: &[&Map<'_>], key: &str) -> Option<Tree> {
        let yaml = layers.iter().find_map(|layer| layer.get(key))?;
        let tree = self.evaluate(yaml);
        (!matches!(tree.node, TreeNode::Unknown)).then_some(tree)
    }

    /// The node's own, or that of the node before when it is the same.
    fn shared(&mut self, execution: Execution) -> Arc<Execution> {
        if *self.reader.execution != execution {
            self.reader.execution = Arc::new(execution);
        }
        Arc::clone(&self.reader.execution)
    }

    fn evaluate(&mut self, yaml: &Yaml<'_>) -> Tree {
        Tree::of(yaml, &mut self.reader.evaluator, self.scope, self.reader.sink)
    }

    fn wrong_type(&mut self, tree: &Tree, key: &str, expected: &str, kind: &ShapeKind) {
        let what = format!("`{key}` of node `{}`", self.name);
        let help = shape::type_help(tree, kind);
        self.reader.wrong_type(tree.span, &what, &tree.describe(), expected, help);
    }

    fn boolean(&mut self, layers: &[&Map<'_>], key: &str) -> Option<bool> {
        let tree = self.find(layers, key)?;
        if let TreeNode::Scalar(Value::Bool(value)) = tree.node {
            return Some(value);
        }
        self.wrong_type(&tree, key, "`true` or `false`", &ShapeKind::Boolean);
        None
    }

    fn text(&mut self, layers: &[&Map<'_>], key: &str) -> Option<String> {
        let tree = self.find(layers, key)?;
        match &tree.node {
            TreeNode::Scalar(Value::String(text)) => return Some(text.clone()),
            TreeNode::Scalar(value @ Value::Number(_)) => return Some(value.to_string()),
            _ => {}
        }
        self.wrong_type(&tree, key, "a string", &ShapeKind::Text);
        None
    }

    fn executor(&mut self, layers: &[&Map<'_>]) -> Option<Executor> {
        let tree = self.find(layers, "executor")?;
        if let TreeNode::Scalar(Value::String(text)) = &tree.node
            && let Ok(executor) = text.parse()
        {
            return Some(executor);
        }
        let kind = ShapeKind::Choice(Executor::WORDS.map(str::to_owned).to_vec());
        self.wrong_type(&tree, "executor", "`inline` or `process`", &kind);
        None
    }

    fn integer(&mut self, layers: &[&Map<'_>], key: &str, min: i64, max: i64) -> Option<i64> {
        let tree = self.find(layers, key)?;
        self.integer_of(&tree, key, min, max)
    }

    fn integer_of(&mut self, tree: &Tree, key: &str, min: i64, max: i64) -> Option<i64> {
        let kind = ShapeKind::Integer { min: None, max: None };
        let value = match &tree.node {
            TreeNode::Scalar(value) => shape::accept(value, &kind),
            _ => None,
        };
        let Some(value) = value else {
            self.wrong_type(tree, key, "an integer", &kind);
            return None;
        };
        if let Some(value) = value.as_i64().filter(|value| (min..=max).contains(value)) {
            return Some(value);
        }
        let message = format!("`{key}` of node `{}` is {value}", self.name);
        let limit = format!("must be {min} to {max}");
        self.reader.sink.push(
            Mistake::new("spec::out_of_range", format!("{message}; it {limit}"))
                .at(tree.span, limit),
        );
        None
    }

    fn duration(&mut self, layers: &[&Map<'_>], key: &str) -> Option<Duration> {
        let tree = self.find(layers, key)?;
        let problem = match &tree.node {
            TreeNode::Scalar(Value::String(text)) => match scalar::duration(text) {
                Ok(duration) if !duration.is_zero() || key == "backoff" => return Some(duration),
                Ok(_) => format!("`{key}` is no time at all"),
                Err(problem) => problem,
            },
            TreeNode::Scalar(Value::Number(number)) => format!("`{number}` has no unit"),
            _ => format!("`{key}` is {}", tree.describe()),
        };
        let message = format!("{problem}, in `{key}` of node `{}`", self.name);
        let help = match &tree.node {
            TreeNode::Scalar(Value::Number(number)) => format!("write `{number}s` for seconds"),
            _ => "durations look like `90s`, `10m`, `1h30m`, `2d`, `250ms`".to_owned(),
        };
        self.bad_value("spec::bad_duration", message, tree.span, "not a duration", help);
        None
    }

    fn size(&mut self, layers: &[&Map<'_>], key: &str) -> Option<u64> {
        let tree = self.find(layers, key)?;
        let text = match &tree.node {
            TreeNode::Scalar(Value::String(text)) => text.clone(),
            TreeNode::Scalar(Value::Number(number)) => {
                scalar::exact_integer(number).map_or(String::new(), |number| number.to_string())
            }
            _ => String::new(),
        };
        let problem = match scalar::size_bytes(&text) {
            Ok(0) => format!("`{key}` is no memory at all"),
            Ok(n_bytes) => return Some(n_bytes),
            Err(_) if text.is_empty() => format!("`{key}` is {}", tree.describe()),
            Err(problem) => problem,
        };
        let message = format!("{problem}, in `{key}` of node `{}`", self.name);
        let help = "sizes look like `512MiB`, `1.5GiB`, `2GB`, or a count of bytes".to_owned();
        self.bad_value("spec::bad_size", message, tree.span, "not a size", help);
        None
    }

    /// `cpu`, `auto` or `cuda:N`; whether there is such a GPU is seen when the node runs.
    fn device(&mut self, layers: &[&Map<'_>], task: Option<&dyn AnyTask>) -> Option<String> {
        let tree = self.find(layers, "device")?;
        if let TreeNode::Scalar(Value::String(text)) = &tree.node {
            let index = text.strip_prefix("cuda:").map(str::parse::<u16>);
            let is_gpu = text == "cuda" || matches!(index, Some(Ok(_)));
            if let Some(task) = task.filter(|task| is_gpu && !task.uses_device()) {
                let kind = task.kind();
                let message = format!("task `{kind}` of node `{}` has no GPU kernels", self.name);
                let help = "leave `device` out; `auto` is a GPU for the tasks that can use one";
                self.bad_value(
                    "spec::no_gpu_kernels",
                    message,
                    tree.span,
                    "a GPU",
                    help.to_owned(),
                );
                return None;
            }
            if is_gpu || matches!(text.as_str(), "cpu" | "auto") {
                return Some(text.clone());
            }
        }
        let message = format!("`device` of node `{}` is {}", self.name, tree.describe());
        let help = "devices are `cpu`, `auto`, or a GPU such as `cuda:0`".to_owned();
        self.bad_value("spec::bad_device", message, tree.span, "not a device", help);
        None
    }

    fn bad_value(
        &mut self,
        code: &'static str,
        message: String,
        at: Span,
        label: &str,
        help: String,
    ) {
        self.reader.sink.push(Mistake::new(code, message).at(at, label).help(help));
    }

    /// The maps under a key, from all layers.
    fn maps<'y, 't>(
        &mut self,
        layers: &[&'y Map<'t>],
        key: &str,
        known: &[(&str, &str)],
    ) -> Vec<&'y Map<'t>> {
        let mut maps = Vec::new();
        for yaml in layers.iter().filter_map(|layer| layer.get(key)) {
            let what = format!("`{key}` of node `{}`", self.name);
            if let Some(map) = self.reader.expect_map(yaml, &what) {
                let known = known.iter().map(|(name, _)| *name);
                self.reader.check_keys(map, &known, &format!("`{key}`"));
                maps.push(map);
            }
        }
        maps
    }

    fn resources(&mut self, layers: &[&Map<'_>], task: Option<&dyn AnyTask>) -> Resources {
        let mut resources = Resources::default();
        let maps = self.maps(layers, "resources", RESOURCES);
        if maps.is_empty() {
            return resources;
        }
        if let Some(cpu) = self.integer(&maps, "cpu", 1, AMOUNT_MAX) {
            resources.cpu = cpu as u32;
        }
        if let Some(gpu) = self.integer(&maps, "gpu", 0, AMOUNT_MAX) {
            resources.gpu = gpu as u32;
        }
        if let Some(device) = self.device(&maps, task) {
            resources.device = device;
        }
        resources.memory_bytes = self.size(&maps, "mem");
        let pools = maps.iter().find_map(|map| map.get("pools"));
        let what = format!("`pools` of node `{}`", self.name);
        let pools = pools.and_then(|yaml| self.reader.expect_map(yaml, &what));
        let mut amounts = BTreeMap::new();
        for (key, yaml) in pools.into_iter().flat_map(|pools| &pools.0) {
            self.reader.check_name(&key.text, key.span, scalar::Name::Node);
            let tree = self.evaluate(yaml);
            if matches!(tree.node, TreeNode::Unknown) {
                continue;
            }
            if let Some(amount) = self.integer_of(&tree, &key.text, 0, AMOUNT_MAX) {
                amounts.insert(key.text.to_string(), amount as u32);
            }
        }
        resources.pools = amounts;
        resources
    }

    /// The facts stated for each output port.
    fn expect(&mut self, layers: &[&Map<'_>], ports: &[Port]) -> BTreeMap<String, Facts> {
        let known: Vec<(&str, &str)> = ports.iter().map(|port| (port.name, port.doc)).collect();
        let mut expect = BTreeMap::new();
        for map in self.maps(layers, "expect", &known) {
            for (port, yaml) in &map.0 {
                let what = format!("`expect.{}` of node `{}`", port.text, self.name);
                let mut facts = Facts::default();
                for (name, yaml) in
                    self.reader.expect_map(yaml, &what).iter().flat_map(|map| &map.0)
                {
                    if let Some(value) = self.amount(yaml, &name.text) {
                        facts = facts.with(&name.text, value);
                    }
                }
                expect.entry(port.text.to_string()).or_insert(facts);
            }
        }
        expect
    }

    /// A number that is at least 0.
    fn amount(&mut self, yaml: &Yaml<'_>, key: &str) -> Option<f64> {
        let tree = self.evaluate(yaml);
        match &tree.node {
            TreeNode::Unknown => return None,
            TreeNode::Scalar(Value::Number(number)) => {
                if let Some(value) = number.as_f64().filter(|value| *value >= 0.0) {
                    return Some(value);
                }
            }
            _ => {}
        }
        self.wrong_type(
            &tree,
            key,
            "a number of at least 0",
            &ShapeKind::Number { min: Some(0.0), max: None },
        );
        None
    }

    fn retry(&mut self, layers: &[&Map<'_>]) -> Retry {
        let mut retry = Retry::default();
        let maps = self.maps(layers, "retry", RETRY);
        if maps.is_empty() {
            return retry;
        }
        if let Some(attempts) = self.integer(&maps, "attempts", 1, AMOUNT_MAX) {
            retry.attempts_max = attempts as u32;
        }
        if let Some(backoff) = self.duration(&maps, "backoff") {
            retry.backoff = backoff;
        }
        retry
    }
}
