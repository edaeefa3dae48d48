//! Who may use the proxy (`proxy.server.basicAuth`).
//!
//! Credentials of the proxy belong into `Proxy-Authorization`. v2 looks for them in `Authorization`, where those of the registry
//! stand; that place is accepted only if it holds exactly the proxy's own, and is emptied then.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use runtime::secret::Secret;
use source::http::Credentials;

use super::answer::{self, ErrorType};
use super::body::ProxyBody;
use super::target::Mode;

/// The lock on the door; without credentials it stands open.
#[derive(Debug)]
pub struct Door {
    expected: Option<Secret>,
}

impl Door {
    /// For `username` and `password`.
    #[must_use]
    pub fn new(basic_auth: Option<&(String, Secret)>) -> Self {
        let expected = basic_auth.map(|(username, password)| {
            let credentials = Credentials::basic(username, password.expose());
            // The scheme is compared apart from the rest.
            let value = credentials.header();
            let encoded = value.to_str().unwrap_or_default();
            Secret::new(encoded.trim_start_matches("Basic "))
        });
        Self { expected }
    }

    /// Whether the request may come in. Takes the proxy's credentials out of `headers`, so that nobody else sees them.
    pub fn opens(&self, headers: &mut HeaderMap) -> bool {
        let by_proxy_header = headers.remove(header::PROXY_AUTHORIZATION);
        let Some(expected) = &self.expected else {
            return true;
        };
        if by_proxy_header.is_some_and(|value| is_basic(&value, expected)) {
            return true;
        }
        let by_other_header = headers
            .get(header::AUTHORIZATION)
            .is_some_and(|value| is_basic(value, expected));
        if by_other_header {
            headers.remove(header::AUTHORIZATION);
        }
        by_other_header
    }
}

/// What somebody without credentials is told. A registry client knows no proxies: it is asked as a registry would.
pub fn challenge(mode: Mode) -> Response<ProxyBody> {
    let (status, name, place) = match mode {
        Mode::Forward => (
            StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            header::PROXY_AUTHENTICATE,
            "Proxy-Authorization",
        ),
        Mode::Mirror => (
            StatusCode::UNAUTHORIZED,
            header::WWW_AUTHENTICATE,
            "Proxy-Authorization or Authorization",
        ),
    };
    let text =
        format!("this proxy wants the user and password of proxy.server.basicAuth in {place}");
    let mut response = answer::error(status, ErrorType::Proxy, &text);
    let value = HeaderValue::from_static("Basic realm=\"dragonfly\", charset=\"UTF-8\"");
    response.headers_mut().insert(name, value);
    response
}

fn is_basic(value: &HeaderValue, expected: &Secret) -> bool {
    let Some((scheme, given)) = value.to_str().ok().and_then(|text| text.split_once(' ')) else {
        return false;
    };
    scheme.eq_ignore_ascii_case("basic") && is_same(given.trim(), expected.expose())
}

/// In a time that tells nothing but the length.
fn is_same(given: &str, expected: &str) -> bool {
    let differing = given
        .bytes()
        .zip(expected.bytes())
        .fold(0, |differing, (a, b)| differing | (a ^ b));
    given.len() == expected.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = "Basic YWRtaW46ZHJhZ29uZmx5";

    fn opens(lines: &[(&'static str, &'static str)]) -> (bool, usize) {
        let door = Door::new(Some(&("admin".to_owned(), Secret::new("dragonfly"))));
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        (door.opens(&mut headers), headers.len())
    }

    #[test]
    fn the_proxys_credentials_open_and_are_taken_away() {
        assert_eq!(opens(&[("proxy-authorization", RIGHT)]), (true, 0));
        assert_eq!(
            opens(&[("proxy-authorization", "bAsIc YWRtaW46ZHJhZ29uZmx5")]),
            (true, 0)
        );
        assert_eq!(opens(&[("authorization", RIGHT)]), (true, 0));
        let both = [
            ("proxy-authorization", RIGHT),
            ("authorization", "Bearer registry"),
        ];
        assert_eq!(opens(&both), (true, 1), "the registry's own go on");
    }

    #[test]
    fn everything_else_does_not() {
        for wrong in [
            "Basic",
            "Basic ",
            "YWRtaW46ZHJhZ29uZmx5",
            "Basic YWRtaW46eA==",
            "Bearer x",
            "Basic YWRtaW46ZHJhZ29uZmx5YQ",
        ] {
            assert!(!opens(&[("proxy-authorization", wrong)]).0, "{wrong}");
            assert_eq!(opens(&[("authorization", wrong)]), (false, 1), "{wrong}");
        }
        assert!(!opens(&[]).0);
    }

    #[test]
    fn without_a_lock_everybody_comes_in() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer x"));
        assert!(Door::new(None).opens(&mut headers) && headers.len() == 1);
    }
}
