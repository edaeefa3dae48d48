//! Deciding whether an answer is what was asked for. Pure: status and headers in, verdict out.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, StatusCode, header};
use protocol::ByteRange;
use url::Url;

use super::options::EncodedContent;
use super::outgoing;
use crate::error::is_transient;
use crate::{Changed, Facts, Get, RangeSupport, Redacted, SourceError, Version, Want};

/// What to do with an answer that is not an error.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Its body is content.
    Body(Box<Judged>),
    /// The origin refuses every range of this content; some do so for empty files.
    AskWithoutRange,
}

/// A body that is content.
#[derive(Debug, PartialEq)]
pub(super) struct Judged {
    pub(super) facts: Facts,
    /// Offset of the first byte of the body in the content.
    pub(super) start: u64,
    /// Length of the body, if known.
    pub(super) length: Option<u64>,
    /// The part of the body that is wanted, if not all of it.
    pub(super) slice: Option<ByteRange>,
}

/// Header bytes kept of one answer; the rest is left out.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Judges an answer of `url` to `get`.
pub(super) fn judge(
    get: &Get,
    url: &Url,
    status: StatusCode,
    headers: &HeaderMap,
    encoded: EncodedContent,
) -> Result<Verdict, SourceError> {
    let answer = Answer {
        get,
        url,
        status,
        headers,
    };
    match status.as_u16() {
        200 => {
            answer.refuse_encoded(encoded)?;
            answer.whole().map(Verdict::Body)
        }
        206 => {
            answer.refuse_encoded(encoded)?;
            answer.part().map(Verdict::Body)
        }
        412 if outgoing::condition(get).is_some() => Err(answer.condition_failed()),
        416 => answer.unsatisfiable(),
        _ => Err(answer.error_status()),
    }
}

/// The `Content-Length` of an answer.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

struct Answer<'a> {
    get: &'a Get,
    url: &'a Url,
    status: StatusCode,
    headers: &'a HeaderMap,
}

impl Answer<'_> {
    /// A 200: the body is the whole content, whatever was asked for.
    fn whole(&self) -> Result<Box<Judged>, SourceError> {
        let told = content_length(self.headers);
        let version = self.same_version(told)?;
        let ranges = if self.get.want == Want::Whole {
            RangeSupport::Unknown
        } else {
            RangeSupport::No
        };
        let length = told.or_else(|| {
            self.get
                .version
                .as_ref()
                .and_then(|seen| seen.content_length)
        });
        let slice = match self.get.want {
            Want::Whole | Want::Prefix(_) => None,
            Want::Range(range) if range.start == 0 && told == Some(range.length) => None,
            Want::Range(_) => return Err(SourceError::RangesUnsupported { url: self.shown() }),
            Want::RangeOrSkip(range) => {
                if length.is_some_and(|length| range.end() > length) {
                    return Err(SourceError::BeyondEnd {
                        url: self.shown(),
                        start: range.start,
                        content_length: length,
                    });
                }
                Some(range)
            }
        };
        Ok(Box::new(Judged {
            facts: self.facts(told, ranges, version),
            start: 0,
            length,
            slice,
        }))
    }

    /// A 206: the body is the part that `Content-Range` names, and this must be the one asked for.
    fn part(&self) -> Result<Box<Judged>, SourceError> {
        let text = self
            .text(header::CONTENT_RANGE)
            .unwrap_or("no Content-Range");
        let wrong = |got: &str| SourceError::WrongRange {
            url: self.shown(),
            asked: self.asked(),
            got: got.to_owned(),
        };
        let ContentRange::Part { range, total } =
            ContentRange::parse(text).ok_or_else(|| wrong(text))?
        else {
            return Err(wrong(text));
        };
        let fits = match self.get.want {
            Want::Whole => false,
            Want::Prefix(length) => {
                range.start == 0 && range.length == total.map_or(length, |total| length.min(total))
            }
            Want::Range(asked) | Want::RangeOrSkip(asked) => range == asked,
        };
        if !fits {
            // A content that became shorter is worth its own message.
            self.same_version(total)?;
            return Err(wrong(text));
        }
        if let Some(length) = content_length(self.headers)
            && length != range.length
        {
            return Err(wrong(&format!("{text} with a Content-Length of {length}")));
        }
        let version = self.same_version(total)?;
        let facts = self.facts(total, RangeSupport::Yes, version);
        Ok(Box::new(Judged {
            facts,
            start: range.start,
            length: Some(range.length),
            slice: None,
        }))
    }

    /// A 416: the content is shorter than the range's start, perhaps empty.
    fn unsatisfiable(&self) -> Result<Verdict, SourceError> {
        let told = match self
            .text(header::CONTENT_RANGE)
            .and_then(ContentRange::parse)
        {
            Some(ContentRange::Unsatisfied { total }) => Some(total),
            _ => None,
        };
        match self.get.want {
            Want::Whole => Err(self.error_status()),
            Want::Prefix(_) => Ok(Verdict::AskWithoutRange),
            Want::Range(range) | Want::RangeOrSkip(range) => {
                self.same_version(told)?;
                Err(SourceError::BeyondEnd {
                    url: self.shown(),
                    start: range.start,
                    content_length: told,
                })
            }
        }
    }

    fn condition_failed(&self) -> SourceError {
        // Many servers tell the new ETag along with the refusal: then the message can name both.
        let now = Version::of_headers(self.headers, None);
        let seen = self
            .get
            .version
            .as_ref()
            .and_then(|seen| seen.difference(&now));
        let condition = outgoing::condition(self.get).unwrap_or_default();
        SourceError::Changed {
            url: self.shown(),
            changed: seen.unwrap_or(Changed::Condition { condition }),
        }
    }

    fn error_status(&self) -> SourceError {
        SourceError::Status {
            url: self.shown(),
            status_code: self.status.as_u16(),
            header: kept_headers(self.headers),
            retry_after: if is_transient(self.status.as_u16()) {
                retry_after(self.headers, SystemTime::now())
            } else {
                None
            },
        }
    }

    fn refuse_encoded(&self, encoded: EncodedContent) -> Result<(), SourceError> {
        let codings = self.text(header::TRANSFER_ENCODING).unwrap_or_default();
        let is_known = |coding: &&str| {
            ["", "chunked", "identity"]
                .iter()
                .any(|known| coding.eq_ignore_ascii_case(known))
        };
        // The HTTP library takes chunks apart and leaves everything else as it is: those are not the bytes of the content.
        if let Some(coding) = codings.split(',').map(str::trim).find(|it| !is_known(it)) {
            return Err(SourceError::Encoded {
                url: self.shown(),
                encoding: coding.chars().take(64).collect(),
            });
        }
        match self.text(header::CONTENT_ENCODING) {
            Some(encoding)
                if encoded == EncodedContent::Refuse
                    && !encoding.is_empty()
                    && !encoding.eq_ignore_ascii_case("identity") =>
            {
                Err(SourceError::Encoded {
                    url: self.shown(),
                    encoding: encoding.chars().take(64).collect(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The version of this answer, unless it is another one than expected.
    fn same_version(&self, content_length: Option<u64>) -> Result<Version, SourceError> {
        let now = Version::of_headers(self.headers, content_length);
        match self
            .get
            .version
            .as_ref()
            .and_then(|seen| seen.difference(&now))
        {
            Some(changed) => Err(SourceError::Changed {
                url: self.shown(),
                changed,
            }),
            None => Ok(now),
        }
    }

    fn facts(&self, content_length: Option<u64>, ranges: RangeSupport, version: Version) -> Facts {
        let mut header = kept_headers(self.headers);
        header.remove("content-range");
        match content_length {
            Some(length) => header.insert("content-length".to_owned(), length.to_string()),
            None => header.remove("content-length"),
        };
        Facts {
            content_length,
            ranges,
            version,
            status_code: self.status.as_u16(),
            header,
            digest: None,
        }
    }

    fn asked(&self) -> String {
        match self.get.want {
            Want::Whole => "of the whole".to_owned(),
            Want::Prefix(length) => format!("0-{}", length - 1),
            Want::Range(range) | Want::RangeOrSkip(range) => {
                format!("{}-{}", range.start, range.end() - 1)
            }
        }
    }

    fn text(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().map(str::trim)
    }

    fn shown(&self) -> Redacted {
        Redacted::url(self.url)
    }
}

/// A `Content-Range` in bytes (RFC 9110, section 14.4).
#[derive(Debug, PartialEq)]
enum ContentRange {
    Part {
        range: ByteRange,
        total: Option<u64>,
    },
    Unsatisfied {
        total: u64,
    },
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (part, total) = rest.trim().split_once('/')?;
        if (part, total) == ("0--1", "0") {
            // Some servers (azurite) say so of a part of an empty content.
            let range = ByteRange {
                start: 0,
                length: 0,
            };
            let total = Some(0);
            return Some(Self::Part { range, total });
        }
        let total = match total {
            "*" => None,
            total => Some(digits(total)?),
        };
        if part == "*" {
            return Some(Self::Unsatisfied { total: total? });
        }
        let (first, last) = part.split_once('-')?;
        let (first, last) = (digits(first)?, digits(last)?);
        let length = last.checked_sub(first)?.checked_add(1)?;
        if total.is_some_and(|total| last >= total) {
            return None;
        }
        Some(Self::Part {
            range: ByteRange {
                start: first,
                length,
            },
            total,
        })
    }
}

/// A number without a sign, which `parse` would allow.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// `Retry-After` in either of its forms (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match digits(text) {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => Some(
            httpdate::parse_http_date(text)
                .ok()?
                .duration_since(now)
                .unwrap_or_default(),
        ),
    }
}

/// The headers that concern the content: nothing of the connection, and no cookies, which are meant for one client.
fn kept_headers(headers: &HeaderMap) -> HashMap<String, String> {
    const LEFT_OUT: [header::HeaderName; 9] = [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::HeaderName::from_static("keep-alive"),
        header::HeaderName::from_static("proxy-connection"),
    ];
    let mut kept: HashMap<String, String> = HashMap::new();
    let mut bytes = 0;
    for (name, value) in headers {
        let Ok(value) = value.to_str() else { continue };
        bytes += name.as_str().len() + value.len();
        if LEFT_OUT.contains(name) || bytes > HEADER_BYTES_MAX {
            continue;
        }
        kept.entry(name.as_str().to_owned())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
    }
    kept
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
