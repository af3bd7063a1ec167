use std::fs;
use std::path::{Path, PathBuf};

use engine::task::testbed::Bench;
use serde_json::{Value, json};

use super::*;
use crate::fixture;
use crate::lm::init::Init;
use crate::lm::{Config, Weights};

fn item_file(dir: &Path, name: &str, items: &[Value]) -> PathBuf {
    let dir = dir.join(name);
    fs::create_dir_all(&dir).unwrap();
    let lines: Vec<String> = items.iter().map(Value::to_string).collect();
    let bytes = zstd::encode_all(lines.join("\n").as_bytes(), 1).unwrap();
    fs::write(dir.join(read_items::FILE), bytes).unwrap();
    dir
}

fn model(dir: &Path, context: usize, change: impl Fn(&mut Weights)) -> PathBuf {
    let folder = dir.join("model");
    let tokenizer = fixture::tokenizer(dir);
    let vocab_size = Tokenizer::open(&tokenizer).unwrap().vocab_size() as usize;
    let config = Config {
        d_model: 16,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 8,
        d_ffn: 24,
        vocab_size,
        context,
        rope_theta: 1e4,
        norm_eps: 1e-6,
        tie_embeddings: false,
    };
    let mut weights = Init::default().draw(&Pool::new(1), &config, 7);
    change(&mut weights);
    hf::save(&folder, &weights, Some(&tokenizer.join(hf::TOKENIZER_FILE))).unwrap();
    folder
}

fn arc(i: usize, gold: &str) -> Value {
    json!({
        "question": format!("What is {i}?"),
        "choices": {"text": ["a cat", "dogs", "one of the birds"], "label": ["A", "B", "C"]},
        "answerKey": gold,
    })
}

#[test]
fn prompts_are_word_for_word() {
    let form = |name: Name, item: Value| Item(&item).form(name, "").unwrap();
    let Form::Choices { pairs, gold, .. } = form(Name::ArcEasy, arc(3, "B")) else { panic!() };
    assert_eq!(pairs[1], ("Question: What is 3?\nAnswer:".to_owned(), " dogs".to_owned()));
    assert_eq!(gold, [1]);
    let sciq = json!({"question": "Q?", "correct_answer": "r", "distractor1": "x", "distractor2": "y",
        "distractor3": "z", "support": "  Some text."});
    let Form::Choices { pairs, choices, gold } = form(Name::Sciq, sciq) else { panic!() };
    assert_eq!(pairs[0].0, "Some text.\nQuestion: Q?\nAnswer:");
    assert_eq!((choices[3].as_str(), gold), ("r", vec![3]));
    let sentence =
        json!({"sentence": "Ann saw _ go. ", "option1": "Bo", "option2": "Cy", "answer": "2"});
    let Form::Choices { pairs, gold, .. } = form(Name::Winogrande, sentence) else { panic!() };
    assert_eq!(pairs[1], ("Ann saw Cy".to_owned(), " go.".to_owned()));
    assert_eq!(gold, [1]);
    let lambada = form(Name::Lambada, json!({"text": "in a house  here"}));
    let word = Form::Word { context: "in a house ".into(), continuation: " here".into() };
    assert_eq!(lambada, word);
    let webqs = json!({"question": "who", "answers": ["Paris Hilton", "Bo", "Paris"]});
    let Form::Choices { choices, gold, .. } = form(Name::Webqs, webqs) else { panic!() };
    assert_eq!((choices, gold), (vec!["Bo".to_owned(), "Paris".to_owned()], vec![0, 1]));
    let mmlu = json!({"question": " Why? ", "subject": "high_school_biology",
        "choices": ["1", "2", "3", "4"], "answer": 2});
    let question = "Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:";
    assert_eq!(Item(&mmlu).example(Name::Mmlu).unwrap(), format!("{question} C\n\n"));
    let Form::Text { text, answer } = form(Name::MmluText, mmlu) else { panic!() };
    assert_eq!(text, format!("{question} C"));
    assert_eq!(answer, Some((question.to_owned(), " C".to_owned())));
    let trivia = json!({"question": "Who?", "answer": {"aliases": ["The Beatles", "Beatles"]}});
    assert_eq!(
        Item(&trivia).example(Name::Triviaqa).unwrap(),
        "Question: Who??\nAnswer: The Beatles\n\n"
    );
    let wrong = Item(&json!({"question": "Q"})).form(Name::ArcEasy, "").unwrap_err();
    assert!(wrong.contains("choices.text"), "{wrong}");
}

#[test]
fn open_answers_are_compared_without_case_and_punctuation() {
    let row = |text: &str| {
        let answers = vec!["The U.S.A.".to_owned(), "america!".to_owned()];
        let form = Form::Open { prompt: String::new(), answers };
        let row = score::row(Name::Triviaqa, 0, &form, &[], Some(text.to_owned()));
        row.right["exact_match"]
    };
    assert!(row(" America") && row(" America, the") && row("AMERICA\nQuestion:"));
    assert!(!row(" of America") && !row(""));
}

#[test]
fn choices_are_normalized_by_characters_and_bytes() {
    let scored = |log_likelihood: f64| Scored { log_likelihood, greedy: false, n_tokens: 1 };
    let choices: Vec<String> = ["ab", "abcdefgh", "ééééé"].map(str::to_owned).to_vec();
    let form = Form::Choices { pairs: Vec::new(), choices, gold: vec![1] };
    let scores = [scored(-3.0), scored(-8.0), scored(-5.5)];
    let row = score::row(Name::ArcEasy, 4, &form, &scores, None);
    // By characters -1.5, -1, -1.1; by bytes -1.5, -1, -0.55.
    let right: Vec<bool> = ["acc", "acc_norm", "acc_bytes"].map(|name| row.right[name]).to_vec();
    assert_eq!((row.item, row.prediction, right), (4, Some(0), vec![false, true, false]));
}

/// A model whose output matrix is zero gives every token the same probability.
#[test]
fn a_uniform_model_scores_by_length() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), 64, |weights| weights.output_mut().fill(0.0));
    let items: Vec<Value> = (0..40).map(|i| arc(i, ["A", "B", "C"][i % 3])).collect();
    let items = item_file(dir.path(), "items", &items);
    let bench = Bench::new(dir.path()).input("model", &model).input("items", &items);
    bench.run::<Benchmark>(&json!({"name": "arc_easy"})).unwrap();
    let (scores, rows) = read(&bench.out("benchmark")).unwrap();
    let tokenizer = Tokenizer::open(&model).unwrap();
    let nats = f64::from(tokenizer.vocab_size()).ln();
    let n_tokens = |text: &str| tokenizer.encode(text).unwrap().len() as f64;
    assert_eq!((rows.len(), scores.n_items, scores.headline.as_str()), (40, 40, "acc"));
    for row in &rows {
        for (found, choice) in
            row.log_likelihoods.iter().zip([" a cat", " dogs", " one of the birds"])
        {
            assert!((found + nats * n_tokens(choice)).abs() < 1e-3, "{row:?}");
        }
    }
    let acc = scores.metrics["acc"];
    assert!(acc.low < acc.value && acc.value < acc.high);

    let text =
        item_file(dir.path(), "texts", &[json!({"text": "a house in the wood ".repeat(40)})]);
    let bench = Bench::new(&dir.path().join("b")).input("model", &model).input("items", &text);
    bench.run::<Benchmark>(&json!({"name": "openwebtext2"})).unwrap();
    let (scores, rows) = read(&bench.out("benchmark")).unwrap();
    assert!((scores.metrics["token_perplexity"].value / nats.exp() - 1.0).abs() < 1e-4);
    assert!(rows[0].tokens > 64 && rows[0].words == 201, "{rows:?}");
}

#[test]
fn a_stopped_run_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), 96, |_| {});
    let questions: Vec<Value> = (0..300)
        .map(|i| json!({"question": format!("Who is {i}"), "answer": {"aliases": ["Bo"]}}))
        .collect();
    let items = item_file(dir.path(), "items", &questions);
    let params = json!({"name": "triviaqa", "max_new_tokens": 8});
    let bench = |name: &str| {
        Bench::new(&dir.path().join(name)).input("model", &model).input("items", &items)
    };
    let whole = bench("whole");
    whole.run::<Benchmark>(&params).unwrap();
    let n_items = whole.items.n_done();
    assert_eq!(n_items, 3);
    let stopped = bench("stopped");
    stopped.stop_after(1);
    let failure = stopped.run::<Benchmark>(&params).unwrap_err();
    assert_eq!(failure.kind, task::FailureKind::Cancelled, "{failure}");
    let cancel = task::CancelToken::default();
    let again = Bench { cancel, n_threads: 1, ..stopped };
    again.run::<Benchmark>(&params).unwrap();
    assert!(again.items.n_tries() <= n_items as u64 + 1);
    let bytes = |bench: &Bench| fs::read(bench.out("benchmark").join(ROWS_FILE)).unwrap();
    assert_eq!(bytes(&whole), bytes(&again));
}

/// A model whose shapes the kernels take, far from uniform.
fn sharp(dir: &Path, context: usize) -> PathBuf {
    let folder = dir.join("model");
    let tokenizer = fixture::tokenizer(dir);
    let vocab_size = Tokenizer::open(&tokenizer).unwrap().vocab_size() as usize;
    let mut config = crate::lm::device::tests::config(false);
    (config.vocab_size, config.context) = (vocab_size.next_multiple_of(8), context);
    let mut weights = Init::default().draw(&Pool::new(1), &config, 7);
    weights.output_mut().iter_mut().for_each(|x| *x *= 10.0);
    hf::save(&folder, &weights, Some(&tokenizer.join(hf::TOKENIZER_FILE))).unwrap();
    folder
}

/// Likelihoods agree with the CPU's to what bf16 holds, for choices that share their context, for
/// words and for whole texts; the items of a device are its own.
#[test]
fn a_device_scores_as_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let model = sharp(dir.path(), 64);
    let question = |i: usize| {
        json!({"question": format!("Why {i}?"), "subject": "high_school_biology",
            "choices": ["one", "two", "three", "four"], "answer": i % 4})
    };
    let text = |i: usize| json!({"text": format!("a house {i} in the wood ").repeat(5 + 6 * i)});
    let check = |params: Value, items: &[Value]| {
        let place = dir.path().join(params["name"].as_str().unwrap());
        let items = item_file(&place, "items", items);
        let mut bench = Bench::new(&place).input("model", &model).input("items", &items);
        let mut run = |device: &str| {
            device.clone_into(&mut bench.device);
            let outputs = bench.run::<Benchmark>(&params).unwrap();
            let (_, rows) = read(&bench.out("benchmark")).unwrap();
            (rows, outputs.metrics.contains_key("on_gpu"), bench.items.n_done())
        };
        let (expected, is_on_gpu, n_done) = run("cpu");
        assert_eq!((is_on_gpu, n_done), (false, 1));
        let (found, is_on_gpu, n_done) = run(&device::tests::emulated());
        assert_eq!((is_on_gpu, n_done), (true, 2));
        let (mut n, mut n_equal) = (0, 0);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.item, found.tokens), (expected.item, expected.tokens));
            let all = found.log_likelihoods.iter().zip(&expected.log_likelihoods);
            for (found, expected) in all {
                let off = (found - expected).abs();
                assert!(off < 0.03 + 3e-3 * expected.abs(), "{params}: {found} {expected}");
                (n, n_equal) = (n + 1, n_equal + usize::from(off == 0.0));
            }
        }
        assert!(n > 0 && n_equal < n, "the device computes for itself");
        assert_eq!(run("cpu").0, expected);
    };
    check(json!({"name": "mmlu", "shots": 0}), &(0..5).map(question).collect::<Vec<_>>());
    check(json!({"name": "lambada"}), &(0..3).map(text).collect::<Vec<_>>());
    check(json!({"name": "openwebtext2"}), &(0..3).map(text).collect::<Vec<_>>());
}

/// Answers are the CPU's where the likeliest token is clear, and an interrupted run goes on.
#[test]
fn a_device_answers_as_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let model = sharp(dir.path(), 96);
    let questions: Vec<Value> = (0..140)
        .map(|i| json!({"question": format!("Who is {i}"), "answer": {"aliases": ["Bo"]}}))
        .collect();
    let items = item_file(dir.path(), "items", &questions);
    let params = json!({"name": "triviaqa", "shots": 0, "max_new_tokens": 3});
    let bench = |name: &str, device: &str| {
        let bench =
            Bench::new(&dir.path().join(name)).input("model", &model).input("items", &items);
        Bench { device: device.to_owned(), ..bench }
    };
    let rows = |bench: &Bench| read(&bench.out("benchmark")).unwrap().1;
    let on_cpu = bench("cpu", "cpu");
    on_cpu.run::<Benchmark>(&params).unwrap();
    let emulated = device::tests::emulated();
    let stopped = bench("device", &emulated);
    stopped.stop_after(1);
    stopped.run::<Benchmark>(&params).unwrap_err();
    let again = Bench { cancel: task::CancelToken::default(), ..stopped };
    again.run::<Benchmark>(&params).unwrap();
    let whole = bench("whole", &emulated);
    whole.run::<Benchmark>(&params).unwrap();
    assert_eq!(rows(&again), rows(&whole));
    let (found, expected) = (rows(&whole), rows(&on_cpu));
    let same = found.iter().zip(&expected).filter(|(found, expected)| found == expected).count();
    assert!(10 * same >= 9 * expected.len(), "{same} of {}", expected.len());
}

#[test]
fn examples_are_drawn_or_told_to_be_missing() {
    let items: Vec<Value> = (0..4)
        .map(|i| json!({"question": format!("q{i}"), "answers": [format!("a{i}")]}))
        .collect();
    let params: Params = serde_json::from_value(json!({"name": "webqs"})).unwrap();
    let all = forms(&params, &items, None).unwrap();
    for (i, form) in all.iter().enumerate() {
        let Form::Choices { pairs, .. } = form else { panic!() };
        let (example, question) = pairs[0].0.split_once("\n\n").unwrap();
        assert_eq!(question, format!("Question: q{i}\nAnswer:"));
        assert!(!example.contains(&format!("q{i}")), "an item is its own example: {example}");
    }
    let few: Params = serde_json::from_value(json!({"name": "webqs", "shots": 4})).unwrap();
    let failure = forms(&few, &items, None).unwrap_err();
    assert!(failure.message.contains("has 3 examples, not 4"), "{failure}");
}
