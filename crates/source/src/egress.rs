//! Which addresses this host may be sent to.
//!
//! A URL is a request to open a connection from inside the network, and whoever can name one (a preheat job, a proxy client, a
//! redirect of a hostile origin) would otherwise reach what only we can reach. The policy is asked about the host as written,
//! again about every address the name resolved to, at the moment of connecting, and again at each redirect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A block of addresses, as in `10.0.0.0/8` or `fd00::/8`; a bare address is a block of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    prefix_bits: u8,
}

/// The text is not a block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address block: write it like 10.0.0.0/8 or fd00::/8")]
pub struct ParseCidrError {
    text: String,
}

impl Cidr {
    /// Whether `ip` lies in this block. IPv4 addresses written as IPv6 (`::ffff:a.b.c.d`) count as IPv4.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.network, ip.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.prefix_bits))
                    .unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.prefix_bits))
                    .unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            _ => false,
        }
    }

    const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_bits: u8) -> Self {
        Self {
            network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            prefix_bits,
        }
    }

    const fn v6(groups: [u16; 8], prefix_bits: u8) -> Self {
        let [a, b, c, d, e, f, g, h] = groups;
        Self {
            network: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)),
            prefix_bits,
        }
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseCidrError {
            text: text.to_owned(),
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let network: IpAddr = address.trim().parse().map_err(|_| refused())?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match bits {
            Some(bits) => bits.trim().parse().map_err(|_| refused())?,
            None => most,
        };
        if prefix_bits > most {
            return Err(refused());
        }
        Ok(Self {
            network,
            prefix_bits,
        })
    }
}

/// Which origins may be contacted. The default allows every one.
///
/// An address is refused if a denied block contains it and no allowed block does, or if there are allowed blocks *only*
/// (see [`EgressPolicy::allow_only`]) and none contains it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    denied: Vec<Cidr>,
    allowed: Vec<Cidr>,
    denied_hosts: Vec<String>,
    only_allowed: bool,
}

impl EgressPolicy {
    /// Every address may be contacted.
    #[must_use]
    pub fn allow_all() -> Self {
        Self::default()
    }

    /// Link-local addresses and the metadata services of clouds are refused: they hand out the credentials of the machine to
    /// whoever can have a request sent. Everything else is allowed.
    #[must_use]
    pub fn standard() -> Self {
        let denied = vec![
            Cidr::v4(169, 254, 0, 0, 16),
            // Alibaba Cloud, Oracle Cloud, Azure's host agent.
            Cidr::v4(100, 100, 100, 200, 32),
            Cidr::v4(192, 0, 0, 192, 32),
            Cidr::v4(168, 63, 129, 16, 32),
            Cidr::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
            // AWS and Google Cloud over IPv6.
            Cidr::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128),
            Cidr::v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
            // 169.254.0.0/16 through a NAT64.
            Cidr::v6([0x64, 0xff9b, 0, 0, 0, 0, 0xa9fe, 0], 112),
        ];
        Self {
            denied,
            ..Self::default()
        }
    }

    /// Loopback, link-local (cloud metadata services live there), private and unspecified addresses are refused.
    #[must_use]
    pub fn public_only() -> Self {
        let denied = vec![
            Cidr::v4(0, 0, 0, 0, 8),
            Cidr::v4(10, 0, 0, 0, 8),
            Cidr::v4(100, 64, 0, 0, 10),
            Cidr::v4(127, 0, 0, 0, 8),
            Cidr::v4(169, 254, 0, 0, 16),
            Cidr::v4(172, 16, 0, 0, 12),
            Cidr::v4(192, 168, 0, 0, 16),
            Cidr::v6([0; 8], 127),
            Cidr::v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
            Cidr::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
        ];
        Self {
            denied,
            ..Self::default()
        }
    }

    /// The same policy, also refusing `block`.
    #[must_use]
    pub fn deny(mut self, block: Cidr) -> Self {
        self.denied.push(block);
        self
    }

    /// The same policy, but `block` is allowed even inside a denied one.
    #[must_use]
    pub fn allow(mut self, block: Cidr) -> Self {
        self.allowed.push(block);
        self
    }

    /// The same policy, refusing everything that [`EgressPolicy::allow`] did not name.
    #[must_use]
    pub fn allow_only(mut self) -> Self {
        self.only_allowed = true;
        self
    }

    /// The same policy, also refusing this host name and every name below it.
    #[must_use]
    pub fn deny_host(mut self, host: &str) -> Self {
        self.denied_hosts
            .push(host.trim_matches('.').to_ascii_lowercase());
        self
    }

    /// Whether the policy refuses anything at all.
    #[must_use]
    pub fn is_restrictive(&self) -> bool {
        self.only_allowed || !self.denied.is_empty() || !self.denied_hosts.is_empty()
    }

    /// Whether connections to `ip` are allowed.
    #[must_use]
    pub fn permits_ip(&self, ip: IpAddr) -> bool {
        let within = |blocks: &[Cidr]| blocks.iter().any(|block| block.contains(ip));
        within(&self.allowed) || !(self.only_allowed || within(&self.denied))
    }

    /// Whether a host, as written in a URL, may be looked up at all. For an address literal this is the whole answer.
    #[must_use]
    pub fn permits_host(&self, host: &str) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return self.permits_ip(ip);
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        !self.denied_hosts.iter().any(|denied| {
            host == *denied
                || host
                    .strip_suffix(denied)
                    .is_some_and(|above| above.ends_with('.'))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_contain_what_they_say() {
        let block: Cidr = "10.1.0.0/16".parse().unwrap();
        assert!(block.contains(ip("10.1.255.255")));
        assert!(!block.contains(ip("10.2.0.0")));
        assert!(
            block.contains(ip("::ffff:10.1.2.3")),
            "IPv4 in IPv6 clothes"
        );
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains(ip("8.8.8.8")));
        assert!("::/0".parse::<Cidr>().unwrap().contains(ip("2001:db8::1")));
        assert!("1.2.3.4".parse::<Cidr>().unwrap().contains(ip("1.2.3.4")));
        for wrong in [
            "",
            "10.0.0.0/33",
            "x/8",
            "10.0.0.0/-1",
            "::/129",
            "10.0.0.0/",
        ] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn allowed_blocks_are_holes_in_denied_ones() {
        let policy = EgressPolicy::public_only().allow("10.9.0.0/16".parse().unwrap());
        assert!(policy.permits_ip(ip("8.8.8.8")));
        assert!(!policy.permits_ip(ip("169.254.169.254")));
        assert!(!policy.permits_ip(ip("::1")));
        assert!(!policy.permits_ip(ip("fe80::1")));
        assert!(!policy.permits_ip(ip("10.8.0.1")));
        assert!(policy.permits_ip(ip("10.9.0.1")));
        assert!(!policy.permits_host("[::ffff:127.0.0.1]"));
        assert!(policy.permits_host("example.com"));
        assert!(!policy.allow_only().permits_ip(ip("8.8.8.8")));
    }

    #[test]
    fn the_standard_policy_keeps_machine_credentials() {
        let policy = EgressPolicy::standard();
        for refused in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "100.100.100.200",
            "fd00:ec2::254",
            "fe80::1",
        ] {
            assert!(!policy.permits_ip(ip(refused)), "{refused}");
        }
        for allowed in ["127.0.0.1", "10.0.0.1", "8.8.8.8", "::1", "fd00::1"] {
            assert!(policy.permits_ip(ip(allowed)), "{allowed}");
        }
        let opened = policy.allow("169.254.169.254".parse().unwrap());
        assert!(opened.permits_ip(ip("169.254.169.254")) && !opened.permits_ip(ip("169.254.1.1")));
    }

    #[test]
    fn denied_hosts_take_their_subdomains_along() {
        let policy = EgressPolicy::allow_all().deny_host("internal.example");
        assert!(!policy.permits_host("internal.example"));
        assert!(!policy.permits_host("A.Internal.Example."));
        assert!(policy.permits_host("notinternal.example"));
        assert!(policy.is_restrictive() && !EgressPolicy::allow_all().is_restrictive());
    }
}
