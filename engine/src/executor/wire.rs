//! What a run and the process of an attempt say to each other: a line of JSON each.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::digest::Digest;
use crate::item::{Call, State};
use crate::task::{ExternalFile, Failure, Inputs, LogLevel, Report, Upstream};

/// From the run to the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// What to do; the first one.
    Start(Box<Assignment>),
    /// To the call with this number; `None` when the run is over.
    Answer { id: u64, states: Option<Vec<State>> },
    /// Save what there is and stop.
    Cancel,
}

/// From the process to the run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    Progress {
        done: u64,
        total: u64,
        unit: String,
    },
    /// The value's bits: it need not be a number that JSON has.
    Metric {
        name: String,
        step: u64,
        bits: u64,
    },
    Log {
        level: LogLevel,
        text: String,
    },
    Items {
        id: u64,
        call: Call,
    },
    /// The last one.
    Ended(LastWord),
}

/// How an attempt ended, as its process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LastWord {
    /// Final figures by their bits, or why there are none.
    pub(super) result: Result<BTreeMap<String, u64>, Failure>,
    pub(super) peak_memory_bytes: i64,
    /// Places of the external files of which another version was found than the one of the key.
    pub(super) replaced: Vec<usize>,
}

/// One attempt, with everything that its process needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub(crate) kind: String,
    pub(crate) params: Exact,
    pub(crate) inputs: Inputs,
    pub(crate) out_dir: PathBuf,
    pub(crate) scratch_dir: PathBuf,
    pub(crate) checkpoints: PathBuf,
    pub(crate) epoch: i64,
    pub(crate) external: Vec<ExternalFile>,
    pub(crate) n_threads: usize,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) is_approved: bool,
    pub(crate) device: String,
    pub(crate) upstream: Vec<Upstream>,
    pub(crate) items: Items,
}

/// What the items of an attempt need, besides the board.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Items {
    pub(crate) store: PathBuf,
    pub(crate) scope: Digest,
    pub(crate) lease: Duration,
    pub(crate) tries_max: u32,
    pub(crate) backoff: Duration,
    pub(crate) helps: Option<u32>,
}

impl From<Report> for Word {
    fn from(report: Report) -> Self {
        match report {
            Report::Progress { done, total, unit } => Self::Progress { done, total, unit },
            Report::Metric { name, step, value } => {
                Self::Metric { name, step, bits: value.to_bits() }
            }
            Report::Log { level, text } => Self::Log { level, text },
        }
    }
}

/// A JSON value whose numbers arrive bit for bit. JSON text does not promise that, and a param
/// that is another one in the last place gives another model.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Exact {
    Null,
    Bool(bool),
    Integer(i64),
    Natural(u64),
    /// Its bits.
    Real(u64),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl From<&Value> for Exact {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Self::Integer(value),
                (None, Some(value)) => Self::Natural(value),
                (None, None) => Self::Real(number.as_f64().unwrap_or(f64::NAN).to_bits()),
            },
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Value::Object(map) => {
                Self::Map(map.iter().map(|(name, value)| (name.clone(), value.into())).collect())
            }
        }
    }
}

impl From<Exact> for Value {
    fn from(exact: Exact) -> Self {
        match exact {
            Exact::Null => Self::Null,
            Exact::Bool(value) => Self::Bool(value),
            Exact::Integer(value) => value.into(),
            Exact::Natural(value) => value.into(),
            Exact::Real(bits) => {
                Number::from_f64(f64::from_bits(bits)).map_or(Self::Null, Self::from)
            }
            Exact::Text(text) => Self::String(text),
            Exact::List(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            Exact::Map(entries) => {
                let entries = entries.into_iter().map(|(name, value)| (name, value.into()));
                Self::Object(entries.collect::<Map<_, _>>())
            }
        }
    }
}

/// Sends one message.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// The next message; `None` when the other side is gone, be it in the middle of a line.
pub(super) fn receive<T: DeserializeOwned>(
    from: &mut impl BufRead,
    line: &mut Vec<u8>,
) -> io::Result<Option<T>> {
    line.clear();
    from.read_until(b'\n', line)?;
    match line.last() {
        Some(b'\n') => Ok(Some(serde_json::from_slice(line)?)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn arrives(value: &Value) {
        let mut bytes = Vec::new();
        send(&mut bytes, &Exact::from(value)).unwrap();
        let mut line = Vec::new();
        let exact: Exact = receive(&mut bytes.as_slice(), &mut line).unwrap().unwrap();
        assert_eq!(Value::from(exact).to_string(), value.to_string());
    }

    #[test]
    fn params_arrive_as_they_are() {
        arrives(&json!({"b": [null, true, -3, u64::MAX, 1.0, 0.1, "a\nb"], "a": {"z": 1e-320}}));
        // The order of a map is the one it was written in.
        arrives(&json!({"z": 1, "a": 2}));
    }

    proptest! {
        #[test]
        fn numbers_arrive_bit_for_bit(bits in any::<u64>()) {
            if let Some(number) = Number::from_f64(f64::from_bits(bits)) {
                arrives(&Value::Number(number));
            }
        }
    }

    #[test]
    fn half_a_line_is_no_message() {
        let mut line = Vec::new();
        let cut: Option<Order> = receive(&mut &b"\"Cancel\""[..], &mut line).unwrap();
        assert!(cut.is_none());
        let whole: Option<Order> = receive(&mut &b"\"Cancel\"\n"[..], &mut line).unwrap();
        assert!(matches!(whole, Some(Order::Cancel)));
        assert!(receive::<Order>(&mut &b"nonsense\n"[..], &mut line).is_err());
    }
}
