//! What operators do to runs and to what runs leave.

use super::*;
use crate::ledger::{GarbageKind, Keep, Ruling, Verdict};

fn ruling(verdict: Verdict) -> Ruling {
    Ruling { verdict, reason: "looked at ten".to_owned(), by: "ada@here".to_owned() }
}

fn keep(n_runs: u32) -> Keep {
    Keep { n_runs, since_us: i64::MIN }
}

fn parking() -> Bench {
    let mut bench = Bench::new();
    bench.node("gate", &[], json!({"text": "go", "act": "park"}));
    bench.node("after", &["gate"], json!({"keep_inputs": true}));
    bench
}

#[tokio::test]
async fn an_approved_node_goes_on_and_says_why() {
    let bench = parking();
    let parked = bench.run().await;
    assert_eq!((parked.state, counts(&parked)), (RunState::Parked, [0, 0, 0, 1]));
    let engine = bench.engine().await;
    engine.rule("last", "gate", &ruling(Verdict::Approved)).await.unwrap();
    let why = bench.plan().await["gate"].1.as_ref().unwrap().to_string();
    assert_eq!(why, "approved by ada@here: looked at ten");
    let summary = bench.run().await;
    assert_eq!((summary.state, counts(&summary)), (RunState::Done, [2, 0, 0, 0]));
    assert_eq!(text_of(&summary, "after"), "go");
    let error = engine.rule("last", "gate", &ruling(Verdict::Rejected)).await.unwrap_err();
    assert!(error.to_string().ends_with("is done; only a parked node waits for a decision"));
}

#[tokio::test]
async fn a_rejected_node_fails_without_running() {
    let bench = parking();
    bench.run().await;
    let engine = bench.engine().await;
    engine.rule("last", "gate", &ruling(Verdict::Rejected)).await.unwrap();
    let summary = bench.run().await;
    assert_eq!((summary.state, counts(&summary)), (RunState::Failed, [0, 0, 1, 1]));
    assert_eq!(summary.failures[0].failure.message, "rejected by ada@here: looked at ten");
    assert_eq!(bench.n_runs("gate"), 1);
    // A later decision replaces it.
    engine.rule("last", "gate", &ruling(Verdict::Approved)).await.unwrap();
    assert_eq!(bench.run().await.state, RunState::Done);
}

#[tokio::test]
async fn a_decision_outlives_the_artifact() {
    let bench = parking();
    bench.run().await;
    let engine = bench.engine().await;
    engine.rule("last", "gate", &ruling(Verdict::Approved)).await.unwrap();
    let summary = bench.run().await;
    let lost = &summary.outputs["gate"]["out"].path;
    crate::store::remove_tree(lost).unwrap();
    let again = bench.run().await;
    assert_eq!((again.state, counts(&again)), (RunState::Done, [1, 1, 0, 0]));
}

#[tokio::test]
async fn a_store_is_not_collected_by_the_ledger_of_another() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "a"}));
    bench.run().await;
    let settings = Settings {
        ledger: Some(bench.dir.path().join("other.db").display().to_string()),
        ..Settings::new(bench.dir.path().join(".sbp"))
    };
    let stranger = Engine::open(settings).await.unwrap();
    let error = stranger.collect(keep(1)).await.unwrap_err();
    assert!(error.to_string().contains("knows none of the 1 artifacts"), "{error}");
    assert_eq!(stored(&stranger).len(), 1);
}

/// Says when the node `endless` runs.
struct Endless(tokio::sync::watch::Sender<bool>);

impl Observer for Endless {
    fn observe(&self, event: &RunEvent) {
        if matches!(event, RunEvent::Started { node, .. } if node == "endless") {
            self.0.send_replace(true);
        }
    }
}

/// Runs a pipeline with the node `endless`. Once that runs, an operator acts on store and ledger as
/// another process does, and may stop the run.
async fn under_way<T>(
    bench: &Bench,
    act: impl AsyncFnOnce(&Engine, &Stop) -> T,
) -> (RunSummary, T) {
    let (runs, mut running) = tokio::sync::watch::channel(false);
    let options = Options { observer: Arc::new(Endless(runs)), ..options() };
    let (driver, operator) = (bench.engine().await, bench.engine().await);
    let stop = Stop::default();
    let acts = async {
        running.wait_for(|runs| *runs).await.unwrap();
        act(&operator, &stop).await
    };
    let (summary, done) = tokio::join!(driver.run(&bench.pipeline, options, &stop), acts);
    (summary.unwrap(), done)
}

async fn cancelled(what: Option<&str>) -> RunSummary {
    let mut bench = Bench::new();
    bench.node("endless", &[], json!({"act": "wait"}));
    bench.node("after", &["endless"], json!({}));
    bench.node("other", &[], json!({"text": "other"}));
    let cancel = async |operator: &Engine, _: &Stop| {
        operator.cancel("last", what, "ada@here").await.unwrap()
    };
    let (summary, asked) = under_way(&bench, cancel).await;
    assert_eq!(asked.run, summary.run);
    let operator = bench.engine().await;
    let error = operator.cancel("last", what, "ada@here").await.unwrap_err();
    assert!(error.to_string().ends_with("is cancelled; there is nothing to stop"), "{error}");
    summary
}

#[tokio::test]
async fn a_running_driver_obeys_the_ledger() {
    assert_eq!(cancelled(None).await.state, RunState::Cancelled);
    let summary = cancelled(Some("endless")).await;
    assert_eq!((summary.nodes.cancelled, summary.nodes.ran), (2, 1));
}

/// Artifact digests in the store.
fn stored(engine: &Engine) -> Vec<String> {
    engine.store().artifacts().unwrap().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn collecting_never_breaks_a_resume() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "a1"}));
    bench.node("b", &["a"], json!({"text": "b", "keep_inputs": true}));
    let old = bench.run().await;
    for text in ["a2", "a3"] {
        bench.set("a", "text", json!(text));
        bench.run().await;
    }
    // The newest run gets no further than its first node, so the one before it still counts.
    bench.set("b", "act", json!("fail"));
    bench.set("b", "text", json!("new b"));
    bench.run().await;
    let engine = bench.engine().await;
    assert_eq!(stored(&engine).len(), 6);
    let list = engine.garbage(keep(2)).await.unwrap();
    let names: Vec<(&str, GarbageKind)> =
        list.garbage.iter().map(|one| (one.node.as_deref().unwrap(), one.kind)).collect();
    // Of `a` the newest two runs share a key; `b` failed in the newest.
    assert_eq!(names.len(), 3 + 1, "{names:?}");
    assert!(names.iter().all(|(_, kind)| *kind == GarbageKind::Artifact));
    assert!(list.cost_us >= 0 && list.size_bytes > 0);
    engine.tag("keeper", &old.run).await.unwrap();
    assert_eq!(engine.garbage(keep(2)).await.unwrap().garbage.len(), 2);
    assert!(engine.untag("keeper").await.unwrap());
    let pinned = old.outputs["b"]["out"].digest.to_string();
    engine.pin(&pinned, "b", "ada@here").await.unwrap();
    let list = engine.garbage(keep(2)).await.unwrap();
    assert_eq!(list.garbage.len(), 3);
    assert_eq!(engine.collect(keep(2)).await.unwrap().size_bytes, list.size_bytes);
    assert_eq!(stored(&engine).len(), 3);
    assert!(stored(&engine).contains(&pinned));
    let again = bench.run().await;
    assert_eq!((again.nodes.cached, bench.n_runs("a")), (1, 3));
    // What was collected is made again, and nobody takes it for damage.
    bench.set("a", "text", json!("a1"));
    let plan = bench.plan().await;
    assert!(matches!(plan["a"].1, Some(Reason::NotInStore { .. })), "{plan:?}");
    bench.run().await;
    assert_eq!(bench.n_runs("a"), 4);
}

#[tokio::test]
async fn nothing_is_collected_under_a_run() {
    let mut bench = Bench::new();
    bench.node("endless", &[], json!({"act": "wait"}));
    let collect = async |operator: &Engine, stop: &Stop| {
        let error = operator.collect(keep(1)).await.unwrap_err();
        stop.request();
        error.to_string()
    };
    let (_, error) = under_way(&bench, collect).await;
    assert!(error.contains("is under way"), "{error}");
}

#[tokio::test]
async fn a_run_that_died_elsewhere_is_buried() {
    let mut bench = Bench::new();
    bench.node("long", &[], json!({"act": "slow:40"}));
    trouble::killed_run(&bench).await;
    // It ran in a container, whose name nobody has any more.
    let mut database = crate::ledger::Database::connect(&bench.location()).await.unwrap();
    database.script("UPDATE owner SET host = 'a container'").await.unwrap();
    let engine = bench.engine().await;
    let error = engine.collect(keep(1)).await.unwrap_err();
    assert!(error.help().unwrap().contains("--dead"), "{error}");
    let run = engine.runs(1).await.unwrap()[0].id.clone();
    let buried = engine.bury(&run, "ada@here").await.unwrap();
    assert_eq!((buried.run, buried.owner.split(':').next()), (run.clone(), Some("a container")));
    assert_eq!(engine.runs(1).await.unwrap()[0].state, RunState::Abandoned);
    if let Err(error) = engine.collect(keep(1)).await {
        assert!(!error.to_string().contains("is under way"), "{error}");
    }
    let again = engine.bury(&run, "ada@here").await.unwrap_err();
    assert!(again.to_string().contains("is abandoned"), "{again}");
    // Nobody waits for the lease of the dead.
    let run = Box::pin(bench.run());
    let summary = tokio::time::timeout(Duration::from_secs(40), run).await.expect("it waits");
    assert_eq!((summary.state, summary.nodes.ran), (RunState::Done, 1));
}

#[tokio::test]
async fn a_run_that_lives_is_not_buried() {
    let mut bench = Bench::new();
    bench.node("endless", &[], json!({"act": "wait"}));
    let bury = async |operator: &Engine, stop: &Stop| {
        let error = operator.bury("last", "ada@here").await.unwrap_err();
        stop.request();
        error
    };
    let (summary, error) = under_way(&bench, bury).await;
    assert!(error.to_string().contains("lives"), "{error}");
    assert!(!error.is_trouble() && error.help().unwrap().contains("without `--dead`"));
    assert_eq!(summary.state, RunState::Cancelled);
}
