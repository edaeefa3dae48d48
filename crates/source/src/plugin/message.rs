//! What is said: one JSON object per line.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::{Changed, Entry, Redacted, Request, SourceError, Want};

/// The protocol that both sides must name.
pub(super) const PROTOCOL: &str = "dragonfly-origin/1";

/// The plugin's first line.
#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: String,
}

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation<'a> {
    Stat,
    Get { want: Want, etag: Option<&'a str> },
    List { depth: usize },
}

#[derive(Serialize)]
struct RequestLine<'a> {
    op: &'static str,
    url: &'a str,
    headers: &'a HashMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<RangeLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<usize>,
}

#[derive(Serialize)]
struct RangeLine {
    start: u64,
    length: u64,
}

/// The line that asks for an operation.
pub(super) fn request(request: &Request, operation: &Operation<'_>) -> Result<Vec<u8>, String> {
    let mut line = RequestLine {
        op: "stat",
        url: request.url.as_str(),
        headers: &request.headers,
        range: None,
        etag: None,
        depth: None,
    };
    match operation {
        Operation::Stat => {}
        Operation::Get { want, etag } => {
            line.op = "get";
            line.etag = *etag;
            line.range = match want {
                Want::Whole => None,
                Want::Prefix(length) => Some(RangeLine {
                    start: 0,
                    length: *length,
                }),
                Want::Range(range) | Want::RangeOrSkip(range) => Some(RangeLine {
                    start: range.start,
                    length: range.length,
                }),
            };
        }
        Operation::List { depth } => {
            line.op = "list";
            line.depth = Some(*depth);
        }
    }
    let mut bytes = serde_json::to_vec(&line).map_err(|error| error.to_string())?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A line of the plugin. It has exactly one of these fields.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// The answer to `stat`, and the first line of the answer to `get`.
    Facts(Answer),
    /// So many bytes of content follow this line.
    Data(u64),
    /// A part of a listing.
    Entries(Vec<ListedEntry>),
    /// The content or the listing is complete.
    #[serde(deserialize_with = "anything")]
    End,
    /// The operation failed.
    Error(Failure),
}

/// `{"end": true}`: the value tells nothing.
fn anything<'de, D: serde::Deserializer<'de>>(value: D) -> Result<(), D::Error> {
    serde::de::IgnoredAny::deserialize(value).map(|_| ())
}

/// Facts about a content.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) content_length: Option<u64>,
    #[serde(default = "yes")]
    pub(super) ranges: bool,
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
    pub(super) digest: Option<String>,
    #[serde(default)]
    pub(super) header: HashMap<String, String>,
    /// Where the bytes begin that follow; absent if they are the whole content.
    pub(super) start: Option<u64>,
}

fn yes() -> bool {
    true
}

/// One entry of a listing.
#[derive(Debug, Deserialize)]
pub(super) struct ListedEntry {
    url: String,
    content_length: Option<u64>,
    #[serde(default)]
    is_dir: bool,
}

impl ListedEntry {
    pub(super) fn into_entry(self) -> Result<Entry, String> {
        let url = Url::parse(&self.url).map_err(|error| {
            let shown: String = self.url.chars().take(200).collect();
            format!("listed {shown:?}, which is no URL: {error}")
        })?;
        Ok(Entry {
            url,
            content_length: self.content_length,
            is_dir: self.is_dir,
        })
    }
}

/// Why an operation failed.
#[derive(Debug, Deserialize)]
pub(super) struct Failure {
    kind: String,
    #[serde(default)]
    message: String,
}

/// Characters of a plugin's message that are shown.
const MESSAGE_LEN_MAX: usize = 500;

impl Failure {
    /// The same as an error of an origin: the kinds are those of HTTP, by another name.
    pub(super) fn into_source_error(self, url: &Url) -> SourceError {
        let shown = Redacted::url(url);
        let message: String = self.message.chars().take(MESSAGE_LEN_MAX).collect();
        let status_code = match self.kind.as_str() {
            "not_found" => 404,
            "unauthorized" => 401,
            "forbidden" => 403,
            "busy" => 503,
            "unavailable" => 502,
            "invalid" => {
                return SourceError::InvalidUrl {
                    url: shown,
                    reason: message,
                };
            }
            "not_listable" => {
                return SourceError::NotListable {
                    url: shown,
                    reason: message,
                };
            }
            "changed" => {
                return SourceError::Changed {
                    url: shown,
                    changed: Changed::Condition { condition: message },
                };
            }
            _ => 500,
        };
        SourceError::Status {
            url: shown,
            status_code,
            header: HashMap::from([("x-error-message".to_owned(), message)]),
            retry_after: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::ByteRange;

    use super::*;

    #[test]
    fn requests_are_one_line() {
        let asked = |operation| {
            let request = Request::new("tree://h/a\nb").unwrap();
            String::from_utf8(super::request(&request, &operation).unwrap()).unwrap()
        };
        assert_eq!(
            asked(Operation::Stat),
            "{\"op\":\"stat\",\"url\":\"tree://h/ab\",\"headers\":{}}\n"
        );
        let range = ByteRange {
            start: 3,
            length: 4,
        };
        let get = Operation::Get {
            want: Want::Range(range),
            etag: Some("\"v\""),
        };
        assert_eq!(
            asked(get),
            "{\"op\":\"get\",\"url\":\"tree://h/ab\",\"headers\":{},\"range\":{\"start\":3,\"length\":4},\"etag\":\"\\\"v\\\"\"}\n"
        );
    }

    #[test]
    fn replies_are_told_apart() {
        let reply = |line: &str| serde_json::from_str::<Reply>(line);
        assert!(matches!(
            reply(r#"{"facts":{"content_length":5}}"#),
            Ok(Reply::Facts(Answer {
                ranges: true,
                content_length: Some(5),
                ..
            }))
        ));
        assert!(matches!(reply(r#"{"data":7}"#), Ok(Reply::Data(7))));
        assert!(matches!(reply(r#"{"end":true}"#), Ok(Reply::End)));
        assert!(matches!(
            reply(r#"{"entries":[{"url":"x://h/","is_dir":true}]}"#),
            Ok(Reply::Entries(_))
        ));
        assert!(reply(r#"{"data":-1}"#).is_err() && reply("{}").is_err() && reply("[]").is_err());
        let Ok(Reply::Error(error)) = reply(r#"{"error":{"kind":"not_found","message":"gone"}}"#)
        else {
            panic!("it is an error");
        };
        let error = error.into_source_error(&Url::parse("tree://h/f").unwrap());
        assert_eq!(
            error.to_string(),
            "tree://h/f: the origin answered 404 Not Found (gone): check the address"
        );
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(line in "(\\{|\\}|\"|facts|error|data|end|entries|kind|:|,|\\[|\\]|1|null){0,16}") {
            let _ = serde_json::from_str::<Reply>(&line);
        }
    }
}
