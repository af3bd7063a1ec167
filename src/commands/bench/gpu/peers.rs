//! Other programs that `sbp bench gpu` asks: PyTorch and compute-sanitizer.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tasks::cuda::speed::TORCH_PEERS;

/// Seconds that PyTorch's side may take.
const TORCH_SECONDS: u32 = 150;
/// Seconds that each tool of the sanitizer may take.
const SANITIZER_SECONDS: &str = "60";

/// Exit status by which `timeout` tells that the time was over.
const TIMED_OUT: i32 = 124;
/// Characters of what a program said that are shown.
const SAID_MAX: usize = 300;

/// PyTorch's figures for the same shapes, or why there are none.
pub(super) fn torch() -> Value {
    rows_of("python3", TORCH_PEERS)
}

/// Rows that a Python program prints, one JSON object a line, and how it ended where that is not well.
fn rows_of(python: &str, program: &str) -> Value {
    let child = Command::new("timeout")
        .arg(format!("{}", TORCH_SECONDS + 30))
        .args([python, "-", &TORCH_SECONDS.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return json!({ "skipped": format!("`timeout` does not start: {error}") }),
    };
    // Fed and drained on threads of their own, so that neither waits for the other.
    let stdin = child.stdin.take();
    let text = program.to_owned();
    let fed = std::thread::spawn(move || {
        // A program that has gone tells so by its output.
        stdin.map(|mut stdin| drop(stdin.write_all(text.as_bytes())))
    });
    let output = match child.wait_with_output() {
        Ok(output) => output,
        Err(error) => return json!({ "skipped": format!("{python} cannot be read: {error}") }),
    };
    drop(fed.join());
    let printed = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<Value> =
        printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if let Some(missing) = rows.iter().find_map(|row| row.get("missing")) {
        return json!({ "skipped": missing });
    }
    if output.status.success() {
        return json!({ "rows": rows });
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().next_back().unwrap_or_default();
    let said: String = said.chars().take(SAID_MAX).collect();
    let ended = format!("{python} ends with {}: {said}", output.status);
    if rows.is_empty() {
        json!({ "skipped": ended })
    } else {
        json!({ "rows": rows, "ended": ended })
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
        Ok(output) => verdict(output.status.code(), &String::from_utf8_lossy(&output.stdout)),
        Err(error) => json!({ "unfinished": format!("`timeout` does not start: {error}") }),
    }
}

/// What a tool found, by its exit status and what it printed.
fn verdict(exit: Option<i32>, text: &str) -> Value {
    if exit == Some(TIMED_OUT) {
        return json!({ "unfinished": format!("it takes more than {SANITIZER_SECONDS} s") });
    }
    let summary = text.lines().rfind(|line| line.starts_with("========="));
    json!({ "clean": exit == Some(0), "exit": exit, "summary": summary })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_that_is_not_there_or_fails_is_told() {
        let skipped = |found: &Value| found["skipped"].as_str().unwrap_or_default().to_owned();
        let none = rows_of("a-python-that-is-not-there", "");
        assert!(skipped(&none).contains("a-python-that-is-not-there ends with"), "{none}");
        let failed = rows_of("python3", "raise SystemExit('no luck')");
        assert!(skipped(&failed).contains("no luck"), "{failed}");
        let cut_off = rows_of("python3", "print('{\"op\": 1}')\nraise SystemExit(3)");
        assert_eq!(cut_off["rows"], json!([{ "op": 1 }]));
        assert!(cut_off["ended"].as_str().is_some_and(|ended| ended.contains('3')), "{cut_off}");
        let missing = rows_of("python3", "print('{\"missing\": \"torch\"}')");
        assert_eq!(missing, json!({ "skipped": "torch" }));
    }

    #[test]
    fn no_time_is_no_fault() {
        assert_eq!(verdict(Some(0), "========= ok")["clean"], true);
        assert_eq!(verdict(Some(99), "")["clean"], false);
        assert_eq!(verdict(None, "")["clean"], false);
        let late = verdict(Some(124), "");
        assert!(late["clean"].is_null() && late["unfinished"].is_string(), "{late}");
    }
}
