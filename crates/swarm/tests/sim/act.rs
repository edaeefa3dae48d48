//! What a host does: its actions carried out, its messages received.

use std::collections::BTreeMap;

use protocol::PieceNumber;
use swarm::{
    ChildId, Failure, NeighbourId, Picker, PickerAction, PickerEvent, RequestId, Shown, Slots,
    SlotsAction, SlotsEvent, Stage, StageAction, StageEvent, Suspicion, UploadId,
};

use super::host::{Download, Host, Speaks, Upload};
use super::{Message, World};

impl World {
    /// Lets every part of the host decide, and carries out what they say.
    pub(super) fn poke(&mut self, host: usize) {
        if !self.hosts[host].alive || self.hosts[host].frozen {
            return;
        }
        let now = self.now;
        let mut actions = (Vec::new(), Vec::new(), Vec::new());
        let target = &mut self.hosts[host];
        if let Some(picker) = &mut target.picker {
            picker.decide(now, &mut actions.0);
        }
        if let Some(slots) = &mut target.slots {
            slots.decide(now, &mut actions.1);
        }
        if let Some(stage) = &mut target.stage {
            stage.decide(now, &mut actions.2);
        }
        actions
            .0
            .into_iter()
            .for_each(|action| self.picked(host, action));
        actions
            .1
            .into_iter()
            .for_each(|action| self.slotted(host, action));
        actions
            .2
            .into_iter()
            .for_each(|action| self.staged(host, action));
        while let Some((piece, parent)) = self.hosts[host].next_v2() {
            let length = self.geometry.piece(PieceNumber(piece)).unwrap().length;
            let id = self.hosts[host].new_id();
            self.ask(
                host,
                parent,
                Download {
                    id,
                    parent,
                    piece,
                    offset: 0,
                    length,
                    received: 0,
                },
            );
        }
        self.tell_news(host);
        self.pump(host);
        let target = &self.hosts[host];
        let deadlines = [
            target.picker.as_ref().and_then(Picker::next_deadline),
            target.slots.as_ref().and_then(Slots::next_deadline),
            target.stage.as_ref().and_then(Stage::next_deadline),
            target.news.next_deadline(),
        ];
        if let Some(at) = deadlines.into_iter().flatten().min() {
            assert!(
                at > now,
                "host {host} wants to be woken in the past: {deadlines:?} at {now:?}"
            );
            self.wake_at(host, at);
        }
    }

    fn tell_news(&mut self, host: usize) {
        let Some(news) = self.hosts[host].news.take(self.now) else {
            return;
        };
        let target = &self.hosts[host];
        let own = target.speaks;
        // Neighbours of ours hear all; the seed too, for its stage. v2 children hear of whole pieces.
        let mut ears: BTreeMap<usize, Speaks> = target.children.clone();
        ears.insert(0, Speaks::Ours);
        for (ear, speaks) in ears {
            let fits = |what: &&Shown| {
                speaks == Speaks::Ours && own == Speaks::Ours || matches!(what, Shown::Held(_))
            };
            let told: Vec<Shown> = news.iter().filter(fits).cloned().collect();
            self.send(host, ear, Message::Announce(told));
        }
    }

    fn ask(&mut self, host: usize, parent: usize, download: Download) {
        assert!(
            self.hosts[host].parents.contains_key(&parent),
            "host {host} asks {parent}, which is gone"
        );
        let Download {
            id: request,
            piece,
            offset,
            length,
            ..
        } = download;
        assert!(length > 0);
        self.hosts[host].requests.push(download);
        self.report.asked += 1;
        self.send(
            host,
            parent,
            Message::Ask {
                request,
                piece,
                offset,
                length,
            },
        );
    }

    fn picked(&mut self, host: usize, action: PickerAction) {
        match action {
            PickerAction::Request(request) => {
                let parent = request.neighbour.0 as usize;
                let (id, piece) = (request.id.0, request.piece.0);
                let (offset, length) = (request.offset, request.length);
                self.ask(
                    host,
                    parent,
                    Download {
                        id,
                        parent,
                        piece,
                        offset,
                        length,
                        received: 0,
                    },
                );
            }
            PickerAction::Cancel { request } => {
                let requests = &mut self.hosts[host].requests;
                let at = requests
                    .iter()
                    .position(|other| other.id == request.0)
                    .expect("a cancelled request is out");
                let parent = requests.remove(at).parent;
                self.send(host, parent, Message::Cancel { request: request.0 });
            }
            PickerAction::Decline { neighbour } => {
                self.report.declined += 1;
                self.send(host, neighbour.0 as usize, Message::Decline);
            }
            PickerAction::Suspect {
                why: Suspicion::Slow,
                ..
            } => self.report.slow += 1,
            PickerAction::Suspect { .. } => self.report.frozen += 1,
            PickerAction::Starved { .. } => self.report.starved += 1,
            PickerAction::Complete => {}
        }
    }

    fn slotted(&mut self, host: usize, action: SlotsAction) {
        let find =
            |uploads: &[Upload], id: UploadId| uploads.iter().position(|upload| upload.id == id.0);
        match action {
            SlotsAction::Serve { upload } => {
                let sender = &mut self.hosts[host];
                let Some(at) = find(&sender.uploads, upload) else {
                    return;
                };
                let upload = &mut sender.uploads[at];
                upload.serving = true;
                let (child, piece) = (ChildId(upload.child as u64), PieceNumber(upload.piece));
                let event = StageEvent::Asked {
                    child,
                    piece,
                    offset: upload.offset,
                };
                if let Some(stage) = &mut sender.stage {
                    stage.handle(self.now, event);
                }
            }
            SlotsAction::Refuse { upload } => {
                let at =
                    find(&self.hosts[host].uploads, upload).expect("a refused upload was asked");
                let gone = self.hosts[host].uploads.remove(at);
                self.report.refused += 1;
                self.send(
                    host,
                    gone.child,
                    Message::Refused {
                        request: gone.request,
                    },
                );
            }
            SlotsAction::Grant { child } => {
                self.send(host, usize::try_from(child.0).unwrap(), Message::Grant)
            }
            SlotsAction::Drop { upload } => {
                if let Some(at) = find(&self.hosts[host].uploads, upload) {
                    let gone = self.hosts[host].uploads.remove(at);
                    self.send(
                        host,
                        gone.child,
                        Message::Closed {
                            request: gone.request,
                        },
                    );
                }
            }
        }
    }

    fn staged(&mut self, host: usize, action: StageAction) {
        match action {
            StageAction::ShowSegment { child, segment } => {
                self.send(
                    host,
                    usize::try_from(child.0).unwrap(),
                    Message::Announce(vec![Shown::Arriving(segment)]),
                );
            }
            StageAction::ShowPiece { child, piece } => {
                self.send(
                    host,
                    usize::try_from(child.0).unwrap(),
                    Message::Announce(vec![Shown::Held(piece)]),
                );
            }
            StageAction::Open => {
                let ours = self.hosts[host]
                    .children
                    .iter()
                    .filter(|(_, speaks)| **speaks == Speaks::Ours);
                for child in ours.map(|(child, _)| *child).collect::<Vec<_>>() {
                    self.send(host, child, Message::Announce(vec![Shown::Everything]));
                }
            }
        }
    }

    pub(super) fn receive(&mut self, from: usize, to: usize, message: Message) {
        let now = self.now;
        let geometry = self.geometry;
        let target = &mut self.hosts[to];
        let neighbour = NeighbourId(u32::try_from(from).unwrap());
        let over = |host: &mut Host, request: u64, failure: Failure| {
            let Some(at) = host
                .requests
                .iter()
                .position(|r| r.id == request && r.parent == from)
            else {
                return;
            };
            let received = host.requests.remove(at).received;
            if let Some(picker) = &mut host.picker {
                picker.handle(
                    now,
                    PickerEvent::Failed {
                        request: RequestId(request),
                        failure,
                        received,
                    },
                );
            }
        };
        match message {
            Message::Announce(shown) => target.learn(from, &shown, &geometry, now),
            Message::Refused { request } => over(target, request, Failure::Refused),
            Message::NotAhead { request } => over(target, request, Failure::NotAhead),
            Message::Closed { request } => over(target, request, Failure::Lost),
            Message::Grant => {
                if let Some(picker) = &mut target.picker {
                    picker.handle(now, PickerEvent::Granted { neighbour });
                }
            }
            Message::Decline => {
                if let Some(slots) = &mut target.slots {
                    slots.handle(
                        now,
                        SlotsEvent::Declined {
                            child: ChildId(from as u64),
                        },
                    );
                }
            }
            Message::Cancel { request } => {
                if let Some(at) = target
                    .uploads
                    .iter()
                    .position(|u| u.child == from && u.request == request)
                {
                    self.end_upload(to, at, false);
                }
            }
            Message::Ask {
                request,
                piece,
                offset,
                length,
            } => {
                let id = target.new_id();
                let (sent, on_the_way, serving) = (0, 0, false);
                self.asked(
                    to,
                    from,
                    Upload {
                        id,
                        child: from,
                        request,
                        piece,
                        offset,
                        length,
                        sent,
                        on_the_way,
                        serving,
                    },
                );
            }
        }
    }
}
