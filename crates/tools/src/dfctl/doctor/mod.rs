//! `dfctl doctor`: checks this host and the way to its neighbours, and says what to mend.
//!
//! The daemon tells where it listens and whether it reaches its manager and schedulers, with its own certificates; everything else
//! is looked at from here, as a user of the daemon would find it. Nothing is changed, nothing is sent beyond this host. Each check is a
//! function that returns [`Finding`]s; none waits longer than a few seconds.

mod disk;
mod finding;
mod neighbours;
mod ports;
mod process;
mod runtime;
mod socket;

use clap::Args;
use serde::Serialize;

use crate::connection::DaemonArguments;
use crate::failure::Failure;
use crate::logging::LogArguments;
use crate::program::{Report, Told};
use finding::{Finding, State};

/// Checks this host and the way to its neighbours, and says what to mend.
#[derive(Debug, Clone, Args)]
pub struct Doctor {
    #[command(flatten)]
    daemon: DaemonArguments,
    #[command(flatten)]
    logs: LogArguments,
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    failures: usize,
    warnings: usize,
    checks: Vec<Finding>,
}

impl Doctor {
    pub(super) async fn run(self) -> Result<Told, Failure> {
        let reached = socket::check(&self.daemon.endpoint).await;
        let mut checks = reached.findings;
        match &reached.daemon {
            Some(daemon) => {
                checks.extend(ports::served(daemon).await);
                checks.extend(neighbours::check(daemon));
                checks.extend(disk::check(daemon));
            }
            None => checks.extend(ports::usual()),
        }
        if let Some(pid) = reached.pid {
            checks.extend(process::check(pid, reached.daemon.as_ref()));
        }
        checks.extend(runtime::check().await);
        let count = |state| checks.iter().filter(|check| check.state == state).count();
        let diagnosis = Diagnosis {
            failures: count(State::Failure),
            warnings: count(State::Warning),
            checks,
        };
        let exit_code = u8::from(diagnosis.failures > 0);
        Ok(Told::with_exit_code(&diagnosis, exit_code))
    }
}

impl Report for Diagnosis {
    fn text(&self) -> String {
        let mut lines: Vec<String> = self.checks.iter().map(Finding::lines).collect();
        lines.push(format!(
            "{} checks, {} failures, {} warnings",
            self.checks.len(),
            self.failures,
            self.warnings
        ));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::assert_golden;

    #[test]
    fn the_json_has_its_fields() {
        let diagnosis = Diagnosis {
            failures: 1,
            warnings: 0,
            checks: vec![
                Finding::ok("port", "upload 10.0.0.1:4000", "accepts connections"),
                Finding::failure("scheduler", "10.0.0.5:8002", "refused", "start it"),
                Finding::skipped("clock", "scheduler 10.0.0.5:8002", "not told"),
            ],
        };
        assert_golden("doctor", Told::with_exit_code(&diagnosis, 1).json());
        assert!(
            diagnosis
                .text()
                .ends_with("3 checks, 1 failures, 0 warnings")
        );
    }
}
