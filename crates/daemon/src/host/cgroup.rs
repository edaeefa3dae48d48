//! The limits of a container, from cgroup v2. Hosts that still run cgroup v1 announce no container figures.

use std::path::Path;
use std::time::Duration;

use dragonfly_api::common::v2;

use super::percent;
use super::procfs::{line, text};

const CPU_MAX: &str = "/sys/fs/cgroup/cpu.max";
const CPU_STAT: &str = "/sys/fs/cgroup/cpu.stat";
const MEMORY_MAX: &str = "/sys/fs/cgroup/memory.max";
const MEMORY_STAT: &str = "/sys/fs/cgroup/memory.stat";

/// Whether this process runs in a container, by the signs that Dragonfly v2 goes by.
pub(super) fn in_container() -> bool {
    const VARIABLES: [&str; 4] = [
        "KUBERNETES_SERVICE_HOST",
        "DOCKER_CONTAINER",
        "container",
        "PODMAN_CONTAINER",
    ];
    const RUNTIMES: [&str; 5] = ["docker", "containerd", "podman", "lxc", "kubepods"];
    Path::new("/.dockerenv").exists()
        || VARIABLES
            .iter()
            .any(|name| std::env::var_os(name).is_some())
        || {
            let groups = text("/proc/self/cgroup");
            RUNTIMES.iter().any(|name| groups.contains(name))
        }
}

/// Processor time that the container used since it was made, in microseconds.
pub(super) fn cpu_usage_usec() -> Option<u64> {
    value_of(&text(CPU_STAT), "usage_usec")
}

/// The container's processor quota, and its use given the microseconds used within a span.
pub(super) fn cpu(used: Option<(u64, Duration)>) -> Option<v2::CgroupCpu> {
    let (quota, period) = parse_cpu_max(&line(CPU_MAX))?;
    let used_percent = match (used, u64::try_from(quota)) {
        (Some((usec, span)), Ok(quota)) if quota > 0 && period > 0 => {
            let span = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
            percent(usec, (span / period).max(1).saturating_mul(quota))
        }
        _ => 0.0,
    };
    Some(v2::CgroupCpu {
        period,
        quota,
        used_percent,
    })
}

/// The container's memory limit (-1 for none) and its anonymous memory.
pub(super) fn memory() -> Option<v2::CgroupMemory> {
    let usage = value_of(&text(MEMORY_STAT), "anon")?;
    let limit = parse_limit(&line(MEMORY_MAX))?;
    Some(v2::CgroupMemory {
        limit,
        usage,
        used_percent: u64::try_from(limit).map_or(0.0, |limit| percent(usage, limit)),
    })
}

/// `max 100000` or `150000 100000`: quota (-1 for none) and period in microseconds.
fn parse_cpu_max(line: &str) -> Option<(i64, u64)> {
    let (quota, period) = line.split_once(' ')?;
    Some((parse_limit(quota)?, period.parse().ok()?))
}

fn parse_limit(text: &str) -> Option<i64> {
    if text == "max" {
        Some(-1)
    } else {
        text.parse().ok()
    }
}

fn value_of(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_understood() {
        assert_eq!(parse_cpu_max("max 100000"), Some((-1, 100_000)));
        assert_eq!(parse_cpu_max("150000 100000"), Some((150_000, 100_000)));
        assert_eq!(parse_cpu_max(""), None);
        assert_eq!(parse_limit("1073741824"), Some(1_073_741_824));
        assert_eq!(value_of("anon 12\nanon_thp 5\n", "anon"), Some(12));
        assert_eq!(value_of("anon_thp 5\n", "anon"), None);
    }
}
