//! Tunes a language model to write a document given a related one: p(d2 | d1).
//!
//! A sequence is `<|bos|> d1 <|sep|> d2 <|eos|>`; the loss is on d2 and the last token only. Several
//! pairs share a micro-batch without padding, and each attends to itself alone.
//!
//! # Source
//! Arxiv 2509.15248, sections 2.2 and A.2. The paper leaves open how pairs are drawn, packed and
//! separated; every such choice is a param.

mod data;
mod heldout;

use std::path::{Path, PathBuf};

use engine::digest::Digest;
use engine::task::{
    Context, Determinism, Estimate, FILE_BYTES, Failure, Inputs, Outputs, ParamError, Port,
    Predicted, Task,
};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::{self, fact, figure, unit};
use crate::format::pairs::Pairs;
use crate::lm::optimizer::{LearningRate, Parametrization, Shape};
use crate::lm::reader::Losses;
use crate::lm::snapshots::{self, Snapshots};
use crate::lm::trainer::choices::{self, Choices, check_numbers};
use crate::lm::trainer::{self, Observer, Trainer};
use crate::lm::{Weights, hf};
use crate::pretrain::{Training, metrics, open_tokens};
use data::{Batching, PairSteps, Selection};
use heldout::Heldout;

/// The task `tune_synthesizer`.
pub struct TuneSynthesizer;

/// Which order of a pair the synthesizer learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Directions {
    /// As the pairs say; documents that found each other are in both orders already.
    AsFound,
    /// Every pair in both orders.
    Both,
}

/// What to do with a pair that does not fit the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTooLong {
    /// Leave it out and count it.
    Skip,
    /// Fail.
    Fail,
}

/// Params of `tune_synthesizer`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Starts from this snapshot of the input `snapshots`, a fraction of the pretraining budget,
    /// instead of the final model. A model that has memorised its documents recalls d2 instead of
    /// reading d1, so at small scale an early snapshot (0.4) is better.
    #[serde(default)]
    pub snapshot: Option<f64>,
    /// Longest sequence in tokens, special tokens included; by default twice the model's context.
    #[serde(default)]
    pub context: Option<usize>,
    /// What to do with a pair that does not fit the context.
    #[serde(default = "default_on_too_long")]
    pub on_too_long: OnTooLong,
    /// Optimizer steps; give this or `epochs`.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Draws in units of the number of pairs; give this or `steps`.
    #[serde(default)]
    pub epochs: Option<f64>,
    /// Pairs of an optimizer step; give this or `batch_tokens`.
    #[serde(default)]
    pub batch_pairs: Option<u64>,
    /// Tokens of an optimizer step: as many pairs as have that many tokens on average. The paper's is
    /// 16,777,216.
    #[serde(default)]
    pub batch_tokens: Option<u64>,
    /// Most tokens computed at once: less memory, more small products. Gradients are summed in this
    /// grouping, so it can change the last bits.
    #[serde(default = "choices::default::micro_batch_tokens")]
    pub micro_batch_tokens: usize,
    /// Learning rate. The paper's is 5e-6 for 3 B parameters; a model of a million wants about a fifth
    /// of its pretraining peak.
    pub lr: f64,
    /// Steps in which the rate rises to `lr`.
    #[serde(default)]
    pub warmup_steps: u64,
    /// How the rate goes on after the rise. The paper found constant better than cosine.
    #[serde(default = "default_shape")]
    pub lr_shape: Shape,
    /// Learning rate of the last step of a cosine.
    #[serde(default)]
    pub lr_end: f64,
    /// Decay of matrices per unit of learning rate.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Longest gradient that is taken whole; 0 for no clipping.
    #[serde(default = "choices::default::clip")]
    pub clip: f64,
    /// Weight of the squared logarithm of the softmax's denominator.
    #[serde(default)]
    pub z_loss: f64,
    /// How learning rates depend on width; best as in the pretraining.
    #[serde(default)]
    pub parametrization: Parametrization,
    /// Number of inputs at which `mup_simple` leaves a matrix's rate as it is.
    #[serde(default = "choices::default::mup_base_width")]
    pub mup_base_width: f64,
    /// Which order of a pair is learned.
    #[serde(default = "default_directions")]
    pub directions: Directions,
    /// Most pairs of one d1, the best first. Draws are uniform over d1, then over its pairs.
    #[serde(default = "default_max_pairs_per_seed")]
    pub max_pairs_per_seed: usize,
    /// Documents d1 kept out of the tuning, at most a tenth of all, to measure whether the model reads
    /// d1: no pair with them is trained on.
    #[serde(default = "default_heldout_seeds")]
    pub heldout_seeds: usize,
    /// Seed of the order of pairs and of the choice of held-out ones.
    #[serde(default)]
    pub seed: u64,
    /// Fractions of the run, above 0 and below 1, after which the model is kept in the output
    /// `snapshots`, to choose the synthesizer among them: longer tuning copies less, and at some point
    /// repeats itself.
    #[serde(default)]
    pub snapshots: Vec<f64>,
    /// Points of `curve.csv`; the held-out loss is measured at each.
    #[serde(default = "default_n_points")]
    pub curve_points: u64,
    /// Rise of a step's loss above its running mean, in nats, that stops the run; 0 for no limit.
    #[serde(default = "choices::default::loss_rise_max")]
    pub loss_rise_max: f64,
    /// Seconds between checkpoints.
    #[serde(default = "choices::default::checkpoint_every_s")]
    pub checkpoint_every_s: f64,
}

fn default_on_too_long() -> OnTooLong {
    OnTooLong::Skip
}
fn default_shape() -> Shape {
    Shape::Constant
}
fn default_weight_decay() -> f64 {
    0.01
}
fn default_directions() -> Directions {
    Directions::AsFound
}
fn default_max_pairs_per_seed() -> usize {
    8
}
fn default_heldout_seeds() -> usize {
    32
}
fn default_n_points() -> u64 {
    10
}

impl Params {
    fn batching(&self) -> Result<Batching, ParamError> {
        match (self.batch_pairs, self.batch_tokens) {
            (Some(n), None) if n > 0 => Ok(Batching::Pairs(n)),
            (None, Some(n)) if n > 0 => Ok(Batching::Tokens(n)),
            (Some(_), None) => Err(ParamError::new("batch_pairs", "0 is no batch")),
            (None, Some(_)) => Err(ParamError::new("batch_tokens", "0 is no batch")),
            (None, None) | (Some(_), Some(_)) => Err(ParamError::new(
                "batch_pairs",
                "exactly one of `batch_pairs` and `batch_tokens` must be given",
            )),
        }
    }

    fn n_steps(&self, n_pairs: u64, batch_pairs: u64) -> u64 {
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => {
                (epochs.unwrap_or(0.0) * n_pairs as f64 / batch_pairs as f64).ceil() as u64
            }
        }
    }

    fn choices(&self) -> Choices {
        Choices {
            micro_batch_tokens: self.micro_batch_tokens,
            weight_decay: self.weight_decay,
            clip: self.clip,
            z_loss: self.z_loss,
            parametrization: self.parametrization,
            mup_base_width: self.mup_base_width,
            curve_points: self.curve_points,
            loss_rise_max: self.loss_rise_max,
            checkpoint_every_s: self.checkpoint_every_s,
        }
    }

    fn rate(&self, n_steps: u64) -> LearningRate {
        LearningRate {
            peak: self.lr,
            end: self.lr_end,
            n_warmup: self.warmup_steps,
            n_steps,
            shape: self.lr_shape,
        }
    }
}

impl Task for TuneSynthesizer {
    const KIND: &'static str = "tune_synthesizer";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "tunes a model to write a document given a related one";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const USES_DEVICE: bool = true;
    const INPUTS: &'static [Port] = &[
        Port::one("model", "model", "the pretrained model to start from"),
        Port::optional("snapshots", "models", "its snapshots, for the param `snapshot`"),
        Port::one("pairs", "pairs", "pairs of related documents"),
        Port::one("real", "tokens", "the documents that the pairs are of"),
        Port::one("tokenizer", "tokenizer", "the tokenizer that made the tokens"),
    ];
    const OUTPUTS: &'static [Port] = &[
        Port::one("model", "model", "the synthesizer"),
        Port::one("snapshots", "models", "the model at the fractions asked for"),
    ];
    const UNKEYED: &'static [&'static str] = &["checkpoint_every_s"];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        params.batching()?;
        params.choices().check()?;
        check_numbers(&[
            ("lr", params.lr, false),
            ("lr_end", params.lr_end, true),
            ("epochs", params.epochs.unwrap_or(1.0), false),
            ("steps", params.steps.unwrap_or(1) as f64, false),
            ("max_pairs_per_seed", params.max_pairs_per_seed as f64, false),
        ])?;
        if params.steps.is_some() == params.epochs.is_some() {
            let message = "exactly one of `steps` and `epochs` must be given";
            return Err(ParamError::new("steps", message));
        }
        snapshots::check(&params.snapshots)?;
        match params.snapshot {
            Some(fraction) if !(fraction > 0.0 && fraction < 1.0) => {
                Err(ParamError::new("snapshot", format!("{fraction} is not between 0 and 1"))
                    .help("leave `snapshot` out to start from the final model"))
            }
            _ => Ok(()),
        }
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let start = inputs.one("model");
        let real = inputs.one("real");
        let context =
            params.context.map(|n| n as f64).or_else(|| Some(2.0 * start.get(fact::CONTEXT)?));
        let pair = real.get(fact::TOKENS).zip(real.get(fact::DOCUMENTS)).map(|(t, d)| 2.0 * t / d);
        let batch_tokens = match (params.batch_tokens, params.batch_pairs) {
            (Some(tokens), _) => Some(tokens as f64),
            (None, pairs) => pairs.zip(pair).map(|(pairs, tokens)| pairs as f64 * tokens),
        };
        let pairs = inputs.fact("pairs", fact::PAIRS);
        let by_epochs = || Some((params.epochs? * pairs? * pair? / batch_tokens?).ceil());
        let steps = params.steps.map(|n| n as f64).or_else(by_epochs);
        let tokens = steps.zip(batch_tokens).map(|(steps, tokens)| steps * tokens);
        // A pair attends to itself alone, as long as it is whole.
        let row = context.map(|context| pair.map_or(context, |pair| pair.min(context)));
        let flop = tokens.zip(row).and_then(|(tokens, row)| cost::train_flop(&start, tokens, row));
        let model = start.clone().with(fact::CONTEXT, context);
        let kept = model.get(FILE_BYTES).map(|bytes| bytes * params.snapshots.len() as f64);
        Estimate::unknown()
            .figure(figure::TOKENS, tokens)
            .figure(figure::STEPS, steps)
            .figure(figure::FLOP, flop)
            .figure(figure::CHECKPOINT_BYTES, cost::checkpoint_bytes(&start))
            .work(unit::TRAIN_FLOP, flop)
            .output(snapshots::FOLDER, model.clone().with(FILE_BYTES, kept))
            .output("model", model)
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let tokenizer = inputs.one("tokenizer").join(hf::TOKENIZER_FILE);
        let tokens = open_tokens(inputs.one("real"), "real", &tokenizer)?;
        let pairs = Pairs::open_for(inputs.one("pairs"), &tokens)?;
        let dir = start(params, inputs)?;
        check_tokenizer(&dir, &tokenizer)?;
        let mut weights = hf::load(&dir)?;
        let (known, needed) = (weights.config().vocab_size, tokens.vocab_size() as usize);
        if needed > known {
            return Err(Failure::permanent(format!(
                "the tokens have ids below {needed}, and the model has {known}"
            ))
            .help("connect a model trained with this tokenizer"));
        }
        let context = params.context.unwrap_or(2 * weights.config().context);
        weights.set_context(context);
        weights.config().check().map_err(|error| Failure::permanent(error.to_string()))?;

        let selection = Selection {
            context,
            on_too_long: params.on_too_long,
            directions: params.directions,
            max_pairs_per_seed: params.max_pairs_per_seed,
            n_heldout_seeds: params.heldout_seeds,
            seed: params.seed,
        };
        let selected = selection.select(&pairs, &tokens)?;
        ctx.info(format!(
            "{} pairs of {} documents d1; {} held out, {} too long for {context} tokens",
            selected.n_pairs(),
            selected.n_seeds(),
            selected.heldout.len(),
            selected.n_too_long
        ));
        let pool = Pool::new(ctx.n_threads());
        let heldout = Heldout::new(&selected.heldout, &tokens);
        let (n_pairs, n_seeds, n_too_long) =
            (selected.n_pairs(), selected.n_seeds(), selected.n_too_long);
        let batching = params.batching().map_err(|error| Failure::permanent(error.to_string()))?;
        let batch_pairs = batching.pairs(&selected, &tokens);
        let n_steps = params.n_steps(n_pairs as u64, batch_pairs);
        let steps = PairSteps::new(selected, tokens, batch_pairs, n_steps, params.seed, context);
        let recipe = params.choices().recipe(params.rate(n_steps));
        let scored = Heldout::tokens_max(weights.config());
        let mut trainer = Trainer::new(ctx, &pool, recipe, weights, &steps, scored)?;
        let before = heldout.measure(ctx, trainer.losses())?;
        let dir = ctx.out(snapshots::FOLDER)?;
        let snapshots = Snapshots::new(&params.snapshots, n_steps, dir, &tokenizer);
        let mut watcher = Watcher { heldout: &heldout, snapshots };
        let (points, summary) = trainer.run(ctx, &steps, &mut watcher)?;
        let after = heldout.measure(ctx, trainer.losses())?;
        let weights = trainer.into_weights()?;

        let training = Training { task: Self::KIND, params, summary: &summary };
        trainer::publish(&ctx.out("model")?, &weights, &tokenizer, &training, &points)?;
        let mut outputs = metrics(&summary)
            .metric("n_pairs", n_pairs as f64)
            .metric("n_seeds", n_seeds as f64)
            .metric("n_pairs_too_long", n_too_long as f64)
            .metric("epochs", (n_steps * batch_pairs) as f64 / n_pairs as f64);
        if let (Some(before), Some(after)) = (before, after) {
            outputs = outputs
                .metric("heldout_loss_before", before.right)
                .metric("heldout_loss", after.right)
                .metric("heldout_loss_unrelated", after.unrelated)
                .metric("reads_d1", after.unrelated / after.right);
        }
        Ok(outputs)
    }
}

/// The folder of the model to start from.
fn start(params: &Params, inputs: &Inputs) -> Result<PathBuf, Failure> {
    let Some(fraction) = params.snapshot else {
        return Ok(inputs.one("model").to_owned());
    };
    let Some(dir) = inputs.optional("snapshots") else {
        return Err(Failure::permanent(format!(
            "`snapshot: {fraction}` is given, and nothing is connected to the port `snapshots`"
        ))
        .help("connect the output `snapshots` of `pretrain`"));
    };
    let path = dir.join(snapshots::folder(fraction));
    if path.is_dir() {
        return Ok(path);
    }
    let mut found: Vec<String> = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    found.sort_unstable();
    Err(Failure::permanent(format!(
        "there is no snapshot at {fraction}; there are: {}",
        if found.is_empty() { "none".to_owned() } else { found.join(", ") }
    ))
    .help(format!("add {fraction} to the param `snapshots` of `pretrain`")))
}

/// Checks that the model was trained with the tokenizer given.
fn check_tokenizer(model: &Path, tokenizer: &Path) -> Result<(), Failure> {
    let digest = |path: &Path| {
        Digest::of_file(path)
            .map_err(|error| Failure::io(format!("cannot read `{}`", path.display()), &error))
    };
    if digest(&model.join(hf::TOKENIZER_FILE))? == digest(tokenizer)? {
        return Ok(());
    }
    Err(Failure::permanent("the model was trained with another tokenizer than the one given")
        .help("connect the tokenizer that the pretraining used"))
}

/// Writes snapshots, and measures the held-out pairs at the points of the curve.
struct Watcher<'a> {
    heldout: &'a Heldout,
    snapshots: Snapshots,
}

impl Observer for Watcher<'_> {
    fn heldout_loss(
        &mut self,
        ctx: &Context,
        losses: &mut dyn Losses,
    ) -> Result<Option<f64>, Failure> {
        Ok(self.heldout.measure(ctx, losses)?.map(|losses| losses.right))
    }

    fn wants(&self, step: u64) -> bool {
        self.snapshots.wants(step)
    }

    fn after_step(&mut self, _ctx: &Context, step: u64, weights: &Weights) -> Result<(), Failure> {
        self.snapshots.after_step(step, weights)
    }

    fn save(&self, dir: &Path) -> std::io::Result<()> {
        self.snapshots.save(dir)
    }

    fn restore(&mut self, dir: &Path) -> Result<(), Failure> {
        self.snapshots.restore(dir)
    }
}

#[cfg(test)]
mod tests;
