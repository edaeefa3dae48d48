//! The manager against real databases and through real gRPC clients.
//!
//! Each case is written once and runs on SQLite, on a PostgreSQL and on a MariaDB that the test starts itself.

mod clients;
mod data;
mod expiry;
mod grpc;
mod outage;
mod process;
mod replicas;
mod servers;
mod startup;
mod streams;

use std::future::Future;
use std::time::Duration;

use servers::{Backend, Kind};

/// Runs each case on a database of its own.
macro_rules! cases {
    ($backend:expr; $($case:path),+ $(,)?) => {$(
        let name = stringify!($case);
        eprintln!("{}: {name}", $backend.kind());
        let url = $backend.new_database().await;
        // Boxed: all the cases' futures together are too much for a test's stack.
        within(CASE_LIMIT, name, Box::pin($case(&$backend, url))).await;
    )+};
}

/// No case takes longer on a busy machine.
const CASE_LIMIT: Duration = Duration::from_secs(90);

async fn within(limit: Duration, what: &str, work: impl Future<Output = ()>) {
    if tokio::time::timeout(limit, work).await.is_err() {
        panic!("{what} was not done within {limit:?}");
    }
}

/// Waits until `probe` gives something, asking again and again.
async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "never came true: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn all_cases(kind: Kind) {
    let backend = Backend::start(kind).await;
    cases!(backend;
        data::an_empty_database_is_migrated_and_seeded_once,
        data::managers_that_start_together_take_turns,
        data::foreign_and_newer_schemas_are_refused,
        data::clusters_get_ids_after_the_seeded_one,
        data::a_scheduler_registers_and_registers_again,
        data::a_seed_peer_registers_and_leaves,
        data::many_registrations_of_one_host_leave_one_row,
        data::json_and_text_come_back_as_written,
        data::names_are_unique_and_mind_their_case,
        expiry::only_the_last_session_switches_off,
        expiry::sessions_race_and_the_last_one_wins,
        expiry::silence_expires_those_who_promised_to_be_heard,
        expiry::the_long_silent_are_forgotten_come_back_or_are_deleted,
        grpc::health_and_reflection_answer,
        grpc::a_scheduler_lives_through_its_day,
        grpc::a_daemon_finds_its_schedulers,
        grpc::a_seed_peer_of_an_old_client_lives_through_its_day,
        grpc::priorities_of_applications_arrive,
        replicas::two_managers_share_a_database,
        replicas::a_late_end_on_one_manager_does_not_undo_the_other,
        streams::a_silent_stream_ends_and_its_member_is_inactive,
        streams::a_deleted_member_hears_of_it,
        streams::places_for_streams_are_limited_and_given_back,
        startup::a_start_waits_for_its_database,
        startup::a_database_that_lets_nobody_in_is_told_at_once,
        outage::the_database_goes_away_and_comes_back,
        outage::a_frozen_database_holds_nobody_up,
    );
    backend.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite() {
    all_cases(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() {
    all_cases(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() {
    all_cases(Kind::MariaDb).await;
}
