//! `dfctl ca install`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use protocol::{Digest, DigestAlgorithm};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use tokio::process::Command;
use x509_parser::parse_x509_certificate;

use super::{CaArguments, refused};
use crate::failure::Failure;
use crate::program::{Report, Told};

/// Name of the file in the store.
const FILE: &str = "dragonfly-proxy-ca.crt";

/// How long the system may take to rebuild its store.
const REBUILD_MAX: Duration = Duration::from_secs(120);

/// Stores of the system: a folder for certificates of the operator, and the program that takes them up.
const STORES: [(&str, &str); 2] = [
    ("/usr/local/share/ca-certificates", "update-ca-certificates"),
    ("/etc/pki/ca-trust/source/anchors", "update-ca-trust"),
];

/// Makes this host trust the CA of the proxy. Doing it twice changes nothing.
#[derive(Debug, Clone, Args)]
pub struct Install {
    #[command(flatten)]
    ca: CaArguments,

    /// Put the certificate into this folder and do nothing else, instead of the trust store of the system.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Take it away again.
    #[arg(long)]
    remove: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Done {
    file: PathBuf,
    /// Whether anything was changed.
    changed: bool,
    installed: bool,
    /// The SHA-256 of another certificate that was there before.
    replaced: Option<String>,
}

/// What putting the certificate into its place changed.
#[derive(Debug, PartialEq, Eq)]
enum Put {
    Same,
    New,
    /// Something else was there, of this SHA-256.
    Instead(String),
}

impl Install {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        let (folder, rebuild) = match &self.to {
            Some(folder) => (folder.clone(), None),
            None => {
                let (folder, program) = system_store().ok_or_else(|| Failure::Here {
                    reason: "no trust store of the system is known here (neither update-ca-certificates nor update-ca-trust): use --to, and add the certificate by hand".to_owned(),
                })?;
                (PathBuf::from(folder), Some(program))
            }
        };
        let file = folder.join(FILE);
        let (changed, replaced) = if self.remove {
            (remove(&file)?, None)
        } else {
            let (pem, _) = self.ca.read()?;
            check(&pem).map_err(|reason| refused(&self.ca.ca_cert, &reason))?;
            match put(&folder, &file, &pem)? {
                Put::Same => (false, None),
                Put::New => (true, None),
                Put::Instead(former) => (true, Some(former)),
            }
        };
        // Also if nothing was changed here: the last rebuild may have been interrupted.
        if let Some(program) = rebuild {
            run(program).await?;
        }
        Ok(Told::new(&Done {
            file,
            changed,
            installed: !self.remove,
            replaced,
        }))
    }
}

fn system_store() -> Option<(&'static str, &'static str)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let exists = |program: &str| {
        let folders = std::env::split_paths(&path);
        // Not everybody's PATH has the programs of the administrator.
        folders
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")])
            .any(|folder| folder.join(program).is_file())
    };
    STORES.into_iter().find(|(_, program)| exists(program))
}

/// Whether a text holds nothing but certificates of CAs: anything else would be trusted in vain, and a key be read by all.
fn check(pem: &[u8]) -> Result<(), String> {
    if String::from_utf8_lossy(pem).contains("PRIVATE KEY-----") {
        return Err(
            "a private key is in it, which everybody could read in the store: name a file with the certificate alone"
                .to_owned(),
        );
    }
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("damaged: {error}"))?;
        let (_, parsed) = parse_x509_certificate(&certificate)
            .map_err(|error| format!("no certificate can be read from it: {error}"))?;
        if !parsed.is_ca() {
            return Err(format!(
                "the certificate of {} is no CA (its basic constraints do not say CA:TRUE), so that what it signs is not trusted: name that of the CA with --ca-cert",
                parsed.subject()
            ));
        }
    }
    Ok(())
}

fn put(folder: &Path, file: &Path, pem: &[u8]) -> Result<Put, Failure> {
    let former = std::fs::read(file).ok();
    if former.as_deref() == Some(pem) {
        return Ok(Put::Same);
    }
    std::fs::create_dir_all(folder).map_err(|error| Failure::output(folder, &error))?;
    let partial = file.with_extension("new");
    std::fs::write(&partial, pem)
        .and_then(|()| std::fs::rename(&partial, file))
        .map_err(|error| Failure::output(file, &error))?;
    Ok(former.map_or(Put::New, |former| Put::Instead(fingerprint(&former))))
}

/// The SHA-256 by which certificates are told apart; of a text without one, the text's.
fn fingerprint(pem: &[u8]) -> String {
    let certificate = CertificateDer::from_pem_slice(pem);
    let bytes = certificate.as_deref().unwrap_or(pem);
    Digest::of(DigestAlgorithm::Sha256, bytes).encoded()
}

fn remove(file: &Path) -> Result<bool, Failure> {
    match std::fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(refused(file, &format!("cannot be removed: {error}"))),
    }
}

async fn run(program: &str) -> Result<(), Failure> {
    let failed = |reason: String| Failure::Here {
        reason: format!("{program}: {reason}"),
    };
    let running = Command::new(program)
        .env(
            "PATH",
            "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
        )
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(REBUILD_MAX, running)
        .await
        .map_err(|_| failed("does not come to an end".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    Err(failed(format!(
        "{} {last}: root may be needed",
        output.status
    )))
}

impl Report for Done {
    fn text(&self) -> String {
        let file = self.file.display();
        match (self.installed, self.changed) {
            (true, true) => {
                let instead = self.replaced.as_ref().map_or_else(String::new, |former| {
                    format!(", instead of another certificate (SHA-256 {former})")
                });
                format!(
                    "Trusted from now on: {file}{instead}. Programs that run already must be restarted."
                )
            }
            (true, false) => format!("Trusted already: {file}"),
            (false, true) => format!("No longer trusted: {file}"),
            (false, false) => format!("Was not trusted: {file}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    #[test]
    fn installing_and_removing_twice_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("made");
        let file = folder.join(FILE);
        assert_eq!(put(&folder, &file, b"one"), Ok(Put::New));
        assert_eq!(put(&folder, &file, b"one"), Ok(Put::Same));
        let former = Put::Instead(fingerprint(b"one"));
        assert_eq!(put(&folder, &file, b"another"), Ok(former));
        assert_eq!(std::fs::read(&file).unwrap(), b"another");
        assert_eq!((remove(&file), remove(&file)), (Ok(true), Ok(false)));
    }

    fn certificate(is_ca: IsCa) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    async fn install(pem: &str, folder: &Path) -> Result<Told, Failure> {
        let ca_cert = folder.join("given.pem");
        std::fs::write(&ca_cert, pem).unwrap();
        let install = Install {
            ca: CaArguments { ca_cert },
            to: Some(folder.join("store")),
            remove: false,
        };
        install.run().await
    }

    fn json(told: &Told) -> serde_json::Value {
        serde_json::from_str(told.json()).unwrap()
    }

    #[tokio::test]
    async fn only_a_ca_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let ca = certificate(IsCa::Ca(BasicConstraints::Unconstrained));
        let key = KeyPair::generate().unwrap().serialize_pem();
        for (wrong, why) in [
            (certificate(IsCa::NoCa), "is no CA"),
            (certificate(IsCa::ExplicitNoCa), "is no CA"),
            (format!("{ca}{}", certificate(IsCa::NoCa)), "is no CA"),
            (format!("{ca}{key}"), "private key"),
        ] {
            let Err(failure) = install(&wrong, dir.path()).await else {
                panic!("{why}");
            };
            assert!(failure.to_string().contains(why), "{failure}");
        }
        assert!(!dir.path().join("store").exists());
        install(&ca, dir.path()).await.unwrap();
    }

    #[tokio::test]
    async fn a_replaced_certificate_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = [(); 2].map(|()| certificate(IsCa::Ca(BasicConstraints::Unconstrained)));
        let told = install(&one, dir.path()).await.unwrap();
        assert!(json(&told)["replaced"].is_null());
        let told = install(&two, dir.path()).await.unwrap();
        assert_eq!(json(&told)["replaced"], fingerprint(one.as_bytes()));
        assert!(told.text().contains(&fingerprint(one.as_bytes())));
        let again = install(&two, dir.path()).await.unwrap();
        assert!(json(&again)["replaced"].is_null());
    }
}
