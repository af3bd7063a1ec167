//! Runs of made-up tasks over a real store and ledger.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::*;
use crate::cost::Machine;
use crate::graph::{Execution, Node, Place, Retry, Source};
use crate::ledger::Lines;
use crate::open::Settings;
use crate::plan::{Change, PlannedState, Targets};
use crate::task::{Context, Determinism, Failure, Inputs, Outputs, Port, Registry, Task};

/// What the made-up task does.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Script {
    /// Ends up in the output.
    text: String,
    /// Whether the inputs end up in the output too.
    keep_inputs: bool,
    /// Each execution adds a line here.
    journal: String,
    /// Patterns of external files; their contents end up in the output.
    files: Vec<String>,
    /// `fail`, `flaky:N`, `late`, `park`, `panic`, `wait`, `lazy`, `steps:N`, `touch`.
    act: String,
}

struct Scripted;

impl Task for Scripted {
    const KIND: &'static str = "scripted";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "does what its params say";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::many("in", "any", "anything")];
    const OUTPUTS: &'static [Port] = &[Port::one("out", "any", "the text")];
    const UNKEYED: &'static [&'static str] = &["journal", "act", "files"];
    type Params = Script;

    fn external(params: &Script) -> Vec<String> {
        params.files.clone()
    }

    fn run(ctx: &mut Context, params: &Script, inputs: &Inputs) -> Result<Outputs, Failure> {
        let n_before = journal(Path::new(&params.journal)).len();
        let mut lines = fs::read_to_string(&params.journal).unwrap_or_default();
        lines.push_str("run\n");
        fs::write(&params.journal, lines)?;
        ctx.info("started");
        ctx.metric("loss", 1, 0.1);
        let (act, n) = params.act.split_once(':').unwrap_or((&params.act, "0"));
        let n: usize = n.parse().unwrap_or_default();
        match act {
            "fail" => return Err(Failure::permanent("told to fail")),
            "flaky" if n_before < n => return Err(Failure::transient("not yet")),
            "late" if n_before == 0 => {
                while !Path::new(&params.journal).with_extension("go").exists() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                return Err(Failure::permanent("its files were taken away"));
            }
            "park" if ctx.is_approved() => {}
            "park" => return Err(Failure::parked("needs a decision")),
            "panic" => panic!("told to panic"),
            "wait" => loop {
                ctx.check_cancelled()?;
                std::thread::sleep(Duration::from_millis(2));
            },
            "slow" => std::thread::sleep(Duration::from_millis(n as u64)),
            "lazy" => return Ok(Outputs::default()),
            "touch" if n_before == 0 => {
                fs::write(&ctx.external()[0].path, "changed under the task")?;
            }
            "touch_and_fail" if n_before == 0 => {
                fs::write(&ctx.external()[0].path, "changed under the task")?;
                return Err(Failure::permanent("half of the file is gone"));
            }
            "steps" => steps(ctx, n)?,
            _ => {}
        }
        let mut text = params.text.clone();
        for input in inputs.many("in") {
            if params.keep_inputs {
                text.push_str(&fs::read_to_string(input.dir.join("text"))?);
            }
        }
        for file in ctx.external() {
            text.push_str(&fs::read_to_string(&file.path)?);
        }
        fs::write(ctx.out("out")?.join("text"), text)?;
        Ok(Outputs::default().metric("length", 1.0))
    }
}

/// Saves a checkpoint at each step, and stops once when it meets the step `n` for the first time.
fn steps(ctx: &Context, n: usize) -> Result<(), Failure> {
    let first = ctx.latest_checkpoint()?.map_or(0, |checkpoint| checkpoint.step + 1);
    for step in first..10 {
        ctx.save_checkpoint(step, |dir| fs::write(dir.join("step"), step.to_string()))?;
        if first == 0 && step as usize == n {
            return Err(Failure::transient("stopped half way"));
        }
    }
    ctx.info(format!("from {first}"));
    Ok(())
}

fn journal(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A folder with a store, and a pipeline of scripted nodes in the making.
///
/// With a server's URL in `SBP_TEST_POSTGRES` each bench keeps its ledger there, in a schema of
/// its own; otherwise in a `SQLite` file.
struct Bench {
    dir: tempfile::TempDir,
    pipeline: Pipeline,
}

async fn fresh_schema(url: &str, dir: &Path) -> String {
    let name = format!("sbp_{}", Digest::of(dir.as_os_str().as_encoded_bytes()).short());
    let location = crate::ledger::Location::parse(url);
    let mut database = crate::ledger::Database::connect(&location).await.unwrap();
    let create: &'static str = format!("CREATE SCHEMA IF NOT EXISTS {name}").leak();
    database.script(create).await.unwrap();
    format!("{url}?options=-csearch_path%3D{name}")
}

impl Bench {
    fn new() -> Self {
        let pipeline = Pipeline {
            name: "test".to_owned(),
            path: PathBuf::from("test.yaml"),
            text: "".into(),
            params: IndexMap::new(),
            nodes: Vec::new(),
        };
        Self { dir: tempfile::tempdir().unwrap(), pipeline }
    }

    fn journal(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.journal"))
    }

    fn n_runs(&self, name: &str) -> usize {
        journal(&self.journal(name)).len()
    }

    /// Adds a node that reads the outputs of `needs`.
    fn node(&mut self, name: &str, needs: &[&str], params: Value) -> &mut Node {
        let registry = Registry::default().with::<Scripted>();
        let task = Arc::clone(registry.get("scripted").unwrap());
        let mut params = params;
        params["journal"] = json!(self.journal(name));
        let canonical = task.checked(&params).unwrap().params;
        let index =
            |name: &&str| self.pipeline.nodes.iter().position(|node| node.name == **name).unwrap();
        let sources: Vec<Source> =
            needs.iter().map(|name| Source { node: index(name), port: "out".into() }).collect();
        let inputs = if sources.is_empty() {
            BTreeMap::new()
        } else {
            BTreeMap::from([("in".to_owned(), sources)])
        };
        let place = Place { file: "test.yaml".into(), line: 1, column: 1 };
        let node = Node {
            name: name.to_owned(),
            entry: name.to_owned(),
            matrix: IndexMap::new(),
            external: task.checked(&canonical).unwrap().external,
            task,
            params: canonical,
            inputs,
            execution: Arc::new(Execution {
                retry: Retry { attempts_max: 3, backoff: Duration::from_millis(1) },
                ..Execution::default()
            }),
            salt: String::new(),
            expect: BTreeMap::new(),
            place: place.clone(),
            param_places: vec![("text".to_owned(), place)],
        };
        self.pipeline.nodes.push(node);
        self.pipeline.nodes.last_mut().unwrap()
    }

    fn set(&mut self, name: &str, param: &str, value: Value) {
        let node = self.pipeline.nodes.iter_mut().find(|node| node.name == name).unwrap();
        node.params[param] = value;
        node.external = node.task.checked(&node.params).unwrap().external;
    }

    fn store_dir(&self) -> PathBuf {
        self.dir.path().join(".sbp")
    }

    fn location(&self) -> crate::ledger::Location {
        match fs::read_to_string(self.dir.path().join("url")) {
            Ok(url) => crate::ledger::Location::parse(&url),
            Err(_) => crate::ledger::Location::Sqlite(self.store_dir().join("ledger.db")),
        }
    }

    async fn engine(&self) -> Engine {
        let mut settings = Settings::new(self.store_dir());
        if let Ok(url) = std::env::var("SBP_TEST_POSTGRES") {
            let url = fresh_schema(&url, self.dir.path()).await;
            fs::write(self.dir.path().join("url"), &url).unwrap();
            settings.ledger = Some(url);
        }
        Engine::open(settings).await.unwrap()
    }

    async fn run(&self) -> RunSummary {
        self.engine().await.run(&self.pipeline, options(), &Stop::default()).await.unwrap()
    }

    async fn plan(&self) -> BTreeMap<String, (PlannedState, Option<Reason>)> {
        let plan = self
            .engine()
            .await
            .plan(&self.pipeline, &Targets::All, &[], &Machine::default())
            .await
            .unwrap();
        plan.nodes.into_iter().map(|node| (node.name, (node.state, node.reason))).collect()
    }
}

fn options() -> Options {
    Options { n_cpu: 2, ..Options::default() }
}

fn text_of(summary: &RunSummary, node: &str) -> String {
    fs::read_to_string(summary.outputs[node]["out"].path.join("text")).unwrap()
}

fn counts(summary: &RunSummary) -> [usize; 4] {
    let Counts { ran, cached, failed, skipped, .. } = summary.nodes;
    [ran, cached, failed, skipped]
}

#[derive(Default)]
struct Events(Mutex<Vec<RunEvent>>);

impl Observer for Events {
    fn observe(&self, event: &RunEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

#[tokio::test]
async fn second_run_finds_everything() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "a"}));
    bench.node("b", &["a"], json!({"text": "b", "keep_inputs": true}));
    let first = bench.run().await;
    assert_eq!((first.state, counts(&first)), (RunState::Done, [2, 0, 0, 0]));
    assert_eq!(text_of(&first, "b"), "ba");
    let second = bench.run().await;
    assert_eq!((second.state, counts(&second)), (RunState::Done, [0, 2, 0, 0]));
    assert_eq!(first.outputs, second.outputs);
    assert_eq!((bench.n_runs("a"), bench.n_runs("b")), (1, 1));
}

#[tokio::test]
async fn a_run_with_nothing_to_do_shares_what_the_one_before_wrote() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "a"}));
    bench.node("b", &["a"], json!({"text": "b"}));
    bench.pipeline.text = "first".into();
    let made = bench.run().await;
    let shared = [bench.run().await, bench.run().await];
    let engine = bench.engine().await;
    let written = "SELECT count(*) FROM own_node";
    assert_eq!(engine.ledger.ask(written).await, 2);
    for (run, state) in [(&made, NodeState::Done), (&shared[1], NodeState::Cached)] {
        let detail = engine.run_detail(&run.run).await.unwrap();
        assert_eq!(detail.text, "first");
        let nodes = detail.nodes.iter().map(|node| (node.name.as_str(), node.state));
        assert_eq!(nodes.collect::<Vec<_>>(), [("a", state), ("b", state)]);
        assert_eq!(detail.nodes[0].reason.is_some(), state == NodeState::Done);
        assert!(detail.nodes[0].key.is_some());
    }
    let listed = engine.runs(10).await.unwrap();
    let cached = listed.iter().map(|run| run.nodes.get(&NodeState::Cached).copied());
    assert_eq!(cached.collect::<Vec<_>>(), [Some(2), Some(2), None]);
    assert_eq!(engine.logs(&shared[0].run, "a", Lines::Last(5)).await.unwrap().len(), 1);

    // Another text is kept, a node more is written, and what was there before is what changed.
    bench.pipeline.text = "second".into();
    let other_text = bench.run().await;
    assert_eq!(engine.ledger.ask(written).await, 4);
    assert_eq!(engine.run_detail(&other_text.run).await.unwrap().text, "second");
    bench.set("b", "text", json!("B"));
    bench.run().await;
    bench.set("b", "text", json!("b"));
    let back = bench.run().await;
    assert_eq!(counts(&back), [0, 2, 0, 0]);
    bench.set("b", "text", json!("c"));
    let Some(Reason::Changed { since, run, .. }) = bench.plan().await["b"].1.clone() else {
        panic!()
    };
    let detail = engine.node_detail(&back.run, "b").await.unwrap();
    assert_eq!((Some(since.to_string()), run), (detail.node.key, back.run));
    assert!(engine.check_ledger().await.unwrap().is_empty());
}

#[tokio::test]
async fn same_bytes_cut_the_rerun_off() {
    let mut bench = Bench::new();
    bench.node("head", &[], json!({"text": "x"})).salt = "1".to_owned();
    for i in 0..20 {
        let before = if i == 0 { "head".to_owned() } else { format!("n{}", i - 1) };
        bench.node(&format!("n{i}"), &[&before], json!({"text": format!("{i}")}));
    }
    bench.run().await;
    bench.pipeline.nodes[0].salt = "2".to_owned();
    let plan = bench.plan().await;
    let Some(Reason::Changed { changes, .. }) = &plan["head"].1 else { panic!("{plan:?}") };
    assert_eq!(changes[..], [Change::Salt { from: "1".to_owned(), to: "2".to_owned() }]);
    assert_eq!(plan["n0"].1, Some(Reason::Blocked { by: vec!["head".to_owned()] }));
    let events = Arc::new(Events::default());
    let options = Options { observer: Arc::<Events>::clone(&events), ..options() };
    let again = bench.engine().await.run(&bench.pipeline, options, &Stop::default()).await.unwrap();
    assert_eq!(counts(&again), [1, 20, 0, 0]);
    let cut = events.0.lock().unwrap().iter().find_map(|event| match event {
        RunEvent::Cached { node, reason: Some(reason) } => Some((node.clone(), reason.clone())),
        _ => None,
    });
    let reran = vec!["head".to_owned()];
    assert_eq!(cut, Some(("n0".to_owned(), Reason::CutOff { reran })));
}

#[tokio::test]
async fn the_ledger_answers_what_happened() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "a"}));
    bench.node("b", &["a"], json!({"act": "fail"}));
    bench.node("c", &["b"], json!({}));
    let summary = bench.run().await;
    assert_eq!((summary.state, counts(&summary)), (RunState::Failed, [1, 0, 1, 1]));
    assert_eq!(summary.failures[0].failure, Failure::permanent("told to fail"));
    let engine = bench.engine().await;
    let runs = engine.runs(10).await.unwrap();
    assert_eq!((runs.len(), runs[0].state), (1, RunState::Failed));
    let detail = engine.run_detail(&summary.run[..4]).await.unwrap();
    let states: Vec<NodeState> = detail.nodes.iter().map(|node| node.state).collect();
    assert_eq!(states, [NodeState::Done, NodeState::Failed, NodeState::Skipped]);
    assert_eq!(detail.nodes[0].reason, Some(Reason::NeverRan));
    assert_eq!(detail.nodes[0].outputs[0].n_files, Some(1));
    assert!(detail.nodes[0].duration_us.is_some());
    let node = engine.node_detail("last", "b").await.unwrap();
    assert_eq!(node.attempts[0].state, "failed");
    let lines = engine.logs("", "a", Lines::Last(5)).await.unwrap();
    assert_eq!((lines.len(), lines[0].text.as_str()), (1, "started"));
    let after = Lines::After { id: lines[0].id, n_max: 10 };
    assert_eq!(engine.logs("", "a", after).await.unwrap().len(), 0);
    let points = engine.metrics("", "a").await.unwrap();
    assert_eq!((points.len(), points[0].value), (1, Some(0.1)));
    assert!(engine.run_detail("zzz").await.is_err());
}

#[tokio::test]
async fn a_changed_param_reruns_exactly_what_depends_on_it() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "a"}));
    bench.node("b", &["a"], json!({"text": "b"}));
    bench.node("c", &["b"], json!({"text": "c", "keep_inputs": true}));
    bench.node("other", &["a"], json!({"text": "o"}));
    bench.run().await;
    bench.set("b", "text", json!("B"));
    let plan = bench.plan().await;
    let states: Vec<PlannedState> = plan.values().map(|(state, _)| *state).collect();
    assert_eq!(
        states,
        [PlannedState::Cached, PlannedState::Run, PlannedState::Blocked, PlannedState::Cached]
    );
    let Some(Reason::Changed { changes, .. }) = &plan["b"].1 else { panic!("{plan:?}") };
    let place = Some("test.yaml:1:1".to_owned());
    let (from, to) = (Some(json!("b")), Some(json!("B")));
    assert_eq!(changes[..], [Change::Param { path: "text".to_owned(), from, to, place }]);
    let again = bench.run().await;
    assert_eq!(counts(&again), [2, 2, 0, 0]);
    assert_eq!(text_of(&again, "c"), "cB");
    let detail = bench.engine().await.node_detail("", "c").await.unwrap();
    let Some(Reason::Changed { changes, .. }) = detail.node.reason else { panic!() };
    let nodes = vec!["b".to_owned()];
    assert_eq!(changes, [Change::Input { port: "in".to_owned(), nodes }]);
}

mod hazards;
mod items;
mod kills;
mod operate;
mod processes;
mod trouble;
mod upstream;
