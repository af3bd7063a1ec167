//! The state of a run between two steps, on disk.

use std::io;
use std::path::Path;

use engine::task::{Context, Failure};
use kernels::cross_entropy::LossSums;
use serde::{Deserialize, Serialize};

use super::{Observer, Point, Trainer};
use crate::lm::hf;

const STATE_FILE: &str = "state.safetensors";
const CURSOR_FILE: &str = "cursor.json";
const VERSION: u32 = 2;

/// A number kept by its bits, so that reading it back gives the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
pub(super) struct Bits(pub(super) f64);

impl From<u64> for Bits {
    fn from(bits: u64) -> Self {
        Self(f64::from_bits(bits))
    }
}

impl From<Bits> for u64 {
    fn from(bits: Bits) -> Self {
        bits.0.to_bits()
    }
}

/// A [`Point`] by its bits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PointBits {
    step: u64,
    n_tokens: u64,
    lr: Bits,
    loss: Bits,
    heldout_loss: Option<Bits>,
}

impl From<Point> for PointBits {
    fn from(point: Point) -> Self {
        let Point { step, n_tokens, lr, loss, heldout_loss } = point;
        let heldout_loss = heldout_loss.map(Bits);
        Self { step, n_tokens, lr: Bits(lr), loss: Bits(loss), heldout_loss }
    }
}

impl PointBits {
    pub(super) fn point(&self) -> Point {
        let Self { step, n_tokens, lr, loss, heldout_loss } = *self;
        let heldout_loss = heldout_loss.map(|bits| bits.0);
        Point { step, n_tokens, lr: lr.0, loss: loss.0, heldout_loss }
    }
}

/// Everything of a run that is not a vector.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    version: u32,
    /// Steps done.
    pub(super) step: u64,
    /// Steps whose measurements are done: `step`, or one less.
    pub(super) observed: u64,
    /// Input tokens seen.
    pub(super) n_tokens: u64,
    /// Pairs of a token seen and one that it attends to.
    pub(super) n_attended: u64,
    /// Tokens seen that had a target.
    pub(super) n_targets: u64,
    /// Running mean of the steps' losses.
    pub(super) mean_loss: Option<Bits>,
    /// Sum of the losses since the last point, and the tokens it is over.
    interval_nll: Bits,
    interval_targets: u64,
    pub(super) points: Vec<PointBits>,
    /// What computed the steps, in order of first use; checkpoints before there were GPUs lack it.
    #[serde(default)]
    pub(super) devices: Vec<String>,
}

impl Cursor {
    /// Counts the loss of a step.
    pub(super) fn count(&mut self, sums: &LossSums, newest_weight: f64) {
        let loss = sums.nll / sums.n_tokens as f64;
        let mean = self.mean_loss.map_or(loss, |Bits(mean)| mean + newest_weight * (loss - mean));
        self.mean_loss = Some(Bits(mean));
        self.n_targets += sums.n_tokens as u64;
        self.interval_nll.0 += sums.nll;
        self.interval_targets += sums.n_tokens as u64;
    }

    /// Notes what computed a step.
    pub(super) fn note_device(&mut self, device: &str) {
        if !self.devices.iter().any(|known| known == device) {
            self.devices.push(device.to_owned());
        }
    }

    /// The mean loss since the last call; that of the running mean when nothing was predicted.
    pub(super) fn interval_loss(&mut self) -> f64 {
        let n_targets = std::mem::take(&mut self.interval_targets);
        let nll = std::mem::take(&mut self.interval_nll).0;
        if n_targets > 0 { nll / n_targets as f64 } else { self.mean_loss.unwrap_or_default().0 }
    }
}

impl Trainer<'_> {
    pub(super) fn save(&mut self, ctx: &Context, observer: &dyn Observer) -> Result<(), Failure> {
        self.cursor.version = VERSION;
        let cursor = serde_json::to_vec(&self.cursor).map_err(io::Error::from)?;
        let step = self.cursor.step;
        self.learner.save(|[weights, first, second]| {
            ctx.save_checkpoint(step, |dir| {
                let vectors =
                    [("weights", weights), ("first_moment", first), ("second_moment", second)];
                hf::write_vectors(&dir.join(STATE_FILE), &vectors).map_err(
                    |error| match error {
                        hf::Error::Io { source, .. } => source,
                        error @ hf::Error::Invalid { .. } => io::Error::other(error),
                    },
                )?;
                std::fs::write(dir.join(CURSOR_FILE), cursor)?;
                observer.save(dir)
            })
            .map_err(|error| Failure::io("cannot save a checkpoint", &error))
        })
    }

    pub(super) fn restore(&mut self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(CURSOR_FILE);
        let text = std::fs::read(&path)
            .map_err(|error| Failure::io(format!("cannot read `{}`", path.display()), &error))?;
        let cursor: Cursor = serde_json::from_slice(&text).map_err(|error| {
            Failure::permanent(format!("checkpoint `{}`: {error}", path.display()))
        })?;
        if cursor.version != VERSION {
            let found = cursor.version;
            return Err(Failure::permanent(format!(
                "checkpoint `{}` has version {found}, not {VERSION}",
                path.display()
            ))
            .help("remove the checkpoint, or run with the version of sbp that wrote it"));
        }
        self.learner.restore(|[weights, first, second]| {
            let mut vectors =
                [("weights", weights), ("first_moment", first), ("second_moment", second)];
            Ok(hf::read_vectors(&dir.join(STATE_FILE), &mut vectors)?)
        })?;
        self.cursor = cursor;
        Ok(())
    }
}
