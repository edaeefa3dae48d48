//! How the text of one value becomes a typed one.

use bytesize::ByteSize;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// A type that one scalar of a configuration file can have.
///
/// Implement it for an enum of choices that several keys share; for a single key [`super::Section::one_of`] is enough.
pub trait Scalar: Sized {
    /// What is accepted, as a noun phrase with an example: `a duration with its unit, such as 30s`.
    const EXPECTED: &'static str;
    /// Whether a wrong value must not be shown.
    const SECRET: bool = false;
    /// The value that `text` stands for.
    fn parse(text: &str) -> Option<Self>;
}

macro_rules! integers {
    ($($type:ty: $expected:literal),*) => {$(
        impl Scalar for $type {
            const EXPECTED: &'static str = $expected;
            fn parse(text: &str) -> Option<Self> {
                match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
                    (Some(digits), _) => <$type>::from_str_radix(digits, 16).ok(),
                    (_, Some(digits)) => <$type>::from_str_radix(digits, 8).ok(),
                    _ => text.parse().ok(),
                }
            }
        }
    )*};
}

integers! {
    u8: "a whole number from 0 to 255",
    u16: "a whole number from 0 to 65535",
    u32: "a whole number from 0 to 4294967295",
    u64: "a whole number from 0",
    usize: "a whole number from 0",
    i32: "a whole number from -2147483648 to 2147483647",
    i64: "a whole number"
}

impl Scalar for f64 {
    const EXPECTED: &'static str = "a number";
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &f64| number.is_finite())
    }
}

impl Scalar for bool {
    const EXPECTED: &'static str = "true or false";
    fn parse(text: &str) -> Option<Self> {
        match text {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => None,
        }
    }
}

impl Scalar for String {
    const EXPECTED: &'static str = "text";
    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Scalar for PathBuf {
    const EXPECTED: &'static str = "a path";
    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))
    }
}

impl Scalar for Secret {
    const EXPECTED: &'static str = "text";
    const SECRET: bool = true;
    fn parse(text: &str) -> Option<Self> {
        Some(Secret::new(text))
    }
}

impl Scalar for IpAddr {
    const EXPECTED: &'static str = "an IP address, such as 10.0.0.1 or fd00::1";
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// Also accepts Go's form without an address, `:8080`, which stands for every IPv4 address.
impl Scalar for SocketAddr {
    const EXPECTED: &'static str = "an address and a port, such as 127.0.0.1:8080 or :8080";
    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix(':') {
            Some(port) => port
                .parse()
                .ok()
                .map(|port| SocketAddr::from(([0, 0, 0, 0], port))),
            None => text.parse().ok(),
        }
    }
}

impl Scalar for Duration {
    const EXPECTED: &'static str = "a duration with its unit, such as 500ms, 30s, 5m or 1h30m";
    fn parse(text: &str) -> Option<Self> {
        parse_duration(text)
    }
}

/// A plain number counts bytes; `KB`, `MB`, `GB` are decimal; `KiB`, `MiB`, `GiB` are binary.
impl Scalar for ByteSize {
    const EXPECTED: &'static str =
        "a size, such as 4MiB (binary), 50GB (decimal) or a number of bytes";
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// A duration as the configuration files of Dragonfly v2 write it: humantime's form (`1h 30m`, `15days`) or Go's
/// (`1h30m`, `1.5h`). A bare number is refused, as nobody can tell its unit; only `0` needs none.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text == "0" {
        return Some(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .ok()
        .or_else(|| parse_fraction(text))
}

/// One number with a fraction and its unit.
fn parse_fraction(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}
