//! Other programs that `sbp bench gpu` asks: PyTorch and compute-sanitizer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tasks::cuda::speed::TORCH_PEERS;

/// Seconds that PyTorch's side may take.
const TORCH_SECONDS: u32 = 150;
/// Seconds that each tool of the sanitizer may take.
const SANITIZER_SECONDS: &str = "60";

/// PyTorch's figures for the same shapes, or why there are none.
pub(super) fn torch() -> Value {
    let child = Command::new("timeout")
        .arg(format!("{}", TORCH_SECONDS + 30))
        .args(["python3", "-", &TORCH_SECONDS.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return json!({ "skipped": format!("python3 does not start: {error}") }),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A python3 that has gone tells so by its output.
        let _ = stdin.write_all(TORCH_PEERS.as_bytes());
    }
    let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
    let rows: Vec<Value> = lines
        .into_iter()
        .flatten()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line).ok())
        .collect();
    let ended = child.wait();
    if let Some(missing) = rows.iter().find_map(|row| row.get("missing")) {
        return json!({ "skipped": missing });
    }
    match ended {
        Ok(status) if status.success() => json!({ "rows": rows }),
        Ok(status) => json!({ "rows": rows, "ended": status.to_string() }),
        Err(error) => json!({ "rows": rows, "ended": error.to_string() }),
    }
}

/// The kernels on small shapes under memcheck and racecheck.
pub(super) fn sanitizer(index: u32) -> Value {
    let places = ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"];
    let found = places.into_iter().find(|place| {
        let output = Command::new(place).arg("--version").stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    });
    let (Some(program), Ok(own)) = (found, std::env::current_exe()) else {
        return json!({ "skipped": "compute-sanitizer is not in PATH or /usr/local/cuda/bin" });
    };
    let tools = ["memcheck", "racecheck"];
    tools.into_iter().map(|tool| (tool.to_owned(), check(program, tool, &own, index))).collect()
}

fn check(program: &str, tool: &str, own: &Path, index: u32) -> Value {
    let output = Command::new("timeout")
        .arg(SANITIZER_SECONDS)
        .arg(program)
        .args(["--tool", tool, "--error-exitcode", "99"])
        .arg(own)
        .args(["bench", "gpu", "--only", "small", "--json", "--device", &format!("cuda:{index}")])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let summary = text.lines().rfind(|line| line.starts_with("========="));
            json!({ "clean": output.status.success(), "exit": output.status.code(), "summary": summary })
        }
        Err(error) => json!({ "skipped": error.to_string() }),
    }
}
