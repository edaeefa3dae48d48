//! `dfctl ca`: the trust that intercepted HTTPS needs.
//!
//! The proxy of a daemon looks into the tunnels to hosts that its configuration names, with certificates of a CA of its own. Programs
//! accept them only if this host trusts that CA.

mod install;
mod verify;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::failure::Failure;
use crate::program::Told;

/// What to do about the CA.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Make this host trust the CA, or no longer (--remove).
    Install(install::Install),
    /// Try an intercepted connection: does the proxy answer it, and does this host trust it?
    Verify(verify::Verify),
}

impl Command {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        match self {
            Self::Install(install) => install.run().await,
            Self::Verify(verify) => verify.run().await,
        }
    }
}

/// Where the CA is.
#[derive(Debug, Clone, Args)]
pub(super) struct CaArguments {
    /// Certificate of the CA: the one that the daemon made (in proxy-ca below storage.dir), or proxy.server.caCert.
    #[arg(
        long,
        env = "DFCTL_CA_CERT",
        value_name = "FILE",
        default_value = "/var/lib/dragonfly/proxy-ca/ca.crt"
    )]
    ca_cert: PathBuf,
}

impl CaArguments {
    /// The text of the file and the first certificate in it.
    fn read(&self) -> Result<(Vec<u8>, CertificateDer<'static>), Failure> {
        let pem = std::fs::read(&self.ca_cert).map_err(|error| {
            refused(
                &self.ca_cert,
                &format!("{error}: a daemon makes it when the first host is to be intercepted (proxy.interceptHosts); name another one with --ca-cert"),
            )
        })?;
        let certificate = CertificateDer::from_pem_slice(&pem)
            .map_err(|_| refused(&self.ca_cert, "no PEM certificate is in it"))?;
        Ok((pem, certificate))
    }
}

fn refused(path: &Path, reason: &str) -> Failure {
    Failure::Refused {
        reason: format!("{}: {reason}", path.display()),
    }
}
