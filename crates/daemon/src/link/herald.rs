//! Telling the children of one task what is here.
//!
//! A plain host tells everybody everything, batched for a few milliseconds. A seed shows each segment to one child first
//! (the pure [`swarm::Stage`] decides which), so that it sends every byte about once and the children pass it on; towards
//! Dragonfly v2 children this works too, because a v2 child only asks for what its SyncPieces stream has shown it.
//!
//! Whoever waits for a few pieces in the middle is not made to wait for their turn: it says so, and is told of these at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::{Bitmap, Geometry, HostRole, PieceNumber, SegmentIndex};
use swarm::{ChildId, ChildKind, Shown, Stage, StageAction, StageEvent};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::proto::{Drop as DropFrame, Have, frame::Kind};
use super::{Link, NUMBERS_MAX, TaskLinks};

/// News are gathered for so long before they are told.
const GATHER: Duration = Duration::from_millis(5);
/// A v2 child that was told everything is remembered for so long: it is still fetching.
const TOLD_KEPT: Duration = Duration::from_secs(60);
/// A task without links and session is forgotten after this long.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// What the herald of a task hears.
#[derive(Debug)]
pub enum HeraldEvent {
    /// A host of this project can be told.
    LinkUp(Arc<Link>),
    /// The link with this token is gone.
    LinkDown(u64),
    /// A v2 host asks to be told.
    V2Joined(V2Child),
    /// A child told what it has itself.
    ChildShows {
        /// The token of its link.
        token: u64,
        /// First bytes of these are there.
        arriving: Vec<SegmentIndex>,
        /// These are held there.
        held: Vec<PieceNumber>,
    },
    /// A child told what it wants.
    Wants {
        /// The token of its link.
        token: u64,
        /// Somebody there waits for these; one bit per piece of the task.
        pieces: Bitmap,
        /// It wants nothing else.
        part: bool,
    },
    /// First bytes of this segment are here.
    Arriving(SegmentIndex),
    /// A child is being served.
    Asked {
        /// Who.
        child: ChildId,
        /// The piece.
        piece: PieceNumber,
        /// First byte within it.
        offset: u64,
    },
    /// A child has been served.
    Served {
        /// Who.
        child: ChildId,
        /// The piece.
        piece: PieceNumber,
        /// First byte within it.
        offset: u64,
    },
    /// The session of this task has ended.
    SessionEnded,
}

/// A Dragonfly v2 child that follows SyncPieces.
#[derive(Debug)]
pub struct V2Child {
    /// How slots and stage know it.
    pub child: ChildId,
    /// The pieces it asked about and was not told of yet.
    pub interested: Bitmap,
    /// Where to tell it, with room for every piece that it is interested in. Taken away when there is no more to tell,
    /// which ends its stream.
    pub tell: Option<mpsc::Sender<PieceNumber>>,
    /// When the last of it was told; the seed's stage remembers the child for a while longer.
    pub told_all: Option<Instant>,
}

impl V2Child {
    /// There is no more to tell.
    fn end(&mut self) {
        self.tell = None;
        self.told_all.get_or_insert_with(Instant::now);
    }
}

enum Child {
    Mesh {
        link: Arc<Link>,
        news: News,
        /// Pieces that the stage does not keep from it.
        wants: Bitmap,
    },
    V2(V2Child),
}

/// What a child has not been told yet.
#[derive(Default)]
struct News {
    arriving: Vec<u32>,
    held: Vec<PieceNumber>,
    digests: Vec<PieceNumber>,
}

/// See the module.
pub struct Herald {
    links: Arc<TaskLinks>,
    children: HashMap<ChildId, Child>,
    /// With a record; after a crash a piece is verified when the first child asks for it.
    held: Bitmap,
    arriving: Bitmap,
    stage: Option<Stage>,
    actions: Vec<StageAction>,
    epoch: Instant,
    flush_at: Option<Instant>,
    idle_since: Instant,
}

impl Herald {
    /// The herald of a task; staged on a seed peer.
    pub fn new(links: Arc<TaskLinks>) -> Self {
        let geometry = links.geometry;
        let held = links
            .task
            .recorded()
            .unwrap_or_else(|_| Bitmap::new(geometry.piece_count()));
        let seed = links.hub.identity.role == HostRole::Seed;
        let stage = seed.then(|| {
            let wanted = Bitmap::full(geometry.piece_count());
            Stage::new(&geometry, &wanted, &held, fastrand::u64(..))
        });
        Self {
            children: HashMap::new(),
            arriving: Bitmap::new(geometry.segment_slots()),
            held,
            stage,
            actions: Vec::new(),
            epoch: Instant::now(),
            flush_at: None,
            idle_since: Instant::now(),
            links,
        }
    }

    /// Runs until the task has neither links nor a session, or the hub closes.
    pub async fn run(mut self, mut events: mpsc::Receiver<HeraldEvent>) {
        let mut changes = self.links.task.changes();
        let cancel = self.links.cancel.clone();
        loop {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                Some(event) = events.recv() => self.hear(event),
                changed = changes.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    changes.borrow_and_update();
                    self.look();
                }
                () = sleep_until(wake) => {}
            }
            self.decide();
            if self.flush_at.is_some_and(|at| at <= Instant::now()) {
                self.flush();
            }
            let idle = self.children.is_empty() && !self.links.has_session();
            if !idle {
                self.idle_since = Instant::now();
            } else if self.idle_since.elapsed() >= IDLE_MAX && self.links.hub.forget(&self.links) {
                break;
            }
        }
        cancel.cancel();
    }

    fn wake_at(&self) -> Instant {
        let mut wake = self.idle_since + IDLE_MAX;
        if !self.children.is_empty() || self.links.has_session() {
            wake = Instant::now() + IDLE_MAX;
        }
        if let Some(at) = self.flush_at {
            wake = wake.min(at);
        }
        if let Some(deadline) = self.stage.as_ref().and_then(Stage::next_deadline) {
            wake = wake.min(self.epoch + deadline);
        }
        wake
    }

    fn stage(&mut self, event: StageEvent) {
        let now = self.epoch.elapsed();
        if let Some(stage) = &mut self.stage {
            stage.handle(now, event);
        }
    }

    fn hear(&mut self, event: HeraldEvent) {
        match event {
            HeraldEvent::LinkUp(link) => self.joined(Child::Mesh {
                link,
                news: News::default(),
                wants: Bitmap::new(self.links.geometry.piece_count()),
            }),
            HeraldEvent::Wants {
                token,
                pieces,
                part,
            } => self.wants(ChildId(token), pieces, part),
            HeraldEvent::V2Joined(child) => self.joined(Child::V2(child)),
            HeraldEvent::LinkDown(token) => self.left(ChildId(token)),
            HeraldEvent::ChildShows {
                token,
                arriving,
                held,
            } => {
                let child = ChildId(token);
                for what in arriving
                    .into_iter()
                    .map(Shown::Arriving)
                    .chain(held.into_iter().map(Shown::Held))
                {
                    self.stage(StageEvent::ChildShows { child, what });
                }
            }
            HeraldEvent::Arriving(segment) => self.arriving(segment),
            HeraldEvent::Asked {
                child,
                piece,
                offset,
            } => self.stage(StageEvent::Asked {
                child,
                piece,
                offset,
            }),
            HeraldEvent::Served {
                child,
                piece,
                offset,
            } => self.stage(StageEvent::Served {
                child,
                piece,
                offset,
            }),
            HeraldEvent::SessionEnded => {
                self.look();
                self.nothing_more_comes();
            }
        }
    }

    fn joined(&mut self, child: Child) {
        let (id, kind) = match &child {
            Child::Mesh { link, .. } => (ChildId(link.its_token), ChildKind::Mesh),
            Child::V2(v2) => (v2.child, ChildKind::V2),
        };
        self.children.insert(id, child);
        if self.stage.is_some() {
            self.stage(StageEvent::Joined { child: id, kind });
            if let Some(Child::Mesh { news, .. }) = self.children.get_mut(&id) {
                news.digests.extend(self.held.ones().map(PieceNumber));
            }
        } else {
            self.tell_all_to(id);
        }
        self.nothing_more_comes();
    }

    /// A child of a seed told what it wants. Without a stage it is told everything anyway.
    fn wants(&mut self, child: ChildId, pieces: Bitmap, part: bool) {
        if self.stage.is_none() {
            return;
        }
        let Some(Child::Mesh { news, wants, .. }) = self.children.get_mut(&child) else {
            return;
        };
        *wants = pieces;
        let held = wants.ones().filter(|&piece| self.held.get(piece));
        news.held.extend(held.map(PieceNumber));
        let arriving = self.arriving.ones();
        news.arriving.extend(arriving.filter(|&segment| {
            let span = self.links.geometry.segment(SegmentIndex(segment));
            span.is_some_and(|span| wants.get(span.piece.0))
        }));
        // Somebody waits for these: nothing is gathered meanwhile.
        if !news.held.is_empty() || !news.arriving.is_empty() {
            self.flush_at = Some(Instant::now());
        }
        // It would neither take nor pass on what it is shown beyond that.
        self.stage(if part {
            StageEvent::Left { child }
        } else {
            StageEvent::Joined {
                child,
                kind: ChildKind::Mesh,
            }
        });
    }

    /// Without a session a v2 child must not wait for what will not come.
    fn nothing_more_comes(&mut self) {
        if self.links.has_session() || self.stage.is_some() && self.held.is_full() {
            return;
        }
        // Only a part was wanted here: there is nothing to stage any more.
        if self.stage.take().is_some() {
            let everybody: Vec<ChildId> = self.children.keys().copied().collect();
            for child in everybody {
                self.tell_all_to(child);
            }
        }
        let everybody: Vec<ChildId> = self.children.keys().copied().collect();
        for id in everybody {
            if matches!(self.children.get(&id), Some(Child::V2(_))) {
                self.tell_all_to(id);
                if let Some(Child::V2(v2)) = self.children.get_mut(&id) {
                    v2.end();
                }
            }
        }
    }

    fn left(&mut self, child: ChildId) {
        self.children.remove(&child);
        self.stage(StageEvent::Left { child });
    }

    /// First bytes of a segment are here.
    fn arriving(&mut self, segment: SegmentIndex) {
        if segment.0 >= self.arriving.len() || !self.arriving.set(segment.0) {
            return;
        }
        if self.stage.is_some() {
            self.stage(StageEvent::Arriving { segment });
            let span = self.links.geometry.segment(segment);
            for child in self.children.values_mut() {
                if let Child::Mesh { news, wants, .. } = child
                    && span.is_some_and(|span| wants.get(span.piece.0))
                {
                    news.arriving.push(segment.0);
                }
            }
            return;
        }
        for child in self.children.values_mut() {
            if let Child::Mesh { news, .. } = child {
                news.arriving.push(segment.0);
            }
        }
        self.soon();
    }

    /// Compares what is held with what was known to be.
    fn look(&mut self) {
        let Ok(now) = self.links.task.recorded() else {
            return self.deleted();
        };
        let fresh: Vec<u32> = now.ones().filter(|&piece| !self.held.get(piece)).collect();
        let gone: Vec<u32> = self.held.ones().filter(|&piece| !now.get(piece)).collect();
        self.held = now;
        for piece in fresh.into_iter().map(PieceNumber) {
            if self.stage.is_some() {
                self.stage(StageEvent::PieceHeld { piece });
                // Children that fetch it from each other wait for its digest.
                self.tell_digest(piece);
                for child in self.children.values_mut() {
                    if matches!(child, Child::Mesh { wants, .. } if wants.get(piece.0)) {
                        tell(child, piece);
                    }
                }
            } else {
                self.tell_held(piece);
            }
        }
        if !gone.is_empty() {
            for child in self.children.values() {
                if let Child::Mesh { link, .. } = child {
                    for pieces in gone.chunks(NUMBERS_MAX) {
                        let pieces = pieces.to_vec();
                        link.send(Kind::Drop(DropFrame { pieces }));
                    }
                }
            }
        }
    }

    /// The task was deleted: nothing of it can be had here.
    fn deleted(&mut self) {
        for child in self.children.values() {
            if let Child::Mesh { link, .. } = child {
                link.cancel.cancel();
            }
        }
        self.children.clear();
    }

    fn soon(&mut self) {
        self.flush_at.get_or_insert_with(|| Instant::now() + GATHER);
    }

    fn tell_held(&mut self, piece: PieceNumber) {
        for child in self.children.values_mut() {
            tell(child, piece);
        }
        self.soon();
    }

    fn tell_digest(&mut self, piece: PieceNumber) {
        for child in self.children.values_mut() {
            if let Child::Mesh { news, .. } = child {
                news.digests.push(piece);
            }
        }
        self.soon();
    }

    fn tell_all_to(&mut self, id: ChildId) {
        let Some(child) = self.children.get_mut(&id) else {
            return;
        };
        for piece in self.held.ones() {
            tell(child, PieceNumber(piece));
        }
        if let Child::Mesh { news, .. } = child {
            news.arriving.extend(self.arriving.ones());
        }
        self.soon();
    }

    fn decide(&mut self) {
        let now = self.epoch.elapsed();
        let Some(stage) = &mut self.stage else { return };
        let (count, rate) = self.links.hub.uploads.uplink();
        stage.set_uplink(count, rate);
        let mut actions = std::mem::take(&mut self.actions);
        stage.decide(now, &mut actions);
        for action in actions.drain(..) {
            match action {
                StageAction::ShowSegment { child, segment } => self.show_segment(child, segment),
                StageAction::ShowPiece { child, piece } => {
                    if let Some(child) = self.children.get_mut(&child) {
                        tell(child, piece);
                    }
                }
                StageAction::Open => {
                    self.stage = None;
                    let everybody: Vec<ChildId> = self.children.keys().copied().collect();
                    for child in everybody {
                        self.tell_all_to(child);
                    }
                }
            }
        }
        self.actions = actions;
        // What the stage shows is not held back: children wait for it.
        self.flush();
    }

    fn show_segment(&mut self, child: ChildId, segment: SegmentIndex) {
        if let Some(Child::Mesh { news, .. }) = self.children.get_mut(&child) {
            news.arriving.push(segment.0);
        }
    }

    /// Sends what was gathered.
    fn flush(&mut self) {
        self.flush_at = None;
        let task = &self.links.task;
        let mut dead = Vec::new();
        for (&id, child) in &mut self.children {
            match child {
                Child::Mesh { link, news, .. } => {
                    while let Some(have) = news.take(task) {
                        link.send(Kind::Have(have));
                    }
                }
                Child::V2(v2) => {
                    let gone = v2.tell.as_ref().is_some_and(mpsc::Sender::is_closed);
                    let done = v2.told_all.is_some_and(|at| at.elapsed() > TOLD_KEPT);
                    if gone || done {
                        dead.push(id);
                    }
                }
            }
        }
        for child in dead {
            self.left(child);
        }
    }
}

/// The pieces of a task among `numbers`, which a foreign host sent: however many they are, they take one bit per piece from here on.
pub(super) fn pieces_of(geometry: &Geometry, numbers: &[u32]) -> Bitmap {
    let count = geometry.piece_count();
    let mut pieces = Bitmap::new(count);
    for &number in numbers.iter().filter(|&&number| number < count) {
        pieces.set(number);
    }
    pieces
}

/// Tells, or notes to tell, a child that a piece is held.
fn tell(child: &mut Child, piece: PieceNumber) {
    match child {
        Child::Mesh { news, .. } => news.held.push(piece),
        Child::V2(v2) => {
            if piece.0 < v2.interested.len() && v2.interested.clear(piece.0) {
                if let Some(tell) = &v2.tell {
                    // The queue has room for every piece that it is interested in.
                    let _ = tell.try_send(piece);
                }
                if v2.interested.count() == 0 {
                    v2.end();
                }
            }
        }
    }
}

impl News {
    /// A frame that tells as much of it as fits, if there is any.
    fn take(&mut self, task: &storage::Task) -> Option<Have> {
        if self.arriving.is_empty() && self.held.is_empty() && self.digests.is_empty() {
            return None;
        }
        let mut have = Have {
            arriving: front(&mut self.arriving),
            ..Have::default()
        };
        for piece in front(&mut self.held) {
            if let Some(record) = task.piece_record(piece) {
                have.held.push(piece.0);
                have.held_crc32.push(record.crc32.0);
            }
        }
        for piece in front(&mut self.digests) {
            if let Some(record) = task.piece_record(piece) {
                have.known.push(piece.0);
                have.known_crc32.push(record.crc32.0);
            }
        }
        Some(have)
    }
}

/// Takes the first items of a list, as many as a frame can have.
fn front<T>(list: &mut Vec<T>) -> Vec<T> {
    let rest = list.split_off(list.len().min(NUMBERS_MAX));
    std::mem::replace(list, rest)
}

#[cfg(test)]
mod tests;
