//! Programs, well-behaved and not.

use std::time::{Duration, Instant};

use super::*;
use crate::task::FailureKind::{Permanent, Transient};
use crate::task::testbed::Bench;
use crate::task::{FailureKind, LogLevel, Report};

fn shell(script: &str) -> Value {
    json!({"command": [script], "shell": true, "outputs": {"out": "any"}})
}

fn bench(dir: &tempfile::TempDir) -> Bench {
    Bench::new(dir.path())
}

#[test]
fn a_program_sees_its_ports_and_params_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in put");
    fs::create_dir_all(&input).unwrap();
    fs::write(input.join("text"), "hello").unwrap();
    let bench = bench(&dir).input("words", &input);
    let mut params = shell(
        "tr a-z A-Z <\"$SBP_IN_WORDS/text\" >\"$SBP_OUT_OUT/text\"; \
         echo \"$SBP_PARAM_TIMES $SBP_PARAM_NAME $COLOUR $SBP_THREADS ${CARGO_MANIFEST_DIR-none}\" \
         >\"$SBP_OUT_OUT/env\"; grep -c checkpoint_dir \"$SBP_TASK\" >\"$SBP_OUT_OUT/json\"",
    );
    params["inputs"] = json!({"words": "any"});
    params["params"] = json!({"times": 3, "name": "two words"});
    params["env"] = json!({"COLOUR": "blue"});
    bench.run::<Exec>(&params).unwrap();
    let read = |name: &str| fs::read_to_string(bench.out("out").join(name)).unwrap();
    assert_eq!((read("text"), read("json")), ("HELLO".to_owned(), "1\n".to_owned()));
    assert_eq!(read("env"), "3 two words blue 2 none\n");
    // Without a shell, words are arguments and nothing else.
    let params = json!({
        "command": ["cp", "{in.words}/text", "{out.out}/a; echo b"],
        "inputs": {"words": "any"}, "outputs": {"out": "any"},
    });
    bench.run::<Exec>(&params).unwrap();
    assert_eq!(read("a; echo b"), "hello");
}

#[test]
fn lines_become_reports() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(&dir);
    let script = "echo ::sbp progress 3/10 files; echo ::sbp metric loss=1.5 acc=0.5 step=7; \
                  echo ::sbp result n=4; echo plain; echo odd >&2; echo ::sbp progress x; \
                  echo ::sbp warn careful; echo 1 >$SBP_OUT_OUT/x";
    let outputs = bench.run::<Exec>(&shell(script)).unwrap();
    assert_eq!(outputs.metrics["n"].to_bits(), 4_f64.to_bits());
    let log = |level, text: &str| Report::Log { level, text: text.to_owned() };
    let metric = |name: &str, value| Report::Metric { name: name.to_owned(), step: 7, value };
    let reports = bench.sink.reports();
    for expected in [
        Report::Progress { done: 3, total: 10, unit: "files".to_owned() },
        metric("loss", 1.5),
        metric("acc", 0.5),
        log(LogLevel::Info, "plain"),
        log(LogLevel::Info, "odd"),
        log(LogLevel::Warn, "careful"),
        log(LogLevel::Warn, "cannot make sense of `::sbp progress x`"),
    ] {
        assert!(reports.contains(&expected), "{expected:?} is not in {reports:?}");
    }
}

#[test]
fn failures_say_why() {
    let check = |script: &str, kind: FailureKind, message: &str| {
        let dir = tempfile::tempdir().unwrap();
        let failure = bench(&dir).run::<Exec>(&shell(script)).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure:?}");
        assert!(failure.message.ends_with(message), "{failure:?}");
    };
    check("echo a; echo b >&2; exit 3", Permanent, "ended with exit code 3; its last lines: a | b");
    check("exit 75", Transient, "ended with exit code 75");
    check("kill -SEGV $$", Permanent, "was ended by signal 11 (SIGSEGV)");
    check("true", Permanent, "the program left its output `out` empty");
    check("rm -r $SBP_OUT_OUT; ln -s / $SBP_OUT_OUT", Permanent, "`out` is no folder any more");
    let undeclared = "echo 1 >$SBP_OUT_OUT/x; mkdir $SBP_OUT_OUT/../more";
    check(undeclared, Permanent, "the program wrote `more`, which is no declared output");
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let check = |params: Value, message: &str| {
        let dir = tempfile::tempdir().unwrap();
        let failure = bench(&dir).run::<Exec>(&params).unwrap_err();
        assert!(failure.message.contains(message), "{failure:?}");
    };
    check(json!({"command": [], "outputs": {"o": "any"}}), "it names no program");
    let two = json!({"command": ["a", "b"], "shell": true, "outputs": {"o": "any"}});
    check(two, "it has 2 parts; a shell takes one");
    check(json!({"command": ["a"], "outputs": {}}), "a node without outputs makes nothing");
    check(json!({"command": ["a"], "outputs": {"../x": "any"}}), "`../x: any` is no port");
    check(json!({"command": ["a"], "outputs": {"x": "any*"}}), "`x: any*` is no port");
    let own = json!({"command": ["a"], "outputs": {"o": "any"}, "env": {"SBP_X": "1"}});
    check(own, "`SBP_X` cannot be the name");
    check(json!({"command": ["/no/such"], "outputs": {"o": "any"}}), "cannot start `/no/such`");
}

#[test]
fn a_stopped_program_may_save_and_goes_on_later() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(&dir);
    let script = "at=$SBP_CHECKPOINT_DIR/at; n=$(cat $at 2>/dev/null || echo 0); \
                  trap 'echo $n >$at; exit 1' TERM; echo ::sbp metric from=$n step=0; \
                  while [ $n -lt 5 ]; do n=$((n + 1)); echo ::sbp progress $n/5; \
                  [ $n = 3 ] && [ ! -f $at ] && { sleep 60 & wait; }; done; echo $n >$SBP_OUT_OUT/n";
    let (sink, cancel) = (std::sync::Arc::clone(&bench.sink), bench.cancel.clone());
    let stopper = std::thread::spawn(move || {
        let until = Instant::now() + Duration::from_mins(1);
        let is_third = |report: &Report| matches!(report, Report::Progress { done: 3, .. });
        while !sink.reports().iter().any(is_third) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        cancel.cancel();
    });
    let failure = bench.run::<Exec>(&shell(script)).unwrap_err();
    stopper.join().unwrap();
    assert_eq!(failure.kind, FailureKind::Cancelled, "{failure:?}");
    let again = Bench { cancel: crate::task::CancelToken::default(), ..bench };
    again.run::<Exec>(&shell(script)).unwrap();
    let from = Report::Metric { name: "from".to_owned(), step: 0, value: 3.0 };
    assert!(again.sink.reports().contains(&from));
    assert_eq!(fs::read_to_string(again.out("out").join("n")).unwrap(), "5\n");
}
