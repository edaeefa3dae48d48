//! The field rules that a message must keep to be taken in (scheduler sheet, section 1.4).

use std::net::IpAddr;

use dragonfly_api::common::v2::{Cpu, Disk, Download, Host, Memory, Priority, TaskType};
use tonic::Status;

/// Longest URL that is taken in, bytes: what servers commonly allow, times eight.
const URL_LEN_MAX: usize = 64 * 1024;

/// Piece lengths that a caller may ask for.
pub(super) const PIECE_LEN: std::ops::RangeInclusive<u64> = 4 << 20..=64 << 20;

/// A port that a daemon may announce.
const PORT: std::ops::RangeInclusive<i32> = 1024..=65534;

/// A refusal that names the field, what was found and what is expected.
pub(super) fn invalid(field: &str, expected: &str) -> Status {
    Status::invalid_argument(format!("{field}: {expected} is expected"))
}

/// An identifier of the given type.
pub(super) fn id<I: TryFrom<String>>(field: &str, text: String) -> Result<I, Status>
where
    I::Error: std::fmt::Display,
{
    I::try_from(text).map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

pub(super) fn download(download: &Download) -> Result<(), Status> {
    absolute_url("download.url", &download.url)?;
    if let Some(digest) = &download.digest
        && !is_digest(digest)
    {
        return Err(invalid(
            "download.digest",
            "ALGORITHM:HEX, such as sha256 with 64 hex digits,",
        ));
    }
    if TaskType::try_from(download.r#type).is_err() {
        return Err(invalid("download.type", "a known task type"));
    }
    if Priority::try_from(download.priority).is_err() {
        return Err(invalid("download.priority", "LEVEL0 to LEVEL6"));
    }
    if download
        .piece_length
        .is_some_and(|length| length != 0 && !PIECE_LEN.contains(&length))
    {
        return Err(invalid(
            "download.piece_length",
            "a length from 4 MiB to 64 MiB",
        ));
    }
    if let Some(ip) = &download.remote_ip
        && !ip.is_empty()
        && ip.parse::<IpAddr>().is_err()
    {
        return Err(invalid("download.remote_ip", "an IP address"));
    }
    Ok(())
}

pub(super) fn host(host: &Host) -> Result<IpAddr, Status> {
    if host.hostname.is_empty() {
        return Err(invalid("host.hostname", "a name"));
    }
    if host.r#type > 3 {
        return Err(invalid("host.type", "a number from 0 to 3"));
    }
    for (field, port) in [
        ("host.port", host.port),
        ("host.download_port", host.download_port),
    ] {
        if !PORT.contains(&port) {
            return Err(invalid(field, "a port from 1024 to 65534"));
        }
    }
    if !host.cpu.as_ref().is_none_or(is_cpu) {
        return Err(invalid("host.cpu", "percentages and times from 0"));
    }
    if !(host.memory.as_ref().is_none_or(is_memory) && host.disk.as_ref().is_none_or(is_disk)) {
        return Err(invalid(
            "host.memory, host.disk",
            "percentages from 0 to 100",
        ));
    }
    host.ip
        .parse()
        .map_err(|_| invalid("host.ip", "an IP address"))
}

fn is_cpu(cpu: &Cpu) -> bool {
    let times = cpu.times.as_ref().is_none_or(|it| {
        [
            it.user,
            it.system,
            it.idle,
            it.nice,
            it.iowait,
            it.irq,
            it.softirq,
            it.steal,
            it.guest,
            it.guest_nice,
        ]
        .iter()
        .all(|time| *time >= 0.0)
    });
    times && cpu.percent >= 0.0 && cpu.process_percent >= 0.0
}

fn is_memory(memory: &Memory) -> bool {
    is_percentage(memory.used_percent) && is_percentage(memory.process_used_percent)
}

fn is_disk(disk: &Disk) -> bool {
    is_percentage(disk.used_percent) && is_percentage(disk.inodes_used_percent)
}

fn is_percentage(value: f64) -> bool {
    (0.0..=100.0).contains(&value)
}

/// An absolute URI: a scheme (RFC 3986, section 3.1), a colon, and something behind it.
pub(super) fn absolute_url(field: &str, url: &str) -> Result<(), Status> {
    let scheme = url
        .split_once(':')
        .filter(|(_, rest)| !rest.is_empty())
        .map(|(scheme, _)| scheme);
    let good = scheme.is_some_and(|scheme| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    });
    if good && url.len() <= URL_LEN_MAX && !url.contains(char::is_whitespace) {
        return Ok(());
    }
    Err(invalid(
        field,
        "an absolute URL, such as https://example.com/file,",
    ))
}

/// Empty, or one of the digest texts of Dragonfly v2.
pub(super) fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return text.is_empty();
    };
    let expected_len = match algorithm {
        "md5" => Some(32),
        "sha1" => Some(40),
        "sha256" | "blake3" => Some(64),
        "sha512" => Some(128),
        "crc32" => None,
        _ => return false,
    };
    let len_fits = expected_len.map_or((1..=16).contains(&hex.len()), |len| hex.len() == len);
    len_fits && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_need_a_scheme() {
        for good in [
            "https://example.com/a?b=c",
            "hf://owner/model",
            "s3://bucket/key",
            "file:/x",
        ] {
            assert!(absolute_url("url", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/path",
            "example.com/file",
            "1http://x",
            "http:",
            "http://a b",
        ] {
            assert!(absolute_url("url", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_have_their_lengths() {
        for good in [
            String::new(),
            format!("sha256:{}", "a".repeat(64)),
            "crc32:3735928559".to_owned(),
        ] {
            assert!(is_digest(&good), "{good}");
        }
        for bad in [
            "sha256:ab".to_owned(),
            "crc32:".to_owned(),
            "x:1".to_owned(),
            format!("md5:{}", "g".repeat(32)),
        ] {
            assert!(!is_digest(&bad), "{bad}");
        }
    }

    #[test]
    fn a_refusal_names_the_field() {
        let wrong = Host {
            hostname: "h".to_owned(),
            ip: "10.0.0.1".to_owned(),
            port: 80,
            ..Default::default()
        };
        let status = host(&wrong).unwrap_err();
        assert_eq!(
            status.message(),
            "host.port: a port from 1024 to 65534 is expected"
        );
    }
}
