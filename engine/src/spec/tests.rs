//! Tests of the whole way from text to pipeline, with small made-up tasks.

mod documents;
mod expansion;
mod hostile;
mod includes;
mod laws;
mod mistakes;
mod tasks;

use std::path::Path;

use self::tasks::registry;
use super::{Checked, check};
use crate::graph::Pipeline;

/// Reads text as `p.yaml`; `HOME_DIR` is the one environment variable.
fn read(text: &str, set: &[(&str, &str)]) -> Checked {
    let set: Vec<_> =
        set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let variable = |name: &str| (name == "HOME_DIR").then(|| "/home".to_owned());
    check(Path::new("p.yaml"), text, &set, &registry(), &variable)
}

fn pipeline(text: &str, set: &[(&str, &str)]) -> Pipeline {
    let checked = read(text, set);
    checked.pipeline.unwrap_or_else(|| panic!("{}", checked.mistakes))
}
