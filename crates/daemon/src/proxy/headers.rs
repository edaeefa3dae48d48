//! Which headers go on to the next hop.

use http::{HeaderMap, HeaderName, header};

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
