//! Aligned text tables.

use crate::escape;
use crate::output::Output;

/// The alignment of the cells of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// The maximum width of a column. A longer cell shifts the rest of its own row only.
const MAX_WIDTH: usize = 80;

/// A table whose column widths are computed when it is printed.
pub struct Table {
    columns: Vec<Align>,
    /// The number of heading rows.
    headings: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table with headings.
    pub fn new<'a>(columns: impl AsRef<[(&'a str, Align)]>) -> Table {
        let columns = columns.as_ref();
        let headings = columns.iter().map(|(heading, _)| heading.to_string()).collect();
        Table { columns: columns.iter().map(|(_, align)| *align).collect(), headings: 1, rows: vec![headings] }
    }

    /// Creates a table without headings.
    pub fn without_headings<const N: usize>(columns: [Align; N]) -> Table {
        Table { columns: columns.to_vec(), headings: 0, rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl AsRef<[String]>) {
        self.rows.push(cells.as_ref().iter().map(|cell| escape::line(cell).into_owned()).collect());
    }

    /// Prints all rows. Columns that are empty below their heading are omitted.
    pub fn print(&self, out: &mut Output) {
        let width = |column: usize| {
            let cells = || self.rows.iter().filter_map(|row| row.get(column));
            let is_empty = cells().skip(self.headings).all(|cell| cell.is_empty());
            if is_empty { 0 } else { cells().map(|cell| cell.chars().count()).max().unwrap_or(0).min(MAX_WIDTH) }
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), &align) in
                row.iter().zip(&widths).zip(&self.columns).filter(|((_, width), _)| **width > 0)
            {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                match align {
                    Align::Left => line.push_str(&format!("{cell:<width$}")),
                    Align::Right => line.push_str(&format!("{cell:>width$}")),
                }
            }
            out.line(line.trim_end());
        }
    }
}
