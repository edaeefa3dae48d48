//! The loopback network of one demo: addresses that no other demo uses, and ports that stay free until they are taken.
//!
//! A port that was found free and let go again can be gone when the process that it is meant for binds it. Two things took
//! them: another demo on the same addresses, and the kernel, which gives outgoing connections and port 0 any port of its
//! ephemeral range. So each demo has a network of its own, and takes ports from outside of that range.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

/// The third octets of the networks: 127.0.0.0/24 is left to everybody else.
const NETS: std::ops::RangeInclusive<u8> = 1..=255;
/// The lowest port that is tried: below are the well-known ones, also ours.
const LOWEST_PORT: u16 = 10_000;
/// The lowest port that Linux gives away by itself, if it does not say so.
const EPHEMERAL_LOWEST: u16 = 32_768;
const EPHEMERAL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// 127.0.n.0/24, this process's as long as it lives.
pub(super) struct Net {
    number: u8,
    /// An abstract socket: there is one of each name in a network namespace, as there is one loopback device, and it goes
    /// with the process, also on SIGKILL.
    _claim: UnixListener,
}

impl Net {
    /// Takes the first network that no demo has.
    ///
    /// # Errors
    /// All are taken, or the kernel has no abstract sockets.
    pub(super) fn claim() -> io::Result<Self> {
        for number in NETS {
            let name = UnixAddr::from_abstract_name(format!("dragonfly-demo-127.0.{number}.0/24"))?;
            match UnixListener::bind_addr(&name) {
                Ok(claim) => {
                    return Ok(Self {
                        number,
                        _claim: claim,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "each network from 127.0.1.0/24 to 127.0.255.0/24 is in use by a demo: stop one",
        ))
    }

    /// The address of the manager and of the scheduler.
    pub(super) fn services(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, self.number, 1)
    }

    pub(super) fn seed(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, self.number, 2)
    }

    /// The address of the peer with this number, from 1 to 100.
    pub(super) fn peer(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, self.number, 10 + number)
    }
}

/// Ports on `ip` that nobody listens on, for TCP and for UDP. All are held until all are found, so that they differ.
pub(super) fn free_ports<const COUNT: usize>(ip: Ipv4Addr) -> io::Result<[SocketAddr; COUNT]> {
    let ip = IpAddr::V4(ip);
    let mut held = Vec::with_capacity(COUNT);
    let mut addresses = [SocketAddr::new(ip, 0); COUNT];
    let mut candidates = (LOWEST_PORT..ephemeral_lowest()).map(|port| SocketAddr::new(ip, port));
    for address in &mut addresses {
        let (free, sockets) = match candidates.find_map(take) {
            Some(taken) => taken,
            // All of them belong to the kernel on this machine.
            None => take(SocketAddr::new(ip, 0)).ok_or(io::ErrorKind::AddrInUse)?,
        };
        *address = free;
        held.push(sockets);
    }
    Ok(addresses)
}

/// Holds an address, if it is free.
fn take(address: SocketAddr) -> Option<(SocketAddr, (TcpListener, UdpSocket))> {
    let tcp = TcpListener::bind(address).ok()?;
    let address = tcp.local_addr().ok()?;
    let udp = UdpSocket::bind(address).ok()?;
    Some((address, (tcp, udp)))
}

fn ephemeral_lowest() -> u16 {
    std::fs::read_to_string(EPHEMERAL_RANGE)
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(EPHEMERAL_LOWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_demos_have_different_networks() {
        let (one, other) = (Net::claim().unwrap(), Net::claim().unwrap());
        assert_ne!(one.services(), other.services());
        assert_eq!(one.peer(1).octets(), [127, 0, one.number, 11]);
        let number = one.number;
        drop(one);
        // Whoever claims next may be another process: what counts is that somebody can.
        let name = format!("dragonfly-demo-127.0.{number}.0/24");
        let again = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap());
        assert!(again.is_ok() || Net::claim().is_ok());
    }

    #[test]
    fn ports_are_free_different_and_not_the_kernels() {
        let ip = Ipv4Addr::new(127, 0, 0, 1);
        let taken = TcpListener::bind((ip, free_ports::<1>(ip).unwrap()[0].port())).unwrap();
        let udp = UdpSocket::bind((ip, free_ports::<1>(ip).unwrap()[0].port())).unwrap();
        let ports = free_ports::<3>(ip).unwrap().map(|address| address.port());
        assert!(!ports.contains(&taken.local_addr().unwrap().port()));
        assert!(!ports.contains(&udp.local_addr().unwrap().port()));
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2]);
        if ephemeral_lowest() > LOWEST_PORT + 1000 {
            assert!(
                ports.iter().all(|port| *port < ephemeral_lowest()),
                "{ports:?}"
            );
        }
    }
}
