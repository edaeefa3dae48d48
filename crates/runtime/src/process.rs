//! What a process uses: resident memory and processor time, as the kernel counts them (Linux, proc(5)).

use std::time::Duration;

/// The figures of one process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Resident memory now, bytes.
    pub rss_bytes: u64,
    /// The most resident memory so far, bytes.
    pub rss_bytes_max: u64,
    /// Processor time in user and kernel mode so far, of all threads; steps of 10 ms.
    pub cpu: Duration,
}

/// The figures of this process; `None` if the system does not tell.
pub fn own() -> Option<Figures> {
    read("self")
}

/// The figures of process `pid`; `None` if it is gone or the system does not tell.
pub fn of(pid: u32) -> Option<Figures> {
    read(&pid.to_string())
}

fn read(process: &str) -> Option<Figures> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(Figures {
        rss_bytes: kib_of(&status, "VmRSS:")? * 1024,
        rss_bytes_max: kib_of(&status, "VmHWM:")? * 1024,
        cpu: cpu_of(&stat)?,
    })
}

/// A line of `/proc/PID/status` such as `VmRSS:     1234 kB`.
fn kib_of(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Fields 14 and 15 of `/proc/PID/stat` (utime, stime) in ticks; the name in field 2 may itself hold spaces and brackets.
fn cpu_of(stat: &str) -> Option<Duration> {
    /// `USER_HZ`, which is 100 on every architecture that Linux shows to user space today.
    const TICK: Duration = Duration::from_millis(10);
    let mut fields = stat[stat.rfind(')')? + 1..]
        .split_ascii_whitespace()
        .skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let kernel: u32 = fields.next()?.parse().ok()?;
    Some(TICK * user.saturating_add(kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_figures_are_plausible() {
        let figures = own().unwrap();
        assert!(
            figures.rss_bytes > 1024 * 100 && figures.rss_bytes_max >= figures.rss_bytes / 2,
            "{figures:?}"
        );
        assert_eq!(of(u32::MAX), None);
    }

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "1 (a) b (c) S 1 1 1 0 -1 4194560 1 1 1 1 12 30 0 0 20 0 1 0 1 1 1";
        assert_eq!(cpu_of(stat), Some(Duration::from_millis(420)));
    }
}
