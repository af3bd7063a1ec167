//! What a node would take and make, said before anything runs.
//!
//! Everything is a number with a name, so that the engine needs to know nothing of what tasks do:
//! [`Facts`] describe artifacts (`documents`, `tokens`, `file_bytes`), an [`Estimate`] adds the work
//! by unit (`train_flop`), which a table of rates turns into hours.

use std::collections::BTreeMap;

use serde::Serialize;

/// The fact that every artifact may have: the size of its files in bytes.
pub const FILE_BYTES: &str = "file_bytes";

/// What an artifact holds, by name. A fact that is not there is unknown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Facts(BTreeMap<String, f64>);

impl Facts {
    /// The fact of this name, when known.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// The same with a fact added or replaced; with `None`, as it was.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Option<f64>>) -> Self {
        if let Some(value) = value.into().filter(|value| value.is_finite()) {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    /// The same with every fact multiplied by `share`.
    #[must_use]
    pub fn scaled(mut self, share: f64) -> Self {
        self.0.values_mut().for_each(|value| *value *= share);
        self
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl<S: Into<String>> FromIterator<(S, f64)> for Facts {
    fn from_iter<I: IntoIterator<Item = (S, f64)>>(facts: I) -> Self {
        Self(facts.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

/// What is known of a node's inputs before they exist.
#[derive(Clone, Debug, Default)]
pub struct Predicted {
    ports: BTreeMap<String, Vec<Facts>>,
    external_bytes: Option<f64>,
}

impl Predicted {
    /// Facts by port, in the order of its sources, and the bytes of the node's external files.
    pub fn new(ports: BTreeMap<String, Vec<Facts>>, external_bytes: Option<f64>) -> Self {
        Self { ports, external_bytes }
    }

    /// Every artifact of a port.
    pub fn many(&self, port: &str) -> &[Facts] {
        self.ports.get(port).map_or(&[], Vec::as_slice)
    }

    /// The first artifact of a port; `None` when it is not connected.
    pub fn optional(&self, port: &str) -> Option<&Facts> {
        self.many(port).first()
    }

    /// The first artifact of a port; without facts when it is not connected.
    pub fn one(&self, port: &str) -> Facts {
        self.optional(port).cloned().unwrap_or_default()
    }

    /// One fact of the first artifact of a port.
    pub fn fact(&self, port: &str, name: &str) -> Option<f64> {
        self.optional(port).and_then(|facts| facts.get(name))
    }

    /// Bytes of the external files that are there now.
    pub fn external_bytes(&self) -> Option<f64> {
        self.external_bytes
    }
}

/// What a node would take and make.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// What people want to see: `steps`, `tokens`, `flop`.
    pub figures: Facts,
    /// Amounts of work by unit.
    pub work: Facts,
    /// What each output port would hold.
    pub outputs: BTreeMap<String, Facts>,
}

impl Estimate {
    /// Nothing is known.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// Adds a figure for people.
    #[must_use]
    pub fn figure(mut self, name: &str, value: impl Into<Option<f64>>) -> Self {
        self.figures = self.figures.with(name, value);
        self
    }

    /// Adds work of a unit.
    #[must_use]
    pub fn work(mut self, unit: &str, amount: impl Into<Option<f64>>) -> Self {
        self.work = self.work.with(unit, amount);
        self
    }

    /// Says what an output port would hold.
    #[must_use]
    pub fn output(mut self, port: &str, facts: Facts) -> Self {
        self.outputs.insert(port.to_owned(), facts);
        self
    }
}
