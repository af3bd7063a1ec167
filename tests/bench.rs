//! Benches give their figures in one line, and the figures are of runs that really happened.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::harness::{Place, read};

#[test]
fn orch_counts_what_ran() {
    let figures = Place::new().sbp(&["bench", "orch", "--n", "30", "--json"]).expect(0).json();
    assert_eq!(figures["bench"], "orch");
    for (name, expected) in
        [("n", 30), ("one_change_ran", 1), ("chain_n", 30), ("chain_ran", 1), ("kill_n", 30)]
    {
        assert_eq!(figures[name], expected, "{name} in {figures}");
    }
    for name in ["cold_cpu_ms_per_task", "noop_cpu_ms", "peak_rss_mib"] {
        assert!(figures[name].as_f64().unwrap() > 0.0, "{name} in {figures}");
    }
}

/// What a bench finds is what plans and costs count with where nothing ran, on this machine only.
#[test]
fn rates_calibrate_plans_and_costs() {
    let place = Place::world();
    let model = read("tests/pipelines/small.yaml");
    place.write("small.yaml", &model);
    let cost = || place.sbp(&["cost", "small.yaml", "--json"]).expect(0).json();
    assert!(cost()["rates"]["bench"].is_null());
    let before = place.sbp(&["plan", "small.yaml", "--json"]).expect(0).json();
    assert_eq!(before["forecast"]["n_rated"], 0);
    let workload = "{arch: smoke, rows: 2, micro_batch_tokens: 64, steps: 2, batches: [2], \
                    prompt_tokens: 5, new_tokens: 7, runs: 1}";
    place.write("workload.yaml", workload);
    let bench = ["bench", "lm", "--config", "workload.yaml", "--threads", "1"];
    let told = place.sbp(&bench).expect(0);
    assert!(told.stderr.contains("`sbp plan` and `sbp cost` count with it"), "{}", told.stderr);
    place.sbp(&["bench", "orch", "--n", "20"]).expect(0);

    let figures = place.sbp(&[&bench[..], &["--json"]].concat()).expect(0).json();
    let number = |value: &Value| value.as_f64().unwrap();
    let trained = number(&figures["train_tokens_per_s"]) * number(&figures["train_flop_per_token"]);
    let found = cost();
    let rates = found["rates"]["bench"]["rates"].as_array().unwrap();
    let rate = rates.iter().find(|rate| rate["unit"] == "train_flop").unwrap();
    assert!((number(&rate["per_second"]) / trained - 1.0).abs() < 1e-9, "{rate} is not {trained}");
    let source = found["rates"]["bench"]["source"].as_str().unwrap();
    assert!(source.contains("`sbp bench lm`"), "{source}");
    let nodes = found["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["task"] == "pretrain").unwrap();
    let flop = number(&node["estimate"]["work"]["train_flop"]);
    let hours = number(&node["hours"]["bench"]);
    assert!((hours * 3600.0 * trained / flop - 1.0).abs() < 1e-9, "{hours} h for {flop}");

    let plan = place.sbp(&["plan", "small.yaml", "--json"]).expect(0).json();
    assert!(number(&plan["forecast"]["n_rated"]) > 0.0, "{plan}");
    let nodes = plan["nodes"].as_array().unwrap();
    let planned = nodes.iter().find(|planned| planned["name"] == node["name"]).unwrap();
    assert_eq!(planned["expected"]["ground"], "rates");
    let seconds = number(&planned["expected"]["duration_us"]) / 1e6;
    assert!((seconds - 3600.0 * hours).abs() < 1e-5, "{seconds} s are not {hours} h");
    // What the engine itself takes for each node comes on top.
    let sum: f64 = nodes.iter().filter_map(|node| node["expected"]["duration_us"].as_f64()).sum();
    assert!(number(&plan["forecast"]["serial_us"]) > sum, "{plan}");
    let told = place.sbp(&["plan", "small.yaml"]).expect(0).stderr;
    assert!(told.contains("are counted as `sbp bench` measured"), "{told}");

    let host = std::fs::read_dir(place.path().join("cache/sbp/rates")).unwrap().next().unwrap();
    let path = host.unwrap().path();
    let text = std::fs::read_to_string(&path).unwrap().replace("\"threads\": ", "\"threads\": 9");
    std::fs::write(&path, text).unwrap();
    let other = place.sbp(&["cost", "small.yaml", "--json"]).expect(0);
    assert!(other.stderr.contains("they are not used until"), "{}", other.stderr);
    assert!(other.json()["rates"]["bench"].is_null());
    std::fs::write(&path, "{").unwrap();
    let damaged = place.sbp(&["cost", "small.yaml", "--json"]).expect(0);
    assert!(damaged.stderr.contains("is not used"), "{}", damaged.stderr);
}

#[test]
fn bench_tasks_are_not_for_pipelines() {
    let place = Place::new();
    place.write("p.yaml", "version: 1\nnodes:\n  a: {task: bench_noop, params: {i: 1}}\n");
    assert!(place.sbp(&["plan", "p.yaml"]).expect(2).stderr.contains("bench_noop"));
}

#[test]
fn pair_finds_what_it_is_asked_for() {
    let args = ["--n", "3000", "--dim", "64", "--k", "20", "--queries", "300", "--exact", "--json"];
    let args: Vec<&str> = ["bench", "pair"].into_iter().chain(args).collect();
    let figures = Place::new().sbp(&args).expect(0).json();
    let figure = |name: &str| figures[name].as_f64().unwrap();
    assert!(figure("recall") > 0.95 && figure("exact_recall") > 0.9999, "{figures}");
    assert!(figure("cpu_s") > 0.0 && figure("tile_gops") > 0.0, "{figures}");
}

#[test]
fn bpe_dedup_and_clean_give_their_figures() {
    let small =
        ["--vocab-size", "600", "--train-mb", "0.2", "--encode-mb", "0.2", "--check-mb", "0.1"];
    let args: Vec<&str> = ["bench", "bpe", "--json"].into_iter().chain(small).collect();
    let bpe = Place::new().sbp(&args).expect(0).json();
    for name in ["train_mb_per_s", "encode_mb_per_s_core", "peak_rss_mib", "checked_mb"] {
        assert!(bpe[name].as_f64().unwrap() > 0.0, "{name} in {bpe}");
    }
    let small = ["--mb", "0.5", "--documents", "2000"];
    let args: Vec<&str> = ["bench", "dedup", "--json"].into_iter().chain(small).collect();
    let dedup = Place::new().sbp(&args).expect(0).json();
    for name in ["minhash_mb_per_s_core", "shingle_mb_per_s_core", "duplicate_found"] {
        assert!(dedup[name].as_f64().unwrap() > 0.0, "{name} in {dedup}");
    }
    let clean = Place::new().sbp(&["bench", "clean", "--mb", "0.5", "--json"]).expect(0).json();
    assert!(clean["clean_mb_per_s_core"].as_f64().unwrap() > 0.0, "{clean}");
    for mb in ["nan", "0", "-1", "inf"] {
        let mb = format!("--mb={mb}");
        let ran = Place::new().sbp(&["bench", "clean", &mb]).expect(2);
        assert!(ran.stderr.contains("a number above 0"), "{}", ran.stderr);
    }
    let none = Place::new().sbp(&["bench", "bpe", "--corpus", "nowhere"]).expect(2);
    assert!(none.stderr.contains("nowhere"), "{}", none.stderr);
}

/// Eight processes on one ledger, from its first opening on: none fails, none does anything twice.
fn hammer(place: &Place, ledger: &[&str]) {
    const N_TASKS: usize = 120;
    let journal = place.path().join("journal");
    let mut text = "version: 1\nname: hammer\nnodes:\n".to_owned();
    for i in 0..N_TASKS {
        // The folder's name makes the keys new in a ledger that outlives it.
        let unique = format!("{} {i}", place.path().display());
        let journal = journal.display();
        let params = format!("{{i: {i}, text: \"{unique}\", journal: \"{journal}\"}}");
        let _ = writeln!(text, "  t{i}: {{task: bench_file, params: {params}}}");
    }
    place.write("hammer.yaml", &text);
    let args = [&["bench", "orch-run", "hammer.yaml", "-j", "1", "--quiet"][..], ledger].concat();
    let start = || {
        let mut command = place.command(&args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<Child> = (0..8).map(|_| start()).collect();
    let mut n_ran = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{errors}");
        let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
        n_ran += figures["ran"].as_u64().unwrap() as usize;
    }
    let lines = std::fs::read_to_string(journal).unwrap();
    let distinct: BTreeSet<&str> = lines.lines().collect();
    assert_eq!((lines.lines().count(), distinct.len(), n_ran), (N_TASKS, N_TASKS, N_TASKS));
    place.sbp(&[&["ledger", "check"][..], ledger].concat()).expect(0);
}

#[test]
fn eight_processes_share_a_ledger() {
    hammer(&Place::new(), &[]);
    match std::env::var("SBP_TEST_POSTGRES") {
        Ok(url) => hammer(&Place::new(), &["--ledger", &url]),
        Err(_) => println!("skipped: no PostgreSQL server in SBP_TEST_POSTGRES"),
    }
}
