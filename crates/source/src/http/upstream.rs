//! The table of upstreams: what this host needs to know of single origins in order to talk to them.

use std::fmt;
use std::str::FromStr;

use ::http::HeaderValue;
use ::http::uri::Authority;
use url::Url;

use super::outgoing::base64;
use super::way::UpstreamProxy;

/// Which hosts a setting is for: `registry.example.com`, the same with a port, `*.example.com` (every name below it), or `*`.
/// Without a port every port is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    name: Name,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Any,
    /// With its leading dot.
    Below(String),
    Exactly(String),
}

/// The text does not name hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no host: write it like registry.example.com:5000, *.example.com or *")]
pub struct ParseHostError {
    text: String,
}

impl HostPattern {
    /// Whether it means `host` at `port`. Brackets of an IPv6 address, letter case and a final dot make no difference.
    #[must_use]
    pub fn matches(&self, host: &str, port: Option<u16>) -> bool {
        let host = normalised(host);
        let by_name = match &self.name {
            Name::Any => true,
            Name::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            Name::Exactly(name) => host == *name,
        };
        by_name && self.port.is_none_or(|wanted| port == Some(wanted))
    }

    /// The name for which it stands, with a leading dot if everything below it is meant; `None` for `*`.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.name {
            Name::Any => None,
            Name::Below(name) | Name::Exactly(name) => Some(name),
        }
    }
}

impl FromStr for HostPattern {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, ParseHostError> {
        let refused = || ParseHostError {
            text: text.to_owned(),
        };
        let trimmed = text.trim();
        if trimmed == "*" {
            return Ok(Self {
                name: Name::Any,
                port: None,
            });
        }
        let (host, below) = match trimmed.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (trimmed, false),
        };
        // The URL parser knows what a host is; a scheme without special rules keeps the port.
        let url = Url::parse(&format!("http://{host}/")).map_err(|_| refused())?;
        let port = port_of(host).map_err(|()| refused())?;
        let plain = url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none();
        let name = url.host_str().map(normalised).ok_or_else(refused)?;
        if !plain || name.is_empty() || name.contains('*') || host.contains('/') {
            return Err(refused());
        }
        Ok(Self {
            name: if below {
                Name::Below(format!(".{name}"))
            } else {
                Name::Exactly(name)
            },
            port,
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Any => f.write_str("*")?,
            Name::Below(suffix) => write!(f, "*{suffix}")?,
            Name::Exactly(name) if name.contains(':') => write!(f, "[{name}]")?,
            Name::Exactly(name) => f.write_str(name)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// The port as written: the URL parser drops the default one, which a pattern may well mean.
fn port_of(host: &str) -> Result<Option<u16>, ()> {
    let after_name = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
    match after_name.rsplit_once(':') {
        None => Ok(None),
        Some((_, port)) => port.parse().map(Some).map_err(|_| ()),
    }
}

fn normalised(host: &str) -> String {
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .trim_end_matches('.')
        .to_ascii_lowercase()
}

/// What is known of the hosts that a pattern means (`backend.upstreams[]`). The default knows nothing special.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Upstream {
    /// The hosts it is for.
    pub hosts: HostPattern,
    /// Trust roots besides those of the system and of the options, each one certificate in DER.
    pub trust_roots: Vec<Vec<u8>>,
    /// Certificate chain and key that this host shows.
    pub identity: Option<ClientIdentity>,
    /// Ask over plain HTTP also where a URL says https.
    pub plain_http: bool,
    /// Do not verify its certificate.
    pub skip_verify: bool,
    /// The proxy to go through; before those of the environment.
    pub proxy: Option<UpstreamProxy>,
    /// Shown to it when a request has no `Authorization`.
    pub credentials: Option<Credentials>,
    /// The host, with or without a port, that is asked instead. Without a port, that of the scheme is meant.
    pub rewrite: Option<Authority>,
}

impl Upstream {
    /// Nothing special about `hosts` yet.
    #[must_use]
    pub fn new(hosts: HostPattern) -> Self {
        Self {
            hosts,
            trust_roots: Vec::new(),
            identity: None,
            plain_http: false,
            skip_verify: false,
            proxy: None,
            credentials: None,
            rewrite: None,
        }
    }

    /// `url` as this upstream is to be asked for it.
    pub(super) fn address(&self, url: &Url) -> Url {
        let mut address = url.clone();
        // The setters refuse only what an `Authority` or an http URL cannot be.
        if let Some(authority) = &self.rewrite {
            let _ = address.set_host(Some(authority.host()));
            let _ = address.set_port(authority.port_u16());
        }
        if self.plain_http && address.scheme() == "https" {
            // Changing the scheme drops a port that is the default of the new one only if it was written as such.
            let _ = address.set_scheme("http");
        }
        address
    }

    /// Whether its connections cannot be shared with those of other hosts.
    pub(super) fn has_own_connections(&self) -> bool {
        self.identity.is_some() || !self.trust_roots.is_empty()
    }
}

/// A certificate chain with its key, in PEM. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientIdentity(pub(super) Vec<u8>);

impl ClientIdentity {
    /// From the text of both files.
    #[must_use]
    pub fn new(chain_pem: &[u8], key_pem: &[u8]) -> Self {
        Self([key_pem, b"\n", chain_pem].concat())
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity")
    }
}

/// The value of an `Authorization` header. `Debug` does not show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials(HeaderValue);

impl Credentials {
    /// HTTP Basic.
    #[must_use]
    pub fn basic(username: &str, password: &str) -> Self {
        let encoded = base64(format!("{username}:{password}").as_bytes());
        // Base64 has no character that a header may not have.
        Self::of(&format!("Basic {encoded}")).unwrap_or_else(|| Self(HeaderValue::from_static("")))
    }

    /// A bearer token; `None` if it has characters that a header cannot carry.
    #[must_use]
    pub fn bearer(token: &str) -> Option<Self> {
        Self::of(&format!("Bearer {token}"))
    }

    /// The value of the header; marked as sensitive.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    fn of(text: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(text).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    #[test]
    fn patterns_mean_what_they_say() {
        let means = |text: &str, host: &str, port| pattern(text).matches(host, Some(port));
        assert!(means("Registry.example.com", "registry.EXAMPLE.com.", 443));
        assert!(means("registry.example.com", "registry.example.com", 5000));
        assert!(means(
            "registry.example.com:443",
            "registry.example.com",
            443
        ));
        assert!(!means(
            "registry.example.com:80",
            "registry.example.com",
            443
        ));
        assert!(!means("example.com", "registry.example.com", 443));
        assert!(means("*.example.com", "a.b.example.com", 443));
        assert!(!means("*.example.com", "example.com", 443));
        assert!(!means("*.example.com", "badexample.com", 443));
        assert!(means("*", "anything", 1));
        assert!(means("[::1]:5000", "[::1]", 5000));
        assert!(means("127.0.0.1", "127.0.0.1", 9));
        for wrong in [
            "", "a/b", "http://h", "h:99999", "h:", "u@h", "a*b", "**", "*.", "h?x",
        ] {
            assert!(wrong.parse::<HostPattern>().is_err(), "{wrong:?}");
        }
        for text in ["*", "*.example.com:1", "[::1]:80", "h"] {
            assert_eq!(pattern(text).to_string(), text);
        }
    }

    #[test]
    fn an_address_is_rewritten_and_made_plain() {
        let address = |rewrite: Option<&str>, plain_http, url| {
            let mut upstream = Upstream::new(pattern("*"));
            upstream.rewrite = rewrite.map(|to| to.parse().unwrap());
            upstream.plain_http = plain_http;
            upstream.address(&Url::parse(url).unwrap()).to_string()
        };
        assert_eq!(address(None, false, "https://h:1/p?q"), "https://h:1/p?q");
        assert_eq!(
            address(Some("m"), false, "https://h:1/p?q"),
            "https://m/p?q"
        );
        assert_eq!(address(Some("m:2"), true, "https://h/p"), "http://m:2/p");
        assert_eq!(address(None, true, "https://h:5000/p"), "http://h:5000/p");
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut upstream = Upstream::new(pattern("*"));
        upstream.credentials = Some(Credentials::basic("user", "hunter2"));
        upstream.identity = Some(ClientIdentity::new(b"chain", b"hunter2"));
        let shown = format!("{upstream:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains(&base64(b"user:hunter2")),
            "{shown}"
        );
        assert_eq!(
            upstream.credentials.unwrap().header(),
            "Basic dXNlcjpodW50ZXIy"
        );
        assert!(Credentials::bearer("a\nb").is_none());
    }
}
