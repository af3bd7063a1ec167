//! Texts after random prompts, drawn with temperature 1 and top-p 0.9.

use std::ops::ControlFlow;
use std::time::Instant;

use engine::task::Failure;
use kernels::Pool;
use kernels::philox::Philox;
use kernels::sampling::Policy;

use super::{Workload, median};
use crate::lm::Weights;
use crate::lm::generate::{Choice, Completion, Decoder, Driver, Request, Settings, generate};

/// Tokens generated in a second, `n` texts at a time: the median of the runs.
pub(super) fn run(
    pool: &Pool,
    workload: &Workload,
    weights: &Weights,
    n: usize,
) -> Result<f64, Failure> {
    // One sequence more than texts holds the prompt under way.
    let mut decoder = Decoder::new(pool, weights, n + 1);
    let policy = Policy { temperature: 1.0, top_k: 0, top_p: 0.9 };
    let n_vocab = weights.config().vocab_size as u32;
    let settings = Settings {
        choice: Choice::Sample(policy),
        repetition_penalty: 1.0,
        suppress: Vec::new(),
        // No token ends a text, so that every run generates the same number.
        stop: Vec::new(),
    };
    let mut rates = Vec::new();
    for run in 0..=workload.runs {
        let mut requests = Requests::new(workload, n_vocab, run, n);
        let start = Instant::now();
        generate(pool, &mut decoder, &settings, n, &mut requests)?;
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(requests.n_tokens, n * workload.new_tokens, "no text ends early");
        rates.push(requests.n_tokens as f64 / seconds);
    }
    Ok(median(rates.split_off(1)))
}

/// As many requests as texts are generated at a time.
struct Requests {
    waiting: Vec<Request>,
    n_tokens: usize,
}

impl Requests {
    fn new(workload: &Workload, n_vocab: u32, run: usize, n: usize) -> Self {
        let rng = Philox::new(run as u64, "bench prompts");
        let id = |i: usize| rng.below(i as u64, u64::from(n_vocab)) as u32;
        let request = |index: usize| Request {
            index: index as u64,
            prompt: (0..workload.prompt_tokens)
                .map(|i| id(index * workload.prompt_tokens + i))
                .collect(),
            rng: Philox::new(run as u64, "bench draws").fork(index as u64),
            n_tokens_max: workload.new_tokens,
        };
        Self { waiting: (0..n).rev().map(request).collect(), n_tokens: 0 }
    }
}

impl Driver for Requests {
    fn next(&mut self) -> Option<Request> {
        self.waiting.pop()
    }

    fn finished(&mut self, completion: Completion) -> Result<(), Failure> {
        self.n_tokens += completion.ids.len();
        Ok(())
    }

    fn stepped(&mut self, _: usize) -> Result<ControlFlow<()>, Failure> {
        Ok(ControlFlow::Continue(()))
    }
}
