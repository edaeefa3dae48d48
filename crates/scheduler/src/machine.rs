//! What this machine is called and where others reach it: the defaults of `server.host` and `server.advertiseIP`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The kernel's name of this host, else `localhost`.
pub(crate) fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// The address from which this host would leave towards a distant one; loopback if there is no route. Nothing is sent.
pub(crate) fn address(ipv6: bool) -> IpAddr {
    // Documentation addresses (RFC 5737, RFC 3849): only the routing table is asked.
    let distant_v4 = (Ipv4Addr::UNSPECIFIED.into(), IpAddr::from([192, 0, 2, 1]));
    let distant_v6 = (
        Ipv6Addr::UNSPECIFIED.into(),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    );
    let mut attempts = vec![distant_v4];
    if ipv6 {
        attempts.push(distant_v6);
    }
    attempts
        .into_iter()
        .find_map(|(here, there)| leaving_address(here, there))
        .unwrap_or(Ipv4Addr::LOCALHOST.into())
}

fn leaving_address(here: IpAddr, there: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::new(here, 0)).ok()?;
    socket.connect(SocketAddr::new(there, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_machine_has_a_name_and_an_address() {
        assert!(!super::hostname().is_empty());
        assert!(!super::address(false).is_unspecified());
        assert!(!super::address(true).is_unspecified());
    }
}
