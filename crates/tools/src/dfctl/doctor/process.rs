//! The daemon's process: how many files it may open, and whether its environment sends it to itself.

use std::path::Path;

use api::local::DescribeDaemonResponse;

use super::finding::Finding;

/// Open files below which many peers and tasks may find none left. Each connection and each task in use takes one or more.
const FILES_MIN: u64 = 16_384;

/// Variables that send HTTP requests through a proxy.
const PROXY_VARIABLES: [&str; 6] = [
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
];

pub(super) fn check(pid: u32, daemon: Option<&DescribeDaemonResponse>) -> Vec<Finding> {
    let folder = format!("/proc/{pid}");
    let subject = format!("pid {pid}");
    let mut findings = Vec::new();
    findings.push(
        match std::fs::read_to_string(Path::new(&folder).join("limits")) {
            Ok(limits) => files(&subject, &limits),
            Err(_) => Finding::skipped("process", &subject, "this user may not look at its limits"),
        },
    );
    let Ok(environment) = std::fs::read(Path::new(&folder).join("environ")) else {
        let why = "this user may not look at its environment";
        findings.push(Finding::skipped("process", subject, why));
        return findings;
    };
    let proxy = daemon.and_then(|daemon| {
        let listener = daemon
            .listeners
            .iter()
            .find(|listener| listener.name == "proxy")?;
        listener
            .address
            .rsplit_once(':')
            .map(|(_, port)| port.to_owned())
    });
    findings.push(proxies(&subject, &environment, proxy.as_deref()));
    findings
}

fn files(subject: &str, limits: &str) -> Finding {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    match soft {
        Some("unlimited") => Finding::ok("process", subject, "may open any number of files"),
        Some(count) => match count.parse::<u64>() {
            Ok(count) if count < FILES_MIN => Finding::warning(
                "process",
                subject,
                format!("may open {count} files only"),
                "raise LimitNOFILE of its service (or ulimit -n) to 1048576",
            ),
            _ => Finding::ok("process", subject, format!("may open {count} files")),
        },
        None => Finding::skipped("process", subject, "its limits are not told"),
    }
}

/// A daemon that reads origins through its own proxy would ask itself for ever.
fn proxies(subject: &str, environment: &[u8], own_port: Option<&str>) -> Finding {
    let variables = environment.split(|byte| *byte == 0).filter_map(|variable| {
        let (name, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
        (PROXY_VARIABLES.contains(&name) && !value.is_empty()).then_some((name, value))
    });
    let mut set = Vec::new();
    for (name, value) in variables {
        // The address only: there may be a password before it.
        let address = value
            .rsplit(['@', '/'])
            .find(|part| !part.is_empty())
            .unwrap_or(value);
        let is_here = ["127.", "localhost:", "[::1]:"]
            .iter()
            .any(|here| address.starts_with(here));
        let is_own = own_port.is_some_and(|port| address.ends_with(&format!(":{port}")));
        if is_here && is_own {
            return Finding::failure(
                "process",
                subject,
                format!("{name} sends the daemon to its own proxy"),
                "take the variable out of the daemon's environment",
            );
        }
        set.push(format!("{name}={address}"));
    }
    match set.is_empty() {
        true => Finding::ok("process", subject, "reads origins directly"),
        false => Finding::ok(
            "process",
            subject,
            format!("has {} in its environment", set.join(", ")),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn few_files_are_a_warning() {
        let limits = |count: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax open files            {count}                 524288               files\n"
            )
        };
        assert_eq!(files("x", &limits("1024")).state, State::Warning);
        assert_eq!(files("x", &limits("1048576")).state, State::Ok);
        assert_eq!(files("x", &limits("unlimited")).state, State::Ok);
        assert_eq!(files("x", "").state, State::Skipped);
    }

    #[test]
    fn a_daemon_that_asks_itself_is_found_and_no_password_is_told() {
        let own = proxies(
            "x",
            b"A=b\0http_proxy=http://u:secret@127.0.0.1:4001/\0",
            Some("4001"),
        );
        assert_eq!(own.state, State::Failure);
        let other = proxies(
            "x",
            b"https_proxy=http://u:secret@10.0.0.1:3128\0",
            Some("4001"),
        );
        assert_eq!(other.state, State::Ok);
        assert!(
            other.detail.contains("10.0.0.1:3128") && !other.detail.contains("secret"),
            "{other:?}"
        );
        assert_eq!(proxies("x", b"", None).state, State::Ok);
    }
}
