//! The child under any order of events: limits hold, resumes are exact, nothing is asked of who is gone,
//! and whatever happened before, a neighbour that has all ends it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use protocol::{Bitmap, Geometry, PieceNumber, SegmentIndex};
use swarm::{
    Failure, NeighbourId, NeighbourKind, Picker, PickerAction, PickerEvent, PickerOptions, Request,
    RequestId, Shown,
};

const SEGMENT: u64 = 256 << 10;
const PER_PIECE: u32 = 3;
const PIECES: u32 = 5;
/// The last piece has two segments, the last of them short.
const CONTENT: u64 = (PIECES as u64 * PER_PIECE as u64 - 1) * SEGMENT - 999;

#[derive(Clone, Debug)]
enum Op {
    Join(u32),
    Leave(u32),
    Show(u32, u32),
    ShowAll(u32),
    Gone(u32, u32),
    Grant(u32),
    Progress(usize, u64),
    Finish(usize),
    Fail(usize, u8, u64),
    Verify(u32, bool),
    Origin(u32, bool),
    Reader(u32),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let neighbour = || 0u32..6;
    prop_oneof![
        3 => neighbour().prop_map(Op::Join),
        1 => neighbour().prop_map(Op::Leave),
        4 => (neighbour(), 0u32..20).prop_map(|(n, what)| Op::Show(n, what)),
        1 => neighbour().prop_map(Op::ShowAll),
        1 => (neighbour(), 0u32..6).prop_map(|(n, piece)| Op::Gone(n, piece)),
        2 => neighbour().prop_map(Op::Grant),
        6 => (any::<usize>(), 1u64..300_000).prop_map(|(at, bytes)| Op::Progress(at, bytes)),
        4 => any::<usize>().prop_map(Op::Finish),
        3 => (any::<usize>(), any::<u8>(), 0u64..300_000).prop_map(|(at, why, bytes)| Op::Fail(at, why, bytes)),
        2 => (0u32..PIECES, any::<bool>()).prop_map(|(piece, good)| Op::Verify(piece, good)),
        1 => (0u32..PIECES * PER_PIECE, any::<bool>()).prop_map(|(at, took)| Op::Origin(at, took)),
        1 => (0u32..PIECES * PER_PIECE).prop_map(Op::Reader),
        4 => (0u64..1500).prop_map(Op::Pass),
    ]
}

/// What the picker should know, kept in the plainest way.
struct Model {
    geometry: Geometry,
    picker: Picker,
    now: Duration,
    joined: BTreeMap<u32, NeighbourKind>,
    next_neighbour: u32,
    /// Which of the six places stands for which neighbour now: a number is never used twice.
    names: BTreeMap<u32, u32>,
    live: BTreeMap<u64, (Request, u64)>,
    reached: BTreeMap<u32, u64>,
    held: Bitmap,
    complete: bool,
}

impl Model {
    fn new(seed: u64) -> Self {
        let geometry = Geometry::new(CONTENT, u64::from(PER_PIECE) * SEGMENT).unwrap();
        assert_eq!(
            (geometry.piece_count(), geometry.segment_length()),
            (PIECES, SEGMENT)
        );
        let (wanted, held) = (Bitmap::full(PIECES), Bitmap::new(PIECES));
        let picker = Picker::new(&geometry, &wanted, &held, PickerOptions::default(), seed);
        Self {
            geometry,
            picker,
            now: Duration::ZERO,
            joined: BTreeMap::new(),
            next_neighbour: 0,
            names: BTreeMap::new(),
            live: BTreeMap::new(),
            reached: BTreeMap::new(),
            held,
            complete: false,
        }
    }

    fn tell(&mut self, event: PickerEvent) {
        self.picker.handle(self.now, event);
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Join(place) if !self.names.contains_key(&place) => {
                let kind = if place < 4 {
                    NeighbourKind::Mesh
                } else {
                    NeighbourKind::V2
                };
                self.join(place, kind);
            }
            Op::Leave(place) => {
                if let Some(name) = self.names.remove(&place) {
                    self.joined.remove(&name);
                    self.live
                        .retain(|_, (request, _)| request.neighbour.0 != name);
                    self.tell(PickerEvent::Left {
                        neighbour: NeighbourId(name),
                    });
                }
            }
            Op::Show(place, what) if what < 15 && self.kind(place) == Some(NeighbourKind::Mesh) => {
                self.show(place, Shown::Arriving(SegmentIndex(what)));
            }
            Op::Show(place, what) => self.show(place, Shown::Held(PieceNumber(what % 6))),
            Op::ShowAll(place) => self.show(place, Shown::Everything),
            Op::Gone(place, piece) => self.show(place, Shown::Gone(PieceNumber(piece))),
            Op::Grant(place) => {
                if let Some(name) = self.names.get(&place) {
                    self.tell(PickerEvent::Granted {
                        neighbour: NeighbourId(*name),
                    });
                }
            }
            Op::Progress(at, bytes) => self.on_live(at, |model, id| model.receive(id, bytes)),
            Op::Finish(at) => self.on_live(at, Self::finish),
            Op::Fail(at, why, bytes) => self.on_live(at, |model, id| model.fail(id, why, bytes)),
            Op::Verify(piece, good) => self.verify(piece, good),
            Op::Origin(at, true) => self.tell(PickerEvent::OriginTook {
                segments: at..at + 2,
            }),
            Op::Origin(at, false) => self.tell(PickerEvent::OriginReleased {
                segments: at..at + 2,
            }),
            Op::Reader(at) => self.tell(PickerEvent::ReaderAt {
                segment: Some(SegmentIndex(at)),
            }),
            Op::Pass(time) => self.pass(Duration::from_millis(time)),
            Op::Join(_) => {}
        }
    }

    fn join(&mut self, place: u32, kind: NeighbourKind) {
        let name = self.next_neighbour;
        self.next_neighbour += 1;
        self.names.insert(place, name);
        self.joined.insert(name, kind);
        self.tell(PickerEvent::Joined {
            neighbour: NeighbourId(name),
            kind,
        });
    }

    fn kind(&self, place: u32) -> Option<NeighbourKind> {
        self.joined.get(self.names.get(&place)?).copied()
    }

    fn show(&mut self, place: u32, what: Shown) {
        // Also of neighbours that left: such news may be late.
        let neighbour = NeighbourId(self.names.get(&place).copied().unwrap_or(0));
        self.tell(PickerEvent::Shown { neighbour, what });
    }

    fn on_live(&mut self, at: usize, then: impl FnOnce(&mut Self, u64)) {
        let id = self.live.keys().nth(at % self.live.len().max(1)).copied();
        if let Some(id) = id {
            then(self, id);
        }
    }

    /// More bytes of a request come in.
    fn receive(&mut self, id: u64, bytes: u64) {
        let (request, received) = self.live.get_mut(&id).unwrap();
        *received = (*received + bytes).min(request.length);
        let (request, received) = (*request, *received);
        self.store(request, received);
        self.tell(PickerEvent::Progress {
            request: RequestId(id),
            received,
        });
    }

    fn store(&mut self, request: Request, received: u64) {
        for span in self.geometry.segments_of(request.piece) {
            let end = (request.offset + received).min(span.offset + span.length);
            if end > span.offset && request.offset < span.offset + span.length {
                let reached = self.reached.entry(span.index.0).or_default();
                *reached = (*reached).max(end - span.offset);
            }
        }
    }

    fn finish(&mut self, id: u64) {
        let (request, _) = self.live.remove(&id).unwrap();
        self.store(request, request.length);
        self.tell(PickerEvent::Finished {
            request: RequestId(id),
        });
    }

    fn fail(&mut self, id: u64, why: u8, bytes: u64) {
        let (request, received) = self.live.remove(&id).unwrap();
        let received = (received + bytes)
            .min(request.length.saturating_sub(1))
            .max(received);
        self.store(request, received);
        let failure = [
            Failure::Refused,
            Failure::NotAhead,
            Failure::Stalled,
            Failure::Lost,
            Failure::NotFound,
            Failure::BadData,
        ][usize::from(why) % 6];
        self.tell(PickerEvent::Failed {
            request: RequestId(id),
            failure,
            received,
        });
    }

    /// A piece of which all bytes are here is checked.
    fn verify(&mut self, piece: u32, good: bool) {
        let number = PieceNumber(piece);
        let reached = |index: u32| self.reached.get(&index).copied().unwrap_or(0);
        if !self
            .geometry
            .segments_of(number)
            .all(|span| reached(span.index.0) == span.length)
        {
            return;
        }
        if good {
            self.held.set(piece);
            self.tell(PickerEvent::PieceHeld { piece: number });
        } else if !self.held.get(piece) {
            self.geometry.segments_of(number).for_each(|span| {
                self.reached.remove(&span.index.0);
            });
            self.tell(PickerEvent::PieceDropped { piece: number });
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(next) = self.picker.next_deadline().filter(|next| *next <= until) {
            assert!(next > self.now, "a deadline in the past");
            self.now = next;
            self.decide();
        }
        self.now = until;
    }

    fn decide(&mut self) {
        let mut actions = Vec::new();
        self.picker.decide(self.now, &mut actions);
        for action in actions {
            self.check(action);
        }
        assert_eq!(
            self.picker.in_flight(),
            self.live.len(),
            "both know the same requests"
        );
        let again = &mut Vec::new();
        self.picker.decide(self.now, again);
        assert!(
            again.is_empty(),
            "a decision leaves nothing to decide: {again:?}"
        );
    }

    fn check(&mut self, action: PickerAction) {
        match action {
            PickerAction::Request(request) => self.check_request(request),
            PickerAction::Cancel { request } => {
                self.live
                    .remove(&request.0)
                    .expect("what is cancelled is out, and its neighbour is here");
            }
            PickerAction::Decline { neighbour } | PickerAction::Suspect { neighbour, .. } => {
                assert!(
                    self.joined.contains_key(&neighbour.0),
                    "{action:?} to one that left"
                );
            }
            PickerAction::Starved { since } => assert!(since <= self.now),
            PickerAction::Complete => {
                assert!(self.held.is_full());
                self.complete = true;
            }
        }
    }

    fn check_request(&mut self, request: Request) {
        let kind = *self
            .joined
            .get(&request.neighbour.0)
            .expect("asked of a neighbour that is here");
        let piece = self.geometry.piece(request.piece).unwrap();
        if kind == NeighbourKind::V2 {
            assert_eq!((request.offset, request.length), (0, piece.length));
        } else {
            let segment = self
                .geometry
                .segment_at(request.piece, request.offset)
                .unwrap();
            let span = self.geometry.segment(segment).unwrap();
            let reached = self.reached.get(&segment.0).copied().unwrap_or(0);
            assert_eq!(
                request.offset,
                span.offset + reached,
                "{request:?} resumes at the byte reached; out: {:?}",
                self.live
            );
            assert_eq!(request.length, span.length - reached);
        }
        assert!(
            self.live.insert(request.id.0, (request, 0)).is_none(),
            "an id used twice"
        );
        // What a request still has to bring.
        let rest = |(r, received): &(Request, u64)| r.offset + received..r.offset + r.length;
        let same = |other: &&(Request, u64)| {
            let rest = rest(other);
            let overlap = rest.start < request.offset + request.length && request.offset < rest.end;
            other.0.piece == request.piece && overlap && !rest.is_empty()
        };
        assert!(
            self.live.values().filter(same).count() <= 2,
            "at most one hedge: {:?}",
            self.live
        );
        let of = |kind| {
            self.live
                .values()
                .filter(|(r, _)| self.joined[&r.neighbour.0] == kind)
                .count()
        };
        // Stalled requests stay out beside running ones until their bytes are asked elsewhere.
        assert!(of(NeighbourKind::V2) <= 16 && of(NeighbourKind::Mesh) <= 16);
    }

    /// A neighbour that has everything and always answers ends it.
    fn finish_with(&mut self, kind: NeighbourKind) {
        self.tell(PickerEvent::OriginReleased {
            segments: 0..PIECES * PER_PIECE,
        });
        self.join(99, kind);
        let name = self.names[&99];
        self.show(99, Shown::Everything);
        for _ in 0..400 {
            self.pass(Duration::from_millis(100));
            self.decide();
            let theirs: Vec<u64> = self
                .live
                .values()
                .filter(|(r, _)| r.neighbour.0 == name)
                .map(|(r, _)| r.id.0)
                .collect();
            for id in theirs {
                if self.live.contains_key(&id) {
                    self.finish(id);
                }
                self.decide();
            }
            (0..PIECES).for_each(|piece| self.verify(piece, true));
            self.decide();
            if self.complete {
                return;
            }
        }
        panic!("never complete: {:?} {:?}", self.picker, self.live);
    }
}

proptest! {
    #[test]
    fn limits_hold_and_the_end_comes(
        seed in any::<u64>(),
        ops in prop::collection::vec(op(), 0..120),
        v2 in any::<bool>(),
    ) {
        let mut model = Model::new(seed);
        for op in ops {
            model.apply(op);
            model.decide();
        }
        model.finish_with(if v2 { NeighbourKind::V2 } else { NeighbourKind::Mesh });
    }
}
