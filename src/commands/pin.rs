//! `sbp pin` and `sbp unpin`: artifacts that are kept whatever happens.

use engine::Engine;
use serde_json::json;

use crate::cli::{PinArgs, UnpinArgs};
use crate::commands::{look, open_existing};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings::{self, Place};
use crate::table::Table;

pub(crate) async fn run(args: PinArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let Some(what) = &args.what else { return list(&look(place).await?, printer).await };
    let engine = open_existing(place).await?;
    let artifacts = artifacts(&engine, what, &args).await?;
    for (digest, about) in &artifacts {
        engine.pin(digest, about, &settings::operator()).await?;
    }
    if printer.is_json() {
        let pinned: Vec<_> = artifacts
            .iter()
            .map(|(digest, about)| json!({"digest": digest, "about": about}))
            .collect();
        printer.json(&pinned)?;
        return Ok(ExitStatus::Done);
    }
    for (digest, about) in &artifacts {
        printer.data(format!("{digest}  {about}\n"))?;
    }
    Ok(ExitStatus::Done)
}

/// Digests of what is to be pinned, with words that say what they are.
async fn artifacts(engine: &Engine, what: &str, args: &PinArgs) -> Result<Vec<(String, String)>> {
    if what.len() == 64 && what.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let digest = what.to_ascii_lowercase();
        if !engine.knows_artifact(&digest).await? {
            let message = format!("neither ledger nor store know an artifact `{digest}`");
            return Err(Error::usage(message).help("`sbp show NODE` lists those of a node"));
        }
        return Ok(vec![(digest, "by digest".to_owned())]);
    }
    let detail = engine.node_detail(&args.run, what).await?;
    let wanted = |port: &str| args.port.as_deref().is_none_or(|wanted| wanted == port);
    let outputs = detail.node.outputs.iter().filter(|output| wanted(&output.port));
    let found: Vec<(String, String)> = outputs
        .map(|output| {
            let about = format!("{what}.{} of run {}", output.port, detail.run);
            (output.digest.clone(), about)
        })
        .collect();
    if found.is_empty() {
        let port = args.port.as_ref().map(|port| format!(" at port `{port}`")).unwrap_or_default();
        let message = format!("`{what}` has no artifact{port} in run {}", detail.run);
        return Err(Error::usage(message));
    }
    Ok(found)
}

async fn list(engine: &Engine, printer: Printer) -> Result<ExitStatus> {
    let pins = engine.pins().await?;
    if printer.is_json() {
        printer.json(&pins)?;
        return Ok(ExitStatus::Done);
    }
    if pins.is_empty() {
        printer.talk("nothing is pinned");
        return Ok(ExitStatus::Done);
    }
    let mut table = Table::new(&["artifact", "pinned (UTC)", "by", "about"]);
    for pin in pins {
        let short = pin.digest.get(..12).unwrap_or(&pin.digest).to_owned();
        table.row([short, human::timestamp(pin.at_us), pin.by, pin.about]);
    }
    printer.table(&table)?;
    Ok(ExitStatus::Done)
}

pub(crate) async fn remove(args: UnpinArgs, place: Place, printer: Printer) -> Result<ExitStatus> {
    let engine = open_existing(place).await?;
    let pins = engine.pins().await?;
    let mut meant = pins.iter().filter(|pin| pin.digest.starts_with(&args.digest));
    let pin = match (meant.next(), meant.next()) {
        (Some(pin), None) => pin,
        (None, _) => {
            let message = format!("no pinned artifact starts with `{}`", args.digest);
            return Err(Error::usage(message).help("`sbp pin` lists the pins"));
        }
        (Some(_), Some(_)) => {
            let message = format!("several pinned artifacts start with `{}`", args.digest);
            return Err(Error::usage(message).help("give more of the digest"));
        }
    };
    engine.unpin(&pin.digest).await?;
    if printer.is_json() {
        printer.json(&json!({"digest": pin.digest, "pinned": false}))?;
    } else {
        printer.data(format!("{} is no longer pinned ({})\n", pin.digest, pin.about))?;
    }
    Ok(ExitStatus::Done)
}
