//! The way to an origin: straight, or through an HTTP or SOCKS proxy.
//!
//! Which one is taken is decided here for everything that leaves this host (reads, forwarded requests and tunnels), so that
//! they cannot disagree.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hyper_util::client::proxy::matcher::Matcher;
use percent_encoding::percent_decode_str;
use tracing::warn;
use url::Url;

use crate::SourceError;

/// An HTTP or SOCKS proxy between this host and an origin, with its credentials. `Debug` and `Display` show none.
///
/// `http://`, `https://`, `socks5://` (names are resolved here) and `socks5h://` (names are resolved by the proxy).
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamProxy(Url);

/// The text is not the URL of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a proxy: write it like http://user:password@host:3128 or socks5://host:1080")]
pub struct ParseProxyError;

impl UpstreamProxy {
    pub(super) fn scheme(&self) -> &str {
        self.0.scheme()
    }

    /// With its credentials, for the HTTP library.
    pub(super) fn url(&self) -> &Url {
        &self.0
    }

    /// Without its credentials, with its port written out.
    pub(super) fn bare(&self) -> String {
        let port = self.0.port_or_known_default().unwrap_or(1080);
        let host = self.0.host_str().unwrap_or_default();
        format!("{}://{host}:{port}", self.0.scheme())
    }

    pub(super) fn host_and_port(&self) -> (&str, u16) {
        let host = self.0.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        (bare, self.0.port_or_known_default().unwrap_or(1080))
    }

    pub(super) fn credentials(&self) -> Option<(String, String)> {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let given = !self.0.username().is_empty() || self.0.password().is_some();
        given.then(|| {
            (
                decoded(self.0.username()),
                decoded(self.0.password().unwrap_or_default()),
            )
        })
    }

    /// Whether names are left to the proxy, out of reach of the egress policy.
    pub(super) fn resolves_names(&self) -> bool {
        self.scheme() != "socks5"
    }

    /// Whether it is one of `addresses`, as far as its host is an address.
    fn is_one_of(&self, addresses: &[SocketAddr]) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.0.port_or_known_default();
        let is_at = |ip: IpAddr| {
            addresses
                .iter()
                .any(|own| Some(own.port()) == port && own.ip().to_canonical() == ip.to_canonical())
        };
        match bare.parse::<IpAddr>() {
            Ok(ip) => is_at(ip),
            Err(_) if bare.eq_ignore_ascii_case("localhost") => addresses
                .iter()
                .any(|own| Some(own.port()) == port && own.ip().is_loopback()),
            Err(_) => false,
        }
    }
}

impl FromStr for UpstreamProxy {
    type Err = ParseProxyError;

    fn from_str(text: &str) -> Result<Self, ParseProxyError> {
        // As everybody else who reads these variables, take `host:port` for an HTTP proxy.
        let with_scheme = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let url = Url::parse(with_scheme.trim()).map_err(|_| ParseProxyError)?;
        let known = matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h");
        let is_bare = matches!(url.path(), "" | "/") && url.query().is_none();
        if known && is_bare && url.host_str().is_some_and(|host| !host.is_empty()) {
            Ok(Self(url))
        } else {
            Err(ParseProxyError)
        }
    }
}

impl fmt::Display for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bare())
    }
}

impl fmt::Debug for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamProxy({self})")
    }
}

/// How an origin is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    Straight,
    Through(UpstreamProxy),
}

impl Way {
    /// Whether the name of the origin is resolved elsewhere.
    pub(super) fn resolves_names(&self) -> bool {
        matches!(self, Self::Through(proxy) if proxy.resolves_names())
    }
}

/// The proxies that the environment names.
#[derive(Debug)]
pub(super) struct Environment {
    http: Option<UpstreamProxy>,
    https: Option<UpstreamProxy>,
    /// Knows the exceptions.
    matcher: Matcher,
}

impl Environment {
    pub(super) fn none() -> Self {
        Self {
            http: None,
            https: None,
            matcher: Matcher::builder().build(),
        }
    }

    /// `variable` looks one up. A proxy that is one of our `own` addresses is left out: requests would come back to us.
    pub(super) fn read(
        variable: impl Fn(&str) -> Option<String>,
        own: &[SocketAddr],
    ) -> Result<Self, SourceError> {
        let lookup = |name: &str| {
            let value = variable(&name.to_lowercase()).or_else(|| variable(name));
            value.filter(|value| !value.trim().is_empty())
        };
        let proxy = |name: &str| {
            let Some(text) = lookup(name) else {
                return Ok(None);
            };
            let proxy: UpstreamProxy =
                text.parse()
                    .map_err(|error: ParseProxyError| SourceError::Setup {
                        reason: format!("the environment variable {name} is {error}"),
                    })?;
            if proxy.is_one_of(own) {
                warn!(variable = name, %proxy, "the proxy of the environment is this daemon itself, ignored");
                return Ok(None);
            }
            Ok(Some(proxy))
        };
        // A CGI server puts the client's `Proxy` header into HTTP_PROXY.
        let http = if variable("REQUEST_METHOD").is_some() {
            None
        } else {
            proxy("HTTP_PROXY")?
        };
        let all = proxy("ALL_PROXY")?;
        let http = http.or_else(|| all.clone());
        let https = proxy("HTTPS_PROXY")?.or(all);
        let text = |proxy: &Option<UpstreamProxy>| {
            proxy.as_ref().map(UpstreamProxy::bare).unwrap_or_default()
        };
        let excepted = format!(
            "{},localhost,127.0.0.0/8,::1",
            lookup("NO_PROXY").unwrap_or_default()
        );
        let matcher = Matcher::builder()
            .http(text(&http))
            .https(text(&https))
            .no(excepted)
            .build();
        Ok(Self {
            http,
            https,
            matcher,
        })
    }

    pub(super) fn way(&self, url: &Url) -> Way {
        let proxy = match url.scheme() {
            "http" => &self.http,
            "https" => &self.https,
            _ => &None,
        };
        let (Some(proxy), Ok(uri)) = (proxy, url.as_str().parse::<::http::Uri>()) else {
            return Way::Straight;
        };
        match self.matcher.intercept(&uri) {
            Some(_) => Way::Through(proxy.clone()),
            None => Way::Straight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Result<Environment, SourceError> {
        let lookup = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        };
        let own = ["127.0.0.1:4001", "[::1]:4001"].map(|own| own.parse().unwrap());
        Environment::read(lookup, &own)
    }

    fn ways(variables: &[(&str, &str)]) -> [bool; 2] {
        let environment = environment(variables).unwrap();
        ["http://origin/f", "https://origin/f"]
            .map(|url| environment.way(&Url::parse(url).unwrap()) != Way::Straight)
    }

    #[test]
    fn proxies_come_from_the_usual_variables() {
        assert_eq!(ways(&[]), [false, false]);
        assert_eq!(ways(&[("HTTP_PROXY", "http://p:1")]), [true, false]);
        assert_eq!(ways(&[("HTTP_PROXY", "p:1")]), [true, false]);
        assert_eq!(
            ways(&[("https_proxy", "socks5://p:1"), ("HTTP_PROXY", "")]),
            [false, true]
        );
        assert_eq!(ways(&[("ALL_PROXY", "http://p:1")]), [true, true]);
        assert_eq!(
            ways(&[("HTTP_PROXY", "http://p:1"), ("REQUEST_METHOD", "GET")]),
            [false, false]
        );
        assert_eq!(
            ways(&[("ALL_PROXY", "http://p:1"), ("NO_PROXY", "origin")]),
            [false, false]
        );
        let error = environment(&[("HTTP_PROXY", "http://[")]).unwrap_err();
        assert!(error.to_string().contains("HTTP_PROXY"), "{error}");
    }

    #[test]
    fn this_daemon_is_never_its_own_proxy() {
        for own in [
            "http://127.0.0.1:4001",
            "http://localhost:4001",
            "http://[::1]:4001/",
        ] {
            assert_eq!(ways(&[("ALL_PROXY", own)]), [false, false], "{own}");
        }
        assert_eq!(
            ways(&[("ALL_PROXY", "http://127.0.0.1:4002")]),
            [true, true]
        );
    }

    #[test]
    fn loopback_is_reached_straight() {
        let environment = environment(&[("ALL_PROXY", "http://p:1")]).unwrap();
        for url in ["http://127.0.0.1:5/", "http://localhost/", "http://[::1]/"] {
            assert_eq!(environment.way(&Url::parse(url).unwrap()), Way::Straight);
        }
    }

    #[test]
    fn credentials_of_a_proxy_are_decoded_and_never_shown() {
        let proxy: UpstreamProxy = "http://us%65r:p%40ss@h:3128".parse().unwrap();
        assert_eq!(proxy.credentials(), Some(("user".into(), "p@ss".into())));
        assert_eq!(
            format!("{proxy} {proxy:?}"),
            "http://h:3128 UpstreamProxy(http://h:3128)"
        );
        for wrong in ["", "ftp://h", "http://h/path", "http://", "socks4://h"] {
            assert!(wrong.parse::<UpstreamProxy>().is_err(), "{wrong}");
        }
    }
}
