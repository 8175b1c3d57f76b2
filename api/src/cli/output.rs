//! Where answers and complaints go. A reader who has gone away ends the program's interest, not
//! the program with a panic.

use std::fmt;
use std::io::{self, Write as _};

use serde::Serialize;

/// One line of the answer, on stdout, at once.
///
/// # Errors
/// When stdout takes no more.
pub(crate) fn line(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// The answer as indented JSON.
///
/// # Errors
/// When stdout takes no more.
pub(crate) fn json(answer: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(answer).map_err(io::Error::other)?;
    line(text)
}

/// One line for people, on stderr; where that fails there is nobody left to tell.
pub(crate) fn complain(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Columns, left-aligned, two spaces between them.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell_width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(cell_width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths);
        let padded: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let rows = [row(["ID", "STATUS"]), row(["backup-a-1", "ok"])];
        assert_eq!(table(&rows), "ID          STATUS\nbackup-a-1  ok");
        assert_eq!(table(&[]), "");
    }
}
