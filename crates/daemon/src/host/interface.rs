//! The network interface that owns the host's address.

use std::net::IpAddr;
use std::path::PathBuf;

use super::procfs::line;
use super::sys::{self, Address};

/// Bytes through an interface since it came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

/// A network interface, by its folder in `/sys/class/net`.
#[derive(Debug)]
pub(super) struct Interface {
    folder: PathBuf,
}

impl Interface {
    /// The interface that has `ip`, else the one whose network contains it (`127.0.0.9` belongs to `lo`).
    pub(super) fn owning(ip: IpAddr) -> Option<Self> {
        let addresses = sys::addresses();
        let name = addresses
            .iter()
            .find(|address| address.ip == ip)
            .or_else(|| addresses.iter().find(|address| address.contains(ip)))
            .map(|address| address.interface.clone())?;
        let folder = PathBuf::from("/sys/class/net").join(name);
        Some(Self { folder })
    }

    /// The link's speed in bit/s, where it has one.
    pub(super) fn speed_bits(&self) -> Option<u64> {
        self.number("speed")
            .filter(|megabits| *megabits > 0)
            .map(|megabits| megabits.saturating_mul(1_000_000))
    }

    pub(super) fn counters(&self) -> Option<Counters> {
        Some(Counters {
            rx_bytes: self.number("statistics/rx_bytes")?,
            tx_bytes: self.number("statistics/tx_bytes")?,
        })
    }

    fn number(&self, file: &str) -> Option<u64> {
        line(self.folder.join(file).to_str()?).parse().ok()
    }
}

/// The first address that is not loopback, of the preferred family if there is one.
pub(super) fn first_address(prefer_ipv6: bool) -> Option<IpAddr> {
    let mut addresses: Vec<Address> = sys::addresses();
    addresses.retain(|address| !address.ip.is_loopback() && !is_link_local(address.ip));
    addresses.sort_by_key(|address| address.ip.is_ipv6() != prefer_ipv6);
    addresses.first().map(|address| address.ip)
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_belongs_to_an_interface_with_counters() {
        for ip in ["127.0.0.1", "127.0.0.9"] {
            let interface = Interface::owning(ip.parse().unwrap()).expect(ip);
            assert!(interface.folder.ends_with("lo"), "{interface:?}");
            assert!(interface.counters().is_some());
        }
    }

    #[test]
    fn a_foreign_address_has_no_interface() {
        assert!(Interface::owning("240.0.0.1".parse().unwrap()).is_none());
    }
}
