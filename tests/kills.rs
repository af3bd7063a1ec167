//! Real processes, killed, stopped and starved at random moments: the bytes stay right, finished work
//! stays finished, and the same command goes on.
//!
//! `SBP_TEST_PROCESS_KILLS` sets how many kills there are at least, `SBP_TEST_SEED` when they come.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Dice, Place, Ran, number, until};

const N_NODES: u64 = 200;

/// What nodes read that need no other.
const ROOT: &str = "  root: {task: bench_file, params: {i: 0, text: root}}\n";

/// A graph of nodes with checkpoints and items, each of which may read three others.
fn graph(n_nodes: u64, seed: u64, step_ms: u64, journal: &Path) -> String {
    let mut dice = Dice(seed);
    let mut text = format!("version: 1\nname: kills\nnodes:\n{ROOT}");
    for i in 0..n_nodes {
        let n_steps = dice.roll(4);
        let _ = writeln!(
            text,
            "  n{i}:\n    task: bench_steps\n    params: {{i: {i}, text: text {i}, n_steps: {n_steps}, \
             step_ms: {step_ms}, journal: \"{}\"}}",
            journal.display()
        );
        let needs: std::collections::BTreeSet<u64> =
            (0..dice.roll(4).min(i)).map(|_| dice.roll(i)).collect();
        let mut needs: Vec<String> = needs.iter().map(|need| format!("n{need}")).collect();
        if needs.is_empty() {
            needs.push("root".to_owned());
        }
        let _ = writeln!(text, "    in: [{}]", needs.join(", "));
    }
    text
}

/// Artifacts by node, and how often each key was finished.
fn outcome(place: &Place) -> (BTreeMap<String, String>, Vec<u64>) {
    let run = place.sbp(&["status", "last", "--json"]).expect(0).json();
    let mut digests = BTreeMap::new();
    for node in run["nodes"].as_array().unwrap() {
        let output = &node["outputs"][0];
        digests.insert(node["name"].to_string(), output["digest"].to_string());
    }
    place.sbp(&["ledger", "check"]).expect(0);
    let _ = fs::remove_file(place.path().join("ledger.jsonl"));
    place.sbp(&["ledger", "export", "ledger.jsonl"]).expect(0);
    let mut finished: BTreeMap<String, u64> = BTreeMap::new();
    for line in fs::read_to_string(place.path().join("ledger.jsonl")).unwrap().lines().skip(1) {
        let row: Value = serde_json::from_str(line).unwrap();
        if row[0] == "attempt" && row.to_string().contains("\"done\"") {
            let key =
                row[1].as_array().map_or_else(|| row[1].to_string(), |row| row[0].to_string());
            *finished.entry(key).or_default() += 1;
        }
    }
    (digests, finished.into_values().collect())
}

/// Processes whose parent is `pid`.
fn children(pid: u32) -> Vec<Pid> {
    let parent_of = |stat: &str| -> Option<u32> {
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let is_child = |child: &i32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        parent_of(&stat) == Some(pid)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_child).filter_map(Pid::from_raw).collect()
}

/// The fork server of the run `pid`, and the attempts' processes, which are its children.
fn workers(pid: u32) -> Vec<Pid> {
    let servers = children(pid);
    let attempts = servers.iter().flat_map(|server| children(server.as_raw_pid() as u32));
    attempts.chain(servers.iter().copied()).collect()
}

/// Processes of attempts whose work lies in this place.
fn left_behind(place: &Place) -> Vec<String> {
    let wanted = format!("SBP_ATTEMPT_DIR={}", place.path().canonicalize().unwrap().display());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let of_place = processes.filter(|entry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(wanted.as_bytes()))
    });
    of_place.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Everything below a folder.
fn walkdir(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        found.push(entry.path().display().to_string());
        if entry.file_type().unwrap().is_dir() {
            found.extend(walkdir(&entry.path()));
        }
    }
    found
}

/// Lets a run go on under random kills of itself and of its attempts' processes; gives how many
/// there were, and whether it ended by itself.
fn torment(place: &Place, run: &[&str], dice: &mut Dice, took: Duration) -> (u64, bool) {
    let mut child = place.start(run);
    let mut n_kills = 0;
    loop {
        sleep(took.mul_f64(dice.roll(1000) as f64 / 8000.0));
        if let Some(status) = child.try_wait().unwrap() {
            // A node fails for good when its process is killed three times.
            assert!(matches!(status.code(), Some(0 | 1)), "{:?}", place.said());
            return (n_kills, status.success());
        }
        let workers = workers(child.id());
        let choice = dice.roll(3);
        if choice > 0 && !workers.is_empty() {
            let worker = workers[dice.roll(workers.len() as u64) as usize];
            // It may have ended at this moment.
            n_kills += u64::from(kill_process(worker, Signal::KILL).is_ok());
        }
        if choice < 2 {
            child.kill().unwrap();
            child.wait().unwrap();
            return (n_kills + 1, false);
        }
    }
}

#[test]
fn killed_processes_lose_and_repeat_nothing() {
    let seed = number("SBP_TEST_SEED", u64::from(std::process::id()));
    let n_kills_min = number("SBP_TEST_PROCESS_KILLS", 12);
    println!("SBP_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let n_nodes = if n_kills_min < 100 { N_NODES / 5 } else { N_NODES };
    let new_place = || {
        let place = Place::new();
        let journal = place.path().join("journal");
        place.write("kills.yaml", &graph(n_nodes, seed, 2, &journal));
        place
    };
    let inline = ["bench", "orch-run", "kills.yaml", "--quiet", "-j", "3"];
    let run = [&inline[..], &["--executor", "process"]].concat();
    let undisturbed = new_place();
    undisturbed.sbp(&inline).expect(0);
    let (reference, _) = outcome(&undisturbed);
    assert_eq!(reference.len() as u64, n_nodes + 1);
    let undisturbed = new_place();
    let began = Instant::now();
    undisturbed.sbp(&run).expect(0);
    let took = began.elapsed();
    assert_eq!(outcome(&undisturbed).0, reference, "a process gives other bytes than a thread");
    let (mut n_kills, mut n_worlds) = (0, 0);
    while n_kills < n_kills_min {
        let place = new_place();
        n_worlds += 1;
        loop {
            let (n, is_done) = torment(&place, &run, &mut dice, took);
            n_kills += n;
            if is_done {
                break;
            }
        }
        let (digests, finished) = outcome(&place);
        assert_eq!(digests, reference);
        assert!(
            finished.iter().all(|n| *n == 1) && finished.len() as u64 == n_nodes + 1,
            "{finished:?}"
        );
        assert_eq!(left_behind(&place), [""; 0]);
        let work = walkdir(&place.path().join(".sbp/work"));
        assert_eq!(work, [""; 0], "folders of attempts are left");
        place.sbp(&["verify", "--quiet"]).expect(0);
    }
    println!("{n_kills} kills in {n_worlds} worlds");
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A run stands still for longer than its lease, another one takes over, and the first wakes up and
/// goes on with what it believes to hold.
#[test]
fn a_run_that_stood_still_publishes_nothing() {
    for executor in ["inline", "process"] {
        let place = Place::new();
        let journal = place.path().join("journal");
        let journal_arg = journal.display();
        place.write(
            "still.yaml",
            &format!(
                "version: 1\nname: still\nnodes:\n{ROOT}  slow: {{task: bench_steps, in: [root], params: {{i: 1, \
                 n_steps: 60, step_ms: 40, journal: \"{journal_arg}\"}}}}\n  \
                 after: {{task: bench_steps, in: [slow], params: {{i: 2}}}}\n"
            ),
        );
        let run = ["bench", "orch-run", "still.yaml", "--lease", "1", "--executor", executor];
        let mut first = place.start(&run);
        let checkpoints = place.path().join(".sbp/checkpoints");
        let has_saved = || {
            let keys = fs::read_dir(&checkpoints).into_iter().flatten().flatten();
            keys.flat_map(|key| fs::read_dir(key.path()))
                .flatten()
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
        };
        until("the first run saves a checkpoint", has_saved);
        signal(&first, Signal::STOP);
        let second = place.sbp(&run).expect(0).json();
        assert_eq!(second["ran"], 2, "{executor}: {second}");
        let (reference, _) = outcome(&place);
        signal(&first, Signal::CONT);
        let status = first.wait().unwrap();
        assert!(status.success(), "{executor}: {:?}", place.said());
        let said: Value = serde_json::from_str(place.said().stdout.trim()).unwrap();
        assert_eq!((&said["ran"], &said["cached"]), (&1.into(), &2.into()), "{executor}");
        let (digests, finished) = outcome(&place);
        assert_eq!((digests, finished), (reference, vec![1, 1, 1]), "{executor}");
        assert_eq!(left_behind(&place), [""; 0]);
    }
}

/// Cuts files off and garbles them where a crash of the machine may have done so.
fn tear(place: &Place, dice: &mut Dice) {
    let sbp = place.path().join(".sbp");
    let mut files = Vec::new();
    let mut dirs: Vec<_> =
        ["work", "checkpoints", "items", "store"].iter().map(|name| sbp.join(name)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    for file in files {
        if dice.roll(12) == 0 {
            garble(&file, dice);
        }
    }
    // The log of changes is made durable up to its last transaction, so that what may be torn is
    // what comes after.
    let log = sbp.join("ledger.db-wal");
    if dice.roll(2) == 0 && log.exists() {
        let mut bytes = fs::read(&log).unwrap();
        bytes.extend((0..dice.roll(6000)).map(|_| dice.roll(256) as u8));
        fs::write(log, bytes).unwrap();
    }
}

/// Cuts a file off at a random place, or turns a bit of it over.
fn garble(file: &Path, dice: &mut Dice) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bytes = fs::read(file).unwrap();
    if bytes.is_empty() {
        return;
    }
    let at = dice.roll(bytes.len() as u64) as usize;
    if dice.roll(2) == 0 {
        bytes.truncate(at);
    } else {
        bytes[at] ^= 1 << dice.roll(8);
    }
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(file, bytes).unwrap();
}

#[test]
fn torn_writes_are_noticed() {
    let seed = number("SBP_TEST_SEED", u64::from(std::process::id()));
    println!("SBP_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let run = ["bench", "orch-run", "torn.yaml", "--quiet", "-j", "3"];
    let new_place = || {
        let place = Place::new();
        place.write("torn.yaml", &graph(30, seed, 3, &place.path().join("journal")));
        place
    };
    let undisturbed = new_place();
    let began = Instant::now();
    undisturbed.sbp(&run).expect(0);
    let took = began.elapsed();
    let (reference, _) = outcome(&undisturbed);
    let place = new_place();
    for _ in 0..number("SBP_TEST_TEARS", 6) {
        let mut child = place.start(&run);
        sleep(took.mul_f64(dice.roll(1000) as f64 / 1000.0));
        child.kill().unwrap();
        child.wait().unwrap();
        tear(&place, &mut dice);
    }
    place.sbp(&run).expect(0);
    assert_eq!(outcome(&place).0, reference);
    place.sbp(&["verify", "--quiet"]).expect(0);
}

/// A file system that is full at one write after the other: each time the run says so and fails, and
/// with space again the same command finishes with the right bytes.
#[test]
fn a_full_disk_spoils_nothing_at_any_write() {
    let disk = tempfile::tempdir().unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=4m", "tmpfs"];
    let mounted = std::process::Command::new("mount").args(mount).arg(disk.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: no small file system can be mounted here");
        return;
    }
    let place = Place::new();
    let place = &place;
    place.write("full.yaml", &graph(8, 5, 0, &place.path().join("journal")));
    let n_sizes = number("SBP_TEST_SIZES", 12);
    let result = std::panic::catch_unwind(|| {
        let dir = disk.path().join(".sbp");
        let run = ["bench", "orch-run", "full.yaml", "-j", "2", "--dir", dir.to_str().unwrap()];
        let mut reference = None;
        let mut n_full = 0;
        for size in 0..n_sizes {
            let _ = fs::remove_dir_all(&dir);
            // Leaves between nothing and 1,600 KiB, which is more than the run needs.
            fill(disk.path(), 1600 * 1024 * size / n_sizes);
            let ran = place.sbp(&run);
            if ran.code != Some(0) {
                n_full += 1;
                assert!(matches!(ran.code, Some(1 | 3)), "{ran:?}");
                assert!(says_full(&ran), "{ran:?}");
            }
            fs::remove_file(disk.path().join("filler")).unwrap();
            place.sbp(&run).expect(0);
            let status = ["status", "last", "--json", "--dir", dir.to_str().unwrap()];
            let run = place.sbp(&status).expect(0).json();
            let digests: Vec<String> = run["nodes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|node| node["outputs"][0]["digest"].to_string())
                .collect();
            assert_eq!(*reference.get_or_insert_with(|| digests.clone()), digests, "{size}");
            place.sbp(&["verify", "--quiet", "--dir", dir.to_str().unwrap()]).expect(0);
            place.sbp(&["ledger", "check", "--dir", dir.to_str().unwrap()]).expect(0);
        }
        assert!(n_full > 0, "the disk was never full");
        println!("the disk was full in {n_full} of {n_sizes} runs");
    });
    let unmounted = std::process::Command::new("umount").arg("-l").arg(disk.path()).status();
    assert!(unmounted.unwrap().success());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn says_full(ran: &Ran) -> bool {
    ["No space left", "no space left", "disk is full", "os error 28"]
        .iter()
        .any(|text| ran.stderr.contains(text))
}

/// Fills the file system but for so many bytes.
fn fill(disk: &Path, n_free: u64) {
    let stat = rustix::fs::statvfs(disk).unwrap();
    let n_filled = (stat.f_bavail * stat.f_bsize).saturating_sub(n_free);
    fs::write(disk.join("filler"), vec![1; n_filled as usize]).unwrap();
}
