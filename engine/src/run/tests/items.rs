//! Nodes made of items: shared, retried, resumed, and the same whoever does them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::ledger::{GarbageKind, GarbageList, Keep, StageRow};
use crate::task::Item;

/// What the task made of items does.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Parts {
    /// One item each; their text ends up in the output.
    texts: Vec<String>,
    /// Each execution of an item adds a line `TEXT` here.
    journal: String,
    /// `alone:MS` without items, `slow:MS` for every item, or `TEXT:flaky`, `TEXT:fail`, `TEXT:panic` for one.
    act: String,
    /// The second stage does this many items.
    n_second: usize,
}

/// Does items, and keeps them or not.
struct InParts<const KEEPS: bool>;

fn note(journal: &str, text: &str) {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().append(true).create(true).open(journal).unwrap();
    // In one write, since others append at the same time.
    file.write_all(format!("{text}\n").as_bytes()).unwrap();
}

impl<const KEEPS: bool> Task for InParts<KEEPS> {
    const KIND: &'static str = if KEEPS { "kept_parts" } else { "in_parts" };
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "does items";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[];
    const OUTPUTS: &'static [Port] = &[Port::one("out", "any", "the texts")];
    const UNKEYED: &'static [&'static str] = &["journal", "act"];
    const ITEM_STAGES: u32 = 2;
    const KEEPS_ITEMS: bool = KEEPS;
    type Params = Parts;

    fn has_items(params: &Parts) -> bool {
        !params.act.starts_with("alone:")
    }

    fn run(ctx: &mut Context, params: &Parts, _: &Inputs) -> Result<Outputs, Failure> {
        note(&params.journal, "attempt");
        if let Some(ms) = params.act.strip_prefix("alone:") {
            std::thread::sleep(Duration::from_millis(ms.parse().unwrap()));
            fs::write(ctx.out("out")?.join("text"), "alone")?;
            return Ok(Outputs::default());
        }
        let items: Vec<Item<&str>> =
            params.texts.iter().map(|text| Item::new(text.clone(), text, text.as_str())).collect();
        let results = ctx.items("first", "texts", items, |text, item| {
            note(&params.journal, text);
            match params.act.split_once(':') {
                Some(("slow", ms)) => {
                    std::thread::sleep(Duration::from_millis(ms.parse().unwrap()));
                }
                Some(("wait", "")) => loop {
                    item.check_cancelled()?;
                    std::thread::sleep(Duration::from_millis(2));
                },
                Some((of, act)) if of == *text => {
                    let n_before = journal(Path::new(&params.journal));
                    let n_before = n_before.iter().filter(|line| line == text).count();
                    match act {
                        "fail" => return Err(Failure::permanent("told to fail")),
                        "flaky" if n_before < 3 => return Err(Failure::transient("not yet")),
                        "never" => return Err(Failure::transient("not ever")),
                        "panic" => panic!("told to panic"),
                        _ => {}
                    }
                }
                _ => {}
            }
            fs::write(item.dir().join("text"), text)?;
            Ok(text.len())
        })?;
        let mut whole = String::new();
        for (result, text) in results.zip(&params.texts) {
            let result = result?;
            assert_eq!(result.value, text.len());
            whole.push_str(&fs::read_to_string(result.dir.join("text"))?);
        }
        let items: Vec<Item<usize>> =
            (0..params.n_second).map(|i| Item::new(format!("{i}"), &(&whole, i), i)).collect();
        for square in ctx.items("second", "numbers", items, |i, _| Ok(i * i))? {
            whole.extend([" ".to_owned(), square?.value.to_string()]);
        }
        fs::write(ctx.out("out")?.join("text"), whole)?;
        Ok(Outputs::default())
    }
}

fn parts(bench: &mut Bench, name: &str, texts: &[&str], act: &str) {
    parts_of(bench, "in_parts", name, texts, act);
}

fn parts_of(bench: &mut Bench, kind: &str, name: &str, texts: &[&str], act: &str) {
    bench.node(name, &[], json!({}));
    let journal = bench.journal(name);
    let registry = Registry::default().with::<InParts<true>>().with::<InParts<false>>();
    let node = bench.pipeline.nodes.last_mut().unwrap();
    node.task = Arc::clone(registry.get(kind).unwrap());
    let params = json!({"texts": texts, "journal": journal, "act": act, "n_second": 3});
    node.params = node.task.checked(&params).unwrap().params;
    node.execution_mut().resources.cpu = 2;
}

fn times(bench: &Bench, name: &str, text: &str) -> usize {
    journal(&bench.journal(name)).iter().filter(|line| *line == text).count()
}

/// Names, states and epochs of all items.
async fn rows(bench: &Bench) -> Vec<(String, String, i64)> {
    let mut database = crate::ledger::Database::connect(&bench.location()).await.unwrap();
    let rows = database.fetch("SELECT name, state, epoch FROM item ORDER BY name", &[]).await;
    rows.unwrap().iter_mut().map(|row| (row.text(0), row.text(1), row.int(2))).collect()
}

#[tokio::test]
async fn items_are_merged_in_order_and_collected() {
    let mut texts = Vec::new();
    for n_cpu in [1, 2, 7] {
        let mut bench = Bench::new();
        parts(&mut bench, "p", &["d", "c", "b", "a", "c"], "slow:1");
        bench.pipeline.nodes[0].execution_mut().resources.cpu = n_cpu;
        let options = Options { n_cpu, ..options() };
        let engine = bench.engine().await;
        let summary = engine.run(&bench.pipeline, options, &Stop::default()).await.unwrap();
        assert_eq!(summary.state, RunState::Done, "{:?}", summary.failures);
        texts.push(text_of(&summary, "p"));
        // Equal items are done once.
        assert_eq!(times(&bench, "p", "c"), 1);
        let states: Vec<String> = rows(&bench).await.into_iter().map(|row| row.1).collect();
        assert_eq!(states, ["collected"; 7]);
        drop(engine);
    }
    assert_eq!(texts, ["dcbac 0 1 4"; 3]);
}

#[tokio::test]
async fn finished_items_are_not_repeated() {
    let mut bench = Bench::new();
    parts(&mut bench, "p", &["a", "b", "c", "d"], "c:fail");
    bench.pipeline.nodes[0].execution_mut().resources.cpu = 1;
    let summary = bench.run().await;
    assert_eq!(summary.failures[0].failure.message, "item `c`: told to fail");
    // A list with other items, in another order, keeps what is still right; so do other threads.
    parts(&mut bench, "q", &["x", "c", "b", "a"], "");
    bench.pipeline.nodes[1].execution_mut().resources.cpu = 2;
    bench.set("p", "act", json!("d:fail"));
    let summary = bench.run().await;
    assert_eq!(text_of(&summary, "q"), "xcba 0 1 4");
    let n = |name| ["a", "b", "c", "d", "x"].map(|text| times(&bench, name, text));
    let (p, q) = (n("p"), n("q"));
    let sum: Vec<usize> = p.iter().zip(q).map(|(p, q)| p + q).collect();
    assert_eq!(sum, [1, 1, 2, 1, 1], "{p:?} {q:?}");
}

/// An edit of a finished node redoes the items that it changed, where the task keeps them.
#[tokio::test]
async fn kept_items_are_found_after_an_edit() {
    for (kind, n_done) in [("kept_parts", [1, 1, 1, 1]), ("in_parts", [2, 1, 2, 1])] {
        let mut bench = Bench::new();
        parts_of(&mut bench, kind, "p", &["a", "b", "c"], "");
        assert_eq!(bench.run().await.state, RunState::Done);
        bench.set("p", "texts", json!(["a", "x", "c"]));
        let summary = bench.run().await;
        assert_eq!(text_of(&summary, "p"), "axc 0 1 4");
        assert_eq!(["a", "b", "c", "x"].map(|text| times(&bench, "p", text)), n_done, "{kind}");
    }
}

/// Items that a node may ask for stay; those of nodes that are done or forgotten go, and so does what
/// a crash left of them.
#[tokio::test]
async fn collecting_takes_the_items_that_no_node_asks_for() {
    let all = Keep { n_runs: 1, since_us: i64::MIN };
    let kinds = |list: GarbageList| list.garbage.iter().map(|one| one.kind).collect::<Vec<_>>();
    let mut bench = Bench::new();
    parts(&mut bench, "p", &["a", "b", "c"], "c:fail");
    bench.run().await;
    let orphan = bench.store_dir().join("items/ab").join(format!("{}-1", "ab".repeat(32)));
    fs::create_dir_all(&orphan).unwrap();
    fs::write(orphan.join("text"), "left").unwrap();
    assert_eq!(kinds(bench.engine().await.collect(all).await.unwrap()), [GarbageKind::Item]);
    assert!(!orphan.exists());
    bench.set("p", "act", json!(""));
    assert_eq!(bench.run().await.state, RunState::Done);
    assert_eq!(["a", "b", "c"].map(|text| times(&bench, "p", text)), [1, 1, 2]);

    let mut bench = Bench::new();
    parts_of(&mut bench, "kept_parts", "q", &["k", "l"], "");
    bench.run().await;
    assert_eq!(kinds(bench.engine().await.collect(all).await.unwrap()), []);
    bench.set("q", "texts", json!(["k", "m"]));
    bench.run().await;
    assert_eq!(["k", "l", "m"].map(|text| times(&bench, "q", text)), [1, 1, 1]);
    // The node as it was before the edit is forgotten, and what only it had goes: `l`, and the three
    // numbers that followed from the texts.
    let gone = bench.engine().await.collect(all).await.unwrap();
    let n_items = gone.garbage.iter().filter(|one| one.kind == GarbageKind::Item).count();
    assert_eq!((n_items, gone.garbage.len()), (4, 5));
    let items = walkdir::WalkDir::new(bench.store_dir().join("items")).min_depth(2).max_depth(2);
    assert_eq!(items.into_iter().count(), 2 + 3);
    bench.set("q", "texts", json!(["k", "l"]));
    assert_eq!(bench.run().await.state, RunState::Done);
    assert_eq!(["k", "l", "m"].map(|text| times(&bench, "q", text)), [1, 2, 1]);
}

/// What `sbp status` and `sbp show` say of items.
#[tokio::test]
async fn operators_see_how_far_items_are() {
    let mut bench = Bench::new();
    parts(&mut bench, "p", &["a", "b", "c", "d"], "c:fail");
    bench.pipeline.nodes[0].execution_mut().resources.cpu = 1;
    bench.run().await;
    let engine = bench.engine().await;
    let stages = engine.node_detail("last", "p").await.unwrap().node.stages;
    let failure = Some("c: told to fail".to_owned());
    let first = StageRow {
        stage: "first".to_owned(),
        total: 4,
        done: 2,
        failed: 1,
        failure,
        ..StageRow::default()
    };
    assert_eq!(stages, std::slice::from_ref(&first));

    bench.set("p", "act", json!("wait:"));
    let stop = Stop::default();
    let run = engine.run(&bench.pipeline, options(), &stop);
    let look = async {
        let other = bench.engine().await;
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let detail = other.run_detail("last").await.unwrap();
            let stages = &detail.nodes[0].stages;
            if stages.first().is_some_and(|stage| !stage.running.is_empty()) {
                stop.request();
                return (detail.run.owner, stages.clone());
            }
        }
    };
    let (_, (owner, stages)) = tokio::join!(run, look);
    let running = [(owner, 1)].into_iter().collect();
    assert_eq!(stages, [StageRow { running, ..first }]);
}

#[tokio::test]
async fn items_are_tried_again_alone() {
    let mut bench = Bench::new();
    parts(&mut bench, "flaky", &["a", "b"], "b:flaky");
    parts(&mut bench, "never", &["c", "d"], "d:never");
    parts(&mut bench, "panics", &["e", "f"], "f:panic");
    let summary = bench.run().await;
    let tried = |name, text| (times(&bench, name, text), times(&bench, name, "attempt"));
    assert_eq!((tried("flaky", "b"), tried("flaky", "a").0), ((3, 1), 1));
    assert_eq!(tried("never", "d"), (3, 1));
    let messages: Vec<&str> =
        summary.failures.iter().map(|failed| failed.failure.message.as_str()).collect();
    let expected =
        ["item `d`: not ever (tried 3 times)", "item `f`: the task panicked: told to panic"];
    assert_eq!(messages, expected);
}

#[tokio::test]
async fn damaged_items_are_made_again() {
    let mut bench = Bench::new();
    parts(&mut bench, "p", &["a", "b", "c"], "c:fail");
    bench.pipeline.nodes[0].execution_mut().resources.cpu = 1;
    bench.run().await;
    let mut spoiled = 0;
    for entry in walkdir::WalkDir::new(bench.store_dir().join("items")) {
        let entry = entry.unwrap();
        if entry.file_name() == "text" && fs::read_to_string(entry.path()).unwrap() == "a" {
            fs::write(entry.path(), "A").unwrap();
            spoiled += 1;
        }
    }
    assert_eq!(spoiled, 1);
    bench.set("p", "act", json!(""));
    let summary = bench.run().await;
    assert_eq!(text_of(&summary, "p"), "abc 0 1 4");
    assert_eq!(["a", "b", "c"].map(|text| times(&bench, "p", text)), [2, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_share_the_items_of_a_node() {
    let texts: Vec<String> = (0..40).map(|i| format!("t{i:02}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut bench = Bench::new();
    parts(&mut bench, "p", &texts, "slow:20");
    let (a, b) = (bench.engine().await, bench.engine().await);
    let stop = Stop::default();
    let runs = tokio::join!(
        a.run(&bench.pipeline, options(), &stop),
        b.run(&bench.pipeline, options(), &stop)
    );
    let (first, second) = (runs.0.unwrap(), runs.1.unwrap());
    assert_eq!((first.state, second.state), (RunState::Done, RunState::Done));
    assert_eq!(first.outputs, second.outputs);
    assert_eq!(text_of(&first, "p"), texts.concat() + " 0 1 4");
    for text in &texts {
        assert_eq!(times(&bench, "p", text), 1, "{text}");
    }
    assert_eq!(times(&bench, "p", "attempt"), 2, "the second run helped");
    let mut database = crate::ledger::Database::connect(&bench.location()).await.unwrap();
    let owners = database.fetch("SELECT DISTINCT owner FROM item", &[]).await.unwrap().len();
    assert_eq!(owners, 2, "both runs did items");
}

#[tokio::test]
async fn a_node_without_items_is_not_helped() {
    let mut bench = Bench::new();
    parts(&mut bench, "p", &[], "alone:300");
    let (a, b) = (bench.engine().await, bench.engine().await);
    let stop = Stop::default();
    let runs = tokio::join!(
        a.run(&bench.pipeline, options(), &stop),
        b.run(&bench.pipeline, options(), &stop)
    );
    assert_eq!(runs.0.unwrap().outputs, runs.1.unwrap().outputs);
    assert_eq!(
        times(&bench, "p", "attempt"),
        1,
        "a run helped where there is nothing to help with"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_a_dead_run_are_taken_over() {
    let texts: Vec<String> = (0..30).map(|i| format!("t{i:02}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut bench = Bench::new();
    parts(&mut bench, "p", &texts, "slow:10");
    let engine = bench.engine().await;
    let (stop, n) = (Stop::default(), AtomicBool::new(false));
    let run = engine.run(&bench.pipeline, options(), &stop);
    let some_done = async {
        while journal(&bench.journal("p")).len() < 12 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        n.store(true, Ordering::Relaxed);
    };
    tokio::select! {
        _ = run => panic!("the run should not end by itself"),
        () = some_done => {}
    }
    // Its threads end when they find nobody to talk to.
    drop(engine);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut database = crate::ledger::Database::connect(&bench.location()).await.unwrap();
    database.script("UPDATE owner SET pid_started = pid_started + 1").await.unwrap();
    let done: Vec<String> = rows(&bench)
        .await
        .into_iter()
        .filter_map(|(name, state, _)| (state == "done").then_some(name))
        .collect();
    assert!(done.len() >= 5, "{done:?}");
    let summary = bench.run().await;
    assert_eq!(text_of(&summary, "p"), texts.concat() + " 0 1 4");
    for text in done {
        assert_eq!(times(&bench, "p", &text), 1, "{text}");
    }
}

#[tokio::test]
async fn a_stopped_run_gives_its_items_back() {
    let mut bench = Bench::new();
    parts(&mut bench, "p", &["a", "b", "c"], "wait:");
    let stop = Stop::default();
    let engine = bench.engine().await;
    let run = engine.run(&bench.pipeline, options(), &stop);
    let stopper = async {
        while journal(&bench.journal("p")).len() < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.request();
    };
    let (summary, ()) = tokio::join!(run, stopper);
    assert_eq!(summary.unwrap().state, RunState::Cancelled);
    let row = |name: &str, epoch| (name.to_owned(), "missing".to_owned(), epoch);
    assert_eq!(rows(&bench).await, [row("a", 1), row("b", 1), row("c", 0)]);
    bench.set("p", "act", json!(""));
    assert_eq!(bench.run().await.state, RunState::Done);
}
