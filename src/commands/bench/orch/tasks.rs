//! Tasks that do next to nothing, so that what is measured is the engine.

use std::fs::OpenOptions;
use std::io::{self, Write as _};

use engine::exec::Exec;
use engine::task::{Context, Determinism, Failure, Inputs, Item, Outputs, Port, Registry, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The bench's tasks; no pipeline of a user can name them.
pub(super) fn registry() -> Registry {
    Registry::default().with::<Noop>().with::<WriteText>().with::<Steps>().with::<Exec>()
}

/// Params of the task that does nothing.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NoopParams {
    /// Tells nodes apart.
    i: u64,
}

/// Params of the others.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Tells nodes apart.
    i: u64,
    /// What goes into the file.
    #[serde(default)]
    text: String,
    /// Each execution adds a line here.
    #[serde(default)]
    journal: String,
    /// Steps with a checkpoint after each.
    #[serde(default)]
    n_steps: u64,
    /// How long a step takes, in milliseconds.
    #[serde(default)]
    step_ms: u64,
}

impl Params {
    fn note(&self) -> io::Result<()> {
        if self.journal.is_empty() {
            return Ok(());
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&self.journal)?;
        // One write, so that lines of several threads do not mix.
        file.write_all(format!("{:07}\n", self.i).as_bytes())
    }
}

struct Noop;

impl Task for Noop {
    const KIND: &'static str = "bench_noop";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "does nothing";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[];
    const OUTPUTS: &'static [Port] = &[];
    type Params = NoopParams;

    fn run(_ctx: &mut Context, _: &NoopParams, _inputs: &Inputs) -> Result<Outputs, Failure> {
        Ok(Outputs::default())
    }
}

struct WriteText;

impl Task for WriteText {
    const KIND: &'static str = "bench_file";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "writes a text";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::optional("in", "any", "is not read")];
    const OUTPUTS: &'static [Port] = &[Port::one("out", "any", "the text")];
    const UNKEYED: &'static [&'static str] = &["journal"];
    type Params = Params;

    fn run(ctx: &mut Context, params: &Params, _inputs: &Inputs) -> Result<Outputs, Failure> {
        params.note()?;
        std::fs::write(ctx.out("out")?.join("text"), &params.text)?;
        Ok(Outputs::default())
    }
}

/// Goes on in steps, each of which depends on the one before, and carries its inputs on: what a run
/// that is killed anywhere must give the same bytes for.
struct Steps;

impl Task for Steps {
    const KIND: &'static str = "bench_steps";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "goes on in steps";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[Port::many("in", "any", "is carried on")];
    const OUTPUTS: &'static [Port] = &[Port::one("out", "any", "the text")];
    const UNKEYED: &'static [&'static str] = &["journal", "step_ms"];
    const ITEM_STAGES: u32 = 1;
    type Params = Params;

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let (mut first, mut sum) = (0, params.i);
        if let Some(checkpoint) = ctx.latest_checkpoint()? {
            first = checkpoint.step;
            let text = std::fs::read_to_string(checkpoint.dir.join("sum"))?;
            sum = text.parse().map_err(|_| Failure::permanent("a checkpoint is cut off"))?;
        }
        for step in first + 1..=params.n_steps {
            ctx.check_cancelled()?;
            std::thread::sleep(std::time::Duration::from_millis(params.step_ms));
            sum = sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step);
            ctx.save_checkpoint(step, |dir| std::fs::write(dir.join("sum"), sum.to_string()))?;
            ctx.progress(step, params.n_steps, "steps");
            ctx.metric("sum", step, sum as f64);
        }
        let items: Vec<Item<u64>> =
            (0..params.n_steps).map(|n| Item::new(format!("{n}"), &(params.i, n), n)).collect();
        for result in ctx.items("add", "numbers", items, |n, item| {
            std::fs::write(item.dir().join("number"), n.to_string())?;
            Ok(*n)
        })? {
            sum = sum.wrapping_add(result?.value);
        }
        let mut text = format!("{} {sum}\n", params.text);
        for input in inputs.many("in") {
            text.push_str(&std::fs::read_to_string(input.dir.join("text"))?);
        }
        // A diamond doubles what it carries, so only its digest goes on.
        let digest = engine::digest::Digest::of(text.as_bytes());
        std::fs::write(ctx.out("out")?.join("text"), format!("{} {digest}\n", params.text))?;
        params.note()?;
        Ok(Outputs::default().metric("sum", sum as f64))
    }
}
