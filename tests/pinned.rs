//! What every task gives on fixed inputs. A node's key holds its task's revision, so another result
//! under the same revision would be served from old artifacts.

use std::collections::BTreeSet;

use engine::task::Determinism;
use serde_json::Value;

use crate::harness::{Place, read};
use crate::judge::{Manner, Server};

/// A task, its revision, a node of `every_task.yaml`, and what that node gives.
struct Pin {
    kind: &'static str,
    revision: u32,
    node: &'static str,
    gives: Gives,
}

enum Gives {
    /// Bytes that are the same everywhere: the start of each output's digest.
    Digests(&'static [(&'static str, &'static str)]),
    /// Bytes that depend on the instruction set: figures, within this share of their value.
    Figures(f64, &'static [(&'static str, f64)]),
}
use Gives::{Digests, Figures};

const fn pin(kind: &'static str, revision: u32, node: &'static str, gives: Gives) -> Pin {
    Pin { kind, revision, node, gives }
}

const PINS: &[Pin] = &[
    pin("read_corpus", 3, "read", Digests(&[("corpus", "a3712b5234039290")])),
    pin("generate_corpus", 1, "world", Digests(&[("corpus", "f19874fa6302a7d0")])),
    pin("clean", 2, "clean", Digests(&[("corpus", "201dff7f4fba7efa")])),
    pin("dedup", 3, "distinct", Digests(&[("corpus", "d4f817a8b453ce52")])),
    pin("train_tokenizer", 1, "tokenizer", Digests(&[("tokenizer", "b7eab8f7010b329a")])),
    pin("import_tokenizer", 1, "foreign", Digests(&[("tokenizer", "ed425e0e3488e456")])),
    pin(
        "split",
        1,
        "split",
        Digests(&[("heldout", "296d07fa94e92f85"), ("train", "23516e773361c348")]),
    ),
    pin("tokenize", 1, "pool", Digests(&[("tokens", "4271d8b27dcf8e7e")])),
    pin("sample", 1, "real", Digests(&[("tokens", "c13a2f8c45e562de")])),
    pin("mix", 1, "mix", Digests(&[("schedule", "0c7e160639c32ec6")])),
    pin("measure_overlap", 2, "overlap", Digests(&[("overlap", "9c179733a5aa8c1e")])),
    pin("export", 2, "dataset", Digests(&[("dataset", "c6e8b27f4c6e46c2")])),
    pin("drop_repeats", 1, "kept", Digests(&[("corpus", "f4f04460f864d0ac")])),
    pin(
        "pretrain",
        3,
        "base",
        Figures(
            1e-3,
            &[
                ("heldout_loss", 4.77563),
                ("loss", 4.49001),
                ("n_parameters", 115_136.0),
                ("n_steps", 40.0),
                ("n_tokens", 20_000.0),
            ],
        ),
    ),
    pin(
        "embed",
        1,
        "embed",
        Figures(1e-3, &[("dim", 1024.0), ("n_documents", 38.0), ("n_zero", 0.0)]),
    ),
    pin(
        "pair",
        2,
        "near",
        Figures(
            1e-3,
            &[
                ("n_pairs", 76.0),
                ("n_seeds", 31.0),
                ("score_median", 0.471_847),
                ("seed_coverage", 0.815_789),
            ],
        ),
    ),
    pin(
        "drop_near_dups",
        1,
        "pairs",
        Figures(1e-3, &[("dropped_share", 0.368_421), ("n_pairs", 48.0), ("n_pairs_in", 76.0)]),
    ),
    pin(
        "tune_synthesizer",
        3,
        "tune",
        Figures(
            2e-3,
            &[
                ("epochs", 0.681_818),
                ("heldout_loss", 4.38388),
                ("heldout_loss_before", 4.44511),
                ("heldout_loss_unrelated", 4.38226),
                ("loss", 4.24122),
                ("n_pairs", 44.0),
                ("n_parameters", 115_136.0),
                ("n_seeds", 26.0),
                ("n_steps", 6.0),
                ("n_tokens", 6396.0),
                ("reads_d1", 0.99963),
            ],
        ),
    ),
    pin(
        "measure_quality",
        2,
        "quality",
        Figures(1e-3, &[("duplicate", 0.0), ("regurgitation", 0.11875), ("repetition", 0.28125)]),
    ),
    pin(
        "measure_quality",
        2,
        "quality_synth",
        Figures(
            0.15,
            &[
                ("duplicate", 0.0),
                ("pair_copying", 0.0),
                ("regurgitation", 0.0),
                ("repetition", 0.0),
                ("win_rate", 0.48375),
            ],
        ),
    ),
    pin("gate", 2, "gate", Figures(1e-3, &[("non_repetition", 0.71875), ("pass", 0.0)])),
    pin(
        "synthesize",
        1,
        "synth",
        Figures(
            0.05,
            &[
                ("acceptance", 0.97561),
                ("documents", 40.0),
                ("gross_tokens", 1755.0),
                ("net_tokens", 1802.0),
            ],
        ),
    ),
    pin(
        "evaluate",
        2,
        "eval_base",
        Figures(
            1e-3,
            &[("bits_per_byte", 3.21626), ("mean_nll", 4.77563), ("token_perplexity", 118.585)],
        ),
    ),
    pin(
        "compare",
        2,
        "compare",
        Figures(1e-3, &[("mean_nll.base", 4.77563), ("mean_nll.sbp", 5.5202), ("n_items", 30.0)]),
    ),
    pin("exec", 1, "program", Figures(0.0, &[("n", 1.0)])),
    pin("read_items", 1, "items", Digests(&[("items", "2bb87861d24320ec")])),
    pin(
        "benchmark",
        3,
        "bench_base",
        Figures(1e-3, &[("acc", 0.5), ("acc_bytes", 0.5), ("acc_norm", 0.5), ("n_items", 24.0)]),
    ),
    pin(
        "compare_benchmarks",
        2,
        "compare_benchmarks",
        Figures(1e-3, &[("average.bench_base", 50.0), ("average.bench_sbp", 50.0)]),
    ),
    pin("judge", 2, "judge", Figures(0.0, &[("answers", 20.0), ("repetition", 0.0)])),
    pin("select_model", 1, "select_model", Figures(0.0, &[("chosen", 0.0), ("n_candidates", 2.0)])),
    pin("report", 4, "report", Figures(0.02, &[("html_bytes", 17_264.0)])),
    pin(
        "generate_world",
        1,
        "closed",
        Digests(&[
            ("heldout", "b1ebef5f8e6430c8"),
            ("pool", "677284e7d03ad560"),
            ("tokenizer", "ad5a06dbd27fa309"),
            ("train", "43fe877c863b0a34"),
            ("validation", "e7696b947c4b6270"),
            ("world", "2efcbc89dda6c051"),
        ]),
    ),
    pin(
        "select_snapshot",
        1,
        "closed_start",
        Figures(1e-3, &[("fraction", 1.0), ("validation_loss", 4.18518)]),
    ),
    pin(
        "pair_true",
        1,
        "closed_pairs",
        Figures(1e-3, &[("n_pairs", 48.0), ("precision", 0.944_444), ("recall", 0.708_333)]),
    ),
    pin(
        "evaluate_synthesizer",
        1,
        "closed_synthesizer",
        Figures(
            2e-3,
            &[
                ("kl.paired", 107.094),
                ("kl.unpaired", 107.645),
                ("related.paired", 4.29998),
                ("unrelated.unpaired", 4.31862),
            ],
        ),
    ),
    pin("measure_facts", 2, "closed_facts", Digests(&[("facts", "6cf3d28e5d204372")])),
    pin("check_arms", 1, "closed_checks", Digests(&[("checks", "cab3e9e37f9352f3")])),
    pin(
        "evaluate_world",
        1,
        "closed_eval[arm=sbp]",
        Figures(
            2e-3,
            &[
                ("accuracy", 0.2),
                ("fact_loss", 4.53748),
                ("loss", 4.20063),
                ("other_loss", 4.14628),
            ],
        ),
    ),
    pin(
        "compare_arms",
        2,
        "closed_compare",
        Figures(1e-3, &[("accuracy.sbp", 0.2), ("accuracy_minus.random", 0.0), ("n_seeds", 1.0)]),
    ),
];

/// What to do when this fails.
const ADVICE: &str =
    "\nif the change is meant, raise REVISION of the task and write the new values here";

/// Three words, written elsewhere.
const FOREIGN_TOKENIZER: &str = r#"{
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"}
}"#;

/// A folder in which `every_task.yaml` ran.
pub(crate) fn every_task() -> Place {
    let place = Place::new();
    place.write("texts/one.txt", "Caf\u{c3}\u{a9} and\u{7} tea.\n\n\n\nA second part.\n");
    place.write("texts/two.txt", &"Words and words, line after line.\n".repeat(20));
    place.write("foreign.json", FOREIGN_TOKENIZER);
    place.write("every_task.yaml", &read("tests/pipelines/every_task.yaml"));
    place.write("items.jsonl", &items());
    let judge = format!("judge_url={}", Server::start(Manner::Plain).url);
    place.sbp(&["run", "every_task.yaml", "--set", &judge]).expect(0);
    place
}

#[test]
fn another_result_needs_another_revision() {
    let registry = tasks::registry();
    let kinds: BTreeSet<&str> = registry.iter().map(|task| task.kind()).collect();
    let pinned: BTreeSet<&str> = PINS.iter().map(|pin| pin.kind).collect();
    assert_eq!(kinds, pinned, "every task has a pinned result");

    let place = every_task();
    let mut wrong = String::new();
    for pin in PINS {
        let detail = place.sbp(&["show", pin.node, "--json"]).expect(0).json();
        assert_eq!(detail["node"]["task"], pin.kind, "{}", pin.node);
        let revision = registry.get(pin.kind).unwrap().revision();
        if revision != pin.revision || !agrees(&pin.gives, &detail) {
            wrong.push_str(&found(pin, revision, &detail));
        }
    }
    assert!(wrong.is_empty(), "found instead:\n{wrong}{ADVICE}");
}

#[test]
fn what_is_the_same_everywhere_is_pinned_by_its_bytes() {
    let place = Place::new();
    place.write("every_task.yaml", &read("tests/pipelines/every_task.yaml"));
    let drawing = place.sbp(&["graph", "every_task.yaml", "--all", "--json"]).expect(0).json();
    let registry = tasks::registry();
    let boxes = drawing["boxes"].as_array().unwrap();
    let mut is_same: Vec<bool> = boxes
        .iter()
        .map(|node| {
            let task = registry.get(node["task"].as_str().unwrap()).unwrap();
            matches!(task.determinism(), Determinism::Bitwise)
        })
        .collect();
    // What reads bytes that differ gives bytes that differ: a path has at most all the nodes.
    for _ in boxes {
        for edge in drawing["edges"].as_array().unwrap() {
            let end = |i: usize| edge[i].as_u64().unwrap() as usize;
            is_same[end(1)] &= is_same[end(0)];
        }
    }
    for pin in PINS {
        let i = boxes.iter().position(|node| node["name"] == pin.node).unwrap();
        let by_bytes = matches!(pin.gives, Digests(_));
        assert!(by_bytes || !is_same[i], "`{}` gives the same bytes everywhere", pin.node);
    }
}

/// Questions with one short and one long choice.
fn items() -> String {
    let item = |i: usize| {
        let label = ["A", "B"][i % 2];
        format!(
            "{{\"question\":\"What is {i}?\",\"choices\":{{\"text\":[\"a tea\",\"two lamps and {i} birds\"],\
             \"label\":[\"A\",\"B\"]}},\"answerKey\":\"{label}\"}}\n"
        )
    };
    (0..24).map(item).collect()
}

/// Name and value of the figures of a node's last attempt.
fn figures(detail: &Value) -> Vec<(String, f64)> {
    let attempts = detail["attempts"].as_array().unwrap();
    let metrics = attempts.last().unwrap()["metrics"].as_object().unwrap();
    metrics.iter().map(|(name, value)| (name.clone(), value.as_f64().unwrap())).collect()
}

/// Port and the start of the digest of a node's outputs.
fn digests(detail: &Value) -> Vec<(String, String)> {
    let outputs = detail["node"]["outputs"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    outputs
        .map(|output| (text(&output["port"]), text(&output["digest"])[..16].to_owned()))
        .collect()
}

fn agrees(gives: &Gives, detail: &Value) -> bool {
    match gives {
        Digests(expected) => {
            digests(detail).iter().map(|(a, b)| (&**a, &**b)).eq(expected.iter().copied())
        }
        Figures(share, expected) => {
            let found = figures(detail);
            !expected.is_empty()
                && expected.iter().all(|(name, value)| {
                    let close = |x: f64| (x - value).abs() <= share * value.abs();
                    found.iter().any(|(other, x)| other == name && close(*x))
                })
        }
    }
}

/// The line that would be right.
fn found(pin: &Pin, revision: u32, detail: &Value) -> String {
    let gives = match &pin.gives {
        Digests(_) => format!("Digests(&{:?})", digests(detail)),
        Figures(share, _) => format!("Figures({share:?}, &{:?})", figures(detail)),
    };
    format!("    pin({:?}, {revision}, {:?}, {gives}),\n", pin.kind, pin.node)
}
