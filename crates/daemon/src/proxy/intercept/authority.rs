//! The CA that signs for intercepted hosts: the operator's, or one that the daemon makes once and keeps.
//!
//! A kept CA is the same after a restart, so that clients trust it once. It carries name constraints (RFC 5280, section 4.2.1.10): stolen,
//! it can impersonate the hosts that were to be intercepted and no other. When hosts are added that it is not good for, a new one
//! is made, which must be trusted anew.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tracing::{info, warn};

/// The names of the files of a kept CA: its certificate for everybody, its key for nobody else, and the names it is confined to.
const CERT_FILE: &str = "ca.crt";
const KEY_FILE: &str = "ca.key";
const NAMES_FILE: &str = "names";

/// How long a kept CA is valid.
const CA_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Clocks of clients may be that far behind ours.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// The only protocol inside tunnels.
const ALPN: &[u8] = b"http/1.1";

/// A CA with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, and those above it as far as the file has them.
    chain: Vec<CertificateDer<'static>>,
    /// Of all certificates that we show.
    leaf_key: KeyPair,
    origin: PathBuf,
}

/// Why there is no CA, or no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file or folder cannot be used.
    #[error("{}: {error}: check the path and its permissions", .path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// What a file holds is no CA.
    #[error("{}: {reason}: a PEM certificate of a CA and its unencrypted PEM key are expected", .path.display())]
    Unusable {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate cannot be made.
    #[error("no certificate for {host} can be made: {reason}")]
    Leaf {
        /// For whom.
        host: String,
        /// Why.
        reason: String,
    },
}

impl Authority {
    /// The operator's CA (`proxy.server.caCert` and `caKey`).
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, CaError> {
        let pem = read(cert)?;
        let unusable = |path: &Path, reason: String| CaError::Unusable {
            path: path.to_owned(),
            reason,
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(cert, error.to_string()))?;
        let Some(own) = chain.first() else {
            return Err(unusable(cert, "there is no certificate in it".to_owned()));
        };
        let key_text = String::from_utf8(read(key)?)
            .map_err(|_| unusable(key, "it is not text".to_owned()))?;
        let key_pair =
            KeyPair::from_pem(&key_text).map_err(|error| unusable(key, error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(own, key_pair)
            .map_err(|error| unusable(cert, error.to_string()))?;
        let leaf_key = KeyPair::generate().map_err(|error| unusable(key, error.to_string()))?;
        Ok(Self {
            issuer,
            chain,
            leaf_key,
            origin: cert.to_owned(),
        })
    }

    /// The daemon's own CA in the folder `dir`, confined to `names` and what lies below them, made if there is none that is good
    /// for all of them. `None` confines it to nothing.
    ///
    /// # Errors
    /// The folder or the files cannot be used.
    pub fn kept(dir: &Path, names: Option<&[String]>) -> Result<Self, CaError> {
        let [cert, key, names_file] = [CERT_FILE, KEY_FILE, NAMES_FILE].map(|file| dir.join(file));
        if let Ok(kept_names) = fs::read_to_string(&names_file) {
            let kept: Vec<&str> = kept_names.lines().collect();
            let is_good = kept == ["*"]
                || names
                    .is_some_and(|names| names.iter().all(|name| kept.contains(&name.as_str())));
            if is_good {
                return Self::from_files(&cert, &key);
            }
            warn!(dir = %dir.display(), "hosts to be intercepted were added: the CA is made anew and must be trusted anew (dfctl ca install)");
        }
        let mut folder = fs::DirBuilder::new();
        { folder.recursive(true).mode(0o755).create(dir) }.map_err(|error| io_error(dir, error))?;
        let (cert_pem, key_pem) = make(names).map_err(|error| CaError::Unusable {
            path: dir.to_owned(),
            reason: error.to_string(),
        })?;
        // The names come last: without them the other two do not count after a crash.
        write(&key, key_pem.as_bytes(), 0o600)?;
        write(&cert, cert_pem.as_bytes(), 0o644)?;
        let listed = names.map_or_else(|| "*".to_owned(), |names| names.join("\n"));
        write(&names_file, listed.as_bytes(), 0o644)?;
        info!(ca = %cert.display(), "made a CA for intercepted hosts: clients must trust it (dfctl ca install)");
        Self::from_files(&cert, &key)
    }

    /// The file of its certificate.
    #[must_use]
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// What shows us as `host` for the time `valid`.
    ///
    /// # Errors
    /// [`CaError::Leaf`].
    pub fn server_config(&self, host: &str, valid: Duration) -> Result<Arc<ServerConfig>, CaError> {
        let refused = |reason: String| CaError::Leaf {
            host: host.to_owned(),
            reason,
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let mut params = CertificateParams::new(vec![bare.to_owned()])
            .map_err(|error| refused(error.to_string()))?;
        params.distinguished_name = DistinguishedName::new();
        // The common name has room for 64 characters; clients look at the alternative name.
        if bare.len() <= 64 {
            params.distinguished_name.push(DnType::CommonName, bare);
        }
        (params.not_before, params.not_after) = validity(valid);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params
            .signed_by(&self.leaf_key, &self.issuer)
            .map_err(|error| refused(error.to_string()))?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.chain.iter().cloned());
        let key = PrivateKeyDer::try_from(self.leaf_key.serialize_der())
            .map_err(|error| refused(error.to_owned()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| refused(error.to_string()))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Authority").field(&self.origin).finish()
    }
}

/// A certificate and its key, both PEM.
fn make(names: Option<&[String]>) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // The number tells two of them apart where they are listed.
    let number = hex_number();
    let name = format!("Dragonfly proxy CA {number}");
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = validity(CA_VALID);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = names.map(constraints);
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), key.serialize_pem()))
}

fn hex_number() -> String {
    format!("{:08x}", uuid::Uuid::new_v4().as_fields().0)
}

/// Good for `names` and what lies below them. Addresses are a kind of their own, of which all are good unless some are named.
fn constraints(names: &[String]) -> NameConstraints {
    let mut permitted_subtrees = Vec::new();
    let mut has_addresses = false;
    for name in names {
        permitted_subtrees.push(match name.parse::<IpAddr>() {
            Ok(ip) => {
                has_addresses = true;
                let bits = if ip.is_ipv4() { 32 } else { 128 };
                GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, bits))
            }
            Err(_) => GeneralSubtree::DnsName(name.clone()),
        });
    }
    let excluded_subtrees = if has_addresses {
        Vec::new()
    } else {
        vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ]
    };
    NameConstraints {
        permitted_subtrees,
        excluded_subtrees,
    }
}

fn validity(valid: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = SystemTime::now();
    (
        OffsetDateTime::from(now - CLOCK_SKEW),
        OffsetDateTime::from(now + valid),
    )
}

fn read(path: &Path) -> Result<Vec<u8>, CaError> {
    fs::read(path).map_err(|error| io_error(path, error))
}

/// Under its final name only when it is complete, and never readable by more than `mode` says.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let partial = path.with_extension("new");
    let written = || {
        // One that is left from a crash may have other permissions.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    written().map_err(|error| io_error(path, error))
}

fn io_error(path: &Path, error: std::io::Error) -> CaError {
    CaError::Io {
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// Whether a client that trusts the CA believes a certificate for `host`.
    fn is_believed(ca: &Authority, host: &str) -> bool {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        (params.not_before, params.not_after) = validity(Duration::from_secs(60));
        let leaf = params.signed_by(&ca.leaf_key, &ca.issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.chain[0].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        verifier
            .verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now())
            .is_ok()
    }

    #[test]
    fn a_kept_ca_stays_the_same_and_is_for_us_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ca");
        let ca = |hosts: &[&str]| Authority::kept(&dir, Some(&names(hosts))).unwrap().chain;
        let first = ca(&["hf.co", "pypi.org"]);
        assert_eq!(ca(&["pypi.org"]), first, "fewer hosts need no new one");
        let mode = fs::metadata(dir.join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(ca(&["example.com"]), first, "another host does");
    }

    #[test]
    fn it_is_confined_to_its_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::kept(dir.path(), Some(&names(&["hf.co"]))).unwrap();
        for (host, believed) in [
            ("hf.co", true),
            ("cdn.hf.co", true),
            ("example.com", false),
            ("nothf.co", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(is_believed(&ca, host), believed, "{host}");
        }
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::kept(dir.path(), Some(&names(&["127.0.0.1"]))).unwrap();
        assert!(is_believed(&ca, "127.0.0.1") && !is_believed(&ca, "127.0.0.2"));
    }

    #[test]
    fn files_that_hold_no_ca_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pem");
        let text = |error: CaError| error.to_string();
        let missing = text(Authority::from_files(&path, &path).unwrap_err());
        assert!(
            missing.contains("x.pem") && missing.contains("check the path"),
            "{missing}"
        );
        fs::write(&path, "nothing").unwrap();
        let empty = text(Authority::from_files(&path, &path).unwrap_err());
        assert!(empty.contains("no certificate in it"), "{empty}");
    }
}
