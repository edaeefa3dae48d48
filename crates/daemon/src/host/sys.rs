//! getifaddrs(3), which no safe library in use here offers.

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) interface: String,
    pub(super) ip: IpAddr,
    netmask: Option<IpAddr>,
}

impl Address {
    /// Whether `ip` lies in the network of this address.
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip, self.netmask, ip) {
            (IpAddr::V4(own), Some(IpAddr::V4(mask)), IpAddr::V4(ip)) => {
                own.to_bits() & mask.to_bits() == ip.to_bits() & mask.to_bits()
            }
            (IpAddr::V6(own), Some(IpAddr::V6(mask)), IpAddr::V6(ip)) => {
                own.to_bits() & mask.to_bits() == ip.to_bits() & mask.to_bits()
            }
            _ => false,
        }
    }
}

/// Every IP address of this host; empty if the system does not say.
pub(super) fn addresses() -> Vec<Address> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the result; the list is freed below, once, after its last use.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: getifaddrs gives a null-terminated list whose nodes are valid until freeifaddrs.
    while let Some(node) = unsafe { next.as_ref() } {
        // SAFETY: the three pointers come from the node, which is valid, and their targets live as long as the list.
        if let Some(address) = unsafe { address(node) } {
            found.push(address);
        }
        next = node.ifa_next;
    }
    // SAFETY: `list` came from getifaddrs and nothing borrowed from it is left: `found` owns its data.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// # Safety
/// `node` is from a living list of getifaddrs.
unsafe fn address(node: &libc::ifaddrs) -> Option<Address> {
    // SAFETY: ifa_addr is null or points to a socket address of the length that its family says.
    let ip = unsafe { ip(node.ifa_addr) }?;
    // SAFETY: as above, for the netmask.
    let netmask = unsafe { ip_of_family(node.ifa_netmask, ip) };
    // SAFETY: ifa_name is a null-terminated string within the list.
    let name = unsafe { CStr::from_ptr(node.ifa_name) };
    Some(Address {
        interface: name.to_str().ok()?.to_owned(),
        ip,
        netmask,
    })
}

/// # Safety
/// `address` is null or points to a socket address as long as its family says.
unsafe fn ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: not null is checked by as_ref; the caller vouches for the target.
    let family = i32::from(unsafe { address.as_ref() }?.sa_family);
    // SAFETY: the family says which type the target has; reads are unaligned because nothing promises alignment.
    unsafe {
        match family {
            libc::AF_INET => {
                let v4 = address.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let v6 = address.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

/// The netmask beside an address; some systems leave its family unset, so the address' own is taken.
///
/// # Safety
/// As for [`ip`].
unsafe fn ip_of_family(netmask: *const libc::sockaddr, like: IpAddr) -> Option<IpAddr> {
    // SAFETY: passed on to the caller.
    unsafe { ip(netmask) }.filter(|mask| mask.is_ipv4() == like.is_ipv4())
}
