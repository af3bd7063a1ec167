//! What `sbp bench gpu` found, as Markdown for BENCHMARKS.md.

use std::fmt::Write as _;

use serde_json::Value;

/// The document.
pub(super) fn of(found: &Value) -> String {
    let mut text = format!(
        "### {}\n\ndriver CUDA {}, NVRTC {}, kernels for {}, sbp {} ({} build); `sbp bench gpu`\n\n",
        text_of(&found["gpu"]),
        release(&found["driver"]),
        release(&found["nvrtc"]),
        text_of(&found["arch"]),
        text_of(&found["version"]),
        text_of(&found["build"]),
    );
    for refusal in found["refusals"].as_array().into_iter().flatten() {
        line(&mut text, format_args!("{}.\n", text_of(refusal)));
    }
    for part in ["parity", "small"] {
        parity(&mut text, &found[part]);
    }
    speeds(&mut text, found);
    training(&mut text, &found["training"]);
    generation(&mut text, &found["generation"]);
    curve(&mut text, &found["curve"]);
    for (name, part) in [("PyTorch", &found["torch"]), ("compute-sanitizer", &found["sanitizer"])] {
        if let Some(reason) = part["skipped"].as_str() {
            line(&mut text, format_args!("{name} was skipped: {reason}."));
        }
    }
    if let Some(ended) = found["torch"]["ended"].as_str() {
        line(&mut text, format_args!("PyTorch did not come to its end: {ended}."));
    }
    for part in ["speed", "training", "generation", "curve"] {
        if let Some(reason) = found[part]["failed"].as_str() {
            line(&mut text, format_args!("{part} failed: {reason}."));
        }
    }
    if let Some(tools) =
        found["sanitizer"].as_object().filter(|tools| !tools.contains_key("skipped"))
    {
        for (tool, result) in tools {
            let clean = match result["clean"].as_bool() {
                Some(true) => "clean",
                Some(false) => "NOT clean",
                None => "unknown",
            };
            let about = [&result["summary"], &result["unfinished"]];
            let about = about.into_iter().find_map(Value::as_str).unwrap_or_default();
            line(&mut text, format_args!("{tool}: {clean}. {about}"));
        }
    }
    text
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("strings take text");
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "unknown".to_owned(),
        other => other.to_string(),
    }
}

fn release(value: &Value) -> String {
    match value.as_array().map(Vec::as_slice) {
        Some([major, minor]) => format!("{major}.{minor}"),
        _ => "unknown".to_owned(),
    }
}

fn parity(text: &mut String, parity: &Value) {
    let Some(cases) = parity["cases"].as_array() else { return };
    line(text, format_args!("Parity: {} checks, {} wrong.", parity["checks"], parity["wrong"]));
    for case in cases.iter().filter(|case| case["holds"] != true || case["repeats"] != true) {
        line(text, format_args!("- wrong: {case}"));
    }
    text.push('\n');
}

fn speeds(text: &mut String, found: &Value) {
    let own = found["speed"].as_array().map(Vec::as_slice).unwrap_or_default();
    let torch = found["torch"]["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    if own.is_empty() && torch.is_empty() {
        return;
    }
    text.push_str("| op | shape | µs | speed | of ceiling |\n|---|---|---:|---:|---:|\n");
    for row in own.iter().chain(torch).filter(|row| row["op"].is_string()) {
        let micros = row["seconds"].as_f64().map(|s| format!("{:.0}", s * 1e6));
        let speed = row["value"].as_f64().map(|v| format!("{v:.0} {}", text_of(&row["unit"])));
        let ceiling = row["of_ceiling"].as_f64().map(|share| format!("{:.0} %", 100.0 * share));
        line(
            text,
            format_args!(
                "| {} | {} | {} | {} | {} |",
                text_of(&row["op"]),
                text_of(&row["shape"]),
                micros.unwrap_or_default(),
                speed.unwrap_or_else(|| text_of(&row["error"])),
                ceiling.unwrap_or_default()
            ),
        );
    }
    text.push('\n');
}

fn training(text: &mut String, training: &Value) {
    if let Some(reason) = training["skipped"].as_str() {
        line(text, format_args!("Training was skipped: {reason}.\n"));
    }
    let Some(tflops) = training["tflops"].as_f64() else { return };
    let mfu = training["mfu"].as_f64();
    let mfu = mfu.map_or_else(|| "unknown".to_owned(), |mfu| format!("{:.1} %", 100.0 * mfu));
    line(
        text,
        format_args!(
            "Training {} parameters, context {}, {} tokens a step: {:.0} tokens/s, {tflops:.0} \
             TFLOP/s, MFU {mfu} of 989.4.\n",
            training["parameters"],
            training["context"],
            training["tokens_per_step"],
            training["tokens_per_s"].as_f64().unwrap_or(f64::NAN),
        ),
    );
}

fn generation(text: &mut String, generation: &Value) {
    if let Some(reason) = generation["skipped"].as_str() {
        line(text, format_args!("Generation was skipped: {reason}.\n"));
    }
    let Some(tokens) = generation["tokens_per_s"].as_f64() else { return };
    line(
        text,
        format_args!(
            "Generation by the same model, {} texts at a time, {} tokens after {}: {tokens:.0} new \
             tokens/s, {:.0} without graphs; prompts at {:.0} tokens/s.\n",
            generation["slots"],
            generation["new_tokens"],
            generation["prompt_tokens"],
            generation["tokens_per_s_without_graphs"].as_f64().unwrap_or(f64::NAN),
            generation["prefill_tokens_per_s"].as_f64().unwrap_or(f64::NAN),
        ),
    );
}

fn curve(text: &mut String, curve: &Value) {
    let Some(off) = curve["largest_relative_difference"].as_f64() else { return };
    line(
        text,
        format_args!(
            "Loss over {} steps beside the CPU's: from {} to {} (GPU, CPU), at most {:.2} % apart.\n",
            curve["steps"],
            curve["first"],
            curve["last"],
            100.0 * off
        ),
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::of;

    #[test]
    fn figures_and_trouble_are_shown() {
        let found = json!({
            "gpu": "NVIDIA H200", "driver": [13, 0], "nvrtc": [13, 5], "arch": "sm_90a",
            "version": "0.1.0", "build": "release",
            "refusals": ["`attention_hopper.cu` is not used: `lse` is off"],
            "parity": {"checks": 2, "wrong": 1, "cases": [
                {"op": "norm", "holds": true, "repeats": true},
                {"op": "swiglu", "holds": false, "repeats": true},
            ]},
            "speed": [{"op": "copy", "shape": "1 GiB", "seconds": 5e-4, "value": 4200.4,
                       "unit": "GB/s", "of_ceiling": null},
                      {"op": "rms_norm", "shape": "8x8", "seconds": 1e-4, "value": 3990.0,
                       "unit": "GB/s", "of_ceiling": 0.95}],
            "torch": {"skipped": "No module named 'torch'"},
            "training": {"parameters": 2_737_739_264_u64, "context": 4096,
                         "tokens_per_step": 16384, "tokens_per_s": 25_000.4, "tflops": 480.2,
                         "mfu": 0.485},
            "sanitizer": {"memcheck": {"clean": true, "summary": "ERROR SUMMARY: 0 errors"}},
        });
        let text = of(&found);
        for expected in [
            "### NVIDIA H200",
            "`attention_hopper.cu` is not used: `lse` is off.\n",
            "Parity: 2 checks, 1 wrong.",
            "swiglu",
            "| rms_norm | 8x8 | 100 | 3990 GB/s | 95 % |",
            "MFU 48.5 %",
            "PyTorch was skipped: No module named 'torch'.",
            "memcheck: clean.",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
    }
}
