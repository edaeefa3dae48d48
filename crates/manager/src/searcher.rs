//! Which scheduler cluster suits a daemon best.
//!
//! Each cluster describes by its [`Scopes`] where its daemons are; a daemon tells where it is; the better they agree, the
//! earlier the cluster comes. Scopes rank and never exclude: a daemon fails over to the clusters behind the first.
//!
//! score = 0.30 cidr + 0.30 hostname + 0.25 idc + 0.14 location + 0.01 default, each part within 0..=1. The weights and
//! rules are those of Dragonfly v2, so that a fleet finds the same clusters under either manager.

use std::net::{IpAddr, Ipv6Addr};

use regex::{Regex, RegexBuilder};

use crate::model::JsonMap;

const CIDR_WEIGHT: f64 = 0.30;
const HOSTNAME_WEIGHT: f64 = 0.30;
const IDC_WEIGHT: f64 = 0.25;
const LOCATION_WEIGHT: f64 = 0.14;
const DEFAULT_WEIGHT: f64 = 0.01;

/// Elements of a location path that are compared; a partial match counts in parts of this many.
const LOCATION_ELEMENTS_MAX: u8 = 5;
/// Largest compiled form of a host name pattern: patterns come from operators, but a huge one would slow every search.
const PATTERN_LEN_MAX: usize = 1 << 20;
/// Separates the elements of an idc scope and of a location path.
const SEPARATOR: char = '|';

/// Where a daemon is, as it tells in `ListSchedulers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place<'a> {
    /// IP literal.
    pub ip: &'a str,
    /// Host name.
    pub hostname: &'a str,
    /// Data centre label, empty if unknown.
    pub idc: &'a str,
    /// `|`-separated topology path, empty if unknown.
    pub location: &'a str,
}

/// Which daemons a cluster is for: the `scopes` of a scheduler cluster, compiled.
#[derive(Debug, Clone, Default)]
pub struct Scopes {
    idc: String,
    location: String,
    cidrs: Vec<Prefix>,
    hostnames: Vec<Regex>,
}

impl Scopes {
    /// Reads the scopes of a cluster. Members of another type, bad prefixes and bad patterns count as absent; unknown members
    /// are ignored.
    pub fn from_json(scopes: &JsonMap) -> Self {
        let text = |key: &str| {
            scopes
                .get(key)
                .and_then(|value| value.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let list = |key: &str| {
            let items = scopes.get(key).and_then(|value| value.as_array());
            items.into_iter().flatten().filter_map(|item| item.as_str())
        };
        Self {
            idc: text("idc"),
            location: text("location"),
            cidrs: list("cidrs").filter_map(Prefix::parse).collect(),
            hostnames: list("hostnames")
                .filter_map(|pattern| {
                    RegexBuilder::new(pattern)
                        .size_limit(PATTERN_LEN_MAX)
                        .build()
                        .ok()
                })
                .collect(),
        }
    }

    /// How well a daemon at `place` fits, 0 to 1.
    pub fn score(&self, place: &Place<'_>, is_default: bool) -> f64 {
        let part = |fits: bool, weight: f64| if fits { weight } else { 0.0 };
        part(self.holds_ip(place.ip), CIDR_WEIGHT)
            + part(
                self.hostnames
                    .iter()
                    .any(|pattern| pattern.is_match(place.hostname)),
                HOSTNAME_WEIGHT,
            )
            + part(fits_idc(place.idc, &self.idc), IDC_WEIGHT)
            + location_part(place.location, &self.location) * LOCATION_WEIGHT
            + part(is_default, DEFAULT_WEIGHT)
    }

    fn holds_ip(&self, ip: &str) -> bool {
        ip.parse::<IpAddr>()
            .is_ok_and(|ip| self.cidrs.iter().any(|prefix| prefix.contains(ip)))
    }
}

/// Orders `clusters` by score, best first; equal ones keep their order.
pub fn rank<'c, C>(
    clusters: impl IntoIterator<Item = &'c C>,
    place: &Place<'_>,
    scopes_of: impl Fn(&C) -> (&Scopes, bool),
) -> Vec<&'c C> {
    let mut scored: Vec<(f64, &C)> = clusters
        .into_iter()
        .map(|cluster| {
            let (scopes, is_default) = scopes_of(cluster);
            (scopes.score(place, is_default), cluster)
        })
        .collect();
    scored.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    scored.into_iter().map(|(_, cluster)| cluster).collect()
}

/// Only the cluster's side may list several data centres.
fn fits_idc(idc: &str, scope: &str) -> bool {
    !idc.is_empty()
        && !scope.is_empty()
        && (same(idc, scope) || scope.split(SEPARATOR).any(|element| same(idc, element)))
}

/// Equal as a whole: 1. Else the leading elements that are equal, in fifths, however long the paths are.
fn location_part(location: &str, scope: &str) -> f64 {
    if location.is_empty() || scope.is_empty() {
        return 0.0;
    }
    if same(location, scope) {
        return 1.0;
    }
    let pairs = location
        .split(SEPARATOR)
        .zip(scope.split(SEPARATOR))
        .take(usize::from(LOCATION_ELEMENTS_MAX));
    let equal: u8 = pairs
        .take_while(|(one, other)| same(one, other))
        .map(|_| 1)
        .sum();
    f64::from(equal) / f64::from(LOCATION_ELEMENTS_MAX)
}

fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other) || one.to_lowercase() == other.to_lowercase()
}

/// An address prefix such as `10.0.0.0/8`; bits behind the prefix length may be set and do not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Prefix {
    ip: IpAddr,
    len: u8,
}

impl Prefix {
    fn parse(text: &str) -> Option<Self> {
        let (ip, len) = text.trim().split_once('/')?;
        let ip: IpAddr = ip.parse().ok()?;
        let len_max = if ip.is_ipv4() { 32 } else { 128 };
        let len: u8 = len.parse().ok().filter(|len| *len <= len_max)?;
        Some(Self { ip, len })
    }

    fn contains(self, ip: IpAddr) -> bool {
        match (self.ip, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0);
                net.to_bits() & mask == ip.to_bits() & mask
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => same_bits(net, ip, self.len),
            _ => false,
        }
    }
}

fn same_bits(one: Ipv6Addr, other: Ipv6Addr, len: u8) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    one.to_bits() & mask == other.to_bits() & mask
}

#[cfg(test)]
mod tests;
