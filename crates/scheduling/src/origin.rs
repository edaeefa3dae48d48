//! Who reads the origin: one peer of a task at a time, while it makes progress.
//!
//! A seed peer is asked first, if there is one; else the first peer that needs the content reads it, and the others wait
//! for it and fetch from it. The right to read is a lease: whoever has it must begin soon, and go on. If the reader fails,
//! leaves, loses its stream or falls silent while others wait, exactly one next reader is appointed, at once. What the
//! origin answers to a reader, such as a 404, is passed on to those who would otherwise ask the same question.
//!
//! A reader that is slow is not replaced: the silence that is allowed grows with the reader's own pace and with every
//! replacement, so that a slow origin never ends up with a crowd of readers.

use std::time::Duration;

use protocol::TaskKind;

use crate::core::Core;
use crate::message::{Answer, BackToSourceReason, Reach, Refusal, SourceFailure, TriggerFailure};
use crate::model::{PeerKey, Task, TaskKey, Time};
use crate::states::TaskEvent;

/// Readers that may fail in a row before their peers are told that the origin does not work.
const FAILED_READERS_MAX: u32 = 3;

/// How long ago a reader must have been heard for somebody's complaint about it to count.
const COMPLAINT_SILENCE: Duration = Duration::from_secs(1);

/// The slowest origin that is waited for without a word: 4 MiB/s for the pieces that a reader asks for first.
const SLOW_ORIGIN_BYTES_PER_SECOND: u64 = 4 << 20;

/// The longest time that is allowed for the first pieces on top of the usual silence.
const FIRST_PIECES_MAX: Duration = Duration::from_secs(30);

/// A peer that may read the origin.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) peer: PeerKey,
    pub(crate) phase: Phase,
}

/// How far a reader has come.
#[derive(Debug)]
pub(crate) enum Phase {
    /// It was told to, and has not begun.
    Told { since: Time },
    /// It reads.
    Reading {
        /// When it last gave a sign of progress.
        heard: Time,
        /// The longest time between two of its pieces.
        gap_max: Duration,
        /// It has reported a piece.
        has_pieces: bool,
        /// It was silent for too long, and not heard since.
        silent: bool,
    },
}

/// What the origin answered, for the peers that had registered by then.
#[derive(Debug)]
pub(crate) struct Verdict {
    failure: SourceFailure,
    at: Time,
    /// Whom it is for; everybody if `None`.
    credentials: Option<u64>,
}

impl<T> Task<T> {
    /// Whether `key` reads the origin and was silent for too long.
    pub(crate) fn is_silent(&self, key: PeerKey) -> bool {
        self.readers.iter().any(|reader| {
            reader.peer == key && matches!(reader.phase, Phase::Reading { silent: true, .. })
        })
    }

    /// Whether `key` has begun to read the origin.
    pub(crate) fn is_reading(&self, key: PeerKey) -> bool {
        self.readers
            .iter()
            .any(|reader| reader.peer == key && matches!(reader.phase, Phase::Reading { .. }))
    }

    /// Whether `key` has the lease.
    pub(crate) fn is_reader(&self, key: PeerKey) -> bool {
        self.readers.iter().any(|reader| reader.peer == key)
    }
}

impl<H, T> Core<H, T> {
    /// Whether somebody who reads the origin, or is about to, will be able to serve `key`.
    pub(crate) fn has_hope(&self, key: PeerKey) -> bool {
        let peer = &self.peers[key];
        let task = &self.tasks[peer.task];
        let asked = task.trigger.as_ref().is_some_and(|trigger| {
            trigger.host != peer.host
                && self
                    .hosts
                    .get(trigger.host)
                    .is_some_and(|host| !host.disable_shared)
        });
        asked
            || task.readers.iter().any(|reader| {
                reader.peer != key
                    && !matches!(reader.phase, Phase::Reading { silent: true, .. })
                    && self.may_meet(reader.peer, key)
            })
    }

    /// Whether somebody has the whole content and may be asked by `key`.
    pub(crate) fn has_holder(&self, key: PeerKey) -> bool {
        let task = &self.tasks[self.peers[key].task];
        task.holders.iter().any(|other| self.may_meet(*other, key))
    }

    /// Whether `key` may be sent to the origin.
    pub(crate) fn may_read(&self, key: PeerKey) -> bool {
        let peer = &self.peers[key];
        let task = &self.tasks[peer.task];
        let room = task.readers.len() <= self.policy.back_to_source_limit as usize;
        !peer.origin_forbidden
            && peer.stream.is_some()
            && task.kind != TaskKind::PersistentCache
            && room
    }

    /// Sends `key` to the origin.
    pub(crate) fn appoint(&mut self, now: Time, key: PeerKey, reason: BackToSourceReason) {
        let task = self.peers[key].task;
        let readers = &mut self.tasks[task].readers;
        readers.retain(|reader| reader.peer != key);
        readers.push(Reader {
            peer: key,
            phase: Phase::Told { since: now },
        });
        self.arm(task, now + self.policy.lease_start_max);
        self.answer(key, Answer::BackToSource(reason));
    }

    /// `key` has the content and is about to say so: nobody else needs to read it until then.
    pub(crate) fn expect_holder(&mut self, now: Time, key: PeerKey) {
        let task = self.peers[key].task;
        self.tasks[task].readers.push(Reader {
            peer: key,
            phase: Phase::Told { since: now },
        });
        self.arm(task, now + self.policy.lease_start_max);
    }

    /// Tells a v2 peer that has the lease, and asks again, what it was told before.
    pub(crate) fn appoint_again(&mut self, key: PeerKey) {
        self.answer(key, Answer::BackToSource(BackToSourceReason::NoParents));
    }

    /// What the origin answered before, if that holds for `key` too.
    pub(crate) fn verdict_for(&self, key: PeerKey) -> Option<SourceFailure> {
        let peer = &self.peers[key];
        let verdict = self.tasks[peer.task].verdict.as_ref()?;
        let concerned = verdict
            .credentials
            .is_none_or(|credentials| credentials == peer.credentials);
        (concerned && peer.created_at <= verdict.at).then(|| verdict.failure.clone())
    }

    /// `key` says that it reads the origin: for the first time, or that bytes still arrive.
    pub(crate) fn note_reading(&mut self, now: Time, key: PeerKey) {
        let task = self.peers[key].task;
        let readers = &mut self.tasks[task].readers;
        let place = readers
            .iter()
            .position(|reader| reader.peer == key)
            .unwrap_or_else(|| {
                readers.push(Reader {
                    peer: key,
                    phase: Phase::Told { since: now },
                });
                readers.len() - 1
            });
        match &mut readers[place].phase {
            Phase::Reading { heard, silent, .. } => (*heard, *silent) = (now, false),
            phase @ Phase::Told { .. } => {
                *phase = Phase::Reading {
                    heard: now,
                    gap_max: Duration::ZERO,
                    has_pieces: false,
                    silent: false,
                };
                self.arm(task, now + self.policy.reader_silence_max);
            }
        }
    }

    /// `key` read a piece from the origin.
    pub(crate) fn note_source_piece(&mut self, now: Time, key: PeerKey) {
        let record = &mut self.tasks[self.peers[key].task];
        let Some(reader) = record.readers.iter_mut().find(|reader| reader.peer == key) else {
            return;
        };
        let Phase::Reading {
            heard,
            gap_max,
            has_pieces,
            silent,
        } = &mut reader.phase
        else {
            return;
        };
        if *has_pieces {
            *gap_max = (*gap_max).max(now.saturating_sub(*heard));
        }
        (*heard, *has_pieces, *silent) = (now, true, false);
        (record.reader_failure_count, record.reader_silence_count) = (0, 0);
        record.verdict = None;
    }

    /// Somebody says that `key` does not serve it. Counts only if the scheduler has not heard of `key` lately either.
    pub(crate) fn complain(&mut self, now: Time, key: PeerKey) {
        let task = self.peers[key].task;
        let record = &mut self.tasks[task];
        let Some(reader) = record.readers.iter_mut().find(|reader| reader.peer == key) else {
            return;
        };
        if let Phase::Reading { heard, silent, .. } = &mut reader.phase
            && !*silent
            && now.saturating_sub(*heard) >= COMPLAINT_SILENCE
        {
            *silent = true;
            record.reader_silence_count += 1;
            self.bereft.push(task);
        }
    }

    /// Takes the lease from `key`, if it has one.
    pub(crate) fn end_reading(&mut self, key: PeerKey) {
        let task = self.peers[key].task;
        let readers = &mut self.tasks[task].readers;
        let before = readers.len();
        readers.retain(|reader| reader.peer != key);
        if readers.len() < before {
            self.bereft.push(task);
        }
    }

    /// Appoints readers until everybody who needs one has one. Called when a task may have lost its last source.
    pub(crate) fn ensure_reader(&mut self, now: Time, task: TaskKey) {
        if self
            .tasks
            .get(task)
            .is_none_or(|task| task.peers.is_empty())
        {
            return;
        }
        // If somebody must read, let it be one that serves the others.
        if let Some(next) = self.next_reader(task, |core, key| core.shares(key)) {
            self.appoint_next(now, next);
        }
        self.wake(now, task);
        while let Some(next) = self.next_reader(task, |_, _| true) {
            self.appoint_next(now, next);
        }
    }

    fn appoint_next(&mut self, now: Time, key: PeerKey) {
        match self.verdict_for(key) {
            Some(failure) => self.refuse(now, key, Refusal::Origin(failure)),
            None => self.appoint(now, key, BackToSourceReason::NextReader),
        }
    }

    /// The mesh peer that should read next: of those that nobody can serve, the one with most pieces. (Of v2 peers, who
    /// waits is appointed when it is looked at, and the others ask by themselves when their parents fail them.)
    fn next_reader(
        &self,
        task: TaskKey,
        accept: impl Fn(&Self, PeerKey) -> bool,
    ) -> Option<PeerKey> {
        let record = &self.tasks[task];
        let needy = |key: &PeerKey| {
            let peer = &self.peers[*key];
            peer.state.wants_parents()
                && !record.is_reader(*key)
                && !self.has_hope(*key)
                && !self.has_holder(*key)
                && self.may_read(*key)
                && accept(self, *key)
        };
        let members = record.mesh.iter().copied().filter(needy);
        members.max_by_key(|key| {
            let peer = &self.peers[*key];
            (
                peer.finished_piece_count,
                std::cmp::Reverse(peer.created_at),
            )
        })
    }

    /// A reader gave up because the origin failed it.
    pub(crate) fn reader_failed(
        &mut self,
        now: Time,
        key: PeerKey,
        failure: Option<SourceFailure>,
    ) {
        let (task, credentials) = (self.peers[key].task, self.peers[key].credentials);
        let record = &mut self.tasks[task];
        record.reader_failure_count += 1;
        if let Some(state) = record.state.after(TaskEvent::DownloadFailed) {
            record.state = state;
        }
        let failure = failure.unwrap_or_else(|| SourceFailure {
            status: None,
            message: "its reader gave up".to_owned(),
        });
        self.judge(now, task, failure, credentials);
    }

    /// Passes on what the origin answered to those for whom it holds and who have no other source.
    pub(crate) fn judge(
        &mut self,
        now: Time,
        task: TaskKey,
        failure: SourceFailure,
        credentials: u64,
    ) {
        let record = &mut self.tasks[task];
        let credentials = match failure.reach() {
            Reach::Everybody => None,
            Reach::SameCredentials => Some(credentials),
            Reach::Attempt if record.reader_failure_count >= FAILED_READERS_MAX => None,
            Reach::Attempt => return,
        };
        record.reader_failure_count = 0;
        record.verdict = Some(Verdict {
            failure: failure.clone(),
            at: now,
            credentials,
        });
        let waiting = record.waiting.iter().copied().filter(|key| {
            self.peers
                .get(*key)
                .is_some_and(|peer| peer.waiting_since.is_some())
        });
        let members = record
            .mesh
            .iter()
            .copied()
            .filter(|key| self.peers[*key].state.wants_parents());
        let mut concerned: Vec<PeerKey> = waiting.chain(members).collect();
        concerned.sort_unstable();
        concerned.dedup();
        for key in concerned {
            if self.verdict_for(key).is_some() && !self.has_hope(key) && !self.has_holder(key) {
                self.refuse(now, key, Refusal::Origin(failure.clone()));
            }
        }
    }

    /// Looks after trigger and readers when the task's timer has come. Gives when to look again.
    pub(crate) fn watch_readers(&mut self, now: Time, task: TaskKey) -> Option<Time> {
        if let Some(trigger) = &self.tasks[task].trigger
            && trigger.since + self.policy.seed_register_max <= now
        {
            self.give_up_trigger(now, task, Some(TriggerFailure::Seed));
        }
        let lease_start_max = self.policy.lease_start_max;
        let readers = &mut self.tasks[task].readers;
        let before = readers.len();
        readers.retain(|reader| !matches!(reader.phase, Phase::Told { since } if since + lease_start_max <= now));
        if readers.len() < before {
            self.bereft.push(task);
        }
        let mut due = self.tasks[task]
            .trigger
            .as_ref()
            .map(|it| it.since + self.policy.seed_register_max);
        for place in 0..self.tasks[task].readers.len() {
            let next = self.watch_reader(now, task, place);
            due = [due, next].into_iter().flatten().min();
        }
        due
    }

    /// Finds out whether a reader has fallen silent. Gives when to look again.
    fn watch_reader(&mut self, now: Time, task: TaskKey, place: usize) -> Option<Time> {
        let reader = &self.tasks[task].readers[place];
        let key = reader.peer;
        let heard = match reader.phase {
            Phase::Told { since } => return Some(since + self.policy.lease_start_max),
            Phase::Reading { silent: true, .. } => return None,
            Phase::Reading { heard, .. } => heard,
        };
        let due = heard + self.silence_allowed(task, place);
        if now < due {
            return Some(due);
        }
        if !self.somebody_waits(now, task, key) {
            return Some(now + COMPLAINT_SILENCE);
        }
        let record = &mut self.tasks[task];
        if let Phase::Reading { silent, .. } = &mut record.readers[place].phase {
            *silent = true;
        }
        record.reader_silence_count += 1;
        self.bereft.push(task);
        None
    }

    /// How long a reader may be silent while others wait.
    fn silence_allowed(&self, task: TaskKey, place: usize) -> Duration {
        let record = &self.tasks[task];
        let reader = &record.readers[place];
        let base = self.policy.reader_silence_max;
        let allowed = match reader.phase {
            Phase::Reading {
                has_pieces: true,
                gap_max,
                ..
            } => base.max(gap_max * 3),
            _ => {
                let peer = &self.peers[reader.peer];
                // A mesh peer reads in order; a v2 peer asks for its first pieces all at once, and they end together.
                let pieces = if peer.mesh {
                    1
                } else {
                    u64::from(peer.concurrent_piece_count)
                };
                let bytes = record
                    .piece_length
                    .saturating_mul(pieces)
                    .min(record.content_length.unwrap_or(u64::MAX));
                let transfer = Duration::from_millis(
                    bytes.saturating_mul(1000) / SLOW_ORIGIN_BYTES_PER_SECOND,
                );
                base + transfer.min(FIRST_PIECES_MAX)
            }
        };
        // Each replacement makes the next one wait longer: a slow origin is not helped by a crowd.
        allowed * (1 << record.reader_silence_count.min(4))
    }

    /// Whether some other peer wants pieces and gets none.
    fn somebody_waits(&self, now: Time, task: TaskKey, reader: PeerKey) -> bool {
        self.tasks[task].peers.iter().any(|key| {
            let peer = &self.peers[*key];
            *key != reader
                && peer.state.wants_parents()
                && now.saturating_sub(peer.piece_updated_at) >= COMPLAINT_SILENCE
        })
    }
}
