//! A host: its links, its store, its three decision makers, and what it knows of others.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::{Bitmap, Geometry, PieceNumber, SegmentIndex};
use swarm::{
    Batch, ChildId, ChildKind, NeighbourId, NeighbourKind, Picker, PickerEvent, RequestId, Shown,
    Slots, SlotsEvent, Stage, StageEvent, Uplink,
};

use super::Scene;

/// Pieces that a v2 peer asks for at once.
const V2_IN_FLIGHT: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Ours,
    V2,
}

impl Speaks {
    pub(super) fn child(self) -> ChildKind {
        if self == Self::Ours {
            ChildKind::Mesh
        } else {
            ChildKind::V2
        }
    }

    fn parent(self) -> NeighbourKind {
        if self == Self::Ours {
            NeighbourKind::Mesh
        } else {
            NeighbourKind::V2
        }
    }
}

/// A request that this host serves.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(super) id: u64,
    pub(super) child: usize,
    pub(super) request: u64,
    pub(super) piece: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) sent: u64,
    pub(super) on_the_way: u64,
    pub(super) serving: bool,
}

/// A request that this host made.
#[derive(Clone, Debug)]
pub(crate) struct Download {
    pub(super) id: u64,
    pub(super) parent: usize,
    pub(super) piece: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) received: u64,
}

/// One machine.
pub struct Host {
    pub(super) at: usize,
    pub(super) speaks: Speaks,
    pub(super) alive: bool,
    pub(super) frozen: bool,
    pub(super) done: Option<Duration>,
    pub(super) up: f64,
    pub(super) down: f64,
    pub(super) uplink_busy: bool,
    pub(super) downlink_free: Duration,
    pub(super) turn: usize,
    pub(super) wake: Option<Duration>,
    pub(super) origin_reached: u64,
    /// Bytes of each segment.
    pub(super) reached: Vec<u64>,
    pub(super) held: Bitmap,
    pub(super) uploads: Vec<Upload>,
    pub(super) requests: Vec<Download>,
    pub(super) slots: Option<Slots>,
    pub(super) stage: Option<Stage>,
    pub(super) picker: Option<Picker>,
    /// What each child was told; `true` when it is one of ours.
    pub(super) children: BTreeMap<usize, Speaks>,
    pub(super) parents: BTreeMap<usize, Speaks>,
    /// What each neighbour said it has, for the share that the slots go by.
    has: BTreeMap<usize, Bitmap>,
    pub(super) news: Batch<Shown>,
    /// Pieces that a v2 host was shown, in order, with their parents.
    offers: Vec<(u32, Vec<usize>)>,
    next_id: u64,
    chance: fastrand::Rng,
}

impl Host {
    pub(super) fn new(scene: &Scene, geometry: &Geometry, at: usize, chance: u64) -> Self {
        let factor = scene
            .slow
            .filter(|(host, _)| *host == at)
            .map_or(1.0, |(_, factor)| factor);
        let spread = at > 0 && at * scene.v2 / scene.hosts > (at - 1) * scene.v2 / scene.hosts;
        let speaks = if spread { Speaks::V2 } else { Speaks::Ours };
        let full = at == 0 && scene.warm;
        let pieces = geometry.piece_count();
        let held = if full {
            Bitmap::full(pieces)
        } else {
            Bitmap::new(pieces)
        };
        let reached = (0..geometry.segment_slots()).map(|segment| {
            geometry
                .segment(SegmentIndex(segment))
                .filter(|_| full)
                .map_or(0, |span| span.length)
        });
        let wants = at > 0 && speaks == Speaks::Ours;
        let picker = || {
            let all = Bitmap::full(pieces);
            Picker::new(
                geometry,
                &all,
                &Bitmap::new(pieces),
                scene.options.clone(),
                chance,
            )
        };
        let rate = scene.rate / factor;
        let slots = (speaks == Speaks::Ours).then(|| {
            let mut slots = Slots::new();
            slots.set_uplink(Uplink {
                bytes_per_second: 0,
                loaded_round_trip: Duration::ZERO,
                segment_length: 0,
                relative: scene.slots,
            });
            slots
        });
        Self {
            at,
            speaks,
            alive: true,
            frozen: false,
            done: full.then_some(Duration::ZERO),
            up: rate,
            down: rate,
            uplink_busy: false,
            downlink_free: Duration::ZERO,
            turn: 0,
            wake: None,
            origin_reached: 0,
            reached: reached.collect(),
            stage: (at == 0).then(|| Stage::new(geometry, &Bitmap::full(pieces), &held, chance)),
            held,
            uploads: Vec::new(),
            requests: Vec::new(),
            slots,
            picker: wants.then(picker),
            children: BTreeMap::new(),
            parents: BTreeMap::new(),
            has: BTreeMap::new(),
            news: Batch::new(scene.batch),
            offers: Vec::new(),
            next_id: 0,
            chance: fastrand::Rng::with_seed(chance),
        }
    }

    /// Both ways: parent and child of each other, unless v2 forbids it.
    pub(super) fn join(&mut self, other: usize, speaks: Speaks, now: Duration) {
        if self.at > 0 {
            self.parents.insert(other, speaks);
            if let Some(picker) = &mut self.picker {
                let neighbour = NeighbourId(u32::try_from(other).unwrap());
                picker.handle(
                    now,
                    PickerEvent::Joined {
                        neighbour,
                        kind: speaks.parent(),
                    },
                );
            }
        }
        if other > 0 && !(self.speaks == Speaks::V2 || speaks == Speaks::V2) || self.at == 0 {
            self.join_child(other, speaks, now);
        }
    }

    pub(super) fn join_child(&mut self, child: usize, speaks: Speaks, now: Duration) {
        self.children.insert(child, speaks);
        self.has.insert(
            child,
            Bitmap::new(u32::try_from(self.reached.len()).unwrap()),
        );
        if let Some(stage) = &mut self.stage {
            stage.handle(
                now,
                StageEvent::Joined {
                    child: ChildId(child as u64),
                    kind: speaks.child(),
                },
            );
        }
    }

    pub(super) fn knows(&self, other: usize) -> bool {
        self.parents.contains_key(&other) || self.children.contains_key(&other)
    }

    /// Neighbours beside the seed.
    pub(super) fn degree(&self) -> usize {
        self.parents.keys().filter(|parent| **parent > 0).count()
    }

    /// A neighbour is gone.
    pub(super) fn mourn(&mut self, dead: usize, now: Duration) {
        self.children.remove(&dead);
        self.parents.remove(&dead);
        self.uploads.retain(|upload| upload.child != dead);
        self.requests.retain(|request| request.parent != dead);
        self.offers
            .iter_mut()
            .for_each(|(_, parents)| parents.retain(|parent| *parent != dead));
        if let Some(picker) = &mut self.picker {
            picker.handle(
                now,
                PickerEvent::Left {
                    neighbour: NeighbourId(u32::try_from(dead).unwrap()),
                },
            );
        }
        if let Some(slots) = &mut self.slots {
            slots.handle(
                now,
                SlotsEvent::Left {
                    child: ChildId(dead as u64),
                },
            );
        }
        if let Some(stage) = &mut self.stage {
            stage.handle(
                now,
                StageEvent::Left {
                    child: ChildId(dead as u64),
                },
            );
        }
    }

    pub(super) fn arriving(&mut self, segment: SegmentIndex, now: Duration) {
        match &mut self.stage {
            Some(stage) => stage.handle(now, StageEvent::Arriving { segment }),
            None => self.news.push(now, Shown::Arriving(segment)),
        }
    }

    pub(super) fn piece_held(&mut self, piece: PieceNumber, now: Duration) {
        match &mut self.stage {
            Some(stage) => stage.handle(now, StageEvent::PieceHeld { piece }),
            None => self.news.push(now, Shown::Held(piece)),
        }
        if let Some(picker) = &mut self.picker {
            picker.handle(now, PickerEvent::PieceHeld { piece });
        }
    }

    pub(super) fn progress(&mut self, now: Duration, request: u64, received: u64, over: bool) {
        if let Some(picker) = &mut self.picker {
            let request = RequestId(request);
            picker.handle(
                now,
                match over {
                    true => PickerEvent::Finished { request },
                    false => PickerEvent::Progress { request, received },
                },
            );
        }
    }

    pub(super) fn learn(
        &mut self,
        from: usize,
        shown: &[Shown],
        geometry: &Geometry,
        now: Duration,
    ) {
        for what in shown {
            if let (Some(picker), true) = (&mut self.picker, self.parents.contains_key(&from)) {
                let neighbour = NeighbourId(u32::try_from(from).unwrap());
                picker.handle(
                    now,
                    PickerEvent::Shown {
                        neighbour,
                        what: what.clone(),
                    },
                );
            }
            if let Some(stage) = &mut self.stage {
                stage.handle(
                    now,
                    StageEvent::ChildShows {
                        child: ChildId(from as u64),
                        what: what.clone(),
                    },
                );
            }
            self.note_offer(from, what);
            if let Some(has) = self.has.get_mut(&from) {
                match what {
                    Shown::Arriving(segment) => {
                        has.set(segment.0);
                    }
                    Shown::Held(piece) => geometry.segments_of(*piece).for_each(|span| {
                        has.set(span.index.0);
                    }),
                    Shown::Everything | Shown::Gone(_) => {}
                }
            }
        }
        if let (Some(slots), Some(has)) = (&mut self.slots, self.has.get(&from)) {
            let millionths =
                u32::try_from(u64::from(has.count()) * 1_000_000 / u64::from(has.len().max(1)))
                    .unwrap();
            slots.handle(
                now,
                SlotsEvent::Holds {
                    child: ChildId(from as u64),
                    millionths,
                },
            );
        }
    }

    /// A v2 host remembers who has which piece, in the order in which it heard of them.
    fn note_offer(&mut self, from: usize, what: &Shown) {
        if self.speaks == Speaks::Ours || !self.parents.contains_key(&from) {
            return;
        }
        let pieces = match what {
            Shown::Held(piece) => piece.0..piece.0 + 1,
            Shown::Everything => 0..self.held.len(),
            _ => return,
        };
        for piece in pieces {
            match self.offers.iter_mut().find(|(other, _)| *other == piece) {
                Some((_, parents)) if parents.contains(&from) => {}
                Some((_, parents)) => parents.push(from),
                None => self.offers.push((piece, vec![from])),
            }
        }
    }

    /// The next request of a v2 host: the piece first heard of, from a random one of its parents.
    pub(super) fn next_v2(&mut self) -> Option<(u32, usize)> {
        if self.speaks == Speaks::Ours || self.requests.len() >= V2_IN_FLIGHT {
            return None;
        }
        let open = |piece: u32| {
            !self.held.get(piece) && self.requests.iter().all(|request| request.piece != piece)
        };
        let (piece, parents) = self
            .offers
            .iter()
            .find(|(piece, parents)| open(*piece) && !parents.is_empty())?;
        Some((*piece, parents[self.chance.usize(..parents.len())]))
    }
}

impl Host {
    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
