//! The `Range` header of a client, against the length of a content (RFC 9110, section 14).
//!
//! One range is answered as a part. A header that is no byte range, or asks for several, is ignored and the whole is sent, as the RFC
//! allows; Dragonfly v2 answers 500 to the former and with the first range to the latter.

use protocol::ByteRange;

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything, with 200.
    Whole,
    /// This part, with 206.
    Of(ByteRange),
    /// Nothing: no byte of the content was asked for. 416.
    Unsatisfiable,
}

/// What `header` asks for of a content of `length` bytes.
pub fn part(header: Option<&str>, length: u64) -> Part {
    let Some((unit, set)) = header.and_then(|header| header.split_once('=')) else {
        return Part::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Part::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else {
        return Part::Whole;
    };
    match (number(first), number(last)) {
        (Number::None, Number::Of(suffix)) => {
            let suffix = suffix.min(length);
            bounded(length - suffix, suffix)
        }
        (Number::Of(first), Number::None) => bounded(first, length.saturating_sub(first)),
        (Number::Of(first), Number::Of(last)) if first <= last => {
            let end = last.saturating_add(1).min(length);
            bounded(first, end.saturating_sub(first))
        }
        _ => Part::Whole,
    }
}

fn bounded(start: u64, length: u64) -> Part {
    match length {
        0 => Part::Unsatisfiable,
        _ => Part::Of(ByteRange { start, length }),
    }
}

enum Number {
    None,
    Of(u64),
    Bad,
}

/// Digits only; more than fit are as good as the largest number.
fn number(text: &str) -> Number {
    let text = text.trim();
    match text {
        "" => Number::None,
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Number::Of(text.parse().unwrap_or(u64::MAX))
        }
        _ => Number::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(start: u64, length: u64) -> Part {
        Part::Of(ByteRange { start, length })
    }

    #[test]
    fn single_ranges_are_parts() {
        for (header, want) in [
            ("bytes=0-100", of(0, 101)),
            ("bytes=-50", of(150, 50)),
            ("bytes=150-", of(150, 50)),
            ("bytes=100-300", of(100, 100)),
            ("Bytes = 0-0", of(0, 1)),
            ("bytes=-500", of(0, 200)),
            ("bytes=0-18446744073709551616", of(0, 200)),
            ("bytes=199-199", of(199, 1)),
        ] {
            assert_eq!(part(Some(header), 200), want, "{header}");
        }
    }

    #[test]
    fn what_asks_for_nothing_is_unsatisfiable() {
        for header in [
            "bytes=200-",
            "bytes=200-300",
            "bytes=-0",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(part(Some(header), 200), Part::Unsatisfiable, "{header}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::Unsatisfiable);
        assert_eq!(part(Some("bytes=-5"), 0), Part::Unsatisfiable);
    }

    #[test]
    fn what_is_no_single_range_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=9-0",
            "bytes=a-b",
            "bytes=+1-2",
            "items=0-1",
            "bytes=0-1,5-6",
            "bytes=0--1",
            "bytes=1",
        ] {
            assert_eq!(part(Some(header), 200), Part::Whole, "{header:?}");
        }
        assert_eq!(part(None, 200), Part::Whole);
    }

    proptest! {
        #[test]
        fn parts_agree_with_counting(first in 0u64..30, last in 0u64..30, length in 0u64..20) {
            let naive: Vec<u64> = (first..=last).filter(|at| *at < length).collect();
            let want = match (first > last, naive.first()) {
                (true, _) => Part::Whole,
                (false, None) => Part::Unsatisfiable,
                (false, Some(start)) => of(*start, naive.len() as u64),
            };
            prop_assert_eq!(part(Some(&format!("bytes={first}-{last}")), length), want);
            let tail: Vec<u64> = (0..length).rev().take(usize::try_from(first).unwrap()).collect();
            let want = match tail.last() {
                None => Part::Unsatisfiable,
                Some(start) => of(*start, tail.len() as u64),
            };
            prop_assert_eq!(part(Some(&format!("bytes=-{first}")), length), want);
        }

        #[test]
        fn any_header_is_whole_or_inside(header in "bytes=[0-9, -]{0,24}|.{0,20}", length in 0u64..1000) {
            if let Part::Of(range) = part(Some(&header), length) {
                prop_assert!(range.length > 0 && range.end() <= length);
            }
        }
    }
}
