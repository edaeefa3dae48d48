//! Tables for people: left-aligned, no borders, upper-case headings, as those of Dragonfly v2.

use std::time::SystemTime;

use bytesize::ByteSize;

/// Lines of a table. The last column is not padded.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(width);
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            widths[column] = widths[column].max(width(cell));
        }
    }
    let line = |cells: &[&str]| {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < N {
                line.extend(std::iter::repeat_n(' ', widths[column] - width(cell) + 3));
            }
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(&headings)];
    lines.extend(
        rows.iter()
            .map(|row| line(&row.each_ref().map(String::as_str))),
    );
    lines.join("\n")
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// As `4.0 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// As `2026-01-31 12:34:56` in UTC; `-` where there is none.
pub(crate) fn time(time: Option<SystemTime>) -> String {
    match time {
        Some(time) => humantime::format_rfc3339_seconds(time)
            .to_string()
            .replace('T', " ")
            .trim_end_matches('Z')
            .to_owned(),
        None => "-".to_owned(),
    }
}

/// As `2026-01-31T12:34:56.789Z`: for JSON.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// A text from elsewhere, without what could play tricks on the terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(512).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [
            ["a".to_owned(), "1".to_owned()],
            ["äöü".to_owned(), "22".to_owned()],
        ];
        assert_eq!(table(["ID", "N"], &rows), "ID    N\na     1\näöü   22");
    }

    #[test]
    fn quantities_are_told_for_people() {
        assert_eq!(bytes(4 << 20), "4.0 MiB");
        assert_eq!(time(None), "-");
        assert_eq!(time(Some(SystemTime::UNIX_EPOCH)), "1970-01-01 00:00:00");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
        assert_eq!(harmless("a\u{1b}[2J\nb"), "a[2Jb");
    }
}
