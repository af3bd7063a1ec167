//! The training loop: batches in, weights out, resumable at every step.
//!
//! A run is a pure function of its recipe, its batches and its initial weights: stopped anywhere and
//! resumed on the same kind of device, it ends in the same bits. All state is the weights, two
//! moments, and a small cursor, so a run can also go on on another device, which its summary tells.

mod checkpoint;
pub(crate) mod choices;

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use engine::task::{Context, Failure};
use kernels::Pool;
use serde::Serialize;

use super::batch::{Batch, Steps};
use super::device::{DeviceModel, Purpose};
use super::learner::{self, Learner, Sizes};
use super::memory::MemoryPlan;
use super::optimizer::LearningRate;
use super::reader::Losses;
use super::{Forward, Weights, hf};
use crate::device;
use checkpoint::{Bits, Cursor};

/// Longest time between two progress reports.
const PROGRESS_EVERY: Duration = Duration::from_millis(300);
/// Most points of a metric over a run.
const N_METRIC_POINTS: u64 = 500;
/// Seconds of training before the first figure of utilisation: short runs are not worth measuring
/// the machine for.
const MFU_AFTER_S: f64 = 5.0;
/// Products timed to know the machine's peak.
const MFU_PEAK_RUNS: usize = 5;
/// Weight of the newest step in the running mean that spikes are judged by.
const MEAN_WEIGHT: f64 = 0.05;

/// Settings of a run.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Learning rate by step.
    pub rate: LearningRate,
    /// What a step does with its batch.
    pub step: learner::Settings,
    /// Rise of a step's loss above its running mean, in nats, that stops the run; infinite for none.
    pub loss_rise_max: f64,
    /// Points of the curve.
    pub n_points: u64,
    /// Seconds between checkpoints.
    pub checkpoint_every_s: f64,
}

/// One point of a run's curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Steps done.
    pub step: u64,
    /// Input tokens seen.
    pub n_tokens: u64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean training loss since the point before, in nats per predicted token.
    pub loss: f64,
    /// Loss on held-out documents, in nats per predicted token, when there are any.
    pub heldout_loss: Option<f64>,
}

/// What a task does at certain steps of a run.
pub trait Observer {
    /// The loss on held-out data, measured at each point of the curve.
    ///
    /// # Errors
    /// When the attempt was cancelled, or the device fails.
    fn heldout_loss(
        &mut self,
        ctx: &Context,
        losses: &mut dyn Losses,
    ) -> Result<Option<f64>, Failure>;

    /// Whether [`Self::after_step`] is to be called after `step` steps.
    fn wants(&self, step: u64) -> bool;

    /// Called with the number of steps done, where it is wanted: on a GPU, the weights must be copied
    /// for it. What it writes must reach [`Self::save`], because a resumed attempt starts with an
    /// empty output folder.
    ///
    /// # Errors
    /// When the output cannot be written.
    fn after_step(&mut self, ctx: &Context, step: u64, weights: &Weights) -> Result<(), Failure>;

    /// Adds the observer's own files to a checkpoint.
    ///
    /// # Errors
    /// When they cannot be written.
    fn save(&self, dir: &Path) -> std::io::Result<()>;

    /// Takes the observer's files back from a checkpoint.
    ///
    /// # Errors
    /// When they cannot be read.
    fn restore(&mut self, dir: &Path) -> Result<(), Failure>;
}

/// Figures of a finished run; what `training.json` says, after the task's own fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Trained numbers of the model.
    pub n_parameters: u64,
    /// Optimizer steps.
    pub n_steps: u64,
    /// Input tokens seen, special tokens included.
    pub n_tokens: u64,
    /// Tokens that had a target.
    pub n_targets: u64,
    /// Mean training loss from the curve's last point but one to the end, in nats.
    pub loss: f64,
    /// Held-out loss at the end, in nats.
    pub heldout_loss: Option<f64>,
    /// Floating-point operations, attention counted over what each token attends to.
    pub flop: f64,
    /// What computed the steps, in order of first use; left out when that was the CPU alone.
    #[serde(skip_serializing_if = "is_cpu_alone")]
    pub devices: Vec<String>,
}

impl Summary {
    /// Whether a GPU computed any step.
    pub fn is_on_gpu(&self) -> bool {
        !is_cpu_alone(&self.devices)
    }
}

/// What the CPU is called among devices.
const CPU: &str = "cpu";

fn is_cpu_alone(devices: &[String]) -> bool {
    devices.iter().all(|device| device == CPU)
}

/// A run in progress.
pub struct Trainer<'a> {
    pool: &'a Pool,
    recipe: Recipe,
    learner: Learner<'a>,
    cursor: Cursor,
}

impl<'a> Trainer<'a> {
    /// Plans and takes the memory to train `weights` on `steps`, on the device that the node asks for;
    /// at most `scored_tokens_max` tokens are scored at once for the observer, 0 when none are.
    ///
    /// # Errors
    /// When the node was granted less memory than needed, or names a GPU that cannot be used.
    pub fn new(
        ctx: &Context,
        pool: &'a Pool,
        recipe: Recipe,
        weights: Weights,
        steps: &dyn Steps,
        scored_tokens_max: usize,
    ) -> Result<Self, Failure> {
        let sizes = Sizes { row_tokens_max: steps.row_tokens_max(), scored_tokens_max };
        let config = weights.config();
        let about = format!(
            "{} parameters, {} steps, {} tokens",
            config.n_parameters(),
            steps.n_steps(),
            steps.n_tokens()
        );
        let capacity = sizes.capacity_of_all(&recipe.step);
        let work = DeviceModel::work(config, capacity, Purpose::Train);
        let learner = if let Some(device) = device::open(ctx, &work)? {
            let mib = work.planned_bytes.div_ceil(1 << 20);
            ctx.info(format!("{about}; memory of {}: {mib} MiB", device.name()));
            Learner::on_device(device, recipe.step, weights, sizes)?
        } else {
            let granted = ctx.memory_bytes();
            let heldout_bytes =
                if scored_tokens_max > 0 { Forward::bytes(config, scored_tokens_max) } else { 0 };
            let capacity = sizes.capacity(&recipe.step);
            let plan = MemoryPlan::training(config, capacity, heldout_bytes, granted);
            ctx.info(format!("{about}; memory: {plan}"));
            plan.check(granted)?;
            Learner::new(pool, recipe.step, weights, sizes, plan.recompute)
        };
        Ok(Self { pool, recipe, learner, cursor: Cursor::default() })
    }

    /// The model, to score tokens by.
    pub fn losses(&mut self) -> &mut dyn Losses {
        &mut self.learner
    }

    /// The model as it is now.
    ///
    /// # Errors
    /// When the device fails.
    pub fn into_weights(self) -> Result<Weights, Failure> {
        self.learner.into_weights()
    }

    /// Trains to the end, from the newest checkpoint when there is one.
    ///
    /// # Errors
    /// When the attempt was cancelled (after a checkpoint), the loss is not finite or rises beyond
    /// the limit, a file cannot be read or written, or the device fails.
    pub fn run(
        &mut self,
        ctx: &Context,
        steps: &dyn Steps,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<Point>, Summary), Failure> {
        if let Some(checkpoint) = ctx.latest_checkpoint()? {
            self.restore(&checkpoint.dir)?;
            observer.restore(&checkpoint.dir)?;
            ctx.info(format!("resumes after step {} of {}", self.cursor.step, steps.n_steps()));
        }
        let mut batch = Batch::default();
        let mut clock = Clock::new(&self.cursor);
        // A step and what is measured after it are two turns, each of which is either done or, after
        // a cancellation, redone by the next attempt.
        while self.cursor.observed < steps.n_steps() {
            let done = if self.cursor.observed < self.cursor.step {
                self.observe(ctx, steps, observer)
            } else {
                self.one_step(ctx, steps, &mut batch, &mut clock)
            };
            let cancelled = matches!(&done, Err(failure) if *failure == Failure::cancelled());
            // Saving large models often would be most of the work.
            let pause = self.recipe.checkpoint_every_s.max(SAVES_APART * clock.save_s);
            let due = clock.checkpointed.elapsed().as_secs_f64() >= pause;
            if (cancelled || (due && done.is_ok())) && self.cursor.step > clock.checkpointed_step {
                let started = Instant::now();
                self.save(ctx, observer)?;
                clock.save_s = started.elapsed().as_secs_f64();
                (clock.checkpointed, clock.checkpointed_step) = (Instant::now(), self.cursor.step);
            }
            done?;
        }
        ctx.progress(steps.n_tokens(), steps.n_tokens(), "tokens");
        let points = self.cursor.points.iter().map(checkpoint::PointBits::point).collect();
        Ok((points, self.summary()))
    }

    fn one_step(
        &mut self,
        ctx: &Context,
        steps: &dyn Steps,
        batch: &mut Batch,
        clock: &mut Clock,
    ) -> Result<(), Failure> {
        let step = self.cursor.step;
        steps.fill(step, batch);
        let sums = self.learner.gradients(batch, || ctx.check_cancelled())?;
        let lr = self.recipe.rate.at(step);
        let grad_norm = self.learner.grad_norm()?;
        let stride = steps.n_steps().div_ceil(N_METRIC_POINTS).max(1);
        let is_point = (step + 1).is_multiple_of(stride) || step + 1 == steps.n_steps();
        // A step without targets, such as a last one of a single token, teaches nothing.
        if sums.n_tokens > 0 {
            let loss = sums.nll / sums.n_tokens as f64;
            self.check_health(step, loss, grad_norm, batch)?;
            self.learner.update(grad_norm, lr, step + 1)?;
            self.cursor.count(&sums, MEAN_WEIGHT);
            self.cursor.note_device(self.learner.device().as_deref().unwrap_or(CPU));
            if is_point {
                ctx.metric("loss", step + 1, loss);
                ctx.metric("grad_norm", step + 1, grad_norm);
                ctx.metric("lr", step + 1, lr);
            }
        }
        self.cursor.step += 1;
        self.cursor.n_tokens += batch.n_tokens() as u64;
        self.cursor.n_attended += batch.n_attended();
        if is_point {
            self.report_speed(ctx, clock);
        }
        if clock.reported.elapsed() >= PROGRESS_EVERY {
            clock.reported = Instant::now();
            ctx.progress(self.cursor.n_tokens, steps.n_tokens(), "tokens");
        }
        Ok(())
    }

    /// What the machine makes of the run so far.
    fn report_speed(&self, ctx: &Context, clock: &mut Clock) {
        let (step, config) = (self.cursor.step, self.learner.config());
        let seconds = clock.started.elapsed().as_secs_f64().max(1e-9);
        let n_tokens = self.cursor.n_tokens - clock.started_tokens;
        ctx.metric("tokens_per_s", step, n_tokens as f64 / seconds);
        if let Some(bytes) = engine::usage::resident_bytes() {
            ctx.metric("memory_mib", step, bytes as f64 / f64::from(1 << 20));
        }
        let n_attended = self.cursor.n_attended - clock.started_attended;
        let gflops = config.train_flop(n_tokens, n_attended) / seconds / 1e9;
        if self.learner.device().is_some() {
            // A GPU's peak is not measured in the middle of a run.
            ctx.metric("tflops", step, gflops / 1e3);
        } else if seconds >= MFU_AFTER_S {
            let peak = *clock
                .peak_gflops
                .get_or_insert_with(|| kernels::bench::peak_gflops(self.pool, MFU_PEAK_RUNS));
            ctx.metric("mfu", step, gflops / peak);
        }
    }

    /// Stops the run at a step that would spoil the weights, and says what is known of its cause.
    fn check_health(
        &mut self,
        step: u64,
        loss: f64,
        grad_norm: f64,
        batch: &Batch,
    ) -> Result<(), Failure> {
        let limit = self.recipe.loss_rise_max;
        let mean = self.cursor.mean_loss.map(|Bits(mean)| mean);
        let rises_from = mean.filter(|mean| loss > mean + limit);
        let is_finite = loss.is_finite() && grad_norm.is_finite();
        if is_finite && rises_from.is_none() {
            return Ok(());
        }
        let help =
            "lower the learning rate, lengthen the warm-up, or look at the documents of this step";
        let first = batch.ids().iter().take(8).collect::<Vec<_>>();
        let seen = format!(
            "learning rate {:.3e}, {} tokens in the step, which begins with ids {first:?}; largest gradient {}",
            self.recipe.rate.at(step),
            batch.n_tokens(),
            self.learner.worst_gradient()?
        );
        Err(match rises_from.filter(|_| is_finite) {
            None => Failure::permanent(format!(
                "step {step} has loss {loss} and gradient norm {grad_norm} ({seen}); the weights are those of the step before"
            ))
            .help(help),
            Some(mean) => Failure::permanent(format!(
                "step {step} has loss {loss:.3}, more than {limit} above its running mean of {mean:.3} ({seen}, gradient norm {grad_norm:.3e})"
            ))
            .help(format!("{help}, or raise `loss_rise_max`")),
        })
    }

    /// Measures and writes what is due after a step. Changes the cursor only at its end.
    fn observe(
        &mut self,
        ctx: &Context,
        steps: &dyn Steps,
        observer: &mut dyn Observer,
    ) -> Result<(), Failure> {
        let (step, n_steps) = (self.cursor.step, steps.n_steps());
        if observer.wants(step) {
            observer.after_step(ctx, step, self.learner.weights()?)?;
        }
        // Point `i` of `n` lies after step ceil(i n_steps / n), the last one at the end.
        let n_points = self.recipe.n_points.clamp(1, n_steps);
        if step * n_points / n_steps > (step - 1) * n_points / n_steps {
            let heldout_loss = observer.heldout_loss(ctx, &mut self.learner)?;
            if let Some(loss) = heldout_loss {
                ctx.metric("heldout_loss", step, loss);
            }
            let (lr, n_tokens) = (self.recipe.rate.at(step - 1), self.cursor.n_tokens);
            let loss = self.cursor.interval_loss();
            self.cursor.points.push(Point { step, n_tokens, lr, loss, heldout_loss }.into());
        }
        self.cursor.observed = step;
        Ok(())
    }

    fn summary(&self) -> Summary {
        let last = self.cursor.points.last().map(checkpoint::PointBits::point);
        let config = self.learner.config();
        Summary {
            n_parameters: config.n_parameters(),
            n_steps: self.cursor.step,
            n_tokens: self.cursor.n_tokens,
            n_targets: self.cursor.n_targets,
            loss: last.map_or(f64::NAN, |point| point.loss),
            heldout_loss: last.and_then(|point| point.heldout_loss),
            flop: config.train_flop(self.cursor.n_tokens, self.cursor.n_attended),
            devices: self.cursor.devices.clone(),
        }
    }
}

/// Times that only reports and checkpoints depend on.
struct Clock {
    started: Instant,
    started_tokens: u64,
    started_attended: u64,
    /// Of the machine's matrix product; measured when it is first needed.
    peak_gflops: Option<f64>,
    reported: Instant,
    checkpointed: Instant,
    checkpointed_step: u64,
    /// What the last checkpoint took.
    save_s: f64,
}

/// Between two checkpoints lies so many times what one takes.
const SAVES_APART: f64 = 20.0;

impl Clock {
    fn new(cursor: &Cursor) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            started_tokens: cursor.n_tokens,
            started_attended: cursor.n_attended,
            peak_gflops: None,
            reported: now,
            checkpointed: now,
            checkpointed_step: cursor.step,
            save_s: 0.0,
        }
    }
}

/// Writes a finished model: the Hugging Face folder, `training.json` and `curve.csv`.
///
/// # Errors
/// When a file cannot be written.
pub fn publish(
    dir: &Path,
    weights: &Weights,
    tokenizer: &Path,
    training: &impl Serialize,
    points: &[Point],
) -> Result<(), Failure> {
    hf::save(dir, weights, Some(tokenizer))?;
    let training = serde_json::to_value(training)
        .map_err(|error| Failure::permanent(format!("cannot write `training.json`: {error}")))?;
    std::fs::write(dir.join("training.json"), format!("{training:#}\n"))?;
    std::fs::write(dir.join("curve.csv"), curve(points))?;
    Ok(())
}

fn curve(points: &[Point]) -> String {
    let mut text = "step,tokens,lr,loss,heldout_loss\n".to_owned();
    for point in points {
        let heldout = point.heldout_loss.map(|loss| loss.to_string()).unwrap_or_default();
        let Point { step, n_tokens, lr, loss, .. } = point;
        writeln!(text, "{step},{n_tokens},{lr},{loss},{heldout}").expect("strings take text");
    }
    text
}
