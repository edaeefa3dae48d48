//! Who is alive: the keepalive streams of schedulers and seed peers.
//!
//! A scheduler opens a stream and sends a heartbeat every 5 s, the first one *after* 5 s. The first heartbeat makes it
//! active, the end of the stream inactive. Four rules make that robust where Dragonfly v2 flickers or forgets:
//!
//! - Each stream is a *session*; only the session that a row names last may switch it off (see db/liveness.rs).
//! - Every heartbeat switches on again, so that a wrong `inactive` lasts one interval.
//! - A stream that falls silent for three intervals is ended here, so a frozen scheduler is noticed in 15 s.
//! - When this manager stops, it leaves the states alone: the schedulers go on with another manager, or with this one after
//!   its restart. If they do not, the upkeep of whoever is left marks them.
//!
//! A stream lives in a task of its own: a broken connection drops the RPC's future, and the end must be written all the same.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use runtime::shutdown::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::db::{Database, DbError, Member, MemberKey, MemberKind, now_ms};
use crate::directory::Directory;

/// What streams may cost and how long they may be silent.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Streams that may be open at once. Each costs a task and a row; a fleet has tens of schedulers.
    pub(crate) streams_max: usize,
    /// Silence after which a stream is ended: this many of its intervals ...
    pub(crate) silence_intervals: u32,
    /// ... but never less than this: the first message comes one interval late.
    pub(crate) silence_min: Duration,
    /// For those who told no interval, and before the first message.
    pub(crate) silence_unknown: Duration,
    /// A stream's heartbeats are written at most this often, however fast they come.
    pub(crate) write_pace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams_max: 10_000,
            silence_intervals: 3,
            silence_min: Duration::from_secs(10),
            silence_unknown: Duration::from_secs(180),
            write_pace: Duration::from_secs(1),
        }
    }
}

/// How often dead rows are looked for, and long dead ones swept.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// How long the database must have been reachable before silence counts: after a start or an outage everybody was silent
/// through no fault of their own and needs an interval or two to be heard again.
const STEADY_FOR: Duration = Duration::from_secs(30);

/// One message of a keepalive stream, checked.
#[derive(Debug, Clone)]
pub(crate) enum Heartbeat {
    /// From a member with a row.
    Member(MemberKey),
    /// From a normal peer, of which nothing is kept.
    Peer,
}

/// How a stream ended, other than by the client's half-close.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamEnd {
    #[error("the manager is stopping: connect again")]
    Stopping,
    #[error("as many keepalive streams as may be are open: try later")]
    TooMany,
    #[error("no heartbeat within {limit:?}: connect again")]
    Silent { limit: Duration },
    #[error("no {kind:?} {hostname:?} in cluster {cluster_id} is registered: register first")]
    Unregistered {
        kind: MemberKind,
        hostname: String,
        cluster_id: i64,
    },
    #[error("the row was deleted while its owner was alive: register again")]
    Vanished,
    #[error("the stream broke: {0}")]
    Broken(String),
    #[error(transparent)]
    Database(#[from] DbError),
}

/// Serves keepalive streams. Clones are the same.
#[derive(Clone)]
pub(crate) struct KeepAlive {
    database: Database,
    directory: Arc<Directory>,
    shutdown: Shutdown,
    places: Arc<Semaphore>,
    limits: Limits,
}

impl KeepAlive {
    pub(crate) fn new(
        database: Database,
        directory: Arc<Directory>,
        shutdown: Shutdown,
        limits: Limits,
    ) -> Self {
        let places = Arc::new(Semaphore::new(limits.streams_max));
        Self {
            database,
            directory,
            shutdown,
            places,
            limits,
        }
    }

    /// Serves one stream to its end; `Ok` when the client half-closed it. May be dropped: the stream's own task goes on
    /// and writes the end.
    pub(crate) async fn serve<S, E>(&self, beats: S) -> Result<(), StreamEnd>
    where
        S: Stream<Item = Result<Heartbeat, E>> + Send + Unpin + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let place = self
            .places
            .clone()
            .try_acquire_owned()
            .map_err(|_| StreamEnd::TooMany)?;
        let this = self.clone();
        let task = self.shutdown.spawn("keepalive stream", async move {
            this.stream(beats, place).await
        });
        task.await
            .unwrap_or_else(|error| Err(StreamEnd::Broken(error.to_string())))
    }

    async fn stream<S, E>(
        &self,
        mut beats: S,
        _place: OwnedSemaphorePermit,
    ) -> Result<(), StreamEnd>
    where
        S: Stream<Item = Result<Heartbeat, E>> + Send + Unpin,
        E: std::fmt::Display,
    {
        let key = match self.next(&mut beats, self.limits.silence_unknown).await? {
            None => return Ok(()),
            Some(Heartbeat::Member(key)) => key,
            Some(Heartbeat::Peer) => {
                while self
                    .next(&mut beats, self.limits.silence_unknown)
                    .await?
                    .is_some()
                {}
                return Ok(());
            }
        };
        let unregistered = || StreamEnd::Unregistered {
            kind: key.kind,
            hostname: key.hostname.clone(),
            cluster_id: key.cluster_id,
        };
        let member = self
            .database
            .find_member(&key)
            .await?
            .ok_or_else(unregistered)?;
        let session = uuid::Uuid::new_v4().to_string();
        if !self.database.member_heard(member, &session).await? {
            return Err(unregistered());
        }
        self.directory.changed();
        info!(kind = ?key.kind, hostname = key.hostname, ip = key.ip, cluster_id = key.cluster_id, "member is active");
        let end = self.follow(&mut beats, member, &session).await;
        if matches!(end, Err(StreamEnd::Stopping)) {
            return end;
        }
        match self.database.member_ended(member, &session).await {
            Ok(true) => {
                let reason = end
                    .as_ref()
                    .err()
                    .map_or_else(|| "half-closed".to_owned(), ToString::to_string);
                info!(kind = ?key.kind, hostname = key.hostname, ip = key.ip, cluster_id = key.cluster_id, reason, "member is inactive");
            }
            Ok(false) => debug!(
                hostname = key.hostname,
                "an older stream ended, a newer one goes on"
            ),
            // It stays active until the upkeep sees its silence.
            Err(error) => {
                warn!(hostname = key.hostname, %error, "the end of a keepalive stream was not written")
            }
        }
        self.directory.changed();
        end
    }

    /// Takes heartbeats until the stream ends.
    async fn follow<S, E>(
        &self,
        beats: &mut S,
        member: Member,
        session: &str,
    ) -> Result<(), StreamEnd>
    where
        S: Stream<Item = Result<Heartbeat, E>> + Send + Unpin,
        E: std::fmt::Display,
    {
        let limit = member
            .interval
            .map_or(self.limits.silence_unknown, |interval| {
                (interval * self.limits.silence_intervals).max(self.limits.silence_min)
            });
        let mut written_at = Instant::now();
        while self.next(beats, limit).await?.is_some() {
            if written_at.elapsed() < self.limits.write_pace {
                continue;
            }
            written_at = Instant::now();
            match self.database.member_heard(member, session).await {
                Ok(true) => {}
                Ok(false) => return Err(StreamEnd::Vanished),
                // The next heartbeat writes it; meanwhile nobody else can expire the row either.
                Err(error) => warn!(row_id = member.row_id, %error, "a heartbeat was not written"),
            }
        }
        Ok(())
    }

    /// The next message; `None` when the client half-closed.
    async fn next<S, E>(
        &self,
        beats: &mut S,
        limit: Duration,
    ) -> Result<Option<Heartbeat>, StreamEnd>
    where
        S: Stream<Item = Result<Heartbeat, E>> + Send + Unpin,
        E: std::fmt::Display,
    {
        tokio::select! {
            biased;
            () = self.shutdown.begun() => Err(StreamEnd::Stopping),
            next = tokio::time::timeout(limit, beats.next()) => match next {
                Err(_) => Err(StreamEnd::Silent { limit }),
                Ok(None) => Ok(None),
                Ok(Some(Ok(beat))) => Ok(Some(beat)),
                Ok(Some(Err(error))) => Err(StreamEnd::Broken(error.to_string())),
            },
        }
    }
}

/// Starts the loop that marks the dead and sweeps the long dead. Every manager on a database runs it; they do not disturb
/// each other.
pub(crate) fn spawn_upkeep(database: Database, directory: Arc<Directory>, shutdown: &Shutdown) {
    shutdown.spawn_until_begun("member upkeep", async move {
        let mut tick = tokio::time::interval(EXPIRE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut steady_since: Option<Instant> = None;
        let mut swept_at = Instant::now();
        loop {
            let now = tick.tick().await;
            if let Err(error) = database.ping().await {
                if steady_since.take().is_some() {
                    warn!(%error, "database lost");
                }
                continue;
            }
            if now.duration_since(*steady_since.get_or_insert(now)) < STEADY_FOR {
                continue;
            }
            let sweep = now.duration_since(swept_at) >= SWEEP_EVERY;
            if sweep {
                swept_at = now;
            }
            if let Err(error) = upkeep(&database, &directory, sweep).await {
                warn!(%error, "member upkeep did not finish, it is repeated");
            }
        }
    });
}

async fn upkeep(database: &Database, directory: &Directory, sweep: bool) -> Result<(), DbError> {
    for kind in MemberKind::ALL {
        let expired = database.expire_members(kind, now_ms()).await?;
        if expired > 0 {
            info!(
                ?kind,
                count = expired,
                "members marked inactive: not heard from"
            );
        }
        let (forgotten, deleted) = if sweep {
            database.sweep_members(kind, now_ms()).await?
        } else {
            (0, 0)
        };
        if forgotten + deleted > 0 {
            info!(?kind, forgotten, deleted, "long inactive members swept");
        }
        if expired + forgotten + deleted > 0 {
            directory.changed();
        }
    }
    Ok(())
}
