//! Failures, stops, crashes, damage, and several runs at once.

use std::time::Instant;

use super::*;
use crate::ledger::{Batch, Claim, Ledger, Location, Publish, Writer};
use crate::plan::PlannedState;

#[tokio::test]
async fn transient_failures_are_tried_again_and_others_are_not() {
    let mut bench = Bench::new();
    bench.node("flaky", &[], json!({"text": "1", "act": "flaky:2"}));
    bench.node("hopeless", &[], json!({"text": "2", "act": "flaky:9"}));
    bench.node("panics", &[], json!({"text": "3", "act": "panic"}));
    bench.node("lazy", &[], json!({"text": "4", "act": "lazy"}));
    bench.node("fine", &["flaky"], json!({}));
    let summary = bench.run().await;
    assert_eq!((summary.state, counts(&summary)), (RunState::Failed, [2, 0, 3, 0]));
    assert_eq!(["flaky", "hopeless", "panics"].map(|name| bench.n_runs(name)), [3, 3, 1]);
    let messages: Vec<&str> =
        summary.failures.iter().map(|failed| failed.failure.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "not yet",
            "the task panicked: told to panic",
            "task `scripted` did not write its output `out`"
        ]
    );
}

#[tokio::test]
async fn without_keep_going_nothing_new_starts_after_a_failure() {
    let mut bench = Bench::new();
    bench.node("bad", &[], json!({"act": "fail"})).execution_mut().priority = 1;
    bench.node("later", &[], json!({"text": "later"}));
    let options = Options { keep_going: false, n_cpu: 1, ..options() };
    let engine = bench.engine().await;
    let summary = engine.run(&bench.pipeline, options, &Stop::default()).await.unwrap();
    assert_eq!((summary.state, counts(&summary)), (RunState::Failed, [0, 0, 1, 1]));
}

#[tokio::test]
async fn targets_leave_the_rest_alone() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({}));
    bench.node("b", &["a"], json!({}));
    bench.node("c", &[], json!({"text": "c", "act": "fail"}));
    let targets = Targets::Named(vec!["b".to_owned()]);
    let engine = bench.engine().await;
    let asked = Options { targets, ..options() };
    let summary = engine.run(&bench.pipeline, asked, &Stop::default()).await.unwrap();
    assert_eq!((summary.state, summary.nodes.total), (RunState::Done, 2));
    let targets = Targets::Named(vec!["nothing".to_owned()]);
    let asked = Options { targets, ..options() };
    let error = engine.run(&bench.pipeline, asked, &Stop::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "target `nothing` is no node of pipeline `test`");
}

#[tokio::test]
async fn equal_nodes_run_once() {
    let mut bench = Bench::new();
    for name in ["a", "b", "c"] {
        bench.node(name, &[], json!({"text": "same"}));
    }
    let summary = bench.run().await;
    assert_eq!(counts(&summary), [1, 2, 0, 0]);
    let n_runs: usize = ["a", "b", "c"].iter().map(|name| bench.n_runs(name)).sum();
    assert_eq!(n_runs, 1);
}

/// Asks the run to stop as soon as `node` runs.
struct StopAt {
    node: &'static str,
    stop: Stop,
    n: u8,
}

impl Observer for StopAt {
    fn observe(&self, event: &RunEvent) {
        if matches!(event, RunEvent::Started { node, .. } if node == self.node) {
            (0..self.n).for_each(|_| self.stop.request());
        }
    }
}

#[tokio::test]
async fn a_stopped_run_resumes() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({}));
    bench.node("b", &["a"], json!({"act": "wait"}));
    bench.node("c", &["b"], json!({}));
    let stop = Stop::default();
    let observer = Arc::new(StopAt { node: "b", stop: stop.clone(), n: 1 });
    let engine = bench.engine().await;
    let asked = Options { observer, ..options() };
    let summary = engine.run(&bench.pipeline, asked, &stop).await.unwrap();
    assert_eq!((summary.state, summary.nodes.cancelled), (RunState::Cancelled, 2));
    assert_eq!(summary.nodes.ran, 1);
    bench.set("b", "act", json!(""));
    let plan = bench.plan().await;
    let last = "cancelled".to_owned();
    assert_eq!(plan["b"].1, Some(Reason::Unfinished { last, message: Some("cancelled".into()) }));
    assert_eq!(counts(&bench.run().await), [2, 1, 0, 0]);
}

#[tokio::test]
async fn a_second_stop_does_not_wait() {
    let mut bench = Bench::new();
    bench.node("deaf", &[], json!({"act": "slow:60000"}));
    let stop = Stop::default();
    let observer = Arc::new(StopAt { node: "deaf", stop: stop.clone(), n: 2 });
    let engine = bench.engine().await;
    let start = Instant::now();
    let asked = Options { observer, ..options() };
    let summary = engine.run(&bench.pipeline, asked, &stop).await.unwrap();
    assert_eq!(summary.state, RunState::Cancelled);
    assert!(start.elapsed() < Duration::from_mins(1), "it waited for the task");
}

#[tokio::test]
async fn parked_nodes_wait_for_an_operator() {
    let mut bench = Bench::new();
    bench.node("gate", &[], json!({"act": "park"}));
    bench.node("after", &["gate"], json!({}));
    let summary = bench.run().await;
    assert_eq!((summary.state, summary.nodes.parked), (RunState::Parked, 1));
    assert_eq!(summary.failures[0].failure, Failure::parked("needs a decision"));
    bench.set("gate", "act", json!(""));
    assert_eq!(bench.run().await.state, RunState::Done);
}

#[tokio::test]
async fn a_timeout_stops_the_attempt() {
    let mut bench = Bench::new();
    for (name, stall) in [("slow", false), ("stuck", true)] {
        let node = bench.node(name, &[], json!({"act": "wait", "text": name}));
        let limit = Some(Duration::from_millis(150));
        let how = node.execution_mut();
        (how.timeout, how.stall_timeout) = if stall { (None, limit) } else { (limit, None) };
        how.retry.attempts_max = 1;
    }
    let summary = bench.run().await;
    let messages: Vec<&str> =
        summary.failures.iter().map(|failed| failed.failure.message.as_str()).collect();
    assert_eq!(messages, ["took longer than its timeout of 150ms", "made no progress for 150ms"]);
}

#[tokio::test]
async fn checkpoints_outlive_attempts_and_go_with_success() {
    let mut bench = Bench::new();
    bench.node("steps", &[], json!({"act": "steps:4"}));
    let summary = bench.run().await;
    assert_eq!((summary.state, bench.n_runs("steps")), (RunState::Done, 2));
    let engine = bench.engine().await;
    let lines = engine.logs("", "steps", Lines::Last(1)).await.unwrap();
    assert_eq!(lines[0].text, "from 5");
}

#[tokio::test]
async fn damage_is_quarantined_and_the_node_runs_again() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "precious"}));
    bench.node("b", &["a"], json!({"keep_inputs": true}));
    let first = bench.run().await;
    let file = first.outputs["a"]["out"].path.join("text");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&file, "pr3cious").unwrap();
    let plan = bench.plan().await;
    assert!(matches!(&plan["a"].1, Some(Reason::Damaged { .. })), "{plan:?}");
    let second = bench.run().await;
    assert_eq!((second.state, counts(&second)), (RunState::Done, [1, 1, 0, 0]));
    assert_eq!(first.outputs, second.outputs);
    assert_eq!(text_of(&second, "a"), "precious");
    assert_eq!(fs::read_dir(bench.store_dir().join("quarantine")).unwrap().count(), 1);
    // A touched file with the right content is no damage.
    let file = fs::File::open(second.outputs["a"]["out"].path.join("text")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(counts(&bench.run().await), [0, 2, 0, 0]);
    // A lost artifact is made again.
    let path = &second.outputs["b"]["out"].path;
    crate::store::remove_tree(path).unwrap();
    assert_eq!(counts(&bench.run().await), [1, 1, 0, 0]);
}

#[tokio::test]
async fn lost_bits_are_found_before_a_node_reads_them() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "precious"}));
    bench.node("b", &["a"], json!({"keep_inputs": true}));
    let first = bench.run().await;
    let path = first.outputs["a"]["out"].path.join("text");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&path, "pr3cious").unwrap();
    fs::File::open(&path).unwrap().set_modified(modified).unwrap();
    // Nobody reads it.
    assert_eq!(counts(&bench.run().await), [0, 2, 0, 0]);
    bench.set("b", "text", json!("and b"));
    let second = bench.run().await;
    assert_eq!((second.state, counts(&second)), (RunState::Done, [2, 0, 0, 0]));
    assert_eq!(text_of(&second, "b"), "and bprecious");
    let detail = bench.engine().await.run_detail("last").await.unwrap();
    assert!(matches!(&detail.nodes[0].reason, Some(Reason::Damaged { .. })), "{detail:?}");
}

#[tokio::test]
async fn external_files_count_by_relative_path_and_content() {
    let mut bench = Bench::new();
    let corpus = bench.dir.path().join("corpus");
    fs::create_dir_all(corpus.join("sub")).unwrap();
    for i in 0..100 {
        fs::write(corpus.join(format!("sub/{i:03}.txt")), format!("{i} ")).unwrap();
    }
    let pattern = |dir: &Path| json!([format!("{}/**/*.txt", dir.display())]);
    bench.node("read", &[], json!({"files": pattern(&corpus)}));
    assert_eq!(counts(&bench.run().await), [1, 0, 0, 0]);
    // Moving the folder changes nothing.
    let moved = bench.dir.path().join("moved");
    fs::rename(&corpus, &moved).unwrap();
    bench.set("read", "files", pattern(&moved));
    assert_eq!(counts(&bench.run().await), [0, 1, 0, 0]);
    fs::write(moved.join("sub/007.txt"), "seven").unwrap();
    fs::write(moved.join("new.txt"), "new").unwrap();
    let plan = bench.plan().await;
    let Some(Reason::Changed { changes, .. }) = &plan["read"].1 else { panic!("{plan:?}") };
    let examples = vec!["+ new.txt".to_owned(), "~ sub/007.txt".to_owned()];
    let expected = Change::External { n_added: 1, n_removed: 0, n_changed: 1, examples };
    assert_eq!(changes[..], [expected]);
    fs::remove_dir_all(&moved).unwrap();
    let plan = bench.plan().await;
    assert!(matches!(plan["read"].1, Some(Reason::NoFiles { .. })), "{plan:?}");
}

#[tokio::test]
async fn hashing_is_told() {
    let mut bench = Bench::new();
    let corpus = bench.dir.path().join("corpus");
    fs::create_dir_all(&corpus).unwrap();
    for i in 0..100 {
        fs::write(corpus.join(format!("{i:03}.txt")), "ten bytes.").unwrap();
    }
    bench.node("read", &[], json!({"files": [format!("{}/*.txt", corpus.display())]}));
    let events = Arc::new(Events::default());
    let asked = Options { observer: Arc::<Events>::clone(&events), ..options() };
    bench.engine().await.run(&bench.pipeline, asked, &Stop::default()).await.unwrap();
    let events = events.0.lock().unwrap();
    let told: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            RunEvent::HashesFiles { n_files, size_bytes, read_bytes, .. } => {
                Some((*n_files, *size_bytes, *read_bytes))
            }
            _ => None,
        })
        .collect();
    assert_eq!((told[0], told[1]), ((100, Some(1000), 0), (100, Some(1000), 1000)));
}

#[tokio::test]
async fn a_file_that_changes_under_a_task_gives_a_new_key() {
    for act in ["touch", "touch_and_fail"] {
        let mut bench = Bench::new();
        let file = bench.dir.path().join("data.txt");
        fs::write(&file, "before").unwrap();
        bench.node("read", &[], json!({"files": [file], "act": act}));
        let summary = bench.run().await;
        assert_eq!((summary.state, bench.n_runs("read")), (RunState::Done, 2), "{act}");
        assert_eq!(text_of(&summary, "read"), "changed under the task");
        assert_eq!(counts(&bench.run().await), [0, 1, 0, 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_runs_share_the_work() {
    let mut bench = Bench::new();
    for i in 0..12 {
        bench.node(&format!("n{i}"), &[], json!({"text": i.to_string(), "act": "slow:5"}));
    }
    let needs: Vec<String> = (0..12).map(|i| format!("n{i}")).collect();
    let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
    bench.node("last", &needs, json!({"keep_inputs": true, "act": "slow:30"}));
    let (a, b) = (bench.engine().await, bench.engine().await);
    let stop = Stop::default();
    let runs = tokio::join!(
        a.run(&bench.pipeline, options(), &stop),
        b.run(&bench.pipeline, options(), &stop)
    );
    let (first, second) = (runs.0.unwrap(), runs.1.unwrap());
    assert_eq!((first.state, second.state), (RunState::Done, RunState::Done));
    assert_eq!(first.outputs, second.outputs);
    assert_eq!(first.nodes.ran + second.nodes.ran, 13);
    for name in needs.iter().chain(&["last"]) {
        assert_eq!(bench.n_runs(name), 1, "{name}");
    }
}

/// Leaves a run in the ledger as a killed process would.
pub(super) async fn killed_run(bench: &Bench) {
    let engine = bench.engine().await;
    let (stop, events) = (Stop::default(), Arc::new(Events::default()));
    let observer = Arc::<Events>::clone(&events);
    let run = engine.run(&bench.pipeline, Options { observer, ..options() }, &stop);
    let started = async {
        let is_start = |event: &RunEvent| matches!(event, RunEvent::Started { .. });
        while !events.0.lock().unwrap().iter().any(is_start) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        _ = run => panic!("the run should not end by itself"),
        () = started => {}
    }
    drop(engine);
    // The process still lives, so its start time is made that of another one.
    let mut database = crate::ledger::Database::connect(&bench.location()).await.unwrap();
    database.script("UPDATE owner SET pid_started = pid_started + 1").await.unwrap();
}

#[tokio::test]
async fn a_killed_run_is_taken_over_at_once() {
    let mut bench = Bench::new();
    bench.node("long", &[], json!({"act": "slow:40"}));
    killed_run(&bench).await;
    let engine = bench.engine().await;
    assert_eq!(engine.runs(1).await.unwrap()[0].state, RunState::Abandoned);
    let start = Instant::now();
    let summary = engine.run(&bench.pipeline, options(), &Stop::default()).await.unwrap();
    assert_eq!((summary.state, counts(&summary)), (RunState::Done, [1, 0, 0, 0]));
    assert!(start.elapsed() < Duration::from_mins(1), "it waited for the lease");
    let node = engine.node_detail("", "long").await.unwrap();
    let states: Vec<&str> = node.attempts.iter().map(|attempt| attempt.state.as_str()).collect();
    assert_eq!(states, ["lost", "done"]);
    let last = "lost".to_owned();
    assert_eq!(node.node.reason, Some(Reason::Unfinished { last, message: None }));
}

#[tokio::test]
async fn stale_publish_is_refused() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"act": "park"}));
    bench.run().await;
    let (old, new) = (bench.engine().await, bench.engine().await);
    let plan = new.plan(&bench.pipeline, &Targets::All, &[], &Machine::default()).await.unwrap();
    let key = plan.nodes[0].key.unwrap();
    let run = new.find_run("").await.unwrap();
    let writer = |engine: &'static Engine, lease_until_us, sequence| Writer {
        owner: &engine.owner,
        run: Box::leak(run.clone().into_boxed_str()),
        store: engine.store.id(),
        lease_until_us,
        sequence,
        peak_memory_bytes: 0,
    };
    let (old, new): (&'static Engine, &'static Engine) =
        (Box::leak(Box::new(old)), Box::leak(Box::new(new)));
    for engine in [old, new] {
        engine.ledger.register(&engine.owner, &engine.build).await.unwrap();
    }
    let claim = |epoch, stale_lease_us| {
        let claim = Claim { key, epoch, stale_lease_us, node: "a".to_owned() };
        Batch { claims: BTreeMap::from([(key, claim)]), ..Batch::default() }
    };
    let publish = |epoch| {
        let (outputs, metrics) = (BTreeMap::new(), BTreeMap::new());
        let peak_memory_bytes = None;
        let publish =
            Publish { key, epoch, outputs, metrics, peak_memory_bytes, drops_items: true };
        Batch { publishes: BTreeMap::from([(key, publish)]), ..Batch::default() }
    };
    let granted = old.ledger.commit(&writer(old, 77, 1), &claim(1, None)).await.unwrap();
    assert_eq!(granted.claimed[&key], 2);
    // The same claim sent again is found granted; another one is too late.
    let again = old.ledger.commit(&writer(old, 77, 1), &claim(1, None)).await.unwrap();
    assert_eq!(again.claimed[&key], 2);
    let late = new.ledger.commit(&writer(new, 99, 1), &claim(1, None)).await.unwrap();
    assert!(late.claimed.is_empty());
    let wrong = new.ledger.commit(&writer(new, 99, 2), &claim(2, Some(76))).await.unwrap();
    assert!(wrong.claimed.is_empty());
    let stolen = new.ledger.commit(&writer(new, 99, 3), &claim(2, Some(77))).await.unwrap();
    assert_eq!(stolen.claimed[&key], 3);
    let stale = old.ledger.commit(&writer(old, 99, 2), &publish(2)).await.unwrap();
    assert!(stale.published.is_empty());
    let heartbeat = Batch { lease_until_us: Some(200), ..Batch::default() };
    let held = old.ledger.commit(&writer(old, 99, 3), &heartbeat).await.unwrap().held.unwrap();
    assert!(held.is_empty());
    let fresh = new.ledger.commit(&writer(new, 99, 4), &publish(3)).await.unwrap();
    assert!(fresh.published.contains(&key));
}

#[tokio::test]
async fn trouble_is_named() {
    let bench = Bench::new();
    let open = |dir: PathBuf| async move {
        Engine::open(Settings::new(dir)).await.err().map(|error| (error.is_trouble(), error))
    };
    let file = bench.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let (_, error) = open(file).await.unwrap();
    assert!(matches!(error, Error::Store(_)), "{error}");

    let dir = bench.store_dir();
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("ledger.db"), "this is no database, and it is long enough to be read")
        .unwrap();
    let (is_trouble, error) = open(dir.clone()).await.unwrap();
    assert!(is_trouble && matches!(error, Error::Ledger(crate::ledger::Error::Damaged { .. })));
    fs::remove_file(dir.join("ledger.db")).unwrap();
    assert!(open(dir.clone()).await.is_none());

    let location = Location::Sqlite(dir.join("ledger.db"));
    let mut database = crate::ledger::Database::connect(&location).await.unwrap();
    database.script("INSERT INTO schema_version VALUES (99, 'later', 0)").await.unwrap();
    let (_, error) = open(dir.clone()).await.unwrap();
    let message = error.to_string();
    assert!(message.starts_with("the ledger has schema version 99; this program knows up to "));

    fs::write(dir.join("version"), "2\n").unwrap();
    let (_, error) = open(dir).await.unwrap();
    assert!(error.to_string().ends_with("has layout version 2; this program knows up to 1"));
}

#[tokio::test]
async fn looking_makes_nothing() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "a"}));
    let dir = bench.dir.path().join("nothing");
    let engine = Engine::look(Settings::new(&dir)).await.unwrap();
    let plan = engine.plan(&bench.pipeline, &Targets::All, &[], &Machine::default()).await.unwrap();
    assert_eq!(plan.count(PlannedState::Run), 1);
    assert!(engine.runs(9).await.unwrap().is_empty());
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_read_only_ledger_is_read_with_its_log() {
    let mut bench = Bench::new();
    bench.node("a", &[], json!({"text": "a"}));
    let engine = Engine::open(Settings::new(bench.store_dir())).await.unwrap();
    let stop = Stop::default();
    let summary = engine.run(&bench.pipeline, Options::default(), &stop).await.unwrap();
    // The ledger is open, so what was written last is in its log only.
    let path = bench.store_dir().join("ledger.db");
    let location = Location::Sqlite(path.clone());
    let mut looked = Engine::look(Settings::new(bench.store_dir())).await.unwrap();
    let clock = looked.clock.clone();
    let ledger = Ledger::read_as_it_is(&path, &location, &clock).await.unwrap();
    looked.ledger = Arc::new(ledger);
    assert_eq!(looked.runs(9).await.unwrap()[0].id, summary.run);
    drop(engine);
    let ledger = Ledger::read_as_it_is(&path, &location, &clock).await.unwrap();
    assert!(ledger.is_read_only());
    looked.ledger = Arc::new(ledger);
    assert_eq!(looked.runs(9).await.unwrap()[0].id, summary.run);
}

#[tokio::test]
async fn any_edit_reruns_exactly_the_downstream_closure() {
    // A diamond with a tail; each node carries its inputs' bytes on.
    let edges: [(&str, &[&str]); 6] = [
        ("a", &[]),
        ("b", &["a"]),
        ("c", &["a"]),
        ("d", &["b", "c"]),
        ("e", &["d"]),
        ("f", &["c"]),
    ];
    let mut bench = Bench::new();
    for (name, needs) in edges {
        bench.node(name, needs, json!({"text": name, "keep_inputs": true}));
    }
    bench.run().await;
    for (i, (edited, _)) in edges.iter().enumerate() {
        // Resources, priority, timeouts, retries, places and unkeyed params are no edit.
        let node = &mut bench.pipeline.nodes[i];
        let how = node.execution_mut();
        how.resources.cpu = 2;
        how.priority = 7;
        how.timeout = Some(Duration::from_secs(99));
        node.place.line = 1000;
        assert_eq!(bench.run().await.nodes.ran, 0);
        bench.set(edited, "text", json!(format!("{edited}!")));
        let mut closure = vec![*edited];
        for (name, needs) in edges {
            if needs.iter().any(|need| closure.contains(need)) {
                closure.push(name);
            }
        }
        let plan = bench.plan().await;
        let planned: Vec<&str> = plan
            .iter()
            .filter(|(_, (state, _))| *state != PlannedState::Cached)
            .map(|(name, _)| name.as_str())
            .collect();
        closure.sort_unstable();
        assert_eq!(planned, closure);
        assert_eq!(bench.run().await.nodes.ran, closure.len());
    }
}
