//! From the configuration to the options of the origin client: reads the files that `backend` and `proxy.registryMirror` name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use source::http::{ClientIdentity, Credentials, HostPattern, HttpOptions, Upstream};
use url::Url;

use crate::config::{self, Config, SecretSource, UpstreamCredentials};

/// A file of an upstream cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// It cannot be read.
    #[error("{key}: {}: {error}: check the path and its permissions", .file.display())]
    Unreadable {
        /// The key that names it.
        key: String,
        /// Its path.
        file: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// It does not hold what it should.
    #[error("{key}: {}: no certificate in this file, a PEM file with at least one is expected", .file.display())]
    NoCertificate {
        /// The key that names it.
        key: String,
        /// Its path.
        file: PathBuf,
    },
    /// It holds something that no header can carry.
    #[error(
        "{key}: the token has characters that HTTP does not allow: it must be one line of ASCII"
    )]
    Token {
        /// The key that names it.
        key: String,
    },
}

/// The options with which every part of the daemon reaches HTTP origins. `own` are the addresses of the proxy of this daemon.
///
/// # Errors
/// A file that the configuration names cannot be used.
pub fn http_options(config: &Config, own: Vec<SocketAddr>) -> Result<HttpOptions, UpstreamError> {
    let backend = &config.backend;
    let headers = backend.request_header.iter();
    let mut http = HttpOptions::default();
    http.request_header = headers
        .map(|(name, value)| (name.clone(), value.expose().to_owned()))
        .collect();
    http.retry.tries = backend.max_retries.saturating_add(1);
    http.egress = backend.egress.clone();
    http.own_addresses = own;
    http.upstreams = backend
        .upstreams
        .iter()
        .enumerate()
        .map(|(index, written)| upstream(&format!("backend.upstreams[{index}]"), written))
        .collect::<Result<_, _>>()?;
    add_mirror(&mut http.upstreams, &config.proxy.registry_mirror)?;
    Ok(http)
}

fn upstream(key: &str, written: &config::Upstream) -> Result<Upstream, UpstreamError> {
    let mut upstream = Upstream::new(written.hosts.clone());
    if let Some(file) = &written.ca_cert {
        upstream.trust_roots = certificates(&format!("{key}.caCert"), file)?;
    }
    if let Some((cert, private)) = &written.identity {
        let chain = read(&format!("{key}.cert"), cert)?;
        let private = read(&format!("{key}.key"), private)?;
        upstream.identity = Some(ClientIdentity::new(&chain, &private));
    }
    upstream.plain_http = written.plain_http;
    upstream.skip_verify = written.skip_verify;
    upstream.proxy = written.proxy.clone();
    upstream.rewrite = written.rewrite.clone();
    upstream.credentials = match &written.credentials {
        None => None,
        Some(UpstreamCredentials::Basic { username, password }) => {
            let password = secret(&format!("{key}.passwordFile"), password)?;
            Some(Credentials::basic(username, &password))
        }
        Some(UpstreamCredentials::Bearer(token)) => {
            let key = format!("{key}.token");
            let token = secret(&format!("{key}File"), token)?;
            let credentials = Credentials::bearer(&token);
            Some(credentials.ok_or(UpstreamError::Token { key })?)
        }
    };
    Ok(upstream)
}

/// `proxy.registryMirror.cert` is trusted for that registry: by the entry that the table has for it, else by one of its own.
fn add_mirror(
    upstreams: &mut Vec<Upstream>,
    mirror: &config::RegistryMirror,
) -> Result<(), UpstreamError> {
    let Some(file) = &mirror.cert else {
        return Ok(());
    };
    let roots = certificates("proxy.registryMirror.cert", file)?;
    let host = mirror.addr.host_str().unwrap_or_default();
    let port = mirror.addr.port_or_known_default();
    let known = upstreams
        .iter_mut()
        .find(|upstream| upstream.hosts.matches(host, port));
    if let Some(known) = known {
        known.trust_roots.extend(roots);
    } else if let Some(hosts) = pattern_of(&mirror.addr) {
        let mut upstream = Upstream::new(hosts);
        upstream.trust_roots = roots;
        upstreams.push(upstream);
    }
    Ok(())
}

fn pattern_of(url: &Url) -> Option<HostPattern> {
    let host = url.host_str()?;
    let port = url.port_or_known_default()?;
    format!("{host}:{port}").parse().ok()
}

fn certificates(key: &str, file: &Path) -> Result<Vec<Vec<u8>>, UpstreamError> {
    let pem = read(key, file)?;
    let certificates: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(&pem)
        .filter_map(Result::ok)
        .map(|der| der.to_vec())
        .collect();
    if certificates.is_empty() {
        return Err(UpstreamError::NoCertificate {
            key: key.to_owned(),
            file: file.to_owned(),
        });
    }
    Ok(certificates)
}

fn secret(key: &str, source: &SecretSource) -> Result<String, UpstreamError> {
    match source {
        SecretSource::Inline(secret) => Ok(secret.expose().to_owned()),
        SecretSource::File(file) => {
            let text = read(key, file)?;
            let text = String::from_utf8_lossy(&text);
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    }
}

fn read(key: &str, file: &Path) -> Result<Vec<u8>, UpstreamError> {
    std::fs::read(file).map_err(|error| UpstreamError::Unreadable {
        key: key.to_owned(),
        file: file.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<HttpOptions, UpstreamError> {
        let config = Config::parse("test.yaml", text).unwrap_or_else(|error| panic!("{error}"));
        http_options(&config.value, vec![])
    }

    #[test]
    fn files_are_read_and_the_mirror_gets_an_entry() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
        let [cert, key, password] = ["c.pem", "k.pem", "p"].map(|name| dir.path().join(name));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&password, "hunter2\n").unwrap();
        let [cert, key, password] = [cert, key, password].map(|path| path.display().to_string());
        let text = format!(
            "backend: {{upstreams: [{{host: h, caCert: {cert}, cert: {cert}, key: {key}, username: u, passwordFile: {password}, rewrite: 'm:1'}}]}}\n\
             proxy: {{registryMirror: {{addr: 'https://r:5000', cert: {cert}}}}}"
        );
        let options = options(&text).unwrap();
        let [first, mirror] = &options.upstreams[..] else {
            panic!("{options:?}");
        };
        assert_eq!(first.credentials, Some(Credentials::basic("u", "hunter2")));
        assert!(first.identity.is_some() && first.trust_roots.len() == 1);
        assert_eq!(mirror.hosts.to_string(), "r:5000");
        assert_eq!(mirror.trust_roots.len(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_with_its_key() {
        for (text, word) in [
            (
                "backend: {upstreams: [{host: h, caCert: /nowhere}]}",
                "backend.upstreams[0].caCert: /nowhere",
            ),
            (
                "backend: {upstreams: [{host: h, token: \"a\\nb\"}]}",
                "backend.upstreams[0].token",
            ),
            (
                "proxy: {registryMirror: {cert: /dev/null}}",
                "no certificate in this file",
            ),
        ] {
            let error = options(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
