//! `dfctl ca verify`.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::CaArguments;
use crate::failure::Failure;
use crate::program::{Report, Told};

/// How long one connection may take.
const CONNECTION_MAX: Duration = Duration::from_secs(15);

/// Longest answer to a CONNECT.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Opens connections to a host through the proxy: is it intercepted with the CA, and does this host trust it?
#[derive(Debug, Clone, Args)]
pub struct Verify {
    /// A host that should be intercepted, with its port unless that is 443.
    #[arg(value_name = "HOST[:PORT]")]
    host: String,

    /// The proxy, with user:password@ if it wants them.
    #[arg(
        long,
        env = "DFCTL_CA_PROXY",
        value_name = "URL",
        default_value = "http://127.0.0.1:4001"
    )]
    proxy: Url,

    #[command(flatten)]
    ca: CaArguments,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    host: String,
    /// The certificate that came through the proxy is of the CA.
    intercepted: bool,
    /// This host's trust store accepts it.
    trusted: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Verify {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        let (_, certificate) = self.ca.read()?;
        let mut ours = RootCertStore::empty();
        ours.add(certificate).map_err(|error| Failure::Refused {
            reason: format!("{}: {error}", self.ca.ca_cert.display()),
        })?;
        let mut system = RootCertStore::empty();
        system.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let intercepted = self.handshake(ours).await?;
        let trusted = self.handshake(system).await?;
        let found = Found {
            host: self.host.clone(),
            intercepted: intercepted.is_ok(),
            trusted: trusted.is_ok(),
            reason: intercepted.and(trusted).err(),
        };
        let exit_code = u8::from(!(found.intercepted && found.trusted));
        Ok(Told::with_exit_code(&found, exit_code))
    }

    /// A TLS handshake through the proxy; within, why the certificate is not accepted.
    async fn handshake(&self, roots: RootCertStore) -> Result<Result<(), String>, Failure> {
        let far =
            Url::parse(&format!("https://{}/", self.host)).map_err(|error| Failure::Usage {
                reason: format!("{:?} is no host: {error}", self.host),
            })?;
        let host = far.host_str().unwrap_or_default();
        let authority = format!("{host}:{}", far.port_or_known_default().unwrap_or(443));
        let attempt = async {
            let stream = self.tunnel(&authority).await?;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| self.failed(&error.to_string()))?
                .with_root_certificates(roots)
                .with_no_client_auth();
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let name = ServerName::try_from(bare.to_owned()).map_err(|error| Failure::Usage {
                reason: format!("{host:?} is no host: {error}"),
            })?;
            let connector = TlsConnector::from(Arc::new(config));
            let shaken = connector.connect(name, stream).await;
            Ok(shaken.map(|_| ()).map_err(|error| error.to_string()))
        };
        tokio::time::timeout(CONNECTION_MAX, attempt)
            .await
            .map_err(|_| self.failed("no answer in time"))?
    }

    /// A connection to `authority` through the proxy.
    async fn tunnel(&self, authority: &str) -> Result<TcpStream, Failure> {
        let host = self.proxy.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.proxy.port_or_known_default().unwrap_or(4001);
        let io = |error: std::io::Error| self.failed(&error.to_string());
        let mut stream = TcpStream::connect((host, port)).await.map_err(io)?;
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        if !self.proxy.username().is_empty() {
            let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
            let user = decoded(self.proxy.username());
            let password = decoded(self.proxy.password().unwrap_or_default());
            let encoded = STANDARD.encode(format!("{user}:{password}"));
            request.push_str(&format!("Proxy-Authorization: Basic {encoded}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(io)?;
        let mut answer = Vec::new();
        // Byte by byte: what follows the empty line belongs to the tunnel.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= ANSWER_BYTES_MAX {
                return Err(self.failed("its answer to CONNECT does not end"));
            }
            answer.push(stream.read_u8().await.map_err(io)?);
        }
        let answer = String::from_utf8_lossy(&answer);
        let first = answer.lines().next().unwrap_or_default();
        if first.split(' ').nth(1) != Some("200") {
            return Err(self.failed(&format!("it answers CONNECT {authority} with {first:?}")));
        }
        Ok(stream)
    }

    fn failed(&self, reason: &str) -> Failure {
        let mut shown = self.proxy.clone();
        // Neither fails on a URL with a host, and one without has nothing to hide.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        Failure::Refused {
            reason: format!("the proxy {shown}: {reason}"),
        }
    }
}

impl Report for Found {
    fn text(&self) -> String {
        let host = &self.host;
        let reason = self.reason.as_deref().unwrap_or_default();
        match (self.intercepted, self.trusted) {
            (true, true) => format!("{host} is intercepted, and this host trusts it"),
            (true, false) => format!(
                "{host} is intercepted, but this host does not trust it ({reason}): dfctl ca install"
            ),
            (false, _) => format!(
                "{host} is not intercepted with this CA ({reason}): add it to proxy.interceptHosts, or name the CA with --ca-cert"
            ),
        }
    }
}
