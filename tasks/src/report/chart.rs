//! Charts as SVG text: classes and variables of `style.css`, no scripts.

use std::fmt::Write as _;

use super::escape;

const WIDTH: f64 = 720.0;

/// A line of a chart.
pub(super) struct Series {
    pub(super) name: String,
    /// CSS variable of its colour.
    pub(super) color: String,
    /// Dash pattern, so that colour is not the only difference.
    pub(super) dash: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

/// A point with an interval.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) color: String,
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// A mapping from values to pixels.
struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    /// Spans the values with a margin of 4 %.
    fn over(values: impl Iterator<Item = f64> + Clone, start: f64, end: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let margin = if high > low { (high - low) * 0.04 } else { low.abs().max(1.0) * 0.04 };
        Self { from: low - margin, to: high + margin, start, end }
    }

    fn at(&self, value: f64) -> f64 {
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }

    /// Round values inside, about `n` of them.
    fn ticks(&self, n: f64) -> Vec<f64> {
        let raw = (self.to - self.from) / n;
        let power = 10.0_f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw);
        let step = step.unwrap_or(10.0 * power);
        let first = (self.from / step).ceil() as i64;
        let last = (self.to / step).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// `x` in few digits: `1.2M`, `0.05`.
pub(super) fn short(x: f64) -> String {
    let (scaled, unit) = match x.abs() {
        a if a >= 1e9 => (x / 1e9, "B"),
        a if a >= 1e6 => (x / 1e6, "M"),
        a if a >= 1e4 => (x / 1e3, "K"),
        _ => (x, ""),
    };
    let decimals = if unit.is_empty() || scaled.abs() < 10.0 { 3 } else { 1 };
    let text = format!("{scaled:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let text = if text == "-0" { "0" } else { text };
    format!("{}{unit}", text.replace('-', "\u{2212}"))
}

fn open(height: f64, label: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"{}\">",
        escape(label)
    )
}

/// Lines over `x`, with a legend and, if given, a marked point with its label.
pub(super) fn lines(
    series: &[Series],
    (x_name, y_name): (&str, &str),
    mark: Option<(f64, f64, String)>,
) -> String {
    let legend_rows = series.len().div_ceil(4) as f64;
    let (top, bottom) = (20.0 * legend_rows + 30.0, 340.0);
    let all = series.iter().flat_map(|series| series.points.iter().copied());
    let x = Scale::over(all.clone().map(|point| point.0), 62.0, WIDTH - 20.0);
    let y = Scale::over(all.map(|point| point.1), bottom, top);
    let mut svg = open(bottom + 48.0, &format!("{y_name} over {x_name}"));
    for (i, series) in series.iter().enumerate().filter(|(_, series)| !series.name.is_empty()) {
        let (left, line) = (62.0 + (i % 4) as f64 * 162.0, 16.0 + (i / 4) as f64 * 20.0);
        let name = escape(&series.name);
        let _ = write!(
            svg,
            "<path class=\"curve\" d=\"M{left} {}h26\" style=\"stroke:var({})\" stroke-dasharray=\"{}\"/>\
             <text x=\"{}\" y=\"{line}\">{name}</text>",
            line - 4.0,
            series.color,
            series.dash,
            left + 33.0
        );
    }
    for tick in y.ticks(5.0) {
        let at = y.at(tick);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M62 {at:.1}H{}\"/><text class=\"soft\" x=\"54\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            WIDTH - 20.0,
            at + 4.0,
            short(tick)
        );
    }
    x_axis(&mut svg, &x, bottom, x_name);
    let _ = write!(
        svg,
        "<text class=\"soft\" x=\"0\" y=\"{:.1}\">{}</text>",
        top - 8.0,
        escape(y_name)
    );
    for series in series {
        let mut path = String::new();
        for (i, &(px, py)) in series.points.iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x.at(px), y.at(py));
        }
        let _ = write!(
            svg,
            "<path class=\"curve\" d=\"{path}\" style=\"stroke:var({})\" stroke-dasharray=\"{}\"/>",
            series.color, series.dash
        );
    }
    if let Some((px, py, label)) = mark {
        let (px, py) = (x.at(px), y.at(py));
        let (anchor, shift) = if px > WIDTH * 0.6 { ("end", -9.0) } else { ("start", 9.0) };
        // The label stands at the axis, away from the curves, and what crosses it is blanked.
        let _ = write!(
            svg,
            "<path class=\"drop\" d=\"M{px:.1} {py:.1}V{bottom}\"/><circle class=\"mark\" \
             cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4.5\"/><text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"{anchor}\">{}</text>",
            px + shift,
            bottom - 8.0,
            escape(&label)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn x_axis(svg: &mut String, x: &Scale, bottom: f64, name: &str) {
    let _ = write!(svg, "<path class=\"axis\" d=\"M{} {bottom}H{}\"/>", x.start, x.end);
    for tick in x.ticks(7.0) {
        let at = x.at(tick);
        let _ = write!(
            svg,
            "<text class=\"soft\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            short(tick)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"soft\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        x.end,
        bottom + 38.0,
        escape(name)
    );
}

/// Points with intervals, one row each, and a line at 0.
pub(super) fn intervals(rows: &[Row], x_name: &str) -> String {
    let bottom = 14.0 + 30.0 * rows.len() as f64;
    let ends = rows.iter().flat_map(|row| [row.low, row.high]).chain([0.0]);
    let x = Scale::over(ends, 190.0, WIDTH - 20.0);
    let mut svg = open(bottom + 48.0, x_name);
    let zero = x.at(0.0);
    let _ = write!(svg, "<path class=\"axis\" d=\"M{zero:.1} 4V{bottom}\"/>");
    for (i, row) in rows.iter().enumerate() {
        let at = 20.0 + 30.0 * i as f64;
        let [low, value, high] = [row.low, row.value, row.high].map(|value| x.at(value));
        let _ = write!(
            svg,
            "<text x=\"178\" y=\"{}\" text-anchor=\"end\">{}</text><path class=\"curve\" \
             d=\"M{low:.1} {at}H{high:.1}\" style=\"stroke:var({2})\"/><circle cx=\"{value:.1}\" \
             cy=\"{at}\" r=\"5\" style=\"fill:var({2})\"/>",
            at + 4.5,
            escape(&row.name),
            row.color
        );
    }
    x_axis(&mut svg, &x, bottom, x_name);
    svg.push_str("</svg>");
    svg
}

/// Bars over `[from, to)` with counts.
pub(super) fn bars(bins: &[(f64, f64, u64)], x_name: &str) -> String {
    let (top, bottom) = (24.0, 240.0);
    let x = Scale::over(bins.iter().flat_map(|bin| [bin.0, bin.1]), 62.0, WIDTH - 20.0);
    let most = bins.iter().map(|bin| bin.2).max().unwrap_or(1).max(1) as f64;
    let y = Scale { from: 0.0, to: most * 1.05, start: bottom, end: top };
    let mut svg = open(bottom + 48.0, &format!("number of pairs by {x_name}"));
    for tick in y.ticks(4.0) {
        let at = y.at(tick);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M62 {at:.1}H{}\"/><text class=\"soft\" x=\"54\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            WIDTH - 20.0,
            at + 4.0,
            short(tick)
        );
    }
    svg.push_str("<text class=\"soft\" x=\"0\" y=\"14\">pairs</text>");
    for &(from, to, n) in bins {
        let (left, right, up) = (x.at(from), x.at(to), y.at(n as f64));
        let _ = write!(
            svg,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{up:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            left + 0.5,
            (right - left - 1.0).max(0.5),
            bottom - up
        );
    }
    x_axis(&mut svg, &x, bottom, x_name);
    svg.push_str("</svg>");
    svg
}
