//! Edits that leave the form of a text as its author chose it: comments behind values, ends of lines.

use similar::{ChangeTag, TextDiff};
use toml_edit::{Item, TableLike};

/// Sets `key` in `table`; the comments around its former value stay.
pub(super) fn set_value(table: &mut dyn TableLike, key: &str, mut new: Item) {
    match table.get_mut(key) {
        Some(old) => {
            let decor = old.as_value().map(|old| old.decor().clone());
            if let (Some(decor), Some(fresh)) = (decor, new.as_value_mut()) {
                *fresh.decor_mut() = decor;
            }
            *old = new;
        }
        None => {
            table.insert(key, new);
        }
    }
}

/// `after`, an edit of `before`, with the ends of lines that `before` has: lines that were there end as they did, new ones as most did.
pub(super) fn keep_line_ends(before: &str, after: String) -> String {
    if !before.contains("\r\n") {
        return after;
    }
    let after = after.replace("\r\n", "\n");
    let old: Vec<&str> = before.split_inclusive('\n').collect();
    let plain: Vec<String> = old.iter().map(|line| line.replace("\r\n", "\n")).collect();
    let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
    let new: Vec<&str> = after.split_inclusive('\n').collect();
    let windows = old.iter().filter(|line| line.ends_with("\r\n")).count();
    let most = if windows * 2 >= old.len() {
        "\r\n"
    } else {
        "\n"
    };
    let mut kept = String::with_capacity(before.len() + after.len());
    for change in TextDiff::from_slices(&plain, &new).iter_all_changes() {
        match (change.tag(), change.old_index()) {
            (ChangeTag::Delete, _) => {}
            (ChangeTag::Equal, Some(at)) => kept.push_str(old[at]),
            _ => match change.value().strip_suffix('\n') {
                Some(line) => kept.extend([line, most]),
                None => kept.push_str(change.value()),
            },
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_line_ends_as_it_did() {
        let check = |before: &str, after: &str, expected: &str| {
            assert_eq!(
                keep_line_ends(before, after.to_owned()),
                expected,
                "{before:?}"
            );
        };
        check("a\r\nb\r\n", "a\nb\n", "a\r\nb\r\n");
        check("a\r\nb\r\n", "a\nx\nb\ny", "a\r\nx\r\nb\r\ny");
        check("a\nb\n", "a\nx\nb\n", "a\nx\nb\n");
        check("a\nb\r\nc\nd\n", "a\nb\nx\nc\nd\n", "a\nb\r\nx\nc\nd\n");
        check("a\r\n", "", "");
        check("a\r\nb\r\n", "a\r\nb\nx\n", "a\r\nb\r\nx\r\n");
    }

    proptest! {
        #[test]
        fn only_the_ends_of_lines_differ(before in "(a|b|\r?\n){0,12}", after in "[ab\n]{0,12}") {
            let kept = keep_line_ends(&before, after.clone());
            prop_assert_eq!(kept.replace("\r\n", "\n"), after);
            let plain = before.replace("\r\n", "\n");
            prop_assert_eq!(keep_line_ends(&before, plain), before);
        }
    }
}
