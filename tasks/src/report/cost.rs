//! What the nodes upstream were to take and what they took, and what made them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use engine::task::Upstream;
use indexmap::IndexMap;

use super::page::{CLOSE_TABLE, number, open_table, row};
use super::{Study, escape};
use crate::compare::csv_field;

/// The nodes of one entry of the pipeline together: those of a matrix share a row.
#[derive(Debug, Default, PartialEq)]
struct Entry {
    name: String,
    n_nodes: usize,
    /// Work by unit, in the order of first appearance.
    work: IndexMap<String, f64>,
    /// Sum over the nodes of which something was expected, and how many they are.
    expected_s: f64,
    n_expected: usize,
    took_s: f64,
    n_attempts: u64,
    peak_memory_bytes: u64,
}

impl Entry {
    fn add(&mut self, node: &Upstream) {
        self.n_nodes += 1;
        for (unit, amount) in &node.work {
            *self.work.entry(unit.clone()).or_default() += amount;
        }
        if let Some(seconds) = node.expected_s {
            self.expected_s += seconds;
            self.n_expected += 1;
        }
        self.took_s += node.took_s.unwrap_or(0.0);
        self.n_attempts += node.n_attempts;
        self.peak_memory_bytes = self.peak_memory_bytes.max(node.peak_memory_bytes);
    }

    fn cells(&self) -> [String; 6] {
        let dash = || "\u{2013}".to_owned();
        let name = match self.n_nodes {
            1 => escape(&self.name),
            n => format!("{}<small>{n} nodes</small>", escape(&self.name)),
        };
        let work = self.work.iter().map(|(unit, amount)| {
            format!("{} {}", quantity(*amount), escape(&unit.replace('_', " ")))
        });
        let work: Vec<String> = work.collect();
        let expected = match self.n_expected {
            0 => dash(),
            n if n == self.n_nodes => span(self.expected_s),
            n => format!("{}<small>of {n} of them</small>", span(self.expected_s)),
        };
        [
            name,
            if work.is_empty() { dash() } else { work.join("<br>") },
            expected,
            if self.n_attempts == 0 { dash() } else { span(self.took_s) },
            self.n_attempts.to_string(),
            match self.peak_memory_bytes {
                0 => dash(),
                bytes => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
            },
        ]
    }
}

/// The entries in the order of the pipeline, and all of them together.
fn entries(nodes: &[Upstream]) -> (Vec<Entry>, Entry) {
    let mut entries: IndexMap<&str, Entry> = IndexMap::new();
    let mut total = Entry { name: "together".to_owned(), ..Entry::default() };
    for node in nodes {
        let name = node.node.split('[').next().unwrap_or(&node.node);
        let entry = entries.entry(name).or_default();
        name.clone_into(&mut entry.name);
        entry.add(node);
        total.add(node);
    }
    (entries.into_values().collect(), total)
}

pub(super) fn table(out: &mut String, study: &Study) {
    if study.upstream.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Cost</h2><p class=\"note\">Planned work is what the params say before anything runs. Planned \
         time is the median of earlier attempts at the node, or at nodes of its task, when the work \
         began; a dash where there were none. Time and attempts are of the work that these results \
         rest on, in whichever run it was done; nodes that ran side by side count one by one. Memory \
         is the highest of the process, in which other nodes may have been at work.</p>\n",
    );
    let head = ["node", "planned work", "planned time", "took", "attempts", "peak memory"];
    open_table(out, "Cost", &head);
    let (entries, total) = entries(&study.upstream);
    for entry in entries.iter().chain([&total]) {
        row(out, "", &entry.cells());
    }
    out.push_str(CLOSE_TABLE);
}

/// Programs and machines, each once.
pub(super) fn makers(out: &mut String, study: &Study) {
    let known = study
        .upstream
        .iter()
        .filter_map(|node| Some((node.build.as_ref()?, node.machine.as_ref()?)));
    let makers: BTreeSet<(&String, &String)> = known.collect();
    for (build, machine) in makers {
        let (build, machine) = (escape(build), escape(machine));
        let _ = writeln!(out, "<p class=\"note\">Computed by {build} on {machine}.</p>");
    }
}

/// A row a node and unit of work; a node without known work has one row.
pub(super) fn csv(study: &Study) -> String {
    let mut out =
        "node,task,unit,planned_work,planned_s,took_s,attempts,peak_memory_bytes,build,machine\n"
            .to_owned();
    let or_empty = |x: Option<f64>| x.map(|x| x.to_string()).unwrap_or_default();
    for node in &study.upstream {
        let mut work: Vec<(&str, String)> =
            node.work.iter().map(|(unit, amount)| (unit.as_str(), amount.to_string())).collect();
        if work.is_empty() {
            work.push(("", String::new()));
        }
        for (unit, amount) in work {
            writeln!(
                out,
                "{},{},{unit},{amount},{},{},{},{},{},{}",
                csv_field(&node.node),
                node.task,
                or_empty(node.expected_s),
                or_empty(node.took_s),
                node.n_attempts,
                node.peak_memory_bytes,
                csv_field(node.build.as_deref().unwrap_or_default()),
                csv_field(node.machine.as_deref().unwrap_or_default()),
            )
            .expect("strings take text");
        }
    }
    out
}

/// Three digits, with the power of ten where there are many.
fn quantity(x: f64) -> String {
    if x < 1e6 {
        return number(x, 0);
    }
    let power = x.log10().floor();
    format!("{}\u{b7}10<sup>{power}</sup>", number(x / 10_f64.powf(power), 2))
}

/// A time in the largest unit that leaves a digit before the point.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, expected_s: Option<f64>, took_s: f64) -> Upstream {
        Upstream {
            node: name.to_owned(),
            task: "pretrain".to_owned(),
            work: [("train_flop".to_owned(), 3.5e13)].into(),
            expected_s,
            took_s: Some(took_s),
            n_attempts: 1,
            peak_memory_bytes: 300 << 20,
            ..Upstream::default()
        }
    }

    #[test]
    fn nodes_of_a_matrix_share_a_row() {
        let nodes =
            [node("a", None, 0.5), node("b[i=1]", None, 100.0), node("b[i=2]", Some(90.0), 80.0)];
        let (rows, total) = entries(&nodes);
        assert_eq!(rows.len(), 2);
        let b = rows[1].cells();
        assert_eq!(b[0], "b<small>2 nodes</small>");
        assert_eq!(b[1], "7.00\u{b7}10<sup>13</sup> train flop");
        assert_eq!(
            (b[2].as_str(), b[3].as_str()),
            ("90.0 s<small>of 1 of them</small>", "3.0 min")
        );
        assert_eq!(total.cells()[3..], ["3.0 min", "3", "300 MiB"]);
        assert_eq!(rows[0].cells()[2], "\u{2013}");
    }
}
