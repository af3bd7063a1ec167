//! The contract between a task and the engine.
//!
//! A task is a plain function from params and input artifacts to output artifacts. It declares
//! everything that may change its bytes (kind, revision, params, inputs, external files); the engine
//! builds the node's key from exactly that. What a task may see of the world comes through
//! [`Context`].

mod context;
mod estimate;
mod failure;
mod registry;
pub mod testbed;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use crate::item::{Feed, Held, Item, ItemContext, ItemResult, ItemResults, Stage};
pub use context::{
    CancelToken, Checkpoint, Context, ContextParts, ExternalFile, Input, Inputs, Journal, LogLevel,
    Outputs, Report, Sink, Upstream,
};
pub use estimate::{Estimate, FILE_BYTES, Facts, Predicted};
pub(crate) use failure::panic_text;
pub use failure::{Failure, FailureKind};
pub use registry::{AnyTask, Checked, Registry};

/// The code that a node runs.
pub trait Task: Send + Sync + 'static {
    /// The name in `task:` of a pipeline; equals the module's name.
    const KIND: &'static str;
    /// Bumped whenever the same key components may give different bytes.
    const REVISION: u32;
    /// One line for `sbp tasks`.
    const SUMMARY: &'static str;
    /// How far equal keys promise equal bytes.
    const DETERMINISM: Determinism;
    /// The artifacts it reads.
    const INPUTS: &'static [Port];
    /// The artifacts it writes, each a folder.
    const OUTPUTS: &'static [Port];
    /// Top-level params that cannot change the result and so stay out of the key: paths of external
    /// files (their content enters instead) and speed knobs.
    const UNKEYED: &'static [&'static str] = &[];
    /// How many stages of items it has at most ([`Context::stage`]); 0 when none. Another process may
    /// help with them.
    const ITEM_STAGES: u32 = 0;
    /// Whether its items are kept once it is done, until garbage is collected, so that after an edit
    /// of some of its input the others are found. For items that share their files with the outputs,
    /// and so take no room.
    const KEEPS_ITEMS: bool = false;

    /// Whether it reads [`Context::upstream`]. Only for [`Determinism::Measured`]: the bytes of others
    /// must not depend on that.
    const READS_UPSTREAM: bool = false;

    /// Whether it computes on the device that the node asks for, and not always on the CPU.
    const USES_DEVICE: bool = false;

    /// Whether a node's params declare ports of its own; see [`Self::own_ports`].
    const HAS_OWN_PORTS: bool = false;

    /// Whether it reads its external files through [`ExternalFile::open`] alone, so that they may be
    /// piped in or lie in a bucket.
    const STREAMS: bool = false;

    /// Typed params. Doc comments of the fields are what `sbp tasks show KIND` prints. Defaults are
    /// serde defaults; unknown fields must be denied.
    type Params: Serialize + DeserializeOwned + JsonSchema;

    /// Checks what the types cannot say, at plan time.
    ///
    /// # Errors
    /// The first param whose value is wrong, with the limit it breaks.
    fn check(params: &Self::Params) -> Result<(), ParamError> {
        let _ = params;
        Ok(())
    }

    /// Glob patterns of the files outside the store that the task reads. Their relative paths and
    /// contents become part of the key; the resolved list reaches [`Context::external`]. With
    /// [`Self::STREAMS`] `-` is standard input and `s3://BUCKET/KEY` an object.
    fn external(params: &Self::Params) -> Vec<String> {
        let _ = params;
        Vec::new()
    }

    /// Whether a node with these params is made of items, so that a run that waits for another one's
    /// node can help with them.
    fn has_items(params: &Self::Params) -> bool {
        let _ = params;
        Self::ITEM_STAGES > 0
    }

    /// Predicts the work and what the outputs will hold, from params and what is predicted of the
    /// inputs. Reaches no key and no result.
    fn cost(params: &Self::Params, inputs: &Predicted) -> Estimate {
        let _ = (params, inputs);
        Estimate::unknown()
    }

    /// Input and output ports that the params of a node declare, instead of [`Self::INPUTS`] and
    /// [`Self::OUTPUTS`]. The params are as written, before any check.
    fn own_ports(params: &Map<String, Value>) -> (Vec<OwnPort>, Vec<OwnPort>) {
        let _ = params;
        (Vec::new(), Vec::new())
    }

    /// Does the work: reads `inputs`, writes every declared output under [`Context::out`].
    ///
    /// # Errors
    /// [`Failure::transient`] when a retry can help, [`Failure::permanent`] otherwise,
    /// [`Failure::parked`] to wait for an operator.
    fn run(ctx: &mut Context, params: &Self::Params, inputs: &Inputs) -> Result<Outputs, Failure>;
}

/// How far equal keys promise equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Determinism {
    /// The same bytes on every machine.
    Bitwise,
    /// The same bytes on one device kind and instruction set, for any thread count.
    BitwisePerDevice,
    /// The bytes carry measured times or other facts of one execution, such as
    /// [`Context::upstream`].
    Measured,
}

/// A named input or output of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// The name in `in:` and in `node.port`.
    pub name: &'static str,
    /// The type of artifact, such as `corpus` or `model`; producer and consumer must agree. `any`
    /// accepts every type.
    pub kind: &'static str,
    /// How many artifacts it takes. Outputs are always [`Arity::One`].
    pub arity: Arity,
    /// One line of help.
    pub doc: &'static str,
}

/// A port that a node's params declare.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnPort {
    /// As [`Port::name`].
    pub name: String,
    /// As [`Port::kind`].
    pub kind: String,
    /// As [`Port::arity`].
    pub arity: Arity,
}

/// How many artifacts an input port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arity {
    /// Exactly one.
    One,
    /// None or one.
    Optional,
    /// One or more, in the order written.
    Many,
}

impl Port {
    /// A required input, or an output.
    pub const fn one(name: &'static str, kind: &'static str, doc: &'static str) -> Self {
        Self { name, kind, arity: Arity::One, doc }
    }

    /// An input that may be left unconnected.
    pub const fn optional(name: &'static str, kind: &'static str, doc: &'static str) -> Self {
        Self { name, kind, arity: Arity::Optional, doc }
    }

    /// An input that takes a list.
    pub const fn many(name: &'static str, kind: &'static str, doc: &'static str) -> Self {
        Self { name, kind, arity: Arity::Many, doc }
    }
}

/// A param whose value is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParamError {
    /// Dotted path of the param, such as `arch.n_layers`; empty for the params as a whole.
    pub path: String,
    /// What is wrong, with value and limit.
    pub message: String,
    /// What to do, only when it is right.
    pub help: Option<String>,
}

impl ParamError {
    /// An error at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), help: None }
    }

    /// Adds advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}
