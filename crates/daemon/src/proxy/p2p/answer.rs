//! Status and headers of an answer out of the store. Pure.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use protocol::{ByteRange, Digest};

use super::range::{self, Part};

/// What is known of a content.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Bytes in the whole.
    pub length: u64,
    /// What its origin sent along, names in lower case.
    pub header: BTreeMap<String, String>,
    /// Its strong or weak entity tag.
    pub etag: Option<String>,
    /// When it was modified, as its origin says.
    pub last_modified: Option<String>,
    /// The digest that names it.
    pub named_by: Option<Digest>,
}

/// What a client is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// 200, 206, 304 or 416.
    pub status: StatusCode,
    /// The bytes, if there are any.
    pub range: Option<ByteRange>,
}

/// Decides by the client's conditions and range.
pub fn plan(asked: &HeaderMap, is_get: bool, facts: &Facts) -> Plan {
    let whole = Plan {
        status: StatusCode::OK,
        range: Some(ByteRange::whole(facts.length)),
    };
    if is_unchanged(asked, facts) {
        return Plan {
            status: StatusCode::NOT_MODIFIED,
            range: None,
        };
    }
    let single = asked.get_all(header::RANGE).iter().count() == 1;
    if !is_get || !single || !range_holds(asked, facts) {
        return whole;
    }
    match range::part(text(asked, header::RANGE), facts.length) {
        Part::Whole => whole,
        Part::Of(range) => Plan {
            status: StatusCode::PARTIAL_CONTENT,
            range: Some(range),
        },
        Part::Unsatisfiable => Plan {
            status: StatusCode::RANGE_NOT_SATISFIABLE,
            range: None,
        },
    }
}

/// Whether a condition of the client is about what the origin has at this moment (RFC 9110, sections 13.1.1 and 13.1.4): it protects
/// those who read in parts, or write, from mixtures.
pub fn needs_origin(asked: &HeaderMap) -> bool {
    asked.contains_key(header::IF_MATCH) || asked.contains_key(header::IF_UNMODIFIED_SINCE)
}

/// Whether the client wants to be sure that the origin still has it (RFC 9111, section 5.2.1).
pub fn must_revalidate(asked: &HeaderMap) -> bool {
    let says = |name: HeaderName| {
        asked
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .map(|word| word.trim().to_ascii_lowercase())
            .any(|word| matches!(word.as_str(), "no-cache" | "no-store" | "max-age=0"))
    };
    says(header::CACHE_CONTROL) || says(header::PRAGMA)
}

/// The headers that go with the plan.
pub fn headers(facts: &Facts, plan: &Plan) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &facts.header {
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value),
        ) else {
            continue;
        };
        if is_passed_on(&name) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(etag) = etag(facts) {
        insert(&mut headers, header::ETAG, &etag);
    }
    if let Some(digest) = &facts.named_by {
        let name = HeaderName::from_static("docker-content-digest");
        insert(&mut headers, name, &digest.to_string());
        headers
            .entry(header::CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("application/octet-stream"));
    }
    match (plan.status, plan.range) {
        (StatusCode::RANGE_NOT_SATISFIABLE, _) => {
            headers.remove(header::CONTENT_TYPE);
            let length = format!("bytes */{}", facts.length);
            insert(&mut headers, header::CONTENT_RANGE, &length);
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        }
        (StatusCode::PARTIAL_CONTENT, Some(range)) => {
            let text = range.content_range_header(facts.length);
            insert(&mut headers, header::CONTENT_RANGE, &text);
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.length));
        }
        (_, Some(range)) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.length));
        }
        _ => {}
    }
    headers
}

/// Headers of an origin's error that its client needs: challenges, pauses, addresses.
pub fn headers_of_error(header: &std::collections::HashMap<String, String>) -> HeaderMap {
    const KEPT: [HeaderName; 5] = [
        header::WWW_AUTHENTICATE,
        header::RETRY_AFTER,
        header::LOCATION,
        header::ALLOW,
        HeaderName::from_static("docker-distribution-api-version"),
    ];
    let mut headers = HeaderMap::new();
    for (name, value) in header {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
            && KEPT.contains(&name)
        {
            insert(&mut headers, name, value);
        }
    }
    headers
}

/// The entity tag: the origin's, or one made of the digest, which is as strong as can be.
pub fn etag(facts: &Facts) -> Option<String> {
    let made = || {
        facts
            .named_by
            .as_ref()
            .map(|digest| format!("\"{digest}\""))
    };
    facts.etag.clone().or_else(made)
}

/// Whether the origin's header still means something for another client, at another time.
fn is_passed_on(name: &HeaderName) -> bool {
    const STALE: [HeaderName; 29] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::DATE,
        header::AGE,
        header::VIA,
        header::ALT_SVC,
        header::LOCATION,
        header::RETRY_AFTER,
        header::SET_COOKIE,
        header::STRICT_TRANSPORT_SECURITY,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::WARNING,
        header::WWW_AUTHENTICATE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        HeaderName::from_static("set-cookie2"),
        // Of the one byte that the origin was asked for.
        HeaderName::from_static("content-digest"),
        HeaderName::from_static("content-md5"),
        HeaderName::from_static("digest"),
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("clear-site-data"),
        HeaderName::from_static("nel"),
        HeaderName::from_static("report-to"),
    ];
    let text = name.as_str();
    let limits = text.starts_with("ratelimit-") || text.starts_with("x-ratelimit-");
    let cached = text.starts_with("x-cache") || text.starts_with("cf-");
    !STALE.contains(name) && !text.starts_with("x-dragonfly-") && !limits && !cached
}

/// `If-None-Match`, else `If-Modified-Since` (RFC 9110, section 13.2.2).
fn is_unchanged(asked: &HeaderMap, facts: &Facts) -> bool {
    let mut tags = asked.get_all(header::IF_NONE_MATCH).iter().peekable();
    if tags.peek().is_some() {
        let ours = etag(facts);
        return tags
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .any(|tag| {
                tag == "*"
                    || ours
                        .as_deref()
                        .is_some_and(|ours| opaque(tag) == opaque(ours))
            });
    }
    let time = |text: &str| httpdate::parse_http_date(text).ok();
    let since = text(asked, header::IF_MODIFIED_SINCE).and_then(time);
    let modified = facts.last_modified.as_deref().and_then(time);
    matches!((since, modified), (Some(since), Some(modified)) if modified <= since)
}

/// Whether `If-Range` lets the range stand: by a strong tag, or the very time of modification.
fn range_holds(asked: &HeaderMap, facts: &Facts) -> bool {
    let Some(condition) = asked.get(header::IF_RANGE) else {
        return true;
    };
    let Ok(condition) = condition.to_str().map(str::trim) else {
        return false;
    };
    if condition.starts_with('"') {
        return etag(facts).as_deref() == Some(condition);
    }
    !condition.starts_with("W/") && facts.last_modified.as_deref() == Some(condition)
}

/// The part of an entity tag that is compared weakly.
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        map
    }

    fn facts() -> Facts {
        let header = [
            ("content-type", "text/plain"),
            ("content-length", "1"),
            ("content-range", "bytes 0-0/9"),
            ("set-cookie", "a=b"),
            ("date", "yesterday"),
            ("x-dragonfly-task-id", "forged"),
            ("x-custom", "kept"),
        ];
        Facts {
            length: 1000,
            header: header
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
            etag: Some("\"e\"".into()),
            last_modified: Some("Wed, 21 Oct 2015 07:28:00 GMT".into()),
            named_by: None,
        }
    }

    fn status(headers: &[(&str, &str)]) -> u16 {
        plan(&asked(headers), true, &facts()).status.as_u16()
    }

    #[test]
    fn a_part_is_answered_as_a_part() {
        let plan = plan(&asked(&[("range", "bytes=100-149")]), true, &facts());
        let headers = headers(&facts(), &plan);
        assert_eq!(plan.status, 206);
        assert_eq!(headers["content-range"], "bytes 100-149/1000");
        assert_eq!(headers["content-length"], "50");
        assert_eq!(headers["content-type"], "text/plain");
        assert_eq!(headers["x-custom"], "kept");
        for gone in ["set-cookie", "date", "x-dragonfly-task-id"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn a_range_behind_the_end_names_the_length() {
        let plan = plan(&asked(&[("range", "bytes=1000-")]), true, &facts());
        let headers = headers(&facts(), &plan);
        assert_eq!((plan.status.as_u16(), plan.range), (416, None));
        assert_eq!(headers["content-range"], "bytes */1000");
        assert_eq!(headers["content-length"], "0");
    }

    #[test]
    fn conditions_are_judged_as_http_says() {
        let same = "Wed, 21 Oct 2015 07:28:00 GMT";
        let before = "Wed, 21 Oct 2015 07:27:59 GMT";
        for (headers, want) in [
            (vec![("if-none-match", "\"e\"")], 304),
            (vec![("if-none-match", "\"x\", W/\"e\"")], 304),
            (vec![("if-none-match", "*")], 304),
            (
                vec![("if-none-match", "\"x\""), ("if-modified-since", same)],
                200,
            ),
            (vec![("if-modified-since", same)], 304),
            (vec![("if-modified-since", before)], 200),
            (vec![("if-modified-since", "nonsense")], 200),
            (vec![("range", "bytes=0-1"), ("if-range", "\"e\"")], 206),
            (vec![("range", "bytes=0-1"), ("if-range", "\"x\"")], 200),
            (vec![("range", "bytes=0-1"), ("if-range", "W/\"e\"")], 200),
            (vec![("range", "bytes=0-1"), ("if-range", same)], 206),
            (vec![("range", "bytes=0-1"), ("if-range", before)], 200),
            (vec![("range", "bytes=0-1,5-6")], 200),
            (vec![("range", "bytes=0-1"), ("range", "bytes=5-6")], 200),
        ] {
            assert_eq!(status(&headers), want, "{headers:?}");
        }
        let head = plan(&asked(&[("range", "bytes=0-1")]), false, &facts());
        assert_eq!(head.status, 200, "a range means nothing for HEAD");
    }

    #[test]
    fn what_a_digest_names_has_a_strong_tag() {
        let digest = Digest::of(protocol::DigestAlgorithm::Sha256, b"x");
        let facts = Facts {
            length: 1,
            named_by: Some(digest.clone()),
            ..Facts::default()
        };
        let tag = format!("\"{digest}\"");
        let plan_of = |headers: &[(&str, &str)]| plan(&asked(headers), true, &facts);
        assert_eq!(plan_of(&[("if-none-match", &tag)]).status, 304);
        let headers = headers(&facts, &plan_of(&[]));
        assert_eq!(headers["etag"], tag.as_str());
        assert_eq!(
            headers["docker-content-digest"],
            digest.to_string().as_str()
        );
        assert_eq!(headers["content-type"], "application/octet-stream");
    }

    proptest! {
        #[test]
        fn a_plan_and_its_headers_agree_with_a_naive_server(
            length in 0u64..50, first in 0u64..60, extra in 0u64..60, open: bool, suffix: bool,
        ) {
            let content: Vec<u8> = (0..length).map(|at| u8::try_from(at).unwrap()).collect();
            let last = first + extra;
            let range = match (suffix, open) {
                (true, _) => format!("bytes=-{first}"),
                (_, true) => format!("bytes={first}-"),
                _ => format!("bytes={first}-{last}"),
            };
            let naive: Vec<u8> = match (suffix, open) {
                (true, _) => content[usize::try_from(length.saturating_sub(first)).unwrap()..].to_vec(),
                (_, true) => content.iter().copied().filter(|at| u64::from(*at) >= first).collect(),
                _ => content.iter().copied().filter(|at| (first..=last).contains(&u64::from(*at))).collect(),
            };
            let facts = Facts { length, ..Facts::default() };
            let plan = plan(&asked(&[("range", &range)]), true, &facts);
            let headers = headers(&facts, &plan);
            if naive.is_empty() {
                prop_assert_eq!(plan.status, 416);
                prop_assert_eq!(&headers["content-range"], &format!("bytes */{length}"));
            } else {
                let part = plan.range.unwrap();
                let bytes = &content[usize::try_from(part.start).unwrap()..usize::try_from(part.end()).unwrap()];
                prop_assert_eq!(bytes, &naive[..]);
                let told = format!("bytes {}-{}/{length}", part.start, part.end() - 1);
                prop_assert_eq!(&headers["content-range"], &told);
                prop_assert_eq!(&headers["content-length"], &naive.len().to_string());
            }
        }
    }
}
