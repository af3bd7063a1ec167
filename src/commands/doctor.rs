//! `sbp doctor`: whether this machine and folder can run pipelines.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tasks::cuda::choice::{Choice, Need, Request, choose};
use tasks::cuda::compile::{self, Compiler};
use tasks::cuda::gpu;
use tasks::cuda::libraries::{self, Origin, Which};
use tasks::cuda::proof::{Record, Verdict};

use crate::commands::open;
use crate::error::Result;
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::{Printer, state_style};
use crate::settings::{self, Place};
use crate::table::Table;

/// Free space below which a run is likely to stop half way.
const FREE_BYTES_MIN: u64 = 2 << 30;

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    state: &'static str,
    about: String,
}

pub(crate) async fn run(place: Place, printer: Printer) -> Result<ExitStatus> {
    let mut findings = vec![cpu()];
    findings.extend(gpus());
    findings.push(free_space(&place.dir));
    let shown_ledger = place.ledger.clone().map_or("in the folder", |_| "by URL");
    let opened = open(place).await;
    let (state, about, status) = match &opened {
        Ok(_) => ("done", format!("open, {shown_ledger}"), ExitStatus::Done),
        Err(error) => ("failed", error.to_string(), ExitStatus::Storage),
    };
    findings.push(Finding { what: "store and ledger", state, about });
    if printer.is_json() {
        printer.json(&findings)?;
    } else {
        let mut table = Table::new(&["what", "state", "about"]);
        for finding in &findings {
            let shown = if finding.state == "done" { "ok" } else { finding.state };
            let state = state_style(finding.state).apply_to(shown).to_string();
            table.row([finding.what.to_owned(), state, finding.about.clone()]);
        }
        printer.table(&table)?;
    }
    Ok(status)
}

fn cpu() -> Finding {
    let n_threads = settings::n_threads(None);
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let features: [(&str, bool); 0] = [];
    let names: Vec<&str> =
        features.iter().filter(|(_, found)| *found).map(|(name, _)| *name).collect();
    let arch = std::env::consts::ARCH;
    Finding {
        what: "cpu",
        state: "done",
        about: format!("{n_threads} threads, {arch} {}", names.join(" ")),
    }
}

/// CUDA's libraries, and every GPU with what stands in its way. None of it is needed.
fn gpus() -> Vec<Finding> {
    let facts = gpu::probe();
    let mut findings: Vec<Finding> = Which::ALL
        .into_iter()
        .map(|which| {
            let what = which.title();
            let release = match which {
                Which::Driver => facts.driver,
                Which::Nvrtc => facts.nvrtc,
                Which::CublasLt => None,
            };
            let release =
                release.map(|[major, minor]| format!("CUDA {major}.{minor}, ")).unwrap_or_default();
            match libraries::load(which) {
                Some(Origin::Loader) => {
                    Finding { what, state: "done", about: format!("{release}known to the loader") }
                }
                Some(Origin::Path(path)) => {
                    Finding { what, state: "done", about: format!("{release}{}", path.display()) }
                }
                None => {
                    let remedy = which.remedy(facts.driver);
                    Finding { what, state: "none", about: format!("only for GPUs: {remedy}") }
                }
            }
        })
        .collect();
    findings.extend((0..facts.gpus.len()).map(|i| {
        let name = &facts.gpus[i].name;
        let (state, about) = match choose(Request::Gpu(i as u32), &facts, Need::NOTHING) {
            Ok(Choice::Gpu { arch, notes, .. }) => {
                let mut parts = vec![format!("cuda:{i}, {name}, kernels for {arch}")];
                parts.extend(notes);
                parts.extend(verdicts(&arch, name));
                ("done", parts.join("; "))
            }
            Ok(Choice::Cpu { reason }) => ("none", reason),
            Err(refusal) => ("none", format!("{}: {}", refusal.reason, refusal.remedy)),
        };
        Finding { what: "GPU", state, about }
    }));
    findings
}

/// What is known of the kernels for a GPU's architecture alone, which are tried when it is first used.
fn verdicts(arch: &str, gpu: &str) -> Vec<String> {
    let Ok(compiler) = Compiler::new() else { return Vec::new() };
    let records = Record::all(&compile::cache_dir(), arch, compiler, gpu);
    let said = records.iter().map(|record| match record.verdict() {
        None => format!("`{}` was not tried yet", record.source().name),
        Some(Verdict::Proven) => format!("`{}` is used", record.source().name),
        Some(Verdict::Refused(refusal)) => refusal.to_string(),
    });
    said.collect()
}

fn free_space(dir: &Path) -> Finding {
    let existing = existing_ancestor(dir);
    let what = "free space";
    match rustix::fs::statvfs(&existing) {
        Ok(stat) => {
            let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
            let state = if free_bytes < FREE_BYTES_MIN { "low" } else { "done" };
            let about = format!("{} at {}", human::bytes(free_bytes), existing.display());
            Finding { what, state, about }
        }
        Err(error) => {
            let about = format!("unknown at {}: {error}", existing.display());
            Finding { what, state: "unknown", about }
        }
    }
}

/// The folder, or the nearest one above it that is there.
fn existing_ancestor(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    absolute.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/")).to_owned()
}
