//! The manager and the schedulers, as the daemon reaches them, and their clocks.

use api::local::neighbour::Kind;
use api::local::{DescribeDaemonResponse, Neighbour};

use super::finding::Finding;

/// Clocks that differ by this much confuse times in logs and tables, in seconds.
const SKEW_WARNING: f64 = 5.0;
/// And from here on certificates and tokens may be refused, in seconds.
const SKEW_FAILURE: f64 = 60.0;
/// A health check that takes longer makes every download wait, in microseconds.
const SLOW_US: u64 = 500_000;

pub(super) fn check(daemon: &DescribeDaemonResponse) -> Vec<Finding> {
    let neighbours = &daemon.neighbours;
    let mut findings: Vec<Finding> = neighbours.iter().map(reach).collect();
    let schedulers = neighbours
        .iter()
        .filter(|neighbour| neighbour.kind() == Kind::Scheduler);
    if schedulers.count() == 0 {
        findings.push(Finding::failure(
            "scheduler",
            "schedulers",
            format!("none is known from {}", daemon.dynconfig),
            "register a scheduler at the manager (`dragonfly scheduler`), or name one in the dynconfig file; until then every host reads the origin",
        ));
    }
    findings.extend(neighbours.iter().filter_map(clock));
    findings
}

fn names(neighbour: &Neighbour) -> (&'static str, String) {
    let check = match neighbour.kind() {
        Kind::Manager => "manager",
        _ => "scheduler",
    };
    let named = !neighbour.name.is_empty() && neighbour.name != neighbour.address;
    match named {
        true => (check, format!("{} ({})", neighbour.address, neighbour.name)),
        false => (check, neighbour.address.clone()),
    }
}

fn reach(neighbour: &Neighbour) -> Finding {
    let (check, subject) = names(neighbour);
    let took =
        humantime::format_duration(std::time::Duration::from_micros(neighbour.round_trip_us));
    match neighbour.serving {
        Some(true) if neighbour.round_trip_us > SLOW_US => Finding::warning(
            check,
            subject,
            format!("serves, but took {took} to say so"),
            "look at the network between, and at its load",
        ),
        Some(true) => Finding::ok(check, subject, format!("serves ({took})")),
        Some(false) => Finding::failure(
            check,
            subject,
            format!("the daemon does not reach it: {}", neighbour.trouble),
            "is it running, is the address right, is there a firewall between, do the certificates fit?",
        ),
        None => Finding::skipped(check, subject, "not asked"),
    }
}

/// How far its clock is from the daemon's, if it tells.
fn clock(neighbour: &Neighbour) -> Option<Finding> {
    if neighbour.serving != Some(true) {
        return None;
    }
    let (kind, subject) = names(neighbour);
    let subject = format!("{kind} {subject}");
    let Some(theirs) = neighbour.its_time else {
        return Some(Finding::skipped(
            "clock",
            subject,
            "it does not tell its time",
        ));
    };
    let skew = skew_seconds(theirs, neighbour.asked_at, neighbour.round_trip_us);
    let detail = match skew {
        0.0 => "the same time as here".to_owned(),
        ahead if ahead > 0.0 => format!("{ahead:.1} s ahead of this host"),
        behind => format!("{:.1} s behind this host", -behind),
    };
    let fix = "let both hosts take their time from the network (chrony, systemd-timesyncd)";
    Some(match skew.abs() {
        skew if skew >= SKEW_FAILURE => Finding::failure("clock", subject, detail, fix),
        skew if skew >= SKEW_WARNING => Finding::warning("clock", subject, detail, fix),
        _ => Finding::ok("clock", subject, detail),
    })
}

/// By how much their clock must differ at least: their time was told in whole seconds, at some moment of the round trip.
fn skew_seconds(theirs_ms: u64, answered_ms: u64, round_trip_us: u64) -> f64 {
    let asked_ms = answered_ms.saturating_sub(round_trip_us.div_ceil(1000));
    let ms = match theirs_ms {
        theirs if theirs > answered_ms => i64::try_from(theirs - answered_ms).unwrap_or(i64::MAX),
        theirs if theirs.saturating_add(1000) < asked_ms => {
            -i64::try_from(asked_ms - theirs - 1000).unwrap_or(i64::MAX)
        }
        _ => 0,
    };
    std::time::Duration::from_millis(ms.unsigned_abs()).as_secs_f64()
        * if ms < 0 { -1.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    fn scheduler(its_time: Option<u64>) -> Neighbour {
        Neighbour {
            kind: Kind::Scheduler.into(),
            name: "s1".into(),
            address: "10.0.0.5:8002".into(),
            serving: Some(true),
            round_trip_us: 900,
            asked_at: 1_000_000_500,
            its_time,
            ..Neighbour::default()
        }
    }

    #[test]
    fn clocks_are_compared_as_far_as_they_are_told() {
        for (its_time, state, told) in [
            (None, State::Skipped, "does not tell"),
            (Some(1_000_000_000), State::Ok, "the same time"),
            (Some(1_000_003_000), State::Ok, "2.5 s ahead"),
            (Some(1_000_010_000), State::Warning, "9.5 s ahead"),
            (Some(999_900_000), State::Failure, "99.5 s behind"),
        ] {
            let finding = clock(&scheduler(its_time)).unwrap();
            assert_eq!(finding.state, state, "{finding:?}");
            assert!(finding.detail.contains(told), "{finding:?}");
        }
    }

    #[test]
    fn who_is_not_reached_is_a_failure_and_so_is_nobody() {
        let silent = Neighbour {
            serving: Some(false),
            trouble: "connection refused".into(),
            ..scheduler(None)
        };
        let daemon = DescribeDaemonResponse {
            neighbours: vec![silent],
            ..DescribeDaemonResponse::default()
        };
        let findings = check(&daemon);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].state, State::Failure);
        assert!(findings[0].detail.contains("connection refused"));
        let findings = check(&DescribeDaemonResponse::default());
        assert_eq!(findings[0].state, State::Failure, "{findings:?}");
    }
}
