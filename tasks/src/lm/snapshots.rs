//! The model at chosen fractions of a run, kept beside the model at its end.

use std::path::{Path, PathBuf};

use engine::task::{Failure, ParamError};

use super::{Weights, hf};
use crate::corpus::link;

/// The folder of the snapshots in a checkpoint, and the output port.
pub const FOLDER: &str = "snapshots";

/// Writes a model folder after some steps.
pub struct Snapshots {
    /// The steps after which a snapshot is due, and its folder.
    due: Vec<(u64, String)>,
    dir: PathBuf,
    tokenizer: PathBuf,
}

/// Checks the param `snapshots`: fractions of a run.
///
/// # Errors
/// The first that is not above 0 and below 1, or occurs twice.
pub fn check(fractions: &[f64]) -> Result<(), ParamError> {
    for (i, fraction) in fractions.iter().enumerate() {
        if !(*fraction > 0.0 && *fraction < 1.0) {
            let message = format!("{fraction} is not between 0 and 1");
            return Err(
                ParamError::new(FOLDER, message).help("the model at the end is the output `model`")
            );
        }
        if fractions[..i].iter().any(|other| folder(*other) == folder(*fraction)) {
            return Err(ParamError::new(FOLDER, format!("{fraction} is given twice")));
        }
    }
    Ok(())
}

/// The folder of the snapshot at a fraction of a run.
pub fn folder(fraction: f64) -> String {
    format!("at-{fraction:.4}")
}

/// The fractions of the snapshots in `dir`, ascending.
///
/// # Errors
/// When the folder cannot be read.
pub fn fractions(dir: &Path) -> Result<Vec<f64>, Failure> {
    let mut fractions = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let fraction = name.to_str().and_then(|name| name.strip_prefix("at-"));
        fractions.extend(fraction.and_then(|fraction| fraction.parse::<f64>().ok()));
    }
    fractions.sort_unstable_by(f64::total_cmp);
    Ok(fractions)
}

impl Snapshots {
    /// Snapshots at `fractions` of `n_steps`, in folders below `dir`, with a copy of `tokenizer`.
    pub fn new(fractions: &[f64], n_steps: u64, dir: PathBuf, tokenizer: &Path) -> Self {
        let step = |fraction: f64| ((fraction * n_steps as f64).round() as u64).clamp(1, n_steps);
        let due = fractions.iter().map(|&fraction| (step(fraction), folder(fraction))).collect();
        Self { due, dir, tokenizer: tokenizer.to_owned() }
    }

    /// Whether any is due after `step` steps.
    pub fn wants(&self, step: u64) -> bool {
        self.due.iter().any(|(at, _)| *at == step)
    }

    /// Writes what is due after `step` steps.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn after_step(&self, step: u64, weights: &Weights) -> Result<(), Failure> {
        for (_, folder) in self.due.iter().filter(|(at, _)| *at == step) {
            hf::save(&self.dir.join(folder), weights, Some(&self.tokenizer))?;
        }
        Ok(())
    }

    /// Adds the snapshots so far to a checkpoint.
    ///
    /// # Errors
    /// When they can be neither linked nor copied.
    pub fn save(&self, checkpoint: &Path) -> std::io::Result<()> {
        link_tree(&self.dir, &checkpoint.join(FOLDER))
    }

    /// Takes the snapshots back from a checkpoint.
    ///
    /// # Errors
    /// When they can be neither linked nor copied.
    pub fn restore(&self, checkpoint: &Path) -> Result<(), Failure> {
        Ok(link_tree(&checkpoint.join(FOLDER), &self.dir)?)
    }
}

/// Links a folder of folders of files, so that a checkpoint costs no copy of the snapshots before it.
fn link_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in walkdir::WalkDir::new(from).sort_by_file_name() {
        let entry = entry.map_err(std::io::Error::from)?;
        let relative = entry.path().strip_prefix(from).map_err(std::io::Error::other)?;
        let target = to.join(relative);
        if entry.file_type().is_dir() {
            std::fs::create_dir_all(target)?;
        } else {
            link(entry.path(), &target)?;
        }
    }
    Ok(())
}
