//! Upload slots: whom a host serves now, whom it refuses, who is next.

use std::collections::HashMap;
use std::time::Duration;

use crate::ChildKind;

/// A child of this host: one link of one task, or one v2 peer of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId(pub u64);

/// A request that a child made of us, from its arrival to its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(pub u64);

/// Something that happened at the serving side; hand it to [`Slots::handle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotsEvent {
    /// A child asks for bytes. Answered by the next decision: served or refused at once for a mesh
    /// child, served now or later for a v2 child.
    Asked {
        /// The request.
        upload: UploadId,
        /// Who asks.
        child: ChildId,
        /// Whether it can be refused.
        kind: ChildKind,
    },
    /// Bytes of the upload were taken by the network. Report it at least every 100 ms while bytes move:
    /// an upload without news for 300 ms does not count as using its slot.
    Sent {
        /// The request.
        upload: UploadId,
        /// Bytes of it so far.
        bytes: u64,
    },
    /// The upload is over, served or not.
    Ended {
        /// The request.
        upload: UploadId,
    },
    /// The child wants nothing of us now: it leaves the line.
    Declined {
        /// Who.
        child: ChildId,
    },
    /// How much of its task the child has, in millionths; the one with least is granted first.
    Holds {
        /// Who.
        child: ChildId,
        /// 0 (nothing) to 1,000,000 (all).
        millionths: u32,
    },
    /// The child is gone with all of its uploads.
    Left {
        /// Who.
        child: ChildId,
    },
}

/// Something the serving side must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotsAction {
    /// Send the bytes of this request.
    Serve {
        /// The request.
        upload: UploadId,
    },
    /// Answer "refused"; the child is in line from now on and the upload is over.
    Refuse {
        /// The request.
        upload: UploadId,
    },
    /// Tell the child over its link that a slot is kept for it for a moment.
    Grant {
        /// Who.
        child: ChildId,
    },
    /// Close this upload: it has sent nothing for too long. The upload is over.
    Drop {
        /// The request.
        upload: UploadId,
    },
}

/// What is known about the link that the slots share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uplink {
    /// Bytes per second that this host can send at best, 0 when not measured yet.
    pub bytes_per_second: u64,
    /// Round trip of a small message while the link is loaded.
    pub loaded_round_trip: Duration,
    /// Usual length of a segment in bytes.
    pub segment_length: u64,
    /// Own uplink divided by that of a typical host; 1.0 when not known.
    pub relative: f64,
}

/// Least and most slots, whatever the link.
const SLOTS_MIN: u32 = 1;
const SLOTS_MAX: u32 = 24;
/// Slots of a typical host before and after its link is measured.
const SLOTS_TYPICAL: u32 = 6;
const SLOTS_TYPICAL_MIN: f64 = 4.0;
const SLOTS_TYPICAL_MAX: f64 = 12.0;
/// Slots times segment length cover so many loaded round trips of uplink.
const ROUND_TRIPS: f64 = 12.0;
/// A granted slot is kept so long, and for two loaded round trips more.
const GRANT_KEPT: Duration = Duration::from_millis(150);
/// An upload that sent nothing for so long does not occupy its slot: a relay that waits for bytes, a
/// child that is frozen.
const IDLE: Duration = Duration::from_millis(300);
/// An upload that sent nothing for so long is closed.
const DEAD: Duration = Duration::from_secs(10);
/// Children remembered in line; the one that has most is forgotten first and will ask again.
const LINE_MAX: usize = 1024;

#[derive(Debug)]
struct Upload {
    id: UploadId,
    child: ChildId,
    sent: u64,
    last_sent: Duration,
    /// Sent nothing for [`IDLE`]: not counted.
    idle: bool,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    upload: UploadId,
    child: ChildId,
}

/// The upload slots of a host, over all tasks.
///
/// A mesh child that finds no slot is refused and remembered in line; a freed slot is granted to the
/// child in line that has least, and passes on when it is not used in a moment. The requests of v2
/// children, which cannot be refused, wait in a queue behind granted slots; children of both kinds take
/// turns in proportion to their number.
#[derive(Debug)]
pub struct Slots {
    uplink: Uplink,
    count: u32,
    uploads: Vec<Upload>,
    /// Requests of v2 children that wait, oldest first.
    queue: Vec<Queued>,
    /// Mesh children in line, first come first.
    line: Vec<ChildId>,
    /// Slots kept for a child until then.
    grants: Vec<(ChildId, Duration)>,
    holds: HashMap<ChildId, u32>,
    /// What the queue is owed: it gets a freed slot when this is positive.
    queue_credit: i64,
    pending: Vec<SlotsAction>,
    decided_at: Duration,
}

impl Default for Slots {
    fn default() -> Self {
        Self::new()
    }
}

impl Slots {
    /// Slots of a host whose link is not known yet.
    pub fn new() -> Self {
        let uplink = Uplink {
            bytes_per_second: 0,
            loaded_round_trip: Duration::ZERO,
            segment_length: 0,
            relative: 1.0,
        };
        Self {
            uplink,
            count: SLOTS_TYPICAL,
            uploads: Vec::new(),
            queue: Vec::new(),
            line: Vec::new(),
            grants: Vec::new(),
            holds: HashMap::new(),
            queue_credit: 0,
            pending: Vec::new(),
            decided_at: Duration::ZERO,
        }
    }

    /// Adapts the number of slots to what was measured: S segments cover about 12 loaded round trips of
    /// uplink, within 4 to 12 for a typical host, times the host's share of a typical uplink, 1 to 24 in all.
    pub fn set_uplink(&mut self, uplink: Uplink) {
        self.uplink = uplink;
        self.count = slot_count(&uplink);
    }

    /// How many uploads are served at once.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many slots are neither in use nor kept for somebody.
    pub fn free(&self) -> u32 {
        let busy = self.uploads.iter().filter(|upload| !upload.idle).count() + self.grants.len();
        self.count
            .saturating_sub(u32::try_from(busy).unwrap_or(u32::MAX))
    }

    /// Takes in something that happened at `now`.
    pub fn handle(&mut self, now: Duration, event: SlotsEvent) {
        match event {
            SlotsEvent::Asked {
                upload,
                child,
                kind,
            } => self.asked(now, upload, child, kind),
            SlotsEvent::Sent { upload, bytes } => {
                if let Some(entry) = self
                    .uploads
                    .iter_mut()
                    .find(|entry| entry.id == upload && bytes > entry.sent)
                {
                    entry.sent = bytes;
                    entry.last_sent = now;
                    entry.idle = false;
                }
            }
            SlotsEvent::Ended { upload } => {
                self.uploads.retain(|entry| entry.id != upload);
                self.queue.retain(|entry| entry.upload != upload);
            }
            SlotsEvent::Declined { child } => {
                self.line.retain(|other| *other != child);
                self.grants.retain(|(other, _)| *other != child);
            }
            SlotsEvent::Holds { child, millionths } => {
                self.holds.insert(child, millionths);
            }
            SlotsEvent::Left { child } => {
                self.line.retain(|other| *other != child);
                self.grants.retain(|(other, _)| *other != child);
                self.uploads.retain(|entry| entry.child != child);
                self.queue.retain(|entry| entry.child != child);
                self.holds.remove(&child);
            }
        }
    }

    /// Decides what to do now and appends it to `actions`.
    pub fn decide(&mut self, now: Duration, actions: &mut Vec<SlotsAction>) {
        self.decided_at = now;
        self.grants.retain(|(_, until)| *until > now);
        self.set_idle_aside(now);
        while self.free() > 0 && self.fill(now) {}
        actions.append(&mut self.pending);
    }

    /// When to decide again if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        let grants = self.grants.iter().map(|(_, until)| *until);
        let uploads = self
            .uploads
            .iter()
            .map(|entry| entry.last_sent + if entry.idle { DEAD } else { IDLE });
        grants
            .chain(uploads)
            .filter(|at| *at > self.decided_at)
            .min()
    }

    fn asked(&mut self, now: Duration, upload: UploadId, child: ChildId, kind: ChildKind) {
        let granted = self.grants.iter().position(|(other, _)| *other == child);
        if let Some(granted) = granted {
            self.grants.swap_remove(granted);
            self.serve(now, upload, child);
        } else if kind == ChildKind::V2 {
            self.queue.push(Queued { upload, child });
        } else if self.free() > 0 && self.line.is_empty() && self.queue.is_empty() {
            self.serve(now, upload, child);
        } else {
            self.pending.push(SlotsAction::Refuse { upload });
            self.stand_in_line(child);
        }
    }

    fn serve(&mut self, now: Duration, upload: UploadId, child: ChildId) {
        self.uploads.push(Upload {
            id: upload,
            child,
            sent: 0,
            last_sent: now,
            idle: false,
        });
        self.pending.push(SlotsAction::Serve { upload });
    }

    fn stand_in_line(&mut self, child: ChildId) {
        if self.line.contains(&child) {
            return;
        }
        if self.line.len() == LINE_MAX {
            let most = (0..LINE_MAX)
                .max_by_key(|at| self.held_by(self.line[*at]))
                .unwrap_or(0);
            self.line.swap_remove(most);
        }
        self.line.push(child);
    }

    fn held_by(&self, child: ChildId) -> u32 {
        self.holds.get(&child).copied().unwrap_or(0)
    }

    /// Gives one free slot to a child that waits; false when nobody does.
    fn fill(&mut self, now: Duration) -> bool {
        let (in_line, in_queue) = (self.line.len(), self.children_in_queue());
        if in_queue > 0 && (in_line == 0 || self.queue_credit > 0) {
            self.queue_credit -= i64::try_from(in_line).unwrap_or(0);
            self.serve_queued(now);
            return true;
        }
        let Some(place) = self.neediest() else {
            return false;
        };
        self.queue_credit = if in_queue == 0 {
            0
        } else {
            self.queue_credit + i64::try_from(in_queue).unwrap_or(0)
        };
        let child = self.line.remove(place);
        let kept = GRANT_KEPT + self.uplink.loaded_round_trip * 2;
        self.grants.push((child, now + kept));
        self.pending.push(SlotsAction::Grant { child });
        true
    }

    /// The place in line of the child that has least; first come among equals.
    fn neediest(&self) -> Option<usize> {
        (0..self.line.len()).min_by_key(|place| self.held_by(self.line[*place]))
    }

    fn children_in_queue(&self) -> usize {
        let first = |place: usize| {
            self.queue[..place]
                .iter()
                .all(|other| other.child != self.queue[place].child)
        };
        (0..self.queue.len()).filter(|place| first(*place)).count()
    }

    /// Serves the oldest request of the v2 child that has the fewest uploads now.
    fn serve_queued(&mut self, now: Duration) {
        let uploads = |child| {
            self.uploads
                .iter()
                .filter(|entry| entry.child == child)
                .count()
        };
        let Some(place) =
            (0..self.queue.len()).min_by_key(|place| uploads(self.queue[*place].child))
        else {
            return;
        };
        let Queued { upload, child } = self.queue.remove(place);
        self.serve(now, upload, child);
    }

    fn set_idle_aside(&mut self, now: Duration) {
        for entry in &mut self.uploads {
            entry.idle |= now.saturating_sub(entry.last_sent) >= IDLE;
        }
        let dead = |entry: &Upload| now.saturating_sub(entry.last_sent) >= DEAD;
        let pending = &mut self.pending;
        self.uploads.retain(|entry| {
            let dead = dead(entry);
            if dead {
                pending.push(SlotsAction::Drop { upload: entry.id });
            }
            !dead
        });
    }
}

fn slot_count(uplink: &Uplink) -> u32 {
    let covered =
        ROUND_TRIPS * uplink.loaded_round_trip.as_secs_f64() * uplink.bytes_per_second as f64;
    let typical = if covered > 0.0 && uplink.segment_length > 0 {
        (covered / uplink.segment_length as f64).clamp(SLOTS_TYPICAL_MIN, SLOTS_TYPICAL_MAX)
    } else {
        f64::from(SLOTS_TYPICAL)
    };
    let relative = if uplink.relative.is_finite() {
        uplink.relative.max(0.0)
    } else {
        1.0
    };
    let count = (typical * relative)
        .round()
        .clamp(f64::from(SLOTS_MIN), f64::from(SLOTS_MAX));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 1..=24"
    )]
    let count = count as u32;
    count
}

#[cfg(test)]
mod tests;
