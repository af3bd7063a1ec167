//! Attempts in processes of their own: the same results, and crashes that end attempts, not runs.

use std::time::Instant;

use super::*;
use crate::executor::{Executor, Launcher, serve};
use crate::task::{FailureKind, Item, ItemContext};

/// Set in the processes of attempts, which are this very program.
const IS_ATTEMPT: &str = "SBP_TEST_IS_ATTEMPT";

/// Params of the task, which does something drastic at a certain step.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Deed {
    /// What happens at the third of six steps: `segfault`, `abort`, `allocate`, `panic`, `exit`,
    /// `kill_once`, `kill_server_once`, `look`, `park`, `deaf`, or nothing.
    act: String,
    scale: f64,
    n_items: u64,
    files: Vec<String>,
    /// Where a process writes its id.
    note: String,
}

struct Drastic;

impl Task for Drastic {
    const KIND: &'static str = "drastic";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "does something drastic";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::many("in", "any", "anything")];
    const OUTPUTS: &'static [Port] = &[Port::one("out", "any", "the text")];
    const UNKEYED: &'static [&'static str] = &["act", "files", "note"];
    const ITEM_STAGES: u32 = 1;
    type Params = Deed;

    fn external(params: &Deed) -> Vec<String> {
        params.files.clone()
    }

    fn run(ctx: &mut Context, params: &Deed, inputs: &Inputs) -> Result<Outputs, Failure> {
        let (mut first, mut sum) = (0, 0.0_f64);
        if let Some(checkpoint) = ctx.latest_checkpoint()? {
            first = checkpoint.step;
            let text = fs::read_to_string(checkpoint.dir.join("sum"))?;
            sum = f64::from_bits(text.parse().expect("a checkpoint is whole"));
        }
        ctx.info(format!("from step {first}"));
        for step in first + 1..=6 {
            sum = sum.mul_add(params.scale, step as f64);
            ctx.save_checkpoint(step, |dir| fs::write(dir.join("sum"), sum.to_bits().to_string()))?;
            ctx.progress(step, 6, "steps");
            ctx.metric("sum", step, if step == 2 { f64::NAN } else { sum });
            if step == 3 {
                if !params.note.is_empty() && params.act != "kill_in_item" {
                    fs::write(&params.note, std::process::id().to_string())?;
                }
                ctx.warn(format!("now: {}", params.act));
                act(ctx, &params.act, first)?;
            }
        }
        let items: Vec<Item<u64>> =
            (0..params.n_items).map(|i| Item::new(format!("{i}"), &i, i)).collect();
        let square = |i: &u64, _: &ItemContext<'_>| {
            if params.act == "kill_in_item"
                && !params.note.is_empty()
                && !Path::new(&params.note).exists()
            {
                fs::write(&params.note, "")?;
                kill_this_process();
            }
            Ok(i * i)
        };
        for result in ctx.items("square", "numbers", items, square)? {
            sum += result?.value as f64;
        }
        let mut text = format!("{} {} ", sum.to_bits(), ctx.n_threads());
        for input in inputs.many("in") {
            text.extend([input.node.as_str(), " ", &input.digest.to_string()]);
        }
        for file in ctx.external() {
            text.extend([file.relative.as_str(), " ", &fs::read_to_string(&file.path)?]);
        }
        fs::write(ctx.out("out")?.join("text"), text)?;
        Ok(Outputs::default().metric("sum", sum).metric("nothing", 0.1 + 0.2))
    }
}

fn act(ctx: &Context, act: &str, first: u64) -> Result<(), Failure> {
    match act {
        "segfault" => {
            let nowhere = std::hint::black_box(8 as *const libc::c_char);
            // SAFETY: It is not safe, and must end this process.
            let length = unsafe { libc::strlen(nowhere) };
            ctx.info(length.to_string());
        }
        "abort" => std::process::abort(),
        "allocate" => {
            let sum: u64 = vec![1_u8; 4 << 30].iter().map(|x| u64::from(*x)).sum();
            ctx.info(sum.to_string());
        }
        "panic" => panic!("told to panic"),
        // SAFETY: It ends this process, which owns nothing that must be given back.
        "exit" => unsafe { libc::_exit(7) },
        "kill_once" if first == 0 => kill_this_process(),
        "kill_server_once" if first == 0 => {
            let server = rustix::process::getppid().expect("a copy has a parent");
            rustix::process::kill_process(server, rustix::process::Signal::KILL)
                .map_err(std::io::Error::from)?;
            std::thread::sleep(Duration::from_mins(1));
        }
        "look" => {
            let dir = ctx.scratch()?.parent().expect("a scratch folder lies in the attempt's");
            assert_eq!(std::env::var_os("SBP_ATTEMPT_DIR").as_deref(), Some(dir.as_os_str()));
            let wanted = format!("SBP_ATTEMPT_DIR={}", dir.display());
            let environment = fs::read("/proc/self/environ")?;
            assert!(environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()));
        }
        "park" if !ctx.is_approved() => return Err(Failure::parked("needs a decision")),
        "wait" => loop {
            ctx.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(2));
        },
        "deaf" => loop {
            std::thread::sleep(Duration::from_millis(50));
        },
        _ => {}
    }
    Ok(())
}

fn kill_this_process() {
    // SAFETY: It ends this process, which owns nothing that must be given back.
    unsafe { libc::raise(libc::SIGKILL) };
}

fn registry() -> Registry {
    Registry::default().with::<Drastic>()
}

/// What the process of an attempt runs; nothing otherwise.
#[test]
fn serves_an_attempt() {
    if std::env::var_os(IS_ATTEMPT).is_some() {
        serve(&registry()).unwrap();
    }
}

fn add<'b>(bench: &'b mut Bench, name: &str, needs: &[&str], deed: &Value) -> &'b mut Node {
    let task = Arc::clone(registry().get("drastic").unwrap());
    let node = bench.node(name, needs, json!({}));
    node.params = task.checked(deed).unwrap().params;
    node.external = task.checked(&node.params).unwrap().external;
    node.task = task;
    node.execution_mut().retry.attempts_max = 2;
    node
}

fn processes() -> Options {
    let here = "run::tests::processes::serves_an_attempt";
    let launcher = Launcher::new(["--exact", here, "--nocapture", "--test-threads=1"]);
    let launcher = launcher.env(IS_ATTEMPT, "1").env("RUST_BACKTRACE", "0");
    Options { executor: Executor::Process, launcher, ..options() }
}

async fn run_with(bench: &Bench, options: Options) -> RunSummary {
    bench.engine().await.run(&bench.pipeline, options, &Stop::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_gives_what_a_thread_gives() {
    let make = || {
        let mut bench = Bench::new();
        let file = bench.dir.path().join("data.txt");
        fs::write(&file, "outside").unwrap();
        // The first is a number that JSON readers are known to get wrong in the last place.
        add(&mut bench, "a", &[], &json!({"scale": 1.100_000_000_000_000_3, "n_items": 9}));
        add(&mut bench, "b", &["a"], &json!({"scale": 0.1, "files": [file]}))
            .execution_mut()
            .resources
            .cpu = 2;
        add(&mut bench, "gate", &["a"], &json!({"act": "park", "scale": 3.0}));
        bench
    };
    let (inline, process) = (make(), make());
    let reference = run_with(&inline, options()).await;
    let summary = run_with(&process, processes()).await;
    assert_eq!(reference.state, RunState::Parked, "{:?}", reference.failures);
    assert_eq!(summary.state, RunState::Parked, "{:?}", summary.failures);
    let digests = |summary: &RunSummary| -> Vec<(String, Digest)> {
        let outputs = summary.outputs.iter();
        outputs.map(|(name, ports)| (name.clone(), ports["out"].digest)).collect()
    };
    assert_eq!(digests(&reference), digests(&summary));
    assert_eq!(reference.failures[0].failure, summary.failures[0].failure);
    let (inline_engine, engine) = (inline.engine().await, process.engine().await);
    for node in ["a", "b"] {
        let points = |points: Vec<crate::ledger::MetricPoint>| -> Vec<_> {
            points.into_iter().map(|point| (point.name, point.step, point.value)).collect()
        };
        let expected = points(inline_engine.metrics("", node).await.unwrap());
        assert_eq!(points(engine.metrics("", node).await.unwrap()), expected);
        assert_eq!(expected.len(), 6);
        let of = |detail: crate::ledger::NodeDetail| detail.attempts[0].metrics.clone();
        let expected = of(inline_engine.node_detail("", node).await.unwrap());
        assert_eq!(of(engine.node_detail("", node).await.unwrap()), expected);
        let lines = engine.logs("", node, Lines::Last(99)).await.unwrap();
        assert!(lines.iter().any(|line| line.text == "from step 0"), "{lines:?}");
    }
    assert_eq!(fs::read_dir(process.store_dir().join("checkpoints")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(process.store_dir().join("work")).unwrap().count(), 0);
    // What one made the other finds.
    assert_eq!(run_with(&process, options()).await.nodes.cached, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_ends_the_attempt_and_not_the_run() {
    let mut bench = Bench::new();
    let deeds = ["segfault", "abort", "allocate", "panic", "exit"];
    for (i, deed) in deeds.iter().enumerate() {
        add(&mut bench, deed, &[], &json!({"act": deed, "scale": i}))
            .execution_mut()
            .resources
            .memory_bytes = (*deed == "allocate").then_some(1 << 30);
    }
    add(&mut bench, "after", &["segfault"], &json!({}));
    add(&mut bench, "fine", &[], &json!({"scale": 99.0}));
    let summary = run_with(&bench, processes()).await;
    assert_eq!((summary.state, counts(&summary)), (RunState::Failed, [1, 0, 5, 1]));
    let said = |node: &str| {
        let failed = summary.failures.iter().find(|failed| failed.node == node).unwrap();
        assert_eq!(failed.failure.kind, FailureKind::Permanent, "{node}");
        (failed.failure.message.clone(), failed.failure.help.clone().unwrap_or_default())
    };
    for (node, ends) in [
        ("segfault", "was ended by signal 11 (SIGSEGV)"),
        ("abort", "was ended by signal 6 (SIGABRT)"),
        ("allocate", "was ended by signal 6 (SIGABRT)"),
        ("exit", "ended with exit code 7"),
    ] {
        let (message, _) = said(node);
        let start = format!("the attempt's process {ends} before it was done; it used up to ");
        assert!(message.starts_with(&start), "{message}");
        assert!(message.contains(&format!("now: {node}")), "{message}");
    }
    assert!(said("allocate").0.contains("memory allocation of"), "{:?}", said("allocate"));
    assert!(
        said("allocate").1.contains("may have 1024 MiB; raise `mem`"),
        "{:?}",
        said("allocate")
    );
    assert_eq!(said("panic").0, "the task panicked: told to panic");
    let engine = bench.engine().await;
    let detail = engine.node_detail("", "abort").await.unwrap();
    let peak = detail.attempts[0].peak_memory_bytes.unwrap();
    assert!(peak > 1 << 20, "{peak}");
    assert_eq!(fs::read_dir(bench.store_dir().join("work")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_goes_on_from_its_checkpoint() {
    let mut bench = Bench::new();
    add(&mut bench, "a", &[], &json!({"scale": 0.7, "act": "kill_once"}));
    let mut reference = Bench::new();
    add(&mut reference, "a", &[], &json!({"scale": 0.7}));
    let expected = run_with(&reference, options()).await;
    let summary = run_with(&bench, processes()).await;
    assert_eq!(summary.state, RunState::Done, "{:?}", summary.failures);
    assert_eq!(expected.outputs["a"]["out"].digest, summary.outputs["a"]["out"].digest);
    let engine = bench.engine().await;
    let detail = engine.node_detail("", "a").await.unwrap();
    let first = &detail.attempts[0];
    let message = first.failure.as_ref().map(|failure| failure.message.clone());
    assert!(message.unwrap_or_default().contains("signal 9 (SIGKILL)"), "{first:?}");
    let lines = engine.logs("", "a", Lines::Last(99)).await.unwrap();
    assert!(lines.iter().any(|line| line.text == "from step 3"), "{lines:?}");
}

/// Whoever looks for what a killed run left behind knows it by its folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_known_by_its_folder() {
    let mut bench = Bench::new();
    for i in 0..3 {
        add(&mut bench, &format!("n{i}"), &[], &json!({"scale": i, "act": "look"}));
    }
    let summary = run_with(&bench, processes()).await;
    assert_eq!(summary.state, RunState::Done, "{:?}", summary.failures);
}

/// Every attempt under way ends with the fork server, and the next one gets another server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_fork_server_costs_attempts_and_nothing_else() {
    let mut bench = Bench::new();
    let note = bench.dir.path().join("note");
    add(&mut bench, "a", &[], &json!({"scale": 0.7, "act": "kill_server_once", "note": note}));
    add(&mut bench, "b", &["a"], &json!({"scale": 0.3}));
    let mut reference = Bench::new();
    add(&mut reference, "a", &[], &json!({"scale": 0.7}));
    add(&mut reference, "b", &["a"], &json!({"scale": 0.3}));
    let expected = run_with(&reference, options()).await;
    let run = tokio::spawn(async move { (run_with(&bench, processes()).await, bench) });
    let pid = stop_when(&note, &Stop::default(), 0).await;
    let (summary, bench) =
        tokio::time::timeout(Duration::from_secs(30), run).await.expect("it hangs").unwrap();
    assert_eq!(summary.state, RunState::Done, "{:?}", summary.failures);
    for node in ["a", "b"] {
        assert_eq!(expected.outputs[node]["out"].digest, summary.outputs[node]["out"].digest);
    }
    assert!(!is_alive(&pid), "process {pid} outlived its server");
    let engine = bench.engine().await;
    let detail = engine.node_detail("", "a").await.unwrap();
    let failure = detail.attempts[0].failure.as_ref().unwrap();
    assert_eq!(failure.kind, FailureKind::Transient);
    assert!(failure.message.contains("gone, and they with it"), "{}", failure.message);
    let lines = engine.logs("", "a", Lines::Last(99)).await.unwrap();
    assert!(lines.iter().any(|line| line.text == "from step 3"), "{lines:?}");
}

/// The run's own process lives on and prolongs the leases of what it holds, so the items of a process
/// that was killed must be freed by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_a_killed_process_are_taken_up_again() {
    let mut bench = Bench::new();
    let note = bench.dir.path().join("note");
    add(&mut bench, "a", &[], &json!({"act": "kill_in_item", "note": note, "n_items": 12}));
    let run = Box::pin(run_with(&bench, processes()));
    let summary = tokio::time::timeout(Duration::from_mins(1), run).await.expect("it hangs");
    assert_eq!((summary.state, summary.nodes.ran), (RunState::Done, 1), "{:?}", summary.failures);
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Asks the run to stop `n` times once something is written to the file `note`; gives that.
async fn stop_when(note: &Path, stop: &Stop, n: u8) -> String {
    let text = loop {
        match fs::read_to_string(note) {
            Ok(text) if !text.is_empty() => break text,
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    (0..n).for_each(|_| stop.request());
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_stop_with_their_run() {
    for (act, n) in [("wait", 1), ("deaf", 2)] {
        let mut bench = Bench::new();
        let note = bench.dir.path().join("note");
        add(&mut bench, "a", &[], &json!({"act": act, "note": note}));
        let (stop, start) = (Stop::default(), Instant::now());
        let engine = bench.engine().await;
        let (summary, pid) = tokio::join!(
            engine.run(&bench.pipeline, processes(), &stop),
            stop_when(&note, &stop, n)
        );
        let summary = summary.unwrap();
        assert_eq!(summary.state, RunState::Cancelled, "{:?}", summary.failures);
        // A polite stop waits for the process; after the second one it is killed without waiting.
        while is_alive(&pid) {
            assert!(start.elapsed() < Duration::from_secs(20), "process {pid} lives on ({act})");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.set("a", "act", json!(""));
        let resumed = run_with(&bench, processes()).await;
        assert_eq!((resumed.state, resumed.nodes.ran), (RunState::Done, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_how_it_runs() {
    let mut bench = Bench::new();
    let here = std::process::id().to_string();
    let note = |name: &str| bench.dir.path().join(name);
    let (inline, process) = (note("inline"), note("process"));
    add(&mut bench, "inline", &[], &json!({"note": inline, "scale": 1})).execution_mut().executor =
        Some(Executor::Inline);
    add(&mut bench, "process", &[], &json!({"note": process, "scale": 2}))
        .execution_mut()
        .executor = Some(Executor::Process);
    let defaults = processes();
    assert_eq!(run_with(&bench, defaults).await.state, RunState::Done);
    assert_eq!(fs::read_to_string(inline).unwrap(), here);
    assert_ne!(fs::read_to_string(process).unwrap(), here);
}
