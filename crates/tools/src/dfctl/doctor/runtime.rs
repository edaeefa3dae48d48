//! Whether the container runtimes of this host pull through the daemon.

use super::finding::Finding;
use crate::dfinit::{Standing, standings};

/// One finding for each containerd.
pub(super) async fn check() -> Vec<Finding> {
    let standings = standings().await.into_iter();
    { standings.map(|(subject, standing)| finding(subject, standing)) }.collect()
}

fn finding(subject: String, standing: Standing) -> Finding {
    match standing {
        Standing::SetUp => Finding::ok("runtime", subject, "pulls through the daemon"),
        Standing::NotSetUp => Finding::skipped(
            "runtime",
            subject,
            "is not set up to pull through the daemon: `dfinit` does that",
        ),
        Standing::RestartDue => Finding::warning(
            "runtime",
            subject,
            "has not been restarted since it was set up, and does not know of it",
            "restart it, or run `dfinit --restart`",
        ),
        Standing::Unclear(reason) => Finding::warning(
            "runtime",
            subject,
            reason,
            "then run `dfinit --dry-run` to see what it would do",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dfctl::doctor::finding::State;

    #[test]
    fn a_host_without_images_is_not_warned() {
        let told = |standing| finding("containerd 1.7.0".into(), standing).state;
        assert_eq!(told(Standing::SetUp), State::Ok);
        assert_eq!(told(Standing::NotSetUp), State::Skipped);
        assert_eq!(told(Standing::RestartDue), State::Warning);
        assert_eq!(told(Standing::Unclear("why".into())), State::Warning);
    }
}
