//! What the world does to a run of weeks: clocks that jump, connections that break, servers that are
//! started anew, loops that are busy, programs that say strange things.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::clock::Clock;
use crate::exec::Exec;

async fn engine_with(bench: &Bench, change: impl FnOnce(&mut Settings)) -> Engine {
    // The ledger is the one of all engines of this bench.
    drop(bench.engine().await);
    let mut settings = Settings::new(bench.store_dir());
    settings.ledger = fs::read_to_string(bench.dir.path().join("url")).ok();
    change(&mut settings);
    Engine::open(settings).await.unwrap()
}

/// A clock that goes on like any other, but is set an hour forward or back every few milliseconds.
struct JumpingClock {
    clock: Clock,
    stop: Arc<AtomicBool>,
}

impl JumpingClock {
    fn new(seed: u64) -> Self {
        let now_us = Clock::default().now_us();
        let (clock, hand) = Clock::manual(now_us);
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut turn = seed;
            while !is_over.load(Ordering::Relaxed) {
                turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let jump_us = ((turn >> 40) as i64 % 3 - 1) * 3_600_000_000;
                hand.store(Clock::default().now_us() + jump_us, Ordering::Release);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self { clock, stop }
    }
}

impl Drop for JumpingClock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_change_nothing() {
    let mut bench = Bench::new();
    for i in 0..10 {
        let node =
            bench.node(&format!("n{i}"), &[], json!({"text": format!("{i}"), "act": "slow:30"}));
        // Minutes by the clock, never reached by the work.
        let how = node.execution_mut();
        how.timeout = Some(Duration::from_mins(5));
        how.stall_timeout = Some(Duration::from_mins(5));
    }
    let flaky = bench.node("flaky", &[], json!({"text": "flaky", "act": "flaky:2"}));
    flaky.execution_mut().retry.backoff = Duration::from_millis(40);
    bench.node("last", &["n0", "n9", "flaky"], json!({"keep_inputs": true}));
    let clocks = [JumpingClock::new(1), JumpingClock::new(2)];
    let a = engine_with(&bench, |settings| settings.clock = clocks[0].clock.clone()).await;
    let b = engine_with(&bench, |settings| settings.clock = clocks[1].clock.clone()).await;
    let stop = Stop::default();
    let runs = async {
        tokio::join!(
            a.run(&bench.pipeline, options(), &stop),
            b.run(&bench.pipeline, options(), &stop)
        )
    };
    let runs = tokio::time::timeout(Duration::from_mins(1), Box::pin(runs))
        .await
        .expect("a run waits for ever");
    let (first, second) = (runs.0.unwrap(), runs.1.unwrap());
    assert_eq!((first.state, second.state), (RunState::Done, RunState::Done));
    assert_eq!(first.outputs, second.outputs);
    for i in 0..10 {
        assert_eq!(bench.n_runs(&format!("n{i}")), 1, "n{i} ran twice or was stopped by a limit");
    }
    assert_eq!((bench.n_runs("flaky"), bench.n_runs("last")), (3, 1));
}

/// A process stands still for longer than its lease, and another one takes its work over: what the
/// first one's attempt runs into then says nothing of the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_of_a_stale_attempt_does_not_count() {
    let mut bench = Bench::new();
    bench.node("late", &[], json!({"act": "late"}));
    bench.node("after", &["late"], json!({"keep_inputs": true}));
    let (a, b) = (bench.engine().await, bench.engine().await);
    let stop = Stop::default();
    let other = async {
        while bench.n_runs("late") == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // To the second run the first one's process is dead.
        let mut database = crate::ledger::Database::connect(&bench.location()).await.unwrap();
        database.script("UPDATE owner SET pid_started = pid_started + 1").await.unwrap();
        let second = b.run(&bench.pipeline, options(), &stop).await.unwrap();
        fs::write(bench.journal("late").with_extension("go"), "").unwrap();
        second
    };
    let (first, second) = tokio::join!(a.run(&bench.pipeline, options(), &stop), other);
    let first = first.unwrap();
    assert_eq!((second.state, counts(&second)), (RunState::Done, [2, 0, 0, 0]));
    assert_eq!((first.state, counts(&first)), (RunState::Done, [0, 2, 0, 0]));
    assert_eq!(first.outputs, second.outputs);
    assert_eq!((bench.n_runs("late"), bench.n_runs("after")), (2, 1));
    let engine = bench.engine().await;
    let detail = engine.node_detail(&first.run, "late").await.unwrap();
    let states: Vec<&str> = detail.attempts.iter().map(|attempt| attempt.state.as_str()).collect();
    assert_eq!(states, ["lost", "done"]);
    assert_eq!(
        engine.ledger.ask("SELECT count(*) FROM event WHERE kind = 'attempt_failed'").await,
        0
    );
}

/// Holds the run's loop up when an attempt starts, as hashing a large file would.
struct Busy(Duration);

impl Observer for Busy {
    fn observe(&self, event: &RunEvent) {
        if matches!(event, RunEvent::Started { .. }) {
            std::thread::sleep(self.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_loop_keeps_its_leases() {
    let mut bench = Bench::new();
    bench.node("slow", &[], json!({"act": "slow:5000"}));
    let lease = Duration::from_secs(1);
    let a = Arc::new(engine_with(&bench, |settings| settings.lease = lease).await);
    let b = engine_with(&bench, |settings| settings.lease = lease).await;
    let busy = Options { observer: Arc::new(Busy(Duration::from_secs(4))), ..options() };
    let pipeline = bench.pipeline.clone();
    let first = tokio::spawn(async move { a.run(&pipeline, busy, &Stop::default()).await });
    while bench.n_runs("slow") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let second = b.run(&bench.pipeline, options(), &Stop::default()).await.unwrap();
    let first = first.await.unwrap().unwrap();
    assert_eq!((first.state, second.state), (RunState::Done, RunState::Done));
    assert_eq!((first.nodes.ran, bench.n_runs("slow")), (1, 1), "the lease was taken over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strange_words_of_a_program_do_no_harm() {
    let mut bench = Bench::new();
    let script = r#"printf 'a\000b\n::sbp progress 18446744073709551615/1\n'
                   printf '::sbp metric x=1 step=18446744073709551615\n\\u0000\n\377\n'
                   printf 1 >$SBP_OUT_OUT/x; sleep 0.3; [ -z "$FAIL" ]"#;
    for (name, fail) in [("fine", ""), ("fails", "a\u{1}")] {
        let params = json!({"command": [script], "shell": true, "outputs": {"out": "any"},
            "env": {"FAIL": fail}});
        let exec = Registry::default().with::<Exec>();
        let task = exec.get("exec").unwrap();
        let node = bench.node(name, &[], json!({}));
        node.params = task.checked(&params).unwrap().params;
        node.task = task.with_own_ports(params.as_object().unwrap()).unwrap();
    }
    let summary = bench.run().await;
    assert_eq!((summary.state, counts(&summary)), (RunState::Failed, [1, 0, 1, 0]));
    let engine = bench.engine().await;
    let lines = engine.logs("", "fine", Lines::Last(9)).await.unwrap();
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["a\u{fffd}b", "\\u0000", "\u{fffd}"]);
    let detail = engine.node_detail("", "fine").await.unwrap();
    assert_eq!(detail.node.progress.unwrap().0, i64::MAX as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_replaced() {
    if std::env::var_os("SBP_TEST_POSTGRES").is_none() {
        println!("skipped: no PostgreSQL server in SBP_TEST_POSTGRES");
        return;
    }
    let mut bench = Bench::new();
    // Nothing but questions goes to the ledger while it sleeps.
    bench.node("slow", &[], json!({"act": "slow:3000"}));
    let engine = bench.engine().await;
    let pid = engine.ledger.ask("SELECT pg_backend_pid()::bigint").await;
    let cut_off = async {
        while bench.n_runs("slow") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut other = crate::ledger::Database::connect(&bench.location()).await.unwrap();
        let sql: &'static str = format!("SELECT pg_terminate_backend({pid})").leak();
        other.script(sql).await.unwrap();
    };
    let stop = Stop::default();
    let both = async { tokio::join!(engine.run(&bench.pipeline, options(), &stop), cut_off) };
    let (summary, ()) =
        tokio::time::timeout(Duration::from_secs(30), Box::pin(both)).await.expect("it hangs");
    assert_eq!(summary.unwrap().state, RunState::Done);
    assert_eq!(bench.n_runs("slow"), 1);
    assert_ne!(engine.ledger.ask("SELECT pg_backend_pid()::bigint").await, pid);
}

/// `SBP_TEST_RESTART` is a command that stops the server of `SBP_TEST_RESTART_URL` and starts it
/// again some time later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_be_started_anew_in_the_middle_of_a_run() {
    let (Ok(command), Ok(url)) =
        (std::env::var("SBP_TEST_RESTART"), std::env::var("SBP_TEST_RESTART_URL"))
    else {
        println!("skipped: no server to be started anew in SBP_TEST_RESTART");
        return;
    };
    let mut bench = Bench::new();
    for i in 0..60 {
        let needs = if i < 6 { Vec::new() } else { vec![format!("n{}", i - 6)] };
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        let params = json!({"text": format!("{i}"), "keep_inputs": true, "act": "slow:150"});
        bench.node(&format!("n{i}"), &needs, params);
    }
    let url = fresh_schema(&url, bench.dir.path()).await;
    fs::write(bench.dir.path().join("url"), &url).unwrap();
    let mut settings = Settings::new(bench.store_dir());
    settings.ledger = Some(url);
    let engine = Engine::open(settings).await.unwrap();
    let events = Arc::new(Events::default());
    let asked = Options { observer: Arc::<Events>::clone(&events), ..options() };
    let restart = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(900)).await;
            let command = command.clone();
            let run = move || Command::new("/bin/sh").args(["-c", &command]).output().unwrap();
            let output = tokio::task::spawn_blocking(run).await.unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    };
    let stop = Stop::default();
    let both = async { tokio::join!(engine.run(&bench.pipeline, asked, &stop), restart) };
    let (summary, ()) =
        tokio::time::timeout(Duration::from_mins(2), Box::pin(both)).await.expect("it hangs");
    let summary = summary.unwrap();
    assert_eq!((summary.state, counts(&summary)), (RunState::Done, [60, 0, 0, 0]));
    for i in 0..60 {
        assert_eq!(bench.n_runs(&format!("n{i}")), 1, "n{i}");
    }
    let trouble = |event: &RunEvent| matches!(event, RunEvent::LedgerTrouble { .. });
    assert!(events.0.lock().unwrap().iter().any(trouble), "the server was never away");
    assert_eq!(engine.ledger.ask("SELECT count(*) FROM attempt WHERE state <> 'done'").await, 0);
    let started = "SELECT count(*) FROM event WHERE kind = 'attempt_started'";
    assert_eq!(engine.ledger.ask(started).await, 60);
}

/// Writes other bytes into what it is given, as a disk or a careless person might meanwhile.
struct Spoiling;

impl Task for Spoiling {
    const KIND: &'static str = "spoiling";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "spoils its inputs, and passes them on";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = Scripted::INPUTS;
    const OUTPUTS: &'static [Port] = Scripted::OUTPUTS;
    const UNKEYED: &'static [&'static str] = Scripted::UNKEYED;
    type Params = Script;

    fn run(ctx: &mut Context, params: &Script, inputs: &Inputs) -> Result<Outputs, Failure> {
        use std::os::unix::fs::PermissionsExt as _;
        let file = inputs.many("in")[0].dir.join("text");
        if !params.act.is_empty() {
            let text = fs::read_to_string(&file)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
            fs::write(&file, text.to_uppercase())?;
        }
        fs::copy(&file, ctx.out("out")?.join("text"))?;
        Ok(Outputs::default())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_of_damaged_inputs_is_never_kept() {
    // Made by this run, or by the one before.
    for is_there in [false, true] {
        let mut bench = Bench::new();
        bench.node("a", &[], json!({"text": "some text"}));
        if is_there {
            assert_eq!(bench.run().await.state, RunState::Done);
        }
        let registry = Registry::default().with::<Spoiling>();
        let spoiling = Arc::clone(registry.get("spoiling").unwrap());
        bench.node("b", &["a"], json!({"act": "now"})).task = spoiling;
        let summary = bench.run().await;
        assert_eq!(summary.state, RunState::Failed);
        let failure = &summary.failures[0].failure;
        let expected = "what `a` gave it was damaged meanwhile: `text` has other content";
        assert!(failure.message.starts_with(expected), "{failure:?}");
        assert!(failure.help.as_deref().is_some_and(|help| help.contains("made anew")));
        bench.set("b", "act", json!(""));
        let summary = bench.run().await;
        assert_eq!((summary.state, summary.nodes.ran), (RunState::Done, 2), "{is_there}");
        assert!(text_of(&summary, "b").contains("some text"));
    }
}
