//! What a request to the proxy is about: whose URL, or a tunnel to where.
//!
//! Everything here comes from strangers; nothing here waits, allocates without bound, or panics.

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Uri};
use url::{Position, Url};

/// Names the registry of a request in mirror mode, as a URL.
pub const REGISTRY_HEADER: &str = "x-dragonfly-registry";

/// Where Docker Hub answers registry requests; the names that people write do not, or only by way of redirects.
const DOCKER_REGISTRY: &str = "registry-1.docker.io";
const DOCKER_ALIASES: [&str; 2] = ["docker.io", "index.docker.io"];

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A URL to ask an origin for.
    Url {
        /// http or https, in its normal form: what rules, block list and identity are about.
        url: Url,
        /// Its path and query as the client wrote them, for the origin (RFC 9110, section 7.7).
        path: PathAndQuery,
        /// How the client came to ask us.
        mode: Mode,
    },
    /// CONNECT: bytes to and from there.
    Tunnel(Destination),
}

/// How a client uses us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As its proxy: the request line has the whole URL, or came through a tunnel that we look into.
    Forward,
    /// As a registry: the request line has a path only.
    Mirror,
}

/// The far end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Name or address, in lower case; an IPv6 address in brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A request that cannot be understood; the text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadTarget(String);

impl BadTarget {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Understands a request line and the headers that belong to it. `within` is the tunnel through which it came, `registry` the one
/// for requests in mirror mode that name none.
///
/// # Errors
/// [`BadTarget`], to be answered with 400.
pub fn classify(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    within: Option<&Destination>,
    registry: &Url,
) -> Result<Target, BadTarget> {
    if method == Method::CONNECT {
        if within.is_some() {
            return Err(BadTarget::new("CONNECT within a tunnel is not supported"));
        }
        return destination(uri).map(Target::Tunnel);
    }
    let path = || literal(&uri.path_and_query().map_or("/".into(), ToString::to_string));
    let forward = |url| {
        Ok(Target::Url {
            url,
            path: path()?,
            mode: Mode::Forward,
        })
    };
    if uri.scheme().is_some() {
        return web_url(&uri.to_string()).and_then(forward);
    }
    if uri.authority().is_some() || !uri.path().starts_with('/') {
        return Err(BadTarget::new(
            "the request line needs a whole URL (as sent to a proxy) or a path (as sent to a registry)",
        ));
    }
    match within {
        Some(Destination { host, port }) => {
            web_url(&format!("https://{host}:{port}{}", path()?)).and_then(forward)
        }
        None => {
            let (url, path) = mirrored(uri, headers, registry)?;
            let mode = Mode::Mirror;
            Ok(Target::Url { url, path, mode })
        }
    }
}

/// A registry as a configuration or a header names it.
///
/// # Errors
/// It is not an http or https URL with a host, or has a query or a fragment.
pub fn registry(text: &str) -> Result<Url, BadTarget> {
    let url = web_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(BadTarget::new(format!(
            "{text:?} names no registry: write it like https://registry.example.com"
        )));
    }
    Ok(url)
}

/// The registry of Docker Hub.
#[must_use]
pub fn docker_registry() -> Url {
    // A constant that parses.
    #[expect(clippy::expect_used, reason = "a constant, read in every test")]
    Url::parse("https://index.docker.io").expect("a URL")
}

/// The URL in the registry that a request in mirror mode means, and what of it the registry is told.
fn mirrored(
    uri: &Uri,
    headers: &HeaderMap,
    default: &Url,
) -> Result<(Url, PathAndQuery), BadTarget> {
    let query = uri.query().unwrap_or_default();
    // A value that is no visible ASCII counts as absent, as in v2.
    let header = { headers.get(REGISTRY_HEADER) }.and_then(|value| value.to_str().ok());
    let base = match header.filter(|text| !text.is_empty()) {
        Some(text) => registry(text).map_err(|_| {
            BadTarget::new(
                "X-Dragonfly-Registry names no registry: write it like https://registry.example.com",
            )
        })?,
        None => match namespace(query) {
            Some(ns) => namespace_url(&ns)?,
            None => default.clone(),
        },
    };
    let path = uri.path();
    let mut asked = format!("{}{path}", base.path().trim_end_matches('/'));
    let passed_on = without_namespace(query);
    if !passed_on.is_empty() {
        asked.push('?');
        asked.push_str(&passed_on);
    }
    let mut url = web_url(&format!("{}{asked}", &base[..Position::BeforePath]))?;
    let is_docker = url
        .host_str()
        .is_some_and(|host| DOCKER_ALIASES.contains(&host));
    if is_docker && (path == "/v2" || path.starts_with("/v2/")) {
        url.set_host(Some(DOCKER_REGISTRY))
            .map_err(|error| BadTarget::new(error.to_string()))?;
    }
    Ok((url, literal(&asked)?))
}

/// What a request line says.
fn literal(path: &str) -> Result<PathAndQuery, BadTarget> {
    path.parse()
        .map_err(|error| BadTarget::new(format!("the path cannot be understood: {error}")))
}

/// The `ns` parameter, which containerd adds.
fn namespace(query: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "ns")
        .map(|(_, value)| value.into_owned())
        .filter(|value| !value.is_empty())
}

fn namespace_url(ns: &str) -> Result<Url, BadTarget> {
    let refused = || {
        BadTarget::new(
            "the query parameter ns names no registry: write it like ns=registry.example.com",
        )
    };
    if ns.contains("://") {
        return registry(ns).map_err(|_| refused());
    }
    let authority: Authority = ns.parse().map_err(|_| refused())?;
    if ns.contains('@') {
        return Err(refused());
    }
    registry(&format!("https://{authority}")).map_err(|_| refused())
}

/// The query without `ns`, which the registry did not ask for; everything else byte for byte.
fn without_namespace(query: &str) -> String {
    let is_namespace = |pair: &str| {
        url::form_urlencoded::parse(pair.as_bytes())
            .next()
            .is_some_and(|(name, _)| name == "ns")
    };
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| !is_namespace(pair))
        .collect();
    kept.join("&")
}

/// An absolute http or https URL without a fragment.
fn web_url(text: &str) -> Result<Url, BadTarget> {
    let mut url = Url::parse(text)
        .map_err(|error| BadTarget::new(format!("the URL cannot be understood: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(BadTarget::new(format!(
            "scheme {:?} is not proxied, only http and https are",
            url.scheme()
        )));
    }
    url.set_fragment(None);
    Ok(url)
}

/// The far end that a CONNECT names; without a port, 443 is meant.
fn destination(uri: &Uri) -> Result<Destination, BadTarget> {
    let refused = || BadTarget::new("CONNECT needs host:port");
    let authority = uri.authority().ok_or_else(refused)?;
    if uri.scheme().is_some() || authority.as_str().contains('@') {
        return Err(refused());
    }
    // Not as the parser sees it, to which a port that is none looks like no port.
    let named = authority.as_str().strip_prefix(authority.host());
    let port = match named.ok_or_else(refused)?.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| refused())?,
        None => 443,
    };
    if port == 0 {
        return Err(refused());
    }
    // The URL parser knows what a host is, and how an address is usually written.
    let url = Url::parse(&format!("https://{}/", authority.host())).map_err(|_| refused())?;
    let host = url.host_str().ok_or_else(refused)?.to_owned();
    Ok(Destination { host, port })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn asked(uri: &str, registry_header: Option<&str>) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        if let Some(value) = registry_header {
            headers.insert(REGISTRY_HEADER, HeaderValue::from_str(value).unwrap());
        }
        let uri: Uri = uri.parse().unwrap();
        let default = Url::parse("https://default.example/base/").unwrap();
        match classify(&Method::GET, &uri, &headers, None, &default) {
            Ok(Target::Url { url, .. }) => Ok(url.into()),
            Ok(tunnel) => panic!("{tunnel:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_whole_url_is_forwarded() {
        assert_eq!(
            asked("http://H:80/a//b?x=%2f&ns=1", None).unwrap(),
            "http://h/a//b?x=%2f&ns=1"
        );
        let error = asked("ftp://h/f", None).unwrap_err();
        assert!(error.contains("\"ftp\" is not proxied"), "{error}");
    }

    #[test]
    fn origins_are_told_what_clients_wrote() {
        let default = Url::parse("https://default.example/base/").unwrap();
        for (uri, url, told) in [
            ("http://h/a/../b", "http://h/b", "/a/../b"),
            ("http://h/a/%2e%2e/b/.", "http://h/b/", "/a/%2e%2e/b/."),
            (
                "http://h/a\\b?x='q'",
                "http://h/a/b?x=%27q%27",
                "/a\\b?x='q'",
            ),
            ("http://h?x", "http://h/?x", "/?x"),
            ("http://h", "http://h/", "/"),
            (
                "/v2/../a?ns=r.example&y='",
                "https://r.example/a?y=%27",
                "/v2/../a?y='",
            ),
            (
                "/v2/./a?",
                "https://default.example/base/v2/a",
                "/base/v2/./a",
            ),
        ] {
            let uri: Uri = uri.parse().unwrap();
            match classify(&Method::GET, &uri, &HeaderMap::new(), None, &default) {
                Ok(Target::Url {
                    url: seen, path, ..
                }) => {
                    assert_eq!((seen.as_str(), path.as_str()), (url, told), "{uri}");
                }
                other => panic!("{uri}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_registry_comes_from_header_namespace_or_configuration() {
        for (uri, header, url) in [
            (
                "/v2/a?ns=ghcr.io",
                Some("https://quay.io"),
                "https://quay.io/v2/a",
            ),
            ("/v2/a?ns=ghcr.io", None, "https://ghcr.io/v2/a"),
            (
                "/v2/a?foo=%20&ns=ghcr.io&baz",
                None,
                "https://ghcr.io/v2/a?foo=%20&baz",
            ),
            (
                "/v2/a?ns=r.example%3A5000",
                None,
                "https://r.example:5000/v2/a",
            ),
            ("/v2/a?ns=http://r.example", None, "http://r.example/v2/a"),
            ("/v2/a", None, "https://default.example/base/v2/a"),
            ("/v2/a?ns=", None, "https://default.example/base/v2/a"),
            (
                "/v2/?ns=docker.io",
                None,
                "https://registry-1.docker.io/v2/",
            ),
            (
                "/v2/a",
                Some("https://index.docker.io"),
                "https://registry-1.docker.io/v2/a",
            ),
            ("/token?ns=docker.io", None, "https://docker.io/token"),
            (
                "/v2/a",
                Some("https://docker.io.evil.example"),
                "https://docker.io.evil.example/v2/a",
            ),
        ] {
            assert_eq!(asked(uri, header).unwrap(), url, "{uri} {header:?}");
        }
    }

    #[test]
    fn what_names_no_registry_is_refused_with_words() {
        for (uri, header, word) in [
            ("/v2/", Some("quay.io"), "X-Dragonfly-Registry"),
            ("/v2/", Some("https://"), "X-Dragonfly-Registry"),
            ("/v2/", Some("file:///etc"), "X-Dragonfly-Registry"),
            ("/v2/", Some("https://h?x"), "X-Dragonfly-Registry"),
            ("/v2/?ns=a%20b", None, "parameter ns"),
            ("/v2/?ns=h/path", None, "parameter ns"),
            ("/v2/?ns=u@h", None, "parameter ns"),
            ("/v2/?ns=file:///etc", None, "parameter ns"),
            ("*", None, "request line"),
        ] {
            let error = asked(uri, header).unwrap_err();
            assert!(error.contains(word), "{uri} {header:?}: {error}");
        }
    }

    #[test]
    fn a_tunnel_has_a_host_and_a_port() {
        let registry = docker_registry();
        let connect = |uri: &str| {
            let uri: Uri = uri.parse().unwrap();
            match classify(&Method::CONNECT, &uri, &HeaderMap::new(), None, &registry) {
                Ok(Target::Tunnel(to)) => Some((to.host, to.port)),
                Ok(other) => panic!("{other:?}"),
                Err(_) => None,
            }
        };
        assert_eq!(connect("H.example:8443"), Some(("h.example".into(), 8443)));
        assert_eq!(connect("h"), Some(("h".into(), 443)));
        assert_eq!(connect("[::1]:1"), Some(("[::1]".into(), 1)));
        for wrong in [
            "/path",
            "h:0",
            "h:",
            "h:99999",
            "h:65536",
            "[::1]:",
            "u@h:1",
            "http://h/",
        ] {
            assert_eq!(connect(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn within_a_tunnel_paths_belong_to_its_host() {
        let within = Destination {
            host: "h".into(),
            port: 443,
        };
        let ask = |method, uri: &str| {
            let uri: Uri = uri.parse().unwrap();
            let registry = docker_registry();
            classify(&method, &uri, &HeaderMap::new(), Some(&within), &registry)
        };
        let url = Url::parse("https://h/p?ns=x").unwrap();
        let (path, mode) = (PathAndQuery::from_static("/p?ns=x"), Mode::Forward);
        assert_eq!(
            ask(Method::GET, "/p?ns=x"),
            Ok(Target::Url { url, path, mode })
        );
        assert!(ask(Method::CONNECT, "h:1").is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics_and_urls_are_of_the_web(
            uri in "[ -~]{0,80}", header in proptest::option::of("[ -~]{0,40}"), connect: bool, tunnelled: bool,
        ) {
            let Ok(uri) = uri.parse::<Uri>() else { return Ok(()) };
            let mut headers = HeaderMap::new();
            if let Some(value) = header.and_then(|text| HeaderValue::from_str(&text).ok()) {
                headers.insert(REGISTRY_HEADER, value);
            }
            let method = if connect { Method::CONNECT } else { Method::GET };
            let within = Destination { host: "h".into(), port: 1 };
            let target = classify(&method, &uri, &headers, tunnelled.then_some(&within), &docker_registry());
            if let Ok(Target::Url { url, .. }) = target {
                prop_assert!(matches!(url.scheme(), "http" | "https"));
                prop_assert!(url.host_str().is_some_and(|host| !host.is_empty()));
            }
        }
    }
}
