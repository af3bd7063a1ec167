//! The pipelines that are measured, as the YAML that the engine reads.

use std::fmt::Write as _;

const HEAD: &str = "version: 1\nname: bench\nnodes:\n";

/// `n` independent tasks; the one at `changed` has another param than before.
pub(super) fn wide(n: u32, changed: Option<u32>) -> String {
    let mut text = HEAD.to_owned();
    for i in 0..n {
        let value = if changed == Some(i) { n } else { i };
        let _ = writeln!(text, "  t{i}:\n    task: bench_noop\n    params: {{i: {value}}}");
    }
    text
}

/// `n` independent tasks, each of which writes a file of its own.
pub(super) fn files(n: u32, journal: &str) -> String {
    let mut text = HEAD.to_owned();
    for i in 0..n {
        let _ = writeln!(
            text,
            "  t{i}:\n    task: bench_file\n    params: {{i: {i}, text: text {i}, journal: \"{journal}\"}}"
        );
    }
    text
}

/// `n` independent programs: shells that write a file with what they have built in.
pub(super) fn programs(n: u32) -> String {
    let mut text = HEAD.to_owned();
    for i in 0..n {
        let _ = writeln!(
            text,
            "  t{i}:\n    task: exec\n    params:\n      shell: true\n      outputs: {{out: any}}\n      params: {{i: {i}}}\n      command: [\"printf . >> count; : > $SBP_OUT_OUT/out\"]"
        );
    }
    text
}

/// Each task reads what the one before it wrote; the head's param does not change its bytes.
pub(super) fn chain(n: u32, head: u32) -> String {
    let mut text = HEAD.to_owned();
    for i in 0..n {
        let value = if i == 0 { n + head } else { i };
        let _ = writeln!(
            text,
            "  t{i}:\n    task: bench_file\n    params: {{i: {value}, text: text {i}}}"
        );
        if i > 0 {
            let _ = writeln!(text, "    in: t{}", i - 1);
        }
    }
    text
}
