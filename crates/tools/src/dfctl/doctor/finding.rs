//! What a check found.

use serde::Serialize;

use crate::table;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Which check: `socket`, `daemon`, `port`, `proxy`, `manager`, `scheduler`, `clock`, `disk`, `process`, `runtime`.
    pub(super) check: &'static str,
    /// What it was about.
    pub(super) subject: String,
    pub(super) state: State,
    /// What was found.
    pub(super) detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// It does not work.
    Failure,
    /// It could not be looked at; the detail says why.
    Skipped,
}

impl Finding {
    pub(super) fn ok(
        check: &'static str,
        subject: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self::of(State::Ok, check, subject.into(), detail.into(), None)
    }

    pub(super) fn skipped(
        check: &'static str,
        subject: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self::of(State::Skipped, check, subject.into(), why.into(), None)
    }

    pub(super) fn warning(
        check: &'static str,
        subject: impl Into<String>,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let fix = Some(fix.into());
        Self::of(State::Warning, check, subject.into(), detail.into(), fix)
    }

    pub(super) fn failure(
        check: &'static str,
        subject: impl Into<String>,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let fix = Some(fix.into());
        Self::of(State::Failure, check, subject.into(), detail.into(), fix)
    }

    fn of(
        state: State,
        check: &'static str,
        subject: String,
        detail: String,
        fix: Option<String>,
    ) -> Self {
        Self {
            check,
            subject: table::harmless(&subject),
            state,
            detail: table::harmless(&detail),
            fix,
        }
    }

    /// One line, and a second one if there is something to do.
    pub(super) fn lines(&self) -> String {
        let mark = match self.state {
            State::Ok => "ok  ",
            State::Warning => "WARN",
            State::Failure => "FAIL",
            State::Skipped => "-   ",
        };
        let mut lines = format!(
            "{mark}  {:<9}  {}: {}",
            self.check, self.subject, self.detail
        );
        if let Some(fix) = &self.fix {
            lines.push_str(&format!("\n      {:<9}  fix: {fix}", ""));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_mark_and_says_what_to_do() {
        let finding = Finding::failure("port", "upload", "nobody answers", "restart it");
        assert_eq!(
            finding.lines(),
            "FAIL  port       upload: nobody answers\n                 fix: restart it"
        );
        assert_eq!(
            serde_json::to_string(&Finding::ok("port", "a", "b")).unwrap(),
            r#"{"check":"port","subject":"a","state":"ok","detail":"b"}"#
        );
    }
}
