//! Which headers go on to the next hop.

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

/// Meant for one connection (RFC 9110, section 7.6.1, and what was customary before it).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that a `Connection` header cannot take away: without them a message would mean something else.
const NEVER_HOP_BY_HOP: [HeaderName; 4] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::AUTHORIZATION,
    header::RANGE,
];

/// Takes out what is meant for this hop, including what `Connection` names; and a length that `Transfer-Encoding` overrides, which the
/// next hop would believe in its absence (RFC 9112, section 6.3).
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !NEVER_HOP_BY_HOP.contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// How a message is coded for one hop (`Transfer-Encoding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Not at all, or in chunks: what is understood here.
    Plain,
    /// In another way as well. Passing it on without saying so would pass on other bytes.
    Coded,
    /// In chunks more than once (RFC 9112, section 7.1: never).
    Twice,
}

/// How a message with these headers is coded.
pub fn framing(headers: &HeaderMap) -> Framing {
    let mut chunked = 0;
    for value in headers.get_all(header::TRANSFER_ENCODING) {
        let codings = value.to_str().unwrap_or("?").split(',').map(str::trim);
        // Old servers say so of what is not coded (RFC 2616, section 3.6).
        let none = |coding: &&str| coding.is_empty() || coding.eq_ignore_ascii_case("identity");
        for coding in codings.filter(|coding| !none(coding)) {
            if !coding.eq_ignore_ascii_case("chunked") {
                return Framing::Coded;
            }
            chunked += 1;
        }
    }
    match chunked {
        0 | 1 => Framing::Plain,
        _ => Framing::Twice,
    }
}

/// What is wrong with the `Host` of a request (RFC 9112, section 3.2), if anything is.
pub fn wrong_host(version: Version, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version >= Version::HTTP_11 => Some("a request has a Host header"),
        (None, _) => None,
        (Some(_), Some(_)) => Some("a request has one Host header, not several"),
        (Some(host), None) => {
            let is_host = |text: &str| {
                text.is_empty() || (!text.contains('@') && text.parse::<Authority>().is_ok())
            };
            let fine = host.to_str().is_ok_and(is_host);
            (!fine).then_some("the Host header names no host")
        }
    }
}

/// Counts this hop of a TRACE or OPTIONS; false if none is left (RFC 9110, section 7.6.2).
pub fn may_go_on(method: &Method, headers: &mut HeaderMap) -> bool {
    if method != Method::TRACE && method != Method::OPTIONS {
        return true;
    }
    let left = headers.get(header::MAX_FORWARDS);
    let left = left.and_then(|value| value.to_str().ok()?.trim().parse::<u32>().ok());
    match left {
        Some(0) => return false,
        Some(left) => drop(headers.insert(header::MAX_FORWARDS, (left - 1).into())),
        None => {}
    }
    true
}

/// Says that a message which came in this version of HTTP has passed `pseudonym` (RFC 9110, section 7.6.3).
pub fn add_via(headers: &mut HeaderMap, version: Version, pseudonym: &str) {
    let version = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    if let Ok(via) = HeaderValue::from_str(&format!("{version} {pseudonym}")) {
        headers.append(header::VIA, via);
    }
}

/// Takes out what tells us how to handle a request: no origin needs to know.
pub fn remove_ours(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-dragonfly-"))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
}

/// The protocols that a client wants to change to, apart from those whose offer may be ignored: HTTP/2 and TLS are answered with
/// HTTP/1.1, which the client speaks as well.
pub fn wanted_upgrade(headers: &HeaderMap) -> Option<String> {
    let may_be_ignored = |protocol: &str| {
        let name = protocol.split('/').next().unwrap_or_default();
        ["h2c", "h2", "tls"]
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known))
    };
    headers
        .get_all(header::UPGRADE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .find(|protocol| !protocol.is_empty() && !may_be_ignored(protocol))
        .map(|protocol| protocol.chars().take(32).collect())
}

/// Whether one of the `Via` headers names `pseudonym`: the request has been here before.
pub fn has_passed(headers: &HeaderMap, pseudonym: &str) -> bool {
    headers
        .get_all(header::VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|hop| hop.split_ascii_whitespace().nth(1) == Some(pseudonym))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_is_for_one_hop_stays_here() {
        let mut given = headers(&[
            ("connection", "close, X-One"),
            ("connection", "x-two,authorization, content-length"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("proxy-authorization", "Basic x"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("authorization", "Bearer x"),
            ("content-length", "5"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut given);
        let mut left: Vec<&str> = given.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "authorization", "content-length"]);
    }

    #[test]
    fn a_length_that_chunks_override_stays_here() {
        let mut given = headers(&[("content-length", "2"), ("transfer-encoding", "chunked")]);
        remove_hop_by_hop(&mut given);
        assert!(given.is_empty(), "{given:?}");
    }

    #[test]
    fn codings_that_are_not_understood_are_seen() {
        let seen = |values: &[&'static str]| {
            let lines: Vec<_> = values.iter().map(|it| ("transfer-encoding", *it)).collect();
            framing(&headers(&lines))
        };
        assert_eq!(seen(&[]), Framing::Plain);
        assert_eq!(seen(&["identity, Chunked ,"]), Framing::Plain);
        for coded in ["gzip, chunked", "gzip", "chunked;x=1", "x"] {
            assert_eq!(seen(&[coded]), Framing::Coded, "{coded}");
        }
        assert_eq!(seen(&["chunked, chunked"]), Framing::Twice);
        assert_eq!(seen(&["chunked", "chunked"]), Framing::Twice);
    }

    #[test]
    fn a_request_names_one_host() {
        let wrong = |version, hosts: &[&'static str]| {
            let lines: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            wrong_host(version, &headers(&lines)).is_some()
        };
        for fine in ["", "h", "h:80", "[::1]:80", "a_b.example", "xn--a"] {
            assert!(!wrong(Version::HTTP_11, &[fine]), "{fine}");
        }
        for bad in ["a b@c/d", "u@h", "h/p", "a b", "h?x"] {
            assert!(wrong(Version::HTTP_10, &[bad]), "{bad}");
        }
        assert!(wrong(Version::HTTP_11, &[]) && !wrong(Version::HTTP_10, &[]));
        assert!(wrong(Version::HTTP_10, &["h", "h"]));
    }

    #[test]
    fn forwards_are_counted() {
        let left = |method, value| {
            let mut given = headers(&[("max-forwards", value)]);
            let may = may_go_on(&method, &mut given);
            may.then(|| given["max-forwards"].to_str().unwrap().to_owned())
        };
        assert_eq!(left(Method::OPTIONS, "2").as_deref(), Some("1"));
        assert_eq!(left(Method::TRACE, "0"), None);
        assert_eq!(left(Method::TRACE, "many").as_deref(), Some("many"));
        assert_eq!(left(Method::GET, "0").as_deref(), Some("0"));
    }

    #[test]
    fn our_headers_are_not_for_origins() {
        let mut given = headers(&[("x-dragonfly-tag", "t"), ("x-dragon", "y")]);
        remove_ours(&mut given);
        assert_eq!(given.len(), 1);
    }

    #[test]
    fn some_upgrades_may_be_ignored() {
        let wanted = |value| wanted_upgrade(&headers(&[("upgrade", value)]));
        assert_eq!(wanted("h2c"), None);
        assert_eq!(wanted("TLS/1.0, HTTP/1.1").as_deref(), Some("HTTP/1.1"));
        assert_eq!(wanted("websocket").as_deref(), Some("websocket"));
        assert_eq!(wanted_upgrade(&HeaderMap::new()), None);
    }

    #[test]
    fn a_request_that_was_here_is_recognised() {
        let given = headers(&[
            ("via", "1.0 fred, 1.1 dragonfly-abc (x)"),
            ("via", "1.1 other"),
        ]);
        assert!(has_passed(&given, "dragonfly-abc") && has_passed(&given, "other"));
        assert!(!has_passed(&given, "dragonfly-ab"));
    }
}
