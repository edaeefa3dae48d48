//! The ports of the daemon: whether they answer, and if there is no daemon, who has them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use api::local::DescribeDaemonResponse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::finding::Finding;

/// How long a port of this host may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The ports of Dragonfly v2's daemon, and what is served there.
const USUAL: [(&str, u16); 6] = [
    ("upload", 4000),
    ("proxy", 4001),
    ("metrics", 4002),
    ("health", 4003),
    ("stats", 4004),
    ("pieces", 4005),
];

/// A request that any HTTP server refuses by itself: nothing is asked of an origin.
const SENSELESS: &[u8] = b"GET http:// HTTP/1.1\r\nHost: doctor\r\nConnection: close\r\n\r\n";
const HEALTH: &[u8] = b"GET /healthy HTTP/1.1\r\nHost: doctor\r\nConnection: close\r\n\r\n";

/// Whether the daemon answers where it says that it listens.
pub(super) async fn served(daemon: &DescribeDaemonResponse) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut has_proxy = false;
    for listener in &daemon.listeners {
        let Ok(address) = listener.address.parse::<SocketAddr>() else {
            continue;
        };
        let request = match listener.name.as_str() {
            "proxy" => Some(SENSELESS),
            "health" => Some(HEALTH),
            _ => None,
        };
        let check = if listener.name == "proxy" {
            "proxy"
        } else {
            "port"
        };
        has_proxy |= check == "proxy";
        let subject = format!("{} {address}", listener.name);
        findings.push(match answers(reachable(address), request).await {
            Ok(detail) => Finding::ok(check, subject, detail),
            Err(reason) => Finding::failure(
                check,
                subject,
                reason,
                "is there a firewall rule for this host's own addresses? else look into the daemon's log and restart it",
            ),
        });
    }
    if !has_proxy {
        findings.push(Finding::skipped("proxy", "proxy", "the daemon serves none"));
    }
    findings
}

/// Without a daemon that tells: who has the usual ports.
pub(super) fn usual() -> Vec<Finding> {
    let Ok(holders) = holders() else {
        return vec![Finding::skipped(
            "port",
            "ports",
            "/proc/net/tcp cannot be read",
        )];
    };
    let finding = |(name, port): (&str, u16)| {
        let subject = format!("{name} {port}");
        match holders.get(&port) {
            None => Finding::ok("port", subject, "free"),
            Some(holder) => Finding::warning(
                "port",
                subject,
                format!("taken by {holder}"),
                "if that is no daemon of yours, end it, or give the daemon another port",
            ),
        }
    };
    USUAL.into_iter().map(finding).collect()
}

/// The address to connect to for one that is listened on.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Connects, and if there is a request, waits for an HTTP answer to it.
async fn answers(address: SocketAddr, request: Option<&[u8]>) -> Result<String, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let Some(request) = request else {
            return Ok("accepts connections".to_owned());
        };
        stream.write_all(request).await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        let head = String::from_utf8_lossy(&head).into_owned();
        match head.strip_prefix("HTTP/1.") {
            Some(rest) => Ok(format!("answers HTTP ({})", rest.get(2..).unwrap_or("?"))),
            None => Err(std::io::Error::other("what answers is no HTTP server")),
        }
    };
    match tokio::time::timeout(ANSWER_MAX, exchange).await {
        Ok(Ok(detail)) => Ok(detail),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER_MAX.as_secs())),
    }
}

/// Who listens on which TCP port of this host, as far as this user may know.
fn holders() -> std::io::Result<BTreeMap<u16, String>> {
    let mut inodes: BTreeMap<u64, u16> = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match std::fs::read_to_string(table) {
            Ok(table) => inodes.extend(listening(&table)),
            // No IPv6 on this host.
            Err(_) if table.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    let mut holders: BTreeMap<u16, String> = inodes
        .values()
        .map(|port| {
            (
                *port,
                "another user's process (ask as root which)".to_owned(),
            )
        })
        .collect();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for file in files.flatten() {
            let Ok(target) = std::fs::read_link(file.path()) else {
                continue;
            };
            let inode = target.to_str().and_then(|target| {
                target
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .parse()
                    .ok()
            });
            if let Some(port) = inode.and_then(|inode: u64| inodes.get(&inode)) {
                let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                holders.insert(*port, format!("{} (pid {pid})", comm.trim()));
            }
        }
    }
    Ok(holders)
}

/// Inode and port of the listening sockets in a table of `/proc/net`.
fn listening(table: &str) -> Vec<(u64, u16)> {
    const LISTEN: &str = "0A";
    let entry = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        if *fields.get(3)? != LISTEN {
            return None;
        }
        let port = u16::from_str_radix(port, 16).ok()?;
        Some((fields.get(9)?.parse().ok()?, port))
    };
    table.lines().skip(1).filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0FA0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1 0 100 0 0 10 0
   1: 0100007F:0FA1 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 1235 1 0 100 0 0 10 0
 nonsense";
        assert_eq!(listening(table), [(1234, 4000)]);
    }

    #[tokio::test]
    async fn who_holds_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holders = holders().unwrap();
        let pid = std::process::id();
        assert!(
            holders[&port].ends_with(&format!("(pid {pid})")),
            "{holders:?}"
        );
        let answer = answers(listener.local_addr().unwrap(), None).await;
        assert_eq!(answer.unwrap(), "accepts connections");
        // Nobody listens on port 1 (tcpmux).
        let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
        assert!(answers(nobody, None).await.is_err());
    }

    #[test]
    fn an_address_for_all_is_reached_on_loopback() {
        for (listened, reached) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            assert_eq!(reachable(listened.parse().unwrap()).to_string(), reached);
        }
    }
}
