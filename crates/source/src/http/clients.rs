//! HTTP clients, one per kind of connection, made when first needed; and the decision which kind an URL needs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, header};
use parking_lot::Mutex;
use reqwest::{Certificate, Client, ClientBuilder, Identity, Proxy};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use tracing::warn;
use url::Url;

use super::failure;
use super::options::{HttpOptions, ProxyUse};
use super::resolver::{PolicyResolver, ResolveFailure, permitted_addresses};
use super::tls;
use super::upstream::Upstream;
use super::way::{Environment, Way};
use crate::dialect::Verification;
use crate::{Redacted, SourceError};

/// Clients kept at the same time besides two for each upstream. Each holds its own connections and, for HTTPS, the trust
/// roots (about 1 MiB).
const CLIENTS_MAX: usize = 16;
/// Most trust roots one request may bring along, and the most bytes of each.
const REQUEST_ROOTS_MAX: usize = 64;
const REQUEST_ROOT_BYTES_MAX: usize = 64 << 10;
/// Idle connections are kept for less than most servers keep them, so that a request seldom meets a closing one.
const IDLE_CONNECTION_KEPT: Duration = Duration::from_secs(30);

/// The clients in use, the most recent last.
pub(super) struct Clients {
    options: HttpOptions,
    environment: Environment,
    made: Mutex<Vec<(Key, Client)>>,
    /// What was made of [`tls`]; like the clients.
    tls: Mutex<Vec<(Key, Arc<rustls::ClientConfig>)>>,
}

/// Where a request goes, and how.
#[derive(Debug)]
pub(super) struct Route<'a> {
    /// What is contacted: the URL after the rewriting of its upstream.
    pub(super) url: Url,
    pub(super) way: Way,
    upstream: Option<(usize, &'a Upstream)>,
}

impl Route<'_> {
    /// Adds what the upstream wants to see, unless the request brings its own.
    pub(super) fn add_credentials(&self, headers: &mut HeaderMap) {
        let credentials = self.upstream.and_then(|(_, it)| it.credentials.as_ref());
        if let Some(credentials) = credentials
            && !headers.contains_key(header::AUTHORIZATION)
        {
            headers.insert(header::AUTHORIZATION, credentials.header());
        }
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Reading ranges: HTTP/1.1 only, so that ranges side by side have a TCP window each.
    Reads,
    /// Passing on requests of others: HTTP/2 where the origin offers it.
    Forwarding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    used_for: Use,
    trust: Trust,
    way: Way,
    /// The place of the upstream in the table, if it has trust roots or a certificate of its own.
    upstream: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Trust {
    /// No TLS at all: costs no trust roots.
    Plain,
    /// TLS with verification, trusting these too.
    Verified { request_roots: Vec<Vec<u8>> },
    /// TLS without verification.
    Unverified,
}

impl Clients {
    pub(super) fn new(options: &HttpOptions) -> Result<Self, SourceError> {
        if CryptoProvider::get_default().is_none() {
            // Another thread may have been faster: then there is one, which is all we want.
            let _ = ring::default_provider().install_default();
        }
        let unverified = options.upstreams.iter().filter(|it| it.skip_verify);
        let unverified: Vec<String> = unverified.map(|it| it.hosts.to_string()).collect();
        if !unverified.is_empty() || !options.unverified_hosts.is_empty() {
            warn!(hosts = ?unverified, more = ?options.unverified_hosts, "certificates of these origins are not verified");
        }
        certificates(&options.trust_roots)?;
        for upstream in &options.upstreams {
            certificates(&upstream.trust_roots)?;
            identity(upstream)?;
        }
        let environment = match options.proxy {
            ProxyUse::Environment => {
                Environment::read(|name| std::env::var(name).ok(), &options.own_addresses)?
            }
            ProxyUse::Direct => Environment::none(),
        };
        Ok(Self {
            options: options.clone(),
            environment,
            made: Mutex::default(),
            tls: Mutex::default(),
        })
    }

    /// Where a request for `url` goes.
    pub(super) fn route(&self, url: &Url) -> Route<'_> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default();
        let upstreams = self.options.upstreams.iter().enumerate();
        let upstream = { upstreams }.find(|(_, upstream)| upstream.hosts.matches(host, port));
        let url = upstream.map_or_else(|| url.clone(), |(_, upstream)| upstream.address(url));
        let way = match upstream.and_then(|(_, upstream)| upstream.proxy.clone()) {
            Some(proxy) => Way::Through(proxy),
            None => self.environment.way(&url),
        };
        Route { url, way, upstream }
    }

    /// Whether the egress policy lets `route` be taken.
    ///
    /// Names are checked again when they are resolved for a connection. A proxy resolves them itself: then they are looked up
    /// here too, and what is only known there is left to it.
    pub(super) async fn check(&self, route: &Route<'_>) -> Result<(), SourceError> {
        let egress = &self.options.egress;
        let host = route.url.host_str().unwrap_or_default();
        let denied = || SourceError::Denied {
            url: Redacted::url(&route.url),
            host: host.to_owned(),
        };
        if !egress.permits_host(host) {
            return Err(denied());
        }
        if egress.is_restrictive() && route.way.resolves_names() {
            let port = route.url.port_or_known_default().unwrap_or_default();
            let looked_up = permitted_addresses(egress, host, port);
            let outcome = tokio::time::timeout(self.options.connect_limit, looked_up).await;
            if let Ok(Err(ResolveFailure::Denied { .. })) = outcome {
                return Err(denied());
            }
        }
        Ok(())
    }

    /// The client that may take `route`.
    pub(super) async fn client_for(
        &self,
        route: &Route<'_>,
        used_for: Use,
        request_roots: &[Vec<u8>],
        verification: Verification,
    ) -> Result<Client, SourceError> {
        let key = self.key_for(route, used_for, request_roots, verification);
        if let Some(client) = self.find(&key) {
            return Ok(client);
        }
        let builder = self.builder(&key)?;
        // Reading the system's trust roots takes milliseconds of file access.
        let built = tokio::task::spawn_blocking(move || builder.build()).await;
        let client = match built {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(setup(failure::root_cause(&error))),
            Err(error) => return Err(setup(error.to_string())),
        };
        // Somebody else may have made it in the meantime: its connections are the ones to share.
        if let Some(known) = self.find(&key) {
            return Ok(known);
        }
        let mut made = self.made.lock();
        if made.len() >= CLIENTS_MAX + 2 * self.options.upstreams.len() {
            made.remove(0);
        }
        made.push((key, client.clone()));
        Ok(client)
    }

    /// How the client for forwarded requests that may take `route` speaks TLS, for a connection that is not its own.
    pub(super) async fn tls_for(
        &self,
        route: &Route<'_>,
    ) -> Result<Arc<rustls::ClientConfig>, SourceError> {
        let key = self.key_for(route, Use::Forwarding, &[], Verification::On);
        if let Some((_, config)) = self.tls.lock().iter().find(|(known, _)| *known == key) {
            return Ok(config.clone());
        }
        let upstream = key
            .upstream
            .and_then(|index| self.options.upstreams.get(index));
        let roots = (key.trust != Trust::Unverified).then(|| {
            let own = upstream.iter().flat_map(|it| &it.trust_roots);
            let roots = self.options.trust_roots.iter().chain(own);
            roots.map(|der| der.clone().into()).collect()
        });
        let identity = upstream.and_then(|it| it.identity.clone());
        let built = tokio::task::spawn_blocking(move || tls::config(roots, identity.as_ref()));
        let config = match built.await {
            Ok(built) => Arc::new(built.map_err(setup)?),
            Err(error) => return Err(setup(error.to_string())),
        };
        let mut made = self.tls.lock();
        if made.len() >= CLIENTS_MAX + 2 * self.options.upstreams.len() {
            made.remove(0);
        }
        made.push((key, config.clone()));
        Ok(config)
    }

    fn find(&self, key: &Key) -> Option<Client> {
        let mut made = self.made.lock();
        let index = made.iter().rposition(|(known, _)| known == key)?;
        let found = made.remove(index);
        let client = found.1.clone();
        made.push(found);
        Some(client)
    }

    fn key_for(
        &self,
        route: &Route<'_>,
        used_for: Use,
        request_roots: &[Vec<u8>],
        verification: Verification,
    ) -> Key {
        let own = route
            .upstream
            .filter(|(_, upstream)| upstream.has_own_connections());
        let through_tls = matches!(&route.way, Way::Through(proxy) if proxy.scheme() == "https");
        let trust = if route.url.scheme() == "http" && !through_tls {
            Trust::Plain
        } else if verification == Verification::Off || self.is_exempt(route) {
            Trust::Unverified
        } else {
            Trust::Verified {
                request_roots: request_roots.to_vec(),
            }
        };
        Key {
            used_for,
            way: route.way.clone(),
            upstream: own
                .filter(|_| trust != Trust::Plain)
                .map(|(index, _)| index),
            trust,
        }
    }

    /// Whether the certificate behind `route` is named as one that is not verified.
    fn is_exempt(&self, route: &Route<'_>) -> bool {
        let host = route.url.host_str().unwrap_or_default();
        let is_named = |name: &String| name == "*" || name.eq_ignore_ascii_case(host);
        route.upstream.is_some_and(|(_, it)| it.skip_verify)
            || self.options.unverified_hosts.iter().any(is_named)
    }

    fn builder(&self, key: &Key) -> Result<ClientBuilder, SourceError> {
        let options = &self.options;
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(60))
            .connect_timeout(options.connect_limit)
            .pool_idle_timeout(IDLE_CONNECTION_KEPT)
            .pool_max_idle_per_host(options.idle_connections_max)
            .dns_resolver(PolicyResolver {
                egress: options.egress.clone(),
            })
            .no_proxy();
        if key.used_for == Use::Reads {
            builder = builder.http1_only();
        }
        if let Way::Through(proxy) = &key.way {
            let made = Proxy::all(proxy.url().clone());
            let made = made.map_err(|error| setup(failure::root_cause(&error)))?;
            builder = builder.proxy(made);
        }
        let upstream = key.upstream.and_then(|index| options.upstreams.get(index));
        if let Some(identity) = upstream.map(identity).transpose()?.flatten() {
            builder = builder.identity(identity);
        }
        Ok(match &key.trust {
            Trust::Plain => builder.tls_backend_preconfigured(no_trust()?),
            Trust::Unverified => builder.tls_danger_accept_invalid_certs(true),
            Trust::Verified { request_roots } => {
                let too_big = |root: &Vec<u8>| root.len() > REQUEST_ROOT_BYTES_MAX;
                if request_roots.len() > REQUEST_ROOTS_MAX || request_roots.iter().any(too_big) {
                    return Err(setup(format!(
                        "a request may bring {REQUEST_ROOTS_MAX} trust roots of {REQUEST_ROOT_BYTES_MAX} bytes each, not more"
                    )));
                }
                let mut roots = certificates(&options.trust_roots)?;
                roots.extend(certificates(request_roots)?);
                if let Some(upstream) = upstream {
                    roots.extend(certificates(&upstream.trust_roots)?);
                }
                builder.tls_certs_merge(roots)
            }
        })
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients")
            .field("made", &self.made.lock().len())
            .finish_non_exhaustive()
    }
}

fn setup(reason: String) -> SourceError {
    SourceError::Setup { reason }
}

fn certificates(roots: &[Vec<u8>]) -> Result<Vec<Certificate>, SourceError> {
    let mut store = RootCertStore::empty();
    roots
        .iter()
        .enumerate()
        .map(|(index, der)| {
            let refused = |reason: String| setup(format!(
                "trust root {index} is not a DER certificate ({reason}): convert it with openssl x509 -outform der"
            ));
            store.add(der.clone().into()).map_err(|error| refused(error.to_string()))?;
            Certificate::from_der(der).map_err(|error| refused(failure::root_cause(&error)))
        })
        .collect()
}

fn identity(upstream: &Upstream) -> Result<Option<Identity>, SourceError> {
    let Some(identity) = &upstream.identity else {
        return Ok(None);
    };
    let read = Identity::from_pem(&identity.0);
    read.map(Some).map_err(|error| {
        setup(format!(
            "the client certificate for {} cannot be used ({}): give a PEM chain and its unencrypted PEM key",
            upstream.hosts,
            failure::root_cause(&error)
        ))
    })
}

/// A TLS configuration that trusts nobody, for the client that never speaks TLS.
fn no_trust() -> Result<rustls::ClientConfig, SourceError> {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| setup(error.to_string()))?;
    Ok(builder
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::upstream::Credentials;

    fn clients(upstreams: Vec<Upstream>) -> Clients {
        Clients::new(&HttpOptions {
            proxy: ProxyUse::Direct,
            upstreams,
            ..HttpOptions::default()
        })
        .unwrap()
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[tokio::test]
    async fn clients_are_shared_and_their_number_is_bounded() {
        let clients = clients(vec![]);
        let plain = url("http://h/");
        let route = clients.route(&plain);
        clients
            .client_for(&route, Use::Reads, &[], Verification::On)
            .await
            .unwrap();
        clients
            .client_for(&route, Use::Reads, &[vec![1]], Verification::On)
            .await
            .unwrap();
        assert_eq!(
            clients.made.lock().len(),
            1,
            "plain HTTP needs no trust roots"
        );

        let secure = url("https://h/");
        let error = clients
            .client_for(
                &clients.route(&secure),
                Use::Reads,
                &[vec![1, 2, 3]],
                Verification::On,
            )
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("trust root 0 is not a DER certificate"),
            "{error}"
        );
    }

    #[test]
    fn the_first_upstream_that_means_a_host_decides() {
        let mut first = Upstream::new("registry.example.com".parse().unwrap());
        first.rewrite = Some("mirror.internal:5000".parse().unwrap());
        first.proxy = Some("socks5://127.0.0.1:1080".parse().unwrap());
        first.credentials = Some(Credentials::basic("u", "p"));
        let mut second = Upstream::new("*.example.com".parse().unwrap());
        second.plain_http = true;
        let clients = clients(vec![first, second]);

        let asked = url("https://registry.example.com/v2/");
        let route = clients.route(&asked);
        assert_eq!(route.url.as_str(), "https://mirror.internal:5000/v2/");
        assert!(matches!(route.way, Way::Through(_)) && !route.way.resolves_names());
        let mut headers = HeaderMap::new();
        route.add_credentials(&mut headers);
        assert_eq!(headers["authorization"], "Basic dTpw");
        headers.insert("authorization", "Bearer mine".parse().unwrap());
        route.add_credentials(&mut headers);
        assert_eq!(headers["authorization"], "Bearer mine", "the caller's wins");

        assert_eq!(
            clients.route(&url("https://a.example.com/x")).url.as_str(),
            "http://a.example.com/x"
        );
        assert_eq!(
            clients.route(&url("https://example.org/")).way,
            Way::Straight
        );
    }

    #[tokio::test]
    async fn a_literal_address_is_judged_also_in_front_of_a_proxy() {
        let mut upstream = Upstream::new("*".parse().unwrap());
        upstream.proxy = Some("http://127.0.0.1:1".parse().unwrap());
        for upstreams in [vec![], vec![upstream]] {
            let clients = clients(upstreams);
            for (host, allowed) in [("169.254.169.254", false), ("127.0.0.1", true)] {
                let asked = url(&format!("http://{host}/latest"));
                let judged = clients.check(&clients.route(&asked)).await;
                assert_eq!(judged.is_ok(), allowed, "{host}: {judged:?}");
            }
        }
    }

    #[test]
    fn a_certificate_that_cannot_be_used_is_told_at_the_start() {
        let mut upstream = Upstream::new("h".parse().unwrap());
        upstream.identity = Some(crate::http::ClientIdentity::new(b"no chain", b"no key"));
        let error = Clients::new(&HttpOptions {
            upstreams: vec![upstream],
            ..HttpOptions::default()
        })
        .unwrap_err();
        assert!(
            error.to_string().contains("the client certificate for h"),
            "{error}"
        );
    }
}
