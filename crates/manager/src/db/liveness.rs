//! Who is heard from: the statements behind keepalive, the same for schedulers and seed peers.
//!
//! A row's `state` is vouched for by one keepalive stream, named in `keep_alive_session`. Every heartbeat of a stream
//! takes the row over and makes it active; the end of a stream makes it inactive only if the row still names that
//! stream. So the late end of an old stream, perhaps on another manager, cannot switch off what a newer one switched on.
//!
//! Rows long silent are first forgotten (`is_del = 1`: no answer shows them) and only much later deleted. A scheduler
//! registers once, at its start, and then only sends heartbeats; if its row were deleted during a long network cut it
//! would stay unknown until somebody restarts it. A heartbeat brings a forgotten row back.

use std::time::Duration;

use super::{Database, DbError, now_ms, sql};

/// Silence after which a row whose owner told its interval counts as dead: this many intervals. Twice what a live
/// stream is allowed (see keepalive.rs), because the clocks of two managers are compared here.
const EXPIRY_INTERVALS: i64 = 6;
/// The interval assumed of those who told none.
const INTERVAL_UNKNOWN_MS: i64 = 60_000;
/// No row expires faster than this, whatever its interval: room for clocks that differ between managers.
const EXPIRY_MIN_MS: i64 = 30_000;
/// How long an inactive row stays visible (Dragonfly v2: 30 min).
const FORGET_AFTER: Duration = Duration::from_secs(30 * 60);
/// How long a forgotten row can come back.
const DELETE_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// The two kinds of member that keep themselves alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberKind {
    Scheduler,
    SeedPeer,
}

/// A member's natural key with its kind's cluster id in plain form.
#[derive(Debug, Clone)]
pub(crate) struct MemberKey {
    pub(crate) kind: MemberKind,
    pub(crate) hostname: String,
    /// Empty matches any.
    pub(crate) ip: String,
    pub(crate) cluster_id: i64,
}

/// A member's row, as keepalive needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) kind: MemberKind,
    pub(crate) row_id: i64,
    /// How often it said it would be heard.
    pub(crate) interval: Option<Duration>,
}

struct Statements {
    find: &'static str,
    beat: &'static str,
    end: &'static str,
    expire: &'static str,
    forget: &'static str,
    delete: &'static str,
}

macro_rules! statements {
    ($table:literal, $cluster:literal) => {
        Statements {
            find: concat!(
                "SELECT id, keep_alive_interval_ms FROM ", $table,
                " WHERE host_name = ? AND ", $cluster, " = ? AND (ip = ? OR ? = '') ORDER BY is_del, id LIMIT 1"
            ),
            beat: concat!(
                "UPDATE ", $table, " SET state = 'active', is_del = 0, keep_alive_session = ?,",
                " last_keep_alive_at = ?, updated_at = ? WHERE id = ?"
            ),
            end: concat!(
                "UPDATE ", $table, " SET state = 'inactive', updated_at = ? WHERE id = ? AND keep_alive_session = ?"
            ),
            expire: concat!(
                "UPDATE ", $table, " SET state = 'inactive', updated_at = ? WHERE state = 'active'",
                " AND last_keep_alive_at < ? AND last_keep_alive_at + COALESCE(keep_alive_interval_ms, ?) * ? < ?"
            ),
            forget: concat!(
                "UPDATE ", $table, " SET is_del = 1 WHERE is_del = 0 AND state = 'inactive' AND updated_at < ?"
            ),
            delete: concat!("DELETE FROM ", $table, " WHERE is_del = 1 AND updated_at < ?"),
        }
    };
}

const SCHEDULER: Statements = statements!("scheduler", "scheduler_cluster_id");
const SEED_PEER: Statements = statements!("seed_peer", "seed_peer_cluster_id");

impl MemberKind {
    pub(crate) const ALL: [Self; 2] = [Self::Scheduler, Self::SeedPeer];

    fn statements(self) -> &'static Statements {
        match self {
            Self::Scheduler => &SCHEDULER,
            Self::SeedPeer => &SEED_PEER,
        }
    }
}

impl Database {
    /// Finds the row of a member; forgotten ones count, after the others.
    pub(crate) async fn find_member(&self, key: &MemberKey) -> Result<Option<Member>, DbError> {
        let query = sql(key.kind.statements().find)
            .bind(key.hostname.as_str())
            .bind(key.cluster_id)
            .bind(key.ip.as_str())
            .bind(key.ip.as_str());
        let rows = self.fetch(query).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let interval_ms: Option<i64> = row.get("keep_alive_interval_ms")?;
        let interval = interval_ms
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis);
        Ok(Some(Member {
            kind: key.kind,
            row_id: row.get("id")?,
            interval,
        }))
    }

    /// Heard from: active now, vouched for by `session`. False if the row is gone.
    pub(crate) async fn member_heard(
        &self,
        member: Member,
        session: &str,
    ) -> Result<bool, DbError> {
        let now = now_ms();
        let beat = sql(member.kind.statements().beat)
            .bind(session)
            .bind(now)
            .bind(now)
            .bind(member.row_id);
        Ok(self.execute(beat).await? > 0)
    }

    /// The stream ended: inactive, unless another stream has taken the row over. True if the state was written.
    pub(crate) async fn member_ended(
        &self,
        member: Member,
        session: &str,
    ) -> Result<bool, DbError> {
        let end = sql(member.kind.statements().end)
            .bind(now_ms())
            .bind(member.row_id)
            .bind(session);
        Ok(self.execute(end).await? > 0)
    }

    /// Marks as inactive those whose stream ended without anybody noticing, because its manager died. Rows that never
    /// had a stream are left alone: a client up to 1.0.10 registers its seed and sends no heartbeats. Returns how many.
    pub(crate) async fn expire_members(&self, kind: MemberKind, now: i64) -> Result<u64, DbError> {
        let expire = sql(kind.statements().expire)
            .bind(now)
            .bind(now - EXPIRY_MIN_MS)
            .bind(INTERVAL_UNKNOWN_MS)
            .bind(EXPIRY_INTERVALS)
            .bind(now);
        self.execute(expire).await
    }

    /// Forgets rows that have long been inactive, deletes those long forgotten. Returns how many of each.
    pub(crate) async fn sweep_members(
        &self,
        kind: MemberKind,
        now: i64,
    ) -> Result<(u64, u64), DbError> {
        let before = |age: Duration| now - i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let forgotten = self
            .execute(sql(kind.statements().forget).bind(before(FORGET_AFTER)))
            .await?;
        let deleted = self
            .execute(sql(kind.statements().delete).bind(before(DELETE_AFTER)))
            .await?;
        Ok((forgotten, deleted))
    }
}
