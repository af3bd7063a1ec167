//! A seeded simulation of the world around the scheduler.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::*;
use crate::graph::{Execution, Node, Place, Resources, Source};
use crate::task::{
    Context, Determinism, Failure, Inputs, Outputs, Port, Registry, Task as TaskTrait,
};

#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
struct Nothing {}

struct Idle;

impl TaskTrait for Idle {
    const KIND: &'static str = "idle";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "never runs";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::many("in", "any", "anything")];
    const OUTPUTS: &'static [Port] = &[];
    type Params = Nothing;

    fn run(_: &mut Context, _: &Nothing, _: &Inputs) -> Result<Outputs, Failure> {
        Err(Failure::permanent("it was run"))
    }
}

/// A generator for tests: its numbers only have to differ.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % n
    }
}

fn pipeline(dice: &mut Dice, n_nodes: usize) -> Pipeline {
    let registry = Registry::default().with::<Idle>();
    let place = Place { file: "sim".into(), line: 1, column: 1 };
    let node = |index: usize, dice: &mut Dice| {
        let n_needs = if index == 0 { 0 } else { dice.roll(3) };
        let needs: BTreeSet<usize> =
            (0..n_needs).map(|_| dice.roll(index as u64) as usize).collect();
        let sources = needs.into_iter().map(|node| Source { node, port: "out".to_owned() });
        Node {
            name: format!("n{index}"),
            entry: format!("n{index}"),
            matrix: IndexMap::new(),
            task: std::sync::Arc::clone(registry.get("idle").unwrap()),
            params: json!({}),
            inputs: BTreeMap::from([("in".to_owned(), sources.collect())]),
            external: Vec::new(),
            execution: std::sync::Arc::new(Execution {
                resources: Resources { cpu: 1 + dice.roll(6) as u32, ..Resources::default() },
                retry: Retry { attempts_max: 1 + dice.roll(3) as u32, ..Retry::default() },
                timeout: (dice.roll(4) == 0).then(|| Duration::from_millis(40)),
                priority: dice.roll(3) as i32,
                ..Execution::default()
            }),
            salt: String::new(),
            expect: BTreeMap::new(),
            place: place.clone(),
            param_places: Vec::new(),
        }
    };
    Pipeline {
        name: "sim".to_owned(),
        path: PathBuf::from("sim"),
        text: "".into(),
        params: IndexMap::<String, Value>::new(),
        nodes: (0..n_nodes).map(|index| node(index, dice)).collect(),
    }
}

/// What the world owes the scheduler: an event for each command, some time later.
fn answer(dice: &mut Dice, command: Command, now_us: i64) -> Option<(i64, Event)> {
    let later_us = now_us + dice.roll(50_000) as i64;
    let event = match command {
        Command::Resolve { node } => match dice.roll(8) {
            0 => Event::Cached { node },
            1 => Event::Foreign { node, can_help: dice.roll(2) == 0 },
            _ => Event::Missing { node },
        },
        Command::Claim { node } if dice.roll(6) == 0 => Event::Lost { node },
        Command::Claim { node } => Event::Claimed { node },
        Command::Start { node, .. } => match dice.roll(12) {
            0..=3 => Event::Ended { node },
            4 => Event::Lost { node },
            5 => Event::Published { node },
            _ => Event::Made { node },
        },
        Command::Help { node, .. } => Event::Helped { node },
        _ => return None,
    };
    Some((later_us, event))
}

/// The ledger's answer to the end of an attempt. Now and then it has given the key to another process.
fn ruling(dice: &mut Dice, node: usize, is_made: bool) -> Event {
    let failed = |kind| Event::Failed { node, kind };
    match dice.roll(9) {
        0 => Event::Lost { node },
        _ if is_made => Event::Published { node },
        1 | 2 => failed(FailureKind::Permanent),
        3 => failed(FailureKind::Parked),
        4 => failed(FailureKind::Cancelled),
        _ => failed(FailureKind::Transient),
    }
}

fn simulate(seed: u64) {
    let mut dice = Dice(seed);
    let n_nodes = 1 + dice.roll(40) as usize;
    let pipeline = pipeline(&mut dice, n_nodes);
    let total = Amounts { cpu: 4, memory_bytes: 0, gpu: 0, pools: BTreeMap::new() };
    let keep_going = dice.roll(4) > 0;
    let policy = Policy { total, keep_going, seed };
    let weights = vec![1; n_nodes];
    let mut state = State::new(&pipeline, &vec![true; n_nodes], &weights, policy);
    let stop_at_us = (dice.roll(3) == 0).then(|| dice.roll(400_000) as i64);
    let mut queue: BTreeSet<(i64, usize)> = BTreeSet::from([(0, 0)]);
    let mut events = vec![Event::Start];
    let mut finished: BTreeMap<usize, NodeState> = BTreeMap::new();
    let mut running: BTreeMap<usize, u32> = BTreeMap::new();
    // Nodes whose attempts are over, and which of the events are the ledger's answers about them.
    let mut asked: BTreeSet<usize> = BTreeSet::new();
    let mut answers: BTreeSet<usize> = BTreeSet::new();
    if let Some(at_us) = stop_at_us {
        queue.insert((at_us, events.len()));
        events.push(Event::Stop);
    }
    let mut n_steps = 0;
    while !state.is_finished() {
        n_steps += 1;
        assert!(n_steps < 100_000, "seed {seed}: the run does not end");
        let wake_us = state.wake_us().unwrap_or(i64::MAX);
        let (now_us, event, is_answer) = match queue.first().copied() {
            Some((at_us, index)) if at_us <= wake_us => {
                queue.remove(&(at_us, index));
                (at_us, events[index], answers.contains(&index))
            }
            _ => {
                assert!(wake_us < i64::MAX, "seed {seed}: nothing will ever happen");
                (wake_us, Event::Tick, false)
            }
        };
        let mut over = Vec::new();
        match event {
            Event::Published { node } | Event::Failed { node, .. } | Event::Lost { node }
                if is_answer =>
            {
                asked.remove(&node);
                running.remove(&node);
            }
            Event::Made { node }
            | Event::Ended { node }
            | Event::Published { node }
            | Event::Helped { node }
                if asked.contains(&node) || !running.contains_key(&node) =>
            {
                // The attempt was given up before it came back.
                continue;
            }
            Event::Made { node } => {
                running.remove(&node);
                over.push((node, true));
            }
            // It holds what it held until the ledger answers.
            Event::Ended { node } => over.push((node, false)),
            Event::Lost { node } if asked.contains(&node) => continue,
            Event::Published { node } | Event::Helped { node } | Event::Lost { node } => {
                running.remove(&node);
            }
            _ => {}
        }
        for command in state.step([event], now_us) {
            match command {
                Command::Start { node, cpu } => {
                    for source in pipeline.nodes[node].inputs.values().flatten() {
                        let good = [NodeState::Done, NodeState::Cached].map(Some);
                        assert!(good.contains(&finished.get(&source.node).copied()));
                    }
                    running.insert(node, cpu);
                    assert!(running.values().sum::<u32>() <= 4, "seed {seed}");
                }
                Command::Help { node, cpu } => {
                    running.insert(node, cpu);
                    assert!(running.values().sum::<u32>() <= 4, "seed {seed}");
                }
                Command::Abandon { node } => over.push((node, false)),
                Command::Finish { node, state, .. } => {
                    assert_eq!(finished.insert(node, state), None, "seed {seed}");
                }
                _ => {}
            }
            if let Command::Start { node, .. } = command
                && pipeline.nodes[node].execution.timeout.is_some()
                && dice.roll(5) == 0
            {
                // It hangs, and does not stop when told to.
            } else if let Some((at_us, event)) = answer(&mut dice, command, now_us) {
                queue.insert((at_us, events.len()));
                events.push(event);
            }
        }
        for (node, is_made) in over {
            asked.insert(node);
            answers.insert(events.len());
            queue.insert((now_us + dice.roll(30_000) as i64, events.len()));
            events.push(ruling(&mut dice, node, is_made));
        }
    }
    assert_eq!(finished.len(), n_nodes, "seed {seed}");
    assert_eq!(state.n_running(), 0, "seed {seed}");
}

#[test]
fn simulated_runs_keep_every_promise() {
    for seed in 0..300 {
        simulate(seed);
    }
}

#[test]
fn the_longest_way_goes_first() {
    let mut dice = Dice(1);
    let mut pipeline = pipeline(&mut dice, 4);
    for (index, node) in pipeline.nodes.iter_mut().enumerate() {
        let how = node.execution_mut();
        how.priority = 0;
        how.resources.cpu = 1;
        let needs = if index == 3 { vec![2] } else { Vec::new() };
        let sources = needs.into_iter().map(|node| Source { node, port: "out".to_owned() });
        node.inputs = BTreeMap::from([("in".to_owned(), sources.collect())]);
    }
    let total = Amounts { cpu: 1, memory_bytes: 0, gpu: 0, pools: BTreeMap::new() };
    let policy = Policy { total, keep_going: true, seed: 0 };
    let mut state = State::new(&pipeline, &[true; 4], &[1, 5, 1, 1], policy);
    state.step([Event::Start], 0);
    // What is ready at one moment is ordered, whichever was found so first.
    let commands = state.step([0, 1, 2].map(|node| Event::Missing { node }), 0);
    assert_eq!(commands, [Command::Claim { node: 1 }]);
    state.step([Event::Claimed { node: 1 }], 0);
    let commands = state.step([Event::Published { node: 1 }], 1_000_000);
    // What follows counts as well.
    assert!(commands.contains(&Command::Claim { node: 2 }), "{commands:?}");
}
