//! Which tunnels are looked into, and the certificates for it.
//!
//! Looking into a tunnel breaks what TLS promises, and it breaks every client that does not trust our CA. So it is done only where
//! somebody asked for it: for the hosts of `proxy.interceptHosts`, and for those whose name stands in the expression of a rule
//! (`named`). A rule that fits any host, such as `blobs/sha256.*`, asks for nothing of the kind: it is meant for registries behind
//! the mirror. What is intercepted is thus a list that can be shown, and that the CA of the daemon is confined to.

mod authority;
mod named;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::ServerConfig;
use source::http::HostPattern;
use tracing::{info, warn};

pub use authority::{Authority, CaError};
pub use named::named_hosts;

use super::target::Destination;
use crate::config;

/// Certificates that are remembered; each takes about 4 KiB. The one not used for longest goes first.
const CERTIFICATES_MAX: usize = 1000;

/// How long a certificate is used; it is valid for twice that.
const CERTIFICATE_KEPT: Duration = Duration::from_secs(3 * 24 * 3600);

/// Folder of the daemon's own CA below `storage.dir`.
const FOLDER: &str = "proxy-ca";

/// Looking into the tunnels to some hosts.
#[derive(Debug)]
pub struct Interception {
    hosts: Vec<HostPattern>,
    authority: Authority,
    /// The most recently used last.
    made: Mutex<Vec<Made>>,
}

#[derive(Debug)]
struct Made {
    host: String,
    at: Instant,
    config: Arc<ServerConfig>,
}

impl Interception {
    /// As configured; `None` if no host is to be intercepted. `dir` is where the daemon keeps a CA of its own, unless one is
    /// configured.
    ///
    /// # Errors
    /// The CA cannot be read, made or kept.
    pub fn new(config: &config::Proxy, dir: &Path) -> Result<Option<Self>, CaError> {
        let mut hosts = config.intercept_hosts.clone();
        for rule in &config.rules {
            for host in named_hosts(&rule.regex) {
                if !hosts.contains(&host) {
                    hosts.push(host);
                }
            }
        }
        if hosts.is_empty() {
            return Ok(None);
        }
        let authority = match &config.ca {
            Some((cert, key)) => Authority::from_files(cert, key)?,
            None => Authority::kept(&dir.join(FOLDER), names(&hosts).as_deref())?,
        };
        let shown: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        info!(hosts = ?shown, ca = %authority.origin().display(), "CONNECT to these hosts is intercepted, all others are blind tunnels");
        Ok(Some(Self {
            hosts,
            authority,
            made: Mutex::default(),
        }))
    }

    /// Whether tunnels to there are looked into.
    #[must_use]
    pub fn covers(&self, to: &Destination) -> bool {
        self.hosts
            .iter()
            .any(|hosts| hosts.matches(&to.host, Some(to.port)))
    }

    /// What shows us as `host`.
    ///
    /// # Errors
    /// The host cannot stand in a certificate.
    pub fn certificate_for(&self, host: &str) -> Result<Arc<ServerConfig>, CaError> {
        let mut made = self.made.lock();
        let known = made
            .iter()
            .position(|made| made.host == host && made.at.elapsed() < CERTIFICATE_KEPT);
        if let Some(index) = known {
            let known = made.remove(index);
            let config = known.config.clone();
            made.push(known);
            return Ok(config);
        }
        // Under the lock: it takes a fraction of a millisecond, and happens once for each host.
        let config = self.authority.server_config(host, 2 * CERTIFICATE_KEPT)?;
        made.retain(|made| made.host != host);
        if made.len() >= CERTIFICATES_MAX {
            made.remove(0);
        }
        made.push(Made {
            host: host.to_owned(),
            at: Instant::now(),
            config: config.clone(),
        });
        Ok(config)
    }
}

/// What the CA is confined to; `None` if that is everything.
fn names(hosts: &[HostPattern]) -> Option<Vec<String>> {
    let names: Option<Vec<String>> = hosts
        .iter()
        .map(|host| {
            host.name()
                .map(|name| name.trim_start_matches('.').to_owned())
        })
        .collect();
    if names.is_none() {
        warn!(
            "proxy.interceptHosts has *: the CA of this daemon is good for every host, guard its key"
        );
    }
    names.map(|mut names| {
        names.sort_unstable();
        names.dedup();
        names
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> config::Proxy {
        config::Config::parse("test.yaml", text)
            .unwrap()
            .value
            .proxy
    }

    fn to(host: &str) -> Destination {
        Destination {
            host: host.to_owned(),
            port: 443,
        }
    }

    #[test]
    fn only_named_hosts_are_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        let text = "proxy: {interceptHosts: ['*.hf.co'], rules: [{regex: 'blobs/sha256.*'}, {regex: 'https://files.pythonhosted.org/.*whl'}]}";
        let interception = Interception::new(&config(text), dir.path())
            .unwrap()
            .unwrap();
        assert!(interception.covers(&to("cdn-lfs.hf.co")));
        assert!(interception.covers(&to("files.pythonhosted.org")));
        assert!(!interception.covers(&to("hf.co")) && !interception.covers(&to("example.com")));

        let first = interception.certificate_for("a.hf.co").unwrap();
        let again = interception.certificate_for("a.hf.co").unwrap();
        assert!(Arc::ptr_eq(&first, &again));
    }

    #[test]
    fn without_named_hosts_there_is_no_ca() {
        let dir = tempfile::tempdir().unwrap();
        let text = "proxy: {rules: [{regex: 'blobs/sha256.*'}]}";
        assert!(
            Interception::new(&config(text), dir.path())
                .unwrap()
                .is_none()
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
