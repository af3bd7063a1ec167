//! Laws that hold for any text.

use std::fmt::Write as _;

use miette::{GraphicalReportHandler, GraphicalTheme};
use proptest::prelude::*;

use super::expansion::EXAMPLE;
use super::{pipeline, read};
use crate::graph::Pipeline;

/// Pieces that are likely to reach deep into the reader.
const PIECES: &[&str] = &[
    "version: 1\n",
    "nodes:\n",
    "params:\n",
    "  a:",
    " {",
    "}",
    "[",
    "]",
    ", ",
    ": ",
    "- ",
    "\n",
    "  ",
    "\t",
    "task: clean",
    "in: read",
    "matrix: ",
    "include: ",
    "${{ ",
    " }}",
    "params.",
    "matrix.x",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "!x ",
    "\"",
    "'",
    "|\n",
    ">\n",
    "# ",
    "---\n",
    "...\n",
    "0777",
    "1e9",
    "é",
    "\u{feff}",
    "\u{0}",
    "%",
    "? ",
    "~",
    "when: ",
    "timeout: 1s",
    "range(9)",
    " | list",
    "\r\n",
    "\u{2028}",
    "@",
    "`",
];

/// What every reading keeps: a pipeline or an error, places inside the file, reports that render.
fn keeps_the_law(text: &str) {
    let checked = read(text, &[("seed", "1")]);
    assert_eq!(checked.pipeline.is_none(), checked.mistakes.has_errors());
    let n_lines = text.split('\n').count();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    for mistake in checked.mistakes.iter() {
        if let Some(place) = mistake.place() {
            assert!(place.line as usize <= n_lines && place.column >= 1, "{place}");
        }
        let mut rendered = String::new();
        assert!(handler.render_report(&mut rendered, mistake).is_ok(), "{mistake:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gives_a_pipeline_or_a_mistake(text in any::<String>()) {
        keeps_the_law(&text);
    }

    #[test]
    fn any_pieces_give_a_pipeline_or_a_mistake(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..60)
    ) {
        keeps_the_law(&pieces.concat());
    }

    #[test]
    fn a_damaged_pipeline_gives_a_pipeline_or_a_mistake(
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), 0_usize..12, prop::sample::select(PIECES)), 1..4
        )
    ) {
        let mut text = EXAMPLE.to_owned();
        for (at, n_removed, piece) in edits {
            let at = text.floor_char_boundary(at.index(text.len() + 1));
            let end = text.ceil_char_boundary((at + n_removed).min(text.len()));
            text.replace_range(at..end, piece);
        }
        keeps_the_law(&text);
    }

    #[test]
    fn comments_and_blank_lines_change_nothing(lines in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let mut text: Vec<&str> = EXAMPLE.lines().collect();
        for line in lines {
            text.insert(line.index(text.len() + 1), "   # a comment");
            text.insert(line.index(text.len() + 1), "");
        }
        prop_assert_eq!(meaning(&pipeline(&text.join("\n"), &[])), meaning(&pipeline(EXAMPLE, &[])));
    }
}

/// Random changes of the shipped pipelines and of the example, for as many seconds as
/// `SBP_TEST_FUZZ_S` says, with the seed of `SBP_TEST_SEED`. A text that hangs the reader hangs the
/// test, and what one text may take of memory has a limit.
#[test]
fn changed_pipelines_give_a_pipeline_or_a_mistake() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("SBP_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("SBP_TEST_SEED={seed}");
    let shipped = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines")).unwrap();
    let mut texts = vec![EXAMPLE.to_owned()];
    for entry in shipped {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    texts.sort();
    let mut state = seed;
    let mut roll = |n: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    };
    let limit = number("SBP_TEST_FUZZ_S").map(std::time::Duration::from_secs);
    let (began, mut n_texts, mut n_good) = (std::time::Instant::now(), 0_u64, 0_u64);
    while limit.map_or(n_texts < 300, |limit| began.elapsed() < limit) {
        let mut text = texts[roll(texts.len())].clone();
        for _ in 0..=roll(3) {
            let at = text.floor_char_boundary(roll(text.len() + 1));
            let end = text.ceil_char_boundary((at + roll(40)).min(text.len()));
            // A piece, another place of the file, or nothing takes the place of what was there.
            let from = text.floor_char_boundary(roll(text.len() + 1));
            let to = text.ceil_char_boundary((from + roll(200)).min(text.len()));
            let put = match roll(3) {
                0 => PIECES[roll(PIECES.len())].to_owned(),
                1 => text[from..to].to_owned(),
                _ => String::new(),
            };
            text.replace_range(at..end, &put);
        }
        keeps_the_law(&text);
        n_good += u64::from(read(&text, &[("seed", "1")]).pipeline.is_some());
        n_texts += 1;
    }
    println!("{n_texts} texts, {n_good} of them pipelines");
    let peak_bytes = crate::run::peak_memory_bytes();
    assert!(peak_bytes < 2 << 30, "reading took {} MiB", peak_bytes >> 20);
}

/// All that a pipeline means, without places.
fn meaning(pipeline: &Pipeline) -> String {
    let mut text = format!("{:?}\n", pipeline.params);
    for node in &pipeline.nodes {
        let (name, task) = (&node.name, node.task.kind());
        writeln!(
            text,
            "{name} {task} {} {:?} {:?}",
            node.params, node.inputs, node.execution.resources
        )
        .unwrap();
    }
    text
}

#[test]
fn ten_thousand_nodes_are_no_burden() {
    let mut text =
        "version: 1\nnodes:\n  n0: {task: read_corpus, params: {sources: []}}\n".to_owned();
    for i in 1..10_000 {
        let previous = i - 1;
        writeln!(text, "  n{i}: {{task: clean, in: n{previous}, params: {{max_newlines: {i}}}}}")
            .unwrap();
    }
    assert_eq!(pipeline(&text, &[]).nodes.len(), 10_000);
    // The same chain closed to a circle: walking it must not use the stack.
    let circle = text
        .replace("n0: {task: read_corpus, params: {sources: []}}", "n0: {task: clean, in: n9999}");
    let codes: Vec<_> =
        read(&circle, &[]).mistakes.iter().map(crate::spec::Mistake::code).collect();
    assert_eq!(codes, ["spec::cycle"]);
}

#[test]
fn a_matrix_against_a_matrix_is_linear() {
    let text = "version: 1
nodes:
  read: {task: read_corpus, params: {sources: []}}
  a: {task: clean, in: read, matrix: {i: \"${{ range(5000) | list }}\"}}
  b: {task: clean, in: a, matrix: {i: \"${{ range(5000) | list }}\"}, params: {max_newlines: \"${{ matrix.i }}\"}}
";
    let pipeline = pipeline(text, &[]);
    assert_eq!(pipeline.nodes.len(), 10_001);
    let last = pipeline.nodes.last().unwrap();
    assert_eq!(last.name, "b[i=4999]");
    assert_eq!(pipeline.nodes[last.inputs["docs"][0].node].name, "a[i=4999]");
}
