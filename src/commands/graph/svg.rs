//! A picture of a graph: columns by the longest way from a source, rows so that edges cross little.

use std::fmt::Write as _;

use super::Drawing;

const BOX_HEIGHT: usize = 44;
const ROW: usize = 64;
const GAP: usize = 70;
const MARGIN: usize = 20;
/// About the width of a letter at 13 pixels.
const LETTER: usize = 8;
/// Rounds of putting each box at the middle of its neighbours.
const ROUNDS: usize = 8;

/// Where boxes stand.
struct Layout {
    column: Vec<usize>,
    /// Place in the column, from the top.
    row: Vec<usize>,
    n_columns: usize,
}

/// The graph as SVG.
pub(super) fn draw(drawing: &Drawing) -> String {
    let layout = layout(drawing);
    let widths: Vec<usize> = (0..layout.n_columns).map(|c| width(drawing, &layout, c)).collect();
    let left: Vec<usize> = (0..layout.n_columns)
        .map(|c| MARGIN + widths[..c].iter().map(|w| w + GAP).sum::<usize>())
        .collect();
    let n_rows = layout.row.iter().map(|row| row + 1).max().unwrap_or(0);
    let total_width =
        MARGIN + left.last().copied().unwrap_or(0) + widths.last().copied().unwrap_or(0);
    let total_height = 2 * MARGIN + n_rows * ROW - (ROW - BOX_HEIGHT).min(n_rows * ROW);
    let corner = |i: usize| (left[layout.column[i]], MARGIN + layout.row[i] * ROW);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total_width}\" height=\"{total_height}\" \
         viewBox=\"0 0 {total_width} {total_height}\" font-family=\"sans-serif\">\n<style>\
         rect{{fill:#f6f8fa;stroke:#57606a}} .edge{{fill:none;stroke:#8c959f;stroke-width:1.2}} \
         .name{{font-size:13px;fill:#1f2328}} .about{{font-size:11px;fill:#57606a}} \
         @media(prefers-color-scheme:dark){{rect{{fill:#161b22}} .name{{fill:#e6edf3}} \
         .about{{fill:#8d96a0}}}}</style>\n<title>{}</title>\n",
        escaped(&drawing.pipeline)
    );
    for (from, to) in &drawing.edges {
        let ((x0, y0), (x1, y1)) = (corner(*from), corner(*to));
        let (x0, y0, y1) =
            (x0 + widths[layout.column[*from]], y0 + BOX_HEIGHT / 2, y1 + BOX_HEIGHT / 2);
        let (a, b) = (x0 + GAP / 2, x1 - GAP / 2);
        let _ =
            writeln!(text, "<path class=\"edge\" d=\"M{x0} {y0} C{a} {y0} {b} {y1} {x1} {y1}\"/>");
    }
    for (i, drawn) in drawing.boxes.iter().enumerate() {
        let ((x, y), wide) = (corner(i), widths[layout.column[i]]);
        let (middle, about) = (x + wide / 2, drawn.about());
        let name_y = if about.is_empty() { y + 26 } else { y + 19 };
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{BOX_HEIGHT}\" rx=\"7\"/>\
             <text class=\"name\" x=\"{middle}\" y=\"{name_y}\" text-anchor=\"middle\">{}</text>",
            escaped(&drawn.name)
        );
        if !about.is_empty() {
            let about_y = y + 35;
            let _ = writeln!(
                text,
                "<text class=\"about\" x=\"{middle}\" y=\"{about_y}\" text-anchor=\"middle\">{}</text>",
                escaped(&about)
            );
        }
    }
    text.push_str("</svg>\n");
    text
}

fn width(drawing: &Drawing, layout: &Layout, column: usize) -> usize {
    let boxes = drawing.boxes.iter().enumerate().filter(|(i, _)| layout.column[*i] == column);
    let letters = boxes.map(|(_, b)| b.name.chars().count().max(b.about().chars().count()));
    letters.max().unwrap_or(0) * LETTER + 24
}

fn layout(drawing: &Drawing) -> Layout {
    let n = drawing.boxes.len();
    let mut column = vec![0; n];
    // Producers stand before consumers except among collapsed entries that read from each other, so
    // the number of passes is bounded.
    for _ in 0..n {
        let mut moved = false;
        for (from, to) in &drawing.edges {
            if column[*to] <= column[*from] && column[*from] + 1 < n {
                column[*to] = column[*from] + 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let n_columns = column.iter().map(|c| c + 1).max().unwrap_or(0);
    let mut order: Vec<Vec<usize>> = vec![Vec::new(); n_columns];
    for (i, c) in column.iter().enumerate() {
        order[*c].push(i);
    }
    let mut row = vec![0; n];
    let number = |order: &[Vec<usize>], row: &mut Vec<usize>| {
        for boxes in order {
            for (place, i) in boxes.iter().enumerate() {
                row[*i] = place;
            }
        }
    };
    number(&order, &mut row);
    for _ in 0..ROUNDS {
        for boxes in &mut order {
            let middle = |i: &usize| -> f64 {
                let near =
                    drawing.edges.iter().filter_map(|(from, to)| match (from == i, to == i) {
                        (true, _) => Some(row[*to]),
                        (_, true) => Some(row[*from]),
                        _ => None,
                    });
                let (sum, n) = near.fold((0, 0), |(sum, n), row| (sum + row, n + 1));
                if n == 0 { row[*i] as f64 } else { f64::from(sum as u32) / f64::from(n) }
            };
            boxes.sort_by(|a, b| middle(a).total_cmp(&middle(b)).then(a.cmp(b)));
        }
        number(&order, &mut row);
    }
    Layout { column, row, n_columns }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
