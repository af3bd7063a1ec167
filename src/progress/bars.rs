//! A bar for each running node, and a summary line below.

use std::collections::BTreeMap;
use std::time::Duration;

use console::{Style, Term, measure_text_width, truncate_str};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::state::{Running, State};
use crate::{human, printer};

const BAR_MIN: usize = 10;
const BAR_MAX: usize = 40;
const NAME_MAX: usize = 28;

/// The live part of a terminal.
pub(super) struct Bars {
    lines: MultiProgress,
    nodes: BTreeMap<String, ProgressBar>,
    summary: ProgressBar,
    term: Term,
    glyphs: Glyphs,
}

impl Bars {
    /// Draws on stderr.
    pub(super) fn new() -> Self {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let summary = lines.add(line());
        let (term, glyphs) = (Term::stderr(), Glyphs::of_locale());
        Self { lines, nodes: BTreeMap::new(), summary, term, glyphs }
    }

    /// Prints a line that stays, above the bars.
    pub(super) fn print(&self, text: &str) {
        // Where stderr is gone there is nobody left to tell.
        let _ = self.lines.println(text);
    }

    /// Shows the state as it is now.
    pub(super) fn draw(&mut self, state: &State, now: Duration) {
        // One column stays free: a terminal that wraps a full line would break the count of lines.
        let width = printer::width(&self.term).saturating_sub(1);
        self.nodes.retain(|name, bar| {
            let keeps = state.running.contains_key(name);
            if !keeps {
                bar.finish_and_clear();
                self.lines.remove(bar);
            }
            keeps
        });
        let name_width = state.running.keys().map(|name| measure_text_width(name)).max();
        let name_width = name_width.unwrap_or(0).min(NAME_MAX).min(width / 3);
        for (name, running) in &state.running {
            let bar = self
                .nodes
                .entry(name.clone())
                .or_insert_with(|| self.lines.insert_before(&self.summary, line()));
            bar.set_message(node_line(name, running, now, name_width, width, self.glyphs));
        }
        self.summary.set_message(truncate_str(&summary_line(state, now), width, "…").into_owned());
    }

    /// Removes the live part.
    pub(super) fn clear(&mut self) {
        for bar in self.nodes.values() {
            bar.finish_and_clear();
        }
        self.summary.finish_and_clear();
        // The last frame is gone either way when stderr cannot be written.
        let _ = self.lines.clear();
    }
}

fn line() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg}").expect("the template is valid");
    ProgressBar::new(0).with_style(style)
}

/// The characters of a bar.
#[derive(Clone, Copy, Debug)]
struct Glyphs {
    full: char,
    empty: char,
}

impl Glyphs {
    const ASCII: Self = Self { full: '#', empty: '.' };
    const LINES: Self = Self { full: '━', empty: '─' };

    /// What the locale can show.
    fn of_locale() -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty())
            .unwrap_or_default()
            .to_ascii_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") { Self::LINES } else { Self::ASCII }
    }

    fn bar(self, fraction: f64, width: usize) -> String {
        let n_full = (fraction * width as f64).floor() as usize;
        let full = self.full.to_string().repeat(n_full);
        let empty = self.empty.to_string().repeat(width - n_full.min(width));
        format!("{}{}", Style::new().for_stderr().cyan().apply_to(full), empty)
    }
}

/// Name, bar, and as many figures as fit, the most useful first.
fn node_line(
    name: &str,
    running: &Running,
    now: Duration,
    name_width: usize,
    width: usize,
    glyphs: Glyphs,
) -> String {
    let mut line = truncate_str(name, name_width, "…").into_owned();
    line.push_str(&" ".repeat(name_width - measure_text_width(&line)));
    let Some((fraction, percent)) = running.fraction().zip(running.percent()) else {
        let elapsed = human::clock(now.saturating_sub(running.since));
        let mut parts = vec![elapsed];
        if running.done > 0 {
            parts.push(format!("{} {}", human::count(running.done as f64), running.unit));
        }
        parts.extend([running.speed(), running.figure()].into_iter().flatten());
        return truncate_str(&format!("{line}  {}", parts.join("  ")), width, "…").into_owned();
    };
    let room = width.saturating_sub(name_width + 2 + BAR_MIN);
    let mut tail = format!("  {percent}");
    for part in [running.eta(), running.speed(), running.figure()].into_iter().flatten() {
        if measure_text_width(&tail) + 2 + part.chars().count() <= room {
            tail.extend(["  ", &part]);
        }
    }
    let bar_width = width.saturating_sub(name_width + 2 + measure_text_width(&tail)).min(BAR_MAX);
    if bar_width >= BAR_MIN {
        line.extend(["  ", &glyphs.bar(fraction, bar_width)]);
    }
    truncate_str(&(line + &tail), width, "…").into_owned()
}

fn summary_line(state: &State, now: Duration) -> String {
    let mut parts = vec![human::clock(now)];
    let counts = [
        (state.n_done, "done"),
        (state.n_cached, "cached"),
        (state.n_failed, "failed"),
        (state.n_parked, "parked"),
        (state.n_skipped, "skipped"),
        (state.running.len(), "running"),
        (state.n_waiting(), "waiting"),
    ];
    for (n, word) in counts.into_iter().filter(|&(n, _)| n > 0) {
        let style = printer::state_style(word).for_stderr();
        parts.push(format!("{n} {}", style.apply_to(word)));
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use engine::task::Report;

    use super::*;

    fn state() -> State {
        let mut state = State { n_total: 24, n_done: 3, n_cached: 5, ..State::default() };
        for (name, done, total) in
            [("pretrain[arm=oracle]", 850_000, 2_500_000), ("tune", 17, 0), ("gate", 0, 0)]
        {
            state.running.insert(name.to_owned(), Running::new(Duration::from_mins(1)));
            for (at, done) in [(61, 0), (71, done)] {
                let report = Report::Progress { done, total, unit: "tokens".to_owned() };
                if done > 0 || total > 0 {
                    state.report(name, &report, Duration::from_secs(at));
                }
            }
        }
        let loss = Report::Metric { name: "loss".to_owned(), step: 10, value: 3.456_78 };
        state.report("pretrain[arm=oracle]", &loss, Duration::from_secs(71));
        state
    }

    fn frame(width: usize) -> String {
        let (state, now) = (state(), Duration::from_secs(75));
        let name_width = 20.min(width / 3);
        let mut lines: Vec<String> = state
            .running
            .iter()
            .map(|(name, running)| node_line(name, running, now, name_width, width, Glyphs::LINES))
            .collect();
        lines.push(truncate_str(&summary_line(&state, now), width, "…").into_owned());
        for line in &lines {
            assert!(measure_text_width(line) <= width, "`{line}` is wider than {width}");
        }
        console::strip_ansi_codes(&lines.join("\n")).into_owned()
    }

    #[test]
    fn wide_frame() {
        insta::assert_snapshot!(frame(100));
    }

    #[test]
    fn narrow_frame() {
        insta::assert_snapshot!(frame(48));
    }

    #[test]
    fn tiny_frame_still_fits() {
        for width in 8..40 {
            frame(width);
        }
    }
}
