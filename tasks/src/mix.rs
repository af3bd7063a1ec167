//! Plans what one arm sees: real documents repeated as evenly as possible, synthetic ones at most
//! once, interleaved uniformly, to the exact token.
//!
//! The training stream is `<|bos|> text <|eos|>` of each entry; all of it counts, so the entries sum
//! to `budget_tokens` exactly. The one document that would run over the budget comes last and is cut.
//!
//! Real documents come in passes, each in an order of its own; the last pass is a prefix of one, so
//! that counts differ by at most one. The paper leaves the order of real and synthetic text open
//! (arXiv 2509.15248, section 3.1); here every interleaving of documents is equally likely.

use std::collections::BTreeMap;

use engine::task::{
    Context, Determinism, Estimate, Facts, Failure, Inputs, Outputs, ParamError, Port, Predicted,
    Task,
};
use kernels::philox::Philox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::write_json;
use crate::cost::{fact, figure};
use crate::format::schedule::{ScheduleWriter, Source};
use crate::format::tokens::Tokens;
use crate::sample::stream_tokens;
use crate::tokenizer::DOCUMENT_SPECIALS;

const REAL: usize = 0;
const SYNTHETIC: usize = 1;

/// Plans what one arm sees.
pub struct Mix;

/// Params of `mix`. With a `synthetic` input, one of `synthetic_tokens` and `synthetic_share` is
/// needed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Tokens in the training stream, `<|bos|>` and `<|eos|>` of every document included.
    pub budget_tokens: u64,
    /// Tokens of the stream that are synthetic; met within one document.
    #[serde(default)]
    pub synthetic_tokens: Option<u64>,
    /// Share of the stream's tokens that are synthetic, between 0 and 1; met within one document.
    #[serde(default)]
    pub synthetic_share: Option<f64>,
    /// Seed of the order.
    #[serde(default)]
    pub seed: u64,
}

impl Params {
    fn synthetic_target(&self) -> u64 {
        self.synthetic_tokens.unwrap_or_else(|| {
            (self.synthetic_share.unwrap_or(0.0) * self.budget_tokens as f64).round() as u64
        })
    }
}

/// What `books.json` says: where the budget went.
#[derive(Debug, PartialEq, Serialize)]
struct Books {
    budget_tokens: u64,
    n_entries: u64,
    synthetic_share: f64,
    /// Tokens that the last entry lost to the budget.
    cut_tokens: u64,
    sources: Vec<Book>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Book {
    name: &'static str,
    available_documents: u64,
    available_tokens: u64,
    /// Documents shown, repetitions counted.
    n_entries: u64,
    n_tokens: u64,
    /// `n_tokens / available_tokens`.
    repetitions: f64,
    /// How many documents are shown how often.
    histogram: BTreeMap<u64, u64>,
}

impl Task for Mix {
    const KIND: &'static str = "mix";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "plans the order of real and synthetic documents of one arm";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[
        Port::one("real", "tokens", "documents that may repeat"),
        Port::optional("synthetic", "tokens", "documents shown at most once"),
    ];
    const OUTPUTS: &'static [Port] =
        &[Port::one("schedule", "schedule", "the order of documents, and the books")];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.budget_tokens == 0 {
            return Err(ParamError::new("budget_tokens", "0 tokens are nothing to train on"));
        }
        if params.synthetic_tokens.is_some() && params.synthetic_share.is_some() {
            let message = "`synthetic_tokens` and `synthetic_share` exclude each other";
            return Err(ParamError::new("synthetic_share", message));
        }
        if let Some(n_tokens) = params.synthetic_tokens.filter(|&n| n > params.budget_tokens) {
            let message = format!("{n_tokens} is above `budget_tokens: {}`", params.budget_tokens);
            return Err(ParamError::new("synthetic_tokens", message));
        }
        if let Some(share) = params.synthetic_share.filter(|share| !(0.0..=1.0).contains(share)) {
            let message = format!("{share} is not between 0 and 1");
            return Err(ParamError::new("synthetic_share", message));
        }
        Ok(())
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let is_mixed = inputs.optional("synthetic").is_some();
        let synthetic = if is_mixed { params.synthetic_target() as f64 } else { 0.0 };
        let budget = params.budget_tokens as f64;
        let unique = inputs.fact("real", fact::TOKENS);
        Estimate::unknown()
            .figure(figure::TOKENS, budget)
            .figure(figure::REPETITIONS, unique.map(|unique| (budget - synthetic) / unique))
            .output(
                "schedule",
                Facts::default().with(fact::TOKENS, budget).with(fact::SYNTHETIC_TOKENS, synthetic),
            )
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let real = Tokens::open(inputs.one("real"))?;
        let synthetic = inputs.optional("synthetic").map(Tokens::open).transpose()?;
        check_inputs(params, &real, synthetic.as_ref())?;
        let lengths = [Some(&real), synthetic.as_ref()].map(document_lengths);
        let plan = Plan::new(params, &lengths[REAL], &lengths[SYNTHETIC])?;

        let dir = ctx.out("schedule")?;
        let mut sources = vec![source("real", &real)];
        sources.extend(synthetic.as_ref().map(|tokens| source("synthetic", tokens)));
        let n_sources = sources.len();
        let mut writer = ScheduleWriter::create(&dir, sources, params.budget_tokens, params.seed)?;
        let mut ledgers: Vec<_> =
            lengths[..n_sources].iter().map(|l| Ledger::new(l.len())).collect();
        for (i, (source, document)) in plan.entries().enumerate() {
            if i % 65_536 == 0 {
                ctx.check_cancelled()?;
                ctx.progress(writer.n_tokens(), params.budget_tokens, "tokens");
            }
            let left = params.budget_tokens - writer.n_tokens();
            let n_tokens = lengths[source][document].min(left);
            writer.push(source, document, n_tokens)?;
            ledgers[source].show(document, n_tokens);
        }
        writer.finish()?;
        let books = Books::new(params, &plan, &lengths, &ledgers);
        write_json(&dir.join("books.json"), &books)?;
        ctx.info(format!(
            "real text is shown {:.2} times; {:.1} % of the tokens are synthetic",
            books.sources[REAL].repetitions,
            books.synthetic_share * 100.0
        ));
        Ok(Outputs::default()
            .metric("n_entries", books.n_entries as f64)
            .metric("real_repetitions", books.sources[REAL].repetitions)
            .metric("synthetic_share", books.synthetic_share))
    }
}

fn check_inputs(params: &Params, real: &Tokens, synthetic: Option<&Tokens>) -> Result<(), Failure> {
    let asks = params.synthetic_tokens.is_some() || params.synthetic_share.is_some();
    let Some(synthetic) = synthetic else {
        if asks && params.synthetic_target() > 0 {
            return Err(Failure::permanent("synthetic tokens are asked for, but none are given")
                .help("connect the `synthetic` input"));
        }
        return Ok(());
    };
    if !asks {
        return Err(Failure::permanent("how much of the `synthetic` input to use is not said")
            .help("set `synthetic_tokens` or `synthetic_share`"));
    }
    if real.tokenizer() != synthetic.tokenizer() {
        return Err(Failure::permanent(format!(
            "`real` was tokenized by {}, `synthetic` by {}: ids of two tokenizers do not mix",
            real.tokenizer().short(),
            synthetic.tokenizer().short()
        )));
    }
    Ok(())
}

fn document_lengths(tokens: Option<&Tokens>) -> Vec<u64> {
    let length = |tokens: &Tokens, i| tokens.length(i) as u64 + DOCUMENT_SPECIALS;
    tokens.map_or_else(Vec::new, |tokens| {
        (0..tokens.n_documents()).map(|i| length(tokens, i)).collect()
    })
}

fn source(name: &str, tokens: &Tokens) -> Source {
    let (n_documents, n_tokens) = (tokens.n_documents() as u64, tokens.n_tokens() as u64);
    debug_assert_eq!(stream_tokens(tokens), n_tokens + DOCUMENT_SPECIALS * n_documents);
    Source { name: name.to_owned(), n_documents, n_tokens }
}

/// How many entries of each kind the stream takes, before any order between kinds.
struct Plan {
    seed: u64,
    n_real_documents: usize,
    /// Real entries: full passes and a part of one.
    n_real: u64,
    /// Synthetic documents in the order drawn, only those used.
    synthetic: Vec<usize>,
    /// Tokens over the budget, less than the last entry has.
    cut_tokens: u64,
}

impl Plan {
    fn new(params: &Params, real: &[u64], synthetic: &[u64]) -> Result<Self, Failure> {
        let target = params.synthetic_target();
        let mut order = Philox::new(params.seed, "mix synthetic").permutation(synthetic.len());
        let (n_synthetic, synthetic_tokens) = prefix(order.iter().map(|&i| synthetic[i]), target);
        if synthetic_tokens < target {
            return Err(Failure::permanent(format!(
                "{target} synthetic tokens are needed, but the {} synthetic documents hold \
                 {synthetic_tokens}; each is shown at most once",
                synthetic.len()
            ))
            .help("synthesize more, or lower `synthetic_tokens` or `synthetic_share`"));
        }
        order.truncate(n_synthetic as usize);

        let mut plan = Self {
            seed: params.seed,
            n_real_documents: real.len(),
            n_real: 0,
            synthetic: order,
            cut_tokens: 0,
        };
        let Some(needed) = params.budget_tokens.checked_sub(synthetic_tokens).filter(|&n| n > 0)
        else {
            plan.cut_tokens = synthetic_tokens - params.budget_tokens;
            return Ok(plan);
        };
        let pass_tokens: u64 = real.iter().sum();
        if pass_tokens == 0 {
            return Err(Failure::permanent(format!(
                "{needed} tokens of real text are needed, but the `real` input has no documents"
            )));
        }
        let n_passes = needed / pass_tokens;
        let rest = needed % pass_tokens;
        let (n_rest, rest_tokens) = prefix(plan.pass(n_passes).iter().map(|&i| real[i]), rest);
        plan.n_real = n_passes * real.len() as u64 + n_rest;
        plan.cut_tokens = rest_tokens - rest;
        Ok(plan)
    }

    /// The order of the real documents in one pass.
    fn pass(&self, pass: u64) -> Vec<usize> {
        Philox::new(self.seed, "mix real").fork(pass).permutation(self.n_real_documents)
    }

    /// Every entry as (source, document).
    fn entries(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let n_documents = self.n_real_documents.max(1) as u64;
        let mut pass = Vec::new();
        let mut real = (0..self.n_real).map(move |i| {
            if i % n_documents == 0 {
                pass = self.pass(i / n_documents);
            }
            (REAL, pass[(i % n_documents) as usize])
        });
        let mut synthetic = self.synthetic.iter().map(|&document| (SYNTHETIC, document));
        let draw = Philox::new(self.seed, "mix interleave");
        let (mut n_real, mut n_synthetic) = (self.n_real, self.synthetic.len() as u64);
        // The entry that the budget cuts is the last one drawn; it keeps its place at the end.
        if n_real > 0 {
            n_real -= 1;
        } else {
            n_synthetic = n_synthetic.saturating_sub(1);
        }
        let n_entries = self.n_real + self.synthetic.len() as u64;
        (0..n_entries).filter_map(move |i| {
            let left = n_real + n_synthetic;
            let takes_real = if left == 0 { self.n_real > 0 } else { draw.below(i, left) < n_real };
            if takes_real {
                n_real = n_real.saturating_sub(1);
                real.next()
            } else {
                n_synthetic = n_synthetic.saturating_sub(1);
                synthetic.next()
            }
        })
    }
}

/// How many of `lengths` it takes to reach `target`, and their sum.
fn prefix(lengths: impl Iterator<Item = u64>, target: u64) -> (u64, u64) {
    let (mut n, mut sum) = (0, 0);
    for length in lengths {
        if sum >= target {
            break;
        }
        n += 1;
        sum += length;
    }
    (n, sum)
}

/// What was shown of one source.
struct Ledger {
    counts: Vec<u32>,
    n_tokens: u64,
}

impl Ledger {
    fn new(n_documents: usize) -> Self {
        Self { counts: vec![0; n_documents], n_tokens: 0 }
    }

    fn show(&mut self, document: usize, n_tokens: u64) {
        self.counts[document] += 1;
        self.n_tokens += n_tokens;
    }
}

impl Books {
    fn new(params: &Params, plan: &Plan, lengths: &[Vec<u64>], ledgers: &[Ledger]) -> Self {
        let book = |source: usize| {
            let mut histogram = BTreeMap::new();
            for &count in &ledgers[source].counts {
                *histogram.entry(u64::from(count)).or_insert(0) += 1;
            }
            let available_tokens: u64 = lengths[source].iter().sum();
            let n_tokens = ledgers[source].n_tokens;
            Book {
                name: ["real", "synthetic"][source],
                available_documents: lengths[source].len() as u64,
                available_tokens,
                n_entries: ledgers[source].counts.iter().map(|&count| u64::from(count)).sum(),
                n_tokens,
                repetitions: n_tokens as f64 / available_tokens.max(1) as f64,
                histogram,
            }
        };
        let sources: Vec<Book> = (0..ledgers.len()).map(book).collect();
        let synthetic_tokens = sources.get(SYNTHETIC).map_or(0, |book| book.n_tokens);
        Self {
            budget_tokens: params.budget_tokens,
            n_entries: sources.iter().map(|book| book.n_entries).sum(),
            synthetic_share: synthetic_tokens as f64 / params.budget_tokens as f64,
            cut_tokens: plan.cut_tokens,
            sources,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::digest::Digest;
    use engine::task::testbed::Bench;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::format::schedule::Schedule;
    use crate::format::tokens::TokensWriter;

    fn params(budget_tokens: u64, synthetic_tokens: u64, seed: u64) -> Params {
        let synthetic_tokens = Some(synthetic_tokens);
        Params { budget_tokens, synthetic_tokens, synthetic_share: None, seed }
    }

    /// Every law of a plan: the sum, the counts, the share, the order.
    fn check_laws(params: &Params, real: &[u64], synthetic: &[u64]) {
        let target = params.synthetic_target();
        let plan = Plan::new(params, real, synthetic);
        let Ok(plan) = plan else {
            assert!(synthetic.iter().sum::<u64>() < target || real.is_empty());
            return;
        };
        let lengths = [real, synthetic];
        let mut counts = [vec![0_u32; real.len()], vec![0_u32; synthetic.len()]];
        let mut tokens = [0_u64; 2];
        let mut left = params.budget_tokens;
        for (source, document) in plan.entries() {
            assert!(left > 0, "an entry lies past the budget");
            let n_tokens = lengths[source][document].min(left);
            left -= n_tokens;
            counts[source][document] += 1;
            tokens[source] += n_tokens;
        }
        assert_eq!(left, 0, "the entries sum to the budget");
        assert!(counts[SYNTHETIC].iter().all(|&count| count <= 1));
        let (min, max) = (counts[REAL].iter().min(), counts[REAL].iter().max());
        assert!(max.unwrap_or(&0) - min.unwrap_or(&0) <= 1, "{counts:?}");
        let longest = synthetic.iter().max().copied().unwrap_or(0);
        assert!(tokens[SYNTHETIC] >= target && tokens[SYNTHETIC] < target + longest.max(1));
    }

    #[test]
    fn small_cases_exhaustively() {
        let pools: [&[u64]; 5] = [&[], &[2], &[3, 5], &[2, 7, 4], &[2, 2, 2, 9]];
        for (real, synthetic) in pools.iter().flat_map(|a| pools.map(|b| (a, b))) {
            for budget in 1..40 {
                for target in 0..=budget {
                    check_laws(&params(budget, target, budget ^ target), real, synthetic);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn laws_hold(
            real in prop::collection::vec(2_u64..60, 0..40),
            synthetic in prop::collection::vec(2_u64..60, 0..40),
            budget in 1_u64..5000,
            share in 0.0..=1.0,
            seed in any::<u64>(),
        ) {
            let mut params = params(budget, 0, seed);
            (params.synthetic_tokens, params.synthetic_share) = (None, Some(share));
            check_laws(&params, &real, &synthetic);
        }
    }

    /// Synthetic documents are spread over the stream: their mean position is the middle.
    #[test]
    fn interleaving_is_uniform() {
        let (mut sum, mut n) = (0.0, 0.0);
        let mut first_half = 0;
        for seed in 0..200 {
            let plan = Plan::new(&params(400, 200, seed), &[4; 10], &[4; 60]).unwrap();
            let entries: Vec<_> = plan.entries().collect();
            for (i, _) in entries.iter().enumerate().filter(|(_, entry)| entry.0 == SYNTHETIC) {
                sum += i as f64 / (entries.len() - 2) as f64;
                first_half += usize::from(i < 50);
                n += 1.0;
            }
        }
        // 10,000 positions on [0, 1]: the standard error of the mean is below 0.003.
        assert!((sum / n - 0.5).abs() < 0.01, "{}", sum / n);
        assert!((first_half as f64 / n - 0.5).abs() < 0.02, "{first_half}");
    }

    fn tokens(dir: &Path, lengths: &[usize], tokenizer: &str) {
        std::fs::create_dir_all(dir).unwrap();
        let digest = Digest::of(tokenizer.as_bytes());
        let mut writer = TokensWriter::create(dir, 300, digest).unwrap();
        for (i, &length) in lengths.iter().enumerate() {
            writer.push(i as u64, 1, &vec![9; length]).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn the_books_balance() {
        let dir = tempfile::tempdir().unwrap();
        tokens(&dir.path().join("real"), &[3, 4, 5], "a");
        tokens(&dir.path().join("synthetic"), &[8; 6], "a");
        let bench = Bench::new(dir.path())
            .input("real", &dir.path().join("real"))
            .input("synthetic", &dir.path().join("synthetic"));
        bench.run::<Mix>(&json!({"budget_tokens": 100, "synthetic_share": 0.375})).unwrap();
        let schedule = Schedule::open(&bench.out("schedule")).unwrap();
        let sum: u64 = (0..schedule.n_entries()).map(|i| schedule.entry(i).n_tokens).sum();
        assert_eq!((sum, schedule.sources().len()), (100, 2));
        let books = std::fs::read(bench.out("schedule").join("books.json")).unwrap();
        let books: Value = serde_json::from_slice(&books).unwrap();
        assert_eq!(books["synthetic_share"], 0.4);
        assert_eq!(books["sources"][1]["histogram"], json!({"0": 2, "1": 4}));
        assert_eq!(books["sources"][0]["n_tokens"], 60);
    }

    #[test]
    fn impossible_mixes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        tokens(&dir.path().join("real"), &[3], "a");
        tokens(&dir.path().join("synthetic"), &[8], "a");
        tokens(&dir.path().join("other"), &[8], "b");
        tokens(&dir.path().join("none"), &[], "a");
        let message = |real: &str, synthetic: Option<&str>, params: Value| {
            let mut bench = Bench::new(dir.path()).input("real", &dir.path().join(real));
            if let Some(synthetic) = synthetic {
                bench = bench.input("synthetic", &dir.path().join(synthetic));
            }
            bench.run::<Mix>(&params).unwrap_err().message
        };
        let budget = json!({"budget_tokens": 40});
        let half = json!({"budget_tokens": 40, "synthetic_share": 0.5});
        let few = message("real", Some("synthetic"), half.clone());
        assert!(few.contains("20 synthetic tokens are needed, but the 1 synthetic"), "{few}");
        assert!(message("real", None, half.clone()).contains("none are given"));
        assert!(message("real", Some("synthetic"), budget.clone()).contains("is not said"));
        assert!(message("real", Some("other"), half).contains("two tokenizers"));
        assert!(message("none", None, budget).contains("no documents"));
        assert!(message("real", None, json!({"budget_tokens": 0})).contains("nothing to train"));
        let over = json!({"budget_tokens": 4, "synthetic_tokens": 5});
        assert!(message("real", None, over).contains("5 is above `budget_tokens: 4`"));
    }
}
