//! TLS material: where it lies, and what is read from there.
//!
//! A link is encrypted with mutual TLS if and only if `caCert`, `cert` and `key` are all set, as in Dragonfly v2. Two rules
//! differ on purpose: one or two of the three is a mistake in the configuration, and a file that cannot be read is an
//! error. Dragonfly v2 falls back to plaintext in both cases, which nobody who set a certificate wants.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::config::Section;

/// Paths of the three files that make mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that the other side's must be signed by, PEM.
    pub ca_cert: PathBuf,
    /// The certificate chain to show, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// The content of [`TlsFiles`], read and checked.
#[derive(Clone)]
pub struct TlsMaterial {
    ca_cert: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// Why TLS cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{what} {}: {error}: check the path and its permissions", .file.display())]
    Unreadable {
        /// Which of the three.
        what: &'static str,
        /// Its path.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file holds nothing of the kind that is needed.
    #[error("{what} {}: no such thing in this file, a PEM file with one is expected", .file.display())]
    NotPem {
        /// Which of the three.
        what: &'static str,
        /// Its path.
        file: PathBuf,
    },
    /// Certificate and key were read but cannot be used together.
    #[error("TLS material is not usable: {0}")]
    Unusable(String),
}

impl TlsFiles {
    /// Reads `caCert`, `cert` and `key` of a section: all three or none.
    pub fn from_section(section: &Section<'_>) -> Option<Self> {
        const KEYS: [&str; 3] = ["caCert", "cert", "key"];
        let [ca_cert, cert, key] = KEYS.map(|name| section.get::<PathBuf>(name));
        if let (Some(ca_cert), Some(cert), Some(key)) = (&ca_cert, &cert, &key) {
            return Some(Self {
                ca_cert: ca_cert.clone(),
                cert: cert.clone(),
                key: key.clone(),
            });
        }
        if KEYS.iter().any(|name| section.has(name)) {
            for name in KEYS.iter().filter(|name| !section.has(name)) {
                section.mistake(
                    name,
                    "a path, as mutual TLS needs caCert, cert and key together",
                );
            }
        }
        None
    }

    /// Reads the three files.
    ///
    /// # Errors
    /// A file is unreadable or is not PEM of its kind.
    pub fn read(&self) -> Result<TlsMaterial, TlsError> {
        let material = TlsMaterial {
            ca_cert: read("caCert", &self.ca_cert)?,
            cert: read("cert", &self.cert)?,
            key: read("key", &self.key)?,
        };
        for (what, file, pem) in [
            ("caCert", &self.ca_cert, &material.ca_cert),
            ("cert", &self.cert, &material.cert),
        ] {
            if !CertificateDer::pem_slice_iter(pem).any(|item| item.is_ok()) {
                return Err(TlsError::NotPem {
                    what,
                    file: file.clone(),
                });
            }
        }
        if PrivateKeyDer::from_pem_slice(&material.key).is_err() {
            return Err(TlsError::NotPem {
                what: "key",
                file: self.key.clone(),
            });
        }
        Ok(material)
    }
}

impl TlsMaterial {
    /// For a server that requires a client certificate signed by `caCert`.
    pub fn server_config(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(Identity::from_pem(&self.cert, &self.key))
            .client_ca_root(Certificate::from_pem(&self.ca_cert))
    }

    /// For a client that shows its certificate and trusts only `caCert`. The name that is verified is the host part of the
    /// dialled address; certificates of services that are dialled by address need it as a subject alternative name.
    pub fn client_config(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(Identity::from_pem(&self.cert, &self.key))
            .ca_certificate(Certificate::from_pem(&self.ca_cert))
    }
}

/// Chooses the one TLS implementation of this program for libraries that ask for the process's default. Call it first thing;
/// further calls change nothing.
pub fn install_crypto_provider() {
    // An error says that one is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn read(what: &'static str, file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|error| TlsError::Unreadable {
        what,
        file: file.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    #[test]
    fn two_of_three_is_a_mistake_that_names_the_third() {
        let document = Document::parse("c.yaml", "tls:\n  caCert: /a\n  cert: /b\n").unwrap();
        let files = TlsFiles::from_section(&document.root().section("tls"));
        let text = document.finish(files).unwrap_err().to_string();
        assert!(text.contains("tls.key: missing, expected a path"), "{text}");
    }

    #[test]
    fn none_of_three_is_plaintext_and_three_are_read() {
        let document = Document::parse("c.yaml", "tls: {caCert: /a, cert: /b, key: /c}").unwrap();
        assert_eq!(
            TlsFiles::from_section(&document.root().section("none")),
            None
        );
        let files = TlsFiles::from_section(&document.root().section("tls")).unwrap();
        assert!(matches!(
            files.read(),
            Err(TlsError::Unreadable { what: "caCert", .. })
        ));
    }

    #[test]
    fn a_file_without_pem_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.pem");
        std::fs::write(&file, "hello").unwrap();
        let files = TlsFiles {
            ca_cert: file.clone(),
            cert: file.clone(),
            key: file,
        };
        assert!(matches!(
            files.read(),
            Err(TlsError::NotPem { what: "caCert", .. })
        ));
    }
}
