//! What is known of one neighbour, and whether it can be asked now.

use std::time::Duration;

use protocol::Bitmap;

use super::segments::Segments;
use super::{NeighbourId, NeighbourKind, Shown};

/// A relay that was not ahead of us, or a segment that stalled there, is tried again after this.
const BEHIND_RETRY: Duration = Duration::from_millis(400);
/// First pause after a lost connection; doubles up to [`PAUSE_MAX`].
const LOST_PAUSE: Duration = Duration::from_millis(200);
/// First pause of a frozen neighbour that gives no sign of life; doubles up to [`PAUSE_MAX`].
const FROZEN_PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Where we stand with a parent's upload slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It has not refused us since we last got a slot.
    Open,
    /// It refused us and will grant a slot; we do not ask before `until`.
    Waiting { until: Duration },
    /// A slot is kept for us.
    Granted,
}

/// Why a neighbour is left alone for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// Any sign of life ends it.
    Frozen,
    /// Only time ends it.
    Lost,
}

#[derive(Debug)]
pub(super) struct Neighbour {
    pub(super) id: NeighbourId,
    pub(super) kind: NeighbourKind,
    /// Segments that it says it has or is getting.
    shown: Bitmap,
    /// Of those, the ones in pieces that it holds.
    held: Bitmap,
    /// `shown` without those that it recently could not give.
    usable: Bitmap,
    /// Segments taken out of `usable`, and when they return. In order of time.
    behind: Vec<(Duration, u32)>,
    pub(super) line: Line,
    /// Running requests.
    pub(super) running: usize,
    /// Its requests lag far behind those of others.
    pub(super) slow: bool,
    /// It sent wrong bytes: never asked again.
    pub(super) banned: bool,
    /// Pieces with a wrong digest that it had a part in.
    pub(super) strikes: u32,
    /// When it last did anything.
    pub(super) last_sign: Duration,
    trouble: Trouble,
    pause_until: Duration,
    pauses: u32,
}

impl Neighbour {
    pub(super) fn new(id: NeighbourId, kind: NeighbourKind, segments: u32, now: Duration) -> Self {
        Self {
            id,
            kind,
            shown: Bitmap::new(segments),
            held: Bitmap::new(segments),
            usable: Bitmap::new(segments),
            behind: Vec::new(),
            line: Line::Open,
            running: 0,
            slow: false,
            banned: false,
            strikes: 0,
            last_sign: now,
            trouble: Trouble::None,
            pause_until: Duration::ZERO,
            pauses: 0,
        }
    }

    pub(super) fn usable(&self) -> &Bitmap {
        &self.usable
    }

    pub(super) fn holds(&self, segment: u32) -> bool {
        self.held.get(segment)
    }

    pub(super) fn shows(&self, segment: u32) -> bool {
        self.shown.get(segment)
    }

    /// Whether it may be asked for anything at all: neither banned nor in trouble.
    pub(super) fn is_well(&self, now: Duration) -> bool {
        !self.banned && self.pause_until <= now
    }

    /// Whether a request would meet a free slot as far as we know.
    pub(super) fn is_free(&self, now: Duration) -> bool {
        self.is_well(now)
            && match self.line {
                Line::Open => true,
                Line::Waiting { until } => until <= now,
                Line::Granted => false,
            }
    }

    /// Takes in an announcement, and keeps the count of announcers.
    pub(super) fn learn(&mut self, what: &Shown, segments: &mut Segments) {
        match what {
            Shown::Arriving(segment) => self.show(segment.0, segments),
            Shown::Held(piece) => {
                for segment in segments.layout.segments_of(piece.0) {
                    self.show(segment, segments);
                    self.held.set(segment);
                }
            }
            Shown::Everything => {
                for segment in 0..segments.layout.segments() {
                    self.show(segment, segments);
                    self.held.set(segment);
                }
            }
            Shown::Gone(piece) => {
                segments
                    .layout
                    .segments_of(piece.0)
                    .for_each(|segment| self.unlearn(segment, segments));
            }
        }
    }

    fn show(&mut self, segment: u32, segments: &mut Segments) {
        if self.shown.set(segment) {
            segments.show(segment);
        }
        self.usable.set(segment);
    }

    /// It does not have the segment after all.
    pub(super) fn unlearn(&mut self, segment: u32, segments: &mut Segments) {
        if self.shown.clear(segment) {
            segments.unshow(segment);
        }
        self.held.clear(segment);
        self.usable.clear(segment);
    }

    /// It is gone: nothing that it showed counts.
    pub(super) fn forget(&mut self, segments: &mut Segments) {
        self.shown
            .ones()
            .for_each(|segment| segments.unshow(segment));
    }

    /// It could not give the segment now; it is not asked for it for a moment.
    pub(super) fn set_behind(&mut self, now: Duration, segment: u32) {
        if self.usable.clear(segment) {
            self.behind.push((now + BEHIND_RETRY, segment));
        }
    }

    /// Segments whose moment is over may be asked again.
    pub(super) fn catch_up(&mut self, now: Duration) {
        let over = self
            .behind
            .iter()
            .take_while(|(until, _)| *until <= now)
            .count();
        for (_, segment) in self.behind.drain(..over) {
            if self.shown.get(segment) {
                self.usable.set(segment);
            }
        }
    }

    /// It did something: a frozen one is asked again.
    pub(super) fn sign_of_life(&mut self, now: Duration) {
        self.last_sign = now;
        if self.trouble == Trouble::Frozen {
            self.trouble = Trouble::None;
            self.pause_until = Duration::ZERO;
        }
    }

    /// It sent bytes: whatever the trouble was, it is over.
    pub(super) fn delivered(&mut self, now: Duration) {
        self.last_sign = now;
        self.trouble = Trouble::None;
        self.pause_until = Duration::ZERO;
        self.pauses = 0;
    }

    pub(super) fn freeze(&mut self, now: Duration) {
        self.pause(now, Trouble::Frozen, FROZEN_PAUSE);
    }

    pub(super) fn lose(&mut self, now: Duration) {
        self.pause(now, Trouble::Lost, LOST_PAUSE);
    }

    fn pause(&mut self, now: Duration, trouble: Trouble, first: Duration) {
        self.trouble = trouble;
        self.pause_until = now + first.saturating_mul(1 << self.pauses.min(8)).min(PAUSE_MAX);
        self.pauses += 1;
    }

    /// The next moment after `now` at which time alone changes what can be asked of it.
    pub(super) fn next_change(&self, now: Duration) -> Option<Duration> {
        let line = match self.line {
            Line::Waiting { until } => Some(until),
            Line::Open | Line::Granted => None,
        };
        let behind = self.behind.first().map(|(until, _)| *until);
        let pause = (!self.banned).then_some(self.pause_until);
        [line, behind, pause]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }
}
