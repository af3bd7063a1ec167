//! The tasks that a binary knows, behind one object-safe face.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use super::{
    Context, Determinism, Estimate, Failure, Inputs, Outputs, OwnPort, ParamError, Port, Predicted,
    Task,
};
use crate::external;

/// A task with its params as JSON.
pub trait AnyTask: Send + Sync {
    /// [`Task::KIND`].
    fn kind(&self) -> &'static str;
    /// [`Task::REVISION`].
    fn revision(&self) -> u32;
    /// [`Task::SUMMARY`].
    fn summary(&self) -> &'static str;
    /// [`Task::DETERMINISM`].
    fn determinism(&self) -> Determinism;
    /// [`Task::USES_DEVICE`].
    fn uses_device(&self) -> bool;
    /// [`Task::INPUTS`].
    fn inputs(&self) -> &'static [Port];
    /// [`Task::OUTPUTS`].
    fn outputs(&self) -> &'static [Port];
    /// The task with the ports that a node's params declare, as written; `None` when the params of
    /// this task declare none.
    fn with_own_ports(&self, params: &Map<String, Value>) -> Option<Arc<dyn AnyTask>>;
    /// [`Task::UNKEYED`].
    fn unkeyed(&self) -> &'static [&'static str];
    /// [`Task::ITEM_STAGES`].
    fn item_stages(&self) -> u32;
    /// [`Task::KEEPS_ITEMS`].
    fn keeps_items(&self) -> bool;
    /// [`Task::READS_UPSTREAM`].
    fn reads_upstream(&self) -> bool;
    /// [`Task::has_items`], for canonical params.
    fn has_items(&self, params: &Value) -> bool;
    /// The JSON schema of the params, with docs and defaults.
    fn params_schema(&self) -> Value;
    /// Parses and checks params; gives them with defaults filled in, which makes them canonical, and
    /// their external files ([`Task::external`]).
    ///
    /// # Errors
    /// When a param is unknown, has the wrong type, or fails [`Task::check`], or a pattern has no
    /// path and the task cannot stream.
    fn checked(&self, params: &Value) -> Result<Checked, ParamError>;
    /// [`Task::cost`], for canonical params.
    ///
    /// # Errors
    /// As [`Self::checked`].
    fn cost(&self, params: &Value, inputs: &Predicted) -> Result<Estimate, ParamError>;
    /// [`Task::run`], for canonical params.
    ///
    /// # Errors
    /// As [`Task::run`].
    fn run(&self, ctx: &mut Context, params: &Value, inputs: &Inputs) -> Result<Outputs, Failure>;
}

/// Params that a task accepts.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Canonical params.
    pub params: Value,
    /// Patterns of the external files that the node reads.
    pub external: Vec<String>,
}

struct Erased<T> {
    task: std::marker::PhantomData<fn() -> T>,
    inputs: &'static [Port],
    outputs: &'static [Port],
}

/// Port lists declared by nodes, each kept once for the life of the program: there are as many as
/// pipelines have different ones.
static OWN_PORTS: Mutex<BTreeMap<Vec<OwnPort>, &'static [Port]>> = Mutex::new(BTreeMap::new());

fn intern(ports: Vec<OwnPort>) -> &'static [Port] {
    let mut known = OWN_PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(ports).or_insert_with_key(|ports| {
        let text = |text: &String| -> &'static str { Box::leak(text.clone().into_boxed_str()) };
        let port = |port: &OwnPort| Port {
            name: text(&port.name),
            kind: text(&port.kind),
            arity: port.arity,
            doc: "declared by the node",
        };
        let ports: Box<[Port]> = ports.iter().map(port).collect();
        Box::leak(ports)
    })
}

fn parse<T: Task>(params: &Value) -> Result<T::Params, ParamError> {
    let parsed: T::Params = serde_json::from_value(params.clone())
        .map_err(|error| ParamError::new("", error.to_string()))?;
    T::check(&parsed)?;
    Ok(parsed)
}

impl<T: Task> AnyTask for Erased<T> {
    fn kind(&self) -> &'static str {
        T::KIND
    }

    fn revision(&self) -> u32 {
        T::REVISION
    }

    fn summary(&self) -> &'static str {
        T::SUMMARY
    }

    fn determinism(&self) -> Determinism {
        T::DETERMINISM
    }

    fn uses_device(&self) -> bool {
        T::USES_DEVICE
    }

    fn inputs(&self) -> &'static [Port] {
        self.inputs
    }

    fn outputs(&self) -> &'static [Port] {
        self.outputs
    }

    fn with_own_ports(&self, params: &Map<String, Value>) -> Option<Arc<dyn AnyTask>> {
        if !T::HAS_OWN_PORTS {
            return None;
        }
        let (inputs, outputs) = T::own_ports(params);
        let (inputs, outputs) = (intern(inputs), intern(outputs));
        Some(Arc::new(Self { task: std::marker::PhantomData, inputs, outputs }))
    }

    fn unkeyed(&self) -> &'static [&'static str] {
        T::UNKEYED
    }

    fn item_stages(&self) -> u32 {
        T::ITEM_STAGES
    }

    fn keeps_items(&self) -> bool {
        T::KEEPS_ITEMS
    }

    fn reads_upstream(&self) -> bool {
        const {
            assert!(!T::READS_UPSTREAM || matches!(T::DETERMINISM, Determinism::Measured));
        }
        T::READS_UPSTREAM
    }

    fn has_items(&self, params: &Value) -> bool {
        T::ITEM_STAGES > 0 && parse::<T>(params).is_ok_and(|params| T::has_items(&params))
    }

    fn params_schema(&self) -> Value {
        schemars::schema_for!(T::Params).to_value()
    }

    fn checked(&self, params: &Value) -> Result<Checked, ParamError> {
        let parsed = parse::<T>(params)?;
        let external = T::external(&parsed);
        if !T::STREAMS
            && let Some(pattern) = external.iter().find(|pattern| !external::has_path(pattern))
        {
            let message = format!("`{pattern}` has no path, by which `{}` reads files", T::KIND);
            return Err(ParamError::new("", message).help("copy the content to files first"));
        }
        let params =
            serde_json::to_value(parsed).map_err(|error| ParamError::new("", error.to_string()))?;
        Ok(Checked { params, external })
    }

    fn cost(&self, params: &Value, inputs: &Predicted) -> Result<Estimate, ParamError> {
        Ok(T::cost(&parse::<T>(params)?, inputs))
    }

    fn run(&self, ctx: &mut Context, params: &Value, inputs: &Inputs) -> Result<Outputs, Failure> {
        let params = parse::<T>(params).map_err(|error| Failure::permanent(error.to_string()))?;
        T::run(ctx, &params, inputs)
    }
}

/// The tasks that a binary knows, by kind.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, Arc<dyn AnyTask>>);

impl Registry {
    /// Adds a task.
    ///
    /// # Panics
    /// When its kind is taken.
    #[must_use]
    pub fn with<T: Task>(mut self) -> Self {
        let task = std::marker::PhantomData;
        let erased: Arc<dyn AnyTask> =
            Arc::new(Erased::<T> { task, inputs: T::INPUTS, outputs: T::OUTPUTS });
        let replaced = self.0.insert(T::KIND, erased);
        assert!(replaced.is_none(), "two tasks are called `{}`", T::KIND);
        self
    }

    /// The task of a kind.
    pub fn get(&self, kind: &str) -> Option<&Arc<dyn AnyTask>> {
        self.0.get(kind)
    }

    /// Every task, by kind.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn AnyTask>> {
        self.0.values()
    }
}
