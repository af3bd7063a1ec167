//! A run that is killed at random moments, over and over: the driver's future is dropped, its tasks
//! stop where they are, and the next run takes over. Scheduler, ledger and store are the real ones.
//!
//! `SBP_TEST_KILLS` sets how many kills there are at least, `SBP_TEST_SEED` when they come.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::task::Item;

const N_NODES: u64 = 200;
const N_CPU: u32 = 3;

/// Whether the process that the tasks belong to is dead, and how many of them are still moving.
static IS_DEAD: AtomicBool = AtomicBool::new(false);
static N_MOVING: AtomicUsize = AtomicUsize::new(0);

/// A dead process does nothing more.
fn live() -> Result<(), Failure> {
    if IS_DEAD.load(Ordering::SeqCst) { Err(Failure::cancelled()) } else { Ok(()) }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Work {
    text: String,
    /// Steps with a checkpoint after each.
    n_steps: u64,
    /// Items besides.
    n_items: u64,
    journal: String,
}

struct Stepped;

struct Moving;

impl Drop for Moving {
    fn drop(&mut self) {
        N_MOVING.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Task for Stepped {
    const KIND: &'static str = "stepped";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "goes in steps";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::many("in", "any", "anything")];
    const OUTPUTS: &'static [Port] = &[Port::one("out", "any", "the text")];
    const UNKEYED: &'static [&'static str] = &["journal"];
    const ITEM_STAGES: u32 = 1;
    type Params = Work;

    fn run(ctx: &mut Context, params: &Work, inputs: &Inputs) -> Result<Outputs, Failure> {
        N_MOVING.fetch_add(1, Ordering::SeqCst);
        let _moving = Moving;
        let mut first = 0;
        let mut sum = 0_u64;
        if let Some(checkpoint) = ctx.latest_checkpoint()? {
            first = checkpoint.step;
            let text = fs::read_to_string(checkpoint.dir.join("sum"))?;
            sum = text.parse().map_err(|_| Failure::permanent("a checkpoint was cut off"))?;
        }
        for step in first + 1..=params.n_steps {
            live()?;
            sum = sum * 31 + step;
            ctx.save_checkpoint(step, |dir| {
                // Cut off in the middle of a file.
                fs::write(dir.join("sum"), &sum.to_string()[..1])?;
                live().map_err(|_| std::io::Error::other("killed"))?;
                fs::write(dir.join("sum"), sum.to_string())
            })?;
        }
        let items: Vec<Item<u64>> =
            (0..params.n_items).map(|i| Item::new(format!("{i}"), &(&params.text, i), i)).collect();
        let results = ctx.items("square", "numbers", items, |i, item| {
            live()?;
            fs::write(item.dir().join("square"), (i * i).to_string())?;
            live()?;
            Ok(i * i)
        })?;
        for result in results {
            let result = result?;
            let square = fs::read_to_string(result.dir.join("square"))?;
            assert_eq!(square, result.value.to_string());
            sum += result.value;
        }
        live()?;
        let mut text = format!("{} {sum}", params.text);
        for input in inputs.many("in") {
            let digest = Digest::of(&fs::read(input.dir.join("text"))?);
            text.extend([" ", &digest.short()]);
        }
        fs::write(ctx.out("out")?.join("text"), text)?;
        live()?;
        Ok(Outputs::default())
    }
}

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn world(seed: u64) -> Bench {
    let mut dice = Dice(seed);
    let mut bench = Bench::new();
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        // What is durable is not the question here, and thousands of syncs are slow on a disk.
        bench.dir = tempfile::tempdir_in(memory).unwrap();
    }
    let registry = Registry::default().with::<Stepped>();
    for index in 0..N_NODES {
        let needs: BTreeSet<u64> = (0..dice.roll(4).min(index)).map(|_| dice.roll(index)).collect();
        let needs: Vec<String> = needs.into_iter().map(|need| format!("n{need}")).collect();
        let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        let node = bench.node(&format!("n{index}"), &needs, json!({}));
        node.task = Arc::clone(registry.get("stepped").unwrap());
        let (n_steps, n_items) = (dice.roll(4), dice.roll(4));
        let params = json!({"text": format!("{index}"), "n_steps": n_steps, "n_items": n_items});
        node.params = node.task.checked(&params).unwrap().params;
        node.execution_mut().retry.attempts_max = 1;
    }
    bench
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Lets the run go on for a while and then kills it; gives the summary when it was faster.
async fn run_for(bench: &Bench, us: u64) -> Option<RunSummary> {
    let engine = bench.engine().await;
    let options = Options { n_cpu: N_CPU, ..Options::default() };
    let stop = Stop::default();
    let run = engine.run(&bench.pipeline, options, &stop);
    let ended = tokio::time::timeout(Duration::from_micros(us), run).await;
    IS_DEAD.store(true, Ordering::SeqCst);
    drop(engine);
    while N_MOVING.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    // This process lives, so its start time is made that of another one.
    let mut database = crate::ledger::Database::connect(&bench.location()).await.unwrap();
    database.script("UPDATE owner SET pid_started = pid_started + 1").await.unwrap();
    IS_DEAD.store(false, Ordering::SeqCst);
    ended.ok().map(Result::unwrap)
}

async fn count(bench: &Bench, sql: &'static str) -> i64 {
    let mut database = crate::ledger::Database::connect(&bench.location()).await.unwrap();
    database.fetch(sql, &[]).await.unwrap()[0].int(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_kills_lose_and_repeat_nothing() {
    let seed = number("SBP_TEST_SEED", std::process::id().into());
    let n_kills_min = number("SBP_TEST_KILLS", 20);
    println!("SBP_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let (mut n_kills, mut n_worlds) = (0, 0);
    let began = std::time::Instant::now();
    let reference = run_for(&world(seed), u64::MAX >> 20).await.unwrap();
    let took_us = began.elapsed().as_micros() as u64;
    assert_eq!(reference.state, RunState::Done, "{:?}", reference.failures);
    while n_kills < n_kills_min {
        n_worlds += 1;
        let bench = world(seed);
        let mut n_here = 0;
        let summary = loop {
            if let Some(summary) = run_for(&bench, dice.roll(took_us / 8)).await {
                break summary;
            }
            n_here += 1;
        };
        n_kills += n_here;
        let digests = |summary: &RunSummary| -> Vec<(String, Digest)> {
            let outputs = summary.outputs.iter();
            outputs.map(|(name, ports)| (name.clone(), ports["out"].digest)).collect()
        };
        assert_eq!(summary.state, RunState::Done, "{:?}", summary.failures);
        assert_eq!(digests(&reference), digests(&summary));
        let of_keys = "SELECT count(*) FROM attempt WHERE state = 'done'";
        assert_eq!(count(&bench, of_keys).await, N_NODES as i64, "finished work was repeated");
        let items = "SELECT count(*) FROM event WHERE kind = 'item_done'";
        let n_items = "SELECT count(*) FROM item";
        assert_eq!(count(&bench, items).await, count(&bench, n_items).await);
        // Of each kill at most what was in flight runs again.
        let lost = "SELECT count(*) FROM attempt WHERE state <> 'done'";
        assert!(count(&bench, lost).await <= n_here as i64 * (i64::from(N_CPU) + 256));
        assert_eq!(count(&bench, "SELECT count(*) FROM node_key WHERE state <> 'done'").await, 0);
    }
    println!("{n_kills} kills in {n_worlds} worlds");
}
