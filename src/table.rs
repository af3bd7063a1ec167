//! Plain tables for terminals and pipes.

use console::measure_text_width;

/// Rows under a header, columns two spaces apart.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    /// Columns to leave out when there is no room for all, the first to go first.
    spare: Vec<usize>,
}

struct Column {
    title: String,
    align: Align,
}

/// Where a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

impl Table {
    /// A table whose columns have these titles. A title that starts with `>` makes a column of
    /// numbers, aligned to the right.
    pub(crate) fn new(titles: &[&str]) -> Self {
        let mut table = Self { columns: Vec::new(), rows: Vec::new(), spare: Vec::new() };
        for title in titles {
            match title.strip_prefix('>') {
                Some(title) => table.column(title, Align::Right),
                None => table.column(title, Align::Left),
            }
        }
        table
    }

    /// Adds a column, before any row.
    pub(crate) fn column(&mut self, title: &str, align: Align) {
        self.columns.push(Column { title: title.to_owned(), align });
    }

    /// Adds a row; cells may carry colour.
    ///
    /// # Panics
    /// When the number of cells is not the number of columns.
    pub(crate) fn row(&mut self, cells: impl Into<Vec<String>>) {
        let cells = cells.into();
        assert_eq!(cells.len(), self.columns.len(), "a row has one cell for each column");
        self.rows.push(cells);
    }

    /// Names columns to leave out when there is no room for all, the first to go first.
    pub(crate) fn spare(&mut self, columns: &[usize]) {
        self.spare = columns.to_vec();
    }

    /// Whether there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text that ends with a line break. With a `width`, spare columns are left out
    /// and the last column wraps where it would reach further.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(c, column)| {
                let cells = self.rows.iter().map(|row| measure_text_width(&row[c]));
                cells.chain([column.title.chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let shown = self.shown(&widths, width);
        let indent: usize = shown.iter().rev().skip(1).map(|&c| widths[c] + 2).sum();
        let room = width.map(|width| width.saturating_sub(indent).max(WRAP_MIN));
        let titles: Vec<String> =
            self.columns.iter().map(|column| column.title.to_uppercase()).collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for &c in &shown {
                let cell = &row[c];
                let pad = " ".repeat(widths[c] - measure_text_width(cell));
                match (self.columns[c].align, room) {
                    (Align::Right, _) => line.extend([pad.as_str(), cell]),
                    (Align::Left, Some(room)) if Some(&c) == shown.last() => {
                        line.push_str(&wrap(cell, room, indent));
                    }
                    (Align::Left, _) => line.extend([cell, pad.as_str()]),
                }
                line.push_str("  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

impl Table {
    /// The columns there is room for.
    fn shown(&self, widths: &[usize], room: Option<usize>) -> Vec<usize> {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let Some(room) = room else { return shown };
        for spare in &self.spare {
            let total: usize = shown.iter().map(|&c| widths[c] + 2).sum();
            if total <= room + 2 {
                break;
            }
            shown.retain(|c| c != spare);
        }
        shown
    }
}

/// The narrowest last column: below it, wrapping makes a column of single words.
const WRAP_MIN: usize = 24;

/// Breaks text between words; lines after the first begin below it.
fn wrap(text: &str, room: usize, indent: usize) -> String {
    let mut wrapped = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let n = measure_text_width(word);
        if used > 0 && used + 1 + n > room {
            wrapped.push('\n');
            wrapped.push_str(&" ".repeat(indent));
            used = 0;
        } else if used > 0 {
            wrapped.push(' ');
            used += 1;
        }
        wrapped.push_str(word);
        used += n;
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_the_last_wraps() {
        let mut table = Table::new(&["node", ">seconds", "why"]);
        table.row(["a".to_owned(), "1.5".to_owned(), "param `steps` changed".to_owned()]);
        table.row(["tokenizer".to_owned(), "12.25".to_owned(), String::new()]);
        assert_eq!(
            table.render(None),
            "NODE       SECONDS  WHY\n\
             a              1.5  param `steps` changed\n\
             tokenizer    12.25\n"
        );
        let mut table = Table::new(&["node", "why"]);
        table.row(["a".to_owned(), "param `steps` changed from 10 to 20".to_owned()]);
        assert_eq!(
            table.render(Some(30)),
            "NODE  WHY\na     param `steps` changed\n      from 10 to 20\n"
        );
    }

    #[test]
    fn spare_columns_go_in_their_order() {
        let mut table = Table::new(&["arm", "role", ">loss", ">shown"]);
        table.row(["sbp", "treatment", "5.426", "1.0x"].map(str::to_owned));
        table.spare(&[1, 3]);
        let titles = |width| table.render(Some(width)).lines().next().map(str::to_owned);
        assert_eq!(titles(28).as_deref(), Some("ARM  ROLE        LOSS  SHOWN"));
        assert_eq!(titles(27).as_deref(), Some("ARM   LOSS  SHOWN"));
        assert_eq!(titles(16).as_deref(), Some("ARM   LOSS"));
        assert_eq!(table.render(None).lines().count(), 2);
    }
}
