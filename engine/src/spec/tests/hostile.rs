//! Files that want to take all memory, hang the reader, or leave the folder.

use std::fmt::Write as _;

use super::read;

fn refused(text: &str, code: &str) {
    let checked = read(text, &[]);
    assert!(checked.pipeline.is_none());
    let codes: Vec<&str> = checked.mistakes.iter().map(super::super::Mistake::code).collect();
    assert!(codes.contains(&code), "{codes:?} of {text:.200}");
}

#[test]
fn bombs_are_refused() {
    let mut laughs = "version: 1\nx-0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n".to_owned();
    for i in 1..20 {
        let list = vec![format!("*a{}", i - 1); 10].join(", ");
        let _ = writeln!(laughs, "x-{i}: &a{i} [{list}]");
    }
    refused(&laughs, "spec::too_large");
    let million =
        "version: 1\nnodes:\n  a: {task: read_corpus, matrix: {i: \"${{ range(1000000) }}\"}}\n";
    assert!(read(million, &[]).pipeline.is_none());
    let axes: Vec<String> = (0..6).map(|i| format!("a{i}: \"${{{{ range(10) }}}}\"")).collect();
    let product = format!(
        "version: 1\nnodes:\n  a: {{task: read_corpus, matrix: {{{}}}}}\n",
        axes.join(", ")
    );
    refused(&product, "spec::too_large");
    let deep = format!("version: 1\nx-deep: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    // The parser has a limit of its own, which is met first.
    assert!(read(&deep, &[]).pipeline.is_none());
    let deep = format!("version: 1\nx-deep: {}{}\n", "[".repeat(80), "]".repeat(80));
    refused(&deep, "spec::too_deep");
}

#[test]
fn names_cannot_leave_their_folder() {
    for name in ["../up", "..", ".", "a/b", "/etc/passwd", "a\\b", "C:", "a\u{0}b", "-rf", "é", ""]
    {
        let quoted = serde_json::to_string(name).unwrap();
        refused(
            &format!("version: 1\nnodes:\n  {quoted}: {{task: read_corpus}}\n"),
            "spec::bad_name",
        );
    }
    for value in ["../up", "..", "a/b", "x\ny", "a[b]"] {
        let quoted = serde_json::to_string(value).unwrap();
        let text =
            format!("version: 1\nnodes:\n  a: {{task: read_corpus, matrix: {{at: [{quoted}]}}}}\n");
        assert!(read(&text, &[]).pipeline.is_none(), "{value}");
    }
}

#[test]
fn ports_cannot_leave_their_folder() {
    for port in ["..", "../out", "a/b", "/out"] {
        for reference in [format!("read.{port}"), format!("{{corpus: read.{port}}}")] {
            let text = format!(
                "version: 1\nnodes:\n  read: {{task: read, params: {{sources: [{{glob: x}}]}}}}\n  b: {{task: clean, in: \"{reference}\"}}\n"
            );
            assert!(read(&text, &[]).pipeline.is_none(), "{reference}");
        }
    }
}

#[test]
fn long_and_wide_files_take_time_in_proportion() {
    // Were anything here quadratic, this would take minutes.
    let mut text = "version: 1\nnodes:\n".to_owned();
    for i in 0..20_000 {
        let _ = writeln!(text, "  n{i}: {{task: read_corpus, params: {{sources: []}}}}");
    }
    let pipeline = read(&text, &[]).pipeline.unwrap();
    assert_eq!(pipeline.nodes.len(), 20_000);
    let long = format!(
        "version: 1\ndoc: {}\nnodes: {{a: {{task: read_corpus, params: {{sources: []}}}}}}\n",
        "x".repeat(4 << 20)
    );
    assert!(read(&long, &[]).pipeline.is_some());
}
