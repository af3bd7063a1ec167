//! The tasks that a binary knows, behind one object-safe face.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{
    Context, Determinism, Estimate, Failure, Inputs, Outputs, ParamError, Port, Predicted, Task,
};

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
    /// [`Task::INPUTS`].
    fn inputs(&self) -> &'static [Port];
    /// [`Task::OUTPUTS`].
    fn outputs(&self) -> &'static [Port];
    /// [`Task::UNKEYED`].
    fn unkeyed(&self) -> &'static [&'static str];
    /// [`Task::ITEM_STAGES`].
    fn item_stages(&self) -> u32;
    /// The JSON schema of the params, with docs and defaults.
    fn params_schema(&self) -> Value;
    /// Parses, checks, and fills in defaults.
    ///
    /// # Errors
    /// When a param is unknown, has the wrong type, or fails [`Task::check`].
    fn canonical(&self, params: &Value) -> Result<Value, ParamError>;
    /// [`Task::external`], for canonical params.
    ///
    /// # Errors
    /// As [`Self::canonical`].
    fn external(&self, params: &Value) -> Result<Vec<String>, ParamError>;
    /// [`Task::cost`], for canonical params.
    ///
    /// # Errors
    /// As [`Self::canonical`].
    fn cost(&self, params: &Value, inputs: &Predicted) -> Result<Estimate, ParamError>;
    /// [`Task::run`], for canonical params.
    ///
    /// # Errors
    /// As [`Task::run`].
    fn run(&self, ctx: &mut Context, params: &Value, inputs: &Inputs) -> Result<Outputs, Failure>;
}

struct Erased<T>(std::marker::PhantomData<fn() -> T>);

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

    fn inputs(&self) -> &'static [Port] {
        T::INPUTS
    }

    fn outputs(&self) -> &'static [Port] {
        T::OUTPUTS
    }

    fn unkeyed(&self) -> &'static [&'static str] {
        T::UNKEYED
    }

    fn item_stages(&self) -> u32 {
        T::ITEM_STAGES
    }

    fn params_schema(&self) -> Value {
        schemars::schema_for!(T::Params).to_value()
    }

    fn canonical(&self, params: &Value) -> Result<Value, ParamError> {
        let parsed = parse::<T>(params)?;
        serde_json::to_value(parsed).map_err(|error| ParamError::new("", error.to_string()))
    }

    fn external(&self, params: &Value) -> Result<Vec<String>, ParamError> {
        Ok(T::external(&parse::<T>(params)?))
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
        let erased: Arc<dyn AnyTask> = Arc::new(Erased::<T>(std::marker::PhantomData));
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
