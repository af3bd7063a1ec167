//! `sbp bench gpu`: what the CUDA kernels give and how fast, on one GPU, in a few minutes.
//!
//! Figures go into one JSON object and one Markdown document, ready for BENCHMARKS.md. Without a
//! usable GPU it says why and stops.

mod document;
mod peers;

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use engine::task::Failure;
use serde_json::{Value, json};
use tasks::cuda::choice::{Choice, Request};
use tasks::cuda::gpu::probe;
use tasks::cuda::parity::{self, Effort};
use tasks::cuda::{Device, Gpu, choice, compile, speed};
use tasks::device::failure;
use tasks::lm::device::bench as training;

use crate::cli::{GpuArgs, GpuPart};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::printer::Printer;
use crate::settings;

/// Parts that run when none is named.
const PARTS: [GpuPart; 7] = [
    GpuPart::Parity,
    GpuPart::Speed,
    GpuPart::Torch,
    GpuPart::Training,
    GpuPart::Generation,
    GpuPart::Curve,
    GpuPart::Sanitizer,
];
/// Dense bf16 peak of H100 SXM and H200, TFLOP/s (NVIDIA's data sheets).
const HOPPER_PEAK_TFLOPS: f64 = 989.4;
/// Steps of the large model, the first of which does not count.
const N_TRAINING_STEPS: usize = 8;
/// Texts that are made at a time, tokens of their prompts, and new tokens of each.
const N_SLOTS: usize = 128;
const GENERATED: [usize; 2] = [1024, 256];
/// Steps of the curve, and tokens of each.
const N_CURVE_STEPS: usize = 200;
const CURVE_TOKENS: usize = 2048;

pub(crate) fn run(args: &GpuArgs, printer: Printer) -> Result<ExitStatus> {
    let request: Request = args.device.parse().map_err(Error::usage)?;
    let facts = probe();
    let (gpu, index) = open(request, &facts)?;
    let mut found = json!({
        "bench": "gpu",
        "gpu": gpu.name(),
        "arch": gpu.arch(),
        "processors": gpu.n_processors(),
        "memory_bytes": gpu.memory_bytes(),
        "refusals": gpu.refusals().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "driver": facts.driver,
        "nvrtc": facts.nvrtc,
        "version": crate::cli::VERSION,
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
    });
    let device: Arc<dyn Device> = Arc::new(gpu);
    let parts = if args.only.is_empty() { PARTS.to_vec() } else { args.only.clone() };
    for part in parts {
        let started = Instant::now();
        printer.talk(format!("{part:?}"));
        let measured = measure(part, &device, &found, index);
        if let Err(error) = &measured {
            printer.talk(format!("{part:?} fails: {}", error.message));
        }
        note(&mut found, part, measured);
        printer.talk(format!("{part:?} took {:.0} s", started.elapsed().as_secs_f64()));
    }
    let document = document::of(&found);
    if let Some(dir) = &args.out {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("gpu.json"), format!("{found:#}\n"))?;
        fs::write(dir.join("gpu.md"), &document)?;
    }
    if printer.is_json() {
        printer.json(&found)?;
    } else {
        printer.data(document)?;
    }
    Ok(if is_wrong(&found) { ExitStatus::NodeFailed } else { ExitStatus::Done })
}

/// Puts a part's figures beside the others, or why there are none: what was measured before and what
/// can be measured after is not lost.
fn note(found: &mut Value, part: GpuPart, measured: Result<Value, Failure>) {
    let value = measured.unwrap_or_else(|error| json!({ "failed": error.message }));
    found[name_of(part)] = value;
}

fn name_of(part: GpuPart) -> &'static str {
    match part {
        GpuPart::Parity => "parity",
        GpuPart::Small => "small",
        GpuPart::Speed => "speed",
        GpuPart::Torch => "torch",
        GpuPart::Sanitizer => "sanitizer",
        GpuPart::Training => "training",
        GpuPart::Generation => "generation",
        GpuPart::Curve => "curve",
    }
}

/// Whether anything of ours failed, gives wrong results, or is found fault with, now or by the process
/// that tried it.
fn is_wrong(found: &Value) -> bool {
    let failed = PARTS.iter().any(|part| found[name_of(*part)]["failed"].is_string());
    let refused = found["refusals"].as_array().is_some_and(|refusals| !refusals.is_empty());
    let differs = [&found["parity"], &found["small"]]
        .iter()
        .any(|part| part["wrong"].as_u64().is_some_and(|n| n > 0));
    let tools = found["sanitizer"].as_object().into_iter().flatten();
    failed || refused || differs || tools.into_iter().any(|(_, tool)| tool["clean"] == false)
}

/// Opens the GPU, or says what stands in the way.
fn open(request: Request, facts: &choice::Facts) -> Result<(Gpu, u32)> {
    let none = |reason: String, remedy: &str| {
        Err(Error::usage(format!("there is no GPU to measure: {reason}")).help(remedy))
    };
    match choice::choose(request, facts, choice::Need::NOTHING) {
        Ok(Choice::Gpu { index, arch, .. }) => {
            let gpu = Gpu::open(index, arch, &compile::cache_dir())
                .map_err(|error| Error::usage(format!("the GPU does not work: {error}")))?;
            Ok((gpu, index))
        }
        Ok(Choice::Cpu { reason }) => none(reason, "`sbp doctor` says what is missing"),
        Err(refusal) => none(refusal.reason, &refusal.remedy),
    }
}

fn measure(
    part: GpuPart,
    device: &Arc<dyn Device>,
    found: &Value,
    index: u32,
) -> Result<Value, Failure> {
    Ok(match part {
        GpuPart::Parity => parity_of(&**device, Effort::Full),
        GpuPart::Small => parity_of(&**device, Effort::Emulated),
        GpuPart::Speed => {
            speed::measure(&**device).map_err(failure)?.iter().map(speed_row).collect()
        }
        GpuPart::Torch => peers::torch(),
        GpuPart::Sanitizer => peers::sanitizer(index),
        GpuPart::Training => train(device, found)?,
        GpuPart::Generation => generate(device)?,
        GpuPart::Curve => curve(device)?,
    })
}

/// Runs every case of the device twice: outputs are right, and have the same bits again.
fn parity_of(device: &dyn Device, effort: Effort) -> Value {
    let mut rows = Vec::new();
    let (mut n_checks, mut n_wrong) = (0, 0);
    for case in parity::cases(effort).into_iter().filter(|case| case.is_for(device)) {
        let (first, second) = ((case.run)(device), (case.run)(device));
        match (first, second) {
            (Ok(first), Ok(second)) => {
                for (check, again) in first.iter().zip(&second) {
                    let repeats = check.digest == again.digest;
                    n_checks += 1;
                    n_wrong += u64::from(!(check.holds() && repeats));
                    rows.push(json!({
                        "op": case.op,
                        "shape": case.shape,
                        "output": check.what,
                        "error": check.error,
                        "limit": check.limit,
                        "holds": check.holds(),
                        "repeats": repeats,
                    }));
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                n_checks += 1;
                n_wrong += 1;
                let message = error.to_string();
                rows.push(json!({ "op": case.op, "shape": case.shape, "failed": message }));
            }
        }
    }
    json!({ "checks": n_checks, "wrong": n_wrong, "cases": rows })
}

fn speed_row(speed: &speed::Speed) -> Value {
    json!({
        "op": speed.op,
        "shape": speed.shape,
        "seconds": speed.seconds,
        "value": speed.value,
        "unit": speed.unit.name(),
        "of_ceiling": speed.of_ceiling,
    })
}

fn train(device: &Arc<dyn Device>, found: &Value) -> Result<Value, Failure> {
    let Some(trained) = training::train(Arc::clone(device), N_TRAINING_STEPS)? else {
        return Ok(
            json!({ "skipped": "the model and one row do not fit in the GPU's free memory" }),
        );
    };
    let tflops = trained.flops / 1e12;
    let name = found["gpu"].as_str().unwrap_or_default();
    let is_hopper = name.contains("H100") || name.contains("H200");
    Ok(json!({
        "parameters": trained.n_parameters,
        "context": trained.context,
        "tokens_per_step": trained.n_tokens,
        "seconds_per_step": trained.seconds,
        "tokens_per_s": trained.n_tokens as f64 / trained.seconds,
        "tflops": tflops,
        "mfu": is_hopper.then_some(tflops / HOPPER_PEAK_TFLOPS),
        "memory_bytes": trained.memory_bytes,
        "losses": trained.losses,
    }))
}

fn generate(device: &Arc<dyn Device>) -> Result<Value, Failure> {
    let Some(made) = training::generate(device, N_SLOTS, GENERATED).map_err(failure)? else {
        return Ok(
            json!({ "skipped": "the model and one text do not fit in the GPU's free memory" }),
        );
    };
    let [n_prompt, n_new] = made.n_tokens;
    let n_prompts = (made.n_slots * n_prompt) as f64;
    Ok(json!({
        "slots": made.n_slots,
        "prompt_tokens": n_prompt,
        "new_tokens": n_new,
        "prefill_tokens_per_s": n_prompts / made.prefill_seconds,
        "tokens_per_s": (made.n_slots * n_new) as f64 / made.seconds,
        "tokens_per_s_without_graphs": (made.n_slots * n_new) as f64 / made.seconds_without_graphs,
    }))
}

fn curve(device: &Arc<dyn Device>) -> Result<Value, Failure> {
    let n_threads = settings::n_threads(None) as usize;
    let config = training::curve_config();
    let losses =
        training::curve(Arc::clone(device), n_threads, &config, [CURVE_TOKENS, N_CURVE_STEPS])?;
    let off = |[found, expected]: &[f64; 2]| (found - expected).abs() / expected;
    let largest = losses.iter().map(off).fold(0.0, f64::max);
    Ok(json!({
        "steps": losses.len(),
        "tokens_per_step": CURVE_TOKENS,
        "parameters": config.n_parameters(),
        "largest_relative_difference": largest,
        "first": losses.first(),
        "last": losses.last(),
        "losses_gpu_cpu": losses,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part that fails loses nothing of the others, and is told by the exit status.
    #[test]
    fn a_failing_part_is_noted_beside_the_others() {
        let mut found = json!({ "gpu": "a GPU" });
        note(&mut found, GpuPart::Parity, Ok(json!({ "checks": 3, "wrong": 0, "cases": [] })));
        assert!(!is_wrong(&found));
        let error = tasks::cuda::Error::OutOfMemory { needed_bytes: 9, free_bytes: 8 };
        note(&mut found, GpuPart::Training, Err(failure(error)));
        note(&mut found, GpuPart::Generation, Ok(json!({ "tokens_per_s": 8300.0 })));
        assert_eq!(found["parity"]["checks"], 3);
        assert_eq!(found["generation"]["tokens_per_s"], 8300.0);
        assert!(is_wrong(&found));
        let text = document::of(&found);
        assert!(text.contains("training failed: the device has 8 bytes free"), "{text}");
        assert!(text.contains("8300 new tokens/s"), "{text}");
    }

    #[test]
    fn what_a_tool_finds_fault_with_is_wrong_and_what_it_had_no_time_for_is_not() {
        let of = |tool: Value| is_wrong(&json!({ "sanitizer": { "memcheck": tool } }));
        assert!(of(json!({ "clean": false })));
        assert!(!of(json!({ "clean": true })));
        assert!(!of(json!({ "unfinished": "it took more than 60 s" })));
        assert!(!is_wrong(&json!({ "sanitizer": { "skipped": "not here" } })));
        assert!(is_wrong(&json!({ "parity": { "wrong": 1 } })));
        assert!(is_wrong(&json!({ "refusals": ["`attention_hopper.cu` is not used"] })));
        assert!(!is_wrong(&json!({ "refusals": [] })));
    }
}
