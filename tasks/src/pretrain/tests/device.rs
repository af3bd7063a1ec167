//! The whole task on a device, which is the emulator here.

use super::*;
use crate::device::tests::emulated;

fn params() -> Value {
    let mut params = small_params();
    params["arch"]["head_dim"] = json!(64);
    params
}

fn world() -> World {
    let world = World::new(&documents(), 24, 2);
    world.tokens("heldout", &documents()[..3], 24);
    world
}

fn train(world: &World, name: &str, cancel_at: u64, device: &str) -> Result<(), Failure> {
    attempt_with(world, name, cancel_at, &params(), (1, device))
}

/// Losses of `curve.csv`: training and held-out.
fn losses(dir: &Path) -> Vec<[f64; 2]> {
    let text = fs::read_to_string(dir.join("out/model/curve.csv")).unwrap();
    let number = |word: &str| word.parse::<f64>().unwrap();
    text.lines()
        .skip(1)
        .map(|line| {
            let words: Vec<&str> = line.split(',').collect();
            [number(words[3]), number(words[4])]
        })
        .collect()
}

fn devices(dir: &Path) -> Value {
    let text = fs::read(dir.join("out/model/training.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["summary"]["devices"].clone()
}

#[test]
fn a_device_resumes_to_the_same_bytes_and_follows_the_cpu() {
    let (world, device) = (world(), emulated());
    train(&world, "whole", u64::MAX, &device).unwrap();
    train(&world, "cpu", u64::MAX, "cpu").unwrap();
    let whole = files(&world.path("whole/out"));
    for stop in [1, 3] {
        let name = format!("stopped-{stop}");
        assert_eq!(train(&world, &name, stop, &device), Err(Failure::cancelled()));
        train(&world, &name, u64::MAX, &device).unwrap();
        assert!(files(&world.path(&name).join("out")) == whole, "stopped after step {stop}");
    }
    assert_eq!(devices(&world.path("whole")), json!(["emulator, Forward"]));
    // What only the CPU computed looks as it did before there were devices.
    assert_eq!(devices(&world.path("cpu")), Value::Null);
    let (found, expected) = (losses(&world.path("whole")), losses(&world.path("cpu")));
    assert_eq!(found.len(), 3);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 0.02 * expected, "{found} {expected}");
    }
}

/// A checkpoint goes on on another device, and the artifact says which ones there were.
#[test]
fn a_run_moves_from_the_cpu_to_a_device_and_back() {
    let (world, device) = (world(), emulated());
    train(&world, "cpu", u64::MAX, "cpu").unwrap();
    assert_eq!(train(&world, "moved", 1, "cpu"), Err(Failure::cancelled()));
    assert_eq!(train(&world, "moved", 3, &device), Err(Failure::cancelled()));
    train(&world, "moved", u64::MAX, "cpu").unwrap();
    assert_eq!(devices(&world.path("moved")), json!(["cpu", "emulator, Forward"]));
    let (found, expected) = (losses(&world.path("moved")), losses(&world.path("cpu")));
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 0.02 * expected, "{found} {expected}");
    }
}

/// The tests' machine either has no GPU, or one that knows no `head_dim` of 8.
#[test]
fn a_gpu_that_cannot_be_used_is_never_replaced_in_silence() {
    let world = world();
    let run = |name: &str, device: &str| {
        let mut bench = world.bench(name);
        bench.device = device.to_owned();
        let ran = bench.run::<Pretrain>(&small_params()).map(|_| ());
        let said = bench.sink.reports().into_iter().filter_map(|report| match report {
            Report::Log { text, .. } => Some(text),
            _ => None,
        });
        (ran, said.collect::<Vec<_>>().join("\n"))
    };
    let failure = run("named", "cuda:0").0.unwrap_err();
    assert!(failure.message.contains("`device: cuda:0`") && failure.help.is_some(), "{failure:?}");
    let (ran, said) = run("auto", "auto");
    ran.unwrap();
    assert!(said.contains("`device: auto` takes the CPU"), "{said}");
    let (ran, said) = run("cpu", "cpu");
    ran.unwrap();
    assert!(!said.contains("takes the CPU"), "{said}");
    assert_eq!(files(&world.path("auto/out")), files(&world.path("cpu/out")));
}
