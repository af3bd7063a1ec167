//! Trains a language model on a schedule of documents.
//!
//! The optimizer is AdamW (0.9, 0.95, 1e-8) with weight decay on matrices only. Unless the paper says
//! otherwise, choices it leaves open follow Qwen3 and common practice; every one is a param.

mod data;
pub(crate) mod heldout;

use std::path::Path;

use engine::task::{
    Context, Determinism, Estimate, FILE_BYTES, Failure, Inputs, Outputs, ParamError, Port,
    Predicted, Task,
};
use kernels::Pool;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::{self, fact, figure, unit};
use crate::device;
use crate::format::schedule::Schedule;
use crate::format::tokens::Tokens;
use crate::lm::arch::{self, Arch, Preset};
use crate::lm::batch::Steps;
use crate::lm::init::Init;
use crate::lm::optimizer::{LearningRate, Parametrization, Shape};
use crate::lm::reader::Losses;
use crate::lm::snapshots::{self, Snapshots};
use crate::lm::trainer::choices::{self, Choices, check_numbers};
use crate::lm::trainer::{self, Observer, Summary, Trainer};
use crate::lm::{Weights, hf};
pub(crate) use data::open_tokens;
use data::{Packing, ScheduleSteps};
use heldout::Heldout;

/// The task `pretrain`.
pub struct Pretrain;

/// Params of `pretrain`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The model: the name of a preset (`smoke`, `toy`, `small`, `medium`, `3b`, `6b`), or an object
    /// with `preset` and the values that differ.
    #[serde(default = "default_arch", deserialize_with = "arch::deserialize")]
    #[schemars(schema_with = "arch::schema")]
    pub arch: Arch,
    /// Tokens of a row, the longest context trained on; by default the architecture's.
    #[serde(default)]
    pub context: Option<usize>,
    /// Tokens of an optimizer step, a multiple of `context`. The paper's is 8,388,608.
    #[serde(default)]
    pub batch_tokens: Option<u64>,
    /// Documents of an optimizer step, each a row of its own; instead of `batch_tokens`.
    #[serde(default)]
    pub batch_documents: Option<u64>,
    /// Most tokens computed at once: less memory, more small products. Gradients are summed in this
    /// grouping, so it can change the last bits.
    #[serde(default = "choices::default::micro_batch_tokens")]
    pub micro_batch_tokens: usize,
    /// Whether tokens attend to their own document only.
    #[serde(default = "default_true")]
    pub document_mask: bool,
    /// Highest learning rate. The paper's is 1e-2, which wants a parametrization that scales with
    /// width; 3e-3 suits small models.
    #[serde(default = "default_lr_peak")]
    pub lr_peak: f64,
    /// Learning rate of the last step; by default 0.005 of the peak, the paper's ratio.
    #[serde(default)]
    pub lr_end: Option<f64>,
    /// Share of the steps in which the rate rises.
    #[serde(default = "default_warmup_fraction")]
    pub warmup_fraction: f64,
    /// How the rate goes on after the rise.
    #[serde(default = "default_shape")]
    pub lr_shape: Shape,
    /// Decay of matrices per unit of learning rate.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Longest gradient that is taken whole; 0 for no clipping.
    #[serde(default = "choices::default::clip")]
    pub clip: f64,
    /// Weight of the squared logarithm of the softmax's denominator.
    #[serde(default)]
    pub z_loss: f64,
    /// How learning rates depend on width: `standard`, or `mup_simple`, which divides that of each
    /// matrix by its number of inputs over `mup_base_width`, so that one rate suits every width.
    #[serde(default)]
    pub parametrization: Parametrization,
    /// Number of inputs at which `mup_simple` leaves a matrix's rate as it is.
    #[serde(default = "choices::default::mup_base_width")]
    pub mup_base_width: f64,
    /// How initial weights are drawn.
    #[serde(default)]
    pub init: Init,
    /// Seed of the initial weights.
    #[serde(default)]
    pub seed: u64,
    /// Fractions of the budget, above 0 and below 1, after which the model is kept in the output
    /// `snapshots`.
    #[serde(default)]
    pub snapshots: Vec<f64>,
    /// Points of `curve.csv`; the held-out loss is measured at each.
    #[serde(default = "default_n_points")]
    pub curve_points: u64,
    /// Most held-out tokens that a point of the curve is measured on: the first documents.
    #[serde(default = "default_heldout_tokens_max")]
    pub heldout_tokens_max: u64,
    /// Rise of a step's loss above its running mean, in nats, that stops the run; 0 for no limit.
    #[serde(default = "choices::default::loss_rise_max")]
    pub loss_rise_max: f64,
    /// Seconds between checkpoints.
    #[serde(default = "choices::default::checkpoint_every_s")]
    pub checkpoint_every_s: f64,
}

fn default_arch() -> Arch {
    Preset::Toy.into()
}
fn default_true() -> bool {
    true
}
fn default_lr_peak() -> f64 {
    3e-3
}
fn default_warmup_fraction() -> f64 {
    0.05
}
fn default_shape() -> Shape {
    Shape::Cosine
}
fn default_weight_decay() -> f64 {
    0.1
}
fn default_n_points() -> u64 {
    20
}
fn default_heldout_tokens_max() -> u64 {
    100_000
}

/// The paper's ratio of the last learning rate to the highest: 5e-5 / 1e-2 (section 3.1).
const LR_END_RATIO: f64 = 0.005;

impl Params {
    fn packing(&self, context: usize) -> Result<Packing, ParamError> {
        match (self.batch_tokens, self.batch_documents) {
            (Some(tokens), None) if tokens > 0 && tokens.is_multiple_of(context as u64) => {
                Ok(Packing::Rows { n_rows: tokens / context as u64 })
            }
            (Some(tokens), None) => Err(ParamError::new(
                "batch_tokens",
                format!("{tokens} is not a positive multiple of the context, {context}"),
            )),
            (None, Some(n_documents)) if n_documents > 0 => Ok(Packing::Documents { n_documents }),
            (None, Some(_)) => Err(ParamError::new("batch_documents", "0 is no batch")),
            (None, None) | (Some(_), Some(_)) => Err(ParamError::new(
                "batch_tokens",
                "exactly one of `batch_tokens` and `batch_documents` must be given",
            )),
        }
    }

    fn context(&self) -> usize {
        let preset = self.arch.preset.config().context;
        self.context.or(self.arch.context).unwrap_or(preset)
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
            peak: self.lr_peak,
            end: self.lr_end.unwrap_or(LR_END_RATIO * self.lr_peak),
            n_warmup: (self.warmup_fraction * n_steps as f64) as u64,
            n_steps,
            shape: self.lr_shape,
        }
    }
}

impl Task for Pretrain {
    const KIND: &'static str = "pretrain";
    const REVISION: u32 = 3;
    const SUMMARY: &'static str = "trains a language model from scratch on a schedule of documents";
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const USES_DEVICE: bool = true;
    const INPUTS: &'static [Port] = &[
        Port::one("schedule", "schedule", "the order of documents"),
        Port::one("real", "tokens", "the real documents of the schedule"),
        Port::optional("synthetic", "tokens", "the synthetic documents of the schedule"),
        Port::one("tokenizer", "tokenizer", "the tokenizer that made the tokens"),
        Port::optional("heldout", "tokens", "documents to measure the held-out loss on"),
    ];
    const OUTPUTS: &'static [Port] = &[
        Port::one("model", "model", "the trained model"),
        Port::one("snapshots", "models", "the model at the fractions asked for"),
    ];
    const UNKEYED: &'static [&'static str] = &["checkpoint_every_s"];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        params.arch.check()?;
        let mut config = params.arch.preset.config();
        config.context = params.context();
        config.check().map_err(|error| ParamError::new(error.field, error.message))?;
        params.packing(params.context())?;
        params.choices().check()?;
        check_numbers(&[
            ("lr_peak", params.lr_peak, false),
            ("lr_end", params.lr_end.unwrap_or(0.0), true),
            ("warmup_fraction", params.warmup_fraction, true),
        ])?;
        if params.warmup_fraction > 1.0 {
            let fraction = params.warmup_fraction;
            return Err(ParamError::new("warmup_fraction", format!("{fraction} is more than 1")));
        }
        if let Some((field, std)) = params.init.wrong_field() {
            return Err(ParamError::new(
                format!("init.{field}"),
                format!("{std} is not a number above 0"),
            ));
        }
        snapshots::check(&params.snapshots)
    }

    fn cost(params: &Params, inputs: &Predicted) -> Estimate {
        let preset = params.arch.preset.config().vocab_size;
        let vocabulary = inputs.fact("tokenizer", fact::VOCABULARY);
        let n_ids = vocabulary.map_or(preset, |n| n as usize);
        let Ok(mut config) = params.arch.config(n_ids) else { return Estimate::unknown() };
        config.context = params.context();
        let tokens = inputs.fact("schedule", fact::TOKENS);
        let steps = params.batch_tokens.and_then(|batch| Some((tokens? / batch as f64).ceil()));
        let model = cost::model(&config);
        let context = config.context as f64;
        let row =
            if params.document_mask { cost::row(&inputs.one("real"), context) } else { context };
        let flop = tokens.and_then(|tokens| cost::train_flop(&model, tokens, row));
        let kept = model.get(FILE_BYTES).map(|bytes| bytes * params.snapshots.len() as f64);
        Estimate::unknown()
            .figure(figure::TOKENS, tokens)
            .figure(figure::STEPS, steps)
            .figure(figure::FLOP, flop)
            .figure(figure::CHECKPOINT_BYTES, cost::checkpoint_bytes(&model))
            .work(unit::TRAIN_FLOP, flop)
            .output(snapshots::FOLDER, model.clone().with(FILE_BYTES, kept))
            .output("model", model)
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let wrong = |error: ParamError| {
            let failure = Failure::permanent(format!("`{}`: {}", error.path, error.message));
            error.help.into_iter().fold(failure, Failure::help)
        };
        let schedule = Schedule::open(inputs.one("schedule"))?;
        let tokenizer = inputs.one("tokenizer").join(hf::TOKENIZER_FILE);
        let sources = data::open_sources(&schedule, inputs, &tokenizer)?;
        let vocab_size = sources.iter().map(Tokens::vocab_size).max().unwrap_or(0) as usize;
        let mut config = params.arch.config(vocab_size).map_err(wrong)?;
        config.context = params.context();
        let packing = params.packing(config.context).map_err(wrong)?;
        let steps =
            ScheduleSteps::new(schedule, sources, packing, config.context, params.document_mask);
        if steps.n_steps() == 0 {
            return Err(Failure::permanent("the schedule holds no tokens"));
        }

        let pool = Pool::new(ctx.n_threads());
        let heldout = match inputs.optional("heldout") {
            Some(dir) => {
                let tokens = open_tokens(dir, "heldout", &tokenizer)?;
                Some(Heldout::new(&tokens, &config, params.heldout_tokens_max)?)
            }
            None => None,
        };
        let mut watcher = Watcher {
            snapshots: Snapshots::new(
                &params.snapshots,
                steps.n_steps(),
                ctx.out(snapshots::FOLDER)?,
                &tokenizer,
            ),
            heldout,
        };
        let weights = params.init.draw(&pool, &config, params.seed);
        let recipe = params.choices().recipe(params.rate(steps.n_steps()));
        let scored = watcher.heldout.as_ref().map_or(0, |_| Heldout::tokens_max(&config));
        let mut trainer = Trainer::new(ctx, &pool, recipe, weights, &steps, scored)?;
        let (points, summary) = trainer.run(ctx, &steps, &mut watcher)?;
        let weights = trainer.into_weights()?;
        let training = Training { task: Self::KIND, params, summary: &summary };
        let dir = ctx.out("model")?;
        trainer::publish(&dir, &weights, &tokenizer, &training, &points)?;
        Ok(metrics(&summary))
    }
}

/// `training.json`.
#[derive(Serialize)]
pub(crate) struct Training<'a, P: Serialize> {
    pub(crate) task: &'static str,
    pub(crate) params: &'a P,
    pub(crate) summary: &'a Summary,
}

/// The final figures that both training tasks report.
pub(crate) fn metrics(summary: &Summary) -> Outputs {
    let outputs = Outputs::default()
        .metric("loss", summary.loss)
        .metric("n_parameters", summary.n_parameters as f64)
        .metric("n_steps", summary.n_steps as f64)
        .metric("n_tokens", summary.n_tokens as f64)
        .metric("flop", summary.flop)
        .metric(unit::TRAIN_FLOP, summary.flop);
    let outputs = device::note(outputs, summary.is_on_gpu());
    match summary.heldout_loss {
        Some(loss) => outputs.metric("heldout_loss", loss),
        None => outputs,
    }
}

/// Writes snapshots and measures the held-out loss.
struct Watcher {
    snapshots: Snapshots,
    heldout: Option<Heldout>,
}

impl Observer for Watcher {
    fn heldout_loss(
        &mut self,
        ctx: &Context,
        losses: &mut dyn Losses,
    ) -> Result<Option<f64>, Failure> {
        self.heldout.as_ref().map(|heldout| heldout.loss(ctx, losses)).transpose()
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
