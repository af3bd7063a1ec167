//! Tasks that do next to nothing, so that what is measured is the engine.

use std::fs::OpenOptions;
use std::io::{self, Write as _};

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, Port, Registry, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The bench's tasks; no pipeline of a user can name them.
pub(super) fn registry() -> Registry {
    Registry::default().with::<Noop>().with::<WriteText>()
}

/// Params of both tasks.
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
    const UNKEYED: &'static [&'static str] = &["journal"];
    type Params = Params;

    fn run(_ctx: &mut Context, params: &Params, _inputs: &Inputs) -> Result<Outputs, Failure> {
        params.note()?;
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
