//! `sbp verify`: every artifact in the store against its digest.

use engine::digest::Digest;
use serde_json::json;

use crate::cli::VerifyArgs;
use crate::commands::{look, open_existing};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::{Printer, state_style};
use crate::settings::Place;

pub(crate) async fn run(args: VerifyArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let flags = place.flags();
    let engine = if args.mend { open_existing(place).await? } else { look(place).await? };
    let store = engine.store();
    let mut digests = store.artifacts().map_err(|error| Error::storage(&error))?;
    let n_all = digests.len();
    if let Some(n) = args.sample {
        digests = sample(digests, n as usize, super::watch::now_us());
    }
    let (mut n_bytes, mut damaged) = (0, Vec::new());
    for digest in &digests {
        match store.verify(digest) {
            Ok(size_bytes) => n_bytes += size_bytes,
            Err(problem) => damaged.push((digest, problem)),
        }
    }
    if args.mend {
        for (digest, _) in &damaged {
            engine.set_aside(digest).await?;
        }
    }
    if printer.is_json() {
        let damaged: Vec<_> = damaged
            .iter()
            .map(|(digest, problem)| {
                json!({"digest": digest, "path": store.path(digest), "problem": problem})
            })
            .collect();
        printer.json(&json!({
            "artifacts": digests.len(), "of": n_all, "size_bytes": n_bytes, "damaged": damaged,
        }))?;
    } else {
        for (digest, problem) in &damaged {
            let word = state_style("damaged").apply_to("damaged");
            printer.data(format!("{word}  {}: {problem}\n", store.path(digest).display()))?;
        }
        let n_whole = digests.len() - damaged.len();
        let of = if digests.len() < n_all { format!(" of {n_all}") } else { String::new() };
        printer.talk(format!("{n_whole}{of} artifacts are whole, {}", human::bytes(n_bytes)));
        if !damaged.is_empty() {
            printer.talk(if args.mend {
                "they lie in quarantine, and the next run makes them again".to_owned()
            } else {
                format!(
                    "a run makes a damaged one again before anything reads it; \
                     `sbp verify --mend{flags}` sets it aside now"
                )
            });
        }
    }
    Ok(if damaged.is_empty() { ExitStatus::Done } else { ExitStatus::NodeFailed })
}

/// `n` of the digests, others for each seed, in order.
fn sample(mut digests: Vec<Digest>, n: usize, seed: i64) -> Vec<Digest> {
    digests.sort_by_cached_key(|digest| Digest::of(format!("{digest} {seed}").as_bytes()));
    digests.truncate(n);
    digests.sort_unstable();
    digests
}
