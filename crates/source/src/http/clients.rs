//! HTTP clients, one per set of trust roots, made when first needed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Certificate, Client, ClientBuilder, NoProxy, Proxy};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use tracing::warn;
use url::Url;

use super::options::{HttpOptions, ProxyUse};
use super::resolver::PolicyResolver;
use crate::SourceError;

/// Clients kept at the same time. Each holds its own connections and, for HTTPS, the trust roots (about 1 MiB).
const CLIENTS_MAX: usize = 16;
/// Most trust roots one request may bring along, and the most bytes of each.
const REQUEST_ROOTS_MAX: usize = 64;
const REQUEST_ROOT_BYTES_MAX: usize = 64 << 10;
/// Idle connections are kept for less than most servers keep them, so that a request seldom meets a closing one.
const IDLE_CONNECTION_KEPT: Duration = Duration::from_secs(30);

/// The clients in use, the most recent last.
pub(super) struct Clients {
    options: HttpOptions,
    proxies: Vec<Proxy>,
    made: Mutex<Vec<(Key, Client)>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
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
        if !options.unverified_hosts.is_empty() {
            warn!(hosts = ?options.unverified_hosts, "certificates of these origins are not verified");
        }
        certificates(&options.trust_roots)?;
        let proxies = match options.proxy {
            ProxyUse::Environment if options.egress.is_restrictive() => Vec::new(),
            ProxyUse::Environment => environment_proxies(|name| std::env::var(name).ok())?,
            ProxyUse::Direct => Vec::new(),
        };
        Ok(Self {
            options: options.clone(),
            proxies,
            made: Mutex::new(Vec::new()),
        })
    }

    /// The client that may talk to `url`.
    pub(super) async fn client_for(
        &self,
        url: &Url,
        request_roots: &[Vec<u8>],
    ) -> Result<Client, SourceError> {
        let key = self.key_for(url, request_roots);
        if let Some(client) = self.find(&key) {
            return Ok(client);
        }
        let builder = self.builder(&key, request_roots)?;
        // Reading the system's trust roots takes milliseconds of file access.
        let built = tokio::task::spawn_blocking(move || builder.build()).await;
        let client = match built {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                return Err(SourceError::Setup {
                    reason: super::failure::root_cause(&error),
                });
            }
            Err(error) => {
                return Err(SourceError::Setup {
                    reason: error.to_string(),
                });
            }
        };
        let mut made = self.made.lock();
        if made.len() >= CLIENTS_MAX {
            made.remove(0);
        }
        made.push((key, client.clone()));
        Ok(client)
    }

    fn find(&self, key: &Key) -> Option<Client> {
        let mut made = self.made.lock();
        let index = made.iter().rposition(|(known, _)| known == key)?;
        let found = made.remove(index);
        let client = found.1.clone();
        made.push(found);
        Some(client)
    }

    fn key_for(&self, url: &Url, request_roots: &[Vec<u8>]) -> Key {
        if url.scheme() == "http" && self.proxies.is_empty() {
            return Key::Plain;
        }
        let host = url.host_str().unwrap_or_default();
        if self
            .options
            .unverified_hosts
            .iter()
            .any(|name| name == "*" || name.eq_ignore_ascii_case(host))
        {
            return Key::Unverified;
        }
        Key::Verified {
            request_roots: request_roots.to_vec(),
        }
    }

    fn builder(&self, key: &Key, request_roots: &[Vec<u8>]) -> Result<ClientBuilder, SourceError> {
        let options = &self.options;
        let mut builder = Client::builder()
            .http1_only()
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
        for proxy in &self.proxies {
            builder = builder.proxy(proxy.clone());
        }
        Ok(match key {
            Key::Plain => builder.tls_backend_preconfigured(no_trust()?),
            Key::Unverified => builder.tls_danger_accept_invalid_certs(true),
            Key::Verified { .. } => {
                let too_big = |root: &Vec<u8>| root.len() > REQUEST_ROOT_BYTES_MAX;
                if request_roots.len() > REQUEST_ROOTS_MAX || request_roots.iter().any(too_big) {
                    let reason = format!(
                        "a request may bring {REQUEST_ROOTS_MAX} trust roots of {REQUEST_ROOT_BYTES_MAX} bytes each, not more"
                    );
                    return Err(SourceError::Setup { reason });
                }
                let mut roots = certificates(&options.trust_roots)?;
                roots.extend(certificates(request_roots)?);
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

fn certificates(roots: &[Vec<u8>]) -> Result<Vec<Certificate>, SourceError> {
    let mut store = RootCertStore::empty();
    roots
        .iter()
        .enumerate()
        .map(|(index, der)| {
            let refused = |reason: String| SourceError::Setup {
                reason: format!("trust root {index} is not a DER certificate ({reason}): convert it with openssl x509 -outform der"),
            };
            store.add(der.clone().into()).map_err(|error| refused(error.to_string()))?;
            Certificate::from_der(der).map_err(|error| refused(super::failure::root_cause(&error)))
        })
        .collect()
}

/// A TLS configuration that trusts nobody, for the client that never speaks TLS.
fn no_trust() -> Result<rustls::ClientConfig, SourceError> {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| SourceError::Setup {
            reason: error.to_string(),
        })?;
    Ok(builder
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

/// The proxies that the environment names. `variable` looks one up.
fn environment_proxies(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Proxy>, SourceError> {
    let lookup = |name: &str| {
        let value = variable(&name.to_lowercase()).or_else(|| variable(name));
        value.filter(|value| !value.trim().is_empty())
    };
    // A CGI server puts the client's `Proxy` header into HTTP_PROXY.
    let http = if variable("REQUEST_METHOD").is_some() {
        None
    } else {
        lookup("HTTP_PROXY")
    };
    let all = lookup("ALL_PROXY");
    let excepted = format!(
        "{},localhost,127.0.0.0/8,::1",
        lookup("NO_PROXY").unwrap_or_default()
    );
    let mut proxies = Vec::new();
    for (address, make) in [
        (
            http.or_else(|| all.clone()),
            Proxy::http as fn(String) -> reqwest::Result<Proxy>,
        ),
        (
            lookup("HTTPS_PROXY").or(all),
            Proxy::https as fn(String) -> reqwest::Result<Proxy>,
        ),
    ] {
        let Some(address) = address else { continue };
        let proxy = make(address).map_err(|error| SourceError::Setup {
            reason: format!(
                "the proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not a URL ({})",
                super::failure::root_cause(&error)
            ),
        })?;
        proxies.push(proxy.no_proxy(NoProxy::from_string(&excepted)));
    }
    Ok(proxies)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<usize, SourceError> {
        let lookup = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        };
        environment_proxies(lookup).map(|proxies| proxies.len())
    }

    #[test]
    fn proxies_come_from_the_usual_variables() {
        assert_eq!(proxies(&[]), Ok(0));
        assert_eq!(proxies(&[("HTTP_PROXY", "http://p:1")]), Ok(1));
        assert_eq!(
            proxies(&[("https_proxy", "http://p:1"), ("HTTP_PROXY", "")]),
            Ok(1)
        );
        assert_eq!(proxies(&[("ALL_PROXY", "http://p:1")]), Ok(2));
        assert_eq!(
            proxies(&[("HTTP_PROXY", "http://p:1"), ("REQUEST_METHOD", "GET")]),
            Ok(0)
        );
        assert!(matches!(
            proxies(&[("HTTP_PROXY", "http://[")]),
            Err(SourceError::Setup { .. })
        ));
    }

    #[tokio::test]
    async fn clients_are_shared_and_their_number_is_bounded() {
        let clients = Clients::new(&HttpOptions {
            proxy: ProxyUse::Direct,
            ..HttpOptions::default()
        })
        .unwrap();
        let plain = Url::parse("http://h/").unwrap();
        clients.client_for(&plain, &[]).await.unwrap();
        clients.client_for(&plain, &[vec![1]]).await.unwrap();
        assert_eq!(
            clients.made.lock().len(),
            1,
            "plain HTTP needs no trust roots"
        );

        let secure = Url::parse("https://h/").unwrap();
        let error = clients
            .client_for(&secure, &[vec![1, 2, 3]])
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("trust root 0 is not a DER certificate"),
            "{error}"
        );
    }
}
