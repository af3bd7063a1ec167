//! `sbp retry`: an earlier run's pipeline again, with the same params.

use engine::run::RunState;
use serde_json::Value;

use crate::cli::{PipelineArgs, RetryArgs, RunArgs};
use crate::commands::{self, open_existing};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::printer::Printer;
use crate::settings::Place;

pub(crate) async fn run(args: RetryArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let detail = open_existing(place.clone()).await?.run_detail(&args.run).await?;
    if detail.run.state == RunState::Running {
        let (id, owner) = (&detail.run.id, &detail.run.owner);
        let message = format!("run `{id}` is under way ({owner}) and retries by itself");
        let help = format!(
            "stop it with `sbp cancel {id}` first; `sbp cancel {id} --dead` when its process is gone"
        );
        return Err(Error::usage(message).help(help));
    }
    // The run may have been of a part of the pipeline.
    let covered = detail.nodes.into_iter().map(|node| node.name).collect();
    let params = detail.params.as_object().into_iter().flatten();
    let pipeline = PipelineArgs {
        pipeline: detail.run.path.into(),
        set: params.map(|(name, value)| (name.clone(), setting(value))).collect(),
        to: if args.nodes.is_empty() { covered } else { args.nodes },
    };
    let RetryArgs { share, work, .. } = args;
    let args = RunArgs { pipeline, keep_going: true, fail_fast: false, share, work };
    commands::run::run(args, place, printer).await
}

/// A value as `--set` takes it: text as it is, everything else as JSON, which is YAML too.
fn setting(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
