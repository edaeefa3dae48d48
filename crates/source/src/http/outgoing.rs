//! The headers of a request, with and without the caller's credentials.

use ::http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::percent_decode_str;
use url::Url;

use super::options::HttpOptions;
use crate::{Get, Redacted, Request, SourceError, Want, is_secret_header};

/// A request ready to be sent to its own origin or, stripped, to another one.
pub(super) struct Outgoing {
    /// The URL without user information, which became a header.
    pub(super) url: Url,
    headers: HeaderMap,
}

/// Headers of the caller that would spoil the answer or the connection: ours to set, or meant for one hop.
const OURS: [&str; 19] = [
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Outgoing {
    pub(super) fn new(
        request: &Request,
        get: &Get,
        options: &HttpOptions,
    ) -> Result<Self, SourceError> {
        let mut headers = HeaderMap::new();
        let configured = options.request_header.iter().filter(|(name, _)| {
            let given = |given: &String| given.eq_ignore_ascii_case(name);
            !request.dialect.is_own && !request.headers.keys().any(given)
        });
        for (name, value) in request.headers.iter().chain(configured) {
            if OURS.contains(&name.to_ascii_lowercase().as_str()) {
                continue;
            }
            let refused = || SourceError::InvalidHeader {
                url: Redacted::url(&request.url),
                name: printable(name),
            };
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
            headers.insert(
                name,
                HeaderValue::from_bytes(value.as_bytes()).map_err(|_| refused())?,
            );
        }
        let url = credentials_to_header(&request.url, &mut headers);
        default_header(&mut headers, header::ACCEPT, "*/*");
        default_header(&mut headers, header::USER_AGENT, &options.user_agent);
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        add_range(&mut headers, get.want);
        add_condition(&mut headers, get);
        Ok(Self { url, headers })
    }

    /// The headers to send; once a redirect has `crossed` to another origin, without anything secret.
    pub(super) fn headers(&self, crossed: bool) -> HeaderMap {
        let mut headers = self.headers.clone();
        if crossed {
            let secret: Vec<HeaderName> = headers
                .keys()
                .filter(|name| is_secret_header(name.as_str()))
                .cloned()
                .collect();
            for name in secret {
                headers.remove(name);
            }
        }
        headers
    }
}

/// Same scheme, host and port: the border that credentials do not cross. The way from `https` to `http` always crosses it.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.origin() == b.origin()
}

/// The condition that was sent along for a version, for messages.
pub(super) fn condition(get: &Get) -> Option<String> {
    let version = get.version.as_ref()?;
    match (version.strong_etag(), &version.last_modified) {
        (Some(etag), _) => Some(format!("If-Match: {etag}")),
        (None, Some(time)) => Some(format!("If-Unmodified-Since: {time}")),
        (None, None) => None,
    }
}

fn add_range(headers: &mut HeaderMap, want: Want) {
    let range = match want {
        Want::Whole => return,
        Want::Prefix(length) => protocol::ByteRange { start: 0, length },
        Want::Range(range) | Want::RangeOrSkip(range) => range,
    };
    if let Ok(value) = HeaderValue::from_str(&range.header()) {
        headers.insert(header::RANGE, value);
    }
}

fn add_condition(headers: &mut HeaderMap, get: &Get) {
    let Some((name, value)) = condition(get)
        .as_deref()
        .and_then(|line| line.split_once(": "))
        .and_then(|(name, value)| {
            Some((
                HeaderName::from_bytes(name.as_bytes()).ok()?,
                HeaderValue::from_str(value).ok()?,
            ))
        })
    else {
        return;
    };
    headers.insert(name, value);
}

fn default_header(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if !headers.contains_key(&name)
        && let Ok(value) = HeaderValue::from_str(value)
    {
        headers.insert(name, value);
    }
}

/// Moves `user:password@` into an `Authorization` header, where the rules for credentials hold; the caller's own header wins.
fn credentials_to_header(url: &Url, headers: &mut HeaderMap) -> Url {
    let mut bare = url.clone();
    bare.set_fragment(None);
    if url.username().is_empty() && url.password().is_none() {
        return bare;
    }
    // Both succeed: a URL with user information has a host.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    if !headers.contains_key(header::AUTHORIZATION) {
        let mut plain: Vec<u8> = percent_decode_str(url.username()).collect();
        plain.push(b':');
        plain.extend(percent_decode_str(url.password().unwrap_or_default()));
        if let Ok(mut value) = HeaderValue::from_str(&format!("Basic {}", base64(&plain))) {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
    }
    bare
}

/// RFC 4648, section 4, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            if place <= group.len() {
                text.push(char::from(
                    ALPHABET[(bits >> (18 - 6 * place)) as usize & 63],
                ));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// A header name that may hold anything, fit for a message.
fn printable(name: &str) -> String {
    name.chars()
        .take(64)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::Version;

    fn outgoing(url: &str, headers: &[(&str, &str)], get: &Get) -> Outgoing {
        let headers: HashMap<String, String> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let request = Request::new(url).unwrap().with_headers(headers);
        let options = HttpOptions {
            request_header: HashMap::from([
                ("X-Site".into(), "conf".into()),
                ("accept".into(), "conf".into()),
            ]),
            ..HttpOptions::default()
        };
        Outgoing::new(&request, get, &options).unwrap()
    }

    #[test]
    fn the_callers_headers_go_along_but_not_those_that_spoil_the_answer() {
        let given = [
            ("Accept", "text/plain"),
            ("RANGE", "bytes=9-"),
            ("If-None-Match", "*"),
            ("Host", "x"),
            ("Accept-Encoding", "gzip"),
        ];
        let headers = outgoing("http://h/f", &given, &Get::prefix(5)).headers(false);
        assert_eq!(headers["accept"], "text/plain");
        assert_eq!(headers["x-site"], "conf");
        assert_eq!(headers["range"], "bytes=0-4");
        assert_eq!(headers["accept-encoding"], "identity");
        assert!(!headers.contains_key("if-none-match") && !headers.contains_key("host"));
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        let given = [
            ("Cookie", "c"),
            ("X-Api-Key", "k"),
            ("Accept-Language", "de"),
        ];
        let outgoing = outgoing("https://us%65r:p%40ss@h/f", &given, &Get::whole());
        assert_eq!(outgoing.url.as_str(), "https://h/f");
        assert_eq!(
            outgoing.headers(false)["authorization"],
            "Basic dXNlcjpwQHNz"
        );
        let crossed = outgoing.headers(true);
        for name in ["authorization", "cookie", "x-api-key"] {
            assert!(!crossed.contains_key(name), "{name}");
        }
        assert_eq!(crossed["accept-language"], "de");
    }

    #[test]
    fn a_port_or_a_scheme_makes_another_origin() {
        let same = |a: &str, b: &str| same_origin(&Url::parse(a).unwrap(), &Url::parse(b).unwrap());
        assert!(same("http://h/a", "http://h:80/b"));
        assert!(!same("http://h/a", "https://h/a"));
        assert!(!same("http://h/a", "http://h:81/a"));
        assert!(!same("https://h/a", "https://g.h/a"));
    }

    #[test]
    fn the_condition_is_the_strongest_there_is() {
        let with = |etag: Option<&str>, modified: Option<&str>| {
            let version = Version {
                etag: etag.map(Into::into),
                last_modified: modified.map(Into::into),
                ..Version::default()
            };
            outgoing("http://h", &[], &Get::whole().of_version(version)).headers(false)
        };
        assert_eq!(with(Some("\"a\""), Some("Mon"))["if-match"], "\"a\"");
        assert_eq!(
            with(Some("W/\"a\""), Some("Mon"))["if-unmodified-since"],
            "Mon"
        );
        assert!(!with(Some("W/\"a\""), None).contains_key("if-match"));
    }

    #[test]
    fn base64_is_padded() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }
}
