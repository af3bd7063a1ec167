//! Nodes that run programs: the examples, and what becomes of programs when their run is killed.

use std::path::Path;

use crate::harness::{Place, digests, read, until};

const EXAMPLES: [&str; 3] = ["programs.yaml", "draw.py", "average.sh"];
const RUN: [&str; 3] = ["run", "pipelines/examples/programs.yaml", "--json"];

fn examples() -> Place {
    let place = Place::new();
    for name in EXAMPLES {
        let name = format!("pipelines/examples/{name}");
        place.write(&name, &read(&name));
    }
    place
}

#[test]
fn the_examples_run_and_their_files_count() {
    let place = examples();
    let first = place.sbp(&RUN).expect(0).json();
    let detail = place.sbp(&["show", "average", "--json"]).expect(0).json();
    let mean = detail["attempts"][0]["metrics"]["mean"].as_f64().unwrap();
    assert!((0.45..0.55).contains(&mean), "{mean}");
    assert_eq!(place.sbp(&RUN).expect(0).json()["nodes"]["ran"], 0);
    // A changed program runs again; the same numbers leave what follows alone.
    let program = read("pipelines/examples/draw.py") + "# A comment.\n";
    place.write("pipelines/examples/draw.py", &program);
    let second = place.sbp(&RUN).expect(0).json();
    assert_eq!(second["nodes"]["ran"], 1);
    assert_eq!(digests(&first), digests(&second));
}

#[test]
fn ports_of_programs_are_checked() {
    let place = examples();
    let text = read("pipelines/examples/programs.yaml");
    let wrong = text.replace("in: {numbers: draw}", "in: {number: draw.figures}");
    place.write("pipelines/examples/programs.yaml", &wrong);
    let ran = place.sbp(&["plan", "pipelines/examples/programs.yaml"]).expect(2);
    assert!(ran.stderr.contains("task `exec` has no input port `number`"), "{}", ran.stderr);
    assert!(ran.stderr.contains("did you mean `numbers`?"), "{}", ran.stderr);
}

/// Leaves a program with a child of its own running, unless it was here before.
const LINGER: &str = "
version: 1
nodes:
  linger:
    task: exec
    params:
      shell: true
      outputs: {out: any}
      command:
        - |
          echo done >$SBP_OUT_OUT/out
          [ ! -f $SBP_CHECKPOINT_DIR/here ] || exit 0
          sleep 300 & echo $! >$SBP_CHECKPOINT_DIR/child
          echo $$ >$SBP_CHECKPOINT_DIR/here
          cp -r $SBP_CHECKPOINT_DIR pids.part; mv pids.part pids
          wait
";

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn programs_die_with_their_run() {
    let place = Place::new();
    place.write("linger.yaml", LINGER);
    let mut child = place.start(&["run", "linger.yaml"]);
    let pids = place.path().join("pids");
    until("the program runs", || pids.exists());
    let pid = |name: &str| std::fs::read_to_string(Path::new(&pids).join(name)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the program is killed with its run", || !is_alive(&pid("here")));
    // What the program itself had started is known by its environment.
    let summary = place.sbp(&["run", "linger.yaml", "--json"]).expect(0).json();
    assert_eq!(summary["state"], "done");
    until("nothing is left behind", || !is_alive(&pid("child")));
}

/// Leaves a process in a session of its own, and uses memory that the run does not.
const LEAVES: &str = "
version: 1
nodes:
  leaves:
    task: exec
    params:
      shell: true
      outputs: {out: any}
      command:
        - |
          setsid sleep 300 >/dev/null 2>&1 & echo $! >pid
          head -c 60M /dev/zero | tail -c 60M | wc -c >$SBP_OUT_OUT/n
";

#[test]
fn a_program_leaves_nothing_running_and_its_memory_is_its_own() {
    let place = Place::new();
    place.write("leaves.yaml", LEAVES);
    place.sbp(&["run", "leaves.yaml"]).expect(0);
    let pid = std::fs::read_to_string(place.path().join("pid")).unwrap();
    until("what has a session of its own is killed too", || !is_alive(&pid));
    let attempt = &place.sbp(&["show", "leaves", "--json"]).expect(0).json()["attempts"][0];
    let (peak, said) = (&attempt["peak_memory_bytes"], &attempt["metrics"]["peak_memory_mib"]);
    let peak_mib = peak.as_f64().unwrap() / f64::from(1 << 20);
    assert!(
        (peak_mib - said.as_f64().unwrap()).abs() < 0.1 && peak_mib > 50.0,
        "{peak_mib} {said}"
    );
}

#[test]
fn the_most_urgent_starts_first_whatever_stands_first() {
    let place = Place::new();
    let node = |name: &str, priority: i32| {
        format!(
            "  {name}:\n    priority: {priority}\n    task: exec\n    params: {{shell: true, \
             outputs: {{out: any}}, command: [\"echo {name} >>order; echo {name} >$SBP_OUT_OUT/n\"]}}\n"
        )
    };
    let nodes = node("late", -1) + &node("middle", 0) + &node("early", 6);
    place.write("order.yaml", &format!("version: 1\nnodes:\n{nodes}"));
    place.sbp(&["run", "order.yaml", "-j", "1"]).expect(0);
    let order = std::fs::read_to_string(place.path().join("order")).unwrap();
    assert_eq!(order, "early\nmiddle\nlate\n");
}
