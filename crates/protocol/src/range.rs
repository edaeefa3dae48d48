//! Byte ranges of a content, and the HTTP `Range` header that asks for one.

use std::fmt;

/// A part of a content: `length` bytes from `start`. The same shape as `common.v2.Range`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub start: u64,
    /// How many bytes.
    pub length: u64,
}

impl ByteRange {
    /// The whole of a content.
    pub fn whole(content_length: u64) -> Self {
        Self {
            start: 0,
            length: content_length,
        }
    }

    /// Offset behind the last byte; stays at the largest offset when the sum does not fit.
    pub fn end(self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// Whether `offset` is in it.
    pub fn contains(self, offset: u64) -> bool {
        offset >= self.start && offset - self.start < self.length
    }

    /// The part that it shares with `other`, if there is any.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Self {
            start,
            length: end - start,
        })
    }

    /// Checks the range against the content and cuts what lies behind the content's end.
    ///
    /// # Errors
    /// [`RangeError::Unsatisfiable`] when no byte of the content is asked for.
    pub fn clip(self, content_length: u64) -> Result<Self, RangeError> {
        self.intersection(Self::whole(content_length))
            .ok_or(RangeError::Unsatisfiable { content_length })
    }

    /// Reads the value of an HTTP `Range` header (RFC 9110, section 14.1.2) against the length of the content.
    ///
    /// Several ranges are accepted as long as they do not overlap, and the **first** is returned, as the Dragonfly v2
    /// daemon does. An end behind the content is cut, and a suffix longer than the content is the whole content (which v2 refuses).
    ///
    /// # Errors
    /// [`RangeError`]: the header is malformed, asks for nothing in the content, or its ranges overlap.
    pub fn parse_header(value: &str, content_length: u64) -> Result<Self, RangeError> {
        let (unit, set) = value.trim().split_once('=').ok_or(RangeError::Syntax)?;
        if !unit.trim_end().eq_ignore_ascii_case("bytes") {
            return Err(RangeError::Unit);
        }
        let mut ranges = Vec::new();
        for spec in set.split(',') {
            if ranges.len() == RANGES_MAX {
                return Err(RangeError::TooMany);
            }
            ranges.push(parse_spec(spec.trim(), content_length)?);
        }
        let first = ranges[0];
        ranges.sort_unstable_by_key(|range| range.start);
        if ranges
            .windows(2)
            .any(|pair| pair[0].intersection(pair[1]).is_some())
        {
            return Err(RangeError::Overlap);
        }
        Ok(first)
    }

    /// The value of a `Range` header that asks for exactly this range. The range must not be empty.
    pub fn header(self) -> String {
        format!("bytes={self}")
    }

    /// The value of a `Content-Range` header for an answer with exactly this range.
    pub fn content_range_header(self, content_length: u64) -> String {
        format!("bytes {self}/{content_length}")
    }
}

/// First and last offset with a dash between, as HTTP headers have it.
impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end().saturating_sub(1))
    }
}

/// How many ranges one header may list. Only one is served, so more are a mistake or an attack.
const RANGES_MAX: usize = 64;

fn parse_spec(spec: &str, content_length: u64) -> Result<ByteRange, RangeError> {
    let unsatisfiable = RangeError::Unsatisfiable { content_length };
    let (first, last) = spec.split_once('-').ok_or(RangeError::Syntax)?;
    if first.is_empty() {
        let length = parse_offset(last)?;
        return match length.min(content_length) {
            0 => Err(unsatisfiable),
            length => Ok(ByteRange {
                start: content_length - length,
                length,
            }),
        };
    }
    let start = parse_offset(first)?;
    let last = if last.is_empty() {
        u64::MAX
    } else {
        parse_offset(last)?
    };
    if last < start {
        return Err(RangeError::Syntax);
    }
    if start >= content_length {
        return Err(unsatisfiable);
    }
    Ok(ByteRange {
        start,
        length: last.min(content_length - 1) - start + 1,
    })
}

/// Digits only: `u64::from_str` would also take a plus sign. A number too large for an offset counts as the largest.
fn parse_offset(text: &str) -> Result<u64, RangeError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RangeError::Syntax);
    }
    Ok(text.parse().unwrap_or(u64::MAX))
}

/// Why a range cannot be served. The caller must ask for another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// The unit in front of `=` is not `bytes`.
    #[error("the unit of a range must be bytes")]
    Unit,
    /// Not of the form that HTTP describes.
    #[error("malformed range: write bytes=first-last, bytes=first- or bytes=-length")]
    Syntax,
    /// More ranges in one header than anybody needs.
    #[error("more than 64 ranges in one header: ask for one")]
    TooMany,
    /// Two of the ranges share bytes.
    #[error("the ranges of one header overlap: ask for one")]
    Overlap,
    /// No byte of the content is in the range.
    #[error("the range lies outside of the content, which has {content_length} bytes")]
    Unsatisfiable {
        /// Length of the content, in bytes.
        content_length: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(value: &str, content_length: u64, want: Result<(u64, u64), RangeError>) {
        let want = want.map(|(start, length)| ByteRange { start, length });
        assert_eq!(
            ByteRange::parse_header(value, content_length),
            want,
            "{value} of {content_length}"
        );
    }

    #[test]
    fn headers_are_read_as_the_v2_daemon_reads_them() {
        check("bytes=0-100", 200, Ok((0, 101)));
        check("bytes=-50", 200, Ok((150, 50)));
        check("bytes=-201", 200, Ok((0, 200)));
        check("bytes=150-", 200, Ok((150, 50)));
        check("bytes=100-300", 200, Ok((100, 100)));
        check("bytes=0-0,-1", 200, Ok((0, 1)));
        check("bytes=0-99999999999999999999999", 200, Ok((0, 200)));
        check(" Bytes=5-9 , 20-29", 200, Ok((5, 5)));
    }

    #[test]
    fn bad_headers_are_refused() {
        let unsatisfiable = |content_length| Err(RangeError::Unsatisfiable { content_length });
        check("bytes=200-", 200, unsatisfiable(200));
        check("bytes=-1", 0, unsatisfiable(0));
        check("bytes=-0", 200, unsatisfiable(200));
        check("bytes=0-", 0, unsatisfiable(0));
        check("bytes=0-9,5-14", 200, Err(RangeError::Overlap));
        check("bytes=0-9,-200", 200, Err(RangeError::Overlap));
        check("items=0-9", 200, Err(RangeError::Unit));
        for bad in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=9-0",
            "bytes=1",
            "bytes=0-1,",
        ] {
            check(bad, 200, Err(RangeError::Syntax));
        }
        check(
            &format!("bytes={}", vec!["0-0"; 65].join(",")),
            200,
            Err(RangeError::TooMany),
        );
    }

    #[test]
    fn headers_are_written_for_people_who_count_inclusively() {
        let range = ByteRange {
            start: 100,
            length: 50,
        };
        assert_eq!(range.header(), "bytes=100-149");
        assert_eq!(range.content_range_header(1000), "bytes 100-149/1000");
    }

    proptest! {
        #[test]
        fn ranges_survive_the_header(start in 0u64..1000, length in 1u64..1000, beyond in 0u64..10) {
            let range = ByteRange { start, length };
            prop_assert_eq!(ByteRange::parse_header(&range.header(), range.end() + beyond), Ok(range));
        }

        #[test]
        fn any_header_is_refused_or_inside(value in "bytes=[0-9, -]{0,20}|.{0,20}", content_length in 0u64..100_000) {
            if let Ok(range) = ByteRange::parse_header(&value, content_length) {
                prop_assert!(range.length > 0 && range.end() <= content_length);
            }
        }

        #[test]
        fn intersection_agrees_with_counting(a in 0u64..20, b in 0u64..20, c in 0u64..20, d in 0u64..20) {
            let (x, y) = (ByteRange { start: a, length: b }, ByteRange { start: c, length: d });
            let shared: Vec<u64> = (0..50).filter(|at| x.contains(*at) && y.contains(*at)).collect();
            let got: Vec<u64> = x.intersection(y).map_or(Vec::new(), |both| (both.start..both.end()).collect());
            prop_assert_eq!(got, shared);
        }
    }
}
