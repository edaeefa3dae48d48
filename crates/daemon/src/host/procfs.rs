//! Readers of `/proc` and its like. What cannot be read counts as zero or empty: figures inform, nothing depends on
//! them.

use std::collections::BTreeSet;
use std::fs;

/// Processor time since boot, in ticks, over all processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CpuTicks {
    pub(super) total: u64,
    pub(super) busy: u64,
}

/// Bytes that this process caused to be read from and written to disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ProcessIo {
    pub(super) read_bytes: u64,
    pub(super) write_bytes: u64,
}

/// Memory of the machine in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) total: u64,
    pub(super) available: u64,
    pub(super) free: u64,
}

pub(super) fn cpu_ticks() -> CpuTicks {
    parse_cpu_ticks(&text("/proc/stat"))
}

pub(super) fn process_ticks() -> u64 {
    parse_process_ticks(&text("/proc/self/stat"))
}

pub(super) fn process_io() -> ProcessIo {
    let text = text("/proc/self/io");
    ProcessIo {
        read_bytes: field(&text, "read_bytes"),
        write_bytes: field(&text, "write_bytes"),
    }
}

pub(super) fn memory() -> Memory {
    let text = text("/proc/meminfo");
    let bytes = |name| field(&text, name).saturating_mul(1024);
    Memory {
        total: bytes("MemTotal"),
        available: bytes("MemAvailable"),
        free: bytes("MemFree"),
    }
}

/// Memory of this process that is in RAM, in bytes.
pub(super) fn resident_bytes() -> u64 {
    field(&text("/proc/self/status"), "VmRSS").saturating_mul(1024)
}

/// `6.12.0-1-amd64`.
pub(super) fn kernel_release() -> String {
    line("/proc/sys/kernel/osrelease")
}

/// The distribution's version, such as `13`.
pub(super) fn os_version() -> String {
    parse_os_version(&text("/etc/os-release"))
}

/// Distinct cores over all sockets; `None` where the kernel does not tell.
pub(super) fn physical_cores() -> Option<u32> {
    let mut cores = BTreeSet::new();
    for entry in fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let topology = entry.path().join("topology");
        let id = |name: &str| fs::read_to_string(topology.join(name)).ok();
        if let (Some(package), Some(core)) = (id("physical_package_id"), id("core_id")) {
            cores.insert((package, core));
        }
    }
    u32::try_from(cores.len()).ok().filter(|count| *count > 0)
}

/// The content of a one-line file, without its end.
pub(super) fn line(path: &str) -> String {
    text(path).trim().to_owned()
}

pub(super) fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number behind `name:` at the start of a line.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// First line of `/proc/stat`: user nice system idle iowait irq softirq steal (guest is inside user).
fn parse_cpu_ticks(text: &str) -> CpuTicks {
    let ticks: Vec<u64> = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("cpu "))
        .map(|rest| {
            rest.split_whitespace()
                .take(8)
                .filter_map(|tick| tick.parse().ok())
                .collect()
        })
        .unwrap_or_default();
    let total: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    CpuTicks {
        total,
        busy: total.saturating_sub(idle),
    }
}

/// utime and stime of `/proc/<pid>/stat`, the 12th and 13th field behind the command's closing bracket.
fn parse_process_ticks(text: &str) -> u64 {
    let Some((_, rest)) = text.rsplit_once(')') else {
        return 0;
    };
    rest.split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|tick| tick.parse::<u64>().ok())
        .sum()
}

fn parse_os_version(text: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_ID="))
        .map(|value| value.trim_matches('"').to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let stat = "cpu  10 1 4 80 5 0 0 0 3 0\ncpu0 1 1 1 1\n";
        assert_eq!(
            parse_cpu_ticks(stat),
            CpuTicks {
                total: 100,
                busy: 15
            }
        );
        assert_eq!(parse_cpu_ticks(""), CpuTicks::default());
        let process = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 77 23 0 0 20";
        assert_eq!(parse_process_ticks(process), 100);
        assert_eq!(field("MemTotal:  24 kB\nMemFree: x kB\n", "MemTotal"), 24);
        assert_eq!(field("MemFree: x kB\n", "MemFree"), 0);
        assert_eq!(parse_os_version("ID=debian\nVERSION_ID=\"13\"\n"), "13");
    }

    #[test]
    fn this_machine_answers() {
        assert!(cpu_ticks().total > 0);
        assert!(resident_bytes() > 1 << 20);
        assert!(memory().total > 0);
    }
}
